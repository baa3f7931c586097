/* Products of rows with panels of a matrix: their sums in registers, their panels shared by threads.
*/
#pragma once

#include "vectors.h"

/* Have a line brought into the second cache. */
static inline void fetch(const void *line) { __builtin_prefetch(line, 0, 2); }

/* Columns of a panel, and rows that are multiplied by one at once: their 24 sums hide each other's
   latency. */
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

#define MOST_THREADS 256
/* Fewer products than this are not worth waking other threads for. */
#define SMALL_PRODUCT 65536

/* The panels that threads share: each begins with its own, and takes what is left of another's, as
   of one that a neighbour holds up. OpenMP waits for that one all the same, but its share is done.
*/
typedef struct {
    int panels, threads;
    struct { int next; char line[60]; } of[MOST_THREADS];
} shares;

static inline int end_of(const shares *all, int thread) {
    return (int64_t)all->panels * (thread + 1) / all->threads;
}

static inline void share_out(shares *all, int panels, int threads, int64_t products) {
    all->panels = panels;
    all->threads = products < SMALL_PRODUCT ? 1 : threads < MOST_THREADS ? threads : MOST_THREADS;
    for (int i = 0; i < all->threads; i++) all->of[i].next = (int64_t)panels * i / all->threads;
}

/* Return a panel for a thread, -1 if none is left, and whether the next is of the same share. `turn`
   begins at 0.
*/
static inline int take_panel(shares *all, int thread, int *turn, int *has_next) {
    for (; *turn < all->threads; ++*turn) {
        int share = (thread + *turn) % all->threads, end = end_of(all, share);
        int at = __atomic_fetch_add(&all->of[share].next, 1, __ATOMIC_RELAXED);
        *has_next = at + 1 < end;
        if (at < end) return at;
    }
    return -1;
}

#ifdef DOTS

/* Add to `sums[row]`, two vectors each, the products of rows `x`, `stride` numbers apart, with a
   panel `[pairs, PANEL, 2]`: in the order of its pairs, so that a row's sums are the same bits
   whatever is beside it. As much is fetched from `ahead`, if it is not none: memory is read while
   what was read is multiplied.
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
