"""The memory of a pair, with and without speculation, computed from its configurations before anything is loaded.

The models are built on PyTorch's 'meta' device, where tensors have shapes and no values. So weights and KV cache are
exact for any architecture. Activations are an estimate from the shapes; `memory_peak` measures the peak.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from specdec_lab.measurement.tables_shown import html_table, mib, rich_table
from specdec_lab.plotting import DRAFT, FORMULA, TARGET, new_figure, styled
from specdec_ref.errors import SpecdecError, is_whole, one_line
from specdec_ref.fast.packing import packable, packed_product
from specdec_ref.fast.steps import choose_steps, steps_of
from specdec_ref.fast.trace import PLAIN_FAMILIES, takes_packed
from specdec_ref.loading import Pair, usable_device, usable_dtype, usable_source
from specdec_ref.models import PREFILL_CHUNK, TransformersModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from transformers import PretrainedConfig, PreTrainedModel

DEFAULT_CONTEXT = 1024

SCORE_COPIES = 5
"""Tensors of [B, k + 1, V] that exist at once in a round, in float32: logits, p, the list of q, q stacked, q padded."""


@dataclass(frozen=True)
class ModelMemory:
    """The memory of one model, in bytes.

    Attributes:
        weights: parameters and buffers; shared ones count once.
        kv: all slots of its cache.
        activations: the largest additional memory during a step, estimated.
        packed: the packed copy of the weights, for decoding one sequence on a CPU (see `packing`).
    """

    weights: int
    kv: int
    activations: int
    packed: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.activations + self.packed


@dataclass(frozen=True)
class MemoryProfile:
    """The predicted memory for decoding `batch` sequences of `context` tokens (prompt and new ones), in bytes.

    Attributes:
        target, draft: the models, with k drafted tokens per round.
        alone: the target without speculation.
        scores: logits and probabilities of a round.
        dtype: number type of weights, KV cache and activations.
    """

    batch: int
    context: int
    k: int
    dtype: str
    target: ModelMemory
    draft: ModelMemory | None
    alone: ModelMemory
    scores: int
    scores_alone: int

    @property
    def weights(self) -> int:
        """Of both models."""
        return self.target.weights + (self.draft.weights if self.draft else 0)

    @property
    def kv(self) -> int:
        """Slots of both models' caches: k more for each sequence than without speculation."""
        return self.target.kv + (self.draft.kv if self.draft else 0)

    @property
    def activations(self) -> int:
        """The larger of the two, since the models step in turn, and the scores of a round."""
        return max(self.target.activations, self.draft.activations if self.draft else 0) + self.scores

    @property
    def packed(self) -> int:
        """Of both models."""
        return self.target.packed + (self.draft.packed if self.draft else 0)

    @property
    def total(self) -> int:
        """With speculation."""
        return self.weights + self.packed + self.kv + self.activations

    @property
    def total_alone(self) -> int:
        """Without speculation: the target by itself, k = 0."""
        return self.alone.total + self.scores_alone

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, totals too."""
        return asdict(self) | {"total": self.total, "total_alone": self.total_alone}

    def _cells(self) -> tuple[str, list[str], list[list[str]]]:
        draft = self.draft or ModelMemory(0, 0, 0)
        title = f"memory for {self.batch} × {self.context} tokens, k = {self.k}, {self.dtype}"
        a, t = self.alone, self.target
        rows = [
            ["without speculation", a.weights, a.packed, a.kv, a.activations + self.scores_alone],
            ["with: target", t.weights, t.packed, t.kv, t.activations + self.scores],
            ["with: draft", draft.weights, draft.packed, draft.kv, draft.activations],
            ["with: both", self.weights, self.packed, self.kv, self.activations],
        ]
        shown = [[str(name), *map(mib, parts), mib(sum(parts))] for name, *parts in rows]  # type: ignore[arg-type]
        return title, ["", "weights", "packed copy", "KV cache", "activations", "total"], shown

    def __rich__(self) -> "Table":
        return rich_table(*self._cells())

    def _repr_html_(self) -> str:
        return html_table(*self._cells())


def memory_profile(
    models: "Pair | tuple[Any, Any]",
    *,
    batch: int = 1,
    context: int | None = None,
    k: int = 4,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> MemoryProfile:
    """The memory that a pair will take, from its configurations alone: no weights are loaded or allocated.

    Args:
        models: a `Pair`, or (target, draft), each a folder, a hub name, the name of a model that ships, or a
            transformers configuration. A draft of None is prompt lookup.
        batch: sequences at once.
        context: tokens of each sequence, prompt and new ones; default 1,024, or what the models hold.
        k: drafted tokens per round.
        dtype, device: default those of the pair, or the defaults of `load_pair` here. A quantized checkpoint takes less
            than the prediction.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """
    wanted = DEFAULT_CONTEXT if context is None else context
    for name, value, smallest in (("batch", batch, 1), ("context", wanted, 1), ("k", k, 0)):
        if not is_whole(value) or value < smallest:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ {smallest}")
    steps = None
    if isinstance(models, Pair):
        dtype, device, steps = dtype or models.target.dtype, device or models.device, steps_of(models.target)
        models = models.target.config, models.draft.config if models.draft is not None else None
    elif not isinstance(models, tuple) or len(models) != 2:
        raise SpecdecError(f"models={models!r:.80}: takes a Pair, or (target, draft): folders, names or configurations")
    where = usable_device(device)
    packs = where.type == "cpu" and takes_packed(batch)
    kind = usable_dtype(dtype, where)
    target = skeleton(models[0], kind, "target")
    draft = skeleton(models[1], kind, "draft") if models[1] is not None else None
    for model in (m for m in (target, draft) if m is not None):  # captured steps need caches with more slots
        choose_steps(model, steps or ("graphs" if where.type == "cuda" else "recorded"))
    limits = [TransformersModel(model).context for model in (target, draft) if model is not None]
    if context is not None and context > min(limits):
        raise SpecdecError(f"context={context}: is more than the models hold, {min(limits)} tokens")
    context = min(wanted, *limits)
    capacity = min(context + k, *limits)
    vocabulary = TransformersModel(target).vocab_size
    return MemoryProfile(
        batch,
        context,
        k,
        str(kind).removeprefix("torch."),
        _share(target, batch, context, capacity, k + 1, packs),
        _share(draft, batch, context, capacity, 2, packs) if draft is not None else None,
        _share(target, batch, context, context, 1, packs),
        SCORE_COPIES * batch * (k + 1) * vocabulary * 4,
        SCORE_COPIES * batch * vocabulary * 4,
    )


def skeleton(source: Any, dtype: torch.dtype, role: str = "model") -> "PreTrainedModel":
    """A model of this configuration on the 'meta' device, without values. Raises SpecdecError."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            configuration(source, role), dtype=dtype, trust_remote_code=False
        )
    model.eval()
    return model


def configuration(source: Any, role: str = "model") -> "PretrainedConfig":
    """A model's configuration, without its weights. Raises SpecdecError."""
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, PretrainedConfig):
        return source
    name = usable_source(role, source)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=False, local_files_only=Path(name).is_dir()
        )
    except Exception as error:
        raise SpecdecError(f"{role}={str(source)!r}: its configuration cannot be read: {one_line(error)}") from error
    return config


def available_memory(device: str | torch.device | None = None) -> int:
    """Bytes that can still be allocated.

    On CUDA this is the free memory and PyTorch's unused cache. On a CPU it is the limit of the system, and of the
    container if there is one.
    """
    where = usable_device(device)
    if where.type == "cuda":
        cached = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return int(torch.cuda.mem_get_info(where)[0] + cached)
    free = int(psutil.virtual_memory().available)
    in_container = container_memory(Path("/sys/fs/cgroup"))
    return free if in_container is None else min(free, in_container)


def container_memory(folder: Path) -> int | None:
    """Bytes that a container can still allocate, from the files of its control group; None if it has no limit.

    memory.current includes the page cache. The kernel frees the inactive part of it when memory is needed, so that
    part counts as available here. Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.stat).
    """
    limit, used, statistics = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and used.is_file() and statistics.is_file()):
        return None
    limit_bytes = limit.read_text().strip()
    if limit_bytes == "max":
        return None
    parts = dict(line.split() for line in statistics.read_text().splitlines())
    needed = int(used.read_text()) - int(parts.get("inactive_file", 0))
    return max(0, int(limit_bytes) - needed)


@styled
def memory_figure(profile: MemoryProfile, available: int | None = None) -> "Figure":
    """Two stacked bars of memory, without and with speculation. available: bytes, shown as a dashed line."""
    draft = profile.draft or ModelMemory(0, 0, 0)
    scale, unit = (2**30, "GiB") if profile.total >= 2**30 else (2**20, "MiB")
    parts = [
        ("target: weights", TARGET, "", (profile.alone.weights, profile.target.weights)),
        ("target: KV cache", TARGET, "////", (profile.alone.kv, profile.target.kv)),
        ("target: packed copy", TARGET, "..", (profile.alone.packed, profile.target.packed)),
        ("draft: weights", DRAFT, "", (0, draft.weights)),
        ("draft: packed copy", DRAFT, "..", (0, draft.packed)),
        ("draft: KV cache", DRAFT, "////", (0, draft.kv)),
        ("activations", "#BBBBBB", "..", (profile.alone.activations + profile.scores_alone, profile.activations)),
    ]
    more = profile.total / profile.total_alone - 1
    title = f"Speculation takes {more:.0%} more memory ({profile.batch} × {profile.context} tokens, k = {profile.k})"
    figure, axes = new_figure(title, f"memory, {unit}", height=2.6)
    left = [0.0, 0.0]
    for name, color, hatch, sizes in (part for part in parts if any(part[3])):
        widths = [size / scale for size in sizes]
        axes.barh(["without", "with"], widths, left=left, color=color, hatch=hatch, edgecolor="white", label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    if available is not None:
        axes.axvline(available / scale, color=FORMULA, linestyle="--", label="available")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _share(model: "PreTrainedModel", batch: int, context: int, capacity: int, scored: int, packs: bool) -> ModelMemory:
    """The memory of a model that reads a prompt and then makes steps of `scored` tokens, with `capacity` slots."""
    ours = TransformersModel(model)
    ours.start(batch, capacity)
    ours.prefill([[0]] * batch)  # allocates the first slots, which have the shapes that the model needs
    slots = ours.cache.capacity
    per_slot = ours.cache.bytes // ours.cache.allocated
    tokens = max(min(context, PREFILL_CHUNK), min(scored, slots))
    packs = packs and packed_product() is not None and model.config.model_type in PLAIN_FAMILIES
    return ModelMemory(
        weights=sum(t.nbytes for t in tensors_of(model)),
        kv=per_slot * slots,
        activations=_step_activations(model, batch, tokens, slots),
        packed=sum(module.weight.nbytes for module in model.modules() if packs and packable(module)),
    )


def _step_activations(model: "PreTrainedModel", batch: int, tokens: int, slots: int) -> int:
    """Estimate the additional memory during a step over `tokens` tokens per row, in bytes.

    In the MLP: three tensors of the widest layer and four of the residual stream. In attention: keys and values, with a
    copy for each query head if heads share them.
    """
    config = model.config.get_text_config(decoder=True)
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    copies = (getattr(config, "num_key_value_heads", None) or heads) < heads
    outside = (model.get_input_embeddings(), model.get_output_embeddings())
    inside = [module for module in model.modules() if module not in outside]
    weights = [getattr(module, "weight", None) for module in inside]
    widest = max((max(w.shape) for w in weights if isinstance(w, Tensor) and w.ndim == 2), default=hidden)
    mlp = batch * tokens * (3 * widest + 4 * hidden)
    attention = 2 * batch * slots * heads * width if copies else 0
    return int(max(mlp, attention + 4 * batch * tokens * hidden)) * model.dtype.itemsize


def tensors_of(model: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return list({id(t): t for t in (*model.parameters(), *model.buffers())}.values())
