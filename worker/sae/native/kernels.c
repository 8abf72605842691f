/* What surrounds the encoder's product in a training step on a CPU. `kernels.py` says what each function computes.
 *
 * Rows are contiguous float32, indices int64. Every sum is one thread's, from its first term to its last, so results
 * do not depend on the number of threads.
 */

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16

/* Bit j: values[j] > least, or it is no number. */
static inline unsigned above(const float *values, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(least), _CMP_NLE_UQ);
#elif defined(__AVX2__)
  const __m256 bound = _mm256_set1_ps(least);
  const unsigned low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values), bound, _CMP_NLE_UQ));
  const unsigned high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + 8), bound, _CMP_NLE_UQ));
  return low | high << 8;
#else
  unsigned found = 0;
  for (int j = 0; j < LANES; ++j) found |= (unsigned)!(values[j] <= least) << j;
  return found;
#endif
}

/* Put a value among those that are held, largest first; of equal ones the first stays first, NaN is above all. */
static inline void insert(float value, int64_t index, int64_t at, float *values, int64_t *indices) {
  for (; at > 0 && (values[at - 1] < value || (value != value && values[at - 1] == values[at - 1])); --at) {
    values[at] = values[at - 1];
    indices[at] = indices[at - 1];
  }
  values[at] = value;
  indices[at] = index;
}

static void top_k_of(const float *row, int64_t n, int64_t k, float *values, int64_t *indices) {
  int64_t held = 0;
  float least = -INFINITY;
  for (int64_t first = 0; first < n; first += LANES) {
    const int64_t width = n - first < LANES ? n - first : LANES;
    unsigned found = held == k && width == LANES ? above(row + first, least) : (1u << width) - 1;
    for (; found; found &= found - 1) {
      const int64_t j = first + __builtin_ctz(found);
      if (held < k) {
        insert(row[j], j, held++, values, indices);
      } else if (row[j] > least || (row[j] != row[j] && least == least)) {
        insert(row[j], j, k - 1, values, indices);
      }
      if (held == k) least = values[k - 1];
    }
  }
}

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

void top_k(const float *rows, int64_t n_rows, int64_t n, int64_t k, float *values, int64_t *indices, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) top_k_of(rows + t * n, n, k, values + t * k, indices + t * k);
}

void decode_error(const float *x, const float *acts, const int64_t *indices, const float *W_dec, const float *b_pre,
                  int64_t n_rows, int64_t width, int64_t k, int64_t d, float *error, double *squares, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < n_rows; ++t) {
    float *left = error + t * d;
    for (int64_t i = 0; i < d; ++i) left[i] = x[t * d + i] - b_pre[i];
    for (int64_t j = t * width; j < t * width + k; ++j) add(left, -acts[j], W_dec + indices[j] * d, d);
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

struct Part { /* one reconstruction, of the first k latents of each token */
  const float *gradient;
  int64_t k;
};

void gradients(const struct Part *parts, int64_t n_parts, const float *acts, const float *centred, const float *W_dec,
               const int64_t *order, const int64_t *bounds, int64_t width, int64_t n, int64_t d, float *W_enc_out,
               float *b_enc_out, float *W_dec_out, int threads) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n; ++i) {
    float *decoder = W_dec_out + i * d, *encoder = W_enc_out + i * d, bias = 0;
    clear(decoder, d);
    clear(encoder, d);
    for (int64_t at = bounds[i]; at < bounds[i + 1]; ++at) {
      const int64_t t = order[at] / width, rank = order[at] % width;
      const float act = acts[order[at]];
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
}

struct AdamStep {
  float step_size, second_bias; /* lr / (1 - beta1^t), sqrt(1 - beta2^t) */
  float beta1, beta2, eps;
  float share; /* of the weights in their average */
};

void adam(const struct AdamStep *given, float *weights, float *gradients, float *exp_avg, float *exp_avg_sq,
          float *average, int64_t n_rows, int64_t d, int is_sphere, int is_projected, double *squares, int threads) {
  const struct AdamStep s = *given;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < n_rows; ++r) {
    float *w = weights + r * d, *g = gradients + r * d, *m = exp_avg + r * d, *v = exp_avg_sq + r * d;
    float *mean = average + r * d;
    if (is_sphere && !is_projected) add(g, -dot(g, w, d), w, d);
    squares[r] = dot(g, g, d);
    for (int64_t i = 0; i < d; ++i) {
      m[i] += (1 - s.beta1) * (g[i] - m[i]);
      v[i] = s.beta2 * v[i] + (1 - s.beta2) * g[i] * g[i];
      w[i] -= s.step_size * m[i] / (sqrtf(v[i]) / s.second_bias + s.eps);
    }
    if (is_sphere) {
      const float norm = sqrtf(dot(w, w, d));
      for (int64_t i = 0; i < d; ++i) w[i] /= norm;
    }
    for (int64_t i = 0; i < d; ++i) mean[i] += s.share * (w[i] - mean[i]);
  }
}
