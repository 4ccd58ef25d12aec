"""vLLM's `speculative_config`: made from our settings, or translated from legacy arguments.

Names and values as in vLLM 0.33. vLLM itself is not imported. What a setting needs to take effect is in
`specdec_lab.serving.vllm_methods`.
"""

import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specdec_lab.serving.schedule import Schedule
from specdec_lab.serving.vllm_methods import METHODS, REMOVED_METHODS, RULES
from specdec_ref.errors import SpecdecError, is_number, is_whole

RENAMED = {
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "speculative_draft_tensor_parallel_size": "draft_tensor_parallel_size",
    "speculative_max_model_len": "max_model_len",
    "speculative_model_quantization": "quantization",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
}
"""Legacy arguments → keys of `speculative_config`. vLLM removed the flat ones in March 2025 (#15466)."""
REMOVED = {*RENAMED, "speculative_disable_by_batch_size", "use_v2_block_manager"} - {"num_speculative_tokens"}


@dataclass(frozen=True)
class Translation:
    """Legacy arguments, sorted into today's.

    Attributes:
        engine: arguments that stay the engine's own.
        speculative_config: vLLM's dict; None without speculation.
        notes: what became of every legacy argument, in words.
    """

    engine: dict[str, Any]
    speculative_config: dict[str, Any] | None
    notes: dict[str, str] = field(default_factory=dict)


def speculative_config(
    draft: str | None = None,
    k: int = 4,
    *,
    method: str | None = None,
    exact_q: bool = True,
    schedule: Schedule | None = None,
    lookup: tuple[int, int] = (1, 3),
    draft_tensor_parallel: int | None = None,
    parallel_drafting: bool = False,
    heterogeneous_vocab: bool = False,
    rule: str = "standard",
    synthetic_length: float | None = None,
) -> dict[str, Any]:
    """The dict that vLLM takes. `warnings_for` names what in it does not take effect.

    Args:
        draft: folder or hub name of a draft model or head; None for methods without one.
        k: tokens drafted per round, ≥ 1; for `suffix` the most.
        method: one of `METHODS`; default 'draft_model' with a draft and 'ngram' without.
        exact_q: sample from the draft and accept with the q that was sampled from ('probabilistic'), as this package
            does. False is vLLM's default: draft the most likely token with a one-hot q, which is exact as well and
            accepts less at temperatures above 0.
        schedule: rows [first batch size, last batch size, k], as `SpeculationPolicy.to_vllm` gives them.
        lookup: shortest and longest n-gram of `ngram`.
        draft_tensor_parallel: 1 or the target's size, which is the default. Model runner V1 does not start with 1
            when the target uses several GPUs.
        parallel_drafting: all k tokens in one pass, by a draft that was trained for it.
        heterogeneous_vocab: the draft may have another vocabulary; such drafts are always greedy.
        rule: one of `RULES`, vLLM's `rejection_sample_method`.
        synthetic_length: tokens per round, 1 to k + 1, for the rule 'synthetic'.

    Raises:
        SpecdecError: a value that vLLM would reject, or settings that exclude each other.
    """
    if not is_whole(k) or k < 1:
        raise SpecdecError(f"k={k!r:.80}: takes a whole number ≥ 1; to switch speculation off, leave the config out")
    method = _checked_method(method, draft)
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": int(k)}
    if draft is not None:
        config["model"] = draft
    if METHODS[method].has_q:
        config["draft_sample_method"] = "probabilistic" if exact_q and not heterogeneous_vocab else "greedy"
    if method == "ngram":
        config |= _checked_lookup(lookup)
    if draft_tensor_parallel is not None:
        config["draft_tensor_parallel_size"] = _positive("draft_tensor_parallel", draft_tensor_parallel)
    if parallel_drafting:
        config |= _parallel(method)
    if heterogeneous_vocab:
        if method != "draft_model":
            raise SpecdecError(f"heterogeneous_vocab: takes method 'draft_model', not {method!r:.40}")
        config["use_heterogeneous_vocab"] = True
    config |= _checked_rule(rule, int(k), synthetic_length)
    if schedule is not None:
        config["num_speculative_tokens_per_batch_size"] = checked_schedule(schedule, int(k))
    return config


def _checked_method(method: str | None, draft: str | None) -> str:
    """The method by name, if it fits the draft."""
    if method is None:
        return "draft_model" if draft else "ngram"
    if method in REMOVED_METHODS:
        raise SpecdecError(f"method={method!r}: left vLLM in 0.33; takes one of {', '.join(METHODS)}")
    if method not in METHODS:
        raise SpecdecError(f"method={method!r:.80}: takes one of {', '.join(METHODS)}")
    if METHODS[method].needs_model and not draft:
        raise SpecdecError(f"method={method!r}: needs a draft, as a folder or hub name")
    if draft and method in ("ngram", "suffix"):
        raise SpecdecError(f"method={method!r}: takes no draft model, got {draft!r:.80}")
    return method


def _checked_lookup(lookup: tuple[int, int]) -> dict[str, int]:
    shortest, longest = lookup
    if not (is_whole(shortest) and is_whole(longest) and 1 <= shortest <= longest):
        raise SpecdecError(f"lookup={lookup!r:.80}: takes (shortest, longest) n-gram, 1 ≤ shortest ≤ longest")
    return {"prompt_lookup_min": int(shortest), "prompt_lookup_max": int(longest)}


def _parallel(method: str) -> dict[str, bool]:
    """The key that switches parallel drafting on; none where the method always drafts so."""
    kind = METHODS[method].parallel
    if kind == "no":
        able = ", ".join(name for name, drafting_method in METHODS.items() if drafting_method.parallel != "no")
        raise SpecdecError(f"parallel_drafting: takes method {able}, not {method!r}")
    return {"parallel_drafting": True} if kind == "optional" else {}


def _checked_rule(rule: str, k: int, synthetic_length: float | None) -> dict[str, Any]:
    """The keys of an acceptance rule; none for vLLM's default."""
    if rule not in RULES:
        raise SpecdecError(f"rule={rule!r:.80}: takes one of {', '.join(RULES)}")
    if rule != "synthetic":
        if synthetic_length is not None:
            raise SpecdecError("synthetic_length: takes the rule 'synthetic'")
        return {} if rule == "standard" else {"rejection_sample_method": rule}
    if not is_number(synthetic_length) or not 1 <= synthetic_length <= k + 1:
        raise SpecdecError(f"synthetic_length={synthetic_length!r:.40}: takes tokens per round, 1 to k + 1 = {k + 1}")
    return {"rejection_sample_method": rule, "synthetic_acceptance_length": float(synthetic_length)}


def checked_schedule(schedule: Schedule, k: int) -> list[list[int]]:
    """The rows as lists of integers. Raises SpecdecError.

    Stricter than vLLM, which fills a gap with the k of the row before it and clips a k above `k` without a word: rows
    begin at 1, leave no gap and no overlap, and no k is above `k`.
    """
    rows = [[int(x) for x in row] for row in schedule if len(row) == 3 and all(is_whole(x) for x in row)]
    expected = 1
    for first, last, tokens in rows:
        if first != expected or last < first or not 0 <= tokens <= k:
            raise SpecdecError(
                f"schedule: row [{first}, {last}, {tokens}] does not fit; takes rows [first, last, k] from batch 1 on, "
                f"without a gap, 0 ≤ k ≤ {k}"
            )
        expected = last + 1
    if not rows or len(rows) != len(schedule):
        raise SpecdecError(f"schedule={schedule!r:.80}: takes rows [first batch size, last, k], at least one")
    return rows


def for_latency(draft: str | None, k: int = 4, max_batch: int = 4, *, exact_q: bool = True) -> dict[str, Any]:
    """A configuration for few requests at once: speculate up to `max_batch` of them, and not above.

    Common advice lowers k to 2 for latency. But at small batches the arithmetic units are idle, so use the k that the
    formula gives for the measured α, c and v (`best_k`).
    """
    return speculative_config(draft, k, exact_q=exact_q, schedule=up_to(max_batch, k))


def up_to(max_batch: int, k: int) -> list[list[int]]:
    """A schedule that drafts k tokens for up to `max_batch` requests, and none above. Raises SpecdecError."""
    last = _positive("max_batch", max_batch)
    return [[1, last, k], [last + 1, 1_000_000, 0]]


def for_throughput(draft: str | None, schedule: Schedule, *, exact_q: bool = True) -> dict[str, Any]:
    """A configuration for many requests at once, by a measured schedule whose k falls as the batch grows.

    Common advice raises k to 8 for throughput, at every batch size. But a large batch keeps the arithmetic units busy,
    so each further scored token costs time. Lower k, down to 0 where speculation does not pay. Raises SpecdecError
    for a schedule whose k rises.
    """
    rows = [list(row) for row in schedule]
    tokens = [row[2] for row in rows if len(row) == 3]
    if any(later > earlier for earlier, later in itertools.pairwise(tokens)):
        raise SpecdecError(f"schedule: k rises with the batch: {tokens}; a larger batch leaves less capacity unused")
    return speculative_config(draft, max(1, *tokens, 1), exact_q=exact_q, schedule=rows)


def translate(old: Mapping[str, Any]) -> Translation:
    """Legacy arguments as vLLM takes them today, with a note on each.

    Arguments with the value None are left out, which `LLM(**vars(config))` does not do. Raises SpecdecError for a
    value that vLLM never accepted.
    """
    engine, config, notes = _sorted_arguments(old)
    if not config:
        return Translation(engine, None, notes)
    if "model" not in config and "prompt_lookup_max" not in config:
        for name in old:
            if name in RENAMED or name == "speculative_disable_by_batch_size":
                notes[name] = "left out: no draft model is named, so there is no speculation"
        return Translation(engine, None, notes)
    if config.get("model") == "[ngram]":  # how prompt lookup was asked for
        del config["model"]
        notes["speculative_model"] = "speculative_config['method'] = 'ngram'"
    draft_gpus, target_gpus = config.get("draft_tensor_parallel_size"), engine.get("tensor_parallel_size", 1)
    if draft_gpus is not None and draft_gpus != target_gpus:
        del config["draft_tensor_parallel_size"]
        notes["speculative_draft_tensor_parallel_size"] = (
            f"left out: a draft model uses as many GPUs as its target, here {target_gpus}"
        )
    k = _positive("num_speculative_tokens", config.setdefault("num_speculative_tokens", 4))
    config["method"] = "draft_model" if "model" in config else "ngram"
    if "num_speculative_tokens_per_batch_size" in config:
        limit = config["num_speculative_tokens_per_batch_size"]
        rows = [[1, limit - 1, k]] if limit > 1 else []
        config["num_speculative_tokens_per_batch_size"] = [*rows, [limit, 1_000_000, 0]]
    return Translation(engine, config, notes)


def _sorted_arguments(old: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The engine's own arguments, those of `speculative_config` by their new names, and a note on each."""
    engine: dict[str, Any] = {}
    config: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, value in old.items():
        if value is None:
            notes[name] = "left out: it was None"
        elif name in RENAMED:
            config[RENAMED[name]] = value
            notes[name] = f"speculative_config[{RENAMED[name]!r}]"
        elif name == "use_v2_block_manager":
            notes[name] = "gone: there is only one block manager now"
        elif name == "speculative_disable_by_batch_size":
            config["num_speculative_tokens_per_batch_size"] = _positive(name, value)
            notes[name] = "speculative_config['num_speculative_tokens_per_batch_size'] (without effect since 0.10)"
            if value == 1:
                notes[name] = "vLLM never accepted a value below 2; a value of 1 would mean k = 0 for every batch size"
        else:
            engine[name] = value
            notes[name] = "stays an argument of the engine"
    return engine, config, notes


def serve_command(
    target: str,
    config: Mapping[str, Any] | None,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    nodes: int = 1,
    max_num_seqs: int | None = None,
    port: int = 8000,
    data_parallel: int = 1,
) -> str:
    """The full `vllm serve` command line, quoted for a shell.

    Args:
        target: folder or hub name.
        config: the `speculative_config`; None for none.
        tensor_parallel: GPUs that share each layer. Keep it inside one node, where links are fast, and as small as
            weights, caches and draft allow.
        pipeline_parallel: groups of layers, across nodes.
        nodes: more than one runs on Ray, which has to be started on each of them (`ray start --head`,
            `ray start --address=…`).
        max_num_seqs: the most requests at once.
        port: of the server.
        data_parallel: copies of the whole model. With more than one, vLLM drops a schedule by batch size.

    Raises:
        SpecdecError: a size below 1, or GPUs that cannot be divided evenly among the nodes.
    """
    if not isinstance(target, str) or not target.strip():
        raise SpecdecError(f"target={target!r:.80}: takes a folder or a hub name")
    sizes = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "nodes": nodes,
        "port": port,
        "data_parallel": data_parallel,
    }
    for name, value in sizes.items():
        _positive(name, value)
    if nodes > 1 and (tensor_parallel * pipeline_parallel) % nodes:
        raise SpecdecError(
            f"nodes={nodes}: {tensor_parallel} × {pipeline_parallel} GPUs cannot be divided evenly; takes a divisor"
        )
    words = ["vllm", "serve", target, "--port", str(port)]
    if tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(tensor_parallel)]
    if pipeline_parallel > 1:
        words += ["--pipeline-parallel-size", str(pipeline_parallel)]
    if data_parallel > 1:
        words += ["--data-parallel-size", str(data_parallel)]
    if nodes > 1:
        words += ["--distributed-executor-backend", "ray"]
    if max_num_seqs is not None:
        words += ["--max-num-seqs", str(_positive("max_num_seqs", max_num_seqs))]
    if config is not None:
        words += ["--speculative-config", json.dumps(dict(config))]
    return " ".join(shlex.quote(word) for word in words)


def _positive(name: str, value: Any) -> int:
    if not is_whole(value) or value < 1:
        raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
    return int(value)
