"""The workload of a measurement: prompts of an exact length, and the conditions that make measurements comparable."""

import hashlib
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import Pair, held_out_prompts


def prompts_of_length(
    tokenizer: Any, tokens: int, count: int, texts: Sequence[str] | None = None
) -> list[tuple[int, ...]]:
    """Make `count` different prompts of exactly `tokens` tokens, by joining the texts in many orders.

    A long prompt shares most of its text with other prompts, in another order. No prompt contains a text twice.

    Args:
        tokenizer: the tokenizer of the models.
        tokens: length of each prompt.
        count: number of prompts.
        texts: default the held-out prompts.

    Raises:
        SpecdecError: the texts are not enough for that many prompts.
    """
    for name, value in (("tokens", tokens), ("count", count)):
        if not is_whole(value) or value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
    texts = list(held_out_prompts().values()) if texts is None else list(texts)
    pieces = [list(tokenizer(text + "\n\n\n")["input_ids"]) for text in texts]
    prompts: dict[tuple[int, ...], None] = {}
    for i in itertools.count():
        shaved, last = divmod(i, max(1, len(pieces)))  # after every text was the last once, tokens are cut from the end
        order = pieces[last + 1 :] + pieces[: last + 1]
        ids = [token for piece in order for token in piece]
        ids = ids[: len(ids) - 5 * shaved]
        if len(ids) < tokens:
            raise SpecdecError(f"texts: hold {len(ids)} tokens, too few for {count} prompts of {tokens}")
        prompts[tuple(ids[-tokens:])] = None
        if len(prompts) == count:
            break
    return list(prompts)


def machine_facts(pair: Pair) -> dict[str, Any]:
    """The conditions of a measurement besides the models: processor, threads, number type, versions."""
    import transformers

    from specdec_ref import __version__

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": pair.device.type,
        "threads": torch.get_num_threads(),
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "specdec_ref": __version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if pair.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(pair.device)
    return facts


def machine_line(facts: dict[str, Any]) -> str:
    """`machine_facts` in one line."""
    where = facts.get("gpu") or f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads"
    software = f"torch {facts['torch']}, transformers {facts['transformers']}, Python {facts['python']}"
    return f"{where} · {facts['dtype']} · {software} · {facts['system']}"


def model_facts(model: torch.nn.Module) -> dict[str, Any]:
    """Number of parameters, and a fingerprint of their values, since a model that is trained again is another model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        first = weight.detach().reshape(-1, weight.shape[-1])[:1] if weight.ndim else weight.detach()[None]
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(first.double().cpu().numpy().tobytes())
    return {"parameters": sum(p.numel() for p in model.parameters()), "fingerprint": digest.hexdigest()[:12]}


def peak_memory(device: torch.device) -> int | None:
    """The peak of this process's tensors on CUDA since the last reset, in bytes; None on a CPU.

    A CPU has no such counter, and the process holds all models of the suite anyway. There `memory_profile` computes the
    memory of a pair.
    """
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def _processor() -> str:
    """The processor's name, which Linux gives only in a file."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
