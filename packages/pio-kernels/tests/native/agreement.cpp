// Compares the kernels around products of an instruction set with the scalar ones over random tiles and rows, for
// processors that only an emulator runs. Prints how many outputs agreed; exit code 1 at the first that does not.
#include <stdio.h>
#include <string.h>

#include "../../native/numbers.h"
#include "../../native/kernels.h"
#include "../../native/strips.h"

namespace {

constexpr int kCount = 11;
constexpr int kRows = 41;
constexpr int kMaxColumns = 160;
constexpr int kStrips = (kRows + 15) / 16;
constexpr uint32_t kKinds = pio::kRowsI8 | pio::kRowsBF16 | pio::kRowsF32 | pio::kRowsOutliers;
constexpr int kQuantBytes[] = {256, 256, 320, 320, 384, 512, 384};

uint64_t state = 1;

// xorshift64 (Marsaglia 2003)
uint32_t random_bits() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
}
float random_number() { return static_cast<float>(static_cast<int32_t>(random_bits())) / 2147483648.0f; }

struct Arrays {
    pio::QuantBlock blocks[kCount * kMaxColumns / 32];
    pio::Outlier outliers[kCount * kMaxColumns / 32];
    int32_t num_outliers[kCount];
    pio::OutlierColumn outlier_columns[kCount * kMaxColumns / 32];
    int32_t num_outlier_columns[kCount];
    uint16_t bf16[kCount * kMaxColumns];
    float f32[kCount * kMaxColumns];
    float block_sums[kCount * kMaxColumns / 32];
    float sum_steps[kCount];

    pio::Rows rows(int columns) {
        const int stride = (columns + 31) / 32 * 32;
        return {kCount, columns,         stride,              blocks,     outliers, num_outliers, bf16,
                f32,    outlier_columns, num_outlier_columns, block_sums, sum_steps};
    }
};

struct Weights {
    uint8_t strips[kStrips * (kMaxColumns / 32) * 2048];
    float bias[kRows];
    Segment segment;

    static void fill_minima(uint8_t* minima, int tiles) {
        const int64_t pairs = pio::pairs_of(tiles);
        for (int64_t i = 0; i < pairs * pio::kMinimaPairBytes; i += 2) {
            const auto steps = static_cast<int16_t>(kMinimumSteps * random_number());
            memcpy(minima + i, &steps, 2);
        }
        for (int r = 0; r < kTileRows; ++r) {
            const float largest = random_number();
            const uint16_t half = pio::f16_of_float(largest < 0.0f ? -largest : largest);
            memcpy(minima + pairs * pio::kMinimaPairBytes + 2 * r, &half, 2);
        }
    }
    void fill(uint32_t format, int columns) {
        const int tiles = (columns + 31) / 32;
        const int64_t bytes = pio::tile_bytes(format), stride = pio::strip_stride(format, tiles);
        for (uint8_t& byte : strips) byte = static_cast<uint8_t>(random_bits());
        for (int64_t place = 0; place < kStrips * tiles; ++place) {
            uint8_t* numbers = strips + place / tiles * stride + place % tiles * bytes;
            if (format < kTileBF16) {
                for (int64_t i = kQuantBytes[format]; i < bytes; i += 2) {
                    const uint16_t half = pio::f16_of_float(0.01f * random_number());
                    memcpy(numbers + i, &half, 2);
                }
            } else if (format == kTileF32) {
                for (int64_t i = 0; i < bytes; i += 4) {
                    const float weight = random_number();
                    memcpy(numbers + i, &weight, 4);
                }
            } else {
                for (int64_t i = 0; i < bytes; i += 2) {
                    const float x = random_number();
                    const uint16_t half = format == kTileF16 ? pio::f16_of_float(x) : pio::bf16_of_float(x);
                    memcpy(numbers + i, &half, 2);
                }
            }
        }
        if (pio::has_minima(format)) {
            for (int strip = 0; strip < kStrips; ++strip) fill_minima(strips + strip * stride + tiles * bytes, tiles);
        }
        for (float& each : bias) each = random_number();
        segment = {format, kRows, columns, 3, strips, bias};
    }
};

Arrays expected_rows, actual_rows;
Weights weights, up;
float x[kCount * kMaxColumns];
float expected[kCount * 64], actual[kCount * 64];
int64_t compared = 0;

bool same(const char* what, const void* a, const void* b, size_t bytes) {
    if (memcmp(a, b, bytes) == 0) return true;
    printf("%s differ\n", what);
    return false;
}

bool close(const char* what, const float* a, const float* b, int n, float tolerance) {
    for (int i = 0; i < n; ++i, ++compared) {
        const float difference = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
        const float magnitude = a[i] > 0 ? a[i] : -a[i];
        if (!(difference <= tolerance * (1.0f + magnitude))) {
            printf("%s: number %d is %.9g instead of %.9g\n", what, i, static_cast<double>(b[i]),
                   static_cast<double>(a[i]));
            return false;
        }
    }
    return true;
}

bool rows_agree(const pio::Kernels& plain, const pio::Kernels& vector, int columns) {
    for (int i = 0; i < kCount * columns; ++i) x[i] = i % 75 == 3 ? 30.0f * random_number() : random_number();
    pio::Rows a = expected_rows.rows(columns), b = actual_rows.rows(columns);
    for (int row = 0; row < kCount; ++row) {
        plain.prepare(x + row * columns, kKinds, row, a);
        vector.prepare(x + row * columns, kKinds, row, b);
    }
    const size_t n = static_cast<size_t>(kCount) * static_cast<size_t>(a.stride);
    for (int row = 0; row < kCount; ++row) {
        const size_t found = static_cast<size_t>(a.num_outliers[row]);
        const int64_t at = static_cast<int64_t>(row) * (a.stride / 32);
        if (a.num_outliers[row] != b.num_outliers[row]) return false;
        if (!same("outliers", a.outliers + at, b.outliers + at, found * sizeof(pio::Outlier))) return false;
    }
    if (!same("blocks", a.blocks, b.blocks, n / 32 * sizeof(pio::QuantBlock)) || !same("bf16", a.bf16, b.bf16, 2 * n) ||
        !same("f32", a.f32, b.f32, 4 * n)) {
        return false;
    }
    const Norm norm = {x + columns, 1e-5f, 1.0f};
    plain.norm(x, norm, columns, expected);
    vector.norm(x, norm, columns, actual);
    if (!close("norm", expected, actual, columns, 2e-6f)) return false;
    plain.finish_logits(expected, columns, 3.0f, 2.0f);
    vector.finish_logits(actual, columns, 3.0f, 2.0f);
    return close("logits", expected, actual, columns, 4e-6f);
}

bool products_agree(const pio::Kernels& plain, const pio::Kernels& vector, uint32_t epilogue, uint32_t activation) {
    pio::Rows rows = expected_rows.rows(weights.segment.columns);
    vector.group_outliers(rows, 0, kCount);
    pio::LinearTask task = {};
    task.weights = &weights.segment;
    task.up = epilogue == kGated ? &up.segment : nullptr;
    task.x = &rows;
    task.rows = kCount;
    task.y_stride = 64;
    task.epilogue = epilogue;
    task.activation = activation;
    task.scale = 0.5f;
    for (int i = 0; i < kCount * 64; ++i) expected[i] = actual[i] = random_number();
    task.y = expected;
    plain.linear(task, 0, kStrips);
    task.y = actual;
    vector.linear(task, 0, kStrips);
    return close("product", expected, actual, kCount * 64, 3e-5f);
}

bool bounds_agree(const pio::Kernels& plain, const pio::Kernels& vector, int columns) {
    weights.fill(kTileQ8Split, columns);
    const pio::Rows rows = expected_rows.rows(columns);
    for (float& each : x) each = 1.0f + random_number();  // slack
    float bounds[4][kCount * kStrips];
    plain.screen({&weights.segment, &rows, x, kCount, bounds[0], bounds[1], kStrips}, 0, kStrips);
    vector.screen({&weights.segment, &rows, x, kCount, bounds[2], bounds[3], kStrips}, 0, kStrips);
    return close("lower bounds", bounds[0], bounds[2], kCount * kStrips, 3e-5f) &&
           close("upper bounds", bounds[1], bounds[3], kCount * kStrips, 3e-5f);
}

bool agree(const pio::Kernels& plain, const pio::Kernels& vector) {
    constexpr int kColumns[] = {1, 31, 33, 64, 160};
    for (const int columns : kColumns) {
        if (!rows_agree(plain, vector, columns)) return false;
        for (uint32_t format = 0; format < kTileFormats; ++format) {
            weights.fill(format, columns);
            up.fill((format + 1) % kTileFormats, columns);
            for (uint32_t epilogue = kStore; epilogue <= kGated; ++epilogue) {
                for (uint32_t activation = kNoActivation; activation <= kGeluErf; ++activation) {
                    if (products_agree(plain, vector, epilogue, activation)) continue;
                    printf("format %u, %d columns, epilogue %u, activation %u\n", format, columns, epilogue, activation);
                    return false;
                }
            }
        }
    }
    for (const int columns : kColumns) {
        if (!rows_agree(plain, vector, columns) || !bounds_agree(plain, vector, columns)) return false;
    }
    return true;
}

}  // namespace

int main() {
    const pio::Kernels* vector = pio::neon_kernels();
    if (vector == nullptr) vector = pio::avx2_kernels();
    if (vector == nullptr || !agree(*pio::scalar_kernels(), *vector)) return 1;
    printf("%s: %lld numbers agree\n", vector->name, static_cast<long long>(compared));
    return 0;
}
