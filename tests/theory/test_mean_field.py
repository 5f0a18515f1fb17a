"""Mean-field theory against closed forms, a slow dense reference, and the figures of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradflow.models.activation import MODULES
from gradflow.theory import mean_field
from gradflow.theory.mean_field import Moments, critical, fixed_point, moments

DEFAULT = 1 / math.sqrt(3)  # the σ_w of PyTorch's own init; its σ_b at width 256 is this / 16


def chi(phi, sigma_w, q):
    """The factor of the squared gradient norm a layer, σ_w² E[φ'²] (Schoenholz et al. 2017)."""
    return sigma_w**2 * moments(phi, q).slope


def batch_norm(phi):
    """χ a layer of linear, batch norm, φ without skips: E[φ'²]/Var[φ] at q = 1 (Yang et al. 2019)."""
    m = moments(phi, 1.0)
    return m.slope / (m.square - m.mean**2)


def layer_norm(phi):
    """χ a layer of linear, layer norm, φ without skips: E[φ'²]/E[φ²] at q = 1."""
    m = moments(phi, 1.0)
    return m.slope / m.square


class Erf(nn.Module):
    def forward(self, x):
        return x.erf()


class Swish(nn.Module):
    """A user's own, with parts and a parameter."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sigmoid()
        self.beta = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x * self.gate(self.beta * x)


def reference(phi, q):
    """Trapezoids in ln|x|, where a kink at 0 has no place to be, and central differences instead of autograd."""
    phi = phi.double()
    u = torch.linspace(math.log(1e-13 * math.sqrt(q)), math.log(14 * math.sqrt(q)), 20_001, dtype=torch.float64)
    size = u.exp()
    weight = size * torch.exp(-size.square() / (2 * q)) / math.sqrt(2 * math.pi * q) * (u[1] - u[0])
    total = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for x in (size, -size):
            value, slope = phi(x), (phi(x * (1 + 1e-5)) - phi(x * (1 - 1e-5))) / (2e-5 * x)
            total += torch.stack([weight @ f for f in (value, value.square(), slope.square())])
    return total.tolist()


@pytest.mark.parametrize("q", [1e-4, 0.3, 1.0, 40.0, 1e4])
@pytest.mark.parametrize("name", MODULES)
def test_moments_of_every_activation_agree_with_a_dense_reference(name, q):
    assert moments(MODULES[name](), q) == pytest.approx(reference(MODULES[name](), q), rel=2e-7, abs=1e-9)


@pytest.mark.parametrize("q", [1e-12, 1e-3, 1.0, 17.0, 1e6])
@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0, -1.0])
def test_the_relu_family_comes_out_to_1e_10(slope, q):
    mean = (1 - slope) * math.sqrt(q / (2 * math.pi))
    share = (1 + slope**2) / 2
    assert moments(nn.LeakyReLU(slope), q) == pytest.approx((mean, q * share, share), rel=1e-10, abs=1e-10 * q)


@pytest.mark.parametrize("q", [0.01, 0.7934, 5.0, 1e3])
def test_erf_comes_out_as_its_closed_form(q):
    expected = 0.0, 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), 4 / math.pi / math.sqrt(1 + 4 * q)
    assert moments(Erf(), q) == pytest.approx(expected, rel=1e-11, abs=1e-14)


def test_saturated_activations_at_large_q():
    """E[φ'²] is then an integral of φ'² alone: 1/6 for sigmoid and 4/3 for tanh, times the density at 0."""
    for phi, integral in ((nn.Sigmoid(), 1 / 6), (nn.Tanh(), 4 / 3)):
        assert moments(phi, 1e6).slope == pytest.approx(integral / math.sqrt(2 * math.pi * 1e6), rel=1e-5)
    assert moments(nn.Sigmoid(), 1e6)[:2] == pytest.approx((0.5, 0.5 - 1 / math.sqrt(2 * math.pi * 1e6)), rel=1e-6)


def test_at_q_0_is_the_limit_of_small_q():
    assert moments(nn.Softplus(), 0) == pytest.approx((math.log(2), math.log(2) ** 2, 0.25))
    assert moments(nn.ReLU(), 0) == Moments(0.0, 0.0, 0.5)
    for cls in MODULES.values():
        assert moments(cls(), 0) == pytest.approx(moments(cls(), 1e-12), abs=3e-6)


@pytest.mark.parametrize("q", [-1.0, math.inf, math.nan])
def test_a_second_moment_is_finite_and_not_negative(q):
    with pytest.raises(ValueError, match="expected a finite second moment"):
        moments(nn.Tanh(), q)


def test_bends_of_other_activations_lie_on_panel_edges():
    q = 2.0
    share = math.erf(1 / math.sqrt(2 * q))  # of |x| < 1
    assert moments(nn.Hardtanh(), q).slope == pytest.approx(share, rel=1e-12)
    assert moments(nn.ReLU6(), q).slope == pytest.approx(math.erf(6 / math.sqrt(2 * q)) / 2, rel=1e-12)


def test_learnt_slopes_count():
    phi = nn.PReLU(2)
    with torch.no_grad():
        phi.weight.copy_(torch.tensor([0.5, -2.0]))
    assert moments(phi, 4.0) == pytest.approx(
        (sum(1 - s for s in (0.5, -2.0)) / 2 * math.sqrt(4 / (2 * math.pi)), 4 * 3.125 / 2, 3.125 / 2)
    )
    assert moments(Swish(), 1.0) == pytest.approx(moments(nn.SiLU(), 1.0))


def test_the_module_keeps_no_trace():
    phi, seen = Swish(), []
    phi.register_forward_hook(lambda *_: seen.append("hook"))
    phi.gate.register_forward_hook(lambda *_: seen.append("inner hook"))
    phi.eval()
    with torch.inference_mode():
        moments(phi, 1.0)
    moments(nn.ReLU(inplace=True), 1.0)
    assert seen == []
    assert len(phi._forward_hooks) == 1
    assert (phi.beta.dtype, phi.beta.grad, phi.training) == (torch.float32, None, False)


def test_a_step_and_its_factor():
    assert mean_field.step(nn.ReLU(), 2.0, 0.5, 3.0) == pytest.approx(4 * 1.5 + 0.25)
    assert chi(nn.ReLU(), 2.0, 3.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("phi", "sigma_w", "sigma_b", "q", "factor"),
    [
        (nn.Tanh(), 0.9, 0.0, 0.0, 0.81),
        (nn.Tanh(), 1.0, 0.0, 0.0, 1.0),
        (nn.Tanh(), 1.5, 0.0, 0.7934, 1.1393),
        (nn.Sigmoid(), DEFAULT, DEFAULT / 16, 0.0864, 0.0200),
        (nn.ReLU(), DEFAULT, 0.0, 0.0, 1 / 6),
        (nn.ReLU(), 1.0, 0.5, 0.5, 0.5),  # q = q/2 + 1/4
        (nn.Identity(), 0.5, 1.0, 4 / 3, 0.25),
    ],
    ids=str,
)
def test_fixed_points(phi, sigma_w, sigma_b, q, factor):
    found = fixed_point(phi, sigma_w, sigma_b)
    assert found == pytest.approx(q, abs=5e-5)
    assert chi(phi, sigma_w, found) == pytest.approx(factor, abs=5e-5)


def test_fixed_points_at_the_edges():
    assert fixed_point(nn.ReLU(), math.sqrt(2), 0.0, start=3.3) == 3.3
    assert fixed_point(nn.ReLU(), 1.5, 0.0) == math.inf
    assert fixed_point(nn.ReLU(), math.sqrt(2), 0.1) == math.inf  # 0.01 a layer
    assert fixed_point(nn.Tanh(), 0.5, 0.0, start=0.0) == 0.0
    assert fixed_point(nn.Tanh(), 1.0, 1e-5) == pytest.approx(math.sqrt(1e-10 / 2), rel=1e-3)  # q = q − 2q² + σ_b²


@pytest.mark.parametrize("sigma_w", [1.0001, 1.01, 4.0])
@pytest.mark.parametrize("start", [1e-6, 1.0, 100.0])
def test_a_fixed_point_is_one_wherever_it_is_sought_from(sigma_w, start):
    q = fixed_point(nn.Tanh(), sigma_w, 0.0, start)
    assert mean_field.step(nn.Tanh(), sigma_w, 0.0, q) == pytest.approx(q, rel=1e-10)
    assert q == pytest.approx(fixed_point(nn.Tanh(), sigma_w, 0.0), rel=1e-9)


def test_where_the_edge_of_chaos_is():
    assert critical(nn.Tanh()) == pytest.approx((1.0, 0.0))
    assert critical(nn.ReLU()) == pytest.approx((math.sqrt(2), 1.0))
    assert critical(nn.LeakyReLU(0.25)) == pytest.approx((math.sqrt(2 / (1 + 0.25**2)), 1.0))
    # E[φ'²] and so σ_w by the dense reference too; Gauss–Hermite with 200 nodes finds 10.13 here
    sigma_w, q = critical(nn.Sigmoid())
    assert (sigma_w, q) == pytest.approx((10.149, 45.62), abs=5e-3)
    assert sigma_w**2 * reference(nn.Sigmoid(), q)[2] == pytest.approx(1, rel=1e-8)


@pytest.mark.parametrize("sigma_b", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", MODULES)
def test_what_is_called_critical_is_at_rest_with_a_factor_of_1(name, sigma_b):
    phi = MODULES[name]()
    if (found := critical(phi, sigma_b)) is None:
        assert name in ("gelu", "silu", "softplus") or sigma_b
        return
    sigma_w, q = found
    assert chi(phi, sigma_w, q) == pytest.approx(1, rel=1e-9)
    assert mean_field.step(phi, sigma_w, sigma_b, q) == pytest.approx(q, rel=1e-9)
    assert fixed_point(phi, sigma_w, sigma_b) == pytest.approx(q, rel=1e-6)


def test_where_no_edge_is_reported_the_factor_jumps_over_1():
    """GELU without biases: below a σ_w the signal dies out with χ = σ_w²/4, above it grows for ever with χ > 1."""
    assert critical(nn.GELU()) is None
    below, above = fixed_point(nn.GELU(), 1.45, 0.0), fixed_point(nn.GELU(), 1.6, 0.0)
    assert (below, above) == (0.0, math.inf)
    assert chi(nn.GELU(), 1.45, below) == pytest.approx(1.45**2 / 4)
    assert chi(nn.GELU(), 1.6, 1e12) == pytest.approx(1.6**2 / 2, rel=1e-5)


BATCH = {"relu": math.pi / (math.pi - 1), "tanh": 1.178, "gelu": 1.319, "silu": 1.212, "sigmoid": 1.034, "identity": 1}


@pytest.mark.parametrize("name", BATCH)
def test_factors_under_batch_norm(name):
    assert batch_norm(MODULES[name]()) == pytest.approx(BATCH[name], abs=5e-4)


def test_batch_norm_never_lets_the_gradient_shrink():
    for cls in MODULES.values():
        assert batch_norm(cls()) >= 1 - 1e-12


def test_factors_under_layer_norm():
    assert layer_norm(nn.ReLU()) == pytest.approx(1, abs=1e-12)
    assert layer_norm(nn.LeakyReLU(0.3)) == pytest.approx(1, abs=1e-12)
    assert layer_norm(nn.Tanh()) == pytest.approx(batch_norm(nn.Tanh()))  # odd: its mean is 0


def test_variance_over_a_batch_when_units_have_means_of_their_own():
    """Closed form of E[φφ'] at correlation c = (q − v)/q for ReLU, Cho & Saul 2009."""
    q = 3.0
    for v in (3.0, 1.5, 0.03):
        angle = math.acos(1 - v / q)
        shared = q / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
        assert mean_field.batch_variance(nn.ReLU(), q, v) == pytest.approx(q / 2 - shared, rel=1e-3)
    assert mean_field.batch_variance(nn.Identity(), q, 0.5) == pytest.approx(0.5, rel=1e-9)
    assert mean_field.batch_variance(nn.Tanh(), q, 0.0) == pytest.approx(0, abs=1e-12)


def test_fluctuation_of_a_deep_relu_net():
    """Hanin & Nica 2018: the variance of ln‖g‖² between draws, here of 200 nets that are 15 layers deep."""
    generator = torch.Generator().manual_seed(0)
    width, depth = 64, 15
    x = torch.randn(200, width, 1, generator=generator, dtype=torch.float64)
    g = torch.randn(200, width, 1, generator=generator, dtype=torch.float64)
    start = g.square().sum(1).log()
    for _ in range(depth):
        w = torch.randn(200, width, width, generator=generator, dtype=torch.float64) * math.sqrt(2 / width)
        x = w @ x
        g = w.mT @ ((x > 0) * g)  # an order that mixes the layers, which a random net doesn't tell
        x = x.relu()
    seen = (g.square().sum(1).log() - start).var().item()
    assert seen == pytest.approx(5 * depth / width, rel=0.25)
