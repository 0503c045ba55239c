// The operations of kernels/ops.py for CPUs, for fp32 and bf16, accumulating in fp32. `ops.Kernels` defines each result.
//
// Plain vector code that any compiler with GCC's vector extensions lowers to the machine it runs on; where the machine
// multiplies bf16 pairs (AVX512-BF16) the products do. Knows raw pointers and strides (in elements); checks nothing:
// native.py does. No function keeps state between calls but scratch memory.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// ---- Vectors of 16 fp32 -------------------------------------------------------------------------------------------

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
inline f32x16 larger(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline float largest(f32x16 value) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps(bits_as<__m512>(value));
#else
    float top = value[0];
    for (int lane = 1; lane < LANES; ++lane) top = std::max(top, value[lane]);
    return top;
#endif
}

// 2^x, 0 below 2^-126, at most 2^126. x = n + r with |r| <= 1/2; 2^r by its Taylor series, good to 1 ulp.
inline f32x16 exp2(f32x16 x) {
    const f32x16 rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const f32x16 bounded = larger(splat(-126), x < splat(126) ? x : splat(126));
    const f32x16 shifted = bounded + rounder;
    const f32x16 r = bounded - (shifted - rounder);
    f32x16 power = splat(1.52527338e-5f);
    for (float coefficient : {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f,
                              6.93147181e-1f, 1.0f})
        power = power * r + coefficient;
    const i32x16 n = bits_as<i32x16>(shifted) - bits_as<i32x16>(rounder);
    const f32x16 result = bits_as<f32x16>(bits_as<i32x16>(power) + (n << 23));
    return x < splat(-126) ? f32x16{} : result;
}

// body(size, first) over [begin, end) in tiles of SIZE, then of what is left: the size is a compile-time constant.
template <int SIZE, class Body>
inline void in_tiles(int begin, int end, Body&& body) {
    for (; begin + SIZE <= end; begin += SIZE) body(std::integral_constant<int, SIZE>{}, begin);
    if constexpr (SIZE > 1) in_tiles<SIZE - 1>(begin, end, body);
}

// ---- Products -----------------------------------------------------------------------------------------------------

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

// v[token * v_stride + rank] = sum over i < width of x[token, i] a[rank, i], for TOKENS tokens and RANKS ranks.
template <class T, int TOKENS, int RANKS>
inline void dot_tile(const T* x, const T* a, int64_t width, float* v, int v_stride) {
    constexpr int STEP = LANES * Units<T>::NUMBERS;
    f32x16 sums[TOKENS][RANKS] = {};
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP)
        for (int rank = 0; rank < RANKS; ++rank) {
            const auto right = Units<T>::load(a + rank * width + i);
            for (int token = 0; token < TOKENS; ++token)
                sums[token][rank] = Units<T>::madd(sums[token][rank], Units<T>::load(x + token * width + i), right);
        }
    for (int token = 0; token < TOKENS; ++token)
        for (int rank = 0; rank < RANKS; ++rank) {
            float total = sum(sums[token][rank]);
            for (int64_t j = i; j < width; ++j) total += number(x[token * width + j]) * number(a[rank * width + j]);
            v[token * v_stride + rank] = total;
        }
}

// out[token, column] += sum over ranks of v[token, rank] b[rank, column], for TOKENS tokens N*16 columns, or `count` if N is 1.
template <class T, int TOKENS, int N>
inline void expand_tile(T* out, int64_t out_stride, const float* v, int v_stride, const T* b, int64_t b_stride, int ranks,
                        int64_t count) {
    f32x16 sums[TOKENS][N];
    for (int token = 0; token < TOKENS; ++token)
        for (int n = 0; n < N; ++n) sums[token][n] = load(out + token * out_stride + n * LANES, count - n * LANES);
    for (int rank = 0; rank < ranks; ++rank)
        for (int n = 0; n < N; ++n) {
            const f32x16 right = load(b + rank * b_stride + n * LANES, count - n * LANES);
            for (int token = 0; token < TOKENS; ++token) sums[token][n] += v[token * v_stride + rank] * right;
        }
    for (int token = 0; token < TOKENS; ++token)
        for (int n = 0; n < N; ++n) store(out + token * out_stride + n * LANES, sums[token][n], count - n * LANES);
}

// ---- Norms, rotary, KV write, SiLU --------------------------------------------------------------------------------

template <class T>
void norm_row(T* out, const T* x, const T* weight, int64_t width, float eps) {
    f32x16 squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
        const f32x16 part = load(x + i, width - i);
        squares += part * part;
    }
    const float scale = 1 / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        store(out + i, load(x + i, width - i) * scale * load(weight + i, width - i), width - i);
}

// Rows of x lie `inner_stride` apart in groups of `inner`, and the groups `outer_stride`: heads of a fused projection.
template <class T>
void rms_norm(T* out, const T* x, int64_t outer_stride, int64_t inner_stride, const T* weight, int64_t outer, int64_t inner,
              int64_t width, float eps) {
#pragma omp parallel for if (outer > SERIAL_TOKENS)
    for (int64_t group = 0; group < outer; ++group)
        for (int64_t row = 0; row < inner; ++row)
            norm_row(out + (group * inner + row) * width, x + group * outer_stride + row * inner_stride, weight, width, eps);
}

template <class T>
void add_rms_norm(T* out, const T* x, T* residual, const T* weight, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for if (rows > SERIAL_TOKENS)
    for (int64_t row = 0; row < rows; ++row) {
        T* sums = residual + row * width;
        for (int64_t i = 0; i < width; i += LANES)
            store(sums + i, load(sums + i, width - i) + load(x + row * width + i, width - i), width - i);
        norm_row(out + row * width, sums, weight, width, eps);
    }
}

template <class T>
void rotate_head(T* head, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = half - i;
        const f32x16 first = load(head + i, count), second = load(head + half + i, count);
        const f32x16 c = load(cos + i, count), s = load(sin + i, count);
        store(head + i, first * c - second * s, count);
        store(head + half + i, second * c + first * s, count);
    }
}

template <class T>
void rotary(T* query, int64_t query_stride, int64_t heads, T* key, int64_t key_stride, int64_t kv_heads, int64_t head_dim,
            const float* cos, const float* sin, int64_t half, const int64_t* positions, int64_t tokens) {
#pragma omp parallel for if (tokens > SERIAL_TOKENS)
    for (int64_t token = 0; token < tokens; ++token) {
        const int64_t angle = positions[token] * half;
        for (int64_t head = 0; head < heads; ++head)
            rotate_head(query + token * query_stride + head * head_dim, cos + angle, sin + angle, half);
        for (int64_t head = 0; head < kv_heads; ++head)
            rotate_head(key + token * key_stride + head * head_dim, cos + angle, sin + angle, half);
    }
}

template <class T>
void write_kv(const T* key, int64_t key_stride, const T* value, int64_t value_stride, T* key_pages, T* value_pages,
              const int64_t* slots, int64_t tokens, int64_t kv_heads, int64_t page_tokens, int64_t head_dim) {
#pragma omp parallel for if (tokens > 4 * SERIAL_TOKENS)
    for (int64_t token = 0; token < tokens; ++token)
        for (int64_t head = 0; head < kv_heads; ++head) {
            const int64_t page = slots[token] / page_tokens, offset = slots[token] % page_tokens;
            const int64_t to = ((page * kv_heads + head) * page_tokens + offset) * head_dim;
            std::memcpy(key_pages + to, key + token * key_stride + head * head_dim, head_dim * sizeof(T));
            std::memcpy(value_pages + to, value + token * value_stride + head * head_dim, head_dim * sizeof(T));
        }
}

template <class T>
void silu_and_mul(T* out, const T* gate_up, int64_t tokens, int64_t width) {
#pragma omp parallel for if (tokens > SERIAL_TOKENS)
    for (int64_t token = 0; token < tokens; ++token) {
        const T *gates = gate_up + token * 2 * width, *ups = gates + width;
        for (int64_t i = 0; i < width; i += LANES) {
            const f32x16 gate = load(gates + i, width - i);
            const f32x16 silu = gate / (1 + exp2(gate * -LOG2_E));
            store(out + token * width + i, silu * load(ups + i, width - i), width - i);
        }
    }
}

// ---- Paged attention ----------------------------------------------------------------------------------------------

constexpr int KEY_BLOCK = 64;         // positions per round of the online softmax
constexpr int QUERY_ROWS = 64;        // (token, head) rows that share one reading of a key block
constexpr float HIDDEN = -1e30f;      // finite: a row whose first blocks are all hidden must not compute inf - inf

// out[unit * KEY_BLOCK + i] = rows[i][unit], for 16 rows of `units` units.
inline void transpose(const uint32_t* const* rows, int units, uint32_t* out) {
    int unit = 0;
#ifdef __AVX512F__
    for (; unit + LANES <= units; unit += LANES) {
        __m512i r[LANES], t[LANES];
        for (int i = 0; i < LANES; ++i) r[i] = _mm512_loadu_si512(rows[i] + unit);
        for (int i = 0; i < LANES; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for (int i = 0; i < LANES; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; ++i) {  // r[4j + i] holds rows 4j..4j+3 of columns i, 4 + i, 8 + i, 12 + i
            const __m512i even_low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
            const __m512i even_high = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
            const __m512i odd_low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
            const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
            uint32_t* column = out + (unit + i) * KEY_BLOCK;
            _mm512_storeu_si512(column, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
            _mm512_storeu_si512(column + 4 * KEY_BLOCK, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
            _mm512_storeu_si512(column + 8 * KEY_BLOCK, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
            _mm512_storeu_si512(column + 12 * KEY_BLOCK, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
        }
    }
#endif
    for (; unit < units; ++unit)
        for (int i = 0; i < LANES; ++i) out[unit * KEY_BLOCK + i] = rows[i][unit];
}

template <class T>
void row_to_units(uint32_t* out, const T* row, int width) {
    if constexpr (ROWS_ARE_UNITS<T>)
        std::memcpy(out, row, width * sizeof(T));
    else
        for (int i = 0; i < width; ++i) out[i] = bits_as<uint32_t>(number(row[i]));
}

template <class T>
struct Attention {
    T* out;
    const T* query;
    int64_t query_stride;
    const T *key_pages, *value_pages;
    const int32_t *query_starts, *context_lens, *page_tables;
    int max_pages, heads, kv_heads, head_dim, page_tokens, window;
    float scale;
};

// A run of queries of one sequence, against one KV head. Its rows are (token, head of the KV head's group), token first.
struct AttentionTask {
    int sequence, kv_head, first_query, queries;
};

// Computes tasks one after the other in its own scratch memory; one worker a thread.
template <class T>
class AttentionWorker {
    static constexpr int NUMBERS = Units<T>::NUMBERS;
    using Probability = std::conditional_t<NUMBERS == 2, bf16, float>;

    const Attention<T>& all;
    const int group, units, width;  // units of a query or key row; width of an output row, in whole vectors
    std::vector<uint32_t> query, keys, values, converted;
    std::vector<float> scores, sums, row_max, row_sum;
    std::vector<Probability> probabilities;
    int64_t at[KEY_BLOCK], next_at[KEY_BLOCK];  // where keys and values begin in the pages: this block's, and the next's

public:
    AttentionWorker(const Attention<T>& all, int most_rows)
        : all(all), group(all.heads / all.kv_heads), units(all.head_dim / NUMBERS),
          width((all.head_dim + LANES - 1) / LANES * LANES), query(most_rows * units), keys(units * KEY_BLOCK),
          values(KEY_BLOCK / NUMBERS * width), converted(LANES * units), scores(most_rows * KEY_BLOCK),
          sums(most_rows * width), row_max(most_rows), row_sum(most_rows), probabilities(most_rows * KEY_BLOCK) {}

    // `next` is what this worker runs after `task`: its first block is fetched while the last one is computed.
    void run(const AttentionTask& task, const AttentionTask* next) {
        const int first_position = first_position_of(task), end = first_position + task.queries;
        const int rows = task.queries * group;
        start(task, rows);
        locate(task, first_base(task), at);
        for (int base = first_base(task); base < end; base += KEY_BLOCK) {
            const bool is_last = base + KEY_BLOCK >= end;
            const bool fetches = !is_last || next;
            if (fetches) is_last ? locate(*next, first_base(*next), next_at) : locate(task, base + KEY_BLOCK, next_at);
            pack_keys();
            if (fetches) fetch(all.key_pages);
            multiply<T, false>(query.data(), units, keys.data(), KEY_BLOCK, units, scores.data(), KEY_BLOCK, rows, KEY_BLOCK);
            for (int row = 0; row < rows; ++row) soften(row, base, first_position + row / group);
            pack_values();
            if (fetches) fetch(all.value_pages);
            multiply<T, true>(reinterpret_cast<const uint32_t*>(probabilities.data()), KEY_BLOCK / NUMBERS, values.data(),
                              width, KEY_BLOCK / NUMBERS, sums.data(), width, rows, width);
            std::swap(at, next_at);
        }
        for (int row = 0; row < rows; ++row) finish(task, row);
    }

private:
    void start(const AttentionTask& task, int rows) {
        std::fill_n(sums.begin(), rows * width, 0.0f);
        std::fill_n(row_sum.begin(), rows, 0.0f);
        std::fill_n(row_max.begin(), rows, HIDDEN);
        const int64_t first = all.query_starts[task.sequence] + task.first_query;
        for (int row = 0; row < rows; ++row) {
            const int64_t head = task.kv_head * group + row % group;
            row_to_units(query.data() + row * units, all.query + (first + row / group) * all.query_stride + head * all.head_dim,
                         all.head_dim);
        }
    }

    int first_position_of(const AttentionTask& task) const {
        const int query_len = all.query_starts[task.sequence + 1] - all.query_starts[task.sequence];
        return all.context_lens[task.sequence] - query_len + task.first_query;
    }
    int first_base(const AttentionTask& task) const { return std::max(0, first_position_of(task) - all.window + 1); }

    // Positions after the task's last one repeat it: what is read there is finite, and the scores hide it.
    void locate(const AttentionTask& task, int base, int64_t* places) const {
        const int32_t* page = all.page_tables + static_cast<int64_t>(task.sequence) * all.max_pages + base / all.page_tokens;
        const int last = first_position_of(task) + task.queries - 1;
        const auto place_in = [&](int64_t number, int offset) {
            return ((number * all.kv_heads + task.kv_head) * all.page_tokens + offset) * all.head_dim;
        };
        int offset = base % all.page_tokens;
        int64_t place = place_in(*page, offset);
        for (int i = 0; i < KEY_BLOCK; ++i) {
            places[i] = place;
            if (base + i >= last) continue;
            const bool stays = ++offset < all.page_tokens;
            place = stays ? place + all.head_dim : place_in(*++page, offset = 0);
        }
    }

    void fetch(const T* pages) const {
        for (const int64_t place : next_at)
            for (int d = 0; d < all.head_dim; d += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(pages + place + d);
    }

    void pack_keys() {
        for (int i = 0; i < KEY_BLOCK; i += LANES) {
            const uint32_t* rows[LANES];
            for (int lane = 0; lane < LANES; ++lane) {
                const T* row = all.key_pages + at[i + lane];
                if constexpr (ROWS_ARE_UNITS<T>) {
                    rows[lane] = reinterpret_cast<const uint32_t*>(row);
                } else {
                    rows[lane] = converted.data() + lane * units;
                    row_to_units(converted.data() + lane * units, row, all.head_dim);
                }
            }
            transpose(rows, units, keys.data() + i);
        }
    }

    void pack_values() {
        const int head_dim = all.head_dim;
        for (int i = 0; i < KEY_BLOCK; i += NUMBERS) {
            uint32_t* __restrict to = values.data() + i / NUMBERS * width;
            const T* row = all.value_pages + at[i];
            if constexpr (NUMBERS == 1) {
                row_to_units(to, row, head_dim);
            } else {
                const T* next = all.value_pages + at[i + 1];
#pragma omp simd
                for (int d = 0; d < head_dim; ++d) to[d] = row[d].bits | static_cast<uint32_t>(next[d].bits) << 16;
            }
        }
    }

    // Scores of one row to probabilities in units of the row's new maximum; what was summed before is scaled to it.
    void soften(int row, int base, int position) {
        const float scale = all.scale * LOG2_E;
        const int first_seen = position - all.window + 1;
        f32x16 part[KEY_BLOCK / LANES], top = splat(row_max[row]), total = {};
        i32x16 at_position;
        for (int lane = 0; lane < LANES; ++lane) at_position[lane] = base + lane;
        for (int i = 0; i < KEY_BLOCK / LANES; ++i, at_position += LANES) {
            part[i] = load(scores.data() + row * KEY_BLOCK + i * LANES) * scale;
            part[i] = ((at_position <= position) & (at_position >= first_seen)) ? part[i] : splat(HIDDEN);
            top = larger(top, part[i]);
        }
        const float new_max = largest(top);
        for (int i = 0; i < KEY_BLOCK / LANES; ++i) {
            part[i] = exp2(part[i] - new_max);
            total += part[i];
            store(probabilities.data() + row * KEY_BLOCK + i * LANES, part[i]);
        }
        if (new_max > row_max[row]) {
            const float shrink = exp2(splat(row_max[row] - new_max))[0];
            row_sum[row] *= shrink;
            for (int d = 0; d < width; d += LANES)
                store(sums.data() + row * width + d, load(sums.data() + row * width + d) * shrink);
            row_max[row] = new_max;
        }
        row_sum[row] += sum(total);
    }

    void finish(const AttentionTask& task, int row) {
        const int64_t token = all.query_starts[task.sequence] + task.first_query + row / group;
        T* out = all.out + (token * all.heads + task.kv_head * group + row % group) * all.head_dim;
        for (int d = 0; d < all.head_dim; d += LANES)
            store(out + d, load(sums.data() + row * width + d) * (1 / row_sum[row]), all.head_dim - d);
    }
};

template <class T>
void paged_attention(T* out, const T* query, int64_t query_stride, const T* key_pages, const T* value_pages,
                     const int32_t* query_starts, const int32_t* context_lens, const int32_t* page_tables, int sequences,
                     int max_pages, int heads, int kv_heads, int head_dim, int page_tokens, float scale, int window) {
    const Attention<T> all{out,       query,   query_stride, key_pages, value_pages, query_starts, context_lens, page_tables,
                           max_pages, heads, kv_heads,     head_dim,  page_tokens, window,       scale};
    const int most_queries = std::max(1, QUERY_ROWS / (heads / kv_heads));
    std::vector<AttentionTask> tasks;
    for (int sequence = 0; sequence < sequences; ++sequence) {
        const int queries = query_starts[sequence + 1] - query_starts[sequence];
        for (int first = 0; first < queries; first += most_queries)
            for (int kv_head = 0; kv_head < kv_heads; ++kv_head)
                tasks.push_back({sequence, kv_head, first, std::min(most_queries, queries - first)});
    }
    const int count = static_cast<int>(tasks.size());
    std::atomic<int> taken{0};
#pragma omp parallel if (count > 1)
    {
        AttentionWorker<T> worker(all, most_queries * (heads / kv_heads));
        for (int task = taken++, next; task < count; task = next) {
            next = taken++;
            worker.run(tasks[task], next < count ? &tasks[next] : nullptr);
        }
    }
}

// ---- LoRA ---------------------------------------------------------------------------------------------------------

constexpr int WORK_TOKENS = 16;  // as in ops.py
constexpr int RANK_TILE = 16, COLUMN_TILE = 256;  // pieces that the threads share out

struct Work {
    int32_t row, first_token, tokens;
};

template <class T>
void add_lora(T* out, const T* x, int64_t width, const T* pool, const int64_t* table, int64_t table_stride, const Work* work,
              int entries, int max_rank, const int32_t* slice_widths, int slices) {
    const int rank_tiles = (max_rank + RANK_TILE - 1) / RANK_TILE;
    int64_t out_width = 0;
    for (int slice = 0; slice < slices; ++slice) out_width += slice_widths[slice];
    const int column_tiles = static_cast<int>((out_width + COLUMN_TILE - 1) / COLUMN_TILE);
    // x A^T of every entry
    const std::unique_ptr<float[]> products(new float[static_cast<size_t>(entries) * WORK_TOKENS * max_rank]);
    const auto shrink = [&](int entry, int first_rank) {
        const auto [row, first_token, tokens] = work[entry];
        const int64_t* site = table + row * table_stride;
        const int ranks = static_cast<int>(site[2] + site[3] + site[4]);
        float* v = products.get() + static_cast<int64_t>(entry) * WORK_TOKENS * max_rank;
        in_tiles<DOT_TILE>(first_rank, std::min(first_rank + RANK_TILE, ranks), [&](auto r, int rank) {
            in_tiles<DOT_TILE>(0, tokens, [&](auto t, int token) {
                dot_tile<T, t(), r()>(x + (first_token + token) * width, pool + site[0] + rank * width, width,
                                      v + token * max_rank + rank, max_rank);
            });
        });
    };
    const auto expand = [&](int entry, int64_t first_column) {
        const auto [row, first_token, tokens] = work[entry];
        const int64_t* site = table + row * table_stride;
        const float* v = products.get() + static_cast<int64_t>(entry) * WORK_TOKENS * max_rank;
        const T* b = pool + site[1];
        int64_t slice_start = 0;
        for (int slice = 0; slice < slices; ++slice) {
            const int64_t slice_width = slice_widths[slice], slice_end = slice_start + slice_width;
            const int ranks = static_cast<int>(site[2 + slice]);
            const int64_t end = std::min(slice_end, first_column + COLUMN_TILE);
            const auto tile = [&](auto n, int64_t column) {
                in_tiles<DOT_TILE>(0, tokens, [&](auto t, int token) {
                    expand_tile<T, t(), n()>(out + (first_token + token) * out_width + column, out_width, v + token * max_rank,
                                             max_rank, b + column - slice_start, slice_width, ranks, end - column);
                });
            };
            int64_t column = ranks ? std::max(slice_start, first_column) : end;
            for (; column + 4 * LANES <= end; column += 4 * LANES) tile(std::integral_constant<int, 4>{}, column);
            for (; column < end; column += LANES) tile(std::integral_constant<int, 1>{}, column);
            b += ranks * slice_width;
            v += ranks;
            slice_start = slice_end;
        }
    };
    int tokens = 0;
    for (int entry = 0; entry < entries; ++entry) tokens += work[entry].tokens;
#pragma omp parallel if (tokens > SERIAL_TOKENS)
    {
#pragma omp for collapse(2) schedule(dynamic)
        for (int entry = 0; entry < entries; ++entry)
            for (int tile = 0; tile < rank_tiles; ++tile) shrink(entry, tile * RANK_TILE);
#pragma omp for collapse(2) schedule(dynamic)
        for (int entry = 0; entry < entries; ++entry)
            for (int tile = 0; tile < column_tiles; ++tile) expand(entry, tile * COLUMN_TILE);
    }
}

// ---- Sampling -----------------------------------------------------------------------------------------------------

constexpr int BLOCK = 1024;    // logits a partial result is kept for, so that only one block is searched
constexpr int BUCKETS = 1024;  // of log2 weight, in sixteenths: what is below 2^-64 of the largest shares the last

constexpr float NEVER = -std::numeric_limits<float>::infinity();

template <class T>
int64_t largest_index(const T* logits, int64_t vocab) {
    float top = NEVER;
    int64_t top_block = 0;
    for (int64_t block = 0; block < vocab; block += BLOCK) {
        f32x16 block_top = splat(top);
        const int64_t end = std::min(vocab, block + BLOCK);
        int64_t i = block;
        for (; i + LANES <= end; i += LANES) block_top = larger(load(logits + i), block_top);
        float value = largest(block_top);
        for (; i < end; ++i) value = std::max(value, number(logits[i]));
        if (value > top) top = value, top_block = block;
    }
    for (int64_t i = top_block; i < std::min(vocab, top_block + BLOCK); ++i)
        if (number(logits[i]) == top) return i;
    return 0;
}

// The smallest logit whose strictly larger ones weigh less than top_p of all, and at least the largest logit.
// log2_of gives log2 of a logit's weight. Only the bucket in which the sum passes the limit is sorted.
template <class Log2>
float nucleus_threshold(const std::vector<float>& logits, const std::vector<float>& weights, float top_p, Log2 log2_of) {
    const auto bucket_of = [&](float logit) { return static_cast<int>(std::min(-log2_of(logit) * 16, BUCKETS - 1.0f)); };
    std::vector<double> bucket_sums(BUCKETS);
    double total = 0;
    for (size_t i = 0; i < logits.size(); ++i)
        if (weights[i] > 0) bucket_sums[bucket_of(logits[i])] += weights[i], total += weights[i];
    const double limit = top_p * total;
    int bucket = 0;
    double larger_sum = 0;
    while (bucket + 1 < BUCKETS && larger_sum + bucket_sums[bucket] < limit) larger_sum += bucket_sums[bucket++];
    std::vector<std::pair<float, float>> ranked;  // logit, weight
    for (size_t i = 0; i < logits.size(); ++i)
        if (weights[i] > 0 && bucket_of(logits[i]) == bucket) ranked.emplace_back(logits[i], weights[i]);
    std::sort(ranked.begin(), ranked.end(), std::greater<>());
    float threshold = ranked.empty() ? NEVER : ranked.front().first;
    for (size_t i = 0; i < ranked.size(); ++i) {
        if (ranked[i].first < threshold) {
            if (larger_sum >= limit) break;
            threshold = ranked[i].first;
        }
        larger_sum += ranked[i].second;  // of the equal ones too: looked at when the next smaller logit comes
    }
    return threshold;
}

template <class T>
int64_t draw(const T* row, int64_t vocab, float temperature, int top_k, float top_p, float min_p, float uniform) {
    const int64_t best = largest_index(row, vocab);
    const float top = number(row[best]), scale = LOG2_E / temperature;
    if (!std::isfinite(top)) return best;
    const auto log2_of = [&](auto logit) { return (logit - top) * scale; };
    const int64_t padded = (vocab + LANES - 1) / LANES * LANES;
    std::vector<float> logits(padded, NEVER), weights(padded), block_sums((vocab + BLOCK - 1) / BLOCK);
    for (int64_t i = 0; i < vocab; ++i) logits[i] = std::isnan(number(row[i])) ? NEVER : number(row[i]);
    float threshold = NEVER;
    if (0 < top_k && top_k < vocab) {
        std::vector<float> ranked(top_k);
        std::partial_sort_copy(logits.begin(), logits.end(), ranked.begin(), ranked.end(), std::greater<>());
        threshold = ranked.back();
    }
    for (int64_t i = 0; i < padded; i += LANES) {
        const f32x16 logit = load(&logits[i]);
        store(&weights[i], logit >= threshold ? exp2(log2_of(logit)) : f32x16{});
    }
    if (top_p < 1) threshold = nucleus_threshold(logits, weights, top_p, log2_of);
    for (int64_t i = 0; i < padded; i += LANES) {
        const f32x16 weight = load(&weights[i]);
        const f32x16 kept = ((load(&logits[i]) >= threshold) & (weight >= min_p)) ? weight : f32x16{};
        store(&weights[i], kept);
        block_sums[i / BLOCK] += sum(kept);
    }
    double total = 0, running = 0;
    for (float block_sum : block_sums) total += block_sum;
    int64_t last = best;  // where rounding lets no running sum exceed the bound, the last token of weight > 0 is meant
    for (int64_t block = 0; block < vocab; block += BLOCK) {
        if (running + block_sums[block / BLOCK] <= uniform * total && block + BLOCK < vocab) {
            running += block_sums[block / BLOCK];
            continue;
        }
        for (int64_t i = block; i < std::min(vocab, block + BLOCK); ++i) {
            if (weights[i] > 0) last = i;
            if ((running += weights[i]) > uniform * total) return i;
        }
    }
    return last;
}

template <class T>
void sample(int64_t* out, const T* logits, int64_t stride, int64_t rows, int64_t vocab, const float* temperature,
            const int32_t* top_k, const float* top_p, const float* min_p, const float* uniform) {
#pragma omp parallel for schedule(dynamic) if (rows > 1)
    for (int64_t row = 0; row < rows; ++row) {
        const T* own = logits + row * stride;
        out[row] = temperature[row] > 0 ? draw(own, vocab, temperature[row], top_k[row], top_p[row], min_p[row], uniform[row])
                                        : largest_index(own, vocab);
    }
}

}  // namespace

// Each op is exported as two pointers, op_f32 and op_bf16.
extern "C" {
#define EXPORT(op) decltype(&op<float>) op##_f32 = op<float>; decltype(&op<bf16>) op##_bf16 = op<bf16>;
EXPORT(rms_norm)
EXPORT(add_rms_norm)
EXPORT(rotary)
EXPORT(write_kv)
EXPORT(paged_attention)
EXPORT(silu_and_mul)
EXPORT(add_lora)
EXPORT(sample)
#ifdef __AVX512BF16__
const char* instructions = "AVX512-BF16";
#elif defined(__AVX512F__)
const char* instructions = "AVX512";
#elif defined(__AVX2__)
const char* instructions = "AVX2";
#else
const char* instructions = "no wide vectors known";
#endif
}
