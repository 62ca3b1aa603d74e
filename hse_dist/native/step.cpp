// The loss of a batch and its gradient, for live entries only: pool, score, cosine loss and their backward passes in one
// sweep over blocks of users. One block's user vectors and scores stay in a core's cache, and threads share nothing but
// what they read: each takes every n-th block and adds gradients into buffers of its own.
//
// Shapes: B users, W lanes of a block of them, C candidates, D columns, E live entries, L history positions.

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr double SMALLEST = 1e-12;  // of a user's squared score length; below it there is no direction to improve

// An entry as its column sees it.
struct Cell {
    int32_t row;
    float weight;
};

struct Problem {
    int64_t candidates, dims, entries, users;
    const int64_t* pooled;        // [C + 1] entries of a row, as histories pool them
    const int32_t* pooled_columns;  // [E]
    const int32_t* place;         // [columns] where a block keeps a column; null: at its number
    const float* values;          // [E]
    const int64_t* offsets;       // [C + 1] entries of a row, as it is scored: perhaps fewer
    const int32_t* columns;       // [E]
    const float* weights;         // [E]
    const float* own;             // [C] an item's contribution to its own score
    const int64_t* column_ends;   // [D + 1] entries of a column
    const Cell* cells;            // [E] them
    const int64_t* histories;     // [B + 1]
    const int64_t* positions;     // [L] rows of a history
    const uint8_t* shown;         // [L] whether the input shows it; null: all
    const double* shares;         // [B] of each user in the loss
    float clip;                   // of scores; infinite for none
    int64_t kept;                 // first users of whom the next three are wanted, N
    float *users_out, *grad_users_out, *grad_scores_out;  // [D, N], [D, N], [C, N]
};

// What one thread works on and adds to.
struct Space {
    float *user, *grad_user, *scores;             // [D, W], [D, W], [C, W]
    float *grad_values, *grad_weights, *grad_own;  // [E], [E], [C]
    double loss;
    std::vector<float> hits;  // what a block's histories get after the clipping
};

#define INLINE static inline __attribute__((always_inline))

INLINE float clipped(float x, float bound) { return std::min(std::max(x, -bound), bound); }

INLINE int64_t place_of(const Problem& p, int64_t entry) {
    const int32_t column = p.pooled_columns[entry];
    return p.place ? p.place[column] : column;
}

template <int V>
INLINE void pool(const Problem& p, Space& s, int64_t first, int64_t lanes) {
    std::memset(s.user, 0, sizeof(float) * p.dims * V * LANES);
    for (int64_t j = 0; j < lanes; ++j) {
        float* user = s.user + j;
        for (int64_t l = p.histories[first + j]; l < p.histories[first + j + 1]; ++l) {
            if (p.shown && !p.shown[l]) continue;
            const int64_t row = p.positions[l];
            for (int64_t e = p.pooled[row]; e < p.pooled[row + 1]; ++e)
                user[place_of(p, e) * (V * LANES)] += p.values[e];
        }
    }
}

template <int V>
INLINE void pool_backward(const Problem& p, Space& s, int64_t first, int64_t lanes) {
    for (int64_t j = 0; j < lanes; ++j) {
        const float* grad = s.grad_user + j;
        for (int64_t l = p.histories[first + j]; l < p.histories[first + j + 1]; ++l) {
            if (p.shown && !p.shown[l]) continue;
            const int64_t row = p.positions[l];
            for (int64_t e = p.pooled[row]; e < p.pooled[row + 1]; ++e)
                s.grad_values[e] += grad[place_of(p, e) * (V * LANES)];
        }
    }
}

// Scores of all candidates, and the sum of their squares (clipped) for each lane.
template <int V>
INLINE void score(const Problem& p, Space& s, float* squares) {
    float16v sums[V] = {};
    const float16v bound = float16v{} + p.clip;
    for (int64_t c = 0; c < p.candidates; ++c) {
        float16v total[V] = {};
        for (int64_t e = p.offsets[c]; e < p.offsets[c + 1]; ++e) {
            const float16v* user = (const float16v*)(s.user + int64_t(p.columns[e]) * (V * LANES));
            for (int i = 0; i < V; ++i) total[i] += p.weights[e] * user[i];
        }
        float16v* out = (float16v*)(s.scores + c * V * LANES);
        for (int i = 0; i < V; ++i) out[i] = total[i];
        for (int i = 0; i < V; ++i) {
            float16v x = total[i] > bound ? bound : total[i];
            x = x < -bound ? -bound : x;
            sums[i] += x * x;
        }
    }
    std::memcpy(squares, sums, sizeof(sums));
}

// Scores beyond the clip have no gradient; hits are written after that.
template <int V>
INLINE void clear_clipped(const Problem& p, Space& s, int64_t first, int64_t lanes) {
    const float16v bound = float16v{} + p.clip, zero = {};
    for (int64_t n = 0; n < p.candidates * V; ++n) {
        float16v& x = ((float16v*)s.scores)[n];
        x = x > bound ? zero : x;
        x = x < -bound ? zero : x;
    }
    const float* hit = s.hits.data();
    for (int64_t j = 0; j < lanes; ++j)
        for (int64_t l = p.histories[first + j]; l < p.histories[first + j + 1]; ++l)
            s.scores[p.positions[l] * (V * LANES) + j] = *hit++;
}

// A lane's slope is kept this far from zero, so that a hit can be written as a multiple of it.
constexpr double LEAST_SLOPE = 1e-20;

// The loss, and in place of the scores their gradients divided by the lane's `slopes`: that of a score which is no hit
// is score · slope, so that only hits have to be written, and who reads multiplies.
template <int V>
INLINE void cosine(const Problem& p, Space& s, int64_t first, int64_t lanes, const float* squares, float* slopes) {
    constexpr int64_t W = V * LANES;
    const bool bounded = std::isfinite(p.clip);
    std::fill(slopes, slopes + W, 0.0f);
    s.hits.clear();
    for (int64_t j = 0; j < lanes; ++j) {
        const int64_t begin = p.histories[first + j], end = p.histories[first + j + 1];
        if (begin == end) continue;
        double square = squares[j], inner = 0.0;
        for (int64_t l = begin; l < end; ++l) {
            float& x = s.scores[p.positions[l] * W + j];
            const float raw = clipped(x, p.clip);
            if (!p.shown || p.shown[l]) x -= p.own[p.positions[l]];
            const float hit = clipped(x, p.clip);
            square += double(hit) * hit - double(raw) * raw;
            inner += hit;
        }
        const double share = p.shares[first + j], length = std::sqrt(double(end - begin));
        const bool flat = square <= SMALLEST;
        const double norm = flat ? 1.0 : std::sqrt(square), similarity = flat ? 0.0 : inner / (norm * length);
        s.loss += (2.0 - 2.0 * similarity) * share;
        double slope = 2.0 * share * similarity / (norm * norm);
        if (std::fabs(slope) < LEAST_SLOPE) slope = flat ? 0.0 : LEAST_SLOPE;
        slopes[j] = float(slope);
        const float towards = flat ? 0.0f : float(-2.0 * share / (norm * length) / slope);
        for (int64_t l = begin; l < end; ++l) {
            float& x = s.scores[p.positions[l] * W + j];
            const float multiple = std::fabs(x) > p.clip ? 0.0f : x + towards;
            if (!p.shown || p.shown[l]) s.grad_own[p.positions[l]] -= multiple * slopes[j];
            if (bounded)
                s.hits.push_back(multiple);
            else
                x = multiple;
        }
    }
    if (bounded) clear_clipped<V>(p, s, first, lanes);
}

// Users' gradients: a sum over each column's entries, so that nothing is written but once.
template <int V>
INLINE void users_backward(const Problem& p, Space& s, const float* slopes) {
    float16v slope[V];
    std::memcpy(slope, slopes, sizeof(slope));
    for (int64_t d = 0; d < p.dims; ++d) {
        float16v total[V] = {};
        for (int64_t n = p.column_ends[d]; n < p.column_ends[d + 1]; ++n) {
            const float16v* grad = (const float16v*)(s.scores + int64_t(p.cells[n].row) * (V * LANES));
            for (int i = 0; i < V; ++i) total[i] += p.cells[n].weight * grad[i];
        }
        float16v* out = (float16v*)(s.grad_user + d * V * LANES);
        for (int i = 0; i < V; ++i) out[i] = total[i] * slope[i];
    }
}

// One entry's product over the lanes, not yet summed.
template <int V>
INLINE void product(const Problem& p, const Space& s, const float16v* grad, int64_t entry, float16v& out) {
    const float16v* user = (const float16v*)(s.user + int64_t(p.columns[entry]) * (V * LANES));
    out = user[0] * grad[0];
    for (int i = 1; i < V; ++i) out += user[i] * grad[i];
}

// Weights' gradients. Sums over lanes are made four at a time: one alone costs as much as the product before it.
template <int V>
INLINE void weights_backward(const Problem& p, Space& s, const float* slopes) {
    float16v slope[V];
    std::memcpy(slope, slopes, sizeof(slope));
    for (int64_t c = 0; c < p.candidates; ++c) {
        float16v grad[V];
        std::memcpy(grad, s.scores + c * V * LANES, sizeof(grad));
        for (int i = 0; i < V; ++i) grad[i] *= slope[i];
        int64_t e = p.offsets[c];
        const int64_t end = p.offsets[c + 1];
        for (; e + 4 <= end; e += 4) {
            float16v q0, q1, q2, q3;
            product<V>(p, s, grad, e, q0);
            product<V>(p, s, grad, e + 1, q1);
            product<V>(p, s, grad, e + 2, q2);
            product<V>(p, s, grad, e + 3, q3);
            float16v a = __builtin_shufflevector(q0, q1, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                         __builtin_shufflevector(q0, q1, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
            float16v b = __builtin_shufflevector(q2, q3, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                         __builtin_shufflevector(q2, q3, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
            // lanes of four: (a0 + a2, b0 + b2, a1 + a3, b1 + b3), of two entries each
            float16v t = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                         __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
            t += __builtin_shufflevector(t, t, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
            for (int i = 0; i < 4; ++i) s.grad_weights[e + i] += t[i] + t[i + 4];
        }
        for (; e < end; ++e) {
            float16v q;
            product<V>(p, s, grad, e, q);
            float total = 0.0f;
            for (int i = 0; i < int(LANES); ++i) total += q[i];
            s.grad_weights[e] += total;
        }
    }
}

// A block's lanes into the columns of a matrix of the users that are kept.
INLINE void copy_out(const float* block, float* out, int64_t rows, int64_t width, int64_t users, int64_t first,
                     int64_t lanes) {
    for (int64_t r = 0; r < rows; ++r)
        std::memcpy(out + r * users + first, block + r * width, sizeof(float) * lanes);
}

template <int V>
INLINE void block(const Problem& p, Space& s, int64_t first) {
    constexpr int64_t W = V * LANES;
    const int64_t lanes = std::min(W, p.users - first);
    float squares[W], slopes[W];
    pool<V>(p, s, first, lanes);
    score<V>(p, s, squares);
    cosine<V>(p, s, first, lanes, squares, slopes);
    users_backward<V>(p, s, slopes);
    weights_backward<V>(p, s, slopes);
    pool_backward<V>(p, s, first, lanes);
    if (first < p.kept) {
        const int64_t wanted = std::min(lanes, p.kept - first);
        for (int64_t n = 0; n < p.candidates * W; ++n) s.scores[n] *= slopes[n % W];
        copy_out(s.user, p.users_out, p.dims, W, p.kept, first, wanted);
        copy_out(s.grad_user, p.grad_users_out, p.dims, W, p.kept, first, wanted);
        copy_out(s.scores, p.grad_scores_out, p.candidates, W, p.kept, first, wanted);
    }
}

// Entries by column: a counting sort, stable.
INLINE void by_column(int64_t candidates, int64_t dims, const int64_t* offsets, const int32_t* columns,
                      const float* weights, int64_t* column_ends, Cell* cells) {
    std::memset(column_ends, 0, sizeof(int64_t) * (dims + 1));
    const int64_t entries = offsets[candidates];
    for (int64_t e = 0; e < entries; ++e) ++column_ends[columns[e] + 1];
    for (int64_t d = 0; d < dims; ++d) column_ends[d + 1] += column_ends[d];
    // the start of each column moves to its end while it fills, and back by one place afterwards
    for (int64_t c = 0; c < candidates; ++c)
        for (int64_t e = offsets[c]; e < offsets[c + 1]; ++e)
            cells[column_ends[columns[e]]++] = {int32_t(c), weights[e]};
    for (int64_t d = dims; d > 0; --d) column_ends[d] = column_ends[d - 1];
    column_ends[0] = 0;
}

// The columns that the histories of a block have, and the entries in them: on a wide table a small part of all. What no
// user of the block has adds nothing to a score, and neither it nor its user's gradient is asked for.
struct Narrow {
    std::vector<int32_t> place, touched;  // [columns] -1 for none; the columns that have a place
    std::vector<int64_t> offsets, column_ends;
    std::vector<int32_t> columns, origin;  // origin: the entry of the whole
    std::vector<float> weights, grad;
    std::vector<Cell> cells;
};

INLINE Problem narrowed(const Problem& p, Narrow& n, int64_t first, int64_t lanes) {
    n.place.resize(p.dims, -1);
    for (int32_t column : n.touched) n.place[column] = -1;
    n.touched.clear();
    for (int64_t l = p.histories[first]; l < p.histories[first + lanes]; ++l) {
        if (p.shown && !p.shown[l]) continue;
        for (int64_t e = p.pooled[p.positions[l]]; e < p.pooled[p.positions[l] + 1]; ++e) {
            int32_t& place = n.place[p.pooled_columns[e]];
            if (place >= 0) continue;
            place = int32_t(n.touched.size());
            n.touched.push_back(p.pooled_columns[e]);
        }
    }
    n.offsets.assign(p.candidates + 1, 0);
    n.columns.resize(p.entries + 1), n.origin.resize(p.entries + 1), n.weights.resize(p.entries + 1);
    int64_t found = 0;
    for (int64_t c = 0; c < p.candidates; ++c) {
        for (int64_t e = p.offsets[c]; e < p.offsets[c + 1]; ++e) {
            // written in any case, kept if it has a place: no branch to guess
            const int32_t place = n.place[p.columns[e]];
            n.columns[found] = place, n.origin[found] = int32_t(e), n.weights[found] = p.weights[e];
            found += place >= 0;
        }
        n.offsets[c + 1] = found;
    }
    Problem q = p;
    q.dims = int64_t(n.touched.size()), q.entries = found, q.place = n.place.data();
    n.column_ends.resize(q.dims + 1), n.cells.resize(found);
    by_column(p.candidates, q.dims, n.offsets.data(), n.columns.data(), n.weights.data(), n.column_ends.data(),
              n.cells.data());
    q.offsets = n.offsets.data(), q.columns = n.columns.data(), q.weights = n.weights.data();
    q.column_ends = n.column_ends.data(), q.cells = n.cells.data();
    return q;
}

template <int V>
INLINE void narrow_block(const Problem& p, Space& s, Narrow& n, int64_t first) {
    const Problem q = narrowed(p, n, first, std::min(V * LANES, p.users - first));
    n.grad.assign(q.entries, 0.0f);
    float* whole = s.grad_weights;
    s.grad_weights = n.grad.data();
    block<V>(q, s, first);
    s.grad_weights = whole;
    for (int64_t e = 0; e < q.entries; ++e) whole[n.origin[e]] += n.grad[e];
}

FOR_EACH_CPU void blocks64(const Problem& p, Space& s, int64_t thread, int64_t threads) {
    for (int64_t first = thread * 64; first < p.users; first += threads * 64) block<4>(p, s, first);
}

FOR_EACH_CPU void blocks32(const Problem& p, Space& s, int64_t thread, int64_t threads) {
    for (int64_t first = thread * 32; first < p.users; first += threads * 32) block<2>(p, s, first);
}

// Narrow blocks are of wide tables. What is kept of a user is asked for in all columns.
FOR_EACH_CPU void blocks16(const Problem& p, Space& s, int64_t thread, int64_t threads) {
    Narrow n;
    for (int64_t first = thread * 16; first < p.users; first += threads * 16) {
        if (first < p.kept)
            block<1>(p, s, first);
        else
            narrow_block<1>(p, s, n, first);
    }
}

void run(const Problem& p, Space& s, int64_t width, int64_t thread, int64_t threads) {
    s.loss = 0.0;
    if (width == 64)
        blocks64(p, s, thread, threads);
    else if (width == 32)
        blocks32(p, s, thread, threads);
    else
        blocks16(p, s, thread, threads);
}

}  // namespace

extern "C" {

int64_t hse_by_column(int64_t candidates, int64_t dims, const int64_t* offsets, const int32_t* columns,
                      const float* weights, int64_t* column_ends, Cell* cells) {
    by_column(candidates, dims, offsets, columns, weights, column_ends, cells);
    return 0;
}

// Rows at length 1; a row shorter than `smallest` is divided by that.
FOR_EACH_CPU int64_t hse_unit_rows(int64_t rows, double smallest, const int64_t* offsets, const float* values,
                                   float* norms, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
        float square = 0.0f;
        for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) square += values[e] * values[e];
        norms[r] = std::max(std::sqrt(square), float(smallest));
        for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) out[e] = values[e] / norms[r];
    }
    return 0;
}

// The part of a gradient that is not along the row, divided by the row's length.
FOR_EACH_CPU int64_t hse_unit_rows_backward(int64_t rows, double smallest, const int64_t* offsets, const float* unit,
                                            const float* norms, const float* grad, float* out) {
    for (int64_t r = 0; r < rows; ++r) {
        float along = 0.0f;
        if (norms[r] > float(smallest))
            for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) along += grad[e] * unit[e];
        for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) out[e] = (grad[e] - along * unit[e]) / norms[r];
    }
    return 0;
}

// The loss and all gradients. `space` has threads · (2 · dims + candidates) · width floats; each gradient is given
// `threads` times over, zeroed, and summed here into its first copy.
int64_t hse_step(int64_t candidates, int64_t dims, int64_t users, const double* shares, double clip, int64_t width,
                 int64_t threads, const int64_t* offsets, const int32_t* columns, const float* values,
                 const float* weights, const float* own, const int64_t* column_ends, const Cell* cells,
                 const int64_t* histories, const int64_t* positions, const uint8_t* shown, float* space,
                 float* grad_values, float* grad_weights, float* grad_own, double* loss, int64_t kept,
                 float* users_out, float* grad_users_out, float* grad_scores_out) {
    const int64_t entries = offsets[candidates];
    const Problem p = {candidates,  dims,      entries,   users, offsets, columns, nullptr, values, offsets, columns,
                       weights,     own,
                       column_ends, cells,     histories, positions, shown, shares, float(clip), kept, users_out,
                       grad_users_out, grad_scores_out};
    std::vector<Space> spaces(threads);
    for (int64_t t = 0; t < threads; ++t) {
        float* own_space = space + t * (2 * dims + candidates) * width;
        spaces[t].user = own_space;
        spaces[t].grad_user = own_space + dims * width;
        spaces[t].scores = own_space + 2 * dims * width;
        spaces[t].grad_values = grad_values + t * entries;
        spaces[t].grad_weights = grad_weights + t * entries;
        spaces[t].grad_own = grad_own + t * candidates;
    }
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t)
        others.emplace_back([&, t] { run(p, spaces[t], width, t, threads); });
    run(p, spaces[0], width, 0, threads);
    for (auto& thread : others) thread.join();
    *loss = spaces[0].loss;
    for (int64_t t = 1; t < threads; ++t) {
        *loss += spaces[t].loss;
        for (int64_t e = 0; e < entries; ++e) grad_values[e] += spaces[t].grad_values[e];
        for (int64_t e = 0; e < entries; ++e) grad_weights[e] += spaces[t].grad_weights[e];
        for (int64_t c = 0; c < candidates; ++c) grad_own[c] += spaces[t].grad_own[c];
    }
    return 0;
}
}
