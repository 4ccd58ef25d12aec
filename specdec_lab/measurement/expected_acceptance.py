"""The number of drafted tokens that a right rule accepts on average, given the drafted tokens, for any drafter.

For each round, p, q and the decision of the rule are recorded. The mean and the variance of the number of accepted
tokens follow from p and q: for chains and trees from the rule of their paper, for blocks from the proven optimum. So
the actual number can be compared with the expected one, even if the drafter has no model that could be run again.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specdec_ref.acceptance import Verdict, Verify, residual
from specdec_ref.drafting import Draft, Drafter
from specdec_ref.sampling import Randomness


@dataclass(frozen=True)
class RecordedDecision:
    """The decision of a rule about one row's drafted tokens, and its expectation.

    Attributes:
        accepted: the number of accepted tokens.
        mean, variance: mean and variance of the number that a right rule accepts, given these tokens.
    """

    accepted: int
    mean: float
    variance: float


def recording(drafter: Drafter, rule: Verify, block: bool) -> tuple[Any, list[RecordedDecision]]:
    """Wrap a drafter so that the decisions about its drafts are recorded.

    Args:
        drafter: any drafter.
        rule: the verification rule for its chains; trees have their own rule.
        block: whether this rule verifies blocks.

    Returns:
        A drafter with the same proposals, and a list that fills with the decisions.
    """
    decisions: list[RecordedDecision] = []
    kind: Any = type(drafter)

    class Recorded(kind):  # type: ignore[misc]  # a subclass, since callers test the class of a head
        def propose(self, *arguments: Any) -> Draft:
            draft: Draft = super().propose(*arguments)

            def decide(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> Verdict:
                decision = (draft.verify or rule)(p, q, drafted, randomness)
                for row in range(len(drafted)):
                    n = int((q[row].sum(-1) > 0).sum())  # after the drafted tokens q is zero
                    tokens = drafted[row, :n].tolist()
                    parents = range(-1, n - 1) if draft.parents is None else draft.parents[row, :n].tolist()
                    p_row, q_row = p[row, : n + 1].double(), q[row, :n].double()
                    if block and draft.parents is None:
                        moments = block_moments(p_row, q_row, tokens)
                    else:
                        moments = path_moments(p_row, q_row, tokens, parents)
                    decisions.append(RecordedDecision(int(decision.accepted[row]), *moments))
                return decision

            return replace(draft, verify=decide)

        def with_model(self, *arguments: Any) -> Any:
            drafter = super().with_model(*arguments)
            drafter.__class__ = Recorded
            return drafter

    recorded = copy.copy(drafter)
    recorded.__class__ = Recorded
    return recorded, decisions


def path_moments(p: Tensor, q: Tensor, tokens: Sequence[int], parents: Sequence[int]) -> tuple[float, float]:
    """Mean and variance of the length of the accepted path of a tree; a chain is the tree with one child each.

    Args:
        p: [n + 1, V], the target's distribution after the text and after each node.
        q: [n, V], the distribution that each token was sampled from, given the siblings before it.
        tokens: n ids.
        parents: of each node the one that it follows, −1 for the text.
    """
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)

    def after(node: int) -> tuple[float, float]:
        """Mean and mean square of the number of nodes accepted after this one."""
        mean = square = 0.0
        tried = 1.0
        remaining = p[node + 1]
        for child in children.get(node, []):
            token = tokens[child]
            accepted = tried * min(1.0, float(remaining[token] / q[child, token]))
            more, more_square = after(child)
            mean += accepted * (1 + more)
            square += accepted * (1 + 2 * more + more_square)
            tried -= accepted
            remaining = residual(remaining, q[child])
        return mean, square

    mean, square = after(-1)
    return mean, max(0.0, square - mean**2)


def block_moments(p: Tensor, q: Tensor, tokens: Sequence[int]) -> tuple[float, float]:
    """Mean and variance of the number of tokens that block verification accepts.

    On average over the drafted tokens no rule with the target's distribution accepts more: Sun et al. 2024, arXiv
    2403.10444. The arguments are those of `path_moments`.
    """
    weights = [1.0]
    passing = [1.0]
    for i, token in enumerate(tokens):
        weights.append(min(1.0, weights[-1] * float(p[i, token] / q[i, token])))
        surplus = weights[-1] * p[i + 1]
        if i + 1 < len(tokens):
            surplus = (surplus - q[i + 1]).clamp(min=0)
        total = float(surplus.sum())
        passing.append(1.0 if weights[-1] >= 1 else total / (total + 1 - weights[-1]))
    # The longest prefix that passes is accepted.
    at_least = 1 - (1 - torch.tensor(passing[1:], dtype=torch.float64)).flip(0).cumprod(0).flip(0)
    lengths = torch.arange(1, len(tokens) + 1, dtype=torch.float64)
    mean = float(at_least.sum())
    square = float(((2 * lengths - 1) * at_least).sum())
    return mean, max(0.0, square - mean**2)
