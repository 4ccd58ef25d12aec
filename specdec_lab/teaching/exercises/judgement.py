"""Exercises on finding bugs: by reading the code, and by testing samples."""

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
"""Lines of `fixing.broken_round`."""
BUGS = (
    "samples from the target after a rejection",
    "accepts tokens after a rejection",
    "reports a different q than it sampled from",
    "accepts at u = p/q",
    "keeps rejected tokens in the cache",
)


def findings() -> dict[str, str]:
    """Which of BUGS each exhibit has."""
    return {"A": BUGS[2], "B": BUGS[0], "C": BUGS[1]}


def _first_wrong(function: Function, case: ExerciseCase) -> Any:
    """The first exhibit with a wrong bug, and that bug; the whole answer if all are right."""
    answer = called(function)
    if not isinstance(answer, dict):
        return answer
    for letter in answer:
        if letter not in EXHIBITS:
            raise BadRequest(f"findings has the key {shown(letter)}; expected 'A', 'B' and 'C'")
    for letter in EXHIBITS:
        bug = answer.get(letter)
        if bug is None:
            raise BadRequest(f"findings has no key '{letter}'; expected 'A', 'B' and 'C'")
        if isinstance(bug, (int, float)):
            raise BadRequest(f"{letter} is {shown(bug)}; expected the text itself, for example BUGS[0], not its number")
        if not isinstance(bug, str) or bug not in BUGS:
            raise BadRequest(f"{letter} is {shown(bug)}; expected one of the texts in BUGS, word for word")
    return next(({letter: answer[letter]} for letter, bug in findings().items() if answer[letter] != bug), answer)


def _with(letter: str, bug: int) -> Any:
    return lambda: findings() | {letter: BUGS[bug]}


FIND_BUG = Exercise(
    "find_bug",
    "Find the bug",
    "findings",
    15,
    3,
    (
        "For each line, ask: was the token sampled from the q that the rule uses? Where does a "
        "replacement come from? Which tokens may be accepted after a rejection?",
        "A token that argmax chooses is not sampled from `row`. What is its q? And with keep = [True, "
        "False, True], how many tokens may be accepted?",
        "A correct round reports the q that it sampled from, accepts the tokens before the first False, "
        "and samples the replacement from max(0, p − q), normalized.",
    ),
    findings,
    (
        Misconception(
            "a-taken-for-b",
            "Exhibit A is in the draft loop, where nothing is rejected yet. Compare the sampled token with its q",
            2,
            _with("A", 0),
        ),
        Misconception(
            "a-counts-nothing",
            "Exhibit A drafts a token and counts nothing. Compare the token with the q that is reported for it",
            2,
            _with("A", 1),
        ),
        Misconception(
            "a-blames-u",
            "Exhibit A drafts a token and accepts nothing. Compare the token with the q that is reported for it",
            2,
            _with("A", 3),
        ),
        Misconception(
            "a-looks-harmless",
            "Exhibit A does not touch a cache. A greedy draft is allowed, but its q is a point mass, not `row`",
            2,
            _with("A", 4),
        ),
        Misconception(
            "b-counts-nothing",
            "Exhibit B samples a token and counts nothing. From which distribution should it sample?",
            3,
            _with("B", 1),
        ),
        Misconception(
            "b-taken-for-a",
            "Exhibit B reports no q: it samples after a rejection. From which distribution should it sample?",
            3,
            _with("B", 2),
        ),
        Misconception(
            "b-blames-u",
            "Exhibit B accepts nothing: it samples after a rejection. From which distribution should it sample?",
            3,
            _with("B", 3),
        ),
        Misconception(
            "b-is-a-cache-bug",
            "Exhibit B does not touch a cache: it samples after a rejection. From which distribution should it sample?",
            3,
            _with("B", 4),
        ),
        Misconception(
            "c-samples-nothing",
            "Exhibit C samples nothing: it counts accepted tokens. Which tokens may it count?",
            2,
            _with("C", 0),
        ),
        Misconception(
            "c-reports-nothing",
            "Exhibit C does not use q: it counts accepted tokens. Which tokens may it count?",
            2,
            _with("C", 2),
        ),
        Misconception(
            "c-is-about-u",
            "Exhibit C comes after the comparison with u: it counts accepted tokens. Which tokens may it count?",
            2,
            _with("C", 3),
        ),
        Misconception(
            "c-is-a-cache-bug",
            "Exhibit C does not touch a cache: it counts accepted tokens. Which tokens may it count?",
            2,
            _with("C", 4),
        ),
    ),
    lambda seed: [ExerciseCase((), "exhibits A, B and C")],
    measure=_first_wrong,
    secret=True,
)


# An equivalence test

CRITICAL = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 6: 22.458, 7: 24.322, 8: 26.124, 9: 27.877}
"""Degrees of freedom → the χ² that a correct sampler exceeds once in 1,000 times."""


def is_consistent(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    """Whether counts pass a χ² test against probabilities, at a false-alarm rate of 1 in 1,000."""
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
    """Counts with a clear answer: χ² far below the limit for a correct sampler, and far above it for a wrong one."""
    draw, right = np.random.default_rng(seed).multinomial, really is None
    while True:
        counts = draw(samples, probabilities if really is None else really).tolist()
        share = _chi(counts, probabilities) / CRITICAL[len(counts) - 1]
        if share < 0.5 if right else share > 3:
            return ExerciseCase(
                (counts, list(probabilities)), f"{words}counts {counts}, probabilities {list(probabilities)}"
            )


def first_token(p: Sequence[float], q: Sequence[float], **mistakes: Any) -> list[float]:
    """The exact distribution of the first token that a step emits, with one of the mistakes of the museum."""
    rows = torch.tensor([p, p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    outcomes = distribution(lambda chance: played_step(*rows, [chance.draw(q)], chance, **mistakes)[:1])
    return [outcomes.get((token,), 0.0) for token in range(len(p))]


def _consistency_cases(seed: int) -> list[ExerciseCase]:
    even, skewed = [0.25] * 4, [0.6, 0.3, 0.09, 0.01]
    fixed = [
        ExerciseCase(([30, 20], [0.5, 0.5]), "counts [30, 20], probabilities [0.5, 0.5]"),
        ExerciseCase(([50_600, 49_400], [0.5, 0.5]), "counts [50600, 49400], probabilities [0.5, 0.5]"),
        ExerciseCase(([605, 295, 60, 40], skewed), "a rare token, four times too often", spelled=False),
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
    right = _sampled(seed, 20_000, skewed, words="a correct step: ")
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
"""Counts and probabilities with one token of p = 0. In the first two it was not sampled, in the others it was."""
EXHIBITED: dict[str, dict[str, Any]] = {
    "exhibit: samples from the target after a rejection": {"again": True},
    "exhibit: accepts a token only if p ≥ q": {"odds": lambda ratio: 1.0 if ratio >= 1 else 0.0},
    "exhibit: accepts every token": {"odds": lambda ratio: 1.0},
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
    """χ²; infinite if a token of p = 0 was sampled."""
    if _is_impossible(counts, probabilities):
        return float("inf")
    return _chi_of_possible(counts, probabilities)


def _chi_of_possible(counts: Sequence[int], probabilities: Sequence[float], minimum: float = 0.0) -> float:
    """χ² of the tokens with p > 0 and an expected count of `least` or more."""
    counted, p = _possible(counts, probabilities)
    expected = p * sum(counts)
    cells = (counted - expected) ** 2 / expected
    return float(cells[expected >= minimum].sum())


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
        "30 heads in 50 throws of a coin can be luck, but 50,600 in 100,000 cannot. How must your limit"
        " depend on the number of samples?",
        "Compare each count with the expected count. Add up the squared differences, each divided by its "
        "expected count. CRITICAL has the limit for each number of degrees of freedom.",
        "A token of p = 0 is not a possible outcome. If it was sampled, the sampler is wrong; if not, "
        "leave the token out. The degrees of freedom are the number of possible outcomes minus 1.",
        "χ² = Σ (count − n·p)² / (n·p) over all tokens with p > 0, where n is the number of samples. "
        "Return whether χ² ≤ CRITICAL[number of these tokens − 1].",
    ),
    is_consistent,
    (
        Misconception(
            "fixed-limit",
            "You compare the largest difference with a fixed limit. The limit must depend on the number of samples",
            1,
            lambda c, p: bool(abs(_shares(c, p)).max() < 0.05),
        ),
        Misconception(
            "tight-fixed-limit",
            "You compare with a fixed limit of 1 %, which rejects correct samplers if there are few samples",
            1,
            lambda c, p: bool(abs(_shares(c, p)).max() < 0.01),
        ),
        Misconception(
            "never-rejects",
            "You accept every sampler. A test that cannot fail shows nothing",
            2,
            lambda c, p: True,
        ),
        Misconception("always-rejects", "You reject correct samplers too", 2, lambda c, p: False),
        Misconception(
            "reversed",
            "You return True where χ² is too large",
            4,
            lambda c, p: not is_consistent(c, p),
        ),
        Misconception(
            "level-of-5-percent",
            "You reject a correct sampler once in 20 times. CRITICAL has the limits for once in 1,000",
            2,
            lambda c, p: _chi(c, p) <= {1: 3.841, 3: 7.815}[_degrees(p)],
        ),
        Misconception(
            "level-of-1-percent",
            "You reject a correct sampler once in 100 times. CRITICAL has the limits for once in 1,000",
            2,
            lambda c, p: _chi(c, p) <= {1: 6.635, 3: 11.345}[_degrees(p)],
        ),
        Misconception(
            "divided-by-counts",
            "You divide by the observed count, which can be 0. Divide by the expected count",
            4,
            lambda c, p: bool(_chi_by_counts(c, p) <= CRITICAL[len(c) - 1]),
        ),
        Misconception(
            "each-outcome-alone",
            "You test each outcome separately. All of them together can differ too much although no single one does",
            2,
            _within_three_sigma,
        ),
        Misconception(
            "degrees-of-freedom",
            "You use n degrees of freedom for n outcomes. There are n − 1, because the last share follows "
            "from the others",
            3,
            lambda c, p: _chi(c, p) <= CRITICAL[_degrees(p) + 1],
        ),
        Misconception(
            "one-degree-too-few",
            "You use n − 2 degrees of freedom for n outcomes. There are n − 1",
            3,
            lambda c, p: _chi(c, p) <= CRITICAL[max(1, _degrees(p) - 1)],
        ),
        Misconception(
            "one-limit-for-all",
            "You use the same limit for any number of outcomes. CRITICAL has one for each",
            2,
            lambda c, p: _chi(c, p) <= CRITICAL[1],
        ),
        Misconception(
            "zero-by-zero",
            "Where p = 0 and the count is 0, you divide 0 by 0. The result is NaN, and no comparison with NaN is true",
            3,
            lambda c, p: _chi_with_nan(c, p) <= CRITICAL[len(c) - 1],
        ),
        Misconception(
            "division-by-zero",
            "You divide by the expected count, which is 0 where p = 0. Leave that token out",
            3,
            lambda c, p: _chi_that_raises(c, p) <= CRITICAL[len(c) - 1],
        ),
        Misconception(
            "impossible-tokens-skipped",
            "You leave out tokens of p = 0 even if they were sampled. A correct sampler never samples them",
            3,
            lambda c, p: _chi_of_possible(c, p) <= CRITICAL[_degrees(p)],
        ),
        Misconception(
            "rare-tokens-skipped",
            "You leave out tokens with an expected count below 5. Then you miss a rare token that comes far too often",
            2,
            lambda c, p: _chi_of_possible(c, p, 5.0) <= CRITICAL[_degrees(p)],
        ),
    ),
    _consistency_cases,
)
