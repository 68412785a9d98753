"""SentencePiece vocabularies: the merges that their scores stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def merges_from_scores(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first.

    SentencePiece's BPE (Kudo and Richardson 2018, arXiv:1808.06226) joins the neighbours whose union scores highest;
    a merge list applied in this order does the same.

    Args:
        pieces: Ids by spelling of the tokens that merges may use and make: no control, unknown or byte tokens.
        scores: Scores by id.

    Returns:
        Pairs of spellings. Equal scores are ordered by id, then by the longer left part.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece])):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((left, right))
    return merges
