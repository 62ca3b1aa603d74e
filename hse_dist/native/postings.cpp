// The inverted index of an export: for every column the items that are live in it, those with the largest impact first.
//
// The impact of an entry is its value times its item's gain, so that a score is a sum over columns of the user's value
// times the impact. Impacts are kept as 16 bits, in parts of the largest of their column; rows as the lower 16 bits of
// their number, in lists of their own for every range of 65 536 rows. So a posting takes 4 bytes, and the sums of a range
// stay in the processor's second cache.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int RANGE_BITS = 16;
constexpr double MOST = 32767;

}  // namespace

extern "C" {

// `ends` [ranges · D + 1], the postings [L] and `scales` [D] are filled. Within a list: |impact| falls, then rows rise.
int64_t hse_build_postings(int64_t items, int64_t dims, const int64_t* offsets, const int32_t* columns,
                           const float* values, const float* gains, int64_t* ends, uint32_t* postings, float* scales) {
    const int64_t ranges = (items + (1 << RANGE_BITS) - 1) >> RANGE_BITS, lists = ranges * dims;
    std::memset(ends, 0, sizeof(int64_t) * (lists + 1));
    std::memset(scales, 0, sizeof(float) * dims);
    for (int64_t j = 0; j < items; ++j)
        for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
            ++ends[(j >> RANGE_BITS) * dims + columns[e] + 1];
            scales[columns[e]] = std::max(scales[columns[e]], std::fabs(values[e] * gains[j]));
        }
    for (int64_t l = 0; l < lists; ++l) ends[l + 1] += ends[l];
    std::vector<int64_t> next(ends, ends + lists);
    for (int64_t j = 0; j < items; ++j)
        for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
            const float scale = scales[columns[e]];
            const double part = scale > 0 ? double(values[e] * gains[j]) / scale * MOST : 0.0;
            const int32_t impact = int32_t(std::nearbyint(part));
            postings[next[(j >> RANGE_BITS) * dims + columns[e]]++] = uint32_t(impact) << 16 | uint32_t(j & ((1 << RANGE_BITS) - 1));
        }
    std::vector<uint64_t> keyed;
    for (int64_t l = 0; l < lists; ++l) {
        uint32_t* list = postings + ends[l];
        const int64_t count = ends[l + 1] - ends[l];
        keyed.resize(count);
        for (int64_t n = 0; n < count; ++n) {
            const int32_t impact = int32_t(list[n]) >> 16;
            keyed[n] = (uint64_t(32767 - std::abs(impact)) << 16 | (list[n] & 0xffff)) << 32 | list[n];
        }
        std::sort(keyed.begin(), keyed.end());
        for (int64_t n = 0; n < count; ++n) list[n] = uint32_t(keyed[n]);
    }
    return 0;
}
}
