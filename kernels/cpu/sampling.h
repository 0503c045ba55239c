// Logits to token ids: arg-max, or a draw after top-k, top-p and min-p.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "vectors.h"

namespace {

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
