"""The interpreter against models of transformers: the reference must itself be held to something we did not write."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference_pio.interfaces import LayerGroup
from inference_pio.kernels import Interpreter, ProgramBuilder

torch = pytest.importorskip("torch", reason="computes the models to compare with")
transformers = pytest.importorskip("transformers", reason="the models to compare with")

GROUPS = [LayerGroup(kind="full", window=None, layers=(0, 1))]
SIZES = {"vocab_size": 60, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "head_dim": 16,
         "num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0,
         "tie_word_embeddings": False}  # fmt: skip
FREQUENCIES = tuple((10000.0 ** -(np.arange(0, 16, 2, dtype=np.float32) / np.float32(16))).tolist())


def tensors(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else 0.15)
    return {name: tensor.numpy() for name, tensor in model.float().eval().state_dict().items()}


def lowered(state, *, head_norms=False, experts=False):
    """The model as a program, and its parameters."""
    builder = ProgramBuilder(vocab_size=60, hidden_size=48, eps=1e-6)
    values = {"embedding": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    values["head"] = state["lm_head.weight"]
    x = builder.embed("embedding")
    rotary = builder.rotary(FREQUENCIES)
    for index in range(2):
        name, ours = f"model.layers.{index}.", f"{index}."
        parts = [state[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"]
        values[f"{ours}qkv"] = np.concatenate(parts)
        values[f"{ours}output"] = state[f"{name}self_attn.o_proj.weight"]
        values[f"{ours}norm"] = state[f"{name}input_layernorm.weight"]
        values[f"{ours}mlp_norm"] = state[f"{name}post_attention_layernorm.weight"]
        if head_norms:
            values[f"{ours}q"], values[f"{ours}k"] = (state[f"{name}self_attn.{part}_norm.weight"] for part in "qk")
        qkv = builder.linear(x, f"{ours}qkv", 128, out="qkv", norm=f"{ours}norm")
        attended = builder.attention(
            qkv,
            layer=index,
            heads=4,
            kv_heads=2,
            head_size=16,
            rotary=rotary,
            query_norm=f"{ours}q" if head_norms else None,
            key_norm=f"{ours}k" if head_norms else None,
        )
        builder.add_linear(attended, f"{ours}output", to=x)
        if experts:
            values[f"{ours}router"] = state[f"{name}mlp.gate.weight"]
            values[f"{ours}gate_up"] = state[f"{name}mlp.experts.gate_up_proj"]
            values[f"{ours}down"] = state[f"{name}mlp.experts.down_proj"]
            builder.experts(
                x,
                to=x,
                router=f"{ours}router",
                gate_up=f"{ours}gate_up",
                down=f"{ours}down",
                inner_size=24,
                num_experts=6,
                chosen=2,
                norm=f"{ours}mlp_norm",
            )
            continue
        halves = [state[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        values[f"{ours}gate_up"] = np.concatenate(halves)
        values[f"{ours}down"] = state[f"{name}mlp.down_proj.weight"]
        inner = builder.gated(x, f"{ours}gate_up", 160, out="inner", norm=f"{ours}mlp_norm")
        builder.add_linear(inner, f"{ours}down", to=x)
    return builder.head(x, "head", norm="norm"), values


def build(family):
    match family:
        case "llama":
            config = transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-6)
            return transformers.LlamaForCausalLM(config), {}
        case "qwen3":
            return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)), {"head_norms": True}
        case _:
            config = transformers.Qwen3MoeConfig(
                **SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
            )
            return transformers.Qwen3MoeForCausalLM(config), {"head_norms": True, "experts": True}


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_programs_compute_what_transformers_does(family, make_paging):
    """Each row of ragged steps, in chunks and beside others, is the row of the whole sequence read alone."""
    model, options = build(family)
    program, values = lowered(tensors(model), **options)
    paging = make_paging(np.random.default_rng(0), GROUPS, page_size=16, vocab_size=60)
    interpreter = Interpreter(program, values, paging.caches, GROUPS, page_size=16)
    rows: dict[int, list[np.ndarray]] = {}
    hidden: dict[int, list[np.ndarray]] = {}
    for schedule in ({0: 7}, {0: 1, 1: 20}, {1: 1, 0: 12}, {0: 1, 1: 1}):
        batch = paging.batch(schedule, every_row=True)
        batch = dataclasses.replace(batch, hidden_rows=batch.logit_rows)
        logits = interpreter.step(batch)
        for sequence, start, count in zip(schedule, batch.query_starts, schedule.values(), strict=False):
            rows.setdefault(sequence, []).append(logits[start : start + count])
            hidden.setdefault(sequence, []).append(interpreter.hidden_states()[start : start + count])
    for sequence, tokens in paging.tokens.items():
        with torch.no_grad():
            output = model(torch.tensor([tokens]), output_hidden_states=True)
        expected = output.logits[0].numpy()
        np.testing.assert_allclose(np.concatenate(rows[sequence]), expected, rtol=1e-3, atol=1e-4)
        # The last of them is after the final norm.
        expected = output.hidden_states[-1][0].numpy()
        np.testing.assert_allclose(np.concatenate(hidden[sequence]), expected, rtol=1e-3, atol=1e-4)


def attention_only(**options):
    builder = ProgramBuilder(vocab_size=30, hidden_size=32, eps=1e-6)
    qkv = builder.linear(builder.embed("table"), "qkv", 64, out="qkv")
    attended = builder.attention(qkv, layer=0, heads=2, kv_heads=1, head_size=16, **options)
    return builder.head(attended, "head")


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 0.7}, {"sinks": "sinks"}, {"scale": 1.5}])
def test_attention_is_its_formula(options, make_paging):
    """Windows, soft caps, sinks and scales, against the formula over the whole sequence in torch."""
    program = attention_only(**options)
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in program.parameters.items()}
    groups = [LayerGroup(kind="full", window=None, layers=(0,))]
    paging = make_paging(rng, groups, page_size=16, vocab_size=30)
    interpreter = Interpreter(program, values, paging.caches, groups, page_size=16, dtype=np.float64)
    logits = np.concatenate([interpreter.step(paging.batch({0: n}, every_row=True)) for n in (4, 1, 13)])

    embedded = values["table"][paging.tokens[0]].astype(np.float64)
    qkv = torch.tensor(embedded @ values["qkv"].T.astype(np.float64))
    q, k, v = qkv[:, :32].view(-1, 2, 16), qkv[:, 32:48], qkv[:, 48:]
    scores = torch.einsum("qhd,sd->hqs", q, k) * options.get("scale", 0.25)
    if "softcap" in options:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    place = torch.arange(len(qkv))
    distance = place[:, None] - place
    scores.masked_fill_((distance < 0) | (distance >= options.get("window", 99)), float("-inf"))
    if "sinks" in options:
        sinks = torch.tensor(values["sinks"], dtype=torch.float64)[:, None, None].expand(2, len(qkv), 1)
        scores = torch.cat([scores, sinks], dim=2)
    weights = scores.softmax(dim=2)[..., : len(qkv)]
    attended = torch.einsum("hqs,sd->qhd", weights, v).reshape(-1, 32)
    np.testing.assert_allclose(logits, attended.numpy() @ values["head"].T.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_missing_parameters_and_layers_are_refused(make_paging):
    """Before anything runs."""
    program = attention_only()
    paging = make_paging(np.random.default_rng(0), GROUPS, page_size=16, vocab_size=30)
    with pytest.raises(ValueError, match="parameters that are not given: head, qkv, table"):
        Interpreter(program, {}, paging.caches, GROUPS, page_size=16)
    values = {name: np.zeros(shape, dtype=np.float32) for name, shape in program.parameters.items()}
    with pytest.raises(ValueError, match="layer 0 of the program is in none of 1 groups"):
        Interpreter(program, values, paging.caches, [LayerGroup(kind="full", window=None, layers=(1,))], page_size=16)
