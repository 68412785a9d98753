// Compares the attention of one instruction set with the scalar version, without Python: for processors that are
// emulated, and for sanitizers. Compiled with PIO_ISA and its flags, beside attention_plan.cpp and
// scalar/attention.cpp. Prints the largest difference of each case; exits with 1 if one is beyond its bound.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../native/scalar/scalar.h"
#include "../../native/vector/attention.h"

namespace {

struct Case {
    int32_t heads, kv_heads, head_size, pairs, interleaved, window, page_size;
    float softcap;
    bool norms, sinks;
    int32_t sequences;
    int32_t lengths[3];  // tokens before the step
    int32_t rows[3];     // of the step
};

constexpr Case kCases[] = {
    {9, 3, 64, 32, 0, 0, 16, 0.0f, false, false, 3, {0, 300, 1100}, {1, 1, 1}},
    {9, 3, 64, 32, 0, 0, 32, 0.0f, false, false, 2, {0, 45, 0}, {70, 33, 0}},
    {4, 2, 72, 4, 1, 40, 16, 20.0f, true, true, 3, {64, 0, 15}, {17, 3, 1}},
    {16, 1, 8, 0, 0, 0, 64, 0.0f, false, true, 1, {600, 0, 0}, {2, 0, 0}},
    {4, 4, 128, 64, 0, 128, 16, 0.0f, true, false, 2, {130, 0, 0}, {1, 65, 0}},
};

uint32_t state = 1;

float random_number() {  // in [-2, 2)
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 4194304.0f - 2.0f;
}

float* random_array(int64_t n) {
    auto* array = static_cast<float*>(malloc(n * sizeof(float)));
    for (int64_t i = 0; i < n; i++) array[i] = random_number();
    return array;
}

using WriteKV = void (*)(const pio::AttentionTask&, int32_t, int32_t);
using Attend = void (*)(const pio::AttentionTask&, const pio::AttentionItem&, const pio::AttentionItem*, uint8_t*, float*);
using Merge = void (*)(const pio::AttentionTask&, const pio::AttentionItem&, const float*);

// Writes `history` and `qkv`, then attends with the rows of `qkv`.
struct Version {
    WriteKV write_kv;
    Attend attend;
    Merge merge;

    void write(pio::AttentionTask& task, const float* rows, Batch& batch) const {
        const int64_t bytes = batch.num_tokens * task.qkv_stride * sizeof(float);
        task.qkv = static_cast<float*>(malloc(bytes));
        memcpy(task.qkv, rows, bytes);
        task.batch = &batch;
        for (int32_t row = 0; row < batch.num_tokens; row++) {
            for (int32_t head = 0; head < task.op->kv_heads; head++) write_kv(task, row, head);
        }
    }

    void run(pio::AttentionTask& task) const {
        const AttentionOp& op = *task.op;
        constexpr int32_t kThreads = 3;
        const int32_t capacity = task.batch->num_tokens * op.kv_heads + pio::attention_partials(kThreads);
        auto* items = static_cast<pio::AttentionItem*>(malloc(capacity * sizeof(pio::AttentionItem)));
        const int32_t count = pio::plan_attention(op, *task.batch, kThreads, items, capacity);
        auto* scratch = static_cast<uint8_t*>(malloc(pio::attention_scratch(op, *op.cache)));
        auto* partials =
            static_cast<float*>(malloc(pio::attention_partials(kThreads) * pio::attention_partial(op) * sizeof(float)));
        for (int32_t i = 0; i < count; i++) {
            attend(task, items[i], i + 1 < count ? &items[i + 1] : nullptr, scratch, partials);
        }
        for (int32_t i = 0; i < count; i++) {
            if (items[i].parts > 1) merge(task, items[i], partials);
        }
        free(partials);
        free(scratch);
        free(items);
    }
};

// Rows [begin_b, end_b) of each sequence b as a batch; page p of sequence b is page 3 p + b of the cache.
struct Step {
    Batch batch{};
    GroupTables tables{};
    int64_t positions[2048];
    int64_t slots[2048];
    int32_t starts[4] = {};
    int32_t ends[3];
    int32_t pages[3][128];

    Step(const Case& c, bool history) {
        for (int32_t b = 0; b < c.sequences; b++) {
            const int32_t begin = history ? 0 : c.lengths[b];
            ends[b] = history ? c.lengths[b] : c.lengths[b] + c.rows[b];
            starts[b + 1] = starts[b] + ends[b] - begin;
            for (int32_t p = 0; p < 128; p++) pages[b][p] = 3 * p + b;
            for (int32_t t = begin; t < ends[b]; t++) {
                const int32_t row = starts[b] + t - begin;
                positions[row] = t;
                slots[row] = static_cast<int64_t>(pages[b][t / c.page_size]) * c.page_size + t % c.page_size;
            }
        }
        tables = {&pages[0][0], 128, slots};
        batch.num_tokens = starts[c.sequences];
        batch.num_sequences = c.sequences;
        batch.num_groups = 1;
        batch.positions = positions;
        batch.query_starts = starts;
        batch.sequence_lengths = ends;
        batch.groups = &tables;
    }
};

float compare(const Case& c, uint32_t format) {
    const int32_t width = (c.heads + 2 * c.kv_heads) * c.head_size;
    Step history(c, true);
    Step step(c, false);
    float* history_rows = random_array(static_cast<int64_t>(history.batch.num_tokens) * width + 1);
    float* rows = random_array(static_cast<int64_t>(step.batch.num_tokens) * width);
    float* rotary = random_array(2048LL * 2 * c.pairs + 1);
    // Not of length one each, but on average: how rotations differ does not matter here.
    for (int64_t i = 0; i < 2048LL * 2 * c.pairs; i++) rotary[i] *= 0.6f;
    float* weights = random_array(2LL * c.head_size);
    float* sinks = random_array(c.heads);
    const int64_t page_bytes = pio_page_bytes(format, c.page_size, c.kv_heads, c.head_size);
    const int64_t outputs = static_cast<int64_t>(step.batch.num_tokens) * c.heads * c.head_size;
    constexpr Version kVersions[2] = {{pio::scalar::write_kv, pio::scalar::attend, pio::scalar::merge},
                                      {pio::PIO_ISA::write_kv, pio::PIO_ISA::attend, pio::PIO_ISA::merge}};
    float* results[2];
    for (int v = 0; v < 2; v++) {
        auto* pages = static_cast<uint8_t*>(malloc(page_bytes * 384));
        memset(pages, 0xff, page_bytes * 384);
        const LayerCache cache = {pages, page_bytes, format, 0, c.page_size, 0};
        AttentionOp op{};
        op.heads = c.heads;
        op.kv_heads = c.kv_heads;
        op.head_size = c.head_size;
        op.pairs = c.pairs;
        op.interleaved = c.interleaved;
        op.window = c.window;
        op.scale = 1.0f / __builtin_sqrtf(static_cast<float>(c.head_size));
        op.softcap = c.softcap;
        if (c.norms) op.query_norm = op.key_norm = {weights, 1e-5f, 1.0f};
        op.sinks = c.sinks ? sinks : nullptr;
        op.cache = &cache;
        pio::AttentionTask task{};
        task.op = &op;
        task.qkv_stride = width;
        task.rotary = c.pairs > 0 ? rotary : nullptr;
        task.out = results[v] = static_cast<float*>(malloc(outputs * sizeof(float)));
        task.out_stride = c.heads * c.head_size;
        kVersions[v].write(task, history_rows, history.batch);
        free(task.qkv);
        kVersions[v].write(task, rows, step.batch);
        kVersions[v].run(task);
        free(task.qkv);
        free(pages);
    }
    float largest = 0.0f;
    for (int64_t i = 0; i < outputs; i++) {
        const float difference = __builtin_fabsf(results[0][i] - results[1][i]);
        largest = difference <= largest ? largest : difference;  // a NaN is kept
    }
    void* const arrays[] = {history_rows, rows, rotary, weights, sinks, results[0], results[1]};
    for (void* array : arrays) free(array);
    return largest;
}

}  // namespace

int main() {
    // Of values up to 2, by KVFormat. Keys and values may round to either of two neighbours in the cache's format,
    // which matters less than products of bfloat16.
#if defined(__AVX512BF16__)
    constexpr float kBounds[4] = {5e-2f, 5e-2f, 5e-2f, 2e-5f};
#else
    constexpr float kBounds[4] = {2e-4f, 2e-4f, 2e-4f, 2e-5f};
#endif
    bool good = true;
    for (const Case& c : kCases) {
        for (uint32_t format = 0; format < 4; format++) {
            const float difference = compare(c, format);
            printf("head size %d, format %u: %g\n", c.head_size, format, static_cast<double>(difference));
            good = good && difference <= kBounds[format];
        }
    }
    return good ? 0 : 1;
}
