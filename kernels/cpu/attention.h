// Paged attention of prefill chunks and decodes, with an online softmax over blocks of keys.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "products.h"

namespace {

constexpr int KEY_BLOCK = 64;      // positions per round of the online softmax
constexpr int QUERY_ROWS = 64;     // (token, head) rows that share one reading of a key block
constexpr int SPLIT = 512;         // positions per task of few rows, in every batch: results do not depend on batch-mates
constexpr int SPLIT_ROWS = 16;     // most rows of a task that is split: with more there are tasks enough
constexpr int SERIAL_BLOCKS = 12;  // fewer are done before a second thread has woken up
constexpr float HIDDEN = -1e30f;   // finite: a row whose first blocks are all hidden must not compute inf - inf
constexpr float SLACK = 8;         // powers of two by which a probability may exceed 1 before its row's unit is changed

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

#ifdef __AVX512BF16__
// to[i] = the pair (first[i], second[i]), for 32 of them.
inline void interleave(uint32_t* to, const bf16* first, const bf16* second) {
    alignas(64) static constexpr auto order = [] {
        std::array<uint16_t, 64> order{};
        for (int i = 0; i < 32; ++i) order[2 * i] = i, order[2 * i + 1] = 32 + i;
        return order;
    }();
    const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_load_si512(&order[0]), b));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(a, _mm512_load_si512(&order[32]), b));
}
#endif

constexpr int whole_vectors(int count) { return (count + LANES - 1) / LANES * LANES; }

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

// A run of queries of one sequence against one KV head, over positions [begin, end): all that the queries see, or one of
// `parts` parts of it. Its rows are (token, head of the KV head's group), token first.
struct AttentionTask {
    int sequence, kv_head, first_query, queries, begin, end;
    int part, parts, split;  // split: the number of the whole among those that have parts
};

// What the parts of a task found: for each row its unit, the sum of probabilities in it, and the sums of values.
class Parts {
    const int row_size;
    std::vector<float> rows;
    std::vector<int64_t> first_row;  // of each split
    std::unique_ptr<std::atomic<int>[]> missing;

public:
    Parts(int width, const std::vector<AttentionTask>& tasks, int splits, int group)
        : row_size(width + 2), first_row(splits), missing(new std::atomic<int>[splits]) {
        int64_t count = 0;
        for (const AttentionTask& task : tasks) {
            if (task.parts == 1) continue;
            if (task.part == 0) first_row[task.split] = count, missing[task.split] = task.parts;
            count += task.queries * group;
        }
        rows.resize(count * row_size);
    }
    float* row(const AttentionTask& task, int part, int row, int rows_of_task) {
        return &rows[(first_row[task.split] + part * rows_of_task + row) * row_size];
    }
    bool is_last(const AttentionTask& task) { return missing[task.split].fetch_sub(1) == 1; }
};

// Computes tasks one after the other in its own scratch memory; one worker a thread.
template <class T>
class AttentionWorker {
    static constexpr int NUMBERS = Units<T>::NUMBERS;
    using Probability = std::conditional_t<NUMBERS == 2, bf16, float>;

    const Attention<T>& all;
    Parts& parts;
    const int group, units, width;  // units of a query or key row; width of an output row, in whole vectors
    std::vector<uint32_t> query, keys, values, converted;
    std::vector<float> scores, sums, row_unit, row_sum;  // row_unit: the 2-logarithm of what is 1; row_sum: a vector each
    std::vector<Probability> probabilities;
    int64_t at[KEY_BLOCK], next_at[KEY_BLOCK];  // where keys and values begin in the pages: this block's, and the next's

public:
    AttentionWorker(const Attention<T>& all, Parts& parts, int most_rows)
        : all(all), parts(parts), group(all.heads / all.kv_heads), units(all.head_dim / NUMBERS),
          width(whole_vectors(all.head_dim)), query(most_rows * units), keys(units * KEY_BLOCK),
          values(KEY_BLOCK / NUMBERS * width), converted(LANES * units), scores(most_rows * KEY_BLOCK),
          sums(most_rows * width), row_unit(most_rows), row_sum(most_rows * LANES), probabilities(most_rows * KEY_BLOCK) {}

    // `next` is what this worker runs after `task`: its first block is fetched while the last one is computed.
    void run(const AttentionTask& task, const AttentionTask* next) {
        const int rows = task.queries * group;
        start(task, rows);
        locate(task, task.begin, at);
        for (int base = task.begin; base < task.end; base += KEY_BLOCK) {
            const bool is_last = base + KEY_BLOCK >= task.end;
            const bool fetches = !is_last || next;
            if (fetches) is_last ? locate(*next, next->begin, next_at) : locate(task, base + KEY_BLOCK, next_at);
            pack_keys();
            if (fetches) fetch(all.key_pages);
            multiply<T, false>(query.data(), units, keys.data(), KEY_BLOCK, units, scores.data(), KEY_BLOCK, rows, KEY_BLOCK);
            soften_block(task, rows, base);
            pack_values();
            if (fetches) fetch(all.value_pages);
            multiply<T, true>(reinterpret_cast<const uint32_t*>(probabilities.data()), KEY_BLOCK / NUMBERS, values.data(),
                              width, KEY_BLOCK / NUMBERS, sums.data(), width, rows, width);
            std::swap(at, next_at);
        }
        if (task.parts > 1) {
            leave_part(task, rows);
            if (!parts.is_last(task)) return;
            join_parts(task, rows);
        }
        for (int row = 0; row < rows; ++row) finish(task, row);
    }

private:
    void start(const AttentionTask& task, int rows) {
        std::fill_n(sums.begin(), rows * width, 0.0f);
        std::fill_n(row_sum.begin(), rows * LANES, 0.0f);
        std::fill_n(row_unit.begin(), rows, HIDDEN);
        const int64_t first = all.query_starts[task.sequence] + task.first_query;
        for (int row = 0; row < rows; ++row) {
            const int64_t head = task.kv_head * group + row % group;
            row_to_units(query.data() + row * units, all.query + (first + row / group) * all.query_stride + head * all.head_dim,
                         all.head_dim);
        }
    }

    int position_of(const AttentionTask& task, int row) const {
        const int query_len = all.query_starts[task.sequence + 1] - all.query_starts[task.sequence];
        return all.context_lens[task.sequence] - query_len + task.first_query + row / group;
    }

    // Positions after the task's last one repeat it: what is read there is finite, and the scores hide it.
    void locate(const AttentionTask& task, int base, int64_t* places) const {
        const int32_t* pages = all.page_tables + static_cast<int64_t>(task.sequence) * all.max_pages;
        const int count = std::min(KEY_BLOCK, task.end - base);
        for (int i = 0; i < count;) {
            const int page = (base + i) / all.page_tokens, offset = (base + i) % all.page_tokens;
            const int run = std::min(all.page_tokens - offset, count - i);
            const int64_t row = (static_cast<int64_t>(pages[page]) * all.kv_heads + task.kv_head) * all.page_tokens + offset;
            for (int64_t j = 0; j < run; ++j) places[i + j] = (row + j) * all.head_dim;
            i += run;
        }
        std::fill(places + count, places + KEY_BLOCK, places[count - 1]);
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
                int d = 0;
                for (; d + 2 * LANES <= head_dim; d += 2 * LANES) interleave(to + d, row + d, next + d);
                for (; d < head_dim; ++d) to[d] = row[d].bits | static_cast<uint32_t>(next[d].bits) << 16;
            }
        }
    }

    void soften_block(const AttentionTask& task, int rows, int base) {
        const int first = position_of(task, 0), last = position_of(task, rows - 1);
        if (base + KEY_BLOCK <= std::min(first + 1, task.end) && base > last - all.window) {
            for (int row = 0; row < rows; ++row) soften<false>(row, base, 0, 0);
        } else {
            for (int row = 0; row < rows; ++row) {
                const int position = position_of(task, row);
                soften<true>(row, base, position - all.window + 1, std::min(position, task.end - 1));
            }
        }
    }

    // Scores of one row to probabilities in the row's unit. Where `some_hidden`, only positions [first, last] are seen.
    template <bool some_hidden>
    void soften(int row, int base, int first, int last) {
        constexpr int VECTORS = KEY_BLOCK / LANES;
        const float scale = all.scale * LOG2_E;
        f32x16 part[VECTORS], top = splat(HIDDEN);
        i32x16 at_position;
        for (int lane = 0; lane < LANES; ++lane) at_position[lane] = base + lane;
        for (int i = 0; i < VECTORS; ++i, at_position += LANES) {
            part[i] = load(scores.data() + row * KEY_BLOCK + i * LANES) * scale;
            if constexpr (some_hidden)
                part[i] = ((at_position <= last) & (at_position >= first)) ? part[i] : splat(HIDDEN);
            top = larger(top, part[i]);
        }
        if (any_above(top, row_unit[row] + SLACK)) change_unit(row, largest(top));
        const float unit = row_unit[row];
        f32x16 total = load(row_sum.data() + row * LANES);
        for (int i = 0; i < VECTORS; ++i) {
            part[i] = exp2(part[i] - unit);
            total += part[i];
            store(probabilities.data() + row * KEY_BLOCK + i * LANES, part[i]);
        }
        store(row_sum.data() + row * LANES, total);
    }

    // What was summed before is scaled to the new unit.
    void change_unit(int row, float unit) {
        const float shrink = exp2(splat(row_unit[row] - unit))[0];
        row_unit[row] = unit;
        store(row_sum.data() + row * LANES, load(row_sum.data() + row * LANES) * shrink);
        for (int d = 0; d < width; d += LANES)
            store(sums.data() + row * width + d, load(sums.data() + row * width + d) * shrink);
    }

    void leave_part(const AttentionTask& task, int rows) {
        for (int row = 0; row < rows; ++row) {
            float* to = parts.row(task, task.part, row, rows);
            to[0] = row_unit[row], to[1] = sum(load(&row_sum[row * LANES]));
            std::copy_n(&sums[row * width], width, to + 2);
        }
    }

    // The parts' sums in the largest of their units, added in the order of positions.
    void join_parts(const AttentionTask& task, int rows) {
        for (int row = 0; row < rows; ++row) {
            float top = HIDDEN, total = 0;
            for (int part = 0; part < task.parts; ++part) top = std::max(top, parts.row(task, part, row, rows)[0]);
            std::fill_n(&sums[row * width], width, 0.0f);
            for (int part = 0; part < task.parts; ++part) {
                const float* from = parts.row(task, part, row, rows);
                const float factor = exp2(splat(from[0] - top))[0];
                total += factor * from[1];
                for (int d = 0; d < width; ++d) sums[row * width + d] += factor * from[2 + d];
            }
            store(&row_sum[row * LANES], f32x16{total});
        }
    }

    void finish(const AttentionTask& task, int row) {
        const int64_t token = all.query_starts[task.sequence] + task.first_query + row / group;
        T* out = all.out + (token * all.heads + task.kv_head * group + row % group) * all.head_dim;
        const float share = 1 / sum(load(&row_sum[row * LANES]));
        for (int d = 0; d < all.head_dim; d += LANES)
            store(out + d, load(sums.data() + row * width + d) * share, all.head_dim - d);
    }
};

template <class T>
void paged_attention(T* out, const T* query, int64_t query_stride, const T* key_pages, const T* value_pages,
                     const int32_t* query_starts, const int32_t* context_lens, const int32_t* page_tables, int sequences,
                     int max_pages, int heads, int kv_heads, int head_dim, int page_tokens, float scale, int window) {
    const Attention<T> all{out,       query,   query_stride, key_pages, value_pages, query_starts, context_lens, page_tables,
                           max_pages, heads, kv_heads,     head_dim,  page_tokens, window,       scale};
    const int group = heads / kv_heads, most_queries = std::max(1, QUERY_ROWS / group);
    std::vector<AttentionTask> tasks;
    int splits = 0, blocks = 0;
    for (int sequence = 0; sequence < sequences; ++sequence) {
        const int queries = query_starts[sequence + 1] - query_starts[sequence];
        for (int first = 0; first < queries; first += most_queries) {
            const int own = std::min(most_queries, queries - first), position = context_lens[sequence] - queries + first;
            const int begin = std::max(0, position - window + 1), end = position + own;
            const int parts = own * group > SPLIT_ROWS ? 1 : (end - begin + SPLIT - 1) / SPLIT;
            for (int kv_head = 0; kv_head < kv_heads; ++kv_head, splits += parts > 1)
                for (int part = 0; part < parts; ++part)
                    tasks.push_back({sequence, kv_head, first, own, begin + part * SPLIT,
                                     part + 1 < parts ? begin + (part + 1) * SPLIT : end, part, parts, splits});
            blocks += kv_heads * ((end - begin) / KEY_BLOCK + 1) * ((own * group + SPLIT_ROWS - 1) / SPLIT_ROWS);
        }
    }
    Parts parts(whole_vectors(head_dim), tasks, splits, group);
    const int count = static_cast<int>(tasks.size());
    std::atomic<int> taken{0};
#pragma omp parallel if (blocks > SERIAL_BLOCKS)
    {
        AttentionWorker<T> worker(all, parts, most_queries * group);
        for (int task = taken++, next; task < count; task = next) {
            next = taken++;
            worker.run(tasks[task], next < count ? &tasks[next] : nullptr);
        }
    }
}

}  // namespace
