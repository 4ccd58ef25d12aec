"""A schedule by batch size: the k that vLLM uses at each size, and the same in this project's own loop."""

import pytest

import specdec_ref as sd
from specdec_lab.serving.schedule import ScheduleController, k_at

SCHEDULE = [[1, 4, 4], [5, 16, 2], [33, 256, 0]]


@pytest.mark.parametrize(
    ("batch", "k"),
    [(1, 4), (4, 4), (5, 2), (16, 2), (17, 2), (32, 2), (33, 0), (256, 0), (1000, 0)],
)
def test_a_gap_and_what_lies_above_the_last_row_keep_the_k_before(batch: int, k: int) -> None:
    assert k_at(SCHEDULE, batch, most=4) == k


def test_a_larger_k_than_the_most_is_clipped() -> None:
    assert k_at([[1, 8, 6]], 2, most=4) == 4


def test_bad_sizes_and_schedules_are_named() -> None:
    with pytest.raises(sd.SpecdecError, match="batch=0"):
        k_at(SCHEDULE, 0, most=4)
    with pytest.raises(sd.SpecdecError, match="begins at batch size 1"):
        k_at([[2, 4, 1]], 1, most=4)
    with pytest.raises(sd.SpecdecError, match="batch=0"):
        ScheduleController(SCHEDULE, 0)
