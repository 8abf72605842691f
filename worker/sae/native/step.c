/* A whole training step of a small TopK autoencoder in one call, on one thread: what `train_step` does by hand. */

#include "kernels.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define ALIGNMENT 64
#define MOST_PARTS 2
#define BLOCK 256 /* tokens whose gradients in AuxK's values are held at once */

struct Parameter {
  float *weights, *exp_avg, *exp_avg_sq, *average;
};

struct Training { /* what stays the same from step to step; the memory is torch's */
  int64_t n, d, n_layers, n_parts, k_aux;
  int64_t k[MOST_PARTS]; /* of each reconstruction, rising: the last is how many latents a token keeps */
  double shares[MOST_PARTS]; /* of each in the loss */
  double aux_coef;
  int64_t dead_after;
  const double *variances; /* of each layer */
  int64_t *since; /* [n][n_layers]: tokens since each latent fired */
  double *sums; /* loss, AuxK, norm of the gradient, AuxK of nothing */
  struct Parameter W_enc, b_enc, W_dec, b_pre;
};

struct Batch {
  const float *x; /* [n_rows][d]: the rows of one layer, then those of the same tokens at the next */
  int64_t n_rows;
  int64_t tokens_seen; /* with this batch */
};

struct Memory { /* of one step, none of it needed by the next */
  float *centred, *pre_acts, *acts, *errors[MOST_PARTS], *narrow_acts;
  int64_t *indices, *narrow_indices, *order, *bounds, *dead;
  double *squares;
  float *W_enc, *b_enc, *W_dec, *b_pre; /* gradients */
  float *left, *by_acts, *dead_weights, *dead_W_enc, *dead_W_dec; /* of AuxK */
};

struct Losses {
  double total, aux, nothing;
};

static void *taken(char **next, int64_t n, size_t size) {
  char *found = *next;
  *next += (n * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return found;
}

/* Divide a block of memory among what a step needs, and return its end. */
static char *divide(struct Memory *m, const struct Training *s, int64_t n_rows, char *next) {
  const int64_t n = s->n, d = s->d, n_chosen = n_rows * s->k[s->n_parts - 1];
  m->centred = taken(&next, n_rows * d, sizeof(float));
  m->pre_acts = taken(&next, n_rows * n, sizeof(float));
  m->acts = taken(&next, n_chosen, sizeof(float));
  m->indices = taken(&next, n_chosen, sizeof(int64_t));
  m->narrow_acts = taken(&next, n_chosen, sizeof(float));
  m->narrow_indices = taken(&next, n_chosen, sizeof(int64_t));
  m->order = taken(&next, n_chosen, sizeof(int64_t));
  m->bounds = taken(&next, n + 1, sizeof(int64_t));
  m->dead = taken(&next, n, sizeof(int64_t));
  m->squares = taken(&next, n_rows > n ? n_rows : n, sizeof(double));
  for (int64_t i = 0; i < s->n_parts; ++i) m->errors[i] = taken(&next, n_rows * d, sizeof(float));
  m->W_enc = taken(&next, n * d, sizeof(float));
  m->b_enc = taken(&next, n, sizeof(float));
  m->W_dec = taken(&next, n * d, sizeof(float));
  m->b_pre = taken(&next, d, sizeof(float));
  m->left = taken(&next, n_rows * d, sizeof(float));
  m->by_acts = taken(&next, (n_rows < BLOCK ? n_rows : BLOCK) * n, sizeof(float));
  m->dead_weights = taken(&next, n * d, sizeof(float));
  m->dead_W_enc = taken(&next, n * d, sizeof(float));
  m->dead_W_dec = taken(&next, n * d, sizeof(float));
  return next;
}

int64_t step_bytes(const struct Training *s, int64_t n_rows) {
  struct Memory m;
  char start[1];
  return divide(&m, s, n_rows, start) - start;
}

/* Centre, multiply, select; what is selected and negative is 0, NaN stays. */
static void encode(const struct Training *s, const struct Batch *batch, struct Memory *m) {
  const int64_t n = s->n, d = s->d, n_rows = batch->n_rows, k = s->k[s->n_parts - 1];
  for (int64_t t = 0; t < n_rows; ++t) {
    for (int64_t i = 0; i < d; ++i) m->centred[t * d + i] = batch->x[t * d + i] - s->b_pre.weights[i];
    memcpy(m->pre_acts + t * n, s->b_enc.weights, n * sizeof(float));
  }
  const struct Matrix W_enc_T = {s->W_enc.weights, 1, d};
  add_product((struct Matrix){m->centred, d, 1}, W_enc_T, m->pre_acts, n_rows, d, n);
  top_k(m->pre_acts, NULL, n_rows, n, k, m->acts, m->indices, 1);
  for (int64_t j = 0; j < n_rows * k; ++j) m->acts[j] = m->acts[j] < 0 ? 0 : m->acts[j];
}

/* Count the tokens since each latent fired among the first k of a token; list the dead ones, and return how many. */
static int64_t count(const struct Training *s, const struct Batch *batch, struct Memory *m) {
  const int64_t L = s->n_layers, width = s->k[s->n_parts - 1], n_tokens = batch->n_rows / L;
  for (int64_t i = 0; i < s->n * L; ++i) s->since[i] += n_tokens;
  for (int64_t row = 0; row < batch->n_rows; ++row)
    for (int64_t j = row * width; j < row * width + s->k[0]; ++j)
      if (m->acts[j] > 0) s->since[m->indices[j] * L + row / n_tokens] = n_tokens - 1 - row % n_tokens;
  if (batch->tokens_seen <= s->dead_after) return 0;
  int64_t n_dead = 0;
  for (int64_t i = 0; i < s->n; ++i) {
    int64_t least = s->since[i * L];
    for (int64_t l = 1; l < L; ++l) least = s->since[i * L + l] < least ? s->since[i * L + l] : least;
    if (least > s->dead_after) m->dead[n_dead++] = i;
  }
  return n_dead;
}

/* Write what each reconstruction misses, and return the loss. */
static double reconstruct(const struct Training *s, const struct Batch *batch, struct Memory *m) {
  const int64_t n_rows = batch->n_rows, width = s->k[s->n_parts - 1], per_layer = n_rows / s->n_layers;
  double total = 0;
  for (int64_t i = 0; i < s->n_parts; ++i) {
    const int64_t k = s->k[i];
    for (int64_t t = 0; t < n_rows; ++t) {
      memcpy(m->narrow_acts + t * k, m->acts + t * width, k * sizeof(float));
      memcpy(m->narrow_indices + t * k, m->indices + t * width, k * sizeof(int64_t));
    }
    reconstruction_error(batch->x, m->narrow_acts, m->narrow_indices, s->W_dec.weights, s->b_pre.weights, n_rows, k,
                         s->d, m->errors[i], m->squares, 1);
    for (int64_t t = 0; t < n_rows; ++t)
      total += s->shares[i] * m->squares[t] / (n_rows * s->variances[t / per_layer]);
  }
  return total;
}

static double sum_of_squares(const float *rows, int64_t n_rows, int64_t d) {
  double sum = 0;
  for (int64_t t = 0; t < n_rows; ++t) sum += dot(rows + t * d, rows + t * d, d);
  return sum;
}

static void scale(float *row, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

/* Sum (e - mean of the batch)^2. */
static double spread_of(const float *error, int64_t n_rows, int64_t d, float *mean) {
  double sum = 0;
  clear(mean, d);
  for (int64_t t = 0; t < n_rows; ++t) add(mean, 1, error + t * d, d);
  scale(mean, 1.0f / n_rows, d);
  for (int64_t t = 0; t < n_rows; ++t) {
    float square = 0;
    for (int64_t i = 0; i < d; ++i) square += (error[t * d + i] - mean[i]) * (error[t * d + i] - mean[i]);
    sum += square;
  }
  return sum;
}

/* AuxK's losses; what its reconstruction misses, as the gradient in it, is left in `left`. Returns whether there is one:
 * not where the losses are no numbers. */
static int predict_error(const struct Training *s, int64_t n_rows, int64_t n_dead, struct Memory *m,
                         struct Losses *losses) {
  const int64_t n = s->n, d = s->d;
  for (int64_t t = 0; t < n_rows; ++t) /* in place: the j-th dead latent is no earlier than the j-th latent */
    for (int64_t j = 0; j < n_dead; ++j) m->pre_acts[t * n + j] = m->pre_acts[t * n + m->dead[j]];
  keep_top_k(m->pre_acts, n_rows, n, n_dead, s->k_aux < n_dead ? s->k_aux : n_dead, 1);
  for (int64_t j = 0; j < n_dead; ++j)
    memcpy(m->dead_weights + j * d, s->W_dec.weights + m->dead[j] * d, d * sizeof(float));
  clear(m->left, n_rows * d);
  const struct Matrix acts = {m->pre_acts, n, 1}, W_dec = {m->dead_weights, d, 1};
  add_product(acts, W_dec, m->left, n_rows, n_dead, d);
  for (int64_t i = 0; i < n_rows * d; ++i) m->left[i] = m->errors[0][i] - m->left[i];
  const double spread = spread_of(m->errors[0], n_rows, d, m->b_pre), missing = sum_of_squares(m->left, n_rows, d);
  if (!(spread > 0 && isfinite((float)missing))) return 0;
  losses->aux = missing / spread;
  losses->nothing = sum_of_squares(m->errors[0], n_rows, d) / spread;
  losses->total += s->aux_coef * losses->aux;
  scale(m->left, (float)(-2 * s->aux_coef / spread), n_rows * d);
  return 1;
}

/* The gradients of the reconstructions; their errors become the gradients in them. */
static void differentiate(const struct Training *s, int64_t n_rows, struct Memory *m) {
  const int64_t width = s->k[s->n_parts - 1], d = s->d, per_layer = n_rows / s->n_layers;
  struct Part parts[MOST_PARTS];
  for (int64_t i = 0; i < s->n_parts; ++i) {
    for (int64_t l = 0; l < s->n_layers; ++l) {
      const double factor = -2 * s->shares[i] / (n_rows * s->variances[l]);
      scale(m->errors[i] + l * per_layer * d, (float)factor, per_layer * d);
    }
    parts[i] = (struct Part){m->errors[i], s->k[i]};
  }
  by_latent(m->indices, n_rows * width, s->n, m->order, m->bounds);
  gradients(parts, s->n_parts, m->acts, m->centred, s->W_dec.weights, s->W_enc.weights, m->order, m->bounds, n_rows,
            width, s->n, d, m->W_enc, m->b_enc, m->W_dec, m->b_pre, 1);
}

/* Add AuxK's gradients to the rows of the dead latents. */
static void differentiate_aux(const struct Training *s, int64_t n_rows, int64_t n_dead, struct Memory *m) {
  const int64_t n = s->n, d = s->d;
  const struct Matrix W_dec_T = {m->dead_weights, 1, d};
  clear(m->dead_W_enc, n_dead * d);
  clear(m->dead_W_dec, n_dead * d);
  for (int64_t first = 0; first < n_rows; first += BLOCK) {
    const int64_t many = n_rows - first < BLOCK ? n_rows - first : BLOCK;
    const float *acts = m->pre_acts + first * n, *gradient = m->left + first * d;
    clear(m->by_acts, many * n_dead);
    add_product((struct Matrix){gradient, d, 1}, W_dec_T, m->by_acts, many, d, n_dead);
    for (int64_t t = 0; t < many; ++t)
      for (int64_t j = 0; j < n_dead; ++j)
        if (acts[t * n + j] <= 0) m->by_acts[t * n_dead + j] = 0;
    const struct Matrix by_acts_T = {m->by_acts, 1, n_dead}, acts_T = {acts, 1, n};
    add_product(by_acts_T, (struct Matrix){m->centred + first * d, d, 1}, m->dead_W_enc, n_dead, many, d);
    add_product(acts_T, (struct Matrix){gradient, d, 1}, m->dead_W_dec, n_dead, many, d);
    for (int64_t t = 0; t < many; ++t)
      for (int64_t j = 0; j < n_dead; ++j) m->b_enc[m->dead[j]] += m->by_acts[t * n_dead + j];
  }
  for (int64_t j = 0; j < n_dead; ++j) {
    add(m->W_enc + m->dead[j] * d, 1, m->dead_W_enc + j * d, d);
    add(m->W_dec + m->dead[j] * d, 1, m->dead_W_dec + j * d, d);
  }
}

static double update(const struct AdamStep *step, const struct Parameter *p, float *gradient, int64_t n_rows, int64_t d,
                     int is_sphere, double *squares) {
  return adam(step, p->weights, gradient, p->exp_avg, p->exp_avg_sq, p->average, n_rows, d, is_sphere, 0, squares, 1);
}

/* Take a step; return how many latents are dead. */
int64_t train_step(const struct Training *s, const struct AdamStep *step, const struct Batch *batch, char *memory) {
  const int64_t n_rows = batch->n_rows, n = s->n, d = s->d;
  struct Memory m;
  divide(&m, s, n_rows, memory);
  encode(s, batch, &m);
  const int64_t n_dead = count(s, batch, &m);
  struct Losses losses = {reconstruct(s, batch, &m), 0, 0};
  const int has_aux = n_dead > 0 && predict_error(s, n_rows, n_dead, &m, &losses);
  differentiate(s, n_rows, &m);
  if (has_aux) differentiate_aux(s, n_rows, n_dead, &m);
  double square = update(step, &s->W_enc, m.W_enc, n, d, 0, m.squares);
  square += update(step, &s->b_enc, m.b_enc, 1, n, 0, m.squares);
  square += update(step, &s->W_dec, m.W_dec, n, d, 1, m.squares);
  square += update(step, &s->b_pre, m.b_pre, 1, d, 0, m.squares);
  const double found[] = {losses.total, losses.aux, sqrt(square), losses.nothing};
  for (int i = 0; i < 4; ++i) s->sums[i] += found[i];
  return n_dead;
}
