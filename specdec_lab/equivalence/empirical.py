"""Does a sampler draw from the target's distribution? The first tokens after several prompts, counted.

First it is settled, from the target alone, which outcomes are told apart, how often a right sampler will be called
wrong, and how small a difference will be found (`prepare`); then samples are drawn and counted (`carry_out`). It sees
only tokens, so it fits any engine. It proves nothing (`exact` does that, for our own loop), but what it refutes is
wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab.equivalence.outcome_tree import MINIMUM, OutcomeTree, Tokens, grow_tree, pool
from specdec_lab.equivalence.result import Equivalence, Tally, judge
from specdec_lab.equivalence.sampler import (
    Sampler,
    SamplerError,
    batch_of,
    checked,
    crash,
    drawing_of,
    ends_of,
    name_of,
)
from specdec_lab.equivalence.statistics import Counts, detectable_tv
from specdec_ref.consistency import length_thresholds
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.loading import Pair
from specdec_ref.models import check_rewindable, context_length, score_rows
from specdec_ref.rotary import length_dependent_rotary
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
"""Hears how many of how many are done."""

POWER = 0.99
"""The chance of finding what is said to be detectable."""

COARSEST, MOST_UNCOUNTED = 0.2, 0.5
"""A test says nothing, and is refused, that could miss a larger total variation than the one, or that would count more
than the other share of all samples as 'some other first token'."""

BATCH = 1_000
"""Rows asked for at a time, where the sampler does not say."""


@dataclass(frozen=True)
class SamplingPlan:
    """What will be counted and what that can show, settled before the first sample is drawn.

    trees, samples: one for each prompt. detectable: the total variation that is found with chance `POWER`. uncounted:
    the share of samples that are only counted as 'some other first token'. end: ids that end a sequence. One plan
    serves any number of samplers with the same `end`.
    """

    trees: tuple[OutcomeTree, ...]
    samples: tuple[int, ...]
    length: int
    sampling: Sampling
    false_alarm: float
    detectable: float
    uncounted: float
    outcomes: int
    vocab_size: int
    end: tuple[int, ...]

    @property
    def rounding(self) -> float:
        """Total variation that rounding alone makes in the target's own next-token distributions."""
        return max(tree.rounding for tree in self.trees)

    @property
    def is_informative(self) -> bool:
        """Whether the test is worth its time."""
        return self.detectable <= COARSEST and self.uncounted <= MOST_UNCOUNTED

    def explain(self) -> str:
        """In words: what is counted, the false-alarm rate, what is found, and whether rounding stands in the way."""
        s = self.sampling
        cuts = [f"{name} {value}" for name, value in (("top-k", s.top_k), ("top-p", s.top_p)) if value is not None]
        text = (
            f"{sum(self.samples):,} samples of the first {self.length} tokens after {len(self.trees)} prompts, "
            f"at {', '.join([f'temperature {s.temperature:g}', *cuts])}: {self.outcomes:,} outcomes told apart.\n"
            f"A right sampler is called wrong once in {1 / self.false_alarm:,.0f} tests. A sampler whose total "
            f"variation over these outcomes is {self.detectable:.3f} or more is found out {POWER * 100:.0f} times in "
            "100."
        )
        if self.rounding > self.detectable / 4:
            text += (
                f"\nRounding alone moves the target's own next-token distribution by {self.rounding:.3f}: a right "
                "sampler may be refuted for it. Use float32."
            )
        return text


def empirical(
    pair: "Pair | PreTrainedModel",
    sampler: Sampler | Callable[..., Any],
    prompts: Sequence[str | Sequence[int]],
    *,
    length: int = 4,
    samples: int = 100_000,
    sampling: Sampling | None = None,
    false_alarm: float = 0.001,
    seed: int = 0,
    on_plan: Callable[[SamplingPlan], None] = lambda plan: None,
    on_progress: Progress = lambda done, of: None,
) -> Equivalence:
    """Test whether `sampler` draws the first `length` tokens after `prompts` as the target does.

    pair: a pair, of which only the target is asked, or a transformers causal LM. samples: over all prompts together.
    sampling: what the sampler claims to follow, default temperature 1. false_alarm: how often a right sampler may be
    called wrong. on_plan hears what the test can show before it begins. An interrupt (Ctrl-C) ends it with what was
    drawn. Raises SpecdecError for arguments it cannot use and for samples too few to show anything, with the number
    that would do, and SamplerError, which holds the result so far, where the sampler fails.
    """
    drawing_of(sampler), batch_of(sampler, BATCH)
    plan = prepare(
        pair, prompts, length=length, samples=samples, sampling=sampling, false_alarm=false_alarm, eos=ends_of(sampler)
    )
    on_plan(plan)
    return carry_out(plan, sampler, seed=seed, on_progress=on_progress)


def prepare(
    pair: "Pair | PreTrainedModel",
    prompts: Sequence[str | Sequence[int]],
    *,
    length: int = 4,
    samples: int = 100_000,
    sampling: Sampling | None = None,
    false_alarm: float = 0.001,
    eos: Sequence[int] = (),
    on_progress: Progress = lambda done, of: None,
) -> SamplingPlan:
    """Settle what is counted, from the target alone. The arguments are those of `empirical`; eos: ids that end it."""
    sampling = Sampling() if sampling is None else sampling
    _check_arguments(sampling, length, samples, false_alarm)
    ids = prompt_ids(pair, prompts, length)
    model = pair.target if isinstance(pair, Pair) else pair
    vocab_size = score_rows(model)
    end = tuple(sorted(i for i in eos if i < vocab_size))

    def plan(total: int) -> SamplingPlan:
        trees = []
        for i, (prompt, n) in enumerate(zip(ids, _shares(total, len(ids)), strict=True)):
            on_progress(i, len(ids))
            trees.append(grow_tree(model, prompt, length, sampling, MINIMUM / max(1, n), end))
        on_progress(len(ids), len(ids))
        return _plan(tuple(trees), total, length, sampling, false_alarm, vocab_size, end)

    asked = plan(samples)
    if asked.is_informative:
        return asked
    enough = next((n for n in _doubled(samples) if plan(n).is_informative), None)
    if enough is None:
        raise SpecdecError("prompts: the target leaves nothing to chance after them, so there is nothing to count")
    missed = f"even a total variation of {asked.detectable:.2f} could be missed"
    coarse = f"{asked.uncounted:.0%} of them would count as 'some other token'"
    why = coarse if asked.detectable <= COARSEST else missed
    raise SpecdecError(f"samples={samples}: too few to say anything, {why}; {enough:,} would do")


def _check_arguments(sampling: object, length: object, samples: object, false_alarm: object) -> None:
    if not isinstance(sampling, Sampling):
        raise SpecdecError(f"sampling={sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)")
    if sampling.greedy:
        raise SpecdecError("temperature=0: nothing is left to chance; test it with greedy_agreement (--greedy)")
    for name, value in (("length", length), ("samples", samples)):
        if not is_whole(value) or value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
    if not is_number(false_alarm) or not 0 < false_alarm <= 0.1:
        raise SpecdecError(f"false_alarm={false_alarm!r:.80}: takes a probability, 0 < false_alarm ≤ 0.1")


def _doubled(samples: int) -> Iterator[int]:
    """Larger and larger numbers of samples, up to the first of 2²⁴ or more."""
    while samples < 2**24:
        samples *= 2
        yield samples


def with_fewer(plan: SamplingPlan, samples: int) -> SamplingPlan:
    """The plan for fewer samples than it was made for, over all prompts: the same as made afresh, without the work."""
    if not is_whole(samples) or not 1 <= samples <= sum(plan.samples):
        raise SpecdecError(f"samples={samples!r:.80}: takes a whole number, 1 … {sum(plan.samples)}")
    return _plan(plan.trees, samples, plan.length, plan.sampling, plan.false_alarm, plan.vocab_size, plan.end)


def _plan(
    trees: tuple[OutcomeTree, ...],
    total: int,
    length: int,
    sampling: Sampling,
    false_alarm: float,
    vocab_size: int,
    end: tuple[int, ...],
) -> SamplingPlan:
    """What so many samples tell apart, and what that can show."""
    each = _shares(total, len(trees))
    bins = [pool(tree, n) for tree, n in zip(trees, each, strict=True)]
    outcomes = sum(len(b.names) for b in bins)
    uncounted = sum(b.probability(()) for b in bins) / len(bins)
    found = detectable_tv(total, outcomes - len(trees), false_alarm, POWER)
    return SamplingPlan(trees, each, length, sampling, false_alarm, found, uncounted, outcomes, vocab_size, end)


def _shares(total: int, prompts: int) -> tuple[int, ...]:
    """Samples of each prompt."""
    return tuple(total // prompts + (i < total % prompts) for i in range(prompts))


def prompt_ids(pair: "Pair | PreTrainedModel", prompts: Sequence[str | Sequence[int]], length: int) -> list[Tokens]:
    """Token ids of every prompt. Raises SpecdecError for what is no prompt, or leaves no room for `length` tokens."""
    model = pair.target if isinstance(pair, Pair) else pair
    check_rewindable(model, "target")
    rows, context = score_rows(model), context_length(model.config.get_text_config())
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence) or not prompts:
        raise SpecdecError(f"prompts={prompts!r:.80}: takes a list of texts or of lists of token ids, one or more")
    found: list[Tokens] = []
    for prompt in prompts:
        ids: Any = prompt
        if isinstance(prompt, str):
            if not isinstance(pair, Pair):
                raise SpecdecError(f"prompts: {prompt!r:.60} is text, which takes a Pair with its tokenizer")
            ids = pair.tokenizer(prompt)["input_ids"]
        if isinstance(ids, bytes) or not isinstance(ids, Sequence) or not all(map(is_whole, ids)):
            raise SpecdecError(f"prompts: {ids!r:.80}: takes text, or a list of token ids")
        if context <= length:
            raise SpecdecError(f"length={length}: the target holds {context} tokens, the prompt among them")
        if not 0 < len(ids) <= context - length:
            raise SpecdecError(f"prompts: one has {len(ids)} tokens; takes 1 to {context - length}")
        if wrong := [i for i in ids if not 0 <= i < rows]:
            raise SpecdecError(f"prompts: token id {wrong[0]} is not in the vocabulary, 0 … {rows - 1}")
        check_one_scaling(model, len(ids), length)
        found.append(tuple(int(i) for i in ids))
    return found


def check_one_scaling(model: "PreTrainedModel", prompt: int, length: int) -> None:
    """Raise SpecdecError where a text of so many tokens, and `length` more, changes its rotary scaling on the way.

    The target's probabilities are computed here by its own cached forward passes, whose keys would be rotated in two
    ways then (see `rotary`).
    """
    if not length_dependent_rotary(model):
        return
    for threshold in length_thresholds(model.config):
        if prompt <= threshold < prompt + length:
            raise SpecdecError(
                f"prompts: one grows from {prompt} to {prompt + length} tokens, and the rotary scaling of "
                f"{model.config.model_type} changes beyond {threshold}; takes texts on one side of it"
            )


def carry_out(
    plan: SamplingPlan,
    sampler: Sampler | Callable[..., Any],
    *,
    seed: int = 0,
    on_progress: Progress = lambda done, of: None,
) -> Equivalence:
    """Draw what the plan asks for, count it and judge. Prompts take turns, so that an early end has some of each."""
    draw = drawing_of(sampler)
    if set(ends_of(sampler)) != set(plan.end):
        raise SpecdecError(f"sampler: stops at {list(ends_of(sampler))}, but the plan is for {list(plan.end)}")
    if not is_whole(seed) or seed < 0:
        raise SpecdecError(f"seed={seed!r:.80}: takes a whole number ≥ 0")
    batch = batch_of(sampler, BATCH)
    tallies = [Tally(tree) for tree in plan.trees]
    total = sum(plan.samples)
    before: dict[int, Counts] = {}

    def verdict() -> Equivalence:
        about = {"false_alarm": plan.false_alarm, "power": POWER}
        return judge(tallies, sampler=name_of(sampler), length=plan.length, asked=total, **about)

    try:
        for turn, i in _turns(plan.samples, batch):
            prompt, number = plan.trees[i].prompt, min(batch, plan.samples[i] - tallies[i].drawn)
            own_seed = int(np.random.SeedSequence((seed, i, turn)).generate_state(1)[0] >> 1)
            given = draw(list(prompt), number, plan.length, own_seed)
            rows = checked(given, number, plan.length, plan.vocab_size, plan.end)
            if i in before and np.array_equal(rows, before[i]) and len(np.unique(rows, axis=0)) >= 10:
                raise SpecdecError("sampler: gave the same rows for two seeds; takes independent ones")
            before[i] = rows
            tallies[i].add(rows)
            on_progress(sum(tally.drawn for tally in tallies), total)
            if len(rows) < number:
                raise SpecdecError(f"sampler: gave {len(rows)} rows where {number} were asked for")
    except KeyboardInterrupt:
        if not any(tally.drawn for tally in tallies):
            raise
    except Exception as error:
        drawn = sum(tally.drawn for tally in tallies)
        what = str(error) if isinstance(error, SpecdecError) else f"sampler: {crash(error)}"
        kept = f"after {drawn:,} of {total:,} samples, which are kept" if drawn else "before the first sample"
        raise SamplerError(f"{what} ({kept})", verdict() if drawn else None) from error
    return verdict()


def _turns(samples: Sequence[int], batch: int) -> Iterator[tuple[int, int]]:
    """Which prompt is next, and how often it was before: in turn, so that an early end has some of each."""
    for turn in range(-(-max(samples) // batch)):
        for i, n in enumerate(samples):
            if turn * batch < n:
                yield turn, i
