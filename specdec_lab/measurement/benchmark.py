"""Compare ways to decode on the same prompts, in turn, after a warm-up, by medians of ratios.

The speed of a machine drifts. It hardly changes between two contenders that are timed one after the other on one
prompt. So ratios are taken for each prompt and repeat, and their median is reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.methods import drafts_one_at_a_time, fresh, is_tree
from specdec_ref.api import Generation, generate_speculative
from specdec_ref.loading import Pair
from specdec_ref.sampling import Sampling
from specdec_ref.theory import expected_tokens


@dataclass(frozen=True)
class Sample:
    """One timed generation.

    Attributes:
        tokens: the new ids.
        seconds: wall clock.
        accepted, examined, rounds: counts of accepted tokens, examined tokens and rounds; 0 where unknown.
        draft_seconds: time spent drafting.
        shapes: (levels, drafted tokens) of each round; these numbers differ for trees.
        accepts: accepted tokens of each round.
    """

    tokens: tuple[int, ...]
    seconds: float
    accepted: int = 0
    examined: int = 0
    rounds: int = 0
    draft_seconds: float = 0.0
    shapes: tuple[tuple[int, int], ...] = ()
    accepts: tuple[int, ...] = ()

    @classmethod
    def of(cls, generation: Generation) -> "Sample":
        """From a generation of the reference."""
        rounds = generation.rounds
        return cls(
            generation.tokens,
            generation.seconds,
            sum(r.accepted for r in rounds),
            sum(r.examined for r in rounds),
            len(rounds),
            sum(r.draft_seconds for r in rounds),
            tuple((r.depth, len(r.drafted)) for r in rounds),
            tuple(r.accepted for r in rounds),
        )


Contender = Callable[[list[int], int], Sample]
"""(prompt ids, seed) → sample."""


@dataclass(frozen=True)
class Result:
    """One contender over all prompts and repeats.

    Attributes:
        tokens_per_second: median.
        speedup: median of the ratios to the baseline, each on the same prompt and repeat.
        acceptance, tokens_per_round: over all samples; None where the contender does not report them.
        repeated_share: see the function, mean over samples.
    """

    name: str
    tokens_per_second: float
    speedup: float
    acceptance: float | None
    tokens_per_round: float | None
    repeated_share: float
    samples: tuple[Sample, ...]


def race(
    contenders: dict[str, Contender],
    prompts: Sequence[list[int]],
    *,
    baseline: str,
    repeats: int = 3,
    on_sample: Callable[[str], None] = lambda name: None,
) -> dict[str, Result]:
    """Run every contender on every prompt, in turn, `repeats` times; the seed of repeat i is i.

    Before this, each contender has one untimed run on the first prompt. on_sample is called with the contender's name
    before each run, `race_length` times.
    """
    for name, run in contenders.items():
        on_sample(name)
        run(prompts[0], 0)
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for prompt in prompts:
            for name, run in contenders.items():
                on_sample(name)
                samples[name].append(run(prompt, repeat))
    pace = {name: [len(s.tokens) / s.seconds for s in ran] for name, ran in samples.items()}
    results = {}
    for name, ran in samples.items():
        examined, rounds = sum(s.examined for s in ran), sum(s.rounds for s in ran)
        results[name] = Result(
            name,
            median(pace[name]),
            median(mine / theirs for mine, theirs in zip(pace[name], pace[baseline], strict=True)),
            sum(s.accepted for s in ran) / examined if examined else None,
            sum(len(s.tokens) for s in ran) / rounds if rounds else None,
            sum(repeated_share(s.tokens) for s in ran) / len(ran),
            tuple(ran),
        )
    return results


def race_length(contenders: int, prompts: int, repeats: int) -> int:
    """Number of runs that `race` makes, warm-up included."""
    return contenders * (1 + prompts * repeats)


def ours(pair: Pair, k: int, sampling: Sampling, max_new_tokens: int, verification: str = "token") -> Contender:
    """The reference with fixed k as a contender; k = 0 is the autoregressive baseline.

    A drafter that remembers texts begins each generation with an empty memory.
    """

    def run(prompt: list[int], seed: int) -> Sample:
        generation = generate_speculative(
            fresh(pair),
            prompt,
            k=k,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            verification=verification,
        )
        return Sample.of(generation)

    return run


def formula(result: Result, costs: Costs, pair: Pair, verification: str = "token") -> float:
    """The predicted speedup of these rounds: Σ E[tokens] / Σ (cost of drafting + v(drafted tokens + 1)).

    Drafting costs k·c, or the measured time if all tokens come from one pass. E[tokens] follows from the acceptance
    rate. For trees and for block verification it is the measured number of tokens.

    Args:
        result: the result of a contender made by `ours`.
        costs: costs of the same pair.
        pair, verification: the pair and the rule that decoded.
    """
    shapes = [shape for sample in result.samples for shape in sample.shapes]
    drafting = costs.c * sum(depth for depth, _ in shapes)
    if not drafts_one_at_a_time(pair):
        drafting = sum(sample.draft_seconds for sample in result.samples) / costs.target_step
    scoring = sum(costs.v(drafted + 1) for _, drafted in shapes)
    tokens: float = sum(len(sample.tokens) for sample in result.samples)
    if verification == "token" and not is_tree(pair):
        tokens = sum(expected_tokens(result.acceptance or 0.0, depth) for depth, _ in shapes)
    return tokens / (drafting + scoring)


def repeated_share(tokens: Sequence[int], n: int = 8) -> float:
    """Share of the `n`-token sequences that occurred before. Small models repeat themselves, which favors drafts."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
