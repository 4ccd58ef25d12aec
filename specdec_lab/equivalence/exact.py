"""The proof: the exact distribution of the decoding loop's output, compared with the target's.

The first comes from the loop as it is, by enumerating every outcome of every random decision (`enumeration`). The
second comes from the target alone, by the chain rule. There is no sampling noise: the two agree to 1e-9, or the loop is
wrong.

Enumeration replaces the random numbers, and makes each decision independent of the others. So the proof cannot see
whether the random numbers of `SeededRandomness` are independent; `empirical` can.
"""

import copy
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from types import FunctionType
from typing import Any

import torch

from specdec_lab.equivalence.enumeration import Emitted, Enumeration, LoopState
from specdec_lab.equivalence.tables import StaleRead
from specdec_lab.equivalence.tiny import OnCache
from specdec_ref.api import verification_rule
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.models import LanguageModel, TransformersModel
from specdec_ref.sampling import Sampling

TOLERANCE = 1e-9
_probabilities = FunctionType(Sampling.probabilities.__code__, vars(sys.modules[Sampling.__module__]))
"""`Sampling.probabilities` as it is now: the reference must stay right when a wrong version is installed later."""


@dataclass(frozen=True)
class Proof:
    """The loop's output distribution, and the one that it has to have.

    Attributes:
        emitted, expected: probability of each outcome: the tokens of one generation with its end token, or for a batch
            a tuple of such tuples.
        acceptance_rate: probability that the first token drafted in the first round is accepted, averaged over the rows
            that drafted one; NaN where none did. It has to be Σ min(p, q) after the prompt.
        tokens_per_round: mean tokens of the first round, accepted and one more, before an end token or the length cuts
            it.
        paths: replays of the loop.
        rounds: the most rounds of a generation.
    """

    emitted: dict[Emitted, float]
    expected: dict[Emitted, float]
    acceptance_rate: float
    tokens_per_round: float
    paths: int
    rounds: int

    @property
    def difference(self) -> float:
        """Largest |emitted − expected| of any outcome."""
        return max(abs(d) for d in self._differences().values())

    @property
    def tv(self) -> float:
        """Total variation distance: half the sum of |emitted − expected|."""
        return sum(abs(d) for d in self._differences().values()) / 2

    @property
    def holds(self) -> bool:
        """Whether the two agree to 1e-9 and both sum to one."""
        sums = sum(self.emitted.values()), sum(self.expected.values())
        return self.difference <= TOLERANCE and all(abs(total - 1) <= TOLERANCE for total in sums)

    def explain(self) -> str:
        """The result in a sentence or two."""
        differences = self._differences()
        n = f"{len(differences)} possible output{'s' if len(differences) > 1 else ''}"
        if self.holds:
            return f"Exact: over {n}, no probability differs from the target's by more than {TOLERANCE:.0e}."
        worst, d = max(differences.items(), key=lambda item: abs(item[1]))
        emitted, expected = self.emitted.get(worst, 0.0), self.expected.get(worst, 0.0)
        return (
            f"Not exact: {worst} comes out with probability {emitted:.6f} instead of {expected:.6f}, too "
            f"{'often' if d > 0 else 'rarely'}. Over {n} the total variation distance is {self.tv:.6f}."
        )

    def _differences(self) -> dict[Emitted, float]:
        outcomes = dict.fromkeys((*self.expected, *self.emitted))
        return {o: self.emitted.get(o, 0.0) - self.expected.get(o, 0.0) for o in outcomes}


def exact(
    target: LanguageModel,
    drafter: Drafter | None,
    prompt: Sequence[int] | Sequence[Sequence[int]],
    *,
    k: int | Controller = 2,
    max_new_tokens: int | Sequence[int] = 4,
    sampling: Sampling | None = None,
    eos: frozenset[int] = frozenset(),
    context: int | None = None,
    limit: int = 200_000,
    verification: str = "token",
) -> Proof:
    """Compare the exact distribution of what the loop emits with the target's.

    Models, drafter and controller are copied, never changed.

    Args:
        target: a `TableModel`, or an `OnCache`.
        drafter: for instance `ModelDrafter(TableModel(…))`; None drafts nothing.
        prompt: token ids, or a list of prompts, decoded as one batch.
        k: a number or a controller.
        max_new_tokens: ≥ 1, one number or one for each prompt.
        sampling, eos, context: as in `speculate`.
        limit: the most replays of the loop; each takes about a millisecond.
        verification: 'token' or 'block', as in `generate_speculative`.

    Raises:
        SpecdecError: arguments that it cannot use, or randomness that does not come from the loop's `Randomness`.
    """
    verify = verification_rule(verification)
    _check_arguments(target, drafter, sampling, context, limit)
    sampling, context, eos = sampling or Sampling(), context or target.context, frozenset(eos)
    many = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Sequence)
    prompts = [_ids(ids, target.vocab_size, context) for ids in (prompt if many else [prompt])]
    lengths = _lengths(max_new_tokens, len(prompts))
    state = LoopState(target, drafter, as_controller(k))
    for spare in (
        0,
        1,
        None,
    ):  # a wrong loop may read tokens that it should have forgotten; then more tokens count as remembered
        played = Enumeration(state, prompts, lengths, sampling, eos, context, limit, spare, verify)
        with suppress(StaleRead):
            emitted = played.solve()
            break
    expected: dict[Emitted, float] = {(): 1.0}
    for ids, n in zip(prompts, lengths, strict=True):
        alone = _from_the_target(target, ids, n, sampling, eos, context + 1)
        expected = {(*o, new): p * p_new for o, p in expected.items() for new, p_new in alone.items()}
    if not many:
        emitted, expected = ({o[0]: p for o, p in table.items()} for table in (emitted, expected))
    rate = played.accepted_first / played.drafted_first if played.drafted_first else nan
    return Proof(emitted, expected, rate, played.tokens_first, played.paths, played.rounds)


def _check_arguments(target: object, drafter: object, sampling: object, context: object, limit: object) -> None:
    if not hasattr(target, "extend") or not_copied(target):
        raise SpecdecError(f"target={target!r:.80}: takes a TableModel; for real models there is `empirical`")
    if not_copied(getattr(drafter, "model", None)):
        raise SpecdecError("drafter: its model is a transformers model; takes a TableModel")
    if drafter is not None and (isinstance(drafter, type) or not hasattr(drafter, "propose")):
        raise SpecdecError(
            f"drafter={drafter!r:.80}: takes a Drafter, for instance ModelDrafter(TableModel(…)), or None"
        )
    if sampling is not None and not isinstance(sampling, Sampling):
        raise SpecdecError(f"sampling={sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)")
    if not is_whole(limit) or limit < 1:
        raise SpecdecError(f"limit={limit!r:.80}: takes a whole number ≥ 1")
    if context is not None and (not is_whole(context) or context < 1):
        raise SpecdecError(f"context={context!r:.80}: takes a whole number ≥ 1, or None for the target's")


def not_copied(model: object) -> bool:
    """Whether this is a real model whose copies would not begin without rows."""
    return isinstance(model, TransformersModel) and not isinstance(model, OnCache)


def _lengths(max_new_tokens: Any, prompts: int) -> list[int]:
    """The most new tokens of each prompt."""
    lengths: list[Any] = [max_new_tokens] * prompts if is_whole(max_new_tokens) else [*_listed(max_new_tokens)]
    if len(lengths) != prompts or not all(is_whole(n) and n >= 1 for n in lengths):
        takes = "takes a whole number ≥ 1, or a list of them, one for each prompt"
        raise SpecdecError(f"max_new_tokens={max_new_tokens!r:.80}: {takes}")
    return lengths


def _from_the_target(
    target: LanguageModel, prompt: tuple[int, ...], n: int, sampling: Sampling, eos: frozenset[int], longest: int
) -> dict[Emitted, float]:
    """Probability of every text of at most `n` tokens: the chain rule, with each prefix scored from its start."""
    model = copy.deepcopy(target)
    finished: dict[Emitted, float] = {}
    growing: dict[Emitted, float] = {(): 1.0}
    while growing:
        new, probability = growing.popitem()
        model.start(1, longest)
        p = _probabilities(sampling, model.extend(torch.tensor([[*prompt, *new]]))[0, -1])
        for token, p_token in enumerate(p.tolist()):
            text = (*new, token)
            if p_token > 0:
                is_finished = token in eos or len(text) == n or len(prompt) + len(text) == longest
                (finished if is_finished else growing)[text] = probability * p_token
    return finished


def _ids(prompt: Any, vocab_size: int, context: int) -> tuple[int, ...]:
    ids = tuple(_listed(prompt))
    if not 1 <= len(ids) <= context or not all(is_whole(t) and 0 <= t < vocab_size for t in ids):
        takes = f"takes 1 … {context} token ids, each 0 … {vocab_size - 1}, or a list of such prompts"
        raise SpecdecError(f"prompt={prompt!r:.80}: {takes}")
    return ids


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()
