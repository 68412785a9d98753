// The passes of sampling.h, sixteen numbers at a time; scalar/sample.cpp says what each does.
#pragma once

#include "../sampling.h"
#include "simd.h"

namespace pio::PIO_ISA {

struct SampleLoops {
    static constexpr int kLanes = 16;
    static constexpr int kChunk = 128;  // numbers whose sum is float32; beyond it is float64
    static constexpr int kParts = 16;   // vectors of maxima that bound the k-th largest

    // Written so that compilers vectorise them: whole numbers in the order of floats have a maximum without NaN's rules.
    static void forbid(const float* x, const uint32_t* mask, int32_t count, float* y) {
        for (int32_t start = 0; start < count; start += 32) {
            const uint32_t word = mask[start / 32];
            const int32_t n = count - start < 32 ? count - start : 32;
            for (int32_t i = 0; i < n; ++i) {
                const float value = x[start + i];
                const bool allowed = ((word >> i) & 1u) != 0;
                y[start + i] = (allowed | (value != value)) ? value : -__builtin_inff();
            }
        }
    }

    static int32_t key(float x) {
        const int32_t bits = static_cast<int32_t>(bits_of_float(x));
        return bits ^ ((bits >> 31) & INT32_MAX);
    }

    static float of_key(int32_t key) {
        return float_of(static_cast<uint32_t>(key ^ ((key >> 31) & INT32_MAX)));
    }

    static Range range(const float* x, int32_t count) {
        int32_t largest = key(-__builtin_inff()), smallest = key(__builtin_inff());
        for (int32_t i = 0; i < count; ++i) {
            const int32_t k = key(x[i]);
            largest = k > largest ? k : largest;
            smallest = k < smallest ? k : smallest;
        }
        const bool has_nan = largest > key(__builtin_inff()) || smallest < key(-__builtin_inff());
        return {of_key(largest), has_nan};
    }

    static int32_t first_of(const float* x, int32_t count, float value) {
        constexpr int32_t block = 256;
        for (int32_t start = 0; start + block <= count; start += block) {
            bool found = false;
            for (int32_t i = 0; i < block; ++i) found |= x[start + i] == value;
            if (found) return first_from(x, start, value);
        }
        return first_from(x, count / block * block, value);
    }

    // The k-th largest of the maxima of 256 disjoint parts: each of k parts has one that reaches it.
    static float bound(const float* x, int32_t count, int32_t k) {
        constexpr int32_t block = kParts * kLanes;
        if (k > block) return -__builtin_inff();
        F32x16 largest[kParts];
        for (int p = 0; p < kParts; ++p) largest[p] = broadcast(-__builtin_inff());
        for (int32_t start = 0; start + block <= count; start += block) {
#pragma unroll
            for (int p = 0; p < kParts; ++p) largest[p] = maximum(largest[p], load(x + start + p * kLanes));
        }
        float maxima[block];
        for (int p = 0; p < kParts; ++p) store(maxima + p * kLanes, largest[p]);
        return kth_largest(maxima, block, k);
    }

    static void gather(const float* x, int32_t count, float least, Candidates& set) {
        const float lowest = -__builtin_inff() < least ? least : -kLargestFloat;
        set.count = 0;
        int32_t start = 0;
        for (; start + kLanes <= count; start += kLanes) gather_lanes(x, start, lowest, set);
        for (int32_t i = start; i < count; ++i) append(set, x[i], i, x[i] >= lowest);
    }

    static void keep(Candidates& set, float least) {
        const int32_t count = set.count;
        set.count = 0;
        int32_t start = 0;
        for (; start + kLanes <= count; start += kLanes) keep_lanes(start, least, set);
        for (int32_t i = start; i < count; ++i) append(set, set.scores[i], set.ids[i], set.scores[i] >= least);
    }

    static void scale(Candidates& set, float largest, float temperature) {
        for (int32_t i = 0; i < set.count; ++i) set.scores[i] = (set.scores[i] - largest) / temperature;
    }

    static double exponentiate(Candidates& set, double& weighted_scores) {
        double total = 0.0;
        for (int32_t start = 0; start < set.count; start += kChunk) {
            F32x16 weights = zeros(), products = zeros();
            const int32_t end = start + kChunk < set.count ? start + kChunk : set.count;
            for (int32_t i = start; i < end; i += kLanes) {
                const int n = end - i < kLanes ? end - i : kLanes;
                const F32x16 score = load(set.scores + i, n);
                const F32x16 some = select_less(score, broadcast(kExpMin), zeros(), exp(score));
                store(set.scores + i, some, n);
                const F32x16 weight = load(set.scores + i, n);  // lanes beyond n are zero
                weights = add(weights, weight);
                products = multiply_add(weight, maximum(score, broadcast(kExpMin)), products);
            }
            total += ::pio::PIO_ISA::sum(weights);
            weighted_scores += ::pio::PIO_ISA::sum(products);
        }
        return total;
    }

    static double sum(const Candidates& set) {
        double total = 0.0;
        for (int32_t start = 0; start < set.count; start += kChunk) total += chunk_sum(set, start);
        return total;
    }

    static int32_t locate(const Candidates& set, double target) {
        double before = 0.0;
        int32_t start = 0;
        for (; start + kChunk < set.count; start += kChunk) {
            const double through = before + chunk_sum(set, start);
            if (through > target) break;
            before = through;
        }
        int32_t place = last_with_weight(set, start + kChunk < set.count ? start + kChunk : set.count);
        for (int32_t i = start; i <= place; ++i) {
            before += set.scores[i];
            if (before > target) return i;
        }
        return place;
    }

   private:

    static uint32_t bits_of_float(float x) { return ::pio::bits_of(x); }

    static int32_t first_from(const float* x, int32_t i, float value) {
        while (x[i] != value) ++i;
        return i;
    }

    static int32_t last_with_weight(const Candidates& set, int32_t end) {
        int32_t i = end - 1;
        while (i > 0 && set.scores[i] == 0.0f) --i;
        return i;
    }

    static float chunk_sum(const Candidates& set, int32_t start) {
        const int32_t end = start + kChunk < set.count ? start + kChunk : set.count;
        F32x16 weights = zeros();
        for (int32_t i = start; i < end; i += kLanes) {
            weights = add(weights, load(set.scores + i, end - i < kLanes ? end - i : kLanes));
        }
        return ::pio::PIO_ISA::sum(weights);
    }

    static void append(Candidates& set, float score, int32_t id, bool wanted) {
        set.scores[set.count] = score;
        set.ids[set.count] = id;
        set.count += wanted ? 1 : 0;
    }

#if defined(__AVX512F__)

    // Packs the lanes that are wanted together in a register: a store that does so takes many times as long on some
    // processors. The lanes behind them are written too, over numbers that have been read.
    static void gather_lanes(const float* x, int32_t start, float least, Candidates& set) {
        const __m512 scores = _mm512_loadu_ps(x + start);
        const __mmask16 wanted = _mm512_cmp_ps_mask(scores, _mm512_set1_ps(least), _CMP_GE_OQ);
        if (wanted == 0) return;
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        pack(scores, _mm512_add_epi32(lanes, _mm512_set1_epi32(start)), wanted, set);
    }

    static void keep_lanes(int32_t start, float least, Candidates& set) {
        const __m512 scores = _mm512_loadu_ps(set.scores + start);
        const __mmask16 wanted = _mm512_cmp_ps_mask(scores, _mm512_set1_ps(least), _CMP_GE_OQ);
        pack(scores, _mm512_loadu_si512(set.ids + start), wanted, set);
    }

    static void pack(__m512 scores, __m512i ids, __mmask16 wanted, Candidates& set) {
        _mm512_storeu_ps(set.scores + set.count, _mm512_maskz_compress_ps(wanted, scores));
        _mm512_storeu_si512(set.ids + set.count, _mm512_maskz_compress_epi32(wanted, ids));
        set.count += __builtin_popcount(wanted);
    }

#else

    static void gather_lanes(const float* x, int32_t start, float least, Candidates& set) {
        bool any = false;
        for (int i = 0; i < kLanes; ++i) any |= x[start + i] >= least;
        if (!any) return;
        for (int32_t i = start; i < start + kLanes; ++i) append(set, x[i], i, x[i] >= least);
    }

    static void keep_lanes(int32_t start, float least, Candidates& set) {
        for (int32_t i = start; i < start + kLanes; ++i) {
            append(set, set.scores[i], set.ids[i], set.scores[i] >= least);
        }
    }

#endif
};

static int64_t sample(const float* logits, const Sampling& sampling, int32_t draw, float* scratch) {
    return draw_token<SampleLoops>(logits, sampling, draw, scratch);
}

}  // namespace pio::PIO_ISA
