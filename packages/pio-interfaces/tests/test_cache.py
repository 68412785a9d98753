"""What layers keep, and how they are grouped."""

import pytest

from inference_pio.interfaces import (
    AttentionSpec,
    CacheGroup,
    KVSpec,
    LatentSpec,
    LayerGroup,
    ModelShape,
    StateSpec,
    group_layers,
)

FULL = KVSpec(num_kv_heads=2, head_dim=8)
NARROW = KVSpec(num_kv_heads=2, head_dim=8, window=16)
WIDE = KVSpec(num_kv_heads=1, head_dim=4, window=64)
LATENT = LatentSpec(rank=32, rope_dim=8)
STATE = StateSpec(shapes=((4, 8, 8), (12, 3)))


def test_sizes():
    """Elements per token, and per sequence for a state."""
    assert (FULL.elements_per_token, LATENT.elements_per_token, STATE.elements) == (32, 40, 292)


def test_layers_that_keep_the_same_positions_share_a_group():
    """Whatever their heads: full first, windows by size, states last."""
    groups = group_layers([STATE, WIDE, FULL, NARROW, LATENT, STATE, NARROW])
    assert groups == (
        LayerGroup(kind="full", window=None, layers=(2, 4)),
        LayerGroup(kind="window", window=16, layers=(3, 6)),
        LayerGroup(kind="window", window=64, layers=(1,)),
        LayerGroup(kind="state", window=None, layers=(0, 5)),
    )
    assert group_layers([]) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "window", "num_pages": 1}, "has a window if its kind is 'window', got 'window' and None"),
        ({"kind": "full", "window": 4, "num_pages": 1}, "got 'full' and 4"),
        ({"kind": "full", "num_pages": 0}, "at least 1 page and 0 host pages, got 0 and 0"),
        ({"kind": "state", "num_pages": 1, "num_host_pages": -1}, "got 1 and -1"),
    ],
)
def test_groups_that_contradict_themselves_are_refused(arguments, message):
    """A window without a size, a size without a window, no pages."""
    with pytest.raises(ValueError, match=message):
        CacheGroup(**arguments)


def shape(**changes):
    attention = (
        AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8),
        AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, window=16),
    )
    fields = {
        "architecture": "Toy",
        "num_layers": 2,
        "hidden_size": 32,
        "vocab_size": 10,
        "max_position": 64,
        "attention": attention,
        "num_parameters": 1,
        "bos_token_id": None,
        "eos_token_ids": (),
    }
    return ModelShape(**fields | changes)


def test_a_model_keeps_keys_and_values_of_its_attention():
    """Windows included."""
    assert shape().cache_specs == (FULL, NARROW)
    assert shape().kv_elements_per_token == 64


def test_a_model_may_say_what_it_keeps():
    """Then that counts; states cost nothing per token."""
    assert shape(cache=(LATENT, STATE)).cache_specs == (LATENT, STATE)
    assert shape(cache=(LATENT, STATE)).kv_elements_per_token == 40
