// Replays a program: cuts each operation into phases and chunks for the team of threads, and calls the kernels.
//
// What an operation needs prepared, its input normed and in int8, say, is one phase, its product the next. For a few
// rows every thread prepares them for itself instead, when it takes its first chunk: that costs less than to wait.

#include <math.h>

#include "kernels.h"
#include "routing.h"
#include "screen.h"
#include "strips.h"
#include "threads.h"

namespace pio {

namespace {

constexpr int32_t kFewRows = 4;             // rows that every thread prepares for itself
constexpr int64_t kChunkBytes = 96 * 1024;  // of weights: what a chunk of a product should at least read
constexpr int32_t kChunksPerThread = 8;

// A head is screened for at most so many of the largest logits. Where more than one in kContendersShare of its strips were
// left to compute, which costs what leaving a quarter of all unread spares, the next kScreenPause steps do without.
constexpr int32_t kMostWanted = 64;
constexpr int32_t kContendersShare = 4;
constexpr int32_t kScreenPause = 16;

enum PhaseKind : int32_t {
    kEmbedRows,
    kRotaryRows,
    kPrepareRows,
    kProduct,
    kWriteKV,
    kAttend,
    kWriteAndAttend,
    kMerge,
    kRouteRows,
    kGroupByExpert,
    kExpertsIn,
    kPrepareInner,
    kExpertsOut,
    kScreen,
    kContenders,
    kFinishLogits,
    kHiddenRows,
};

// The rows of a step that a product is for.
enum RowSet : int32_t { kEveryRow, kKeptRows, kLogitRows };

// A part of an operation whose chunks can be done in any order.
struct Phase {
    PhaseKind kind;
    int32_t items;  // rows, strips, ... that are split evenly over the chunks
    const void* op;
    int32_t few;   // of products: prepare rows in this thread's own memory
    int32_t plan;  // of attention: index of its plan
    RowSet rows;   // of products and attention
};

// What a product reads: the representations `kinds` of norm(buffer `in`), `width` wide.
struct Source {
    int32_t in;
    int32_t width;
    const Norm* norm;
    uint32_t kinds;
};

// The attention of a step, planned once for all operations that agree in what matters.
struct AttentionPlan {
    const AttentionOp* op;
    AttentionItem* items;
    int32_t count;
    int32_t capacity;
    float* partials;
    int64_t partial_bytes;
    int32_t* merges;  // items with parts > 1
    int32_t num_merges;
    bool fused;  // keys may be written by the item that reads them
};

// What belongs to one thread.
struct alignas(64) Local {
    Rows rows;             // of kFewRows rows
    int32_t prepared_for;  // the phase that `rows` was last prepared for, or -1
    float* slack;          // of kFewRows rows: see screen.h
    float thresholds[kFewRows];
    int32_t thresholds_of;  // the phase that they are for, or -1
    int32_t contenders;     // strips that were left to compute in this step
    float* row;            // one row of floats to work in
    uint8_t* attention;    // scratch of `attend`
    float* sampling;       // scratch of `sample`
};

int32_t padded(int32_t columns) { return (columns + kTileInputs - 1) / kTileInputs * kTileInputs; }
int32_t strips_of(const Segment& segment) { return (segment.rows + kTileRows - 1) / kTileRows; }
int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// The representations of its input that a product with `segments` reads.
uint32_t kinds_of(const Segment* segments, int32_t count) {
    uint32_t kinds = 0;
    for (int32_t i = 0; i < count; ++i) {
        const uint32_t format = segments[i].format;
        kinds |= format == kTileBF16 ? kRowsBF16 : format == kTileF16 || format == kTileF32 ? kRowsF32 : kRowsI8;
    }
    return kinds;
}

// Memory that is given back together.
class Arena {
   public:
    template <typename T>
    T* take(int64_t count) {
        const int64_t bytes = (count < 1 ? 1 : count) * static_cast<int64_t>(sizeof(T)) + static_cast<int64_t>(sizeof(Block));
        auto* block = static_cast<Block*>(pio_memory_new(bytes));
        if (block == nullptr) {
            failed = true;
            return nullptr;
        }
        block->next = blocks_;
        block->bytes = bytes;
        blocks_ = block;
        return reinterpret_cast<T*>(block + 1);
    }
    void free_all() {
        while (blocks_ != nullptr) {
            Block* next = blocks_->next;
            pio_memory_free(blocks_, blocks_->bytes);
            blocks_ = next;
        }
    }
    bool failed = false;

   private:
    struct alignas(64) Block {
        Block* next;
        int64_t bytes;
    };
    Block* blocks_ = nullptr;
};

// Whether the largest of its products are the largest logits, and its tiles can be read in part.
bool can_be_screened(const HeadOp& op) {
    return op.num_segments == 1 && op.segments->format == kTileQ8Split && op.segments->bias == nullptr && op.scale > 0.0f &&
           op.softcap <= 0.0f && strips_of(*op.segments) >= kMostWanted;
}

Rows take_rows(Arena& arena, int32_t count, int32_t width, uint32_t kinds) {
    Rows rows{};
    const int64_t numbers = static_cast<int64_t>(count) * padded(width);
    if (kinds & kRowsI8) {
        rows.blocks = arena.take<QuantBlock>(numbers / kTileInputs);
        rows.outliers = arena.take<Outlier>(numbers / kTileInputs);
        rows.num_outliers = arena.take<int32_t>(count);
        rows.outlier_columns = arena.take<OutlierColumn>(numbers / kTileInputs);
        rows.num_outlier_columns = arena.take<int32_t>(count);
        rows.block_sums = arena.take<float>(numbers / kTileInputs);
        rows.sum_steps = arena.take<float>(count);
    }
    if (kinds & kRowsBF16) rows.bf16 = arena.take<uint16_t>(numbers);
    if (kinds & kRowsF32) rows.f32 = arena.take<float>(numbers);
    return rows;
}

// The same memory seen as `count` rows of `columns` numbers.
Rows shaped(Rows rows, int32_t count, int32_t columns) {
    rows.count = count;
    rows.columns = columns;
    rows.stride = padded(columns);
    return rows;
}

}  // namespace

}  // namespace pio

using namespace pio;

struct Runtime {
    Program program;
    const Kernels* kernels;
    Team* team;
    int32_t threads;
    Arena arena;

    float** buffers;
    Rows rows;        // of all tokens, for products
    int32_t* prepared_of_group;  // rows that are prepared so far, of each group that products take at once
    Rows inner_rows;  // of all pairs of token and expert
    ExpertRows expert_rows;
    Local* locals;
    AttentionPlan* plans;
    int32_t num_plans;
    int32_t* plan_of;  // by index of the operation

    // From operation `tail` on, rows of which neither logits nor hidden states are wanted serve nothing any more: no
    // other row reads what becomes of them. The attention before it reads their keys and values, but need not be theirs.
    int32_t tail;
    int32_t* kept_rows;  // the others, if the tail is cut to them
    int32_t num_kept;
    bool cut;

    Phase* phases;
    int32_t* chunks;
    int32_t num_phases;
    const Batch* batch;

    // Bounds of the strips of a head that is screened, (kFewRows, strips) each; null if no head can be.
    float* at_least;
    float* at_most;
    int32_t screened_strips;  // of the step before, 0 if it did without
    int32_t screen_pause;     // steps to do without

    // --- Setting up ---

    bool set_up(const Program& given, const Kernels& table, int32_t thread_count);
    bool set_up_attention();
    bool set_up_screen();
    void find_tail();
    void measure(int32_t& width, uint32_t& kinds, int32_t& pairs, int32_t& inner, uint32_t& inner_kinds, int32_t& experts);

    // --- Planning a step ---

    bool plan(const Batch& step);
    void add(PhaseKind kind, const void* op, int32_t items, int32_t count, int32_t few = 0, int32_t plan = -1,
             RowSet set = kEveryRow);
    void add_rows(PhaseKind kind, const void* op, int32_t rows_in_all, RowSet set = kEveryRow);
    void add_product(const void* op, int32_t strips, int64_t strip_bytes, RowSet set);
    void plan_op(int32_t index);
    void plan_attention_phases(const AttentionOp& op, int32_t index);
    bool keep_rows();
    void watch_screen();
    bool screens(const HeadOp& op) const;
    bool keeps_any(int32_t begin, int32_t end) const;
    int32_t product_chunks(int32_t strips, int64_t strip_bytes, int32_t row_count) const;

    // --- Doing it ---

    void run(int32_t phase, int32_t first_chunk, int32_t last_chunk, int32_t thread);
    void embed(const EmbedOp& op, int32_t first, int32_t last);
    void rotary(const RotaryOp& op, int32_t first, int32_t last);
    Source source_of(const void* op) const;
    void prepare(const Phase& phase, int32_t first, int32_t last, Rows& into, Local& local);
    void group_prepared(const Phase& phase, int32_t first, int32_t last);
    void fetch_first(const void* op, int32_t first);
    void prepare_few(const Phase& phase, int32_t number, int32_t first, Local& local);
    void product(const Phase& phase, int32_t number, int32_t first, int32_t last, Local& local);
    void linear(const LinearOp& op, const Rows& x, const int32_t* out_rows, int32_t first, int32_t last);
    void head(const HeadOp& op, const Rows& x, int32_t first, int32_t last);
    void screen(const HeadOp& op, int32_t first, int32_t last, Local& local);
    void contenders(const Phase& phase, int32_t number, int32_t first, int32_t last, Local& local);
    void hidden(const HeadOp& op, int32_t first, int32_t last);
    void attention(const Phase& phase, int32_t first, int32_t last, Local& local);
    void experts_in(const ExpertsOp& op, int32_t first, int32_t last);
    void experts_out(const ExpertsOp& op, int32_t first, int32_t last);
    AttentionTask attention_task(const AttentionOp& op) const;

    int32_t count_of(RowSet set) const {
        return set == kLogitRows ? batch->num_logits : set == kKeptRows ? num_kept : batch->num_tokens;
    }
    int64_t row_in(RowSet set, int32_t place) const {
        return set == kLogitRows ? batch->logit_rows[place] : set == kKeptRows ? kept_rows[place] : place;
    }
    uint32_t kind_of(const void* op) const { return *static_cast<const uint32_t*>(op); }
    float* row_of(int32_t buffer, int64_t row) const { return buffers[buffer] + row * program.buffer_widths[buffer]; }
};

// --- Setting up ------------------------------------------------------------------------------------------------------

// The largest shapes over all operations, which memory is taken for.
void Runtime::measure(int32_t& width, uint32_t& kinds, int32_t& pairs, int32_t& inner, uint32_t& inner_kinds,
                      int32_t& experts) {
    for (int32_t i = 0; i < program.num_ops; ++i) {
        switch (kind_of(program.ops[i])) {
            case kOpLinear: {
                const auto& op = *static_cast<const LinearOp*>(program.ops[i]);
                width = larger(width, op.width);
                kinds |= kinds_of(op.segments, op.num_segments);
                break;
            }
            case kOpHead: {
                const auto& op = *static_cast<const HeadOp*>(program.ops[i]);
                width = larger(width, op.width);
                kinds |= kinds_of(op.segments, op.num_segments);
                break;
            }
            case kOpExperts: {
                const auto& op = *static_cast<const ExpertsOp*>(program.ops[i]);
                width = larger(width, op.width);
                kinds |= kinds_of(op.gate, op.num_experts) | kinds_of(op.up, op.num_experts);
                pairs = larger(pairs, op.chosen);
                inner = larger(inner, op.inner_width);
                inner_kinds |= kinds_of(op.down, op.num_experts);
                experts = larger(experts, op.num_experts);
                break;
            }
            default:
                break;
        }
    }
}

bool Runtime::set_up(const Program& given, const Kernels& table, int32_t thread_count) {
    program = given;
    kernels = &table;
    threads = thread_count;
    team = team_new(thread_count);
    if (team == nullptr) return false;

    buffers = arena.take<float*>(program.num_buffers);
    if (arena.failed) return false;
    int32_t widest = 1;
    for (int32_t i = 0; i < program.num_buffers; ++i) {
        buffers[i] = arena.take<float>(static_cast<int64_t>(program.max_tokens) * program.buffer_widths[i]);
        widest = larger(widest, program.buffer_widths[i]);
    }
    int32_t width = 1, pairs = 0, inner = 0, experts = 0;
    uint32_t kinds = 0, inner_kinds = 0;
    measure(width, kinds, pairs, inner, inner_kinds, experts);
    rows = take_rows(arena, program.max_tokens, width, kinds);
    prepared_of_group = arena.take<int32_t>(program.max_tokens / kernels->rows_at_once + 1);
    const int32_t most_pairs = program.max_tokens * pairs;
    if (pairs > 0) {
        inner_rows = take_rows(arena, most_pairs, inner, inner_kinds);
        expert_rows.starts = arena.take<int32_t>(experts + 1);
        expert_rows.tokens = arena.take<int32_t>(most_pairs);
        expert_rows.pairs = arena.take<int32_t>(most_pairs);
        expert_rows.weights = arena.take<float>(most_pairs);
    }
    // Of no operation come more than five phases.
    phases = arena.take<Phase>(program.num_ops * 5);
    kept_rows = arena.take<int32_t>(program.max_tokens);
    find_tail();
    chunks = arena.take<int32_t>(program.num_ops * 5);
    locals = arena.take<Local>(threads);
    if (arena.failed || !set_up_attention() || !set_up_screen()) return false;
    int64_t scratch = 0;
    for (int32_t i = 0; i < num_plans; ++i) {
        const int64_t needed = attention_scratch(*plans[i].op, *plans[i].op->cache);
        scratch = needed > scratch ? needed : scratch;
    }
    for (int32_t thread = 0; thread < threads; ++thread) {
        Local& local = locals[thread];
        local.rows = take_rows(arena, kFewRows, width, kinds);
        local.row = arena.take<float>(larger(padded(width), widest));
        local.attention = arena.take<uint8_t>(scratch);
        local.sampling = arena.take<float>(2 * static_cast<int64_t>(program.vocab_size));
        if (at_least != nullptr) local.slack = arena.take<float>(kFewRows * padded(width) / kTileInputs);
    }
    return !arena.failed;
}

// What comes after the last attention, if it is products and the head alone.
void Runtime::find_tail() {
    tail = program.num_ops;
    while (tail > 0 && (kind_of(program.ops[tail - 1]) == kOpLinear || kind_of(program.ops[tail - 1]) == kOpHead)) --tail;
    if (tail > 0 && kind_of(program.ops[tail - 1]) != kOpAttention) tail = program.num_ops;
}

// One plan for all operations with the same heads, window and group.
bool Runtime::set_up_attention() {
    plan_of = arena.take<int32_t>(program.num_ops);
    plans = arena.take<AttentionPlan>(program.num_ops);
    if (arena.failed) return false;
    for (int32_t i = 0; i < program.num_ops; ++i) {
        if (kind_of(program.ops[i]) != kOpAttention) continue;
        const auto* op = static_cast<const AttentionOp*>(program.ops[i]);
        int32_t found = 0;
        for (; found < num_plans; ++found) {
            const AttentionOp& other = *plans[found].op;
            if (other.heads == op->heads && other.kv_heads == op->kv_heads && other.head_size == op->head_size &&
                other.window == op->window && other.cache->group == op->cache->group &&
                other.cache->format == op->cache->format && other.cache->page_size == op->cache->page_size)
                break;
        }
        plan_of[i] = found;
        if (found < num_plans) continue;
        AttentionPlan& plan = plans[num_plans++];
        plan.op = op;
        plan.capacity = program.max_tokens * op->kv_heads + attention_partials(threads);
        plan.items = arena.take<AttentionItem>(plan.capacity);
        plan.merges = arena.take<int32_t>(plan.capacity);
        plan.partials = arena.take<float>(attention_partials(threads) * attention_partial(*op));
    }
    return !arena.failed;
}

// Memory for the bounds of a head that can be screened.
bool Runtime::set_up_screen() {
    for (int32_t i = 0; i < program.num_ops; ++i) {
        if (kind_of(program.ops[i]) != kOpHead) continue;
        const auto& op = *static_cast<const HeadOp*>(program.ops[i]);
        if (!can_be_screened(op)) continue;
        at_least = arena.take<float>(kFewRows * static_cast<int64_t>(strips_of(*op.segments)));
        at_most = arena.take<float>(kFewRows * static_cast<int64_t>(strips_of(*op.segments)));
    }
    return !arena.failed;
}

// --- Planning a step -------------------------------------------------------------------------------------------------

bool Runtime::plan(const Batch& step) {
    batch = &step;
    num_phases = 0;
    for (int32_t i = 0; i < num_plans; ++i) {
        AttentionPlan& plan = plans[i];
        plan.count = plan_attention(*plan.op, step, threads, plan.items, plan.capacity);
        if (plan.count > plan.capacity) return false;
        plan.num_merges = 0;
        for (int32_t item = 0; item < plan.count; ++item)
            if (plan.items[item].parts > 1) plan.merges[plan.num_merges++] = item;
        plan.fused = plan.num_merges == 0 && step.num_tokens == step.num_sequences;
    }
    cut = keep_rows();
    watch_screen();
    for (int32_t i = 0; i < program.num_ops; ++i) plan_op(i);
    for (int32_t thread = 0; thread < threads; ++thread) locals[thread].prepared_for = locals[thread].thresholds_of = -1;
    return true;
}

// Whether screening pays, as the step before tells.
void Runtime::watch_screen() {
    if (screen_pause > 0) --screen_pause;
    int32_t computed = 0;
    for (int32_t thread = 0; thread < threads; ++thread) {
        computed += locals[thread].contenders;
        locals[thread].contenders = 0;
    }
    if (computed > screened_strips / kContendersShare) screen_pause = kScreenPause;
    screened_strips = 0;
}

bool Runtime::screens(const HeadOp& op) const {
    if (batch->largest_wanted == nullptr || screen_pause > 0 || !can_be_screened(op)) return false;
    if (batch->num_logits < 1 || batch->num_logits > kFewRows) return false;
    for (int32_t row = 0; row < batch->num_logits; ++row) {
        if (batch->largest_wanted[row] < 1 || batch->largest_wanted[row] > kMostWanted) return false;
    }
    return true;
}

namespace {

bool rise(const int64_t* numbers, int32_t count) {
    for (int32_t i = 1; i < count; ++i)
        if (numbers[i] <= numbers[i - 1]) return false;
    return true;
}

}  // namespace

// Finds the rows with logits or hidden states; false if there are none to leave out. Rows in another order, or one asked
// for twice, would be computed twice in place.
bool Runtime::keep_rows() {
    num_kept = 0;
    if (!rise(batch->logit_rows, batch->num_logits) || !rise(batch->hidden_rows, batch->num_hidden)) return false;
    const int64_t end = batch->num_tokens;
    for (int32_t i = 0, j = 0; i < batch->num_logits || j < batch->num_hidden;) {
        const int64_t with_logits = i < batch->num_logits ? batch->logit_rows[i] : end;
        const int64_t with_hidden = j < batch->num_hidden ? batch->hidden_rows[j] : end;
        const int64_t row = with_logits < with_hidden ? with_logits : with_hidden;
        i += row == with_logits;
        j += row == with_hidden;
        kept_rows[num_kept++] = static_cast<int32_t>(row);
    }
    return num_kept < batch->num_tokens;
}

// Whether one of rows [begin, end) is kept.
bool Runtime::keeps_any(int32_t begin, int32_t end) const {
    int32_t low = 0, high = num_kept;  // the first kept row from `begin` on is between these places
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (kept_rows[middle] < begin) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < num_kept && kept_rows[low] < end;
}

// `items` things in at most `count` chunks.
void Runtime::add(PhaseKind kind, const void* op, int32_t items, int32_t count, int32_t few, int32_t plan, RowSet set) {
    if (items < 1) return;
    phases[num_phases] = Phase{kind, items, op, few, plan, set};
    chunks[num_phases++] = larger(1, smaller(items, count));
}

void Runtime::add_rows(PhaseKind kind, const void* op, int32_t rows_in_all, RowSet set) {
    add(kind, op, rows_in_all, threads == 1 ? 1 : 4 * threads, 0, -1, set);
}

// A few chunks per thread, so that who is late finds less to do; but none so small that taking it shows.
int32_t Runtime::product_chunks(int32_t strips, int64_t strip_bytes, int32_t row_count) const {
    if (threads == 1) return 1;
    const int64_t cost = strips * strip_bytes * (1 + row_count / 4);
    const int64_t wanted = cost / kChunkBytes;
    const int32_t count = wanted > kChunksPerThread * threads ? kChunksPerThread * threads : static_cast<int32_t>(wanted);
    return count < threads ? threads : count / threads * threads;
}

void Runtime::add_product(const void* op, int32_t strips, int64_t strip_bytes, RowSet set) {
    const int32_t row_count = count_of(set);
    const int32_t few = row_count <= kFewRows;
    if (!few) add_rows(kPrepareRows, op, row_count, set);
    const int32_t count = product_chunks(strips, strip_bytes, row_count);
    if (row_count > 0) add(kProduct, op, strips, count, few, -1, set);
}

namespace {

int64_t strip_bytes_of(const Segment& segment) { return pio_strip_bytes(segment.format, segment.columns); }

}  // namespace

void Runtime::plan_op(int32_t index) {
    const void* op = program.ops[index];
    const int32_t tokens = batch->num_tokens;
    switch (kind_of(op)) {
        case kOpEmbed:
            add_rows(kEmbedRows, op, tokens);
            break;
        case kOpRotary:
            add_rows(kRotaryRows, op, tokens);
            break;
        case kOpLinear: {
            const auto& linear = *static_cast<const LinearOp*>(op);
            const bool gated = linear.epilogue == kGated;
            int32_t strips = 0;
            for (int32_t i = 0; i < (gated ? 1 : linear.num_segments); ++i) strips += strips_of(linear.segments[i]);
            const RowSet set = cut && index >= tail ? kKeptRows : kEveryRow;
            add_product(op, strips, strip_bytes_of(linear.segments[0]) * (gated ? 2 : 1), set);
            break;
        }
        case kOpAttention:
            plan_attention_phases(*static_cast<const AttentionOp*>(op), index);
            break;
        case kOpRoute:
            add_rows(kRouteRows, op, tokens);
            break;
        case kOpExperts: {
            const auto& experts = *static_cast<const ExpertsOp*>(op);
            add(kGroupByExpert, op, 1, 1);
            add_rows(kPrepareRows, op, tokens);
            add(kExpertsIn, op, strips_of(experts.gate[0]), kChunksPerThread * threads);
            add_rows(kPrepareInner, op, tokens * experts.chosen);
            add(kExpertsOut, op, strips_of(experts.down[0]), kChunksPerThread * threads);
            break;
        }
        case kOpHead: {
            const auto& head = *static_cast<const HeadOp*>(op);
            add_rows(kHiddenRows, op, batch->num_hidden);
            int32_t strips = 0;
            for (int32_t i = 0; i < head.num_segments; ++i) strips += strips_of(head.segments[i]);
            if (screens(head)) {
                const int32_t count = product_chunks(strips, strip_bytes_of(head.segments[0]), batch->num_logits);
                add(kScreen, op, strips, count, 1, -1, kLogitRows);
                add(kContenders, op, strips, count, 1, -1, kLogitRows);
                screened_strips = strips;
            } else {
                add_product(op, strips, strip_bytes_of(head.segments[0]), kLogitRows);
            }
            if (head.softcap > 0.0f || head.scale != 1.0f) add_rows(kFinishLogits, op, batch->num_logits);
            break;
        }
        default:
            break;
    }
}

void Runtime::plan_attention_phases(const AttentionOp& op, int32_t index) {
    const int32_t number = plan_of[index];
    const AttentionPlan& plan = plans[number];
    const int32_t most = threads == 1 ? 1 : plan.count;
    const RowSet set = cut && index == tail - 1 ? kKeptRows : kEveryRow;
    if (plan.fused) {
        add(kWriteAndAttend, &op, plan.count, most, 0, number, set);
        return;
    }
    add_rows(kWriteKV, &op, batch->num_tokens * op.kv_heads);
    add(kAttend, &op, plan.count, most, 0, number, set);
    add(kMerge, &op, plan.num_merges, most, 0, number, set);
}

// --- Doing it --------------------------------------------------------------------------------------------------------

void Runtime::run(int32_t number, int32_t first_chunk, int32_t last_chunk, int32_t thread) {
    const Phase& phase = phases[number];
    const int64_t count = chunks[number];
    const auto first = static_cast<int32_t>(phase.items * static_cast<int64_t>(first_chunk) / count);
    const auto last = static_cast<int32_t>(phase.items * static_cast<int64_t>(last_chunk) / count);
    Local& local = locals[thread];
    switch (phase.kind) {
        case kEmbedRows:
            embed(*static_cast<const EmbedOp*>(phase.op), first, last);
            break;
        case kRotaryRows:
            rotary(*static_cast<const RotaryOp*>(phase.op), first, last);
            break;
        case kPrepareRows:
            prepare(phase, first, last, rows, local);
            group_prepared(phase, first, last);
            break;
        case kProduct:
            product(phase, number, first, last, local);
            break;
        case kScreen: {
            const auto& op = *static_cast<const HeadOp*>(phase.op);
            prepare_few(phase, number, first, local);
            screen(op, first, last, local);
            break;
        }
        case kContenders:
            contenders(phase, number, first, last, local);
            break;
        case kWriteKV:
        case kAttend:
        case kWriteAndAttend:
        case kMerge:
            attention(phase, first, last, local);
            break;
        case kRouteRows: {
            const auto& op = *static_cast<const RouteOp*>(phase.op);
            for (int32_t row = first; row < last; ++row)
                route_row(op, row_of(op.in, row), row_of(op.weights, row), row_of(op.experts, row));
            break;
        }
        case kGroupByExpert: {
            const auto& op = *static_cast<const ExpertsOp*>(phase.op);
            group_by_expert(op, batch->num_tokens, buffers[op.weights], buffers[op.experts], expert_rows);
            break;
        }
        case kExpertsIn:
            experts_in(*static_cast<const ExpertsOp*>(phase.op), first, last);
            break;
        case kPrepareInner: {
            const auto& op = *static_cast<const ExpertsOp*>(phase.op);
            Rows inner = shaped(inner_rows, batch->num_tokens * op.chosen, op.inner_width);
            const uint32_t kinds = kinds_of(op.down, op.num_experts);
            for (int32_t pair = first; pair < last; ++pair)
                kernels->prepare(buffers[op.inner] + static_cast<int64_t>(pair) * op.inner_width, kinds, pair, inner);
            break;
        }
        case kExpertsOut:
            experts_out(*static_cast<const ExpertsOp*>(phase.op), first, last);
            break;
        case kFinishLogits: {
            const auto& op = *static_cast<const HeadOp*>(phase.op);
            const int64_t vocab = program.vocab_size;
            kernels->finish_logits(batch->logits + first * vocab, (last - first) * vocab, op.scale, op.softcap);
            break;
        }
        case kHiddenRows:
            hidden(*static_cast<const HeadOp*>(phase.op), first, last);
            break;
    }
}

void Runtime::embed(const EmbedOp& op, int32_t first, int32_t last) {
    for (int32_t row = first; row < last; ++row)
        kernels->embed(*op.table, batch->token_ids[row], op.scale, row_of(op.out, row));
}

void Runtime::rotary(const RotaryOp& op, int32_t first, int32_t last) {
    int32_t sequence = 0;
    for (int32_t row = first; row < last; ++row) {
        while (batch->query_starts[sequence + 1] <= row) ++sequence;
        const bool is_long = op.long_frequencies != nullptr && batch->sequence_lengths[sequence] > op.original_length;
        const float* frequencies = is_long ? op.long_frequencies : op.frequencies;
        const auto position = static_cast<float>(batch->positions[row]);
        float* out = row_of(op.out, row);
        for (int32_t i = 0; i < op.pairs; ++i) {
            const float angle = position * frequencies[i];
            out[i] = op.factor * static_cast<float>(cos(static_cast<double>(angle)));
            out[op.pairs + i] = op.factor * static_cast<float>(sin(static_cast<double>(angle)));
        }
    }
}

Source Runtime::source_of(const void* op) const {
    if (kind_of(op) == kOpLinear) {
        const auto& linear = *static_cast<const LinearOp*>(op);
        return {linear.in, linear.width, &linear.norm, kinds_of(linear.segments, linear.num_segments)};
    }
    if (kind_of(op) == kOpHead) {
        const auto& head = *static_cast<const HeadOp*>(op);
        return {head.in, head.width, &head.norm, kinds_of(head.segments, head.num_segments)};
    }
    const auto& experts = *static_cast<const ExpertsOp*>(op);
    const uint32_t kinds = kinds_of(experts.gate, experts.num_experts) | kinds_of(experts.up, experts.num_experts);
    return {experts.in, experts.width, &experts.norm, kinds};
}

// Rows [first, last) of what a product reads, among the rows that it is for.
void Runtime::prepare(const Phase& phase, int32_t first, int32_t last, Rows& into, Local& local) {
    const Source source = source_of(phase.op);
    // Norms have channels that are many times as large as others; what attention and the units inside bring forth has not.
    const bool normed = source.norm->weight != nullptr;
    const uint32_t kinds = source.kinds | (normed ? kRowsOutliers : 0);
    Rows view = shaped(into, count_of(phase.rows), source.width);
    for (int32_t row = first; row < last; ++row) {
        const float* x = row_of(source.in, row_in(phase.rows, row));
        if (normed) {
            kernels->norm(x, *source.norm, source.width, local.row);
            x = local.row;
        }
        kernels->prepare(x, kinds, row, view);
    }
}

// Sorts the outliers of the groups of rows that are complete now that rows [first, last) are prepared.
void Runtime::group_prepared(const Phase& phase, int32_t first, int32_t last) {
    const Source source = source_of(phase.op);
    if ((source.kinds & kRowsI8) == 0) return;
    const int32_t at_once = kernels->rows_at_once;
    const int32_t count = count_of(phase.rows);
    Rows view = shaped(rows, count, source.width);
    for (int32_t row = first; row < last;) {
        const int32_t begin = row / at_once * at_once;
        const int32_t end = smaller(begin + at_once, count);
        const int32_t stop = smaller(end, last);
        int32_t& prepared = prepared_of_group[row / at_once];
        if (__atomic_add_fetch(&prepared, stop - row, __ATOMIC_ACQ_REL) == end - begin) {
            prepared = 0;
            kernels->group_outliers(view, begin, end);
        }
        row = stop;
    }
}

// Asks for the weights that a product begins with at strip `first`: the kernels fetch those that follow.
void Runtime::fetch_first(const void* op, int32_t first) {
    constexpr int64_t kBytes = 4096;
    const bool is_head = kind_of(op) == kOpHead;
    const Segment* segment = is_head ? static_cast<const HeadOp*>(op)->segments : static_cast<const LinearOp*>(op)->segments;
    const bool gated = !is_head && static_cast<const LinearOp*>(op)->epilogue == kGated;
    for (; first >= strips_of(*segment); ++segment) first -= strips_of(*segment);
    for (int32_t i = 0; i < (gated ? 2 : 1); ++i) {
        const int64_t stride = strip_stride(segment[i].format, padded(segment[i].columns) / kTileInputs);
        const uint8_t* bytes = segment[i].strips + first * stride;
        for (int64_t at = 0; at < kBytes; at += 64) __builtin_prefetch(bytes + at, 0, 0);
    }
}

// Prepares the rows of phase `number` in this thread's own memory, if that is not done yet; `first` is its first strip.
void Runtime::prepare_few(const Phase& phase, int32_t number, int32_t first, Local& local) {
    if (local.prepared_for == number) return;
    const int32_t count = count_of(phase.rows);
    fetch_first(phase.op, first);
    prepare(phase, 0, count, local.rows, local);
    const Source source = source_of(phase.op);
    Rows view = shaped(local.rows, count, source.width);
    if (source.kinds & kRowsI8) kernels->group_outliers(view, 0, count);
    if (phase.kind == kScreen) {
        for (int32_t row = 0; row < count; ++row) screen_slack(view, row, local.slack + row * (view.stride / kTileInputs));
    }
    local.prepared_for = number;
}

void Runtime::product(const Phase& phase, int32_t number, int32_t first, int32_t last, Local& local) {
    const int32_t count = count_of(phase.rows);
    if (phase.few) prepare_few(phase, number, first, local);
    const Rows& prepared = phase.few ? local.rows : rows;
    if (kind_of(phase.op) == kOpHead) {
        const auto& op = *static_cast<const HeadOp*>(phase.op);
        head(op, shaped(prepared, count, op.width), first, last);
    } else {
        const auto& op = *static_cast<const LinearOp*>(phase.op);
        linear(op, shaped(prepared, count, op.width), phase.rows == kKeptRows ? kept_rows : nullptr, first, last);
    }
}

namespace {

// Calls the kernel for strips [first, last), counted over all segments.
void over_segments(const Kernels& kernels, const Segment* segments, int32_t count, LinearTask task, int32_t first,
                   int32_t last) {
    int32_t start = 0;
    for (int32_t i = 0; i < count && start < last; ++i) {
        const int32_t strips = strips_of(segments[i]);
        const int32_t from = larger(first - start, 0), to = smaller(last - start, strips);
        task.weights = &segments[i];
        if (from < to) kernels.linear(task, from, to);
        start += strips;
    }
}

}  // namespace

void Runtime::linear(const LinearOp& op, const Rows& x, const int32_t* out_rows, int32_t first, int32_t last) {
    LinearTask task{};
    task.x = &x;
    task.out_rows = out_rows;
    task.rows = x.count;
    task.y = buffers[op.out];
    task.y_stride = program.buffer_widths[op.out];
    task.epilogue = op.epilogue;
    task.activation = op.activation;
    task.scale = op.scale;
    if (op.epilogue == kGated) {
        task.weights = &op.segments[0];
        task.up = &op.segments[1];
        kernels->linear(task, first, last);
    } else {
        over_segments(*kernels, op.segments, op.num_segments, task, first, last);
    }
}

void Runtime::head(const HeadOp& op, const Rows& x, int32_t first, int32_t last) {
    LinearTask task{};
    task.x = &x;
    task.rows = x.count;
    task.y = batch->logits;
    task.y_stride = program.vocab_size;
    task.epilogue = kStore;
    task.scale = 1.0f;
    over_segments(*kernels, op.segments, op.num_segments, task, first, last);
}

void Runtime::screen(const HeadOp& op, int32_t first, int32_t last, Local& local) {
    const Rows x = shaped(local.rows, batch->num_logits, op.width);
    kernels->screen({op.segments, &x, local.slack, x.count, at_least, at_most, strips_of(*op.segments)}, first, last);
}

// Computes the strips that may have one of the wanted logits, as a product does; the logits of others become -inf.
void Runtime::contenders(const Phase& phase, int32_t number, int32_t first, int32_t last, Local& local) {
    const auto& op = *static_cast<const HeadOp*>(phase.op);
    const int32_t strips = strips_of(*op.segments);
    const int32_t rows_in_all = batch->num_logits;
    if (local.prepared_for != number - 1) prepare_few(phase, number, first, local);
    if (local.thresholds_of != number) {
        for (int32_t row = 0; row < rows_in_all; ++row) {
            local.thresholds[row] = screen_threshold(at_least + row * strips, strips, batch->largest_wanted[row]);
        }
        local.thresholds_of = number;
    }
    const auto contends = [&](int32_t strip) {
        bool any = false;
        for (int32_t row = 0; row < rows_in_all; ++row) any |= at_most[row * strips + strip] >= local.thresholds[row];
        return any;
    };
    for (int32_t strip = first; strip < last;) {
        const bool computed = contends(strip);
        const int32_t begin = strip;
        while (++strip < last && contends(strip) == computed) continue;
        if (computed) {
            head(op, shaped(local.rows, rows_in_all, op.width), begin, strip);
            local.contenders += strip - begin;
            continue;
        }
        const int32_t end = smaller(kTileRows * strip, op.segments->rows);
        for (int32_t row = 0; row < rows_in_all; ++row) {
            float* logits = batch->logits + static_cast<int64_t>(row) * program.vocab_size;
            for (int32_t token = kTileRows * begin; token < end; ++token) logits[token] = -__builtin_inff();
        }
    }
}

// What the head reads, normed and as exact as it is, of rows [first, last) of those that are wanted.
void Runtime::hidden(const HeadOp& op, int32_t first, int32_t last) {
    for (int32_t place = first; place < last; ++place) {
        const float* x = row_of(op.in, batch->hidden_rows[place]);
        float* out = batch->hidden + static_cast<int64_t>(place) * op.width;
        if (op.norm.weight != nullptr) {
            kernels->norm(x, op.norm, op.width, out);
            continue;
        }
        for (int32_t i = 0; i < op.width; ++i) out[i] = x[i];
    }
}

AttentionTask Runtime::attention_task(const AttentionOp& op) const {
    AttentionTask task{};
    task.op = &op;
    task.batch = batch;
    task.qkv = buffers[op.qkv];
    task.qkv_stride = program.buffer_widths[op.qkv];
    task.rotary = op.rotary < 0 ? nullptr : buffers[op.rotary];
    task.out = buffers[op.out];
    task.out_stride = program.buffer_widths[op.out];
    return task;
}

void Runtime::attention(const Phase& phase, int32_t first, int32_t last, Local& local) {
    const auto& op = *static_cast<const AttentionOp*>(phase.op);
    const AttentionTask task = attention_task(op);
    if (phase.kind == kWriteKV) {
        for (int32_t i = first; i < last; ++i) kernels->write_kv(task, i / op.kv_heads, i % op.kv_heads);
        return;
    }
    const AttentionPlan& plan = plans[phase.plan];
    for (int32_t i = first; i < last; ++i) {
        const AttentionItem& item = plan.items[phase.kind == kMerge ? plan.merges[i] : i];
        if (phase.kind == kWriteAndAttend) kernels->write_kv(task, item.row_begin, item.kv_head);
        if (phase.rows == kKeptRows && !keeps_any(item.row_begin, item.row_end)) continue;
        if (phase.kind == kMerge) {
            kernels->merge(task, item, plan.partials);
            continue;
        }
        const AttentionItem* following = i + 1 < plan.count ? &plan.items[i + 1] : nullptr;
        kernels->attend(task, item, following, local.attention, plan.partials);
    }
}

// inner[pair] = activation(gate_e x) * (up_e x) for strips [first, last) of every expert.
void Runtime::experts_in(const ExpertsOp& op, int32_t first, int32_t last) {
    Rows x = shaped(rows, batch->num_tokens, op.width);
    x.outlier_columns = nullptr;  // the rows of an expert are none of the groups
    LinearTask task{};
    task.x = &x;
    task.y = buffers[op.inner];
    task.y_stride = op.inner_width;
    task.epilogue = kGated;
    task.activation = op.activation;
    task.scale = 1.0f;
    for (int32_t e = 0; e < op.num_experts; ++e) {
        const int32_t start = expert_rows.starts[e];
        task.rows = expert_rows.starts[e + 1] - start;
        if (task.rows == 0) continue;
        task.weights = &op.gate[e];
        task.up = &op.up[e];
        task.in_rows = expert_rows.tokens + start;
        task.out_rows = expert_rows.pairs + start;
        kernels->linear(task, first, last);
    }
}

// out[token] += weight * down_e inner[pair]. A strip belongs to one thread, so experts add in one order.
void Runtime::experts_out(const ExpertsOp& op, int32_t first, int32_t last) {
    Rows x = shaped(inner_rows, batch->num_tokens * op.chosen, op.inner_width);
    x.outlier_columns = nullptr;
    LinearTask task{};
    task.x = &x;
    task.y = buffers[op.out];
    task.y_stride = program.buffer_widths[op.out];
    task.epilogue = kAdd;
    task.scale = 1.0f;
    for (int32_t e = 0; e < op.num_experts; ++e) {
        const int32_t start = expert_rows.starts[e];
        task.rows = expert_rows.starts[e + 1] - start;
        if (task.rows == 0) continue;
        task.weights = &op.down[e];
        task.in_rows = expert_rows.pairs + start;
        task.out_rows = expert_rows.tokens + start;
        task.row_scales = expert_rows.weights + start;
        kernels->linear(task, first, last);
    }
}

// --- The C ABI -------------------------------------------------------------------------------------------------------

namespace {

void run_chunks(void* runtime, int32_t phase, int32_t first, int32_t last, int32_t thread) {
    static_cast<Runtime*>(runtime)->run(phase, first, last, thread);
}

struct SampleCall {
    const Runtime* runtime;
    const float* logits;
    const Sampling* sampling;
};

void sample_draws(void* context, int32_t, int32_t first, int32_t last, int32_t thread) {
    const auto& call = *static_cast<const SampleCall*>(context);
    for (int32_t draw = first; draw < last; ++draw) {
        const float* row = call.logits + call.sampling->logit_rows[draw] * call.sampling->stride;
        call.sampling->chosen[draw] =
            call.runtime->kernels->sample(row, *call.sampling, draw, call.runtime->locals[thread].sampling);
    }
}

}  // namespace

Runtime* pio_runtime_new(const Program* program, int32_t isa, int32_t threads) {
    const Kernels* table = pio::kernels_of(isa);
    if (table == nullptr || threads < 1) return nullptr;
    auto* runtime = static_cast<Runtime*>(pio_memory_new(sizeof(Runtime)));
    if (runtime == nullptr) return nullptr;
    if (runtime->set_up(*program, *table, threads)) return runtime;
    pio_runtime_free(runtime);
    return nullptr;
}

void pio_runtime_free(Runtime* runtime) {
    if (runtime == nullptr) return;
    team_free(runtime->team);
    runtime->arena.free_all();
    pio_memory_free(runtime, sizeof(Runtime));
}

int32_t pio_runtime_step(Runtime* runtime, const Batch* batch) {
    const int32_t most = runtime->program.max_tokens;
    if (batch->num_tokens > most || batch->num_logits > most || batch->num_hidden > most) return -1;
    if (batch->num_tokens < 1) return 0;
    if (!runtime->plan(*batch)) return -1;
    team_run(runtime->team, runtime->chunks, runtime->num_phases, run_chunks, runtime);
    return 0;
}

int32_t pio_runtime_sample(Runtime* runtime, const float* logits, const Sampling* sampling) {
    if (sampling->vocab_size > runtime->program.vocab_size) return -1;
    SampleCall call{runtime, logits, sampling};
    team_run(runtime->team, &sampling->rows, 1, sample_draws, &call);
    return 0;
}
