"""Sums and rates over rounds, and two views of them: a table, and a live display while text streams.

Two rates are easily confused:

- Accepted / examined estimates α = Σ min(p, q). A round examines its drafted tokens up to the first rejection.
- Accepted / drafted falls as k grows, at the same α. vLLM and most dashboards call it the draft acceptance rate.
"""

import html
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec_lab.measurement.intervals import share_interval
from specdec_ref.errors import SpecdecError

BLOCKS = "▁▂▃▄▅▆▇█"
REFRESH_SECONDS = 0.25


class RoundRecord(NamedTuple):
    """One round of one row. NaN: not recorded.

    Attributes:
        step: the round of the batch, counted from 0. All rows of a batch share its step and its seconds.
        ended: Unix time in seconds.
        drafted: drafted tokens; of a tree, its number of levels.
        accepted: accepted tokens; of a tree, the length of the accepted path.
        emitted: tokens added to the text.
        draft_seconds, verify_seconds: time to draft and to verify.
        other_seconds: the rest of the time since the previous round. It includes the time that the reader of a stream
            took.
    """

    step: int
    ended: float
    drafted: int
    accepted: int
    emitted: int
    draft_seconds: float
    verify_seconds: float
    other_seconds: float


@dataclass(frozen=True)
class MonitorStatistics:
    """Sums and rates of all rounds so far, also by name: `statistics["rounds"]`. NaN where there is nothing to divide.

    Attributes:
        window: rounds in the rolling values.
        rounds: all rounds of all rows.
        drafts: the rounds with k > 0.
        drafted, accepted, emitted: tokens.
        examined: drafted tokens that were examined, up to the first rejection of their round.
        acceptance_rate: accepted / examined, an estimate of α.
        acceptance_interval: its 95 % interval (Wilson), which treats tokens as independent of each other.
        draft_acceptance_rate: accepted / drafted.
        tokens_per_round: accepted / rounds + 1, also where a generation ended inside a round.
        accepted_histogram: [k + 1], the number of drafts with 0, 1, … k accepted tokens.
        conditional_rates: [k], accepted / examined at each position.
        unconditional_rates: [k], accepted at each position / all drafts, as in vLLM.
        draft_seconds, verify_seconds, other_seconds: sums over steps; NaN where a step did not record them.
        rolling_acceptance_rate, rolling_draft_acceptance_rate, rolling_tokens_per_round: the same over the last
            `window` rounds.
        per_round: seven statistics of accepted / drafted of each round (0 where nothing was drafted), by name. They
            mislead, since each round has the same weight whatever its k. Example: if 1 of 1 and then 4 of 8 tokens
            are accepted, their mean is 0.75, the pooled rate is 5/9, and the estimate of α is 5/6.
    """

    window: int
    rounds: int
    drafts: int
    drafted: int
    examined: int
    accepted: int
    emitted: int
    acceptance_rate: float
    acceptance_interval: tuple[float, float]
    draft_acceptance_rate: float
    tokens_per_round: float
    accepted_histogram: tuple[int, ...]
    conditional_rates: tuple[float, ...]
    unconditional_rates: tuple[float, ...]
    draft_seconds: float
    verify_seconds: float
    other_seconds: float
    rolling_acceptance_rate: float
    rolling_draft_acceptance_rate: float
    rolling_tokens_per_round: float
    per_round: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        everything: dict[str, Any] = dict(vars(self))
        return {**everything, **everything.pop("per_round")}

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def rows(self) -> list[tuple[str, str]]:
        """The lines of the table: pairs of a name and its value, both as text."""
        low, high = self.acceptance_interval
        seconds = self.draft_seconds, self.verify_seconds, self.other_seconds
        recent = percent(self.rolling_acceptance_rate), _number(self.rolling_tokens_per_round)
        plain = f", {self.rounds - self.drafts:,} of them without a draft" if self.rounds > self.drafts else ""
        return [
            ("rounds", f"{self.rounds:,}{plain}"),
            ("tokens per round", _number(self.tokens_per_round)),
            ("accepted / examined, α", f"{percent(self.acceptance_rate)} % ({percent(low)} to {percent(high)})"),
            (f"… in the last {self.window:,} rounds", "{} %, {} tokens per round".format(*recent)),
            ("… at position 1, 2, …", f"{percent(*self.conditional_rates)} %"),
            ("accepted / drafted", f"{percent(self.draft_acceptance_rate)} %"),
            ("… at position 1, 2, …", f"{percent(*self.unconditional_rates)} %"),
            ("drafts with 0, 1, … accepted", " ".join(map(str, self.accepted_histogram))),
            ("draft, verify, other", f"{', '.join(_number(s) for s in seconds)} s"),
        ]

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for row in self.rows():
            table.add_row(*row)
        return table

    def _repr_html_(self) -> str:
        cell = 'style="text-align:left;padding:2px 12px"'
        rows = (f'<tr><th scope="row" {cell}>{html.escape(a)}</th><td {cell}>{b}</td></tr>' for a, b in self.rows())
        return f"<table>{''.join(rows)}</table>"

    def __str__(self) -> str:
        return "\n".join(f"{name:<30}{value}" for name, value in self.rows())


def summarize(
    pairs: Mapping[tuple[int, int], int],
    recent: Sequence[RoundRecord],
    emitted: int,
    seconds: tuple[float, float, float],
    window: int,
) -> MonitorStatistics:
    """Compute the statistics of all rounds.

    Args:
        pairs: (drafted, accepted) → the number of such rounds. All rates follow from it.
        recent: the last rounds, for the rolling values.
        emitted: tokens emitted in all rounds.
        seconds: drafting, verifying and other, summed over steps.
        window: rounds in the rolling values.
    """
    d, a, n = np.array([(*pair, n) for pair, n in pairs.items()], dtype=np.int64).reshape(-1, 3).T
    rounds, drafted, examined, accepted = _sums(d, a, n)
    last = np.array([(r.drafted, r.accepted, 1) for r in recent], dtype=np.int64).reshape(-1, 3).T
    last_rounds, last_drafted, last_examined, last_accepted = _sums(*last)
    drafts, k = int(n[d > 0].sum()), int(d.max(initial=0))
    accepted_at = [int(n[a > i].sum()) for i in range(k)]
    examined_at = [int(n[(a >= i) & (d > i)].sum()) for i in range(k)]
    return MonitorStatistics(
        window=window,
        rounds=rounds,
        drafts=drafts,
        drafted=drafted,
        examined=examined,
        accepted=accepted,
        emitted=emitted,
        acceptance_rate=_share(accepted, examined),
        acceptance_interval=share_interval(accepted, examined) if examined else (nan, nan),
        draft_acceptance_rate=_share(accepted, drafted),
        tokens_per_round=_share(accepted + rounds, rounds),
        accepted_histogram=tuple(int(n[(a == i) & (d > 0)].sum()) for i in range(k + 1)),
        conditional_rates=tuple(map(_share, accepted_at, examined_at)),
        unconditional_rates=tuple(_share(count, drafts) for count in accepted_at),
        draft_seconds=seconds[0],
        verify_seconds=seconds[1],
        other_seconds=seconds[2],
        rolling_acceptance_rate=_share(last_accepted, last_examined),
        rolling_draft_acceptance_rate=_share(last_accepted, last_drafted),
        rolling_tokens_per_round=_share(last_accepted + last_rounds, last_rounds),
        per_round=_of_each_round(d, a, n),
    )


def _sums(d: NDArray[np.int64], a: NDArray[np.int64], n: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Rounds, and tokens drafted, examined and accepted."""
    return int(n.sum()), int(n @ d), int(n @ np.minimum(a + 1, d)), int(n @ a)


def _of_each_round(d: NDArray[np.int64], a: NDArray[np.int64], n: NDArray[np.int64]) -> dict[str, float]:
    """Statistics of accepted / drafted over rounds, as numpy computes them for a list with one rate per round.

    The list itself is never built, since it has one entry for each of millions of rounds.
    """
    names = [f"{which}_acceptance_rate" for which in ("mean", "std", "min", "max", "p50", "p95")]
    if not len(n):
        return dict.fromkeys(names, nan) | {"total_iterations": 0}
    rates = a / np.maximum(d, 1)
    order = rates.argsort()
    rates, n = rates[order], n[order]
    mean = float(np.average(rates, weights=n))
    spread = sqrt(float(np.average((rates - mean) ** 2, weights=n)))
    last = n.cumsum() - 1  # index of the last occurrence of each rate in the sorted list
    first_and_last = np.stack([last - n + 1, last], 1).ravel()
    median, high = np.interp([0.5 * last[-1], 0.95 * last[-1]], first_and_last, rates.repeat(2)).tolist()
    values = mean, spread, float(rates[0]), float(rates[-1]), median, high
    return dict(zip(names, values, strict=True)) | {"total_iterations": int(n.sum())}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else nan


def percent(*shares: float) -> str:
    """Whole per cents, – for NaN and for nothing."""
    return " ".join("–" if isnan(share) else f"{100 * share:.0f}" for share in shares) or "–"


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.2f}"


class LiveView:
    """`with LiveView(monitor): …` shows its statistics while text streams, and once more at the end.

    A notebook updates them in place, at most once per `REFRESH_SECONDS`. Elsewhere they are printed at the end.
    """

    def __init__(self, monitor: Any):
        if isinstance(monitor, type) or not hasattr(monitor, "get_statistics"):
            raise SpecdecError(f"monitor={monitor!r:.80}: takes a SpeculativeDecodingMonitor()")
        self.monitor = monitor
        self._handle: Any = None
        self._next_refresh = 0.0

    def __enter__(self) -> "LiveView":
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):  # only a notebook can update an output
            from IPython.display import display

            self._handle = display(self, display_id=True)
        self.monitor.listeners.append(self._refresh)
        return self

    def __exit__(self, *error: object) -> None:
        self.monitor.listeners.remove(self._refresh)
        if self._handle is None:
            print(self)
        else:
            self._handle.update(self)

    def _refresh(self, records: Sequence[RoundRecord]) -> None:
        if self._handle is not None and time.perf_counter() >= self._next_refresh:
            self._handle.update(self)
            self._next_refresh = time.perf_counter() + REFRESH_SECONDS

    def trace(self) -> str:
        """One character for each of the last 60 rounds, oldest first.

        The height of the bar is the accepted share of the draft. A dot is a round that drafted nothing.
        """
        recent = list(islice(reversed(self.monitor.rounds), 60))[::-1]
        return "".join(BLOCKS[round(7 * r.accepted / r.drafted)] if r.drafted else "·" for r in recent)

    def _repr_html_(self) -> str:
        mono = "font-family:monospace;text-align:left;white-space:pre;padding:2px 12px"
        return f'{self.monitor.get_statistics()._repr_html_()}<div style="{mono}">{self.trace()}</div>'

    def __repr__(self) -> str:
        return f"{self.monitor.get_statistics()}\n{self.trace()}"
