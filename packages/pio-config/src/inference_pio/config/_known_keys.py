"""Keys of Hugging Face configs that no family needs to declare."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROPE_KEYS = frozenset(
    {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings"}
)
"""Keys that :func:`parse_rope` reads."""

_BOOKKEEPING = """
    _commit_hash _name_or_path name_or_path architectures model_type transformers_version torch_dtype dtype
    tokenizer_class prefix finetuning_task task_specific_params problem_type id2label label2id num_labels
    transformers.js_config is_llama_config unsloth_fixed unsloth_version
"""

_TRAINING = """
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout hidden_dropout_prob
    attention_probs_dropout_prob initializer_range gradient_checkpointing pretraining_tp tf_legacy_loss
"""

# What the file holds decides about a tied head, not the flag: published flags are wrong too often.
_RUNNING = """
    use_cache return_dict output_hidden_states output_attentions torchscript use_bfloat16 chunk_size_feed_forward
    is_decoder tie_word_embeddings tie_encoder_decoder bos_token_id eos_token_id pad_token_id sep_token_id
    unk_token_id decoder_start_token_id
"""

# Older releases wrote the whole generation config into every model config.
_GENERATION = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""

IRRELEVANT_KEYS = frozenset(f"{_BOOKKEEPING} {_TRAINING} {_RUNNING} {_GENERATION}".split())
"""Keys without influence on the logits of any decoder. A family that declares one of them reads it all the same."""

NEUTRAL_VALUES: Mapping[object, tuple[object, ...]] = MappingProxyType(
    {
        "rope_interleaved": (False, None),
        "is_encoder_decoder": (False, None),
        "add_cross_attention": (False, None),
        "cross_attention_hidden_size": (None,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
        "_attn_implementation_autoset": (False, True, None),
    }
)
"""Keys that say nothing at these values, and are refused at any other."""
