"""vLLM's `speculative_config`: made from our settings, or translated from legacy arguments.

Names and values as in vLLM 0.32, read in its source on 2026-11-23. vLLM itself is not imported.
"""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec_ref.errors import SpecdecError, is_whole

Schedule = Sequence[Sequence[int]]

RENAMED = {
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "speculative_draft_tensor_parallel_size": "draft_tensor_parallel_size",
    "speculative_max_model_len": "max_model_len",
    "speculative_model_quantization": "quantization",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
}
"""Arguments of old → keys of `speculative_config`. The flat ones went in March 2025 (vLLM #15466)."""
REMOVED = {*RENAMED, "speculative_disable_by_batch_size", "use_v2_block_manager"} - {"num_speculative_tokens"}


@dataclass(frozen=True)
class Translation:
    """engine: arguments that stay the engine's own. speculative_config: None where nothing was to be speculated.
    fates: what became of every argument of old, in words."""

    engine: dict[str, Any]
    speculative_config: dict[str, Any] | None
    fates: dict[str, str] = field(default_factory=dict)


def speculative_config(
    draft: str | None = None,
    k: int = 4,
    *,
    exact_q: bool = True,
    schedule: Schedule | None = None,
    lookup: tuple[int, int] = (1, 3),
    draft_tensor_parallel: int | None = None,
) -> dict[str, Any]:
    """The dict that vLLM takes. draft: a model's folder or hub name; None: prompt lookup ('ngram').

    k: tokens drafted per round, ≥ 1. exact_q: draft by drawing, and judge by the distribution drawn from, as this
    package does ('probabilistic'); else vLLM's default, the likeliest token as a point mass, which accepts less at
    temperatures above 0 and is exact as well. schedule: rows [first batch size, last, k], as
    `SpeculationPolicy.to_vllm` gives them. lookup: shortest and longest n-gram. draft_tensor_parallel: as for the
    target, which is what vLLM takes without it; its classes accept 1 as well, with which its model runner V1 does not
    start beside a target on several. Raises SpecdecError.
    """
    if not is_whole(k) or k < 1:
        raise SpecdecError(f"k={k!r:.80}: takes a whole number ≥ 1; to switch speculation off, leave the config out")
    config: dict[str, Any] = {"method": "draft_model" if draft else "ngram", "num_speculative_tokens": int(k)}
    if draft:
        config["model"] = draft
        config["draft_sample_method"] = "probabilistic" if exact_q else "greedy"
        if draft_tensor_parallel is not None:
            config["draft_tensor_parallel_size"] = _positive("draft_tensor_parallel", draft_tensor_parallel)
    else:
        shortest, longest = lookup
        if not (is_whole(shortest) and is_whole(longest) and 1 <= shortest <= longest):
            raise SpecdecError(f"lookup={lookup!r:.80}: takes (shortest, longest) n-gram, 1 ≤ shortest ≤ longest")
        config |= {"prompt_lookup_min": int(shortest), "prompt_lookup_max": int(longest)}
    if schedule is not None:
        config["num_speculative_tokens_per_batch_size"] = checked_schedule(schedule, int(k))
    return config


def checked_schedule(schedule: Schedule, k: int) -> list[list[int]]:
    """The rows, if they begin at 1, leave no gap and no overlap, and no k is above `k`. Raises SpecdecError."""
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
    """For few requests at once: speculate up to `max_batch` of them, beyond that not.

    A common advice lowers k to 2 here. But at small batches the arithmetic idles, and k should be what the formula
    gives for the measured α, c and v: see `best_k`.
    """
    if not is_whole(max_batch) or max_batch < 1:
        raise SpecdecError(f"max_batch={max_batch!r:.80}: takes a whole number ≥ 1")
    schedule = [[1, max_batch, k], [max_batch + 1, 1_000_000, 0]]
    return speculative_config(draft, k, exact_q=exact_q, schedule=schedule)


def for_throughput(draft: str | None, schedule: Schedule, *, exact_q: bool = True) -> dict[str, Any]:
    """For many requests at once: by a measured schedule only, whose k falls as the batch grows.

    A common advice raises k to 8 here and leaves it on for every batch. But a large batch uses the arithmetic already,
    so that each further scored token costs its full share: k has to fall, to 0 where it does not pay. Raises
    SpecdecError for a schedule whose k rises.
    """
    rows = [list(row) for row in schedule]
    tokens = [row[2] for row in rows if len(row) == 3]
    if any(later > earlier for earlier, later in itertools.pairwise(tokens)):
        raise SpecdecError(f"schedule: k rises with the batch, {tokens}; a larger batch leaves less to spare")
    return speculative_config(draft, max(1, *tokens, 1), exact_q=exact_q, schedule=rows)


def translate(old: Mapping[str, Any]) -> Translation:
    """Legacy arguments as vLLM takes them today, with what became of each.

    None-valued arguments are left out, which `LLM(**vars(config))` does not do. Raises SpecdecError where a value
    cannot be meant.
    """
    engine, config, fates = _sorted_arguments(old)
    if not config:
        return Translation(engine, None, fates)
    if "model" not in config and "prompt_lookup_max" not in config:
        for name in old:
            if name in RENAMED or name == "speculative_disable_by_batch_size":
                fates[name] = "left out: no draft model is named, so nothing is speculated"
        return Translation(engine, None, fates)
    if config.get("model") == "[ngram]":  # how prompt lookup was asked for
        del config["model"]
        fates["speculative_model"] = "speculative_config['method'] = 'ngram'"
    draft_gpus, target_gpus = config.get("draft_tensor_parallel_size"), engine.get("tensor_parallel_size", 1)
    if draft_gpus is not None and draft_gpus != target_gpus:
        del config["draft_tensor_parallel_size"]
        fates["speculative_draft_tensor_parallel_size"] = (
            f"left out: a draft model is shared out over as many GPUs as its target, here {target_gpus}"
        )
    k = _positive("num_speculative_tokens", config.setdefault("num_speculative_tokens", 4))
    config["method"] = "draft_model" if "model" in config else "ngram"
    if "num_speculative_tokens_per_batch_size" in config:
        limit = config["num_speculative_tokens_per_batch_size"]
        rows = [[1, limit - 1, k]] if limit > 1 else []
        config["num_speculative_tokens_per_batch_size"] = [*rows, [limit, 1_000_000, 0]]
    return Translation(engine, config, fates)


def _sorted_arguments(old: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Arguments that stay the engine's, those of `speculative_config` by their new names, and what became of each."""
    engine: dict[str, Any] = {}
    config: dict[str, Any] = {}
    fates: dict[str, str] = {}
    for name, value in old.items():
        if value is None:
            fates[name] = "left out: it was None"
        elif name in RENAMED:
            config[RENAMED[name]] = value
            fates[name] = f"speculative_config[{RENAMED[name]!r}]"
        elif name == "use_v2_block_manager":
            fates[name] = "gone: there is only one block manager now"
        elif name == "speculative_disable_by_batch_size":
            config["num_speculative_tokens_per_batch_size"] = _positive(name, value)
            fates[name] = "speculative_config['num_speculative_tokens_per_batch_size'] (without effect since 0.10)"
            if value == 1:
                fates[name] = "refused even then, which wanted 2 or more; taken at its word: k = 0 for every batch"
        else:
            engine[name] = value
            fates[name] = "stays an argument of the engine"
    return engine, config, fates


def serve_command(
    target: str,
    config: Mapping[str, Any] | None,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    nodes: int = 1,
    max_num_seqs: int | None = None,
    port: int = 8000,
) -> str:
    """The full `vllm serve` command line, quoted for a shell. Raises SpecdecError.

    tensor_parallel: GPUs that share each layer; keep it inside one node, where links are fast, and as small as weights,
    caches and draft allow. pipeline_parallel: groups of layers, across nodes. nodes: more than one runs on Ray, which
    has to be started on each of them (`ray start --head`, `ray start --address=…`).
    """
    if not isinstance(target, str) or not target.strip():
        raise SpecdecError(f"target={target!r:.80}: takes a folder or a hub name")
    sizes = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel, "nodes": nodes, "port": port}
    for name, value in sizes.items():
        _positive(name, value)
    if nodes > 1 and (tensor_parallel * pipeline_parallel) % nodes:
        raise SpecdecError(
            f"nodes={nodes}: {tensor_parallel} × {pipeline_parallel} GPUs cannot be shared out evenly; takes a divisor"
        )
    words = ["vllm", "serve", target, "--port", str(port)]
    if tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(tensor_parallel)]
    if pipeline_parallel > 1:
        words += ["--pipeline-parallel-size", str(pipeline_parallel)]
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
