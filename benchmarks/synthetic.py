"""A pair for measuring systems without downloads: shapes and costs of real models, an adjustable acceptance rate.

All weights exist and are read at every step, so a step takes as long as that of a trained model of this shape. Rounds,
caches and acceptance are those of the loop. Only the text is meaningless. So the pair measures time and acceptance, but
cannot show which draft a real target needs.

Construction. The first layers of the target contain the draft: in the first `width` channels of the residual stream
they compute exactly what the draft computes, and the other heads and neurons, which are random, write nowhere. Further
random layers of the target add their output to the stream, multiplied by a scale. At scale 0 both models agree; the
larger it is, the less they agree. Bisection finds the scale for the wanted acceptance rate.
"""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from specdec_ref.acceptance import acceptance_rate
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.loading import Pair

SPREAD = 4.0
"""Standard deviation of the logits: a few nats of entropy in a vocabulary of 32,000, as in text at temperature 1."""
SEARCHES = 10


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama. width: of the residual stream. neurons: of the feed-forward layer. heads · head = width."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    neurons: int
    head: int = 128

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of all layers."""
        attention = 2 * self.width * self.head * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.width * self.neurons)


SHAPES = {
    "0.5B": Shape(1024, 24, 8, 2, 4864),
    "1B": Shape(2048, 16, 16, 4, 8192),
    "7B": Shape(4096, 32, 32, 8, 14336),
    "13B": Shape(5120, 40, 40, 10, 13824),
}
"""Shapes of well-known sizes. All have heads of 128 and four query heads per key head, so a small one fits into a large
one."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic pair.

    Attributes:
        pair: the models, with a tokenizer of numbers: '17 4 9' is three tokens.
        acceptance: mean Σ min(p, q) at temperature 1, measured on random text.
        scale: factor of the output of the target's further layers.
    """

    pair: Pair
    acceptance: float
    scale: float


def synthetic_pair(
    target: Shape | str = "7B",
    draft: Shape | str = "0.5B",
    acceptance: float = 0.8,
    *,
    vocab_size: int = 32_000,
    context: int = 4096,
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Synthetic:
    """Build both models on the device, and set the acceptance rate.

    Args:
        target, draft: shapes, or names in `SHAPES`.
        acceptance: the acceptance rate, above 0 and below 1. It is reached within 0.02.
        vocab_size, context: of both models.
        device, dtype: of both models.
        seed: seed of the weights.

    Raises:
        SpecdecError: the draft does not fit into the target, or the acceptance rate cannot be reached.
    """
    large, small = (_shape(name, shape) for name, shape in (("target", target), ("draft", draft)))
    if not is_number(acceptance) or not 0 < acceptance < 1:
        raise SpecdecError(f"acceptance={acceptance!r:.80}: takes a number above 0 and below 1")
    for name, value in (("vocab_size", vocab_size), ("context", context)):
        if not is_whole(value) or value < 2:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 2")
    _check_fits(large, small)
    generator = torch.Generator(device).manual_seed(seed)
    models = [_random(shape, vocab_size, context, device, dtype, generator) for shape in (large, small)]
    pair = Pair(models[0], models[1], _numbers(vocab_size))
    _host(models[0], models[1], small)
    return dial(Synthetic(pair, 1.0, 1.0), acceptance, seed=seed)


def dial(synthetic: Synthetic, acceptance: float, *, seed: int = 0) -> Synthetic:
    """Set the acceptance rate, by rescaling the target's layers beyond the draft's. Changes the models in place."""
    pair = synthetic.pair
    assert pair.draft is not None
    generator = torch.Generator(pair.device).manual_seed(seed)
    text = torch.randint(pair.target.config.vocab_size, (4, 96), generator=generator, device=pair.device)
    scale = synthetic.scale
    q = _probabilities(pair.draft, text)

    def at(wanted: float) -> float:
        nonlocal scale
        _rescale(pair, wanted / scale)
        scale = wanted
        return acceptance_rate(_probabilities(pair.target, text), q).mean().item()

    low, high = 1e-4, 100.0
    for _ in range(SEARCHES + 4):
        middle = sqrt(low * high)
        reached = at(middle)
        if abs(reached - acceptance) < 0.002:
            break
        low, high = (middle, high) if reached > acceptance else (low, middle)
    if abs(reached - acceptance) > 0.02:
        raise SpecdecError(f"acceptance={acceptance}: cannot be had with these shapes; the nearest is {reached:.3f}")
    return replace(synthetic, acceptance=reached, scale=scale)


def _shape(name: str, shape: Shape | str) -> Shape:
    if isinstance(shape, Shape):
        return shape
    if shape not in SHAPES:
        raise SpecdecError(f"{name}={shape!r:.80}: takes a Shape, or one of {', '.join(SHAPES)}")
    return SHAPES[shape]


def _numbers(vocab_size: int) -> Any:
    """A tokenizer whose tokens are the numbers themselves."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def _check_fits(large: Shape, small: Shape) -> None:
    for shape in (large, small):
        if shape.heads * shape.head != shape.width or shape.heads % shape.key_value_heads:
            raise SpecdecError(f"shape={shape}: takes heads · head = width, and heads a multiple of key_value_heads")
    same = large.head == small.head and large.heads // large.key_value_heads == small.heads // small.key_value_heads
    inside = large.width >= small.width and large.neurons >= small.neurons and large.layers > small.layers
    if not (same and inside):
        raise SpecdecError("draft: does not fit into the target; takes the same heads, no wider, and fewer layers")


def _random(
    shape: Shape, vocab: int, context: int, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator
) -> Any:
    """A random Llama: its hidden states have a standard deviation of about 1, its logits of about `SPREAD`."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        elif "embed_tokens" in name:
            weight.normal_(0, 1, generator=generator)
        elif "lm_head" in name:
            weight.normal_(0, SPREAD / sqrt(shape.width), generator=generator)
        else:
            deep = sqrt(2 * shape.layers) if ("o_proj" in name or "down_proj" in name) else 1.0
            weight.normal_(0, 1 / (deep * sqrt(weight.shape[1])), generator=generator)
    return model


def _host(target: Any, draft: Any, small: Shape) -> None:
    """Write the draft into the first channels, heads, neurons and layers of the target."""
    width, large_width = small.width, target.config.hidden_size
    thinner = sqrt(width / large_width)  # the root mean square over all channels, of which only some are not zero
    query, key, neurons = small.heads * small.head, small.key_value_heads * small.head, small.neurons
    target.model.embed_tokens.weight.zero_()
    target.model.embed_tokens.weight[:, :width] = draft.model.embed_tokens.weight
    target.lm_head.weight[:, :width] = draft.lm_head.weight
    target.lm_head.weight[:, width:] *= thinner
    for mine, theirs in zip(target.model.layers, draft.model.layers, strict=False):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(mine, norm).weight.fill_(thinner)
        for part, name, rows in (
            ("self_attn", "q_proj", query),
            ("self_attn", "k_proj", key),
            ("self_attn", "v_proj", key),
            ("mlp", "gate_proj", neurons),
            ("mlp", "up_proj", neurons),
        ):
            getattr(getattr(mine, part), name).weight[:rows, :width] = getattr(getattr(theirs, part), name).weight
        for part, name, columns in (("self_attn", "o_proj", query), ("mlp", "down_proj", neurons)):
            weight = getattr(getattr(mine, part), name).weight
            weight.zero_()
            weight[:width, :columns] = getattr(getattr(theirs, part), name).weight
    target.model.norm.weight.fill_(thinner)


def _rescale(pair: Pair, factor: float) -> None:
    assert pair.draft is not None
    for layer in pair.target.model.layers[len(pair.draft.model.layers) :]:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)


@torch.inference_mode()
def _probabilities(model: Any, text: Tensor) -> Tensor:
    """[B, n, V] in float32."""
    probabilities: Tensor = model(text, use_cache=False).logits.float().softmax(-1)
    return probabilities
