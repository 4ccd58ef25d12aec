"""Rules that accept more drafted tokens than the exact rule, or seem to, and their effect on the distribution.

Each rule takes the place of `acceptance.verify` and has its arguments. Their distance from the target is computed, not
sampled: `first_token` enumerates every drafted token and both decisions. For `verify` the distance is 0. `fly` looks at
the tokens that follow, so `expected_by_block` enumerates the decisions of a whole block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_lab.equivalence.enumeration import EveryDecision
from specdec_ref.acceptance import Verdict, Verify, acceptance_probability, residual, verify
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.sampling import Randomness


def typical_acceptance(
    p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness, *, epsilon: float = 0.09, alpha: float = 0.3
) -> Verdict:
    """Accept tokens of sufficient probability: p(x) > min(ε, α·exp(−H(p))). Lossy.

    q plays no part, so tokens that the draft prefers come out too often. A rejected token is replaced by a sample
    from p. Cai et al. 2024 (Medusa, arXiv 2401.10774), section 2.3.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.
        epsilon: ε, the highest threshold.
        alpha: α, scales the threshold where the entropy H(p) in nats is high; Medusa takes the square root of ε.

    Raises:
        SpecdecError: the shapes do not fit, or a parameter is out of range.
    """
    _check_positive("epsilon", epsilon)
    _check_positive("alpha", alpha)
    p, q = _comparable(p, q, drafted)
    before = p[..., :-1, :]
    threshold = (alpha * (-torch.special.entr(before).sum(-1)).exp()).clamp(max=epsilon)
    accept = _of(before, drafted) > threshold
    return _decide(p, q, accept, before, randomness)


def longest_match(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
    """Accept a drafted token if it is the target's most likely token, although the temperature is above 0. Lossy.

    The rule of greedy decoding, applied to sampling: the argmax comes out too often. A rejected token is replaced by a
    sample from p. At temperature 0 the rule is exact.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.

    Raises:
        SpecdecError: the shapes do not fit.
    """
    p, q = _comparable(p, q, drafted)
    before = p[..., :-1, :]
    return _decide(p, q, drafted == before.argmax(-1), before, randomness)


def lenient(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness, *, lenience: float = 0.5) -> Verdict:
    """Accept with min(1, p/(l·q)) instead of min(1, p/q). Lossy for l < 1.

    A rejected token is replaced by a sample from max(0, p − l·q), normalized. No token comes out with a probability
    above p(x)/l. Leviathan et al. 2022, appendix A.5.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.
        lenience: l, 0 < l ≤ 1; 1 is the exact rule.

    Raises:
        SpecdecError: the shapes do not fit, or l is out of range.
    """
    _check_positive("lenience", lenience)
    p, q = _comparable(p, q, drafted)
    before, scaled = p[..., :-1, :], lenience * q
    accept = acceptance_probability(_of(before, drafted), _of(scaled, drafted))
    return _decide(p, q, accept, residual(before, scaled), randomness)


def ensemble(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness, *, weight: float = 0.2) -> Verdict:
    """Decide by (1 − w)·p + w·q in place of p. Lossy for w > 0: the output has the distribution of that mixture.

    Its distance from p is w·TV(p, q), after each token that was drafted. transformers: `assistant_ensemble_weight`.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.
        weight: w, 0 ≤ w ≤ 1; 0 is the exact rule.

    Raises:
        SpecdecError: the shapes do not fit, or w is out of range.
    """
    if not is_number(weight) or not 0 <= weight <= 1:
        raise SpecdecError(f"weight={weight!r:.80}: takes a number, 0 ≤ weight ≤ 1")
    p, q = _comparable(p, q, drafted)
    before = p[..., :-1, :]
    mixed = torch.where(_is_drafted(q)[..., None], (1 - weight) * before + weight * q, before)
    return verify(torch.cat([mixed, p[..., -1:, :]], -2), q, drafted, randomness)


def certain_draft(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
    """Verify a sampled token as if the draft had been certain of it, with q(x) = 1. Exact, and slower.

    The token is accepted with probability p(x), which is at most min(1, p(x)/q(x)). This is equivalent to sampling from
    the target and continuing as long as the sample equals the draft. The acceptance rate is Σ p·q.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.

    Raises:
        SpecdecError: the shapes do not fit.
    """
    p, q = _comparable(p, q, drafted)
    one_hot = F.one_hot(drafted, q.shape[-1]) * _is_drafted(q)[..., None]
    return verify(p, one_hot.to(q), drafted, randomness)


def fly(
    p: Tensor,
    q: Tensor,
    drafted: Tensor,
    randomness: Randomness,
    *,
    window: int = 1,
    entropy: float = 0.3,
    top_k: int = 3,
) -> Verdict:
    """Accept a rejected token, too, if the target is uncertain and the next tokens would be accepted. Lossy.

    Every drafted token is first decided by the exact rule. A rejection is overridden if the entropy of the target's
    most likely tokens, −Σ p·ln p, reaches the threshold, if the exact rule accepts the `window` drafted tokens that
    follow, and if p(x) > 0. Otherwise the residual replaces the token. Li et al. 2025 (FLy, arXiv 2511.22972), in the
    form of vLLM's `rejection_sample_method="fly"`.

    Args:
        p, q, drafted, randomness: as in `acceptance.verify`.
        window: drafted tokens that have to be accepted after a rejected one; vLLM's `fly_window_size`.
        entropy: the threshold in nats; vLLM's `fly_entropy_threshold`.
        top_k: how many of the most likely tokens count; vLLM's `fly_entropy_top_k`.

    Raises:
        SpecdecError: the shapes do not fit, or a parameter is out of range.
    """
    for name, value in (("window", window), ("top_k", top_k)):
        if not is_whole(value) or value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
    if not is_number(entropy) or entropy < 0:
        raise SpecdecError(f"entropy={entropy!r:.80}: takes a number ≥ 0, in nats")
    p, q = _comparable(p, q, drafted)
    before = p[..., :-1, :]
    p_drafted, q_drafted = _of(before, drafted), _of(q, drafted)
    native = randomness.accept(acceptance_probability(p_drafted, q_drafted) * _is_drafted(q))
    most_likely = before.topk(min(top_k, before.shape[-1])).values
    uncertain = torch.special.entr(most_likely).sum(-1) >= entropy
    override = ~native & uncertain & (p_drafted > 0) & (q_drafted > 0)
    for distance in range(1, window + 1):
        override &= F.pad(native, (0, distance))[..., distance:]
    return _sample_next(p, q, native | override, residual(before, q), randomness)


def _check_positive(name: str, value: float) -> None:
    if not is_number(value) or not 0 < value <= 1:
        raise SpecdecError(f"{name}={value!r:.80}: takes a number, 0 < {name} ≤ 1")


def _comparable(p: Tensor, q: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
    """p and q in at least float32. Raises SpecdecError where the shapes do not fit."""
    if p.shape != (*q.shape[:-2], q.shape[-2] + 1, q.shape[-1]) or drafted.shape != q.shape[:-1]:
        raise SpecdecError(f"p {[*p.shape]}, q {[*q.shape]}, drafted {[*drafted.shape]}: do not fit together")
    kind = torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)
    return p.to(kind), q.to(kind)


def _of(probabilities: Tensor, drafted: Tensor) -> Tensor:
    """The probability of each drafted token, [..., k], from [..., k, V]."""
    return probabilities.gather(-1, drafted[..., None]).squeeze(-1)


def _is_drafted(q: Tensor) -> Tensor:
    """Which tokens are drafted, [..., k]; the q of the others is all zero."""
    return q.sum(-1) > 0


def _decide(p: Tensor, q: Tensor, accept: Tensor, replacement: Tensor, randomness: Randomness) -> Verdict:
    """Accept up to the first rejection, then sample one more token.

    Args:
        p: [..., k + 1, V]. q: [..., k, V].
        accept: [..., k], how likely each drafted token is accepted.
        replacement: [..., k, V], the distribution that replaces each where it is rejected.
        randomness: decides and samples.
    """
    keep = randomness.accept((accept * _is_drafted(q)).to(p))
    return _sample_next(p, q, keep, replacement, randomness)


def _sample_next(p: Tensor, q: Tensor, keep: Tensor, replacement: Tensor, randomness: Randomness) -> Verdict:
    """Count the tokens before the first rejection, and sample one more. keep: [..., k] bool, the decisions."""
    replacement = torch.where(_is_drafted(q)[..., None], replacement, p[..., :-1, :])
    next_token = torch.cat([replacement, p[..., -1:, :]], -2)
    accepted = keep.long().cumprod(-1).sum(-1)
    stop = accepted[..., None, None].expand(*accepted.shape, 1, p.shape[-1])
    return Verdict(accepted, randomness.draw(next_token.gather(-2, stop).squeeze(-2)))


class RecordingRandomness:
    """A `Randomness` that rejects every token and records its arguments.

    Attributes:
        acceptance: the probabilities of the last `accept`.
        replacement: the distributions of the last `draw`.
    """

    acceptance: Tensor
    replacement: Tensor

    def draw(self, probabilities: Tensor) -> Tensor:
        self.replacement = probabilities
        return probabilities.argmax(-1)

    def accept(self, probability: Tensor) -> Tensor:
        self.acceptance = probability
        return torch.zeros_like(probability, dtype=torch.bool)


@dataclass(frozen=True)
class FirstToken:
    """The first token that a round emits, by a rule.

    Attributes:
        emitted: its distribution, [V].
        tv: total variation distance between that and p.
        acceptance: probability that the first drafted token is accepted.
    """

    emitted: Tensor
    tv: float
    acceptance: float


def first_token(rule: Verify, p: Tensor, q: Tensor) -> FirstToken:
    """The exact distribution of the first token that a rule emits, summed over all drafted tokens and both decisions.

    For rules that decide token by token. It computes Σ_x q(x)·[a(x)·δ_x + (1 − a(x))·r_x], where a(x) is the
    probability that the rule accepts x, and r_x is the distribution that replaces x.

    Args:
        rule: takes the place of `acceptance.verify`.
        p, q: distributions of target and draft, [V].

    Raises:
        SpecdecError: p and q are not distributions over the same tokens.
    """
    if p.ndim != 1 or p.shape != q.shape:
        raise SpecdecError(f"p {[*p.shape]}, q {[*q.shape]}: take two distributions, [V]")
    p, q = p.double(), q.double()
    size = len(p)
    recording = RecordingRandomness()
    every = torch.arange(size, device=p.device)[:, None]
    rule(p.expand(size, 2, size), q.expand(size, 1, size), every, recording)
    accepted = q * recording.acceptance[:, 0]
    emitted = accepted + (q - accepted) @ recording.replacement
    return FirstToken(emitted, float((emitted - p).abs().sum() / 2), float(accepted.sum()))


def acceptance_by_position(rule: Verify, p: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """Probability that a rule accepts each drafted token if it comes to decide on it, [..., k].

    Args:
        rule: takes the place of `acceptance.verify`.
        p, q, drafted: as in `acceptance.verify`.
    """
    recording = RecordingRandomness()
    rule(p, q, drafted, recording)
    return recording.acceptance[..., : drafted.shape[-1]]


def expected_by_block(rule: Verify, p: Tensor, q: Tensor, drafted: Tensor) -> tuple[float, float]:
    """What a rule accepts of one drafted block, over all 2ᵏ decisions, also if one decision depends on later ones.

    Args:
        rule: takes the place of `acceptance.verify`, and decides about all k drafted tokens at once.
        p: [k + 1, V], as in `acceptance.verify`.
        q: [k, V].
        drafted: [k].

    Returns:
        The expected number of accepted tokens, and the probability that the first token is accepted.
    """
    randomness = EveryDecision(len(drafted))
    ways = len(randomness.decisions)
    accepted = rule(p.expand(ways, -1, -1), q.expand(ways, -1, -1), drafted.expand(ways, -1), randomness).accepted
    number = randomness.probability * accepted
    first = randomness.probability * (accepted > 0)
    return float(number.sum()), float(first.sum())
