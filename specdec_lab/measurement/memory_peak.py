"""The measured memory of a pair: weights and KV cache counted tensor by tensor, the peak from the system or the GPU.

On a CPU the system knows only the memory of whole processes. So a separate process loads the pair and decodes. What it
held before is subtracted. Pages that were never written do not count.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from specdec_lab.measurement.memory_profile import MemoryProfile, memory_profile, skeleton, tensors_of
from specdec_lab.measurement.methods import can_draft, draft_module, own_models
from specdec_lab.measurement.tables_shown import html_table, mib, rich_table
from specdec_ref.control import FixedK
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import Drafter, PromptLookupDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair, load_pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import GREEDY, SeededRandomness

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

LOOK_EVERY = 0.002
"""Seconds between two readings of a process's memory: shorter than a step."""


@dataclass(frozen=True)
class MeasuredMemory:
    """Measured bytes.

    Attributes:
        weights, kv: all tensors of target and draft.
        peak: the largest total at any time.
    """

    weights: int
    kv: int
    peak: int


@dataclass(frozen=True)
class MemoryComparison:
    """Predicted and measured memory, with and without speculation."""

    predicted: MemoryProfile
    measured: MeasuredMemory
    measured_alone: MeasuredMemory

    @property
    def errors(self) -> dict[str, float]:
        """Predicted / measured − 1, for weights and KV cache, with and without ('alone')."""
        return {name: p / m - 1 for name, p, m in self._counted() if not name.startswith("peak")}

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        return {
            "predicted": self.predicted.to_dict(),
            "measured": asdict(self.measured),
            "measured_alone": asdict(self.measured_alone),
        }

    def _counted(self) -> list[tuple[str, int, int]]:
        p, m, a = self.predicted, self.measured, self.measured_alone
        return [
            ("weights, without", p.alone.weights, a.weights),
            ("KV cache, without", p.alone.kv, a.kv),
            ("peak, without", p.total_alone, a.peak),
            ("weights, with", p.weights, m.weights),
            ("KV cache, with", p.kv, m.kv),
            ("peak, with", p.total, m.peak),
        ]

    def _cells(self) -> tuple[str, list[str], list[list[str]]]:
        p = self.predicted
        title = f"memory for {p.batch} × {p.context} tokens, k = {p.k}, {p.dtype}"
        rows = [[name, mib(guess), mib(real), f"{guess / real - 1:+.1%}"] for name, guess, real in self._counted()]
        return title, ["", "predicted", "measured", "off by"], rows

    def __rich__(self) -> "Table":
        return rich_table(*self._cells())

    def _repr_html_(self) -> str:
        return html_table(*self._cells())


def measure_memory(pair: Pair, *, batch: int = 1, context: int = 256, k: int = 4) -> MemoryComparison:
    """Measure the memory for decoding `batch` sequences up to `context` tokens, without and with k drafted tokens.

    On a CPU this starts a process that loads the pair again, which takes a few seconds. Raises SpecdecError.
    """
    predicted = memory_profile(pair, batch=batch, context=context, k=k)
    if pair.device.type not in ("cpu", "cuda"):
        raise SpecdecError(f"pair: is on {pair.device.type}; memory is measured on cpu and cuda")
    work = [(batch, context, 0), (batch, context, k)]
    peaks = _peaks_of_a_process(pair, work) if pair.device.type == "cpu" else [_peak_on_cuda(pair, *w) for w in work]
    held = []
    for (_, _, n), peak in zip(work, peaks, strict=True):
        models = [m for m in (pair.target, pair.draft if n else None) if m is not None]
        weights = sum(t.nbytes for model in models for t in tensors_of(model))
        held.append(MeasuredMemory(weights, decode_to_the_end(pair, batch, context, n), peak))
    return MemoryComparison(predicted, measured=held[1], measured_alone=held[0])


@dataclass(frozen=True)
class AddedMemory:
    """What a drafting method needs in addition to the target alone, in bytes.

    Attributes:
        weights: the draft model or the head; 0 for drafters that only need the text.
        cache: slots of the draft's cache and of the target's additional tokens, and features that the target stores.
    """

    weights: int
    cache: int


def added_memory(pair: Pair, *, batch: int = 1, context: int = 256, k: int = 4) -> AddedMemory:
    """Count the tensors of a pair's drafting method after decoding `batch` sequences up to `context` tokens."""
    module = draft_module(pair)
    weights = sum(t.nbytes for t in tensors_of(module)) if module is not None else 0
    held = [decode_to_the_end(pair, batch, context, n) for n in (0, k)]
    return AddedMemory(weights, held[1] - held[0])


def _peak_on_cuda(pair: Pair, batch: int, context: int, k: int) -> int:
    """The peak on CUDA, without memory of other objects. For decoding without drafts, also without the draft."""
    needed = [m for m in (pair.target, pair.draft if k else None) if m is not None]
    torch.cuda.synchronize(pair.device)
    allocated_before = torch.cuda.memory_allocated(pair.device) - sum(t.nbytes for m in needed for t in tensors_of(m))
    torch.cuda.reset_peak_memory_stats(pair.device)
    decode_to_the_end(pair, batch, context, k)
    return int(torch.cuda.max_memory_allocated(pair.device)) - allocated_before


def decode_to_the_end(pair: Pair, batch: int, context: int, k: int) -> int:
    """Read prompts and decode the last few of `context` tokens. Returns the bytes of the KV caches."""
    target = TransformersModel(pair.target)
    drafter: Drafter | None = None
    if k:
        target, drafter = own_models(pair if can_draft(pair) else replace(pair, drafter=PromptLookupDrafter()))
    new = min(context - 1, 2 * (k + 1))
    rows = [Row((0,) * (context - new), new) for _ in range(batch)]
    held = 0
    for _ in speculate(target, drafter, rows, FixedK(k), GREEDY, SeededRandomness(0, pair.device), frozenset()):
        caches = [target.cache, getattr(getattr(drafter, "model", drafter), "cache", None)]  # of a draft or a head
        held = max(held, sum(cache.bytes for cache in caches if cache is not None))
    return held


def _peaks_of_a_process(pair: Pair, work: list[tuple[int, int, int]]) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "target": _folder_of(pair.target, pair, Path(folder) / "target"),
            "draft": _folder_of(pair.draft, pair, Path(folder) / "draft") if pair.draft is not None else None,
            "dtype": str(pair.target.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "work": work,
        }
        command = [sys.executable, "-m", __name__, json.dumps(task)]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise SpecdecError(f"pair: its memory cannot be measured in a process of its own: {last}")
    peaks: list[int] = json.loads(process.stdout.splitlines()[-1])
    return peaks


def _folder_of(model: "PreTrainedModel", pair: Pair, spare: Path) -> str:
    """A folder from which another process can load this model: its own folder, else a copy in `spare`."""
    if model.name_or_path and Path(model.name_or_path, "config.json").is_file():
        return str(Path(model.name_or_path).resolve())
    model.save_pretrained(spare)
    pair.tokenizer.save_pretrained(spare)
    return str(spare)


def _work(task: dict[str, Any]) -> list[int]:
    """Run in the separate process. Returns the peak of each work in bytes, minus the memory before loading."""
    torch.set_num_threads(task["threads"])
    names, dtype = [task["target"], task["draft"]], task["dtype"]
    for name in filter(None, names):
        skeleton(name, getattr(torch, dtype))  # imports the modules that the models need
    process = psutil.Process()
    before = process.memory_info().rss
    peaks = []
    for batch, context, k in task["work"]:
        pair = load_pair(names[0], names[1] if k else None, device="cpu", dtype=dtype)
        for model in (pair.target, pair.draft):
            for weight in tensors_of(model) if model is not None else ():
                weight.data = weight.data.clone()  # else the whole file stays mapped, in addition to the weights
        peak = _Peak(process)
        with peak.watching():
            decode_to_the_end(pair, batch, context, k)
        peaks.append(peak.bytes - before)
        del pair, model, weight
    return peaks


class _Peak:
    """The largest resident memory of a process while `watching` is open, in bytes."""

    def __init__(self, process: psutil.Process):
        self.bytes = 0
        self._process = process
        self._end = threading.Event()

    def _look(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._end.wait(LOOK_EVERY):
            self._look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        self._look()
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
            self._look()


if __name__ == "__main__":
    print(json.dumps(_work(json.loads(sys.argv[1]))))
