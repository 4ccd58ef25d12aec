"""The exception for wrong use, and the two type checks that most functions need."""

import math
from numbers import Integral, Real
from typing import TypeGuard


class SpecdecError(ValueError):
    """Wrong use. The message is one line with the argument, its value and the values it takes."""

    def __init__(self, message: str):
        super().__init__(
            " ".join(message.split())
        )  # the repr of a model or an array has many lines


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is a whole number, Python's or numpy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a number, infinity included; NaN, True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def one_line(error: Exception) -> str:
    """The message of another library's exception, shortened to be part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
