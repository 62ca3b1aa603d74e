// Growth scores: the gradient at every position of a batch's candidates, of which only the strongest few a row are kept.
//
// The gradient of candidate c in column d is  Σ over users b of  ∂s[c, b] · u[d, b]  +  [c in x_b] · ∂u[d, b].  It is made
// for 64 candidates and one column at a time, in registers; sixteen columns later it is forgotten, but for positions
// that beat the row's weakest so far. So nothing of the size of candidates × columns exists, not even a block of it.
//
// Where b adjacent columns are live together, whole blocks of columns stay: those whose gradients have the largest sum of
// squares.
//
// Shapes: B users, C candidates, D columns, e positions (of blocks of columns, blocks) kept a row; W = 64 lanes, a block of
// candidates.

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr int64_t VECTORS = 4, W = VECTORS * LANES;
constexpr int64_t GROUP = 16;  // columns whose largest gradients are compared with a lane's weakest at once

// A user's vector at one column.
struct Cell {
    int32_t user;
    float value;
};

// A position that may stay. Gradients compare by their bits: a NaN counts as the largest and reaches who checks for it.
struct Hit {
    float gradient;
    int32_t column;
    uint32_t size() const {
        uint32_t bits;
        std::memcpy(&bits, &gradient, sizeof(bits));
        return bits & 0x7fffffffu;
    }
    bool operator<(const Hit& other) const {
        return size() != other.size() ? size() > other.size() : column < other.column;
    }
};

constexpr int64_t MOST_COLUMNS = 16;  // of a block of columns, which lies within one group

// A block of columns that may stay.
struct BlockHit {
    float strength;  // the sum of the squares of its gradients
    int32_t column;  // its first
    float gradients[MOST_COLUMNS];
    bool operator<(const BlockHit& other) const { return Hit{strength, column} < Hit{other.strength, other.column}; }
};

struct Problem {
    int64_t candidates, dims, users, explore, width;  // width: b, columns of a block
    double scale;
    const int64_t* offsets;    // [C + 1] live entries of a candidate
    const int32_t* columns;    // [E] their columns
    const float* grad_scores;  // [C, B]
    const float* gains;        // [C]; null for ones
    std::vector<int64_t> column_ends;  // [D + 1]
    std::vector<Cell> cells;           // user vectors by column, without their zeros
    std::vector<float> grad_users;     // [B, D]: a block of candidates reads few users, and of each column after column
    std::vector<int64_t> seer_ends;    // [C + 1]
    std::vector<int32_t> seers;        // users whose history a candidate is in
    std::vector<int32_t> order;        // [C] candidates by their first seer, so that a block's seers are few
    int32_t* out_columns;              // [C, e · b]
    float* out_gradients;              // [C, e · b]; 0 where a candidate has fewer positions
};

// What one thread works on.
struct Space {
    std::vector<uint64_t> live;    // [D] lanes that have the column
    std::vector<float> memory;     // of the next two
    float* grads;                  // [B, W] ∂s of the block's candidates
    float* shares;                 // [B, W] whether a candidate is in a seer's history
    std::vector<int32_t> block_seers;
    std::vector<Hit> hits;         // [W, room]
    std::vector<BlockHit> block_hits;  // [W, room], of blocks of columns
    int64_t counts[W], room;
    float weakest[W];
    alignas(64) float group[GROUP * W], largest[W];
};

#define INLINE static inline __attribute__((always_inline))

void by_column(Problem& p, const float* users) {
    p.column_ends.assign(p.dims + 1, 0);
    for (int64_t d = 0; d < p.dims; ++d) {
        int64_t count = 0;
        for (int64_t b = 0; b < p.users; ++b) count += users[d * p.users + b] != 0.0f;
        p.column_ends[d + 1] = p.column_ends[d] + count;
    }
    p.cells.resize(p.column_ends[p.dims]);
    Cell* cell = p.cells.data();
    for (int64_t d = 0; d < p.dims; ++d)
        for (int64_t b = 0; b < p.users; ++b)
            if (users[d * p.users + b] != 0.0f) *cell++ = {int32_t(b), users[d * p.users + b]};
}

void by_user(Problem& p, const float* grad_users) {
    p.grad_users.resize(p.users * p.dims);
    for (int64_t first = 0; first < p.dims; first += GROUP)
        for (int64_t b = 0; b < p.users; ++b)
            for (int64_t d = first; d < std::min(first + GROUP, p.dims); ++d)
                p.grad_users[b * p.dims + d] = grad_users[d * p.users + b];
}

void by_candidate(Problem& p, int64_t pairs, const int64_t* positions, const int64_t* user) {
    p.seer_ends.assign(p.candidates + 1, 0);
    p.seers.resize(pairs);
    for (int64_t l = 0; l < pairs; ++l) ++p.seer_ends[positions[l] + 1];
    for (int64_t c = 0; c < p.candidates; ++c) p.seer_ends[c + 1] += p.seer_ends[c];
    std::vector<int64_t> next(p.seer_ends.begin(), p.seer_ends.end() - 1);
    for (int64_t l = 0; l < pairs; ++l) p.seers[next[positions[l]]++] = int32_t(user[l]);
    std::vector<int64_t> starts(p.users + 2, 0);
    auto first = [&](int64_t c) { return p.seer_ends[c] < p.seer_ends[c + 1] ? p.seers[p.seer_ends[c]] : p.users; };
    for (int64_t c = 0; c < p.candidates; ++c) ++starts[first(c) + 1];
    for (int64_t b = 0; b <= p.users; ++b) starts[b + 1] += starts[b];
    p.order.resize(p.candidates);
    for (int64_t c = 0; c < p.candidates; ++c) p.order[starts[first(c)]++] = int32_t(c);
}

// Leave the strongest of a lane's positions; any other has to be stronger than the weakest of them.
void shrink(const Problem& p, Space& s, int64_t lane) {
    if (s.counts[lane] < p.explore) return;
    if (p.width > 1) {
        BlockHit* hits = s.block_hits.data() + lane * s.room;
        std::nth_element(hits, hits + p.explore - 1, hits + s.counts[lane]);
        // no gradient of a block that is stronger is below this; a little less, for what rounding takes
        s.weakest[lane] = 0.9999f * std::sqrt(hits[p.explore - 1].strength / float(p.width));
    } else {
        Hit* hits = s.hits.data() + lane * s.room;
        std::nth_element(hits, hits + p.explore - 1, hits + s.counts[lane]);
        s.weakest[lane] = std::fabs(hits[p.explore - 1].gradient);
    }
    s.counts[lane] = p.explore;
}

void load(const Problem& p, Space& s, const int32_t* chosen, int64_t lanes) {
    std::fill(s.memory.begin(), s.memory.end(), 0.0f);
    s.block_seers.clear();
    std::vector<int32_t> place(p.users, -1);
    for (int64_t j = 0; j < lanes; ++j) {
        const int64_t c = chosen[j];
        const double factor = p.scale * (p.gains ? double(p.gains[c]) : 1.0);
        for (int64_t b = 0; b < p.users; ++b) s.grads[b * W + j] = float(factor * p.grad_scores[c * p.users + b]);
        for (int64_t l = p.seer_ends[c]; l < p.seer_ends[c + 1]; ++l) {
            int32_t& where = place[p.seers[l]];
            if (where < 0) {
                where = int32_t(s.block_seers.size());
                s.block_seers.push_back(p.seers[l]);
            }
            s.shares[where * W + j] = float(p.scale);
        }
        for (int64_t e = p.offsets[c]; e < p.offsets[c + 1]; ++e) s.live[p.columns[e]] |= uint64_t(1) << j;
    }
}

void unload(const Problem& p, Space& s, const int32_t* chosen, int64_t lanes) {
    for (int64_t j = 0; j < lanes; ++j) {
        const int64_t c = chosen[j];
        for (int64_t e = p.offsets[c]; e < p.offsets[c + 1]; ++e) s.live[p.columns[e]] = 0;
        shrink(p, s, j);
        for (int64_t i = 0; p.width > 1 && i < s.counts[j]; ++i) {
            const BlockHit& hit = s.block_hits[j * s.room + i];
            for (int64_t n = 0; n < p.width; ++n) {
                p.out_columns[(c * p.explore + i) * p.width + n] = hit.column + int32_t(n);
                p.out_gradients[(c * p.explore + i) * p.width + n] = hit.gradients[n];
            }
        }
        for (int64_t i = 0; p.width == 1 && i < s.counts[j]; ++i) {
            p.out_columns[c * p.explore + i] = s.hits[j * s.room + i].column;
            p.out_gradients[c * p.explore + i] = s.hits[j * s.room + i].gradient;
        }
    }
}

// Gradients of one column for all lanes, and the largest of the group so far.
INLINE void column(const Problem& p, Space& s, int64_t d, float16v* out, float16v* largest) {
    float16v total[VECTORS] = {};
    for (int64_t n = p.column_ends[d]; n < p.column_ends[d + 1]; ++n) {
        const float16v* grad = (const float16v*)(s.grads + int64_t(p.cells[n].user) * W);
        for (int i = 0; i < VECTORS; ++i) total[i] += p.cells[n].value * grad[i];
    }
    const float* grad_user = p.grad_users.data() + d;
    const float16v* share = (const float16v*)s.shares;
    for (const int32_t seer : s.block_seers) {
        for (int i = 0; i < VECTORS; ++i) total[i] += grad_user[int64_t(seer) * p.dims] * share[i];
        share += VECTORS;
    }
    for (int i = 0; i < VECTORS; ++i) {
        out[i] = total[i];
        const float16v size = total[i] < 0.0f ? -total[i] : total[i];
        largest[i] = size <= largest[i] ? largest[i] : size;  // a NaN stays
    }
}

// Take what beats the lane's weakest, out of the group of columns from `first` on.
INLINE void keep(const Problem& p, Space& s, int64_t lane, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float gradient = s.group[i * W + lane];
        if (std::fabs(gradient) <= s.weakest[lane] || (s.live[first + i] >> lane & 1)) continue;
        s.hits[lane * s.room + s.counts[lane]++] = {gradient, int32_t(first + i)};
    }
    if (s.counts[lane] + GROUP > s.room) shrink(p, s, lane);
}

// The same for whole blocks of columns, which are live or not as a whole.
INLINE void keep_blocks(const Problem& p, Space& s, int64_t lane, int64_t first, int64_t count) {
    for (int64_t i = 0; i + p.width <= count; i += p.width) {
        if (s.live[first + i] >> lane & 1) continue;
        BlockHit& hit = s.block_hits[lane * s.room + s.counts[lane]];
        float strength = 0.0f;
        for (int64_t n = 0; n < p.width; ++n) {
            hit.gradients[n] = s.group[(i + n) * W + lane];
            strength += hit.gradients[n] * hit.gradients[n];
        }
        if (strength == 0.0f) continue;
        hit.strength = strength;
        hit.column = int32_t(first + i);
        ++s.counts[lane];
    }
    if (s.counts[lane] + GROUP > s.room) shrink(p, s, lane);
}

FOR_EACH_CPU void blocks(const Problem& p, Space& s, int64_t thread, int64_t threads) {
    for (int64_t begin = thread * W; begin < p.candidates; begin += threads * W) {
        const int64_t lanes = std::min(W, p.candidates - begin);
        load(p, s, p.order.data() + begin, lanes);
        std::fill(s.counts, s.counts + W, 0);
        std::fill(s.weakest, s.weakest + W, 0.0f);
        for (int64_t first = 0; first < p.dims; first += GROUP) {
            const int64_t count = std::min(GROUP, p.dims - first);
            float16v largest[VECTORS] = {};
            for (int64_t i = 0; i < count; ++i) column(p, s, first + i, (float16v*)(s.group + i * W), largest);
            std::memcpy(s.largest, largest, sizeof(largest));
            for (int64_t j = 0; j < lanes; ++j) {
                if (s.largest[j] <= s.weakest[j]) continue;
                if (p.width > 1)
                    keep_blocks(p, s, j, first, count);
                else
                    keep(p, s, j, first, count);
            }
        }
        unload(p, s, p.order.data() + begin, lanes);
    }
}

// A seen gradient: the number of its position, and its bits.
struct Seen {
    int64_t position;
    uint32_t bits;
};

float gradient_of(uint32_t bits) {
    float gradient;
    std::memcpy(&gradient, &bits, sizeof(gradient));
    return gradient;
}

// By position: a radix sort, from the lowest of the bits that positions have.
void by_position(std::vector<Seen>& seen, int64_t largest) {
    constexpr int64_t BITS = 11, BINS = int64_t(1) << BITS;
    std::vector<Seen> other(seen.size());
    for (int64_t shift = 0; shift < 63 && largest >> shift; shift += BITS) {
        int64_t starts[BINS + 1] = {};
        for (const Seen& one : seen) ++starts[(one.position >> shift & (BINS - 1)) + 1];
        for (int64_t b = 0; b < BINS; ++b) starts[b + 1] += starts[b];
        for (const Seen& one : seen) other[starts[one.position >> shift & (BINS - 1)]++] = one;
        seen.swap(other);
    }
}

}  // namespace

extern "C" {

// The sum of the gradients of each position, by position. Gradients of a position are added in the order of their bits,
// so that the sum depends on nothing else. Returns the number of positions.
int64_t hse_merge(int64_t count, int64_t largest, const int64_t* positions, const float* gradients,
                  int64_t* out_positions, double* out_sums) {
    std::vector<Seen> seen(count);
    for (int64_t n = 0; n < count; ++n) {
        seen[n].position = positions[n];
        std::memcpy(&seen[n].bits, gradients + n, sizeof(uint32_t));
    }
    by_position(seen, largest);
    int64_t found = 0;
    for (int64_t n = 0, end; n < count; n = end) {
        for (end = n + 1; end < count && seen[end].position == seen[n].position;) ++end;
        std::sort(seen.begin() + n, seen.begin() + end, [](const Seen& a, const Seen& b) { return a.bits < b.bits; });
        double sum = 0.0;
        for (int64_t i = n; i < end; ++i) sum += gradient_of(seen[i].bits);
        out_positions[found] = seen[n].position;
        out_sums[found++] = sum;
    }
    return found;
}

// The strongest `explore` positions of every candidate that are not live, or blocks of `width` adjacent columns that are
// not; `out_gradients` comes zeroed. Columns from
// `dims` on (the spare one of a renumbered block) are left out. Pairs (position, user) of the histories come by user.
int64_t hse_growth(int64_t candidates, int64_t dims, int64_t users, int64_t pairs, int64_t explore, int64_t width,
                   int64_t threads, double scale, const int64_t* offsets, const int32_t* columns, const int64_t* positions,
                   const int64_t* user, const float* users_db, const float* grad_users, const float* grad_scores,
                   const float* gains, int64_t all_dims, int32_t* out_columns, float* out_gradients) {
    Problem p = {candidates, dims, users, explore, width, scale, offsets, columns, grad_scores, gains,
                 {}, {}, {}, {}, {}, {}, out_columns, out_gradients};
    by_column(p, users_db);
    by_user(p, grad_users);
    by_candidate(p, pairs, positions, user);
    std::vector<Space> spaces(threads);
    for (Space& s : spaces) {
        s.live.assign(all_dims, 0);
        // vectors that begin in the middle of a cache line take twice as long to load
        s.memory.resize(2 * users * W + LANES);
        s.grads = s.memory.data() + (64 - reinterpret_cast<uintptr_t>(s.memory.data()) % 64) % 64 / sizeof(float);
        s.shares = s.grads + users * W;
        s.room = explore + std::max(explore, 3 * GROUP);
        if (width > 1)
            s.block_hits.resize(W * s.room);
        else
            s.hits.resize(W * s.room);
    }
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t)
        others.emplace_back([&, t] { blocks(p, spaces[t], t, threads); });
    blocks(p, spaces[0], 0, threads);
    for (auto& thread : others) thread.join();
    return 0;
}
}
