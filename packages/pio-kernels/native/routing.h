// Mixtures of experts: which expert a token goes to, and the tokens of each expert.
#pragma once

#include "program.h"

namespace pio {

// The tokens that each expert serves. Pair t * chosen + j is choice j of token t.
struct ExpertRows {
    int32_t* starts;  // (experts + 1,): the pairs of expert e are at [starts[e], starts[e + 1])
    int32_t* tokens;  // (pairs,)
    int32_t* pairs;   // (pairs,): numbers of the pairs, ascending within an expert
    float* weights;   // (pairs,)
};

// Chooses the experts of one token: its row of scores in, its rows of weights and of numbers out.
void route_row(const RouteOp& op, const float* scores, float* weights, float* experts);

// Sorts the pairs of `tokens` tokens by expert, from the (tokens, chosen) buffers that route_row filled.
void group_by_expert(const ExpertsOp& op, int32_t tokens, const float* weights, const float* experts, ExpertRows& rows);

}  // namespace pio
