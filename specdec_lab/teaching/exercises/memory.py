"""8.1.4: count memory, with a draft and without."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception

ModelSizes = Mapping[str, int]


def memory_bytes(target: ModelSizes, draft: ModelSizes | None, batch: int, tokens: int, k: int) -> int:
    """Weights and KV caches of both models in 16 bits; the caches hold k tokens more while drafting."""
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


def _unlike(in_target: int = 1, in_draft: int = 1, draft_cache: bool = True) -> Callable[..., int]:
    """The two counted unlike each other: k slots in one of them only, or the draft's weights alone."""

    def count(target: ModelSizes, draft: ModelSizes | None, batch: int, tokens: int, k: int) -> int:
        if draft is None:
            return _model_bytes(target, batch, tokens)
        theirs = _model_bytes(draft, batch, tokens + in_draft * k) if draft_cache else 2 * draft["parameters"]
        return _model_bytes(target, batch, tokens + in_target * k) + theirs

    return count


MEMORY = Exercise(
    "memory",
    "8.1.4 Memory with and without",
    "memory_bytes",
    20,
    2,
    (
        "Weights: 2 bytes for each parameter. KV cache: keys AND values, for each layer, KV head and token.",
        "Grouped-query attention: the cache has kv_heads, not heads.",
        "Speculation adds the draft's weights, the draft's cache, and k more slots in both caches.",
    ),
    memory_bytes,
    (
        Misconception("keys-only", "You count keys OR values; the cache holds both", 1, _counted(both=1)),
        Misconception(
            "all-heads", "You count all attention heads; the cache has kv_heads", 2, _counted(heads="heads")
        ),
        Misconception(
            "draft-forgotten", "You forget the draft: its weights and its own cache", 3, _counted(use_draft=False)
        ),
        Misconception(
            "slots-forgotten", "You forget the k slots more that a round needs in both caches", 3, _counted(slots=False)
        ),
        Misconception(
            "draft-cache-forgotten", "You count the draft's weights, but not its cache", 3, _unlike(draft_cache=False)
        ),
        Misconception(
            "slots-in-target-only", "You add the k slots to the target's cache only: the draft's holds them, too", 3,
            _unlike(in_draft=0),
        ),
        Misconception(
            "slots-in-draft-only", "You add the k slots to the draft's cache only: the target reads them, too", 3,
            _unlike(in_target=0),
        ),
        Misconception("batch-forgotten", "Each sequence of the batch has a cache of its own", 1, _counted(rows=False)),
        Misconception(
            "needs-a-draft", "draft is None where nothing is speculated: then the target alone counts", 3,
            lambda target, draft, batch, tokens, k: sum(_model_bytes(m, batch, tokens + k) for m in (target, draft)),
        ),
        Misconception(
            "in-32-bits", "You count 4 bytes for a number; in 16 bits it is 2", 1, _counted(size=4)
        ),
        Misconception(
            "cache-only", "You forget the weights, which are the larger part", 1, _counted(weights=False)
        ),
    ),
    _memory_cases,
    tolerance=1e-9,
)  # fmt: skip
