// The kernels of one instruction set, as a table. The runtime decides what is computed and by which thread; a kernel
// computes it. `scalar/` says what each kernel computes; the others agree with it within rounding.
#pragma once

#include "program.h"

namespace pio {

// 32 inputs of a row as int8: x = scale * values, scale = max |x| / 127. What a product with one block of weights needs
// lies together.
//
// An input that is more than kOutlierRatio times as large as any other of its block would leave these few steps. With
// kRowsOutliers it is kept apart, exactly, and its value is 0 (Dettmers et al. 2022, arXiv:2208.07339, do so with whole
// columns). A block with an infinity or a NaN is zero, and its outlier NaN, so that what is wrong reaches the logits.
struct QuantBlock {
    int8_t values[32];
    float scale;
    int16_t sums[2];   // of the values of either half
    int32_t zero_sum;  // -128 times the sum of all: what products with weights of zero point 128 start from
    int16_t pair[2];   // of a block with an even number: sums of its inputs and of the next block's, see Rows::sum_steps
};

struct Outlier {
    int32_t input;  // its column
    float value;
};

constexpr float kOutlierRatio = 2.5f;

// Rows that a product takes at once, at most.
constexpr int kMostRowsAtOnce = 8;

// What several rows keep apart of one column; 0 of a row that keeps nothing there.
struct OutlierColumn {
    int32_t input;
    float values[kMostRowsAtOnce];
};

// Rows of activations as the products read them, each prepared only if some segment wants it. Rows are padded with zeros
// to whole tiles: `stride` numbers per row.
struct Rows {
    int32_t count;
    int32_t columns;
    int32_t stride;      // columns, rounded up to 32
    QuantBlock* blocks;  // (count, stride / 32)
    Outlier* outliers;   // (count, stride / 32): those of a row one after the other, at most one of each block
    int32_t* num_outliers;  // (count,)
    uint16_t* bf16;      // (count, stride), rounded to nearest even
    float* f32;          // (count, stride)

    // The outliers of rows that are taken together, those of a group from its first row on; or null if there are no groups.
    OutlierColumn* outlier_columns;  // (count, stride / 32)
    int32_t* num_outlier_columns;    // (count,)

    // Sums of the inputs of a block as they are kept, outliers left out, are what minima of weights are multiplied with:
    // QuantBlock::pair has them as multiples of a step of the row's, which is the largest magnitude by most_rounded_sum.
    float* block_sums;  // (count, stride / 32)
    float* sum_steps;   // (count,)
};

// What the magnitudes of a row's rounded sums may be: multiplied with minima in steps, they must not leave int32.
static constexpr int32_t most_rounded_sum(int32_t blocks) {
    const int32_t fitting = INT32_MAX / kMinimumSteps / (blocks > 0 ? blocks : 1);
    return fitting < INT16_MAX ? fitting : INT16_MAX;
}

// Representations of rows. kRowsOutliers is for kRowsI8, and alone nothing.
enum RowsKind : uint32_t { kRowsI8 = 1, kRowsBF16 = 2, kRowsF32 = 4, kRowsOutliers = 8 };

// One product: outputs of strips [first_strip, last_strip) for rows [0, rows).
struct LinearTask {
    const Segment* weights;
    const Segment* up;  // second factor of kGated, else null
    const Rows* x;
    int32_t rows;
    const int32_t* in_rows;   // (rows,): row of `x` that each comes from, or null for the same
    const int32_t* out_rows;  // (rows,): row of `y` that each goes to, or null for the same
    const float* row_scales;  // (rows,): factor of each row beside `scale`, or null
    float* y;                 // + out_column of the segment, + 16 * strip
    int64_t y_stride;
    uint32_t epilogue;
    uint32_t activation;
    float scale;
};

// What the products with a matrix of kTileQ8Split lie between, as the upper six bits of its quants tell; see screen.h.
struct ScreenTask {
    const Segment* weights;  // without bias
    const Rows* x;
    const float* slack;  // (rows, stride / 32), of each block
    int32_t rows;
    float* at_least;  // (rows, strips): what the largest output of a strip reaches in any case
    float* at_most;   // (rows, strips): what no output of it exceeds; infinity where nothing is known
    int32_t strips;   // of the whole matrix
};

// What the attention of one layer reads and writes in a step.
struct AttentionTask {
    const AttentionOp* op;
    const Batch* batch;
    float* qkv;
    int64_t qkv_stride;
    const float* rotary;  // (N, 2 pairs): cos, then sin; null for none
    float* out;
    int64_t out_stride;
};

// Queries [row_begin, row_end) of one sequence, in rows of the step, for one KV head and its H / K query heads, over keys
// at positions [key_begin, key_end) of that sequence. If the keys of these queries are split over several items, each
// leaves a partial result to be merged: `partial` is its number, else -1.
struct AttentionItem {
    int32_t sequence;
    int32_t kv_head;
    int32_t row_begin;
    int32_t row_end;
    int32_t key_begin;
    int32_t key_end;
    int32_t partial;
    int32_t parts;  // of the first of several items: how many there are; 0 of the others; 1 if not split
};

struct Kernels {
    const char* name;

    // y = norm(x), (columns,)
    void (*norm)(const float* x, const Norm& norm, int32_t columns, float* y);
    // Fills row `row` of `out` in the representations `kinds` (RowsKind) from x (out.columns,).
    void (*prepare)(const float* x, uint32_t kinds, int32_t row, Rows& out);
    // Groups rows [first, last) as `linear` takes them: `rows_at_once` together, then half as many, and so on for those left.
    // `first` is a multiple of `rows_at_once`, and so is `last` but for the last row of all.
    void (*group_outliers)(Rows& rows, int32_t first, int32_t last);
    // y = scale * row `row` of a packed matrix, (columns,)
    void (*embed)(const Segment& table, int64_t row, float scale, float* y);
    void (*linear)(const LinearTask& task, int32_t first_strip, int32_t last_strip);
    // Bounds of the outputs of strips [first_strip, last_strip)
    void (*screen)(const ScreenTask& task, int32_t first_strip, int32_t last_strip);
    // y = scale * y, then the soft cap, over n numbers
    void (*finish_logits)(float* y, int64_t n, float scale, float softcap);

    // Norms and turns the query heads of one KV head in place, norms and turns its key, writes key and value to the cache;
    // for row `row` of the step.
    void (*write_kv)(const AttentionTask& task, int32_t row, int32_t kv_head);
    // Attends for one item; `scratch` is of `attention_scratch` bytes. Partial results go to `partials`. `following`, or
    // null, is the item whose keys and values may be fetched into the caches meanwhile.
    void (*attend)(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch,
                   float* partials);
    // Merges item.parts partial results from item.partial on into the output.
    void (*merge)(const AttentionTask& task, const AttentionItem& item, const float* partials);

    // See Sampling; draws number `draw`. `scratch` holds 2 V floats.
    int64_t (*sample)(const float* logits, const Sampling& sampling, int32_t draw, float* scratch);

    // Rows that `linear` takes at once, at most kMostRowsAtOnce: a power of two.
    int32_t rows_at_once;
};

// The kernels of instruction set `isa`, an index of pio_isa_name; null unless pio_isa_usable.
const Kernels* kernels_of(int32_t isa);

// The tables; null where this build has none. Each but the first is in a file that is compiled for processors which may
// not be at hand, so that nothing else may be defined or called there.
const Kernels* scalar_kernels();
const Kernels* neon_kernels();
const Kernels* avx2_kernels();
const Kernels* avx2_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();

// --- Attention's plan (attention_plan.cpp), which no instruction set changes ---

// Splits the attention of a step over `threads` threads; the same items serve every layer of a group.
// Returns their number, at most N K + attention_partials(threads); at most `capacity` are written.
int32_t plan_attention(const AttentionOp& op, const Batch& batch, int32_t threads, AttentionItem* items,
                       int32_t capacity);
// Bytes of scratch per thread that `attend` needs; floats that one partial result takes.
int64_t attention_scratch(const AttentionOp& op, const LayerCache& cache);
int64_t attention_partial(const AttentionOp& op);
// Partial results that a plan has at most.
int32_t attention_partials(int32_t threads);

}  // namespace pio
