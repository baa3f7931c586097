/* Products with weights in bfloat16: x Wᵀ + b, summed in float32.

   Only for CPUs that add products of pairs and have no matrix unit, which oneDNN uses better. A row
   of y is the same bits whatever is beside it.
*/

#include "panels.h"

#if defined(DOTS) && !defined(__AMX_BF16__)
#include <omp.h>

static inline void store_rounded(number *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Multiply rows by one panel, of whose outputs the first `count` are wanted. */
static inline __attribute__((always_inline)) void
multiply_panel(const int rows, const number *x, int inputs, const number *panel,
               const number *ahead, const float *bias, number *y, int outputs, int count) {
    __m512 sums[ROWS][2];
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    add_products(rows, x, inputs, inputs / 2, panel, ahead, sums);
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++) {
        number last[PANEL], *to = count < PANEL ? last : y + (int64_t)row * outputs;
        if (bias) {
            sums[row][0] += _mm512_loadu_ps(bias);
            sums[row][1] += _mm512_loadu_ps(bias + LANES);
        }
        store_rounded(to, sums[row][0]), store_rounded(to + LANES, sums[row][1]);
        if (count < PANEL) memcpy(y + (int64_t)row * outputs, last, sizeof(number) * count);
    }
}

/* Write x `[rows, inputs]` times a weight `[panels, inputs / 2, PANEL, 2]`, whose outputs are filled
   up to whole panels, as is the bias, if there is one.
*/
void multiply_bfloat16(const number *x, const number *weight, const float *bias, number *y,
                       int32_t rows, int32_t inputs, int32_t outputs, int32_t threads) {
    int blocks = (rows + ROWS - 1) / ROWS;
    shares all;
    share_out(&all, (outputs + PANEL - 1) / PANEL, threads, (int64_t)rows * inputs * outputs);
#pragma omp parallel num_threads(all.threads)
    for (int at, turn = 0, has_next;
         (at = take_panel(&all, omp_get_thread_num(), &turn, &has_next)) >= 0;) {
        const number *panel = weight + (int64_t)at * PANEL * inputs;
        const number *next = has_next ? panel + (int64_t)PANEL * inputs : 0;
        const float *added = bias ? bias + at * PANEL : 0;
        for (int block = 0, first = 0, last; block < blocks; block++, first = last) {
            last = (int64_t)rows * (block + 1) / blocks;
            const number *from = x + (int64_t)first * inputs;
            number *to = y + (int64_t)first * outputs + at * PANEL;
            int count = outputs - at * PANEL;
#define FETCHING(rows) multiply_panel(rows, from, inputs, panel, next, added, to, outputs, count)
#define MULTIPLYING(rows) multiply_panel(rows, from, inputs, panel, 0, added, to, outputs, count)
            if (next && !block) WITH_ROWS(last - first, FETCHING)
            else WITH_ROWS(last - first, MULTIPLYING)
        }
    }
}

#endif
