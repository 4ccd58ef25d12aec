"""Exercises of judgement: find the bug, and test a sampler."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Function, Misconception, called, shown
from specdec_lab.teaching.exercises.loop import played_step
from specdec_lab.teaching.exercises.outcomes import BadRequest, distribution

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


def _first_wrong(function: Function, case: ExerciseCase) -> Any:
    """What is said of the first exhibit that is taken for another; everything where there is none."""
    said = called(function)
    if not isinstance(said, dict):
        return said
    for letter in said:
        if letter not in EXHIBITS:
            raise BadRequest(f"findings has the key {shown(letter)}: takes 'A', 'B' and 'C'")
    for letter in EXHIBITS:
        bug = said.get(letter)
        if bug is None:
            raise BadRequest(f"findings says nothing of {letter}: takes 'A', 'B' and 'C'")
        if isinstance(bug, (int, float)):
            raise BadRequest(f"{letter} is {shown(bug)}: takes the text itself, for instance BUGS[0], not its number")
        if not isinstance(bug, str) or bug not in BUGS:
            raise BadRequest(f"{letter} is {shown(bug)}: takes one of the texts in BUGS, word for word")
    return next(({letter: said[letter]} for letter, bug in findings().items() if said[letter] != bug), said)


def _with(letter: str, bug: int) -> Any:
    return lambda: findings() | {letter: BUGS[bug]}


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
            "a-taken-for-b", "Exhibit A is the draft's line: nothing is rejected there yet. Look at what q is told", 2,
            _with("A", 0),
        ),
        Misconception(
            "a-counts-nothing", "Exhibit A counts nothing: it drafts. Compare what is drawn with what is reported", 2,
            _with("A", 1),
        ),
        Misconception(
            "a-blames-u", "Exhibit A does not accept anything: it drafts. Compare what is drawn with what is reported",
            2, _with("A", 3),
        ),
        Misconception(
            "a-looks-harmless", "Exhibit A: a greedy draft is fine, but then its q is one-hot, not its softmax", 2,
            _with("A", 4),
        ),
        Misconception(
            "b-counts-nothing", "Exhibit B counts nothing: it draws. From what, and what should it be?", 1,
            _with("B", 1),
        ),
        Misconception(
            "b-taken-for-a", "Exhibit B is the line after a rejection, and reports no q. What does it draw from?", 1,
            _with("B", 2),
        ),
        Misconception(
            "b-blames-u", "Exhibit B accepts nothing: it draws, after a rejection. From what?", 1, _with("B", 3)
        ),
        Misconception(
            "b-is-a-cache-bug", "Exhibit B is about what is DRAWN after a rejection: it should be the residual", 1,
            _with("B", 4),
        ),
        Misconception(
            "c-draws-nothing", "Exhibit C draws nothing: it counts. Which of the tokens may it count?", 3,
            _with("C", 0),
        ),
        Misconception(
            "c-reports-nothing", "Exhibit C has no q in it: it counts. Which of the tokens may it count?", 3,
            _with("C", 2),
        ),
        Misconception(
            "c-is-about-u", "Exhibit C compares nothing with u: that is done already. Count what it keeps", 3,
            _with("C", 3),
        ),
        Misconception(
            "c-is-a-cache-bug", "Exhibit C has no cache in it. Count what it keeps behind a rejection", 3,
            _with("C", 4),
        ),
    ),
    lambda seed: [ExerciseCase((), "exhibits A, B and C")],
    measure=_first_wrong,
    secret=True,
)  # fmt: skip


# An equivalence test of one's own

CRITICAL = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 9: 27.877}
"""χ² is larger once in 1,000 times, by degrees of freedom."""


def is_consistent(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    """χ² of counts against probabilities, refuted where a right sampler would be once in 1,000 times."""
    n, possible, chi_square = sum(counts), 0, 0.0
    for count, p in zip(counts, probabilities, strict=True):
        if p > 0:
            possible += 1
            chi_square += (count - n * p) ** 2 / (n * p)
        elif count > 0:
            return False  # a token that cannot be sampled was sampled
    return chi_square <= CRITICAL[possible - 1]


def _sampled(
    seed: int, samples: int, probabilities: Sequence[float], really: Sequence[float] | None = None, words: str = ""
) -> ExerciseCase:
    """Counts of a sampler, beyond doubt: far within the limit where it is right, far beyond where it is not."""
    draw, right = np.random.default_rng(seed).multinomial, really is None
    while True:
        counts = draw(samples, probabilities if really is None else really).tolist()
        share = _chi(counts, probabilities) / CRITICAL[len(counts) - 1]
        if share < 0.5 if right else share > 3:
            return ExerciseCase(
                (counts, list(probabilities)), f"{words}counts {counts}, probabilities {list(probabilities)}"
            )


def first_token(p: Sequence[float], q: Sequence[float], **mistakes: Any) -> list[float]:
    """The exact distribution of what a step emits first, with one of the mistakes of the museum."""
    rows = torch.tensor([p, p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    found = distribution(lambda chance: played_step(*rows, [chance.draw(q)], chance, **mistakes)[:1])
    return [found.get((token,), 0.0) for token in range(len(p))]


def _consistency_cases(seed: int) -> list[ExerciseCase]:
    even, skewed = [0.25] * 4, [0.6, 0.3, 0.09, 0.01]
    fixed = [
        ExerciseCase(([30, 20], [0.5, 0.5]), "counts [30, 20], probabilities [0.5, 0.5]"),
        ExerciseCase(([50_600, 49_400], [0.5, 0.5]), "counts [50600, 49400], probabilities [0.5, 0.5]"),
        ExerciseCase(([605, 295, 60, 40], skewed), "a rare token four times too often", spelled=False),
        ExerciseCase(([29, 16, 26, 29], even), "counts [29, 16, 26, 29], probabilities 1/4 each"),
        ExerciseCase(([40, 12, 30, 18], even), "counts [40, 12, 30, 18], probabilities 1/4 each"),
        ExerciseCase(([36, 13, 30, 21], even), "counts [36, 13, 30, 21], probabilities 1/4 each"),
        ExerciseCase(([61, 29, 10, 0], skewed), "counts [61, 29, 10, 0], probabilities [0.6, 0.3, 0.09, 0.01]"),
        ExerciseCase(([39, 21, 20, 20], even), "counts [39, 21, 20, 20], probabilities 1/4 each"),
        ExerciseCase(([13, 39, 26, 22], even), "counts [13, 39, 26, 22], probabilities 1/4 each"),
        ExerciseCase(([37, 37, 13, 13], even), "counts [37, 37, 13, 13], probabilities 1/4 each"),
        ExerciseCase(([45, 18, 18, 19], even), "counts [45, 18, 18, 19], probabilities 1/4 each"),
        ExerciseCase(([64, 36], [0.5, 0.5]), "counts [64, 36], probabilities [0.5, 0.5]"),
        ExerciseCase(([72, 28], [0.6, 0.4]), "counts [72, 28], probabilities [0.6, 0.4]"),
        ExerciseCase(([67, 33], [0.5, 0.5]), "counts [67, 33], probabilities [0.5, 0.5]"),
        ExerciseCase(([13, 42, 22, 23], even), "counts [13, 42, 22, 23], probabilities 1/4 each"),
        ExerciseCase(([39, 13, 21, 27], even), "counts [39, 13, 21, 27], probabilities 1/4 each"),
        ExerciseCase(([38, 17, 16, 29], even), "counts [38, 17, 16, 29], probabilities 1/4 each"),
        ExerciseCase(([35, 65], [0.5, 0.5]), "counts [35, 65], probabilities [0.5, 0.5]"),
        ExerciseCase(([50, 25, 8, 17], skewed), "a rare token in 17 of 100 samples", spelled=False),
        ExerciseCase(([114, 58, 17, 11], skewed), "a rare token in 11 of 200 samples", spelled=False),
        ExerciseCase(([660, 330, 0, 10], skewed), "a token of p = 0.09 in none of 1,000 samples", spelled=False),
        *(
            ExerciseCase((counts, probabilities), f"counts {counts}, probabilities {probabilities}")
            for counts, probabilities in WITH_ZERO
        ),
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


WITH_ZERO = (
    ([58, 42, 0], [0.6, 0.4, 0.0]),
    ([0, 26, 24], [0.0, 0.5, 0.5]),
    ([58, 41, 1], [0.6, 0.4, 0.0]),
    ([2, 505, 493], [0.0, 0.5, 0.5]),
)
"""Counts and probabilities in which one token cannot be sampled: it was not, in the first two, and it was."""
EXHIBITED: dict[str, dict[str, Any]] = {
    "exhibit: draws from the target after a rejection": {"again": True},
    "exhibit: keeps a token only where p ≥ q": {"odds": lambda ratio: 1.0 if ratio >= 1 else 0.0},
    "exhibit: keeps every token": {"odds": lambda ratio: 1.0},
}


def _possible(counts: Sequence[int], probabilities: Sequence[float]) -> tuple[Any, Any]:
    """Counts and probabilities of the tokens that can be sampled."""
    can = np.array(probabilities) > 0
    return np.array(counts)[can], np.array(probabilities)[can]


def _degrees(probabilities: Sequence[float]) -> int:
    return sum(p > 0 for p in probabilities) - 1


def _is_impossible(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    return any(count > 0 and p == 0 for count, p in zip(counts, probabilities, strict=True))


def _chi(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    """χ², infinite where a token was counted that cannot be sampled."""
    if _is_impossible(counts, probabilities):
        return float("inf")
    return _chi_of_possible(counts, probabilities)


def _chi_of_possible(counts: Sequence[int], probabilities: Sequence[float], least: float = 0.0) -> float:
    """χ² of the tokens that can be sampled, and that were expected so often or more."""
    counted, p = _possible(counts, probabilities)
    expected = p * sum(counts)
    cells = (counted - expected) ** 2 / expected
    return float(cells[expected >= least].sum())


def _chi_with_nan(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    expected = np.array(probabilities) * sum(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(((np.array(counts) - expected) ** 2 / expected).sum())


def _chi_that_raises(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    n = sum(counts)
    return sum((count - n * p) ** 2 / (n * p) for count, p in zip(counts, probabilities, strict=True))


def _chi_by_counts(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    off = (np.array(counts) - np.array(probabilities) * sum(counts)) ** 2
    return float("inf") if 0 in counts else float((off / np.array(counts)).sum())


def _within_three_sigma(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    counted, p = _possible(counts, probabilities)
    n = sum(counts)
    off = (counted - n * p) / np.sqrt(n * p * (1 - p))
    return not _is_impossible(counts, probabilities) and bool((abs(off) <= 3).all())


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
        "A token of p = 0 that was counted refutes at once. One that was not counted is no outcome: leave it out.",
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
            lambda c, p: _chi(c, p) <= {1: 3.841, 3: 7.815}[_degrees(p)],
        ),
        Misconception(
            "level-of-1-percent", "Your limit refutes a right sampler once in 100 times, not in 1,000: see CRITICAL", 2,
            lambda c, p: _chi(c, p) <= {1: 6.635, 3: 11.345}[_degrees(p)],
        ),
        Misconception(
            "divided-by-counts", "You divide by what was counted, which may be 0: divide by what was expected", 1,
            lambda c, p: bool(_chi_by_counts(c, p) <= CRITICAL[len(c) - 1]),
        ),
        Misconception(
            "each-by-itself", "You judge each outcome by itself: together they can be off where none is far off", 1,
            _within_three_sigma,
        ),
        Misconception(
            "degrees-of-freedom", "n outcomes have n − 1 degrees of freedom: the last share follows from the others", 2,
            lambda c, p: _chi(c, p) <= CRITICAL[_degrees(p) + 1],
        ),
        Misconception(
            "one-degree-too-few", "n outcomes have n − 1 degrees of freedom, not n − 2", 2,
            lambda c, p: _chi(c, p) <= CRITICAL[max(1, _degrees(p) - 1)],
        ),
        Misconception(
            "one-limit-for-all", "Your limit is the same however many outcomes there are: see CRITICAL", 2,
            lambda c, p: _chi(c, p) <= CRITICAL[1],
        ),
        Misconception(
            "zero-by-zero", "Where p = 0 and nothing was counted you divide 0 by 0, and NaN is below no limit", 4,
            lambda c, p: _chi_with_nan(c, p) <= CRITICAL[len(c) - 1],
        ),
        Misconception(
            "division-by-zero", "You divide by what was expected, which is 0 where p = 0: leave that token out", 4,
            lambda c, p: _chi_that_raises(c, p) <= CRITICAL[len(c) - 1],
        ),
        Misconception(
            "impossible-tokens-skipped", "You skip tokens of p = 0 even where they were counted: no right sampler does "
            "that", 4, lambda c, p: _chi_of_possible(c, p) <= CRITICAL[_degrees(p)],
        ),
        Misconception(
            "rare-tokens-skipped", "You skip tokens that were expected less than 5 times: a token that comes far too "
            "often goes unseen then", 1, lambda c, p: _chi_of_possible(c, p, 5.0) <= CRITICAL[_degrees(p)],
        ),
    ),
    _consistency_cases,
)  # fmt: skip
