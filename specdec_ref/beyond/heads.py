"""Heads draft from the target's own hidden states, in place of a draft model.

The target computes hidden states whenever it scores a text, so they cost a head nothing. They
already describe the text as the target sees it, so a single small layer on top of them can draft
well. There are two kinds:

- `FeatureHead` (EAGLE-3, arXiv 2503.01840) drafts one token at a time. The target has no hidden
  states yet for tokens that the head drafted, so the head's own output takes their place.
- `ParallelHead` (as Medusa, arXiv 2401.10774) drafts k tokens in one pass. No token depends on the
  other drafted tokens.

Mind the offset. The newest token of a text was sampled, but the target has not read it yet. So the
target's hidden states end one token earlier. At token j a head therefore reads the embedding of
token j with the hidden states of token j − 1, and predicts token j + 1. At token 0 it reads zeros
in place of hidden states.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_ref.cache import RewindableCache, cache_argument
from specdec_ref.drafting import Draft
from specdec_ref.errors import SpecdecError, is_whole, one_line
from specdec_ref.fast.head_steps import PlainHeadSteps, RecordedHeadSteps
from specdec_ref.fast.layout import store_by_columns
from specdec_ref.fast.steps import steps_of
from specdec_ref.models import PREFILL_CHUNK, TransformersModel, context_length, score_rows
from specdec_ref.sampling import Randomness, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = "feature", "parallel"
"""Kinds of head: one token at a time, or all in one pass."""

EPSILON = 1e-6
"""Added to the mean square in each norm, as in Llama."""


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head, and of the target that it was trained on.

    Attributes:
        kind: 'feature' or 'parallel'.
        hidden_size: the target's width.
        layers: the target's number of layers.
        vocab_size: the number of token ids that the target scores.
        context: the target's longest text, in tokens.
        feature_layers: layers of the target that the head reads, as in `TransformersModel`.
        inner: width of a feature head's feed-forward part.
        attention_heads: number of attention heads in a feature head.
        num_tokens: tokens that a parallel head drafts in one pass.

    Raises:
        SpecdecError: the kind is unknown, or a number is out of range.
    """

    kind: str
    hidden_size: int
    layers: int
    vocab_size: int
    context: int
    feature_layers: tuple[int, ...]
    inner: int
    attention_heads: int
    num_tokens: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecdecError(f"kind={self.kind!r:.80}: takes one of {', '.join(KINDS)}")
        for name, value in asdict(self).items():
            if name not in ("kind", "feature_layers") and not (is_whole(value) and value >= 1):
                raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
        layers = self.feature_layers
        fits = isinstance(layers, tuple) and all(map(is_whole, layers))
        if not fits or not layers or not 0 <= min(layers) <= max(layers) <= self.layers:
            raise SpecdecError(
                f"feature_layers={layers!r:.80}: takes a tuple of layers, each 0 … {self.layers}"
            )
        if self.hidden_size % (2 * self.attention_heads):
            raise SpecdecError(
                f"attention_heads={self.attention_heads}: takes a number that divides "
                f"hidden_size={self.hidden_size} into even parts"
            )


def head_config(
    target: "PreTrainedModel", kind: str = "feature", *, num_tokens: int = 4
) -> HeadConfig:
    """The default shape of a head for a target.

    A feature head reads the layers at one third, two thirds and the full depth. Its own layer has
    the shape of the target's layers. A parallel head reads the last layer.

    Args:
        target: the target, a transformers model.
        kind: 'feature' or 'parallel'.
        num_tokens: tokens that a parallel head drafts in one pass.

    Raises:
        SpecdecError: the kind is unknown.
    """
    config = target.config.get_text_config(decoder=True)
    layers = config.num_hidden_layers
    width = config.hidden_size
    return HeadConfig(
        kind=kind,
        hidden_size=width,
        layers=layers,
        vocab_size=score_rows(target),
        context=context_length(config),
        feature_layers=(layers,) if kind == "parallel" else (layers // 3, 2 * layers // 3, layers),
        inner=getattr(config, "intermediate_size", None) or 4 * width,
        attention_heads=config.num_attention_heads,
        num_tokens=num_tokens,
    )


def normalized(norm: nn.RMSNorm, states: Tensor) -> Tensor:
    """`norm(states)` in the number type of the norm; under autocast in training, types differ."""
    result: Tensor = norm(states.to(norm.weight.dtype))
    return result


class FeatureHead(nn.Module):
    """One decoder layer that drafts from features of several layers of the target.

    The features of token j − 1 are projected from m · d to d numbers and joined with the embedding
    of token j. The layer's output at token j gives the logits of token j + 1. For the next drafted
    token, this output takes the place of the projected features of token j. EAGLE-3, arXiv
    2503.01840.

    Args:
        config: the shape of the head.
    """

    def __init__(self, config: HeadConfig):
        from transformers import LlamaConfig, LlamaModel

        super().__init__()
        self.config = config
        d = config.hidden_size
        body = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=d,
            intermediate_size=config.inner,
            num_hidden_layers=1,
            num_attention_heads=config.attention_heads,
            num_key_value_heads=config.attention_heads,
            max_position_embeddings=config.context,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.fuse = nn.Linear(len(config.feature_layers) * d, d, bias=False)
        self.state_norm = nn.RMSNorm(d, EPSILON)
        self.token_norm = nn.RMSNorm(d, EPSILON)
        self.join = nn.Linear(2 * d, d, bias=False)
        self.body: Any = LlamaModel(body)  # its embedding, layer, rotary positions and final norm
        self.output = nn.Linear(d, config.vocab_size, bias=False)

    def forward(
        self, states: Tensor, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None
    ) -> Tensor:
        """The layer's output at these tokens.

        Args:
            states: [B, n, d], for the token before each: the target's features after `fuse`, or
                this method's own output.
            tokens: [B, n] token ids.
            positions: [B or 1, n].
            mask: [B or 1, 1, n, W] bool, True where a token may attend.
            cache: stores the keys and values; None if no tokens come before these.

        Returns:
            [B, n, d].
        """
        embedded = normalized(self.token_norm, self.body.embed_tokens(tokens))
        hidden = self.join(torch.cat([embedded, normalized(self.state_norm, states)], -1))
        layer = self.body.layers[0]
        positions = positions.expand(tokens.shape)
        output: Tensor = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.body.rotary_emb(hidden, position_ids=positions),
            use_cache=cache is not None,
            **{cache_argument(layer): cache},
        )
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., V], from the layer's output [..., d]."""
        scores: Tensor = self.output(self.body.norm(hidden))
        return scores

    def begin_from(self, target: "PreTrainedModel") -> None:
        """Initialize from the target: its vocabulary layers, and an identity path for features."""
        copy_vocabulary(target, self.body.embed_tokens, self.body.norm, self.output)
        pass_on_features(self.fuse, self.join)


class ParallelHead(nn.Module):
    """Drafts k tokens in one pass from the last hidden state of the target and the newest token.

    Each of the k tokens has its own small layer, which does not see the tokens drafted before it.
    All share one output layer. As Medusa (arXiv 2401.10774), except that the newest token is an
    input, since it was sampled after that hidden state.

    Args:
        config: the shape of the head.
    """

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.fuse = nn.Linear(len(config.feature_layers) * d, d, bias=False)
        self.state_norm = nn.RMSNorm(d, EPSILON)
        self.token_norm = nn.RMSNorm(d, EPSILON)
        self.join = nn.Linear(2 * d, d, bias=False)
        self.blocks = nn.Linear(d, config.num_tokens * d)
        self.norm = nn.RMSNorm(d, EPSILON)
        self.output = nn.Linear(d, config.vocab_size, bias=False)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the k tokens after each of these.

        Args:
            features: [B, n, m · d], the target's features of the token before each.
            tokens: [B, n] token ids.

        Returns:
            [B, n, k, V].
        """
        embedded = normalized(self.token_norm, self.embedding(tokens))
        states = normalized(self.state_norm, self.fuse(features))
        hidden = self.join(torch.cat([embedded, states], -1)).unsqueeze(-2)
        own = self.blocks(hidden).unflatten(-1, (self.config.num_tokens, -1)).squeeze(-3)
        scores: Tensor = self.output(normalized(self.norm, hidden + F.silu(own)))
        return scores

    def begin_from(self, target: "PreTrainedModel") -> None:
        """Initialize from the target: its vocabulary layers, and an identity for its feature."""
        copy_vocabulary(target, self.embedding, self.norm, self.output)
        pass_on_features(self.fuse, self.join)


Head = FeatureHead | ParallelHead


@torch.no_grad()
def copy_vocabulary(target: Any, embedding: nn.Embedding, norm: Any, output: nn.Linear) -> None:
    """Copy the target's embedding, its output layer and, if it has one, its final norm."""
    rows, width = embedding.weight.shape
    embedding.weight.copy_(target.get_input_embeddings().weight[:rows])
    output.weight.copy_(target.get_output_embeddings().weight[:rows])
    scale = getattr(getattr(target.base_model, "norm", None), "weight", None)
    if isinstance(scale, Tensor) and scale.shape == (width,):
        norm.weight.copy_(scale)


@torch.no_grad()
def pass_on_features(fuse: nn.Linear, join: nn.Linear) -> None:
    """Add to the random weights an identity path for the last feature.

    Training then starts from the target's hidden state instead of a random mixture.
    """
    width = fuse.out_features
    identity = torch.eye(width, dtype=fuse.weight.dtype, device=fuse.weight.device)
    fuse.weight[:, -width:] += identity
    join.weight[:, -width:] += identity


def features_before(target: TransformersModel, positions: Tensor) -> Tensor:
    """The target's features of the token before each position, [B, n, m · d]; zeros before token 0.

    Args:
        target: a model that keeps features and has read the text up to these tokens.
        positions: [B or 1, n].
    """
    features = target.features
    batch, n_features, width = features.shape
    positions = positions.expand(batch, -1)
    if n_features == 0:  # every text has a single token, so the target has read none
        return features.new_zeros(batch, positions.shape[1], width)
    before = (positions - 1).clamp(0, n_features - 1)
    rows = torch.arange(batch, device=positions.device)[:, None]
    return features[rows, before].masked_fill((positions == 0)[..., None], 0)


def check_features(target: TransformersModel, sequences: list[list[int]]) -> None:
    """Raise SpecdecError unless the target has read all but the last token of each text."""
    advice = "decode with the model that is `drafter.target`"
    lengths = target.lengths()
    if len(lengths) != len(sequences):
        raise SpecdecError(
            f"drafter: its target has {len(lengths)} texts instead of {len(sequences)}; {advice}"
        )
    for length, sequence in zip(lengths, sequences, strict=True):
        if length < len(sequence) - 1:
            raise SpecdecError(
                f"drafter: its target has read {length} of {len(sequence)} tokens; {advice}"
            )


def check_fits(head: Head, target: TransformersModel) -> None:
    """Raise SpecdecError unless the head fits this target's shape and feature layers."""
    check_target(head.config, target.model, "head")
    if target.feature_layers != head.config.feature_layers:
        raise SpecdecError(
            f"target: keeps features of layers {target.feature_layers}; takes a "
            f"TransformersModel(model, feature_layers={head.config.feature_layers})"
        )


def check_target(config: HeadConfig, target: "PreTrainedModel", role: str) -> None:
    """Raise SpecdecError unless the target has the shape that the head was trained on."""
    text = target.config.get_text_config(decoder=True)
    trained_on = config.layers, config.hidden_size, config.vocab_size
    given = text.num_hidden_layers, text.hidden_size, score_rows(target)
    if trained_on != given:
        shapes = [f"{n} layers × {d}, {v} token ids" for n, d, v in (trained_on, given)]
        raise SpecdecError(f"{role}: belongs to a target of {shapes[0]}; this one has {shapes[1]}")


def no_tokens(batch: int, device: torch.device) -> Draft:
    """A draft of 0 tokens for each row."""
    return Draft(torch.empty(batch, 0, dtype=torch.int64, device=device))


class HeadDrafter:
    """Drafts with a `FeatureHead`: k tokens cost k steps of one layer.

    The head has its own cache, with one slot for each token. After the target has read drafted
    tokens, their slots are computed again with the target's features, which did not exist before.

    Args:
        head: the head.
        target: the model that verifies, with the `feature_layers` of the head. `speculate` must get
            the same object; `generate_speculative` makes a new one for each call.

    Raises:
        SpecdecError: the head belongs to a target of another shape, or `target` does not keep the
            head's feature layers.
    """

    def __init__(self, head: FeatureHead, target: TransformersModel):
        if not isinstance(head, FeatureHead):
            raise SpecdecError(f"head={head!r:.80}: takes a FeatureHead")
        if not isinstance(target, TransformersModel):
            raise SpecdecError(f"target={target!r:.80}: takes a TransformersModel")
        check_fits(head, target)
        self.head = head.eval()
        self.target = target
        self.start(1, 1)

    def with_target(self, target: TransformersModel) -> "HeadDrafter":
        """A drafter with the same head for another decoding of the target."""
        return type(self)(self.head, target)

    def start(self, batch: int, capacity: int) -> None:
        # Short rows of a ragged batch are padded, up to the length of the longest row, so a row
        # may need twice its capacity. Slots are allocated only when they are needed.
        self.cache = RewindableCache(batch, 2 * capacity, self.target.device)
        recorded = self.target.device.type == "cpu" and steps_of(self.target.model) == "recorded"
        self._steps = RecordedHeadSteps(self.head) if recorded else PlainHeadSteps(self.head)
        self._read = [0] * batch  # tokens in the cache that were read with the target's features

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
        self._read = [self._read[row] for row in rows]

    @torch.inference_mode()
    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        if k == 0:  # the target keeps the features until they are needed
            return no_tokens(len(sequences), self.target.device)
        hidden = self.read_texts(sequences)
        drafted: list[Tensor] = []
        distributions: list[Tensor] = []
        while True:
            q = sampling.probabilities(self.logits(hidden)[:, -1])
            token = randomness.draw(q)
            drafted.append(token)
            distributions.append(q)
            if len(drafted) == k:
                return Draft(torch.stack(drafted, 1), torch.stack(distributions, 1))
            # The head's own output replaces the target's features, which do not exist yet.
            hidden = self._step(hidden, token[:, None])

    @torch.inference_mode()
    def read_texts(self, sequences: list[list[int]]) -> Tensor:
        """Read the new tokens of each text with the target's features. Returns the head's output at
        the last token, [B, 1, d]."""
        check_features(self.target, sequences)
        known = [min(n, len(s) - 1) for n, s in zip(self._read, sequences, strict=True)]
        new = [s[n:] for n, s in zip(known, sequences, strict=True)]
        longest = max(map(len, new))
        # Short rows are padded on the right. The rewind at the end removes the padding.
        padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in new])
        last = torch.tensor([len(tokens) - 1 for tokens in new])
        self.cache.rewind(known)
        device = self.target.device
        chunks = padded.to(device, non_blocking=True).split(PREFILL_CHUNK, dim=1)
        hidden = torch.cat([self._step(None, chunk) for chunk in chunks], 1)
        self._read = [len(sequence) for sequence in sequences]
        self.cache.rewind(self._read)
        rows = torch.arange(len(sequences), device=device)
        return hidden[rows, last.to(device, non_blocking=True)].unsqueeze(1)

    @torch.inference_mode()
    def read_nodes(self, states: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append nodes of a tree after each text. Returns the head's output at them, [B, n, d].

        Args:
            states: the output at the parent of each node, [B, n, d].
            tokens: [B, n].
            parents: of the whole tree, as in `TreeModel.extend_tree`.
        """
        visible, _ = self.cache.advance_tree(parents, tokens.shape[1])
        return self._steps.hidden(states, tokens, visible, self.cache)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token after each output [B, n, d]: [B, n, V]."""
        return self._steps.logits(hidden)[..., : self.target.vocab_size]

    def _step(self, states: Tensor | None, tokens: Tensor) -> Tensor:
        """Append tokens [B, n] to the head's cache. Returns the head's output at them, [B, n, d].

        states: [B, n, d], as in `FeatureHead.forward`; None for the target's features.
        """
        positions, visible = self.cache.advance(tokens.shape[1])
        if states is None:
            states = self.head.fuse(features_before(self.target, positions))
        return self._steps.hidden(states, tokens, visible, self.cache)


class ParallelHeadDrafter:
    """Drafts with a `ParallelHead`: all tokens cost one pass, and no cache is needed.

    Args:
        head: the head. It drafts at most `num_tokens` tokens, even if more are requested.
        target: as in `HeadDrafter`.

    Raises:
        SpecdecError: as in `HeadDrafter`.
    """

    def __init__(self, head: ParallelHead, target: TransformersModel):
        if not isinstance(head, ParallelHead):
            raise SpecdecError(f"head={head!r:.80}: takes a ParallelHead")
        if not isinstance(target, TransformersModel):
            raise SpecdecError(f"target={target!r:.80}: takes a TransformersModel")
        check_fits(head, target)
        self.head = head.eval()
        self.target = target

    def with_target(self, target: TransformersModel) -> "ParallelHeadDrafter":
        """A drafter with the same head for another decoding of the target."""
        return type(self)(self.head, target)

    def start(self, batch: int, capacity: int) -> None:
        """Nothing to prepare: the target keeps the features."""

    def keep(self, rows: list[int]) -> None:
        """Nothing to drop."""

    @torch.inference_mode()
    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        if k == 0:
            return no_tokens(len(sequences), self.target.device)
        q = sampling.probabilities(self.logits(sequences)[:, :k])
        return Draft(randomness.draw(q), q)

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]]) -> Tensor:
        """Scores of the `num_tokens` tokens after each text, [B, num_tokens, V]."""
        check_features(self.target, sequences)
        newest = torch.tensor([sequence[-1:] for sequence in sequences])
        positions = torch.tensor([[len(sequence) - 1] for sequence in sequences])
        device = self.target.device
        features = features_before(self.target, positions.to(device, non_blocking=True))
        logits: Tensor = self.head(features, newest.to(device, non_blocking=True))[:, 0]
        return logits[..., : self.target.vocab_size]


def save_head(head: Head, folder: str | os.PathLike[str]) -> None:
    """Write a head as config.json and model.safetensors (bfloat16), which `load_head` reads.

    Args:
        head: the head.
        folder: the folder; it is created if it does not exist.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in head.state_dict().items()
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(asdict(head.config), indent=1) + "\n", "utf-8")


def load_head(
    target: "PreTrainedModel", folder: str | os.PathLike[str]
) -> HeadDrafter | ParallelHeadDrafter:
    """Load a head as the drafter of a target: `generate_speculative(…, drafter=load_head(…))`.

    Args:
        target: the target that the head was trained on, for instance `pair.target`. The head gets
            the target's device and number type.
        folder: a folder that `save_head` or `specdec train --head` wrote.

    Raises:
        SpecdecError: the folder has no head, its files are broken, or the target has another shape.
    """
    if not hasattr(target, "get_output_embeddings"):
        raise SpecdecError(f"target={target!r:.80}: takes a transformers causal LM, as pair.target")
    role = f"head={str(folder)!r:.200}"
    config = _read_config(folder, role)
    check_target(config, target, role)
    head: Head = FeatureHead(config) if config.kind == "feature" else ParallelHead(config)
    try:
        head.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except (
        Exception
    ) as error:  # missing file, broken file, other shapes: each raises its own exception
        raise SpecdecError(f"{role}: cannot be loaded: {one_line(error)}") from error
    head = head.to(device=target.device, dtype=target.dtype).requires_grad_(False)
    if target.device.type == "cpu":
        store_by_columns(head)
    model = TransformersModel(target, feature_layers=config.feature_layers)
    if isinstance(head, FeatureHead):
        return HeadDrafter(head, model)
    return ParallelHeadDrafter(head, model)


def _read_config(folder: str | os.PathLike[str], role: str) -> HeadConfig:
    """The configuration in a head's folder. Raises SpecdecError."""
    takes = "takes a folder that `specdec train --head` wrote"
    try:
        content = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        layers = tuple(content.pop("feature_layers"))
        return HeadConfig(**content, feature_layers=layers)
    except SpecdecError as error:
        raise SpecdecError(f"{role}: its config.json has {error}") from error
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise SpecdecError(f"{role}: has no config.json of a head; {takes}") from error
