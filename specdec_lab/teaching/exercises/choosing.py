"""Exercise on choosing a draft and k by their speedup."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Function, Misconception, called, shown
from specdec_lab.teaching.exercises.outcomes import BadRequest

MAX_K = 8


def _gain(alpha: float, k: int, c: float, slope: float) -> float:
    return _emitted(alpha, k) / (k * c + 1 + slope * k)


def _emitted(alpha: float, k: int) -> float:
    return k + 1.0 if alpha == 1 else float((1 - alpha ** (k + 1)) / (1 - alpha))


def best_draft(drafts: Mapping[str, tuple[float, float]], slope: float) -> tuple[str, int]:
    """(name, k) with the largest speedup for k = 1 … 8, or ('none', 0). drafts: name → (α, c)."""
    options = {}
    for name, (alpha, c) in drafts.items():
        for k in range(1, 9):
            tokens = k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
            options[name, k] = tokens / (k * c + 1 + slope * k)
    winner = max(options, key=lambda option: options[option])
    return winner if options[winner] > 1 else ("none", 0)


def _draft_cases(seed: int) -> list[ExerciseCase]:
    ours = {"small": (0.62, 0.09), "medium": (0.74, 0.13), "large": (0.78, 0.2)}
    poor = {"tiny": (0.2, 0.3), "slow": (0.5, 0.9)}
    cases = [
        ExerciseCase((ours, s), f"the three drafts of the course, slope {s}", spelled=False)
        for s in (0.0, 0.1, 0.5, 1.0)
    ]
    cases.append(ExerciseCase((poor, 0.1), "two drafts that give no speedup", spelled=False))
    cases.append(ExerciseCase(({"eager": (0.95, 0.02)}, 0.0), "one draft, α = 0.95, c = 0.02, slope 0"))
    chance = np.random.default_rng(seed)
    for _ in range(4):
        some = {name: (float(chance.uniform(0.3, 0.95)), float(chance.uniform(0.02, 0.5))) for name in ("x", "y", "z")}
        slope = float(chance.uniform(0, 0.4))
        cases.append(ExerciseCase((some, slope), f"three drafts, slope {slope:.2f}", spelled=False))
    two = {"perfect": (1.0, 0.3), "small": (0.6, 0.05)}
    cases.append(ExerciseCase((two, 0.05), "two drafts, one of them with α = 1", spelled=False))
    cases.append(ExerciseCase(({"perfect": (1.0, 0.1)}, 0.1), "one draft, α = 1, c = 0.1, slope 0.1"))
    return cases


def _chosen(function: Function, case: ExerciseCase) -> Any:
    """The choice of an answer. Raises BadRequest for a k that is not allowed."""
    value = called(function, *case.arguments)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return value  # the comparison with the expected value reports its type
    name, k = value
    none = isinstance(name, str) and name == "none"
    if not _whole(k) or (k < 1 and not none):
        raise BadRequest(f"k is {shown(k)}; expected a whole number from 1 to 8, or ('none', 0)")
    if none and k != 0:
        raise BadRequest(f"k is {shown(k)} although no draft is chosen; expected ('none', 0)")
    if k > MAX_K:
        raise BadRequest(f"k is more than {MAX_K}; expected 1 to {MAX_K}")
    return value


def _whole(k: Any) -> bool:
    try:
        return bool(int(k) == k)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _as_good(value: Any, right: Any, case: ExerciseCase) -> bool:
    """Whether the speedup of a choice is within 0.1 % of the best."""
    drafts, slope = case.arguments
    name, k = value
    if right[0] == "none" or name not in drafts:
        return bool(name == right[0])
    gain, best = (_gain(*(drafts[n][0], j, drafts[n][1]), slope) for n, j in ((name, int(k)), right))
    return gain > 0.999 * best


def _wrongly(score: Any, off: bool = True, max_k: int = MAX_K) -> Any:
    def choose(drafts: Mapping[str, tuple[float, float]], slope: float) -> tuple[str, int]:
        options = {(name, k): score(a, k, c, slope) for name, (a, c) in drafts.items() for k in range(1, max_k + 1)}
        winner = max(options, key=lambda option: options[option])
        return winner if not off or options[winner] > 1 else ("none", 0)

    return choose


BEST_DRAFT = Exercise(
    "best_draft",
    "Compare drafts",
    "best_draft",
    20,
    3,
    (
        "What does a draft with a large α usually cost? Which single number takes α, c, k and the slope into account?",
        "Compute the speedup of every draft with every k from 1 to 8. If the largest is not above 1, "
        'return ("none", 0).',
        "What does the closed form of 1 + α + … + αᵏ give at α = 1? All k tokens are accepted there, and "
        "k + 1 are emitted.",
        "(1 + α + … + αᵏ) / (k·c + 1 + slope·k).",
    ),
    best_draft,
    (
        Misconception(
            "always-one",
            "You choose a draft even if every draft makes decoding slower",
            2,
            _wrongly(_gain, off=False),
        ),
        Misconception(
            "best-alpha",
            "You take the draft with the largest α and ignore the cost of its steps",
            1,
            lambda d, s: best_draft({max(d, key=lambda n: d[n][0]): d[max(d, key=lambda n: d[n][0])]}, s),
        ),
        Misconception(
            "cheapest",
            "You take the cheapest draft and ignore how many of its tokens are accepted",
            1,
            lambda d, s: best_draft({min(d, key=lambda n: d[n][1]): d[min(d, key=lambda n: d[n][1])]}, s),
        ),
        Misconception(
            "scoring-is-free",
            "You leave out the slope. Each additional token that is scored has a cost",
            4,
            _wrongly(lambda a, k, c, s: _gain(a, k, c, 0.0)),
        ),
        Misconception(
            "drafting-is-free",
            "You leave out the cost of drafting: k steps of c each",
            4,
            _wrongly(lambda a, k, c, s: _gain(a, k, 0.0, s)),
        ),
        Misconception(
            "one-draft-step",
            "You count one draft step. Drafting k tokens takes k steps, one after the other",
            4,
            _wrongly(lambda a, k, c, s: _gain(a, k, c / k, s)),
        ),
        Misconception(
            "one-draft-step-more",
            "You count k + 1 draft steps. Drafting k tokens takes k steps of c each",
            4,
            _wrongly(lambda a, k, c, s: _gain(a, k, c, s) * (k * c + 1 + s * k) / ((k + 1) * c + 1 + s * k)),
        ),
        Misconception(
            "bonus-left-out",
            "You count accepted tokens only. Every round emits one more token",
            4,
            _wrongly(lambda a, k, c, s: _gain(a, k, c, s) - 1 / (k * c + 1 + s * k)),
        ),
        Misconception(
            "zero-by-zero",
            "At α = 1, you divide 0 by 0. All k tokens are accepted there, so the round emits k + 1",
            3,
            _wrongly(lambda a, k, c, s: (1 - a ** (k + 1)) / (1 - a) / (k * c + 1 + s * k)),
        ),
        Misconception(
            "most-tokens",
            "You maximize the tokens per round. That always gives k = 8, whatever it costs",
            1,
            _wrongly(lambda a, k, c, s: _emitted(a, k)),
        ),
        Misconception(
            "stops-at-seven",
            "You try k only up to 7. range(1, 8) ends before 8, and 8 is allowed",
            2,
            _wrongly(_gain, max_k=7),
        ),
        Misconception(
            "goes-beyond-eight",
            "You try k beyond 8. At most 8 tokens may be drafted",
            2,
            _wrongly(_gain, max_k=20),
        ),
        Misconception(
            "always-four",
            "You always take k = 4. The best k depends on α and on the costs",
            2,
            _wrongly(lambda a, k, c, s: _gain(a, 4, c, s) - 1e-9 * (k != 4)),
        ),
    ),
    _draft_cases,
    agrees=_as_good,
    measure=_chosen,
)
