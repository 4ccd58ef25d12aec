"""A generation with every random decision recorded, for inspection round by round."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_ref.control import as_controller
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness


@dataclass(frozen=True)
class PlayedRound:
    """One round of one sequence.

    Attributes:
        number: the number of the round, from 1.
        drafted: token ids.
        q: the draft's probability of each token.
        chances: acceptance probability of each token, min(1, p/q).
        u: the random number for each token; it is accepted if u < min(1, p/q).
        accepted: accepted tokens, up to the first rejection.
        next_from: [V], the distribution of the round's last token: the residual, or the target's own.
        next_token: that token.
    """

    number: int
    drafted: tuple[int, ...]
    q: tuple[float, ...]
    chances: tuple[float, ...]
    u: tuple[float, ...]
    accepted: int
    next_from: Tensor
    next_token: int


class _Recorder:
    """A `Randomness` that records each distribution and each decision."""

    def __init__(self, seed: int, device: torch.device):
        self._tokens = SeededRandomness(seed, device)
        self._coins = torch.Generator(device=device).manual_seed(seed)
        self.draws: list[tuple[Tensor, Tensor]] = []
        self.accepts: list[tuple[Tensor, Tensor]] = []

    def draw(self, probabilities: Tensor) -> Tensor:
        token = self._tokens.draw(probabilities)
        self.draws.append((probabilities, token))
        return token

    def accept(self, probability: Tensor) -> Tensor:
        u = torch.rand(probability.shape, generator=self._coins, dtype=probability.dtype, device=probability.device)
        self.accepts.append((probability, u))
        return u < probability


def replay(
    pair: Pair,
    prompt: str | Sequence[int],
    *,
    k: int = 4,
    rounds: int = 8,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[PlayedRound]:
    """Decode some rounds with the package's own loop, and record the random decisions of each.

    Args:
        pair: with a draft model.
        prompt: text, or token ids.
        k: drafted tokens per round, ≥ 1.
        rounds: how many, ≥ 1; fewer are returned if the text ends.
        sampling: default temperature 1.
        seed: seed of the random numbers.

    Raises:
        SpecdecError: the pair has no draft model, or k or rounds is below 1.
    """
    if pair.draft is None:
        raise SpecdecError("pair: has no draft model, so there is nothing to replay")
    if not (is_whole(k) and k >= 1 and is_whole(rounds) and rounds >= 1):
        raise SpecdecError(f"k={k!r}, rounds={rounds!r}: take whole numbers ≥ 1")
    ids = pair.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else [int(token) for token in prompt]
    target = TransformersModel(pair.target)
    drafter = ModelDrafter(TransformersModel(pair.draft, target.vocab_size))
    recorder = _Recorder(seed, pair.device)
    row = Row(tuple(ids), rounds * (k + 1))
    played: list[PlayedRound] = []
    for _ in speculate(target, drafter, [row], as_controller(k), sampling or Sampling(), recorder, pair.eos):
        *drafts, (next_from, next_token) = recorder.draws
        probabilities, u = recorder.accepts[-1]
        n = len(row.rounds[-1].drafted)
        played.append(
            PlayedRound(
                len(row.rounds),
                row.rounds[-1].drafted,
                tuple(float(q[0, token]) for q, token in drafts),
                tuple(probabilities[0, :n].tolist()),
                tuple(u[0, :n].tolist()),
                row.rounds[-1].accepted,
                next_from[0],
                int(next_token),
            )
        )
        recorder.draws.clear()
        if len(played) == rounds:
            break
    return played
