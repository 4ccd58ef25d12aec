"""How long both caches may be after a round."""

from collections.abc import Sequence
from typing import Any

import torch

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception


def lengths_after(cached: int, k: int, accepted: int) -> tuple[int, int]:
    """(target's, draft's) cached tokens that are still true. Both had `cached` = all of the text but its last token."""
    kept = cached + 1 + accepted
    return kept, min(kept, cached + k)


def _rewind_cases(seed: int) -> list[ExerciseCase]:
    chance = torch.Generator().manual_seed(seed)
    cases: list[Sequence[int]] = [(9, 4, 0), (9, 4, 2), (9, 4, 4), (0, 1, 1), (0, 1, 0)]
    for k in (2, 6, 8):
        cached, accepted = torch.randint(0, 40, (1,), generator=chance), torch.randint(0, k + 1, (1,), generator=chance)
        cases.append((int(cached), k, int(accepted)))
    return [ExerciseCase(tuple(c), "cached = {}, k = {}, accepted = {}".format(*c)) for c in cases]


def _pair(target: Any) -> tuple[Any, Any]:
    return target, target


REWIND = Exercise(
    "rewind",
    "Rewind after a rejection",
    "lengths_after",
    15,
    3,
    (
        "The target was fed the text's last token and all k drafted ones. True are the last token, and accepted ones.",
        "The token that the round adds was only drawn: no cache has read it.",
        "The draft was fed the text's last token and the drafted ones but for the last, which it drew and never read.",
    ),
    lengths_after,
    (
        Misconception(
            "last-drafted-read", "The draft's cache cannot hold its own last token: that was drawn, but never read", 3,
            lambda n, k, a: _pair(n + 1 + a),
        ),
        Misconception(
            "last-token-forgotten", "You forget the text's last token, which was fed first in this round", 1,
            lambda n, k, a: _pair(n + a),
        ),
        Misconception(
            "new-token-cached", "You count the token that the round adds; it was drawn, and nobody read it yet", 2,
            lambda n, k, a: (n + 2 + a, min(n + 2 + a, n + k)),
        ),
        Misconception(
            "nothing-taken-back", "You keep rejected tokens: their keys and values must not be seen again", 1,
            lambda n, k, a: (n + 1 + k, n + k),
        ),
        Misconception(
            "everything-taken-back", "You take back accepted tokens, too: they are right, and were read", 1,
            lambda n, k, a: _pair(n),
        ),
        Misconception(
            "exchanged", "You exchanged the two: the target's length comes first", 3,
            lambda n, k, a: (min(n + 1 + a, n + k), n + 1 + a),
        ),
        Misconception(
            "target-one-short", "The target read all k drafted tokens, the last one too: only the draft did not", 3,
            lambda n, k, a: _pair(min(n + 1 + a, n + k)),
        ),
        Misconception(
            "draft-one-short", "The draft read all drafted tokens but the LAST of all k, accepted ones included", 3,
            lambda n, k, a: (n + 1 + a, n + a),
        ),
    ),
    _rewind_cases,
    tolerance=1e-9,
)  # fmt: skip
