// Where keys and values lie in a page, and how large the pieces are in which attention is computed. One layout serves
// all instruction sets.
//
// A page of P tokens holds one part per KV head, so that who attends with one head reads one run of memory:
//
//   keys    [P / 16][D][16]  blocks of 16 tokens, transposed: a vector of 16 holds one dimension of 16 keys, and a
//                            score is a sum over vectors, without a sum inside of one
//   values  [P][W]           W = D rounded up to 16, the rest zero: a vector of 16 holds 16 dimensions of one value
//   scales  [P], [P]         float32 scales of the keys, then of the values; int8 alone
//
// P is a multiple of 16. Larger pages make longer runs of memory: one sequence of 4,096 tokens streams a fifth faster
// with pages of 64 than with pages of 16, where the system gave no large pages to memory.
//
// Tokens that were not written yet hold anything: nothing of them may enter a sum, not even times zero.
#pragma once

#include "kernels.h"

namespace pio {

constexpr int32_t kKeyBlock = 16;       // tokens of a block of keys; pages are whole blocks
constexpr int32_t kTileKeys = 64;       // keys that are attended over at a time
constexpr int32_t kItemQueries = 192;  // query vectors of an item, or the heads of one KV head if they are more
constexpr int32_t kMaxTileQueries = 6;  // query vectors that one pass over a tile serves
constexpr int32_t kScratchArrays = 10;  // that `attend` lays out in its scratch

struct PageLayout {
    int32_t value_width;    // W, numbers
    int32_t element_bytes;  // of a key's or value's number
    int64_t values;         // offset of the values from the head's keys, bytes
    int64_t scales;
    int64_t head_bytes;  // of one KV head
};

static inline PageLayout page_layout(uint32_t format, int32_t page_size, int32_t head_size) {
    PageLayout layout;
    layout.value_width = (head_size + 15) / 16 * 16;
    layout.element_bytes = format == kKVF32 ? 4 : format == kKVI8 ? 1 : 2;
    layout.values = static_cast<int64_t>(page_size) * head_size * layout.element_bytes;
    layout.scales = layout.values + static_cast<int64_t>(page_size) * layout.value_width * layout.element_bytes;
    layout.head_bytes = layout.scales + (format == kKVI8 ? 2 * page_size * static_cast<int64_t>(sizeof(float)) : 0);
    return layout;
}

// Query heads per KV head.
static inline int32_t group_size(const AttentionOp& op) { return op.heads / op.kv_heads; }

// Most query vectors that an item has.
static inline int32_t max_queries(const AttentionOp& op) {
    const int32_t group = group_size(op);
    return group > kItemQueries ? group : kItemQueries / group * group;
}

// A partial result holds, per query vector of its item, the largest score, the sum of exponentials relative to it, and
// W numbers of the sum of values; the unit of scores is the kernels' own.
static inline int32_t partial_stride(const AttentionOp& op) { return (op.head_size + 15) / 16 * 16 + 2; }

}  // namespace pio
