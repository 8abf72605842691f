/* Selection of the largest values of a row. Plain loops that compilers vectorise for any processor. */

#include "kernels.h"

#include <math.h>
#include <stddef.h>

#define SIDE 16 /* values that are compared side by side */
#define GROUP 8
#define MOST_GROUPS 4096
#define MOST_LANES 128
#define CANDIDATES 256

struct Row {
  const float *values, *bias; /* NULL: none is added */
  int64_t n;
};

static inline float value_of(struct Row row, int64_t j) {
  return row.bias ? row.values[j] + row.bias[j] : row.values[j];
}

static inline float larger(float a, float b) { return a > b ? a : b; }

/* Put a value among those that are held, largest first; of equal ones the first stays first, NaN is above all. */
static inline void insert(float value, int64_t index, int64_t at, float *values, int64_t *indices) {
  for (; at > 0 && (values[at - 1] < value || (value != value && values[at - 1] == values[at - 1])); --at) {
    values[at] = values[at - 1];
    indices[at] = indices[at - 1];
  }
  values[at] = value;
  indices[at] = index;
}

static void insert_all(struct Row row, int64_t k, float *values, int64_t *indices) {
  for (int64_t j = 0; j < row.n; ++j) {
    const float value = value_of(row, j);
    if (j < k) {
      insert(value, j, j, values, indices);
    } else if (value > values[k - 1] || (value != value && values[k - 1] == values[k - 1])) {
      insert(value, j, k - 1, values, indices);
    }
  }
}

/* The maximum of each group of values: `size` of them, SIDE apart, SIDE groups beside each other. Returns the sum of
 * all, which is NaN where a value is. */
static inline __attribute__((always_inline)) float group_maxima(struct Row row, int64_t size, float *maxima) {
  float sums[SIDE] = {0}, sum = 0;
  int64_t first = 0;
  for (; size == 1 && first < row.n; ++first) {
    maxima[first] = value_of(row, first);
    sum += maxima[first];
  }
  for (; size == 1 && first % SIDE; ++first) maxima[first] = -INFINITY;
  for (; first + SIDE * size <= row.n; first += SIDE * size, maxima += SIDE) {
    for (int l = 0; l < SIDE; ++l) maxima[l] = -INFINITY;
    for (int64_t j = first; j < first + SIDE * size; j += SIDE * GROUP) {
      for (int l = 0; l < SIDE; ++l) {
        float most = maxima[l], added = 0;
#pragma GCC unroll 8
        for (int s = 0; s < GROUP; ++s) {
          const float value = value_of(row, j + s * SIDE + l);
          most = larger(value, most);
          added += value;
        }
        maxima[l] = most;
        sums[l] += added;
      }
    }
  }
  for (int l = 0; l < SIDE && first < row.n; ++l) maxima[l] = -INFINITY;
  for (int64_t j = first; j < row.n; ++j) {
    const float value = value_of(row, j);
    maxima[(j - first) % SIDE] = larger(value, maxima[(j - first) % SIDE]);
    sums[0] += value;
  }
  for (int l = 0; l < SIDE; ++l) sum += sums[l];
  return sum;
}

/* A bound that at least k of some values reach: the k-th largest of the maxima of `lanes` parts of them. */
static float bound_of(const float *values, int64_t n, int64_t lanes, int64_t k) {
  float maxima[MOST_LANES], bound = INFINITY;
  int32_t above[MOST_LANES] = {0};
  for (int64_t l = 0; l < lanes; ++l) maxima[l] = values[l];
  for (int64_t first = lanes; first < n; first += lanes)
    for (int64_t l = 0; l < (n - first < lanes ? n - first : lanes); ++l) maxima[l] = larger(values[first + l], maxima[l]);
  for (int64_t m = 0; m < lanes; ++m)
    for (int64_t l = 0; l < lanes; ++l) above[l] += maxima[m] > maxima[l];
  for (int64_t l = 0; l < lanes; ++l) bound = above[l] < k && maxima[l] < bound ? maxima[l] : bound;
  return bound;
}

/* The k largest of a row by a bound. Some 1.4 k values reach it, and each goes where its rank says. Returns whether that
 * was possible: it is not with NaN, or where too many values are equal. */
static inline __attribute__((always_inline)) int by_bound(struct Row row, int64_t k, float *values, int64_t *indices) {
  float maxima[MOST_GROUPS + SIDE], found[CANDIDATES + SIDE];
  int32_t places[CANDIDATES + SIDE], rank[CANDIDATES + SIDE];
  int64_t lanes = SIDE, size = GROUP, n_groups, many = 0;
  while (lanes < 2 * k) lanes *= 2;
  if (lanes > MOST_LANES) return 0;
  while (row.n > size * MOST_GROUPS) size *= 2;
  if (row.n < GROUP * lanes) size = 1;
  n_groups = (row.n + SIDE * size - 1) / (SIDE * size) * SIDE;
  const float sum = group_maxima(row, size, maxima);
  const float bound = bound_of(maxima, n_groups, lanes < n_groups ? lanes : n_groups, k);
  if (sum != sum || bound == -INFINITY) return 0;
  for (int64_t g = 0; g < n_groups; g += SIDE) {
    uint32_t reach = 0; /* a bit for each group */
    for (int l = 0; l < SIDE; ++l) reach |= maxima[g + l] >= bound ? 1u << l : 0;
    for (; reach; reach &= reach - 1) {
      const int64_t group = g * size + __builtin_ctz(reach);
      for (int64_t j = group; j < group + SIDE * size && j < row.n; j += SIDE) {
        if (many == CANDIDATES) return 0;
        found[many] = value_of(row, j);
        places[many] = (int32_t)j;
        many += found[many] >= bound;
      }
    }
  }
  for (int l = 0; l < SIDE; ++l) found[many + l] = -INFINITY;
  for (int64_t c = 0; c < many + SIDE; ++c) rank[c] = 0;
  for (int64_t d = 0; d < many; ++d)
    for (int64_t c = 0; c < (many + SIDE - 1) / SIDE * SIDE; ++c)
      rank[c] += (found[d] > found[c]) | ((found[d] == found[c]) & (places[d] < places[c]));
  for (int64_t c = 0; c < many; ++c) {
    if (rank[c] >= k) continue;
    values[rank[c]] = found[c];
    indices[rank[c]] = places[c];
  }
  return 1;
}

static inline float float_of(uint32_t bits) {
  const union {
    uint32_t bits;
    float value;
  } both = {bits};
  return both.value;
}

static inline int64_t count_above(const float *row, int64_t n, float bound) {
  int32_t count = 0;
  for (int64_t j = 0; j < n; ++j) count += !(row[j] <= bound);
  return count;
}

/* The bits of positive floats are in the order of the floats: halving finds the least bound that at most k exceed. */
static void keep_top_k_of(float *row, int64_t n, int64_t k) {
  uint32_t low = 0, high = 0x7f800000; /* infinity: more than k are above the first, at most k above the other */
  int64_t above = count_above(row, n, 0);
  if (above <= k) high = 0;
  for (above = above <= k ? k : 0; above != k && low + 1 < high;) {
    const uint32_t middle = low + (high - low) / 2;
    const int64_t found = count_above(row, n, float_of(middle));
    if (found > k) {
      low = middle;
    } else {
      high = middle;
      above = found;
    }
  }
  const float bound = float_of(high);
  int64_t equal = k - above; /* of those that equal the bound the first are kept */
  if (equal) {
    for (int64_t j = 0; j < n; ++j)
      if (row[j] < bound || (row[j] == bound && equal-- <= 0)) row[j] = 0;
  } else {
    for (int64_t j = 0; j < n; ++j) row[j] = row[j] <= bound ? 0 : row[j];
  }
}

void top_k(const float *rows, const float *bias, int64_t n_rows, int64_t n, int64_t k, float *values, int64_t *indices,
           int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) {
    const struct Row row = {rows + t * n, bias, n};
    if (!(bias ? by_bound(row, k, values + t * k, indices + t * k)
               : by_bound((struct Row){row.values, NULL, n}, k, values + t * k, indices + t * k)))
      insert_all(row, k, values + t * k, indices + t * k);
  }
}

void keep_top_k(float *rows, int64_t n_rows, int64_t stride, int64_t n, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) keep_top_k_of(rows + t * stride, n, k);
}
