"""Check that a model scores a short text alike in one pass, in cached steps, and after a rewind.

Decoding relies on explicit positions, a 4-D mask and a cache that can be rewound. Some
architectures ignore one of these without an error. Later tokens are then sampled from a wrong
distribution. A list of such architectures is never complete, so `load_pair` compares each model
with its own uncached forward pass.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdec_ref.errors import SpecdecError, one_line
from specdec_ref.models import TransformersModel, check_rewindable
from specdec_ref.rotary import length_dependent_rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SHORT = 24
"""Tokens of the longer text, unless a threshold of the model requires more."""

TAIL = 12
"""The number of positions that are compared, at the end of each text."""

REJECTED = 4
"""Tokens that are scored and then taken back."""

STRIDE = 7919
"""Distance between the ids of successive tokens: a prime, so that they spread over any vocabulary.
"""

LARGEST_DIFFERENCE = {torch.float64: 0.01, torch.float32: 0.01}
"""Largest relative difference of logits that counts as rounding. In float32 rounding gives less
than 1e-5, and wrong models give 0.2 or more."""

LARGEST_DIFFERENCE_16_BITS = 0.15
"""The same for bfloat16 and float16. There the median over positions is compared, since at a few
positions rounding may change the choice of experts."""


def check_consistent(model: "PreTrainedModel", role: str = "model", length: int = SHORT) -> None:
    """Compare a model's cached, rewound steps in a ragged batch with its uncached forward pass.

    Args:
        model: a causal LM of transformers.
        role: the model's name in errors, 'target' or 'draft'.
        length: tokens of the longer text; the shorter text has `TAIL` + 1. With a length beyond a
            threshold of the model (see `length_thresholds`) both sides of that threshold are
            compared.

    Raises:
        SpecdecError: the model cannot be rewound, or takes no positions, mask or cache, or its
            scores differ.
    """
    check_rewindable(model, role)
    difference = largest_difference(model, role, length)
    allowed = largest_allowed(model)
    if not difference <= allowed:
        raise SpecdecError(
            f"{role}: {model.config.model_type} scores a text of {length} tokens differently in "
            f"steps than in one pass: logits differ by {difference:.1%}, {allowed:.0%} is allowed; "
            "it cannot be decoded exactly"
        )


def largest_allowed(model: "PreTrainedModel") -> float:
    """The largest relative difference that rounding explains in the model's number type."""
    return LARGEST_DIFFERENCE.get(model.dtype, LARGEST_DIFFERENCE_16_BITS)


@torch.inference_mode()
def largest_difference(model: "PreTrainedModel", role: str = "model", length: int = SHORT) -> float:
    """Relative difference of logits between cached steps and one uncached pass: 0 where they agree.

    The root mean square of the difference over the vocabulary, divided by that of the logits around
    their mean. Returns the largest over positions in float32 and float64, the median in 16 bits.
    Raises SpecdecError where the model does.
    """
    texts = [
        _mixed_tokens(model, max(length, TAIL + 1), start=1),
        _mixed_tokens(model, TAIL + 1, start=2),
    ]
    wrong = torch.stack([_mixed_tokens(model, REJECTED, start) for start in (3, 4)])
    try:
        expected = torch.stack([_in_one_pass(model, text)[-TAIL:] for text in texts])
        actual = _in_steps(model, texts, wrong)
    except SpecdecError:
        raise
    except (
        Exception
    ) as error:  # every architecture has its own way to fail without positions, mask or cache
        what = (
            f"{model.config.model_type} cannot score tokens with explicit positions, mask and cache"
        )
        raise SpecdecError(f"{role}: {what}: {one_line(error)}") from error
    expected, actual = expected.double(), actual.double()
    spread = expected - expected.mean(-1, keepdim=True)
    relative = (actual - expected).square().mean(-1).sqrt() / (
        spread.square().mean(-1).sqrt() + 1e-12
    )
    exact = model.dtype in LARGEST_DIFFERENCE
    return float(relative.max() if exact else relative.median())


def _mixed_tokens(model: Any, n: int, start: int) -> Tensor:
    """Token ids [n] spread over the vocabulary, the same in every call."""
    size: int = model.get_input_embeddings().weight.shape[0]
    return torch.arange(start, start + n) * STRIDE % size


def _in_one_pass(model: Any, text: Tensor) -> Tensor:
    """Logits [n, V] of an uncached forward pass, with the positions and mask that transformers
    computes."""
    if length_dependent_rotary(model):
        model(
            input_ids=text[:1][None].to(model.device), use_cache=False
        )  # resets the length of earlier passes
    logits: Tensor = model(input_ids=text[None].to(model.device), use_cache=False).logits[0]
    return logits


def _in_steps(model: "PreTrainedModel", texts: list[Tensor], wrong: Tensor) -> Tensor:
    """Logits [B, TAIL, V] of the last positions, in cached steps.

    The steps are: prefill, one token, some wrong tokens that are then removed, and all the rest.
    """
    ours = TransformersModel(model)
    lengths = [len(text) for text in texts]
    ours.final_lengths = lengths
    ours.start(len(texts), max(lengths) + REJECTED)
    ours.prefill([text[:-TAIL].tolist() for text in texts])
    tails = torch.stack([text[-TAIL:] for text in texts]).to(ours.device)
    first = ours.extend(tails[:, :1])
    ours.extend(wrong.to(ours.device))
    ours.rewind([n - TAIL + 1 for n in lengths])
    return torch.cat([first, ours.extend(tails[:, 1:])], 1)


def length_thresholds(config: "PretrainedConfig") -> list[int]:
    """Lengths in tokens at which a model of this configuration changes its computation, shortest
    first.

    Sliding windows, attention chunks, and the length that its rotary scaling was made for.
    """
    text = config.get_text_config(decoder=True)
    rotary = getattr(text, "rope_parameters", None) or {}
    places = [rotary, *(part for part in rotary.values() if isinstance(part, dict))]
    values = [
        getattr(text, name, None)
        for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    values += [place.get("original_max_position_embeddings") for place in places]
    return sorted({value for value in values if isinstance(value, int) and value > 0})
