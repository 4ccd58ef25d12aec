"""Several candidates for a position: the draft is a tree of tokens.

A chain ends at its first rejection. In a tree the next sibling is tried, by the same rule: a token
that was sampled from q is accepted with probability min(1, p/q), and after a rejection the residual
max(0, p − q) takes the place of p. So each sibling only needs the q that it was sampled from, given
the siblings before it. The schemes below differ only in this q, and `verify_tree` does not depend
on the scheme.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from specdec_ref.acceptance import Verdict, acceptance_probability, residual
from specdec_ref.beyond.tree_readers import TreeReader, TreeSource, tree_reader
from specdec_ref.drafting import Draft, empty_draft
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.sampling import Randomness, Sampling

SCHEMES = "iid", "without replacement", "top-k"
"""How the siblings of a node are chosen, and the q of each:

- 'iid': independent samples. The q of each is the draft's distribution. A token that is sampled
  twice gives two siblings (SpecInfer, arXiv 2305.09781).
- 'without replacement': successive samples. The q of each is the draft's distribution without the
  tokens sampled before, normalized again.
- 'top-k': the draft's most likely tokens. They are deterministic, so each is a point mass, q = 1
  (EAGLE-2, arXiv 2406.16858).
"""


class TreeDrafter:
    """Proposes a tree of tokens from a draft model or a head, with a fixed number of siblings on
    each level.

    The k of a round limits the depth of the tree. At temperature 0 all samples are the same token,
    so only 'top-k' proposes different siblings.

    Args:
        model: the draft, a `LanguageModel` that can score trees (`TreeModel`), or a head, as
            `load_head` returns it.
        branching: the number of siblings on each level. (3, 2, 1) proposes three tokens, two after
            each of the three, and one after each of the six: 15 nodes in all.
        scheme: one of `SCHEMES`.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        model: TreeSource,
        branching: Sequence[int] = (3, 2, 1),
        scheme: str = "top-k",
    ):
        if scheme not in SCHEMES:
            raise SpecdecError(f"scheme={scheme!r:.80}: takes one of {', '.join(SCHEMES)}")
        self.branching = _checked_branching(branching)
        self._reader = tree_reader(model, depth=len(self.branching))
        _check_size(self.branching, self._reader)
        self.model = model
        self.scheme = scheme

    def with_model(self, model: TreeSource) -> "TreeDrafter":
        """A drafter with the same settings on another model or head."""
        return TreeDrafter(model, self.branching, self.scheme)

    def start(self, batch: int, capacity: int) -> None:
        self._reader.start(batch, capacity)

    def keep(self, rows: list[int]) -> None:
        self._reader.keep(rows)

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        if k == 0:
            return empty_draft(len(sequences), self._reader.device)
        logits = self._reader.after_text(sequences)
        tokens: list[Tensor] = []
        distributions: list[Tensor] = []
        parents: list[int] = []
        level = [-1]  # the nodes that the next siblings follow; −1 is the text
        for width in self.branching[:k]:
            if parents:
                logits = self._reader.after_level(tokens[-1], _for_rows(parents, sequences))
            siblings, q = self._siblings(logits, width, sampling, randomness)
            tokens.append(siblings.flatten(1))
            distributions += [] if q is None else [q.flatten(1, 2)]
            first = len(parents)
            parents += [node for node in level for _ in range(width)]
            level = list(range(first, len(parents)))
        self._reader.forget_tree()
        q = torch.cat(distributions, 1) if distributions else None
        return tree_draft(torch.cat(tokens, 1), _for_rows(parents, sequences), q)

    def _siblings(
        self, logits: Tensor, width: int, sampling: Sampling, randomness: Randomness
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the tokens that follow each node of a level.

        Args:
            logits: [B, m, V], of the draft after each of the m nodes.
            width: how many tokens follow each node.
            sampling, randomness: as in `propose`.

        Returns:
            The tokens, [B, m, width], and the q of each, [B, m, width, V], or None for point
            masses.
        """
        if self.scheme == "top-k":
            return logits.topk(width).indices, None
        q = sampling.probabilities(logits)
        siblings, distributions = [], []
        for _ in range(width):
            token = randomness.draw(q)
            siblings.append(token)
            distributions.append(q)
            if self.scheme == "without replacement":
                q = without(q, token)
        return torch.stack(siblings, -1), torch.stack(distributions, -2)


class BestFirstDrafter:
    """Proposes the tree of a draft's most probable continuations, as point masses.

    On each level, the `width` most probable nodes are continued by their `width` most likely
    tokens. Of all these nodes, the `nodes` most probable are proposed. They form a tree, since no
    node is more probable than its parent. The k of a round limits the depth. Li et al. 2024
    (EAGLE-2, arXiv 2406.16858).

    Args:
        model: the draft, as in `TreeDrafter`.
        nodes: how many tokens to propose.
        depth: the number of levels.
        width: how many nodes of a level are continued, and by how many tokens.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """

    def __init__(self, model: TreeSource, nodes: int = 10, depth: int = 4, width: int = 4):
        for name, value in (("nodes", nodes), ("depth", depth), ("width", width)):
            if not is_whole(value) or value < 1:
                raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
        reader = self._reader = tree_reader(model, depth)
        if width > reader.vocab_size:
            raise SpecdecError(
                f"width={width}: takes at most the draft's vocabulary, {reader.vocab_size}"
            )
        candidates = width + (depth - 1) * width**2
        if max(nodes, candidates) > reader.context:
            raise SpecdecError(
                f"nodes={nodes}, depth={depth}, width={width}: {candidates} candidates for {nodes} "
                f"nodes; takes at most the draft's context of each, {reader.context}"
            )
        self.model = model
        self.nodes, self.depth, self.width = nodes, depth, width

    def with_model(self, model: TreeSource) -> "BestFirstDrafter":
        """A drafter with the same settings on another model or head."""
        return BestFirstDrafter(model, self.nodes, self.depth, self.width)

    def start(self, batch: int, capacity: int) -> None:
        self._reader.start(batch, capacity)

    def keep(self, rows: list[int]) -> None:
        self._reader.keep(rows)

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        if k == 0:
            return empty_draft(len(sequences), self._reader.device)
        logits = self._reader.after_text(sequences)
        # All nodes so far, and the nodes of the last level that are continued; at first, the text.
        tokens = torch.empty(len(sequences), 0, dtype=torch.int64, device=logits.device)
        parents, log_p = tokens, tokens.to(logits)
        level = _for_rows([-1], sequences).to(logits.device)
        log_p_level = torch.zeros_like(level, dtype=logits.dtype)
        # The draft reads only the nodes that are continued. These parents number those nodes alone.
        read_parents = tokens
        for _ in range(min(k, self.depth)):
            if tokens.shape[1]:
                logits = self._reader.after_level(tokens.gather(1, level), read_parents.cpu())
            # 1. Each node of the level gets its most likely tokens.
            likely = logits.log_softmax(-1).topk(self.width)
            added = (log_p_level[..., None] + likely.values).flatten(1)
            first = tokens.shape[1]
            tokens = torch.cat([tokens, likely.indices.flatten(1)], 1)
            parents = torch.cat([parents, level.repeat_interleave(self.width, 1)], 1)
            log_p = torch.cat([log_p, added], 1)
            # 2. The most probable of the new nodes are continued.
            best = most_probable(added, self.width)
            first_parent = read_parents.shape[1] - level.shape[1]  # −1 on the first level: the text
            read_parents = torch.cat([read_parents, first_parent + best // self.width], 1)
            level, log_p_level = first + best, added.gather(1, best)
        self._reader.forget_tree()
        # 3. The most probable of all nodes are proposed. They get new indices.
        best = most_probable(log_p, self.nodes)
        parents = parents.gather(1, best)
        numbers = torch.searchsorted(best, parents)
        parents = torch.where(parents < 0, -1, numbers)
        return tree_draft(tokens.gather(1, best), parents.cpu(), None)


def most_probable(log_p: Tensor, count: int) -> Tensor:
    """The indices of each row's largest entries, in rising order. Of equal entries, the first.

    [B, m] → [B, min(count, m)] int64.
    """
    order = log_p.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :count].sort(-1).values


def tree_draft(tokens: Tensor, parents: Tensor, q: Tensor | None) -> Draft:
    """A `Draft` of a tree, with the verification rule for trees.

    Args:
        tokens: [B, n] int64.
        parents: [B, n] int64 on the host.
        q: [B, n, V], the distribution that each token was sampled from, given the siblings before
            it; None for point masses.
    """
    return Draft(tokens, q, parents=parents, verify=partial(verify_tree, parents=parents))


def _checked_branching(branching: Sequence[int]) -> tuple[int, ...]:
    """The branching as a tuple, or SpecdecError."""
    listed = isinstance(branching, Sequence) and not isinstance(branching, (str, bytes))
    widths = tuple(branching) if listed else ()
    if not widths or not all(is_whole(n) and n >= 1 for n in widths):
        takes = "takes the number of siblings on each level, each ≥ 1, as (3, 2, 1)"
        raise SpecdecError(f"branching={branching!r:.80}: {takes}")
    return widths


def _check_size(branching: tuple[int, ...], reader: TreeReader) -> None:
    """Raise SpecdecError for a tree that is too large for its draft."""
    if max(branching) > reader.vocab_size:
        raise SpecdecError(
            f"branching={branching!r:.80}: has {max(branching)} siblings on a level; "
            f"takes at most the draft's vocabulary, {reader.vocab_size}"
        )
    nodes = sum(prod(branching[: depth + 1]) for depth in range(len(branching)))
    if nodes > reader.context:
        raise SpecdecError(
            f"branching={branching!r:.80}: is a tree of {nodes} nodes; "
            f"takes at most the draft's context, {reader.context}"
        )


def _for_rows(parents: list[int], sequences: list[list[int]]) -> Tensor:
    """The same tree after every sequence, [B, n] int64."""
    return torch.tensor([parents] * len(sequences))


def without(q: Tensor, token: Tensor) -> Tensor:
    """q without a token, normalized again; q itself if the token has all of its mass.

    Args:
        q: [..., V].
        token: [...] int64.

    Returns:
        [..., V], rows sum to one.
    """
    rest = q.scatter(-1, token.unsqueeze(-1), 0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, q)


def verify_tree(
    p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness, *, parents: Tensor
) -> Verdict:
    """Walk from the text along accepted nodes, then sample one more token.

    The children of a node are tried in order. Each is accepted with probability min(1, p/q), and
    after each rejection the residual takes the place of p. If all children are rejected, the next
    token is sampled from the last residual. After a node without children, it is sampled from p
    (the bonus token). A chain is the tree in which every node has one child. Miao et al. 2023
    (SpecInfer, arXiv 2305.09781).

    Args:
        p: [B, n + 1, V], the target's distribution after the text and after each node.
        q: [B, n, V], the distribution that each token was sampled from, given the siblings before
            it: one-hot for a deterministic draft, zeros where no token was drafted.
        drafted: [B, n] int64.
        randomness: decides and samples.
        parents: [B, n] int64, the node that each node follows, −1 for the text; parents come first.

    Returns:
        The `Verdict`, with the accepted `path`.

    Raises:
        SpecdecError: the shapes do not fit together.
    """
    batch, n = drafted.shape
    fits = p.shape == (batch, n + 1, q.shape[-1]) and q.shape[:2] == parents.shape == (batch, n)
    if not fits:
        shapes = f"p {[*p.shape]}, q {[*q.shape]}, drafted {[*drafted.shape]}"
        raise SpecdecError(f"{shapes}, parents {[*parents.shape]}: do not fit together")
    p = p.to(torch.promote_types(p.dtype, torch.float32))  # 16 bits are too coarse to decide with
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    parents = parents.to(p.device, non_blocking=True)
    rows = torch.arange(batch, device=p.device)
    path = torch.zeros(batch, n, dtype=torch.bool, device=p.device)
    last = torch.full((batch,), -1, device=p.device)  # the last accepted node, or the text
    remaining = p[:, 0]  # the distribution of the token after it, given the rejections so far
    for i in range(n):
        # Once a sibling is accepted, those after it no longer follow the last accepted node.
        tried = parents[:, i] == last
        if p.device.type == "cpu" and not tried.any():
            continue  # not on a GPU, where reading `tried` would make the host wait
        token = drafted[:, i]
        ratio = acceptance_probability(remaining[rows, token], q[rows, i, token])
        accepted = randomness.accept(torch.where(tried, ratio, 0))
        rejected = tried & ~accepted
        remaining = torch.where(rejected[:, None], residual(remaining, q[:, i]), remaining)
        remaining = torch.where(accepted[:, None], p[:, i + 1], remaining)
        last = torch.where(accepted, i, last)
        path[:, i] = accepted
    return Verdict(path.sum(-1), randomness.draw(remaining), path)
