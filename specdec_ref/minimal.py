"""Speculative decoding in forty lines: one sequence, no cache, no batch. Start here.

`decoding.py` does the same with a KV cache that can be rewound, for a batch of sequences. For one
sequence and the same seed, it emits the same tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdec_ref.acceptance import residual
from specdec_ref.sampling import Randomness

Model = Callable[[list[int]], Tensor]
"""Token ids [n] → probabilities [n, V], on the CPU, in float32 or float64. Row i is the
distribution of the token after the first i + 1 tokens."""


def generate(
    target: Model,
    draft: Model,
    prompt: Sequence[int],
    k: int,
    max_new_tokens: int,
    randomness: Randomness,
) -> list[int]:
    """Decode with draft and verify. The new tokens have exactly the target's distribution, for any
    draft.

    Leviathan et al. 2022, algorithm 1.

    Args:
        target, draft: two models with one vocabulary.
        prompt: token ids, at least one.
        k: tokens drafted per round; 0 is autoregressive decoding.
        max_new_tokens: the number of tokens to return.
        randomness: samples tokens and makes accept/reject decisions, see `sampling`.

    Returns:
        The new token ids.
    """
    tokens = list(prompt)
    end = len(prompt) + max_new_tokens
    while len(tokens) < end:
        # 1. The draft samples up to k tokens, one at a time. q holds the distribution of each.
        drafted: list[int] = []
        q: list[Tensor] = []
        for _ in range(min(k, end - len(tokens) - 1)):  # the round's last token is not drafted
            q.append(draft([*tokens, *drafted])[-1])
            drafted.append(int(randomness.draw(q[-1])))

        # 2. The target scores all drafted tokens in one forward pass.
        #    p[i] is its distribution after i of them.
        p = target([*tokens, *drafted])[len(tokens) - 1 :]

        # 3. Each drafted token is accepted with probability min(1, p/q), up to the first rejection.
        #    The 0 at the end only uses one more random number, as `verify` does, so that the same
        #    seed gives the same tokens.
        ratios = [float(p[i, token] / q[i][token]) for i, token in enumerate(drafted)]
        accepted = randomness.accept(torch.tensor([*ratios, 0.0], dtype=p.dtype).clamp(max=1))
        n = int(accepted.long().cumprod(0).sum())

        # 4. A rejected token is replaced by a sample from the residual max(0, p − q). If all were
        #    accepted, the target's next distribution gives a bonus token.
        rejected = n < len(drafted)
        next_token = randomness.draw(residual(p[n], q[n]) if rejected else p[n])
        tokens += [*drafted[:n], int(next_token)]
    return tokens[len(prompt) :]
