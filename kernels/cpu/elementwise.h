// Norms, rotary, KV write, SiLU.
#pragma once

#include <cmath>

#include "vectors.h"

namespace {

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

}  // namespace
