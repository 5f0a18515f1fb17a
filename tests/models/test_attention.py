"""Attention beside a slow reference, positions, and the transformers that are built of them. In float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import COPY, GREY, MASKS, NUMBERS, RGB, SYMBOLS, TEXT, inputs
from torch import nn

from gradflow.models import later_inputs
from gradflow.models.attention import Attention, Gated, Positions, Readout
from gradflow.models.init import uninitialized
from gradflow.models.transformer import Transformer
from gradflow.models.vit import Patches, ViT
from gradflow.runs.errors import UserError

WIDTH, HEADS, STEPS = 12, 3, 7
LONG = replace(TEXT, shape=(40,))


pytestmark = pytest.mark.usefixtures("exact")


def turned(x, position):
    """A vector of one head, turned pair by pair: complex numbers times e^(i position · 10000^(-2k/d))."""
    half = len(x) // 2
    pairs = torch.complex(x[:half], x[half:])
    angle = torch.tensor([position * 10_000 ** (-2 * k / len(x)) for k in range(half)])
    pairs = pairs * torch.exp(1j * angle)
    return torch.cat([pairs.real, pairs.imag])


def by_hand(attention, x, causal, rotary):
    """One sample, head by head, step by step, number by number."""
    size = WIDTH // HEADS
    query, key, value = (layer(x) for layer in (attention.query, attention.key, attention.value))
    y = torch.zeros_like(x)
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        for step in range(STEPS):
            weights = []
            for other in range(step + 1 if causal else STEPS):
                q, k = query[step, own], key[other, own]
                if rotary:
                    q, k = turned(q, step), turned(k, other)
                weights.append(math.exp(sum(a * b for a, b in zip(q.tolist(), k.tolist(), strict=True)) / size**0.5))
            for other, weight in enumerate(weights):
                y[step, own] += weight / sum(weights) * value[other, own]
    return attention.output(y)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention_by_hand(causal, rotary):
    attention, x = Attention(WIDTH, HEADS, causal, STEPS if rotary else 0), torch.randn(2, STEPS, WIDTH)
    with torch.no_grad():
        expected = torch.stack([by_hand(attention, one, causal, rotary) for one in x])
        torch.testing.assert_close(attention(x), expected)
        query, key, value = attention.in_heads(x)
        rows = attention.rows(query, key)
    torch.testing.assert_close(attention.output((rows @ value).transpose(1, 2).flatten(2)), expected)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, HEADS, STEPS))


def test_rotary_scores_depend_on_distances_alone():
    attention = Attention(WIDTH, HEADS, rotary=50)
    query, key = torch.randn(2, 1, HEADS, 1, WIDTH // HEADS)
    query, key = (attention._turned(one.expand(-1, -1, 50, -1)) for one in (query, key))
    scores = query @ key.mT
    for distance in (-20, -1, 0, 5, 31):
        diagonal = scores.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal))
    assert scores.diagonal(1, -2, -1)[0, 0, 0] != pytest.approx(scores.diagonal(5, -2, -1)[0, 0, 0].item(), rel=0.01)


def test_sines_are_the_published_ones():
    """sin(t / 10000^(2i/d)) and cos(t / 10000^(2i/d)) in turn (Vaswani et al. 2017, section 3.5)."""
    x = torch.randn(2, 9, 8)
    for t, vector in enumerate((Positions("sinusoidal", 9, 8)(x) - x)[0]):
        expected = [f(t / 10_000 ** (2 * i / 8)) for i in range(4) for f in (math.sin, math.cos)]
        torch.testing.assert_close(vector, torch.tensor(expected))


def test_swiglu_by_hand():
    gated, x = Gated(6, 16, "silu"), torch.randn(5, 6)
    a, b = gated.gate(x), gated.up(x)
    torch.testing.assert_close(gated(x), a / (1 + (-a).exp()) * b)


def test_patches_are_squares_row_by_row():
    patches, x = Patches(RGB, 5, 8), torch.randn(2, 3, 32, 32)
    weight = patches.conv.weight
    assert patches.length == 16
    for place, found in enumerate(patches(x)[1]):
        row, column = 8 * (place // 4), 8 * (place % 4)
        square = x[1, :, row : row + 8, column : column + 8]
        torch.testing.assert_close(found, (weight * square).sum((1, 2, 3)) + patches.conv.bias)


def test_what_is_read():
    x = torch.randn(2, 4, 3)
    assert torch.equal(Readout(last=True)(x), x[:, 3])
    torch.testing.assert_close(Readout(last=False)(x), sum(x[:, step] for step in range(4)) / 4)


# -- the stack ---------------------------------------------------------------------------------------------------------

VARIANTS = [
    {"norm_place": "post"},
    {"norm": "none"},
    {"positions": "sinusoidal"},
    {"positions": "rotary"},
    {"gated": True, "activation": "silu"},
    {"branch_scale": "layerscale"},
    {"branch_scale": "depth", "causal": True},
    {"branch_scale": "deepnorm", "norm_place": "post"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("spec", [NUMBERS, SYMBOLS], ids=["numbers", "symbols"])
def test_every_parameter_of_a_variant_has_a_gradient_and_an_initial_value_of_its_own(spec, variant):
    model = Transformer(spec, depth=2, width=16, heads=2, init="he", **variant)
    assert uninitialized(model) == []
    x, target = inputs(spec, batch=8)
    model.loss(model(x), target).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-13] == []


def test_a_pre_ln_block_and_a_post_ln_block_by_hand():
    x = torch.randn(2, STEPS, WIDTH)
    for place in ("pre", "post"):
        block = Transformer(NUMBERS, depth=1, width=WIDTH, heads=HEADS, norm_place=place).net.block1
        h = x
        for part in block:
            f = part.heads if hasattr(part, "heads") else nn.Sequential(part.up, part.act, part.down)
            h = h + f(part.norm(h)) if place == "pre" else part.norm(h + f(h))
        torch.testing.assert_close(block(x), h)


def test_the_stack_ends_as_it_should():
    names = {
        place: list(dict(Transformer(NUMBERS, norm_place=place).net.named_children())) for place in ("pre", "post")
    }
    assert names["pre"] == ["embed", "positions", *(f"block{n}" for n in (1, 2, 3)), "norm", "readout", "head"]
    assert names["post"] == [name for name in names["pre"] if name != "norm"]
    assert "readout" not in dict(Transformer(COPY).net.named_children())
    assert "positions" not in dict(Transformer(NUMBERS, positions="rotary").net.named_children())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_no_later_input_leaks_where_the_task_forbids_it(positions):
    later_inputs.check(Transformer(LONG, depth=2, width=16, heads=2, positions=positions), LONG)
    with pytest.raises(UserError, match="its output before step 2 changes"):
        later_inputs.check(Transformer(LONG, depth=2, width=16, heads=2, positions=positions, causal=False), LONG)


def test_the_task_says_what_steps_may_see():
    def earliest(model):
        """The first step whose output changes with the last input."""
        x = inputs(model.spec, batch=1)[0]
        other = x.clone()
        other[:, -1] = (other[:, -1] + 1) % 8
        return ((model(x) - model(other)).abs().amax((0, 2)) > 1e-9).nonzero().min().item()

    assert earliest(Transformer(TEXT)) == earliest(Transformer(COPY, causal=True)) == 11
    assert earliest(Transformer(COPY)) == 0
    assert Transformer(SYMBOLS, causal=True).net.readout.last
    assert not Transformer(SYMBOLS).net.readout.last


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_order_counts_with_every_kind_of_positions(positions):
    model, x = Transformer(SYMBOLS, positions=positions), inputs(SYMBOLS)[0]
    assert (model(x) - model(x.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("torch", {"square": 1 / 3, "up": 1 / 3, "down": 1 / 3}),
        ("he", {"square": 2.0, "up": 2.0, "down": 2.0}),
        ("glorot", {"square": 1.0, "up": 2 / 5, "down": 8 / 5}),
        ("lecun", {"square": 1.0, "up": 1.0, "down": 1.0}),
        ("auto", {"square": 2.0, "up": 2.0, "down": 2.0}),
        ("orthogonal", {"square": 2.0, "up": 0.5, "down": 2.0}),
        ({"name": "mean_field", "sigma_w": 1.3}, {"square": 1.69, "up": 1.69, "down": 1.69}),
    ],
    ids=str,
)
def test_each_projection_is_initialised_by_itself_with_the_variance_of_its_fans(init, expected):
    """fan_in · Var W; in one stacked matrix of three, Glorot's would be half of it."""
    model = Transformer(SYMBOLS, depth=1, width=128, heads=4, init=init)
    attention, feedforward = model.net.block1.attention.heads, model.net.block1.feedforward
    square = ["query", "key", "value", "output"]
    layers = {name: getattr(attention, name) for name in square} | {n: getattr(feedforward, n) for n in ("up", "down")}
    for name, layer in layers.items():
        found = layer.in_features * layer.weight.var().item()
        assert found == pytest.approx(expected["square" if name in square else name], rel=0.05), name
        if init == "orthogonal" and name in square:
            torch.testing.assert_close(layer.weight @ layer.weight.T, 2 * torch.eye(128))


@pytest.mark.parametrize("branch_scale", [0, "zero"])
def test_branches_at_zero_are_the_identity_at_first(branch_scale):
    model = Transformer(SYMBOLS, branch_scale=branch_scale)
    seen = []
    for name in model.trunk:
        model.net.get_submodule(name).register_forward_hook(lambda part, x, h: seen.append((x[0], h)))
    model(inputs(SYMBOLS)[0])
    assert all(torch.equal(x, h) for x, h in seen)


def gradient_of_last_feedforward(depth, place):
    """Mean over samples of ‖dL/dW‖ of the last block; a sum over tokens or samples would show how alike those are, too.

    With He's weights the stream soon outgrows the embedding.
    """
    norms, spec = [], replace(SYMBOLS, shape=(4,))
    for seed in range(8):
        torch.manual_seed(seed)
        model = Transformer(spec, depth=depth, width=32, heads=2, init="he", norm_place=place, causal=True)
        x, target = inputs(spec, batch=1)
        model.loss(model(x), target).backward()
        norms.append(model.net.get_submodule(f"block{depth}.feedforward.down").weight.grad.norm())
    return torch.stack(norms).mean().item()


@pytest.mark.parametrize(("place", "expected"), [("pre", -0.5), ("post", 0.0)])
def test_the_last_gradient_falls_as_one_over_the_root_of_depth_with_pre_ln_alone(place, expected):
    """Xiong et al. 2020, theorem 1: O(d √(ln d / L)) against O(d √ln d)."""
    few, many = (gradient_of_last_feedforward(depth, place) for depth in (2, 24))
    assert math.log(many / few) / math.log(24 / 2) == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ({"heads": 5}, r"model\.heads=5: expected a divisor of model\.width=64"),
        ({"heads": 64, "positions": "rotary"}, r"model\.positions=rotary: .*; expected model\.width in steps of 128"),
        ({"width": 5, "heads": 1, "positions": "sinusoidal"}, r"model\.positions=sinusoidal: .* in steps of 2"),
        ({"positions": "relative"}, r"model\.positions=relative: expected one of learned, sinusoidal, rotary"),
        ({"norm": "batch"}, r"model\.norm=batch: expected one of none, layer"),
        ({"norm": "none", "norm_place": "post"}, r"model\.norm_place=post: no norm is there to place"),
        ({"depth": 0}, r"model\.depth=0: expected 1 or more"),
        ({"causal": "maybe"}, r"model\.causal=maybe: expected one of None, True, False"),
    ],
    ids=str,
)
def test_an_impossible_value_is_rejected_by_key(words, answer):
    with pytest.raises(UserError, match=answer):
        Transformer(NUMBERS, **words)


def test_an_image_that_patches_do_not_fill_is_rejected():
    with pytest.raises(UserError, match=r"model\.patch=5: expected a divisor of the images' 28×28 pixels"):
        ViT(GREY, patch=5)
    with pytest.raises(UserError, match="ViT has an output for each sample, not for each pixel"):
        ViT(MASKS)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_sixteen_bits_change_little_and_leave_types_alone(positions):
    torch.set_default_dtype(torch.float32)
    model = Transformer(SYMBOLS, positions=positions, branch_scale="depth")
    x = inputs(SYMBOLS)[0]
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    half = model.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert F.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_compiling_changes_nothing():
    torch.set_default_dtype(torch.float32)
    model, x = Transformer(TEXT, positions="rotary"), inputs(TEXT)[0]
    expected = model(x)
    model.compile()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
