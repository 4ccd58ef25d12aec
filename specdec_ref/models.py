"""Real models behind one small protocol, and the pair that ships.

The loop asks two things of a language model: score some more tokens, and forget the last ones. `TransformersModel` does
both for any causal LM of transformers whose attention can be rewound; a table of conditional probabilities is another.
"""

import inspect
import json
import os
import re
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from specdec_ref.cache import RewindableCache, cache_argument
from specdec_ref.capture import PLAIN_FAMILIES, layer_by_layer, parts_of, recorded_step, untouched
from specdec_ref.errors import SpecdecError
from specdec_ref.graphs import STEPS, choose_steps, room_for, room_of, steps_of
from specdec_ref.rotary import fixed_lengths, length_dependent_rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ROOM = 256
"""Captured steps belong to a cache, so caches for them come in multiples of so many tokens, to be used again."""

PREFILL_CHUNK = 512
"""Tokens of a prompt scored in one forward pass: bounds the memory of a long prompt."""


class LanguageModel(Protocol):
    """What the decoding loop needs of a model: rows of tokens that grow by `extend` and shrink by `rewind`."""

    vocab_size: int
    context: int
    device: torch.device

    def start(self, batch: int, capacity: int) -> None:
        """Begin `batch` empty rows that will hold at most `capacity` tokens."""
        ...

    def prefill(self, tokens: list[list[int]]) -> None:
        """Append tokens, one list per row, of any lengths, without scores."""
        ...

    def extend(self, tokens: Tensor) -> Tensor:
        """Append tokens [B, n] and return next-token logits [B, n, V] after each of them."""
        ...

    def rewind(self, lengths: list[int]) -> None:
        """Forget all but the first `lengths[row]` tokens of every row."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        ...


class TransformersModel:
    """A `LanguageModel` over an unmodified transformers causal LM, with a `RewindableCache`.

    vocab_size: score only the first so many ids (a draft may have more padding rows than its target). Raises
    SpecdecError where the model's state cannot be rewound (recurrent or chunked layers, encoder-decoder).

    Where rotary scaling depends on length (`longrope`, `dynamic`), every token of a row is rotated as in a forward pass
    over the longest text that the row may become: its entry in `final_lengths`, or the context. See `rotary`.
    """

    final_lengths: list[int] | None = None
    """The longest length in tokens that each row may reach. Set it before `start`; None: the context for all rows."""

    def __init__(self, model: "PreTrainedModel", vocab_size: int | None = None):
        check_rewindable(model)
        self.model = model.eval()
        config: PretrainedConfig = model.config.get_text_config(decoder=True)
        rows = score_rows(model)
        self.vocab_size = min(rows, vocab_size or rows)
        self.context: int = context_length(config)
        self.device: torch.device = model.device
        self._windows = attention_windows(config)
        self._rotary = length_dependent_rotary(model)
        self.start(1, 0)

    def start(self, batch: int, capacity: int) -> None:
        # Recorded and captured steps would keep the rotary frequencies of the text that they were recorded with.
        steps = "plain" if self._rotary else steps_of(self.model)
        captured = steps in ("graphs", "compiled") and capacity > 0
        if captured and not (captured := untouched(self.model)):
            warnings.warn("the model has hooks, which no graph sees: its steps run one kernel by one", stacklevel=2)
        capacity = min(max(self.context, capacity), -(-capacity // ROOM) * ROOM) if captured else capacity
        self.cache = RewindableCache(batch, capacity, self.device)
        self._room = room_for(self.model, self.cache) if captured else None
        self._dtype = self.model.dtype  # transformers looks for it anew at every call
        self._plain = self.model.config.model_type in PLAIN_FAMILIES and untouched(self.model)
        self._recorded = steps == "recorded" and self._plain and self.device.type == "cpu"
        self._parts = parts_of(self.model) if self._recorded else ()
        self._lengths = [self.context] * batch if self.final_lengths is None else self.final_lengths

    @torch.inference_mode()
    def prefill(self, tokens: list[list[int]]) -> None:
        before = list(self.cache.lengths)
        longest = max(map(len, tokens))
        # Short rows are padded on the right; what the padding wrote is taken back at the end.
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in tokens]).to(self.device, non_blocking=True)
        with self._own_number_type():
            for chunk in padded.split(PREFILL_CHUNK, dim=1) if longest else ():
                self._forward(chunk, keep_logits=1)
        self.cache.rewind([n + len(row) for n, row in zip(before, tokens, strict=True)])

    @torch.inference_mode()
    def extend(self, tokens: Tensor) -> Tensor:
        with self._own_number_type():
            return self._forward(tokens, keep_logits=0)

    def rewind(self, lengths: list[int]) -> None:
        self.cache.rewind(lengths)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
        self._lengths = [self._lengths[row] for row in rows]

    def _own_number_type(self) -> torch.autocast:
        """Steps compute in the number type of the weights, whatever is cast around them. ('meta' has no autocast.)"""
        return torch.autocast("cpu" if self.device.type == "meta" else self.device.type, enabled=False)

    def _forward(self, tokens: Tensor, keep_logits: int) -> Tensor:
        allocated = self.cache.allocated
        positions, visible = self.cache.advance(tokens.shape[1])
        if self._room is not None and self.cache.allocated != allocated:
            self._room = room_of(self.model, self.cache)
        masks = {kind: _additive(visible, positions, window, self._dtype) for kind, window in self._windows.items()}
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        if self._recorded and self.cache.slots and not keep_logits and isinstance(mask, Tensor):
            return recorded_step(self.model, self._parts, tokens, mask, self.cache)[..., : self.vocab_size]
        logits = None
        if self._room is not None and self.cache.slots and not keep_logits:
            logits = self._room.step(self.model, self.cache, self._run, tokens, tuple(masks.values()))
        if logits is None:
            logits = self._run(self.cache, tokens, positions, tuple(masks.values()), keep_logits)
        return logits[..., : self.vocab_size]

    def _run(
        self, cache: Any, tokens: Tensor, positions: Tensor, masks: tuple[Tensor, ...], keep_logits: int = 0
    ) -> Tensor:
        """The forward pass itself. Returns logits [B, n or keep_logits, all rows of the head]."""
        every = positions.expand(tokens.shape)
        if not self._plain:  # some models insist on a mask of every row's own
            masks = tuple(mask.expand(len(tokens), -1, -1, -1) for mask in masks)
        mask: Any = masks[0] if len(masks) == 1 else dict(zip(self._windows, masks, strict=True))
        with fixed_lengths(self._rotary, self._lengths):
            if self._plain:
                return layer_by_layer(self.model, tokens, every, mask, cache, keep_logits)
            logits: Tensor = self.model(
                input_ids=tokens,
                position_ids=every,
                attention_mask=mask,
                use_cache=True,
                logits_to_keep=keep_logits,
                **{cache_argument(self.model): cache},
            ).logits
        return logits


def _additive(visible: Tensor, positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """The mask that every attention implementation of transformers takes: 0 where visible, else the lowest number."""
    if window is not None:
        slots = torch.arange(visible.shape[-1], device=visible.device)
        visible = visible & (slots > (positions[..., None] - window)[:, None])
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def score_rows(model: "PreTrainedModel") -> int:
    """How many scores a model gives for each token: rows of its output layer, padding included."""
    head: Any = model.get_output_embeddings()
    return int(getattr(head, "out_features", None) or head.weight.shape[0])  # quantised layers have no such weight


def context_length(config: "PretrainedConfig") -> int:
    """How many tokens a model of this configuration can hold."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    raise SpecdecError(f"{config.model_type}: its configuration names no context length (max_position_embeddings)")


def attention_windows(config: "PretrainedConfig") -> dict[str, int | None]:
    """Kinds of attention layer that a model has, with their sliding window in tokens (None: sees everything).

    All tokens stay in our cache, so a sliding window is a matter of the mask alone, and can be rewound like any other.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:  # one kind of layer: Llama, GPT-2; Mistral with its window
        return {"all": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def check_rewindable(model: "PreTrainedModel", role: str = "model") -> None:
    """Raises SpecdecError for a model that keeps a running state, which cannot take tokens back after a rejection."""
    if not hasattr(model, "get_output_embeddings"):
        raise SpecdecError(f"{role}={model!r:.80}: takes a transformers causal LM")
    if not {"cache", "past_key_values"} & set(inspect.signature(type(model).forward).parameters):
        raise SpecdecError(f"{role}: {model.config.model_type} takes no KV cache, so nothing can be rewound")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise SpecdecError(f"{role}: {config.model_type} is an encoder-decoder model: takes a decoder-only causal LM")
    blind = getattr(config, "is_decoder", True)  # BERT and its kin score a token with those after it, unless told so
    if not blind and any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise SpecdecError(f"{role}: {config.model_type} looks at later tokens: takes a causal LM (is_decoder=True)")
    if getattr(config, "alibi", False):  # Falcon counts distances in a 2-D mask, which knows no rows of other lengths
        raise SpecdecError(f"{role}: {config.model_type} with alibi makes its own positions: takes a model with rotary")
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo: windows of its own, by the longest row
        unknown.add("local attention")
    if unknown or getattr(model, "_is_stateful", False):
        what = ", ".join(sorted(unknown)) or "a recurrent state"
        raise SpecdecError(f"{role}: {config.model_type} has layers with {what}, which cannot be rewound")


@dataclass(frozen=True)
class Pair:
    """A target, a draft and the tokenizer that both use. `target` and `draft` are plain transformers models."""

    target: "PreTrainedModel"
    draft: "PreTrainedModel | None"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.target.device

    @property
    def context(self) -> int:
        """Tokens that both models can hold."""
        models = [m for m in (self.target, self.draft) if m is not None]
        return min(context_length(m.config.get_text_config(decoder=True)) for m in models)

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a generation: the target's own."""
        ids = self.target.generation_config.eos_token_id
        ids = self.target.config.eos_token_id if ids is None else ids
        return frozenset([ids] if isinstance(ids, int) else ids or [])


HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PRETRAINED = Path(str(resources.files("specdec_ref"))) / "pretrained"
DEFAULT_DRAFT = "draft-medium"


def shipped() -> tuple[str, ...]:
    """Names of the models that ship: 'target' and the drafts. `load_pair(draft=name)` takes them."""
    return tuple(sorted(p.parent.name for p in PRETRAINED.glob("*/model.safetensors")))


def held_out_prompts() -> dict[str, str]:
    """Beginnings of functions that no shipped model was trained on, by name. Raises SpecdecError where missing."""
    if not (PRETRAINED / "prompts.json").is_file():
        raise SpecdecError("held-out prompts: prompts.json is missing here; make it with `specdec train`")
    return dict(json.loads((PRETRAINED / "prompts.json").read_text(encoding="utf-8")))


def load_pair(
    target: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    steps: str = "auto",
) -> Pair:
    """Load a target and its draft, ready to decode with.

    target, draft: a folder, a hub name, or one of `shipped()`; neither: the pair that ships here, with no network. A
    target of your own without a draft gives a pair for prompt lookup. device: 'cpu', 'cuda', …; default the GPU where
    there is one. dtype: default float32 on CPU, bfloat16 elsewhere. steps: 'auto', that is 'recorded' on a CPU and
    'graphs' on CUDA, where the model allows it; 'plain', 'graphs' (CUDA graphs) or 'compiled' (torch.compile, then
    graphs). Only safetensors are read, and no code of the model's own is run. Raises SpecdecError where a model cannot
    be loaded, where its steps do not score as its own forward pass (`consistency`), or where the two do not fit.
    """
    where = usable_device(device)
    kind = _dtype(dtype, where)
    if steps not in STEPS:
        raise SpecdecError(f"steps={steps!r:.80}: takes one of {', '.join(STEPS)}")
    ours = target is None
    if ours and draft is None:
        draft = DEFAULT_DRAFT
    if ours and "target" not in shipped():
        raise SpecdecError("target: the pair that ships is missing here; make it with `specdec train`")
    target_model = _load_model("target", "target" if ours else target, where, kind)
    tokenizer = _load_tokenizer("target", "target" if ours else target)
    _check_vocabulary("target", target_model, tokenizer)
    draft_model = None
    if draft is not None:
        draft_model = _load_model("draft", draft, where, kind)
        check_compatible(target_model, tokenizer, draft_model, _load_tokenizer("draft", draft))
    for model in (target_model, draft_model):
        if model is not None:
            choose_steps(model, steps)
    return Pair(target_model, draft_model, tokenizer)


def check_compatible(
    target: "PreTrainedModel",
    target_tokenizer: "PreTrainedTokenizerBase",
    draft: "PreTrainedModel",
    draft_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Check that a draft can propose to a target: same ids for the same strings, both can be rewound.

    Sizes prove nothing: the maps from string to id are compared. Rows of the embedding beyond the vocabulary (padding)
    may differ in number. Raises SpecdecError with the first difference.
    """
    _check_vocabulary("draft", draft, draft_tokenizer)
    ours, theirs = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours != theirs:
        by_id = {i: s for s, i in ours.items()}, {i: s for s, i in theirs.items()}
        first = min(i for _, i in ours.items() ^ theirs.items())
        raise SpecdecError(
            f"draft: its vocabulary is not the target's: id {first} is {by_id[0].get(first)!r} for the target and "
            f"{by_id[1].get(first)!r} for the draft ({len(ours)} and {len(theirs)} tokens)"
        )


def _check_vocabulary(role: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    check_rewindable(model, role)
    rows, largest = score_rows(model), max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise SpecdecError(f"{role}: its tokenizer has ids up to {largest}, but the model scores only {rows} tokens")


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tried out; None: the GPU where there is one, else the CPU. Raises SpecdecError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=where).item()  # 'meta' has no numbers, 'mps' none of 64 bits
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu (PyTorch sees no CUDA GPU here)"
        raise SpecdecError(f"device={str(device)!r}: not usable; this machine has {here}") from error
    return where


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise SpecdecError(f"dtype={dtype!r}: takes float32, float64, bfloat16 or float16")
    return kind


def _source(role: str, name: str | os.PathLike[str] | None) -> str:
    if isinstance(name, str) and name in shipped():
        return str(PRETRAINED / name)
    takes = ", ".join(["takes a folder, a hub name", *shipped()])
    if not isinstance(name, (str, os.PathLike)):
        raise SpecdecError(f"{role}={name!r:.80}: {takes}")
    if not Path(name).is_dir() and (isinstance(name, os.PathLike) or not HUB_NAME.fullmatch(name)):
        raise SpecdecError(f"{role}={str(name)!r}: no such folder; {takes}")
    return str(name)


def _load_model(
    role: str, name: str | os.PathLike[str] | None, device: torch.device, dtype: torch.dtype
) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source = _source(role, name)
    local = Path(source).is_dir()
    if local and not (Path(source) / "config.json").is_file():
        raise SpecdecError(f"{role}={str(name)!r}: not a model folder, it has no config.json")
    bars = logging.is_progress_bar_enabled()
    if local:  # nothing to wait for
        logging.disable_progress_bar()
    try:
        result: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            output_loading_info=True,
        )
        loaded: PreTrainedModel = result[0].to(device).eval()
    except Exception as error:  # every library below has its own errors for a bad file; the caller needs one line
        here = "" if local else f"no such folder, nor one that ships ({', '.join(shipped())}); from the hub it "
        raise SpecdecError(f"{role}={str(name)!r}: {here}cannot be loaded: {_one_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(result[1]["missing_keys"]):  # transformers would fill them with random numbers
        raise SpecdecError(
            f"{role}={str(name)!r}: cannot be loaded: its weights lack {missing[0]} ({len(missing)} missing)"
        )
    if device.type == "cpu":
        _lay_out_for_few_rows(loaded)
    from specdec_ref.consistency import check_consistent

    check_consistent(loaded, role)
    return loaded


def _lay_out_for_few_rows(model: "PreTrainedModel") -> None:
    """Store each linear layer's weights column by column: same shape, same numbers, another order in memory.

    Products with such a matrix are a little faster on CPUs: one token took the target that ships 9.7 ms instead of 10.3
    (2 cores). For several tokens of one sequence see `packing`. Weights that an embedding shares stay in their order.

    All other parameters are copied too. The loaded ones are pages of the file, mapped into memory, and one of them that
    is still in use keeps the whole file there, beside the copies.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    for parameter in model.parameters():
        if id(parameter) in linear - shared:
            parameter.data = parameter.data.t().contiguous().t()
        else:
            parameter.data = parameter.data.clone()


def _load_tokenizer(role: str, name: str | os.PathLike[str] | None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    source = _source(role, name)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=Path(source).is_dir())
    except Exception as error:
        raise SpecdecError(f"{role}={str(name)!r}: its tokenizer cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:220] or type(error).__name__
