// The operations of kernels/ops.py for CPUs, for fp32 and bf16, accumulating in fp32. `ops.Kernels` defines each result.
//
// Knows raw pointers and strides (in elements); checks nothing: native.py does. No function keeps state between calls but
// scratch memory.
#include "attention.h"
#include "elementwise.h"
#include "lora.h"
#include "quantized.h"
#include "sampling.h"

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
EXPORT(scale_and_shift)
EXPORT(sample)
EXPORT(int8_linear)
EXPORT(int4_linear)
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
