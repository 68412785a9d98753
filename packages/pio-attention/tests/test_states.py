"""Recurrent state, proved with a toy layer: a gated linear recurrence with a short convolution before it."""

from __future__ import annotations

import pytest
import torch

from inference_pio.attention import ContiguousKVCache, PagedKVCache, make_batch
from inference_pio.interfaces import AttentionSpec, RaggedBatch, StateSpec

SIZE = 6
STATE = StateSpec(shapes=((SIZE, SIZE), (2, SIZE)))  # the matrix, and the last two inputs for the convolution
FULL = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=4)


class ToyRecurrence:
    """S_t = a_t S_{t-1} + k_t v_t^T, y_t = q_t S_t, over inputs mixed with the two before them."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(4, SIZE, SIZE, generator=generator) / SIZE**0.5

    def __call__(self, x, cache, batch):
        """x (N, SIZE); reads and writes the state of every sequence of the batch."""
        view = batch.group(cache.group)
        outputs, matrices, tails = [], [], []
        for chunk, matrix, tail in zip(x.split(list(batch.query_lens)), *cache.read(view), strict=True):
            history = torch.cat([tail, chunk])
            mixed = history[2:] + 0.5 * history[1:-1] + 0.25 * history[:-2]
            q, k, v, gate = (mixed @ weight for weight in self.weights)
            state = matrix
            for t in range(chunk.shape[0]):
                state = gate[t].sigmoid().unsqueeze(1) * state + torch.outer(k[t], v[t])
                outputs.append(q[t] @ state)
            matrices.append(state)
            tails.append(history[-2:])
        cache.write(view, (torch.stack(matrices), torch.stack(tails)))
        return torch.stack(outputs)


def step(query_lens, seq_lens, pages):
    """The step as a group of states sees it: the page of each sequence, no slots."""
    batch = make_batch(query_lens, seq_lens, [[page] for page in pages], page_size=1000)
    return RaggedBatch(
        query_lens=batch.query_lens,
        seq_lens=batch.seq_lens,
        query_starts=batch.query_starts,
        block_tables=batch.block_tables,
        slot_mapping=batch.slot_mapping[:0],
    )


@pytest.fixture
def inputs():
    return torch.randn(3, 12, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def layer():
    """Storage whose pages hold rubbish: nothing may depend on what a page held before."""
    cache = PagedKVCache([STATE], num_pages=6, dtype=torch.bfloat16)
    for tensor in cache.state(0).tensors:
        tensor.fill_(float("nan"))
    return cache


@pytest.fixture
def whole(inputs):
    cache = PagedKVCache([STATE], num_pages=1, dtype=torch.float32)
    return [ToyRecurrence()(x, cache.state(0), step([12], [12], [0])) for x in inputs]


def test_chunked_equals_whole(layer, inputs, whole):
    """Sequences that start at different steps, in chunks, mixed in one batch, equal each one whole."""
    run, state = ToyRecurrence(), layer.state(0)
    plan = [((5, 0, 12), (5, 0, 12)), ((1, 4, 0), (6, 4, 0)), ((6, 8, 0), (12, 12, 0))]
    outputs = [[], [], []]
    for query_lens, seq_lens in plan:
        active = [index for index, count in enumerate(query_lens) if count]
        counts, ends = [query_lens[i] for i in active], [seq_lens[i] for i in active]
        x = torch.cat([inputs[i, end - count : end] for i, count, end in zip(active, counts, ends, strict=True)])
        out = run(x, state, step(counts, ends, [(4, 1, 5)[i] for i in active]))
        for index, part in zip(active, out.split(counts), strict=True):
            outputs[index].append(part)
    for parts, expected in zip(outputs, whole, strict=True):
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-5)


def test_fork_goes_on_from_the_copied_state(layer, inputs, whole):
    """A state copied to another page continues on its own, and the first is not disturbed by it."""
    run, state = ToyRecurrence(), layer.state(0)
    run(inputs[0, :7], state, step([7], [7], [2]))
    layer.copy_pages(0, [2], [0])
    other = torch.cat([inputs[0, :7], inputs[1, 7:]])
    alone = PagedKVCache([STATE], num_pages=1, dtype=torch.float32)
    expected = run(other, alone.state(0), step([12], [12], [0]))[7:]
    both = run(torch.cat([inputs[1, 7:], inputs[0, 7:]]), state, step([5, 5], [12, 12], [0, 2]))
    torch.testing.assert_close(both[:5], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[5:], whole[0][7:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["device", "host"])
def test_checkpoint_is_restored(inputs, whole, where):
    """A checkpoint of a state, kept in a page or in host memory, serves a prefix hit and a rollback."""
    layer = PagedKVCache([STATE], num_pages=6, dtype=torch.float32, num_host_pages=1)
    run, state = ToyRecurrence(), layer.state(0)
    run(inputs[0, :8], state, step([8], [8], [1]))
    if where == "device":
        layer.copy_pages(0, [1], [5])
    else:
        layer.swap_out(0, [1], [0])
    run(inputs[1, 8:], state, step([4], [12], [1]))  # goes astray
    for page in (1, 3):  # rolled back in place; taken up by another sequence with this prefix
        if where == "device":
            layer.copy_pages(0, [5], [page])
        else:
            layer.swap_in(0, [0], [page])
        out = run(inputs[0, 8:], state, step([4], [12], [page]))
        torch.testing.assert_close(out, whole[0][8:], atol=1e-5, rtol=1e-5)


def test_states_are_float32_and_start_at_zero(layer):
    """Whatever the dtype of the cache; a sequence that starts in this step reads zeros, another reads its page."""
    state = layer.state(0)
    state.write(step([1], [1], [3]), (torch.ones(1, SIZE, SIZE), torch.ones(1, 2, SIZE)))
    old_and_new = state.read(step([1, 2], [5, 2], [3, 0]))
    for tensor in old_and_new:
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor[0], torch.ones_like(tensor[0]))
        assert torch.equal(tensor[1], torch.zeros_like(tensor[1]))
    assert [tuple(tensor.shape) for tensor in state.read(step([], [], []))] == [(0, SIZE, SIZE), (0, 2, SIZE)]


def test_states_beside_keys(inputs, whole):
    """In a model of both kinds the recurrence finds its own tables, in a paged and in a contiguous cache."""
    paged = PagedKVCache([FULL, STATE], num_pages=(8, 3), page_size=4, dtype=torch.float32)
    contiguous = ContiguousKVCache([FULL, STATE], num_sequences=3, max_length=12, dtype=torch.float32)
    first = make_batch([12], [12], [[7, 6, 5]], page_size=4)
    both = RaggedBatch(
        query_lens=first.query_lens,
        seq_lens=first.seq_lens,
        query_starts=first.query_starts,
        block_tables=first.block_tables,
        slot_mapping=first.slot_mapping,
        others=(step([12], [12], [2]),),
    )
    for cache, batch in ((paged, both), (contiguous, make_batch([12], [12], [[1]], page_size=12))):
        out = ToyRecurrence()(inputs[0], cache.state(1), batch)
        torch.testing.assert_close(out, whole[0], atol=1e-6, rtol=1e-6)


def test_wrong_states_are_refused(layer):
    """Shapes must fit, and each sequence needs a page of the group."""
    state = layer.state(0)
    with pytest.raises(ValueError, match=r"states must have shapes \[\(1, 6, 6\), \(1, 2, 6\)\], got \[\(2, 6, 6\)\]"):
        state.write(step([1], [1], [0]), (torch.zeros(2, SIZE, SIZE),))
    bad = step([1, 1], [1, 1], [0, 0])
    bad.block_tables[1, 0] = 6
    with pytest.raises(ValueError, match="sequence 1: page 6 is outside the 6 pages of states"):
        state.read(bad)
