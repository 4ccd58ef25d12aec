"""The outcomes that samples are counted by, and their probabilities, from the target alone.

The reference must not use the code under test, so nothing of our decoding is used here. The logits come from
transformers' own forward pass and cache. Temperature, top-k and top-p are its own too. The softmax is in float64.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec_ref.cache import cache_argument
from specdec_ref.errors import SpecdecError
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = tuple[int, ...]

MINIMUM = 20
"""The fewest samples expected of an outcome; rarer ones are pooled. χ² is then accurate far out in its tail."""

ROWS, SCORES = 256, 2**24
"""Continuations scored in one pass, and numbers that their scores may be together (128 MiB in float64)."""

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Logits this close to the limit of top-k or top-p may fall on either side by rounding; in bfloat16 half a unit."""


@dataclass(frozen=True)
class OutcomeTree:
    """The likely continuations of one prompt.

    Attributes:
        prompt: token ids.
        own: for each continuation, the probability that a text begins with it and with no longer one of the tree. They
            sum to one.
        possible: for each continuation, which tokens top-k and top-p leave after it (packed bits).
        rounding: the largest total variation between a next-token distribution computed here, in a batch with a cache,
            and by one forward pass over the whole sequence. 4e-7 to 1e-6 in float32 on the models tried, less than a
            thousandth of what 10⁷ samples would detect.
    """

    prompt: Tokens
    own: dict[Tokens, float]
    possible: dict[Tokens, NDArray[np.uint8]]
    rounding: float = 0.0

    def excludes(self, tokens: Tokens) -> bool:
        """Whether the sampling excludes this continuation. Only known for likely ones, so False may be wrong."""
        for i, token in enumerate(tokens):
            bits = self.possible.get(tokens[:i])
            if bits is not None and not int(bits[token >> 3]) >> (7 - (token & 7)) & 1:
                return True
        return False


@torch.inference_mode()
def grow_tree(
    model: "PreTrainedModel", prompt: Tokens, length: int, sampling: Sampling, smallest: float, end: Sequence[int] = ()
) -> OutcomeTree:
    """All continuations of a prompt by up to `length` tokens with a probability of at least `smallest`.

    Scores at most 1/`smallest` continuations of each length, `ROWS` in one pass of the target.

    Args:
        model: the target.
        prompt: token ids.
        length: tokens of the longest continuation.
        sampling: temperature, top-k and top-p.
        smallest: the smallest probability of a continuation.
        end: end tokens. They all count as the first of them.

    Raises:
        SpecdecError: the logits are not finite.
    """
    tree = OutcomeTree(prompt, {}, {})
    worst = 0.0
    known = _cached(model, prompt[:-1])
    rows = max(1, min(ROWS, SCORES // model.config.get_text_config().vocab_size))
    level: list[tuple[Tokens, float]] = [((), 1.0)]
    for depth in range(length):
        level.sort(key=lambda node: -node[1])
        deeper: list[tuple[Tokens, float]] = []
        for first in range(0, len(level), rows):
            nodes = level[first : first + rows]
            logits = _logits(model, known, [[prompt[-1], *tokens] for tokens, _ in nodes])
            p, possible = _distribution(logits, sampling, end)
            if first == 0:
                whole, _ = _distribution(_logits(model, None, [[*prompt, *nodes[0][0]]]), sampling, end)
                worst = max(worst, float((p[0] - whole[0]).abs().sum()) / 2)
            joint = p * p.new_tensor([[probability] for _, probability in nodes])
            likely = joint >= smallest
            rest = joint.masked_fill(likely, 0).sum(-1).tolist()
            for i, (tokens, _) in enumerate(nodes):
                tree.own[tokens] = rest[i]
                if possible is not None:
                    tree.possible[tokens] = np.packbits(possible[i].cpu().numpy())
            row, token = likely.nonzero(as_tuple=True)
            for i, last, probability in zip(row.tolist(), token.tolist(), joint[likely].tolist(), strict=True):
                tokens = (*nodes[i][0], last)
                if depth + 1 == length or last in end:
                    tree.own[tokens] = probability
                else:
                    deeper.append((tokens, probability))
        level = deeper
    return replace(tree, rounding=worst)


def _cached(model: "PreTrainedModel", tokens: Tokens) -> Any:
    """transformers' own cache after these tokens, for one row."""
    from transformers import DynamicCache

    if not tokens:
        return None
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([tokens], device=model.device)
    model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    return cache


def _logits(model: "PreTrainedModel", known: Any, tokens: list[list[int]]) -> Tensor:
    """Next-token logits [B, V] after `tokens` [B, n], which follow what is in the cache `known`."""
    if known is not None:
        known = copy.deepcopy(known)
        known.batch_repeat_interleave(len(tokens))
    ids = torch.tensor(tokens, device=model.device)
    caching = {cache_argument(model): known}
    logits: Tensor = model(input_ids=ids, use_cache=known is not None, **caching).logits[:, -1]
    return logits


def _distribution(logits: Tensor, sampling: Sampling, end: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Probabilities [B, V] in float64, and which tokens [B, V] are possible where top-k or top-p cut some off."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    nothing: Any = None  # they take the text so far, and do not use it
    scores = logits.double()
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(float(sampling.temperature))(nothing, scores)
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(int(sampling.top_k))(nothing, scores)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = TopPLogitsWarper(float(sampling.top_p))(nothing, scores)
    p = scores.softmax(-1)
    if p.isnan().any():
        raise SpecdecError("target: its logits hold NaN or infinity, which is no distribution to compare with")
    possible = None
    if sampling.top_k is not None or sampling.top_p is not None:
        lowest = logits.masked_fill(scores == -torch.inf, torch.inf).amin(-1, keepdim=True)
        possible = logits >= lowest - CLOSE.get(logits.dtype, 0.5)
    for extra in end[1:]:
        p[:, end[0]] += p[:, extra]
        p[:, extra] = 0
        if possible is not None:
            possible[:, end[0]] |= possible[:, extra]
    return p, possible


@dataclass(frozen=True)
class Bins:
    """Outcomes to count: name i stands for texts that begin with it and with no longer name. Probabilities sum to 1."""

    names: tuple[Tokens, ...]
    probabilities: NDArray[np.float64]
    index: dict[Tokens, int]

    def probability(self, name: Tokens) -> float:
        """The probability of the outcome with that name; 0 where there is none."""
        return float(self.probabilities[self.names.index(name)]) if name in self.names else 0.0


def pool(tree: OutcomeTree, samples: int, minimum: float = MINIMUM) -> Bins:
    """Pool outcomes until each is expected at least `minimum` times in `samples`. At least two remain.

    A rarer sequence is pooled with others of the same beginning: 4 tokens become 'these 3, then any other'.
    """
    probability = dict(tree.own)
    home = {tokens: tokens for tokens in probability}
    for tokens in sorted(probability, key=len, reverse=True):
        if tokens and probability[tokens] * samples < minimum:
            probability[tokens[:-1]] += probability.pop(tokens)
            home[tokens] = tokens[:-1]
    if probability[()] * samples < minimum and len(probability) > 1:
        rest = probability.pop(())
        home[()] = min(probability, key=lambda tokens: probability[tokens])
        probability[home[()]] += rest
    names = tuple(sorted(probability, key=lambda tokens: -probability[tokens]))
    number = {tokens: i for i, tokens in enumerate(names)}

    def place(tokens: Tokens) -> int:
        while tokens not in number:
            tokens = home[tokens]
        return number[tokens]

    probabilities = np.array([probability[tokens] for tokens in names])
    return Bins(names, probabilities / probabilities.sum(), {tokens: place(tokens) for tokens in home})
