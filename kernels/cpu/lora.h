// Batched LoRA: every work entry's tokens through its own adapter's A and B, or scaled and shifted by its vectors.
//
// In decode this is bound by reading the weights, a few hundred kilobytes per adapter and layer that no cache holds from one
// step to the next. So a thread takes an entry through both products, reads A and B in the order in which they lie, and has
// what it needs next fetched meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "products.h"

namespace {

constexpr int WORK_TOKENS = 16;  // as in ops.py
constexpr int MAX_SLICES = 3;    // as in ops.py
constexpr int FEW_ENTRIES = 8;   // fewer are cut into pieces of DOT_TILE tokens, so that every thread gets some
constexpr int LINE = 64;         // bytes

struct Work {
    int32_t row, first_token, tokens;
    float scale;
};

template <class T>
struct Lora {
    T* out;
    const T* x;
    int64_t width, out_width;
    const T* pool;
    const int64_t* table;
    int64_t table_stride;
    int max_rank;
    const int32_t* slice_widths;
    int slices;
};

// v[token * v_stride + rank] = sum over i < width of x[token, i] a[rank, i], for TOKENS tokens and RANKS ranks.
// The next RANKS rows, or what lies behind a, are fetched.
template <class T, int TOKENS, int RANKS>
inline void dot_tile(const T* x, const T* a, int64_t width, float* v, int v_stride) {
    constexpr int STEP = LANES * Units<T>::NUMBERS;
    f32x16 sums[TOKENS][RANKS] = {};
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP)
        for (int rank = 0; rank < RANKS; ++rank) {
            const T* from = a + rank * width + i;
            __builtin_prefetch(from + RANKS * width);
            const auto right = Units<T>::load(from);
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

// to[token, column] = from[token, column] + sum over RANKS of v[token, rank] b[rank, column]; the next RANKS rows are fetched.
template <class T, int TOKENS, int RANKS, class From, class To>
inline void expand_tile(To* to, int64_t to_stride, const From* from, int64_t from_stride, const float* v, int v_stride, const T* b,
                        int64_t width) {
    f32x16 factors[TOKENS][RANKS];
    for (int token = 0; token < TOKENS; ++token)
        for (int rank = 0; rank < RANKS; ++rank) factors[token][rank] = splat(v[token * v_stride + rank]);
    const auto columns = [&](int64_t i, int64_t count) {
        f32x16 sums[TOKENS];
        for (int token = 0; token < TOKENS; ++token) sums[token] = load(from + token * from_stride + i, count);
        for (int rank = 0; rank < RANKS; ++rank) {
            const f32x16 right = load(b + rank * width + i, count);
            for (int token = 0; token < TOKENS; ++token) sums[token] += factors[token][rank] * right;
        }
        for (int token = 0; token < TOKENS; ++token) store(to + token * to_stride + i, sums[token], count);
    };
    constexpr int STEP = LINE / sizeof(T);
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) {
        for (int rank = 0; rank < RANKS; ++rank) __builtin_prefetch(b + (RANKS + rank) * width + i);
        for (int part = 0; part < STEP; part += LANES) columns(i + part, LANES);
    }
    for (; i < width; i += LANES) columns(i, width - i);
}

// Computes pieces of work one after the other in its own scratch memory; one worker a thread.
template <class T>
class LoraWorker {
    static constexpr int TILE = DOT_TILE;
    const Lora<T>& all;
    std::vector<float> v, sums;  // x A^T of a piece; sums of TILE tokens over the ranks so far

public:
    LoraWorker(const Lora<T>& all)
        : all(all), v(WORK_TOKENS * all.max_rank),
          sums(TILE * *std::max_element(all.slice_widths, all.slice_widths + all.slices)) {}

    // `next` is what this worker runs after `piece`: the beginning of its A is fetched.
    void run(const Work& piece, const Work* next) {
        const int64_t* site = site_of(piece);
        const int ranks = static_cast<int>(site[2] + site[3] + site[4]);
        in_tiles<TILE>(0, ranks, [&](auto r, int rank) {
            in_tiles<TILE>(0, piece.tokens, [&](auto t, int token) {
                dot_tile<T, t(), r()>(all.x + (piece.first_token + token) * all.width, all.pool + site[0] + rank * all.width,
                                      all.width, &v[token * all.max_rank + rank], all.max_rank);
            });
        });
        if (piece.scale != 1)
            for (int token = 0; token < piece.tokens; ++token)
                for (int rank = 0; rank < ranks; ++rank) v[token * all.max_rank + rank] *= piece.scale;
        if (next) fetch(all.pool + site_of(*next)[0]);
        in_tiles<TILE>(0, piece.tokens, [&](auto t, int token) {
            T* out = all.out + (piece.first_token + token) * all.out_width;
            const T* b = all.pool + site[1];
            const float* products = &v[token * all.max_rank];
            for (int slice = 0; slice < all.slices; ++slice) {
                const int slice_ranks = static_cast<int>(site[2 + slice]);
                expand<t()>(out, products, b, slice_ranks, all.slice_widths[slice]);
                out += all.slice_widths[slice];
                products += slice_ranks;
                b += static_cast<int64_t>(slice_ranks) * all.slice_widths[slice];
            }
        });
    }

private:
    const int64_t* site_of(const Work& piece) const { return all.table + piece.row * all.table_stride; }

    void fetch(const T* a) const {
        for (int64_t i = 0; i < TILE * all.width; i += LINE / sizeof(T)) __builtin_prefetch(a + i);
    }

    // out[token, :width] += v[token] B for TOKENS tokens: rounded once, after the last rank.
    template <int TOKENS>
    void expand(T* out, const float* products, const T* b, int ranks, int64_t width) {
        in_tiles<TILE>(0, ranks, [&](auto r, int rank) {
            const bool is_first = rank == 0, is_last = rank + r() == ranks;
            const auto tile = [&](auto* to, int64_t to_stride, auto* from, int64_t from_stride) {
                expand_tile<T, TOKENS, r()>(to, to_stride, from, from_stride, products + rank, all.max_rank, b + rank * width,
                                            width);
            };
            if (is_first && is_last) tile(out, all.out_width, out, all.out_width);
            else if (is_first) tile(sums.data(), width, out, all.out_width);
            else if (is_last) tile(out, all.out_width, sums.data(), width);
            else tile(sums.data(), width, sums.data(), width);
        });
    }
};

// out[t] += scale (out[t] * gain + shift); the offsets of gain and shift stand behind the ranks of the slices.
template <class T>
void scale_and_shift(T* out, int64_t width, const T* pool, const int64_t* table, int64_t table_stride, const Work* work, int entries) {
#pragma omp parallel for if (entries > SERIAL_TOKENS)
    for (int index = 0; index < entries; ++index) {
        const Work& entry = work[index];
        const int64_t* vectors = table + entry.row * table_stride + 2 + MAX_SLICES;
        if (vectors[0] < 0 && vectors[1] < 0) continue;
        const T zeros[LANES] = {};
        for (int token = 0; token < entry.tokens; ++token) {
            T* row = out + (entry.first_token + token) * width;
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t count = width - i;
                const f32x16 before = load(row + i, count);
                const f32x16 gain = load(vectors[0] < 0 ? zeros : pool + vectors[0] + i, count);
                const f32x16 shift = load(vectors[1] < 0 ? zeros : pool + vectors[1] + i, count);
                store(row + i, before + entry.scale * (before * gain + shift), count);
            }
        }
    }
}

template <class T>
void add_lora(T* out, const T* x, int64_t width, const T* pool, const int64_t* table, int64_t table_stride, const Work* work,
              int entries, int max_rank, const int32_t* slice_widths, int slices) {
    int64_t out_width = 0;
    for (int slice = 0; slice < slices; ++slice) out_width += slice_widths[slice];
    const Lora<T> all{out, x, width, out_width, pool, table, table_stride, max_rank, slice_widths, slices};
    const int piece_tokens = entries < FEW_ENTRIES ? DOT_TILE : WORK_TOKENS;
    std::vector<Work> pieces;
    int tokens = 0;
    for (const Work* entry = work; entry < work + entries; ++entry) {
        tokens += entry->tokens;
        for (int first = 0; first < entry->tokens; first += piece_tokens)
            pieces.push_back({entry->row, entry->first_token + first, std::min(piece_tokens, entry->tokens - first), entry->scale});
    }
    const int count = static_cast<int>(pieces.size());
    std::atomic<int> taken{0};
#pragma omp parallel if (tokens > SERIAL_TOKENS)
    {
        LoraWorker<T> worker(all);
        for (int piece = taken++, next; piece < count; piece = next) {
            next = taken++;
            worker.run(pieces[piece], next < count ? &pieces[next] : nullptr);
        }
    }
}

}  // namespace
