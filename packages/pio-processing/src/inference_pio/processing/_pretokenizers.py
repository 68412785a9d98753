"""How byte-level vocabularies cut text into words before merging, by the name that GGUF files use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.interfaces import UnsupportedError

if TYPE_CHECKING:
    import tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One way to cut text into words.

    Attributes:
        splits: Regular expressions applied one after the other; a match becomes a piece of its own.
        nfc: Whether text is brought to Unicode normal form C first.
        whole_words: Whether a word that is a token is taken as it is, without merging.
        adds_bos: Whether a text begins with the beginning-of-sequence token unless the file says otherwise.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False


_DEFAULT = PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_GPT2_WORDS = PreTokenizer(splits=(_GPT2,))
_SINGLE_DIGITS = PreTokenizer(splits=(_DIGIT, _GPT2))
_QWEN2 = PreTokenizer(splits=(_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST,), nfc=True)
_LLAMA3 = PreTokenizer(splits=(_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST,), whole_words=True, adds_bos=True)

PRE_TOKENIZERS = {
    "default": _DEFAULT,
    "deepseek-r1-qwen": _QWEN2,
    "gpt-2": _GPT2_WORDS,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _SINGLE_DIGITS,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of that name.

    Raises:
        UnsupportedError: Unknown name.
    """
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise UnsupportedError(
            f"tokenizer.ggml.pre is {name!r}", hint=f"known pre-tokenizers: {', '.join(PRE_TOKENIZERS)}"
        ) from None


def build_pre_tokenizer(pre: PreTokenizer) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The pre-tokenizer as the ``tokenizers`` library runs it, ending in the byte-level alphabet."""
    from tokenizers import Regex, pre_tokenizers
    from tokenizers.pre_tokenizers import Split

    steps: list[pre_tokenizers.PreTokenizer] = []
    for split in pre.splits:
        # The library's own digit splitter is several times as fast as the regular expression.
        digits = split == _DIGIT
        steps.append(pre_tokenizers.Digits(individual_digits=True) if digits else Split(Regex(split), "isolated"))
    if pre.splits[-1] == _GPT2:
        # The same for this expression, which the byte-level step knows by itself; only last, since it changes the text.
        steps[-1] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)
