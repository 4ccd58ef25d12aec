"""Exercise on the lengths of both caches after a round."""

from collections.abc import Sequence
from typing import Any

import torch

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception


def lengths_after(cached: int, k: int, accepted: int) -> tuple[int, int]:
    """Cached tokens (of the target, of the draft) that are still part of the text. Before the round, both caches held
    `cached` tokens: the whole text except its last token."""
    valid = cached + 1 + accepted
    return valid, min(valid, cached + k)


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
        "Which tokens did each model read in this round? Which of these tokens are still part of the text?",
        "The target read the text's last token and all k drafted tokens. The draft read the text's last "
        "token and all drafted tokens but the last one, which it sampled and never read. No model has "
        "read the token that the round adds.",
        "Target: cached + 1 + accepted. Draft: the same number, but at most cached + k.",
    ),
    lengths_after,
    (
        Misconception(
            "last-drafted-read",
            "You count the last drafted token in the draft's cache. The draft sampled it, but never read it",
            2,
            lambda n, k, a: _pair(n + 1 + a),
        ),
        Misconception(
            "last-token-forgotten",
            "You leave out the text's last token. Both models read it first in this round",
            2,
            lambda n, k, a: _pair(n + a),
        ),
        Misconception(
            "new-token-cached",
            "You count the token that the round adds. It was sampled just now, and no model has read it",
            2,
            lambda n, k, a: (n + 2 + a, min(n + 2 + a, n + k)),
        ),
        Misconception(
            "nothing-removed",
            "You keep rejected tokens in the cache. They are not part of the text, so remove them",
            1,
            lambda n, k, a: (n + 1 + k, n + k),
        ),
        Misconception(
            "accepted-removed",
            "You remove accepted tokens from the cache. They are part of the text, and both models read them",
            1,
            lambda n, k, a: _pair(n),
        ),
        Misconception(
            "swapped",
            "You swapped the two lengths. The target's comes first",
            3,
            lambda n, k, a: (min(n + 1 + a, n + k), n + 1 + a),
        ),
        Misconception(
            "target-one-short",
            "Your target's cache is one token short if all k are accepted. The target has read the last drafted token",
            2,
            lambda n, k, a: _pair(min(n + 1 + a, n + k)),
        ),
        Misconception(
            "draft-one-short",
            "Your draft's cache is one token short. The draft has not read the last of the k drafted tokens, "
            "but it has read all the others",
            2,
            lambda n, k, a: (n + 1 + a, n + a),
        ),
    ),
    _rewind_cases,
    tolerance=1e-9,
)
