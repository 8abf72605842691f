/* What the files of this library share: `kernels.py` and `whole_step.py` say what each function computes. */

#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>

struct Part { /* one reconstruction, of the first k latents of each token */
  const float *gradient;
  int64_t k;
};

struct AdamStep {
  float step_size, second_bias; /* lr / (1 - beta1^t), sqrt(1 - beta2^t) */
  float keep1, keep2, new1, new2; /* beta and 1 - beta of each moment: taken in float32 the second would be 1e-5 off */
  float eps;
  float share; /* of the weights in their average */
};

struct Matrix { /* element (i, j) is at[i * row + j * column] */
  const float *at;
  int64_t row, column;
};

/* Of rows + bias; no bias: NULL */
void top_k(const float *rows, const float *bias, int64_t n_rows, int64_t n, int64_t k, float *values, int64_t *indices,
           int threads);
void keep_top_k(float *rows, int64_t n_rows, int64_t stride, int64_t n, int64_t k, int threads);
void reconstruction_error(const float *x, const float *acts, const int64_t *indices, const float *W_dec,
                          const float *b_pre, int64_t n_rows, int64_t k, int64_t d, float *error, double *squares,
                          int threads);
void by_latent(const int64_t *indices, int64_t n_chosen, int64_t n, int64_t *order, int64_t *bounds);
void gradients(const struct Part *parts, int64_t n_parts, const float *acts, const float *centred, const float *W_dec,
               const float *W_enc, const int64_t *order, const int64_t *bounds, int64_t n_rows, int64_t width,
               int64_t n, int64_t d, float *W_enc_out, float *b_enc_out, float *W_dec_out, float *b_pre_out,
               int threads);
double adam(const struct AdamStep *given, float *weights, float *gradients, float *exp_avg, float *exp_avg_sq,
            float *average, int64_t n_rows, int64_t d, int is_sphere, int is_projected, double *squares, int threads);
/* Of rows - others[of], which take the rows' place: median, sum of |difference - median| and of its squares */
void around_median(float *rows, const float *others, const int64_t *of, int64_t n_rows, int64_t n, double *found,
                   int threads);
/* out += a b */
void add_product(struct Matrix a, struct Matrix b, float *out, int64_t n_rows, int64_t depth, int64_t n_columns);

static inline float dot(const float *a, const float *b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

static inline void add(float *to, float weight, const float *row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += weight * row[i];
}

static inline void clear(float *to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
}

#endif
