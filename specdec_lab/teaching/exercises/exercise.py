"""Exercises, cases and results, and the comparison of values. Answers are graded by their values, not by their code."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import torch

from specdec_lab.teaching.exercises.outcomes import distribution

ResultKind = Literal["passed", "wrong", "crashed", "not attempted"]
Function = Callable[..., Any]


@dataclass(frozen=True)
class ExerciseCase:
    """Arguments to call an answer with.

    words: a description for the learner. asks_chance: a `Chance` is added as last argument, and the exact
    distribution of the result is compared. spelled: the description has every number, so that the learner can repeat
    the calculation.
    """

    arguments: tuple[Any, ...]
    words: str = ""
    asks_chance: bool = False
    spelled: bool = True


@dataclass(frozen=True)
class Misconception:
    """A wrong version that people write. says: the diagnosis for the learner. hint: the number of the hint, from 1."""

    name: str
    says: str
    hint: int
    wrong: Function


@dataclass(frozen=True)
class Exercise:
    """One function that the learner writes.

    name: the first argument of `check`. function: the name that the notebook defines. reference: the solution. cases:
    makes the cases of a seed, smallest first; hidden checks use other seeds. agrees: whether a value is as good as the
    reference's, for exercises with several right values. measure: computes the value to compare from the function and a
    case. tolerance: of numbers, wide enough for another device or dtype. otherwise: the text for an answer that no
    misconception explains. secret: the expected value is the answer itself, so it is not shown.
    """

    name: str
    title: str
    function: str
    minutes: int
    difficulty: int
    hints: tuple[str, ...]
    reference: Function
    misconceptions: tuple[Misconception, ...]
    cases: Callable[[int], Sequence[ExerciseCase]]
    agrees: Callable[[Any, Any, ExerciseCase], bool] | None = None
    measure: Callable[[Function, ExerciseCase], Any] | None = None
    tolerance: float = 1e-4
    otherwise: str = "Some values are wrong. The smallest case is shown below"
    secret: bool = False


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. diagnosis: the name of the misconception, or of the kind of failure. given: the arguments
    of the case, if its description does not have them. note: a further remark."""

    exercise: str
    outcome: ResultKind
    headline: str
    diagnosis: str = ""
    case: str = ""
    yours: str = ""
    expected: str = ""
    hint: int = 0
    public: bool = True
    note: str = ""
    given: str = ""

    @property
    def passed(self) -> bool:
        """Whether the answer is right in all cases."""
        return self.outcome == "passed"


LARGE = 8
"""Of larger tensors, only the first entry that differs is shown."""


class OpaqueValue:
    """A value that cannot be transferred from another process. Only the name of its type is known."""

    def __init__(self, kind: str):
        self.kind = kind


class TooSlow(BaseException):
    """The answer took too long. Not an Exception, so that an answer with `except Exception` does not catch it."""


class SubmissionFailed(Exception):
    """The error of an answer in its own process, or the end of that process, as text."""


class ProcessEnded(SubmissionFailed):
    """The process of a submission ended. The cause may be the submission or the machine."""


class ChangedArguments(Exception):
    """The function changed one of its arguments."""


def observe(
    function: Function, case: ExerciseCase, measure: Callable[[Function, ExerciseCase], Any] | None = None
) -> Any:
    """The value of a function in a case, or its exact distribution, or the result of `measure`."""
    if measure is not None:
        return measure(function, case)
    if case.asks_chance:
        return distribution(lambda chance: called(function, *case.arguments, chance))
    return called(function, *case.arguments)


def called(function: Function, *arguments: Any) -> Any:
    """The value of a function for copies of these arguments. Raises ChangedArguments if it changes one of them."""
    given = [_copied(argument) for argument in arguments]
    value = function(*given)
    if not all(map(_untouched, arguments, given)):
        raise ChangedArguments("it changes its arguments")
    return value


def _copied(value: Any) -> Any:
    """A deep copy of tensors, dicts, lists and tuples; any other value itself."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def _untouched(before: Any, after: Any) -> bool:
    if type(before) is not type(after):
        return False
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return list(before) == list(after) and all(_untouched(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(_untouched, before, after))
    return bool(before == after)


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two values are equal; numbers and tensors within the tolerance (relative for large ones). NaN equals only
    NaN. Values that cannot be compared are not equal, whatever their own `__eq__` returns."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(same(a.get(key, 0.0), b.get(key, 0.0), tolerance) for key in {*a, *b})
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return a is b or (type(a) is type(b) is str and a == b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    try:
        x, y = (torch.as_tensor(number(value), dtype=torch.float64).cpu() for value in (a, b))
        return x.shape == y.shape and bool(torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True))
    except Exception:
        return False


def is_right(exercise: Exercise, value: Any, right: Any, case: ExerciseCase) -> bool:
    """Whether a value is as good as the right one. False if the comparison raises an exception."""
    try:
        if exercise.agrees is not None:
            return exercise.agrees(value, right, case)
        return same(value, right, exercise.tolerance)
    except Exception:
        return False


def number(value: Any) -> Any:
    """Fractions, decimals and similar numbers as a float; any other value itself."""
    return float(value) if isinstance(value, (Real, Decimal)) and not isinstance(value, (bool, int)) else value


def repeats(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two calls returned the same value. Of values that cannot be compared, only the types are compared."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(repeats(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(repeats(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if _is_comparable(a) and _is_comparable(b):
        return same(a, b, tolerance)
    return shape_of(a) == shape_of(b)


def _is_comparable(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return True
    return _tensor_of(value) is not None


def _tensor_of(value: Any) -> torch.Tensor | None:
    """A value as a tensor of real numbers; None if it is not one."""
    try:
        tensor = torch.as_tensor(number(value))
    except Exception:
        return None
    return None if tensor.is_complex() else tensor


def shape_of(value: Any) -> str:
    """The type and shape of a value, as text."""
    if value is None:
        return "None (did you forget to return?)"
    if isinstance(value, OpaqueValue):
        return f"a {value.kind}{_ADVICE.get(value.kind, '')}"
    if isinstance(value, dict):
        return "a dict" if value else "an empty dict"
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        shape = list(getattr(value, "shape", ()))
        kind = "a complex tensor" if isinstance(value, torch.Tensor) and value.is_complex() else "a tensor"
        return f"{kind} of shape {shape}" if shape else "a number"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}{_strange_item(value)}"
    name = clean(type(value).__name__, 40)
    return "a number" if isinstance(value, (int, float)) else f"a {name}{_ADVICE.get(name, '')}"


def _strange_item(values: Sequence[Any]) -> str:
    """The first item of a list that is not a number, as text; empty if all are numbers."""
    for value in values:
        if _tensor_of(value) is None:
            return f" with {shape_of(value)} in it"
    return ""


_ADVICE = {"generator": " (a yield? return the whole list)", "function": " (did you forget to call it?)"}


def misfit(value: Any, expected: Any) -> str:
    """Why a value cannot be compared with the expected one: 'returns …; expected …'. Empty if it can."""
    if not _has_shape_of(value, expected):
        wanted = "True or False" if isinstance(expected, bool) else shape_of(expected)
        return f"returns {shape_of(value)}; expected {wanted}"
    if isinstance(expected, torch.Tensor) and expected.dtype == torch.bool:
        tensor = _tensor_of(value)
        if tensor is not None and tensor.dtype != torch.bool:
            return (
                f"returns numbers ({str(tensor.dtype).removeprefix('torch.')}); expected True or False for each token"
            )
    return ""


def _has_shape_of(value: Any, expected: Any) -> bool:
    """Whether a value has the expected type and shape."""
    if isinstance(expected, (str, dict)) or value is None or isinstance(value, (str, dict)):
        return isinstance(value, type(expected)) and (not isinstance(expected, dict) or bool(value))
    if isinstance(expected, (tuple, list)) and not isinstance(expected[0] if expected else 0, (int, float)):
        return isinstance(value, (tuple, list)) and len(value) == len(expected)
    tensor = _tensor_of(value)
    return tensor is not None and tensor.shape == torch.as_tensor(expected).shape


def shown(value: Any) -> str:
    """A value as one line of text."""
    if isinstance(value, OpaqueValue):
        return f"a {value.kind}"
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, dict):
        entries = sorted(value.items(), key=lambda item: clean(item[0]))[:8]
        return ", ".join(f"{_key(k)}: {shown(v)}" for k, v in entries) + (" …" if len(value) > 8 else "")
    if isinstance(value, (list, tuple)):
        inner = ", ".join(shown(item) for item in value[:8])
        return f"[{inner}{', …' if len(value) > 8 else ''}]"
    try:
        return f"{value:.4g}" if isinstance(value, float) else clean(repr(value), 80)
    except Exception:
        return shape_of(value)


def place_of_difference(value: Any, expected: Any, tolerance: float) -> tuple[int, ...]:
    """The index of the first entry in which two large tensors differ; empty for small ones and for other values."""
    try:
        x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (value, expected))
        if x.shape != y.shape or x.numel() <= LARGE or isinstance(expected, (int, float)):
            return ()
        close = torch.isclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
        return tuple(int(i) for i in (~close).nonzero()[0])
    except Exception:
        return ()


def both_shown(value: Any, expected: Any, at: tuple[int, ...] = ()) -> tuple[str, str]:
    """Both values, as one line each; of large tensors, only the entry at this index."""
    try:
        if at:
            yours, right = (shown(torch.as_tensor(v)[at]) for v in (value, expected))
            return f"{yours} at {list(at)}", f"{right} at {list(at)}"
    except Exception:
        pass
    return shown(value), shown(expected)


def given(function: Function, case: ExerciseCase, at: tuple[int, ...] = ()) -> str:
    """The arguments of a case as one line, with the function's parameter names, so that the learner can repeat the
    calculation. Of large tensors, only the row at this index. Empty if the description of the case has all numbers."""
    if case.spelled:
        return ""
    parts = []
    for name, value in zip(inspect.signature(function).parameters, case.arguments, strict=False):
        if isinstance(value, torch.Tensor) and value.numel() > LARGE and at and at[0] < len(value):
            name, value = f"{name}[{at[0]}]", value[at[0]]
        parts.append(f"{name} = {{{shown(value)}}}" if isinstance(value, dict) else f"{name} = {shown(value)}")
    return clean(", ".join(parts), 600)


def clean(text: Any, max_length: int = 300) -> str:
    """Untrusted text as one line of at most `most` printable characters."""
    try:
        text = str(text)[: 4 * max_length]
    except BaseException as error:
        if isinstance(error, TooSlow):
            raise
        text = f"({type(error).__name__} while printing it)"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def _key(key: Any) -> str:
    return clean(" ".join(map(str, key)) if isinstance(key, tuple) else key, 80)
