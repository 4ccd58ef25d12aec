"""Random transformers small enough for tests: real layers, a real KV cache, and float64 so that equal means equal."""

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

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
    chance = np.random.default_rng(0)  # and not torch's: the same numbers with any version of anything
    target, draft = (AutoModelForCausalLM.from_config(config).double().eval() for _ in range(2))
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), draft.parameters(), strict=True):
            if ours.ndim > 1:
                ours.copy_(torch.from_numpy(SCALE * chance.standard_normal(ours.shape)))
                theirs.copy_(ours + torch.from_numpy(noise * SCALE * chance.standard_normal(ours.shape)))
    return target, draft


@torch.inference_mode()
def fresh_logits(model: "PreTrainedModel", texts: list[list[int]]) -> list[Tensor]:
    """Scores after every token of every text, [n, V] each, by transformers alone: one forward pass, no cache."""
    longest = max(map(len, texts))
    padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=model.device)
    logits = model(input_ids=padded, use_cache=False).logits  # padding on the right: nothing before it sees it
    return [row[: len(text)] for row, text in zip(logits, texts, strict=True)]


class OnCache:
    """A real model with its cache, in the form that `exact` takes, which asks for tables otherwise.

    A copy shares the model and begins without rows.
    """

    __slots__ = (
        "_model", "context", "device", "extend", "extend_tree", "keep", "keep_path", "prefill", "rewind", "start",
        "vocab_size",
    )  # fmt: skip

    def __init__(self, model: "PreTrainedModel"):
        inner = self._model = TransformersModel(model)
        self.vocab_size, self.context, self.device = inner.vocab_size, inner.context, inner.device
        self.start, self.prefill, self.extend = inner.start, inner.prefill, inner.extend
        self.rewind, self.keep = inner.rewind, inner.keep
        self.extend_tree, self.keep_path = inner.extend_tree, inner.keep_path

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnCache":
        return OnCache(self._model.model)

    def __reduce__(self) -> NoReturn:
        raise TypeError("what a cache remembers cannot be compared, so the proof merges nothing")
