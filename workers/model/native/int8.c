/* Products with weights of 8 bits: x Wᵀ + b, where each row of x is rounded to 8 bits with a scale.

   y[m, n] = scale[n] x_scale[m] (Σ w[n, k] (x[m, k] + 128) - 128 Σ w[n, k]) + b[n]

   Only for CPUs that add products of four bytes and have no matrix unit, which oneDNN uses better.
   Sums are of integers: a row is the same bits whatever is beside it.
*/

#include "panels.h"

#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
#include <omp.h>

/* Add products of four bytes to each sum. GCC 12 moves the sums around the intrinsic, in and out of
   memory where they are many. */
static inline __m512i dot(__m512i sums, __m512i x, __m512i weight) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
    return sums;
}

/* Write sums scaled and, if there is a bias, moved by it: always by one instruction, as a row has to
   be rounded alike whatever is beside it. */
static inline void store_scaled(number *to, __m512i sums, const int32_t *offsets,
                                const float *scales, float x_scale, const float *bias) {
    __m512 found = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_loadu_si512(offsets)));
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x_scale), _mm512_loadu_ps(scales));
    __m512 moved = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    store(to, (floats)_mm512_fmadd_ps(found, scale, moved));
}

/* Add to `sums[row]`, two vectors each, the products of rows, rounded, `[inputs / 4, rows, 4]`, with a
   panel. As much is fetched from `ahead`, if it is not none.
*/
static inline __attribute__((always_inline)) void
add_fours(const int rows, const uint8_t *x, int inputs, const int8_t *panel, const int8_t *ahead,
          __m512i sums[ROWS][2]) {
    for (int i = 0; i < inputs; i += 4, panel += 4 * PANEL) {
        __m512i low = _mm512_loadu_si512(panel), high = _mm512_loadu_si512(panel + 4 * LANES);
        if (ahead) fetch(ahead + i * PANEL), fetch(ahead + i * PANEL + 4 * LANES);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            int32_t four;
            memcpy(&four, x + i * rows + 4 * row, 4);
            __m512i all = _mm512_set1_epi32(four);
            sums[row][0] = dot(sums[row][0], all, low);
            sums[row][1] = dot(sums[row][1], all, high);
        }
    }
}

/* Multiply rows by one panel, of whose outputs the first `count` are wanted. */
static inline __attribute__((always_inline)) void
multiply_panel(const int rows, const uint8_t *x, const float *x_scales, int inputs,
               const int8_t *panel, const int8_t *ahead, const int32_t *offsets,
               const float *scales, const float *bias, number *y, int outputs, int count) {
    __m512i sums[ROWS][2];
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) sums[row][0] = sums[row][1] = _mm512_setzero_si512();
    add_fours(rows, x, inputs, panel, ahead, sums);
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        number last[PANEL], *to = count < PANEL ? last : y + (int64_t)row * outputs;
        store_scaled(to, sums[row][0], offsets, scales, x_scales[row], bias);
        store_scaled(to + LANES, sums[row][1], offsets + LANES, scales + LANES, x_scales[row],
                     bias ? bias + LANES : 0);
        if (count < PANEL) memcpy(y + (int64_t)row * outputs, last, sizeof(number) * count);
    }
}

/* Write x `[rows, inputs]` times a weight `[panels, inputs / 4, PANEL, 4]`, whose outputs are filled
   up to whole panels, as are `offsets`, -128 Σ w, `scales`, and `bias`, if there is one. `scratch`
   has for each row `inputs` bytes, and behind those of all rows a float.
*/
void multiply_int8(const number *x, const int8_t *weight, const int32_t *offsets,
                   const float *scales, const float *bias, number *y, uint8_t *scratch,
                   int32_t rows, int32_t inputs, int32_t outputs, int32_t threads) {
    int blocks = (rows + ROWS - 1) / ROWS;
    float *x_scales = (float *)(scratch + (int64_t)rows * inputs);
    shares all;
    share_out(&all, (outputs + PANEL - 1) / PANEL, threads, (int64_t)rows * inputs * outputs);
#pragma omp parallel num_threads(all.threads)
    {
#pragma omp for
        for (int block = 0; block < blocks; block++) {
            int first = (int64_t)rows * block / blocks;
            int count = (int64_t)rows * (block + 1) / blocks - first;
            for (int row = 0; row < count; row++)
                x_scales[first + row] =
                    round_row(x + (int64_t)(first + row) * inputs,
                              scratch + (int64_t)first * inputs + 4 * row, 4 * count, inputs);
        }
        for (int at, turn = 0, has_next;
             (at = take_panel(&all, omp_get_thread_num(), &turn, &has_next)) >= 0;) {
            const int8_t *panel = weight + (int64_t)at * PANEL * inputs;
            const int8_t *next = has_next ? panel + (int64_t)PANEL * inputs : 0;
            const float *added = bias ? bias + at * PANEL : 0;
            for (int block = 0, first = 0, last; block < blocks; block++, first = last) {
                last = (int64_t)rows * (block + 1) / blocks;
                number *to = y + (int64_t)first * outputs + at * PANEL;
#define MULTIPLY(rows, next)                                                                   \
    multiply_panel(rows, scratch + (int64_t)first * inputs, x_scales + first, inputs, panel,   \
                   next, offsets + at * PANEL, scales + at * PANEL, added, to, outputs,        \
                   outputs - at * PANEL)
#define FETCHING(rows) MULTIPLY(rows, next)
#define MULTIPLYING(rows) MULTIPLY(rows, 0)
                if (next && !block) WITH_ROWS(last - first, FETCHING)
                else WITH_ROWS(last - first, MULTIPLYING)
            }
        }
    }
}

#endif
