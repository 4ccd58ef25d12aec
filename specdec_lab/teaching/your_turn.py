"""Small answers that a learner writes inside a lesson, checked by the next cell.

A lesson leaves a value open, `my_value = None  # Your turn: …`, and the cell after it checks the value. A check prints
one line and never raises, so a lesson with open answers still runs from top to bottom.
"""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from numbers import Real
from typing import Any

from specdec_lab import plotting

ROUNDING = 1e-6
"""Relative difference that is always allowed: two correct float32 computations differ by less."""


def check(name: str, value: Any, expected: Callable[[], Any], *, tolerance: float = 0.0) -> None:
    """Print whether a learner's value is right; a wrong one is described without giving the answer away.

    Args:
        name: what the value is, in words: the line begins with it.
        value: what the learner has. None means 'not attempted yet'.
        expected: returns the right value: a number, a string, a bool, or a list or tensor of numbers.
        tolerance: largest difference that counts as right, for each number.
    """
    if value is None or value is ...:
        print(f"– {name}: not attempted yet. Replace None in the cell above with your answer, then run both cells.")
        return
    try:
        difference = _difference(_plain(value), _plain(expected()), tolerance)
    except Exception as error:
        print(f"! {name}: could not be compared ({_error_in_words(error)}). Run the lesson's cells from the top.")
        return
    if not difference:
        print(f"{plotting.ACCEPTED_MARK} {name}: right")
    else:
        print(f"{plotting.REJECTED_MARK} {name}: {difference}.{_allowance(tolerance)}")


def check_function(
    name: str,
    function: Any,
    reference: Callable[..., Any],
    cases: Iterable[tuple[Any, ...]],
    *,
    tolerance: float = ROUNDING,
) -> None:
    """Call a learner's function on all cases, and print the first case where it differs from the reference.

    Args:
        name: what the function computes, in words: the line begins with it.
        function: what the learner has. None, or a function that returns None, means 'not attempted yet'.
        reference: returns the right result for the same arguments.
        cases: the arguments of each call, as tuples.
        tolerance: largest difference that counts as right, for each number.
    """
    cases = [tuple(case) for case in cases]
    if function is None or function is ...:
        _ask_for_the_function(name)
        return
    if not callable(function):
        print(f"{plotting.REJECTED_MARK} {name}: takes a function; you have {_shown(function)}.")
        return
    empty = 0
    for case in cases:
        try:
            result = function(*deepcopy(case))
        except Exception as error:
            print(f"! {name}: crashed for {_shown_call(case)}: {_error_in_words(error)}")
            return
        if result is None:
            empty += 1
            continue
        difference = _difference_in_case(result, reference, case, tolerance)
        if difference:
            print(f"{plotting.REJECTED_MARK} {name}: wrong for {_shown_call(case)}: {difference}.")
            return
    if empty == len(cases):
        _ask_for_the_function(name)
    elif empty:
        print(f"{plotting.REJECTED_MARK} {name}: returns None for {empty} of {len(cases)} cases.")
    else:
        print(f"{plotting.ACCEPTED_MARK} {name}: right, in {len(cases)} cases")


def _ask_for_the_function(name: str) -> None:
    print(f"– {name}: not attempted yet. Write the function in the cell above, then run both cells.")


def _difference_in_case(result: Any, reference: Callable[..., Any], case: tuple[Any, ...], tolerance: float) -> str:
    try:
        return _difference(_plain(result), _plain(reference(*deepcopy(case))), tolerance)
    except Exception as error:
        return f"could not be compared ({_error_in_words(error)})"


def _plain(value: Any) -> Any:
    """Tensors, arrays and tuples as lists, and their single values as Python's own numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple, range)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _difference(value: Any, expected: Any, tolerance: float) -> str:
    """What is wrong with a value, in words; '' where nothing is."""
    if isinstance(expected, list):
        return _difference_of_lists(value, expected, tolerance)
    if _is_number(expected):
        return _difference_of_numbers(value, expected, tolerance)
    if isinstance(expected, bool) and not isinstance(value, bool):
        return f"takes True or False; you have {_shown(value)}"
    return "" if value == expected else f"{_shown(value)} is not right"


def _difference_of_numbers(value: Any, expected: float, tolerance: float) -> str:
    if callable(value):
        return "takes a number; you have a function, so call it"
    if not _is_number(value):
        return f"takes a number; you have {_shown(value)}"
    if math.isnan(value):
        return "takes a number; you have NaN"
    if math.isclose(value, expected, rel_tol=ROUNDING, abs_tol=max(tolerance, 1e-12)):
        return ""
    return f"{_shown(value)} is too {'high' if value > expected else 'low'}"


def _difference_of_lists(value: Any, expected: list[Any], tolerance: float) -> str:
    if not isinstance(value, list):
        return f"takes {len(expected)} values; you have {_shown(value)}"
    if len(value) != len(expected):
        return f"takes {len(expected)} values; you have {len(value)}"
    for i, (item, right) in enumerate(zip(value, expected, strict=True)):
        difference = _difference(item, right, tolerance)
        if difference:
            return f"at index {i}, {difference}"
    return ""


def _allowance(tolerance: float) -> str:
    return f" An answer within {tolerance:g} of the right one passes." if tolerance else ""


def _shown(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        items = [_shown(item) for item in value[:6]]
        return f"[{', '.join(items)}{', …' if len(value) > 6 else ''}]"
    if callable(value) or value is None:
        return f"a value of type {type(value).__name__}"
    try:
        return f"{value!r:.60}"
    except Exception:
        return f"a value of type {type(value).__name__}"


def _shown_call(case: tuple[Any, ...]) -> str:
    return f"({', '.join(map(_shown, case))})"


def _error_in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]:.120}" if str(error) else type(error).__name__
