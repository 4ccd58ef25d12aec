"""Token and block verification of the same drafts, enumerated: outcomes of a round and their probabilities.

Token verification (lesson 02) decides each drafted token by itself. Block verification decides them together
(`specdec_ref/beyond/block.py`; Sun et al., 2024, arXiv 2403.10444, algorithm 2). Both functions here call the
reference's own rules with a `Randomness` that makes every decision at once. Models are tables: row t is the
distribution after token t.
"""

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec_lab import plotting
from specdec_lab.equivalence.enumeration import EveryDecision
from specdec_ref.acceptance import Verify, verify
from specdec_ref.beyond.block import verify_block
from specdec_ref.errors import SpecdecError, is_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BlockOutcome = tuple[int, float, Tensor]
"""(accepted tokens, their probability, the distribution [V] that the next token is sampled from)."""


def token_verdict(target: Tensor, draft: Tensor, tokens: tuple[int, ...], start: int = 0) -> list[BlockOutcome]:
    """What token verification can do with `tokens`, drafted after `start`: one outcome for each number of accepted
    tokens, 0 … k."""
    return _outcomes(verify, target, draft, tokens, start)


def block_verdict(target: Tensor, draft: Tensor, tokens: tuple[int, ...], start: int = 0) -> list[BlockOutcome]:
    """What block verification can do with the same tokens."""
    return _outcomes(verify_block, target, draft, tokens, start)


def _outcomes(rule: Verify, target: Tensor, draft: Tensor, tokens: tuple[int, ...], start: int) -> list[BlockOutcome]:
    """Every number of accepted tokens, 0 … k, by playing every decision of the rule."""
    k = len(tokens)
    before = torch.tensor([start, *tokens])
    randomness = EveryDecision(k + 1)
    ways = len(randomness.decisions)
    p, q = target[before].expand(ways, -1, -1), draft[before[:-1]].expand(ways, -1, -1)
    accepted = rule(p, q, before[1:].expand(ways, -1), randomness).accepted
    outcomes = []
    for n in range(k + 1):
        rows = (accepted == n) & (randomness.probability > 0)
        next_token = randomness.next_token[rows][0] if rows.any() else target[before[n]]
        outcomes.append((n, float(randomness.probability[rows].sum()), next_token))
    return outcomes


def enumerate_rounds(target: Tensor, draft: Tensor, k: int, block: bool) -> tuple[dict[tuple[int, ...], float], float]:
    """Everything that a round of k drafted tokens can do after token 0, in float64.

    Args:
        target, draft: [V, V], every entry of draft above 0.
        k: drafted tokens, 1 … 4.
        block: block verification instead of token verification.

    Returns:
        The distribution of the first k + 1 tokens, where those that the round does not emit are sampled from the
        target; and the mean number of accepted tokens.

    Raises:
        SpecdecError: arguments that it cannot use.
    """
    if target.shape != draft.shape or target.ndim != 2 or len(target) != target.shape[1] or not bool((draft > 0).all()):
        raise SpecdecError("target, draft: take two tables [V, V] of one size, the draft's entries above 0")
    if not is_whole(k) or not 1 <= k <= 4:
        raise SpecdecError(f"k={k!r:.80}: takes 1 … 4")
    target, draft = target.double(), draft.double()
    probabilities: Counter[tuple[int, ...]] = Counter()
    mean = 0.0
    for tokens in product(range(len(target)), repeat=k):
        drafted = _joint(draft, tokens)
        for accepted, probability, next_token in (block_verdict if block else token_verdict)(target, draft, tokens):
            mean += drafted * probability * accepted
            for rest in product(range(len(target)), repeat=k + 1 - accepted):
                continued = float(next_token[rest[0]]) * _joint(target, rest[1:], rest[0])
                probabilities[tokens[:accepted] + rest] += drafted * probability * continued  # type: ignore[assignment]
    return dict(probabilities), mean


def _joint(table: Tensor, tokens: tuple[int, ...], start: int = 0) -> float:
    """Probability of the tokens, one after the other, after `start`."""
    product_, last = 1.0, start
    for token in tokens:
        product_ *= float(table[last, token])
        last = token
    return product_


@plotting.styled
def accepted_by_rule_figure(p: float, q: float) -> "Figure":
    """Accepted drafted tokens per round by both rules, for k = 1 … 4, where every position has the same p and q.

    Args:
        p, q: probability of the first of two tokens, for the target and for the draft, in (0, 1).
    """
    target = torch.tensor([[p, 1 - p]] * 2, dtype=torch.float64)
    draft = torch.tensor([[q, 1 - q]] * 2, dtype=torch.float64)
    lengths = (1, 2, 3, 4)
    by_rule = {block: [enumerate_rounds(target, draft, k, block)[1] for k in lengths] for block in (False, True)}
    gain = by_rule[True][-1] / by_rule[False][-1] - 1
    figure, axes = plotting.new_figure(
        f"At k = 4 block verification accepts {gain:.0%} more tokens", "k", "accepted tokens per round", height=3.2
    )
    at = torch.arange(len(lengths)).numpy()
    axes.bar(at - 0.2, by_rule[False], 0.38, color=plotting.TARGET, label="token-wise")
    axes.bar(at + 0.2, by_rule[True], 0.38, color=plotting.ACCEPTED, hatch="//", label="block")
    axes.set_xticks(at, [str(k) for k in lengths])
    axes.legend(loc="upper left")
    return figure
