"""The promises of `cache`: whatever was written, rewound and dropped, a row holds exactly the tokens that are still
true.

The oracle is a list of vectors for every row, from which taken back tokens are really removed.
"""

import random

import pytest
import torch
from torch import Tensor

from specdec_ref import RewindableCache
from specdec_ref.cache import FIRST_SLOTS

HEADS, WIDTH, LAYERS = 2, 4, 2


def write(cache: RewindableCache, n: int) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """One step of a model of two layers: random keys [B, H, n, D]; the values, and the second layer, follow from them.

    Returns the keys, positions [B, n], mask [B, n, W] and what attention got to see in each layer.
    """
    positions, visible = cache.advance(n)
    keys = torch.randn(cache.batch, HEADS, n, WIDTH)
    seen = [cache.update(keys + layer, keys + layer + 10, layer) for layer in range(LAYERS)]
    window = visible.shape[-1]
    return keys, positions.expand(cache.batch, n), visible.expand(cache.batch, 1, n, window)[:, 0], seen


def assert_holds(cache: RewindableCache, rows: list[list[Tensor]]) -> None:
    assert cache.lengths == [len(row) for row in rows]
    for r, row in enumerate(rows):
        for layer, (keys, values) in cache.row(r).items():
            expected = torch.stack(row, 1) if row else torch.empty(HEADS, 0, WIDTH)
            assert torch.equal(keys, expected + layer)
            assert torch.equal(values, expected + layer + 10)


@pytest.mark.parametrize("first", [1, 8, 1024], ids="{} slots at first".format)
@pytest.mark.parametrize("seed", range(10))
def test_after_any_steps_rewinds_and_drops_a_row_holds_what_was_not_taken_back(
    seed: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec_ref.cache.FIRST_SLOTS", first)
    rng, capacity = random.Random(seed), 40
    cache, rows = RewindableCache(batch=4, capacity=capacity), [[] for _ in range(4)]
    for _ in range(40):
        action = rng.choice(["step", "step", "step", "rewind", "keep"])
        n = rng.randint(1, 5)
        if action == "step" and cache.get_seq_length() + n <= capacity:
            keys, *_ = write(cache, n)
            for r, row in enumerate(rows):
                row += keys[r].unbind(1)
        elif action == "rewind":
            rows = [row[: max(0, len(row) - rng.randint(0, 4))] for row in rows]
            cache.rewind([len(row) for row in rows])
        elif action == "keep" and len(rows) > 2 and cache.get_seq_length():
            stay = rng.sample(range(len(rows)), len(rows) - 1)
            rows = [rows[r] for r in stay]
            cache.keep(stay)
        assert_holds(cache, rows)


@pytest.mark.parametrize("lengths", [[7], [7, 7], [7, 3, 0]], ids=["one row", "in step", "ragged"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_query_sees_the_tokens_of_its_row_up_to_itself_and_nothing_else(lengths: list[int], n: int) -> None:
    cache = RewindableCache(len(lengths), 20)
    before, *_ = write(cache, 9)
    cache.rewind(lengths)
    keys, positions, visible, seen = write(cache, n)
    for r, length in enumerate(lengths):
        whole = torch.cat([before[r, :, :length], keys[r]], 1)
        assert positions[r].tolist() == list(range(length, length + n))
        for i in range(n):
            for layer, (all_keys, all_values) in enumerate(seen):
                assert torch.equal(all_keys[r][:, visible[r, i]], whole[:, : length + i + 1] + layer)
                assert torch.equal(all_values[r][:, visible[r, i]], whole[:, : length + i + 1] + layer + 10)


def test_the_last_slot_can_be_written_and_one_more_raises() -> None:
    cache = RewindableCache(2, 8)
    write(cache, 6)
    cache.rewind([6, 2])
    write(cache, 2)
    with pytest.raises(AssertionError, match="cache for 8"):
        cache.advance(1)


def test_only_tokens_that_are_there_can_be_taken_back() -> None:
    cache = RewindableCache(2, 8)
    write(cache, 4)
    with pytest.raises(AssertionError, match="rewind forward"):
        cache.rewind([3, 5])


def test_memory_is_allocated_once_for_the_whole_capacity() -> None:
    cache = RewindableCache(3, 50)
    assert cache.bytes == 0
    sizes = set()
    for _ in range(4):
        write(cache, 5)
        sizes.add(cache.bytes)
    assert sizes == {2 * LAYERS * 3 * HEADS * 50 * WIDTH * 4}  # keys and values, float32


def test_the_number_type_is_that_of_the_model() -> None:
    cache = RewindableCache(1, 4)
    cache.advance(1)
    states = torch.ones(1, HEADS, 1, WIDTH, dtype=torch.bfloat16)
    assert all(seen.dtype == torch.bfloat16 for seen in cache.update(states, states, 0))


def test_a_large_capacity_costs_no_memory_until_it_is_used() -> None:
    cache = RewindableCache(batch=1, capacity=10**7)
    write(cache, 3)
    small = cache.bytes
    assert small == LAYERS * 2 * HEADS * WIDTH * 4 * FIRST_SLOTS
    for _ in range(1 + FIRST_SLOTS // 100):
        write(cache, 100)
    assert cache.bytes == 2 * small
