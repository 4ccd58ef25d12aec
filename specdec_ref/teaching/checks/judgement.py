"""Exercises of judgement: find the bug, test a sampler, choose a draft, adapt k, count memory, decide when to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from specdec_ref.teaching.checks.exercise import Case, Exercise, Misconception
from specdec_ref.teaching.checks.loop import played_step
from specdec_ref.teaching.checks.outcomes import distribution

# Find the bug

EXHIBITS = {
    "A": "drafted.append(int(row.argmax()))         # and q.append(row)",
    "B": "chance.draw(p[accepted])                  # after a rejection",
    "C": "accepted = sum(keep)                      # keep: True or False for each drafted token",
}
"""Lines of `mending.broken_round`."""
BUGS = (
    "draws from the target after a rejection",
    "counts acceptances behind a rejection",
    "reports another q than it drew from",
    "accepts at u = p/q",
    "never forgets rejected tokens",
)


def findings() -> dict[str, str]:
    """Which of BUGS each exhibit has."""
    return {"A": BUGS[2], "B": BUGS[0], "C": BUGS[1]}


def _with(**changed: str) -> Any:
    return lambda: findings() | changed


FIND_BUG = Exercise(
    "find_bug",
    "Find the bug",
    "findings",
    15,
    3,
    (
        "Ask of each line: is the token drawn from exactly what the rule is told? What happens behind a rejection?",
        "A: drafting the argmax is a draw from a one-hot distribution, whatever q says.",
        "C: with keep = [True, False, True], how many tokens may be kept?",
    ),
    findings,
    (
        Misconception(
            "a-looks-harmless", "Exhibit A: a greedy draft is fine, but then its q is one-hot, not its softmax", 2,
            _with(A=BUGS[4]),
        ),
        Misconception(
            "a-blames-u", "Exhibit A does not accept anything: it drafts. Compare what is drawn with what is reported",
            2, _with(A=BUGS[3]),
        ),
        Misconception(
            "b-is-a-cache-bug", "Exhibit B is about what is DRAWN after a rejection: it should be the residual", 1,
            _with(B=BUGS[4]),
        ),
        Misconception(
            "c-is-about-u", "Exhibit C uses '<', which is right. Count what it keeps behind a rejection", 3,
            _with(C=BUGS[3]),
        ),
        Misconception(
            "c-is-a-cache-bug", "Exhibit C has no cache in it. Count what it keeps behind a rejection", 3,
            _with(C=BUGS[4]),
        ),
        Misconception(
            "a-and-b-exchanged", "You exchanged A and B: A is the draft's line, B is the line after a rejection", 1,
            _with(A=BUGS[0], B=BUGS[2]),
        ),
    ),
    lambda seed: [Case((), "exhibits A, B and C")],
    otherwise="Not all three are right yet: look at each exhibit's line by itself, and at what comes before it",
    secret=True,
)  # fmt: skip


# An equivalence test of one's own

CRITICAL = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 9: 27.877}
"""χ² is larger once in 1,000 times, by degrees of freedom."""


def is_consistent(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    """χ² of counts against probabilities, refuted where a right sampler would be once in 1,000 times."""
    expected = np.array(probabilities) * sum(counts)
    return bool(((np.array(counts) - expected) ** 2 / expected).sum() <= CRITICAL[len(counts) - 1])


def _sampled(
    seed: int, samples: int, probabilities: Sequence[float], really: Sequence[float] | None = None, words: str = ""
) -> Case:
    """Counts of a sampler, beyond doubt: far within the limit where it is right, far beyond where it is not."""
    draw, right = np.random.default_rng(seed).multinomial, really is None
    while True:
        counts = draw(samples, probabilities if really is None else really).tolist()
        share = _chi(counts, probabilities) / CRITICAL[len(counts) - 1]
        if share < 0.5 if right else share > 3:
            return Case((counts, list(probabilities)), f"{words}counts {counts}, probabilities {list(probabilities)}")


def first_token(p: Sequence[float], q: Sequence[float], **mistakes: Any) -> list[float]:
    """The exact distribution of what a step emits first, with one of the mistakes of the museum."""
    rows = torch.tensor([p, p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    found = distribution(lambda chance: played_step(*rows, [chance.draw(q)], chance, **mistakes)[0])
    return [found.get(token, 0.0) for token in range(len(p))]


def _consistency_cases(seed: int) -> list[Case]:
    even, skewed = [0.25] * 4, [0.6, 0.3, 0.09, 0.01]
    fixed = [
        Case(([30, 20], [0.5, 0.5]), "counts [30, 20], probabilities [0.5, 0.5]"),
        Case(([50_600, 49_400], [0.5, 0.5]), "counts [50600, 49400], probabilities [0.5, 0.5]"),
        Case(([605, 295, 60, 40], skewed), "a rare token four times too often"),
        Case(([29, 16, 26, 29], even), "counts [29, 16, 26, 29], probabilities 1/4 each"),
        Case(([40, 12, 30, 18], even), "counts [40, 12, 30, 18], probabilities 1/4 each"),
        Case(([36, 13, 30, 21], even), "counts [36, 13, 30, 21], probabilities 1/4 each"),
        Case(([72, 28], [0.6, 0.4]), "counts [72, 28], probabilities [0.6, 0.4]"),
        Case(([67, 33], [0.5, 0.5]), "counts [67, 33], probabilities [0.5, 0.5]"),
        Case(([13, 42, 22, 23], even), "counts [13, 42, 22, 23], probabilities 1/4 each"),
    ]
    draft = [0.3, 0.4, 0.2, 0.1]
    exhibits = [
        _sampled(seed + i, 20_000, skewed, first_token(skewed, draft, **mistake), f"{words}: ")
        for i, (words, mistake) in enumerate(EXHIBITED.items())
    ]
    right = _sampled(seed, 20_000, skewed, words="the step itself: ")
    return [
        *fixed,
        right,
        *exhibits,
        _sampled(seed, 20_000, even),
        _sampled(seed, 20_000, skewed, [0.56, 0.32, 0.1, 0.02]),
    ]


EXHIBITED: dict[str, dict[str, Any]] = {
    "exhibit: draws from the target after a rejection": {"again": True},
    "exhibit: keeps a token only where p ≥ q": {"odds": lambda ratio: 1.0 if ratio >= 1 else 0.0},
    "exhibit: keeps every token": {"odds": lambda ratio: 1.0},
}


def _chi(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    expected = np.array(probabilities) * sum(counts)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def _shares(counts: Sequence[int], probabilities: Sequence[float]) -> Any:
    return np.array(counts) / sum(counts) - np.array(probabilities)


EQUIVALENCE = Exercise(
    "equivalence_test",
    "Write an equivalence test",
    "is_consistent",
    20,
    4,
    (
        "χ² is the sum of (count − expected)² / expected, where expected = probability × number of samples.",
        "Compare with CRITICAL[degrees of freedom]; n outcomes have n − 1 of them.",
        "A fixed limit on the difference cannot be right: 30 of 50 is chance, 50,600 of 100,000 is not.",
    ),
    is_consistent,
    (
        Misconception(
            "fixed-limit", "A fixed limit on the largest difference does not know how many samples there are", 3,
            lambda c, p: bool(abs(_shares(c, p)).max() < 0.05),
        ),
        Misconception(
            "tight-fixed-limit", "A limit of 1 % refutes right samplers that were asked too seldom", 3,
            lambda c, p: bool(abs(_shares(c, p)).max() < 0.01),
        ),
        Misconception(
            "never-refutes", "Your test never refutes anything: a test that cannot fail says nothing", 1,
            lambda c, p: True,
        ),
        Misconception("always-refutes", "Your test refutes right samplers as well", 1, lambda c, p: False),
        Misconception(
            "reversed", "You say True where χ² is too large", 2,
            lambda c, p: not is_consistent(c, p),
        ),
        Misconception(
            "level-of-5-percent", "Your limit refutes a right sampler once in 20 times, not in 1,000: see CRITICAL", 2,
            lambda c, p: bool(_chi(c, p) <= {1: 3.841, 3: 7.815}.get(len(c) - 1, 0)),
        ),
        Misconception(
            "degrees-of-freedom", "n outcomes have n − 1 degrees of freedom: the last share follows from the others", 2,
            lambda c, p: bool(_chi(c, p) <= {2: 13.816, 4: 18.467}.get(len(c), 0)),
        ),
        Misconception(
            "one-limit-for-all", "Your limit is the same however many outcomes there are: see CRITICAL", 2,
            lambda c, p: bool(_chi(c, p) <= CRITICAL[1]),
        ),
    ),
    _consistency_cases,
)  # fmt: skip


# Choose a draft (8.1.2)


def _gain(alpha: float, k: int, c: float, slope: float) -> float:
    return float((1 - alpha ** (k + 1)) / (1 - alpha)) / (k * c + 1 + slope * k)


def best_draft(drafts: Mapping[str, tuple[float, float]], slope: float) -> tuple[str, int]:
    """(name, k) with the largest speedup for k = 1 … 8, or ('none', 0). drafts: name → (α, c)."""
    options = {}
    for name, (alpha, c) in drafts.items():
        for k in range(1, 9):
            options[name, k] = (1 - alpha ** (k + 1)) / (1 - alpha) / (k * c + 1 + slope * k)
    winner = max(options, key=lambda option: options[option])
    return winner if options[winner] > 1 else ("none", 0)


def _draft_cases(seed: int) -> list[Case]:
    ours = {"small": (0.62, 0.09), "medium": (0.74, 0.13), "large": (0.78, 0.2)}
    poor = {"tiny": (0.2, 0.3), "slow": (0.5, 0.9)}
    cases = [Case((ours, slope), f"the drafts that ship, slope {slope}") for slope in (0.0, 0.1, 0.5, 1.0)]
    cases.append(Case((poor, 0.1), "two drafts that do not pay"))
    chance = np.random.default_rng(seed)
    for _ in range(4):
        some = {name: (float(chance.uniform(0.3, 0.95)), float(chance.uniform(0.02, 0.5))) for name in ("x", "y", "z")}
        slope = float(chance.uniform(0, 0.4))
        cases.append(Case((some, slope), f"three drafts, slope {slope:.2f}"))
    return cases


def _as_good(value: Any, right: Any, case: Case) -> bool:
    """Another choice that is within a thousandth of the best is as good."""
    drafts, slope = case.arguments
    name, k = value
    if right[0] == "none" or name not in drafts:
        return bool(name == right[0])
    gain, best = (_gain(*(drafts[n][0], j, drafts[n][1]), slope) for n, j in ((name, int(k)), right))
    return gain > 0.999 * best


def _wrongly(score: Any, off: bool = True) -> Any:
    def choose(drafts: Mapping[str, tuple[float, float]], slope: float) -> tuple[str, int]:
        options = {(name, k): score(a, k, c, slope) for name, (a, c) in drafts.items() for k in range(1, 9)}
        winner = max(options, key=lambda option: options[option])
        return winner if not off or _gain(*_of(drafts, winner), slope) > 1 else ("none", 0)

    return choose


def _of(drafts: Mapping[str, tuple[float, float]], option: tuple[str, int]) -> tuple[float, int, float]:
    alpha, c = drafts[option[0]]
    return alpha, option[1], c


BEST_DRAFT = Exercise(
    "best_draft",
    "8.1.2 Compare drafts",
    "best_draft",
    20,
    3,
    (
        "Speedup of a draft at k: (1 − αᵏ⁺¹)/(1 − α) / (k·c + 1 + slope·k). Try every draft with every k.",
        "Neither the largest α nor the smallest c decides: each is paid for with the other.",
        "Where the best speedup is not above 1, the answer is ('none', 0).",
    ),
    best_draft,
    (
        Misconception(
            "always-one", "You choose a draft even where every one of them makes it slower", 3,
            _wrongly(_gain, off=False),
        ),
        Misconception(
            "best-alpha", "You take the draft with the largest α, whatever its steps cost", 2,
            lambda d, s: best_draft({max(d, key=lambda n: d[n][0]): d[max(d, key=lambda n: d[n][0])]}, s),
        ),
        Misconception(
            "cheapest", "You take the cheapest draft, whatever is accepted of it", 2,
            lambda d, s: best_draft({min(d, key=lambda n: d[n][1]): d[min(d, key=lambda n: d[n][1])]}, s),
        ),
        Misconception(
            "scoring-is-free", "You forget slope: each further scored token costs something, too", 1,
            _wrongly(lambda a, k, c, s: _gain(a, k, c, 0.0)),
        ),
        Misconception(
            "bonus-left-out", "You count accepted tokens only: a round emits one more", 1,
            _wrongly(lambda a, k, c, s: _gain(a, k, c, s) - 1 / (k * c + 1 + s * k)),
        ),
        Misconception(
            "most-tokens", "You maximise tokens per round: that is always k = 8, whatever it costs", 1,
            _wrongly(lambda a, k, c, s: (1 - a ** (k + 1)) / (1 - a)),
        ),
        Misconception(
            "always-four", "You always take k = 4; the best k goes with α and the costs", 1,
            _wrongly(lambda a, k, c, s: _gain(a, 4, c, s) - 1e-9 * (k != 4)),
        ),
    ),
    _draft_cases,
    agrees=_as_good,
)  # fmt: skip
