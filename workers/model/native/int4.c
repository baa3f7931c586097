/* Products with weights of 4 bits: x Wᵀ + b, where x is rounded to 8 bits with a scale a group.

   y[m, n] = Σ over groups g of  scale[g, n] x_scale[m, g] (Σ q[n, k] x[m, k] - zero[g, n] x_sum[m, g])

   The inner sums are of integers, and groups are added in their order: a row is the same bits
   whatever is beside it. Sixteen outputs are a tile. For 8 inputs it has 64 bytes, of which byte
   4 n + i has input i of output n in its low half, and input 4 + i in its high half.
*/

#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ROWS 8

typedef uint8_t bytes __attribute__((vector_size(4 * LANES), aligned(1)));
typedef uint16_t scales16 __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t zeros16 __attribute__((vector_size(LANES), aligned(1)));

/* The floats of 16 numbers in IEEE's half precision, none of them subnormal. */
static inline floats from_half(const uint16_t *from) {
    integers bits = __builtin_convertvector(*(const scales16 *)from, integers);
    return (floats)(((bits & 0x8000) << 16) | (((bits & 0x7fff) << 13) + (112 << 23)));
}

/* Add to each of 16 sums the products of 4 numbers from 0 to 15 with 4 numbers of x. */
static inline integers dot(integers sums, bytes numbers, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
#if defined(__AVX512VNNI__)
    return (integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)numbers, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    __m256i all = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1), half[2], sum[2];
    memcpy(half, &numbers, 64), memcpy(sum, &sums, 64);
    for (int i = 0; i < 2; i++) /* at most 2 * 15 * 127: no pair saturates */
        sum[i] = _mm256_add_epi32(sum[i],
                                  _mm256_madd_epi16(_mm256_maddubs_epi16(half[i], all), ones));
    memcpy(&sums, sum, 64);
    return sums;
#else
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) sums[lane] += numbers[4 * lane + i] * x[i];
    return sums;
#endif
}

/* Inputs i to i + 15 of a row, or those that come there by `order`; zeros behind its end. */
static inline floats inputs_at(const number *x, const int64_t *order, int i, int inputs) {
    if (!order && i + LANES <= inputs) return load(x + i);
    float values[LANES];
    for (int lane = 0; lane < LANES; lane++)
        values[lane] = i + lane < inputs ? to_float(x[order ? order[i + lane] : i + lane]) : 0;
    return *(floats *)values;
}

/* Round a row to 8 bits: its numbers, each group's scale, and the sum of its numbers.
   `order`, if there is one, says which input comes k-th. */
static void round_groups(const number *x, const int64_t *order, int inputs, int group, int padded,
                         int8_t *to, float *x_scales, int32_t *x_sums) {
    for (int start = 0; start < padded; start += group) {
        floats largest = {}, spoilt = {};
        for (int i = start; i < start + group; i += LANES) {
            floats v = inputs_at(x, order, i, inputs);
            largest = larger(largest, larger(v, -v));
            spoilt += v * 0;
        }
        float most = 0;
        for (int lane = 0; lane < LANES; lane++) most = fmaxf(most, largest[lane]);
        float inverse = most > 0 ? 127 / most : 0;
        integers total = {};
        for (int i = start; i < start + group; i += LANES) {
            integers numbers = nearest(inputs_at(x, order, i, inputs) * inverse);
            store_bytes((uint8_t *)to + i, numbers);
            total += numbers;
        }
        *x_scales++ = most / 127 + sum(spoilt);
        int32_t all = 0;
        for (int lane = 0; lane < LANES; lane++) all += total[lane];
        *x_sums++ = all;
    }
}

/* Multiply `rows` rows, a constant where this is inlined, by one tile. */
static inline __attribute__((always_inline)) void
multiply_tile(int rows, const uint8_t *tile, const uint16_t *scales, const uint8_t *zeros,
              const int8_t *x, const float *x_scales, const int32_t *x_sums, int group, int groups,
              float *y) {
    floats sums[ROWS];
    for (int row = 0; row < rows; row++) sums[row] = (floats){};
    for (int g = 0; g < groups; g++) {
        integers low[ROWS], high[ROWS];
        for (int row = 0; row < rows; row++) low[row] = high[row] = (integers){};
        for (int k = 0; k < group; k += 8, tile += 64) {
            bytes both = *(const bytes *)tile;
            for (int row = 0; row < rows; row++) {
                const int8_t *from = x + (int64_t)row * group * groups + g * group + k;
                low[row] = dot(low[row], both & 15, from);
                high[row] = dot(high[row], both >> 4, from + 4);
            }
        }
        floats scale = from_half(scales + g * LANES);
        integers zero = __builtin_convertvector(*(const zeros16 *)(zeros + g * LANES), integers);
        for (int row = 0; row < rows; row++) {
            int at = row * groups + g;
            integers total = low[row] + high[row] - zero * x_sums[at];
            sums[row] += scale * x_scales[at] * __builtin_convertvector(total, floats);
        }
    }
    for (int row = 0; row < rows; row++) *(floats *)(y + row * LANES) = sums[row];
}

/* Write x `[rows, inputs]` times a weight of `tiles` tiles, `[outputs, groups * group]` padded, with
   `scales` and `zeros` `[tiles, groups, 16]`, and what the scales of each tile are to be multiplied
   by in `factors`. `bias` float32 and `order` may be none. `scratch` has for each row groups * group
   bytes, and behind those of all rows 2 * groups numbers of 32 bits.
*/
void multiply_int4(const number *x, const uint8_t *weight, const uint16_t *scales,
                   const uint8_t *zeros, const float *factors, const float *bias,
                   const int64_t *order, number *y, int8_t *scratch, int32_t rows, int32_t inputs,
                   int32_t outputs, int32_t group, int32_t groups, int32_t threads) {
    int padded = group * groups, tiles = (outputs + LANES - 1) / LANES;
    float *x_scales = (float *)(scratch + (int64_t)rows * padded);
    int32_t *x_sums = (int32_t *)(x_scales + (int64_t)rows * groups);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int row = 0; row < rows; row++)
            round_groups(x + (int64_t)row * inputs, order, inputs, group, padded,
                         scratch + (int64_t)row * padded, x_scales + (int64_t)row * groups,
                         x_sums + (int64_t)row * groups);
#pragma omp for
        for (int tile = 0; tile < tiles; tile++) {
            int64_t first = (int64_t)tile * groups;
            for (int row = 0, count; row < rows; row += count) {
                float found[ROWS * LANES];
                int left = rows - row;
                count = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
#define MULTIPLY(count)                                                                        \
    multiply_tile(count, weight + first * group * 8, scales + first * LANES,                   \
                  zeros + first * LANES, scratch + (int64_t)row * padded,                      \
                  x_scales + (int64_t)row * groups, x_sums + (int64_t)row * groups, group,     \
                  groups, found)
                switch (count) {
                case 8: MULTIPLY(8); break;
                case 4: MULTIPLY(4); break;
                case 2: MULTIPLY(2); break;
                default: MULTIPLY(1);
                }
                for (int i = 0; i < count; i++)
                    for (int lane = 0; lane < LANES && tile * LANES + lane < outputs; lane++) {
                        int n = tile * LANES + lane;
                        float value = found[i * LANES + lane] * factors[tile] + (bias ? bias[n] : 0);
                        y[(int64_t)(row + i) * outputs + n] = to_number(value);
                    }
            }
        }
    }
}
