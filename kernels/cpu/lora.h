// Batched LoRA: every work entry's tokens through its own adapter's A and B.
#pragma once

#include <algorithm>
#include <memory>

#include "products.h"

namespace {

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

}  // namespace
