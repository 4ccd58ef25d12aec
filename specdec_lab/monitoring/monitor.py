"""The monitor records the rounds of generations and reports statistics of them.

Recording a round takes microseconds, where the round itself takes milliseconds. Sums and rates are computed only when
they are read. live.py defines them.
"""

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice, zip_longest
from math import isnan, nan
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from specdec_lab import plotting
from specdec_lab.monitoring.live import LiveView, MonitorStatistics, RoundRecord, percent, summarize
from specdec_ref.control import as_controller
from specdec_ref.errors import SpecdecError, is_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdec_ref.decoding import Controller, Round

HISTORY = 100_000
"""The number of last rounds that are stored individually. Sums, rates and counters include all rounds."""
File = str | os.PathLike[str] | IO[str]


class SpeculativeDecodingMonitor:
    """Records rounds. Pass it as `monitor=` to any generation, call its hook from your own loop, or `add` generations.

    One monitor may watch many generations, one after the other or at the same time.

    Args:
        window: rounds in the rolling values.

    Attributes:
        rounds: the last rounds, oldest first, at most `HISTORY`.
        listeners: functions that are called with the records of each step when it ends.

    Raises:
        SpecdecError: `window` is not a whole number in range.
    """

    def __init__(self, window: int = 100):
        if not is_whole(window) or not 1 <= window <= HISTORY:
            raise SpecdecError(f"window={window!r:.80}: takes a whole number of rounds, 1 … {HISTORY:,}")
        self.window = int(window)
        self.rounds: deque[RoundRecord] = deque(maxlen=HISTORY)
        self.listeners: list[Callable[[list[RoundRecord]], object]] = []
        self._pairs: Counter[tuple[int, int]] = Counter()  # (drafted, accepted) → rounds
        self._steps, self._emitted, self._seconds = 0, 0, (0.0, 0.0, 0.0)
        self._lock = threading.Lock()

    def watch(self, controller: "Controller") -> "Controller":
        """A controller that makes the choices of `controller` and passes every round to this monitor."""
        return _Watched(as_controller(controller), self._note)

    def on_iteration_complete(self, accepted: int, proposed: int) -> None:
        """Record one round of one row, from your own loop.

        Args:
            accepted: accepted tokens.
            proposed: drafted tokens.

        Raises:
            SpecdecError: unless both are whole numbers and 0 ≤ accepted ≤ proposed.
        """
        if not is_whole(accepted) or not is_whole(proposed) or not 0 <= accepted <= proposed:
            raise SpecdecError(f"{accepted=!r:.40}, {proposed=!r:.40}: take whole numbers, 0 ≤ accepted ≤ proposed")
        self._note([(int(proposed), int(accepted), int(accepted) + 1)], time.time(), nan, nan, nan)

    def add(self, done: Any) -> None:
        """Record what was generated without a monitor.

        Rows whose rounds took the same seconds count as one batch. Its other seconds are unknown, so they are NaN.

        Args:
            done: a Generation, a list of them, or the rounds of one.

        Raises:
            SpecdecError: for anything else.
        """
        from specdec_ref.decoding import Round  # here, since it loads PyTorch

        listed = list(done) if isinstance(done, Sequence) else [done]
        one_row = all(isinstance(item, Round) for item in listed)
        rows: list[Any] = [listed] if one_row else [getattr(item, "rounds", None) for item in listed]
        for item in (item for row in rows for item in (row if isinstance(row, Sequence) else [done])):
            if not isinstance(item, Round) or not 0 <= item.accepted <= len(item.drafted):
                raise SpecdecError(f"done: has {item!r:.80}; takes a Generation, a list of them, or the rounds of one")
        for step in zip_longest(*rows):
            batches: dict[Any, list[Round]] = {}
            for row_round in filter(None, step):
                seconds_key = row_round.draft_seconds, row_round.verify_seconds
                batches.setdefault(seconds_key, []).append(row_round)
            for seconds, batch in batches.items():
                self._note([_facts(row_round) for row_round in batch], nan, *seconds, nan)

    def _note(self, rows: list[tuple[int, int, int]], ended: float, *seconds: float) -> None:
        """Record a step that has ended.

        Args:
            rows: (drafted, accepted, emitted) tokens of each row.
            ended: Unix time.
            seconds: draft, verify, other.
        """
        with self._lock:
            records = [RoundRecord(self._steps, ended, *row, *seconds) for row in rows]
            self.rounds += records
            for drafted, accepted, emitted in rows:
                self._pairs[drafted, accepted] += 1
                self._emitted += emitted
            draft, verify, rest = self._seconds
            self._seconds = draft + seconds[0], verify + seconds[1], rest + seconds[2]
            self._steps += 1
        for listener in tuple(self.listeners):
            listener(records)

    def get_statistics(self) -> MonitorStatistics:
        """The sums and rates up to now."""
        with self._lock:
            recent = list(islice(reversed(self.rounds), self.window))
            pairs, emitted, seconds = self._pairs.copy(), self._emitted, self._seconds
        return summarize(pairs, recent, emitted, seconds, self.window)

    def live(self) -> LiveView:
        """`with monitor.live(): …` shows the statistics: in a notebook while text streams, elsewhere at the end."""
        return LiveView(self)

    def plot_acceptance_over_time(self, path: "str | os.PathLike[str] | None" = None) -> "Figure":
        """Plot both acceptance rates over the last `window` rounds (a quarter of a short run), and α over all rounds.

        path: where to save the figure; None: nowhere.
        """
        now, records = self.get_statistics(), list(self.rounds)
        drafted, accepted = np.array([(r.drafted, r.accepted) for r in records], dtype=np.int64).reshape(-1, 2).T
        width = min(self.window, max(1, len(records) // 4))
        sums = [np.append(0, x.cumsum()) for x in (accepted, np.minimum(accepted + 1, drafted), drafted)]
        num_accepted, examined, num_drafted = (x[width:] - x[:-width] for x in sums)
        rate, of_drafted = (
            np.divide(num_accepted, x, out=np.full(len(x), nan), where=x > 0) for x in (examined, num_drafted)
        )
        last = np.arange(len(rate)) + now.rounds - len(rate) + 1
        title = f"α is {percent(now.acceptance_rate)} % over all rounds, {percent(*rate[-1:])} % over the last {width}"
        figure, axes = plotting.new_figure(title if now.examined else "No draft yet", "round", "tokens accepted (%)")
        axes.axhline(100 * now.acceptance_rate, color=plotting.FORMULA, linestyle="--", label="α, all rounds")
        axes.axhspan(*(100 * end for end in now.acceptance_interval), color=plotting.FORMULA, alpha=0.2, linewidth=0)
        axes.plot(last, 100 * rate, "o-", c=plotting.ACCEPTED, markevery=len(rate) // 10 + 1, label=f"α, last {width}")
        axes.plot(last, 100 * of_drafted, ":", color=plotting.DRAFT, label=f"accepted / drafted, last {width}")
        axes.set(ylim=(0, 120), yticks=range(0, 101, 20))
        axes.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)
        if path is not None:
            figure.savefig(path)
        return figure

    def to_prometheus(self, registry: Any = None, model_name: str = "specdec_ref") -> Any:
        """A prometheus_client registry with vLLM's counters, under the same names and labels.

        The counters are read at each scrape. As in vLLM, they include only rounds that drafted.
        `start_http_server(8000, registry=monitor.to_prometheus())` serves them.

        Args:
            registry: default a new registry.
            model_name: the label `model_name`.

        Raises:
            SpecdecError: the registry has counters of these names already, or is not a registry.
        """
        from prometheus_client import CollectorRegistry, Metric
        from prometheus_client.registry import Collector

        labels = {"model_name": str(model_name), "engine": "0"}

        class Counters(Collector):
            def collect(_) -> Iterator[Metric]:
                now = self.get_statistics()
                accepted_at = [sum(now.accepted_histogram[i + 1 :]) for i in range(len(now.conditional_rates))]
                positions = [({"position": str(i)}, n) for i, n in enumerate(accepted_at)]
                for name, words, values in (
                    ("drafts", "Rounds that drafted.", [({}, now.drafts)]),
                    ("draft_tokens", "Drafted tokens.", [({}, now.drafted)]),
                    ("accepted_tokens", "Accepted tokens.", [({}, now.accepted)]),
                    ("accepted_tokens_per_pos", "Accepted tokens by position.", positions),
                ):
                    counter = Metric(f"vllm:spec_decode_num_{name}", words, "counter")
                    for where, value in values:
                        counter.add_sample(f"{counter.name}_total", labels | where, value)
                    yield counter

            describe = collect  # a registry calls it to find duplicate names

        registry = CollectorRegistry() if registry is None else registry
        try:
            registry.register(Counters())
        except (AttributeError, ValueError) as error:  # no registry; names that it has already
            raise SpecdecError(f"registry={registry!r:.80}: takes a CollectorRegistry without such counters") from error
        return registry

    def to_json_lines(self, file: File) -> None:
        """Write the last rounds, one JSON object per line: a `RoundRecord` with null for NaN.

        file: a path, or a text file open for writing.
        """
        with _opened(file, "w") as lines:
            lines.writelines(map(_as_json, list(self.rounds)))

    @contextmanager
    def log_json_lines(self, file: File) -> Iterator[None]:
        """Inside `with`, append a line as in `to_json_lines` to `file` whenever a round ends."""
        with _opened(file, "a") as lines:

            def write(records: list[RoundRecord]) -> None:
                lines.writelines(map(_as_json, records))

            self.listeners.append(write)
            try:
                yield
            finally:
                self.listeners.remove(write)

    def to_dataframe(self) -> Any:
        """The last rounds as a pandas DataFrame: one line per round, the columns of `RoundRecord`."""
        try:
            import pandas
        except ImportError as error:
            raise SpecdecError("to_dataframe: needs pandas; pip install 'specdec_ref[course]'") from error
        return pandas.DataFrame(list(self.rounds), columns=list(RoundRecord._fields))

    __rich__ = get_statistics

    def _repr_html_(self) -> str:
        return self.get_statistics()._repr_html_()


class _Watched:
    """A controller that records each round and the time since the previous one, and otherwise delegates."""

    def __init__(self, controller: "Controller", note: Callable[..., None]):
        self.controller, self.max_k = controller, controller.max_k
        self._note = note
        self._since: float | None = None

    def next_k(self) -> int:
        if self._since is None:
            self._since = time.perf_counter()
        return self.controller.next_k()

    def observe(self, rounds: "list[Round]") -> None:
        self.controller.observe(rounds)
        now = time.perf_counter()
        draft, verify = rounds[0].draft_seconds, rounds[0].verify_seconds
        rest = nan if self._since is None else now - self._since - draft - verify
        self._since = now
        self._note([_facts(row_round) for row_round in rounds], time.time(), draft, verify, rest)


def _facts(row_round: "Round") -> tuple[int, int, int]:
    # A tree counts by its depth, since α is a rate per position.
    return row_round.depth, int(row_round.accepted), len(row_round.emitted)


def _as_json(record: RoundRecord) -> str:
    known = {name: None if isnan(value) else value for name, value in record._asdict().items()}
    return json.dumps(known) + "\n"


def _opened(file: File, mode: str) -> AbstractContextManager[IO[str]]:
    """The file; it is closed afterwards only if it was given as a path. Every line is written immediately."""
    if isinstance(file, (str, os.PathLike)):
        return open(file, mode, encoding="utf-8", buffering=1)
    if not hasattr(file, "write"):
        raise SpecdecError(f"file={file!r:.80}: takes a path, or a text file open for writing")
    return nullcontext(file)
