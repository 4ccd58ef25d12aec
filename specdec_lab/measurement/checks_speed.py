"""Checks of speed: is it slower than without drafts, alone or under load? If so, is the cause α, c, v, o or k?

Machines are noisy, so a finding needs the whole interval of the measured speed on one side of break-even. There is one
exception: if the measured speed is below break-even, a prediction below break-even is enough. That prediction uses the
largest α that fits the accepted tokens. It counts tokens and steps, which are not noisy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, inf
from statistics import median

from specdec_lab.measurement.budget import OutOfTime
from specdec_lab.measurement.diagnosis_setup import LEVEL, MOST_K, Measurement, RecordedGeneration, Setup
from specdec_lab.measurement.findings import Finding
from specdec_lab.measurement.intervals import Interval, quantile_interval, share_interval
from specdec_lab.measurement.rounds import LEAST_TOKENS, Bench, tokens_needed
from specdec_ref.theory import Cost, best_k, break_even_alpha, expected_tokens, predicted_speedup

REPEATS, LEAST_RATIOS = 3, 8
LOAD_REPEATS, LOAD_ROUNDS = 8, 6
"""Pairs of runs, and rounds in a run. The median lies between the smallest and the largest of 8 ratios in 99.2 % of
cases. If there are fewer prompts, they are repeated."""

COSTS_PART = 0.4
"""The share of the speed check's time that measuring c and v may take."""

WORTH = 1.25
"""Another k is tried if its predicted speedup is larger by this factor. Costs are measured to about 10 %."""

HOPELESS = 0.9
"""A speedup predicted with the largest α that fits the accepted tokens. Below it, drafting certainly does not pay."""

GOOD_ALPHA, GOOD_C, GOOD_V, GOOD_O = 0.8, 0.1, 1.1, 0.0
"""Values of a good setup: a draft of the same family at a tenth of the target's time, on hardware that is limited by
memory. A term is the more to blame, the more such a value would help."""


@dataclass(frozen=True)
class Blame:
    """The most expensive term of the formula.

    Attributes:
        term: 'k', 'acceptance', 'draft', 'scoring' or 'overhead'.
        speedup: the predicted speedup with a good value of this term.
        k: the best k with it.
    """

    term: str
    speedup: float
    k: int


def blame(alpha: float, k: int, c: float, v: Cost, overhead: float, max_k: int = MOST_K) -> Blame:
    """Which term of S = E[tokens]/(k·c + v(k + 1) + o) to improve first.

    It is k if another k is clearly faster, else the term for which a good value raises the best S most.

    Args:
        alpha, k, c, overhead: as for `predicted_speedup`.
        v: a number, or a function for up to `max_k` + 1 tokens.
        max_k: the largest k to consider.
    """
    of = v if callable(v) else (lambda n: v)
    better_k = best_k(alpha, c, of, overhead, max_k)
    if better_k != k and better_k > 0 and (improved := predicted_speedup(alpha, better_k, c, of, overhead)) >= 1.05:
        return Blame("k", improved, better_k)
    improvements: dict[str, tuple[float, float, Callable[[int], float], float]] = {
        "acceptance": (max(alpha, GOOD_ALPHA), c, of, overhead),
        "draft": (alpha, min(c, GOOD_C), of, overhead),
        "scoring": (alpha, c, lambda n: min(of(n), GOOD_V), overhead),
        "overhead": (alpha, c, of, min(overhead, GOOD_O)),
    }
    candidates = []
    for term, (a, cost, score, o) in improvements.items():
        n = best_k(a, cost, score, o, max_k) or 1
        candidates.append(Blame(term, predicted_speedup(a, n, cost, score, o), n))
    return max(candidates, key=lambda b: b.speedup)


CULPRITS = {
    "acceptance": "too few tokens are accepted",
    "draft": "the draft is too slow",
    "scoring": "scoring several tokens is too slow",
    "overhead": "time is lost outside both models",
}
REMEDIES = {
    "k": "Set k = {k}: predicted {speedup:.2f}×. A controller finds it by itself (CostModelSpeculation).",
    "acceptance": "A better aligned draft: of the same family, or distilled from the target. With α = 0.8 these costs "
    "would give {speedup:.2f}× at k = {k}.",
    "draft": "A cheaper draft: fewer layers first, since each layer is several kernels to launch; or prompt lookup. "
    "With c = 0.1 this α would give {speedup:.2f}× at k = {k}.",
    "scoring": "Scoring k + 1 tokens is expensive here. A smaller k or batch helps, or hardware that waits for memory "
    "rather than computes. With v = 1.1 it would be {speedup:.2f}× at k = {k}.",
    "overhead": "Look at the drafter or controller, at logging and at other host code: the time goes into neither "
    "model. Without it the speedup would be {speedup:.2f}× at k = {k}.",
}


@dataclass(frozen=True)
class Terms:
    """The terms of the formula: α, c, v as a function of the number of tokens, o, and the largest k to recommend."""

    alpha: float
    c: float
    v: Callable[[int], float]
    o: float
    max_k: int

    def predict(self, rounds: Sequence[tuple[int, int]], alpha: float | None = None) -> float:
        """Speedup of rounds that drafted and scored (n, m) tokens: Σ E[tokens] / Σ (n·c + v(m) + o).

        alpha: instead of the measured one.
        """
        alpha = self.alpha if alpha is None else alpha
        tokens = sum(expected_tokens(alpha, n) for n, _ in rounds)
        return tokens / sum(n * self.c + self.v(m) + self.o for n, m in rounds)

    def best(self) -> tuple[int, float]:
        """The best k and its predicted speedup. No k above `max_k` is recommended."""
        k = best_k(self.alpha, self.c, self.v, self.o, self.max_k)
        return k, predicted_speedup(self.alpha, k, self.c, self.v, self.o)


def terms_of(setup: Setup) -> Terms:
    """α, c, v and o of a setup.

    o is measured directly: the time of a round outside both models, minus the same time of a round without drafts. The
    difference between a round's time and its computed costs would also contain every change of the machine's speed,
    which at a large k is more than o.
    """
    costs = setup.costs
    draft = costs.draft_step
    later = [r for recorded in setup.recordings for r in recorded.generation.rounds[1:] if r.drafted]
    if setup.drafter is not None or setup.pair.drafter is not None or setup.pair.draft is None:
        draft = median([r.draft_seconds / r.depth for r in later] or [0.0])
    o = overhead(setup.recordings, setup.without_drafts, costs.target_step)
    return Terms(setup.alpha, draft / costs.target_step, costs.v, o, min(MOST_K, max(costs.scoring) - 1))


def overhead(recordings: Sequence[RecordedGeneration], without_drafts: RecordedGeneration, target_step: float) -> float:
    """o in target steps, never below 0. target_step: seconds."""
    drafted = []
    for recorded in recordings:
        rounds = recorded.generation.rounds[1:]
        drafted += [seconds for r, seconds in zip(rounds, recorded.seconds_outside_models, strict=True) if r.drafted]
    alone = without_drafts.seconds_outside_models
    if not drafted or not alone:
        return 0.0
    return max(0.0, median(drafted) - median(alone)) / target_step


def check_speed(setup: Setup) -> list[Finding]:
    """Is it faster than without drafts, and is k well chosen?"""
    with setup.budget.part(COSTS_PART):
        terms = terms_of(setup)
    return judge_speed(setup, terms, speed_ratios(setup, 0, None))


def judge_speed(setup: Setup, terms: Terms, ratios: Sequence[float]) -> list[Finding]:
    """Findings from the terms and the measured speedups. ratios: speed with drafts / without drafts, of single runs."""
    actual, interval = median(ratios), quantile_interval(ratios, 0.5, LEVEL)
    rounds = [
        (r.depth, scored)
        for recorded in setup.recordings
        for r, scored in zip(recorded.generation.rounds[:-1], recorded.scored, strict=False)
    ] or [(setup.max_k, setup.max_k + 1)]
    k = setup.k
    if setup.controller is not None:
        k = round(sum(n for n, _ in rounds) / len(rounds)) or 1
    alpha, c, v, o = terms.alpha, terms.c, terms.v, terms.o
    predicted = terms.predict(rounds)
    hoped = terms.predict(rounds, share_interval(*setup.accepted, LEVEL)[1])
    best, best_speedup = terms.best()
    needed = break_even_alpha(k, c, v, o)
    shown = f"99 %: {interval[0]:.2f} to {interval[1]:.2f}" if interval else f"{len(ratios)} runs, too few to be sure"
    pays = "at no α" if needed > 1 else f"from α = {needed:.2f}"
    advice = f"best k = {best}, predicted {best_speedup:.2f}×" if best else "no k is predicted to pay"
    evidence = (
        f"measured {actual:.2f}× ({shown}) at k = {k}, predicted {predicted:.2f}× from α = {alpha:.2f}, c = {c:.2f}, "
        f"v({k + 1}) = {v(k + 1):.2f}, o = {o:.2f}; this k pays {pays}; {advice}"
    )
    numbers = {"alpha": alpha, "c": c, "v": v(k + 1), "o": o, "k": k, "actual": actual, "interval": interval}
    numbers |= {
        "predicted": predicted,
        "hoped": hoped,
        "best_k": best,
        "best_speedup": best_speedup,
        "break_even_alpha": needed,
    }
    words = (
        f"measured {actual:.2f}× ({shown}), predicted {predicted:.2f}×; {advice}; α = {alpha:.2f}, this k pays {pays}"
    )
    setup.measurements["speed"] = Measurement(words, numbers)
    if interval and (interval[1] < 1 or (actual < 1 and hoped < HOPELESS)):
        guilty = blame(alpha, k, c, v, o, terms.max_k)
        title = f"Slower than without drafts: {CULPRITS.get(guilty.term, '')}"
        if guilty.term == "k":
            title = wrong_k(k, guilty.k, guilty.speedup)
        return [
            Finding(
                "slower-than-without",
                "problem",
                title,
                evidence,
                f"With α = {alpha:.2f} a round of k = {k} emits {expected_tokens(alpha, k):.2f} tokens and takes "
                f"k·c + v(k + 1) + o = {k * c + v(k + 1) + o:.2f} steps of the target.",
                REMEDIES[guilty.term].format(k=guilty.k, speedup=guilty.speedup),
                numbers | {"blame": guilty.term, "fixed_speedup": guilty.speedup},
            )
        ]
    if not best or setup.controller is not None or best_speedup < WORTH * predicted:
        return []
    better = _gain(setup, best)
    if better is None or better[0] <= 1:  # predicted, but not confirmed
        return []
    return [
        Finding(
            "k-not-best",
            "note",
            wrong_k(k, best, best_speedup),
            f"k = {best} is {better[0]:.2f} to {better[1]:.2f} times as fast as k = {k}; {evidence}",
            "The last of many drafted tokens are rarely reached, and each costs a draft step and a place in the "
            "scoring."
            if best < k
            else "More tokens would be accepted than are drafted.",
            f"Set k = {best}, or let a controller find it (CostModelSpeculation).",
            numbers | {"better": better},
        )
    ]


def wrong_k(k: int, best: int, speedup: float) -> str:
    """One line on a k that is not the best."""
    return f"k = {k} is too {'long' if k > best else 'short'} here: best k = {best}, predicted {speedup:.2f}×"


def _gain(setup: Setup, k: int) -> Interval | None:
    """The speed of this k / the speed of the setup's own k; None if there was too little time to be sure."""
    try:
        return quantile_interval(speed_ratios(setup, None, k), 0.5, LEVEL)
    except OutOfTime:
        setup.left_out.append(f"trying k = {k}")
        return None


def speed_ratios(setup: Setup, reference_k: int | None, k: int | None) -> list[float]:
    """The speed of decoding with `k` / the speed with `reference_k`, on every prompt in turn.

    None stands for the setup's own k or controller. Each is run once untimed. If time is short, there are fewer runs.
    """
    prompts = [list(prompt) for prompt in setup.prompts]
    repeats = max(REPEATS, ceil(LEAST_RATIOS / len(prompts)))

    def pace(drafted: int | None, prompt: list[int], seed: int) -> float:
        generation = setup.generate(prompt, k=drafted, seed=seed).generation
        return len(generation.tokens) / generation.seconds

    def ratio(run: tuple[int, list[int]]) -> float:
        seed, prompt = run
        reference = pace(reference_k, prompt, seed)
        return pace(k, prompt, seed) / reference

    for drafted in (reference_k, k):
        if drafted not in (None, 0):  # the other two were run for α and o
            setup.generate(prompts[0], k=drafted)
    runs = [(repeat, prompt) for repeat in range(repeats) for prompt in prompts]
    return setup.as_many_as_fit("timed runs", runs, ratio)


@dataclass(frozen=True)
class Load:
    """One batch size.

    Attributes:
        batch: rows.
        v: time to score k + 1 tokens of each row / one of each.
        speedup: median of real rounds over rounds without drafts.
        interval: of that median, with 99 % confidence; None where there was no time for enough runs.
    """

    batch: int
    v: float
    speedup: float
    interval: Interval | None


def has_load(setup: Setup) -> bool:
    """Whether the setup has a batch, and a pair that can be measured with this batch."""
    return setup.batch > 1 and setup.drafter is None and setup.models.drafts


def check_load(setup: Setup) -> list[Finding] | None:
    """Does drafting still pay at the intended batch size? Prompts of one or two tokens are not checked."""
    if not has_load(setup) or _load_length(setup) < LEAST_TOKENS:
        return None
    last = measure_load(setup, setup.batch)
    shown = f"99 %: {last.interval[0]:.2f} to {last.interval[1]:.2f}" if last.interval else "too few runs to be sure"
    words = f"{last.speedup:.2f}× ({shown}), v({setup.max_k + 1}) = {last.v:.2f}"
    setup.measurements["load"] = Measurement(words, vars(last))
    if last.interval is None or last.interval[1] >= 1:
        return []
    sizes = list(takewhile(lambda size: size < setup.batch, (4**i for i in range(setup.batch))))
    loads = [*_smaller(setup, sizes), last]
    until = max((load.batch for load in takewhile(lambda load: load.speedup >= 1, loads)), default=0)
    table = ", ".join(f"batch {load.batch}: v = {load.v:.2f}, {load.speedup:.2f}×" for load in loads)
    schedule = (
        f"[[1, {until}, {setup.max_k}], [{until + 1}, {setup.batch}, 0]]" if until else f"[[1, {setup.batch}, 0]]"
    )
    return [
        Finding(
            "slower-under-load",
            "problem",
            f"At batch {setup.batch} drafts cost more than they save",
            f"{last.speedup:.2f}× ({shown}); v({setup.max_k + 1}) and speedup by batch size: {table}",
            "With few rows a step takes as long as reading the weights, however many tokens it scores. A large batch "
            "keeps the arithmetic units busy already, and each rejected token takes some of them from other rows.",
            (f"Draft up to batch {until} only" if until else "Do not draft at these batch sizes")
            + f"; `specdec bench --batch` measures it. In vLLM: num_speculative_tokens_per_batch_size = {schedule}.",
            {"loads": [vars(load) for load in loads], "pays_up_to": until},
        )
    ]


def _smaller(setup: Setup, sizes: Sequence[int]) -> list[Load]:
    """Measure smaller batch sizes, as far as there is time."""
    return setup.as_many_as_fit("smaller batch sizes", sizes, lambda size: measure_load(setup, size), minimum=0)


def _load_length(setup: Setup) -> int:
    """The common length of the rows' prompts: the shortest prompt's, or less, to leave room for the rounds."""
    return min(setup.models.context - tokens_needed(LOAD_ROUNDS, setup.max_k), *map(len, setup.prompts))


def _reading_seconds(setup: Setup, tokens: int) -> float:
    """An estimate of the time that the target takes to read prompts of this many tokens."""
    longest = max(setup.costs.scoring)
    return tokens * setup.costs.scoring[longest] / longest


def measure_load(setup: Setup, batch: int) -> Load:
    """Real rounds of a whole batch, with and without drafts in turn. The prompts are cut to one length.

    Raises OutOfTime if reading the prompts alone would take longer than the time that is left.
    """
    k, length = setup.max_k, _load_length(setup)
    if setup.budget.left < inf and _reading_seconds(setup, batch * length) > setup.budget.left:
        raise OutOfTime
    prompts = [setup.prompts[i % len(setup.prompts)][-length:] for i in range(batch)]
    bench = Bench(setup.pair, prompts, rounds=LOAD_ROUNDS, max_k=k, sampling=setup.sampling, budget=setup.budget)

    def ratio(seed: int) -> float:
        without, drafted = (bench.time_rounds(n, seed=seed).tokens_per_second for n in (0, k))
        return drafted / without

    ratio(0)  # the warm-up
    with setup.budget.part(1 - COSTS_PART):
        ratios = setup.as_many_as_fit("timed runs", range(1, LOAD_REPEATS + 1), ratio)
    v = bench.costs([k]).v(k + 1)
    return Load(batch, v, median(ratios), quantile_interval(ratios, 0.5, LEVEL))
