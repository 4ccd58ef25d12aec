"""Two verdicts on the same drafts, enumerated: token by token (lesson 02), and on the whole block at once.

Block verification (Sun et al., 2024, arXiv 2403.10444, algorithm 2) accepts a longer beginning where later tokens make
up for an earlier one, and samples from another residual. Models are tables: row t is the distribution after token t.
"""

from collections import Counter
from itertools import product

from torch import Tensor

from specdec_ref.acceptance import residual
from specdec_ref.errors import SpecdecError, is_whole

BlockOutcome = tuple[int, float, Tensor]
"""(tokens kept, its probability, what the next token is drawn from [V])."""


def token_verdict(target: Tensor, draft: Tensor, tokens: tuple[int, ...], start: int = 0) -> list[BlockOutcome]:
    """What can become of drafted `tokens` after `start` when each is judged by itself: min(1, p/q), in order."""
    outcomes, alive, last = [], 1.0, start
    for kept, token in enumerate(tokens):
        p, q = target[last], draft[last]
        chance = min(1.0, float(p[token] / q[token]))
        outcomes.append((kept, alive * (1 - chance), residual(p, q)))
        alive, last = alive * chance, token
    return [*outcomes, (len(tokens), alive, target[last])]


def block_verdict(target: Tensor, draft: Tensor, tokens: tuple[int, ...], start: int = 0) -> list[BlockOutcome]:
    """The same when the block is judged together: the longest beginning whose own number lets it pass.

    ratio: of the beginning, min(1, ratio before · p/q). Beginning i passes with s / (s + 1 − ratio), where s is the
    mass of max(0, ratio · p − q) after it; the whole block with its ratio.
    """
    ratio, last, passing, after = 1.0, start, [], []
    for i in range(len(tokens) + 1):
        if i:
            ratio = min(1.0, ratio * float(target[last, tokens[i - 1]] / draft[last, tokens[i - 1]]))
            last = tokens[i - 1]
        rest = (ratio * target[last] - draft[last]).clamp(min=0)
        mass = float(rest.sum())
        whole = i == len(tokens)
        passing.append(1.0 if i == 0 else ratio if whole else mass / (mass + 1 - ratio) if mass + 1 > ratio else 1.0)
        after.append(target[last] if whole or not mass else rest / mass)
    outcomes, none_longer = [], 1.0
    for i in range(len(tokens), -1, -1):
        outcomes.append((i, none_longer * passing[i], after[i]))
        none_longer *= 1 - passing[i]
    return outcomes[::-1]


def enumerate_rounds(target: Tensor, draft: Tensor, k: int, block: bool) -> tuple[dict[tuple[int, ...], float], float]:
    """Everything that a round of k drafted tokens can do after token 0, as float64.

    target, draft: [V, V], every entry of draft above 0. Returns the distribution of the first k + 1 tokens, what the
    round leaves out being drawn from the target, and the mean number of drafted tokens kept. Raises SpecdecError.
    """
    if target.shape != draft.shape or target.ndim != 2 or len(target) != target.shape[1] or not bool((draft > 0).all()):
        raise SpecdecError("target, draft: take two tables [V, V] of one size, the draft's entries above 0")
    if not is_whole(k) or not 1 <= k <= 4:
        raise SpecdecError(f"k={k!r:.80}: takes 1 … 4")
    target, draft = target.double(), draft.double()
    found: Counter[tuple[int, ...]] = Counter()
    mean = 0.0
    for tokens in product(range(len(target)), repeat=k):
        drawn = _joint(draft, tokens)
        for kept, chance, after in (block_verdict if block else token_verdict)(target, draft, tokens):
            mean += drawn * chance * kept
            for rest in product(range(len(target)), repeat=k + 1 - kept):
                share = float(after[rest[0]]) * _joint(target, rest[1:], rest[0])
                found[tokens[:kept] + rest] += drawn * chance * share  # type: ignore[assignment]
    return dict(found), mean


def _joint(table: Tensor, tokens: tuple[int, ...], start: int = 0) -> float:
    """Probability of the tokens, one after the other, after `start`."""
    product_, last = 1.0, start
    for token in tokens:
        product_ *= float(table[last, token])
        last = token
    return product_
