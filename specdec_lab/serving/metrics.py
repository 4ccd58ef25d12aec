"""A vLLM server's speculation counters on its `/metrics` page, and the statistics that follow from them.

Counters only grow, from the server's start on, and include every user's requests. So read them twice and take the
difference. Names as in vLLM 0.33; `SpeculativeDecodingMonitor.to_prometheus` uses the same.
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
"""The most bytes that are read of a metrics page; a real one has about ten thousand."""


@dataclass(frozen=True)
class SpeculationCounters:
    """vLLM's four counters.

    Attributes:
        drafts: rounds that drafted, over all engines.
        draft_tokens: drafted tokens.
        accepted_tokens: accepted tokens.
        per_position: rounds that accepted the token at position 1, 2, …, k.
    """

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    per_position: tuple[int, ...]

    def __sub__(self, earlier: "SpeculationCounters") -> "SpeculationCounters":
        """The growth since `earlier`. Raises SpecdecError where a counter fell, because the server was restarted."""
        positions = max(len(self.per_position), len(earlier.per_position))
        now_accepted, before = (
            (*counters.per_position, *[0] * (positions - len(counters.per_position))) for counters in (self, earlier)
        )
        passed = SpeculationCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted_tokens - earlier.accepted_tokens,
            tuple(now - then for now, then in zip(now_accepted, before, strict=True)),
        )
        if min(passed.drafts, passed.draft_tokens, passed.accepted_tokens, *passed.per_position, 0) < 0:
            raise SpecdecError("counters: fell since they were last read; the server was restarted")
        return passed

    @property
    def acceptance_length(self) -> float:
        """Tokens per round that drafted: 1 + accepted / drafts, as in vLLM's own log. NaN without a draft."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else nan

    def statistics(self) -> MonitorStatistics:
        """The same table as the monitor's, without seconds.

        Exact where every round drafted k tokens. The counters do not record how many tokens each round drafted, so
        rounds that drafted fewer count as rejections there, and the rates come out low.
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
    """Counters from a page in Prometheus' text format. Raises SpecdecError for another format or missing counters."""
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
    accepted_at = tuple(positions[i] for i in range(max(positions, default=-1) + 1))
    return SpeculationCounters(sums["drafts"], sums["draft_tokens"], sums["accepted_tokens"], accepted_at)


def read_counters(url: str, timeout: float = 10.0, headers: Mapping[str, str] | None = None) -> SpeculationCounters:
    """The counters of the server at `url` (with or without /v1) since its start. Raises SpecdecError."""
    root = url.rstrip("/").removesuffix("/v1") if isinstance(url, str) else url
    asked = request(f"{root}/metrics" if isinstance(root, str) else root, headers=headers)
    with answered(asked, timeout) as answer:
        text = answer.read(LARGEST).decode(errors="replace")
    try:
        return parse_counters(text)
    except SpecdecError as error:
        raise SpecdecError(f"{root}/metrics: {str(error).removeprefix('metrics: ')}") from error
