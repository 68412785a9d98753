// The attention kernels of one instruction set as C functions, for tests and measurements. Compiled with PIO_ISA set to
// its name and the compiler flags of it, beside attention_plan.cpp (and scalar/attention.cpp for `scalar`).
#if defined(PIO_SCALAR)
#include "../../native/attention_layout.h"
#include "../../native/scalar/scalar.h"
#define PIO_ISA scalar
#else
#include "../../native/vector/attention.h"
#endif

// For all rows and KV heads, the last first: their order must not matter.
PIO_EXPORT void shim_write(const pio::AttentionTask* task) {
    for (int32_t row = task->batch->num_tokens - 1; row >= 0; row--) {
        for (int32_t head = 0; head < task->op->kv_heads; head++) pio::PIO_ISA::write_kv(*task, row, head);
    }
}

PIO_EXPORT void shim_attend(const pio::AttentionTask* task, const pio::AttentionItem* item, uint8_t* scratch,
                            float* partials) {
    pio::PIO_ISA::attend(*task, *item, nullptr, scratch, partials);
}

PIO_EXPORT void shim_merge(const pio::AttentionTask* task, const pio::AttentionItem* item, const float* partials) {
    pio::PIO_ISA::merge(*task, *item, partials);
}

PIO_EXPORT int32_t shim_plan(const AttentionOp* op, const Batch* batch, int32_t threads, pio::AttentionItem* items,
                             int32_t capacity) {
    return pio::plan_attention(*op, *batch, threads, items, capacity);
}

PIO_EXPORT int64_t shim_scratch(const AttentionOp* op) { return pio::attention_scratch(*op, *op->cache); }

PIO_EXPORT int64_t shim_partial(const AttentionOp* op) { return pio::attention_partial(*op); }

PIO_EXPORT int32_t shim_partials(int32_t threads) { return pio::attention_partials(threads); }
