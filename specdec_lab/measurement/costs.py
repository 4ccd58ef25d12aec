"""Measure the costs in the formula: c, the cost of a draft step, and v(n), the cost of scoring n tokens."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from specdec_lab.measurement.methods import can_draft, own_models
from specdec_lab.measurement.tables_shown import html_table, rich_table
from specdec_ref.acceptance import verify
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.fast.trace import USES_BEFORE_RECORDING
from specdec_ref.loading import Pair
from specdec_ref.models import LanguageModel
from specdec_ref.sampling import Sampling, SeededRandomness

if TYPE_CHECKING:
    from rich.table import Table

WARM_UP = USES_BEFORE_RECORDING + 2
"""Untimed runs of each step. After them the step has been recorded, as in a long text."""


@dataclass(frozen=True)
class Costs:
    """Median costs in seconds, for one sequence at a fixed context.

    Attributes:
        target_step: one autoregressive step.
        draft_step: one drafted token.
        scoring: n → one step of the target over n tokens, including the accept/reject decisions on n − 1 of them.
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

    Args:
        pair: with a draft model or another drafter. Where that drafts in one pass, `draft_step` is its share of a
            token.
        max_k: v is measured for 1 … max_k + 1 tokens.
        context: tokens in the cache, random ones.
        sampling: default temperature 1.
        repeats: timed turns.
        warm_up: untimed turns; fewer are enough where these steps were made before.
        scored: of 1 … max_k + 1, the numbers to time, both ends among them. Recording one takes a second.
        drafted: tokens drafted to time one of them, default max_k. A long draft spreads its fixed cost over more.
        on_step: called after each of the `warm_up` + `repeats` turns.

    Raises:
        SpecdecError: the pair cannot draft, or cannot hold so many tokens.
    """
    scored = set(range(1, max_k + 2)) if scored is None else set(scored)
    drafted = max_k if drafted is None else drafted
    _check(pair, max_k, context, scored, drafted)
    target, drafter = own_models(pair)
    sequence = torch.randint(target.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    target.start(1, context + max_k + 1)
    drafter.start(1, context + max_k + 1)
    target.prefill([sequence[:-1]])

    def turns() -> Iterator[int]:
        for i in range(warm_up + repeats):
            yield i
            on_step()

    return time_steps(
        target,
        drafter,
        [sequence],
        scored={n for n in scored if 1 <= n <= max_k + 1},
        drafted=drafted,
        sampling=sampling or Sampling(),
        turns=turns(),
        warm_up=warm_up,
    )


def _check(pair: Pair, max_k: int, context: int, scored: set[int], drafted: int) -> None:
    if not can_draft(pair):
        raise SpecdecError("pair: has no draft model and no other drafter, so there is no draft step to time")
    if not {1, max_k + 1} <= scored:
        raise SpecdecError(f"scored={sorted(scored)!r:.80}: takes 1, {max_k + 1} and what you like between them")
    if not is_whole(drafted) or not 1 <= drafted <= max_k:
        raise SpecdecError(f"drafted={drafted!r:.80}: takes a whole number from 1 to max_k = {max_k}")
    if context + max_k + 1 > pair.context:
        raise SpecdecError(f"context={context}: with k = {max_k} that is more than the models hold, {pair.context}")


def time_steps(
    target: LanguageModel,
    drafter: Drafter,
    prompts: list[list[int]],
    *,
    scored: Collection[int],
    drafted: int,
    sampling: Sampling,
    turns: Iterable[int],
    warm_up: int,
) -> Costs:
    """Medians of the steps of a draft and a target that have read `prompts`, timed in turn.

    Args:
        target: has read all but the last token of each prompt.
        drafter: has been started.
        prompts: token ids of each row, all of one length.
        scored: numbers of tokens to score, 1 among them.
        drafted: tokens drafted at once to time one of them.
        sampling: of draft and target.
        turns: numbers of the turns; all steps are made once in each.
        warm_up: the first turns, which do not count.
    """
    context = len(prompts[0])
    randomness = SeededRandomness(0, target.device)

    def draft() -> None:
        drafter.propose(prompts, drafted, sampling, randomness)

    def score(n: int) -> None:
        target.rewind([context - 1] * len(prompts))
        tokens = torch.tensor([[p[-1], *p[: n - 1]] for p in prompts], device=target.device)
        p = sampling.probabilities(target.extend(tokens))
        verify(p, p[:, :-1], tokens[:, 1:], randomness)

    steps: dict[int, Callable[[], None]] = {0: draft} | {n: partial(score, n) for n in sorted(scored)}
    times: dict[int, list[float]] = {n: [] for n in steps}
    with torch.inference_mode():
        for turn in turns:
            for n, step in steps.items():
                seconds = _timed(step, target.device)
                if turn >= warm_up:
                    times[n].append(seconds)
    medians = {n: median(t) for n, t in times.items()}
    return Costs(medians[1], medians[0] / drafted, {n: medians[n] for n in steps if n}, context)


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(step: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - began
