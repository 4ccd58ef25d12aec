"""Does a sampler have the target's distribution? The test counts the first tokens after several prompts.

`prepare` decides from the target alone which outcomes to count separately, how often a correct sampler will be refuted,
and how small a difference will be detected. `carry_out` then samples and counts. The test sees only tokens, so it fits
any engine. It counts sequences of tokens, not single tokens, so it also sees dependence between positions. It does not
prove that a sampler is right (`exact` does, for our own loop), but what it refutes is wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab.equivalence.outcome_tree import MINIMUM, OutcomeTree, Tokens, grow_tree, pool
from specdec_lab.equivalence.result import Equivalence, Tally, result_of
from specdec_lab.equivalence.sampler import (
    Sampler,
    SamplerError,
    batch_of,
    checked,
    crash,
    ends_of,
    function_of,
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
"""Called with the number done, and the number of all."""

POWER = 0.99
"""The probability of detecting what is reported as detectable."""

COARSEST, MOST_UNCOUNTED = 0.2, 0.5
"""A test is refused where it could miss a total variation above the first number, or would count a larger share of all
samples than the second as 'some other first token'."""

BATCH = 1_000
"""Rows per call of the sampler, where it has no `batch`."""


@dataclass(frozen=True)
class SamplingPlan:
    """What will be counted, and what that can show, decided before the first sample.

    One plan serves any number of samplers with the same `end`.

    Attributes:
        trees: the outcomes of each prompt.
        samples: of each prompt.
        length: tokens of a sample.
        sampling: the sampling that the sampler is tested for.
        false_alarm: how often a correct sampler may be refuted.
        detectable: the total variation that is detected with probability `POWER`.
        uncounted: the share of samples that are only counted as 'some other first token'.
        outcomes: how many are counted separately.
        vocab_size: of the target.
        end: ids that end a sequence.
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
        """Total variation of the target's own next-token distributions from rounding alone."""
        return max(tree.rounding for tree in self.trees)

    @property
    def is_informative(self) -> bool:
        """Whether the test can show anything."""
        return self.detectable <= COARSEST and self.uncounted <= MOST_UNCOUNTED

    def explain(self) -> str:
        """In words: what is counted, the false-alarm rate, what is detected, and whether rounding disturbs it."""
        s = self.sampling
        cuts = [f"{name} {value}" for name, value in (("top-k", s.top_k), ("top-p", s.top_p)) if value is not None]
        text = (
            f"{sum(self.samples):,} samples of the first {self.length} tokens after {len(self.trees)} prompts, "
            f"at {', '.join([f'temperature {s.temperature:g}', *cuts])}: {self.outcomes:,} outcomes counted.\n"
            f"A correct sampler is refuted once in {1 / self.false_alarm:,.0f} tests. A total variation of "
            f"{self.detectable:.3f} or more over these outcomes is detected {POWER * 100:.0f} times in 100."
        )
        if self.rounding > self.detectable / 4:
            text += (
                f"\nRounding alone changes the target's own next-token distribution by {self.rounding:.3f}, so a "
                "correct sampler may be refuted. Use float32."
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
    on_progress: Progress = lambda completed, total: None,
) -> Equivalence:
    """Test whether the first `length` tokens of `sampler` after `prompts` are distributed as the target's.

    An interrupt (Ctrl-C) ends the test with the samples so far.

    Args:
        pair: a pair, of which only the target is used, or a transformers causal LM.
        sampler: a `Sampler`, or a function with the arguments of its `sample`.
        prompts: texts or lists of token ids.
        length: tokens of a sample.
        samples: over all prompts together.
        sampling: the sampling that the sampler is tested for; default temperature 1.
        false_alarm: how often a correct sampler may be refuted.
        seed: equal seeds give equal samples.
        on_plan: receives what the test can show before it begins.
        on_progress: see `Progress`.

    Raises:
        SpecdecError: arguments that it cannot use, or too few samples to show anything, with the number that would do.
        SamplerError: the sampler fails. It holds the result so far.
    """
    function_of(sampler), batch_of(sampler, BATCH)
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
    on_progress: Progress = lambda completed, total: None,
) -> SamplingPlan:
    """Decide what is counted, from the target alone. Arguments as in `empirical`; eos: ids that end a sequence."""
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
        raise SpecdecError("prompts: the target is certain of what follows them, so there is nothing to count")
    missed = f"even a total variation of {asked.detectable:.2f} could be missed"
    coarse = f"{asked.uncounted:.0%} of them would count as 'some other token'"
    why = coarse if asked.detectable <= COARSEST else missed
    raise SpecdecError(f"samples={samples}: too few to show anything, {why}; {enough:,} would do")


def _check_arguments(sampling: object, length: object, samples: object, false_alarm: object) -> None:
    if not isinstance(sampling, Sampling):
        raise SpecdecError(f"sampling={sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)")
    if sampling.greedy:
        raise SpecdecError("temperature=0: nothing is random; test it with greedy_agreement (--greedy)")
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
    """The plan for fewer samples, over all prompts: the same as a new one from `prepare`, without its work."""
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
    """The outcomes that this number of samples can count separately, and the detectable total variation."""
    each = _shares(total, len(trees))
    bins = [pool(tree, n) for tree, n in zip(trees, each, strict=True)]
    outcomes = sum(len(b.names) for b in bins)
    uncounted = sum(b.probability(()) for b in bins) / len(bins)
    detectable = detectable_tv(total, outcomes - len(trees), false_alarm, POWER)
    return SamplingPlan(trees, each, length, sampling, false_alarm, detectable, uncounted, outcomes, vocab_size, end)


def _shares(total: int, prompts: int) -> tuple[int, ...]:
    """Samples of each prompt."""
    return tuple(total // prompts + (i < total % prompts) for i in range(prompts))


def prompt_ids(pair: "Pair | PreTrainedModel", prompts: Sequence[str | Sequence[int]], length: int) -> list[Tokens]:
    """Token ids of every prompt. Raises SpecdecError for invalid prompts and where `length` tokens do not fit."""
    model = pair.target if isinstance(pair, Pair) else pair
    check_rewindable(model, "target")
    rows, context = score_rows(model), context_length(model.config.get_text_config())
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence) or not prompts:
        raise SpecdecError(f"prompts={prompts!r:.80}: takes a list of texts or of lists of token ids, one or more")
    prompts_as_ids: list[Tokens] = []
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
        prompts_as_ids.append(tuple(int(i) for i in ids))
    return prompts_as_ids


def check_one_scaling(model: "PreTrainedModel", prompt: int, length: int) -> None:
    """Raise SpecdecError where the rotary scaling changes between `prompt` tokens and `length` more.

    The target's probabilities are computed here with its own cache, whose keys would then be rotated in two ways (see
    `rotary`).
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
    on_progress: Progress = lambda num_sampled, of: None,
) -> Equivalence:
    """Sample as planned, count, and test. Prompts take turns, so that an early end has samples of each."""
    sample = function_of(sampler)
    if set(ends_of(sampler)) != set(plan.end):
        raise SpecdecError(f"sampler: stops at {list(ends_of(sampler))}, but the plan is for {list(plan.end)}")
    if not is_whole(seed) or seed < 0:
        raise SpecdecError(f"seed={seed!r:.80}: takes a whole number ≥ 0")
    batch = batch_of(sampler, BATCH)
    tallies = [Tally(tree) for tree in plan.trees]
    total = sum(plan.samples)
    before: dict[int, Counts] = {}

    def result() -> Equivalence:
        about = {"false_alarm": plan.false_alarm, "power": POWER}
        return result_of(tallies, sampler=name_of(sampler), length=plan.length, asked=total, **about)

    try:
        for turn, i in _turns(plan.samples, batch):
            prompt, number = plan.trees[i].prompt, min(batch, plan.samples[i] - tallies[i].samples)
            own_seed = int(np.random.SeedSequence((seed, i, turn)).generate_state(1)[0] >> 1)
            given = sample(list(prompt), number, plan.length, own_seed)
            rows = checked(given, number, plan.length, plan.vocab_size, plan.end)
            if i in before and np.array_equal(rows, before[i]) and len(np.unique(rows, axis=0)) >= 10:
                raise SpecdecError("sampler: gave the same rows for two seeds; takes independent ones")
            before[i] = rows
            tallies[i].add(rows)
            on_progress(sum(tally.samples for tally in tallies), total)
            if len(rows) < number:
                raise SpecdecError(f"sampler: gave {len(rows)} rows where {number} were asked for")
    except KeyboardInterrupt:
        if not any(tally.samples for tally in tallies):
            raise
    except Exception as error:
        num_sampled = sum(tally.samples for tally in tallies)
        what = str(error) if isinstance(error, SpecdecError) else f"sampler: {crash(error)}"
        progress = (
            f"after {num_sampled:,} of {total:,} samples, which are kept" if num_sampled else "before the first sample"
        )
        raise SamplerError(f"{what} ({progress})", result() if num_sampled else None) from error
    return result()


def _turns(samples: Sequence[int], batch: int) -> Iterator[tuple[int, int]]:
    """The turn and the prompt of each batch, round-robin, so that an early end has samples of each prompt."""
    for turn in range(-(-max(samples) // batch)):
        for i, n in enumerate(samples):
            if turn * batch < n:
                yield turn, i
