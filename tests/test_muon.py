"""Muon in float32 is the optimizer of PyTorch, which computes in bfloat16."""

import pytest
import torch

from specdec_lab.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_it_goes_where_the_muon_of_pytorch_goes(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    both = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in both:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # bfloat16 has 8 bits
    for optimizer, other in (both, both[::-1]):
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state_dict()["state"][0].keys() == other.state_dict()["state"][0].keys()


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_the_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3
