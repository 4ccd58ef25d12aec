"""The measured limits of a machine, memory bandwidth and arithmetic, and where a step is relative to them.

A step of a model reads every weight once, and does two operations per weight and scored token. Operations per byte are
its arithmetic intensity. Below the ridge (arithmetic / bandwidth) memory is the limit, and more tokens in the same step
cost nothing. Above the ridge, arithmetic is the limit. Williams, Waterman, Patterson 2009.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from specdec_lab import plotting
from specdec_lab.measurement.tables_shown import html_table, rich_table
from specdec_ref.errors import SpecdecError, is_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Limits:
    """The limits of a device. bandwidth: bytes/s read from memory. arithmetic: operations/s of a large product."""

    device: str
    dtype: str
    bandwidth: float
    arithmetic: float

    @property
    def ridge(self) -> float:
        """Operations per byte above which arithmetic, not memory, sets the pace."""
        return self.arithmetic / self.bandwidth

    def floor(self, step: "Step") -> float:
        """The shortest possible time of a step on this device, in seconds."""
        return max(step.bytes / self.bandwidth, step.operations / self.arithmetic)

    def _cells(self) -> list[list[str]]:
        return [
            ["memory, read", f"{self.bandwidth / 1e9:,.1f} GB/s"],
            ["arithmetic, large product", f"{self.arithmetic / 1e9:,.0f} Gop/s"],
            ["ridge", f"{self.ridge:,.1f} operations per byte"],
        ]

    def __rich__(self) -> "Table":
        return rich_table(f"{self.device}, {self.dtype}", ["", "measured"], self._cells())

    def _repr_html_(self) -> str:
        return html_table(f"{self.device}, {self.dtype}", ["", "measured"], self._cells())


@dataclass(frozen=True)
class Step:
    """The demands of a step over `tokens` tokens. bytes: weights read. operations: additions and multiplications."""

    tokens: int
    bytes: float
    operations: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes


def step_of(model: nn.Module, tokens: int) -> Step:
    """The step of a causal LM over `tokens` tokens of one sequence, without the attention to earlier tokens.

    Every matrix is read once for any number of tokens. Of an embedding only the needed rows are read. Raises
    SpecdecError for fewer than one token.
    """
    if not is_whole(tokens) or tokens < 1:
        raise SpecdecError(f"tokens={tokens!r:.80}: takes a whole number ≥ 1")
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    if not matrices:
        raise SpecdecError(f"model={type(model).__name__}: has no linear layer to count")
    weights = sum(w.numel() for w in matrices)
    return Step(tokens, float(sum(w.nbytes for w in matrices)), 2.0 * weights * tokens)


def measure_limits(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, mebibytes: int = 256, repeats: int = 7
) -> Limits:
    """Measure the limits of a device, by the sum of a large tensor and a large matrix product.

    Both are medians of `repeats` runs after a warm-up.

    mebibytes: size of the tensor, which must not fit in a cache. Takes about a second on a laptop.
    """
    where = torch.device(device)
    large = torch.ones(mebibytes * 2**20 // dtype.itemsize, dtype=dtype, device=where)
    side = 4096 if where.type == "cuda" else 1024
    square = torch.randn(side, side, device=where).to(dtype)
    read = _seconds(lambda: large.sum(), where, repeats)
    product = _seconds(lambda: square @ square, where, repeats)
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {threads}"
    return Limits(name, str(dtype).removeprefix("torch."), large.nbytes / read, 2 * side**3 / product)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[2:])


@plotting.styled
def roofline_figure(limits: Limits, points: "Mapping[str, tuple[Step, float]]") -> "Figure":
    """The roof, and measured steps under it. points: name → (step, seconds)."""
    import numpy as np

    if not points:
        raise SpecdecError("points: is empty; takes name → (step, seconds)")
    intensities = [step.intensity for step, _ in points.values()]
    figure, axes = plotting.new_figure(
        "Few tokens at once leave the arithmetic idle",
        "arithmetic intensity (operations per byte)",
        "speed (Gop/s)",
    )
    x = np.geomspace(min(intensities) / 2, max(*intensities, limits.ridge) * 2, 200)
    axes.plot(x, np.minimum(x * limits.bandwidth, limits.arithmetic) / 1e9, "--", color=plotting.FORMULA, label="limit")
    for i, (name, (step, seconds)) in enumerate(points.items()):
        speed = step.operations / seconds / 1e9
        axes.plot(step.intensity, speed, "os^Dv"[i % 5], color=plotting.TARGET)
        axes.annotate(name, (step.intensity, speed), xytext=(6, -11), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5 * axes.get_ylim()[0])  # room for the lowest name
    axes.legend(loc="upper left")
    return figure
