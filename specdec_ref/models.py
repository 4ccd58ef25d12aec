"""A small protocol for language models: score more tokens, and forget the last ones.

`TransformersModel` implements it for any causal LM of transformers whose attention can be rewound.
The exact proof uses another implementation, a table of conditional probabilities.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from specdec_ref.cache import RewindableCache, cache_argument, store_features
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.fast.steps import PlainRunner, Runner, choose_runner, rounded_capacity, steps_of
from specdec_ref.fast.trace import is_plain, layer_by_layer
from specdec_ref.rotary import fixed_lengths, length_dependent_rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PREFILL_CHUNK = 512
"""Largest number of prompt tokens in one forward pass. It bounds the memory for a long prompt."""


class LanguageModel(Protocol):
    """The model interface of the decoding loop: rows of tokens that grow by `extend` and shrink by
    `rewind`.

    Attributes:
        vocab_size: number of token ids that are scored.
        context: number of tokens that a row can hold.
        device: where logits are.
    """

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
        """Continue with these rows only, in this order."""
        ...


class TreeModel(LanguageModel, Protocol):
    """A `LanguageModel` that can also score a tree of tokens in one step."""

    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a tree, or more nodes of a tree, and score each node after its own path alone.

        A tree may be appended in several calls, each with the nodes that follow those of earlier
        calls. After the last call, call `keep_path`, or `rewind` to a length before the tree.

        Args:
            tokens: the new nodes, [B, n].
            parents: [B, m] int64 on the host, of all nodes: the index of the node that each
                follows, −1 for the last token before the tree, level by level. The first m − n
                nodes were appended before.

        Returns:
            Next-token logits after each of the new nodes, [B, n, V].
        """
        ...

    def keep_path(self, paths: list[list[int]]) -> None:
        """Forget all of the tree but one path in each row.

        paths: for each row the indices of the nodes that stay, from the first level down.
        """
        ...


def tree_model(model: LanguageModel, name: str) -> TreeModel:
    """The same model. Raises SpecdecError, with `name` in the message, if it cannot score trees."""
    if not hasattr(model, "extend_tree") or not hasattr(model, "keep_path"):
        takes = "takes a model that can score trees (extend_tree, keep_path), as TransformersModel"
        raise SpecdecError(f"{name}={model!r:.80}: {takes}")
    return cast(TreeModel, model)


class TransformersModel:
    """A `LanguageModel` over an unmodified transformers causal LM, with a `RewindableCache`.

    Where rotary scaling depends on length (`longrope`, `dynamic`), every token of a row is rotated
    as in a forward pass over the longest text that the row may become: its entry in
    `final_lengths`, or the context. See `rotary`.

    Args:
        model: the causal LM.
        vocab_size: score only this many ids, the first ones; a draft may have more padding rows
            than its target.
        feature_layers: layers whose hidden states `features` keeps, for a head that drafts from
            them; counted as transformers' `hidden_states` are: 0 is the embeddings, the last one
            includes the final norm. () keeps none.

    Raises:
        SpecdecError: the model's state cannot be rewound (recurrent or chunked layers,
            encoder-decoder), or it has no such layers.
    """

    final_lengths: list[int] | None = None
    """The longest length in tokens that each row may reach. Set it before `start`; None: the
    context for all rows."""

    def __init__(
        self,
        model: "PreTrainedModel",
        vocab_size: int | None = None,
        feature_layers: tuple[int, ...] = (),
    ):
        check_rewindable(model)
        self.model = model.eval()
        config: PretrainedConfig = model.config.get_text_config(decoder=True)
        rows = score_rows(model)
        self.vocab_size = min(rows, vocab_size or rows)
        self.context: int = context_length(config)
        self.device: torch.device = model.device
        self._windows = attention_windows(config)
        self._rotary = length_dependent_rotary(model)
        self.feature_layers = usable_layers(config, feature_layers)
        self.start(1, 0)

    def start(self, batch: int, capacity: int) -> None:
        # Recorded steps would keep the rotary frequencies of the text that they were recorded on.
        steps = "plain" if self._rotary else steps_of(self.model)
        self.cache = RewindableCache(
            batch, rounded_capacity(capacity, self.context, steps), self.device
        )
        self._runner: Runner = PlainRunner(
            self.cache
        )  # releases the previous cache, so its workspace can be reused
        self._runner = choose_runner(self.model, self.cache, steps, self.feature_layers)
        self._dtype = self.model.dtype  # transformers searches for it at every call
        self._plain = is_plain(self.model)
        self._lengths = [self.context] * batch if self.final_lengths is None else self.final_lengths

    @torch.inference_mode()
    def prefill(self, tokens: list[list[int]]) -> None:
        before = list(self.cache.lengths)
        longest = max(map(len, tokens))
        if longest == 0:
            return
        # Short rows are padded on the right. The rewind at the end removes the padding.
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in tokens]).to(
            self.device, non_blocking=True
        )
        with self._without_autocast():
            for chunk in padded.split(PREFILL_CHUNK, dim=1):
                masks = self._advance(chunk.shape[1])
                self._forward(self.cache, chunk, self.cache.positions, masks, keep_logits=1)
        self.cache.rewind([n + len(row) for n, row in zip(before, tokens, strict=True)])

    @torch.inference_mode()
    def extend(self, tokens: Tensor) -> Tensor:
        with self._without_autocast():
            masks = self._advance(tokens.shape[1])
            return self._runner.step(self._forward, tokens, masks)[..., : self.vocab_size]

    @torch.inference_mode()
    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append a tree, or more nodes of a tree: see `TreeModel`."""
        visible, of_slots = self.cache.advance_tree(parents, tokens.shape[1])
        masks = tuple(
            _additive(visible, self.cache.positions, window, self._dtype, of_slots)
            for window in self._windows.values()
        )
        with self._without_autocast():
            return self._runner.step(self._forward, tokens, masks)[..., : self.vocab_size]

    @torch.inference_mode()
    def keep_path(self, paths: list[list[int]]) -> None:
        """Keep one path of the last tree in each row: see `TreeModel`."""
        self.cache.keep_path(paths)

    def rewind(self, lengths: list[int]) -> None:
        self.cache.rewind(lengths)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
        self._lengths = [self._lengths[row] for row in rows]

    def lengths(self) -> list[int]:
        """The number of tokens in the cache, for each row."""
        return self.cache.lengths

    @property
    def features(self) -> Tensor:
        """Hidden states of `feature_layers`, side by side, for every token in the cache.

        [B, n, layers · d]; n is at least the length of the longest row. Entries after the length of
        a row are not valid. Hidden states are stored when a token is scored, and rewound with it.
        """
        config = self.model.config.get_text_config(decoder=True)
        if config.num_hidden_layers not in self.cache.slots:  # no token has been scored
            width = len(self.feature_layers) * config.hidden_size
            return torch.zeros(
                self.cache.batch, 0, width, dtype=self.model.dtype, device=self.device
            )
        keys, _ = self.cache.slots[config.num_hidden_layers]
        return keys[:, 0]

    def _without_autocast(self) -> torch.autocast:
        """Disable autocast, so that steps compute in the number type of the weights. ('meta' has no
        autocast.)"""
        return torch.autocast(
            "cpu" if self.device.type == "meta" else self.device.type, enabled=False
        )

    def _advance(self, n: int) -> tuple[Tensor, ...]:
        """Make room for n tokens in every row. Returns one additive mask for each kind of layer."""
        positions, visible = self.cache.advance(n)
        return tuple(
            _additive(visible, positions, window, self._dtype) for window in self._windows.values()
        )

    def _forward(
        self,
        cache: Any,
        tokens: Tensor,
        positions: Tensor,
        masks: tuple[Tensor, ...],
        keep_logits: int = 0,
    ) -> Tensor:
        """The forward pass itself. Returns logits [B, n or keep_logits, all rows of the head]."""
        every = positions.expand(tokens.shape)
        if not self._plain:  # some models insist on a mask for every row
            masks = tuple(mask.expand(len(tokens), -1, -1, -1) for mask in masks)
        mask: Any = masks[0] if len(masks) == 1 else dict(zip(self._windows, masks, strict=True))
        with fixed_lengths(self._rotary, self._lengths):
            if self._plain:
                return layer_by_layer(
                    self.model, tokens, every, mask, cache, keep_logits, self.feature_layers
                )
            more = {"output_hidden_states": True} if self.feature_layers else {}
            output = self.model(
                input_ids=tokens,
                position_ids=every,
                attention_mask=mask,
                use_cache=True,
                logits_to_keep=keep_logits,
                **{cache_argument(self.model): cache},
                **more,
            )
        if self.feature_layers:
            store_features(cache, output.hidden_states, self.feature_layers)
        logits: Tensor = output.logits
        return logits


def _additive(
    visible: Tensor,
    positions: Tensor,
    window: int | None,
    dtype: torch.dtype,
    of_slots: Tensor | None = None,
) -> Tensor:
    """An additive mask, which all attention implementations of transformers take: 0 where visible,
    else the lowest number.

    of_slots: [B, 1, 1, W], the position of the token in each slot; None: slot i holds position i.
    """
    if window is not None:
        if of_slots is None:
            of_slots = torch.arange(visible.shape[-1], device=visible.device)
        visible = visible & (of_slots > (positions[..., None] - window)[:, None])
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )


def score_rows(model: "PreTrainedModel") -> int:
    """The number of logits per token: the rows of the output layer, padding included."""
    head: Any = model.get_output_embeddings()
    return int(
        getattr(head, "out_features", None) or head.weight.shape[0]
    )  # quantised layers have no such weight


def context_length(config: "PretrainedConfig") -> int:
    """How many tokens a model of this configuration can hold."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    raise SpecdecError(
        f"{config.model_type}: its configuration names no context length (max_position_embeddings)"
    )


def attention_windows(config: "PretrainedConfig") -> dict[str, int | None]:
    """A model's kinds of attention layer, with their sliding window in tokens (None: no window).

    All tokens stay in our cache, and only the mask implements a sliding window. So a layer with a
    window can be rewound like any other.
    """
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:  # one kind of layer: Llama, GPT-2; Mistral with its window
        return {"all": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def usable_layers(config: "PretrainedConfig", layers: Sequence[int]) -> tuple[int, ...]:
    """These layers as a tuple. Raises SpecdecError if the model does not have all of them."""
    last = config.num_hidden_layers
    listed = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not listed or not all(is_whole(layer) and 0 <= layer <= last for layer in layers):
        raise SpecdecError(
            f"feature_layers={layers!r:.80}: takes layers of this model, each 0 … {last}"
        )
    return tuple(layers)


def check_rewindable(model: "PreTrainedModel", role: str = "model") -> None:
    """Raise SpecdecError unless the model's cache can be rewound after a rejection. A recurrent
    state, for instance, cannot."""
    if not hasattr(model, "get_output_embeddings"):
        raise SpecdecError(f"{role}={model!r:.80}: takes a transformers causal LM")
    if not {"cache", "past_key_values"} & set(inspect.signature(type(model).forward).parameters):
        raise SpecdecError(
            f"{role}: {model.config.model_type} takes no KV cache, so nothing can be rewound"
        )
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise SpecdecError(
            f"{role}: {kind} is an encoder-decoder model: takes a decoder-only causal LM"
        )
    blind = getattr(
        config, "is_decoder", True
    )  # BERT-like models see later tokens too unless configured as decoders
    if not blind and any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise SpecdecError(
            f"{role}: {kind} looks at later tokens: takes a causal LM (is_decoder=True)"
        )
    if getattr(
        config, "alibi", False
    ):  # Falcon counts distances in a 2-D mask, which assumes rows of equal length
        raise SpecdecError(
            f"{role}: {kind} with alibi makes its own positions: takes a model with rotary"
        )
    unknown = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if "local" in (
        getattr(config, "attention_layers", None) or ()
    ):  # GPT-Neo: windows of its own, by the longest row
        unknown.add("local attention")
    if unknown or getattr(model, "_is_stateful", False):
        what = ", ".join(sorted(unknown)) or "a recurrent state"
        raise SpecdecError(
            f"{role}: {config.model_type} has layers with {what}, which cannot be rewound"
        )
