"""What an exercise is, and how an answer to it is judged: by its values, never by its text."""

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
    """Arguments to try. words: what they are, in the learner's words. asks_chance: a `Chance` comes last, and the
    distribution of the result is what counts. spelled: the words say every number, so that one can redo it by hand."""

    arguments: tuple[Any, ...]
    words: str = ""
    asks_chance: bool = False
    spelled: bool = True


@dataclass(frozen=True)
class Misconception:
    """A wrong version that people write. says: what is mistaken, to the learner. hint: the one to open, from 1."""

    name: str
    says: str
    hint: int
    wrong: Function


@dataclass(frozen=True)
class Exercise:
    """One function to write.

    name: as `check` takes it. function: the name that a notebook defines. reference: the solution. cases: made anew
    for a seed, smallest first; a hidden check takes other seeds. agrees: whether a value is as good as the reference's
    in a case, where it need not be the same. measure: what is looked at in place of the value. tolerance: of numbers,
    wide enough for another device or number type. otherwise: what to say where no misconception explains it. secret:
    the expected value is the answer itself, and not shown.
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
    otherwise: str = "Some values differ from what they should be; here is the smallest case"
    secret: bool = False


@dataclass(frozen=True)
class CheckResult:
    """What a check says. diagnosis: the misconception's name, or what kind of failure it was. given: the numbers
    of the case, where its words do not say them. note: a word besides."""

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
        """Whether all that was checked is right."""
        return self.outcome == "passed"


LARGE = 8
"""Tensors of more entries are not shown whole, but where they differ."""


class OpaqueValue:
    """A value of a kind that is not carried over from another process; the kind's name is kept."""

    def __init__(self, kind: str):
        self.kind = kind


class TooSlow(BaseException):
    """It did not come to an end. No Exception, so that an answer that catches those does not swallow it."""


class SubmissionFailed(Exception):
    """What an answer raised in a process of its own, or how that process ended, in words."""


class ProcessEnded(SubmissionFailed):
    """The process of a submission ended by itself. The cause may be the machine as well as the submission."""


class ChangedArguments(Exception):
    """The function wrote into what it was given."""


def observe(
    function: Function, case: ExerciseCase, measure: Callable[[Function, ExerciseCase], Any] | None = None
) -> Any:
    """What a function gives in a case: its value, or the exact distribution of its values, or what is measured."""
    if measure is not None:
        return measure(function, case)
    if case.asks_chance:
        return distribution(lambda chance: called(function, *case.arguments, chance))
    return called(function, *case.arguments)


def called(function: Function, *arguments: Any) -> Any:
    """What a function gives for copies of these arguments. Raises ChangedArguments where it wrote into one of them."""
    given = [_copied(argument) for argument in arguments]
    value = function(*given)
    if not all(map(_untouched, arguments, given)):
        raise ChangedArguments("it writes into its arguments")
    return value


def _copied(value: Any) -> Any:
    """A copy of tensors and of what holds others; everything else, chance too, is itself."""
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
    """Equal, numbers and tensors up to the tolerance (relative for large ones). NaN equals only NaN. What cannot be
    compared is not equal, whatever it says itself."""
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
    """Whether a value is as good as the right one. A value that cannot even be looked at is not."""
    try:
        if exercise.agrees is not None:
            return exercise.agrees(value, right, case)
        return same(value, right, exercise.tolerance)
    except Exception:
        return False


def number(value: Any) -> Any:
    """Fractions and the like as a float; everything else as it is."""
    return float(value) if isinstance(value, (Real, Decimal)) and not isinstance(value, (bool, int)) else value


def repeats(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two calls returned the same, as far as that can be told: of values that cannot be compared, the kind."""
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
    """A value as a tensor of real numbers; None where it is none."""
    try:
        tensor = torch.as_tensor(number(value))
    except Exception:
        return None
    return None if tensor.is_complex() else tensor


def shape_of(value: Any) -> str:
    """What kind of thing it is, in words, for 'yours is …, expected is …'."""
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
    """The first item of a list that is no number, in words; nothing where all are."""
    for value in values:
        if _tensor_of(value) is None:
            return f" with {shape_of(value)} in it"
    return ""


_ADVICE = {"generator": " (a yield? return the whole list)", "function": " (did you forget to call it?)"}


def misfit(value: Any, expected: Any) -> str:
    """Why a value cannot be compared with the expected one, as 'gives …; takes …'; nothing where it can."""
    if not _has_shape_of(value, expected):
        return f"gives {shape_of(value)}; takes {shape_of(expected)}"
    if isinstance(expected, torch.Tensor) and expected.dtype == torch.bool:
        tensor = _tensor_of(value)
        if tensor is not None and tensor.dtype != torch.bool:
            return f"gives numbers ({str(tensor.dtype).removeprefix('torch.')}); takes True or False for each"
    return ""


def _has_shape_of(value: Any, expected: Any) -> bool:
    """Whether a value is of the kind that is expected, and as large."""
    if isinstance(expected, (str, dict)) or value is None or isinstance(value, (str, dict)):
        return isinstance(value, type(expected)) and (not isinstance(expected, dict) or bool(value))
    if isinstance(expected, (tuple, list)) and not isinstance(expected[0] if expected else 0, (int, float)):
        return isinstance(value, (tuple, list)) and len(value) == len(expected)
    tensor = _tensor_of(value)
    return tensor is not None and tensor.shape == torch.as_tensor(expected).shape


def shown(value: Any) -> str:
    """A value in a line."""
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
    """Where two large tensors differ first; nothing where they are small, or no tensors."""
    try:
        x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (value, expected))
        if x.shape != y.shape or x.numel() <= LARGE or isinstance(expected, (int, float)):
            return ()
        close = torch.isclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
        return tuple(int(i) for i in (~close).nonzero()[0])
    except Exception:
        return ()


def beside(value: Any, expected: Any, at: tuple[int, ...] = ()) -> tuple[str, str]:
    """Both in a line each; of large tensors the entry at this place."""
    try:
        if at:
            yours, right = (shown(torch.as_tensor(v)[at]) for v in (value, expected))
            return f"{yours} at {list(at)}", f"{right} at {list(at)}"
    except Exception:
        pass
    return shown(value), shown(expected)


def given(function: Function, case: ExerciseCase, at: tuple[int, ...] = ()) -> str:
    """The arguments of a case in a line, by the names that a function has for them, so that one can redo it by hand;
    of large tensors what stands at this place. Nothing where the case's words say them all."""
    if case.spelled:
        return ""
    parts = []
    for name, value in zip(inspect.signature(function).parameters, case.arguments, strict=False):
        if isinstance(value, torch.Tensor) and value.numel() > LARGE and at and at[0] < len(value):
            name, value = f"{name}[{at[0]}]", value[at[0]]
        parts.append(f"{name} = {{{shown(value)}}}" if isinstance(value, dict) else f"{name} = {shown(value)}")
    return clean(", ".join(parts), 600)


def clean(text: Any, most: int = 300) -> str:
    """A text of a stranger's as one line without control characters, cut where it is long."""
    try:
        text = str(text)[: 4 * most]
    except BaseException as error:
        if isinstance(error, TooSlow):
            raise
        text = f"({type(error).__name__} while it was written)"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _key(key: Any) -> str:
    return clean(" ".join(map(str, key)) if isinstance(key, tuple) else key, 80)
