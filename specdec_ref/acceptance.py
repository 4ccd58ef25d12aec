"""The rule that makes speculative decoding exact.

A drafted token is accepted with probability min(1, p/q). A rejected token is replaced by a sample
from the residual. Here p is the target's distribution and q is the draft's, over the same
vocabulary and after the same `Sampling`. The drafted token must have been sampled from exactly this
q. Then the emitted token has distribution p, for any q:

    q(x)·min(1, p(x)/q(x)) + P(reject)·residual(x) = min(p(x), q(x)) + max(0, p(x) − q(x)) = p(x)

because P(reject) = 1 − Σ min(p, q) = Σ max(0, p − q). The residual is normalized by the same sum.

Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318),
theorem 1.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.errors import SpecdecError
from specdec_ref.sampling import Randomness


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a drafted token is accepted: min(1, p/q), and 0 where q is 0.

    Args:
        p, q: the target's and the draft's probability of each drafted token; both of one shape.

    Returns:
        A tensor of the same shape.

    Raises:
        SpecdecError: the shapes do not fit.
    """
    _check_shapes(p, q)
    return torch.where(q > 0, (p / q).clamp(max=1), 0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """The distribution that replaces a rejected token: max(0, p − q), normalized.

    Where p = q, up to rounding, nothing is left. The residual is then p itself. A row of
    zeros in q means that no token was drafted. Its residual is p, which gives the bonus token.

    Args:
        p, q: [..., V].

    Returns:
        [..., V], rows sum to one.

    Raises:
        SpecdecError: the shapes do not fit.
    """
    _check_shapes(p, q)
    rest = (p - q).clamp(min=0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)


def acceptance_rate(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a token sampled from q is accepted: Σ min(p, q) = 1 − TV(p, q).

    Leviathan et al. 2022, theorem 3.5.

    Args:
        p, q: [..., V], rows sum to one.

    Returns:
        [...].

    Raises:
        SpecdecError: the shapes do not fit.
    """
    _check_shapes(p, q)
    return torch.minimum(p, q).sum(-1)


def _check_shapes(p: Tensor, q: Tensor) -> None:
    """Raise SpecdecError unless both have one vocabulary and leading dimensions that broadcast."""
    fits = p.shape[-1:] == q.shape[-1:]
    try:
        torch.broadcast_shapes(p.shape, q.shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise SpecdecError(f"p {[*p.shape]}, q {[*q.shape]}: take probabilities of the same shape")


@dataclass(frozen=True)
class Verdict:
    """The decision of a verification rule.

    Attributes:
        accepted: [...] int64, the number of accepted tokens, 0…k.
        next_token: [...] int64, the token that is sampled after the accepted ones.
        path: [..., n] bool, which nodes of a tree are accepted; None for a chain, where the first
            `accepted` tokens are.
    """

    accepted: Tensor
    next_token: Tensor
    path: Tensor | None = None


class Verify(Protocol):
    """A verification rule: `verify`, or another function with the same arguments, such as
    `beyond.block.verify_block`."""

    def __call__(self, p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
        """Decide how many drafted tokens are accepted, and sample one more token."""
        ...


def check_verify_arguments(p: Tensor, q: Tensor, drafted: Tensor) -> None:
    """Raise SpecdecError unless the shapes fit `verify`."""
    if p.shape != (*q.shape[:-2], q.shape[-2] + 1, q.shape[-1]) or drafted.shape != q.shape[:-1]:
        shapes = f"p {[*p.shape]}, q {[*q.shape]}, drafted {[*drafted.shape]}"
        raise SpecdecError(f"{shapes}: do not fit together")


def verify(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
    """Accept drafted tokens up to the first rejection, then sample one more token.

    Leading dimensions are sequences. Each sequence is decided on its own.

    Args:
        p: [..., k + 1, V], the target's distribution at each drafted position and after the last.
        q: [..., k, V], the distribution that each token was sampled from: one-hot for a
            deterministic draft, zeros where no token was drafted.
        drafted: [..., k] int64. k may be 0.
        randomness: decides and samples.

    Raises:
        SpecdecError: the shapes do not fit together.
    """
    check_verify_arguments(p, q, drafted)
    p = p.to(torch.promote_types(p.dtype, torch.float32))  # 16 bits are too coarse to decide with
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    # Append a row of zeros to q, for the position after the last drafted token. Nothing is accepted
    # there, and the residual is p itself. So the bonus token needs no special case.
    q = F.pad(q, (0, 0, 0, 1))
    drafted = F.pad(drafted, (0, 1))

    p_drafted = p.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)
    q_drafted = q.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)
    keep = randomness.accept(acceptance_probability(p_drafted, q_drafted))
    accepted = keep.long().cumprod(-1).sum(-1)

    stop = accepted[..., None, None].expand(*accepted.shape, 1, p.shape[-1])
    p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)
    return Verdict(accepted, randomness.draw(residual(p_stop, q_stop)))
