// The passes of a rewire over the slots of a rank's rows. A slot has a key, the drop score of its entry as an unsigned
// number of the same order; 0 is no key: of a free slot, or of an entry that a selection does not concern. Passes narrow
// the keys down in place, so that nothing is sorted and nothing but the keys is as long as the table.
//
// Rows are divided among threads; what is done to a row depends on the row alone.

#include "vectors.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr uint32_t SIGN = 0x80000000u;
constexpr int64_t COPIES = 4;  // of a histogram: neighbours that fall into one bin would wait for each other

// work(thread, first, last) for at most `threads` parts of 0 … count − 1; small ones are not worth a thread.
template <typename Work>
void divide(int64_t count, int64_t threads, const Work& work) {
    threads = std::min(threads, 1 + count / 1024);
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t)
        others.emplace_back([&, t] { work(t, count * t / threads, count * (t + 1) / threads); });
    work(0, 0, count / threads);
    for (auto& thread : others) thread.join();
}

FOR_EACH_CPU void unit_rows(int64_t first, int64_t last, const int64_t* offsets, float* values) {
    for (int64_t r = first; r < last; ++r) {
        const int64_t begin = offsets[r], end = offsets[r + 1];
        double square = 0.0;
#pragma omp simd reduction(+ : square)
        for (int64_t s = begin; s < end; ++s) square += double(values[s]) * double(values[s]);
        const float norm = square == 0.0 ? 1.0f : float(std::sqrt(square));
        for (int64_t s = begin; s < end; ++s) values[s] /= norm;
    }
}

// Keys and numbers of live entries; the first row with a score that is not finite, or −1.
FOR_EACH_CPU int64_t drop_keys(int64_t first, int64_t last, int32_t dims, const int64_t* offsets, const float* values,
                               const int32_t* columns, const float* weights, uint32_t* keys, int64_t* live) {
    for (int64_t r = first; r < last; ++r) {
        int32_t count = 0, bad = 0;
        for (int64_t s = offsets[r]; s < offsets[r + 1]; ++s) {
            const float score = std::fabs(values[s]) * weights[r];
            uint32_t bits;
            std::memcpy(&bits, &score, sizeof(bits));
            const bool is_live = columns[s] < dims;
            keys[s] = is_live ? bits | SIGN : 0u;
            count += is_live;
            bad += is_live && (bits & ~SIGN) >= 0x7f800000u;
        }
        if (bad) return r;
        live[r] = count;
    }
    return -1;
}

// An entry of a row in the order of a choice: by key, then by column.
struct Entry {
    uint32_t key;
    int32_t column;
    int64_t place;
    bool operator<(const Entry& other) const { return key != other.key ? key < other.key : column < other.column; }
};

// Of each row the first `limits` entries stay (`others`: all but these), the other keys become 0.
void keep_strongest(int64_t first, int64_t last, const int64_t* offsets, uint32_t* keys, const int32_t* columns,
                    const int64_t* limits, bool largest, bool others) {
    std::vector<Entry> entries;
    for (int64_t r = first; r < last; ++r) {
        const int64_t begin = offsets[r], end = offsets[r + 1], limit = std::max<int64_t>(limits[r], 0);
        int64_t count = 0;
        for (int64_t s = begin; s < end; ++s) count += keys[s] != 0;
        if (count <= limit || limit == 0) {
            if ((limit == 0) != others) std::fill(keys + begin, keys + end, 0u);
            continue;
        }
        entries.clear();
        for (int64_t s = begin; s < end; ++s)
            if (keys[s]) entries.push_back({largest ? ~keys[s] : keys[s], columns[s], s});
        std::nth_element(entries.begin(), entries.begin() + (limit - 1), entries.end());
        const int64_t from = others ? 0 : limit, to = others ? limit : count;
        for (int64_t i = from; i < to; ++i) keys[entries[i].place] = 0;
    }
}

// The row's one strongest entry, when that is all there is to look for.
FOR_EACH_CPU void clear_largest(int64_t first, int64_t last, const int64_t* offsets, uint32_t* keys,
                                const int32_t* columns) {
    for (int64_t r = first; r < last; ++r) {
        const int64_t begin = offsets[r], end = offsets[r + 1];
        uint32_t most = 0;
        for (int64_t s = begin; s < end; ++s) most = std::max(most, keys[s]);
        if (!most) continue;
        int64_t found = -1;
        for (int64_t s = begin; s < end; ++s)
            if (keys[s] == most && (found < 0 || columns[s] < columns[found])) found = s;
        keys[found] = 0;
    }
}

// Counts of the highest bits: four keys a turn, one for each copy.
FOR_EACH_CPU void count_highest(int64_t first, int64_t last, const uint32_t* keys, int shift, int64_t bins,
                                uint32_t* counts) {
    int64_t n = first, none = 0;
    for (; n + COPIES <= last; n += COPIES)
        for (int64_t c = 0; c < COPIES; ++c) ++counts[c * bins + (keys[n + c] >> shift)];
    for (; n < last; ++n) ++counts[keys[n] >> shift];
    for (n = first; n < last; ++n) none += keys[n] == 0;
    counts[0] -= uint32_t(none);  // perhaps below zero here and above it in the other copies: their sum is right
}

FOR_EACH_CPU void count_bins(int64_t first, int64_t last, const uint32_t* keys, int shift, int bits, uint32_t prefix,
                             uint32_t* counts) {
    const uint32_t bins = 1u << bits;
    for (int64_t n = first; n < last; ++n)
        if (keys[n] != 0 && keys[n] >> (shift + bits) == prefix) ++counts[keys[n] >> shift & (bins - 1)];
}

FOR_EACH_CPU int64_t take(int64_t first, int64_t last, const int64_t* offsets, uint32_t* keys, uint32_t low,
                          uint32_t high, uint32_t threshold, int64_t* counts) {
    int64_t ties = 0;
    for (int64_t r = first; r < last; ++r) {
        int32_t count = 0, equal = 0;
        for (int64_t s = offsets[r]; s < offsets[r + 1]; ++s) {
            const uint32_t key = keys[s];
            const bool taken = key >= low && key <= high;
            keys[s] = taken ? key : 0u;
            count += taken;
            equal += key == threshold;
        }
        counts[r] = count;
        ties += equal;
    }
    return ties;
}

FOR_EACH_CPU void free_slots(int64_t first, int64_t last, int32_t dims, const uint32_t* dropped,
                             const uint32_t* restored, float* values, int32_t* columns) {
    for (int64_t s = first; s < last; ++s) {
        const bool gone = dropped[s] != 0 && restored[s] == 0;
        values[s] = gone ? 0.0f : values[s];
        columns[s] = gone ? dims : columns[s];
    }
}

FOR_EACH_CPU void find_live(int64_t first, int64_t last, const int64_t* starts, const int64_t* rows,
                            const int64_t* positions, const int64_t* offsets, const int32_t* columns, uint8_t* found) {
    for (int64_t g = first; g < last; ++g) {
        const int64_t begin = offsets[rows[g]], end = offsets[rows[g] + 1];
        for (int64_t n = starts[g]; n < starts[g + 1]; ++n) {
            const int32_t column = int32_t(positions[n]);
            int32_t equal = 0;
            for (int64_t s = begin; s < end; ++s) equal |= columns[s] == column;
            found[n] = uint8_t(equal != 0);
        }
    }
}

}  // namespace

extern "C" {

// Rows at length 1, in place; a row of zeros stays.
int64_t hse_unit_slots(int64_t rows, int64_t threads, const int64_t* offsets, float* values) {
    divide(rows, threads, [&](int64_t, int64_t first, int64_t last) { unit_rows(first, last, offsets, values); });
    return 0;
}

// The key of |value| · weight of each live entry, and how many a row has; the first row with a score that is not
// finite, or −1.
int64_t hse_drop_keys(int64_t rows, int64_t threads, int64_t dims, const int64_t* offsets, const float* values,
                      const int32_t* columns, const float* weights, uint32_t* keys, int64_t* live) {
    std::vector<int64_t> bad(threads, -1);
    divide(rows, threads, [&](int64_t t, int64_t first, int64_t last) {
        bad[t] = drop_keys(first, last, int32_t(dims), offsets, values, columns, weights, keys, live);
    });
    for (const int64_t row : bad)
        if (row >= 0) return row;
    return -1;
}

// Of each row, the keys of its first `limits` entries by key (largest or smallest), then column; or all but these.
int64_t hse_keep_strongest(int64_t rows, int64_t threads, const int64_t* offsets, uint32_t* keys,
                           const int32_t* columns, const int64_t* limits, int64_t largest, int64_t others) {
    bool one = largest && others;
    for (int64_t r = 0; one && r < rows; ++r) one = limits[r] == 1;
    divide(rows, threads, [&](int64_t, int64_t first, int64_t last) {
        if (one)
            clear_largest(first, last, offsets, keys, columns);
        else
            keep_strongest(first, last, offsets, keys, columns, limits, largest != 0, others != 0);
    });
    return 0;
}

// Counts of bits shift … shift + bits − 1, among keys whose higher bits are `prefix`; `counts` has 2^bits of them.
int64_t hse_histogram(int64_t keys_count, int64_t threads, const uint32_t* keys, int64_t shift, int64_t bits,
                      int64_t prefix, int64_t* counts) {
    const int64_t bins = int64_t(1) << bits, of_one = COPIES * bins;
    std::vector<uint32_t> all(threads * of_one, 0);
    divide(keys_count, threads, [&](int64_t t, int64_t first, int64_t last) {
        uint32_t* own = all.data() + t * of_one;
        if (shift + bits == 32)
            count_highest(first, last, keys, int(shift), bins, own);
        else
            count_bins(first, last, keys, int(shift), int(bits), uint32_t(prefix), own);
    });
    for (int64_t b = 0; b < bins; ++b) {
        uint32_t sum = 0;
        for (int64_t c = 0; c < threads * COPIES; ++c) sum += all[c * bins + b];
        counts[b] = sum;
    }
    return 0;
}

// The keys whose bits above `shift` are `prefix`, in turn; how many there are.
int64_t hse_under(int64_t keys_count, const uint32_t* keys, int64_t shift, int64_t prefix, uint32_t* out) {
    int64_t count = 0;
    for (int64_t n = 0; n < keys_count; ++n) {
        const uint32_t key = keys[n];
        out[count] = key;  // without a branch: what is not wanted is written over
        count += key >> shift == uint32_t(prefix);
    }
    return count;
}

// Keys outside of low … high become 0; how many are left in each row. Returns the number of keys equal to `threshold`.
int64_t hse_take(int64_t rows, int64_t threads, const int64_t* offsets, uint32_t* keys, int64_t low, int64_t high,
                 int64_t threshold, int64_t* counts) {
    std::atomic<int64_t> ties{0};
    divide(rows, threads, [&](int64_t, int64_t first, int64_t last) {
        ties += take(first, last, offsets, keys, uint32_t(low), uint32_t(high), uint32_t(threshold), counts);
    });
    return ties;
}

// Slots with a key in `dropped` and none in `restored` become free.
int64_t hse_free_slots(int64_t slots, int64_t threads, int64_t dims, const uint32_t* dropped, const uint32_t* restored,
                       float* values, int32_t* columns) {
    divide(slots, threads, [&](int64_t, int64_t first, int64_t last) {
        free_slots(first, last, int32_t(dims), dropped, restored, values, columns);
    });
    return 0;
}

// Which positions are live: `groups` runs of positions of one row each.
int64_t hse_find_live(int64_t groups, int64_t threads, const int64_t* starts, const int64_t* rows,
                      const int64_t* positions, const int64_t* offsets, const int32_t* columns, uint8_t* found) {
    divide(groups, threads, [&](int64_t, int64_t first, int64_t last) {
        find_live(first, last, starts, rows, positions, offsets, columns, found);
    });
    return 0;
}
}
