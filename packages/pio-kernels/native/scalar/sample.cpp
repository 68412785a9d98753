// The passes over a row of logits that drawing a token is made of; see sampling.h for their order.
#include "../sampling.h"

#include "functions.h"
#include "scalar.h"

namespace pio::scalar {
namespace {

struct Loops {
    // y = x where the token's bit is set, -inf elsewhere; a NaN stays one
    static void forbid(const float* x, const uint32_t* mask, int32_t count, float* y) {
        for (int32_t i = 0; i < count; ++i) {
            const bool allowed = ((mask[i / 32] >> (i % 32)) & 1u) != 0;
            y[i] = allowed || x[i] != x[i] ? x[i] : -__builtin_inff();
        }
    }

    static Range range(const float* x, int32_t count) {
        Range range = {-__builtin_inff(), false};
        for (int32_t i = 0; i < count; ++i) {
            if (x[i] > range.largest) range.largest = x[i];
            if (x[i] != x[i]) range.has_nan = true;
        }
        return range;
    }

    // The first i with x_i = value, which there is
    static int32_t first_of(const float* x, int32_t, float value) {
        int32_t i = 0;
        while (x[i] != value) ++i;
        return i;
    }

    // A number that at least k of x reach, or -inf: the closer to the k-th largest, the fewer are gathered
    static float bound(const float*, int32_t, int32_t) { return -__builtin_inff(); }

    // Logits of at least `least`, never -inf, and their ids. `x` may be set.scores.
    static void gather(const float* x, int32_t count, float least, Candidates& set) {
        set.count = 0;
        for (int32_t i = 0; i < count; ++i) {
            if (!(x[i] >= least && x[i] > -__builtin_inff())) continue;
            set.scores[set.count] = x[i];
            set.ids[set.count++] = i;
        }
    }

    static void scale(Candidates& set, float largest, float temperature) {
        for (int32_t i = 0; i < set.count; ++i) set.scores[i] = (set.scores[i] - largest) / temperature;
    }

    // Scores become weights; returns the sum of them, and of weights times scores. Below e^kExpMin is nothing.
    static double exponentiate(Candidates& set, double& weighted_scores) {
        double sum = 0.0;
        for (int32_t i = 0; i < set.count; ++i) {
            const float score = set.scores[i];
            const float weight = score < kExpMin ? 0.0f : exp(score);
            set.scores[i] = weight;
            sum += weight;
            if (weight > 0.0f) weighted_scores += static_cast<double>(weight) * score;
        }
        return sum;
    }

    // Leaves candidates with scores of at least `least`
    static void keep(Candidates& set, float least) {
        int32_t kept = 0;
        for (int32_t i = 0; i < set.count; ++i) {
            if (!(set.scores[i] >= least)) continue;
            set.scores[kept] = set.scores[i];
            set.ids[kept++] = set.ids[i];
        }
        set.count = kept;
    }

    static double sum(const Candidates& set) {
        double sum = 0.0;
        for (int32_t i = 0; i < set.count; ++i) sum += set.scores[i];
        return sum;
    }

    // The first place at which the sum up to there exceeds `target`, or the last that weighs something
    static int32_t locate(const Candidates& set, double target) {
        double sum = 0.0;
        int32_t place = 0;
        for (int32_t i = 0; i < set.count; ++i) {
            if (set.scores[i] > 0.0f) place = i;
            sum += set.scores[i];
            if (sum > target) break;
        }
        return place;
    }
};

}  // namespace

int64_t sample(const float* logits, const Sampling& sampling, int32_t draw, float* scratch) {
    return draw_token<Loops>(logits, sampling, draw, scratch);
}

}  // namespace pio::scalar
