"""From the logits of a step to tokens: what the sampler is asked, and whose answer is whose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_pio.core._masks import MaskJob, MaskWorker
from inference_pio.core._sampling_batch import SamplingRow, sampling_batch
from inference_pio.core._speculation import count_accepted
from inference_pio.interfaces import BeamSearchParams, LogprobQuery, SamplingParams

if TYPE_CHECKING:
    from inference_pio.core._batch import StepRows
    from inference_pio.core._masks import PendingMasks
    from inference_pio.core._sequence import Sequence
    from inference_pio.interfaces import Sampler

Candidates = dict[int, tuple[float, int]]
"""Log-probability and rank of tokens at one position, by token id."""


@dataclass(slots=True)
class Chosen:
    """What a step gave each sequence.

    Attributes:
        tokens: New tokens by sequence: the drafts that were right, and one more; -1 stands for no token at all.
        logprobs: Candidates for each of these tokens, where they were asked for.
        prompts: Candidates at positions of prompts, in order.
        beams: Candidates for the next token of beams.
    """

    tokens: dict[Sequence, list[int]] = field(default_factory=dict)
    logprobs: dict[Sequence, list[Candidates]] = field(default_factory=dict)
    prompts: list[tuple[Sequence, Candidates]] = field(default_factory=list)
    beams: dict[Sequence, Candidates] = field(default_factory=dict)


class Chooser:
    """Asks a sampler for the tokens and log-probabilities of a step.

    Args:
        vocab_size: Tokens that the model knows.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._worker: MaskWorker | None = None

    def start_masks(self, rows: StepRows) -> PendingMasks | None:
        """Begin to compute which tokens the structures of the texts allow; to be called before the model runs."""
        jobs, place = [], 0
        for sequence, _ in rows.chosen:
            if sequence.sampler is None:
                continue
            count = len(sequence.drafts) + 1
            if sequence.structure is not None:
                jobs.append(MaskJob(sequence.structure, range(place, place + count), tuple(sequence.drafts)))
            place += count
        if not jobs:
            return None
        if self._worker is None:
            self._worker = MaskWorker(self._vocab_size)
        return self._worker.start(jobs)

    def choose(self, rows: StepRows, logits: object, sampler: Sampler, masks: PendingMasks | None) -> Chosen:
        """The tokens and log-probabilities of a step."""
        chosen = Chosen(tokens=self._draw(rows, logits, sampler, masks))
        self._look_up(rows, chosen, logits, sampler)
        return chosen

    def close(self) -> None:
        """End the threads that compute masks. Harmless when called twice."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _draw(
        self, rows: StepRows, logits: object, sampler: Sampler, masks: PendingMasks | None
    ) -> dict[Sequence, list[int]]:
        draws = [
            SamplingRow(first + place, sequence.sampler, tuple(sequence.drafts[:place]))
            for sequence, first in rows.chosen
            if sequence.sampler is not None
            for place in range(len(sequence.drafts) + 1)
        ]
        if not draws:
            return {}
        packed = None if masks is None else masks.result(len(draws))
        drawn = sampler.sample(logits, sampling_batch(draws, vocab_size=self._vocab_size, masks=packed)).tolist()
        tokens: dict[Sequence, list[int]] = {}
        place = 0
        for sequence, _ in rows.chosen:
            if sequence.sampler is None:
                continue
            end = place + len(sequence.drafts) + 1
            accepted = count_accepted(sequence.drafts, drawn[place:end])
            tokens[sequence] = drawn[place : place + accepted + 1]
            place = end
        return tokens

    def _look_up(self, rows: StepRows, chosen: Chosen, logits: object, sampler: Sampler) -> None:
        queries: list[LogprobQuery] = []
        owners: list[tuple[str, Sequence]] = []
        for sequence, position, row in rows.scored:
            queries.append(LogprobQuery(row, sequence.tokens[position + 1], sequence.state.params.prompt_logprobs or 0))
            owners.append(("prompt", sequence))
        for sequence, first in rows.chosen:
            params, beams = sequence.state.request.params, sequence.state.beams
            if isinstance(params, BeamSearchParams):
                assert beams is not None
                queries.append(LogprobQuery(first, None, beams.num_candidates))
                owners.append(("beam", sequence))
            elif isinstance(params, SamplingParams) and sequence.output.cumulative_logprob is not None:
                for place, token_id in enumerate(chosen.tokens[sequence]):
                    if token_id >= 0:
                        queries.append(LogprobQuery(first + place, token_id, params.logprobs or 0))
                        owners.append(("token", sequence))
        if not queries:
            return
        for (kind, sequence), answer in zip(owners, sampler.logprobs(logits, queries), strict=True):
            if kind == "prompt":
                chosen.prompts.append((sequence, answer))
            elif kind == "beam":
                chosen.beams[sequence] = answer
            else:
                chosen.logprobs.setdefault(sequence, []).append(answer)
