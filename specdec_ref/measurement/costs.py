"""What the formula needs from this machine: c, the cost of a draft step, and v(n), the cost of scoring n tokens."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from specdec_ref.acceptance import verify
from specdec_ref.capture import USES_BEFORE_RECORDING
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.measurement.showing import html_table, rich_table
from specdec_ref.models import Pair, TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness

if TYPE_CHECKING:
    from rich.table import Table

WARM_UP = USES_BEFORE_RECORDING + 2
"""Times that each step is made before one is timed: by then it has been recorded (`capture`), as in a long text."""


@dataclass(frozen=True)
class Costs:
    """Medians, in seconds, of one sequence at `context` tokens.

    target_step: one autoregressive step. draft_step: one drafted token. scoring[n]: one step of the target over n
    tokens, with the verdict on n − 1 of them.
    """

    target_step: float
    draft_step: float
    scoring: dict[int, float]
    context: int

    @property
    def c(self) -> float:
        """Draft step / target step."""
        return self.draft_step / self.target_step

    def v(self, n: int) -> float:
        """Time to score n tokens / time to score one, between measured n on a straight line."""
        known = sorted(self.scoring)
        if n in self.scoring:
            return self.scoring[n] / self.target_step
        if not known[0] < n < known[-1]:
            raise SpecdecError(f"n={n}: v was measured for {known[0]} to {known[-1]} tokens")
        below, above = max(m for m in known if m < n), min(m for m in known if m > n)
        share = (n - below) / (above - below)
        return ((1 - share) * self.scoring[below] + share * self.scoring[above]) / self.target_step

    def _cells(self) -> tuple[str, list[str], list[list[str]]]:
        steps = [
            ("target, one token", self.target_step, "1"),
            ("draft, one token: c", self.draft_step, f"{self.c:.2f}"),
        ]
        steps += [
            (f"target, {n} tokens: v({n})", t, f"{self.v(n):.2f}") for n, t in sorted(self.scoring.items()) if n > 1
        ]
        rows = [[name, f"{1e3 * seconds:.2f}", ratio] for name, seconds, ratio in steps]
        return f"a step after {self.context} tokens", ["", "ms", "target steps"], rows

    def __rich__(self) -> "Table":
        return rich_table(*self._cells())

    def _repr_html_(self) -> str:
        return html_table(*self._cells())


def measure_costs(
    pair: Pair,
    *,
    max_k: int = 8,
    context: int = 128,
    sampling: Sampling | None = None,
    repeats: int = 15,
    warm_up: int = WARM_UP,
    scored: Collection[int] | None = None,
    drafted: int | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Costs:
    """Time the steps of `pair` as the decoding loop makes them, in turn, `repeats` times, after a warm-up.

    max_k: v is measured for 1 … max_k + 1 tokens. context: tokens in the cache, random ones. warm_up: fewer will do
    where these steps were made before. scored: of these numbers, those to time, both ends among them; recording
    one takes a second. drafted: how many tokens are drafted to time one of them, default max_k; a long draft has less
    of the fixed cost of a draft for each token. on_step is called after each of the `warm_up` + `repeats` rounds.
    Raises SpecdecError where the pair has no draft model or cannot hold that many tokens.
    """
    if pair.draft is None:
        raise SpecdecError("pair: has no draft model, so there is no draft step to time")
    if scored is not None and not {1, max_k + 1} <= set(scored):
        raise SpecdecError(f"scored={scored!r:.80}: takes 1, {max_k + 1} and what you like between them")
    drafted = max_k if drafted is None else drafted
    if not is_whole(drafted) or not 1 <= drafted <= max_k:
        raise SpecdecError(f"drafted={drafted!r:.80}: takes a whole number from 1 to max_k = {max_k}")
    if context + max_k + 1 > pair.context:
        raise SpecdecError(f"context={context}: with k = {max_k} that is more than the models hold, {pair.context}")
    sampling = sampling or Sampling()
    randomness = SeededRandomness(0, pair.device)
    target = TransformersModel(pair.target)
    drafter = ModelDrafter(TransformersModel(pair.draft, target.vocab_size))
    sequence = torch.randint(target.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    for part in (target, drafter):
        part.start(1, context + max_k + 1)
    target.prefill([sequence[:-1]])

    def draft() -> None:
        drafter.propose([sequence], drafted, sampling, randomness)

    def score(n: int) -> Callable[[], None]:
        def step() -> None:
            target.rewind([context - 1])
            tokens = torch.tensor([[sequence[-1], *sequence[: n - 1]]], device=target.device)
            p = sampling.probabilities(target.extend(tokens))
            verify(p, p[:, :-1], tokens[:, 1:], randomness)

        return step

    numbers = [n for n in range(1, max_k + 2) if scored is None or n in scored]
    steps = {0: draft} | {n: score(n) for n in numbers}
    times: dict[int, list[float]] = {n: [] for n in steps}
    with torch.inference_mode():
        for i in range(warm_up + repeats):
            for n, step in steps.items():
                seconds = _timed(step, pair.device)
                if i >= warm_up:
                    times[n].append(seconds)
            on_step()
    medians = {n: median(t) for n, t in times.items()}
    return Costs(medians[1], medians[0] / drafted, {n: medians[n] for n in numbers}, context)


def _timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
