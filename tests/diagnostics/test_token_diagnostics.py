"""Diagnostics of attention beside slow references; the pass over held-out samples leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import POINTS, SYMBOLS, TEXT, inputs
from torch import nn

from gradflow.diagnostics.attention_entropy import AttentionEntropy, entropy
from gradflow.diagnostics.diagnostic import Step
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.query_gradients import QueryGradients
from gradflow.diagnostics.token_similarity import TokenSimilarity
from gradflow.models.attention import Attention
from gradflow.models.mlp import MLP
from gradflow.models.transformer import Transformer
from gradflow.runs.errors import UserError

ALL = (TokenSimilarity, AttentionEntropy, QueryGradients)


def small(spec=SYMBOLS, **settings):
    torch.manual_seed(0)
    return Transformer(spec, depth=2, width=16, heads=2, **settings)


def measured(kind, model, x):
    diagnostic, known = kind(), layers(model)
    layout = diagnostic.start(model, known)
    return layout.columns, diagnostic.measure(Step(0, known, inputs=x))


def test_similarity_of_tokens_is_the_mean_cosine_of_pairs():
    model, x = small(), inputs(SYMBOLS, 5)[0]
    columns, found = measured(TokenSimilarity, model, x)
    assert columns == ["block1", "block2"]
    h = model.net.positions(model.net.embed(x))
    for name, number in zip(columns, found, strict=True):
        h = model.net.get_submodule(name)(h)
        pairs = [(one[s], one[t]) for one in h for s in range(12) for t in range(12) if s != t]
        expected = sum(torch.dot(a, b) / a.norm() / b.norm() for a, b in pairs) / len(pairs)
        assert number.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_entropy_by_hand_and_at_its_ends(causal):
    layer, x = Attention(8, 2, causal), torch.randn(3, 6, 8)
    query, key, _ = layer.in_heads(x)
    total = []
    for row in layer.rows(query, key).flatten(0, 1):
        for step, weights in enumerate(row, 1):
            seen = step if causal else 6
            if seen > 1:
                total.append(-sum(p * math.log(p) for p in weights.tolist() if p) / math.log(seen))
    assert entropy(layer, x).item() == pytest.approx(sum(total) / len(total), rel=1e-5)
    with torch.no_grad():
        layer.query.weight.mul_(1e4)
        assert entropy(layer, x).item() < 0.05
        layer.query.weight.zero_(), layer.query.bias.zero_()
        assert entropy(layer, x).item() == pytest.approx(1)


def test_entropy_of_a_net_is_that_of_its_layers():
    model, x = small(TEXT), inputs(TEXT, 5)[0]
    columns, found = measured(AttentionEntropy, model, x)
    assert columns == ["block1.attention", "block2.attention"]
    part = model.net.block1.attention
    h = model.net.positions(model.net.embed(x))
    assert found[0].item() == pytest.approx(entropy(part.heads, part.norm(h)).item(), rel=1e-5)


def test_gradients_of_queries_and_keys_beside_those_of_values():
    model = small()
    x, target = inputs(SYMBOLS, 5)
    model.loss(model(x), target).backward()
    _, found = measured(QueryGradients, model, x)
    for block, number in zip((model.net.block1, model.net.block2), found, strict=True):
        query, key, value = (getattr(block.attention.heads, part).weight.grad for part in ("query", "key", "value"))
        assert number.item() == pytest.approx((torch.cat([query, key]).norm() / value.norm()).item(), rel=1e-5)


def test_they_vanish_where_tokens_are_alike():
    """Noci et al. 2022: with equal tokens queries and keys get no gradient, values do."""
    model = small(positions="sinusoidal")
    model.net.positions = nn.Identity()
    x = torch.full((4, 12), 3)
    model.loss(model(x), torch.arange(4)).backward()
    assert measured(TokenSimilarity, model, x)[1].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert measured(QueryGradients, model, x)[1].max() < 1e-5


def test_the_pass_leaves_no_trace():
    model, x = small().train(), inputs(SYMBOLS, 5)[0]
    weights, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    for kind in (TokenSimilarity, AttentionEntropy):
        assert not measured(kind, model, x)[1].requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ALL)
def test_a_net_without_attention_is_rejected(kind):
    model = MLP(POINTS)
    with pytest.raises(UserError, match=rf"diagnostics\.{kind.name}: MLP has no attention; leave it out"):
        kind().start(model, layers(model))


def test_without_probes_no_samples_are_there():
    model = small()
    with pytest.raises(UserError, match=r"callbacks\.gradient_flow\.probes=0: .*; expected 1 or more"):
        measured(TokenSimilarity, model, None)
