/* Attention of single tokens over the blocks of their sequences, read in place.

   Keys of a sequence are taken in parts of PART, and a part block by block; a softmax is folded from
   block to block and then from part to part, as in Milakov and Gimelshein, "Online normalizer
   calculation for softmax" (2018), in float32. How a token is computed depends on its own length
   alone, so its context is the same bits whatever is beside it.
*/

#include "panels.h"

#define PART 1024
#define MOST_DIMS 256
#define MOST_GROUP 16
/* Keys of a block that are scored at once: their scores and values stay in the first cache. */
#define RUN 64

/* Bytes of a line of the cache. */
#define LINE 64

/* Of one query head: the largest score, the sum of weights, and behind them the context. */
typedef struct {
    float largest, total, context[];
} folded;

static inline folded *at(float *scratch, int64_t index, int dims) {
    return (folded *)(scratch + index * (dims + 2));
}

/* Score a run of keys by two queries. Meanwhile as many rows are fetched `ahead` of their use: blocks
   lie anywhere, and a CPU that is not told waits for the first lines of each.
*/
static void score(const float *query, const float *other, const number *keys, const number *ahead,
                  int count, int dims, float *scores, float *others) {
    for (int key = 0; key < count; key++, keys += dims, ahead += dims) {
        floats first = {}, second = {};
        for (int dim = 0; dim < dims; dim += LANES) {
            if (dim * sizeof(number) % LINE == 0) fetch(ahead + dim);
            floats x = load(keys + dim);
            first += x * *(const floats *)(query + dim), second += x * *(const floats *)(other + dim);
        }
        scores[key] = sum(first), others[key] = sum(second);
    }
}

#ifdef DOTS

/* Sums of four vectors each. */
static inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 low = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    __m512 high = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    __m512d first = (__m512d)low, second = (__m512d)high;
    __m512 all = (__m512)_mm512_unpacklo_pd(first, second) + (__m512)_mm512_unpackhi_pd(first, second);
    __m256 half = _mm512_castps512_ps256(all) + (__m256)_mm512_extractf64x4_pd((__m512d)all, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}

/* The same for queries in bfloat16 and dims that are a multiple of 32, four keys at a time; of the
   last four, those behind the run are its last key again.
*/
static void score_dots(const number *query, const number *other, const number *keys,
                       const number *ahead, int count, int dims, float *scores, float *others) {
    for (int key = 0; key < count; key += 4) {
        const number *four[4];
        __m512 first[4], second[4];
        for (int i = 0; i < 4; i++) {
            int at = key + i < count ? key + i : count - 1;
            four[i] = keys + (int64_t)at * dims;
            first[i] = second[i] = _mm512_setzero_ps();
            for (int dim = 0; dim < dims; dim += 2 * LANES)
                fetch(ahead + (int64_t)at * dims + dim);
        }
        for (int dim = 0; dim < dims; dim += 2 * LANES) {
            __m512bh q = (__m512bh)_mm512_loadu_si512(query + dim);
            __m512bh o = (__m512bh)_mm512_loadu_si512(other + dim);
            for (int i = 0; i < 4; i++) {
                __m512bh x = (__m512bh)_mm512_loadu_si512(four[i] + dim);
                first[i] = _mm512_dpbf16_ps(first[i], x, q);
                second[i] = _mm512_dpbf16_ps(second[i], x, o);
            }
        }
        _mm_storeu_ps(scores + key, sums_of(first[0], first[1], first[2], first[3]));
        _mm_storeu_ps(others + key, sums_of(second[0], second[1], second[2], second[3]));
    }
}

#endif

/* Turn scores into weights, and scale what was folded before to the same largest score. */
static void fold(folded *to, float *scores, int count, int dims) {
    for (int key = count; key % LANES; key++) scores[key] = -1e30f;
    floats most = (floats){} + to->largest, spoilt = {}, total = {};
    for (int key = 0; key < count; key += LANES) {
        floats some = *(floats *)(scores + key);
        most = larger(some, most), spoilt += some * 0;
    }
    float largest = largest_of(most);
    for (int key = 0; key < count; key += LANES) {
        floats weights = exponential(*(floats *)(scores + key) - largest);
        *(floats *)(scores + key) = weights;
        total += weights;
    }
    if (largest != to->largest) {
        float shrink = expf(to->largest - largest);
        to->total *= shrink;
        for (int dim = 0; dim < dims; dim += LANES) *(floats *)(to->context + dim) *= shrink;
        to->largest = largest;
    }
    to->total += sum(total) + sum(spoilt);
}

/* Add a run of values, by the weights of two queries; fetch as many rows ahead. */
static void add(folded *to, folded *other, const float *weights, const float *others,
                const number *values, const number *ahead, int count, int dims) {
    for (int dim = 0; dim < dims; dim += 2 * LANES) {
        int next = dim + LANES < dims ? dim + LANES : dim; /* an odd vector is added twice over */
        floats low = *(floats *)(to->context + dim), high = *(floats *)(to->context + next);
        floats other_low = *(floats *)(other->context + dim);
        floats other_high = *(floats *)(other->context + next);
        for (int key = 0; key < count; key++) {
            const number *value = values + (int64_t)key * dims;
            fetch(ahead + (int64_t)key * dims + dim);
            floats x = load(value + dim), y = load(value + next);
            low += x * weights[key], high += y * weights[key];
            other_low += x * others[key], other_high += y * others[key];
        }
        *(floats *)(to->context + dim) = low, *(floats *)(to->context + next) = high;
        *(floats *)(other->context + dim) = other_low;
        *(floats *)(other->context + next) = other_high;
    }
}

/* Fold keys `first` to `last` of one token into `scratch`, for the query heads of one key head. */
static void attend_part(const number *query, const number *keys, const number *values,
                        const int32_t *table, int group, int dims, int block_size, int first,
                        int last, float *scratch) {
    float queries[MOST_GROUP * MOST_DIMS], weights[2][RUN], spare[MOST_DIMS + 2];
    for (int i = 0; i < group * dims; i++) queries[i] = to_float(query[i]);
    for (int head = 0; head < group; head++) {
        folded *to = at(scratch, head, dims);
        to->largest = -INFINITY, to->total = 0;
        memset(to->context, 0, sizeof(float) * dims);
    }
    memset(spare, 0, sizeof spare);
    for (int key = first, count; key < last; key += count) {
        int offset = key % block_size;
        count = block_size - offset < RUN ? block_size - offset : RUN;
        count = last - key < count ? last - key : count;
        int64_t from = ((int64_t)table[key / block_size] * block_size + offset) * dims;
        int next = key + count < last ? key + count : key;
        int64_t ahead = ((int64_t)table[next / block_size] * block_size + next % block_size) * dims;
        for (int head = 0; head < group; head += 2) { /* a last odd one is its own neighbour */
            int other = head + 1 < group ? head + 1 : head;
            folded *to = at(scratch, head, dims);
            folded *beside = other == head ? (folded *)spare : at(scratch, other, dims);
#ifdef DOTS
            if (dims % (2 * LANES) == 0)
                score_dots(query + head * dims, query + other * dims, keys + from, values + from,
                           count, dims, weights[0], weights[1]);
            else
#endif
                score(queries + head * dims, queries + other * dims, keys + from, values + from,
                      count, dims, weights[0], weights[1]);
            fold(to, weights[0], count, dims), fold(beside, weights[1], count, dims);
            add(to, beside, weights[0], weights[1], values + from, keys + ahead, count, dims);
        }
    }
}

/* Write the context of one query head, folded in `parts` parts. */
static void finish(float *scratch, int parts, int group, int dims, number *context) {
    folded *to = at(scratch, 0, dims);
    for (int part = 1; part < parts; part++) {
        folded *from = at(scratch, (int64_t)part * group, dims);
        float largest = fmaxf(to->largest, from->largest);
        float own = expf(to->largest - largest), other = expf(from->largest - largest);
        to->largest = largest, to->total = to->total * own + from->total * other;
        for (int dim = 0; dim < dims; dim += LANES) {
            floats *sum = (floats *)(to->context + dim);
            *sum = *sum * own + *(floats *)(from->context + dim) * other;
        }
    }
    for (int dim = 0; dim < dims; dim += LANES)
        store(context + dim, *(floats *)(to->context + dim) / to->total);
}

/* Attend scaled queries `[tokens, heads, dims]` over the cache of one layer, `[kv_heads, blocks,
   block_size, dims]`: token t sees the last `window` of the first `lengths[t]` keys, whose blocks are
   row `rows[t]` of `tables`, `[sequences, width]`. `scratch` has (dims + 2) floats for each query
   head of each of `parts` parts of each token.
*/
void attend_tokens(const number *query, const number *keys, const number *values, number *context,
                   const int32_t *tables, const int32_t *rows, const int32_t *lengths,
                   int32_t tokens, int32_t heads, int32_t kv_heads, int32_t dims, int32_t blocks,
                   int32_t block_size, int32_t width, int32_t window, int32_t parts,
                   int32_t threads, float *scratch) {
    int group = heads / kv_heads;
    int64_t head_size = (int64_t)blocks * block_size * dims;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(3) schedule(dynamic)
        for (int token = 0; token < tokens; token++)
            for (int head = 0; head < kv_heads; head++)
                for (int part = 0; part < parts; part++) {
                    int hidden = lengths[token] > window ? lengths[token] - window : 0;
                    int first = hidden + part * PART;
                    int last = first + PART < lengths[token] ? first + PART : lengths[token];
                    int64_t to = ((int64_t)token * kv_heads + head) * parts + part;
                    if (first < last)
                        attend_part(query + ((int64_t)token * heads + head * group) * dims,
                                    keys + head * head_size, values + head * head_size,
                                    tables + (int64_t)rows[token] * width, group, dims, block_size,
                                    first, last, (float *)at(scratch, to * group, dims));
                }
#pragma omp for collapse(2)
        for (int token = 0; token < tokens; token++)
            for (int head = 0; head < heads; head++) {
                int seen = lengths[token] < window ? lengths[token] : window;
                int64_t from = ((int64_t)token * kv_heads + head / group) * parts * group;
                finish((float *)at(scratch, from + head % group, dims), (seen + PART - 1) / PART,
                       group, dims, context + ((int64_t)token * heads + head) * dims);
            }
    }
}
