"""Rounds of a whole batch with the clock running: what a step costs at this batch size, and what speculating brings.

The prompts are read once; every measurement begins again right behind them, which costs a rewind. All rows stay in the
batch to the end, so that a figure belongs to one batch size and, to a few tokens, to one context length.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from specdec_ref.acceptance import verify
from specdec_ref.control import Controller, as_controller
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.measurement.budget import Budget
from specdec_ref.measurement.costs import WARM_UP, Costs
from specdec_ref.models import Pair, TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness

LEAST_TOKENS = 3
"""Of a prompt whose last tokens are read anew in every round."""

LEAST_REPEATS = 3
"""A median of fewer times is not used."""


@dataclass(frozen=True)
class Played:
    """Some rounds of a batch: tokens emitted by all rows, seconds, drafted tokens judged and accepted."""

    tokens: int
    seconds: float
    accepted: int
    judged: int
    rows_times_rounds: int

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.tokens / self.seconds


class Bench:
    """A pair whose rows have read `prompts`, ready to play rounds from there as often as asked.

    prompts: one list of token ids for each row, of one length, at least 3 tokens. rounds: how many `play` times; room
    for them is made at once, for up to max_k drafted tokens. budget: looked at before every round and every turn of
    the steps, which raises OutOfTime. Raises SpecdecError where the models cannot hold that.
    """

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Sequence[int]],
        *,
        rounds: int,
        max_k: int,
        sampling: Sampling,
        budget: Budget | None = None,
    ):
        if pair.draft is None:
            raise SpecdecError("pair: has no draft model, so there is nothing to speculate with")
        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) != 1 or min(lengths) < LEAST_TOKENS:
            takes = f"takes prompts of one length, at least {LEAST_TOKENS} tokens"
            raise SpecdecError(f"prompts: of {sorted(lengths)} tokens; {takes}")
        self.prompts = [list(prompt) for prompt in prompts]
        self.context = lengths.pop()
        self.rounds, self.max_k, self.sampling = rounds, max_k, sampling
        self.budget = budget or Budget()
        capacity = self.context + room(rounds, max_k)
        if capacity > pair.context:
            raise SpecdecError(f"prompts: of {self.context} tokens; with the rounds that is more than {pair.context}")
        self.target = _Read(TransformersModel(pair.target), self.prompts, capacity)
        self.draft = _Read(TransformersModel(pair.draft, self.target.vocab_size), self.prompts, capacity)

    def play(self, k: int | Controller, seed: int) -> Played:
        """The decoding loop itself, one round untimed, then `rounds` of them timed."""
        controller = as_controller(k)
        most = (self.rounds + 1) * (self.max_k + 1) + 1  # so that no row finishes
        rows = [Row(tuple(prompt), most) for prompt in self.prompts]
        drafter = ModelDrafter(self.draft) if controller.max_k else None
        randomness = SeededRandomness(seed, self.target.device)
        loop = speculate(self.target, drafter, rows, controller, self.sampling, randomness)
        next(loop)
        before = sum(len(row.new) for row in rows)
        self._settle()
        began = time.perf_counter()
        for _ in range(self.rounds):
            self.budget.check()
            next(loop)
        self._settle()
        seconds = time.perf_counter() - began
        timed = [r for row in rows for r in row.rounds[1:]]
        return Played(
            tokens=sum(len(row.new) for row in rows) - before,
            seconds=seconds,
            accepted=sum(r.accepted for r in timed),
            judged=sum(min(r.accepted + 1, len(r.drafted)) for r in timed),
            rows_times_rounds=len(timed),
        )

    def costs(self, ks: Sequence[int], repeats: int = 9, drafted: int | None = None, warm_up: int = WARM_UP) -> Costs:
        """Medians of the steps at this batch size, in turn, after a warm-up: a draft step, and scoring k + 1 tokens.

        The same steps as `measure_costs` times for one sequence. drafted: tokens of the draft whose time is divided by
        their number; default max_k. Where the budget runs out, fewer repeats, but at least `LEAST_REPEATS`.
        """
        drafter, most = ModelDrafter(self.draft), drafted or max(self.max_k, 1)
        randomness = SeededRandomness(0, self.target.device)
        self.target.rewind([self.context - 1] * len(self.prompts))
        drafter.start(len(self.prompts), 0)

        def draft() -> None:
            drafter.propose(self.prompts, most, self.sampling, randomness)

        def score(n: int) -> Callable[[], None]:
            tokens = torch.tensor([[p[-1], *p[: n - 1]] for p in self.prompts], device=self.target.device)

            def step() -> None:
                self.target.rewind([self.context - 1] * len(self.prompts))
                p = self.sampling.probabilities(self.target.extend(tokens))
                verify(p, p[:, :-1], tokens[:, 1:], randomness)

            return step

        steps = {0: draft} | {n: score(n) for n in sorted({1, *(k + 1 for k in ks)})}
        times: dict[int, list[float]] = {n: [] for n in steps}
        with torch.inference_mode():
            for i in range(warm_up + repeats):
                if i < warm_up + LEAST_REPEATS:
                    self.budget.check()
                elif not self.budget.left:
                    break
                for n, step in steps.items():
                    self._settle()
                    began = time.perf_counter()
                    step()
                    self._settle()
                    if i >= warm_up:
                        times[n].append(time.perf_counter() - began)
        medians = {n: median(t) for n, t in times.items()}
        return Costs(medians[1], medians[0] / most, {n: medians[n] for n in steps if n}, self.context)

    def _settle(self) -> None:
        if self.target.device.type == "cuda":
            torch.cuda.synchronize(self.target.device)


def room(rounds: int, max_k: int) -> int:
    """Tokens after the prompt that `Bench` needs: its rounds, one more that is not timed, and a draft.

    Without rounds only steps are timed, and there is one draft at a time.
    """
    return (rounds + 2) * (max_k + 1) if rounds else max_k + 1


class _Read:
    """A `LanguageModel` that has read its prompts already: beginning anew takes it back behind them.

    The loop and the drafter begin as always, with `start`, and `prefill` with what they want to be read; that it begins
    with the same prompts is checked.
    """

    def __init__(self, model: TransformersModel, prompts: list[list[int]], capacity: int):
        self.model, self.vocab_size, self.context, self.device = model, model.vocab_size, model.context, model.device
        self._known = [prompt[:-1] for prompt in prompts]
        self._capacity = capacity
        self._begins = False
        model.start(len(prompts), capacity)
        model.prefill(self._known)

    def start(self, batch: int, capacity: int) -> None:
        assert batch == len(self._known)
        assert capacity <= self._capacity
        self._begins = True

    def prefill(self, tokens: list[list[int]]) -> None:
        known = [len(row) for row in self._known]
        assert self._begins
        assert [row[:n] for row, n in zip(tokens, known, strict=True)] == self._known
        self._begins = False
        self.model.rewind(known)
        if any(len(row) > n for row, n in zip(tokens, known, strict=True)):  # rounds went by without a draft
            self.model.prefill([row[n:] for row, n in zip(tokens, known, strict=True)])

    def extend(self, tokens: Tensor) -> Tensor:
        return self.model.extend(tokens)

    def rewind(self, lengths: list[int]) -> None:
        if not self._begins:  # else it is to forget what it has not been given yet
            self.model.rewind(lengths)

    def keep(self, rows: list[int]) -> None:
        raise AssertionError("no row finishes before the measurement does")
