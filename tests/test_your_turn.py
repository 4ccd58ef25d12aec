"""'Your turn' cells: a right, a wrong, a crashing and an open answer each print one line, and nothing raises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specdec_lab.teaching.your_turn import check, check_function


class Odd:
    """A value that cannot be compared with anything."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed: exactly one line."""
    (line,) = capsys.readouterr().out.splitlines()
    return line


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (2.7731, 2.77309),
        (3, 3.0),
        (torch.tensor(0.7), 0.7),  # float32 against float64
        ([0.5, 0.5], torch.tensor([0.5, 0.5])),
        (torch.tensor([[1.0], [2.0]]), [[1.0], [2.0]]),
        (float("inf"), float("inf")),
        (0.0, 0.0),
        (True, True),
        ("b", "b"),
    ],
)
def test_a_right_value_is_right(value: Any, right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check("tokens", value, lambda: right, tolerance=0.001)
    assert line_of(capsys) == "✓ tokens: right"


@pytest.mark.parametrize(
    ("value", "right", "says"),
    [
        (3.5, 2.77, "3.5 is too high"),
        (2.0, 2.77, "2 is too low"),
        (float("nan"), 2.77, "you have NaN"),
        ("3", 2.77, "takes a number; you have '3'"),
        (True, 2.77, "takes a number; you have True"),
        (lambda: 3, 2.77, "a function, so call it"),
        ([3.0], 2.77, "takes a number; you have [3]"),
        (0.5, [0.5, 0.5], "takes 2 values; you have 0.5"),
        ([0.5], [0.5, 0.5], "takes 2 values; you have 1"),
        ([0.5, 0.7], [0.5, 0.5], "at index 1, 0.7 is too high"),
        (1, True, "takes True or False; you have 1"),
        (False, True, "False is not right"),
        ("a", "b", "'a' is not right"),
        (2, 3, "2 is too low"),
    ],
)
def test_a_wrong_value_is_described_without_the_answer(
    value: Any, right: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check("tokens", value, lambda: right, tolerance=0.01)
    line = line_of(capsys)
    assert line.startswith("✗ tokens: ")
    assert says in line
    assert "2.77" not in line


@pytest.mark.parametrize("value", [None, ...])
def test_an_open_value_is_not_attempted_and_is_not_computed(value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check("tokens", value, lambda: pytest.fail("the answer was computed"))
    line = line_of(capsys)
    assert line.startswith("– tokens: not attempted yet")
    assert "Replace None" in line


def test_an_answer_that_cannot_be_computed_or_compared_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    check("tokens", 3, lambda: 1 / 0)
    assert line_of(capsys).startswith("! tokens: could not be compared (ZeroDivisionError")
    check("word", Odd(), lambda: "b")
    assert line_of(capsys).startswith("! word: could not be compared (RuntimeError")
    check("tokens", Odd(), lambda: 3)
    assert line_of(capsys).startswith("✗ tokens: takes a number; you have a value of type Odd")


def test_the_default_tolerance_forgives_rounding_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    check("sum", 0.1 + 0.2, lambda: 0.3)
    assert line_of(capsys).startswith("✓")
    check("sum", 0.301, lambda: 0.3)
    assert line_of(capsys) == "✗ sum: 0.301 is too high."


def residual(p: Any, q: Any) -> Any:
    rest = (p - q).clamp(min=0)
    return rest / rest.sum()


def changing(p: Any, q: Any) -> Any:
    p -= q
    return p.clamp_(min=0) / p.sum()


CASES = [
    (torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])),
    (torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])),
]


@pytest.mark.parametrize("function", [residual, changing, lambda p, q: residual(p, q).tolist()])
def test_a_right_function_is_right(function: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    check_function("the residual", function, residual, CASES)
    assert line_of(capsys) == "✓ the residual: right, in 2 cases"


@pytest.mark.parametrize(
    ("function", "begins"),
    [
        (lambda p, q: p, "✗ the residual: wrong for ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]): at index 0, 0.5 is too low."),
        (lambda p, q: residual(p, q) if len(p) == 3 else q, "✗ the residual: wrong for ([0.9, 0.1], [0.5, 0.5])"),
        (lambda p, q: 1.0, "✗ the residual: wrong for ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]): takes 3 values"),
        (lambda p, q: residual(p, q) if len(p) == 3 else None, "✗ the residual: returns None for 1 of 2 cases"),
        (lambda p, q: [1, 0, 0, 0], "✗ the residual: wrong for"),
        (lambda p, q: p / 0 if len(p) == 3 else p[9], "✗ the residual: wrong for"),
        (lambda p, q: residual(p, q)[9], "! the residual: crashed for ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]): IndexError"),
        (lambda p: p, "! the residual: crashed for ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]): TypeError"),
        (lambda p, q: Odd(), "✗ the residual: wrong for"),
        (0.5, "✗ the residual: takes a function; you have 0.5"),
        (Odd(), "✗ the residual: takes a function; you have a value of type Odd"),
        (None, "– the residual: not attempted yet"),
        (lambda p, q: None, "– the residual: not attempted yet"),
    ],
)
def test_a_function_that_is_wrong_crashing_or_open_says_which_case(
    function: Any, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_function("the residual", function, residual, CASES)
    assert line_of(capsys).startswith(begins)


def test_a_reference_that_fails_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    check_function("half", lambda x: x, lambda x: 1 / 0, [(1.0,)])
    assert "could not be compared (ZeroDivisionError" in line_of(capsys)
