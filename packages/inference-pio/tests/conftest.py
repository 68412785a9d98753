"""A model that recites the alphabet, so that a command line's whole output is known; and ways to run commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference_pio.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 64, 32, 4, 2, 16, 32768
RECITED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A Llama that answers every chat with the alphabet and ends.

    Its layers add nothing, so the head sees the last token alone, and the head maps each token to the one that follows
    it in the recital. Bytes are tokens.
    """
    folder = tmp_path_factory.mktemp("models") / "reciter"
    folder.mkdir()
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    end = tokenizer.token_to_id("<|im_end|>")
    ring = [*(tokenizer.encode(letter).ids[0] for letter in "\n" + RECITED), end]
    (folder / "config.json").write_text(json.dumps(_config(tokenizer.get_vocab_size(), end)))
    save_file(_weights(tokenizer.get_vocab_size(), ring), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _config(vocabulary: int, end: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end,
    }


def _weights(vocabulary: int, ring: list[int]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((vocabulary, HIDDEN)).astype(np.float32)
    head = np.zeros_like(embedding)
    for token, following in zip(ring, [*ring[1:], ring[1]], strict=True):
        head[following] += embedding[token]
    layer = "model.layers.0."
    random = {
        "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    }
    silent = {"self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM), "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE)}
    ones = np.ones(HIDDEN, dtype=np.float32)
    return {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": ones,
        layer + "input_layernorm.weight": ones.copy(),
        layer + "post_attention_layernorm.weight": ones.copy(),
        **{layer + name: generator.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in random.items()},
        **{layer + name: np.zeros(shape, dtype=np.float32) for name, shape in silent.items()},
    }


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """No test sees, or writes to, the home, the settings or the cache of whoever runs it."""
    for name in [name for name in os.environ if name.startswith(("PIO_", "HF_"))]:
        monkeypatch.delenv(name)
    for name, folder in (("HOME", "home"), ("XDG_CACHE_HOME", "xdg-cache"), ("XDG_CONFIG_HOME", "xdg-config")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        """Standard output, which is one JSON document."""
        document: dict[str, object] = json.loads(self.out)
        return document


@pytest.fixture
def pio(capsys, monkeypatch) -> Callable[..., Done]:
    """Runs a command in this process; ``stdin`` is what is piped in."""

    def run(*arguments: object, stdin: bytes | None = None) -> Done:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def pio_process() -> Callable[..., Done]:
    """Runs a command in a process of its own; ``stdin`` is what is piped in."""

    def run(*arguments: object, stdin: bytes | None = None, **options: object) -> Done:
        command = [sys.executable, "-m", "inference_pio.cli", *map(str, arguments)]
        source = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, **source, **options)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def fake_hub(tmp_path):
    """A hub on this machine that serves what is put into ``.repos``; see :class:`FakeHub`."""
    fake = FakeHub()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


class FakeHub:
    """The two routes that a pull needs, without faults: those are pio-core's tests' business."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.paths: list[str] = []
        self.agents: list[str | None] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None: ...

            def do_HEAD(self) -> None:
                fake.answer(self, "HEAD")

            def do_GET(self) -> None:
                fake.answer(self, "GET")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def serve_folder(self, repo: str, folder: Path) -> None:
        """Offer the files of ``folder``."""
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        self.paths.append(handler.path)
        self.agents.append(handler.headers.get("user-agent"))
        parts = handler.path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        repo = self.repos.get("/".join(parts[2:4] if listing else parts[:2]))
        headers = {"X-Repo-Commit": "c" * 40, "ETag": '"e"'}
        if repo is None:
            status, body, headers = 404, b"", {"X-Error-Code": "RepoNotFound"}
        elif listing:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in repo.items()]
            status, body = 200, json.dumps({"id": "x", "sha": "c" * 40, "siblings": siblings}).encode()
        else:
            status, body = 200, repo[parts[-1]]
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if method == "GET":
            handler.wfile.write(body)
