// The scalar kernels, plain loops that specify what the vector versions compute; one file beside this per family.
//
// The vector versions of `vector/*.h` have the same names, inside of namespace pio::PIO_ISA, a name that the file of each
// instruction set defines before it includes them.
#pragma once

#include "../kernels.h"

namespace pio::scalar {

void norm(const float* x, const Norm& norm, int32_t columns, float* y);
void prepare(const float* x, uint32_t kinds, int32_t row, Rows& out);
void embed(const Segment& table, int64_t row, float scale, float* y);
void linear(const LinearTask& task, int32_t first_strip, int32_t last_strip);
void screen(const ScreenTask& task, int32_t first_strip, int32_t last_strip);
void finish_logits(float* y, int64_t n, float scale, float softcap);

void write_kv(const AttentionTask& task, int32_t row, int32_t kv_head);
void attend(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch,
            float* partials);
void merge(const AttentionTask& task, const AttentionItem& item, const float* partials);

int64_t sample(const float* logits, const Sampling& sampling, int32_t draw, float* scratch);

// activation(x) by an Activation, with an error of at most 2e-7 max(1, |activation(x)|).
float activate(uint32_t activation, float x);

}  // namespace pio::scalar
