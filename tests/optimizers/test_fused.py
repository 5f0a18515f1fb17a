"""The fused step against the plain one, for each optimizer of conf/, in each layout, before and after a resume."""

from __future__ import annotations

import io
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from conftest import OPTIONS, RGB
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from gradflow.config import build
from gradflow.models.cnn import CNN
from gradflow.optimizers.groups import build_optimizer
from gradflow.optimizers.several import Several, difference
from gradflow.runs.errors import UserError

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STEPS = 4


def network(layout: str) -> CNN:
    torch.manual_seed(0)
    return CNN(RGB, channels=(4, 6), dense=5).to(memory_format=LAYOUTS[layout])


def step(model: nn.Module, optimizer: Optimizer, number: int, strides: str) -> None:
    """Step with random gradients in the given layout; the first weights have none at the first step."""
    generator = torch.Generator().manual_seed(number)
    for place, p in enumerate(model.parameters()):
        gradient = torch.randn(p.shape, generator=generator)
        layout = LAYOUTS[strides] if p.ndim == 4 else torch.contiguous_format
        p.grad = gradient.contiguous(memory_format=layout) if number or place else None
    optimizer.step()


def saved(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file)


def trained(make: Any, layout: str, strides: str, resumed_from: str | None = None) -> list[Tensor]:
    """Return the weights after some steps, of which the first half may be made in another layout."""
    model = network(resumed_from or layout)
    optimizer = build_optimizer(make, model)
    for number in range(STEPS):
        if resumed_from and number == STEPS // 2:
            weights, state = saved((model.state_dict(), optimizer.state_dict()))
            model = network(layout)
            model.load_state_dict(weights)
            optimizer = build_optimizer(make, model)
            optimizer.load_state_dict(state)
        step(model, optimizer, number, strides)
    return [p.detach() for p in model.parameters()]


def fused(optimizer: Optimizer) -> set[Any]:
    return {group["fused"] for group in optimizer.param_groups if "fused" in group}


@pytest.fixture(params=OPTIONS["optimizer"])
def make(request, composed) -> Any:
    return build.make("optimizer", composed("model=cnn", f"optimizer={request.param}").optimizer)


def test_each_option_steps_as_the_plain_one(make):
    """In whichever layout weights, gradients and a checkpoint are; and resumed in the same, to the bit."""
    values = {**make.keywords, **({"fused": False} if "fused" in make.keywords else {})}
    reference = trained(partial(make.func, **values), "contiguous", "contiguous")
    for layout, strides, resumed_from in itertools.product(LAYOUTS, LAYOUTS, [None, *LAYOUTS]):
        weights = trained(make, layout, strides, resumed_from)
        torch.testing.assert_close(weights, reference, atol=1e-5, rtol=1e-5)
        if layout == resumed_from:
            assert all(map(torch.equal, weights, trained(make, layout, strides)))


def test_auto_is_true_where_the_option_names_it(make):
    model = network("channels_last")
    assert fused(build_optimizer(make, model)) <= ({True} if make.keywords.get("fused") == "auto" else {None})
    assert not any(fused(build_optimizer(make, model, scaled=True)))


@pytest.mark.parametrize("values", [{"foreach": True}, {"differentiable": True}, {"dampening": 0.1}])
def test_auto_is_false_beside_what_a_fused_step_can_not_do(values):
    cls = SGD if "dampening" in values else Adam
    optimizer = build_optimizer(partial(cls, lr=0.1, fused="auto", **values), network("contiguous"))
    assert fused(optimizer) == {False}


def test_auto_is_false_for_weights_that_are_no_block_of_memory():
    """And for those of which only some rows have a gradient."""
    sliced, rows = nn.Linear(4, 4), nn.Embedding(4, 4, sparse=True)
    sliced.weight = nn.Parameter(torch.zeros(4, 8)[:, ::2])
    for model in (sliced, rows):
        assert fused(build_optimizer(partial(SGD, lr=0.1, fused="auto"), model)) == {False}
    rows(torch.tensor([1])).sum().backward()
    build_optimizer(partial(SGD, lr=0.1, fused="auto"), rows).step()


def test_an_unknown_value_is_rejected():
    with pytest.raises(UserError, match=r"optimizer\.fused=maybe: expected auto, true or false"):
        build_optimizer(partial(SGD, lr=0.1, fused="maybe"), network("contiguous"))


def test_a_resumed_optimizer_steps_as_it_was_built():
    """Its checkpoint may come from another machine, or from 16-mixed precision."""
    roles = {"vectors": {"weight_decay": 0.1}, "hidden": partial(SGD, lr=0.1, momentum=0.9, fused="auto")}
    for before, now in ((True, False), (False, True)):
        old, new = (
            build_optimizer(partial(Adam, lr=0.1, fused="auto", **roles), network("contiguous"), scaled=not one)
            for one in (before, now)
        )
        assert isinstance(new, Several)
        assert difference(old.state_dict()["param_groups"], new) is None
        new.load_state_dict(old.state_dict())
        assert fused(new) == {now}


def test_gradients_of_autograd_lie_as_their_weights_and_one_that_is_assigned_is_laid_out_so():
    model = network("channels_last")
    optimizer = build_optimizer(partial(SGD, lr=0.1, fused="auto"), model)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad.stride() == p.stride() for p in model.parameters())
    before = [p.detach() - 0.1 for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.tensor(1.0).expand(p.shape)  # one number, which the fused step would read past
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in model.parameters()], before)
