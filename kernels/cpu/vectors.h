// Vectors of 16 fp32 and what loads, stores and reduces them, for fp32 and bf16.
//
// Plain vector code that any compiler with GCC's vector extensions lowers to the machine it runs on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};
using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));

constexpr int LANES = 16;
constexpr float LOG2_E = 1.44269504088896f;
#ifdef __AVX512F__
constexpr int ROW_TILE = 6, DOT_TILE = 4;  // accumulators that fit 32 registers of 16 lanes
#else
constexpr int ROW_TILE = 1, DOT_TILE = 2;  // 16 registers of 8 lanes
#endif
constexpr int SERIAL_TOKENS = 4;  // fewer are done before a second thread has woken up

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline f32x16 splat(float value) { return f32x16{} + value; }

inline f32x16 load(const float* from) {
    f32x16 out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
inline f32x16 load(const bf16* from) {
    u16x16 halves;
    std::memcpy(&halves, from, sizeof halves);
    return bits_as<f32x16>(__builtin_convertvector(halves, u32x16) << 16);
}
inline void store(float* to, f32x16 value) { std::memcpy(to, &value, sizeof value); }
inline void store(bf16* to, f32x16 value) {
#ifdef __AVX512BF16__
    const auto halves = _mm512_cvtneps_pbh(bits_as<__m512>(value));
    std::memcpy(to, &halves, sizeof halves);
#else
    const auto bits = bits_as<u32x16>(value);
    const auto halves = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, u16x16);  // nearest even
    std::memcpy(to, &halves, sizeof halves);
#endif
}
// The first `count` lanes, for the end of a row; the others read as 0.
template <class T>
inline f32x16 load(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T padded[LANES] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load(padded);
}
template <class T>
inline void store(T* to, f32x16 value, int64_t count) {
    if (count >= LANES) return store(to, value);
    T padded[LANES];
    store(padded, value);
    std::memcpy(to, padded, count * sizeof(T));
}

inline float sum(f32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps(bits_as<__m512>(value));
#else
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += value[lane];
    return total;
#endif
}
inline f32x16 larger(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
    return bits_as<f32x16>(_mm512_max_ps(bits_as<__m512>(a), bits_as<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}
inline float largest(f32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps(bits_as<__m512>(value));
#else
    float top = value[0];
    for (int lane = 1; lane < LANES; ++lane) top = std::max(top, value[lane]);
    return top;
#endif
}

inline bool any_above(f32x16 value, float bound) {
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask(bits_as<__m512>(value), _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#else
    return largest(value) > bound;
#endif
}

// 2^r for |r| <= 1/2: of the polynomials of degree 5 that are 1 at 0 the one of least relative error, 9.2e-8.
inline f32x16 exp2_of_fraction(f32x16 r) {
    f32x16 power = splat(1.32647272e-3f);
    for (float coefficient : {9.67151268e-3f, 5.55073374e-2f, 2.40222421e-1f, 6.93146978e-1f, 1.0f})
        power = power * r + coefficient;
    return power;
}

// 2^x, 0 below 2^-126. x = n + r with |r| <= 1/2.
inline f32x16 exp2(f32x16 x) {
#ifdef __AVX512F__
    const __m512 n = _mm512_roundscale_ps(bits_as<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const f32x16 power = exp2_of_fraction(x - bits_as<f32x16>(n));
    const __mmask16 is_normal = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126), _CMP_NLT_UQ);  // or not a number
    return bits_as<f32x16>(_mm512_maskz_scalef_ps(is_normal, bits_as<__m512>(power), n));
#else
    const f32x16 rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const f32x16 bounded = larger(splat(-126), x < splat(126) ? x : splat(126));
    const f32x16 shifted = bounded + rounder;
    const f32x16 r = bounded - (shifted - rounder);
    const i32x16 n = bits_as<i32x16>(shifted) - bits_as<i32x16>(rounder);
    const f32x16 result = bits_as<f32x16>(bits_as<i32x16>(exp2_of_fraction(r)) + (n << 23));
    return x < splat(-126) ? f32x16{} : result;
#endif
}

// body(size, first) over [begin, end) in tiles of SIZE, then of what is left: the size is a compile-time constant.
template <int SIZE, class Body>
inline void in_tiles(int begin, int end, Body&& body) {
    for (; begin + SIZE <= end; begin += SIZE) body(std::integral_constant<int, SIZE>{}, begin);
    if constexpr (SIZE > 1) in_tiles<SIZE - 1>(begin, end, body);
}

}  // namespace
