// Products with int8 and int4 weights. A weight is scale * code + minimum, the last two shared by a group of inputs, so
//   x . w = sum over groups of  scale * (x . codes) + minimum * (sum of x),
// which rounds no weight: codes are exact in bf16 and fp32.
//
// Outputs lie in panels of 48, a panel's words in the order in which they are read (kernels/quantization.py packs them):
//   codes   [panel][word][48] uint32, each word 32 / BITS inputs of one output. Inputs 2i and 2i + 1 stand at bit i * BITS of
//           the word's low and high half, so that a shift brings a pair of them in place.
//   scales  [panel][group][2][48] bf16: scales, minimums.
// A few tokens multiply codes as they come out of the words; for more, a group's codes are unpacked once for all of them.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "products.h"

namespace {

constexpr int PANEL_VECTORS = 3;
constexpr int PANEL = PANEL_VECTORS * LANES;
constexpr int TOKEN_BLOCK = 128;  // tokens that share one unpacking: their sums take 24 KB
#ifdef __AVX512F__
constexpr int PANEL_ROWS = 8, FEW_TOKENS = 4;  // 24 accumulators; twice 12
#else
constexpr int PANEL_ROWS = 2, FEW_TOKENS = 1;
#endif

inline u32x16 load_words(const uint32_t* from) {
    u32x16 out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
inline f32x16 to_floats(u32x16 value) { return __builtin_convertvector(bits_as<i32x16>(value), f32x16); }

// Unit `i` of 16 words, as an operand of Units<T>::madd.
template <int BITS>
inline f32x16 code(u32x16 words, int i) {
    return to_floats((words >> (i % 2 * 16 + i / 2 * BITS)) & ((1u << BITS) - 1));
}
template <class T, int BITS>
inline auto unpack(u32x16 words, int i) {
    if constexpr (Units<T>::NUMBERS == 1) {
        return code<BITS>(words, i);
    }
#ifdef __AVX512BF16__
    else if constexpr (BITS == 4) {
        // vpermw looks up the low five bits of each half word; the fifth is the next code's, so the table stands twice
        const __m256i table = _mm256_setr_epi16(0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110,
                                                0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170);  // 0 to 15 in bf16
        return _mm512_permutexvar_epi16(bits_as<__m512i>(words >> (4 * i)), _mm512_broadcast_i64x4(table));
    } else {
        const u32x16 low = bits_as<u32x16>(code<BITS>(words, 2 * i)), high = bits_as<u32x16>(code<BITS>(words, 2 * i + 1));
        return bits_as<__m512i>(low >> 16 | high);
    }
#endif
}

template <class T, int BITS>
struct QuantizedProduct {
    static constexpr int GROUP = BITS == 4 ? 32 : 64;  // as in quantization.py
    static constexpr int UNITS = GROUP / Units<T>::NUMBERS;
    static constexpr int WORDS = GROUP * BITS / 32;
    static constexpr int WORD_UNITS = UNITS / WORDS;

    T* out;
    int64_t out_width;
    int groups;
    const uint32_t* codes;
    const bf16* scales;
    const T* bias;
    const uint32_t* x = nullptr;  // [tokens][x_stride] units
    int64_t x_stride = 0;
    std::vector<uint32_t> x_copy;
    std::vector<float> x_sums;  // [tokens][groups]

    void take_inputs(const T* from, int64_t stride, int64_t width, int64_t tokens) {
        x_stride = static_cast<int64_t>(groups) * UNITS;
        x_sums.resize(tokens * groups);
        if (ROWS_ARE_UNITS<T> && width == groups * GROUP && (tokens == 1 || stride == width)) {
            x = reinterpret_cast<const uint32_t*>(from);
        } else {
            x_copy.resize(tokens * x_stride);
            x = x_copy.data();
        }
#pragma omp parallel for if (tokens > 4 * TOKEN_BLOCK)
        for (int64_t token = 0; token < tokens; ++token) {
            if (!x_copy.empty()) copy_row(&x_copy[token * x_stride], from + token * stride, width);
            for (int group = 0; group < groups; ++group) {
                const T* numbers = from + token * stride + static_cast<int64_t>(group) * GROUP;
                const int64_t count = width - static_cast<int64_t>(group) * GROUP;
                f32x16 total = {};
                for (int i = 0; i < GROUP && i < count; i += LANES) total += load(numbers + i, count - i);
                x_sums[token * groups + group] = sum(total);
            }
        }
    }

    // All inputs of R tokens times one panel, codes unpacked in registers.
    template <int R>
    void multiply_few(int64_t panel, int64_t first_token) const {
        constexpr int CHAINS = R == 1 ? 2 : 1;  // sums that do not wait for one another
        f32x16 totals[R][PANEL_VECTORS] = {};
        const uint32_t* words = codes + panel * groups * WORDS * PANEL;
        for (int group = 0; group < groups; ++group) {
            f32x16 sums[R][PANEL_VECTORS][CHAINS] = {};
            const uint32_t* left = x + first_token * x_stride + group * UNITS;
            for (int word = 0; word < WORDS; ++word, words += PANEL)
                for (int n = 0; n < PANEL_VECTORS; ++n) {
                    const u32x16 packed = load_words(words + n * LANES);
                    for (int i = 0; i < WORD_UNITS; ++i) {
                        const auto right = unpack<T, BITS>(packed, i);
                        for (int row = 0; row < R; ++row) {
                            const auto x_unit = Units<T>::splat_unit(left[row * x_stride + word * WORD_UNITS + i]);
                            f32x16& to = sums[row][n][i % CHAINS];
                            to = Units<T>::madd(to, x_unit, right);
                        }
                    }
                }
            const bf16* scale = scales + (panel * groups + group) * 2 * PANEL;
            for (int n = 0; n < PANEL_VECTORS; ++n)
                for (int row = 0; row < R; ++row) {
                    f32x16 total = sums[row][n][0];
                    for (int chain = 1; chain < CHAINS; ++chain) total += sums[row][n][chain];
                    totals[row][n] += load(scale + n * LANES) * total +
                                      load(scale + PANEL + n * LANES) * x_sums[(first_token + row) * groups + group];
                }
        }
        for (int row = 0; row < R; ++row) finish(panel, first_token + row, totals[row]);
    }

    // All inputs of up to TOKEN_BLOCK tokens times one panel. unpacked [UNITS][PANEL] and totals [tokens][PANEL] are scratch.
    void multiply_many(int64_t panel, int64_t first_token, int tokens, uint32_t* unpacked, float* totals) const {
        std::fill_n(totals, tokens * PANEL, 0.0f);
        const uint32_t* words = codes + panel * groups * WORDS * PANEL;
        for (int group = 0; group < groups; ++group, words += WORDS * PANEL) {
            for (int word = 0; word < WORDS; ++word)
                for (int n = 0; n < PANEL_VECTORS; ++n) {
                    const u32x16 packed = load_words(words + word * PANEL + n * LANES);
                    for (int i = 0; i < WORD_UNITS; ++i) {
                        const auto right = unpack<T, BITS>(packed, i);
                        std::memcpy(unpacked + (word * WORD_UNITS + i) * PANEL + n * LANES, &right, sizeof right);
                    }
                }
            in_tiles<PANEL_ROWS>(0, tokens, [&](auto r, int row) {
                add_group<r()>(panel, group, first_token + row, unpacked, totals + row * PANEL);
            });
        }
        for (int row = 0; row < tokens; ++row) {
            f32x16 total[PANEL_VECTORS];
            for (int n = 0; n < PANEL_VECTORS; ++n) total[n] = load(totals + row * PANEL + n * LANES);
            finish(panel, first_token + row, total);
        }
    }

private:
    static void copy_row(uint32_t* to, const T* from, int64_t width) {
        if constexpr (ROWS_ARE_UNITS<T>)
            std::memcpy(to, from, width * sizeof(T));
        else
            for (int64_t i = 0; i < width; ++i) to[i] = bits_as<uint32_t>(number(from[i]));
    }

    template <int R>
    void add_group(int64_t panel, int group, int64_t first_token, const uint32_t* unpacked, float* totals) const {
        f32x16 sums[R][PANEL_VECTORS] = {};
        const uint32_t* left = x + first_token * x_stride + group * UNITS;
#pragma GCC unroll 4  // 5% at 32 tokens
        for (int unit = 0; unit < UNITS; ++unit)
            for (int row = 0; row < R; ++row) {
                const auto x_unit = Units<T>::splat_unit(left[row * x_stride + unit]);
                for (int n = 0; n < PANEL_VECTORS; ++n)
                    sums[row][n] = Units<T>::madd(sums[row][n], x_unit, Units<T>::load_units(unpacked + unit * PANEL + n * LANES));
            }
        const bf16* scale = scales + (panel * groups + group) * 2 * PANEL;
        for (int n = 0; n < PANEL_VECTORS; ++n) {
            const f32x16 scales_here = load(scale + n * LANES), minimums = load(scale + PANEL + n * LANES);
            for (int row = 0; row < R; ++row) {
                float* total = totals + row * PANEL + n * LANES;
                const float x_sum = x_sums[(first_token + row) * groups + group];
                store(total, load(total) + scales_here * sums[row][n] + minimums * x_sum);
            }
        }
    }

    void finish(int64_t panel, int64_t token, const f32x16* totals) const {
        for (int n = 0; n < PANEL_VECTORS; ++n) {
            const int64_t column = panel * PANEL + n * LANES, count = out_width - column;
            if (count <= 0) return;
            store(out + token * out_width + column, bias ? totals[n] + load(bias + column, count) : totals[n], count);
        }
    }
};

template <class T, int BITS>
void quantized_linear(T* out, const T* x, int64_t x_stride, int64_t tokens, int64_t width, int64_t out_width,
                      const uint32_t* codes, const bf16* scales, const T* bias) {
    using Product = QuantizedProduct<T, BITS>;
    Product product{out, out_width, static_cast<int>((width + Product::GROUP - 1) / Product::GROUP), codes, scales, bias};
    product.take_inputs(x, x_stride, width, tokens);
    const int64_t panels = (out_width + PANEL - 1) / PANEL;
#pragma omp parallel
    {
        std::vector<uint32_t> unpacked(tokens > FEW_TOKENS ? Product::UNITS * PANEL : 0);
        std::vector<float> totals(tokens > FEW_TOKENS ? TOKEN_BLOCK * PANEL : 0);
// A run of panels a thread, so that it reads on where it is, and shorter ones towards the end.
#pragma omp for schedule(guided)
        for (int64_t panel = 0; panel < panels; ++panel) {
            if (tokens <= FEW_TOKENS)
                in_tiles<FEW_TOKENS>(0, static_cast<int>(tokens), [&](auto r, int token) {
                    product.template multiply_few<r()>(panel, token);
                });
            else
                for (int64_t first = 0; first < tokens; first += TOKEN_BLOCK)
                    product.multiply_many(panel, first, static_cast<int>(std::min<int64_t>(TOKEN_BLOCK, tokens - first)),
                                          unpacked.data(), totals.data());
        }
    }
}

template <class T>
void int8_linear(T* out, const T* x, int64_t x_stride, int64_t tokens, int64_t width, int64_t out_width, const uint32_t* codes,
                 const bf16* scales, const T* bias) {
    quantized_linear<T, 8>(out, x, x_stride, tokens, width, out_width, codes, scales, bias);
}
template <class T>
void int4_linear(T* out, const T* x, int64_t x_stride, int64_t tokens, int64_t width, int64_t out_width, const uint32_t* codes,
                 const bf16* scales, const T* bias) {
    quantized_linear<T, 4>(out, x, x_stride, tokens, width, out_width, codes, scales, bias);
}

}  // namespace
