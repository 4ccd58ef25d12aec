"""Servers compared: from the recorded run of `benchmarks/vllm_side_by_side.py`, or measured live."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec_lab.serving.load import ServerMeasurement, measure_server
from specdec_lab.serving.metrics import SpeculationCounters
from specdec_lab.serving.server import SMALL, VLLMServer
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import PRETRAINED, held_out_prompts
from specdec_ref.sampling import GREEDY, Sampling

MODES = {"temperature 1": Sampling(), "greedy": GREEDY}


@dataclass(frozen=True)
class Contender:
    """One engine with one configuration.

    Attributes:
        speed: mode → requests at once → tokens per second of all requests together.
        counters: mode → growth of the counters with one request at a time; servers only.
        latency: mode → 'first_seconds' or 'seconds_per_token' → 'p50' or 'p99', in seconds; servers only.
        equivalence: result of the equivalence test on its samples; servers only.
    """

    speed: Mapping[str, Mapping[int, float]]
    counters: Mapping[str, SpeculationCounters] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    equivalence: Mapping[str, Any] | None = None

    def round_cost(self, mode: str, alone: "Contender") -> float:
        """Cost of a round, in steps of the same server without speculation: tokens per round / speedup.

        This is the formula's k·c + v(k + 1) + o, measured from outside; a mean where some rounds drafted nothing.
        """
        return self.counters[mode].acceptance_length / (self.speed[mode][1] / alone.speed[mode][1])


@dataclass(frozen=True)
class SideBySide:
    """Contenders on the same prompts.

    Attributes:
        source: where the figures come from, in words.
        contenders: by name.
        alpha: mode → accepted / examined of our own loop on the same prompts, where it was measured.
    """

    source: str
    contenders: dict[str, Contender]
    alpha: Mapping[str, float] = field(default_factory=dict)


def recorded(path: str | Path) -> SideBySide:
    """The recorded run. Raises SpecdecError where there is none."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        machine = report["machine"]
        source = (
            f"recorded on {machine['date']}: {report['vllm']}, torch {machine['torch']}, {machine['cores']} cores of "
            f"an {machine['processor']}, {machine['dtype']}"
        )
        contenders = {name: _contender(contender) for name, contender in report["contenders"].items()}
        return SideBySide(source, contenders, report["our acceptance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecdecError(f"path={str(path)!r:.80}: holds no such recorded run ({error!r:.80})") from error


def _contender(facts: Mapping[str, Any]) -> Contender:
    speed = {mode: {int(size): pace for size, pace in paces.items()} for mode, paces in facts["speed"].items()}
    counters = {}
    for mode, acceptance in facts.get("acceptance", {}).items():
        numbers = acceptance["counters"]
        counters[mode] = SpeculationCounters(
            numbers["drafts"], numbers["draft_tokens"], numbers["accepted_tokens"], tuple(numbers["per_position"])
        )
    return Contender(speed, counters, facts.get("latency", {}), facts.get("equivalence"))


class IncompleteError(SpecdecError):
    """A live comparison that ended early. measured: the results until then, which `source` labels as incomplete."""

    def __init__(self, message: str, measured: SideBySide):
        super().__init__(message)
        self.measured = measured


def live(
    configs: Mapping[str, Mapping[str, Any] | None],
    *,
    batches: tuple[int, ...] = (1, 4),
    prompts: int = 4,
    max_new_tokens: int = 24,
    options: tuple[str, ...] = (*SMALL, "--enforce-eager"),
) -> SideBySide:
    """Start one vLLM server of the shipped pair per configuration, measure them in turns, and stop them.

    The servers start together, because starting takes long. They are measured in turns, so that a machine whose speed
    changes favors none of them. 'enforce-eager' leaves the compiler out: the server starts in a third of the time and
    runs somewhat slower.

    Args:
        configs: name → `speculative_config`, or None for no speculation.
        batches: requests at once.
        prompts: number of prompts.
        max_new_tokens: of each answer.
        options: further options of the server.

    Raises:
        IncompleteError: a server did not start, or stopped answering. Its `measured` holds the results until then.
    """
    texts = list(held_out_prompts().values())[:prompts]
    figures = {name: _Figures() for name in configs}
    with _together(configs, options) as servers:
        up = {name: server for name, server in servers.items() if isinstance(server, VLLMServer)}
        for mode, sampling in MODES.items():
            for size in batches:
                for name, server in up.items():
                    try:
                        # Warm up with as many requests at once: the first step of a batch size is slow.
                        measure_server(server.url, texts, concurrency=size, max_new_tokens=8, sampling=sampling)
                        measured = measure_server(
                            server.url, texts, concurrency=size, max_new_tokens=max_new_tokens, sampling=sampling
                        )
                        if measured.problem is not None:
                            raise SpecdecError(measured.problem)
                    except SpecdecError as error:
                        raise _incomplete(f"{name}: {error}", figures) from error
                    figures[name].add(mode, size, measured)
    for name, missing in servers.items():
        if isinstance(missing, SpecdecError):
            raise _incomplete(f"{name}: {missing}", figures) from missing
    return SideBySide(
        "measured live on this machine",
        {name: figures_of_contender.contender() for name, figures_of_contender in figures.items()},
    )


@dataclass
class _Figures:
    """A contender while it is measured."""

    speed: dict[str, dict[int, float]] = field(default_factory=dict)
    counters: dict[str, SpeculationCounters] = field(default_factory=dict)
    latency: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def add(self, mode: str, size: int, measured: ServerMeasurement) -> None:
        self.speed.setdefault(mode, {})[size] = measured.tokens_per_second
        if size == 1:
            self.latency[mode] = {
                what: dict(zip(("p50", "p99"), measured.percentiles(what), strict=True))
                for what in ("first_seconds", "seconds_per_token")
            }
        if size == 1 and measured.counters is not None and measured.counters.drafts:
            self.counters[mode] = measured.counters

    def contender(self) -> Contender:
        return Contender(self.speed, self.counters, self.latency)


@contextmanager
def _together(
    configs: Mapping[str, Mapping[str, Any] | None], options: tuple[str, ...]
) -> Iterator[dict[str, VLLMServer | SpecdecError]]:
    """Every server once it answers, or the error why it does not."""
    servers: dict[str, VLLMServer | SpecdecError] = {}
    launched: list[VLLMServer] = []
    try:
        for name, config in configs.items():
            try:
                server = VLLMServer(str(PRETRAINED / "target"), config, options=options)
                launched.append(server)
                server.launch()
                servers[name] = server
            except SpecdecError as error:
                servers[name] = error
        for name, started in servers.items():
            if isinstance(started, VLLMServer):
                try:
                    started.wait()
                except SpecdecError as error:
                    servers[name] = error
        yield servers
    finally:  # in parallel: each takes two seconds to stop
        with ThreadPoolExecutor() as pool:
            list(pool.map(VLLMServer.stop, launched))


def _incomplete(problem: str, figures: Mapping[str, _Figures]) -> IncompleteError:
    measured = SideBySide(
        f"measured live on this machine, incomplete: {problem}",
        {name: contender.contender() for name, contender in figures.items() if contender.speed},
    )
    paces = [
        f"{name}, {mode}, {size} at once: {pace:.1f}"
        for name, contender in measured.contenders.items()
        for mode, by_size in contender.speed.items()
        for size, pace in by_size.items()
    ]
    progress = f"tokens/s measured until then: {'; '.join(paces)}" if paces else "nothing was measured until then"
    return IncompleteError(f"{problem} ({progress})", measured)
