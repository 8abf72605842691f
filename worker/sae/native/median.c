/* What lies around the median of each row of differences. */

#include "kernels.h"

#include <float.h>
#include <math.h>

#define SIDE 16    /* values that are compared side by side */
#define BLOCK 1024 /* terms that are summed in float32; their sums in float64 */

union Float {
  float value;
  uint32_t bits;
};

/* Numbers of the same order as the values: of negative ones all bits are turned, of others the sign's. */
static inline uint32_t key_of(float value) {
  const union Float given = {value};
  return given.bits ^ ((uint32_t)((int32_t)given.bits >> 31) | 0x80000000u);
}

static inline float value_of(uint32_t key) {
  union Float found;
  found.bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  return found.value;
}

static int64_t at_most(float bound, const float *row, int64_t n) {
  int64_t found = 0;
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t end = first + BLOCK < n ? first + BLOCK : n;
    int32_t part = 0;
    for (int64_t j = first; j < end; ++j) part += row[j] <= bound;
    found += part;
  }
  return found;
}

static float largest_at_most(float bound, const float *row, int64_t n) {
  float most[SIDE], found = -INFINITY;
  for (int l = 0; l < SIDE; ++l) most[l] = -INFINITY;
  for (int64_t first = 0; first + SIDE <= n; first += SIDE)
    for (int l = 0; l < SIDE; ++l) {
      const float value = row[first + l] <= bound ? row[first + l] : -INFINITY;
      most[l] = value > most[l] ? value : most[l];
    }
  for (int l = 0; l < SIDE; ++l) found = most[l] > found ? most[l] : found;
  for (int64_t j = n / SIDE * SIDE; j < n; ++j) found = row[j] <= bound && row[j] > found ? row[j] : found;
  return found;
}

/* Between two values, and between two of one order of magnitude; the latter ends where no value is between them. */
static uint32_t halfway(uint32_t low, uint32_t high) {
  const uint32_t key = key_of(value_of(low) / 2 + value_of(high) / 2);
  return low < key && key < high ? key : low + (high - low) / 2;
}

/* The lower of the two in the middle where n is even. It is no further from the mean than the standard deviation; that
 * interval is halved until one value is in it, or a key. */
static float median_of(const float *row, int64_t n, double mean, double deviation) {
  if (!isfinite(mean)) return NAN;
  const int64_t rank = (n - 1) / 2;
  const double reach = fmin(1.001 * deviation, FLT_MAX / 2), centre = fmax(fmin(mean, FLT_MAX / 2), -FLT_MAX / 2);
  uint32_t low = key_of((float)(centre - reach)) - 1, high = key_of((float)(centre + reach)) + 1;
  int64_t below = at_most(value_of(low), row, n), within = at_most(value_of(high), row, n);
  if (below > rank) low = key_of(-INFINITY), below = 0;
  if (within <= rank) high = key_of(FLT_MAX), within = n;
  while (high - low > 1 && within - below > 1) {
    const uint32_t middle = halfway(low, high);
    const int64_t count = at_most(value_of(middle), row, n);
    if (count > rank)
      high = middle, within = count;
    else
      low = middle, below = count;
  }
  return largest_at_most(value_of(high), row, n);
}

/* Write the sum of |value - middle|, and that of its squares. */
static void sums_around(double middle, const float *row, int64_t n, double *sum, double *squares) {
  *sum = *squares = 0;
  const float at = (float)middle;
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t end = first + BLOCK < n ? first + BLOCK : n;
    float part = 0, part_of_squares = 0;
    for (int64_t j = first; j < end; ++j) {
      const float left = row[j] - at;
      part += fabsf(left);
      part_of_squares += left * left;
    }
    *sum += part;
    *squares += part_of_squares;
  }
}

void around_median(float *rows, const float *others, const int64_t *of, int64_t n_rows, int64_t n, double *found,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) {
    float *row = rows + t * n;
    const float *other = others + of[t] * n;
    double sum = 0, unused, squares;
    for (int64_t j = 0; j < n; ++j) sum += row[j] -= other[j];
    sums_around(sum / n, row, n, &unused, &squares);
    found[3 * t] = median_of(row, n, sum / n, sqrt(squares / n));
    sums_around(found[3 * t], row, n, &found[3 * t + 1], &found[3 * t + 2]);
  }
}
