"""What a vLLM server says of its speculation, on `/metrics`: counters, and the statistics that follow from them.

Counters only grow, from the server's start on, and belong to everyone who asks it. So read them twice, and take the
difference: what happened in between. Names as in vLLM 0.32; `SpeculativeDecodingMonitor.to_prometheus` uses them too.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

from specdec_lab.monitoring.live import MonitorStatistics, summarize
from specdec_lab.web import answered, request
from specdec_ref.errors import SpecdecError

PREFIX = "vllm:spec_decode_num_"
LARGEST = 2**24
"""So many bytes of a page of metrics are read; a real one has some ten thousand."""


@dataclass(frozen=True)
class SpeculationCounters:
    """drafts: rounds that drafted, over all engines. draft_tokens, accepted_tokens: tokens. per_position: rounds that
    accepted the token at position 1, 2, …, k."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    per_position: tuple[int, ...]

    def __sub__(self, earlier: "SpeculationCounters") -> "SpeculationCounters":
        """What was counted since `earlier`. Raises SpecdecError where a counter fell: the server started anew."""
        positions = max(len(self.per_position), len(earlier.per_position))
        kept, before = ((*one.per_position, *[0] * (positions - len(one.per_position))) for one in (self, earlier))
        passed = SpeculationCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted_tokens - earlier.accepted_tokens,
            tuple(now - then for now, then in zip(kept, before, strict=True)),
        )
        if min(passed.drafts, passed.draft_tokens, passed.accepted_tokens, *passed.per_position, 0) < 0:
            raise SpecdecError("counters: fell since they were read before; the server has been started anew")
        return passed

    @property
    def acceptance_length(self) -> float:
        """Tokens per round that drafted: 1 + accepted / drafts, as vLLM's own log has it. NaN without a draft."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else nan

    def statistics(self) -> MonitorStatistics:
        """The monitor's own table, without seconds.

        The counters do not say how many tokens each round drafted. Exact where every round drafted k; with a schedule
        by batch size rounds that drafted fewer are taken for ones that rejected there, so that rates come out low.
        """
        k = len(self.per_position)
        reached = (self.drafts, *self.per_position, 0)
        pairs = {(k, accepted): reached[accepted] - reached[accepted + 1] for accepted in range(k + 1)}
        return summarize(
            {pair: n for pair, n in pairs.items() if n},
            (),
            self.accepted_tokens + self.drafts,
            (nan, nan, nan),
            window=1,
        )


def parse_counters(text: str) -> SpeculationCounters:
    """From a page in Prometheus' text format. Raises SpecdecError for a page that is none, or has no such counters."""
    from prometheus_client.parser import text_string_to_metric_families

    sums: Counter[str] = Counter()
    positions: Counter[int] = Counter()
    try:
        for family in text_string_to_metric_families(text):
            if family.name.startswith(PREFIX):
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        sums[family.name.removeprefix(PREFIX)] += int(sample.value)
                        if "position" in sample.labels:
                            positions[int(sample.labels["position"])] += int(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise SpecdecError(f"metrics: not in Prometheus' text format ({error})") from error
    if "drafts" not in sums:
        raise SpecdecError(f"metrics: no {PREFIX}…: the server does not speculate, or is no vLLM")
    kept = tuple(positions[i] for i in range(max(positions, default=-1) + 1))
    return SpeculationCounters(sums["drafts"], sums["draft_tokens"], sums["accepted_tokens"], kept)


def read_counters(url: str, timeout: float = 10.0, headers: Mapping[str, str] | None = None) -> SpeculationCounters:
    """What the server at `url` has counted so far. url: with or without /v1. Raises SpecdecError, of one line."""
    root = url.rstrip("/").removesuffix("/v1") if isinstance(url, str) else url
    asked = request(f"{root}/metrics" if isinstance(root, str) else root, headers=headers)
    with answered(asked, timeout) as answer:
        text = answer.read(LARGEST).decode(errors="replace")
    try:
        return parse_counters(text)
    except SpecdecError as error:
        raise SpecdecError(f"{root}/metrics: {str(error).removeprefix('metrics: ')}") from error
