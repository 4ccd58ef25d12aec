"""The loop: draft k tokens, score them in one step of the target, accept or reject them, and sample
one more token.

`speculate` is the whole method. It needs no special cases: autoregressive decoding is k = 0, greedy
decoding is temperature 0, and one prompt is a batch of one. A round first rewinds both caches to
the accepted tokens, so no step attends to rejected ones. The target's cache then holds all tokens
of a row except the last, which the round feeds together with the drafted tokens.

A draft may also be a tree of tokens with its own verification rule (`beyond.trees`). Then
p[:, i + 1] is the distribution after node i, and the cache keeps the accepted path.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_ref.acceptance import Verdict, Verify, verify
from specdec_ref.ancestry import depths
from specdec_ref.drafting import Draft, Drafter, NoDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.models import LanguageModel, tree_model
from specdec_ref.sampling import Randomness, Sampling

PROBABILITY_TOLERANCE = 0.01
"""How far the sum of q may be from one: probabilities in bfloat16 are rounded by 0.4 %."""


@dataclass(frozen=True)
class Round:
    """One round of draft and verify, for one row.

    Attributes:
        drafted: the proposed token ids; of a tree, all of its nodes.
        accepted: the number of accepted tokens; of a tree, the length of the accepted path.
        emitted: the ids added to the text: the accepted tokens and one more, or fewer where the
            text ended.
        draft_seconds, verify_seconds: times of the whole batch.
        parents: of a tree, the node that each drafted token follows (see `ancestry`); None for a
            chain.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    parents: tuple[int, ...] | None = None

    @property
    def depth(self) -> int:
        """The most drafted tokens that could be accepted: all of a chain, one path of a tree."""
        if self.parents is None:
            return len(self.drafted)
        return int(depths(torch.tensor([self.parents])).max()) if self.drafted else 0

    @property
    def examined(self) -> int:
        """The number of positions with an examined token: up to the first rejection."""
        return min(self.accepted + 1, self.depth)


class Controller(Protocol):
    """Chooses k for the next round from the rounds so far.

    Attributes:
        max_k: the largest k that it ever chooses.
    """

    max_k: int

    def next_k(self) -> int:
        """Tokens to draft in the next round, 0…max_k. 0 is one autoregressive step."""
        ...

    def observe(self, rounds: list[Round]) -> None:
        """Called after each round with one `Round` per active row."""
        ...


@dataclass
class Row:
    """A sequence that is being decoded.

    Attributes:
        prompt: token ids.
        max_new_tokens: the largest number of new tokens.
        new: the tokens emitted so far.
        rounds: the rounds so far.
        finish: '' while it grows, then 'eos', 'stop', 'length', 'context' or 'interrupted'.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    new: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    finish: str = ""

    @property
    def sequence(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.prompt, *self.new]

    @property
    def num_draftable(self) -> int:
        """Drafted tokens that the row has room for. The last token of a round is not drafted."""
        return self.max_new_tokens - len(self.new) - 1

    def add(self, tokens: list[int], eos: frozenset[int], limit: int) -> tuple[int, ...]:
        """Append tokens up to and including an end token, or up to the limits of the row.

        Args:
            tokens: what a round emits.
            eos: end tokens.
            limit: the most tokens that the row may have, prompt included.

        Returns:
            The tokens that were appended.
        """
        room = min(self.max_new_tokens - len(self.new), limit - len(self.prompt) - len(self.new))
        tokens = tokens[:room]
        end = next((i for i, token in enumerate(tokens) if token in eos), None)
        if end is not None:
            tokens = tokens[: end + 1]
            self.finish = "eos"
        self.new += tokens
        if not self.finish and len(self.new) == self.max_new_tokens:
            self.finish = "length"
        if not self.finish and len(self.prompt) + len(self.new) == limit:
            self.finish = "context"
        return tuple(tokens)


@torch.inference_mode()
def speculate(
    target: LanguageModel,
    drafter: Drafter | None,
    rows: list[Row],
    controller: Controller,
    sampling: Sampling,
    randomness: Randomness,
    eos: frozenset[int] = frozenset(),
    context: int | None = None,
    verify: Verify = verify,
) -> Iterator[list[Row]]:
    """Decode `rows` in place, as one batch, until each row has a `finish`.

    Args:
        target: scores the tokens.
        drafter: proposes tokens; None decodes autoregressively.
        rows: the sequences.
        controller: chooses k for each round.
        sampling: applied to the target's logits, and passed to the drafter.
        randomness: the only source of randomness.
        eos: end tokens.
        context: tokens that the models can hold; by default, and for 0, the target's context. A row
            may have one token more, since its last token is never fed to the models.
        verify: the verification rule.

    Yields:
        After every round, the rows that it extended.

    Raises:
        SpecdecError: there are no rows, a row has no room for a new token, or the controller, the
            drafter or a model returned something that cannot be used.
    """
    context = context or target.context
    drafter = drafter or NoDrafter(target.device)
    begin(target, drafter, rows, controller.max_k, context)
    clock = Clock(target.device)

    while rows:
        # 1. The draft proposes up to k tokens for each row.
        sequences = [row.sequence for row in rows]
        limits = [row.num_draftable for row in rows]
        usual_k = draft_length(controller, context - max(map(len, sequences)))
        k = min(usual_k, max(limits))
        start = clock.now()
        proposed = drafter.propose(sequences, k, sampling, randomness)
        draft = prepare(proposed, k, limits, target)
        after_draft = clock.now()

        # 2. The target scores them in one step: p[:, i] is its distribution after i drafted tokens.
        logits = score(target, sequences, draft, padding=usual_k - k)
        p = sampling.probabilities(logits)
        q = draft.distribution(target.vocab_size, p)

        # 3. Some of the drafted tokens are accepted, and one more is sampled.
        decide = draft.verify or verify
        verdict = decide(p, q, draft.tokens, randomness)
        after_verify = clock.now()
        outcomes = fetch(proposed, draft, p, q, verdict)
        seconds = clock.between(start, after_draft), clock.between(after_draft, after_verify)
        for row, outcome in zip(rows, outcomes, strict=True):
            emitted = row.add([*outcome.accepted, outcome.next_token], eos, context + 1)
            accepted = len(outcome.accepted)
            row.rounds.append(Round(outcome.drafted, accepted, emitted, *seconds, outcome.parents))
        keep_accepted(target, draft, outcomes)
        controller.observe([row.rounds[-1] for row in rows])
        yield rows

        # 4. Finished rows leave the batch.
        rows = drop_finished(rows, target, drafter)


def begin(
    target: LanguageModel, drafter: Drafter, rows: list[Row], max_k: int, context: int
) -> None:
    """Start both models. The target reads all but the last token of each prompt."""
    if not rows or min(row.max_new_tokens for row in rows) < 1:
        raise SpecdecError("rows: takes at least one row, each with max_new_tokens ≥ 1")
    longest = max(len(row.prompt) + row.max_new_tokens for row in rows)
    capacity = min(context, longest + max_k)
    target.start(len(rows), capacity)
    drafter.start(len(rows), capacity)
    target.prefill([list(row.prompt[:-1]) for row in rows])


def draft_length(controller: Controller, room: int) -> int:
    """The k that the controller chooses, at most `room`. Raises SpecdecError for an invalid k."""
    k, largest = controller.next_k(), controller.max_k
    if not is_whole(k) or not 0 <= k <= largest:
        raise SpecdecError(
            f"k: the controller's next_k gave {k!r:.80}; takes a whole number, 0 … {largest}"
        )
    return min(k, room)


def prepare(proposed: Draft, k: int, limits: list[int], target: LanguageModel) -> Draft:
    """Check a draft and make it scorable: on the target's device, with ids inside the vocabulary,
    and no row beyond its limit.

    Args:
        proposed: what the drafter returned. `fetch` reports ids outside the vocabulary later, since
            it reads the tokens on the host anyway.
        k: the requested number of tokens.
        limits: for each row, the largest number of drafted tokens that it has room for.
        target: the model that scores the draft.

    Raises:
        SpecdecError: `proposed` is not a `Draft`, or its shapes do not fit.
    """
    if not isinstance(proposed, Draft):
        raise SpecdecError(f"drafter: its propose gave {proposed!r:.80}; takes a Draft")
    proposed.check(len(limits), k, target.vocab_size)
    tokens = proposed.tokens.to(target.device).clamp(0, target.vocab_size - 1)
    draft = replace(proposed, tokens=tokens)
    if min(limits) < k:
        draft = draft.truncate(torch.tensor(limits).to(target.device, non_blocking=True))
    return draft


def score(target: LanguageModel, sequences: list[list[int]], draft: Draft, padding: int) -> Tensor:
    """Score the last token and the drafted tokens of each row in one step of the target.

    Args:
        target: the model that scores.
        sequences: the text of each row.
        draft: the drafted tokens, [B, k]. In a tree, each token is scored after its own path.
        padding: by how much the requested k is below the usual one, since the text ends soon. A
            single row is padded by as many tokens, since a step of a new shape is slow (see
            `fast`).

    Returns:
        Logits [B, k + 1, V], after the last token of each row and after each drafted token.
    """
    target.rewind([len(sequence) - 1 for sequence in sequences])
    last = torch.tensor([sequence[-1:] for sequence in sequences]).to(
        target.device, non_blocking=True
    )
    tokens = torch.cat([last, draft.tokens], 1)
    if draft.parents is not None:  # the last token of the text becomes the root of the tree
        parents = F.pad(draft.parents + 1, (1, 0), value=-1)
        return tree_model(target, "target").extend_tree(tokens, parents)
    num_scored = tokens.shape[1]
    if len(sequences) == 1:
        tokens = F.pad(tokens, (0, padding))
    return target.extend(tokens)[:, :num_scored]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a round for one row.

    Attributes:
        drafted: the drafted ids.
        accepted: the accepted ids.
        next_token: the id that was sampled after the accepted ones.
        path: the indices of the accepted tokens in `drafted`.
        parents: of a tree, the node that each drafted token follows.
    """

    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    next_token: int
    path: tuple[int, ...]
    parents: tuple[int, ...] | None


def fetch(proposed: Draft, draft: Draft, p: Tensor, q: Tensor, verdict: Verdict) -> list[Outcome]:
    """Copy the outcome of a round to the host, and check it there. With a chain of tokens from a
    model, this is the only wait for the device.

    Args:
        proposed: what the drafter returned.
        draft: what was scored.
        p: [B, k + 1, V], the target's distributions.
        q: [B, k, V], the draft's distributions.
        verdict: accepted and next tokens, [B].

    Raises:
        SpecdecError: p or q is not a number, q does not sum to one, or a drafted id is not in the
            vocabulary.
    """
    num_drafted = draft.num_drafted.to(p.device)
    columns = [verdict.accepted, verdict.next_token, num_drafted, *faults(p, q, num_drafted)]
    num_tokens = proposed.tokens.shape[1]
    parts = [torch.stack(columns, 1), proposed.tokens.to(p.device)]
    if verdict.path is not None:
        parts.append(verdict.path)
    table = torch.cat(parts, 1)

    outcomes = []
    for row, values in enumerate(table.tolist()):
        accepted, next_token, n, p_is_nan, q_is_nan, q_is_off, *rest = values
        tokens, is_accepted = rest[:num_tokens], rest[num_tokens:]
        check_ids(tokens, n, p.shape[-1])
        if p_is_nan or q_is_nan:
            who = "target" if p_is_nan else "draft"
            raise SpecdecError(f"{who}: its logits hold NaN or infinity, nothing to sample from")
        if q_is_off:
            raise SpecdecError(
                "drafter: its probabilities do not sum to one; "
                "takes what each token was sampled from"
            )
        drafted = tuple(tokens[:n])
        path: Sequence[int] = range(min(accepted, n))
        parents = None
        if draft.parents is not None:
            path = [node for node in range(n) if is_accepted[node]]
            parents = tuple(draft.parents[row, :n].tolist())
        tokens_on_path = tuple(drafted[node] for node in path)
        outcomes.append(Outcome(drafted, tokens_on_path, next_token, tuple(path), parents))
    return outcomes


def faults(p: Tensor, q: Tensor, num_drafted: Tensor) -> list[Tensor]:
    """Whether p holds NaN, whether q does, and whether q does not sum to one; each [B]."""
    mass = q.sum(-1)
    is_drafted = torch.arange(mass.shape[1], device=p.device) < num_drafted[:, None]
    off = (mass - is_drafted.to(mass)).abs() > PROBABILITY_TOLERANCE
    return [p.sum((1, 2)).isnan(), mass.sum(1).isnan(), off.any(1)]


def check_ids(tokens: list[int], n: int, vocab_size: int) -> None:
    """Raise SpecdecError unless the first n tokens of a row exist and are in the vocabulary."""
    if not 0 <= n <= len(tokens):
        raise SpecdecError(
            f"drafter: its lengths hold {n}; takes 0 … {len(tokens)}, the tokens of a row"
        )
    unknown = [token for token in tokens[:n] if not 0 <= token < vocab_size]
    if unknown:
        raise SpecdecError(
            f"drafter: token id {unknown[0]} is not in the vocabulary, 0 … {vocab_size - 1}"
        )


def keep_accepted(target: LanguageModel, draft: Draft, outcomes: list[Outcome]) -> None:
    """Keep only the accepted path of a tree in the target's cache. A chain needs no action, since
    the next round rewinds."""
    if draft.parents is not None:
        paths = [[0, *(node + 1 for node in outcome.path)] for outcome in outcomes]
        tree_model(target, "target").keep_path(paths)


def drop_finished(rows: list[Row], target: LanguageModel, drafter: Drafter) -> list[Row]:
    """Return the unfinished rows, and drop the others from both models."""
    active = [i for i, row in enumerate(rows) if not row.finish]
    if active and len(active) < len(rows):
        target.keep(active)
        drafter.keep(active)
    return [rows[i] for i in active]


class Clock:
    """Takes times without a wait for the device: events on CUDA, else the host's clock."""

    def __init__(self, device: torch.device):
        self._device = device if device.type == "cuda" else None

    def now(self) -> Any:
        """A mark of the present time."""
        if self._device is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks. On CUDA, call it only after the host has waited for `end`."""
        return float(start.elapsed_time(end)) / 1e3 if self._device else float(end - start)
