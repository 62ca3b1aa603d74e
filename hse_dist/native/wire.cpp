// What a chunk looks like between two ranks.
//
// In: chunks of w slots as float32. Out: bytes. Columns are whole numbers of two or three bytes. A gradient is the
// strongest r of w slots: a bitmap of w bits, then r values in 32, 16 (bfloat16) or 16 bits (IEEE half). Ties go to the
// lower slot, so that what is packed twice is packed alike. Only little-endian machines are served, as everywhere here.
//
// Letters: n chunks, w slots a chunk, r of them sent.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

#define INLINE static inline __attribute__((always_inline))

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

// To the nearest, of two equally near ones to the even.
INLINE uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr uint32_t LARGEST_HALF = 0x477fe000;   // 65504 as float32
constexpr uint32_t SMALLEST_NORMAL = 0x38800000;  // 2^-14
constexpr uint32_t REBIAS = 112u << 23;           // between the exponents of the two

// As above; what is too large becomes the largest number, what is not a number stays so.
INLINE uint16_t to_half(float x) {
    const uint16_t sign = uint16_t((bits_of(x) >> 16) & 0x8000);
    uint32_t size = bits_of(x) & 0x7fffffff;
    if (size > 0x7f800000) return 0x7e00;
    if (size > LARGEST_HALF) size = LARGEST_HALF;
    // one unit in the last place of 0.5 is the step of subnormal halves, 2^-24, so the addition rounds
    if (size < SMALLEST_NORMAL) return sign | uint16_t(bits_of(float_of(size) + 0.5f) - bits_of(0.5f));
    size += 0xfff + ((size >> 13) & 1);
    return sign | uint16_t((size - REBIAS) >> 13);
}

INLINE float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, size = half & 0x7fff;
    if (size >= 0x7c00) return float_of(sign | 0x7f800000 | (size & 0x3ff) << 13);
    if (size < 0x400) return float_of(sign | bits_of(float(size) * 0x1p-24f));
    return float_of(sign | ((size << 13) + REBIAS));
}

template <int KIND>
INLINE void put(uint8_t*& out, float x) {
    if (KIND == FLOAT32) {
        std::memcpy(out, &x, 4);
        out += 4;
        return;
    }
    const uint16_t half = KIND == BFLOAT16 ? to_bfloat16(x) : to_half(x);
    std::memcpy(out, &half, 2);
    out += 2;
}

template <int KIND>
INLINE float take(const uint8_t*& in) {
    if (KIND == FLOAT32) {
        float x;
        std::memcpy(&x, in, 4);
        in += 4;
        return x;
    }
    uint16_t half;
    std::memcpy(&half, in, 2);
    in += 2;
    return KIND == BFLOAT16 ? float_of(uint32_t(half) << 16) : from_half(half);
}

template <int KIND>
INLINE float rounded(float x) {
    if (KIND == FLOAT32) return x;
    return KIND == BFLOAT16 ? float_of(uint32_t(to_bfloat16(x)) << 16) : from_half(to_half(x));
}

// The r strongest slots as bits. Every slot counts those that come before it: no order is made, no branch taken.
template <int W>
INLINE uint32_t strongest(const float* x, int64_t r) {
    int32_t size[W], before[W] = {};
    for (int i = 0; i < W; ++i) size[i] = int32_t(bits_of(x[i]) & 0x7fffffff);
    for (int j = 0; j < W; ++j)
        for (int i = 0; i < W; ++i) before[i] += (size[j] > size[i]) | ((size[j] == size[i]) & (j < i));
    uint32_t chosen = 0;
    for (int i = 0; i < W; ++i) chosen |= uint32_t(before[i] < r) << i;
    return chosen;
}

template <int W, int KIND>
INLINE void pack(int64_t n, int64_t r, const float* grad, uint8_t* out) {
    for (int64_t c = 0; c < n; ++c, grad += W) {
        if (r < W) {
            uint32_t left = strongest<W>(grad, r);
            std::memcpy(out, &left, W / 8);
            out += W / 8;
            for (; left; left &= left - 1) put<KIND>(out, grad[__builtin_ctz(left)]);
        } else {
            for (int i = 0; i < W; ++i) put<KIND>(out, grad[i]);
        }
    }
}

template <int W, int KIND>
INLINE void unpack(int64_t n, int64_t r, const uint8_t* in, float* grad) {
    for (int64_t c = 0; c < n; ++c, grad += W) {
        if (r < W) {
            uint32_t left = 0;
            std::memcpy(&left, in, W / 8);
            in += W / 8;
            std::memset(grad, 0, sizeof(float) * W);
            for (; left; left &= left - 1) grad[__builtin_ctz(left)] = take<KIND>(in);
        } else {
            for (int i = 0; i < W; ++i) grad[i] = take<KIND>(in);
        }
    }
}

struct Residuals {
    int64_t kept;    // chunks 0 … kept − 1 have a residual
    float* values;   // [kept, w]
    float* columns;  // [kept, w], those that the residual belongs to
};

template <int W, int KIND>
INLINE void feed_back(int64_t n, int64_t r, const int64_t* ids, const float* columns, const float* grad,
                      const Residuals& left, float* sent) {
    for (int64_t c = 0; c < n; ++c, columns += W, grad += W, sent += W) {
        const bool kept = ids[c] < left.kept;
        float* values = left.values + ids[c] * W;
        float* there = left.columns + ids[c] * W;
        float total[W];
        for (int i = 0; i < W; ++i) total[i] = grad[i] + (kept && there[i] == columns[i] ? values[i] : 0.0f);
        const uint32_t chosen = r < W ? strongest<W>(total, r) : ~0u;
        for (int i = 0; i < W; ++i) sent[i] = chosen >> i & 1 ? rounded<KIND>(total[i]) : 0.0f;
        if (!kept) continue;
        for (int i = 0; i < W; ++i) values[i] = total[i] - sent[i];
        std::memcpy(there, columns, sizeof(float) * W);
    }
}

template <int KIND>
INLINE void pack_any(int64_t n, int64_t w, int64_t r, const float* grad, uint8_t* out) {
    if (w == 8) pack<8, KIND>(n, r, grad, out);
    if (w == 16) pack<16, KIND>(n, r, grad, out);
    if (w == 32) pack<32, KIND>(n, r, grad, out);
}

template <int KIND>
INLINE void unpack_any(int64_t n, int64_t w, int64_t r, const uint8_t* in, float* grad) {
    if (w == 8) unpack<8, KIND>(n, r, in, grad);
    if (w == 16) unpack<16, KIND>(n, r, in, grad);
    if (w == 32) unpack<32, KIND>(n, r, in, grad);
}

template <int KIND>
INLINE void feed_back_any(int64_t n, int64_t w, int64_t r, const int64_t* ids, const float* columns, const float* grad,
                          const Residuals& left, float* sent) {
    if (w == 8) feed_back<8, KIND>(n, r, ids, columns, grad, left, sent);
    if (w == 16) feed_back<16, KIND>(n, r, ids, columns, grad, left, sent);
    if (w == 32) feed_back<32, KIND>(n, r, ids, columns, grad, left, sent);
}

}  // namespace

extern "C" {

// n whole numbers below 2^(8 · bytes), kept as float32, into `bytes` (2 or 3) bytes each.
FOR_EACH_CPU int64_t hse_pack_columns(int64_t n, int64_t bytes, const float* columns, uint8_t* out) {
    if (bytes == 2) {
        for (int64_t i = 0; i < n; ++i) {
            const uint16_t column = uint16_t(int32_t(columns[i]));
            std::memcpy(out + 2 * i, &column, 2);
        }
        return 0;
    }
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t column = uint32_t(columns[i]);
        std::memcpy(out + 3 * i, &column, 3);
    }
    return 0;
}

FOR_EACH_CPU int64_t hse_unpack_columns(int64_t n, int64_t bytes, const uint8_t* in, float* columns) {
    if (bytes == 2) {
        for (int64_t i = 0; i < n; ++i) {
            uint16_t column;
            std::memcpy(&column, in + 2 * i, 2);
            columns[i] = float(int32_t(column));
        }
        return 0;
    }
    // four bytes at a time, of which the last is the next column's; the last column has no next
    for (int64_t i = 0; i < n; ++i) {
        uint32_t column = 0;
        if (i < n - 1)
            std::memcpy(&column, in + 3 * i, 4);
        else
            std::memcpy(&column, in + 3 * i, 3);
        columns[i] = float(int32_t(column & 0xffffff));
    }
    return 0;
}

FOR_EACH_CPU int64_t hse_pack_gradients(int64_t n, int64_t w, int64_t r, int64_t kind, const float* grad,
                                        uint8_t* out) {
    if (kind == FLOAT32) pack_any<FLOAT32>(n, w, r, grad, out);
    if (kind == BFLOAT16) pack_any<BFLOAT16>(n, w, r, grad, out);
    if (kind == FLOAT16) pack_any<FLOAT16>(n, w, r, grad, out);
    return 0;
}

FOR_EACH_CPU int64_t hse_unpack_gradients(int64_t n, int64_t w, int64_t r, int64_t kind, const uint8_t* in,
                                          float* grad) {
    if (kind == FLOAT32) unpack_any<FLOAT32>(n, w, r, in, grad);
    if (kind == BFLOAT16) unpack_any<BFLOAT16>(n, w, r, in, grad);
    if (kind == FLOAT16) unpack_any<FLOAT16>(n, w, r, in, grad);
    return 0;
}

// `sent` [n, w]: of gradient plus residual the strongest r of each chunk, as they will arrive; the rest is kept. Ids are
// distinct. A residual whose column is not the present one counts for nothing.
FOR_EACH_CPU int64_t hse_feed_back(int64_t n, int64_t w, int64_t r, int64_t kind, const int64_t* ids,
                                   const float* columns, const float* grad, int64_t kept, float* residuals,
                                   float* residual_columns, float* sent) {
    const Residuals left = {kept, residuals, residual_columns};
    if (kind == FLOAT32) feed_back_any<FLOAT32>(n, w, r, ids, columns, grad, left, sent);
    if (kind == BFLOAT16) feed_back_any<BFLOAT16>(n, w, r, ids, columns, grad, left, sent);
    if (kind == FLOAT16) feed_back_any<FLOAT16>(n, w, r, ids, columns, grad, left, sent);
    return 0;
}
}
