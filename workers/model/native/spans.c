/* Attention of a span of tokens of one sequence over the blocks of its cache, by tiles of queries.

   Keys are taken KEYS at a time. A tile turns them, and their values, into panels once, and multiplies
   all its queries by them; the softmax is folded as in attention.c, and weights are rounded to
   bfloat16, as torch's own attention rounds them.
*/

#include "panels.h"

#ifdef DOTS
#include <omp.h>

#define KEYS 64
#define MOST_DIMS 256

/* What a thread needs for one tile. Contexts are not yet divided by their totals. */
typedef struct {
    number keys[MOST_DIMS * KEYS], values[MOST_DIMS * KEYS]; /* in panels */
    number *queries;
    float *context, *largest, *total;
} workplace;

/* Transpose 16 rows of 16 words. */
static inline void transpose(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* x[i + j]: column j of each lane, of rows i to i + 3 */
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88), d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_i32x4(a, c, 0x88), y[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        y[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88), y[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

/* Lay keys out in panels `[KEYS / PANEL][dims / 2, PANEL, 2]`. */
static void lay_keys(const number *const *rows, int dims, number *panels) {
    for (int first = 0; first < KEYS; first += LANES)
        for (int dim = 0; dim < dims; dim += 2 * LANES) {
            __m512i words[16];
            for (int i = 0; i < 16; i++) words[i] = _mm512_loadu_si512(rows[first + i] + dim);
            transpose(words);
            number *to = panels + (int64_t)(first / PANEL) * dims * PANEL + dim * PANEL
                         + first % PANEL * 2;
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * 2 * PANEL, words[i]);
        }
}

/* Lay values out in panels `[dims / PANEL][KEYS / 2, PANEL, 2]`. */
static void lay_values(const number *const *rows, int dims, number *panels) {
    __m512i low, high;
    for (int i = 0; i < 32; i++) {
        ((uint16_t *)&low)[i] = i / 2 + i % 2 * 32;
        ((uint16_t *)&high)[i] = 16 + i / 2 + i % 2 * 32;
    }
    for (int key = 0; key < KEYS; key += 2)
        for (int dim = 0; dim < dims; dim += PANEL) {
            __m512i one = _mm512_loadu_si512(rows[key] + dim);
            __m512i other = _mm512_loadu_si512(rows[key + 1] + dim);
            number *to = panels + dim * KEYS + key * PANEL;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(one, low, other));
            _mm512_storeu_si512(to + PANEL, _mm512_permutex2var_epi16(one, high, other));
        }
}

/* Turn scores of keys `first` to `last - 1` into weights, those of others into zeros; return what
   was folded before is to be multiplied by. */
static float weigh(const float *scores, int first, int last, float *largest, float *total,
                   number *weights) {
    __mmask16 seen[KEYS / LANES];
    floats most = (floats){} + *largest, spoilt = {}, sums = {};
    for (int i = 0; i < KEYS / LANES; i++) {
        int from = first - i * LANES, to = last - i * LANES;
        from = from < 0 ? 0 : from, to = to > LANES ? LANES : to;
        seen[i] = from < to ? (__mmask16)(((1 << (to - from)) - 1) << from) : 0;
        floats some = (floats)_mm512_maskz_mov_ps(seen[i], _mm512_loadu_ps(scores + i * LANES));
        spoilt += some * 0;
        most = larger((floats)_mm512_mask_mov_ps((__m512)most, seen[i], (__m512)some), most);
    }
    float new = largest_of(most);
    if (new == -INFINITY) {
        *total += sum(spoilt);
        memset(weights, 0, sizeof(number) * KEYS);
        return 1;
    }
    for (int i = 0; i < KEYS / LANES; i++) {
        floats x = exponential((floats)_mm512_loadu_ps(scores + i * LANES) - new);
        __m512 some = _mm512_maskz_mov_ps(seen[i], (__m512)x);
        sums += (floats)some;
        _mm256_storeu_si256((__m256i *)(weights + i * LANES), (__m256i)_mm512_cvtneps_pbh(some));
    }
    float shrink = expf(*largest - new);
    *largest = new, *total = *total * shrink + sum(sums) + sum(spoilt);
    return shrink;
}

/* Fold KEYS keys into rows of a tile; row i sees those from `first[i]` to `last[i] - 1`. */
static inline __attribute__((always_inline)) void
fold_rows(const int rows, const workplace *at, int row, const int *first, const int *last,
          int dims) {
    __m512 sums[ROWS][2];
    float scores[ROWS][KEYS], shrink[ROWS];
    number weights[ROWS][KEYS];
    int most = 0;
    for (int i = 0; i < rows; i++) most = last[i] > most ? last[i] : most;
    most = most < KEYS ? most : KEYS;
    for (int key = 0; key < most; key += PANEL) {
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        add_products(rows, at->queries + (int64_t)row * dims, dims, dims / 2,
                     at->keys + key * dims, 0, sums);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            _mm512_storeu_ps(scores[i] + key, sums[i][0]);
            _mm512_storeu_ps(scores[i] + key + LANES, sums[i][1]);
        }
    }
    for (int i = 0; i < rows; i++)
        shrink[i] = weigh(scores[i], first[i], last[i], at->largest + row + i, at->total + row + i,
                          weights[i]);
    for (int dim = 0; dim < dims; dim += PANEL) {
        float *context = at->context + (int64_t)row * dims + dim;
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            sums[i][0] = _mm512_loadu_ps(context + i * dims) * shrink[i];
            sums[i][1] = _mm512_loadu_ps(context + i * dims + LANES) * shrink[i];
        }
        add_products(rows, weights[0], KEYS, (most + 1) / 2, at->values + dim * KEYS, 0, sums);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            _mm512_storeu_ps(context + i * dims, sums[i][0]);
            _mm512_storeu_ps(context + i * dims + LANES, sums[i][1]);
        }
    }
}

/* What is asked of one sequence: its last `tokens` of `length`, queries and contexts `[tokens, heads,
   dims]`, blocks of `block_size` in `table`. */
typedef struct {
    const number *query, *keys, *values;
    number *context;
    const int32_t *table;
    int tokens, heads, group, dims, block_size, length, window;
} span;

/* Attend tokens `begin` to `end - 1` by the query heads of one key head. */
static void attend_tile(const span *of, int head, int begin, int end, const workplace *at) {
    int dims = of->dims, group = of->group, rows = (end - begin) * group;
    int before = of->length - of->tokens; /* tokens before the span */
    for (int row = 0; row < rows; row++) {
        int64_t from = ((int64_t)(begin + row / group) * of->heads + head * group + row % group);
        memcpy(at->queries + (int64_t)row * dims, of->query + from * dims, sizeof(number) * dims);
        at->largest[row] = -INFINITY, at->total[row] = 0;
    }
    memset(at->context, 0, sizeof(float) * rows * dims);
    int key = before + begin + 1 - of->window, stop = before + end;
    for (key = key < 0 ? 0 : key - key % KEYS; key < stop; key += KEYS) {
        const number *keys[KEYS], *values[KEYS];
        for (int i = 0; i < KEYS; i++) { /* behind the last key that one again, and seen by none */
            int at_key = key + i < stop ? key + i : stop - 1;
            int64_t slot = (int64_t)of->table[at_key / of->block_size] * of->block_size
                           + at_key % of->block_size;
            keys[i] = of->keys + slot * dims, values[i] = of->values + slot * dims;
        }
        lay_keys(keys, dims, (number *)at->keys), lay_values(values, dims, (number *)at->values);
        for (int row = 0, count; row < rows; row += count) {
            int first[ROWS], last[ROWS];
            count = rows - row < ROWS ? rows - row : ROWS;
            for (int i = 0; i < count; i++) {
                last[i] = before + begin + (row + i) / group + 1 - key;
                first[i] = last[i] - of->window;
            }
            if (last[count - 1] <= 0) continue; /* all keys are later than these rows */
#define FOLD(rows) fold_rows(rows, at, row, first, last, dims)
            WITH_ROWS(count, FOLD)
        }
    }
    for (int row = 0; row < rows; row++) {
        int64_t to = ((int64_t)(begin + row / group) * of->heads + head * group + row % group);
        for (int dim = 0; dim < dims; dim += LANES)
            store(of->context + to * dims + dim,
                  *(floats *)(at->context + (int64_t)row * dims + dim) / at->total[row]);
    }
}

/* The bytes that attend_span wants of `scratch` for each thread. */
int64_t span_bytes(int32_t tile, int32_t group, int32_t dims) {
    int64_t rows = (int64_t)tile * group;
    return sizeof(workplace) + rows * dims * (sizeof(number) + sizeof(float))
           + 2 * rows * sizeof(float);
}

/* Attend scaled queries of the last `tokens` tokens of a sequence of `length`, causally, `tile` tokens
   at a time: keys and values are `[kv_heads, blocks, block_size, dims]`, of which the sequence has
   those in `table`. A token sees the last `window` keys up to its own. `dims` is a multiple of 32.
*/
void attend_span(const number *query, const number *keys, const number *values, number *context,
                 const int32_t *table, char *scratch, int32_t tokens, int32_t heads,
                 int32_t kv_heads, int32_t dims, int32_t blocks, int32_t block_size,
                 int32_t length, int32_t window, int32_t tile, int32_t threads) {
    int group = heads / kv_heads, tiles = (tokens + tile - 1) / tile;
    int64_t rows = (int64_t)tile * group, head_size = (int64_t)blocks * block_size * dims;
#pragma omp parallel num_threads(threads)
    {
        int own = omp_get_thread_num();
        workplace *at = (workplace *)(scratch + own * span_bytes(tile, group, dims));
        at->context = (float *)(at + 1), at->largest = at->context + rows * dims;
        at->total = at->largest + rows, at->queries = (number *)(at->total + rows);
#pragma omp for collapse(2) schedule(dynamic)
        for (int one = tiles - 1; one >= 0; one--) /* the longest first */
            for (int head = 0; head < kv_heads; head++) {
                span of = {query, keys + head * head_size, values + head * head_size, context,
                           table, tokens, heads, group, dims, block_size, length, window};
                int begin = one * tile, end = begin + tile < tokens ? begin + tile : tokens;
                attend_tile(&of, head, begin, end, at);
            }
    }
}

#endif
