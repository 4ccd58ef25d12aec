"""The promises of the benchmark suite: honest percentiles, nothing lost and nothing twice, a report that needs nothing.

No time is asserted. Budget: 45 s of CPU.
"""

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import specdec_ref as sd
from specdec_lab.measurement.benchmark_figures import speedups
from specdec_lab.measurement.benchmark_suite import (
    SAMPLES,
    Configuration,
    Settings,
    configurations,
    load_suite,
    run_suite,
)
from specdec_lab.measurement.benchmark_workload import machine_facts, model_facts, peak_memory, prompts_of_length
from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.intervals import quantile_interval, samples_needed
from specdec_lab.measurement.recording import Recording, read
from specdec_lab.measurement.report import html_report, write_report
from specdec_lab.measurement.results import predicted
from specdec_lab.measurement.suite_result import SuiteResult, results_of

TEXTS = ["the rain in spain stays mainly in the plain, ", "here and there the others are in the state. "] * 3
SMALL = Settings(lengths={"short": 6, "long": 20}, prompts=2, repeats=1, max_new_tokens=10, ks=(2,), adaptive=False)


def keys(result_or_folder: Path) -> list[tuple[str, str, int, int]]:
    """Which samples a folder holds, in the order in which they were taken."""
    _, records = read(result_or_folder / SAMPLES)
    return [(r["config"], r["length"], r["prompt"], r["repeat"]) for r in records if r["kind"] == "sample"]


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [5, 6, 7, 12, 40, 73, 368, 700])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_are_scipys(quantile: float, n: int, level: float) -> None:
    from scipy.stats import quantile_test

    values = np.random.default_rng(n).exponential(size=n)
    theirs = quantile_test(values, p=quantile).confidence_interval(confidence_level=level)
    ours = quantile_interval(list(values), quantile, level)
    if ours is None:
        assert math.isnan(theirs.low) or math.isnan(theirs.high)
    else:
        assert ours == (theirs.low, theirs.high)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2,000 sets of 30 exponential samples, median ln 2: at least 95 % cover it. Fixed seed; a right interval, whose
    coverage is 95 % or more, would fail this for one seed in 30,000 (4 standard errors)."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        interval = quantile_interval(list(rng.exponential(size=30)), 0.5)
        assert interval is not None
        covered += interval[0] <= math.log(2) <= interval[1]
    assert covered / 2000 >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(("quantile", "needed"), [(0.5, 6), (0.95, 72), (0.99, 368), (0.01, 368)])
def test_too_few_samples_have_no_interval(quantile: float, needed: int) -> None:
    """0.99³⁶⁸ ≤ 0.025 < 0.99³⁶⁷, and likewise for the others."""
    rarer = max(quantile, 1 - quantile)
    assert rarer**needed <= 0.025 < rarer ** (needed - 1)
    assert samples_needed(quantile) == needed
    assert quantile_interval(range(needed - 1), quantile) is None
    assert quantile_interval(range(needed), quantile) is not None


@pytest.mark.parametrize("wrong", [0, 1, 1.5, "half", None, float("nan")])
def test_intervals_take_a_quantile_and_a_level_inside_0_and_1(wrong: Any) -> None:
    with pytest.raises(sd.SpecdecError, match="quantile"):
        quantile_interval([1.0], wrong)
    with pytest.raises(sd.SpecdecError, match="level"):
        samples_needed(0.5, wrong)


# --- what is measured ------------------------------------------------------------------------------------------------


def test_prompts_have_exactly_the_length_asked_for_and_all_differ(tokenizer: Any) -> None:
    for tokens in (1, 5, 60):
        prompts = prompts_of_length(tokenizer, tokens, 4, ["one and", "two then", "three others in the rain again"] * 4)
        assert [len(prompt) for prompt in prompts] == [tokens] * 4
    texts = ["the rain in spain stays mainly in the plain, ", "here and there others are in that state.", "once more"]
    assert len(set(prompts_of_length(tokenizer, 20, 9, texts))) == 9  # more prompts than texts


def test_prompts_are_never_made_of_a_text_twice(tokenizer: Any) -> None:
    whole = sum(len(tokenizer(text + "\n\n\n")["input_ids"]) for text in TEXTS[:2])
    assert len(prompts_of_length(tokenizer, whole, 1, TEXTS[:2])[0]) == whole
    with pytest.raises(sd.SpecdecError, match=f"hold {whole} tokens, too few for 1 prompts"):
        prompts_of_length(tokenizer, whole + 1, 1, TEXTS[:2])


def test_a_model_trained_again_is_another_model(tiny_model: Callable[..., Any]) -> None:
    assert model_facts(tiny_model(seed=0)) == model_facts(tiny_model(seed=0))
    assert model_facts(tiny_model(seed=0))["fingerprint"] != model_facts(tiny_model(seed=1))["fingerprint"]
    size = sum(p.numel() for p in tiny_model().parameters())
    assert model_facts(tiny_model())["parameters"] == size


def test_every_draft_at_every_k_the_controllers_and_prompt_lookup_take_part(pair: sd.Pair) -> None:
    names = [c.name for c in configurations({"a": pair, "b": pair}, Settings(ks=(2, 4)))]
    drafts = ["a k=2", "a k=4", "adaptive", "cost model", "b k=2", "b k=4"]
    assert names == ["baseline", *drafts, "prompt lookup k=2", "prompt lookup k=4"]
    alone = configurations({"": sd.Pair(pair.target, None, pair.tokenizer)}, Settings(ks=(2,)))
    assert [c.name for c in alone] == ["baseline", "prompt lookup k=2"]


@pytest.mark.parametrize(
    ("kind", "made"), [("adaptive", "AdaptiveSpeculation"), ("cost model", "CostModelSpeculation")]
)
def test_controllers_are_what_they_are_called(kind: str, made: str) -> None:
    for k in (1, 2, 8):
        controller = Configuration(kind, kind, "draft", k).controller()
        assert type(controller).__name__ == made
        assert controller.max_k == k


# --- recording -------------------------------------------------------------------------------------------------------


def test_a_last_line_cut_off_anywhere_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    with Recording(file, {"a": 1}) as recording:
        for i in range(3):
            recording.append({"i": i, "words": "é…"})
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(last + 1):
        file.write_bytes(whole[: len(whole) - cut])
        with Recording(file, {"a": 1}) as recording:
            assert [r["i"] for r in recording.records] == [0, 1, 2][: 3 if cut == 0 else 2]
            if cut:
                recording.append({"i": 2, "words": "é…"})
        assert file.read_bytes() == whole


def test_a_first_line_cut_off_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"a": ')
    with Recording(file, {"a": 1}) as recording:
        assert recording.records == []
    assert read(file) == ({"a": 1}, [])


@pytest.mark.parametrize("content", [b'{"a": 1}\nrubbish\n{"i": 1}\n', b"rubbish\n", b'[1]\n{"a": 1}\n', b"\xff\n{}\n"])
def test_a_file_that_is_no_recording_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(content)
    with pytest.raises(sd.SpecdecError, match="line"):
        Recording(file, {"a": 1})
    assert file.read_bytes() == content


def test_a_recording_of_other_facts_is_refused_by_the_first_that_differs(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    Recording(file, {"settings": {"tokens": 5}, "machine": {"torch": "1", "cores": 2}}).close()
    for facts, words in (
        ({"settings": {"tokens": 6}, "machine": {"torch": "1", "cores": 2}}, "tokens = 5, not 6"),
        ({"settings": {"tokens": 5}, "machine": {"torch": "2", "cores": 2}}, "torch = '1', not '2'"),
        ({"settings": {"tokens": 5}}, "machine"),
        ({"settings": {"tokens": 5}, "machine": {"torch": "1", "cores": 2}, "new": 1}, "new = None, not 1"),
    ):
        with pytest.raises(sd.SpecdecError, match=words):
            Recording(file, facts)


def test_an_unusable_folder_raises_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sd.SpecdecError, match="cannot be used"):
        Recording(tmp_path / "file" / "r.jsonl", {})
    with pytest.raises(sd.SpecdecError, match="no such recording"):
        read(tmp_path / "r.jsonl")


# --- running ---------------------------------------------------------------------------------------------------------


def test_an_interrupt_loses_nothing_and_the_same_call_repeats_nothing(pair: sd.Pair, tmp_path: Path) -> None:
    """Interrupted again and again after a few runs each time, until it is done: every sample once, as in one go."""
    whole = tmp_path / "whole"
    run_suite(pair, SMALL, folder=whole, texts=TEXTS)
    pieces, ran, calls = tmp_path / "pieces", 0, 0
    while True:
        at_start = ran

        def on_step(what: str, done: int, total: int, at_start: int = at_start) -> None:
            nonlocal ran
            if done and done == 3 + at_start % 2:
                raise KeyboardInterrupt
            ran = at_start + done + 1

        calls += 1
        try:
            run_suite(pair, SMALL, folder=pieces, texts=TEXTS, on_step=on_step)
            break
        except KeyboardInterrupt:
            ran = len(read(pieces / SAMPLES)[1])
    assert calls > 3
    assert keys(pieces) == keys(whole)
    assert len(set(keys(pieces))) == len(keys(pieces)) == 3 * 2 * 2  # ways, lengths, prompts
    costs = [[(r["draft"], r["length"]) for r in read(f / SAMPLES)[1] if r["kind"] == "costs"] for f in (whole, pieces)]
    assert costs[0] == costs[1] == [("draft", "short"), ("draft", "long")]


def test_more_repeats_go_on_in_the_same_folder_and_fewer_measure_nothing(pair: sd.Pair, tmp_path: Path) -> None:
    settings = replace(SMALL, lengths={"short": 6})
    run_suite(pair, settings, folder=tmp_path, texts=TEXTS)
    before = (tmp_path / SAMPLES).read_bytes()
    result = run_suite(pair, replace(settings, repeats=2), folder=tmp_path, texts=TEXTS)
    assert (tmp_path / SAMPLES).read_bytes().startswith(before)
    assert [r.samples for r in result.results] == [4, 4, 4]
    after = (tmp_path / SAMPLES).read_bytes()
    run_suite(pair, settings, folder=tmp_path, texts=TEXTS)
    assert (tmp_path / SAMPLES).read_bytes() == after
    assert load_suite(tmp_path).to_json() == result.to_json()


def test_other_settings_models_texts_or_versions_are_refused(
    pair: sd.Pair, tmp_path: Path, disturbed: Callable[..., Any]
) -> None:
    settings = replace(SMALL, lengths={"short": 6}, prompts=1)
    run_suite(pair, settings, folder=tmp_path, texts=TEXTS)
    other = sd.Pair(pair.target, disturbed(pair.target, seed=9), pair.tokenizer)
    for models, asked, texts, words in (
        (pair, replace(settings, max_new_tokens=11), TEXTS, "max_new_tokens = 10, not 11"),
        (pair, replace(settings, sampling=sd.GREEDY), TEXTS, "sampling"),
        (pair, settings, TEXTS[::-1], "texts"),
        (other, settings, TEXTS, "drafts|draft ="),
    ):
        with pytest.raises(sd.SpecdecError, match=words):
            run_suite(models, asked, folder=tmp_path, texts=texts)
    file = tmp_path / SAMPLES
    first, _, rest = file.read_text(encoding="utf-8").partition("\n")
    facts = json.loads(first)
    facts["machine"]["torch"] = "0.1"
    file.write_text(json.dumps(facts) + "\n" + rest, encoding="utf-8")
    with pytest.raises(sd.SpecdecError, match=r"torch = '0\.1'"):
        run_suite(pair, settings, folder=tmp_path, texts=TEXTS)


def test_everyone_has_run_on_a_prompt_before_anyone_runs_on_the_next_and_not_always_in_one_order(
    pair: sd.Pair, tmp_path: Path
) -> None:
    run_suite(pair, replace(SMALL, lengths={"short": 6}, prompts=6), folder=tmp_path, texts=TEXTS)
    ran = keys(tmp_path)
    turns = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert all(len({config for config, *_ in turn}) == 3 and len({key[1:] for key in turn}) == 1 for turn in turns)
    assert len({tuple(config for config, *_ in turn) for turn in turns}) > 1


def test_controllers_run_in_the_suite(pair: sd.Pair) -> None:
    result = run_suite(pair, replace(SMALL, lengths={"short": 6}, prompts=1, adaptive=True), texts=TEXTS)
    assert {r.config_name for r in result.results} >= {"adaptive", "cost model"}
    assert result.of("baseline", "short").tokens_per_round == 1
    assert result.of("draft k=2", "short").tokens_generated == 10


def test_a_pair_without_a_draft_has_prompt_lookup_and_no_prediction(pair: sd.Pair) -> None:
    alone = sd.Pair(pair.target, None, pair.tokenizer)
    result = run_suite({"": alone}, replace(SMALL, lengths={"short": 6}, prompts=1), texts=TEXTS)
    assert result.of("prompt lookup k=2", "short").predicted_speedup is None
    assert [d.name for d in result.drafts] == ["prompt lookup"]
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "prompts=0"),
        ({"repeats": 1.5}, "repeats=1.5"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"ks": ()}, r"ks=\(\)"),
        ({"ks": (0,)}, r"ks=\(0,\)"),
        ({"lengths": {}}, "lengths"),
        ({"lengths": {"short": "6"}}, "lengths"),
    ],
)
def test_settings_are_checked_at_the_door(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(sd.SpecdecError, match=words):
        Settings(**changes)


def test_models_are_checked_at_the_door(pair: sd.Pair, tiny_model: Callable[..., Any]) -> None:
    other = sd.Pair(tiny_model(seed=3), None, pair.tokenizer)
    for models, words in (({}, "models="), ({"a": 1}, "models="), ({"a": pair, "b": other}, "targets differ")):
        with pytest.raises(sd.SpecdecError, match=words):
            run_suite(models, SMALL, texts=TEXTS)  # type: ignore[arg-type]
    with pytest.raises(sd.SpecdecError, match="hold fewer"):
        run_suite(pair, replace(SMALL, max_new_tokens=120), texts=TEXTS)


# --- what the samples say --------------------------------------------------------------------------------------------

COSTS = Costs(target_step=0.1, draft_step=0.02, scoring={1: 0.1, 3: 0.12, 5: 0.15, 9: 0.2}, context=8)


def made(
    seconds: dict[str, list[float]],
    *,
    kinds: dict[str, tuple[str, str, int]] | None = None,
    device: str = "cuda",
    **same: Any,
) -> SuiteResult:
    """A result from samples with these latencies: 11 tokens each, the first after a tenth of the time."""
    kinds = kinds or {"a k=2": ("fixed", "a", 2)}
    ways = {"baseline": ("baseline", "", 0), **kinds}
    facts = {
        "settings": {"lengths": {"short": 8}, "max_new_tokens": 11, "prompts": 1, "sampling": {"temperature": 1.0}},
        "target": {"parameters": 1000},
        "drafts": {draft: {"parameters": 100} for _, draft, _ in ways.values() if draft},
        "machine": {**dict.fromkeys(("processor", "dtype", "torch", "transformers", "python", "system"), "x"),
                    "cores": 1, "threads": 1, "device": device},
        "configurations": [asdict(Configuration(name, *rest)) for name, rest in ways.items()],
    }  # fmt: skip
    records: list[dict[str, Any]] = []
    for draft in facts["drafts"]:
        records.append({"kind": "costs", "draft": draft, "length": "short", **asdict(COSTS)})
    for name, times in seconds.items():
        k = ways[name][2]
        for i, s in enumerate(times):
            sample = {
                "kind": "sample", "config": name, "length": "short", "prompt": i, "repeat": 0, "seconds": s,
                "first_seconds": s / 10, "first_tokens": 1, "tokens": 11, "accepted": 6 if k else 0,
                "examined": 8 if k else 0, "drafted": [[k, 5 if k else 11]], "draft_seconds": 0.2 if k else 0.0,
                "memory": 2**20 * (i + 1),
            }  # fmt: skip
            records.append(sample | same)
    return results_of(facts, records)


def test_results_are_what_the_samples_say() -> None:
    times = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    result = made({"baseline": times, "a k=2": [t / 2 for t in times]})
    r = result.of("a k=2", "short")
    mine = [t / 2 for t in times]
    assert (r.samples, r.prompt_tokens, r.tokens_generated) == (7, 8, 77)
    assert (r.latency_p50, r.latency_p95, r.latency_p99) == tuple(np.percentile(mine, (50, 95, 99)))
    assert r.latency_mean == np.mean(mine)
    assert (r.latency_p99_interval, r.latency_p99_needs) == (None, 368)
    assert r.throughput == 77 / sum(mine)
    assert r.time_to_first_token == 0.4
    assert (r.speedup, r.speedup_interval) == (2.0, (2.0, 2.0))
    assert r.decoding_speedup == pytest.approx(2.0)
    assert r.acceptance_rate == 6 / 8
    assert r.tokens_per_round == 11 / 5
    assert r.peak_memory == 7 * 2**20
    assert r.predicted_speedup == pytest.approx(sd.predicted_speedup(0.75, 2, COSTS.c, COSTS.v(3)))
    base = result.of("baseline", "short")
    assert (base.speedup, base.predicted_speedup, base.acceptance_rate, base.tokens_per_round) == (1.0, 1.0, None, 1.0)


def test_memory_is_reported_for_a_gpu_only(pair: sd.Pair) -> None:
    """On a CPU one process holds all models of the suite, so its size says nothing about one method. Recordings
    from before that was seen hold it all the same."""
    assert peak_memory(pair.device) is None
    times = {"baseline": [1.0, 2.0], "a k=2": [1.0, 2.0]}
    on_gpu, on_cpu = made(times), made(times, device="cpu")
    assert [r.peak_memory for r in on_gpu.results] == [2 * 2**20] * 2
    assert [r.peak_memory for r in on_cpu.results] == [None] * 2
    for result, shown in ((on_gpu, True), (on_cpu, False)):
        title, columns, rows = result.grids()[1]
        assert "latency" in title
        assert (columns[-1] == "MiB") == shown
        assert {row[-1] for row in rows} == {"2"}  # of MiB; without it, the two samples behind a row
        assert "see memory_profile" in html_report(result)


def test_a_speedup_is_a_median_of_ratios_on_the_same_prompt() -> None:
    """A machine that turns ten times slower half-way leaves it alone."""
    base = [1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0]
    assert made({"baseline": base, "a k=2": [t / 1.5 for t in base]}).of("a k=2", "short").speedup == pytest.approx(1.5)


def test_a_p99_has_an_interval_once_there_are_enough_samples() -> None:
    times = list(np.random.default_rng(0).exponential(size=368) + 0.1)
    r = made({"baseline": times, "a k=2": times}).of("a k=2", "short")
    assert r.latency_p99_interval == quantile_interval(times, 0.99)
    assert r.latency_p99_interval is not None
    assert r.latency_p99_interval[0] <= r.latency_p99 <= r.latency_p99_interval[1]


def test_one_way_slower_in_its_first_token_only_decodes_at_the_same_speed() -> None:
    """Decoding speed leaves the first round out; the speed of the whole request does not."""
    result = made({"baseline": [1.0] * 6, "a k=2": [1.0] * 6})
    assert result.of("a k=2", "short").decoding_speedup == 1.0
    late = made({"baseline": [1.0] * 6, "a k=2": [1.0] * 6}, first_seconds=0.5)
    assert late.of("a k=2", "short").time_to_first_token == 0.5


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_prediction_for_rounds_of_one_length_is_the_theorys(k: int) -> None:
    theirs = sd.predicted_speedup(0.7, k, COSTS.c, COSTS.v)
    assert predicted([(k, 5), (k, 2)], 0.7, COSTS, COSTS.c) == pytest.approx(theirs)


def test_the_prediction_for_mixed_rounds_weighs_tokens_and_time() -> None:
    """Half of the rounds draft nothing: one token for one step each."""
    emitted = sd.expected_tokens(0.7, 4)
    spent = 4 * COSTS.c + COSTS.v(5)
    assert predicted([(4, 3), (0, 3)], 0.7, COSTS, COSTS.c) == pytest.approx((emitted + 1) / (spent + 1))
    assert predicted([(0, 3)], 0.7, COSTS, 0.0, 0.25) == pytest.approx(1 / 1.25)


def test_the_drafts_table_takes_each_at_its_best_k() -> None:
    kinds = {
        "a k=2": ("fixed", "a", 2),
        "a k=4": ("fixed", "a", 4),
        "prompt lookup k=2": ("lookup", "", 2),
        "prompt lookup k=4": ("lookup", "", 4),
        "adaptive": ("adaptive", "a", 8),
    }
    seconds = {"baseline": 4.0, "a k=2": 2.0, "a k=4": 1.0, "prompt lookup k=2": 2.0, "prompt lookup k=4": 8.0}
    result = made({name: [s] * 6 for name, s in {**seconds, "adaptive": 0.1}.items()}, kinds=kinds)
    a, lookup = result.drafts
    assert (a.name, a.best_k, a.parameters) == ("a", 4, 100)
    assert (a.speedup, a.speed_ratio) == (pytest.approx(4.0), pytest.approx(5.0))
    assert a.predicted_best_k == sd.best_k(0.75, COSTS.c, COSTS.v, max_k=8)
    assert (lookup.name, lookup.best_k, lookup.parameters) == ("prompt lookup", 2, 0)
    assert lookup.speed_ratio == pytest.approx(0.1 / (0.2 / 5))
    assert lookup.predicted_best_k is None


def test_there_is_nothing_to_say_without_a_baseline() -> None:
    with pytest.raises(sd.SpecdecError, match="no sample of the baseline"):
        made({"a k=2": [1.0]})
    with pytest.raises(sd.SpecdecError, match="was not measured"):
        made({"baseline": [1.0]}).of("a k=2", "short")


# --- what it looks like ----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Everything of a page that might be loaded, its pictures, its text; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


WAYS = {
    "draft-small k=2": ("fixed", "draft-small", 2),
    "cost model": ("cost model", "draft-small", 8),
    "draft-small-plain k=8": ("fixed", "draft-small-plain", 8),
    "prompt lookup k=8": ("lookup", "", 8),
}


@pytest.fixture(scope="module")
def result() -> SuiteResult:
    times = [[1.0 + 0.01 * i for i in range(9)]] + [[s + 0.02 * i for i in range(9)] for s in (0.6, 0.5, 0.8, 1.2)]
    return made(dict(zip(["baseline", *WAYS], times, strict=True)), kinds=WAYS)


def test_the_report_needs_nothing_but_itself(result: SuiteResult) -> None:
    page = Page()
    text = html_report(result)
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(load.startswith("data:image/svg+xml;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    assert len(page.pictures) == 1
    for picture in page.pictures:
        assert picture["alt"]
        svg = base64.b64decode((picture["src"] or "").partition(",")[2])
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in text


def test_the_report_tells_every_configuration_every_column_and_the_machine(result: SuiteResult) -> None:
    page = Page()
    page.feed(html_report(result))
    for name in ["baseline", *WAYS, "p99", "needs 368", "speedup", "round", "torch x", "short prompts"]:
        assert name in page.text


def test_words_in_the_facts_cannot_break_the_report() -> None:
    odd = made({"baseline": [1.0], "<b>&": [1.0]}, kinds={"<b>&": ("fixed", "<i>", 2)})
    page = Page()
    page.feed(html_report(odd))
    assert "<b>&" in page.text
    assert "b" not in page.tags


def test_tables_fit_80_columns(result: SuiteResult) -> None:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        for table in result.terminal_tables()[2:-2]:
            console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(name) for line in lines) for name in WAYS)


def test_results_show_themselves_in_terminal_and_notebook(result: SuiteResult) -> None:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(result)
    assert "draft-small-plain k=8" in capture.get()
    page = Page()
    page.feed(result._repr_html_())
    assert page.open == []
    assert "draft-small-plain k=8" in page.text


def test_written_results_are_json_that_says_the_same(result: SuiteResult, tmp_path: Path) -> None:
    written = write_report(result, tmp_path / "new")
    assert [file.name for file in written] == ["report.html", "results.json", "speedups.svg"]
    data = json.loads(written[1].read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(result.to_json()))
    assert [r["config_name"] for r in data["results"]] == ["baseline", *WAYS]


def test_the_figure_says_what_it_shows(result: SuiteResult) -> None:
    figure = speedups(result)
    figure.canvas.draw()
    assert figure.get_suptitle()
    axes = figure.axes[0]
    assert axes.get_xlabel()
    assert {label.get_text() for label in axes.get_yticklabels()} >= set(WAYS)
    words = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, *figure.legends[0].get_texts()]
    assert min(text.get_fontsize() for text in words) >= 9


# --- command line ----------------------------------------------------------------------------------------------------


def specdec_bench(*arguments: str) -> Any:
    """The command by itself, in this process."""
    import typer
    from typer.testing import CliRunner

    from specdec_lab.cli.bench_command import bench

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(bench)
    return CliRunner().invoke(app, [*arguments, "--device", "cpu"])


@pytest.fixture(scope="module")
def small_context(pair: sd.Pair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for a pair that holds 128 tokens."""
    assert pair.draft is not None
    arguments = []
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        path = tmp_path_factory.mktemp(role)
        model.save_pretrained(path)
        pair.tokenizer.save_pretrained(path)
        arguments += [f"--{role}", str(path)]
    return arguments


def test_bench_measures_models_with_a_short_context_and_a_long_k(small_context: list[str]) -> None:
    """Beyond k = 8 not every v is measured, but both ends of what is predicted are."""
    few = ["--tokens", "12", "--prompts", "1", "--repeats", "1", "--max-k", "20"]
    done = specdec_bench(*small_context, *few, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [line["k"] for line in data["results"]] == list(range(21))
    assert [int(n) for n in data["costs"]["v"]] == [*range(1, 10), 17, 21]
    assert all(line["formula"] > 0 for line in data["results"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--tokens", "128"), "--tokens 128"), (("--max-k", "128", "--tokens", "8"), "--max-k 128")],
)
def test_bench_names_what_does_not_fit_into_the_models(
    small_context: list[str], arguments: tuple[str, ...], words: str
) -> None:
    done = specdec_bench(*small_context, *arguments)
    assert isinstance(done.exception, sd.SpecdecError)
    assert words in str(done.exception)
    assert "128 tokens" in str(done.exception)


def test_bench_explains_its_columns_in_80_characters(small_context: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = specdec_bench(*small_context, "--tokens", "12", "--prompts", "1", "--repeats", "1", "--max-k", "2")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""  # no terminal, no progress
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split("  ")[0] for line in lines if line.startswith(("no drafts", "k ="))] == [
        "no drafts",
        "k = 1",
        "k = 2",
    ]
    header = next(line for line in lines if "tokens/s" in line)
    for column in ("speedup", "formula", "accepted"):
        assert column in header
        assert f"{column}: " in " ".join(done.stdout.split())


@pytest.mark.slow
def test_bench_suite_writes_a_report_and_goes_on(tmp_path: Path) -> None:
    small = ["--suite", str(tmp_path), "--tokens", "4", "--prompts", "1", "--repeats", "1", "--max-k", "2"]
    done = specdec_bench(*small, "--json", "--draft", "draft-small")
    assert done.exit_code == 0, done.output
    data = json.loads(done.output)
    names = {r["config_name"] for r in data["results"]}
    assert names == {"baseline", "draft-small k=2", "adaptive", "cost model", "prompt lookup k=2"}
    assert {r["prompt_length"] for r in data["results"]} == {"short", "medium", "long"}
    assert (tmp_path / "report.html").is_file()
    samples = (tmp_path / SAMPLES).read_bytes()
    assert specdec_bench(*small, "--draft", "draft-small").exit_code == 0
    assert (tmp_path / SAMPLES).read_bytes() == samples


@pytest.mark.slow
def test_bench_drafts_compares_all_that_ship_and_prompt_lookup() -> None:
    done = specdec_bench("--drafts", "--tokens", "4", "--prompts", "1", "--repeats", "1", "--max-k", "2", "--json")
    assert done.exit_code == 0, done.output
    drafts = json.loads(done.output)["drafts"]
    assert {d["name"] for d in drafts} == {*sd.shipped(), "tree", "head-tree", "suffix", "prompt lookup"} - {"target"}
    assert all(d["speed_ratio"] > 0 for d in drafts)


def test_bench_takes_one_thing_at_a_time() -> None:
    done = specdec_bench("--drafts", "--batch")
    assert isinstance(done.exception, sd.SpecdecError)
    assert "one of them" in str(done.exception)


def test_machine_facts_name_what_figures_depend_on(pair: sd.Pair) -> None:
    facts = machine_facts(pair)
    assert {"processor", "threads", "dtype", "torch", "transformers", "python"} <= set(facts)
    json.dumps(facts, allow_nan=False)
