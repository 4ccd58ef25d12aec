"""The setup to diagnose, with the measurements that checks share. Each is made when a check first needs it.

Weights are also loaded only then. So configurations and tokenizers alone can show that two models do not fit into
memory, or do not fit together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from specdec_lab.measurement.budget import Budget, OutOfTime
from specdec_lab.measurement.costs import WARM_UP, Costs
from specdec_lab.measurement.methods import head_of, most_scored, own_models
from specdec_lab.measurement.parts import Models
from specdec_lab.measurement.rounds import LEAST_TOKENS, Bench
from specdec_ref.api import Generation, Prompt, Watcher, generate_speculative, verification_rule
from specdec_ref.control import FixedK
from specdec_ref.decoding import Controller, Round
from specdec_ref.drafting import Drafter, ModelDrafter, PromptLookupDrafter
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.loading import Pair, held_out_prompts
from specdec_ref.models import TransformersModel, score_rows
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = 4
"""Number of default prompts. With 3 repeats they give 12 ratios, so a 99 % interval can exclude both extremes."""

MIN_TOKENS = 8
"""The smallest number of new tokens, so that a generation has two rounds."""

COST_REPEATS = 11
SLOW_STEP, WARM_UP_SLOW = 0.05, 2
"""If a target step takes longer than this many seconds, recording hardly matters, and so many untimed runs suffice."""

MOST_K = 8
"""The largest k that is recommended. c and v are measured up to it, and v also at the setup's k."""

LEVEL = 0.99
"""Confidence of the intervals. A finding needs an interval that excludes the limit."""

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class RecordedGeneration:
    """A generation, with the doctor's records of its rounds.

    Attributes:
        generation: as `generate_speculative` returned it.
        requested_k: k of each round, as the controller chose it.
        round_seconds: seconds from the end of a round to the end of the next, so one fewer than rounds.
        scored: tokens that the target scored in each round. The last rounds draft fewer tokens than k, but their step
            is padded to the same length (see `speculate`), so it costs as much as the others.
    """

    generation: Generation
    requested_k: tuple[int, ...]
    round_seconds: tuple[float, ...]
    scored: tuple[int, ...]

    @property
    def seconds_outside_models(self) -> list[float]:
        """Seconds of each round after the first outside drafting and scoring: the loop and the controller."""
        rounds = self.generation.rounds[1:]
        return [
            seconds - r.draft_seconds - r.verify_seconds for r, seconds in zip(rounds, self.round_seconds, strict=True)
        ]

    @property
    def accepted(self) -> int:
        """Accepted drafted tokens."""
        return sum(r.accepted for r in self.generation.rounds)

    @property
    def examined(self) -> int:
        """Drafted tokens up to each round's first rejection."""
        return sum(r.examined for r in self.generation.rounds)


@dataclass(frozen=True)
class Measurement:
    """The measurement of a check, with or without findings: in a few words for a table, and by name."""

    words: str
    numbers: Mapping[str, Any]


class _RecordingController:
    """Wraps a controller. Records its k and the end of each round, and raises OutOfTime when time is up."""

    def __init__(self, controller: Controller, budget: Budget):
        self.controller = controller
        self.budget = budget
        self.max_k = controller.max_k
        self.requested_k: list[int] = []
        self.ends: list[float] = []

    def next_k(self) -> int:
        self.budget.check()
        self.requested_k.append(self.controller.next_k())
        return self.requested_k[-1]

    def observe(self, rounds: list[Round]) -> None:
        self.controller.observe(rounds)
        self.ends.append(time.perf_counter())


@dataclass(frozen=True)
class Setup:
    """The setup that is diagnosed; `prepare_setup` makes it. Each check is a function of it and can run alone.

    Attributes:
        models: configurations and tokenizers, and how to load the weights.
        prompts: token ids.
        k: tokens drafted per round, unless there is a controller.
        sampling: how tokens are sampled.
        max_new_tokens: of each generation.
        controller: chooses k.
        drafter: None for the pair's own, or its draft model.
        verification: 'token' or 'block'.
        monitor: receives every round.
        batch: sequences at once in production.
        available: bytes for everything; None asks the device.
        context: tokens of each sequence in production; None for the length of the generations here.
        measurements: by check, filled in by those that measure.
        budget: the time for measuring.
        left_out: the parts of the present check that were left out for lack of time.
    """

    models: Models
    prompts: tuple[tuple[int, ...], ...]
    k: int
    sampling: Sampling
    max_new_tokens: int
    controller: Controller | None = None
    drafter: Drafter | None = None
    verification: str = "token"
    monitor: Watcher | None = None
    batch: int = 1
    available: int | None = None
    context: int | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict, compare=False, repr=False)
    budget: Budget = field(default_factory=Budget, compare=False, repr=False)
    left_out: list[str] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def pair(self) -> Pair:
        """Both models, loaded at the first call. Loading does not count as measuring."""
        self.budget.check()
        with self.budget.paused():
            return self.models.load()

    def as_many_as_fit(
        self, what: str, items: Sequence[Item], work: Callable[[Item], Value], minimum: int = 1
    ) -> list[Value]:
        """Do the work for all items, or for the first items if the time runs out.

        An item is not begun if the previous item took longer than the time that is left.

        Args:
            what: name of the items, in the plural, for the report of omissions.
            items: the items, in this order.
            work: the work on one item. If it raises OutOfTime, the item counts as left out.
            minimum: the smallest number of results that is of use.

        Returns:
            The results, in the order of the items.

        Raises:
            OutOfTime: there are fewer results than `minimum`.
        """
        results: list[Value] = []
        item_seconds = 0.0
        for item in items:
            began = self.budget.now
            try:
                self.budget.check()
                if len(results) >= minimum and self.budget.left < item_seconds:
                    raise OutOfTime
                results.append(work(item))
            except OutOfTime:
                if len(results) < minimum:
                    raise
                self.left_out.append(f"{len(items) - len(results)} of {len(items)} {what}")
                break
            item_seconds = self.budget.now - began
        return results

    @property
    def draft_model(self) -> "PreTrainedModel | None":
        """The draft model, or None if another drafter drafts."""
        drafter = self.drafter or self.pair.drafter
        if drafter is None:
            return self.pair.draft
        model = drafter.model if isinstance(drafter, ModelDrafter) else None
        return model.model if isinstance(model, TransformersModel) else None

    def new_drafter(self) -> Drafter:
        """The setup's drafter, or a new drafter with models of its own."""
        if self.drafter is not None:
            return self.drafter
        if self.pair.drafter is None and self.pair.draft is None:
            return PromptLookupDrafter()
        return own_models(self.pair)[1]

    def decoder(self) -> tuple[TransformersModel, Drafter]:
        """The target and the drafter, for a check that runs its own loop."""
        drafter = self.new_drafter()
        head = head_of(drafter)
        return TransformersModel(self.pair.target) if head is None else head.target, drafter

    def generate(
        self,
        prompt: Sequence[int],
        *,
        k: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        pair: Pair | None = None,
        drafter: Drafter | None = None,
    ) -> RecordedGeneration:
        """One generation. k: that many in each round, without the controller. pair: another one, with its own draft
        model unless there is a drafter. drafter: instead of the setup's."""
        chosen = self.controller if k is None else None
        listener = _RecordingController(chosen or FixedK(self.k if k is None else k), self.budget)
        generation = generate_speculative(
            pair or self.pair,
            prompt,
            k=listener,
            max_new_tokens=self.max_new_tokens,
            sampling=sampling or self.sampling,
            seed=seed,
            drafter=self.new_drafter() if drafter is None and pair is None and k != 0 else drafter,
            verification=self.verification,
            monitor=self.monitor if k is None and pair is None else None,
        )
        seconds = [after - before for before, after in zip(listener.ends, listener.ends[1:], strict=False)]
        scored = _scored(generation, listener.requested_k, self.max_new_tokens, self.models.context)
        return RecordedGeneration(generation, tuple(listener.requested_k), tuple(seconds), scored)

    @cached_property
    def recordings(self) -> tuple[RecordedGeneration, ...]:
        """One generation per prompt. If time runs out, for fewer prompts."""
        seeds = range(len(self.prompts))
        return tuple(self.as_many_as_fit("prompts", seeds, lambda i: self.generate(self.prompts[i], seed=i)))

    @cached_property
    def without_drafts(self) -> RecordedGeneration:
        """The first prompt without drafts."""
        return self.generate(self.prompts[0], k=0)

    @cached_property
    def costs(self) -> Costs:
        """c and v on this machine, after one of the generated texts.

        v is measured at both ends and in the middle of the range of recommended k, and at the setup's k, so that it is
        never extrapolated. c is the cost per token of drafting at most `MOST_K` tokens. Without a draft model the
        target takes its place, and the cost of drafting is taken from the rounds.
        """
        pair = Pair(self.pair.target, self.draft_model or self.pair.target, self.pair.tokenizer)
        longest = most_scored(replace(self.pair, drafter=self.drafter or self.pair.drafter), self.max_k)
        largest_k = max(longest, min(MOST_K, pair.context - LEAST_TOKENS - 1))
        short = min(MOST_K, largest_k)
        generation = self.recordings[0].generation
        text = [*generation.prompt_tokens, *generation.tokens][: pair.context - largest_k - 1]
        bench = Bench(pair, [text], rounds=0, max_k=largest_k, sampling=self.sampling, budget=self.budget)
        alone = self.without_drafts.round_seconds
        slow = bool(alone) and median(alone) > SLOW_STEP
        warm_up = WARM_UP_SLOW if slow else WARM_UP
        ks = sorted({1, short // 2, short, self.max_k, largest_k})
        return bench.costs(ks, COST_REPEATS, drafted=short, warm_up=warm_up)

    @property
    def max_k(self) -> int:
        """The largest number of tokens that a round drafts."""
        return self.controller.max_k if self.controller is not None else self.k

    @property
    def accepted(self) -> tuple[int, int]:
        """(accepted, examined) tokens over all generations."""
        return sum(p.accepted for p in self.recordings), sum(p.examined for p in self.recordings)

    @property
    def alpha(self) -> float:
        """Accepted / examined; 0 where nothing was drafted."""
        accepted, examined = self.accepted
        return accepted / examined if examined else 0.0


def prepare_setup(
    models: Models,
    *,
    prompts: Sequence[Prompt] | None = None,
    k: int = 4,
    sampling: Sampling | None = None,
    max_new_tokens: int = 48,
    controller: Controller | None = None,
    drafter: Drafter | None = None,
    verification: str = "token",
    monitor: Watcher | None = None,
    batch: int = 1,
    available: int | None = None,
    context: int | None = None,
    seconds: float | None = None,
) -> Setup:
    """Check the arguments, which `diagnose` explains, and combine them. Raises SpecdecError."""
    verification_rule(verification)  # raises for another name
    _check_numbers(models, k, max_new_tokens, batch, available, context, seconds)
    if sampling is not None and not isinstance(sampling, Sampling):
        raise SpecdecError(f"sampling={sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)")
    largest_k = max(k, controller.max_k if controller is not None else 0)
    longest = models.context - max_new_tokens - largest_k
    if longest < 2:
        raise SpecdecError(
            f"k={largest_k}, max_new_tokens={max_new_tokens}: leave no room for a prompt; the models hold "
            f"{models.context} tokens"
        )
    return Setup(
        models,
        _prompt_ids(prompts, models, longest),
        k,
        sampling or Sampling(),
        max_new_tokens,
        controller=controller,
        drafter=drafter,
        verification=verification,
        monitor=monitor,
        batch=batch,
        available=available,
        context=context,
        budget=Budget(seconds),
    )


def _check_numbers(
    models: Models,
    k: int,
    max_new_tokens: int,
    batch: int,
    available: int | None,
    context: int | None,
    seconds: float | None,
) -> None:
    if seconds is not None and (not is_number(seconds) or not seconds >= 0):
        raise SpecdecError(f"seconds={seconds!r:.80}: takes a number of seconds ≥ 0, or None for no limit")
    for name, value, smallest in (("k", k, 1), ("max_new_tokens", max_new_tokens, MIN_TOKENS), ("batch", batch, 1)):
        if not is_whole(value) or value < smallest:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ {smallest}")
    if available is not None and (not is_whole(available) or available < 0):
        raise SpecdecError(f"available={available!r:.80}: takes a number of bytes, or None to ask the device")
    if context is not None and (not is_whole(context) or not 1 <= context <= models.context):
        raise SpecdecError(f"context={context!r:.80}: takes a number of tokens from 1 to the models' {models.context}")


def _prompt_ids(prompts: Sequence[Prompt] | None, models: Models, longest: int) -> tuple[tuple[int, ...], ...]:
    """Token ids of the prompts; by default the last `longest` tokens of some held-out texts."""
    if prompts is None:
        ids = [_ids(text, models)[-longest:] for text in list(held_out_prompts().values())[:PROMPTS]]
    elif isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise SpecdecError(f"prompts={prompts!r:.80}: takes a list of prompts, each text or token ids")
    else:
        ids = [_ids(prompt, models) for prompt in prompts]
    too_long = [len(i) for i in ids if len(i) >= models.context]
    if too_long:
        raise SpecdecError(f"prompts: one has {too_long[0]} tokens, but the models hold {models.context}")
    return tuple(map(tuple, ids))


def _scored(generation: Generation, requested_k: Sequence[int], max_new_tokens: int, context: int) -> tuple[int, ...]:
    """Tokens of the target's step in each round of one sequence, with the padding of the last rounds; trees have
    none."""
    scored, new = [], 0
    for r, k in zip(generation.rounds, requested_k, strict=True):
        fits = min(k, context - len(generation.prompt_tokens) - new)
        useful = min(fits, max_new_tokens - new - 1)
        padding = fits - useful if r.parents is None else 0
        scored.append(len(r.drafted) + 1 + padding)
        new += len(r.emitted)
    return tuple(scored)


def _ids(prompt: Prompt, models: Models) -> list[int]:
    ids = models.target_tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    ids = [int(token) for token in ids]
    if not ids:
        raise SpecdecError("prompts: one is empty; takes at least one token each")
    return ids


@torch.inference_mode()
def plain_logits(model: "PreTrainedModel", tokens: Sequence[int]) -> Tensor:
    """Logits [n, V] of transformers' own forward pass without a cache, as a reference for our steps."""
    rows = score_rows(model)
    ids = torch.tensor([[min(token, rows - 1) for token in tokens]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits
