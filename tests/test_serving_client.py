"""Watching and timing a server: a real HTTP server on loopback that answers as vLLM does, and fails as servers fail."""

import json
import math
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest
from rich.console import Console

import specdec_lab as lab
import specdec_ref as sd
from specdec_lab.serving.load import ServedRequest, ServerMeasurement, measure_server
from specdec_lab.serving.metrics import SpeculationCounters, parse_counters, read_counters
from specdec_lab.serving.server import VLLMServer, find_vllm, preloaded

PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 5.0
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 45.0
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 24.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 12.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 8.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 4.0
"""


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    counted = False

    def log_message(self, *arguments: Any) -> None:
        """Silence."""

    def answer(self, content: str, status: int = 200) -> None:
        data = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(json.dumps({"data": [{"id": name} for name in self.server.models]}))
        elif self.path == "/metrics" and self.server.page is not None:
            self.answer(self.server.page())
        else:
            self.answer("Not Found", 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
            self.counted = True
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            if body["model"] not in self.server.models:
                self.answer('{"error": {"message": "The model does not exist."}}', 404)
            elif self.server.fails_after is not None and number > self.server.fails_after:
                self.server.failure(self)
            else:
                self.stream(body["max_tokens"])
        finally:
            self.over()

    def over(self) -> None:
        """Count a request as ended, once: before its last line goes out, since the next may come right after that."""
        with self.server.lock:
            self.server.at_once -= self.counted
            self.counted = False

    def stream(self, tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(tokens // 2):  # two tokens in a piece, as with speculation
            time.sleep(0.002)
            self.say({"choices": [{"text": "ab"}]})
        if self.server.usage:
            self.say({"choices": [], "usage": {"completion_tokens": tokens}})
        self.over()
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, piece: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["m"]
        self.bodies: list[dict[str, Any]] = []
        self.page: Callable[[], str] | None = self._growing
        self.usage = True
        self.fails_after: int | None = None
        self.failure: Callable[[Handler], None] = lambda handler: handler.answer("no", 500)
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def _growing(self) -> str:
        return PAGE.replace(" 12.0", f" {12 + len(self.bodies)}.0")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a broken connection raises here is wanted."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.shutdown()


def test_counters_are_summed_over_engines_and_listed_by_position() -> None:
    counters = parse_counters(PAGE)
    assert counters == SpeculationCounters(15, 45, 24, (12, 8, 4))
    assert counters.acceptance_length == pytest.approx(1 + 24 / 15)


def test_what_counters_say_is_what_the_monitor_says_of_the_same_rounds(pair: sd.Pair) -> None:
    """Our own monitor's page of metrics, read back, gives its own statistics: one reader for both."""
    monitor = lab.SpeculativeDecodingMonitor()
    for accepted, rounds in ((0, 5), (1, 3), (2, 1), (3, 6)):
        for _ in range(rounds):
            monitor.on_iteration_complete(accepted, 3)
    page = generate_latest(monitor.to_prometheus()).decode()
    mine, theirs = monitor.get_statistics(), parse_counters(page).statistics()
    for name in (
        "rounds",
        "drafted",
        "examined",
        "accepted",
        "acceptance_rate",
        "acceptance_interval",
        "tokens_per_round",
    ):
        assert getattr(theirs, name) == getattr(mine, name), name
    assert theirs.accepted_histogram == mine.accepted_histogram == (5, 3, 1, 6)
    assert theirs.conditional_rates == mine.conditional_rates
    assert theirs.unconditional_rates == mine.unconditional_rates


def test_the_difference_is_what_happened_in_between(server: Server) -> None:
    before = read_counters(server.url)
    server.bodies += [{}] * 3
    passed = read_counters(server.url + "/v1") - before
    assert passed == SpeculationCounters(0, 0, 0, (3, 0, 0))
    with pytest.raises(sd.SpecdecError, match="restarted"):
        before - parse_counters(PAGE.replace(" 24.0", " 30.0"))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_measurement_counts_tokens_and_time(server: Server, concurrency: int) -> None:
    done = []
    found = measure_server(
        server.url,
        ["a"] * 7 + [[1, 2]],  # type: ignore[list-item]
        concurrency=concurrency,
        max_new_tokens=20,
        on_done=lambda n, total: done.append((n, total)),
    )
    assert (found.tokens, len(found.requests), found.problem) == (160, 8, None)
    assert server.most_at_once <= concurrency
    assert done == [(n, 8) for n in range(1, 9)]
    middle, worst = found.percentiles("first_seconds")
    assert 0.002 <= middle <= worst < found.seconds
    # 2 ms for every two tokens, and some; 18 of the 20 tokens come after the first piece
    assert 0.001 <= found.percentiles("seconds_per_token", 50)[0] < found.seconds / 18
    assert found.counters == SpeculationCounters(0, 0, 0, (8, 0, 0))
    assert server.bodies[0]["ignore_eos"]
    assert json.dumps(found.to_json())


def test_a_server_that_dies_half_way_leaves_what_was_measured(server: Server) -> None:
    server.fails_after = 3
    found = measure_server(server.url, ["a"] * 9, max_new_tokens=4)
    assert len(found.requests) == 3
    assert "answered 500" in str(found.problem)


def test_a_server_started_anew_meanwhile_costs_only_the_counters(server: Server) -> None:
    pages = iter((PAGE, PAGE.replace(" 24.0", " 3.0")))
    server.page = lambda: next(pages)
    found = measure_server(server.url, ["a"] * 2, max_new_tokens=4)
    assert len(found.requests) == 2
    assert found.counters is None
    assert "restarted" in str(found.no_counters)


def half(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.say({"choices": [{"text": "a"}]})
    handler.connection.close()


FAILURES: dict[str, tuple[Callable[[Server], None], str]] = {
    "an error": (lambda s: setattr(s, "fails_after", 0), "answered 500"),
    "half an answer": (lambda s: vars(s).update(fails_after=0, failure=half), "middle of an answer"),
    "an error in the stream": (
        lambda s: vars(s).update(fails_after=0, failure=lambda h: (half_open(h), h.say({"error": "out of memory"}))),
        "out of memory",
    ),
    "no JSON in the stream": (
        lambda s: vars(s).update(fails_after=0, failure=lambda h: (half_open(h), h.wfile.write(b"data: {\n\n"))),
        "takes JSON",
    ),
    "slow": (lambda s: vars(s).update(fails_after=0, failure=lambda h: time.sleep(2)), "no answer within 0.5 s"),
    "no count of tokens": (lambda s: setattr(s, "usage", False), "how many tokens"),
    "two models": (lambda s: s.models.append("n"), "has m, n models"),
    "no model": (lambda s: s.models.clear(), "has no models"),
}


def half_open(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()


@pytest.mark.parametrize(("harm", "says"), FAILURES.values(), ids=FAILURES)
def test_what_a_server_does_wrong_is_one_line(server: Server, harm: Callable[[Server], None], says: str) -> None:
    harm(server)
    with pytest.raises(sd.SpecdecError, match=says) as error:
        measure_server(server.url, ["a"], max_new_tokens=4, timeout=0.5)
    assert "\n" not in str(error.value)


def test_another_model_a_dead_server_and_missing_metrics_are_reported(server: Server) -> None:
    with pytest.raises(sd.SpecdecError, match="404"):
        measure_server(server.url, ["a"], model="other", max_new_tokens=4)
    with pytest.raises(sd.SpecdecError, match="cannot be reached"):
        measure_server("http://127.0.0.1:9", ["a"])
    with pytest.raises(sd.SpecdecError, match="cannot be reached"):
        read_counters("http://127.0.0.1:9")
    server.page = lambda: "python_info 1.0\n"
    with pytest.raises(sd.SpecdecError, match="does not speculate"):
        read_counters(server.url)
    server.page = lambda: "<html>\n"
    with pytest.raises(sd.SpecdecError, match="metrics"):
        read_counters(server.url)
    server.page = None
    found = measure_server(server.url, ["a"], max_new_tokens=4)
    assert found.counters is None
    assert "404" in str(found.no_counters)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "ftp://x"}, "url="),
        ({"url": None}, "url="),
        ({"prompts": []}, "prompts="),
        ({"prompts": "text"}, "prompts="),
        ({"prompts": [""]}, "prompts="),
        ({"concurrency": 0}, "concurrency="),
        ({"concurrency": 10_000}, "concurrency="),
        ({"max_new_tokens": 2.5}, "max_new_tokens="),
    ],
)
def test_bad_arguments_raise(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"url": "http://127.0.0.1:9", "prompts": ["a"]} | change
    with pytest.raises(sd.SpecdecError, match=says):
        measure_server(arguments.pop("url"), arguments.pop("prompts"), **arguments)


def script(folder: Any, text: str) -> Any:
    file = folder / "vllm"
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return file


def test_a_server_that_ends_at_once_says_why_and_leaves_nothing(tmp_path: Any) -> None:
    said = "WARNING: can cause fd limit errors like OSError: [Errno 24]", "ValueError: no such model", "ended"
    vllm = script(tmp_path, "".join(f"echo '{line}'\n" for line in said) + "exit 3\n")
    with pytest.raises(sd.SpecdecError, match=r"status 3: ValueError: no such model"):
        VLLMServer("x", vllm=vllm, log=tmp_path / "log").__enter__()


def test_a_server_that_never_answers_is_ended_with_its_children(tmp_path: Any) -> None:
    import psutil

    vllm = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait\n")
    with pytest.raises(sd.SpecdecError, match="no answer within 1 s"):
        VLLMServer("x", vllm=vllm, patience=1, log=tmp_path / "log").__enter__()
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_configuration_that_is_refused_says_which_argument(tmp_path: Any) -> None:
    said = "E.ValidationError: 1 validation error for SpeculativeConfig", "num_tokens", "  Unexpected keyword argument"
    vllm = script(tmp_path, "".join(f"echo '{line}'\n" for line in said) + "exit 1\n")
    with pytest.raises(sd.SpecdecError, match=r"SpeculativeConfig num_tokens Unexpected keyword argument") as error:
        VLLMServer("x", vllm=vllm, log=tmp_path / "log").__enter__()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_server_does_not_outlive_the_process_that_started_it(tmp_path: Any) -> None:
    """Not even where that was killed, which runs no `finally`."""
    import psutil

    vllm = script(tmp_path, f"echo $$ > {tmp_path}/group; sleep 600\n")
    code = (
        "import sys; from specdec_lab.serving.server import VLLMServer\n"
        "VLLMServer('x', vllm=sys.argv[1], log=sys.argv[2]).__enter__()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(vllm), str(tmp_path / "log")])
    until = time.monotonic() + 60
    while not (tmp_path / "group").exists() or not (tmp_path / "group").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1)  # its guard starts as well
    group = int((tmp_path / "group").read_text())
    assert psutil.pid_exists(group)
    parent.kill()
    parent.wait()
    while psutil.pid_exists(group) and psutil.Process(group).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_trial_that_breaks_off_says_after_what(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec_lab.serving import trial

    class Running:
        def __init__(self, target: str, config: Any):
            self.url = server.url

        def __enter__(self) -> "Running":
            return self

        def __exit__(self, *error: object) -> None:
            """Nothing to end."""

    monkeypatch.delenv("SPECDEC_LIVE", raising=False)
    monkeypatch.setattr(trial, "VLLMServer", Running)
    monkeypatch.setattr(trial, "find_vllm", lambda: "vllm")
    server.fails_after = 3
    said = str(trial.try_in_vllm({"method": "ngram"}, prompts=["a", "b", "c"], max_new_tokens=4))
    assert "answered 500" in said
    assert "after 1 of 3 requests" in said


def test_the_error_for_a_missing_vllm_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_VLLM", "/nowhere/vllm")
    assert find_vllm() is None
    with pytest.raises(sd.SpecdecError, match="make vllm-env"):
        VLLMServer("x")


def test_the_command_line_measures_a_server(server: Server) -> None:
    from typer.testing import CliRunner

    from specdec_lab.cli.main import app

    server.page = lambda: PAGE.replace(" 12.0", f" {12 + len(server.bodies)}.0").replace(
        "} 10.0", f"}} {len(server.bodies) + 10}"
    )
    arguments = ["bench", "--server", server.url, "--prompts", "3", "--repeats", "2", "--tokens", "6"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "6 requests, 1 at a time" in shown.output
    assert "accepted / examined" in shown.output
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert (report["requests"], report["tokens"], report["problem"], report["no_counters"]) == (6, 36, None, None)
    assert report["counters"]["drafts"] == 6


@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "JSON"])
def test_the_command_line_tells_what_a_dying_server_gave_and_fails(server: Server, as_json: bool) -> None:
    """In a process of its own, as a script sees it: what was measured on stdout, one line on stderr, status 2."""
    server.page, server.fails_after = None, 2
    command = [sys.executable, "-m", "specdec_lab", "bench", "--server", server.url, "--tokens", "6"]
    done = subprocess.run([*command, *["--json"] * as_json], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "ended early" in done.stderr
    assert "answered 500" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if as_json:
        report = json.loads(done.stdout)
        assert (report["requests"], report["tokens"]) == (2, 12)
        assert "answered 500" in report["problem"]
        assert "404" in report["no_counters"]
        assert "counters" not in report
    else:
        assert "2 requests, 1 at a time" in done.stdout
        assert "speculation: unknown" in done.stdout


def test_answers_in_one_piece_have_no_time_per_token(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is null in JSON and a dash on the screen; no library warns meanwhile."""
    from specdec_lab.cli import bench_command as cli_bench

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_server(server.url, ["a"] * 3, max_new_tokens=2)
        report = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert all(math.isnan(t) for t in found.percentiles("seconds_per_token", 10, 50, 90))
        cli_bench._print_served(Console(width=100), found)
    assert report["seconds_per_token"] == {"p50": None, "p99": None}
    assert report["acceptance_length"] is None  # its counters stood still
    assert 0 < report["first_seconds"]["p50"] <= report["first_seconds"]["p99"]
    shown = capsys.readouterr().out
    assert re.search("after it, p50 and p99 +–, –", shown)
    assert "nan" not in shown


def test_percentiles_are_over_the_requests_that_have_a_time() -> None:
    """Of three answers one came in one piece: the other two are left."""
    answers = ServedRequest(8, 1.0, 3.0, 4), ServedRequest(8, 1.0, 1.0, 1), ServedRequest(8, 1.0, 5.0, 4)
    found = ServerMeasurement("url", "m", 1, 9.0, answers)
    assert found.percentiles("seconds_per_token", 0, 50, 100) == pytest.approx((2 / 6, 3 / 6, 4 / 6))


def test_a_trial_without_what_it_needs_says_so_and_starts_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec_lab.serving.trial import try_in_vllm

    assert "write the configuration first" in str(try_in_vllm(None))
    assert "takes a dictionary" in str(try_in_vllm(["draft_model"]))  # type: ignore[arg-type]
    old = {"speculative_model": "draft", "num_speculative_tokens": 4, "use_v2_block_manager": True}
    monkeypatch.setenv("SPECDEC_LIVE", "0")  # nothing has to be installed or started to know this
    said = str(try_in_vllm(old))
    assert "vLLM removed these arguments in 2025: speculative_model → speculative_config['model']" in said
    assert "use_v2_block_manager → gone" in said
    said = str(try_in_vllm({"model": "draft", "speculative_max_model_len": 2048}))
    assert said.endswith("speculative_max_model_len → speculative_config['max_model_len']")
    said = str(try_in_vllm({"model": "draft", "speculative_disable_by_batch_size": "many"}))
    assert "speculative_disable_by_batch_size='many': takes a whole number" in said
    monkeypatch.delenv("SPECDEC_LIVE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the log of a failed start stays
    monkeypatch.setenv("SPECDEC_VLLM", "/nowhere/vllm")
    assert "make vllm-env" in str(try_in_vllm({}))
    monkeypatch.setenv("SPECDEC_VLLM", str(script(tmp_path, "echo 'TypeError: unexpected keyword'; exit 1\n")))
    assert "TypeError: unexpected keyword" in str(try_in_vllm({"method": "ngram"}))


def test_a_server_is_given_one_openmp() -> None:
    """vLLM refuses to start under two, and its own configuration, once made in a process, leaves PyTorch's there."""
    ours, gomp = ["/env/lib/libiomp5.so", "/usr/lib/libtcmalloc_minimal.so.4"], "/torch/lib/libgomp-98b.so.1"
    assert preloaded(ours, f"/lib/other.so:{gomp}") == ":".join([*ours, "/lib/other.so"])
    assert preloaded(ours[1:], gomp) == f"{ours[1]}:{gomp}"
    assert preloaded([], "") == ""


def test_an_error_in_a_thread_is_reported(server: Server) -> None:
    def breaks(done: int, of: int) -> None:
        raise RuntimeError("no room on the board")

    found = measure_server(server.url, ["a", "b"], max_new_tokens=4, on_done=breaks)
    assert (len(found.requests), found.problem) == (1, "RuntimeError: no room on the board")


def test_ids_of_numpy_are_ids(server: Server) -> None:
    assert len(measure_server(server.url, [np.array([3, 4])], max_new_tokens=4).requests) == 1


def test_a_key_with_a_line_end_and_a_name_that_no_host_can_have_are_one_line(server: Server) -> None:
    for url, key in ((server.url, "secret\n"), ("http://a..b:8000", None)):
        with pytest.raises(sd.SpecdecError, match=r"cannot be (asked|reached)") as error:
            measure_server(url, ["a"], api_key=key)
        assert "\n" not in str(error.value)


def test_a_program_that_cannot_be_started_is_one_line(tmp_path: Any) -> None:
    file = tmp_path / "vllm"
    file.write_bytes(b"\x7fELF nothing more")
    file.chmod(0o755)
    server = VLLMServer("x", vllm=file, log=tmp_path / "log")
    with pytest.raises(sd.SpecdecError, match=r"vllm: .*vllm: "):
        server.__enter__()
    server.stop()
