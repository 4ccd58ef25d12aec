"""The result of an empirical test: the counts, the statistics, and both in words, as JSON and as a figure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec_lab.equivalence.outcome_tree import OutcomeTree, Tokens, pool
from specdec_lab.equivalence.statistics import (
    Counts,
    Fit,
    Numbers,
    chance_tv,
    detectable_tv,
    fit,
    holm,
    total_variation,
    tv_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95
"""Of the interval given for the total variation."""


class Tally:
    """Counts the samples of one prompt by outcome, alternating between two halves."""

    def __init__(self, tree: OutcomeTree):
        self.tree = tree
        self.samples = 0
        self.counts: tuple[Counter[Tokens], Counter[Tokens]] = (Counter(), Counter())
        self.impossible: Counter[Tokens] = Counter()

    def add(self, rows: Counts) -> None:
        """Count more samples, [n, length], −1 after an end token."""
        for row in rows.tolist():
            tokens = tuple(token for token in row if token >= 0)
            if self.tree.possible and self.tree.excludes(tokens):
                self.impossible[tokens] += 1
            while tokens not in self.tree.own:
                tokens = tokens[:-1]
            self.counts[self.samples % 2][tokens] += 1
            self.samples += 1


@dataclass(frozen=True, eq=False)
class PromptFit:
    """The counts of one prompt.

    Attributes:
        prompt: token ids.
        names: names[i] are the tokens that outcome i begins with.
        probabilities: of each outcome.
        halves: counts of each outcome in the two halves of the samples.
        impossible: continuations that the sampling excludes and that were sampled nevertheless, with their counts.
    """

    prompt: Tokens
    names: tuple[Tokens, ...]
    probabilities: Numbers
    halves: tuple[Counts, Counts]
    impossible: dict[Tokens, int]

    @property
    def observed(self) -> Counts:
        """How often each outcome was sampled."""
        return self.halves[0] + self.halves[1]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.observed.sum())

    @property
    def expected(self) -> Numbers:
        """How often the target gives each outcome, on average."""
        return self.samples * self.probabilities

    @property
    def deviations(self) -> Numbers:
        """Observed minus expected, in standard deviations."""
        spread = np.sqrt(self.expected * (1 - self.probabilities))
        return (self.observed - self.expected) / np.maximum(spread, 1e-12)


@dataclass(frozen=True, eq=False)
class Equivalence:
    """The result of an empirical test.

    Attributes:
        sampler: its name.
        prompts: the counts of each prompt.
        fit: the χ² test.
        tv: measured total variation over all outcomes, mean of the prompts.
        tv_by_chance: what a correct sampler gives on average.
        tv_interval: 95 % interval for the sampler's true total variation.
        detectable: the total variation that this many samples detect with probability 0.99.
        false_alarm: how often a correct sampler is refuted.
        length: tokens of a sample.
        asked: planned samples; more than `samples` where the test ended early.
    """

    sampler: str
    prompts: tuple[PromptFit, ...]
    fit: Fit
    tv: float
    tv_by_chance: float
    tv_interval: tuple[float, float]
    detectable: float
    false_alarm: float
    length: int
    asked: int

    @property
    def samples(self) -> int:
        """Number of samples, over all prompts."""
        return sum(p.samples for p in self.prompts)

    @property
    def partial(self) -> bool:
        """Whether the test ended early."""
        return self.samples < self.asked

    @property
    def impossible(self) -> int:
        """Number of samples that the target cannot produce."""
        return sum(sum(p.impossible.values()) for p in self.prompts)

    @property
    def p_value(self) -> float:
        """The probability that a correct sampler fits as badly or worse; 0 where an impossible sample was seen."""
        return 0.0 if self.impossible else self.fit.p_value

    @property
    def consistent(self) -> bool:
        """Whether the target is not refuted: the p-value is at least the false-alarm rate."""
        return self.p_value >= self.false_alarm

    @property
    def outcomes(self) -> int:
        """Outcomes that were counted, over all prompts."""
        return sum(len(p.names) for p in self.prompts)

    def furthest(self, number: int = 3) -> list[tuple[Tokens, Tokens, int, float, float]]:
        """The largest deviations: prompt, outcome, observed, expected, and the difference in standard deviations."""
        every = [
            (p.prompt, name, int(seen), float(expected), float(off))
            for p in self.prompts
            for name, seen, expected, off in zip(p.names, p.observed, p.expected, p.deviations, strict=True)
        ]
        return sorted(every, key=lambda outcome: -abs(outcome[4]))[:number]

    def explain(self, tokenizer: Any = None) -> str:
        """The result in words. tokenizer: shows tokens as text."""

        def show(tokens: Tokens) -> str:
            return repr(str(tokenizer.decode(list(tokens)))) if tokenizer is not None else str(list(tokens))

        lines = [f"{self.sampler}: {'consistent with the target' if self.consistent else 'NOT the target'}"]
        if self.partial:
            lines[0] += f" after {self.samples:,} of {self.asked:,} samples, where the test ended early"
        low, high = self.tv_interval
        lines.append(
            f"χ² = {self.fit.chi2:,.1f} on {self.fit.freedom:,} degrees of freedom over {self.samples:,} samples: "
            f"p = {self.p_value:.2g}. The test refutes a sampler if p is below {self.false_alarm:g}."
        )
        lines.append(
            f"Total variation measured: {self.tv:.4f}. {self.samples:,} samples of the target itself give "
            f"{self.tv_by_chance:.4f} on average. "
            f"{CONFIDENCE:.0%} interval of the true total variation: {low:.4f} to {high:.4f}."
        )
        if self.consistent:
            lines.append(
                f"A total variation of {self.detectable:.3f} or more would be detected 99 times in 100; smaller "
                "differences may remain."
            )
            return "\n".join(lines)
        for p in self.prompts:
            for tokens, count in sorted(p.impossible.items(), key=lambda item: -item[1])[:1]:
                lines.append(f"Impossible under this sampling, but sampled ({count} times): {show(tokens)}.")
        for _, tokens, seen, expected, off in self.furthest() if self.fit.p_value < self.false_alarm else ():
            what = f"{show(tokens)} …" if len(tokens) < self.length else show(tokens)
            what = what if tokens else "rare tokens at the first position"
            lines.append(f"Furthest off: {what} was sampled {seen:,} times, expected {expected:,.0f} ({off:+.1f} σ).")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All but the counts of single outcomes, for JSON."""
        corrected = holm([self._alone(p).p_value for p in self.prompts])
        return {
            "sampler": self.sampler,
            "consistent": self.consistent,
            "partial": self.partial,
            "samples": self.samples,
            "asked": self.asked,
            "length": self.length,
            "outcomes": self.outcomes,
            "chi2": self.fit.chi2,
            "degrees_of_freedom": self.fit.freedom,
            "p_value": self.p_value,
            "false_alarm": self.false_alarm,
            "impossible": self.impossible,
            "tv": self.tv,
            "tv_by_chance": self.tv_by_chance,
            "tv_interval": list(self.tv_interval),
            "detectable_tv": self.detectable,
            "furthest": [
                {"prompt": list(p), "tokens": list(t), "observed": seen, "expected": expected, "deviations": off}
                for p, t, seen, expected, off in self.furthest()
            ],
            "prompts": [
                {
                    "prompt": list(p.prompt),
                    "samples": p.samples,
                    "outcomes": len(p.names),
                    "chi2": self._alone(p).chi2,
                    "p_value_corrected_for_prompts": value,
                    "tv": total_variation([p.observed], [p.probabilities]),
                }
                for p, value in zip(self.prompts, corrected, strict=True)
            ],
        }

    def figure(self) -> "Figure":
        """Observed against expected counts, with the band of a correct sampler."""
        from specdec_lab import plotting

        return plotting.equivalence_figure(
            np.concatenate([p.expected for p in self.prompts]),
            np.concatenate([p.observed for p in self.prompts]),
            np.concatenate([np.full(len(p.names), p.samples) for p in self.prompts]),
            f"{self.sampler}: {'consistent with' if self.consistent else 'not'} the target (p = {self.p_value:.2g})",
        )

    @staticmethod
    def _alone(p: PromptFit) -> Fit:
        return fit([p.observed], [p.probabilities])


def result_of(
    tallies: Sequence[Tally], *, sampler: str, false_alarm: float, power: float, length: int, asked: int
) -> Equivalence:
    """The result of these counts. Which outcomes are pooled depends on the number of samples alone."""
    prompts = []
    for tally in tallies:
        bins = pool(tally.tree, tally.samples)
        halves = np.zeros((2, len(bins.names)), dtype=np.int64)
        for half, counter in zip(halves, tally.counts, strict=True):
            for tokens, count in counter.items():
                half[bins.index[tokens]] += count
        prompts.append(
            PromptFit(tally.tree.prompt, bins.names, bins.probabilities, (halves[0], halves[1]), dict(tally.impossible))
        )
    probabilities = [p.probabilities for p in prompts]
    observed = [p.observed for p in prompts]
    samples = [p.samples for p in prompts]
    fitted = fit(observed, probabilities)
    return Equivalence(
        sampler,
        tuple(prompts),
        fitted,
        total_variation(observed, probabilities),
        chance_tv(samples, probabilities),
        tv_interval([p.halves[0] for p in prompts], [p.halves[1] for p in prompts], probabilities, CONFIDENCE),
        detectable_tv(sum(samples), fitted.freedom, false_alarm, power),
        false_alarm,
        length,
        asked,
    )
