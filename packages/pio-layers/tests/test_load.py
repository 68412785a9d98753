"""Streaming weights into a module built on ``meta``."""

import numpy as np
import pytest
import torch
from torch import nn

from inference_pio.interfaces import DoesNotFitError, UnsupportedError, WeightMap, WeightRule, WeightSource
from inference_pio.layers import Embedding, GatedMLP, Linear, LMHead, LoadReport, RMSNorm, load_weights
from inference_pio.layers import _load as load_module

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ENCODING_OF = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def numbers(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def on_meta(build):
    with torch.device("meta"):
        return build()


class Tiny(nn.Module):
    """Embedding, one merged MLP, a norm and a head: every kind of rule in one model."""

    def __init__(self, *, tied):
        super().__init__()
        self.embed = Embedding(11, 6)
        self.mlp = GatedMLP(6, 4)
        self.norm = RMSNorm(6, eps=1e-5)
        self.head = LMHead(6, 11, tied_to=self.embed if tied else None)


TINY = {
    "embed": numbers(11, 6, seed=1),
    "gate": numbers(4, 6, seed=2),
    "up": numbers(4, 6, seed=3),
    "down": numbers(6, 4, seed=4),
    "norm": numbers(6, seed=5),
}
TINY_RULES = (
    WeightRule(target="embed.weight", sources=("embed",)),
    WeightRule(target="mlp.gate_up.weight", sources=("gate", "up")),
    WeightRule(target="mlp.down.weight", sources=("down",)),
    WeightRule(target="norm.weight", sources=("norm",)),
    WeightRule(target="head.weight", sources=("head",), optional=True),
)


def load(module, source, *rules, dtype=torch.float32, ignore=(), **more):
    return load_weights(module, source, WeightMap(rules=rules, ignore=ignore), dtype=dtype, device=CPU, **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0"])
def test_load_weights_fills_every_parameter(memory_source, dtype, encoding):
    """Whatever is stored arrives as the nearest value of the model's dtype, merged and tied as the model says."""
    source = memory_source(TINY, dict.fromkeys(TINY, encoding))
    model = on_meta(lambda: Tiny(tied=True))
    load(model, source, *TINY_RULES, dtype=dtype)
    stored = {name: torch.from_numpy(source.decode(name)).to(dtype) for name in TINY}
    assert torch.equal(model.embed.weight, stored["embed"])
    assert torch.equal(model.mlp.gate_up.weight, torch.cat((stored["gate"], stored["up"])))
    assert torch.equal(model.mlp.down.weight, stored["down"])
    assert torch.equal(model.norm.weight, stored["norm"])
    assert model.head.weight is model.embed.weight
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.inference_mode():
        assert torch.isfinite(model.head(model.norm(model.mlp(model.embed(torch.tensor([1, 2])))))).all()


def test_load_weights_reports_bytes_tensors_and_encodings(memory_source):
    """A tied head counts once; what is mapped and what is copied add up."""
    source = memory_source(TINY, {"embed": "Q8_0", "down": "F16"})
    report = load(on_meta(lambda: Tiny(tied=True)), source, *TINY_RULES)
    assert report == LoadReport(
        bytes=4 * (66 + 48 + 24 + 6),
        tensors=5,
        mapped_bytes=4 * 6,
        copied_bytes=4 * (66 + 48 + 24),
        encodings={"Q8_0": 1, "F32": 3, "F16": 1},
    )


def test_load_weights_unties_a_head_that_the_file_has(memory_source):
    """With a head in the checkpoint and in the model, both have their own numbers."""
    tensors = {**TINY, "head": numbers(11, 6, seed=6)}
    model = on_meta(lambda: Tiny(tied=False))
    report = load(model, memory_source(tensors), *TINY_RULES)
    assert report.tensors == 6
    assert torch.equal(model.head.weight, torch.from_numpy(tensors["head"]))
    assert torch.equal(model.embed.weight, torch.from_numpy(tensors["embed"]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_weights_maps_what_is_stored_in_the_models_dtype(memory_source, dtype):
    """The parameter is the file's own memory: nothing is decoded, and the two change together."""
    source = memory_source({"w": numbers(5, 8)}, {"w": ENCODING_OF[dtype]})
    model = on_meta(lambda: Linear(8, 5))
    report = load(model, source, WeightRule(target="weight", sources=("w",)), dtype=dtype)
    assert (report.mapped_bytes, report.copied_bytes) == (40 * dtype.itemsize, 0)
    assert model.weight.data_ptr() == source.stored["w"].ctypes.data
    assert source.decoded == []
    assert source.released == []


def test_load_weights_copies_what_it_cannot_map(memory_source):
    """Another dtype, several sources, reordered rows and unaligned views each get a buffer of their own."""
    view = np.frombuffer(b"\0" + numbers(4, 8).tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(4, 8)
    cases = {
        "dtype": ({"w": numbers(4, 8)}, {"w": "F16"}, WeightRule(target="weight", sources=("w",))),
        "merged": (
            {"a": numbers(1, 8), "b": numbers(3, 8)},
            {},
            WeightRule(target="weight", sources=("a", "b")),
        ),
        "heads": ({"w": numbers(4, 8)}, {}, WeightRule(target="weight", sources=("w",), heads=(2,))),
        "unaligned": ({"w": view}, {}, WeightRule(target="weight", sources=("w",))),
    }
    for tensors, encodings, rule in cases.values():
        source = memory_source(tensors, encodings)
        report = load(on_meta(lambda: Linear(8, 4)), source, rule)
        assert (report.mapped_bytes, report.copied_bytes) == (0, 128)
        assert source.released == list(rule.sources)


def half_split_to_interleaved(weight, heads):
    """What a converter to GGUF does with rotary rows: row ``i`` and row ``i + D/2`` of a head become neighbours."""
    rows = weight.shape[0]
    order = []
    for head in range(heads):
        size = rows // heads
        for pair in range(size // 2):
            order += [head * size + pair, head * size + size // 2 + pair]
    return weight[order]


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("encoding", ["F32", "Q8_0"])
@pytest.mark.parametrize("heads, rows", [(1, 2), (1, 8), (3, 12), (4, 64), (9, 576)])
def test_load_weights_restores_half_split_rows(memory_source, monkeypatch, chunk_bytes, encoding, heads, rows):
    """Rows that a converter interleaved come back in order, however small the chunks."""
    monkeypatch.setattr(load_module, "CHUNK_BYTES", chunk_bytes)
    weight = numbers(rows, 5)
    source = memory_source({"q": half_split_to_interleaved(weight, heads)}, {"q": encoding})
    model = on_meta(lambda: Linear(5, rows))
    load(model, source, WeightRule(target="weight", sources=("q",), heads=(heads,)))
    assert torch.equal(model.weight, torch.from_numpy(weight))


def test_load_weights_reorders_only_the_sources_that_say_so(memory_source):
    """In a merged projection queries and keys have their own head counts, values stay; biases follow their rows."""
    q, k, v = numbers(8, 6, seed=1), numbers(4, 6, seed=2), numbers(4, 6, seed=3)
    bias = [part[:, 0].copy() for part in (q, k, v)]
    tensors = {
        "q": half_split_to_interleaved(q, 2),
        "k": half_split_to_interleaved(k, 1),
        "v": v,
        "qb": half_split_to_interleaved(bias[0], 2),
        "kb": half_split_to_interleaved(bias[1], 1),
        "vb": bias[2],
    }
    model = on_meta(lambda: Linear(6, 16, bias=True))
    load(
        model,
        memory_source(tensors),
        WeightRule(target="weight", sources=("q", "k", "v"), heads=(2, 1, 0)),
        WeightRule(target="bias", sources=("qb", "kb", "vb"), heads=(2, 1, 0)),
    )
    assert torch.equal(model.weight, torch.from_numpy(np.concatenate((q, k, v))))
    assert torch.equal(model.bias, torch.from_numpy(np.concatenate(bias)))


def test_load_weights_holds_one_chunk_at_a_time(memory_source, monkeypatch):
    """A tensor beyond the chunk size is decoded in slices of rows that together are the tensor."""
    monkeypatch.setattr(load_module, "CHUNK_BYTES", 3 * 4 * 16)
    source = memory_source({"w": numbers(10, 16)}, {"w": "Q8_0"})
    model = on_meta(lambda: Linear(16, 10))
    load(model, source, WeightRule(target="weight", sources=("w",)), dtype=torch.bfloat16)
    assert [(rows.start, rows.stop) for _, rows in source.decoded] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert torch.equal(model.weight, torch.from_numpy(source.tensors["w"]).to(torch.bfloat16))


def test_load_weights_tells_its_progress_in_stored_bytes(memory_source, monkeypatch):
    """Progress grows with every chunk and ends at the total."""
    monkeypatch.setattr(load_module, "CHUNK_BYTES", 64)
    source = memory_source(TINY, {"embed": "Q8_0"})
    calls = []
    load(
        on_meta(lambda: Tiny(tied=True)), source, *TINY_RULES, progress=lambda done, total: calls.append((done, total))
    )
    total = sum(source.info(name).nbytes for name in TINY)
    assert {call[1] for call in calls} == {total}
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(done) > len(TINY)


@pytest.mark.parametrize("encoding", ["Q8_0", "OPAQUE"])
def test_load_weights_gives_the_threads_back(memory_source, encoding):
    """Copies run in one thread; afterwards, also after an error, the caller's number is back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []
    source = memory_source({"w": numbers(4, 4)}, {"w": encoding})
    rule = WeightRule(target="weight", sources=("w",))
    try:
        if encoding == "OPAQUE":
            with pytest.raises(UnsupportedError, match="OPAQUE"):
                load(on_meta(lambda: Linear(4, 4)), source, rule)
        else:
            load(on_meta(lambda: Linear(4, 4)), source, rule, progress=lambda *_: seen.append(torch.get_num_threads()))
            assert seen == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_load_weights_skips_ignored_tensors(memory_source):
    """Patterns match whole names."""
    source = memory_source({**TINY, "rope.freqs": numbers(4), "mtp.0.w": numbers(2)})
    report = load(on_meta(lambda: Tiny(tied=True)), source, *TINY_RULES, ignore=(r"rope\.freqs", r"mtp\..*"))
    assert report.tensors == 5


@pytest.mark.parametrize("rows", [0, 1])
def test_load_weights_takes_empty_and_single_rows(memory_source, rows):
    """A layer without outputs is legal, if odd."""
    source = memory_source({"w": numbers(rows, 4)}, {"w": "Q8_0"})
    model = on_meta(lambda: Linear(4, rows))
    calls = []
    load(model, source, WeightRule(target="weight", sources=("w",)), progress=lambda *call: calls.append(call))
    assert model.weight.shape == (rows, 4)
    assert model.weight.device == CPU
    assert all(done == total for done, total in calls)


def test_load_weights_fills_buffers_too(memory_source):
    """A buffer that a rule names is loaded and stays a buffer."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.empty(3))

    model = on_meta(Scaled)
    load(model, memory_source({"s": numbers(3)}), WeightRule(target="scale", sources=("s",)), dtype=torch.bfloat16)
    assert "scale" in dict(model.named_buffers())
    assert torch.equal(model.scale, torch.from_numpy(numbers(3)).to(torch.bfloat16))


def test_memory_source_is_a_weight_source(memory_source):
    """What these tests load from keeps the contract that the loader relies on."""
    assert isinstance(memory_source({}), WeightSource)


def test_load_weights_passes_on_what_has_no_decoder(memory_source):
    """The source's own error names the tensor."""
    source = memory_source({"w": numbers(4, 4)}, {"w": "OPAQUE"})
    with pytest.raises(UnsupportedError, match="tensor 'w' is stored as OPAQUE"):
        load(on_meta(lambda: Linear(4, 4)), source, WeightRule(target="weight", sources=("w",)))


def test_load_weights_says_which_parameter_does_not_fit(memory_source, monkeypatch):
    """An allocation beyond all memory is an error of ours, with the size and the parameter."""
    shape = (2**40, 2**12)
    source = memory_source({"w": numbers(1, 1)}, {"w": "Q8_0"})
    info = source.info("w")
    huge = type(info)(name="w", shape=shape, encoding="Q8_0", nbytes=34 * 2**47, file=info.file)
    monkeypatch.setattr(source, "info", lambda _: huge)
    with pytest.raises(DoesNotFitError, match=r"no memory for the 9007199254740992 bytes of parameter weight \(1099"):
        load(
            on_meta(lambda: Linear(shape[1], shape[0])),
            source,
            WeightRule(target="weight", sources=("w",)),
            dtype=torch.bfloat16,
        )


def test_load_weights_refuses_integer_dtypes(memory_source):
    """A model in int8 is not what this loader makes."""
    with pytest.raises(ValueError, match=r"dtype must be floating point, got torch\.int8"):
        load(on_meta(lambda: Linear(2, 2)), memory_source({}), dtype=torch.int8)
