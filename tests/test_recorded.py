"""The recorded servers: what is read is what stands in the file, and a round's price follows from it."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

import specdec_ref as sd
from specdec_lab.serving import recorded as module
from specdec_lab.serving.load import ServedRequest, ServerMeasurement
from specdec_lab.serving.metrics import SpeculationCounters
from specdec_lab.serving.recorded import Contender, IncompleteError, live, recorded

PATH = Path(__file__).parents[1] / "benchmarks" / "results" / "vllm_side_by_side.json"


def test_what_stands_there_is_read() -> None:
    report, run = json.loads(PATH.read_text()), recorded(PATH)
    assert list(run.contenders) == list(report["contenders"])
    assert report["machine"]["date"] in run.source
    for name, one in run.contenders.items():
        for mode, paces in report["contenders"][name]["speed"].items():
            assert one.speed[mode] == {int(size): pace for size, pace in paces.items()}
        for mode, said in report["contenders"][name].get("acceptance", {}).items():
            assert one.counters[mode].acceptance_length == pytest.approx(said["acceptance length"])
            assert one.counters[mode].statistics().acceptance_rate == pytest.approx(said["accepted / examined"])


def test_a_rounds_price_is_tokens_over_speedup() -> None:
    alone = Contender({"greedy": {1: 50.0}})
    faster = Contender({"greedy": {1: 100.0}}, {"greedy": SpeculationCounters(10, 40, 30, (10, 8, 7, 5))})
    assert faster.round_cost("greedy", alone) == pytest.approx(4 / 2)


def test_refuses_what_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    for name in ("x.json", "none.json"):
        with pytest.raises(sd.SpecdecError, match="no such recorded run"):
            recorded(tmp_path / name)


class Server:
    """Notes what is done with it; `does_not_start`: the name of one that fails."""

    steps: ClassVar[list[str]]
    does_not_start = ""

    def __init__(self, target: str, config: Any, *, options: tuple[str, ...]):
        self.name = "plain" if config is None else "drafting"
        self.url = f"http://{self.name}"

    def launch(self) -> None:
        self.steps.append(f"launch {self.name}")

    def wait(self) -> None:
        self.steps.append(f"wait {self.name}")
        if self.name == self.does_not_start:
            raise sd.SpecdecError("answered 500")

    def stop(self) -> None:
        self.steps.append(f"stop {self.name}")


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> None:
    Server.steps = []
    monkeypatch.setattr(module, "VLLMServer", Server)


def measurement(url: str, prompts: Any, **settings: Any) -> ServerMeasurement:
    counters = SpeculationCounters(5, 20, 10, (4, 3, 2, 1)) if "drafting" in url else None
    requests = (ServedRequest(8, 0.1, 0.5, 4),) * len(prompts)
    return ServerMeasurement(url, "m", settings.get("concurrency", 1), 2.0, requests, counters)


def test_live_has_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_server", measurement)
    run = live({"alone": None, "draft": {"method": "ngram"}}, batches=(1, 4), prompts=3)
    assert "live" in run.source
    assert run.contenders["alone"].speed == {mode: {1: 12.0, 4: 12.0} for mode in ("temperature 1", "greedy")}
    assert not run.contenders["alone"].counters
    assert run.contenders["draft"].counters["greedy"].acceptance_length == 3.0
    assert run.contenders["draft"].latency["greedy"]["first_seconds"]["p50"] == 0.1
    assert Server.steps[:4] == ["launch plain", "launch drafting", "wait plain", "wait drafting"]
    assert sorted(Server.steps[4:]) == ["stop drafting", "stop plain"]


def test_a_server_that_breaks_off_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(url: str, prompts: Any, **settings: Any) -> ServerMeasurement:
        found = measurement(url, prompts, **settings)
        return ServerMeasurement(found.url, "m", 1, 1.0, found.requests, problem="answered 500")

    monkeypatch.setattr(module, "measure_server", breaking)
    with pytest.raises(sd.SpecdecError, match=r"alone: answered 500 \(nothing was measured until then\)"):
        live({"alone": None})


@pytest.mark.parametrize("harm", ["breaks off", "answers nothing", "does not start"])
def test_what_was_measured_before_a_server_breaks_off_is_kept(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """They are asked in turns: when the second breaks off, the first has given two figures, and all where the second
    does not start."""

    def breaking(url: str, prompts: Any, **settings: Any) -> ServerMeasurement:
        found = measurement(url, prompts, **settings)
        if "plain" in url or found.concurrency == 1:
            return found
        if harm == "breaks off":
            return ServerMeasurement(found.url, "m", 4, 1.0, found.requests, problem="answered 500")
        raise sd.SpecdecError("answered 500")

    if harm == "does not start":
        monkeypatch.setattr(Server, "does_not_start", "drafting")
    monkeypatch.setattr(module, "measure_server", breaking)
    with pytest.raises(IncompleteError, match="draft: answered 500") as error:
        live({"alone": None, "draft": {"method": "ngram"}}, batches=(1, 4), prompts=3)
    said, partial = str(error.value), error.value.measured
    assert "\n" not in said
    assert "incomplete: draft: answered 500" in partial.source
    if harm == "does not start":
        assert "alone, greedy, 4 at once: 12.0" in said
        assert list(partial.contenders) == ["alone"]
        assert partial.contenders["alone"].speed == {mode: {1: 12.0, 4: 12.0} for mode in ("temperature 1", "greedy")}
    else:
        assert "alone, temperature 1, 4 at once: 12.0" in said
        assert partial.contenders["alone"].speed == {"temperature 1": {1: 12.0, 4: 12.0}}
        assert partial.contenders["draft"].speed == {"temperature 1": {1: 12.0}}
        assert partial.contenders["draft"].counters["temperature 1"].drafts == 5
        assert "draft, temperature 1, 1 at once: 12.0" in said
    assert sorted(Server.steps[-2:]) == ["stop drafting", "stop plain"]
