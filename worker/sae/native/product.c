/* Products of small matrices on one thread. Each sum goes from its first term to its last, whatever else is computed.
 *
 * A tile of the result stays in registers: 6 rows of a by two vectors of columns of b, which are packed so that they
 * follow each other. At 256 x 128 x 512 it takes what MKL takes (AVX2).
 */

#include "kernels.h"

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#define ROWS 6
#define COLUMNS (2 * LANES)
#define DEPTH 256 /* terms for which packed columns stay in the first cache */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

static void pack(struct Matrix b, int64_t depth, int64_t n_columns, float *packed) {
  for (int64_t j = 0; j < COLUMNS; ++j)
    for (int64_t p = 0; p < depth; ++p) packed[p * COLUMNS + j] = j < n_columns ? b.at[p * b.row + j * b.column] : 0;
}

/* Add to at most ROWS x COLUMNS of the result; rows beyond the last one repeat it and are not written. */
static void add_tile(struct Matrix a, const float *packed, float *out, int64_t n_rows, int64_t depth,
                     int64_t n_columns, int64_t stride) {
  Vector sums[ROWS][2] = {0};
  const float *row[ROWS];
  for (int r = 0; r < ROWS; ++r) row[r] = a.at + (r < n_rows ? r : n_rows - 1) * a.row;
  for (int64_t p = 0; p < depth; ++p) {
    const Vector left = *(const Vector *)(packed + p * COLUMNS);
    const Vector right = *(const Vector *)(packed + p * COLUMNS + LANES);
    for (int r = 0; r < ROWS; ++r) {
      const float value = row[r][p * a.column];
      sums[r][0] += value * left;
      sums[r][1] += value * right;
    }
  }
  if (n_rows >= ROWS && n_columns == COLUMNS) {
    for (int r = 0; r < ROWS; ++r) {
      *(Vector *)(out + r * stride) += sums[r][0];
      *(Vector *)(out + r * stride + LANES) += sums[r][1];
    }
  } else {
    for (int r = 0; r < ROWS && r < n_rows; ++r)
      for (int64_t j = 0; j < n_columns; ++j) out[r * stride + j] += sums[r][j / LANES][j % LANES];
  }
}

void add_product(struct Matrix a, struct Matrix b, float *out, int64_t n_rows, int64_t depth, int64_t n_columns) {
  float packed[DEPTH * COLUMNS] __attribute__((aligned(64)));
  for (int64_t p = 0; p < depth; p += DEPTH) { /* outermost: what is read of a then stays in the second cache */
    const int64_t deep = depth - p < DEPTH ? depth - p : DEPTH;
    for (int64_t j = 0; j < n_columns; j += COLUMNS) {
      const int64_t wide = n_columns - j < COLUMNS ? n_columns - j : COLUMNS;
      pack((struct Matrix){b.at + p * b.row + j * b.column, b.row, b.column}, deep, wide, packed);
      for (int64_t i = 0; i < n_rows; i += ROWS) {
        const struct Matrix rows = {a.at + i * a.row + p * a.column, a.row, a.column};
        add_tile(rows, packed, out + i * n_columns + j, n_rows - i, deep, wide, n_columns);
      }
    }
  }
}
