/* Norms, rotation and SiLU: what lies between a layer's products, one pass over memory each.

   Sums are float32, and results are rounded where torch rounds them in workers/model/layers. A token
   is computed the same way whatever is beside it.
*/

#include "vectors.h"

/* Fewer numbers than this are not worth waking other threads for. */
#define SMALL 32768

static inline float factor_of(float squares, int width, float epsilon) {
    return 1.0f / sqrtf(squares / width + epsilon);
}

/* Add `delta`, if there is one, to `residual` `[tokens, width]` in place, and write its norm. */
void add_rms_norm(const number *delta, number *residual, const float *weight, number *normed,
                  int32_t tokens, int32_t width, float epsilon, int32_t threads) {
#pragma omp parallel for num_threads(threads) if ((int64_t)tokens * width > SMALL)
    for (int token = 0; token < tokens; token++) {
        number *sums = residual + (int64_t)token * width, *to = normed + (int64_t)token * width;
        const number *added = delta + (int64_t)token * width;
        floats squares = {};
        for (int i = 0; i < width; i += LANES) {
            if (delta) store(sums + i, load(sums + i) + load(added + i));
            floats x = load(sums + i);
            squares += x * x;
        }
        float factor = factor_of(sum(squares), width, epsilon);
        for (int i = 0; i < width; i += LANES)
            store(to + i, load(sums + i) * factor * *(const floats *)(weight + i));
    }
}

/* Normalize, scale and rotate one head; `sin` has its first half negated, `norm` may be none. */
static void turn(const number *from, const float *norm, float scale, const float *cos,
                 const float *sin, int dims, int rotated, float epsilon, number *to) {
    float x[256];
    floats squares = {};
    for (int i = 0; i < dims; i += LANES) {
        floats values = load(from + i);
        squares += values * values;
        *(floats *)(x + i) = values;
    }
    float factor = norm ? factor_of(sum(squares), dims, epsilon) : scale;
    for (int i = 0; i < dims; i += LANES)
        *(floats *)(x + i) *= norm ? factor * *(const floats *)(norm + i) : (floats){} + factor;
    int half = rotated / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        floats low = *(floats *)(x + i), high = *(floats *)(x + i + half);
        store(to + i, low * *(const floats *)(cos + i) + high * *(const floats *)(sin + i));
        store(to + i + half, high * *(const floats *)(cos + i + half)
                             + low * *(const floats *)(sin + i + half));
    }
    for (; i < half; i++) {
        float low = x[i], high = x[i + half];
        to[i] = to_number(low * cos[i] + high * sin[i]);
        to[i + half] = to_number(high * cos[i + half] + low * sin[i + half]);
    }
    for (int i = rotated; i < dims; i++) to[i] = to_number(x[i]);
}

/* Rotate queries and keys of `qkv` `[tokens, heads + 2 kv_heads, dims]`; write the queries, and keys
   and values to the slots of `[kv_heads, num_slots, dims]`. `norms`, if there are any, are those of
   all queries and keys `[heads + kv_heads, dims]`, with the queries' scale; else it is `scale`.
*/
void norm_rope_write(const number *qkv, const float *norms, const float *cos, const float *sin,
                     const int64_t *slots, number *query, number *keys, number *values,
                     int32_t tokens, int32_t heads, int32_t kv_heads, int32_t dims,
                     int32_t rotated, int64_t num_slots, float epsilon, float scale,
                     int32_t threads) {
    int all = heads + 2 * kv_heads;
#pragma omp parallel for num_threads(threads) collapse(2) if ((int64_t)tokens * all * dims > SMALL)
    for (int token = 0; token < tokens; token++)
        for (int head = 0; head < all; head++) {
            const number *from = qkv + ((int64_t)token * all + head) * dims;
            int key = head - heads, value = key - kv_heads;
            if (value >= 0) {
                memcpy(values + (value * num_slots + slots[token]) * dims, from,
                       sizeof(number) * dims);
                continue;
            }
            number *to = key < 0 ? query + ((int64_t)token * heads + head) * dims
                                 : keys + (key * num_slots + slots[token]) * dims;
            turn(from, norms ? norms + (int64_t)head * dims : 0, key < 0 ? scale : 1.0f,
                 cos + (int64_t)token * rotated, sin + (int64_t)token * rotated, dims, rotated,
                 epsilon, to);
        }
}

/* Round rows of x to 8 bits, plus 128, each with the scale that gives it back. */
void round_rows(const number *x, uint8_t *values, float *scales, int32_t rows, int32_t width,
                int32_t threads) {
#pragma omp parallel for num_threads(threads) if ((int64_t)rows * width > SMALL)
    for (int row = 0; row < rows; row++)
        scales[row] = round_row(x + (int64_t)row * width, values + (int64_t)row * width, 4, width);
}

/* Multiply rows of `y` in place by their scales, and add a bias, if there is one. */
void scale_rows(number *y, const float *scales, const float *bias, int32_t rows, int32_t width,
                int32_t threads) {
#pragma omp parallel for num_threads(threads) if ((int64_t)rows * width > SMALL)
    for (int row = 0; row < rows; row++) {
        number *to = y + (int64_t)row * width;
        for (int i = 0; i < width; i += LANES) {
            floats x = load(to + i) * scales[row];
            store(to + i, bias ? x + *(const floats *)(bias + i) : x);
        }
    }
}

/* Write the SiLU of the first half of `[tokens, 2 width]` times the second. */
void silu_mul(const number *gate_up, number *product, int32_t tokens, int32_t width,
              int32_t threads) {
#pragma omp parallel for num_threads(threads) if ((int64_t)tokens * width > SMALL)
    for (int token = 0; token < tokens; token++) {
        const number *gate = gate_up + (int64_t)token * 2 * width, *up = gate + width;
        number *to = product + (int64_t)token * width;
        for (int i = 0; i < width; i += LANES) {
            floats x = load(gate + i);
            floats less = exponential(-larger(x, -x)); /* e^-|x| */
            integers is_positive = x >= 0;
            floats above = (floats)(((integers)((floats){} + 1.0f) & is_positive) |
                                    ((integers)less & ~is_positive));
            number silu[LANES];
            store(silu, x * above / (1.0f + less));
            store(to + i, load(silu) * load(up + i));
        }
    }
}
