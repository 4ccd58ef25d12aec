"""Readers let a draft model, a feature head or a parallel head draft a tree.

A reader reads the texts, then the tree after each text, one level at a time. It returns the draft's
logits after each node, from which `trees` chooses the next level. After a round it reads the
accepted tokens again, in the same step as the newest token. A step of a few tokens takes hardly
longer than a step of one, and the tree need not be kept.
"""

from typing import Protocol

import torch
from torch import Tensor

from specdec_ref.ancestry import depths
from specdec_ref.beyond.heads import HeadDrafter, ParallelHeadDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.models import LanguageModel, TreeModel, tree_model

TreeSource = LanguageModel | HeadDrafter | ParallelHeadDrafter
"""Models and heads that can draft a tree. A `LanguageModel` has to score trees (`TreeModel`)."""


class TreeReader(Protocol):
    """Reads texts and the trees after them.

    Attributes:
        vocab_size: the number of token ids that it scores.
        context: the number of tokens that it can hold.
        device: where logits are.
    """

    vocab_size: int
    context: int
    device: torch.device

    def start(self, batch: int, capacity: int) -> None:
        """Begin `batch` empty texts of at most `capacity` tokens."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Continue with these rows only, in this order."""
        ...

    def after_text(self, sequences: list[list[int]]) -> Tensor:
        """Read the new tokens of each text. Returns the logits after its last token, [B, 1, V]."""
        ...

    def after_level(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Read one more level of the tree after each text.

        Args:
            tokens: the nodes of the level, [B, n].
            parents: [B, m] int64 on the host, of all nodes so far, as in `TreeModel.extend_tree`.

        Returns:
            The logits after each node of the level, [B, n, V].
        """
        ...

    def forget_tree(self) -> None:
        """Forget the tree, and continue with the texts alone."""
        ...


def tree_reader(source: TreeSource, depth: int) -> TreeReader:
    """The reader for a draft model or head.

    Args:
        source: the draft model or head.
        depth: levels of the trees.

    Raises:
        SpecdecError: the source cannot score trees of this depth.
    """
    if isinstance(source, HeadDrafter):
        return HeadReader(source)
    if isinstance(source, ParallelHeadDrafter):
        return ParallelHeadReader(source, depth)
    return ModelReader(tree_model(source, "model"), depth)


class ModelReader:
    """A draft model that reads texts, and appends a tree to its cache one level at a time.

    Args:
        model: the draft.
        depth: levels of the trees. A round adds at most depth + 1 tokens to a text, so the last
            depth + 1 tokens are read each time. All these steps have one shape, so a single
            recording serves them (see `fast`).
    """

    def __init__(self, model: TreeModel, depth: int):
        self._model = model
        self._num_read = depth + 1
        self._lengths: list[int] = []  # the number of tokens read of each text
        self.vocab_size, self.context = model.vocab_size, model.context
        self.device = model.device

    def start(self, batch: int, capacity: int) -> None:
        self._model.start(batch, capacity)
        self._lengths = [0] * batch

    def keep(self, rows: list[int]) -> None:
        self._model.keep(rows)
        self._lengths = [self._lengths[row] for row in rows]

    def after_text(self, sequences: list[list[int]]) -> Tensor:
        n = min(self._num_read, *map(len, sequences))
        known = [
            min(length, len(s) - n) for length, s in zip(self._lengths, sequences, strict=True)
        ]
        self._model.rewind(known)
        # A target with more padding rows may emit ids that the draft has no row for.
        largest = self.vocab_size - 1
        unread = [
            [min(token, largest) for token in s[start:]]
            for s, start in zip(sequences, known, strict=True)
        ]
        self._model.prefill([row[:-n] for row in unread])
        self._lengths = [len(sequence) for sequence in sequences]
        last = torch.tensor([row[-n:] for row in unread])
        return self._model.extend(last.to(self.device, non_blocking=True))[:, -1:]

    def after_level(self, tokens: Tensor, parents: Tensor) -> Tensor:
        return self._model.extend_tree(tokens, parents)

    def forget_tree(self) -> None:
        self._model.rewind(self._lengths)


class HeadReader:
    """A feature head. At a node it reads its own output at the parent, in place of the target's
    features.

    drafter: the drafter with the head, its cache and the target.
    """

    def __init__(self, drafter: HeadDrafter):
        self._drafter = drafter
        # [B, 1 + m, d], at the last token of the text and at each node.
        self._outputs = torch.empty(0)
        self.vocab_size, self.context = drafter.target.vocab_size, drafter.target.context
        self.device = drafter.target.device
        self.start, self.keep = drafter.start, drafter.keep

    def after_text(self, sequences: list[list[int]]) -> Tensor:
        self._outputs = self._drafter.read_texts(sequences)
        return self._drafter.logits(self._outputs)

    def after_level(self, tokens: Tensor, parents: Tensor) -> Tensor:
        before = (parents[:, -tokens.shape[1] :] + 1).to(self.device)
        states = self._outputs.take_along_dim(before[..., None], 1)
        output = self._drafter.read_nodes(states, tokens, parents)
        self._outputs = torch.cat([self._outputs, output], 1)
        return self._drafter.logits(output)

    def forget_tree(self) -> None:
        """Nothing to do: the cache is rewound when the next text is read."""


class ParallelHeadReader:
    """A parallel head. Its logits for a position do not depend on the tokens drafted before it, so
    they are the same after all nodes of a level.

    Args:
        drafter: the drafter with the head and the target.
        depth: levels of the trees.

    Raises:
        SpecdecError: the head drafts fewer than `depth` tokens in one pass.
    """

    def __init__(self, drafter: ParallelHeadDrafter, depth: int):
        num_tokens = drafter.head.config.num_tokens
        if depth > num_tokens:
            raise SpecdecError(
                f"model: this parallel head drafts {num_tokens} tokens in one pass; "
                f"takes trees of at most {num_tokens} levels, not {depth}"
            )
        self._drafter = drafter
        self._logits = torch.empty(0)  # of each position after the text, [B, num_tokens, V]
        self.vocab_size, self.context = drafter.target.vocab_size, drafter.target.context
        self.device = drafter.target.device
        self.start, self.keep = drafter.start, drafter.keep

    def after_text(self, sequences: list[list[int]]) -> Tensor:
        self._logits = self._drafter.logits(sequences)
        return self._logits[:, :1]

    def after_level(self, tokens: Tensor, parents: Tensor) -> Tensor:
        level = depths(parents)[:, -tokens.shape[1] :].to(self.device)
        return self._logits.take_along_dim(level[..., None], 1)

    def forget_tree(self) -> None:
        """Nothing to do: the head has no cache."""
