// What is attended: an item, its scratch, and tiles of keys and values in pages. See attention.h.
#pragma once

#include "attention_simd.h"

namespace pio::PIO_ISA::attention {

constexpr float kLog2E = 1.442695041f;
constexpr float kNoScore = -1e30f;      // below any score: 2^(kNoScore - m) vanishes
constexpr float kHidden = -3e38f;       // the score of a key that a query does not see
constexpr int32_t kDirectQueries = 8;   // that read the pages themselves
constexpr int32_t kTileBlocks = kTileKeys / kKeyBlock;
constexpr int32_t kBlockVectors = kKeyBlock / kLanes;
constexpr int32_t kTileVectors = kTileKeys / kLanes;

// Vectors of keys, and of a value, that are summed at once: together with 6 queries they fill the registers.
#if defined(__AVX512F__)
constexpr int32_t kScoreBlocks = 4;
constexpr int32_t kValueVectors = 4;
#elif defined(__AVX2__)
constexpr int32_t kScoreBlocks = 1;
constexpr int32_t kValueVectors = 2;
#else
constexpr int32_t kScoreBlocks = 1;
constexpr int32_t kValueVectors = 4;
#endif

// Into the second cache level: the tile at hand fills the first.
PIO_INLINE void prefetch(const uint8_t* address) { __builtin_prefetch(address, 0, 2); }

constexpr int32_t bytes_of(uint32_t format) { return format == kKVF32 ? 4 : format == kKVI8 ? 1 : 2; }

// Up to 64 keys and values from position `first` on.
struct Tile {
    int32_t first;
    int32_t keys;
    const uint8_t* block_keys[kTileBlocks];
    const uint8_t* block_values[kTileBlocks];
    const float* block_scales[kTileBlocks];  // of keys; those of values follow a page's
};

// What becomes of sums when the largest score of a query changes: factors of those before, and of the tile's.
struct Shares {
    alignas(64) float of_before[16];
    alignas(64) float of_tile[16];
};

// An item and its scratch. Arrays begin at multiples of 64 bytes.
struct Work {
    const AttentionTask& task;
    const AttentionItem& item;
    const AttentionItem* following;  // what this thread probably attends for next, or null
    const AttentionOp& op;
    PageLayout layout;
    int32_t width;    // W, of a row of `query` and `values`
    int32_t queries;  // M
    float* query;           // (M, W) float32; others take a part of a row
    float* values;          // (M, W) sum of weights times values
    float* weights;         // (M, kLanes) sums of weights, to be summed
    float* largest;         // (M,) largest score
    int32_t* positions;     // (M,)
    float* scores;          // (6, 64) of one group of queries, then their weights
    uint16_t* short_weights;  // (6, 64) of 16 bits
    uint8_t* tile_keys;
    uint8_t* tile_values;
    float* key_scales;    // (64,)
    float* value_scales;  // (64,)
};

template <class Number>
Number* take(uint8_t*& scratch, int64_t bytes) {
    auto* array = reinterpret_cast<Number*>(scratch);
    scratch += (bytes + 63) / 64 * 64;
    return array;
}

Work work_of(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch) {
    const AttentionOp& op = *task.op;
    const PageLayout layout = page_layout(op.cache->format, op.cache->page_size, op.head_size);
    const int32_t width = layout.value_width;
    const int32_t queries = (item.row_end - item.row_begin) * group_size(op);
    const int64_t row = static_cast<int64_t>(width) * 4;
    constexpr int64_t kScores = kMaxTileQueries * kTileKeys * 4;
    scratch += -reinterpret_cast<uintptr_t>(scratch) & 63;
    return {task,
            item,
            following,
            op,
            layout,
            width,
            queries,
            take<float>(scratch, queries * row),
            take<float>(scratch, queries * row),
            take<float>(scratch, queries * static_cast<int64_t>(sizeof(Floats))),
            take<float>(scratch, queries * 4),
            take<int32_t>(scratch, queries * 4),
            take<float>(scratch, kScores),
            take<uint16_t>(scratch, kScores / 2),
            take<uint8_t>(scratch, kTileKeys * row),
            take<uint8_t>(scratch, kTileKeys * row),
            take<float>(scratch, kTileKeys * 4),
            take<float>(scratch, kTileKeys * 4)};
}

// The tile of an item's keys from position `first` on.
Tile tile_at(const Work& work, const AttentionItem& item, int32_t first) {
    const LayerCache& cache = *work.op.cache;
    const GroupTables& tables = work.task.batch->groups[cache.group];
    const int32_t* pages = tables.block_tables + item.sequence * tables.stride;
    const PageLayout& layout = work.layout;
    const int32_t left = item.key_end - first;
    Tile tile;
    tile.first = first;
    tile.keys = left < kTileKeys ? left : kTileKeys;
    for (int32_t b = 0; b < kTileBlocks; b++) {
        // Blocks past the end are the last one again: nobody looks at their scores.
        const int32_t position = first + (b * kKeyBlock < tile.keys ? b : (tile.keys - 1) / kKeyBlock) * kKeyBlock;
        const int32_t offset = position % cache.page_size;
        const uint8_t* head = cache.pages + pages[position / cache.page_size] * cache.page_bytes +
                              item.kv_head * layout.head_bytes;
        tile.block_keys[b] = head + static_cast<int64_t>(offset) * work.op.head_size * layout.element_bytes;
        tile.block_values[b] =
            head + layout.values + static_cast<int64_t>(offset) * layout.value_width * layout.element_bytes;
        tile.block_scales[b] = reinterpret_cast<const float*>(head + layout.scales) + offset;
    }
    return tile;
}

// Scales of int8 keys and values lie in several pages; here they come together, zero where there is no key.
void copy_scales(const Work& work, const Tile& tile) {
    for (int32_t t = 0; t < kTileKeys; t++) {
        const float* scales = tile.block_scales[t / kKeyBlock] + t % kKeyBlock;
        work.key_scales[t] = t < tile.keys ? scales[0] : 0.0f;
        work.value_scales[t] = t < tile.keys ? scales[work.op.cache->page_size] : 0.0f;
    }
}

}  // namespace pio::PIO_ISA::attention
