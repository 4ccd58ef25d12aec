"""Steps of fixed shape captured as CUDA graphs: the host says one word, the GPU does the whole step.

A step of a small draft is hundreds of short kernels, and Python launches them more slowly than a GPU runs them. A graph
launches them all at once, but reads and writes fixed addresses. So it belongs to a `Room`: the slots of a cache, and
the steps captured over them, which outlive one generation and serve the next of the same size. On a CPU there is
nothing to capture: there a room runs the same step on the same buffers, which is how tests without a GPU exercise it.
"""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from specdec_ref.cache import FixedSlots, RewindableCache
from specdec_ref.errors import SpecdecError

STEPS = "auto", "plain", "recorded", "graphs", "compiled"
"""How a model's steps are run: as suits the device; one operation after the other; recorded on a CPU (see `capture`);
captured as CUDA graphs; compiled, then captured."""

USES_BEFORE_CAPTURE = 3
ROOMS = 3
"""Rooms of one model that are kept when nobody uses them. Each holds the memory of a cache."""

Run = Callable[[Any, Tensor, Tensor, tuple[Tensor, ...]], Tensor]
"""(cache, tokens [B, n], positions, masks) → logits [B, n, V], at addresses that do not change."""

_chosen: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
_rooms: "WeakKeyDictionary[nn.Module, list[Room]]" = WeakKeyDictionary()
_refused: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def choose_steps(model: nn.Module, steps: str) -> None:
    """Run this model's steps that way from now on, one of `STEPS`. Raises SpecdecError for another word."""
    if steps not in STEPS:
        raise SpecdecError(f"steps={steps!r:.80}: takes one of {', '.join(STEPS)}")
    _chosen[model] = steps
    _rooms.pop(model, None)
    _refused.pop(model, None)


def steps_of(model: nn.Module) -> str:
    """How this model's steps are run: what was chosen, else 'graphs' on CUDA and 'recorded' elsewhere."""
    steps = _chosen.get(model, "auto")
    device = next(model.parameters()).device
    return ("graphs" if device.type == "cuda" else "recorded") if steps == "auto" else steps


class Room:
    """The slots of a cache and the steps captured over them."""

    def __init__(self, batch: int, capacity: int):
        self.size = batch, capacity
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}
        self.steps: dict[tuple[object, ...], Any] = {}
        self.tenant: ReferenceType[RewindableCache] | None = None

    @property
    def free(self) -> bool:
        """Whether no living cache uses it."""
        return self.tenant is None or self.tenant() is None

    def step(
        self, model: nn.Module, cache: RewindableCache, run: Run, tokens: Tensor, masks: tuple[Tensor, ...]
    ) -> Tensor | None:
        """Replay the step of this shape, or capture it when it comes often. None where there is nothing to replay."""
        if model in _refused or cache.slots is not self.slots:
            return None
        shape = (tokens.shape, cache.positions.shape, *(mask.shape for mask in masks))
        step = self.steps.get(shape, 0)
        if isinstance(step, int) and step < USES_BEFORE_CAPTURE:
            self.steps[shape] = step + 1
            return None
        if steps_of(model) == "compiled" and (isinstance(step, int) or step.graph is None):
            run = torch.compile(run, dynamic=False)
        if isinstance(step, int):
            try:
                step = self.steps[shape] = _Captured(run, cache, tokens, masks)
            except Exception as error:  # whatever a model does that a graph cannot hold
                _refused[model] = " ".join(str(error).split())[:200]
                told = f"steps of {type(model).__name__} cannot be captured ({_refused[model]})"
                warnings.warn(f"{told}; they run one kernel after the other", stacklevel=2)
                return None
        return step(run, tokens, cache.positions, masks)  # type: ignore[no-any-return]


class _Captured:
    """One step over buffers of its own, and the slots that the cache had. It keeps no way to the cache or the model."""

    def __init__(self, run: Run, cache: RewindableCache, tokens: Tensor, masks: tuple[Tensor, ...]):
        inputs = tokens.clone(), cache.positions.clone(), tuple(mask.clone() for mask in masks)
        view = FixedSlots({layer: cache.window(layer) for layer in cache.slots}, inputs[1], cache.rows)
        self.arguments, self.buffers = (view, *inputs), (*inputs[:2], *inputs[2])
        self.graph: Any = None
        if tokens.device.type == "cuda":
            with torch.cuda.device(tokens.device):
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # libraries set themselves up on first calls, which no graph can hold
                    for _ in range(3):
                        run(*self.arguments)
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=aside):  # waits for all that was before
                    self.logits = run(*self.arguments)

    def __call__(self, run: Run, tokens: Tensor, positions: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        for mine, given in zip(self.buffers, (tokens, positions, *masks), strict=True):
            mine.copy_(given)
        if self.graph is None:
            return run(*self.arguments)
        self.graph.replay()
        return self.logits.clone()  # the next replay writes there again


@torch.inference_mode()
def room_for(model: nn.Module, cache: RewindableCache) -> Room:
    """A room for this cache, whose slots it takes over: one of its size that is free, zeroed, or a new one."""
    size = cache.batch, cache.allocated
    room = next((r for r in _rooms.get(model, ()) if r.free and r.size == size), None)
    if room is None:
        room = _new_room(model, cache)
    for keys, values in room.slots.values():  # what a broken model left there could be NaN, which no mask hides
        keys.zero_()
        values.zero_()
    room.tenant = ref(cache)
    cache.slots = room.slots
    return room


def room_of(model: nn.Module, cache: RewindableCache) -> Room:
    """A new room for a cache that has grown: it takes the slots as they are, and captures its steps again."""
    room = _new_room(model, cache)
    room.tenant = ref(cache)
    room.slots = cache.slots
    return room


def _new_room(model: nn.Module, cache: RewindableCache) -> Room:
    """A room of the cache's size, kept for later use; idle ones are given up where there are too many."""
    rooms = _rooms.setdefault(model, [])
    for idle in [r for r in rooms if r.free][: max(0, len(rooms) + 1 - ROOMS)]:
        rooms.remove(idle)
    room = Room(cache.batch, cache.allocated)
    rooms.append(room)
    return room
