"""The batch policy: k for each batch size and context length, 0 where drafting does not pay, measured on this machine.

At batch 1 a step of the target takes as long as reading its weights, and scoring k + 1 tokens costs little more than
scoring one. In a larger batch the arithmetic takes longer than the reading (beyond the ridge point of the roofline).
Then v(k + 1) grows, and at some batch size drafting no longer pays. The policy speculates only where the measured gain
is clear.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from specdec_lab.measurement.benchmark_workload import machine_facts, model_facts, prompts_of_length
from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.intervals import samples_needed
from specdec_lab.measurement.methods import can_draft, draft_module, drafts_one_at_a_time, most_scored, usual_k
from specdec_lab.measurement.policy_cells import LEVEL, Cell, between, judge, recommend
from specdec_lab.measurement.rounds import Bench, TimedRounds, tokens_needed
from specdec_lab.measurement.tables_shown import html_table, rich_table
from specdec_ref.decoding import Round
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.fast.trace import USES_BEFORE_RECORDING
from specdec_ref.loading import Pair
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from rich.table import Table

BATCHES = (1, 2, 4, 8, 16, 32)
CONTEXTS = (64, 256, 512, 1000)
KS = (0, 1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class SpeculationPolicy:
    """The number of tokens to draft for each batch size and context length, with the measurements.

    Attributes:
        cells: one per batch size and context.
        facts: models, sampling, machine.
    """

    cells: tuple[Cell, ...]
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        there = {(cell.batch, cell.context) for cell in self.cells}
        if not there or there != {(b, n) for b in self.batches for n in self.contexts}:
            raise SpecdecError("cells: take every batch size with every context, at least one")
        if len({tuple(sorted(cell.low)) for cell in self.cells}) != 1:
            raise SpecdecError("cells: take the same k in all of them")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that were measured."""
        return tuple(sorted({cell.batch for cell in self.cells}))

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths that were measured, in tokens."""
        return tuple(sorted({cell.context for cell in self.cells}))

    @property
    def ks(self) -> tuple[int, ...]:
        """The k that were compared."""
        return tuple(sorted(self.cells[0].low))

    def cell(self, batch: int, context: int) -> Cell:
        """The measurements at this batch size and context. Raises SpecdecError if there are none."""
        for cell in self.cells:
            if (cell.batch, cell.context) == (batch, context):
                return cell
        raise SpecdecError(f"batch={batch!r:.80}, context={context!r:.80}: was not measured; see k_for")

    def k_for(self, batch_size: int, sequence_length: float) -> int:
        """The number of tokens to draft; 0 means: do not speculate.

        Between measured points, each k's lower speedup is interpolated linearly in the logarithms of both, and the same
        rule decides. Above the largest batch or context nothing was measured, so the result is 0. Below the smallest,
        the smallest counts.

        Args:
            batch_size: sequences.
            sequence_length: tokens, prompt included; may be a mean.

        Raises:
            SpecdecError: a size is out of range.
        """
        if not is_whole(batch_size) or batch_size < 1:
            raise SpecdecError(f"batch_size={batch_size!r:.80}: takes a whole number ≥ 1")
        if not is_number(sequence_length) or not 0 <= sequence_length < math.inf:
            raise SpecdecError(f"sequence_length={sequence_length!r:.80}: takes a number of tokens ≥ 0")
        if batch_size > self.batches[-1] or sequence_length > self.contexts[-1]:
            return 0
        low = dict.fromkeys(self.ks, 0.0)
        for batch, share in between(self.batches, batch_size):
            for context, part in between(self.contexts, sequence_length):
                for k, value in self.cell(batch, context).low.items():
                    low[k] += share * part * value
        return recommend(low)

    def as_controller(self, batch_size: int, sequence_length: float) -> "PolicyController":
        """A controller for one generation. batch_size, sequence_length: rows and tokens at its beginning."""
        return PolicyController(self, batch_size, sequence_length)

    def to_vllm(self, max_num_seqs: int = 256, sequence_length: float | None = None) -> dict[str, Any]:
        """The two keys of vLLM's `speculative_config` with this policy: the maximum, and a schedule by batch size.

        A row of the schedule is [first batch size, last, k], both inclusive. The rows begin at 1, leave no gap and
        reach max_num_seqs. Add `method` and `model` to complete the configuration.

        Args:
            max_num_seqs: vLLM's own limit on the batch, beyond which it would continue with the last k.
            sequence_length: context to plan for, because vLLM's schedule has none. None takes, for each batch size,
                the k that is safest at every measured context.

        Raises:
            SpecdecError: a size is out of range.
        """
        if not is_whole(max_num_seqs) or max_num_seqs < 1:
            raise SpecdecError(f"max_num_seqs={max_num_seqs!r:.80}: takes a whole number ≥ 1")
        schedule: list[list[int]] = []
        for batch in range(1, max_num_seqs + 1):
            k = self._safest(batch) if sequence_length is None else self.k_for(batch, sequence_length)
            if schedule and schedule[-1][2] == k:
                schedule[-1][1] = batch
            else:
                schedule.append([batch, batch, k])
        largest_k = max(1, *(k for _, _, k in schedule))  # vLLM takes no 0 here, only in the schedule
        return {"num_speculative_tokens": largest_k, "num_speculative_tokens_per_batch_size": schedule}

    def _safest(self, batch: int) -> int:
        if batch > self.batches[-1]:
            return 0
        shares = between(self.batches, batch)
        worst = {
            k: min(sum(share * self.cell(b, n).low[k] for b, share in shares) for n in self.contexts) for k in self.ks
        }
        return recommend(worst)

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: for each batch size and context the k, its speedup measured and predicted, and v."""
        columns = ["batch", *(f"context {n}" for n in self.contexts), f"v({self.ks[-1] + 1})"]
        rows = []
        for b in self.batches:
            cells = [self.cell(b, n) for n in self.contexts]
            words = [f"k={c.k} {c.speedup:.2f} ({c.predicted[c.k]:.2f})" if c.k else "k=0" for c in cells]
            rows.append([str(b), *words, f"{cells[0].costs.v(self.ks[-1] + 1):.1f}"])
        return columns, rows

    def __rich__(self) -> "Table":
        return rich_table("drafted tokens, speedup measured (and predicted)", *self.grid())

    def _repr_html_(self) -> str:
        return html_table("drafted tokens, speedup measured (and predicted)", *self.grid())

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, which `from_json` reads."""
        return {"facts": self.facts, "cells": [asdict(cell) for cell in self.cells]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SpeculationPolicy":
        """The policy from the result of `to_json`. Raises SpecdecError for anything else."""
        try:
            cells = []
            for c in data["cells"]:
                costs = Costs(**{**c["costs"], "scoring": _by_number(c["costs"]["scoring"])})
                by_k = {name: _by_number(c[name]) for name in ("predicted", "measured", "low")}
                cells.append(Cell(**{**c, "costs": costs, **by_k}))
            return cls(tuple(cells), dict(data["facts"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SpecdecError(f"data: is no policy of ours: {type(error).__name__} {error}") from error


class PolicyController:
    """A controller that follows the policy, for the rows that are left and their present length."""

    def __init__(self, policy: SpeculationPolicy, batch_size: int, sequence_length: float):
        self.max_k = policy.ks[-1]
        self._policy, self._batch, self._length = policy, batch_size, float(sequence_length)
        self.next_k()  # raises now if the sizes are wrong

    def next_k(self) -> int:
        return self._policy.k_for(self._batch, self._length)

    def observe(self, rounds: list[Round]) -> None:
        self._batch = len(rounds)
        self._length += sum(len(r.emitted) for r in rounds) / len(rounds)


def measure_policy(
    pair: Pair,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
    ks: Sequence[int] = KS,
    *,
    alpha: float | None = None,
    sampling: Sampling | None = None,
    turns: int = 7,
    rounds: int = 4,
    texts: Sequence[str] | None = None,
    on_step: Callable[[str, int, int], None] = lambda what, completed, total: None,
) -> SpeculationPolicy:
    """Measure every batch size at every context: step costs, and rounds of every k in turn with k = 0.

    Tokens per round depend on text and k, not on the batch, so they are pooled over the batch sizes. The time of a
    round is measured for each batch size.

    Args:
        pair: with a draft model or another drafter.
        batches: batch sizes.
        contexts: context lengths in tokens. A context begins early enough that its rounds fit into the models.
        ks: numbers of drafted tokens to compare.
        alpha: acceptance rate for the predictions; None takes the measured one, over all rounds.
        sampling: default temperature 1.
        turns: how often every k takes its turn, ≥ 5.
        rounds: timed rounds in a turn.
        texts: prompts are cut from these; default the held-out ones.
        on_step: called before each cell with its name, how many cells are done, and of how many.

    Raises:
        SpecdecError: a size is out of range, or the pair has no draft.
    """
    _check_sizes(batches, contexts, ks, turns, rounds)
    if not can_draft(pair):
        raise SpecdecError("pair: has no draft model and no other drafter, so there is nothing to speculate with")
    sampling = sampling or Sampling()
    ks = sorted({0, *(min(k, usual_k(pair, k)) for k in ks)})
    sizes = [(batch, context) for context in sorted(set(contexts)) for batch in sorted(set(batches))]
    costs: dict[tuple[int, int], Costs] = {}
    timed: dict[tuple[int, int], list[Turn]] = {}
    for i, (batch, context) in enumerate(sizes):
        on_step(f"batch {batch}, context {context}", i, len(sizes))
        benches = _benches(pair, batch, context, rounds, turns, ks[-1], sampling, texts)
        costs[batch, context] = benches[0].costs(ks)
        timed[batch, context] = _take_turns(benches, ks, turns, rounds)
    if alpha is None:
        alpha = _measured_alpha(timed)
    cells = []
    for (batch, context), all_turns in timed.items():
        tokens = {k: _tokens_per_round(timed, context, k) for k in ks}
        ratios = {k: [tokens[k] * _round_time(turn[0]) / _round_time(turn[k]) for turn in all_turns] for k in ks if k}
        steps = costs[batch, context]
        predicted = None if drafts_one_at_a_time(pair) else _predicted(pair, steps, tokens)
        cells.append(judge(batch, context, steps, alpha, ratios, predicted))
    module = draft_module(pair)
    models = {"target": model_facts(pair.target), "draft": model_facts(module) if module is not None else None}
    how = {"sampling": asdict(sampling), "turns": turns, "rounds": rounds, "alpha": alpha}
    return SpeculationPolicy(tuple(cells), {"models": models, "machine": machine_facts(pair), "settings": how})


def _predicted(pair: Pair, costs: Costs, tokens: Mapping[int, float]) -> dict[int, float]:
    """By k, the speedup of rounds whose tokens are all drafted at once: measured tokens per round / (draft + scoring).

    tokens: by k, tokens per round.
    """
    draft = max(tokens) * costs.c
    return {k: n / (draft + costs.v(most_scored(pair, k) + 1)) if k else 1.0 for k, n in tokens.items()}


Turn = dict[int, TimedRounds]
"""Every k once, by k."""


def _check_sizes(batches: Sequence[int], contexts: Sequence[int], ks: Sequence[int], turns: int, rounds: int) -> None:
    for name, values, smallest in (("batches", batches, 1), ("contexts", contexts, 3), ("ks", ks, 0)):
        if not values or not all(is_whole(value) and value >= smallest for value in values):
            raise SpecdecError(f"{name}={values!r:.80}: takes whole numbers ≥ {smallest}, at least one")
    for name, value, smallest in (("turns", turns, samples_needed(0.5, LEVEL)), ("rounds", rounds, 1)):
        if not is_whole(value) or value < smallest:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ {smallest}")


def _benches(
    pair: Pair,
    batch: int,
    context: int,
    rounds: int,
    turns: int,
    max_k: int,
    sampling: Sampling,
    texts: Sequence[str] | None,
) -> list[Bench]:
    """Batches of this size and length. With few rows, several: different turns get different prompts."""
    begin = min(context, pair.context - tokens_needed(rounds, max(max_k, most_scored(pair, max_k))))
    if context > pair.context or begin < 3:
        raise SpecdecError(f"contexts: {context} tokens and {rounds} rounds; the models hold {pair.context}")
    sets = max(1, min(turns, 8 // batch))
    prompts = prompts_of_length(pair.tokenizer, begin, batch * sets, texts)
    return [
        Bench(pair, prompts[s * batch : (s + 1) * batch], rounds=rounds, max_k=max_k, sampling=sampling)
        for s in range(sets)
    ]


def _take_turns(benches: Sequence[Bench], ks: Sequence[int], turns: int, rounds: int) -> list[Turn]:
    """Time every k in every turn, after a warm-up."""
    # Untimed, until the steps of ragged rows are recorded. In the first round, rows still have the same length.
    ragged_rounds = max(1, rounds - 1)
    warm_up = math.ceil((USES_BEFORE_RECORDING + 1) / ragged_rounds) + 1
    for _ in range(warm_up):
        for k in ks:
            benches[0].time_rounds(k, seed=0)
    return [
        {k: benches[turn % len(benches)].time_rounds(k, seed=turn) for k in _rotated(ks, turn)} for turn in range(turns)
    ]


def _measured_alpha(timed: Mapping[tuple[int, int], list[Turn]]) -> float:
    """Accepted / examined over all rounds; 0 where nothing was drafted."""
    everything = [rounds for all_turns in timed.values() for turn in all_turns for rounds in turn.values()]
    examined = sum(rounds.examined for rounds in everything)
    return sum(rounds.accepted for rounds in everything) / examined if examined else 0.0


def _tokens_per_round(timed: Mapping[tuple[int, int], list[Turn]], context: int, k: int) -> float:
    """Tokens per round and row, over all batch sizes at this context."""
    all_of_k = [turn[k] for (_, n), all_turns in timed.items() if n == context for turn in all_turns]
    return sum(rounds.tokens for rounds in all_of_k) / sum(rounds.row_rounds for rounds in all_of_k)


def _round_time(timed: TimedRounds) -> float:
    return timed.seconds / timed.row_rounds


def _rotated(ks: Sequence[int], by: int) -> list[int]:
    """The k in a rotated order, so that each k comes first equally often."""
    by %= len(ks)
    return [*ks[by:], *ks[:by]]


def _by_number(values: Mapping[Any, float]) -> dict[int, float]:
    return {int(k): value for k, value in values.items()}
