"""From logits to probabilities, and from probabilities to tokens.

`Sampling` is applied in the same way to target and draft. Temperature 0 is an exact one-hot, so
greedy decoding needs no special case. `Randomness` is the only source of randomness in the package:
it samples tokens and makes accept/reject decisions.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec_ref.errors import SpecdecError, is_number, is_whole


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled: temperature, then top-k, then top-p, in transformers' order.

    Attributes:
        temperature: ≥ 0; 0 is greedy (all mass on the largest logit, the first of equals).
        top_k: keep the k largest logits and those equal to the k-th; None keeps all.
        top_p: keep the smallest set of most likely tokens whose mass reaches top_p, in (0, 1]; None
            keeps all.

    Raises:
        SpecdecError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise SpecdecError(
                f"temperature={self.temperature!r}: takes a finite number ≥ 0 (0 is greedy)"
            )
        if self.top_k is not None and (not is_whole(self.top_k) or self.top_k < 1):
            raise SpecdecError(
                f"top_k={self.top_k!r}: takes a whole number ≥ 1, or None to keep all tokens"
            )
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise SpecdecError(
                f"top_p={self.top_p!r}: takes a number in (0, 1], or None to keep all tokens"
            )

    @property
    def greedy(self) -> bool:
        """Whether the next token is always the most likely one."""
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that a token is sampled from, in float32, or float64 for float64 logits.

        Args:
            logits: [..., V].

        Returns:
            [..., V], rows sum to one. A row of logits with NaN or +inf, or with −inf only, gives
            NaN, which the decoding loop reports.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.greedy:
            largest, token = logits.max(-1, keepdim=True)
            certain = (largest - largest) + 1  # 1, or NaN where the logits were not finite
            return torch.zeros_like(logits).scatter_(-1, token, certain)
        if self.temperature != 1:
            coldest = torch.finfo(logits.dtype).tiny  # below it the division would be by 0
            logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, coldest)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        p = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, token = p.sort(stable=True, dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # mass of the tokens that are more likely
            p = p.masked_fill(
                torch.zeros_like(p, dtype=torch.bool).scatter_(-1, token, before >= self.top_p), 0
            )
            p = p / p.sum(-1, keepdim=True)
        return p


GREEDY = Sampling(temperature=0.0)


class Randomness(Protocol):
    """The only two kinds of random decision. To prove exactness, `specdec_lab.equivalence` puts an
    enumeration of all outcomes in its place."""

    def draw(self, probabilities: Tensor) -> Tensor:
        """Sample one token from each row, never one of probability 0. [..., V] → [...] int64."""
        ...

    def accept(self, probability: Tensor) -> Tensor:
        """True with the given probability, independently; at 0 never, at 1 always. [...] → bool."""
        ...


class SeededRandomness:
    """Pseudo-random numbers from one `torch.Generator`.

    The same seed on the same device gives the same tokens. Rows of a batch are independent of each
    other, but share the stream.

    Raises:
        SpecdecError: the seed is not a whole number in range.
    """

    def __init__(self, seed: int | None = None, device: torch.device | str = "cpu"):
        if seed is not None and (not is_whole(seed) or not 0 <= seed < 2**63):
            raise SpecdecError(
                f"seed={seed!r:.80}: takes a whole number, 0 ≤ seed < 2⁶³, or None for a new one"
            )
        self._generator = torch.Generator(device=device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(int(seed))

    def draw(self, probabilities: Tensor) -> Tensor:
        """The first token at which the cumulative probability exceeds u, uniform in [0, 1); in
        float64."""
        cumulative = probabilities.double().cumsum(-1)
        total = cumulative[..., -1:]
        u = (
            torch.rand(
                total.shape, generator=self._generator, dtype=total.dtype, device=total.device
            )
            * total
        )
        u = torch.minimum(
            u, total.nextafter(torch.zeros_like(total))
        )  # rounding must not reach the total
        return (
            torch.searchsorted(cumulative, u, right=True)
            .squeeze(-1)
            .clamp_(max=probabilities.shape[-1] - 1)
        )

    def accept(self, probability: Tensor) -> Tensor:
        """u < probability with u uniform in [0, 1), in the number type of the probability."""
        u = torch.rand(
            probability.shape,
            generator=self._generator,
            dtype=probability.dtype,
            device=probability.device,
        )
        return u < probability
