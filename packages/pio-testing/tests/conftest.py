"""A miniature Llama as a plugin, sound or with one flaw, to see what the kit accepts and what it catches."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from inference_pio.attention import Attention
from inference_pio.config import parse_rope
from inference_pio.interfaces import AttentionSpec, ModelShape, WeightMap, WeightRule
from inference_pio.layers import Embedding, GatedMLP, Linear, LMHead, RMSNorm, RotaryEmbedding, apply_rotary

ATTENTION_PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "output": ("o_proj",)}
MLP_PARTS = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}

COMPANY = {"company": 1e-2, "company-bits": 1e-6}  # how much the number of sequences changes what comes out


class ToyLayer(nn.Module):
    def __init__(self, config, index, attention, linear, flaw):
        super().__init__()
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.flaw = flaw
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.qkv = Linear(config.hidden_size, sum(self.heads) * config.head_dim, method=linear)
        self.attend = Attention(config.spec, layer=index, backend=attention)
        self.output = Linear(self.heads[0] * config.head_dim, config.hidden_size, method=linear)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, method=linear)

    def forward(self, x, cos, sin, cache, batch):
        normed = self.attention_norm(x)
        q, k, v = self.qkv(normed).unflatten(-1, (sum(self.heads), -1)).split(self.heads, dim=1)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        x = x + self.output(self.attend(q, k, v, cache, batch).flatten(1))
        x = x + self.mlp(self.mlp_norm(x))
        if self.flaw == "second-layer" and self.attend.layer == 1:
            x = x * 1.01
        return x + x.mean(dim=0) if self.flaw == "leak" else x


class ToyModel(nn.Module):
    def __init__(self, config, attention, linear, flaw, tied_head):
        super().__init__()
        self.flaw = flaw
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        rope = dataclasses.replace(config.rope, theta=config.rope.theta * 3) if flaw == "theta" else config.rope
        self.rotary = RotaryEmbedding(config.head_dim, rope, max_position=config.max_position_embeddings)
        self.layers = nn.ModuleList(
            ToyLayer(config, index, attention, linear, flaw) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        tied_to = self.embedding if tied_head else None
        self.head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to, method=linear)

    def forward(self, token_ids, positions, cache, batch):
        if self.flaw == "positions":
            positions = torch.arange(len(positions))
        if self.flaw == "slots":
            batch = dataclasses.replace(batch, slot_mapping=positions)
        x = self.embedding(token_ids)
        cos, sin = self.rotary.cos_sin(positions)
        for layer in self.layers:
            x = layer(x, cos, sin, cache, batch)
        if self.flaw in COMPANY:
            x = x + x.roll(1, dims=-1) * COMPANY[self.flaw] * (len(batch.query_lens) - 1)
        if self.flaw == "nan":
            x = x * float("nan")
        return x if self.flaw == "no-final-norm" else self.norm(x)

    def logits(self, hidden):
        logits = self.head(hidden)
        return logits - logits.mean(dim=0) if self.flaw == "rows" else logits


class ToyPlugin:
    """Serves what ``tiny_checkpoint("llama")`` writes, from safetensors."""

    def __init__(self, flaw):
        self.flaw = flaw

    def parse_config(self, raw, *, ignore_unknown=False):  # noqa: ARG002 - the contract's signature
        config = SimpleNamespace(**raw)
        config.rope = parse_rope(raw, max_position=config.max_position_embeddings)
        config.spec = AttentionSpec(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )
        return config

    def shape(self, config, *, tied_head):  # noqa: ARG002 - the contract's signature
        return ModelShape(
            architecture="ToyForCausalLM",
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_position=config.max_position_embeddings,
            attention=(config.spec,) * config.num_hidden_layers,
            num_parameters=0,
            bos_token_id=None,
            eos_token_ids=(),
        )

    def weight_map(self, config, layout):  # noqa: ARG002 - the contract's signature
        pairs = [("embedding", ("model.embed_tokens",)), ("norm", ("model.norm",)), ("head", ("lm_head",))]
        for index in range(config.num_hidden_layers):
            ours, theirs = f"layers.{index}.", f"model.layers.{index}."
            pairs += [
                (f"{ours}attention_norm", (f"{theirs}input_layernorm",)),
                (f"{ours}mlp_norm", (f"{theirs}post_attention_layernorm",)),
            ]
            pairs += [(f"{ours}{a}", tuple(f"{theirs}self_attn.{b}" for b in bs)) for a, bs in ATTENTION_PARTS.items()]
            pairs += [(f"{ours}mlp.{a}", tuple(f"{theirs}mlp.{b}" for b in bs)) for a, bs in MLP_PARTS.items()]
        rules = [
            WeightRule(
                target=f"{target}.weight",
                sources=tuple(f"{source}.weight" for source in sources),
                optional=target == "head",
            )
            for target, sources in pairs
        ]
        return WeightMap(rules=tuple(rules))

    def build(self, config, *, attention, linear, tied_head):
        method = None if self.flaw == "own-products" else linear
        return ToyModel(config, attention, method, self.flaw, tied_head)


@pytest.fixture(scope="session")
def toy():
    """``toy()`` is a sound plugin, ``toy("theta")`` one with that flaw."""
    return lambda flaw=None: ToyPlugin(flaw)


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint):
    """A tiny Llama checkpoint."""
    return tiny_checkpoint("llama")


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest on test code in a process of its own; returns the finished process."""

    def run(code, *, conftest=""):
        (tmp_path / "test_inner.py").write_text(code)
        (tmp_path / "conftest.py").write_text(conftest)
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--strict-markers", "."]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def config_of():
    """The ``config.json`` in a folder."""
    return lambda folder: json.loads((folder / "config.json").read_text())
