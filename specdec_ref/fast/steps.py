"""Ways to run the steps of a model: plainly, recorded on a CPU, or captured as CUDA graphs."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from specdec_ref.cache import RewindableCache
from specdec_ref.errors import SpecdecError
from specdec_ref.fast.graphs import forget_workspaces, step_in_workspace, workspace_for
from specdec_ref.fast.trace import is_plain, model_state, recorded_step, untouched

STEPS = "auto", "plain", "recorded", "graphs", "compiled"
"""Ways to run steps.

- 'auto': the best for the device.
- 'plain': one operation after the other.
- 'recorded': recorded and replayed on a CPU (see `trace`).
- 'graphs': captured as CUDA graphs.
- 'compiled': compiled, then captured.
"""

CAPACITY_STEP = 256
"""Cache capacities are rounded up to a multiple of this, so that captured steps can be reused. Each
belongs to one size of cache."""

Forward = Callable[[Any, Tensor, Tensor, tuple[Tensor, ...]], Tensor]
"""(cache, tokens [B, n], positions, masks) → logits [B, n, V]."""

_chosen: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def choose_steps(model: nn.Module, steps: str) -> None:
    """Choose how this model's steps are run from now on.

    Args:
        model: a transformers model.
        steps: one of `STEPS`. 'plain' gives transformers' own numbers to the last bit.

    Raises:
        SpecdecError: `steps` is not one of `STEPS`.
    """
    if steps not in STEPS:
        raise SpecdecError(f"steps={steps!r:.80}: takes one of {', '.join(STEPS)}")
    _chosen[model] = steps
    forget_workspaces(model)


def steps_of(model: nn.Module) -> str:
    """How this model's steps are run: as chosen, else 'graphs' on CUDA and 'recorded' elsewhere."""
    steps = _chosen.get(model, "auto")
    if steps != "auto":
        return steps
    on_gpu = next(model.parameters()).device.type == "cuda"
    return "graphs" if on_gpu else "recorded"


class Runner(Protocol):
    """Runs the steps of one generation over one cache. The forward pass is passed to each step, to
    avoid a reference cycle."""

    def step(self, forward: Forward, tokens: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        """Logits [B, n, V] after each of tokens [B, n], a chain or a tree for which the cache has
        made room.

        Args:
            forward: the model's forward pass.
            tokens: [B, n].
            masks: one additive mask for each kind of attention layer, [B or 1, 1, n, W].
        """
        ...


def choose_runner(
    model: nn.Module, cache: RewindableCache, steps: str, feature_layers: tuple[int, ...] = ()
) -> Runner:
    """The runner for `steps`, one of `STEPS`; a plain one if the model or device does not support
    it. Steps that store features are not captured, since a captured step serves every cache of its
    size."""
    if cache.capacity == 0:
        return PlainRunner(cache)
    if steps == "recorded" and is_plain(model) and cache.device.type == "cpu":
        return RecordingRunner(cache, model, feature_layers)
    if steps in ("graphs", "compiled") and not feature_layers:
        if untouched(model):
            return CapturingRunner(cache, model, compiled=steps == "compiled")
        warnings.warn(
            "the model has hooks, which no graph records: its steps run one kernel after the other",
            stacklevel=3,
        )
    return PlainRunner(cache)


def rounded_capacity(capacity: int, context: int, steps: str) -> int:
    """The capacity of a cache for these steps, in tokens: rounded up if graphs can be reused."""
    if steps not in ("graphs", "compiled"):
        return capacity
    rounded = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
    return min(max(context, capacity), rounded)


class PlainRunner:
    """Runs one operation after the other."""

    def __init__(self, cache: RewindableCache):
        self.cache = cache

    def step(self, forward: Forward, tokens: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        return forward(self.cache, tokens, self.cache.positions, masks)


class RecordingRunner(PlainRunner):
    """Records a step once its shape has occurred often, then replays it (see `trace`)."""

    def __init__(
        self, cache: RewindableCache, model: nn.Module, feature_layers: tuple[int, ...] = ()
    ):
        super().__init__(cache)
        self.model = model
        self.feature_layers = feature_layers
        self.state = model_state(model)

    def step(self, forward: Forward, tokens: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        if len(masks) > 1 or not self.cache.slots:
            return super().step(forward, tokens, masks)
        return recorded_step(
            self.model, self.state, tokens, masks[0], self.cache, self.feature_layers
        )


class CapturingRunner(PlainRunner):
    """Captures a step once its shape has occurred often, then replays the graph (see `graphs`)."""

    def __init__(self, cache: RewindableCache, model: nn.Module, compiled: bool):
        super().__init__(cache)
        self.model = model
        self.compiled = compiled
        self.workspace = workspace_for(model, cache)

    def step(self, forward: Forward, tokens: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        if not self.cache.slots:
            return super().step(forward, tokens, masks)
        if self.cache.allocated != self.workspace.slots_per_row:
            self.workspace = workspace_for(self.model, self.cache)
        logits = step_in_workspace(
            self.model, self.workspace, self.cache, forward, tokens, masks, self.compiled
        )
        return super().step(forward, tokens, masks) if logits is None else logits
