// The outliers of rows that a product takes together, sorted by columns: each column's weights are unpacked once for all.
#pragma once

#include "kernels.h"

namespace pio {
namespace {

// Merges the outliers of rows [row, row + size), which come in order of their columns.
inline void merge_outliers(Rows& rows, int32_t row, int32_t size) {
    const int64_t blocks = rows.stride / kTileInputs;
    OutlierColumn* const begin = rows.outlier_columns + row * blocks;
    OutlierColumn* column = begin;
    int32_t next[kMostRowsAtOnce] = {};
    for (;; ++column) {
        int32_t input = INT32_MAX;
        for (int32_t m = 0; m < size; ++m) {
            if (next[m] == rows.num_outliers[row + m]) continue;
            const int32_t candidate = rows.outliers[(row + m) * blocks + next[m]].input;
            input = candidate < input ? candidate : input;
        }
        if (input == INT32_MAX) break;
        column->input = input;
        for (int32_t m = 0; m < size; ++m) {
            column->values[m] = 0.0f;
            if (next[m] == rows.num_outliers[row + m]) continue;
            const Outlier& candidate = rows.outliers[(row + m) * blocks + next[m]];
            if (candidate.input != input) continue;
            column->values[m] = candidate.value;
            ++next[m];
        }
    }
    rows.num_outlier_columns[row] = static_cast<int32_t>(column - begin);
}

// Kernels::group_outliers for products that take AtOnce rows.
template <int AtOnce>
void group_outliers(Rows& rows, int32_t first, int32_t last) {
    static_assert(AtOnce <= kMostRowsAtOnce);
    for (int32_t size = AtOnce; first < last; first += size) {
        while (first + size > last) size /= 2;
        merge_outliers(rows, first, size);
    }
}

}  // namespace
}  // namespace pio
