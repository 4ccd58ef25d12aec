"""The promises of `monitoring` and `live`: a monitor changes nothing and costs next to nothing; its sums and rates are
those of a plain count; they leave it under the names that vLLM uses, as JSON, as a table, as a figure and live.
"""

import copy
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from specdec_lab.equivalence.tables import constant_table
from specdec_lab.monitoring.live import LiveView, MonitorStatistics, RoundRecord
from specdec_lab.monitoring.monitor import HISTORY, SpeculativeDecodingMonitor
from specdec_ref import (
    Controller,
    FixedK,
    ModelDrafter,
    Pair,
    PromptLookupDrafter,
    Round,
    Sampling,
    SeededRandomness,
    SpecdecError,
    generate_autoregressive,
    generate_speculative,
    stream_speculative,
)
from specdec_ref.decoding import Row, speculate

SOURCE_NAMES = [f"{what}_acceptance_rate" for what in ("mean", "std", "min", "max", "p50", "p95")] + [
    "total_iterations"
]
PROMPT = [5, 9, 33, 2, 60, 7, 1]
BATCH = [PROMPT, [8], [40, 3, 12, 12]]

pairs_of_counts = st.integers(0, 9).flatmap(lambda k: st.tuples(st.integers(0, k), st.just(k)))
histories = st.lists(pairs_of_counts, max_size=60)


def monitor_of(history: Sequence[tuple[int, int]], window: int = 100) -> SpeculativeDecodingMonitor:
    """A monitor that received these rounds, each (accepted, proposed)."""
    monitor = SpeculativeDecodingMonitor(window)
    for accepted, proposed in history:
        monitor.on_iteration_complete(accepted, proposed)
    return monitor


def outcomes(accepted: int, proposed: int) -> list[bool]:
    """What was said to a round's tokens, one after the other, until the first was rejected."""
    return [True] * accepted + [False] * (accepted < proposed)


def same(a: object, b: object) -> bool:
    """Equal, where NaN is NaN."""
    return a == b or (a != a and b != b)


class Cycle:
    """A controller that goes through its list of k again and again, and records the rounds that it observes."""

    def __init__(self, *ks: int):
        self.max_k, self.ks, self.at = max(ks), ks, 0
        self.observed: list[list[Round]] = []

    def next_k(self) -> int:
        self.at += 1
        return self.ks[(self.at - 1) % len(self.ks)]

    def observe(self, rounds: list[Round]) -> None:
        self.observed.append(list(rounds))


# What the numbers mean.


def test_a_small_history_counted_by_hand() -> None:
    """Drafted 4, 4, 4, 0, 2; accepted 4, 0, 2, 0, 1: examined 4, 1, 3, 0, 2."""
    found = monitor_of([(4, 4), (0, 4), (2, 4), (0, 0), (1, 2)]).get_statistics()
    assert (found.rounds, found.drafts, found.drafted, found.examined, found.accepted) == (5, 4, 14, 10, 7)
    assert found.emitted == 12
    assert found.acceptance_rate == 7 / 10
    assert found.draft_acceptance_rate == 7 / 14
    assert found.tokens_per_round == 12 / 5
    assert found.accepted_histogram == (1, 1, 1, 0, 1)
    assert found.conditional_rates == (3 / 4, 2 / 3, 1 / 2, 1 / 1)
    assert found.unconditional_rates == (3 / 4, 2 / 4, 1 / 4, 1 / 4)


def test_the_mean_of_rates_misleads_as_its_docstring_says() -> None:
    found = monitor_of([(1, 1), (4, 8)]).get_statistics()
    assert found["mean_acceptance_rate"] == 0.75
    assert (found.draft_acceptance_rate, found.acceptance_rate) == (5 / 9, 5 / 6)
    assert all(figure in str(MonitorStatistics.__doc__) for figure in ("0.75", "5/9", "5/6"))


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(1, 20))
@example([], 1)
@example([(0, 0)], 3)
@example([(0, 0), (0, 3)], 1)
def test_statistics_are_those_of_counting_token_by_token(history: list[tuple[int, int]], window: int) -> None:
    found = monitor_of(history, window).get_statistics()
    said = [outcomes(*one) for one in history]
    drafting = [one for one in history if one[1]]

    def share(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    def rates(chosen: list[tuple[int, int]]) -> list[float]:
        flat = [verdict for one in chosen for verdict in outcomes(*one)]
        emitted = [1 for one in chosen for _ in range(one[0] + 1)]
        return [
            share(sum(flat), len(flat)),
            share(sum(flat), sum(k for _, k in chosen)),
            share(len(emitted), len(chosen)),
        ]

    assert (found.rounds, found.drafts) == (len(history), len(drafting))
    assert (found.examined, found.accepted) == (sum(map(len, said)), sum(map(sum, said)))
    ours = [found.acceptance_rate, found.draft_acceptance_rate, found.tokens_per_round]
    np.testing.assert_allclose(ours, rates(history), rtol=1e-12)
    rolling = [found.rolling_acceptance_rate, found.rolling_draft_acceptance_rate, found.rolling_tokens_per_round]
    np.testing.assert_allclose(rolling, rates(history[-window:]), rtol=1e-12)
    k = max((k for _, k in history), default=0)
    assert len(found.conditional_rates) == len(found.unconditional_rates) == k
    for i in range(k):
        there = [verdicts[i] for verdicts in said if len(verdicts) > i]
        assert same(found.conditional_rates[i], share(sum(there), len(there)))
        assert same(found.unconditional_rates[i], share(sum(there), len(drafting)))
    assert found.accepted_histogram == tuple([a for a, _ in drafting].count(i) for i in range(k + 1))


@settings(max_examples=100, deadline=None)
@given(histories.filter(bool))
@example([(1, 2)])
@example([(0, 0), (1, 1), (1, 1)])
def test_the_source_texts_seven_are_numpys_of_each_rounds_rate(history: list[tuple[int, int]]) -> None:
    rates = [accepted / proposed if proposed > 0 else 0 for accepted, proposed in history]
    expected = [np.mean(rates), np.std(rates), np.min(rates), np.max(rates), *np.percentile(rates, [50, 95])]
    found = monitor_of(history).get_statistics()
    np.testing.assert_allclose([found[name] for name in SOURCE_NAMES[:-1]], expected, rtol=1e-9, atol=1e-9)
    assert found["total_iterations"] == len(history)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_the_interval_is_wilsons(history: list[tuple[int, int]]) -> None:
    found = monitor_of(history).get_statistics()
    if not found.examined:
        assert all(math.isnan(end) for end in found.acceptance_interval)
        return
    oracle = stats.binomtest(found.accepted, found.examined).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(found.acceptance_interval, [oracle.low, oracle.high], rtol=0, atol=1e-6)


def test_nothing_judged_is_nan_and_never_an_error() -> None:
    for history in ([], [(0, 0)]):
        found = monitor_of(history).get_statistics().to_dict()
        for name in ("acceptance_rate", "draft_acceptance_rate", "rolling_acceptance_rate"):
            assert math.isnan(found[name]), name
        assert all(math.isnan(end) for end in found["acceptance_interval"])
    empty = monitor_of([]).get_statistics()
    assert math.isnan(empty.tokens_per_round)
    assert all(math.isnan(empty[name]) for name in SOURCE_NAMES[:-1])
    assert empty["total_iterations"] == 0


def test_everything_can_be_had_by_name() -> None:
    found = monitor_of([(2, 3), (0, 3)]).get_statistics()
    everything = found.to_dict()
    assert set(SOURCE_NAMES) <= set(everything)
    assert all(same(found[name], value) for name, value in everything.items())
    assert found["acceptance_rate"] == found.acceptance_rate
    with pytest.raises(KeyError, match="acceptance"):
        found["acceptance"]


def test_only_the_last_rounds_are_kept_but_all_are_counted() -> None:
    monitor = SpeculativeDecodingMonitor()
    for i in range(HISTORY + 10):
        monitor.on_iteration_complete(1 if i < 10 else 0, 1)
    assert len(monitor.rounds) == HISTORY
    assert monitor.rounds[-1].step == HISTORY + 9
    found = monitor.get_statistics()
    assert (found.rounds, found.accepted, found.rolling_acceptance_rate) == (HISTORY + 10, 10, 0.0)


# Known acceptance: p and q are the same at every position, so each round is k independent tries at most.

P, Q = [0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]
ALPHA = 0.25 + 0.25 + 0.15 + 0.05  # Σ min(p, q)


def test_a_pair_of_known_alpha_is_measured_right() -> None:
    """300 rows, 6 rounds, k = 3; no row ends within them. Five p-values ≥ 1e-6 each: false alarms < 5e-6, and the seed
    is fixed."""
    monitor = SpeculativeDecodingMonitor()
    rows = [Row((0,), 40) for _ in range(300)]
    loop = speculate(
        constant_table(P), ModelDrafter(constant_table(Q)), rows, monitor.watch(FixedK(3)), Sampling(),
        SeededRandomness(7),
    )  # fmt: skip
    for _ in range(6):
        next(loop)
    found = monitor.get_statistics()
    assert (found.rounds, found.drafts, found.drafted) == (1800, 1800, 5400)
    # A rejection ends a round, so examined tokens are independent tries and the counts are binomial.
    assert stats.binomtest(found.accepted, found.examined, ALPHA).pvalue > 1e-6
    reached = 1800
    for i, rate in enumerate(found.conditional_rates):
        accepted_here = round(rate * reached)
        assert stats.binomtest(accepted_here, reached, ALPHA).pvalue > 1e-6, i
        assert found.unconditional_rates[i] == accepted_here / 1800
        reached = accepted_here
    expected = 1800 * np.array([1 - ALPHA, (1 - ALPHA) * ALPHA, (1 - ALPHA) * ALPHA**2, ALPHA**3])
    assert stats.chisquare(found.accepted_histogram, expected).pvalue > 1e-6
    assert found.emitted == found.accepted + 1800


def test_accepted_over_drafted_falls_with_k_and_accepted_over_judged_does_not() -> None:
    """The rates of the same pair at k = 1 and k = 8, each of 300 rows and 3 rounds; ± 5 standard errors: false alarm
    below 1e-6 for each comparison."""
    found = {}
    for k in (1, 8):
        monitor = SpeculativeDecodingMonitor()
        rows = [Row((0,), 40) for _ in range(300)]
        parts = constant_table(P), ModelDrafter(constant_table(Q)), rows, monitor.watch(FixedK(k))
        loop = speculate(*parts, Sampling(), SeededRandomness(3))
        for _ in range(3):
            next(loop)
        found[k] = monitor.get_statistics()
        error = math.sqrt(ALPHA * (1 - ALPHA) / found[k].examined)
        assert abs(found[k].acceptance_rate - ALPHA) < 5 * error
    # E[accepted] / k is α at k = 1, and (α − α⁹) / (1 − α) / 8 at k = 8: 0.70 and 0.28.
    assert found[1].draft_acceptance_rate > 0.6
    assert found[8].draft_acceptance_rate < 0.4


# Watching changes nothing.


def watched_and_not(pair: Pair, prompt: Any, **arguments: Any) -> tuple[Any, Any, SpeculativeDecodingMonitor]:
    monitor = SpeculativeDecodingMonitor()
    with_monitor = generate_speculative(
        pair, prompt, seed=3, max_new_tokens=24, monitor=monitor, **copy.deepcopy(arguments)
    )
    return generate_speculative(pair, prompt, seed=3, max_new_tokens=24, **arguments), with_monitor, monitor


@pytest.mark.parametrize("drafter", [None, PromptLookupDrafter()], ids=["draft model", "prompt lookup"])
@pytest.mark.parametrize("prompt", [PROMPT, BATCH], ids=["one", "batch"])
def test_a_watched_generation_has_the_same_tokens(pair: Pair, prompt: Any, drafter: Any) -> None:
    plain, watched, monitor = watched_and_not(pair, prompt, k=3, drafter=drafter)
    plain, watched = (x if isinstance(x, list) else [x] for x in (plain, watched))
    assert [g.tokens for g in plain] == [g.tokens for g in watched]
    assert monitor.get_statistics().rounds == sum(len(g.rounds) for g in watched)


def test_choices_and_outcomes_pass_through_unchanged(pair: Pair) -> None:
    controllers = Cycle(3, 0, 1, 2), Cycle(3, 0, 1, 2)
    monitor = SpeculativeDecodingMonitor()
    watched = generate_speculative(pair, BATCH, k=controllers[0], max_new_tokens=24, seed=1, monitor=monitor)
    generate_speculative(pair, BATCH, k=controllers[1], max_new_tokens=24, seed=1)
    watched_rounds, plain_rounds = (
        [[(r.drafted, r.accepted, r.emitted) for r in rounds] for rounds in c.observed] for c in controllers
    )
    assert watched_rounds == plain_rounds
    assert controllers[0].at == controllers[1].at
    expected_rounds = sorted((len(r.drafted), r.accepted, len(r.emitted)) for g in watched for r in g.rounds)
    assert sorted((r.drafted, r.accepted, r.emitted) for r in monitor.rounds) == expected_rounds


def test_autoregressive_decoding_and_streams_can_be_watched(pair: Pair) -> None:
    monitor = SpeculativeDecodingMonitor()
    one_by_one = generate_autoregressive(pair, PROMPT, max_new_tokens=9, seed=0, monitor=monitor)
    found = monitor.get_statistics()
    assert (found.rounds, found.drafts, found.emitted, found.tokens_per_round) == (9, 0, len(one_by_one.tokens), 1.0)
    chunks = list(stream_speculative(pair, PROMPT, k=3, max_new_tokens=9, seed=0, monitor=monitor))
    assert monitor.get_statistics().rounds == 9 + len(chunks)


def test_watched_monitors_can_be_stacked(pair: Pair) -> None:
    inner, outer = SpeculativeDecodingMonitor(), SpeculativeDecodingMonitor()

    class Both:
        def watch(self, controller: Controller) -> Controller:
            return outer.watch(inner.watch(controller))

    generate_speculative(pair, PROMPT, k=3, max_new_tokens=9, seed=0, monitor=Both())
    assert inner.get_statistics().accepted_histogram == outer.get_statistics().accepted_histogram


def test_rates_agree_with_the_generations_own(pair: Pair) -> None:
    _, generation, monitor = watched_and_not(pair, PROMPT, k=3)
    found = monitor.get_statistics()
    assert found.acceptance_rate == generation.acceptance_rate
    assert (found.emitted, found.rounds) == (len(generation.tokens), len(generation.rounds))


def test_the_three_times_add_up_to_the_rounds(pair: Pair) -> None:
    """A batch's seconds count once; nothing but the prefill is left out."""
    monitor = SpeculativeDecodingMonitor()
    generations = generate_speculative(pair, BATCH, k=3, max_new_tokens=24, seed=1, monitor=monitor)
    found = monitor.get_statistics()
    steps = {record.step: record for record in monitor.rounds}
    assert len(steps) == max(len(g.rounds) for g in generations)
    longest = max(generations, key=lambda g: len(g.rounds))
    assert found.draft_seconds == pytest.approx(sum(r.draft_seconds for r in longest.rounds))
    assert found.verify_seconds == pytest.approx(sum(r.verify_seconds for r in longest.rounds))
    assert all(record.other_seconds > 0 for record in monitor.rounds)
    assert found.other_seconds == pytest.approx(sum(record.other_seconds for record in steps.values()))
    assert found.draft_seconds + found.verify_seconds + found.other_seconds < longest.seconds


def test_only_what_entered_the_text_counts_as_emitted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end token may be accepted inside a round. The tokens after it are not part of the text."""
    monkeypatch.setattr(Pair, "eos", frozenset(pair.tokenizer("\n")["input_ids"]))
    monitor = SpeculativeDecodingMonitor()
    generations = generate_speculative(pair, BATCH, k=4, max_new_tokens=24, seed=1, monitor=monitor)
    found = monitor.get_statistics()
    assert found.emitted == sum(len(g.tokens) for g in generations) < found.accepted + found.rounds


def test_what_a_streams_reader_does_between_rounds_is_other_time(pair: Pair) -> None:
    monitor = SpeculativeDecodingMonitor()
    stream = stream_speculative(pair, PROMPT, k=2, max_new_tokens=30, seed=0, monitor=monitor)
    next(stream)
    time.sleep(0.2)
    next(stream)
    stream.close()
    assert [record.other_seconds >= 0.2 for record in monitor.rounds] == [False, True]


@pytest.mark.timed
def test_watching_costs_less_than_two_per_cent_of_a_round() -> None:
    """A round of the pair that ships lasts about 6 ms, so 120 µs; the least of ten tries, for a busy machine."""
    monitor = SpeculativeDecodingMonitor()
    controller = monitor.watch(FixedK(4))
    rounds = [Round((1, 2, 3, 4), 2, (1, 2, 7), 0.001, 0.004)]
    least = math.inf
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(200):
            controller.next_k()
            controller.observe(rounds)
        least = min(least, (time.perf_counter() - began) / 200)
    assert least < 120e-6


def test_threads_lose_no_round() -> None:
    monitor = SpeculativeDecodingMonitor()

    def work() -> None:
        controller = monitor.watch(FixedK(2))
        for _ in range(500):
            controller.next_k()
            controller.observe([Round((1, 2), 1, (1, 5), 0.0, 0.0)])
            monitor.on_iteration_complete(0, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = [monitor.get_statistics().rounds for _ in range(20)]
    for thread in threads:
        thread.join()
    found = monitor.get_statistics()
    assert (found.rounds, found.accepted, found.emitted) == (4000, 2000, 6000)
    assert seen == sorted(seen)
    assert sorted({record.step for record in monitor.rounds}) == list(range(4000))


# What is shown afterwards.


@pytest.mark.parametrize("prompt", [PROMPT, BATCH], ids=["one", "batch"])
def test_adding_a_generation_afterwards_is_as_good_as_watching_it(pair: Pair, prompt: Any) -> None:
    _, generated, watching = watched_and_not(pair, prompt, k=3)
    later = SpeculativeDecodingMonitor()
    later.add(generated)
    found, expected = later.get_statistics().to_dict(), watching.get_statistics().to_dict()
    assert math.isnan(found.pop("other_seconds"))
    assert expected.pop("other_seconds") > 0
    assert all(found[name] == pytest.approx(value, nan_ok=True) for name, value in expected.items())


def test_separate_generations_added_as_a_list_keep_their_own_seconds(pair: Pair) -> None:
    separate = [generate_speculative(pair, prompt, k=2, max_new_tokens=8, seed=0) for prompt in BATCH]
    together, apart = SpeculativeDecodingMonitor(), SpeculativeDecodingMonitor()
    together.add(separate)
    for generation in separate:
        apart.add(generation.rounds)
    assert together.get_statistics().draft_seconds == pytest.approx(apart.get_statistics().draft_seconds)
    assert together.get_statistics().accepted_histogram == apart.get_statistics().accepted_histogram


def test_adding_nothing_changes_nothing() -> None:
    monitor = SpeculativeDecodingMonitor()
    monitor.add([])
    assert monitor.get_statistics().rounds == 0


# Wrong use.

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("accepted", "proposed"),
    [(3, 2), (-1, 2), (0, -1), (NAN, 2), (1, NAN), (1.0, 2), (1, 2.5), (INF, INF), (True, 1), ("1", 2), (None, 2)],
)
def test_a_round_that_cannot_be_is_refused_and_not_counted(accepted: Any, proposed: Any) -> None:
    monitor = monitor_of([(1, 2)])
    with pytest.raises(SpecdecError, match=r"accepted=.*, proposed=.*: take whole numbers, 0 ≤ accepted ≤ proposed$"):
        monitor.on_iteration_complete(accepted, proposed)
    assert monitor.get_statistics().rounds == 1


def test_numpys_whole_numbers_will_do() -> None:
    monitor = SpeculativeDecodingMonitor()
    monitor.on_iteration_complete(np.int64(1), np.int32(3))
    file = io.StringIO()
    monitor.to_json_lines(file)
    assert json.loads(file.getvalue())["drafted"] == 3


@pytest.mark.parametrize("window", [0, -1, 1.5, NAN, "100", None, True, 10**30])
def test_a_window_that_cannot_be_is_refused(window: Any) -> None:
    with pytest.raises(SpecdecError, match="window="):
        SpeculativeDecodingMonitor(window)


@pytest.mark.parametrize(
    "done",
    [3, None, "text", ["text"], [3], {"rounds": 1}, monitor_of([]).get_statistics(), Round((1,), 2, (1, 2), 0.0, 0.0)],
)
def test_what_is_no_generation_is_refused(done: Any) -> None:
    with pytest.raises(SpecdecError, match="done"):
        SpeculativeDecodingMonitor().add(done)


def test_rounds_that_accept_more_than_they_drafted_are_refused_and_none_is_counted() -> None:
    monitor = SpeculativeDecodingMonitor()
    with pytest.raises(SpecdecError, match="done"):
        monitor.add([Round((1,), 1, (1, 2), 0.0, 0.0), Round((1,), 2, (1, 2, 3), 0.0, 0.0)])
    assert monitor.get_statistics().rounds == 0


def test_a_monitor_watches_controllers_only() -> None:
    with pytest.raises(SpecdecError, match="k="):
        SpeculativeDecodingMonitor().watch("four")  # type: ignore[arg-type]
    with pytest.raises(SpecdecError, match="monitor="):
        LiveView(SpeculativeDecodingMonitor)
    with pytest.raises(SpecdecError, match="file="):
        SpeculativeDecodingMonitor().to_json_lines(3)  # type: ignore[arg-type]


# Exports.

VLLM_NAMES = {
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
}


def as_vllm_counts(history: Sequence[tuple[int, int]], width: int) -> Any:
    """A registry with real counters, moved as vLLM's scheduler moves them: once for each request that had a draft."""
    from prometheus_client import CollectorRegistry, Counter

    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    drafts, drafted, accepted = (
        Counter(f"vllm:spec_decode_num_{name}", name, labels, registry=registry).labels("m", "0")
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    name = "vllm:spec_decode_num_accepted_tokens_per_pos"
    positions = Counter(name, "positions", [*labels, "position"], registry=registry)
    places = [positions.labels("m", "0", str(i)) for i in range(width)]
    for accepted_here, proposed in history:
        if proposed:
            drafts.inc()
            drafted.inc(proposed)
            accepted.inc(accepted_here)
            for place in places[:accepted_here]:
                place.inc()
    return registry


def scraped(registry: Any) -> list[str]:
    """What a scraper reads, but for help texts and times of creation."""
    from prometheus_client import generate_latest

    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if not line.startswith("# HELP") and "_created" not in line)


def test_prometheus_reads_what_vllms_own_counters_would_say() -> None:
    history = [(4, 4), (0, 4), (2, 4), (0, 0), (1, 2)]
    registry = monitor_of(history).to_prometheus(model_name="m")
    assert scraped(registry) == scraped(as_vllm_counts(history, 4))
    samples = {sample.name for family in registry.collect() for sample in family.samples}
    assert samples == VLLM_NAMES


def test_counters_are_read_when_scraped_and_start_at_zero() -> None:
    monitor = SpeculativeDecodingMonitor()
    registry = monitor.to_prometheus()
    labels = {"model_name": "specdec_ref", "engine": "0"}
    drafts = "vllm:spec_decode_num_drafts_total"
    assert registry.get_sample_value(drafts, labels) == 0
    monitor.on_iteration_complete(1, 3)
    assert registry.get_sample_value(drafts, labels) == 1
    at = labels | {"position": "0"}
    assert registry.get_sample_value("vllm:spec_decode_num_accepted_tokens_per_pos_total", at) == 1


def test_a_registry_that_has_such_counters_is_refused() -> None:
    from prometheus_client import CollectorRegistry

    mine = CollectorRegistry()
    assert monitor_of([(1, 2)]).to_prometheus(mine) is mine
    for taken in (mine, as_vllm_counts([], 1), "registry"):
        with pytest.raises(SpecdecError, match="registry="):
            monitor_of([(1, 2)]).to_prometheus(taken)


def parsed(text: str) -> list[dict[str, Any]]:
    """JSON lines, as strictly as a reader in another language takes them."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_json_lines_have_each_round_and_null_for_what_is_not_known(tmp_path: Path) -> None:
    monitor = monitor_of([(1, 2), (0, 0), (3, 3)])
    monitor.to_json_lines(tmp_path / "rounds.jsonl")
    written = (tmp_path / "rounds.jsonl").read_text(encoding="utf-8")
    lines = parsed(written)
    assert [(line["accepted"], line["drafted"], line["emitted"]) for line in lines] == [(1, 2, 2), (0, 0, 1), (3, 3, 4)]
    assert list(lines[0]) == list(RoundRecord._fields)
    assert lines[0]["draft_seconds"] is None
    assert abs(lines[0]["ended"] - time.time()) < 600
    monitor.to_json_lines(tmp_path / "rounds.jsonl")
    assert (tmp_path / "rounds.jsonl").read_text(encoding="utf-8") == written


def test_json_lines_are_written_as_rounds_end_and_survive_an_interrupt(pair: Pair, tmp_path: Path) -> None:
    path, monitor = tmp_path / "rounds.jsonl", SpeculativeDecodingMonitor()
    seen = []

    def read_four_rounds() -> None:
        with monitor.log_json_lines(path):
            for _ in stream_speculative(pair, PROMPT, k=2, max_new_tokens=30, seed=0, monitor=monitor):
                seen.append(len(parsed(path.read_text(encoding="utf-8"))))
                if len(seen) == 4:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_four_rounds()
    assert seen == [1, 2, 3, 4]
    monitor.on_iteration_complete(1, 1)  # outside `with`
    assert len(parsed(path.read_text(encoding="utf-8"))) == 4
    assert all(line["other_seconds"] > 0 for line in parsed(path.read_text(encoding="utf-8")))


def test_a_dataframe_has_a_row_for_each_round() -> None:
    pytest.importorskip("pandas")
    frame = monitor_of([(1, 2), (0, 3)]).to_dataframe()
    assert list(frame.columns) == list(RoundRecord._fields)
    assert frame["drafted"].tolist() == [2, 3]
    assert frame["accepted"].sum() == 1
    assert frame["draft_seconds"].isna().all()
    assert list(monitor_of([]).to_dataframe().columns) == list(RoundRecord._fields)


def test_without_pandas_a_dataframe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SpecdecError, match=r"needs pandas; pip install 'specdec_ref\[course\]'"):
        monitor_of([(1, 2)]).to_dataframe()


def test_importing_it_loads_no_plots_no_pandas_and_no_torch() -> None:
    heavy = "torch matplotlib pandas prometheus_client IPython rich transformers scipy".split()
    code = f"import sys, specdec_lab.monitoring.monitor; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


# What it looks like.


def test_the_figure_says_its_message_and_names_its_axes(tmp_path: Path) -> None:
    monitor = monitor_of([(2, 2)] * 60 + [(0, 2)] * 40, window=40)
    figure = monitor.plot_acceptance_over_time(tmp_path / "acceptance.png")
    assert (tmp_path / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "α is 75 % over all rounds, 0 % over the last 25"  # 120 of 160 examined
    assert axes.get_xlabel() == "round"
    assert "(%)" in axes.get_ylabel()
    lines = {str(line.get_label()): line for line in axes.lines}
    assert len({line.get_linestyle() for line in lines.values()}) == len(lines) == 3  # distinguishable without color
    last = lines["α, last 25"]
    assert np.asarray(last.get_xdata()).tolist() == list(range(25, 101))
    assert np.asarray(last.get_ydata())[[0, -1]].tolist() == [100, 0]
    assert len(axes.get_legend().get_texts()) == 3


@pytest.mark.parametrize("history", [[], [(0, 0)] * 3, [(1, 1)]], ids=["nothing", "no drafts", "one round"])
def test_a_figure_of_next_to_nothing_can_be_drawn(history: list[tuple[int, int]], tmp_path: Path) -> None:
    figure = monitor_of(history).plot_acceptance_over_time(tmp_path / "acceptance.svg")
    title = figure.axes[0].get_title(loc="left")
    assert title == ("α is 100 % over all rounds, 100 % over the last 1" if history == [(1, 1)] else "No draft yet")


def test_tables_show_the_numbers_in_the_terminal_and_in_html() -> None:
    from rich.console import Console

    monitor = monitor_of([(4, 4), (0, 4), (2, 4), (0, 0), (1, 2)])
    console = Console(file=io.StringIO(), width=100)
    console.print(monitor)
    shown = [console.file.getvalue(), str(monitor.get_statistics()), monitor._repr_html_()]  # type: ignore[attr-defined]
    for text in shown:
        for part in ("70 %", "50 %", "2.40", "75 67 50 100 %", "75 50 25 25 %", "1 1 1 0 1", "last 100 rounds"):
            assert part in text, (part, text)
    assert shown[2].count("<tr>") == shown[2].count("</tr>") == len(monitor.get_statistics().rows())


def test_without_a_notebook_the_live_view_is_printed_once_at_the_end(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = SpeculativeDecodingMonitor()
    with monitor.live() as view:
        for _ in stream_speculative(pair, PROMPT, k=2, max_new_tokens=9, seed=0, monitor=monitor):
            assert capsys.readouterr().out == ""
    assert capsys.readouterr().out == f"{view!r}\n"
    assert "accepted / examined" in repr(view)
    assert len(view.trace()) == len(monitor.rounds)
    assert monitor.listeners == []


def test_the_trace_is_higher_the_more_was_accepted() -> None:
    assert LiveView(monitor_of([(0, 4), (2, 4), (4, 4), (0, 0)])).trace() == "▁▅█·"


def test_in_a_notebook_the_live_view_is_one_output_that_is_renewed() -> None:
    """A real kernel: the first view stays where it was shown, above the text, and ends with the final numbers."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    renewals: list[int] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc,name-defined]
        def process_message(self, message: Any, cell: Any, index: int) -> Any:
            if message["msg_type"] == "update_display_data":
                renewals.append(index)
            return super().process_message(message, cell, index)

    setup = "from specdec_lab.monitoring import live, monitor as made; monitor = made.SpeculativeDecodingMonitor()"
    stream = """
live.REFRESH_SECONDS = {}
with monitor.live():
    for n in range(3):
        monitor.on_iteration_complete(n, 4)
        print("text", end=" ", flush=True)
"""
    sources = [setup, stream.format(0), stream.format(1000), "monitor"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    Client(notebook, timeout=60, kernel_name="python3").execute()
    view, *texts = notebook.cells[1].outputs
    assert [view.output_type, *{text.output_type for text in texts}] == ["display_data", "stream"]
    assert "<th" in view.data["text/html"]
    assert "▁▃▅" in view.data["text/html"]
    assert "▁▃▅" in view.data["text/plain"]
    assert "".join(text.text for text in texts) == "text text text "
    assert (renewals.count(1), renewals.count(2)) == (3 + 1, 1 + 1)  # every round, or only the first, and at the end
    assert "<th" in notebook.cells[3].outputs[0].data["text/html"]
