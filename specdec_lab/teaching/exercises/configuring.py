"""Exercise on vLLM's `speculative_config`, checked as vLLM reads it. vLLM itself is not needed."""

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
    """The value of vLLM's argument `speculative_config`."""
    return {"method": "draft_model", "model": draft, "num_speculative_tokens": k}


def _asked(function: Callable[..., Any], case: ExerciseCase) -> Any:
    """The dictionary as vLLM reads it: a model without a method is a draft model. Raises BadRequest for an empty
    dictionary, for a key that vLLM does not know, and for a value that JSON cannot represent."""
    config: Any = function(*case.arguments)
    if config == {}:
        raise BadRequest("the dictionary is empty, so vLLM would not speculate")
    if isinstance(config, dict):
        for key in config:
            if key not in TAKEN:
                raise BadRequest(f"vLLM rejects {_brief(key)}: speculative_config has no such key")
            if not _is_json(config[key]):
                kind = shape_of(config[key])
                raise BadRequest(
                    f"{key!r} is {kind}, which JSON cannot represent; expected a text, number, list or dict"
                )
        if config.get("model") is not None and config.get("method") is None:
            return {**config, "method": "draft_model"}
    return config  # the comparison with the expected value reports any other type


def _is_json(value: Any) -> bool:
    """Whether JSON can represent this value, as vLLM's command line requires."""
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
    """Whether the dictionary has the expected keys and values. It may have more."""
    return all(config.get(key) == right[key] for key in right)


def _cases(seed: int) -> list[ExerciseCase]:
    given = [("drafts/medium", 4), ("drafts/large", 2), ("/models/llama-68m", 8)]
    given += [(f"drafts/number-{seed}", 3 + seed % 4)]
    return [ExerciseCase(arguments, "draft = {!r}, k = {}".format(*arguments)) for arguments in given]


def _written(**keys: Any) -> Callable[..., Any]:
    """A dictionary with these keys. 'DRAFT', 'K' and 'K+1' stand for the arguments."""

    def config(draft: str, k: int) -> dict[str, Any]:
        stands = {"DRAFT": draft, "K": k, "K+1": k + 1}
        return {key: stands.get(value, value) for key, value in keys.items()}

    return config


VLLM = Exercise(
    "vllm_config",
    "Configure vLLM",
    "vllm_config",
    5,
    1,
    (
        "Which three facts does vLLM need in order to draft? `specdec vllm-config --help` and lesson 09 show the keys.",
        "The keys are 'method', 'model' and 'num_speculative_tokens'. Return the dictionary itself, "
        "neither inside another dictionary nor as text.",
        "The method of a draft model is 'draft_model'. The other two values are the arguments `draft` and `k`.",
    ),
    vllm_config,
    (
        Misconception(
            "removed-argument",
            "The argument speculative_model was removed in 2025. The key is now 'model'",
            2,
            _written(speculative_model="DRAFT", num_speculative_tokens="K"),
        ),
        Misconception(
            "key-draft_model",
            "The key of the draft is 'model', because the whole dictionary is about the draft",
            2,
            _written(method="draft_model", draft_model="DRAFT", num_speculative_tokens="K"),
        ),
        Misconception(
            "key-k",
            "The key for k is 'num_speculative_tokens'",
            2,
            _written(method="draft_model", model="DRAFT", k="K"),
        ),
        Misconception(
            "wrapped",
            "You put the dictionary into another one, under the name of the argument. Return only the inner one",
            2,
            lambda draft, k: {"speculative_config": vllm_config(draft, k)},
        ),
        Misconception(
            "k-fixed",
            "You always draft 4 tokens. Use k",
            3,
            _written(method="draft_model", model="DRAFT", num_speculative_tokens=4),
        ),
        Misconception(
            "k-and-the-bonus",
            "You count the bonus token. It is not drafted, and vLLM adds it itself",
            3,
            _written(method="draft_model", model="DRAFT", num_speculative_tokens="K+1"),
        ),
        Misconception(
            "k-left-out",
            "You leave out the number of drafted tokens, which vLLM requires",
            2,
            _written(method="draft_model", model="DRAFT"),
        ),
        Misconception(
            "prompt-lookup",
            "'ngram' is prompt lookup: it copies from the text, and vLLM never loads your draft",
            3,
            _written(method="ngram", num_speculative_tokens="K", prompt_lookup_max=3),
        ),
        Misconception(
            "eagle",
            "'eagle' is for heads that were trained on the target's hidden states. Your draft is a separate model",
            3,
            _written(method="eagle", model="DRAFT", num_speculative_tokens="K"),
        ),
    ),
    _cases,
    agrees=_speculates,
    measure=_asked,
)
