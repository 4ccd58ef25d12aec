"""The training loop: the same for the target, a plain draft and distilled drafts, on CPU and on CUDA.

Several models may be trained on one batch, so distillation needs the target's forward pass only once for all drafts.
Every batch is a function of (seed, step), so a resumed run uses the same batches.
"""

import itertools
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from specdec_lab.training.distillation import Losses
from specdec_lab.training.muon import Muon
from specdec_ref.errors import SpecdecError


@dataclass(frozen=True)
class TrainingPlan:
    """The schedule of a training.

    Attributes:
        steps: number of steps.
        tokens_per_step: tokens in a batch.
        learning_rate: the largest learning rate.
        contexts: (share of the steps, window length in tokens), in order.
        warmup: steps of linear warm-up.
        weight_decay: weight decay.
        restarts: steps at which the schedule of contexts and learning rate starts again (Loshchilov and Hutter 2016,
            'warm restarts').
    """

    steps: int
    tokens_per_step: int
    learning_rate: float
    contexts: tuple[tuple[float, int], ...]
    warmup: int = 100
    weight_decay: float = 0.1
    restarts: tuple[int, ...] = ()

    def context_at(self, step: int) -> int:
        """Window length in tokens at `step`."""
        begin, end = self._cycle(step)
        rest = (step - begin) / (end - begin)
        for share, context in self.contexts:
            if rest < share:
                return context
            rest -= share
        return self.contexts[-1][1]

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero, in each cycle."""
        begin, end = self._cycle(step)
        return self.learning_rate * min((step - begin + 1) / self.warmup, (end - step) / (end - begin), 1.0)

    def _cycle(self, step: int) -> tuple[int, int]:
        """First step and end of the cycle that `step` belongs to."""
        edges = [0, *self.restarts, self.steps]
        return next((a, b) for a, b in itertools.pairwise(edges) if a <= step < b)


class Windows:
    """Random windows of token streams. Stream i is chosen with probability `shares[i]`."""

    def __init__(self, streams: Sequence[Tensor], shares: Sequence[float], seed: int):
        self._streams = streams
        self._shares = torch.tensor(shares)
        self._seed = seed

    def batch(self, step: int, rows: int, context: int) -> Tensor:
        """`rows` windows of `context` + 1 token ids, [rows, context + 1]; the same for the same (seed, step)."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        windows = []
        for which in torch.multinomial(self._shares, rows, replacement=True, generator=generator).tolist():
            stream = self._streams[which]
            start = int(torch.randint(0, max(1, len(stream) - context), (), generator=generator))
            windows.append(stream[start : start + context + 1])
        return torch.stack(windows).long()


@dataclass
class Tick:
    """The progress that the training loop reports."""

    step: int
    steps: int
    loss: dict[str, float]
    seconds_left: float
    tokens_per_second: float


def half_precision_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32 (CUDA, CPUs with AVX512-BF16 or AMX)."""
    return device.type != "cpu" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def fit(
    models: Mapping[str, nn.Module],
    losses: Losses,
    windows: Windows,
    plan: TrainingPlan,
    checkpoint: Path,
    *,
    on_tick: Callable[[Tick], None] = lambda tick: None,
    evaluate: Callable[[int], None] = lambda step: None,
    evaluate_every: int = 500,
    save_every: float = 120.0,
    compiled: bool = False,
) -> None:
    """Train `models` in place for `plan.steps` steps, and resume from `checkpoint` if it exists.

    The state is saved every `save_every` seconds and at an interrupt (Ctrl-C). Saving is atomic, and only the current
    step is lost. `evaluate(step)` is called every `evaluate_every` steps and after the last step.
    """
    device = next(next(iter(models.values())).parameters()).device
    optimizers = [o for model in models.values() for o in _optimizers(model, plan)]
    num_done = _load(checkpoint, models, optimizers)
    if num_done >= plan.steps:
        return
    if compiled:
        losses = torch.compile(losses, dynamic=False)
    for model in models.values():
        model.train()
    saved_at = time.monotonic()
    pace = _Pace(plan, num_done)
    with _Interrupt() as interrupt:
        for step in range(num_done, plan.steps):
            pace.begin(step)
            context = plan.context_at(step)
            batch = windows.batch(step, plan.tokens_per_step // context, context).to(device, non_blocking=True)
            now = losses(batch, torch.tensor(step / plan.steps, device=device))
            torch.stack(list(now.values())).sum().backward()
            _update(models, optimizers, plan.learning_rate_at(step))
            num_done = step + 1
            last = num_done == plan.steps
            pace.add(now)
            if num_done % 10 == 0 or last:
                on_tick(pace.tick(num_done))
            if num_done % evaluate_every == 0 or last:
                evaluate(num_done)
            if time.monotonic() - saved_at > save_every or last or interrupt.came:
                _save(checkpoint, models, optimizers, num_done)
                saved_at = time.monotonic()
            if interrupt.came:
                raise KeyboardInterrupt


def _update(models: Mapping[str, nn.Module], optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """One step of the optimizers from the gradients of `backward`, clipped to norm 1."""
    for model in models.values():
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _Pace:
    """Seconds per step, without compilation and warm-up, and the mean losses of the last 50 steps."""

    def __init__(self, plan: TrainingPlan, first: int):
        self.plan, self.first = plan, first
        self.began = time.monotonic()
        self.recent: deque[dict[str, Tensor]] = deque(maxlen=50)

    def begin(self, step: int) -> None:
        if step <= self.first + 3:  # the first steps compile and warm up
            self.began = time.monotonic()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        self.recent.append({name: loss.detach() for name, loss in losses.items()})

    def tick(self, step: int) -> Tick:
        """The progress of the training. Raises FloatingPointError if a loss is NaN."""
        seconds = (time.monotonic() - self.began) / max(1, step - self.first - 3)
        mean = {name: float(torch.stack([losses[name] for losses in self.recent]).mean()) for name in self.recent[0]}
        if not all(map(math.isfinite, mean.values())):
            raise FloatingPointError(f"the loss is no longer a number at step {step - 1}: {mean}")
        plan = self.plan
        return Tick(step, plan.steps, mean, seconds * (plan.steps - step), plan.tokens_per_step / seconds)


class _Interrupt:
    """Delays Ctrl-C until the step is done, so that the saved weights are complete. A second Ctrl-C acts at once."""

    came = False

    def __enter__(self) -> "_Interrupt":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.came = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)


def _optimizers(model: nn.Module, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (it needs about half the tokens AdamW does here), AdamW for the rest."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".layers." in name else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    if not matrices:
        return [adam]
    if matrices[0].device.type == "cpu":
        return [Muon(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay), adam]
    muon = torch.optim.Muon(
        matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adam]


def _save(path: Path, models: Mapping[str, nn.Module], optimizers: list[torch.optim.Optimizer], step: int) -> None:
    state = {
        "step": step,
        "models": {name: model.state_dict() for name, model in models.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _load(path: Path, models: Mapping[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, model in models.items():
            model.load_state_dict(state["models"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])
    except Exception as error:  # broken files and other shapes raise many kinds of exception
        raise SpecdecError(
            f"{path}: is no checkpoint of this training; delete {path.parent.name} or choose another output"
        ) from error
