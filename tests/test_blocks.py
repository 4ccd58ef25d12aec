"""Block verification, enumerated: it is exact, it never keeps fewer, and for one token it is the rule of lesson 02."""

import math

import pytest
import torch

import specdec_ref as sd
from specdec_lab.teaching.blocks import block_verdict, enumerate_rounds, token_verdict
from specdec_ref.errors import SpecdecError


def tables(seed: int, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(2, size, size, generator=chance, dtype=torch.float64) * 1.5).softmax(-1)
    return p, q


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_both_are_exact_and_the_block_never_keeps_fewer(seed: int, k: int) -> None:
    p, q = tables(seed)
    mean_accepted = {}
    for block in (False, True):
        found, mean_accepted[block] = enumerate_rounds(p, q, k, block)
        assert len(found) == 3 ** (k + 1)
        for tokens, probability in found.items():
            steps = zip((0, *tokens), tokens, strict=False)
            assert probability == pytest.approx(math.prod(float(p[a, b]) for a, b in steps), abs=1e-12)
    assert mean_accepted[True] >= mean_accepted[False] - 1e-12
    if k == 1:
        assert (
            mean_accepted[True]
            == pytest.approx(mean_accepted[False])
            == pytest.approx(float(sd.acceptance_rate(p[0], q[0])))
        )
    else:
        assert mean_accepted[True] > mean_accepted[False] + 1e-4


def test_equal_models_keep_everything() -> None:
    p, _ = tables(1)
    for verdict in (token_verdict, block_verdict):
        assert [chance for _, chance, _ in verdict(p, p, (0, 1, 2))] == [0.0, 0.0, 0.0, 1.0]


def test_tokens_that_the_target_cannot_produce_are_not_kept() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    q = torch.full((2, 2), 0.5, dtype=torch.float64)
    for block in (False, True):
        found, _ = enumerate_rounds(p, q, 2, block)
        assert {tokens for tokens, share in found.items() if share > 0} == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("draft", "k", "says"), [(torch.eye(3), 2, "draft"), (torch.ones(2, 2), 2, "draft"), (torch.ones(3, 3), 5, "k=5")]
)
def test_refuses(draft: torch.Tensor, k: int, says: str) -> None:
    with pytest.raises(SpecdecError, match=says):
        enumerate_rounds(torch.ones(3, 3) / 3, draft, k, True)
