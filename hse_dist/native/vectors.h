// Vectors of 16 floats that the compiler maps onto whatever the machine has, and the attribute that lets it choose when
// the library is loaded: one build serves machines with AVX-512, with AVX2 and with neither.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

// aligned to 4: rows of a caller's tensor may begin anywhere
typedef float float16v __attribute__((vector_size(64), aligned(4)));
constexpr int64_t LANES = 16;
