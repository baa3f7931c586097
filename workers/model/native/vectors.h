/* Vectors of floats for any CPU that GCC or Clang know, and the model's numbers as floats. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

/* The CPU adds products of pairs of numbers in bfloat16. */
#if defined(__AVX512BF16__) && !defined(FLOAT32)
#define DOTS
#endif

/* 16 floats: a register of AVX-512, two of AVX2, four of NEON. Memory need not be aligned. */
#define LANES 16
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4)));

/* A number of the model: bfloat16, or float32 with -DFLOAT32. */
#ifdef FLOAT32

typedef float number;

static inline floats load(const number *from) { return *(const floats *)from; }
static inline void store(number *to, floats x) { *(floats *)to = x; }
static inline float to_float(number x) { return x; }
static inline number to_number(float x) { return x; }

#else

typedef uint16_t number;
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));

static inline floats load(const number *from) {
    return (floats)(__builtin_convertvector(*(const halves *)from, words) << 16);
}

/* To the nearest, ties to even, as torch rounds; a NaN stays one. */
static inline void store(number *to, floats x) {
    words bits = (words)x;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words is_nan = (words)(x != x);
    *(halves *)to = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), halves);
}

static inline float to_float(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline number to_number(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

#endif

/* What is no number stays none: 0 times it is none either, and added to a scale or a sum it spoils
   what that is multiplied by. */
static inline float spoilt_by(float x) { return 0 * x; }

static inline float sum(floats x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#endif
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) x[lane] += x[lane + half];
    return x[0];
}

static inline floats larger(floats x, floats y) {
    integers is_x = x > y;
    return (floats)(((integers)x & is_x) | ((integers)y & ~is_x));
}

static inline float largest_of(floats x) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            x[lane] = x[lane] > x[lane + half] ? x[lane] : x[lane + half];
    return x[0];
}

/* The nearest integers, ties to even, of what is less than 2^22. */
static inline integers nearest(floats x) { return (integers)(x + 12582912.0f) - 0x4b400000; }

typedef uint8_t bytes16 __attribute__((vector_size(LANES), aligned(1)));

/* The lowest bytes. */
static inline void store_bytes(uint8_t *to, integers x) {
    *(bytes16 *)to = __builtin_convertvector(x, bytes16);
}

/* Round a row to 8 bits, plus 128, every four of them `stride` bytes behind the last; return the scale
   that gives it back. */
static inline float round_row(const number *from, uint8_t *to, int stride, int width) {
    floats largest = {}, spoilt = {};
    for (int i = 0; i < width; i += LANES) {
        floats v = load(from + i);
        largest = larger(largest, larger(v, -v));
        spoilt += v * 0;
    }
    float most = fmaxf(1e-30f, largest_of(largest));
    for (int i = 0; i < width; i += LANES) {
        uint8_t rounded[LANES];
        store_bytes(rounded, nearest(load(from + i) * (127 / most)) + 128);
        for (int four = 0; four < LANES; four += 4)
            memcpy(to + (int64_t)(i + four) / 4 * stride, rounded + four, 4);
    }
    return most / 127 + sum(spoilt);
}

/* e^x to 2 units in the last place for x <= 0, after Cephes' expf; 1.6e-38 below -87. */
static inline floats exponential(floats x) {
    x = larger(x, (floats){} - 87.0f);
    floats power = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    floats rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    floats series = (floats){} + 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    return series * (floats)((__builtin_convertvector(power, integers) + 127) << 23);
}
