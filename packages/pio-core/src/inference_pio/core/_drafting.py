"""Speculation in the engine: who gets drafts before a step, and what is learnt from it after."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inference_pio.core._proposers import DraftRequest

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from inference_pio.core._proposers import Proposer
    from inference_pio.core._sequence import Sequence
    from inference_pio.core._speculation import SpeculationControl


class Drafting:
    """Puts drafts on sequences that decode, as many as pay.

    Args:
        proposer: Makes the drafts.
        control: Decides how many, from what steps cost and how often drafts were right.
        max_step_tokens: Tokens that one step reads at most.
    """

    def __init__(self, proposer: Proposer, control: SpeculationControl, *, max_step_tokens: int) -> None:
        self.proposer = proposer
        self.control = control
        self._max_step_tokens = max_step_tokens

    def propose(self, running: Many[Sequence]) -> None:
        """Set ``drafts`` of the sequences in ``running`` that are about to decode."""
        decoding = [one for one in running if one.remaining == 1 and one.sampler is not None]
        # What prompts will read beside them, as far as a step goes.
        others = max(0, min(sum(one.remaining for one in running), self._max_step_tokens) - len(decoding))
        lengths = self.control.draft_lengths([id(one) for one in decoding], other_rows=others)
        requests, targets = [], []
        for sequence, length in zip(decoding, lengths, strict=True):
            # The token after the last draft is chosen too, so one place is kept for it.
            count = min(length, sequence.max_length - len(sequence.tokens) - 1)
            if count > 0:
                requests.append(_request(sequence, count))
                targets.append(sequence)
        if not requests:
            return
        started = time.perf_counter()
        proposals = self.proposer.propose(requests)
        self.control.observe_draft(time.perf_counter() - started, sum(map(len, proposals)))
        for sequence, drafts in zip(targets, proposals, strict=True):
            structure = sequence.structure
            sequence.drafts = drafts if structure is None else drafts[: structure.valid_prefix(drafts)]

    def observe_step(self, tokens: int, sequences: int, seconds: float) -> None:
        """Note what a step of ``tokens`` tokens of ``sequences`` sequences cost."""
        self.control.observe_step(tokens, sequences, seconds)

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Note how many of the drafts of ``sequence`` were right."""
        self.control.observe(id(sequence), proposed, accepted)

    def forget(self, sequence: Sequence) -> None:
        """``sequence`` has ended."""
        self.control.forget(id(sequence))
        self.proposer.forget(id(sequence))


def _request(sequence: Sequence, count: int) -> DraftRequest:
    sampler, params = sequence.sampler, sequence.state.params
    assert sampler is not None
    return DraftRequest(
        key=id(sequence),
        tokens=sequence.tokens,
        num_draft=count,
        uniforms=None if params.greedy else [sampler.uniform(ahead) for ahead in range(count)],
        params=params,
        cache_salt=sequence.state.request.cache_salt,
    )
