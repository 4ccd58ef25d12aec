"""Drafters propose tokens: with a smaller model, by a look-up in the text so far, or not at all.

One rule prevents most real-world bugs: a `Draft` holds its tokens together with the exact
distribution that each token was sampled from, or marks them as certain (point masses). q is never
recomputed later.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.acceptance import Verify
from specdec_ref.ancestry import depths
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.models import LanguageModel
from specdec_ref.sampling import Randomness, Sampling


@dataclass(frozen=True)
class Draft:
    """k proposed tokens for each of B sequences.

    The loop raises SpecdecError for a draft of wrong shapes, or with probabilities that do not sum
    to one.

    Attributes:
        tokens: [B, k] int64.
        probabilities: [B, k, V], row i is the distribution that token i was sampled from; None for
            point masses.
        lengths: [B] int64, how many tokens of a row are drafted; the rest is padding. None: all k.
        parents: [B, n] int64 on the host, if the tokens form a tree (see `ancestry`); None for a
            chain. A tree of k levels may have more than k tokens.
        verify: the verification rule for this draft; None uses the rule of the loop. A tree needs
            its own rule.
    """

    tokens: Tensor
    probabilities: Tensor | None = None
    lengths: Tensor | None = None
    parents: Tensor | None = None
    verify: Verify | None = None

    def check(self, rows: int, k: int, vocab_size: int) -> None:
        """Raise SpecdecError unless the shapes fit the request. No values are read, so the host
        does not wait."""
        tokens, q, lengths = self.tokens, self.probabilities, self.lengths
        for name, value in (("tokens", tokens), ("probabilities", q), ("lengths", lengths)):
            if not isinstance(value, Tensor) and (name == "tokens" or value is not None):
                raise SpecdecError(f"drafter: its {name} are {value!r:.60}; takes a tensor")
        if (
            tokens.dtype != torch.int64
            or tokens.ndim != 2
            or tokens.shape[0] != rows
            or (self.parents is None and tokens.shape[1] > k)
        ):
            raise SpecdecError(
                f"drafter: its tokens are {_kind(tokens)}; takes [{rows}, at most {k}] int64"
            )
        if q is not None and (
            q.ndim != 3 or q.shape[:2] != tokens.shape or q.shape[2] > vocab_size
        ):
            takes = f"[{rows}, {tokens.shape[1]}, at most {vocab_size}], one row for each token"
            raise SpecdecError(f"drafter: its probabilities are {list(q.shape)}; takes {takes}")
        if lengths is not None and (lengths.shape != (rows,) or lengths.dtype != torch.int64):
            raise SpecdecError(f"drafter: its lengths are {_kind(lengths)}; takes [{rows}] int64")
        if self.parents is not None:
            self._check_tree(self.parents, k)

    def _check_tree(self, parents: Tensor, k: int) -> None:
        """Raise SpecdecError unless `parents` describe a tree of at most k levels."""
        shape = list(self.tokens.shape)
        if parents.shape != self.tokens.shape or parents.dtype != torch.int64:
            raise SpecdecError(f"drafter: its parents are {_kind(parents)}; takes {shape} int64")
        known = torch.arange(shape[1])
        if (parents >= known).any() or (parents < -1).any():
            raise SpecdecError(
                "drafter: its parents name a later token; takes −1 or the index of an earlier one"
            )
        levels = depths(parents)
        if (levels.diff(dim=1) < 0).any():
            raise SpecdecError("drafter: its parents go back a level; takes nodes level by level")
        if levels.numel() and levels.max() > k:
            raise SpecdecError(
                f"drafter: its tree is {int(levels.max())} levels deep; takes at most {k}"
            )
        if self.verify is None:
            raise SpecdecError("drafter: proposes a tree without verify; takes a rule for trees")

    @property
    def num_drafted(self) -> Tensor:
        """How many tokens of each row are drafted, [B] int64."""
        if self.lengths is not None:
            return self.lengths
        batch, k = self.tokens.shape
        return torch.full((batch,), k, device=self.tokens.device)

    def truncate(self, limits: Tensor) -> "Draft":
        """Keep at most `limits` [B] tokens of each row, or levels of a tree. The tokens after them
        become padding, 0."""
        if self.parents is not None:
            limits = (depths(self.parents).to(limits.device) <= limits[:, None]).sum(1)
        lengths = torch.minimum(self.num_drafted.to(limits.device), limits)
        is_drafted = torch.arange(self.tokens.shape[1], device=limits.device) < lengths[:, None]
        return replace(self, tokens=self.tokens * is_drafted, lengths=lengths)

    def distribution(self, vocab_size: int, like: Tensor) -> Tensor:
        """q for `verify`: [B, k, V], one-hot for a point mass, zero rows for padding.

        Args:
            vocab_size: V.
            like: a tensor with the number type and device of the result.
        """
        q = self.probabilities
        if q is None:
            q = F.one_hot(self.tokens, vocab_size)
        elif q.shape[-1] < vocab_size:  # the target has more padding rows than the draft
            q = F.pad(q, (0, vocab_size - q.shape[-1]))
        if self.lengths is not None:
            lengths = self.lengths.to(q.device, non_blocking=True)
            is_padding = torch.arange(self.tokens.shape[1], device=q.device) >= lengths[:, None]
            q = q.masked_fill(is_padding[..., None], 0)
        return q.to(like)


def _kind(tensor: Tensor) -> str:
    """Shape and number type, for an error."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class Drafter(Protocol):
    """Proposes the next tokens of sequences. The sequences of the next round show a drafter which
    tokens were accepted."""

    def start(self, batch: int, capacity: int) -> None:
        """Begin `batch` new sequences of at most `capacity` tokens."""
        ...

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        """Propose at most `k` tokens, possibly none, or a tree of at most `k` levels, after each of
        `sequences`. Called once per round.

        Args:
            sequences: for each row, the prompt and all emitted tokens.
            k: the requested number of tokens or levels.
            sampling: the distribution to sample from.
            randomness: the source of randomness.
        """
        ...

    def keep(self, rows: list[int]) -> None:
        """Continue with these rows only, in this order."""
        ...


class NoDrafter:
    """Proposes nothing: autoregressive decoding."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self, batch: int, capacity: int) -> None:
        """Nothing to prepare."""

    def keep(self, rows: list[int]) -> None:
        """Nothing to drop."""

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        return empty_draft(len(sequences), self.device)


def point_masses(proposed: list[list[int]]) -> Draft:
    """A draft of point masses, from the proposed tokens of each row (possibly none)."""
    longest = max(map(len, proposed))
    padded = [tokens + [0] * (longest - len(tokens)) for tokens in proposed]
    lengths = [len(tokens) for tokens in proposed]
    return Draft(torch.tensor(padded, dtype=torch.int64), lengths=torch.tensor(lengths))


def empty_draft(batch: int, device: torch.device) -> Draft:
    """A draft of no tokens."""
    return Draft(torch.empty(batch, 0, dtype=torch.int64, device=device))


class ModelDrafter:
    """Samples from a draft model, token by token, with the same `Sampling` as the target.

    Args:
        model: the draft.
        min_confidence: stop after the first token whose probability was below this. That token
            stays in the draft: discarding a sampled token would change the distribution. 0 never
            stops. At temperature 0 a sampled token has probability 1, so it never stops either.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """

    def __init__(self, model: LanguageModel, min_confidence: float = 0.0):
        if not hasattr(model, "extend"):
            raise SpecdecError(
                f"model={model!r:.80}: takes a LanguageModel, as TransformersModel(pair.draft)"
            )
        if not is_number(min_confidence) or not 0 <= min_confidence <= 1:
            raise SpecdecError(
                f"min_confidence={min_confidence!r}: takes a probability, 0 ≤ min_confidence ≤ 1"
            )
        self.model = model
        self.min_confidence = min_confidence
        self._cached: list[int] = []

    def with_model(self, model: LanguageModel) -> "ModelDrafter":
        """A drafter with the same settings on another model."""
        return ModelDrafter(model, self.min_confidence)

    def start(self, batch: int, capacity: int) -> None:
        self.model.start(batch, capacity)
        self._cached = [0] * batch

    def keep(self, rows: list[int]) -> None:
        self.model.keep(rows)
        self._cached = [self._cached[row] for row in rows]

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        if k == 0:  # nothing to sample, but rejected tokens must no longer count as cached
            self._cached = [
                min(cached, len(s) - 1) for cached, s in zip(self._cached, sequences, strict=True)
            ]
            return empty_draft(len(sequences), self.model.device)
        tokens = self._catch_up(sequences)
        drafted, distributions = [], []
        num_drafted = torch.zeros(len(sequences), dtype=torch.int64, device=self.model.device)
        confident = torch.ones_like(num_drafted, dtype=torch.bool)
        for _ in range(k):
            q = sampling.probabilities(self.model.extend(tokens)[:, -1])
            token = randomness.draw(q)
            drafted.append(token)
            distributions.append(q)
            tokens = token[:, None]
            if self.min_confidence > 0:
                num_drafted += confident
                confident = confident & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)
                if not confident.any():  # the host waits for this value, once per token
                    break
        self._cached = [
            len(s) + len(drafted) - 1 for s in sequences
        ]  # the last drafted token is not in the cache
        lengths = num_drafted if self.min_confidence > 0 else None
        return Draft(torch.stack(drafted, 1), torch.stack(distributions, 1), lengths)

    def _catch_up(self, sequences: list[list[int]]) -> Tensor:
        """Rewind to the accepted tokens, and return the tokens to feed next, [B, n].

        n is 1, or 2 if all drafted tokens of some row were accepted. The last drafted token was
        sampled but never fed, so it is fed together with the token after it. Rows that need a
        single token feed their last cached token again.
        """
        valid = [min(cached, len(s) - 1) for cached, s in zip(self._cached, sequences, strict=True)]
        n = max(len(s) - n_valid for s, n_valid in zip(sequences, valid, strict=True))
        if n > min(2, *map(len, sequences)):  # a new prompt, or rounds went by without a draft
            self.model.rewind(valid)
            self.model.prefill(
                [self._known(s[n_valid:-1]) for s, n_valid in zip(sequences, valid, strict=True)]
            )
            n = 1
        self.model.rewind([len(s) - n for s in sequences])
        tokens = torch.tensor([self._known(s[-n:]) for s in sequences])
        return tokens.to(self.model.device, non_blocking=True)

    def _known(self, tokens: list[int]) -> list[int]:
        """Replace ids that the draft has no row for by its last id. A target with more padding rows
        may emit such ids."""
        return [min(token, self.model.vocab_size - 1) for token in tokens]


class PromptLookupDrafter:
    """Proposes the tokens that followed the latest earlier occurrence of the text's last tokens.

    It looks for the last `max_ngram` tokens earlier in the sequence, then for fewer, down to
    `min_ngram`. Without an occurrence it proposes nothing. It needs no model, and its proposals are
    point masses. Saxena 2023 (prompt-lookup-decoding); 'ngram' in vLLM.

    Args:
        max_ngram, min_ngram: numbers of tokens.

    Raises:
        SpecdecError: unless 1 ≤ min_ngram ≤ max_ngram.
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1):
        if not (is_whole(min_ngram) and is_whole(max_ngram) and 1 <= min_ngram <= max_ngram):
            raise SpecdecError(
                f"max_ngram={max_ngram!r}, min_ngram={min_ngram!r}: "
                "take whole numbers, 1 ≤ min_ngram ≤ max_ngram"
            )
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram

    def start(self, batch: int, capacity: int) -> None:
        """Nothing to prepare: the sequences themselves are the memory."""

    def keep(self, rows: list[int]) -> None:
        """Nothing to drop."""

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        return point_masses([self._continuation(s, k) for s in sequences])

    def _continuation(self, sequence: list[int], k: int) -> list[int]:
        for n in range(min(self.max_ngram, len(sequence) - 1), self.min_ngram - 1, -1):
            ending = sequence[-n:]
            for start in range(len(sequence) - n - 1, -1, -1):
                if sequence[start : start + n] == ending:
                    return sequence[start + n : start + n + k]
        return []
