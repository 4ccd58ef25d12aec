"""Steps of fixed shape captured as CUDA graphs: one launch replays the whole step.

A step of a small draft is hundreds of short kernels, and Python launches them more slowly than a
GPU runs them. A graph launches them all at once, but reads and writes fixed addresses. So it
belongs to a `Workspace`: the slots of a cache, and the steps captured over them. A workspace
outlives a generation, and serves the next one of the same size. On a CPU nothing is captured. There
a workspace runs the same step on the same buffers, so that tests need no GPU.
"""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from specdec_ref.cache import FixedSlots, RewindableCache

USES_BEFORE_CAPTURE = 3
"""Uncaptured runs of a shape before it is captured."""

IDLE_WORKSPACES = 3
"""Unused workspaces that are kept for each model. Each holds the memory of a cache."""

WARM_UP_RUNS = 3
"""Runs before a capture, in which libraries initialize themselves. A graph cannot record that."""

Forward = Callable[[Any, Tensor, Tensor, tuple[Tensor, ...]], Tensor]
"""(cache, tokens [B, n], positions, masks) → logits [B, n, V], at addresses that do not change."""

Shape = tuple[object, ...]

_workspaces: "WeakKeyDictionary[nn.Module, list[Workspace]]" = WeakKeyDictionary()
_refused: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


class Workspace:
    """The slots of a cache and the steps captured over them.

    Attributes:
        batch, slots_per_row: the size of the cache.
        slots: keys and values by layer, shared with the cache that uses the workspace.
        captured: captured steps by shape.
        uses: how often each shape was run before it was captured.
        owner: the cache that uses the workspace.
    """

    def __init__(self, batch: int, slots_per_row: int):
        self.batch = batch
        self.slots_per_row = slots_per_row
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}
        self.captured: dict[Shape, CapturedStep] = {}
        self.uses: dict[Shape, int] = {}
        self.owner: ReferenceType[RewindableCache] | None = None

    @property
    def free(self) -> bool:
        """Whether no living cache uses it."""
        return self.owner is None or self.owner() is None


class CapturedStep:
    """One step, over its own buffers and the slots of a workspace. It holds no reference to the
    cache or the model."""

    def __init__(
        self, forward: Forward, cache: RewindableCache, tokens: Tensor, masks: tuple[Tensor, ...]
    ):
        self.tokens = tokens.clone()
        self.positions = cache.positions.clone()
        self.slot_mapping = cache.slot_mapping.clone()
        self.masks = tuple(mask.clone() for mask in masks)
        slots = {layer: cache.window(layer) for layer in cache.slots}
        self.cache = FixedSlots(slots, self.slot_mapping, cache.rows)
        self.graph: Any = None
        if tokens.device.type == "cuda":
            self._capture(forward)

    def _capture(self, forward: Forward) -> None:
        with torch.cuda.device(self.tokens.device):
            side_stream = torch.cuda.Stream()
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(WARM_UP_RUNS):
                    self._run(forward)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side_stream):  # waits for all earlier work
                self.logits = self._run(forward)

    def _run(self, forward: Forward) -> Tensor:
        return forward(self.cache, self.tokens, self.positions, self.masks)

    def __call__(
        self, forward: Forward, cache: RewindableCache, tokens: Tensor, masks: tuple[Tensor, ...]
    ) -> Tensor:
        self.tokens.copy_(tokens)
        self.positions.copy_(cache.positions)
        self.slot_mapping.copy_(cache.slot_mapping)
        for buffer, mask in zip(self.masks, masks, strict=True):
            buffer.copy_(mask)
        if self.graph is None:
            return self._run(forward)
        self.graph.replay()
        return self.logits.clone()  # the next replay writes there again


def step_in_workspace(
    model: nn.Module,
    workspace: Workspace,
    cache: RewindableCache,
    forward: Forward,
    tokens: Tensor,
    masks: tuple[Tensor, ...],
    compiled: bool = False,
) -> Tensor | None:
    """Replay the step of this shape, or capture it once it has occurred often. Returns None if the
    step has to run uncaptured.

    compiled: compile the forward pass before it is captured.
    """
    if model in _refused or cache.slots is not workspace.slots:
        return None
    inputs = (tokens, cache.positions, cache.slot_mapping, *masks)
    shape = tuple(tensor.shape for tensor in inputs)
    if shape not in workspace.captured:
        workspace.uses[shape] = workspace.uses.get(shape, 0) + 1
        if workspace.uses[shape] <= USES_BEFORE_CAPTURE:
            return None
        if compiled:
            forward = torch.compile(forward, dynamic=False)
        try:
            workspace.captured[shape] = CapturedStep(forward, cache, tokens, masks)
        except Exception as error:  # a model may do many things that a graph cannot record
            _refused[model] = " ".join(str(error).split())[:200]
            reason = f"steps of {type(model).__name__} cannot be captured ({_refused[model]})"
            warnings.warn(f"{reason}; they run one kernel after the other", stacklevel=2)
            return None
    elif (
        compiled and workspace.captured[shape].graph is None
    ):  # a CPU has no graph, and runs the compiled step
        forward = torch.compile(forward, dynamic=False)
    return workspace.captured[shape](forward, cache, tokens, masks)


@torch.inference_mode()
def workspace_for(model: nn.Module, cache: RewindableCache) -> Workspace:
    """A workspace for this cache.

    An empty cache gets a free workspace of its size, if there is one, and takes over its slots,
    which are set to zero. Otherwise a new workspace takes the slots of the cache.
    """
    workspaces = _workspaces.setdefault(model, [])
    size = cache.batch, cache.allocated
    fitting = [w for w in workspaces if w.free and (w.batch, w.slots_per_row) == size]
    if fitting and not cache.slots:
        workspace = fitting[0]
    else:
        idle = [w for w in workspaces if w.free]
        for superfluous in idle[: max(0, len(workspaces) + 1 - IDLE_WORKSPACES)]:
            workspaces.remove(superfluous)
        workspace = Workspace(*size)
        workspace.slots = cache.slots
        workspaces.append(workspace)
    if not cache.slots:
        for (
            keys,
            values,
        ) in workspace.slots.values():  # a broken model may have left NaN, which no mask hides
            keys.zero_()
            values.zero_()
    workspace.owner = ref(cache)
    cache.slots = workspace.slots
    return workspace


def forget_workspaces(model: nn.Module) -> None:
    """Discard the captured steps of a model. If a capture has failed, it may be tried again."""
    _workspaces.pop(model, None)
    _refused.pop(model, None)
