"""Checks of speed: is it slower than without drafts, alone or under load, and which of α, c, v, o and k is to blame?

Nothing is said of a speed unless its whole interval lies on one side of break-even: machines are noisy. Or unless what
was measured is below it and the formula leaves no hope: it counts tokens and steps, which noise does not reach.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from statistics import median

from specdec_ref.measurement.benchmark import Contender, Sample, race
from specdec_ref.measurement.case import LEVEL, MOST_K, Case, Seen, share_interval
from specdec_ref.measurement.findings import Finding
from specdec_ref.measurement.intervals import quantile_interval
from specdec_ref.measurement.rounds import LEAST_TOKENS, Bench, room
from specdec_ref.theory import Cost, best_k, break_even_alpha, expected_tokens, predicted_speedup

REPEATS, LEAST_RATIOS = 3, 8
LOAD_REPEATS, LOAD_ROUNDS = 8, 6
"""Pairs of runs: the median lies between the smallest and the largest of 8 ratios in 99.2 % of cases. Few prompts are
repeated until there are as many."""

WORTH = 1.25
"""A better k must promise so much more before it is tried: costs are measured to some 10 %."""

HOPELESS = 0.9
"""Predicted from the most that α can be, after what was accepted: less leaves no doubt that drafts do not pay."""

GOOD_ALPHA, GOOD_C, GOOD_V, GOOD_O = 0.8, 0.1, 1.1, 0.0
"""What a good set-up reaches: a draft of the same family at a tenth of the target's time (the source text's 3.3), on
hardware that waits for memory. A term is to blame as far as bringing it there would help."""


@dataclass(frozen=True)
class Blame:
    """The term that costs most: 'k', 'acceptance', 'draft', 'scoring' or 'overhead'. speedup: predicted with that one
    mended, and the best k for it."""

    term: str
    speedup: float
    k: int


def blame(alpha: float, k: int, c: float, v: Cost, overhead: float) -> Blame:
    """Which term of S = E[tokens]/(k·c + v(k + 1) + o) to mend first: k where another one would do, else the one whose
    good value lifts the best S most. v: a number or a function for up to 9 tokens."""
    of = v if callable(v) else (lambda n: v)
    other = best_k(alpha, c, of, overhead, MOST_K)
    if other != k and other > 0 and (mended := predicted_speedup(alpha, other, c, of, overhead)) >= 1.05:
        return Blame("k", mended, other)
    mends: dict[str, tuple[float, float, Callable[[int], float], float]] = {
        "acceptance": (max(alpha, GOOD_ALPHA), c, of, overhead),
        "draft": (alpha, min(c, GOOD_C), of, overhead),
        "scoring": (alpha, c, lambda n: min(of(n), GOOD_V), overhead),
        "overhead": (alpha, c, of, min(overhead, GOOD_O)),
    }
    found = []
    for term, (a, cost, score, o) in mends.items():
        n = best_k(a, cost, score, o, MOST_K) or 1
        found.append(Blame(term, predicted_speedup(a, n, cost, score, o), n))
    return max(found, key=lambda b: b.speedup)


REMEDIES = {
    "k": "Set k = {k}: predicted {speedup:.2f}×. A controller finds it by itself (CostModelSpeculation).",
    "acceptance": "A better aligned draft: same family, or distilled from the target. With α = 0.8 these costs would "
    "give {speedup:.2f}× at k = {k}.",
    "draft": "A cheaper draft: fewer layers first, since each is kernels to start; or prompt lookup. With c = 0.1 "
    "this α would give {speedup:.2f}× at k = {k}.",
    "scoring": "Scoring k + 1 tokens is dear here: a smaller k, a smaller batch, hardware that waits for memory rather "
    "than computes. With v = 1.1 it would be {speedup:.2f}× at k = {k}.",
    "overhead": "Time goes into neither model: the drafter or controller, the host's own code, logging. Without it the "
    "speedup would be {speedup:.2f} at k = {k}.",
}


def check_speed(case: Case) -> list[Finding]:
    """Is it faster than without drafts, and is k well chosen?"""
    ratios = _ratios(case, 0, None)
    actual, interval = median(ratios), quantile_interval(ratios, 0.5, LEVEL)
    alpha, c, v, o = _terms(case)
    ks = [len(r.drafted) for p in case.played for r in p.generation.rounds[:-1]] or [case.k]
    k = round(sum(ks) / len(ks)) or 1
    predicted = sum(expected_tokens(alpha, n) for n in ks) / sum(n * c + v(n + 1) + o for n in ks)
    luckiest = share_interval(*case.accepted)[1]
    hoped = sum(expected_tokens(luckiest, n) for n in ks) / sum(n * c + v(n + 1) + o for n in ks)
    best = best_k(alpha, c, v, o, MOST_K)
    most, needed = predicted_speedup(alpha, best, c, v, o), break_even_alpha(k, c, v, o)
    shown = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "too few runs for an interval"
    pays = "not even at 1" if needed > 1 else f"{needed:.2f}"
    seen = (
        f"measured {actual:.2f}× ({shown}) at k = {k}; α = {alpha:.2f} (break-even {pays}), c = {c:.2f}, "
        f"v({k + 1}) = {v(k + 1):.2f}, o = {o:.2f}: predicted {predicted:.2f}; best k = {best}, predicted {most:.2f}"
    )
    numbers = {"alpha": alpha, "c": c, "v": v(k + 1), "o": o, "k": k, "actual": actual, "interval": interval}
    numbers |= {
        "predicted": predicted,
        "hoped": hoped,
        "best_k": best,
        "best_speedup": most,
        "break_even_alpha": needed,
    }
    case.seen["speed"] = Seen(
        f"{actual:.2f}× ({shown}), predicted {predicted:.2f}; best k = {best}, predicted {most:.2f}; α = {alpha:.2f}, "
        f"break-even {pays}",
        numbers,
    )
    if interval and (interval[1] < 1 or (actual < 1 and hoped < HOPELESS)):
        guilty = blame(alpha, k, c, v, o)
        return [
            Finding(
                "slower-than-without",
                "problem",
                f"Slower than without drafts; to blame: {guilty.term}",
                seen,
                f"A round emits {expected_tokens(alpha, k):.2f} tokens and takes k·c + v(k + 1) + o = "
                f"{k * c + v(k + 1) + o:.2f} steps of the target.",
                REMEDIES[guilty.term].format(k=guilty.k, speedup=guilty.speedup),
                numbers | {"blame": guilty.term, "mended": guilty.speedup},
            )
        ]
    if not best or case.controller is not None or most < WORTH * predicted:
        return []
    better = quantile_interval(_ratios(case, None, best), 0.5, LEVEL)
    if better is None or better[0] <= 1:  # promised, and not kept
        return []
    return [
        Finding(
            "k-not-best",
            "note",
            f"Another k does better: {best}",
            f"k = {best} is {better[0]:.2f} to {better[1]:.2f} times as fast as k = {k}; {seen}",
            "The last of many drafted tokens are rarely reached, and cost a draft step and a place in the scoring each."
            if best < k
            else "More tokens would be accepted than are drafted.",
            f"Set k = {best}, or let a controller find it (CostModelSpeculation).",
            numbers | {"better": better},
        )
    ]


def _ratios(case: Case, one: int | None, other: int | None) -> list[float]:
    """How many times as fast `other` is as `one`, on every prompt in turn. None: as the case is set up; else that k."""

    def contender(k: int | None) -> Contender:
        return lambda prompt, seed: Sample.of(case.play(prompt, k=k, seed=seed).generation)

    prompts = [list(prompt) for prompt in case.prompts]
    repeats = max(REPEATS, ceil(LEAST_RATIOS / len(prompts)))
    results = race({"one": contender(one), "other": contender(other)}, prompts, baseline="one", repeats=repeats)
    pace = {name: [len(s.tokens) / s.seconds for s in result.samples] for name, result in results.items()}
    return [b / a for a, b in zip(pace["one"], pace["other"], strict=True)]


def _terms(case: Case) -> tuple[float, float, Callable[[int], float], float]:
    """α, c, v and o. o: what a round takes beyond draft and scoring, and beyond what a step without drafts takes."""
    costs = case.costs
    draft = costs.draft_step
    rounds = [(r, wall) for p in case.played for r, wall in zip(p.generation.rounds[1:], p.walls, strict=True)]
    if case.drafter is not None or case.pair.draft is None:
        told = [r.draft_seconds / len(r.drafted) for r, _ in rounds if r.drafted]
        draft = median(told) if told else 0.0
    alone = case.play(case.prompts[0], k=0).walls
    rest = [
        wall - len(r.drafted) * draft - costs.target_step * costs.v(len(r.drafted) + 1)
        for r, wall in rounds
        if r.drafted
    ]
    usual = median(alone) - costs.target_step if alone else 0.0
    o = max(0.0, (median(rest) - usual) / costs.target_step) if rest else 0.0
    return case.alpha, draft / costs.target_step, costs.v, o


@dataclass(frozen=True)
class Load:
    """One batch size. v: time to score k + 1 tokens of each row / one of each; speedup: median of real rounds over
    rounds without drafts; interval: of that median."""

    batch: int
    v: float
    speedup: float
    interval: tuple[float, float]


def check_load(case: Case) -> list[Finding] | None:
    """Does it still pay at the batch size that it is meant for? Not asked of prompts of one or two tokens."""
    if case.batch == 1 or case.drafter is not None or case.pair.draft is None or _load_length(case) < LEAST_TOKENS:
        return None
    last = measure_load(case, case.batch)
    low, high = last.interval
    words = f"{last.speedup:.2f}× ({low:.2f} to {high:.2f}), v({case.max_k + 1}) = {last.v:.2f}"
    case.seen["load"] = Seen(words, vars(last))
    if last.interval[1] >= 1:
        return []
    loads, size = [last], 1
    while size < case.batch:
        loads.insert(-1, measure_load(case, size))
        size *= 4
    until = max((load.batch for load in loads if load.speedup >= 1), default=0)
    table = ", ".join(f"{load.batch}: v = {load.v:.2f}, {load.speedup:.2f}×" for load in loads)
    schedule = f"[[1, {until}, {case.max_k}], [{until + 1}, {case.batch}, 0]]" if until else f"[[1, {case.batch}, 0]]"
    return [
        Finding(
            "slower-under-load",
            "problem",
            f"At batch {case.batch} drafts cost more than they save",
            f"{last.interval[0]:.2f} to {last.interval[1]:.2f} times as fast as without; by batch size, "
            f"v({case.max_k + 1}) and speedup: {table}",
            "With few rows a step takes as long as reading the weights, however many tokens it scores. A large batch "
            "keeps the arithmetic units busy already, and each rejected token takes some of them from other rows.",
            (f"Draft up to batch {until} only" if until else "Do not draft at these sizes")
            + f": `specdec bench --batch` measures it. In vLLM num_speculative_tokens_per_batch_size = {schedule}.",
            {"loads": [vars(load) for load in loads], "pays_up_to": until},
        )
    ]


def _load_length(case: Case) -> int:
    """Tokens of every row's prompt: as many as the shortest has, and as leave room for the rounds."""
    return min(case.models.context - room(LOAD_ROUNDS, case.max_k), *map(len, case.prompts))


def measure_load(case: Case, batch: int) -> Load:
    """Real rounds of a whole batch, with and without drafts in turn. The prompts are cut to one length."""
    k, length = case.max_k, _load_length(case)
    prompts = [case.prompts[i % len(case.prompts)][-length:] for i in range(batch)]
    bench = Bench(case.pair, prompts, rounds=LOAD_ROUNDS, max_k=k, sampling=case.sampling)
    ratios = []
    for i in range(LOAD_REPEATS + 1):
        without, drafted = (bench.play(n, seed=i).tokens_per_second for n in (0, k))
        ratios.append(drafted / without)
    ratios = ratios[1:]  # the first time round is the warm-up
    return Load(batch, bench.costs([k]).v(k + 1), median(ratios), (min(ratios), max(ratios)))
