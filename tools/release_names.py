"""Names of distributions as people type them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from release_refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from workspace import Member


def canonical_names(members: Mapping[str, Member], names: Iterable[str]) -> set[str]:
    """The canonical names of ``names``, however they are spelled.

    Raises:
        RefusedError: One of them is no distribution of this workspace; with the nearest that is.
    """
    wanted = {str(canonicalize_name(name)) for name in names}
    reasons = []
    for name in sorted(wanted - members.keys()):
        near = difflib.get_close_matches(name, members, n=1)
        way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(members)}"
        reasons.append(f"{name} is no distribution of this workspace: {way_out}")
    if reasons:
        raise RefusedError(*reasons)
    return wanted
