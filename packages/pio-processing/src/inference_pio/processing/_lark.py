"""Parts of grammars in the spelling of Lark that ``llguidance`` reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Models that know no better write white space without end where a schema allows it.
_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"


def literal(text: str) -> str:
    """``text`` and nothing else."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: Mapping[str, object], *, lenient: bool) -> str:
    """A value that fulfils ``schema``, with bounded runs of white space.

    Args:
        schema: JSON schema; how it is to be read (``x-guidance``) is not for it to say.
        lenient: Leave out what cannot be enforced, instead of refusing the schema.

    Raises:
        TypeError: Values that are not JSON.
        ValueError: Numbers that are not JSON, or a schema that contains itself.
        RecursionError: Nested too deep.
    """
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": lenient}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, allow_nan=False, ensure_ascii=False)}"
