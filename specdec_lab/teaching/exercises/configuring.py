"""8.1.1 in vLLM: its `speculative_config`, judged by what vLLM makes of it. vLLM itself is not needed."""

import math
from collections.abc import Callable
from typing import Any

from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception, shape_of
from specdec_lab.teaching.exercises.outcomes import BadRequest

TAKEN = frozenset(
    (
        "method", "model", "num_speculative_tokens", "draft_tensor_parallel_size", "quantization", "max_model_len",
        "revision", "code_revision", "enforce_eager", "prompt_lookup_max", "prompt_lookup_min", "attention_backend",
        "disable_padded_drafter_batch", "num_speculative_tokens_per_batch_size", "rejection_sample_method",
        "draft_sample_method", "kv_cache_dtype",
    )
)  # fmt: skip
"""Keys of `speculative_config` that go with a draft model or prompt lookup, as vLLM 0.32 has them."""


def vllm_config(draft: str, k: int) -> dict[str, Any]:
    """What vLLM takes as its `speculative_config`."""
    return {"method": "draft_model", "model": draft, "num_speculative_tokens": k}


def _asked(function: Callable[..., Any], case: ExerciseCase) -> Any:
    """The dictionary as vLLM reads it: a model without a method is a draft model. Raises BadRequest for one that is
    empty, and for a key that vLLM refuses, by name."""
    config: Any = function(*case.arguments)
    if config == {}:
        raise BadRequest("the dictionary is empty: with no key in it vLLM does not speculate")
    if isinstance(config, dict):
        for key in config:
            if key not in TAKEN:
                raise BadRequest(f"vLLM refuses {_brief(key)}: speculative_config has no such key")
            if not _is_json(config[key]):
                kind = shape_of(config[key])
                raise BadRequest(
                    f"{key!r} is {kind}, which JSON cannot hold: vLLM takes texts, numbers, lists and dicts"
                )
        if config.get("model") is not None and config.get("method") is None:
            return {**config, "method": "draft_model"}
    return config  # of another type: that is told by whoever compares


def _is_json(value: Any) -> bool:
    """Whether this can be handed to vLLM, on its command line too."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def _brief(key: Any) -> str:
    return repr(key)[:60] if isinstance(key, str) else f"a key that is a {type(key).__name__}"


def _speculates(config: Any, right: Any, case: ExerciseCase) -> bool:
    """Whether it says what is wanted; more may be said."""
    return all(config.get(key) == right[key] for key in right)


def _cases(seed: int) -> list[ExerciseCase]:
    given = [("drafts/medium", 4), ("drafts/large", 2), ("/models/llama-68m", 8)]
    given += [(f"drafts/number-{seed}", 3 + seed % 4)]
    return [ExerciseCase(arguments, "draft = {!r}, k = {}".format(*arguments)) for arguments in given]


def _written(**keys: Any) -> Callable[..., Any]:
    """A dictionary with these keys; 'DRAFT' and 'K' stand for what was given."""

    def config(draft: str, k: int) -> dict[str, Any]:
        stands = {"DRAFT": draft, "K": k, "K+1": k + 1}
        return {key: stands.get(value, value) for key, value in keys.items()}

    return config


VLLM = Exercise(
    "vllm_config",
    "8.1.1 The same in vLLM",
    "vllm_config",
    5,
    1,
    (
        "Three keys: 'method', which is 'draft_model' here, 'model' and 'num_speculative_tokens'.",
        "The two arguments are what was given: `draft` is the model, `k` the number of tokens.",
        "It is the dictionary itself: neither inside another one nor as text.",
    ),
    vllm_config,
    (
        Misconception(
            "of-old", "The argument speculative_model was removed in 2025. Today's key is 'model'",
            1, _written(speculative_model="DRAFT", num_speculative_tokens="K"),
        ),
        Misconception(
            "draft-under-a-key-of-its-own", "The draft goes under 'model': the whole dictionary is about the draft", 1,
            _written(method="draft_model", draft_model="DRAFT", num_speculative_tokens="K"),
        ),
        Misconception(
            "k-under-its-own-name", "k is called 'num_speculative_tokens' there", 1,
            _written(method="draft_model", model="DRAFT", k="K"),
        ),
        Misconception(
            "wrapped", "You give the argument's name with it; what is wanted is the dictionary that goes under it", 3,
            lambda draft, k: {"speculative_config": vllm_config(draft, k)},
        ),
        Misconception(
            "k-fixed", "You always draft 4 tokens; k says how many", 2,
            _written(method="draft_model", model="DRAFT", num_speculative_tokens=4),
        ),
        Misconception(
            "k-and-the-bonus", "You count the bonus token; it is not drafted, and vLLM adds it itself", 2,
            _written(method="draft_model", model="DRAFT", num_speculative_tokens="K+1"),
        ),
        Misconception(
            "k-left-out", "You do not say how many tokens are drafted, and vLLM asks for it", 1,
            _written(method="draft_model", model="DRAFT"),
        ),
        Misconception(
            "prompt-lookup", "'ngram' is prompt lookup: it copies from the text, and your draft is never loaded", 1,
            _written(method="ngram", num_speculative_tokens="K", prompt_lookup_max=3),
        ),
        Misconception(
            "eagle", "'eagle' is for heads that were trained on the target's hidden states; a draft is a model",
            1, _written(method="eagle", model="DRAFT", num_speculative_tokens="K"),
        ),
    ),
    _cases,
    agrees=_speculates,
    measure=_asked,
)  # fmt: skip
