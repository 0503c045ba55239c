// Paged attention of prefill chunks and decodes, with an online softmax over blocks of keys.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <utility>
#include <vector>

#include "products.h"

namespace {

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

}  // namespace
