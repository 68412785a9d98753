// The C ABI: what Python hands over. Every structure here has a twin in `inference_pio/kernels/_abi.py`.
//
// A program is a list of fused operations over row buffers. A row buffer holds one float32 row per token of the step,
// `width` numbers wide. Parameters are matrices packed into tiles, and float32 vectors. Nothing here owns memory.
//
// Letters: N tokens of a step, B sequences, R rows with logits, Q rows whose hidden states are wanted, E width of a buffer,
// V vocabulary, H query heads, K KV heads, D head size.
#pragma once

#include <stdint.h>

// --- Weights ---------------------------------------------------------------------------------------------------------
//
// A tile holds 16 output rows x 32 inputs; a strip holds the tiles of 16 output rows over all inputs, one after the
// other. Rows and inputs beyond the matrix are zero. Within a tile, quantised values come in groups of 4 inputs:
// byte [g * 64 + r * 4 + c] belongs to row r and input 4 g + c, which is the order that a four-way int8 dot product of
// 16 lanes reads. The numbers behind the quants are per row, float16, in order of rows:
//
//   format        quants                                                    then                        value
//   kTileQ4       256 B: byte g*64+r*4+c has input 4g+c in its low and      16 scales                   d (q - 8)
//                 input 16+4g+c in its high four bits, g < 4
//   kTileQ4Min    the same                                                  16 scales                   d q + m
//   kTileQ5       the same, then 64 B of fifth bits: bit g of byte r*4+c    16 scales                   d (q - 16)
//                 belongs to input 4g+c, g < 8
//   kTileQ5Min    the same                                                  16 scales                   d q + m
//   kTileQ6       256 B as kTileQ4, then 128 B of upper bit pairs: bits     16 scales of inputs 0..15,  d (q - 32)
//                 2(g%4) of byte (g/4)*64+r*4+c belong to input 4g+c, g<8   16 scales of inputs 16..31
//   kTileQ8       512 B: byte g*64+r*4+c has input 4g+c, g < 8              16 scales                   d (q - 128)
//   kTileQ8Split  256 B as kTileQ4 with the upper four bits of quants, then 16 scales                   d (q - 128)
//                 128 B as kTileQ6 with bits 2 and 3
//   kTileBF16     1024 B: bfloat16 [p*32 + r*2 + c] is input 2p+c, p < 16                               itself
//   kTileF16      1024 B: float16 [k*16 + r] is input k                                                 itself
//   kTileF32      2048 B: float32 [k*16 + r] is input k                                                 itself
//
// Minima lie behind the tiles of a strip, since a product takes them for themselves: 64 B for each two tiles, int16
// [r*2 + t] that of row r and tile t of the two; then M, the largest magnitude of each row's, 16 float16. m is M / 8192
// times that number; what is missing for an even number of tiles is zero.
//
// Behind all tiles of kTileQ8Split lie bits 0 and 1 of its quants, 128 B per tile, in pairs as in kTileQ6: who only asks
// whether a product can be among the largest leaves out a quarter of the bytes (see screen.h).
enum TileFormat : uint32_t {
    kTileQ4 = 0,
    kTileQ4Min = 1,
    kTileQ5 = 2,
    kTileQ5Min = 3,
    kTileQ6 = 4,
    kTileQ8 = 5,
    kTileQ8Split = 6,
    kTileBF16 = 7,
    kTileF16 = 8,
    kTileF32 = 9,
    kTileFormats = 10,
};

constexpr int kTileRows = 16;
constexpr int kTileInputs = 32;
constexpr int kSplitLowBytes = 128;  // of a tile of kTileQ8Split: what lies behind all tiles
constexpr int kMinimumSteps = 8192;  // of the largest minimum of a row

// A matrix, or the part of one that came from one tensor: the queries of a fused QKV projection, say.
struct Segment {
    uint32_t format;     // TileFormat
    int32_t rows;        // outputs
    int32_t columns;     // inputs, not padded
    int32_t out_column;  // first column of the output buffer that it fills
    const uint8_t* strips;
    const float* bias;  // (rows,), or null
};

// --- Operations ------------------------------------------------------------------------------------------------------

enum OpKind : uint32_t {
    kOpEmbed = 0,
    kOpRotary = 1,
    kOpLinear = 2,
    kOpAttention = 3,
    kOpRoute = 4,
    kOpExperts = 5,
    kOpHead = 6,
};

enum Activation : uint32_t { kNoActivation = 0, kSilu = 1, kGeluTanh = 2, kGeluErf = 3 };

// Root mean square norm of a row (Zhang and Sennrich 2019, arXiv:1910.07467): x / sqrt(mean(x^2) + eps) * (w + offset).
struct Norm {
    const float* weight;  // (width,), or null for no norm at all
    float eps;
    float offset;  // 0, or 1 where weights are stored as differences from one (Gemma)
};

// y[n] = scale * table[token n]
struct EmbedOp {
    uint32_t kind;
    int32_t out;
    float scale;
    uint32_t reserved;
    const Segment* table;
};

// y[n] = factor * (cos(p f_0), ..., cos(p f_{m-1}), sin(p f_0), ..., sin(p f_{m-1})), p the position of token n.
// The product p f is rounded to float32, as the reference implementations do.
struct RotaryOp {
    uint32_t kind;
    int32_t out;
    int32_t pairs;           // m
    int32_t original_length;  // sequences longer than this take `long_frequencies`; 0: none does
    float factor;
    uint32_t reserved;
    const float* frequencies;       // (m,)
    const float* long_frequencies;  // (m,), or null
};

// y = epilogue(W norm(x) + b):
//   kStore     y  = scale * (W x + b)
//   kAdd       y += scale * (W x + b)
//   kGated     y  = activation(W_0 x + b_0) * (W_1 x + b_1): two segments of equally many rows
enum Epilogue : uint32_t { kStore = 0, kAdd = 1, kGated = 2 };

struct LinearOp {
    uint32_t kind;
    int32_t in;
    int32_t out;
    int32_t width;  // inputs
    uint32_t epilogue;
    uint32_t activation;  // of kGated, and of kStore
    float scale;
    int32_t num_segments;
    const Segment* segments;
    Norm norm;
};

enum KVFormat : uint32_t { kKVF16 = 0, kKVBF16 = 1, kKVI8 = 2, kKVF32 = 3 };

// Keys and values of one layer in pages. The layout inside of a page is that of `vector/attention.h`.
struct LayerCache {
    uint8_t* pages;
    int64_t page_bytes;
    uint32_t format;  // KVFormat
    int32_t group;    // whose block tables
    int32_t page_size;
    int32_t reserved;
};

// Norms and turns queries and keys, writes keys and values into the cache, and attends over it.
// A row of `qkv` holds H query heads, K key heads, K value heads of D numbers; one of `out` H heads of D.
//   o = sum_t softmax_t(scale q.k_t) v_t over the keys that the query may see: at its own position and before, the last
//   `window` of them if window > 0. softcap c > 0: scores s become c tanh(s / c). sinks: one more score per query head
//   in the softmax, without a value.
struct AttentionOp {
    uint32_t kind;
    int32_t qkv;
    int32_t out;
    int32_t rotary;  // buffer of a RotaryOp, or -1
    int32_t heads;
    int32_t kv_heads;
    int32_t head_size;
    int32_t pairs;        // pairs that are turned, at most D / 2
    int32_t interleaved;  // pairs are (2 i, 2 i + 1) instead of (i, i + pairs)
    int32_t window;
    float scale;
    float softcap;
    Norm query_norm;
    Norm key_norm;
    const float* sinks;  // (H,), or null
    const LayerCache* cache;
};

// The experts of each token, and their weights, from router scores (N, experts).
enum Scoring : uint32_t { kSoftmax = 0, kSigmoid = 1, kSoftmaxOfChosen = 2 };

struct RouteOp {
    uint32_t kind;
    int32_t in;       // buffer of router scores
    int32_t weights;  // buffer (N, chosen): weights, most likely first
    int32_t experts;  // buffer (N, chosen): numbers of experts, as float32
    int32_t num_experts;
    int32_t chosen;
    uint32_t scoring;
    int32_t normalise;  // divide the weights by their sum
    float scale;        // factor on the weights
    uint32_t reserved;
    const float* bias;  // (experts,) added to the scores for the choice alone, or null
};

// y += sum_j weight_j down_j(activation(gate_j x) * (up_j x)) over the experts j of each token, x normed.
struct ExpertsOp {
    uint32_t kind;
    int32_t in;
    int32_t out;
    int32_t weights;
    int32_t experts;
    int32_t inner;  // buffer of chosen * F numbers per row
    int32_t width;  // inputs
    int32_t inner_width;  // F
    int32_t num_experts;
    int32_t chosen;
    uint32_t activation;
    uint32_t reserved;
    const Segment* gate;  // (experts,)
    const Segment* up;    // (experts,)
    const Segment* down;  // (experts,)
    Norm norm;
};

// logits[r] = softcap(scale * W norm(x[row r])), softcap c > 0: c tanh(l / c); hidden[q] = norm(x[row q])
struct HeadOp {
    uint32_t kind;
    int32_t in;
    int32_t width;
    int32_t num_segments;
    float scale;
    float softcap;
    const Segment* segments;
    Norm norm;
};

// --- A step ----------------------------------------------------------------------------------------------------------

// Where the sequences lie in the pages of one group of layers.
struct GroupTables {
    const int32_t* block_tables;  // (B, stride), page numbers in order
    int64_t stride;
    const int64_t* slots;  // (N,), page * page_size + offset of each token
};

struct Batch {
    int32_t num_tokens;     // N
    int32_t num_sequences;  // B
    int32_t num_logits;     // R
    int32_t num_groups;
    const int64_t* token_ids;     // (N,)
    const int64_t* positions;     // (N,)
    const int32_t* query_starts;  // (B + 1,)
    const int32_t* sequence_lengths;  // (B,), tokens visible after this step
    const int64_t* logit_rows;        // (R,)
    const GroupTables* groups;
    float* logits;  // (R, V)
    const int64_t* hidden_rows;  // (Q,)
    float* hidden;               // (Q, E), E the width of what the head reads
    int32_t num_hidden;          // Q
    int32_t reserved;
    // (R,): how many of the largest logits of each row are wanted, with their equals; any other may be -inf instead of
    // itself. 0: all are. Null: all of all rows.
    const int32_t* largest_wanted;
};

struct Program {
    int32_t num_ops;
    int32_t num_buffers;
    int32_t max_tokens;
    int32_t vocab_size;
    const void* const* ops;          // each begins with its OpKind
    const int32_t* buffer_widths;  // (num_buffers,)
};

// --- Functions -------------------------------------------------------------------------------------------------------

#if defined(_WIN32)
#define PIO_EXPORT extern "C" __declspec(dllexport)
#else
#define PIO_EXPORT extern "C" __attribute__((visibility("default")))
#endif

struct Runtime;

// A program made ready to run on `threads` threads with the kernels of instruction set `isa` (an index of
// `pio_isa_name`). Null where memory or threads cannot be had. The caller keeps what `program` points to alive.
PIO_EXPORT Runtime* pio_runtime_new(const Program* program, int32_t isa, int32_t threads);
PIO_EXPORT void pio_runtime_free(Runtime* runtime);

// Runs the program over `batch`. 0, or -1 if the batch is larger than the program was made for.
PIO_EXPORT int32_t pio_runtime_step(Runtime* runtime, const Batch* batch);

// Name of an instruction set by index ("scalar", "avx2", ...), best last; null past the end. `pio_isa_usable`: 1 if this
// build has it and this processor runs it.
PIO_EXPORT const char* pio_isa_name(int32_t isa);
PIO_EXPORT int32_t pio_isa_usable(int32_t isa);

// The kernels of an instruction set, a `pio::Kernels`, for tests that compare them; null if it is not usable.
PIO_EXPORT const void* pio_kernels(int32_t isa);

// Bytes of a page of keys and values; bytes of one strip over `columns` inputs, with all that belongs to it.
PIO_EXPORT int64_t pio_page_bytes(uint32_t kv_format, int32_t page_size, int32_t kv_heads, int32_t head_size);
PIO_EXPORT int64_t pio_strip_bytes(uint32_t tile_format, int32_t columns);

// Repacks `rows` stored rows of `columns` elements of encoding `encoding` (number of the GGML type) into the strips of a
// segment. `row_order`, or null: output row i is stored row row_order[i]. Whole strips [first_strip, last_strip).
// 0; -1 if the pair of encoding and format, or the number of columns, is not supported; -2 if a scale leaves float16 or is
// not finite.
PIO_EXPORT int32_t pio_pack(uint32_t tile_format, int32_t encoding, const uint8_t* stored, int32_t rows, int32_t columns,
                            const int32_t* row_order, uint8_t* strips, int32_t first_strip, int32_t last_strip);

// Memory for large arrays: zero, aligned to 2 MiB pages where the system has them. Null where there is none.
PIO_EXPORT void* pio_memory_new(int64_t bytes);
PIO_EXPORT void pio_memory_free(void* memory, int64_t bytes);

// A checksum of `bytes` bytes; not against forgery.
PIO_EXPORT uint64_t pio_checksum(const uint8_t* data, int64_t bytes);

// The sum of the 8-byte words of `bytes` bytes, a multiple of 64, modulo 2^64: no processor is slower at it than memory.
PIO_EXPORT uint64_t pio_probe_read(const uint8_t* data, int64_t bytes);

// Dot products of 8-bit numbers at the speed of instruction set `isa`, as the kernels multiply: `rounds` times over,
// sums[m][r] += sum_{g < 8, c < 4} weights[4 r + c] * inputs[m][4 g + c], modulo 2^32; weights (64,) at most 15, inputs
// (8, 32) within -127..127, sums (8, 16). 0, or -1 if the instruction set is not usable.
PIO_EXPORT int32_t pio_probe_dots(int32_t isa, const uint8_t* weights, const int8_t* inputs, int64_t rounds,
                                  int32_t* sums);

// How tokens are drawn from rows of logits; see SamplingBatch in pio-interfaces, whose order and meaning this follows.
struct Sampling {
    int32_t rows;  // draws
    int32_t vocab_size;
    int64_t stride;            // of `logits`, in numbers
    const int64_t* logit_rows;  // (rows,)
    const uint32_t* masks;      // (rows, ceil(V / 32)), or null
    const float* temperature;
    const int32_t* top_k;
    const float* typical_p;
    const float* top_p;
    const float* min_p;
    const double* uniforms;
    int64_t* chosen;  // (rows,), -1 where no logit is finite or one is NaN
};
PIO_EXPORT int32_t pio_runtime_sample(Runtime* runtime, const float* logits, const Sampling* sampling);
