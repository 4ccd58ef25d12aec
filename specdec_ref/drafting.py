"""Who proposes tokens: a smaller model, a look-up in the text so far, or nobody.

One rule prevents most bugs of the wild: a `Draft` carries its tokens together with the exact distribution that each was
drawn from, or says that it was certain ('point mass'). Nothing downstream ever recomputes q.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.errors import SpecdecError
from specdec_ref.models import LanguageModel
from specdec_ref.sampling import Randomness, Sampling


@dataclass(frozen=True)
class Draft:
    """k proposed tokens for each of B sequences.

    tokens: [B, k] int64. probabilities: [B, k, V], row i is what token i was drawn from; None for a point mass, tokens
    that are certain. lengths: how many of a row's tokens are meant, [B] int64; None for all k.
    """

    tokens: Tensor
    probabilities: Tensor | None = None
    lengths: Tensor | None = None

    def meant(self) -> Tensor:
        """How many tokens of each row are meant, [B] int64."""
        batch, k = self.tokens.shape
        return self.lengths if self.lengths is not None else torch.full((batch,), k, device=self.tokens.device)

    def distribution(self, vocab_size: int, like: Tensor) -> Tensor:
        """q for `verify`: [B, k, V], one-hot for a point mass, zero rows for tokens that are not meant.

        V is `vocab_size`; number type and device are those of `like`.
        """
        q = self.probabilities
        if q is None:
            q = F.one_hot(self.tokens, vocab_size)
        elif q.shape[-1] < vocab_size:  # the target has more padding rows than the draft
            q = F.pad(q, (0, vocab_size - q.shape[-1]))
        if self.lengths is not None:
            is_meant = torch.arange(self.tokens.shape[1], device=q.device) < self.lengths[:, None]
            q = q * is_meant[..., None]
        return q.to(like)


class Drafter(Protocol):
    """Proposes the next tokens of sequences. It hears the outcome of a round from the sequences of the next one."""

    def start(self, batch: int, capacity: int) -> None:
        """Begin `batch` new sequences of at most `capacity` tokens."""
        ...

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        """At most `k` tokens after each of `sequences` (prompt and all emitted tokens)."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        ...


class ModelDrafter:
    """Draws from a draft model, token by token, with the same `Sampling` as the target.

    min_confidence: stop after the first token whose probability was below this (that token stays in the draft:
    throwing away what was drawn would change the distribution). 0 never stops.
    """

    def __init__(self, model: LanguageModel, min_confidence: float = 0.0):
        if not 0 <= min_confidence <= 1:
            raise SpecdecError(f"min_confidence={min_confidence!r}: takes a probability, 0 ≤ min_confidence ≤ 1")
        self.model = model
        self.min_confidence = min_confidence
        self._cached: list[int] = []

    def start(self, batch: int, capacity: int) -> None:
        self.model.start(batch, capacity)
        self._cached = [0] * batch

    def keep(self, rows: list[int]) -> None:
        self.model.keep(rows)
        self._cached = [self._cached[row] for row in rows]

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        tokens = self._catch_up(sequences)
        drawn, distributions = [], []
        meant = torch.zeros(len(sequences), dtype=torch.int64, device=self.model.device)
        going = torch.ones_like(meant, dtype=torch.bool)
        for _ in range(k):
            q = sampling.probabilities(self.model.extend(tokens)[:, -1])
            token = randomness.draw(q)
            drawn.append(token)
            distributions.append(q)
            tokens = token[:, None]
            if self.min_confidence > 0:
                meant += going
                going = going & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)
                if not going.any():
                    break
        self._cached = [len(s) + len(drawn) - 1 for s in sequences]  # the last token drawn is not in the cache
        lengths = meant if self.min_confidence > 0 else None
        return Draft(torch.stack(drawn, 1), torch.stack(distributions, 1), lengths)

    def _catch_up(self, sequences: list[list[int]]) -> Tensor:
        """Rewind to what is still true and return the tokens to feed next, [B, n].

        n is 1, or 2 when some row had all its tokens accepted: the last of them was drawn but never fed, and goes in
        with the token after it, in one step. Rows in need of only one feed their last cached token again.
        """
        true = [min(cached, len(s) - 1) for cached, s in zip(self._cached, sequences, strict=True)]
        n = max(len(s) - t for s, t in zip(sequences, true, strict=True))
        if n > min(2, *map(len, sequences)):  # a new prompt, or rounds went by without a draft
            self.model.rewind(true)
            self.model.prefill([s[t:-1] for s, t in zip(sequences, true, strict=True)])
            n = 1
        self.model.rewind([len(s) - n for s in sequences])
        return torch.tensor([s[-n:] for s in sequences], device=self.model.device)


class PromptLookupDrafter:
    """Proposes what followed the last time that the text ended like this. Needs no model; a point mass.

    Looks for the longest of the last `max_ngram` … `min_ngram` tokens earlier in the sequence, the latest occurrence
    first. Proposes nothing where there is none. Saxena 2023 (prompt-lookup-decoding); 'ngram' in vLLM.
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1):
        if not 1 <= min_ngram <= max_ngram:
            raise SpecdecError(f"max_ngram={max_ngram!r}, min_ngram={min_ngram!r}: take 1 ≤ min_ngram ≤ max_ngram")
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram

    def start(self, batch: int, capacity: int) -> None:
        """Nothing to prepare: the sequences themselves are the memory."""

    def keep(self, rows: list[int]) -> None:
        """Nothing to drop."""

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        found = [self._continuation(s, k) for s in sequences]
        longest = max(map(len, found))
        tokens = torch.tensor([f + [0] * (longest - len(f)) for f in found], dtype=torch.int64)
        return Draft(tokens, lengths=torch.tensor([len(f) for f in found]))

    def _continuation(self, sequence: list[int], k: int) -> list[int]:
        for n in range(min(self.max_ngram, len(sequence) - 1), self.min_ngram - 1, -1):
            ending = sequence[-n:]
            for start in range(len(sequence) - n - 1, -1, -1):
                if sequence[start : start + n] == ending:
                    return sequence[start + n : start + n + k]
        return []
