"""The rule that makes speculative decoding exact: accept a drafted token with min(1, p/q), else draw from the residual.

p is the target's distribution and q the draft's, over the same vocabulary, after the same `Sampling`. The drafted token
must have been drawn from exactly this q. Then the emitted token has distribution p, whatever q is:

    q(x)·min(1, p(x)/q(x))  +  P(reject)·residual(x)  =  min(p(x), q(x)) + max(0, p(x) − q(x))  =  p(x)

because P(reject) = 1 − Σ min(p, q) = Σ max(0, p − q), which is what the residual is divided by.
Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318), theorem 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.errors import SpecdecError
from specdec_ref.sampling import Randomness


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """Chance that a drafted token is kept: min(1, p/q), and 0 where q is 0, since q cannot have drawn it.

    p, q: probabilities of any same shape. Returns that shape. Raises SpecdecError where the shapes do not fit.
    """
    _check_shapes(p, q)
    return torch.where(q > 0, (p / q).clamp(max=1), 0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is left of p after q had its turn: max(0, p − q), normalised. A rejected token is replaced from this.

    p, q: [..., V]. Returns [..., V]. Where p = q nothing is left and nothing can be rejected, save by rounding: there
    it is p itself. A row of q that is all zero stands for 'nothing was drafted'; its residual is p, the bonus token's.
    Raises SpecdecError where the shapes do not fit.
    """
    _check_shapes(p, q)
    rest = (p - q).clamp(min=0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)


def acceptance_rate(p: Tensor, q: Tensor) -> Tensor:
    """Chance that a token drawn from q is accepted: Σ min(p, q) = 1 − TV(p, q).

    p, q: [..., V], rows sum to one. Returns [...]. Raises SpecdecError where the shapes do not fit. Leviathan et al.
    2022, theorem 3.5.
    """
    _check_shapes(p, q)
    return torch.minimum(p, q).sum(-1)


def _check_shapes(p: Tensor, q: Tensor) -> None:
    """Leading dimensions may be broadcast, a vocabulary may not."""
    fits = p.shape[-1:] == q.shape[-1:]
    try:
        torch.broadcast_shapes(p.shape, q.shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise SpecdecError(f"p {[*p.shape]}, q {[*q.shape]}: take probabilities of the same shape")


@dataclass(frozen=True)
class Verdict:
    """accepted: [...] how many drafted tokens are kept, 0…k. next_token: [...] the one token more of the round."""

    accepted: Tensor
    next_token: Tensor


def verify(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
    """Judge k drafted tokens at once: keep them up to the first rejection, then draw one token more.

    p: [..., k + 1, V], the target's distribution at each drafted position and after the last.
    q: [..., k, V], what each token was drawn from (one-hot for a deterministic draft, zero for 'not drafted').
    drafted: [..., k], int64. Leading dimensions are sequences, each judged on its own. k may be 0. Raises SpecdecError.
    """
    if p.shape != (*q.shape[:-2], q.shape[-2] + 1, q.shape[-1]) or drafted.shape != q.shape[:-1]:
        raise SpecdecError(f"p {[*p.shape]}, q {[*q.shape]}, drafted {[*drafted.shape]}: do not fit together")
    p, q = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (p, q))  # 16 bits are too coarse for verdicts
    # Past the last draft nothing was drafted (q = 0): never accepted, so every sequence stops somewhere,
    # and the residual of nothing is p itself. The bonus token is no special case.
    q = F.pad(q, (0, 0, 0, 1))
    drafted = F.pad(drafted, (0, 1))

    p_drafted = p.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)
    q_drafted = q.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)
    keep = randomness.accept(acceptance_probability(p_drafted, q_drafted))
    accepted = keep.long().cumprod(-1).sum(-1)

    stop = accepted[..., None, None].expand(*accepted.shape, 1, p.shape[-1])
    p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)
    return Verdict(accepted, randomness.draw(residual(p_stop, q_stop)))
