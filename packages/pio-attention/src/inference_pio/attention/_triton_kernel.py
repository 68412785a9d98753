# ruff: noqa: ANN001, ANN202, N803 - arguments are pointers and compile-time constants, which triton types and names so
# mypy: disable-error-code="no-untyped-def, import-untyped, untyped-decorator"
# (triton has no annotations, and its functions are compiled from their source, not called)
"""The Triton kernels of paged attention. Imported only where triton is at hand: they are compiled, or interpreted.

One program computes one tile of queries of one sequence and one KV head over one share of the keys, FlashAttention-2's
way (Dao 2023, arXiv:2307.08691, algorithm 1): keys and values pass in blocks, a running maximum ``m`` and sum ``l`` per
row rescale the accumulated output, and the division comes last. Keys are found page by page through the block table, as
PagedAttention does (Kwon et al. 2023, arXiv:2309.06180, section 4.1). Rows of a tile are pairs of a token and a query
head of the KV head's group, so that a group reads its keys once. With few queries and many keys, the keys are dealt out
to several programs, whose partial results a second kernel joins (flash-decoding: Dao et al. 2023).
"""

import triton
import triton.language as tl


@triton.jit
def paged_attention(  # noqa: PLR0915 - one pass over the keys, read from top to bottom
    q_ptr,  # (N, H, D)
    k_ptr,  # (num_pages, P, K, D)
    v_ptr,  # (num_pages, P, K, Dv)
    out_ptr,  # (N, H, Dv); with several shares float32 (shares, N, H, Dv), each divided by its own sum
    lse_ptr,  # float32 (shares, N, H): log of the sum of exponentials of each share; unused with one
    tables_ptr,  # int32 (B, M)
    query_starts_ptr,  # int32 (B + 1,)
    seq_lens_ptr,  # int32 (B,)
    tile_seqs_ptr,  # int32 (tiles,): the sequence of each tile
    tile_firsts_ptr,  # int32 (tiles,): the tile's first query within the sequence
    scale,  # softmax scale times log2(e): exponentials are powers of two
    window,  # a query sees this many keys, its own included
    num_queries,
    stride_qn,
    stride_qh,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_vp,
    stride_vt,
    stride_vh,
    stride_table,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SHARES: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,  # power of two, at least 16 and at least TILE_TOKENS * GROUP
    BLOCK_KEYS: tl.constexpr,  # a power of two that divides the page size, or the page size
    BLOCK_D: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    BLOCK_DV: tl.constexpr,
    UPCAST: tl.constexpr,  # the interpreter multiplies bfloat16 wrongly
):
    tile, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq, tile_first = tl.load(tile_seqs_ptr + tile), tl.load(tile_firsts_ptr + tile)
    start, seq_len = tl.load(query_starts_ptr + seq), tl.load(seq_lens_ptr + seq)
    query_len = tl.load(query_starts_ptr + seq + 1) - start
    past = seq_len - query_len  # position of the sequence's first query

    # Rows: token-major, so row r is token r // GROUP of the tile and head r % GROUP of the group.
    row = tl.arange(0, ROWS)
    token = tile_first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_valid = (row < TILE_TOKENS * GROUP) & (token < query_len)
    position = past + token
    dim, value_dim = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q_offsets = (start + token).to(tl.int64)[:, None] * stride_qn + head[:, None] * stride_qh + dim[None, :]
    q = tl.load(q_ptr + q_offsets, mask=row_valid[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    # The keys that any query of the tile sees, low .. high - 1, and of these this program's share.
    first_position = past + tile_first
    last_position = past + tl.minimum(tile_first + TILE_TOKENS, query_len) - 1
    low, high = 0, seq_len
    if WINDOWED:
        low = tl.maximum(first_position - window + 1, 0)
        if not CAUSAL:
            high = tl.minimum(last_position + window, seq_len)
    if CAUSAL:
        high = last_position + 1
    first_block = low // BLOCK_KEYS
    num_blocks = tl.cdiv(high, BLOCK_KEYS) - first_block
    per_share = tl.cdiv(num_blocks, SHARES)
    begin = first_block + share * per_share
    end = tl.minimum(begin + per_share, first_block + num_blocks)

    m = tl.full([ROWS], -1.0e30, tl.float32)  # finite, so that a row that has seen nothing yet subtracts no infinities
    l = tl.zeros([ROWS], tl.float32)  # noqa: E741 - the paper's name
    acc = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    for block in range(begin, end):
        # A block lies within one page, so one entry of the table finds it.
        key = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        page = tl.load(tables_ptr + seq * stride_table + block * BLOCK_KEYS // PAGE_SIZE).to(tl.int64)
        slot = key % PAGE_SIZE
        # Slots outside low .. high - 1 may never have been written: they are not read, not even to be masked.
        key_valid = (key >= low) & (key < high)
        k_offsets = page * stride_kp + slot[None, :] * stride_kt + kv_head * stride_kh + dim[:, None]
        k = tl.load(k_ptr + k_offsets, mask=key_valid[None, :] & (dim < HEAD_DIM)[:, None], other=0.0)  # (D, S)
        k = k.to(q.dtype)
        scores = tl.dot(q, k, input_precision="ieee") * scale  # (ROWS, S)
        seen = key_valid[None, :] & row_valid[:, None]
        if CAUSAL:
            seen = seen & (key[None, :] <= position[:, None])
        if WINDOWED:
            seen = seen & (key[None, :] > position[:, None] - window)
            if not CAUSAL:
                seen = seen & (key[None, :] < position[:, None] + window)
        scores = tl.where(seen, scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        rescale = tl.exp2(m - new_m)
        l = l * rescale + tl.sum(weights, 1)  # noqa: E741 - as above
        v_offsets = page * stride_vp + slot[:, None] * stride_vt + kv_head * stride_vh + value_dim[None, :]
        v = tl.load(v_ptr + v_offsets, mask=key_valid[:, None] & (value_dim < VALUE_DIM)[None, :], other=0.0)  # (S, Dv)
        v = v.to(q.dtype)
        acc = acc * rescale[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee")
        m = new_m

    # A row that saw no key has l = 0 and acc = 0: it gives zeros, and weighs nothing among the shares.
    total = tl.where(l == 0.0, 1.0, l)
    result = acc / total[:, None]
    out_row = (start + token).to(tl.int64) * NUM_HEADS + head
    if SHARES > 1:
        out_row += share.to(tl.int64) * num_queries * NUM_HEADS
        tl.store(lse_ptr + out_row, tl.where(l == 0.0, float("-inf"), m + tl.log2(total)), mask=row_valid)
    out_offsets = out_row[:, None] * VALUE_DIM + value_dim[None, :]
    out_mask = row_valid[:, None] & (value_dim < VALUE_DIM)[None, :]
    tl.store(out_ptr + out_offsets, result.to(out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def join_shares(
    partial_ptr,  # float32 (shares, N, H, Dv)
    lse_ptr,  # float32 (shares, N, H), logarithms to base 2
    out_ptr,  # (N, H, Dv)
    num_rows,  # N * H
    VALUE_DIM: tl.constexpr,
    SHARES: tl.constexpr,  # a power of two
    BLOCK_DV: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    share, dim = tl.arange(0, SHARES), tl.arange(0, BLOCK_DV)
    lse = tl.load(lse_ptr + share * num_rows + row)
    weights = tl.exp2(lse - tl.maximum(tl.max(lse, 0), -1.0e30))  # finite: a row may have seen nothing in any share
    offsets = (share[:, None] * num_rows + row) * VALUE_DIM + dim[None, :]
    partial = tl.load(partial_ptr + offsets, mask=(dim < VALUE_DIM)[None, :], other=0.0)
    total = tl.sum(weights, 0)
    result = tl.sum(weights[:, None] * partial, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * VALUE_DIM + dim, result.to(out_ptr.dtype.element_ty), mask=dim < VALUE_DIM)
