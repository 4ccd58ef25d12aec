"""Contenders side by side: same prompts, same lengths, in turn, after a warm-up; medians of ratios.

A machine's speed drifts. Two contenders timed one right after the other on the same prompt drift together, so their
ratio is taken there, and the median over prompts and repeats is reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from specdec_ref.decoding import Generation, generate_speculative
from specdec_ref.models import Pair
from specdec_ref.sampling import Sampling


@dataclass(frozen=True)
class Sample:
    """One timed generation: the new token ids, wall-clock seconds, and what our own loop knows of its rounds."""

    tokens: tuple[int, ...]
    seconds: float
    accepted: int = 0
    judged: int = 0
    rounds: int = 0

    @classmethod
    def of(cls, generation: Generation) -> "Sample":
        """From a generation of ours."""
        return cls(
            generation.tokens,
            generation.seconds,
            sum(r.accepted for r in generation.rounds),
            sum(min(r.accepted + 1, len(r.drafted)) for r in generation.rounds),
            len(generation.rounds),
        )


Contender = Callable[[list[int], int], Sample]
"""(prompt ids, seed) → sample."""


@dataclass(frozen=True)
class Result:
    """What one contender did over all prompts and repeats.

    tokens_per_second: median. speedup: median of the ratios to the baseline, each on the same prompt and repeat.
    acceptance, tokens_per_round: pooled, None where the contender does not tell. repeated_share: see the function.
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

    One untimed run of each on the first prompt comes first. on_sample hears the name before each run, `race_length`
    times.
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
        judged, rounds = sum(s.judged for s in ran), sum(s.rounds for s in ran)
        results[name] = Result(
            name,
            median(pace[name]),
            median(mine / theirs for mine, theirs in zip(pace[name], pace[baseline], strict=True)),
            sum(s.accepted for s in ran) / judged if judged else None,
            sum(len(s.tokens) for s in ran) / rounds if rounds else None,
            sum(repeated_share(s.tokens) for s in ran) / len(ran),
            tuple(ran),
        )
    return results


def race_length(contenders: int, prompts: int, repeats: int) -> int:
    """How many runs `race` makes, warm-up included."""
    return contenders * (1 + prompts * repeats)


def ours(pair: Pair, k: int, sampling: Sampling, max_new_tokens: int) -> Contender:
    """Our loop with fixed k as a contender; k = 0 is the autoregressive baseline."""

    def run(prompt: list[int], seed: int) -> Sample:
        return Sample.of(
            generate_speculative(pair, prompt, k=k, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        )

    return run


def repeated_share(tokens: Sequence[int], n: int = 8) -> float:
    """Share of the `n`-token sequences in `tokens` that occurred before: small models loop, which flatters drafts."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
