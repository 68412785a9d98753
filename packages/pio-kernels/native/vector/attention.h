// Attention over pages of keys and values, in tiles of 64 keys with the softmax taken along (Dao et al. 2022,
// arXiv:2205.14135; the running softmax is Milakov and Gimelshein 2018, arXiv:1805.02867).
//
// The query vectors of an item are those of its rows and of the query heads that share its KV head. For each tile of
// keys, groups of up to 6 of them go through
//
//   scores   S = Q K^T         6 x 64 numbers in registers: a vector of 16 keys times one number of each query
//   weigh    m' = max(m, max S); P = 2^(S - m'); sums of P; the factor 2^(m - m') for what was summed before
//   gather   O = 2^(m - m') O + P V      6 x 64 numbers in registers: a vector of 16 dimensions times a weight of each
//
// Scores are in units of ln 2, so that weights are powers of two; the factor is part of the query.
//
// A few queries (decode) read keys and values straight from the pages, each once, and ask for those of the next tile
// ahead of time: memory bounds them. Many queries (prefill) have the tile converted first, into memory that the first
// cache level holds: to what the processor multiplies fastest, which rounds queries, keys, values and weights.
//
//   attention_float.h   float32
//   attention_bf16.h    pairs of bfloat16, with AVX-512 BF16
//   attention_int16.h   pairs of int16, with AVX2
//
// A float32 cache is read as it is, by few queries and by many: its products are float32.
#pragma once

#include "attention_float.h"
#if defined(__AVX512BF16__)
#include "attention_bf16.h"
#elif defined(__AVX2__) && !defined(__AVX512F__)
#include "attention_int16.h"
#endif

namespace pio::PIO_ISA::attention {

// --- Softmax ---

// Scales of int8 keys, the soft cap, and kHidden for keys outside of [begin, end), on the scores of one query.
inline void adjust_scores(const Work& work, float* row, int32_t begin, int32_t end) {
    const bool scaled = work.op.cache->format == kKVI8;
    const float softcap = work.op.softcap;
    for (int32_t t = 0; t < kTileKeys; t += kLanes) {
        Floats scores = load(row + t);
        if (scaled) scores = mul(scores, load(work.key_scales + t));
        if (softcap > 0) scores = mul(tangent(scores), splat(softcap * kLog2E));
        store(row + t, keep_range(scores, t, begin, end, kHidden));
    }
}

// Finishes the scores of M queries, takes their largest along, and writes the score whose weight is one: the largest, or
// with kTileWeightBits the one that gives the tile's largest so many bits. What vanishes in a tile then is small beside its
// own largest weight, and not beside that of a key far away, next to which many small ones may count.
template <class Products, int32_t M>
void finish_scores(const Work& work, const Tile& tile, int32_t query, Shares& shares, float* reference) {
    constexpr float kFarBelow = 100.0f;  // a tile that is further below adds nothing
    const bool changed = work.op.cache->format == kKVI8 || work.op.softcap > 0;
    for (int32_t m = 0; m < M; m++) {
        float* row = work.scores + m * kTileKeys;
        const int32_t seen = work.positions[query + m] + 1 - tile.first;
        const int32_t end = seen < tile.keys ? seen : tile.keys;
        const int32_t begin = work.op.window > 0 ? seen - work.op.window : 0;
        if (changed || begin > 0 || end < kTileKeys) adjust_scores(work, row, begin, end);
        Floats scores = load(row);
        for (int32_t t = kLanes; t < kTileKeys; t += kLanes) scores = max(scores, load(row + t));
        const float before = work.largest[query + m];
        const float of_tile = max_of(scores);
        const float largest = of_tile > before ? of_tile : before;
        work.largest[query + m] = largest;
        shares.of_before[m] = before - largest;
        reference[m] = largest;
        if constexpr (Products::kTileWeightBits > 0) {
            reference[m] = (of_tile > largest - kFarBelow ? of_tile : largest - kFarBelow) - Products::kTileWeightBits;
            shares.of_tile[m] = reference[m] - largest;
        }
    }
    for (int32_t m = 0; m < M; m += kLanes) {
        store(shares.of_before + m, power_of_two(load(shares.of_before + m)));
        if constexpr (Products::kTileWeightBits > 0) store(shares.of_tile + m, power_of_two(load(shares.of_tile + m)));
    }
}

// Weights of M queries from their scores, and their sums.
template <class Products, int32_t M>
void weigh(const Work& work, int32_t query, const Shares& shares, const float* reference) {
    const bool scaled = Products::kScaledWeights && work.op.cache->format == kKVI8;
    for (int32_t m = 0; m < M; m++) {
        const float* row = work.scores + m * kTileKeys;
        float* sums = work.weights + (query + m) * kLanes;
        const Floats before = mul(load(sums), splat(shares.of_before[m]));
        Floats sum = Products::kTileWeightBits > 0 ? splat(0.0f) : before;
        for (int32_t v = 0; v < kTileVectors; v++) {
            Floats weights = power_of_two<Products::kRoughWeights>(sub(load(row + v * kLanes), splat(reference[m])));
            sum = add(sum, weights);
            if (scaled) weights = mul(weights, load(work.value_scales + v * kLanes));
            Products::store_weights(work, m, v, weights);
        }
        store(sums, Products::kTileWeightBits > 0 ? fma(sum, splat(shares.of_tile[m]), before) : sum);
    }
}

// --- Items ---

template <class Products, int32_t M>
void attend_group(const Work& work, const Tile& tile, const Tile& next, int32_t query) {
    const int32_t seen = work.positions[query + M - 1] + 1 - tile.first;  // by the last query, which sees furthest
    const int32_t keys = seen < tile.keys ? seen : tile.keys;
    const bool left_behind = work.op.window > 0 && work.positions[query] - work.op.window >= tile.first + tile.keys - 1;
    if (keys <= 0 || left_behind) return;
    Shares shares = {};
    float reference[M];
    Products::template scores<M>(work, tile, next, query, keys);  // of later keys they stay what they are: hidden below
    finish_scores<Products, M>(work, tile, query, shares, reference);
    weigh<Products, M>(work, query, shares, reference);
    Products::template gather<M>(work, tile, next, query, keys, shares);
}

// All queries of an item over one tile, in groups of nearly equal size.
template <class Products>
void attend_tile(const Work& work, const Tile& tile, const Tile& next) {
    int32_t groups = (work.queries + kMaxTileQueries - 1) / kMaxTileQueries;
    for (int32_t query = 0; query < work.queries; groups--) {
        const int32_t size = (work.queries - query + groups - 1) / groups;
        switch (size) {
            case 1: attend_group<Products, 1>(work, tile, next, query); break;
            case 2: attend_group<Products, 2>(work, tile, next, query); break;
            case 3: attend_group<Products, 3>(work, tile, next, query); break;
            case 4: attend_group<Products, 4>(work, tile, next, query); break;
            case 5: attend_group<Products, 5>(work, tile, next, query); break;
            default: attend_group<Products, 6>(work, tile, next, query); break;
        }
        query += size;
    }
}

template <class Products>
void start(const Work& work) {
    const AttentionOp& op = work.op;
    const int32_t group = group_size(op);
    const float factor = op.softcap > 0 ? op.scale / op.softcap : op.scale * kLog2E;
    for (int32_t query = 0; query < work.queries; query++) {
        const int32_t row = work.item.row_begin + query / group;
        const int32_t head = work.item.kv_head * group + query % group;
        Products::set_query(work, query, work.task.qkv + row * work.task.qkv_stride + head * op.head_size, factor);
        for (int32_t d = 0; d < work.width; d++) work.values[query * work.width + d] = 0.0f;
        store(work.weights + query * kLanes, splat(0.0f));
        work.largest[query] = kNoScore;
        work.positions[query] = static_cast<int32_t>(work.task.batch->positions[row]);
    }
}

using Stage = void (*)(const Work& work, Tile& tile);

// `stage` converts each tile to what Products read; null if they read pages.
template <class Products>
void attend_item(const Work& work, Stage stage) {
    start<Products>(work);
    const bool scaled = work.op.cache->format == kKVI8;
    const AttentionItem& item = work.item;
    Tile tile = tile_at(work, item, item.key_begin);
    for (int32_t first = tile.first; first < item.key_end; first += kTileKeys) {
        const Tile next = first + kTileKeys < item.key_end ? tile_at(work, item, first + kTileKeys)
                          : work.following != nullptr      ? tile_at(work, *work.following, work.following->key_begin)
                                                           : tile;
        if (scaled) copy_scales(work, tile);
        if (stage != nullptr) stage(work, tile);
        attend_tile<Products>(work, tile, next);
        tile = next;
    }
}

template <uint32_t format>
void attend_format(const Work& work) {
    if (format == kKVF32 || work.queries <= kDirectQueries) {
        attend_item<FloatProducts<format>>(work, nullptr);
    } else {
#if defined(__AVX512BF16__)
        attend_item<BF16Products>(work, stage_bf16<format>);
#elif defined(__AVX2__) && !defined(__AVX512F__)
        attend_item<Int16Products>(work, stage_int16<format>);
#else
        attend_item<FloatProducts<kKVF32>>(work, stage_floats<format>);
#endif
    }
}

float power_of_two(float x) {
    float powers[kLanes];
    store(powers, power_of_two(splat(x)));
    return powers[0];
}

// out = factor * values / (factor * weight), a sink being one more score that takes weight
void finish_query(const AttentionOp& op, int32_t head, float largest, float weight, const float* values, float* out) {
    float factor = 1.0f;
    if (op.sinks != nullptr) {
        const float sink = op.sinks[head] * kLog2E;
        const float now = sink > largest ? sink : largest;
        factor = power_of_two(largest - now);
        weight = weight * factor + power_of_two(sink - now);
    }
    const float scale = factor / weight;
    for (int32_t d = 0; d < op.head_size; d++) out[d] = scale * values[d];
}

float* output_of(const AttentionTask& task, const AttentionItem& item, int32_t query, int32_t& head) {
    const int32_t group = group_size(*task.op);
    head = item.kv_head * group + query % group;
    return task.out + (item.row_begin + query / group) * task.out_stride + head * task.op->head_size;
}

// --- Writing keys and values ---

void normalise(const Norm& norm, float* x, int32_t n) {
    if (norm.weight == nullptr) return;
    Floats squares = splat(0.0f);
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float sum = sum_of(squares);
    for (; i < n; i++) sum += x[i] * x[i];
    const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + norm.eps);
    for (i = 0; i < n; i++) x[i] = x[i] * factor * (norm.weight[i] + norm.offset);
}

void turn_halves(const float* rotary, int32_t pairs, float* __restrict a, float* __restrict b) {
    for (int32_t i = 0; i < pairs; i++) {
        const float turned = a[i] * rotary[i] - b[i] * rotary[pairs + i];
        b[i] = b[i] * rotary[i] + a[i] * rotary[pairs + i];
        a[i] = turned;
    }
}

void turn_neighbours(const float* rotary, int32_t pairs, float* x) {
    for (int32_t i = 0; i < pairs; i++) {
        const float a = x[2 * i];
        const float b = x[2 * i + 1];
        x[2 * i] = a * rotary[i] - b * rotary[pairs + i];
        x[2 * i + 1] = b * rotary[i] + a * rotary[pairs + i];
    }
}

// Norms and turns one head of a row.
void prepare_head(const AttentionTask& task, int32_t row, const Norm& norm, float* x) {
    const AttentionOp& op = *task.op;
    normalise(norm, x, op.head_size);
    if (task.rotary == nullptr) return;
    const float* rotary = task.rotary + static_cast<int64_t>(row) * 2 * op.pairs;
    if (op.interleaved != 0) {
        turn_neighbours(rotary, op.pairs, x);
    } else {
        turn_halves(rotary, op.pairs, x, x + op.pairs);
    }
}

// 16 numbers of x from d on, zero from n on, divided by `scale`, in `format`.
template <uint32_t format>
PIO_INLINE void narrow_block(const float* x, int32_t d, int32_t n, float scale, uint8_t* block) {
    alignas(64) float numbers[kKeyBlock] = {};
    const int32_t left = n - d < kKeyBlock ? n - d : kKeyBlock;
    for (int32_t i = 0; i < left; i++) numbers[i] = x[d + i];
    for (int32_t v = 0; v < kBlockVectors; v++) {
        const Floats part = load(numbers + v * kLanes);
        narrow<format>(format == kKVI8 ? div(part, splat(scale)) : part, block + v * kLanes * bytes_of(format));
    }
}

// Symmetric int8: the largest magnitude becomes 127. One for zeros, for them to stay zero.
inline float scale_of(const float* x, int32_t n) {
    float largest = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest > 0 ? largest / 127.0f : 1.0f;
}

template <uint32_t format>
void write_slot(const AttentionOp& op, int64_t slot, int32_t kv_head, const float* key, const float* value) {
    constexpr int32_t kBytes = bytes_of(format);
    const LayerCache& cache = *op.cache;
    const PageLayout layout = page_layout(format, cache.page_size, op.head_size);
    const int64_t offset = slot % cache.page_size;
    const int64_t lane = offset % kKeyBlock;
    uint8_t* head = cache.pages + slot / cache.page_size * cache.page_bytes + kv_head * layout.head_bytes;
    uint8_t* key_block = head + (offset - lane) * op.head_size * kBytes + lane * kBytes;
    uint8_t* value_row = head + layout.values + offset * layout.value_width * kBytes;
    float key_scale = 1.0f;
    float value_scale = 1.0f;
    if (format == kKVI8) {
        float* scales = reinterpret_cast<float*>(head + layout.scales) + offset;
        scales[0] = key_scale = scale_of(key, op.head_size);
        scales[cache.page_size] = value_scale = scale_of(value, op.head_size);
    }
    for (int32_t d = 0; d < op.head_size; d += kKeyBlock) {
        alignas(64) uint8_t block[kKeyBlock * kBytes];
        narrow_block<format>(key, d, op.head_size, key_scale, block);
        const int32_t left = op.head_size - d < kKeyBlock ? op.head_size - d : kKeyBlock;
        for (int32_t i = 0; i < left; i++) {
            uint8_t* place = key_block + (d + i) * static_cast<int64_t>(kKeyBlock) * kBytes;
            __builtin_memcpy(place, block + i * kBytes, kBytes);
        }
        narrow_block<format>(value, d, op.head_size, value_scale, value_row + d * kBytes);
    }
}

// --- The kernels ---

void write_kv(const AttentionTask& task, int32_t row, int32_t kv_head) {
    const AttentionOp& op = *task.op;
    const int32_t group = group_size(op);
    float* heads = task.qkv + row * task.qkv_stride;
    float* key = heads + (op.heads + kv_head) * static_cast<int64_t>(op.head_size);
    const float* value = key + op.kv_heads * static_cast<int64_t>(op.head_size);
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        prepare_head(task, row, op.query_norm, heads + head * static_cast<int64_t>(op.head_size));
    }
    prepare_head(task, row, op.key_norm, key);
    const int64_t slot = task.batch->groups[op.cache->group].slots[row];
    switch (op.cache->format) {
        case kKVF16: write_slot<kKVF16>(op, slot, kv_head, key, value); break;
        case kKVBF16: write_slot<kKVBF16>(op, slot, kv_head, key, value); break;
        case kKVI8: write_slot<kKVI8>(op, slot, kv_head, key, value); break;
        default: write_slot<kKVF32>(op, slot, kv_head, key, value); break;
    }
}

void attend(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch,
            float* partials) {
    const AttentionOp& op = *task.op;
    const Work work = work_of(task, item, following, scratch);
    switch (op.cache->format) {
        case kKVF16: attend_format<kKVF16>(work); break;
        case kKVBF16: attend_format<kKVBF16>(work); break;
        case kKVI8: attend_format<kKVI8>(work); break;
        default: attend_format<kKVF32>(work); break;
    }
    for (int32_t query = 0; query < work.queries; query++) {
        const float weight = sum_of(load(work.weights + query * kLanes));
        const float* values = work.values + query * work.width;
        if (item.partial < 0) {
            int32_t head;
            float* out = output_of(task, item, query, head);
            finish_query(op, head, work.largest[query], weight, values, out);
        } else {
            float* partial = partials + item.partial * attention_partial(op) + query * partial_stride(op);
            partial[0] = work.largest[query];
            partial[1] = weight;
            for (int32_t d = 0; d < work.width; d++) partial[2 + d] = values[d];
        }
    }
}

void merge(const AttentionTask& task, const AttentionItem& item, const float* partials) {
    const AttentionOp& op = *task.op;
    const int64_t stride = attention_partial(op);
    const int32_t queries = (item.row_end - item.row_begin) * group_size(op);
    for (int32_t query = 0; query < queries; query++) {
        const float* first = partials + item.partial * stride + query * partial_stride(op);
        float largest = kNoScore;
        for (int32_t p = 0; p < item.parts; p++) largest = first[p * stride] > largest ? first[p * stride] : largest;
        int32_t head;
        float* out = output_of(task, item, query, head);
        float weight = 0.0f;
        for (int32_t d = 0; d < op.head_size; d++) out[d] = 0.0f;
        for (int32_t p = 0; p < item.parts; p++) {
            const float* part = first + p * stride;
            const float factor = power_of_two(part[0] - largest);
            weight += factor * part[1];
            for (int32_t d = 0; d < op.head_size; d++) out[d] += factor * part[2 + d];
        }
        finish_query(op, head, largest, weight, out, out);
    }
}

}  // namespace pio::PIO_ISA::attention

namespace pio::PIO_ISA {

using attention::attend;
using attention::merge;
using attention::write_kv;

}  // namespace pio::PIO_ISA
