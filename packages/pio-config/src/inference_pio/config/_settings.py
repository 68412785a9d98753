"""All settings of Inference-PIO, with their defaults and bounds."""

from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Name = Annotated[str, Meta(min_length=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, flat. A key's name is the same in files, in ``PIO_<KEY>`` and as ``--<key>``.

    Made by :func:`load_settings`, which checks types and bounds and knows where each value came from.

    Attributes:
        model: Registered name, folder, GGUF file or hub id.
        executor: What computes the model: ``native`` is the CPU's fused programs, ``torch`` PyTorch on any device;
            ``auto`` takes the native one on a CPU where it can run the model.
        device: Where the model runs: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        dtype: Type of weights and activations; ``auto`` chooses by model and device. ``int8`` is for the native
            executor, which quantises matrices in floating point while it loads them.
        threads: CPU threads; None takes the machine's physical cores.
        max_model_len: Context length in tokens; None takes the model's own.
        max_num_seqs: Sequences that run together at most.
        max_num_batched_tokens: Tokens that one step reads at most; None takes 512, or ``max_num_seqs`` if that is more.
        attention: Name of an attention backend, or ``auto``.
        kv_cache: Layout of the KV cache.
        kv_cache_dtype: Type of keys and values in the cache; ``auto`` is float16 on the native executor, and that of
            the activations on the other.
        enable_prefix_caching: Whether prompts that begin alike are computed once; None where the model allows it.
        speculative: ``ngram``, or a smaller model of the same vocabulary that drafts; None or ``none`` drafts nothing.
        num_speculative_tokens: Tokens drafted at most.
        deterministic: Whether an answer must not depend, bit for bit, on what else runs; slower.
        max_tokens: New tokens per answer; None goes on to the end of the context.
        temperature: Divides the logits, 0 is greedy; None leaves it to the model's generation config.
        top_k: Keep the k most likely tokens, 0 or -1 all; None as for ``temperature``.
        top_p: Keep the smallest set of tokens with this probability; None as for ``temperature``.
        min_p: Keep tokens at least this likely relative to the first; None as for ``temperature``.
        seed: Seed of the sampler; None draws one.
        system: System prompt; None leaves it to the chat template.
        cache_dir: Where downloaded models are kept; None takes :func:`cache_dir`'s default.
        packed_cache_bytes: Disk that weights packed for the native executor may take in ``cache_dir``; None for 32 GiB,
            0 keeps none.
        ignore_unknown_keys: Read a model config although it has keys that the model's plugin does not know.
        hub_endpoint: URL of the model hub; None takes the public one.
    """

    model: _Name = "smollm2-135m-instruct"
    executor: Literal["auto", "native", "torch"] = "auto"
    device: Annotated[str, Meta(pattern=r"^[a-z]+(:[0-9]{1,3})?\Z", description="auto, cpu, cuda or cuda:N")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=4096)] | None = None
    max_model_len: _Count | None = None
    max_num_seqs: Annotated[int, Meta(ge=1, le=65536)] = 64
    max_num_batched_tokens: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    attention: _Name = "auto"
    kv_cache: Literal["auto", "contiguous", "paged"] = "auto"
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    enable_prefix_caching: bool | None = None
    speculative: _Name | None = None
    num_speculative_tokens: Annotated[int, Meta(ge=1, le=64)] = 5
    deterministic: bool = False
    max_tokens: _Count | None = 512
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    system: str | None = None
    cache_dir: _Name | None = None
    packed_cache_bytes: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    ignore_unknown_keys: bool = False
    hub_endpoint: Annotated[str, Meta(pattern=r"^https?://\S+\Z", description="an http(s) URL")] | None = None


@cache
def setting_types() -> MappingProxyType[str, object]:
    """The type of each setting with its bounds, by key, in documented order."""
    return MappingProxyType({field.name: field.type for field in msgspec.structs.fields(Settings)})
