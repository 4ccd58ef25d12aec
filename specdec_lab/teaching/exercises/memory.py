"""Exercise on computing memory with and without a draft."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception

ModelSizes = Mapping[str, int]


def memory_bytes(target: ModelSizes, draft: ModelSizes | None, batch: int, tokens: int, k: int) -> int:
    """Bytes of weights and KV caches of both models in 16 bits. With a draft, both caches have k more slots."""
    total = 0
    for model in (target, draft):
        if model is not None:
            slots = tokens + (k if draft else 0)
            cache = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * batch * slots
            total += 2 * (model["parameters"] + cache)
    return total


def _model_bytes(
    m: ModelSizes, batch: int, slots: int, both: int = 2, heads: str = "kv_heads", size: int = 2, weights: bool = True
) -> int:
    cache = both * m["layers"] * m[heads] * m["head_dim"] * batch * slots * size
    return cache + (size * m["parameters"] if weights else 0)


SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"parameters": 1_000, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8},
    "7B": {"parameters": 6_738_415_616, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128},
    "70B": {"parameters": 68_976_648_192, "layers": 80, "heads": 64, "kv_heads": 8, "head_dim": 128},
}


def _memory_cases(seed: int) -> list[ExerciseCase]:
    n = np.random.default_rng(seed)
    tiny, small, large = SHAPES["tiny"], SHAPES["7B"], SHAPES["70B"]
    batch, tokens, k = int(n.integers(2, 64)), int(n.integers(100, 4000)), int(n.integers(1, 9))
    one_layer = {**tiny, "layers": 1}
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((tiny, None, 1, 10, 4), "a tiny model alone, 10 tokens"),
        ((large, None, 8, 4096, 4), "Llama-2-70B alone, 8 × 4,096 tokens"),
        ((tiny, one_layer, 1, 10, 4), "a tiny model with a draft of one layer, 10 tokens, k = 4"),
        ((tiny, one_layer, 3, 10, 4), "the same in a batch of 3"),
        ((large, small, 8, 4096, 4), "Llama-2-70B with a 7B draft, 8 × 4,096 tokens, k = 4"),
        ((large, small, batch, tokens, k), f"70B and 7B, {batch} × {tokens} tokens, k = {k}"),
    ]
    return [ExerciseCase(arguments, words, spelled=False) for arguments, words in cases]


def _counted(use_draft: bool = True, slots: bool = True, rows: bool = True, **how: Any) -> Callable[..., int]:
    def count(target: ModelSizes, draft: ModelSizes | None, batch: int, tokens: int, k: int) -> int:
        n = tokens + (k if slots and draft else 0)
        models = [target, draft] if use_draft else [target]
        return sum(_model_bytes(m, batch if rows else 1, n, **how) for m in models if m is not None)

    return count


def _with_unequal_caches(in_target: int = 1, in_draft: int = 1, draft_cache: bool = True) -> Callable[..., int]:
    """Mistakes that treat the two models differently: k slots in only one cache, or no cache for the draft."""

    def count(target: ModelSizes, draft: ModelSizes | None, batch: int, tokens: int, k: int) -> int:
        if draft is None:
            return _model_bytes(target, batch, tokens)
        theirs = _model_bytes(draft, batch, tokens + in_draft * k) if draft_cache else 2 * draft["parameters"]
        return _model_bytes(target, batch, tokens + in_target * k) + theirs

    return count


MEMORY = Exercise(
    "memory",
    "Memory with and without a draft",
    "memory_bytes",
    20,
    2,
    (
        "Which numbers are stored once per model, and which once per sequence and token? Which of the two"
        " head counts does a KV cache use?",
        "A model stores its parameters once. For each sequence, its cache stores keys and values for each"
        " layer, KV head and slot. With a draft, both models have caches, and both caches have k more "
        "slots.",
        "Bytes of one model: 2 · (parameters + 2 · layers · kv_heads · head_dim · batch · slots), where "
        "slots is tokens, or tokens + k with a draft.",
    ),
    memory_bytes,
    (
        Misconception("keys-only", "You count keys OR values. The cache stores both", 2, _counted(both=1)),
        Misconception(
            "all-heads",
            "You count all attention heads. The cache has only kv_heads of them (grouped-query attention)",
            1,
            _counted(heads="heads"),
        ),
        Misconception(
            "draft-forgotten",
            "You leave out the draft. It has weights and a cache of its own",
            2,
            _counted(use_draft=False),
        ),
        Misconception(
            "slots-forgotten",
            "You leave out the k additional slots that a round needs in both caches",
            2,
            _counted(slots=False),
        ),
        Misconception(
            "draft-cache-forgotten",
            "You count the draft's weights, but not its cache",
            2,
            _with_unequal_caches(draft_cache=False),
        ),
        Misconception(
            "slots-in-target-only",
            "You add the k slots only to the target's cache. The draft's cache needs them too",
            2,
            _with_unequal_caches(in_draft=0),
        ),
        Misconception(
            "slots-in-draft-only",
            "You add the k slots only to the draft's cache. The target's cache needs them too",
            2,
            _with_unequal_caches(in_target=0),
        ),
        Misconception(
            "batch-forgotten", "You count one cache. Each sequence of the batch has its own", 2, _counted(rows=False)
        ),
        Misconception(
            "needs-a-draft",
            "Your function fails without a draft. If draft is None, count the target alone",
            3,
            lambda target, draft, batch, tokens, k: sum(_model_bytes(m, batch, tokens + k) for m in (target, draft)),
        ),
        Misconception("in-32-bits", "You count 4 bytes per number. A number in 16 bits has 2", 3, _counted(size=4)),
        Misconception(
            "cache-only", "You leave out the weights. Each model stores its parameters once", 2, _counted(weights=False)
        ),
    ),
    _memory_cases,
    tolerance=1e-9,
)
