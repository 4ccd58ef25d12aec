"""Muon in float32 is the optimizer of PyTorch, which computes in bfloat16."""

from copy import deepcopy

import pytest
import torch

from specdec_lab.training.muon import Muon, orthogonalized


def optimizers(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[Muon, torch.optim.Muon]:
    """Our optimizer and PyTorch's, with the same settings."""
    return (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_it_goes_where_the_muon_of_pytorch_goes(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    both = optimizers(ours, theirs)
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in both:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_the_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_it_continues_a_checkpoint_of_the_muon_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(3)
    theirs = torch.randn(16, 24, generator=generator).requires_grad_()
    _, before = optimizers(theirs.detach().clone(), theirs)
    theirs.grad = torch.randn(16, 24, generator=generator)
    before.step()
    ours = theirs.detach().clone().requires_grad_()
    after, _ = optimizers(ours, theirs)
    after.load_state_dict(deepcopy(before.state_dict()))  # else both share one buffer
    start = ours.detach().clone()
    gradient = torch.randn(16, 24, generator=generator)
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    after.step()
    before.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved
