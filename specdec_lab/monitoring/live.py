"""What rounds add up to, and how that looks: sums and rates, as a table, and in a notebook while text streams.

Two rates are easily confused. Accepted / judged estimates α = Σ min(p, q); a round judges its tokens up to the first
that it rejects. Accepted / drafted, which vLLM and most dashboards call the draft acceptance rate, falls as k grows at
the same α.
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
    """One round as one row saw it; NaN is what nobody told.

    drafted, accepted: of a tree, its number of levels and the length of the accepted path.
    step: the batch's round, from 0. Its rows share it, and its seconds. ended: Unix time. other_seconds: neither
    drafting nor verifying, since the round before; what a stream's reader did in between is in it.
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

    rounds: of every row. drafts: those with k > 0. drafted, judged, accepted, emitted: tokens. acceptance_rate:
    accepted / judged, estimates α; acceptance_interval: Wilson's for 95 %, as if tokens were independent of each other.
    draft_acceptance_rate: accepted / drafted. tokens_per_round: accepted / rounds + 1, also where a generation ended
    inside a round. accepted_histogram: drafts of which 0, 1, … k tokens were accepted. conditional_rates: [k],
    accepted / judged at each position; unconditional_rates: [k], accepted there / all drafts, as vLLM has it. Seconds
    are sums over steps, NaN unless all told. rolling_…: of the last `window` rounds.

    per_round: seven statistics of each round's own accepted / drafted (0 where nothing was drafted), by name. They
    mislead, since each round has the same weight whatever its k. Example: 1 of 1 and then 4 of 8 tokens are accepted;
    the mean is 0.75, pooled it is 5/9, and α is estimated as 5/6.
    """

    window: int
    rounds: int
    drafts: int
    drafted: int
    judged: int
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
        """What a reader wants to see, in words: pairs of a name and its value."""
        low, high = self.acceptance_interval
        seconds = self.draft_seconds, self.verify_seconds, self.other_seconds
        recent = percent(self.rolling_acceptance_rate), _number(self.rolling_tokens_per_round)
        plain = f", {self.rounds - self.drafts:,} of them without a draft" if self.rounds > self.drafts else ""
        return [
            ("rounds", f"{self.rounds:,}{plain}"),
            ("tokens per round", _number(self.tokens_per_round)),
            ("accepted / judged, α", f"{percent(self.acceptance_rate)} % ({percent(low)} to {percent(high)})"),
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
    """pairs: how many rounds drafted and accepted so many, (drafted, accepted) → rounds; every rate follows from it."""
    d, a, n = np.array([(*pair, n) for pair, n in pairs.items()], dtype=np.int64).reshape(-1, 3).T
    rounds, drafted, judged, accepted = _sums(d, a, n)
    last = np.array([(r.drafted, r.accepted, 1) for r in recent], dtype=np.int64).reshape(-1, 3).T
    last_rounds, last_drafted, last_judged, last_accepted = _sums(*last)
    drafts, k = int(n[d > 0].sum()), int(d.max(initial=0))
    kept = [int(n[a > i].sum()) for i in range(k)]
    reached = [int(n[(a >= i) & (d > i)].sum()) for i in range(k)]
    return MonitorStatistics(
        window=window,
        rounds=rounds,
        drafts=drafts,
        drafted=drafted,
        judged=judged,
        accepted=accepted,
        emitted=emitted,
        acceptance_rate=_share(accepted, judged),
        acceptance_interval=share_interval(accepted, judged) if judged else (nan, nan),
        draft_acceptance_rate=_share(accepted, drafted),
        tokens_per_round=_share(accepted + rounds, rounds),
        accepted_histogram=tuple(int(n[(a == i) & (d > 0)].sum()) for i in range(k + 1)),
        conditional_rates=tuple(map(_share, kept, reached)),
        unconditional_rates=tuple(_share(count, drafts) for count in kept),
        draft_seconds=seconds[0],
        verify_seconds=seconds[1],
        other_seconds=seconds[2],
        rolling_acceptance_rate=_share(last_accepted, last_judged),
        rolling_draft_acceptance_rate=_share(last_accepted, last_drafted),
        rolling_tokens_per_round=_share(last_accepted + last_rounds, last_rounds),
        per_round=_of_each_round(d, a, n),
    )


def _sums(d: NDArray[np.int64], a: NDArray[np.int64], n: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Rounds, and tokens drafted, judged and accepted."""
    return int(n.sum()), int(n @ d), int(n @ np.minimum(a + 1, d)), int(n @ a)


def _of_each_round(d: NDArray[np.int64], a: NDArray[np.int64], n: NDArray[np.int64]) -> dict[str, float]:
    """Statistics of the rounds' own rates: numpy's for the list of all of them, without making that list."""
    names = [f"{which}_acceptance_rate" for which in ("mean", "std", "min", "max", "p50", "p95")]
    if not len(n):
        return dict.fromkeys(names, nan) | {"total_iterations": 0}
    rates = a / np.maximum(d, 1)
    order = rates.argsort()
    rates, n = rates[order], n[order]
    mean = float(np.average(rates, weights=n))
    spread = sqrt(float(np.average((rates - mean) ** 2, weights=n)))
    last = n.cumsum() - 1  # in the sorted list, each rate stands from `first` to `last`
    ends = np.stack([last - n + 1, last], 1).ravel()
    median, high = np.interp([0.5 * last[-1], 0.95 * last[-1]], ends, rates.repeat(2)).tolist()
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

    In a notebook they are renewed in place, at most every `REFRESH_SECONDS`. Elsewhere they are printed at the end.
    """

    def __init__(self, monitor: Any):
        if isinstance(monitor, type) or not hasattr(monitor, "get_statistics"):
            raise SpecdecError(f"monitor={monitor!r:.80}: takes a SpeculativeDecodingMonitor()")
        self.monitor = monitor
        self._handle: Any = None
        self._next_refresh = 0.0

    def __enter__(self) -> "LiveView":
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):  # only a notebook renews what it shows
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
        """The last 60 rounds, oldest first: how much of each draft was accepted, low to high; · drafted nothing."""
        recent = list(islice(reversed(self.monitor.rounds), 60))[::-1]
        return "".join(BLOCKS[round(7 * r.accepted / r.drafted)] if r.drafted else "·" for r in recent)

    def _repr_html_(self) -> str:
        mono = "font-family:monospace;text-align:left;white-space:pre;padding:2px 12px"
        return f'{self.monitor.get_statistics()._repr_html_()}<div style="{mono}">{self.trace()}</div>'

    def __repr__(self) -> str:
        return f"{self.monitor.get_statistics()}\n{self.trace()}"
