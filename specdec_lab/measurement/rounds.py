"""Time rounds of a whole batch: the cost of steps at this batch size, and the gain of speculation.

The prompts are read once. Every measurement rewinds to their end. All rows stay in the batch until the end, so each
result belongs to one batch size and, within a few tokens, to one context length.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from specdec_lab.measurement.budget import Budget
from specdec_lab.measurement.costs import WARM_UP, Costs, synchronize, time_steps
from specdec_lab.measurement.methods import can_draft, forgetful, most_scored, own_models
from specdec_ref.api import MODEL_DRAFTERS
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller, Row, speculate
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness

LEAST_TOKENS = 3
"""The fewest tokens of a prompt; its last ones are read again in every measurement."""

LEAST_REPEATS = 3
"""The fewest times that a median is taken of."""


@dataclass(frozen=True)
class TimedRounds:
    """Some rounds of a batch: tokens emitted by all rows, seconds, and drafted tokens examined and accepted."""

    tokens: int
    seconds: float
    accepted: int
    examined: int
    row_rounds: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all rows together."""
        return self.tokens / self.seconds


class Bench:
    """A pair whose rows have read their prompts, ready to run rounds from there any number of times.

    Args:
        pair: with a draft model or another drafter.
        prompts: token ids of each row, all of one length, at least 3 tokens.
        rounds: number that `time_rounds` times. The caches get slots for them at once.
        max_k: the most tokens drafted per round.
        sampling: of the rounds.
        budget: checked before every round and every turn of the steps.

    Raises:
        SpecdecError: the models cannot hold so many tokens.
        OutOfTime: the budget is used up.
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
        if not can_draft(pair):
            raise SpecdecError("pair: has no draft model and no other drafter, so there is nothing to speculate with")
        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) != 1 or min(lengths) < LEAST_TOKENS:
            takes = f"takes prompts of one length, at least {LEAST_TOKENS} tokens"
            raise SpecdecError(f"prompts: of {sorted(lengths)} tokens; {takes}")
        self.prompts = [list(prompt) for prompt in prompts]
        self.context = lengths.pop()
        self.rounds, self.max_k, self.sampling = rounds, max_k, sampling
        self.budget = budget or Budget()
        capacity = self.context + tokens_needed(rounds, max(max_k, most_scored(pair, max_k)))
        if capacity > pair.context:
            raise SpecdecError(f"prompts: of {self.context} tokens; with the rounds that is more than {pair.context}")
        self.pair = pair
        target, self._drafter = own_models(pair)
        self.target = _PrefilledModel(target, self.prompts, capacity)
        model = getattr(self._drafter, "model", None)
        if isinstance(self._drafter, MODEL_DRAFTERS) and isinstance(model, TransformersModel):
            self._drafter = self._drafter.with_model(_PrefilledModel(model, self.prompts, capacity))

    def time_rounds(self, k: int | Controller, seed: int) -> TimedRounds:
        """Run the decoding loop: one untimed round, then `rounds` timed rounds."""
        controller = as_controller(k)
        max_new_tokens = (self.rounds + 1) * (self.max_k + 1) + 1  # so that no row finishes
        rows = [Row(tuple(prompt), max_new_tokens) for prompt in self.prompts]
        drafter = forgetful(self._drafter) if controller.max_k else None
        randomness = SeededRandomness(seed, self.target.device)
        loop = speculate(self.target, drafter, rows, controller, self.sampling, randomness)
        next(loop)
        before = sum(len(row.new) for row in rows)
        synchronize(self.target.device)
        began = time.perf_counter()
        for _ in range(self.rounds):
            self.budget.check()
            next(loop)
        synchronize(self.target.device)
        seconds = time.perf_counter() - began
        timed = [r for row in rows for r in row.rounds[1:]]
        return TimedRounds(
            tokens=sum(len(row.new) for row in rows) - before,
            seconds=seconds,
            accepted=sum(r.accepted for r in timed),
            examined=sum(r.examined for r in timed),
            row_rounds=len(timed),
        )

    def costs(self, ks: Sequence[int], repeats: int = 9, drafted: int | None = None, warm_up: int = WARM_UP) -> Costs:
        """Median times of a draft step and of scoring k + 1 tokens at this batch size, in turn, after a warm-up.

        Args:
            ks: numbers of drafted tokens.
            repeats: timed turns; fewer where the budget runs out, but at least `LEAST_REPEATS`.
            drafted: tokens of the draft whose time is divided by their number; default max_k.
            warm_up: untimed turns.
        """

        def turns() -> Iterator[int]:
            for i in range(warm_up + repeats):
                if i < warm_up + LEAST_REPEATS:
                    self.budget.check()
                elif not self.budget.left:
                    return
                yield i

        drafter = forgetful(self._drafter)
        assert drafter is not None
        self.target.rewind([self.context - 1] * len(self.prompts))
        drafter.start(len(self.prompts), self.context + self.max_k + 1)
        return time_steps(
            self.target,
            drafter,
            self.prompts,
            scored={1, *(most_scored(self.pair, k) + 1 if k else 1 for k in ks)},
            drafted=drafted or max(self.max_k, 1),
            sampling=self.sampling,
            turns=turns(),
            warm_up=warm_up,
        )


def tokens_needed(rounds: int, max_k: int) -> int:
    """Slots after the prompt that `Bench` needs: for its rounds, one untimed round and a draft.

    Without rounds only steps are timed, so one draft is enough.
    """
    return (rounds + 2) * (max_k + 1) if rounds else max_k + 1


class _PrefilledModel:
    """A `LanguageModel` that has read its prompts already. `start` rewinds it to the end of the prompts.

    The loop and the drafter call `start` and `prefill` as usual. `prefill` checks that the texts begin with the same
    prompts.
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
        if not self._begins:
            self.model.prefill(tokens)
            return
        known = [min(len(row), len(read)) for row, read in zip(tokens, self._known, strict=True)]
        assert all(row[:n] == read[:n] for row, read, n in zip(tokens, self._known, known, strict=True))
        self._begins = False
        self.model.rewind(known)
        if any(len(row) > n for row, n in zip(tokens, known, strict=True)):  # rounds went by without a draft
            self.model.prefill([row[n:] for row, n in zip(tokens, known, strict=True)])

    def extend(self, tokens: Tensor) -> Tensor:
        return self.model.extend(tokens)

    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        return self.model.extend_tree(tokens, parents)

    def keep_path(self, paths: list[list[int]]) -> None:
        self.model.keep_path(paths)

    def rewind(self, lengths: list[int]) -> None:
        if not self._begins:  # before `prefill`, the loop's rewind would remove the prompts
            self.model.rewind(lengths)

    def keep(self, rows: list[int]) -> None:
        raise AssertionError("no row finishes before the measurement does")
