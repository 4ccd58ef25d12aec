"""The tests of two public projects for their own rule, rewritten from their descriptions, to see what they miss.

Both pass p, q and drafted tokens to the rule alone, so they cannot see the draft, the loop or a cache. They miss more
than that.
"""

import torch
from torch import Tensor

from specdec_lab.equivalence.museum_checks import Observation
from specdec_ref.acceptance import verify
from specdec_ref.sampling import SeededRandomness

VOCAB = 10


def like_transformers(calls: int = 1_000) -> Observation:
    """One block of three drafts, over and over: two certain, the third impossible under the target.

    It passes if two tokens are always accepted, the third is one of the four that the target allows, and their counts
    are in the right order: both likely ones, then the middle one, then the rare one, which must occur. After
    `test_speculative_sampling_target_distribution`, which makes 10,000 calls.
    """
    first, second, impossible = 6, 2, 9
    likely, medium, rare = (0, 5), 3, 8
    allowed = torch.zeros(VOCAB)
    allowed[[*likely, medium, rare]] = torch.tensor([0.4, 0.4, 0.15, 0.05])
    one_hot = torch.eye(VOCAB)
    p = torch.stack([one_hot[first], one_hot[second], allowed, torch.full((VOCAB,), 1 / VOCAB)])[None]
    q = torch.stack([(20 * one_hot[token]).softmax(-1) for token in (first, second, impossible)])[None]
    randomness, counts = SeededRandomness(0), [0] * VOCAB
    for _ in range(calls):
        decision = verify(p, q, torch.tensor([[first, second, impossible]]), randomness)
        accepted, token = int(decision.accepted), int(decision.next_token)
        if accepted != 2 or not allowed[token]:
            return Observation(True, f"accepted {accepted} tokens, then sampled {token}")
        counts[token] += 1
    in_order = min(counts[token] for token in likely) > counts[medium] > counts[rare] > 0
    return Observation(not in_order, f"of {calls}: {[counts[token] for token in (*likely, medium, rare)]}")


def like_vllm(largest: int = 100_000) -> Observation:
    """Random p and q, the same at both drafted positions: does the histogram of what is emitted there approach p?

    It passes if, from 10 samples to 100,000, its distance to p shrinks more than 20 times as much as its distance to
    100 random distributions. The bonus token is left out. After
    `test_rejection_sampling_approximates_target_distribution`.
    """
    generator = torch.Generator().manual_seed(0)
    p, q, references = (torch.rand(n, VOCAB, generator=generator).softmax(-1) for n in (1, 1, 100))
    to_target, to_references = [], []
    for samples in (10, largest):
        histogram = _emitted(p[0], q[0], samples)
        to_target.append(float(torch.dist(p[0], histogram)))
        to_references.append(float(torch.dist(references, histogram)))
    nearer, otherwise = to_target[0] / to_target[1], to_references[0] / to_references[1]
    return Observation(
        nearer <= 20 * otherwise, f"{nearer:.1f} times nearer to p, {otherwise:.1f} to other distributions"
    )


def _emitted(p: Tensor, q: Tensor, samples: int, k: int = 2) -> Tensor:
    """Relative frequencies of the tokens emitted at the k drafted positions, [V]."""
    randomness = SeededRandomness(samples)
    drafted = randomness.draw(q.expand(samples, k, VOCAB))
    decision = verify(p.expand(samples, k + 1, VOCAB), q.expand(samples, k, VOCAB), drafted, randomness)
    accepted = decision.accepted[:, None]
    replaced = decision.next_token[decision.accepted < k]
    tokens = torch.cat([drafted[torch.arange(k) < accepted], replaced])
    return torch.bincount(tokens, minlength=VOCAB) / len(tokens)
