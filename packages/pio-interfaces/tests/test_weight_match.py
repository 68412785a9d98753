"""What every loader refuses: rules and checkpoints that do not belong together."""

from pathlib import Path

import pytest

from inference_pio.interfaces import (
    MalformedFileError,
    TensorInfo,
    WeightMap,
    WeightRule,
    match_rule,
    refuse_unfilled,
    refuse_unused,
)


class Headers:
    """The headers of tensors without values, two files if a name begins with ``b``."""

    def __init__(self, **shapes):
        self._infos = {
            name: TensorInfo(
                name=name, shape=shape, encoding="F32", nbytes=0, file=Path("ckpt", "2" if name[0] == "b" else "1")
            )
            for name, shape in shapes.items()
        }

    def __contains__(self, name):
        return name in self._infos

    def __iter__(self):
        return iter(self._infos)

    def info(self, name):
        return self._infos[name]


def below_each_other(stored, shape):
    return stored[0] if len(stored) == len(shape) and stored[1:] == shape[1:] else None


def match(source, *names, shape=(4, 3), heads=()):
    return match_rule(WeightRule(target="w", sources=names, heads=heads), shape, source, below_each_other)


def test_tensors_come_in_the_order_of_the_rule():
    """Each with its heads, which are 0 where the rule has none."""
    source = Headers(a=(3, 3), b=(1, 3), c=(4, 3))
    assert match(source, "b", "a") == ((source.info("b"), 0), (source.info("a"), 0))
    assert match(source, "c", heads=(2,)) == ((source.info("c"), 2),)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ("a", "gone"),
            {},
            r"^ckpt: tensor 'gone': missing; parameter w \(4, 3\) is made from it \(the checkpoint is in",
        ),
        (
            ("c",),
            {"shape": (4, 2)},
            r"tensor 'c': has shape \(4, 3\), but parameter w takes \(4, 2\) \(the sizes in the",
        ),
        (("a",), {}, r"tensor 'a': has shape \(3, 3\), but parameter w takes \(4, 3\) "),
        (("a", "v"), {}, r"tensor 'v': has shape \(3,\), but parameter w takes rows of \(4, 3\) "),
        (
            ("a", "c"),
            {},
            r"tensors of w: a \(3, 3\) \+ c \(4, 3\) have 7 rows, the parameter \(4, 3\) has 4 \(the sizes",
        ),
        (("a", "b"), {"heads": (1, 0)}, r"tensor 'a': its 3 rows of shape \(3, 3\) are not 1 heads of an even number "),
    ],
)
def test_tensors_that_do_not_make_the_parameter_are_refused(names, options, message):
    """The file, the tensor, both shapes, and what to do."""
    source = Headers(a=(3, 3), b=(1, 3), c=(4, 3), v=(3,))
    with pytest.raises(MalformedFileError, match=message):
        match(source, *names, **options)


@pytest.mark.parametrize(
    ("names", "heads", "counts"), [((), (), "0 sources and 0"), (("a",), (1, 1), "1 sources and 2")]
)
def test_a_rule_that_contradicts_itself_is_the_models_mistake(names, heads, counts):
    """No checkpoint can be loaded by it."""
    with pytest.raises(ValueError, match=f"the rule of 'w' has {counts} head counts"):
        match(Headers(a=(4, 3)), *names, heads=heads)


def test_every_tensor_is_used_or_ignored():
    """The first of the others is named, the rest counted; patterns must match the whole name."""
    source = Headers(a=(1,), rope=(2,), rope2=(3,))
    weight_map = WeightMap(rules=(WeightRule(target="w", sources=("a",)),), ignore=("rop",))
    message = (
        r"^ckpt.1: tensor 'rope': no parameter of the model takes this tensor of shape \(2,\) \(and 1 more\) \(the ch"
    )
    with pytest.raises(MalformedFileError, match=message):
        refuse_unused(source, weight_map)
    with pytest.raises(MalformedFileError, match=r"'rope2': .* of shape \(3,\) \(the checkpoint is of another"):
        refuse_unused(source, WeightMap(rules=weight_map.rules, ignore=("rope",)))
    refuse_unused(source, WeightMap(rules=weight_map.rules, ignore=(r"rope\d?",)))


def test_a_parameter_without_tensors_is_refused():
    """It is the file's fault if an optional rule was skipped, under whichever name, and else the model's."""
    weight_map = WeightMap(rules=(WeightRule(target="head", sources=("out",), optional=True),))
    message = r"^ckpt.1: tensor 'out': missing, and parameter head \(4, 3\) is not tied to another \(tie it\)$"
    with pytest.raises(MalformedFileError, match=message):
        refuse_unfilled(("table", "head"), (4, 3), Headers(a=(1,)), weight_map, hint="tie it")
    with pytest.raises(MalformedFileError, match=r"^empty checkpoint: tensor 'out'"):
        refuse_unfilled(("head",), (4, 3), Headers(), weight_map, hint="tie it")
    with pytest.raises(ValueError, match=r"the weight map has no rule for 'table' \(4, 3\)"):
        refuse_unfilled(("table",), (4, 3), Headers(a=(1,)), weight_map, hint="tie it")
