"""Hidden cases stay hidden, and a result contains no text that the answer chose."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from submissions import needs_bubblewrap, notebook

from specdec_lab.teaching.exercises import judging
from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise, OpaqueValue, SubmissionFailed
from specdec_lab.teaching.exercises.grading import grade_submission, write_reports
from specdec_lab.teaching.exercises.judging import HIDDEN, HIDDEN_SEEDS, PUBLIC_SEED, UNSEEN, judge
from specdec_lab.teaching.exercises.outcomes import BadRequest
from specdec_lab.teaching.exercises.sandbox import Sandbox
from specdec_lab.teaching.exercises.showing import plain
from specdec_lab.teaching.exercises.sources import STUB

ALL_SEEDS = (PUBLIC_SEED, *HIDDEN_SEEDS)
DRAWN = [name for name in EXERCISES if name not in ("find_bug", "adaptive_k", "fix", "lossless")]
"""Those that are asked with other arguments in hidden cases, and with no others than theirs in public ones."""


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


def right_where_it_is_seen(exercise: Exercise, elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """Knows the public cases by heart."""
    public = [case.arguments for case in exercise.cases(PUBLIC_SEED)]

    def answer(*arguments: Any) -> Any:
        known = any(all(map(alike, case, arguments)) for case in public)
        return exercise.reference(*arguments) if known else elsewhere(*arguments)

    return answer


@pytest.mark.parametrize("name", DRAWN)
def test_a_hidden_case_is_reported_without_its_numbers_and_without_the_answer(name: str) -> None:
    exercise = EXERCISES[name]
    public = {case.words for case in exercise.cases(PUBLIC_SEED)}
    secret = {case.words for seed in HIDDEN_SEEDS for case in exercise.cases(seed)} - public
    caught = 0
    for mistake in exercise.misconceptions:
        verdict = judge(exercise, right_where_it_is_seen(exercise, mistake.wrong), ALL_SEEDS)
        if verdict.passed:  # a mistake that does not show in the hidden cases
            continue
        caught += 1
        assert verdict.case == UNSEEN
        assert (verdict.yours, verdict.expected, verdict.given) == ("", "", "")
        assert HIDDEN in verdict.note
        assert not [words for words in secret if words in plain(verdict)]
    assert caught


@pytest.mark.parametrize("name", DRAWN)
def test_a_hidden_case_that_fails_is_reported_with_its_diagnosis_but_not_its_numbers(name: str) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("disk is full")

    def asks_wrongly(*_: Any) -> Any:
        raise BadRequest("takes something else")

    exercise = EXERCISES[name]
    for elsewhere, diagnosis in ((fails, "crashed"), (asks_wrongly, "bad-request")):
        verdict = judge(exercise, right_where_it_is_seen(exercise, elsewhere), ALL_SEEDS)
        assert (verdict.diagnosis, verdict.case) == (diagnosis, UNSEEN)
        assert (verdict.yours, verdict.expected, verdict.given, verdict.note) == ("", "", "", HIDDEN)


SECRET = "b1f7"


def raises(error: BaseException) -> Callable[..., Any]:
    def answer(*_: Any) -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        (raises(ValueError(SECRET)), "Your function raises ValueError"),
        (raises(type(SECRET, (Exception,), {})()), "Your function raises an exception of its own"),
        (raises(SystemExit(SECRET)), "Your function raises SystemExit"),
        (raises(NotImplementedError(SECRET)), "Your function raises NotImplementedError"),
        (raises(SubmissionFailed(f"KeyError: {SECRET} (line 2)")), "Your function raises KeyError"),
        (raises(SubmissionFailed(f"{SECRET}: {SECRET} (line 2)")), "Your function raises an exception of its own"),
        (raises(SubmissionFailed(f"print: {SECRET} (line 2)")), "Your function raises an exception of its own"),
        (raises(BadRequest(f"chance.draw({SECRET})")), "Your function calls chance with an invalid probability"),
        (lambda *_: OpaqueValue(SECRET), "residual returns a value of the wrong type or shape"),
        (lambda *_: torch.zeros(0xB1, 0xF7), "residual returns a value of the wrong type or shape"),
        (lambda *_: SECRET, "residual returns a value of the wrong type or shape"),
        (lambda *_: {SECRET: 1.0}, "residual returns a value of the wrong type or shape"),
    ],
)
def test_what_an_answer_prints_in_a_hidden_case_is_not_shown(elsewhere: Callable[..., Any], said: str) -> None:
    """It can hold the arguments of that case, which the answer has just been given."""
    exercise = EXERCISES["residual"]
    verdict = judge(exercise, right_where_it_is_seen(exercise, elsewhere), ALL_SEEDS, limited=False)
    assert not verdict.passed
    assert verdict.headline.startswith(said)
    assert SECRET not in plain(verdict)
    assert not re.search(r"\d", verdict.headline)


REMEMBERS = """\
import os, torch
calls = []
def residual(p, q):
    calls.append(p)
    if os.path.exists('seen'):
        raise ValueError('@' + open('seen').read())
    if len(calls) > @PUBLIC@:
        with open('seen', 'w') as file:
            file.write(str(p.tolist()))
        raise ValueError('@' + str(p.tolist()))
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)
"""


@needs_bubblewrap
def test_a_hidden_case_does_not_reach_the_report_through_an_exception_or_a_file(tmp_path: Path) -> None:
    """A second notebook that reads what the first one wrote would be reported in a public case, with its message."""
    exercise = EXERCISES["residual"]
    source = REMEMBERS.replace("@PUBLIC@", str(len(exercise.cases(PUBLIC_SEED))))
    notebooks = [notebook(tmp_path, source, name=f"{name}.ipynb") for name in "ab"]
    with Sandbox() as sandbox:
        graded = grade_submission("x", notebooks, sandbox, exercises=[exercise])
    write_reports([graded], tmp_path)
    report = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(report)["score"] == 0
    assert "Your function raises ValueError" in report
    assert "@" not in report
    assert "[" not in json.loads(report)["tests"][0]["output"]


def test_the_same_case_is_reported_with_its_numbers_where_it_is_public() -> None:
    verdict = judge(EXERCISES["speedup"], lambda a, k, c, v: 1.2345, ALL_SEEDS)
    assert (verdict.case, verdict.expected) == ("α = 0.5, k = 1, c = 0.1, v = 1.0", "1.364")


def remembers(p: Any, q: Any, u: Any, seen: list[int] = []) -> Any:  # noqa: B006
    seen.append(1)
    return u < (p / q if len(seen) == 1 else p)


def test_a_list_as_default_argument_is_reported_as_memory() -> None:
    verdict = judge(EXERCISES["accept"], remembers)
    assert verdict.diagnosis == "own-randomness"
    assert "no memory of your own (a list as default argument, a global variable?)" in verdict.headline


def test_a_global_counter_is_reported_as_memory() -> None:
    space: dict[str, Any] = {}
    exec("calls = 0\ndef speedup(*_):\n    global calls\n    calls += 1\n    return calls / 2", space)
    assert "no memory of your own" in judge(EXERCISES["speedup"], space["speedup"]).headline


def test_what_pytorch_has_not_implemented_is_a_crash_and_a_stub_is_not() -> None:
    said = judge(EXERCISES["residual"], lambda p, q: (p > q).long().softmax(-1))
    assert said.outcome == "crashed"
    assert re.search(r"NotImplementedError: .*softmax.* not implemented for 'Long'", said.headline)

    def raising(error: BaseException) -> Any:
        def answer(*_: Any) -> Any:
            raise error

        return judge(EXERCISES["residual"], answer).outcome

    text = re.findall(r'"(.*)"', STUB)[0]
    assert raising(NotImplementedError(text)) == raising(NotImplementedError()) == "not attempted"
    assert raising(NotImplementedError("for bfloat16")) == "crashed"


def test_each_seed_has_the_time_of_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1.0)
    pause = 0.5 / len(EXERCISES["residual"].cases(PUBLIC_SEED))

    def slow(p: Any, q: Any) -> Any:
        time.sleep(pause)
        return EXERCISES["residual"].reference(p, q)

    assert judge(EXERCISES["residual"], slow).passed
    assert judge(EXERCISES["residual"], slow, ALL_SEEDS).passed


def test_an_answer_that_takes_too_long_is_reported_as_possibly_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1.0)
    said = judge(EXERCISES["residual"], lambda p, q: time.sleep(60), ALL_SEEDS).headline
    assert said == (
        "Your function did not finish within 3 seconds. Look for a loop that never stops, or for repeated work"
    )
