"""What watches the rounds of a generation: it notes each as it ends, and hands out what it noted.

Noting is a few appends, microseconds beside the milliseconds of a round; everything is added up when somebody asks.
What the sums and rates mean is in live.py.
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
"""So many of the last rounds are kept one by one; sums, rates and counters count all."""
File = str | os.PathLike[str] | IO[str]


class SpeculativeDecodingMonitor:
    """Pass it as `monitor=` to any generation, call its hook from a loop of your own, or `add` what is done already.

    One monitor may watch many generations, one after the other or at once. window: rounds of the rolling values.
    rounds: the last ones, oldest first, at most `HISTORY`. listeners: called with the records of each step as it ends.
    Raises SpecdecError for arguments it cannot use.
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
        """A controller that chooses as `controller` does and shows this monitor every round."""
        return _Watched(as_controller(controller), self._note)

    def on_iteration_complete(self, accepted: int, proposed: int) -> None:
        """For a loop of your own: one row's round proposed so many tokens, and so many of them were accepted."""
        if not is_whole(accepted) or not is_whole(proposed) or not 0 <= accepted <= proposed:
            raise SpecdecError(f"{accepted=!r:.40}, {proposed=!r:.40}: take whole numbers, 0 ≤ accepted ≤ proposed")
        self._note([(int(proposed), int(accepted), int(accepted) + 1)], time.time(), nan, nan, nan)

    def add(self, done: Any) -> None:
        """What was generated without a monitor: a Generation, a list of them, or the rounds of one.

        Rows that took the same seconds were one batch. The seconds beside draft and verify are not known then: NaN.
        """
        from specdec_ref.decoding import Round  # here, since it loads PyTorch

        listed = list(done) if isinstance(done, Sequence) else [done]
        one_row = all(isinstance(one, Round) for one in listed)
        rows: list[Any] = [listed] if one_row else [getattr(one, "rounds", None) for one in listed]
        for one in (one for row in rows for one in (row if isinstance(row, Sequence) else [done])):
            if not isinstance(one, Round) or not 0 <= one.accepted <= len(one.drafted):
                raise SpecdecError(f"done: has {one!r:.80}; takes a Generation, a list of them, or the rounds of one")
        for step in zip_longest(*rows):
            batches: dict[Any, list[Round]] = {}
            for one in filter(None, step):
                batches.setdefault((one.draft_seconds, one.verify_seconds), []).append(one)
            for seconds, batch in batches.items():
                self._note([_facts(one) for one in batch], nan, *seconds, nan)

    def _note(self, rows: list[tuple[int, int, int]], ended: float, *seconds: float) -> None:
        """A step that ended. Of each row: tokens drafted, accepted, emitted. Seconds: draft, verify, other."""
        with self._lock:
            records = [RoundRecord(self._steps, ended, *row, *seconds) for row in rows]
            self.rounds += records
            for drafted, accepted, emitted in rows:
                self._pairs[drafted, accepted] += 1
                self._emitted += emitted
            draft, verify, other = self._seconds
            self._seconds = draft + seconds[0], verify + seconds[1], other + seconds[2]
            self._steps += 1
        for listener in tuple(self.listeners):
            listener(records)

    def get_statistics(self) -> MonitorStatistics:
        """All sums and rates as they are now."""
        with self._lock:
            recent = list(islice(reversed(self.rounds), self.window))
            pairs, emitted, seconds = self._pairs.copy(), self._emitted, self._seconds
        return summarize(pairs, recent, emitted, seconds, self.window)

    def live(self) -> LiveView:
        """`with monitor.live(): …` shows the statistics while text streams: in a notebook at once, else at the end."""
        return LiveView(self)

    def plot_acceptance_over_time(self, path: "str | os.PathLike[str] | None" = None) -> "Figure":
        """Both rates over the last `window` rounds (of a short run a quarter), beside α. path: to save it as well."""
        now, records = self.get_statistics(), list(self.rounds)
        drafted, accepted = np.array([(r.drafted, r.accepted) for r in records], dtype=np.int64).reshape(-1, 2).T
        width = min(self.window, max(1, len(records) // 4))
        sums = [np.append(0, x.cumsum()) for x in (accepted, np.minimum(accepted + 1, drafted), drafted)]
        kept, judged, proposed = (x[width:] - x[:-width] for x in sums)
        rate, of_drafted = (np.divide(kept, x, out=np.full(len(x), nan), where=x > 0) for x in (judged, proposed))
        last = np.arange(len(rate)) + now.rounds - len(rate) + 1
        title = f"α is {percent(now.acceptance_rate)} % over all rounds, {percent(*rate[-1:])} % over the last {width}"
        figure, axes = plotting.new_figure(title if now.judged else "No draft yet", "round", "tokens accepted (%)")
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
        """A prometheus_client registry with vLLM's counters, by its names and labels; read when somebody scrapes.

        registry: default a new one. Only rounds that drafted count, as in vLLM. `start_http_server(8000,
        registry=monitor.to_prometheus())` serves them. Raises SpecdecError where the registry has such already.
        """
        from prometheus_client import CollectorRegistry, Metric
        from prometheus_client.registry import Collector

        labels = {"model_name": str(model_name), "engine": "0"}

        class Counters(Collector):
            def collect(_) -> Iterator[Metric]:
                now = self.get_statistics()
                kept = [sum(now.accepted_histogram[i + 1 :]) for i in range(len(now.conditional_rates))]
                positions = [({"position": str(i)}, n) for i, n in enumerate(kept)]
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

            describe = collect  # by which a registry tells that it has them already

        registry = CollectorRegistry() if registry is None else registry
        try:
            registry.register(Counters())
        except (AttributeError, ValueError) as error:  # no registry; names that it has already
            raise SpecdecError(f"registry={registry!r:.80}: takes a CollectorRegistry without such counters") from error
        return registry

    def to_json_lines(self, file: File) -> None:
        """Write the last rounds, one JSON object each: a `RoundRecord` with null for NaN. file: path or open file."""
        with _opened(file, "w") as lines:
            lines.writelines(map(_as_json, list(self.rounds)))

    @contextmanager
    def log_json_lines(self, file: File) -> Iterator[None]:
        """Inside `with`, such a line is added to `file` as soon as a round ends."""
        with _opened(file, "a") as lines:

            def write(records: list[RoundRecord]) -> None:
                lines.writelines(map(_as_json, records))

            self.listeners.append(write)
            try:
                yield
            finally:
                self.listeners.remove(write)

    def to_dataframe(self) -> Any:
        """The last rounds as a pandas DataFrame, a row each, columns as in `RoundRecord`."""
        try:
            import pandas
        except ImportError as error:
            raise SpecdecError("to_dataframe: needs pandas; pip install 'specdec_ref[course]'") from error
        return pandas.DataFrame(list(self.rounds), columns=list(RoundRecord._fields))

    __rich__ = get_statistics

    def _repr_html_(self) -> str:
        return self.get_statistics()._repr_html_()


class _Watched:
    """Stands between a loop and its controller, and takes the time from round to round."""

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
        other = nan if self._since is None else now - self._since - draft - verify
        self._since = now
        self._note([_facts(one) for one in rounds], time.time(), draft, verify, other)


def _facts(one: "Round") -> tuple[int, int, int]:
    return one.depth, int(one.accepted), len(one.emitted)  # of a tree one path counts: α is about positions


def _as_json(record: RoundRecord) -> str:
    known = {name: None if isnan(value) else value for name, value in record._asdict().items()}
    return json.dumps(known) + "\n"


def _opened(file: File, mode: str) -> AbstractContextManager[IO[str]]:
    """The file, to be closed again if it was a path. Every line is written at once."""
    if isinstance(file, (str, os.PathLike)):
        return open(file, mode, encoding="utf-8", buffering=1)
    if not hasattr(file, "write"):
        raise SpecdecError(f"file={file!r:.80}: takes a path, or a text file open for writing")
    return nullcontext(file)
