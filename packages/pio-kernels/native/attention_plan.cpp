// Divides the attention of a step into items of similar cost, the dearest first, for threads that take one after the
// other.
#include "attention_layout.h"

namespace pio {

namespace {

constexpr int32_t kMinQueries = 24;   // query vectors below which a block of rows is not cut for the sake of threads
constexpr int32_t kMinSplitKeys = 256;  // keys below which merging costs more than it wins
constexpr int32_t kItemsPerThread = 3;  // that a step should have at least
constexpr int32_t kFineItems = 16;      // per thread: so small that any order will do
constexpr int32_t kPartialsPerThread = 8;  // at most; equal shares need about two for each of kItemsPerThread
constexpr int32_t kKeyCost = 4;         // what reading a key costs, in products with a query vector

// Rows [row_begin, row_end) of a sequence and the keys that any of them sees.
struct Block {
    int32_t sequence;
    int32_t row_begin;
    int32_t row_end;
    int32_t key_begin;  // rounded down to a block of keys
    int32_t key_end;
};

int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
int32_t round_up(int64_t x, int32_t unit) { return static_cast<int32_t>((x + unit - 1) / unit * unit); }

Block block_of(const AttentionOp& op, const Batch& batch, int32_t sequence, int32_t row_begin, int32_t row_end) {
    const int64_t first = batch.positions[row_begin];
    const int64_t last = batch.positions[row_end - 1];
    const int64_t oldest = op.window > 0 && first >= op.window ? first - op.window + 1 : 0;
    return {sequence, row_begin, row_end, static_cast<int32_t>(oldest / kKeyBlock * kKeyBlock),
            static_cast<int32_t>(last + 1)};
}

int64_t cost_of(int32_t queries, int64_t keys) { return (queries + kKeyCost) * keys; }

// Calls visit(block) for the blocks of at most `rows` rows, sequence after sequence.
template <class Visit>
void for_each_block(const AttentionOp& op, const Batch& batch, int32_t rows, Visit visit) {
    for (int32_t b = 0; b < batch.num_sequences; b++) {
        const int32_t end = batch.query_starts[b + 1];
        for (int32_t row = batch.query_starts[b]; row < end; row += rows) {
            visit(block_of(op, batch, b, row, smaller(row + rows, end)));
        }
    }
}

// Rows per block: as many as fit an item, fewer if there would be less than kItemsPerThread items per thread.
int32_t rows_per_block(const AttentionOp& op, const Batch& batch, int32_t threads) {
    const int32_t group = group_size(op);
    int32_t rows = max_queries(op) / group;
    while (threads > 1 && rows / 2 * group >= kMinQueries) {
        int64_t items = 0;
        for_each_block(op, batch, rows, [&](const Block&) { items += op.kv_heads; });
        if (items >= static_cast<int64_t>(kItemsPerThread) * threads) break;
        rows /= 2;
    }
    return rows;
}

// Keys per item of a block: all of them, or a part of equal size in whole pages if the block costs more than `share`.
int32_t keys_per_item(const Block& block, int32_t queries, int64_t share, int32_t page_size) {
    const int32_t keys = block.key_end - block.key_begin;
    const int64_t cost = cost_of(queries, keys);
    if (cost <= share || keys < 2 * kMinSplitKeys) return keys;
    const int64_t parts = smaller(static_cast<int32_t>((cost + share - 1) / share), keys / kMinSplitKeys);
    return round_up((keys + parts - 1) / parts, page_size);
}

int64_t cost_of(const AttentionOp& op, const AttentionItem& item) {
    return cost_of((item.row_end - item.row_begin) * group_size(op), item.key_end - item.key_begin);
}

// Sorts by falling cost: a heap whose root is the cheapest, taken off to the end.
void sort_by_cost(const AttentionOp& op, AttentionItem* items, int32_t count) {
    const auto sink = [&](int32_t parent, int32_t end) {
        for (int32_t child = 2 * parent + 1; child < end; parent = child, child = 2 * parent + 1) {
            if (child + 1 < end && cost_of(op, items[child + 1]) < cost_of(op, items[child])) child++;
            if (cost_of(op, items[parent]) <= cost_of(op, items[child])) return;
            const AttentionItem moved = items[parent];
            items[parent] = items[child];
            items[child] = moved;
        }
    };
    for (int32_t parent = count / 2 - 1; parent >= 0; parent--) sink(parent, count);
    for (int32_t end = count - 1; end > 0; end--) {
        const AttentionItem cheapest = items[0];
        items[0] = items[end];
        items[end] = cheapest;
        sink(0, end);
    }
}

}  // namespace

int32_t plan_attention(const AttentionOp& op, const Batch& batch, int32_t threads, AttentionItem* items,
                       int32_t capacity) {
    const int32_t group = group_size(op);
    const int32_t page_size = op.cache->page_size;
    const int32_t rows = rows_per_block(op, batch, threads);
    int64_t total = 0;
    for_each_block(op, batch, rows, [&](const Block& block) {
        const int32_t queries = (block.row_end - block.row_begin) * group;
        total += op.kv_heads * cost_of(queries, block.key_end - block.key_begin);
    });
    // One thread has nothing to share; else no item may cost more than the share of one of kItemsPerThread per thread.
    const int64_t share = threads > 1 ? total / (static_cast<int64_t>(kItemsPerThread) * threads) + 1 : total;

    int32_t count = 0;
    int32_t partials = 0;
    int64_t dearest = 0;
    for_each_block(op, batch, rows, [&](const Block& block) {
        const int32_t queries = (block.row_end - block.row_begin) * group;
        const int32_t keys = keys_per_item(block, queries, share, page_size);
        // Parts end on pages; a window's first part may begin inside of one.
        const int32_t base = block.key_begin / page_size * page_size;
        const int32_t pieces = (block.key_end - base + keys - 1) / keys;
        const bool split = keys < block.key_end - block.key_begin &&
                           partials + pieces * op.kv_heads <= attention_partials(threads);
        const int32_t parts = split ? pieces : 1;
        for (int32_t head = 0; head < op.kv_heads; head++) {
            for (int32_t part = 0; part < parts; part++) {
                const int32_t begin = part == 0 ? block.key_begin : base + part * keys;
                const int32_t end = part + 1 == parts ? block.key_end : base + (part + 1) * keys;
                const AttentionItem item = {block.sequence, head, block.row_begin, block.row_end, begin, end,
                                            parts > 1 ? partials++ : -1, part == 0 ? parts : 0};
                if (count < capacity) items[count] = item;
                count++;
                const int64_t cost = cost_of(op, item);
                dearest = cost > dearest ? cost : dearest;
            }
        }
    });
    // In order of sequences, threads read neighbouring pages. Where one item is much of a thread's share, those that cost
    // most come first instead, so that none of them is left for the end.
    const bool matters = threads > 1 && dearest > total / (kFineItems * threads);
    if (count <= capacity && matters) sort_by_cost(op, items, count);
    return count;
}

// What `attend` of vector/attention.h keeps, with every number a float and 64 bytes of slack for each of the arrays;
// the scalar version needs less.
int64_t attention_scratch(const AttentionOp& op, const LayerCache& cache) {
    const int64_t width = page_layout(cache.format, cache.page_size, op.head_size).value_width;
    const int64_t queries = max_queries(op);
    const int64_t query = 2 * width + 16 + 2;          // the query, its sum of values, its sums of weights, two numbers
    const int64_t tile = kTileKeys * (2 * width + 2);  // keys, values, their scales
    const int64_t scores = 2 * kMaxTileQueries * kTileKeys;
    return (queries * query + tile + scores + kScratchArrays * 16) * static_cast<int64_t>(sizeof(float));
}

int32_t attention_partials(int32_t threads) { return kPartialsPerThread * threads; }

int64_t attention_partial(const AttentionOp& op) {
    return static_cast<int64_t>(max_queries(op)) * partial_stride(op);
}

}  // namespace pio

int64_t pio_page_bytes(uint32_t kv_format, int32_t page_size, int32_t kv_heads, int32_t head_size) {
    return kv_heads * pio::page_layout(kv_format, page_size, head_size).head_bytes;
}
