"""Attention whose result for a query is the same bits in any batch, chunk, page layout and after any prefix hit.

Three things are fixed so that nothing else matters:

- Products are oneDNN's in float32, of at least two rows and columns over contiguous matrices, with sums of at most
  ``_BLOCK`` positions. There each element is one chain of multiply-adds in the order of the summed index: more rows
  beside it change nothing, and neither do terms that are zero, wherever they stand: keys that only another query of the
  chunk sees, or the zeros that let one product serve all heads.
- Blocks are counted from position 0. The softmax runs over whole ones, what is not seen at minus infinity, so that a
  position has the same place in the vectors that are added up, however many keys are at hand; so do the sums of blocks.
- Everything else works on single elements, exactly rounded.

An instance checks the first on this machine before it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from inference_pio.attention._packed import check_packed, check_queries, first_visible, no_output, pack, sequences
from inference_pio.attention._reach import band, key_range, reach
from inference_pio.interfaces import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import AttentionSpec, LayerKVCache, RaggedBatch

# Positions per block. Sums of this length were found to be single chains; of twice the length, not always.
_BLOCK = 256
# Bounds the scores held at a time at H x 256 x S.
_QUERY_BLOCK = 256
# Up to so many rows and columns a product's fixed cost outweighs multiplying the heads' rows by other heads' columns.
_MAX_JOINT_ROWS = 32
_MAX_JOINT_WIDTH = 256


class InvariantAttention:
    """Row-invariant attention on CPUs, computed in float32 whatever the dtype of queries and cache.

    The number of threads must stay the same for the results to be the same.

    Raises:
        UnsupportedError: PyTorch has no oneDNN here, or its products depend on the rows beside them.
    """

    name = "invariant"
    page_size_multiple = 1

    def __init__(self) -> None:
        if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):  # type: ignore[no-untyped-call]  # torch left it unannotated
            raise UnsupportedError(
                "the invariant backend multiplies by oneDNN, which this build of PyTorch lacks",
                hint="use the reference or the sdpa backend, whose last bits may depend on the batch",
            )
        if not _products_are_invariant():
            raise UnsupportedError(
                "the invariant backend cannot keep its promise: oneDNN's products on this machine depend on their size",
                hint="use the reference or the sdpa backend, whose last bits may depend on the batch",
            )

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        *,
        query_lens: tuple[int, ...],
        key_lens: tuple[int, ...],
    ) -> Tensor:
        """Attention of packed sequences; see ``AttentionBackend.attend``. A query that sees no key gets zeros.

        Raises:
            UnsupportedError: The tensors are not on a CPU.
        """
        check_packed(q, k, v, spec, query_lens, key_lens)
        _check_device(q)
        with torch.no_grad():  # oneDNN's product has no derivative
            return pack([_attend(*one, spec, first=0) for one in sequences(q, k, v, query_lens, key_lens)], q, spec)

    def attend_cached(self, q: Tensor, cache: LayerKVCache, batch: RaggedBatch, spec: AttentionSpec) -> Tensor:
        """Attention over the cache; see ``AttentionBackend.attend_cached``. Reads no key before the window.

        Raises:
            UnsupportedError: The tensors are not on a CPU.
        """
        check_queries(q, spec, batch.query_lens)
        _check_device(q)
        outputs = []
        with torch.no_grad():
            for index, query in enumerate(q.split_with_sizes(batch.query_lens)):
                first = first_visible(batch, index, spec)
                outputs.append(_attend(query, *cache.read(batch, index, first), spec, first=first))
        return pack(outputs, q, spec)


def _check_device(q: Tensor) -> None:
    if q.device.type != "cpu":
        raise UnsupportedError(f"the invariant backend computes on CPUs, not on {q.device}", hint="use triton there")


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, first: int) -> Tensor:
    """One sequence: q (T, H, D), k (S, K, D) and v (S, K, Dv) of positions ``first`` and on."""
    num_queries, end, limits = q.shape[0], first + k.shape[0], reach(spec)
    past = end - num_queries  # position of the first query; negative where there are more queries than keys
    group = spec.num_heads // spec.num_kv_heads
    rows = (q.float() * spec.softmax_scale).view(num_queries, spec.num_kv_heads, group, spec.head_dim)  # (T, K, G, D)
    keys, values = k.float(), v.float()
    out = no_output(q, spec)
    for begin in range(0, num_queries, _QUERY_BLOCK):
        positions = range(past + begin, past + min(begin + _QUERY_BLOCK, num_queries))
        low, high = key_range(positions[0], positions[-1], end, limits)
        low = max(low, first)
        if low >= high:
            continue
        block, seen = slice(begin, begin + len(positions)), slice(low - first, high - first)
        heads = rows[block].transpose(0, 1).flatten(1, 2)  # (K, t*G, D)
        alike = len(positions) == 1 or not (spec.causal or spec.window)  # all see all of low .. high
        mask = None if alike else band(positions, range(low, high), limits, q.device)
        result = _heads(heads, keys[seen], values[seen], mask, low)  # (K, t*G, Dv)
        out[block] = result.view(spec.num_kv_heads, len(positions), -1, spec.output_dim).transpose(0, 1).flatten(1, 2)
    return out


def _heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, low: int) -> Tensor:
    """Scaled rows q (K, R, D) over k (S, K, D) and v (S, K, Dv), the first at position ``low``, to (K, R, Dv).

    ``mask`` is bool (t, S), each row of it for R / t rows; None sees all.
    """
    num_keys, lead = k.shape[0], low % _BLOCK
    joint = q.shape[0] * q.shape[1] <= _MAX_JOINT_ROWS and k[0].numel() <= _MAX_JOINT_WIDTH
    scores = (_joint_scores if joint else _scores)(q, k)  # (K, R, S)
    if mask is not None:
        hidden = ~mask.repeat_interleave(q.shape[1] // mask.shape[0], dim=0)
        scores = scores.masked_fill(hidden, float("-inf"))
    padded = pad(scores, (lead, -(lead + num_keys) % _BLOCK), value=float("-inf"))
    weights = padded.softmax(dim=-1)[..., lead : lead + num_keys]
    if mask is not None and not mask[0].any():  # leading queries before the first key: 0 / 0
        weights = weights.masked_fill(hidden, 0.0)
    total = v.new_zeros(*q.shape[:2], v.shape[2])
    for begin in range(-lead, num_keys, _BLOCK):  # longer sums would be split where their length says
        block = slice(max(begin, 0), begin + _BLOCK)
        total += (_joint_sums if joint else _sums)(weights[..., block], v[block])
    return total


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Each head's q (K, R, D) times its k (S, K, D), to (K, R, S)."""
    return torch.stack([_product(rows, k[:, head].contiguous()) for head, rows in enumerate(q)])


def _joint_scores(q: Tensor, k: Tensor) -> Tensor:
    """The same in one product: the rows of head ``h`` are zero in the columns of the others."""
    num_heads, num_rows, width = q.shape
    joint = q.new_zeros(num_heads, num_rows, num_heads, width)
    joint.diagonal(dim1=0, dim2=2).copy_(q.permute(1, 2, 0))
    return _product(joint.view(num_heads * num_rows, -1), k.flatten(1).contiguous()).view(num_heads, num_rows, -1)


def _sums(weights: Tensor, v: Tensor) -> Tensor:
    """Each head's weights (K, R, S) times its v (S, K, Dv), to (K, R, Dv)."""
    return torch.stack([_product(rows, v[:, head].contiguous().t()) for head, rows in enumerate(weights)])


def _joint_sums(weights: Tensor, v: Tensor) -> Tensor:
    """The same in one product: every head's weights with every head's values, of which the diagonal is wanted."""
    num_heads, num_rows, _ = weights.shape
    every = _product(weights.flatten(0, 1), v.flatten(1).contiguous().t())
    return every.view(num_heads, num_rows, num_heads, -1).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _product(x: Tensor, w: Tensor) -> Tensor:
    """``x`` (R, C) times ``w`` (O, C) transposed, in float32; ``w`` is contiguous or the transpose of such.

    A lone row and a lone output are multiplied as two: those of one have kernels of their own.
    """
    rows = x.expand(2, -1) if x.shape[0] == 1 else x
    matrix = w.expand(2, -1).contiguous() if w.shape[0] == 1 else w
    out: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - the only name the product has
        rows.contiguous(), matrix, None, "none", [], ""
    )
    return out[: x.shape[0], : w.shape[0]]


def _products_are_invariant() -> bool:
    """Whether other rows, more outputs and terms of zero leave a product's bits alone, for a few sizes."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, 100, generator=generator) for size in (40, 300))
    longer = pad(x, (70, _BLOCK - 170)), pad(w, (70, _BLOCK - 170), value=1.0)
    with torch.no_grad():
        return all(
            torch.equal(_product(x[-n:], stored(w[:m])), whole[-n:, :m])
            and torch.equal(_product(longer[0][-n:], stored(longer[1])), whole[-n:])
            for stored in (torch.clone, lambda matrix: matrix.t().contiguous().t())
            for whole in (_product(x, stored(w)),)
            for n in (1, 2, 3, 9)
            for m in (1, 7, 64, 300)
        )
