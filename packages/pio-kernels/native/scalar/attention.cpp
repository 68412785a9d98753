// Attention as its formula says. The vector versions agree with it within rounding.
#include "../attention_layout.h"
#include "../numbers.h"
#include "scalar.h"

namespace pio::scalar {

namespace {

constexpr float kNoScore = -1e30f;  // below any score
constexpr float kF16Max = 65504.0f;

// e^x = 2^n e^r with x = n ln 2 + r, |r| <= ln 2 / 2, and the series of e^r.
double exponential(double x) {
    constexpr double kLn2 = 0.693147180559945309;
    if (x < -700.0) return 0.0;
    const int32_t n = static_cast<int32_t>(x / kLn2 + (x < 0 ? -0.5 : 0.5));
    const double r = x - n * kLn2;
    double sum = 1.0;
    for (int k = 12; k > 0; k--) sum = 1.0 + r / k * sum;
    const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
    double power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return sum * power;
}

// tanh |x| = 1 - 2 / (e^(2 |x|) + 1)
double tangent(double x) {
    const double magnitude = x < 0 ? -x : x;
    if (magnitude > 20.0) return x < 0 ? -1.0 : 1.0;
    const double y = 1.0 - 2.0 / (exponential(2.0 * magnitude) + 1.0);
    return x < 0 ? -y : y;
}

// --- Keys and values in pages ---

// Numbers beyond the range of float16 are stored as its largest, so that no infinity enters a sum of values.
float within_f16(float x) { return x > kF16Max ? kF16Max : x < -kF16Max ? -kF16Max : x; }

// To the nearest integer, ties to even, for |x| < 2^22: above 2^23 a float has no fraction.
float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

// `scale`: of int8 alone.
void store(uint32_t format, uint8_t* array, int64_t index, float x, const float* scale) {
    if (format == kKVF32) reinterpret_cast<float*>(array)[index] = x;
    if (format == kKVF16) reinterpret_cast<uint16_t*>(array)[index] = f16_of_float(within_f16(x));
    if (format == kKVBF16) reinterpret_cast<uint16_t*>(array)[index] = bf16_of_float(x);
    if (format == kKVI8) {
        reinterpret_cast<int8_t*>(array)[index] = static_cast<int8_t>(*scale > 0 ? rounded(x / *scale) : 0.0f);
    }
}

float load(uint32_t format, const uint8_t* array, int64_t index, const float* scale) {
    if (format == kKVF32) return reinterpret_cast<const float*>(array)[index];
    if (format == kKVF16) return float_of_f16(reinterpret_cast<const uint16_t*>(array)[index]);
    if (format == kKVBF16) return float_of_bf16(reinterpret_cast<const uint16_t*>(array)[index]);
    return *scale * reinterpret_cast<const int8_t*>(array)[index];
}

// One token's key and value for one KV head.
struct Slot {
    uint32_t format;
    uint8_t* keys;    // of its block of 16
    uint8_t* values;  // its own
    float* key_scale;  // int8 alone, else not to be read
    float* value_scale;
    int32_t lane;  // in its block of 16

    int64_t key_index(int32_t d) const { return static_cast<int64_t>(d) * kKeyBlock + lane; }
};

Slot slot_of(const AttentionOp& op, int64_t slot, int32_t kv_head) {
    const LayerCache& cache = *op.cache;
    const PageLayout layout = page_layout(cache.format, cache.page_size, op.head_size);
    const int64_t page = slot / cache.page_size;
    const int64_t offset = slot % cache.page_size;
    uint8_t* head = cache.pages + page * cache.page_bytes + kv_head * layout.head_bytes;
    float* scales = reinterpret_cast<float*>(head + layout.scales);
    return {cache.format,
            head + offset / kKeyBlock * kKeyBlock * op.head_size * layout.element_bytes,
            head + layout.values + offset * layout.value_width * layout.element_bytes,
            scales + offset,
            scales + cache.page_size + offset,
            static_cast<int32_t>(offset % kKeyBlock)};
}

Slot slot_at(const AttentionTask& task, int32_t sequence, int64_t position, int32_t kv_head) {
    const LayerCache& cache = *task.op->cache;
    const GroupTables& tables = task.batch->groups[cache.group];
    const int64_t page = tables.block_tables[sequence * tables.stride + position / cache.page_size];
    return slot_of(*task.op, page * cache.page_size + position % cache.page_size, kv_head);
}

// Symmetric int8: the largest magnitude becomes 127.
float scale_of(const float* x, int32_t n) {
    float largest = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest / 127.0f;
}

// --- Queries and keys ---

void normalise(const Norm& norm, float* x, int32_t n) {
    if (norm.weight == nullptr) return;
    double squares = 0.0;
    for (int32_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * x[i];
    const float factor = static_cast<float>(1.0 / __builtin_sqrt(squares / n + norm.eps));
    for (int32_t i = 0; i < n; i++) x[i] = x[i] * factor * (norm.weight[i] + norm.offset);
}

// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first 2 `pairs` numbers.
void turn(const AttentionOp& op, const float* rotary, float* x) {
    if (rotary == nullptr) return;
    for (int32_t i = 0; i < op.pairs; i++) {
        float& a = x[op.interleaved ? 2 * i : i];
        float& b = x[op.interleaved ? 2 * i + 1 : i + op.pairs];
        const float cosine = rotary[i];
        const float sine = rotary[op.pairs + i];
        const float turned = a * cosine - b * sine;
        b = b * cosine + a * sine;
        a = turned;
    }
}

// --- Scores ---

double score(const AttentionOp& op, const float* query, const Slot& key) {
    double dot = 0.0;
    for (int32_t d = 0; d < op.head_size; d++) {
        dot += static_cast<double>(query[d]) * load(key.format, key.keys, key.key_index(d), key.key_scale);
    }
    const double scaled = dot * op.scale;
    return op.softcap > 0 ? op.softcap * tangent(scaled / op.softcap) : scaled;
}

// Softmax state of one query: largest score m, sum of e^(s - m), sum of e^(s - m) v.
struct Sums {
    float* largest;
    float* weight;
    float* values;
};

Sums sums_of(const AttentionOp& op, float* partial, int32_t query) {
    float* sums = partial + static_cast<int64_t>(query) * partial_stride(op);
    return {sums, sums + 1, sums + 2};
}

// Over keys [begin, end), once for the largest score and once for the sums.
void sum(const AttentionTask& task, const AttentionItem& item, const float* query, int64_t begin, int64_t end,
         Sums sums) {
    const AttentionOp& op = *task.op;
    double largest = kNoScore;
    for (int64_t t = begin; t < end; t++) {
        const double s = score(op, query, slot_at(task, item.sequence, t, item.kv_head));
        largest = s > largest ? s : largest;
    }
    double weight = 0.0;
    for (int32_t d = 0; d < op.head_size; d++) sums.values[d] = 0.0f;
    for (int64_t t = begin; t < end; t++) {
        const Slot slot = slot_at(task, item.sequence, t, item.kv_head);
        const double p = exponential(score(op, query, slot) - largest);
        weight += p;
        for (int32_t d = 0; d < op.head_size; d++) {
            sums.values[d] += static_cast<float>(p) * load(slot.format, slot.values, d, slot.value_scale);
        }
    }
    *sums.largest = static_cast<float>(largest);
    *sums.weight = static_cast<float>(weight);
}

// out = values / weight, a sink being one more score that takes weight
void finish(const AttentionOp& op, int32_t head, Sums sums, float* out) {
    double factor = 1.0;
    double weight = *sums.weight;
    if (op.sinks != nullptr) {
        const double largest = op.sinks[head] > *sums.largest ? op.sinks[head] : *sums.largest;
        factor = exponential(*sums.largest - largest);
        weight = weight * factor + exponential(op.sinks[head] - largest);
    }
    for (int32_t d = 0; d < op.head_size; d++) out[d] = static_cast<float>(sums.values[d] * factor / weight);
}

}  // namespace

void write_kv(const AttentionTask& task, int32_t row, int32_t kv_head) {
    const AttentionOp& op = *task.op;
    const int32_t group = group_size(op);
    const uint32_t format = op.cache->format;
    float* heads = task.qkv + row * task.qkv_stride;
    float* key = heads + (op.heads + kv_head) * static_cast<int64_t>(op.head_size);
    const float* value = heads + (op.heads + op.kv_heads + kv_head) * static_cast<int64_t>(op.head_size);
    const float* rotary = task.rotary == nullptr ? nullptr : task.rotary + static_cast<int64_t>(row) * 2 * op.pairs;
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        float* query = heads + head * static_cast<int64_t>(op.head_size);
        normalise(op.query_norm, query, op.head_size);
        turn(op, rotary, query);
    }
    normalise(op.key_norm, key, op.head_size);
    turn(op, rotary, key);

    const Slot slot = slot_of(op, task.batch->groups[op.cache->group].slots[row], kv_head);
    if (format == kKVI8) {
        *slot.key_scale = scale_of(key, op.head_size);
        *slot.value_scale = scale_of(value, op.head_size);
    }
    const int32_t value_width = page_layout(format, op.cache->page_size, op.head_size).value_width;
    for (int32_t d = 0; d < op.head_size; d++) store(format, slot.keys, slot.key_index(d), key[d], slot.key_scale);
    for (int32_t d = 0; d < value_width; d++) {
        store(format, slot.values, d, d < op.head_size ? value[d] : 0.0f, slot.value_scale);
    }
}

void attend(const AttentionTask& task, const AttentionItem& item, const AttentionItem*, uint8_t* scratch, float* partials) {
    const AttentionOp& op = *task.op;
    const int32_t group = group_size(op);
    const bool whole = item.partial < 0;
    float* results = whole ? reinterpret_cast<float*>(scratch) : partials + item.partial * attention_partial(op);
    for (int32_t row = item.row_begin; row < item.row_end; row++) {
        const int64_t position = task.batch->positions[row];
        const int64_t oldest = op.window > 0 ? position - op.window + 1 : 0;
        const int64_t begin = oldest > item.key_begin ? oldest : item.key_begin;
        const int64_t end = position + 1 < item.key_end ? position + 1 : item.key_end;
        for (int32_t g = 0; g < group; g++) {
            const int64_t head = item.kv_head * group + g;
            const float* query = task.qkv + row * task.qkv_stride + head * op.head_size;
            const Sums sums = sums_of(op, results, (row - item.row_begin) * group + g);
            sum(task, item, query, begin, end, sums);
            float* out = task.out + row * task.out_stride + head * op.head_size;
            if (whole) finish(op, static_cast<int32_t>(head), sums, out);
        }
    }
}

void merge(const AttentionTask& task, const AttentionItem& item, const float* partials) {
    const AttentionOp& op = *task.op;
    const int32_t group = group_size(op);
    for (int32_t row = item.row_begin; row < item.row_end; row++) {
        for (int32_t g = 0; g < group; g++) {
            const int64_t head = item.kv_head * group + g;
            float* out = task.out + row * task.out_stride + head * op.head_size;
            const auto part = [&](int32_t p) {
                const float* partial = partials + (item.partial + p) * attention_partial(op);
                return sums_of(op, const_cast<float*>(partial), (row - item.row_begin) * group + g);
            };
            float largest = kNoScore;
            for (int32_t p = 0; p < item.parts; p++) {
                largest = *part(p).largest > largest ? *part(p).largest : largest;
            }
            float weight = 0.0f;
            for (int32_t d = 0; d < op.head_size; d++) out[d] = 0.0f;
            for (int32_t p = 0; p < item.parts; p++) {
                const float factor = static_cast<float>(exponential(*part(p).largest - largest));
                weight += factor * *part(p).weight;
                for (int32_t d = 0; d < op.head_size; d++) out[d] += factor * part(p).values[d];
            }
            finish(op, static_cast<int32_t>(head), {&largest, &weight, out}, out);
        }
    }
}

}  // namespace pio::scalar
