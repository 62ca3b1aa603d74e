// Rows out of chunks: live entries side by side, free slots left out; and the way back for gradients.
//
// Letters: n chunks, w slots a chunk, E live entries.

#include <cstdint>

#include "vectors.h"

extern "C" {

// What `library.py` expects of a library: it follows from the signatures of all kernels, as a test computes it.
int64_t hse_version() { return 0xda78f74d; }

// Live entries in the order of their slots, and where each chunk's begin: `ends` [n + 1]. `out` and `out_columns` have
// room for n · w. Returns E.
FOR_EACH_CPU int64_t hse_live_entries(int64_t n, int64_t w, int64_t dims, const float* columns, const float* values,
                                      float* out, int64_t* out_columns, int64_t* ends) {
    int64_t found = 0;
    ends[0] = 0;
    for (int64_t c = 0; c < n; ++c) {
        for (int64_t slot = c * w; slot < (c + 1) * w; ++slot) {
            // written in any case, kept if it is live: no branch to guess
            const int64_t column = int64_t(columns[slot]);
            out[found] = values[slot], out_columns[found] = column;
            found += column < dims;
        }
        ends[c + 1] = found;
    }
    return found;
}

// The columns of all slots from the numbers of blocks: `stored` numbers a chunk, of which the first w / block count.
FOR_EACH_CPU int64_t hse_columns_of_blocks(int64_t n, int64_t stored, int64_t w, int64_t block, const float* numbers,
                                           float* columns) {
    for (int64_t c = 0; c < n; ++c)
        for (int64_t p = 0; p < w / block; ++p) {
            const float first = numbers[c * stored + p] * float(block);
            for (int64_t i = 0; i < block; ++i) columns[c * w + p * block + i] = first + float(i);
        }
    return 0;
}

// Gradients of entries to their slots; free slots get 0.
FOR_EACH_CPU int64_t hse_live_entries_backward(int64_t n, int64_t w, int64_t dims, const float* columns,
                                               const float* grad, float* out) {
    int64_t entry = 0;
    const float end = float(dims);
    for (int64_t slot = 0; slot < n * w; ++slot) {
        const bool live = columns[slot] < end;
        out[slot] = live ? grad[entry] : 0.0f;
        entry += live;
    }
    return 0;
}
}
