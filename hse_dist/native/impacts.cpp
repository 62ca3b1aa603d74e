// The best items of one user from the inverted index, exact, without reading all of it.
//
// Ranges of items one after the other. Of each list the blocks are added to the items' partial scores in which a posting
// may add t or more. What an item of n live entries may still get is then below n · t: items whose partial score and this
// stay below the k-th best score so far are out, the others are scored from their rows, in the order of every other way:
// the very numbers of `retrieve.cpp`. As long as there are too many of them, t is halved.
//
// So a score is never the sum that led to its item; what rounding can have done to that sum is part of the bound.
#pragma GCC optimize("fp-contract=off")

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr int64_t BLOCK = 32;        // postings whose largest impact is known
constexpr int64_t RANGE = 1 << 16;   // rows
constexpr int64_t RESCORE = 128;     // postings that are read in the time in which one item is scored from its row
constexpr int64_t AHEAD = 8;         // items, and lists, that are fetched before they are looked at
constexpr size_t FAR = 24;           // blocks, likewise
constexpr int64_t LEVELS = 2048;     // of contributions: eight an octave

struct Index {
    int64_t dims;
    const int64_t* ends;        // [ranges · D + 1]
    const uint32_t* postings;   // impact << 16 | row
    const int64_t* block_ends;  // [ranges · D + 1]
    const uint16_t* tops;       // |impact| of the first posting of each block
    const float* scales;        // [D] of an impact of 32 767
};

struct Matrix {
    int64_t items;
    const int64_t* offsets;
    const int32_t* columns;
    const float *values, *gains;
    const int32_t* lengths;  // [items] live entries
};

struct Item {
    float score;
    int64_t row;
};

bool better(const Item& a, const Item& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

// Who may be an answer.
struct Choice {
    const int64_t *seen, *seen_end;
    const uint8_t* blocked;
    bool operator()(int64_t row) const {
        return !(blocked && blocked[row]) && !std::binary_search(seen, seen_end, row);
    }
};

// The best k of what is offered, in any order.
struct Best {
    std::vector<Item> heap;
    size_t k;
    explicit Best(int64_t most) : k(size_t(most)) {}

    float bound() const { return heap.size() < k ? NOTHING : heap.front().score; }

    void offer(const Item& item) {
        if (!(item.score > NOTHING)) return;  // a NaN has no place in an order
        if (heap.size() == k) {
            if (!better(item, heap.front())) return;
            std::pop_heap(heap.begin(), heap.end(), better);
            heap.pop_back();
        }
        heap.push_back(item);
        std::push_heap(heap.begin(), heap.end(), better);
    }
};

struct Block {
    const uint32_t* postings;
    float weight;
    int32_t count;
};

struct Query {
    int64_t count;
    const int32_t* columns;
    std::vector<float> weights;  // what an impact of 1 adds
    std::vector<int64_t> read;   // of each list of a range: blocks that were chosen
    std::vector<Block> blocks;   // chosen now
};

// The blocks of one range that are to be read: those in which a posting may add `least` or more, and were not read yet.
// How many postings that are. `all`: whether nothing is left.
int64_t choose_blocks(const Index& index, Query& query, int64_t range, float least, bool& all) {
    int64_t sum = 0;
    query.blocks.clear();
    all = true;
    for (int64_t i = 0; i < query.count; ++i) {
        if (i + 2 * AHEAD < query.count) {
            const int64_t far = range * index.dims + query.columns[i + 2 * AHEAD];
            __builtin_prefetch(index.block_ends + far);
            __builtin_prefetch(index.ends + far);
        }
        if (i + AHEAD < query.count)
            __builtin_prefetch(index.tops + index.block_ends[range * index.dims + query.columns[i + AHEAD]]);
        const int64_t list = range * index.dims + query.columns[i];
        const int64_t blocks = index.block_ends[list + 1] - index.block_ends[list];
        const uint16_t* tops = index.tops + index.block_ends[list];
        const float weight = query.weights[i], size = std::fabs(weight);
        int64_t block = query.read[i];
        // written so that a NaN is read, and comes to an end
        for (; block < blocks && !(size * float(tops[block]) < least); ++block) {
            const int64_t first = index.ends[list] + block * BLOCK;
            const int64_t count = std::min(BLOCK, index.ends[list + 1] - first);
            query.blocks.push_back({index.postings + first, weight, int32_t(count)});
            sum += count;
        }
        query.read[i] = block;
        all &= block == blocks;
    }
    return sum;
}

// What they add to the range's items. Lists are short and lie far from each other: the memory must be told in advance.
FOR_EACH_CPU void add_blocks(const std::vector<Block>& blocks, float* partial) {
    float parts[BLOCK];
    for (size_t b = 0; b < blocks.size(); ++b) {
        if (b + FAR < blocks.size()) {
            __builtin_prefetch(blocks[b + FAR].postings);
            __builtin_prefetch(blocks[b + FAR].postings + 16);
        }
        const uint32_t* at = blocks[b].postings;
        const float weight = blocks[b].weight;
        // + 0: never -0, which means that nothing was added
        if (blocks[b].count == BLOCK) {
            for (int64_t p = 0; p < BLOCK; ++p) parts[p] = weight * float(int32_t(at[p]) >> 16) + 0.0f;
            for (int64_t p = 0; p < BLOCK; ++p) partial[at[p] & 0xffff] += parts[p];
        } else {
            for (int64_t p = 0; p < blocks[b].count; ++p)
                partial[at[p] & 0xffff] += weight * float(int32_t(at[p]) >> 16) + 0.0f;
        }
    }
}

bool untouched(float partial) {
    int32_t bits;
    std::memcpy(&bits, &partial, 4);
    return bits == std::numeric_limits<int32_t>::min();
}

// The rows of a range whose partial score and n · more are at least `least`, rising, or too many of them: more than `most`.
// `touched`: of those that something was added to.
FOR_EACH_CPU void reaching(const int32_t* lengths, const float* partial, int64_t count, float more, float least,
                           bool touched, int64_t most, std::vector<int32_t>& found) {
    found.clear();
    for (int64_t begin = 0; begin < count && int64_t(found.size()) <= most; begin += 64) {
        const int64_t end = std::min(begin + 64, count);
        int any = 0;
        for (int64_t j = begin; j < end; ++j) any |= partial[j] + float(lengths[j]) * more >= least;
        if (!any) continue;
        for (int64_t j = begin; j < end; ++j)
            if (partial[j] + float(lengths[j]) * more >= least && !(touched && untouched(partial[j])))
                found.push_back(int32_t(j));
    }
}

// Offers the items of a range by their partial scores.
FOR_EACH_CPU void lead(const float* partial, int64_t first, int64_t count, const Choice& choice, Best& best) {
    for (int64_t begin = 0; begin < count; begin += 64) {
        const int64_t end = std::min(begin + 64, count);
        const float bound = best.bound();
        int any = 0;
        for (int64_t j = begin; j < end; ++j) any |= partial[j] > bound;
        if (!any) continue;
        for (int64_t j = begin; j < end; ++j)
            if (partial[j] > best.bound() && choice(first + j)) best.offer({partial[j], first + j});
    }
}

float score_of(const Matrix& matrix, const float* user, int64_t row) {
    float total = 0;
    for (int64_t e = matrix.offsets[row]; e < matrix.offsets[row + 1]; ++e)
        total += matrix.values[e] * user[matrix.columns[e]];
    return total * matrix.gains[row] + 0.0f;  // -0 is +0
}

// Scores the items `first + rows[…]`.
void score(const Matrix& matrix, const float* user, int64_t first, const std::vector<int32_t>& rows, Best& best) {
    for (size_t i = 0; i < rows.size(); ++i) {
        if (i + AHEAD < rows.size()) {
            const int64_t row = first + rows[i + AHEAD], next = matrix.offsets[row];
            for (int64_t line = 0; line < matrix.lengths[row]; line += 16) {
                __builtin_prefetch(matrix.columns + next + line);
                __builtin_prefetch(matrix.values + next + line);
            }
        }
        best.offer({score_of(matrix, user, first + rows[i]), first + rows[i]});
    }
}

struct Counts {
    int64_t read = 0, scored = 0, rounds = 0;
};

// What rounding and what is not read can add for each live entry of an item.
struct Slack {
    double rounding, underflow;
    float beside(float least, bool all) const {
        return float(((all ? 0.0 : double(least)) + rounding) * 1.000001 + underflow);
    }
};

void exact(const Index& index, const Matrix& matrix, Query& query, const Choice& choice, const Slack& slack,
           float least, float* partial, const float* user, Best& best, Counts& counts) {
    std::vector<int32_t> found;
    const float smallest = least / (1 << 20);  // below it all is read
    int64_t zeros = 0;
    for (int64_t first = 0; first < matrix.items; first += RANGE) {
        const int64_t count = std::min(RANGE, matrix.items - first);
        std::fill(partial, partial + count, -0.0f);
        std::fill(query.read.begin(), query.read.end(), 0);
        int64_t read = 0, tries = 0;
        for (bool all = false;; least = least > smallest ? least / 2 : 0) {
            read += choose_blocks(index, query, first / RANGE, least, all);
            add_blocks(query.blocks, partial);
            ++tries;
            if (tries > 1 || best.heap.size() < best.k) {  // guesses, for a better bound
                Best leaders(int64_t(best.k));
                lead(partial, first, count, choice, leaders);
                found.clear();
                for (const Item& item : leaders.heap) found.push_back(int32_t(item.row - first));
                score(matrix, user, first, found, best);
                counts.scored += int64_t(found.size());
                for (int32_t row : found) partial[row] = NOTHING;  // is scored
            }
            const int64_t few = all ? count : (read / 2 + count / 4) / RESCORE;
            reaching(matrix.lengths + first, partial, count, slack.beside(least, all), best.bound(), all, few, found);
            if (int64_t(found.size()) <= few) {
                size_t kept = 0;
                for (int32_t row : found)
                    if (partial[row] != NOTHING && choice(first + row)) found[kept++] = row;
                found.resize(kept);
                score(matrix, user, first, found, best);
                counts.scored += int64_t(kept);
                // what shares no column has the score 0; of these only the first k can matter
                for (int64_t j = 0; all && best.bound() <= 0 && zeros < int64_t(best.k) && j < count; ++j)
                    if (untouched(partial[j]) && choice(first + j)) {
                        best.offer({0.0f, first + j});
                        ++zeros;
                    }
                if (tries == 1 && int64_t(kept) * RESCORE < read / 4) least *= 1.2f;
                least = std::max(least, smallest);
                break;
            }
        }
        counts.read += read;
        counts.rounds += tries;
    }
}

int64_t level_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7fffffff) >> 20;
}

// The least contribution of which at most `most` postings are.
float least_for(const Index& index, const Query& query, int64_t items, int64_t most) {
    std::vector<int64_t> counts(LEVELS);
    for (int64_t range = 0; range * RANGE < items; ++range)
        for (int64_t i = 0; i < query.count; ++i) {
            const int64_t list = range * index.dims + query.columns[i];
            const float size = std::fabs(query.weights[i]);
            for (int64_t b = index.block_ends[list]; b < index.block_ends[list + 1]; ++b)
                counts[level_of(size * float(index.tops[b]))] += BLOCK;
        }
    int64_t level = LEVELS, sum = 0;
    while (level > 0 && sum + counts[level - 1] <= most) sum += counts[--level];
    const int32_t bits = int32_t(level) << 20;
    float least;
    std::memcpy(&least, &bits, 4);
    return least;
}

void early(const Index& index, const Matrix& matrix, Query& query, const Choice& choice, float least, int64_t spare,
           float* partial, const float* user, Best& best, Counts& counts) {
    Best leaders(spare);
    for (int64_t first = 0; first < matrix.items; first += RANGE) {
        const int64_t count = std::min(RANGE, matrix.items - first);
        bool all;
        std::fill(partial, partial + count, -0.0f);
        std::fill(query.read.begin(), query.read.end(), 0);
        counts.read += choose_blocks(index, query, first / RANGE, least, all);
        add_blocks(query.blocks, partial);
        lead(partial, first, count, choice, leaders);
    }
    std::vector<int32_t> found;
    for (const Item& item : leaders.heap) found.push_back(int32_t(item.row));
    score(matrix, user, 0, found, best);
    counts.scored += int64_t(found.size());
    ++counts.rounds;
}

}  // namespace

extern "C" {

// `most`: postings that may be read, for an answer that may lack items; below 0: as many as an exact one takes.
// `spare`: of the former, items that are scored. `rounding`, `underflow`: of a partial score, for each live entry of an
// item: in parts of the largest contribution; in parts of the largest value of the user and of 1.
// `partial` [65 536] is scratch; `user` [D] is 0 before and after. `out_counts` [3]: postings read, items scored, rounds.
int64_t hse_top_by_impact(int64_t items, int64_t dims, int64_t k, int64_t most, int64_t spare, double rounding,
                          double underflow, const int64_t* ends, const uint32_t* postings, const int64_t* block_ends,
                          const uint16_t* tops, const float* scales, const int64_t* offsets, const int32_t* columns,
                          const float* values, const float* gains, const int32_t* lengths, int64_t count,
                          const int32_t* user_columns, const float* user_values, int64_t seen_count,
                          const int64_t* seen, const uint8_t* blocked, float* partial, float* user, int64_t* out_rows,
                          float* out_scores, int64_t* out_counts) {
    const Index index = {dims, ends, postings, block_ends, tops, scales};
    const Matrix matrix = {items, offsets, columns, values, gains, lengths};
    const Choice choice = {seen, seen + seen_count, blocked};
    Query query = {count, user_columns, std::vector<float>(count), std::vector<int64_t>(count), {}};
    double largest = 0, value = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double whole = double(user_values[i]) * scales[user_columns[i]];
        query.weights[i] = float(whole / 32767);
        largest = std::max(largest, std::fabs(whole));
        value = std::max(value, std::fabs(double(user_values[i])));
        user[user_columns[i]] = user_values[i];
    }
    Best best(k);
    Counts counts;
    if (most < 0) {
        const Slack slack = {rounding * largest, underflow * (1 + value)};
        exact(index, matrix, query, choice, slack, float(largest / 4), partial, user, best, counts);
    } else {
        const float least = least_for(index, query, items, most);
        early(index, matrix, query, choice, least, spare, partial, user, best, counts);
    }
    for (int64_t i = 0; i < count; ++i) user[user_columns[i]] = 0;
    std::sort(best.heap.begin(), best.heap.end(), better);
    for (int64_t i = 0; i < k; ++i) {
        const bool some = size_t(i) < best.heap.size();
        out_rows[i] = some ? best.heap[i].row : -1;
        out_scores[i] = some ? best.heap[i].score : NOTHING;
    }
    out_counts[0] = counts.read;
    out_counts[1] = counts.scored;
    out_counts[2] = counts.rounds;
    return 0;
}
}
