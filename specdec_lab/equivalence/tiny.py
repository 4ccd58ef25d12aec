"""Random transformers and heads that are small enough for tests.

They have real layers and a real KV cache. They compute in float64, so that equal results are equal.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from specdec_ref.beyond.heads import (
    FeatureHead,
    Head,
    HeadDrafter,
    ParallelHead,
    ParallelHeadDrafter,
    head_config,
)
from specdec_ref.models import TransformersModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SCALE = 0.3
"""Standard deviation of the weights."""


@cache
def tiny_pair(vocab_size: int = 32, width: int = 32, layers: int = 2, noise: float = 0.1) -> tuple[Any, Any]:
    """A random Llama, and a draft that differs from it by `noise`: accepted often, not always. In float64 on CPU.

    The weights are large: as transformers initializes them, all tokens are about equally likely, and no mistake in a
    cache would show.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)  # numpy's numbers are the same in every version of torch
    target, draft = (AutoModelForCausalLM.from_config(config).double().eval() for _ in range(2))
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), draft.parameters(), strict=True):
            if ours.ndim > 1:
                ours.copy_(torch.from_numpy(SCALE * rng.standard_normal(ours.shape)))
                theirs.copy_(ours + torch.from_numpy(noise * SCALE * rng.standard_normal(ours.shape)))
    return target, draft


@torch.inference_mode()
def fresh_logits(model: "PreTrainedModel", texts: list[list[int]]) -> list[Tensor]:
    """Scores after every token of every text, [n, V] each, by transformers alone: one forward pass, no cache."""
    longest = max(map(len, texts))
    padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=model.device)
    logits = model(input_ids=padded, use_cache=False).logits  # padding on the right: nothing before it sees it
    return [row[: len(text)] for row, text in zip(logits, texts, strict=True)]


class OnCache(TransformersModel):
    """A real model with its cache, in a form that `exact` takes: a copy shares the model and begins without rows."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnCache":
        twin = memo[id(self)] = OnCache(self.model, feature_layers=self.feature_layers)
        return twin


def random_head(target: "PreTrainedModel", kind: str) -> Head:
    """An untrained head for a small target, in its number type. Its distributions are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = head_config(target, kind)
        head: Head = FeatureHead(config) if kind == "feature" else ParallelHead(config)
    with torch.no_grad():
        head.output.weight.mul_(5)
    return head.to(target.dtype).eval().requires_grad_(False)


def head_drafter(head: Head, target: TransformersModel) -> HeadDrafter | ParallelHeadDrafter:
    """The drafter of either kind of head."""
    return HeadDrafter(head, target) if isinstance(head, FeatureHead) else ParallelHeadDrafter(head, target)
