// Small dense products in registers; where the machine multiplies bf16 pairs (AVX512-BF16), by those.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace {

// Operands of products are made of 32-bit units: an fp32 number, or where the machine multiplies them, a pair of bf16.
template <class T>
struct Units {
    static constexpr int NUMBERS = 1;
    static f32x16 load(const T* from) { return ::load(from); }
    static f32x16 madd(f32x16 sum, f32x16 a, f32x16 b) { return sum + a * b; }
    static f32x16 load_units(const uint32_t* from) { return ::load(reinterpret_cast<const float*>(from)); }
    static f32x16 splat_unit(uint32_t unit) { return splat(bits_as<float>(unit)); }
};
#ifdef __AVX512BF16__
template <>
struct Units<bf16> {
    static constexpr int NUMBERS = 2;
    static __m512i load(const bf16* from) { return _mm512_loadu_si512(from); }
    static f32x16 madd(f32x16 sum, __m512i a, __m512i b) {
        return bits_as<f32x16>(_mm512_dpbf16_ps(bits_as<__m512>(sum), bits_as<__m512bh>(a), bits_as<__m512bh>(b)));
    }
    static __m512i load_units(const uint32_t* from) { return _mm512_loadu_si512(from); }
    static __m512i splat_unit(uint32_t unit) { return _mm512_set1_epi32(static_cast<int>(unit)); }
};
#endif
template <class T>
constexpr bool ROWS_ARE_UNITS = std::is_same_v<T, float> || Units<T>::NUMBERS == 2;

inline float number(float value) { return value; }
inline float number(bf16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }

// c[row, :N*16] (+)= sum over units u of a[row, u] b[u, :N*16], for R rows.
template <class T, int R, int N, bool ADD>
inline void multiply_tile(const uint32_t* a, int a_stride, const uint32_t* b, int b_stride, int units, float* c, int c_stride) {
    f32x16 sums[R][N];
    for (int row = 0; row < R; ++row)
        for (int n = 0; n < N; ++n) sums[row][n] = ADD ? load(c + row * c_stride + n * LANES) : f32x16{};
    for (int unit = 0; unit < units; ++unit)
        for (int row = 0; row < R; ++row) {
            const auto left = Units<T>::splat_unit(a[row * a_stride + unit]);
            for (int n = 0; n < N; ++n)
                sums[row][n] = Units<T>::madd(sums[row][n], left, Units<T>::load_units(b + unit * b_stride + n * LANES));
        }
    for (int row = 0; row < R; ++row)
        for (int n = 0; n < N; ++n) store(c + row * c_stride + n * LANES, sums[row][n]);
}

template <class T, bool ADD>
inline void multiply(const uint32_t* a, int a_stride, const uint32_t* b, int b_stride, int units, float* c, int c_stride,
                     int rows, int columns) {
    in_tiles<ROW_TILE>(0, rows, [&](auto r, int row) {
        const auto tile = [&](auto n, int column) {
            multiply_tile<T, r(), n(), ADD>(a + row * a_stride, a_stride, b + column, b_stride, units,
                                            c + row * c_stride + column, c_stride);
        };
        int column = 0;
        for (; column + 4 * LANES <= columns; column += 4 * LANES) tile(std::integral_constant<int, 4>{}, column);
        for (; column < columns; column += LANES) tile(std::integral_constant<int, 1>{}, column);
    });
}

}  // namespace
