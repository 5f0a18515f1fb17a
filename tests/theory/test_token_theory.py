"""Theory of transformers beside the gradient of real ones, measured by one backward pass in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT, inputs
from torch import nn

from gradflow.models.attention import Attention
from gradflow.models.transformer import Transformer
from gradflow.models.vit import ViT
from gradflow.spec import Spec
from gradflow.theory import attention as theory
from gradflow.theory.chain import predict
from gradflow.theory.prediction import lines

IMAGE = Spec("image", (3, 16, 16), "classification", outputs=10)
SYMBOLS = Spec("sequence", (16,), "classification", outputs=4, tokens=8)


def measured(model, x):
    """ln of the factors of ‖dL/dh‖ between neighbours of the trunk."""
    kept = {}
    for name in model.trunk:
        model.net.get_submodule(name).register_forward_hook(
            lambda block, inputs, h, name=name: kept.update({name: h}) or h.retain_grad()
        )
    output = model(x)
    F.cross_entropy(output, torch.arange(len(x)) % output.shape[1]).backward()
    norms = torch.stack([kept[name].grad.norm() for name in model.trunk]).log()
    return norms[:-1] - norms[1:]


def compared(spec, seeds=2, batch=8, **settings):
    """ln of the factors a block, measured and predicted, as means over seeds."""
    pairs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = (ViT if spec.kind == "image" else Transformer)(spec, **settings).double()
        x = inputs(spec, batch)[0]
        x = x.double() if x.is_floating_point() else x
        prediction = predict(model.net, model.trunk, x)
        assert prediction.no_prediction == ""
        pairs.append((measured(model, x), torch.tensor(prediction.factors, dtype=torch.float64).log()))
    return (torch.stack(each).mean(0) for each in zip(*pairs, strict=True))


def off(seen, said):
    """By how much the factor a block is off."""
    return abs(math.expm1((seen - said).mean().item()))


def check_pre_ln(depth, spec, tolerance, **settings):
    seen, said = compared(spec, depth=depth, width=64, **settings)
    assert off(seen, said) < tolerance
    assert abs((seen - said).sum().item()) < math.log(1.4)  # of the whole profile
    assert said.sum() > 0.2  # and it is no flat line: the gradient grows on its way to the first block


@pytest.mark.parametrize("depth", [2, 12])
def test_pre_ln_within_3_percent_a_block(depth):
    check_pre_ln(depth, IMAGE, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [IMAGE, SYMBOLS], ids=["patches", "symbols"])
@pytest.mark.parametrize("init", ["he", "glorot", "orthogonal"])
@pytest.mark.parametrize("depth", [2, 4, 8, 16, 32])
def test_pre_ln_within_6_percent_a_block_at_any_depth(depth, init, spec):
    """Of a single block: over many the scatter averages out. Symbols repeat within a sample, unlike Gaussian tokens."""
    check_pre_ln(depth, spec, 0.06 if depth < 8 else 0.03, init=init, seeds=4)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"norm_place": "post"}, 0.06),
        ({"norm_place": "post", "branch_scale": "deepnorm", "init": "glorot"}, 0.02),
        ({"positions": "rotary"}, 0.03),
        ({"gated": True, "activation": "silu"}, 0.03),
        ({"branch_scale": "depth"}, 0.02),
        ({"dropout": 0.3}, 0.03),
    ],
    ids=str,
)
def test_variants(settings, tolerance):
    seen, said = compared(IMAGE, depth=6, width=64, **settings)
    assert off(seen, said) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("spec", [IMAGE, SYMBOLS], ids=["patches", "symbols"])
@pytest.mark.parametrize("init", ["he", "glorot"])
@pytest.mark.parametrize("depth", [2, 4, 8, 16, 32])
def test_post_ln_within_6_percent_a_block_at_any_depth(depth, init, spec):
    """Its blocks pull tokens and samples together, which scatters more from draw to draw."""
    seen, said = compared(spec, depth=depth, width=128, init=init, norm_place="post", seeds=4)
    assert off(seen, said) < 0.06


@pytest.mark.parametrize("branch_scale", [0, "zero"])
def test_branches_at_zero_pass_the_gradient_as_it_is(branch_scale):
    seen, said = compared(SYMBOLS, depth=3, width=16, branch_scale=branch_scale, seeds=1)
    assert seen.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert said.tolist() == pytest.approx([0, 0], abs=1e-12)


def attention_without_scores(count):
    """Queries at zero: every token pays the same attention to all."""
    layer = Attention(64, 4).double()
    with torch.no_grad():
        layer.query.weight.zero_(), layer.query.bias.zero_()
        for part in (layer.value, layer.output):
            nn.init.orthogonal_(part.weight)
            part.bias.zero_()
    return theory.through(layer, theory.Tokens(1.0, 0.25, count))


def test_uniform_attention_averages():
    """q' = p' = q/T + (1 − 1/T) p, and ‖δ‖² of unrelated gradients falls to 1/T, of equal ones not at all."""
    signal, back = attention_without_scores(10)
    assert (signal.square, signal.product) == pytest.approx((0.325, 0.325), rel=0.01)
    assert (back @ torch.tensor([1.0, 0.0]).double())[0].item() == pytest.approx(0.1, rel=0.01)
    assert (back @ torch.tensor([1.0, 9.0]).double()).tolist() == pytest.approx([1, 9], rel=0.01)


def test_what_attention_does_to_the_signal_and_to_both_kinds_of_gradient():
    """Every entry of the map beside a measurement: Gaussian tokens of which a quarter is common, on random weights."""
    torch.manual_seed(0)
    width, count, samples = 256, 12, 24
    layer = Attention(width, 4).double()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=width**-0.5) if name.endswith("weight") else nn.init.zeros_(parameter)
    x = 0.5 * torch.randn(samples, 1, width) + 0.75**0.5 * torch.randn(samples, count, width)
    x = x.double().requires_grad_()
    signal, back = theory.through(layer, theory.Tokens(1.0, 0.25, count))
    y = layer(x)
    own, whole = y.square().mean(), y.mean(1).square().mean()
    assert signal.square == pytest.approx(own.item(), rel=0.05)
    assert signal.product == pytest.approx(((whole - own / count) * count / (count - 1)).item(), rel=0.05)
    for gradient in (torch.randn_like(y), torch.randn(samples, 1, width).double().expand_as(y)):
        (before,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
        size = [(g.square().sum() / samples, g.sum(1).square().sum() / samples) for g in (gradient, before)]
        (g0, all0), (g1, all1) = size
        said = back @ torch.stack([g0, all0 - g0])
        assert said[0].item() == pytest.approx(g1.item(), rel=0.08)
        assert said[1].item() == pytest.approx((all1 - g1).item(), abs=0.08 * max(g1, all1).item())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: Transformer(TEXT),
            "each token has an output of its own, and how alike their gradients are depends on",
        ),
        (lambda: Transformer(SYMBOLS, norm="none"), "no theory for attention without a norm: its scores grow"),
    ],
)
def test_what_is_unknown_is_said_in_one_line(model, why):
    model = model()
    found = lines(model, model.net, model.trunk, inputs(model.spec, 4)[0])
    assert found["no_prediction"].startswith(why)
    assert "\n" not in found["no_prediction"]
    assert found["gradient"][:-1] == [None, None]


def test_a_part_that_theory_does_not_know_is_named():
    model = ViT(IMAGE, depth=2, width=16)
    model.net.block2.append(nn.Softmax(-1))
    assert predict(model.net, model.trunk, torch.randn(2, 3, 16, 16)).no_prediction == (
        "no theory for Softmax beside attention"
    )
