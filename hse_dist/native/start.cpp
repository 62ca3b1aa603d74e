// Counts of the local-inverse start: how many users, by weight, two items share. A row of the triangle is added up in an
// array as long as the catalogue, from the histories of the item's users; a history is ascending, so that what lies
// before the item in it is all that is read. Nothing but one row of counts is ever held.

#include <algorithm>
#include <cstdint>

namespace {

// X by users and by items; a user's history ascends.
struct Histories {
    const int64_t *offsets, *item_offsets;
    const int32_t *rows, *users, *weights;  // weights: of users, or null: all 1
};

// Weighted users that the item shares with each one before it; those with any are listed in `touched`.
int64_t add_row(const Histories& x, int64_t item, int32_t* shared, int32_t* touched) {
    int64_t count = 0;
    for (int64_t n = x.item_offsets[item]; n < x.item_offsets[item + 1]; ++n) {
        const int64_t user = x.users[n];
        const int32_t weight = x.weights ? x.weights[user] : 1;
        for (const int32_t* row = x.rows + x.offsets[user]; *row < item; ++row) {  // ends at the item itself
            if (shared[*row] == 0) touched[count++] = *row;
            shared[*row] += weight;
        }
    }
    return count;
}

void clear_row(int32_t* shared, const int32_t* touched, int64_t count) {
    for (int64_t n = 0; n < count; ++n) shared[touched[n]] = 0;
}

}  // namespace

extern "C" {

// The items of a block of owners, each with its owner, go to `owners` in the order of items; `cursors` move on.
int64_t hse_transpose(int64_t count, int64_t first, const int64_t* offsets, const int32_t* rows, int64_t* cursors,
                      int32_t* owners) {
    for (int64_t o = 0; o < count; ++o)
        for (int64_t n = offsets[o] - offsets[0]; n < offsets[o + 1] - offsets[0]; ++n)
            owners[cursors[rows[n]]++] = int32_t(first + o);
    return 0;
}

// Of each item first … last − 1 the `size` items before it with the largest shared / diagonal, ascending, and then the
// item itself; ties go to the lower one. `shared` and `touched` have room for the catalogue, `shared` is zero; `out` has
// room for (size + 1) · items.
int64_t hse_neighbours(int64_t first, int64_t last, const int64_t* offsets, const int32_t* rows, const int32_t* weights,
                       const int64_t* item_offsets, const int32_t* users, const double* diagonal, int64_t size,
                       int32_t* shared, int32_t* touched, int32_t* out, int64_t* lengths) {
    const Histories x{offsets, item_offsets, rows, users, weights};
    int64_t filled = 0;
    for (int64_t item = first; item < last; ++item) {
        const int64_t count = add_row(x, item, shared, touched), kept = std::min(count, size);
        if (kept < count)
            std::nth_element(touched, touched + kept, touched + count, [&](int32_t a, int32_t b) {
                const double left = shared[a] / diagonal[a], right = shared[b] / diagonal[b];
                return left != right ? left > right : a < b;
            });
        std::copy(touched, touched + kept, out + filled);
        std::sort(out + filled, out + filled + kept);
        clear_row(shared, touched, count);
        out[filled + kept] = int32_t(item);
        filled += kept + 1;
        lengths[item - first] = kept + 1;
    }
    return filled;
}

// Rows of the triangle from `first` on, as many as fit into `capacity` pairs; returns how many. With patterns (ascending
// columns from pattern_offsets on, and by item the patterns that hold it), only pairs that lie together in one. `seen`
// has room for the catalogue and is zero.
int64_t hse_pairs(int64_t first, int64_t last, const int64_t* offsets, const int32_t* rows, const int32_t* weights,
                  const int64_t* item_offsets, const int32_t* users, const int64_t* pattern_offsets,
                  const int32_t* patterns, const int64_t* holder_offsets, const int32_t* holders, int32_t* shared,
                  int32_t* touched, uint8_t* seen, int64_t capacity, int32_t* out_columns, int32_t* out_shared,
                  int64_t* lengths) {
    const Histories x{offsets, item_offsets, rows, users, weights};
    int64_t filled = 0;
    for (int64_t item = first; item < last; ++item) {
        const auto mark = [&](uint8_t value) {
            for (int64_t h = holder_offsets[item]; h < holder_offsets[item + 1]; ++h)
                for (const int32_t* row = patterns + pattern_offsets[holders[h]]; *row < item; ++row)
                    seen[*row] = value;  // ends at the item itself
        };
        const int64_t count = add_row(x, item, shared, touched);
        if (patterns) mark(1);
        const int64_t kept =
            patterns ? std::partition(touched, touched + count, [&](int32_t row) { return seen[row] != 0; }) - touched
                     : count;
        const bool fits = filled + kept <= capacity;
        if (fits) {
            std::sort(touched, touched + kept);
            for (int64_t n = 0; n < kept; ++n) {
                out_columns[filled + n] = touched[n];
                out_shared[filled + n] = shared[touched[n]];
            }
            filled += kept;
            lengths[item - first] = kept;
        }
        clear_row(shared, touched, count);
        if (patterns) mark(0);
        if (!fits) return item - first;
    }
    return last - first;
}

// The strict lower triangle of each pattern: members [count, width] ascending, `sizes` of them; shared [count, width,
// width] is zero. A member is looked for from where the one before it was found.
int64_t hse_look_up(int64_t count, int64_t width, const int64_t* members, const int64_t* sizes, const int64_t* offsets,
                    const int32_t* columns, const int32_t* found, int32_t* shared) {
    for (int64_t p = 0; p < count; ++p)
        for (int64_t r = 1; r < sizes[p]; ++r) {
            const int64_t* own = members + p * width;
            const int32_t *at = columns + offsets[own[r]], *end = columns + offsets[own[r] + 1];
            int32_t* out = shared + (p * width + r) * width;
            for (int64_t c = 0; c < r && at != end; ++c) {
                int64_t step = 1;
                const int32_t wanted = int32_t(own[c]);
                const int32_t* low = at;
                while (end - low > step && low[step] < wanted) low += step, step *= 2;
                at = std::lower_bound(low, std::min(low + step + 1, end), wanted);
                if (at != end && *at == wanted) out[c] = found[at - columns];
            }
        }
    return 0;
}
}
