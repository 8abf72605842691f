/* What surrounds the encoder's product in a training step on a CPU, and the normalisers of a model's logits. `kernels.py`
 * says what each function computes.
 *
 * Rows are contiguous float32, indices int64. Every sum is one thread's, from its first term to its last, so results
 * do not depend on the number of threads.
 */

#include "kernels.h"

#include <math.h>

#define COLUMNS 64 /* of one thread's share of a row */

void reconstruction_error(const float *x, const float *acts, const int64_t *indices, const float *W_dec,
                          const float *b_pre, int64_t n_rows, int64_t k, int64_t d, float *error, double *squares,
                          int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) {
    float *left = error + t * d;
    for (int64_t i = 0; i < d; ++i) left[i] = x[t * d + i] - b_pre[i];
    for (int64_t j = t * k; j < (t + 1) * k; ++j)
      if (acts[j] != 0) add(left, -acts[j], W_dec + indices[j] * d, d);
    squares[t] = dot(left, left, d);
  }
}

void mark_fired(const float *acts, const int64_t *indices, int64_t n_rows, int64_t k, int64_t *since) {
  for (int64_t t = 0; t < n_rows; ++t)
    for (int64_t j = t * k; j < (t + 1) * k; ++j)
      if (acts[j] > 0) since[indices[j]] = n_rows - 1 - t;
}

void by_latent(const int64_t *indices, int64_t n_chosen, int64_t n, int64_t *order, int64_t *bounds) {
  for (int64_t i = 0; i <= n; ++i) bounds[i] = 0;
  for (int64_t j = 0; j < n_chosen; ++j) ++bounds[indices[j] + 1];
  for (int64_t i = 0; i < n; ++i) bounds[i + 1] += bounds[i];
  for (int64_t j = 0; j < n_chosen; ++j) order[bounds[indices[j]]++] = j; /* now each is where the next begins */
  for (int64_t i = n; i > 0; --i) bounds[i] = bounds[i - 1];
  bounds[0] = 0;
}

void gradients(const struct Part *parts, int64_t n_parts, const float *acts, const float *centred, const float *W_dec,
               const float *W_enc, const int64_t *order, const int64_t *bounds, int64_t n_rows, int64_t width,
               int64_t n, int64_t d, float *W_enc_out, float *b_enc_out, float *W_dec_out, float *b_pre_out,
               int threads) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n; ++i) {
    float *decoder = W_dec_out + i * d, *encoder = W_enc_out + i * d, bias = 0;
    clear(decoder, d);
    clear(encoder, d);
    for (int64_t at = bounds[i]; at < bounds[i + 1]; ++at) {
      const int64_t t = order[at] / width, rank = order[at] % width;
      const float act = acts[order[at]];
      if (act == 0) continue;
      float by_act = 0;
      for (const struct Part *part = parts; part < parts + n_parts; ++part) {
        if (rank >= part->k) continue;
        by_act += dot(part->gradient + t * d, W_dec + i * d, d);
        add(decoder, act, part->gradient + t * d, d);
      }
      if (act <= 0) continue;
      add(encoder, by_act, centred + t * d, d);
      bias += by_act;
    }
    b_enc_out[i] = bias;
  }
  if (!b_pre_out) return;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < d; first += COLUMNS) {
    const int64_t many = d - first < COLUMNS ? d - first : COLUMNS;
    float *out = b_pre_out + first;
    clear(out, many);
    for (const struct Part *part = parts; part < parts + n_parts; ++part)
      for (int64_t t = 0; t < n_rows; ++t) add(out, 1, part->gradient + t * d + first, many);
    /* Summed over the batch first: one product of a vector with W_enc instead of one per token. */
    for (int64_t i = 0; i < n; ++i) add(out, -b_enc_out[i], W_enc + i * d + first, many);
  }
}

double adam(const struct AdamStep *given, float *weights, float *gradients, float *exp_avg, float *exp_avg_sq,
          float *average, int64_t n_rows, int64_t d, int is_sphere, int is_projected, double *squares, int threads) {
  const struct AdamStep s = *given;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < n_rows; ++r) {
    float *w = weights + r * d, *g = gradients + r * d, *m = exp_avg + r * d, *v = exp_avg_sq + r * d;
    float *mean = average + r * d;
    if (is_sphere && !is_projected) add(g, -dot(g, w, d), w, d);
    squares[r] = dot(g, g, d);
    for (int64_t i = 0; i < d; ++i) {
      m[i] = s.keep1 * m[i] + s.new1 * g[i];
      v[i] = s.keep2 * v[i] + s.new2 * g[i] * g[i];
      w[i] -= s.step_size * m[i] / (sqrtf(v[i]) / s.second_bias + s.eps);
    }
    if (is_sphere) {
      const float norm = sqrtf(dot(w, w, d));
      for (int64_t i = 0; i < d; ++i) w[i] /= norm;
    }
    for (int64_t i = 0; i < d; ++i) mean[i] += s.share * (w[i] - mean[i]);
  }
  double sum = 0;
  for (int64_t r = 0; r < n_rows; ++r) sum += squares[r];
  return sum;
}

/* e^x of x <= 0 to about one unit in the last place, in operations that fill vector registers. Cephes' polynomial; fmaf
 * keeps what is left of x from being taken together otherwise. */
static inline float exp_of(float x) {
  const float n = nearbyintf(x * 1.44269504f);
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
  float y = 1.9875691500e-4f;
  y = fmaf(y, r, 1.3981999507e-3f);
  y = fmaf(y, r, 8.3334519073e-3f);
  y = fmaf(y, r, 4.1665795894e-2f);
  y = fmaf(y, r, 1.6666665459e-1f);
  y = fmaf(y, r, 5.0000001201e-1f);
  y = fmaf(y, r * r, r) + 1;
  const union {
    uint32_t bits;
    float value;
  } scale = {(uint32_t)((int32_t)(x < -87 ? 0 : n) + 127) << 23};
  return x < -87 ? 0 : y * scale.value;
}

#define BLOCK 1024 /* terms that are summed in float32; their sums in float64 */

static float log_sum_exp_of(const float *row, int64_t n) {
  float maxima[16], most = -INFINITY;
  for (int l = 0; l < 16; ++l) maxima[l] = -INFINITY;
  for (int64_t first = 0; first + 16 <= n; first += 16)
    for (int l = 0; l < 16; ++l) maxima[l] = row[first + l] > maxima[l] ? row[first + l] : maxima[l];
  for (int l = 0; l < 16; ++l) most = maxima[l] > most ? maxima[l] : most;
  for (int64_t j = n / 16 * 16; j < n; ++j) most = row[j] > most ? row[j] : most;
  double sum = 0;
  for (int64_t first = 0; first < n; first += BLOCK) {
    const int64_t end = first + BLOCK < n ? first + BLOCK : n;
    float part = 0;
    for (int64_t j = first; j < end; ++j) part += exp_of(row[j] - most);
    sum += part;
  }
  return most + (float)log(sum);
}

void log_sum_exp(const float *rows, int64_t n_rows, int64_t n, float *normalisers, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) normalisers[t] = log_sum_exp_of(rows + t * n, n);
}

void softmax(float *rows, int64_t n_rows, int64_t n, float *normalisers, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) {
    float *row = rows + t * n;
    const float normaliser = log_sum_exp_of(row, n);
    for (int64_t j = 0; j < n; ++j) row[j] = exp_of(row[j] - normaliser);
    normalisers[t] = normaliser;
  }
}
