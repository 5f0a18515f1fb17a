"""Lion against the same arithmetic with one number at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradflow.optimizers.lion import Lion


def test_each_weight_moves_as_by_hand():
    """Over some steps in which the sign of the momentum is at times another than that of the gradient."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(3, 4))
    weights, momenta = p.flatten().tolist(), [0.0] * 12
    optimizer = Lion([p], lr=0.1, betas=(0.8, 0.95), weight_decay=0.5)
    for _ in range(6):
        p.grad = torch.randn(3, 4)
        before = p.detach().clone()
        optimizer.step()
        for i, g in enumerate(p.grad.flatten().tolist()):
            mixed = 0.8 * momenta[i] + 0.2 * g
            weights[i] = (1 - 0.1 * 0.5) * weights[i] - 0.1 * (1 if mixed > 0 else -1)
            momenta[i] = 0.95 * momenta[i] + 0.05 * g
        torch.testing.assert_close(p.detach().flatten(), torch.tensor(weights))
        torch.testing.assert_close((p.detach() - 0.95 * before).abs(), torch.full((3, 4), 0.1))
    torch.testing.assert_close(optimizer.state[p]["momentum"].flatten(), torch.tensor(momenta))


def test_without_a_gradient_nothing_moves():
    still, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    zero.grad = torch.zeros(2)
    Lion([still, zero], lr=0.1).step()
    assert still.tolist() == zero.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"weight_decay": -1}, {"betas": (0.9, 1.0)}, {"lr": float("nan")}])
def test_what_it_can_not_take(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Invalid {name}"):
        Lion([nn.Parameter(torch.ones(1))], **wrong)
