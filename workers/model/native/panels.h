/* Sums of products of rows with a panel of a matrix, in the registers of a CPU that adds products of
   pairs in bfloat16.
*/
#pragma once

#include "vectors.h"

/* Have a line brought into the second cache. */
static inline void fetch(const number *line) { __builtin_prefetch(line, 0, 2); }

#ifdef DOTS

/* Columns of a panel `[pairs, PANEL, 2]`, and rows that are multiplied by one at once: their 24 sums
   hide each other's latency. */
#define PANEL (2 * LANES)
#define ROWS 12

/* Call a function that is inlined with a constant number of rows, from 1 to ROWS. */
#define WITH_ROWS(rows, call)                                                           \
    switch (rows) {                                                                     \
    case 1: call(1); break; case 2: call(2); break; case 3: call(3); break;             \
    case 4: call(4); break; case 5: call(5); break; case 6: call(6); break;             \
    case 7: call(7); break; case 8: call(8); break; case 9: call(9); break;             \
    case 10: call(10); break; case 11: call(11); break; case 12: call(12); break;       \
    }

/* Add to `sums[row]`, two vectors each, the products of rows `x`, `stride` numbers apart, with a
   panel: in the order of its pairs, so that a row's sums are the same bits whatever is beside it.
   As much is fetched from `ahead`, if it is not none: memory is read while what was read is
   multiplied.
*/
static inline __attribute__((always_inline)) void
add_products(const int rows, const number *x, int64_t stride, int pairs, const number *panel,
             const number *ahead, __m512 sums[ROWS][2]) {
    for (int i = 0; i < pairs; i++, panel += 2 * PANEL) {
        __m512bh low = (__m512bh)_mm512_loadu_si512(panel);
        __m512bh high = (__m512bh)_mm512_loadu_si512(panel + PANEL);
        if (ahead) fetch(ahead + i * 2 * PANEL), fetch(ahead + i * 2 * PANEL + PANEL);
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++) {
            int32_t both;
            memcpy(&both, x + row * stride + 2 * i, 4);
            __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], pair, low);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], pair, high);
        }
    }
}

#endif
