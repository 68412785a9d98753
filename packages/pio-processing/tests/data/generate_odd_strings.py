"""Writes odd_strings.json: strings on which tokenizers tend to disagree. Run it after changing a list below.

The strings are written by hand or put together from the fragments by a fixed sequence; no text comes from elsewhere.
"""

# ruff: noqa: RUF001 - to look like other characters is what these strings are for
from __future__ import annotations

import json
import sys
from pathlib import Path

NUMBERS = ["0", "7", "42", "1999", "12345678901234567890", "3.14159", "-1", "+1", "1,000,000", "1e-5", "0x1F", "1/2"]
NUMBERS += [
    "10%",
    "$9.99",
    "2⁵",
    "x²",
    "H₂O",
    "½",
    "Ⅷ",
    "①②③",
    "٣٤٥",
    "१२३",
    "１２３",
    "12ab34",
    "a1b2c3",
    "v1.2.3-rc4",
    "1st 2nd",
]
NUMBERS += [
    "192.168.0.1",
    "2024-02-30T12:34:56Z",
    "123 456 789",
    "   12",
    "12   ",
    "1.\n2.\n3.",
    "\n\n1. one\n\n2. two",
    "1)2)3)",
]
SPACES = [" " * n for n in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65)]
SPACES += ["\n" * n for n in (1, 2, 3, 4, 8, 9)] + ["\t" * n for n in (1, 2, 3, 5)]
SPACES += [
    "\r\n",
    "\r\n\r\n",
    "\n \n",
    " \n",
    "\n ",
    "  \n  ",
    "\t \t",
    " \t\n\r\x0b\x0c",
    "a\u00a0b",
    "\u2003em",
    "\u3000全角",
    "\u200bzero",
]
SPACES += [
    "a  b",
    "a   b",
    " a",
    "  a",
    "   a",
    "a ",
    "a  ",
    "a\n",
    "a\n\n",
    "\n\na",
    "a \n b",
    "\u2028line",
    "\u2029par",
    "\u0085nel",
    "\ufeffbom",
]
CONTRACTIONS = [
    "it's",
    "IT'S",
    "don't",
    "DON'T",
    "we'll",
    "I'm",
    "they've",
    "you're",
    "he'd",
    "o'clock",
    "'s",
    "'S",
    "'ll",
    "'LL",
]
CONTRACTIONS += ["’s", "it’s", "''s", "'t'm'd", "rock'n'roll", "'re 've", " 's", "'"]
SCRIPTS = [
    "你好，世界",
    "こんにちは世界",
    "안녕하세요",
    "Привет, мир",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
]
SCRIPTS += [
    "สวัสดีชาวโลก",
    "ሰላም",
    "გამარჯობა",
    "Բարեւ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "𠜎𠜱𠝹",
    "ﷺ",
    "ǅ",
    "ﬁ ﬂ ﬃ",
    "ß ẞ",
    "İi Iı",
    "Ångström",
    "naïve café",
]
SCRIPTS += [
    "漢字かな交じり文",
    "中文English混排123",
    "שלום123abc",
    "\u202eright to left\u202c",
    "\u2066isolate\u2069",
    "𐍈",
    "፩፪፫",
    "༠༡",
    "〇一二",
]
COMBINING = [
    "e\u0301",
    "e\u0301\u0301",
    "a\u0300\u0316",
    "n\u0303o",
    "Z̷̨̛a̷l̷g̷o̷",
    "\u0301",
    " \u0301",
    "क\u094dष",
    "ᄀ\u1161ᆨ",
    "A\u030a",
    "\u212b",
]
EMOJI = [
    "🙂",
    "👍🏽",
    "👩‍👩‍👧‍👦",
    "🤷‍♀️",
    "🇫🇷🇩🇪",
    "🏳️‍🌈",
    "1️⃣",
    "❤️",
    "☺",
    "🙂🙂🙂",
    "a🙂b",
    " 🙂 ",
    "🙂\n",
    "©®™",
    "→⇒∀∃∑",
    "🧑🏿‍🚀",
]
CONTROL = [
    "\x00",
    "a\x00b",
    "\x01\x02\x03",
    "\x1b[31mred\x1b[0m",
    "\x7f",
    "\x80\x9f",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U0010ffff",
    "\ue000",
]
CONTROL += ["\xad", "soft\xadhyphen", "\u200d", "\u200c", "\u2060", "\U000e0041", "\u0000\u0000"]
CODE = [
    "def f(x):\n    return x**2",
    "if (a && b) { c++; }",
    "<div class='a'>&nbsp;</div>",
    "SELECT * FROM t WHERE a >= 1;",
    "a_b_c",
    "__init__",
]
CODE += [
    "camelCaseString",
    "SCREAMING_SNAKE",
    "http://example.com/a?b=c&d=%20#e",
    "user@example.com",
    "C:\\Users\\x",
    "/usr/bin/env",
    "$PATH:${HOME}",
]
CODE += [
    "#!/bin/sh\nset -e\n",
    "\\n\\t\\\\",
    "/* */ // ///",
    "->=>==!=<=>===",
    "[[(({{}}))]]",
    "1+1=2",
    "`code`",
    "```py\nprint(1)\n```",
    "λx.x",
    "a[i][j]+=b",
]
CODE += [
    "\tindent\n\t\tmore\n",
    "    four\n        eight\n",
    '{"a": [1, 2, {"b": null}]}',
    "x = 'it''s'",
    "%s %d %%",
    "~!@#$%^&*()_+-=",
    "...",
    "....",
    "-----",
    "====",
    "!!!???",
]
WORDS = [
    "",
    "a",
    "Hello",
    "hello world",
    "Hello, world!",
    "HELLO WORLD",
    "The quick brown fox jumps over the lazy dog.",
    "supercalifragilisticexpialidocious",
]
WORDS += [
    "a" * 100,
    "ab" * 50,
    "é" * 40,
    "漢" * 30,
    "🙂" * 20,
    "-" * 70,
    "Mr. O'Neill's",
    "e.g., i.e., etc.",
    "“quotes” ‘single’ «guillemets»",
    "—em–en-hyphen",
    "▁",
    "▁a ▁▁b",
    "Ġ",
    "ĠHello Ċ",
    "Ã©",
]
SPELLINGS = [
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_end|><|im_end|>",
    " <|im_start|> ",
    "a<|im_end|>b",
    "<|im_start|",
    "|im_end|>",
    "<|IM_END|>",
    "<s>",
    "</s>",
]
SPELLINGS += [
    "<unk>",
    "<0x0A>",
    "<0xFF>",
    "[INST]",
    "<repo_name>x<file_sep>y",
    "<filename>",
    "<jupyter_code>1+1<jupyter_output>2",
    "<empty_output>",
    "<reponame>",
    "<gh_stars>10",
]
SPELLINGS += [
    "\n<|im_end|>\n",
    "1<|im_end|>2",
    "<|im_start|>\n\n<|im_end|>",
    "<issue_start><issue_comment><issue_closed>",
    "<|endoftext|",
    "<<|im_end|>>",
]

FRAGMENTS = [
    "a",
    "The",
    " the",
    "ing",
    " 1",
    "12",
    "2024",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    ".",
    ",",
    "'s",
    "'",
    '"',
    "(",
    ")",
    "!",
    "?",
    "-",
    "_",
    "=",
    "é",
    "e\u0301",
    "ß",
]
FRAGMENTS += [
    "你",
    "好",
    "あ",
    "ア",
    "한",
    "م",
    "ש",
    "क",
    "🙂",
    "👍🏽",
    "\u200d",
    "²",
    "½",
    "٣",
    "\x00",
    "\x1b",
    "\u00a0",
    "\u3000",
    "<|im_end|>",
    "x",
    "X",
    "Ж",
    "…",
    "’",
    "→",
    "𝔘",
    "0",
]


def combined(count: int) -> list[str]:
    """Strings of one to eleven fragments, picked by a linear congruential sequence."""
    state = 12345
    strings = []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        length = 1 + (state >> 16) % 11
        picked = []
        for _ in range(length):
            state = (state * 1103515245 + 12345) % 2**31
            picked.append(FRAGMENTS[(state >> 16) % len(FRAGMENTS)])
        strings.append("".join(picked))
    return strings


def odd_strings() -> list[str]:
    """All of them, each once."""
    by_hand = [NUMBERS, SPACES, CONTRACTIONS, SCRIPTS, COMBINING, EMOJI, CONTROL, CODE, WORDS, SPELLINGS]
    return list(dict.fromkeys([*(string for group in by_hand for string in group), *combined(400)]))


if __name__ == "__main__":
    path = Path(__file__).with_name("odd_strings.json")
    path.write_text(json.dumps(odd_strings(), indent=0, ensure_ascii=True) + "\n", encoding="ascii")
    sys.stdout.write(f"{len(odd_strings())} strings\n")
