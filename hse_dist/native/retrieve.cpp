// The best items of users, exact: scores and top k in one sweep, so that scores of users × items exist nowhere.
//
// A score is a sum over the user's columns in rising order, each product rounded before it is added, times the item's
// gain: the very numbers of the plain path (SciPy's products), whichever of the two ways below is taken. So products
// and sums must not be fused, which the pragma forbids for this file.
//
// Shapes: B users, W lanes of a block of them, D columns, k items asked for.
#pragma GCC optimize("fp-contract=off")

#include "vectors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr int64_t ITEMS = 64;  // scored before their largest score is compared with what is kept

struct Users {
    int64_t count;
    const int64_t* offsets;  // [B + 1] live entries of a user
    const int32_t* columns;  // rising within a user
    const float* values;
    const int64_t* histories;  // [B + 1]
    const int64_t* seen;       // rows of a history, rising: never an answer
    const uint8_t* blocked;    // [items], not 0: no answer for any user; may be null
};

struct Item {
    float score;
    int64_t row;
};

// Better first: by score, equal scores by row.
bool better(const Item& a, const Item& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

// The best k of the items offered so far; they come in rising order of rows.
struct Best {
    std::vector<Item> heap;  // the worst on top
    size_t k;
    const int64_t *seen, *seen_end;
    const uint8_t* blocked;
    float bound;  // a score must be larger to get in

    void reset(const Users& users, int64_t user, int64_t most) {
        heap.clear();
        k = size_t(most);
        bound = NOTHING;
        seen = users.seen + users.histories[user];
        seen_end = users.seen + users.histories[user + 1];
        blocked = users.blocked;
    }

    void offer(float score, int64_t row) {
        if (!(score > bound) || (blocked && blocked[row]) || std::binary_search(seen, seen_end, row)) return;
        if (heap.size() == k) {
            std::pop_heap(heap.begin(), heap.end(), better);
            heap.pop_back();
        }
        heap.push_back({score + 0.0f, row});  // -0 is +0
        std::push_heap(heap.begin(), heap.end(), better);
        if (heap.size() == k) bound = heap.front().score;
    }
};

void write(std::vector<Item>& found, int64_t k, int64_t* rows, float* scores) {
    std::sort(found.begin(), found.end(), better);
    for (int64_t i = 0; i < k; ++i) {
        const bool some = size_t(i) < found.size();
        rows[i] = some ? found[i].row : -1;
        scores[i] = some ? found[i].score : NOTHING;
    }
}

// `work(0)` … `work(threads - 1)` at once.
template <class Work>
void spread(int64_t threads, const Work& work) {
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (auto& thread : others) thread.join();
}

struct Items {
    int64_t count;
    const int64_t* offsets;  // [items + 1]
    const int32_t* columns;  // rising within an item
    const float* values;
    const float* gains;
};

// Users side by side in [D, W]: every entry of the items is read once for W of them.
template <int V>
static inline __attribute__((always_inline)) void score_range(const Items& items, const float* user, int64_t first,
                                                              int64_t last, int64_t lanes, Best* best) {
    constexpr int64_t W = V * LANES;
    alignas(64) float scores[ITEMS * W];
    for (int64_t begin = first; begin < last; begin += ITEMS) {
        const int64_t end = std::min(begin + ITEMS, last);
        float16v largest[V];
        for (int i = 0; i < V; ++i) largest[i] = float16v{} + NOTHING;
        for (int64_t j = begin; j < end; ++j) {
            float16v total[V] = {};
            for (int64_t e = items.offsets[j]; e < items.offsets[j + 1]; ++e) {
                const float16v* at = (const float16v*)(user + int64_t(items.columns[e]) * W);
                for (int i = 0; i < V; ++i) total[i] += items.values[e] * at[i];
            }
            float16v* out = (float16v*)(scores + (j - begin) * W);
            for (int i = 0; i < V; ++i) {
                out[i] = total[i] * items.gains[j];
                largest[i] = out[i] > largest[i] ? out[i] : largest[i];
            }
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            if (!(((const float*)largest)[lane] > best[lane].bound)) continue;
            for (int64_t j = begin; j < end; ++j) best[lane].offer(scores[(j - begin) * W + lane], j);
        }
    }
}

FOR_EACH_CPU void score_range32(const Items& items, const float* user, int64_t first, int64_t last, int64_t lanes,
                                Best* best) {
    score_range<2>(items, user, first, last, lanes, best);
}

// A column's items get their part of one user's scores.
FOR_EACH_CPU void add_columns(const Users& users, int64_t user, const int64_t* ends, const int32_t* rows,
                              const float* values, float* scores) {
    for (int64_t e = users.offsets[user]; e < users.offsets[user + 1]; ++e) {
        const float weight = users.values[e];
        for (int64_t n = ends[users.columns[e]]; n < ends[users.columns[e] + 1]; ++n)
            scores[rows[n]] += weight * values[n];
    }
}

FOR_EACH_CPU void best_of(const float* scores, const float* gains, int64_t items, Best& best) {
    float products[ITEMS];
    for (int64_t begin = 0; begin < items; begin += ITEMS) {
        const int64_t count = std::min(ITEMS, items - begin);
        bool any = false;
        for (int64_t j = 0; j < count; ++j) {
            products[j] = scores[begin + j] * gains[begin + j];
            any |= products[j] > best.bound;
        }
        if (!any) continue;
        for (int64_t j = 0; j < count; ++j) best.offer(products[j], begin + j);
    }
}

}  // namespace

extern "C" {

// By items: a user's vector is looked up for every entry of every item. For users that have many columns.
// `space` has D · 32 floats, at a multiple of 64 bytes; `out_rows` and `out_scores` are [B, k].
int64_t hse_top_by_items(int64_t items, int64_t dims, int64_t count, int64_t k, int64_t threads,
                         const int64_t* offsets, const int32_t* columns, const float* values, const float* gains,
                         const int64_t* user_offsets, const int32_t* user_columns, const float* user_values,
                         const int64_t* histories, const int64_t* seen, const uint8_t* blocked, float* space,
                         int64_t* out_rows, float* out_scores) {
    constexpr int64_t W = 32;
    const Items all = {items, offsets, columns, values, gains};
    const Users users = {count, user_offsets, user_columns, user_values, histories, seen, blocked};
    std::vector<Best> best(threads * W);
    for (int64_t first = 0; first < count; first += W) {
        const int64_t lanes = std::min(W, count - first);
        std::memset(space, 0, sizeof(float) * dims * W);
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int64_t e = user_offsets[first + lane]; e < user_offsets[first + lane + 1]; ++e)
                space[int64_t(user_columns[e]) * W + lane] = user_values[e];
        spread(threads, [&](int64_t t) {
            for (int64_t lane = 0; lane < lanes; ++lane) best[t * W + lane].reset(users, first + lane, k);
            score_range32(all, space, items * t / threads, items * (t + 1) / threads, lanes, &best[t * W]);
        });
        for (int64_t lane = 0; lane < lanes; ++lane) {
            std::vector<Item>& found = best[lane].heap;
            for (int64_t t = 1; t < threads; ++t)
                found.insert(found.end(), best[t * W + lane].heap.begin(), best[t * W + lane].heap.end());
            write(found, k, out_rows + (first + lane) * k, out_scores + (first + lane) * k);
        }
    }
    return 0;
}

// By columns: only the entries of the items that share a column with the user are read. For users that have few.
// `space` has threads · items floats.
int64_t hse_top_by_columns(int64_t items, int64_t count, int64_t k, int64_t threads, const int64_t* column_ends,
                           const int32_t* rows, const float* values, const float* gains, const int64_t* user_offsets,
                           const int32_t* user_columns, const float* user_values, const int64_t* histories,
                           const int64_t* seen, const uint8_t* blocked, float* space, int64_t* out_rows,
                           float* out_scores) {
    const Users users = {count, user_offsets, user_columns, user_values, histories, seen, blocked};
    spread(threads, [&](int64_t t) {
        Best best;
        float* scores = space + t * items;
        for (int64_t user = t; user < count; user += threads) {
            std::memset(scores, 0, sizeof(float) * items);
            add_columns(users, user, column_ends, rows, values, scores);
            best.reset(users, user, k);
            best_of(scores, gains, items, best);
            write(best.heap, k, out_rows + user * k, out_scores + user * k);
        }
    });
    return 0;
}
}
