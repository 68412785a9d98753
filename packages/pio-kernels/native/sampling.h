// How a token is drawn from a row of logits: the steps and their order, once for all instruction sets.
//
// With x the logits that are allowed and m the largest, a candidate i weighs w_i = exp((x_i - m) / temperature). Filters
// leave some of the candidates, and the one is drawn at which the cumulative weight, in order of token ids, first exceeds
// the share `uniform` of the whole. Nothing is sorted: each filter keeps what reaches a threshold, which is found by
// counting.
//
// `Loops` are the passes over the row; `scalar/sample.cpp` says what each does:
//   forbid, range, first_of, bound, gather, scale, exponentiate, keep, sum, locate
#pragma once

#include "kernels.h"
#include "numbers.h"

namespace pio {

// Candidates in order of token ids. A score is a logit, then a scaled difference of logits, then a weight.
struct Candidates {
    float* scores;
    int32_t* ids;
    int32_t count;
};

struct Range {
    float largest;
    bool has_nan;
};

// Whole numbers in the order of floats, NaN aside.
static inline uint32_t ordered(float x) {
    const uint32_t bits = bits_of(x);
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

static inline float from_ordered(uint32_t key) { return float_of(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu)); }

// The largest t for which the masses of all i < count with key(i) >= t come to `goal` at least; the smallest key that has
// a mass if they never do. Keys are narrowed down from their leading bits, each time adding up masses by the next bits.
template <class Key, class Mass>
static uint32_t threshold(int32_t count, const Key& key, const Mass& mass, double goal) {
    constexpr int kDigits = 3;
    constexpr int kShifts[kDigits] = {21, 10, 0};
    constexpr uint32_t kSizes[kDigits] = {2048, 2048, 1024};
    uint32_t prefix = 0, known_bits = 0;
    double above = 0.0;
    for (int digit = 0; digit < kDigits; ++digit) {
        double masses[2048] = {};
        const uint32_t last = kSizes[digit] - 1;
        for (int32_t i = 0; i < count; ++i) {
            const uint32_t k = key(i);
            if ((k & known_bits) == prefix) masses[(k >> kShifts[digit]) & last] += mass(i);
        }
        int64_t chosen = -1;
        for (int64_t value = last; value >= 0; --value) {
            if (masses[value] == 0.0) continue;
            if (chosen >= 0) above += masses[chosen];
            chosen = value;
            if (above + masses[value] >= goal) break;
        }
        if (chosen < 0) return prefix;
        prefix |= static_cast<uint32_t>(chosen) << kShifts[digit];
        known_bits |= last << kShifts[digit];
    }
    return prefix;
}

// The `k`-th largest of `count` numbers, k <= count.
static inline float kth_largest(const float* x, int32_t count, int32_t k) {
    return from_ordered(threshold(
        count, [&](int32_t i) { return ordered(x[i]); }, [](int32_t) { return 1.0; }, k));
}

// Leaves the locally typical set (Meister et al. 2023, arXiv:2202.00666, section 4), and what ties with its last: those
// first whose surprise -log p is closest to the entropy, until they weigh `goal`. As log p_i = s_i - log(sum w), the
// distance is that of s_i = (x_i - m) / temperature to its mean under p, `mean_score`.
static inline void keep_typical(Candidates& set, const float* logits, float largest, float temperature, double mean_score,
                         double goal) {
    auto distance = [&](int32_t i) {
        const double score = (logits[set.ids[i]] - largest) / temperature;
        return __builtin_fabsf(static_cast<float>(score - mean_score));
    };
    auto closeness = [&](int32_t i) { return ~bits_of(distance(i)); };
    const float furthest = float_of(~threshold(
        set.count, closeness, [&](int32_t i) { return set.scores[i]; }, goal));
    int32_t kept = 0;
    for (int32_t i = 0; i < set.count; ++i) {
        if (distance(i) > furthest) continue;
        set.scores[kept] = set.scores[i];
        set.ids[kept++] = set.ids[i];
    }
    set.count = kept;
}

// Leaves the smallest set of weights that reaches `share` of the `total` (Holtzman et al. 2020, arXiv:1904.09751, section
// 3.1); of equals at its edge those with lower ids.
template <class Loops>
static void keep_nucleus(Candidates& set, double share, double total) {
    // Weights below this come to less than 1 - share together, so that the rest reaches it.
    constexpr double kSlack = 1.0 - 1e-5;
    Loops::keep(set, static_cast<float>((1.0 - share) * total / set.count * kSlack));
    const double goal = share * total;
    auto weight = [&](int32_t i) { return static_cast<double>(set.scores[i]); };
    const float least = float_of(threshold(
        set.count, [&](int32_t i) { return bits_of(set.scores[i]); }, weight, goal));
    double reached = 0.0;
    for (int32_t i = 0; i < set.count; ++i) reached += set.scores[i] > least ? weight(i) : 0.0;
    int32_t kept = 0;
    for (int32_t i = 0; i < set.count; ++i) {
        if (set.scores[i] < least || (set.scores[i] == least && reached > 0.0 && reached >= goal)) continue;
        if (set.scores[i] == least) reached += weight(i);
        set.scores[kept] = set.scores[i];
        set.ids[kept++] = set.ids[i];
    }
    set.count = kept;
}

// Draws number `draw` of `sampling` from one row of logits (V,); see Sampling. `scratch` holds 2 V floats.
template <class Loops>
static int64_t draw_token(const float* logits, const Sampling& sampling, int32_t draw, float* scratch) {
    const int32_t vocab = sampling.vocab_size;
    const float infinity = __builtin_inff();
    Candidates set = {scratch, reinterpret_cast<int32_t*>(scratch + vocab), 0};
    const float* allowed = logits;
    if (sampling.masks != nullptr) {
        Loops::forbid(logits, sampling.masks + static_cast<int64_t>(draw) * ((vocab + 31) / 32), vocab, set.scores);
        allowed = set.scores;
    }
    const Range range = Loops::range(allowed, vocab);
    if (range.has_nan || range.largest == infinity || range.largest == -infinity) return -1;
    const float temperature = sampling.temperature[draw];
    if (temperature == 0.0f) return Loops::first_of(allowed, vocab, range.largest);

    const int32_t top_k = sampling.top_k[draw];
    const bool limited = top_k > 0 && top_k < vocab;
    Loops::gather(allowed, vocab, limited ? Loops::bound(allowed, vocab, top_k) : -infinity, set);
    if (limited && set.count > top_k) Loops::keep(set, kth_largest(set.scores, set.count, top_k));
    Loops::scale(set, range.largest, temperature);
    double weighted_scores = 0.0;
    double total = Loops::exponentiate(set, weighted_scores);

    const double typical_p = sampling.typical_p[draw];
    if (typical_p < 1.0) {
        keep_typical(set, logits, range.largest, temperature, weighted_scores / total, typical_p * total);
        total = Loops::sum(set);
    }
    const double top_p = sampling.top_p[draw];
    if (top_p < 1.0) keep_nucleus<Loops>(set, top_p, total);
    const float min_p = sampling.min_p[draw];
    if (min_p > 0.0f) Loops::keep(set, min_p * Loops::range(set.scores, set.count).largest);
    return set.ids[Loops::locate(set, sampling.uniforms[draw] * Loops::sum(set))];
}

}  // namespace pio
