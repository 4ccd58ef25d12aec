"""vLLM's schedule by batch size, read as vLLM reads it, and followed by this project's own loop."""

from collections.abc import Sequence

from specdec_ref.decoding import Round
from specdec_ref.errors import SpecdecError, is_whole

Schedule = Sequence[Sequence[int]]
"""Rows [first batch size, last batch size, k], both sizes inclusive."""


def k_at(schedule: Schedule, batch: int, most: int) -> int:
    """The k that vLLM 0.33 uses at a batch size.

    A batch size in a gap between two rows, or above the last row, gets the k of the row before it. A k above
    `num_speculative_tokens` is silently clipped to it.

    Args:
        schedule: rows, in order of their batch sizes; the first begins at 1.
        batch: number of running requests, ≥ 1.
        most: `num_speculative_tokens`.

    Raises:
        SpecdecError: the batch size is below 1, or no row begins at or below it.
    """
    if not is_whole(batch) or batch < 1:
        raise SpecdecError(f"batch={batch!r:.80}: takes a whole number ≥ 1")
    begun = [row for row in schedule if row[0] <= batch]
    if not begun:
        raise SpecdecError(f"schedule={schedule!r:.80}: takes a first row that begins at batch size 1")
    return min(int(begun[-1][2]), most)


class ScheduleController:
    """Chooses k by the number of active rows, as a vLLM server does by the number of running requests.

    Args:
        schedule: rows [first batch size, last batch size, k].
        batch: number of rows at the beginning.

    Raises:
        SpecdecError: the batch size is not one.
    """

    def __init__(self, schedule: Schedule, batch: int):
        self.max_k = max(int(row[2]) for row in schedule)
        self._schedule, self._batch = schedule, batch
        self.next_k()  # raises now if the batch size is wrong

    def next_k(self) -> int:
        return k_at(self._schedule, self._batch, self.max_k)

    def observe(self, rounds: list[Round]) -> None:
        """Count the rows of the last round, so that k follows one round after a row finished."""
        self._batch = len(rounds)
