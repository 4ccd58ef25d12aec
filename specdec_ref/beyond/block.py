"""Block verification: one decision about all drafted tokens of a round, instead of one per token.

Token verification clips each ratio p/q at 1. So a token that the draft proposes too rarely cannot
make up for an earlier token that it proposes too often. Block verification gives each prefix of the
drafted tokens a weight, the product of the ratios so far, and clips only the weight. The output
still has exactly the target's distribution. On average at least as many tokens are accepted as by
token verification.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.acceptance import Verdict, check_verify_arguments, residual
from specdec_ref.sampling import Randomness


def verify_block(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
    """Accept the longest prefix of the drafted tokens that passes, then sample one more token.

    Leading dimensions are sequences. Each sequence is decided on its own.

    Args:
        p: [..., k + 1, V], the target's distribution at each drafted position and after the last.
        q: [..., k, V], the distribution that each token was sampled from: one-hot for a
            deterministic draft, zeros where no token was drafted.
        drafted: [..., k] int64. k may be 0.
        randomness: decides and samples.

    Raises:
        SpecdecError: the shapes do not fit together.

    Sun et al. 2024 (arXiv 2403.10444), algorithm 2.
    """
    check_verify_arguments(p, q, drafted)
    p = p.to(torch.promote_types(p.dtype, torch.float32))  # 16 bits are too coarse to decide with
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    # Append a row of zeros to q, for the position after the last drafted token. With q = 0 the
    # surplus equals the weight w. So the whole block passes with probability w / (w + 1 − w) = w,
    # and the residual is p. Neither the bonus token nor a row of fewer than k tokens is a special
    # case.
    q = F.pad(q, (0, 0, 0, 1))
    drafted = F.pad(drafted, (0, 1))
    p_drafted = p.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)
    q_drafted = q.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)

    # 1. The weight of the first i tokens is min(1, weight before · p/q). It is the probability that
    #    at least i are accepted, on average over the tokens drafted after them.
    # 2. These i tokens pass with probability surplus / (surplus + 1 − weight), where the surplus is
    #    the sum of max(0, weight·p − q) at the next position. The empty prefix always passes.
    largest = torch.finfo(p.dtype).max  # a ratio that overflows would give NaN after a weight of 0
    ratios = torch.where(q_drafted > 0, p_drafted / q_drafted, 0).clamp(max=largest)
    weights = [torch.ones_like(p_drafted[..., 0])]
    for ratio in ratios[..., :-1].unbind(-1):
        weights.append((weights[-1] * ratio).clamp(max=1))
    weight = torch.stack(weights, -1)
    weighted = weight.unsqueeze(-1) * p
    surplus = (weighted - q).clamp(min=0).sum(-1)
    passing = torch.where(weight < 1, surplus / (surplus + (1 - weight)), 1)

    # 3. The longest prefix that passes is accepted, even if a shorter one does not pass.
    passes = randomness.accept(passing)
    accepted = (passes * torch.arange(passes.shape[-1], device=passes.device)).amax(-1)

    # 4. The next token is sampled from the residual of the weighted target.
    stop = accepted[..., None, None].expand(*accepted.shape, 1, p.shape[-1])
    p_stop, q_stop = weighted.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)
    return Verdict(accepted, randomness.draw(residual(p_stop, q_stop)))
