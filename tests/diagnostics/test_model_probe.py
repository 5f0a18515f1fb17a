"""The probe of any network: other people's models, batches and losses, and zeros that hold the gradient up."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import POINTS, inputs
from lightning import LightningModule
from torch import nn

from gradflow.diagnostics import probe_model
from gradflow.diagnostics.batches import first_samples, map_tensors
from gradflow.diagnostics.probe import probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.trunk import find_trunk
from gradflow.models.mlp import MLP
from gradflow.runs.errors import UserError

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def resnet18():
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


def mobilenet():
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=5)


def vit():
    from torchvision.models import VisionTransformer

    size = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    return VisionTransformer(image_size=32, patch_size=8, **size)


class Block(nn.Module):
    """A block as those of language models are: it returns a tuple, and its activation is a function."""

    def __init__(self, width, scale=1.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, h, attention_mask=None):
        z = self.norm(h)
        h = h + self.scale * self.attention(z, z, z, need_weights=False)[0]
        return (h + self.scale * self.down(F.gelu(self.up(h))), attention_mask)


class Language(nn.Module):
    """Takes what a tokenizer gives and returns an object with logits and loss; its head is its embedding."""

    def __init__(self, tied=True, width=16, scale=1.0):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Block(width, scale) for _ in range(4))
        self.head = nn.Linear(width, 11, bias=False)
        self.calls = 0
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None, labels=None):
        self.calls += 1
        h = self.embed(input_ids)
        for block in self.blocks:
            h = block(h, attention_mask)[0]
        logits = self.head(h)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


TEXT = UserDict(input_ids=torch.arange(40).view(4, 10) % 11, labels=torch.arange(1, 41).view(4, 10) % 11)


def of_text(model, batch):
    return model(**batch).loss


def by_hand(model, batch, loss, trunk):
    """‖dL/dh‖ by hooks on the model itself, in float64."""
    held = {}
    model = model.double()

    def keep(module, given, out):
        held[module] = out[0] if isinstance(out, tuple) else out

    for name in trunk:
        model.get_submodule(name).register_forward_hook(keep)
    value = loss(model, map_tensors(lambda x: x.double() if x.is_floating_point() else x, batch))
    return [g.norm().item() for g in torch.autograd.grad(value, list(held.values()))]


@pytest.mark.parametrize(
    ("make", "batch", "loss", "kind", "number"),
    [
        (resnet18, IMAGES, classify, "BasicBlock", 8),
        (mobilenet, IMAGES, classify, "InvertedResidual", 11),
        (Language, TEXT, of_text, "Block", 4),
    ],
)
def test_blocks_are_found_and_their_gradients_are_those_of_autograd(make, batch, loss, kind, number):
    torch.manual_seed(0)
    model = make()
    for one in model.modules():
        if isinstance(one, nn.Dropout):
            one.p = 0.0
        elif getattr(one, "inplace", False):
            one.inplace = False
    found = probe_model(model, batch, loss)
    assert found.trunk == f"trunk: found {number} × {kind}; name another by trunk="
    assert found.verdict.word in ("OK", "CAUTION")
    assert len(found.profile.gradient) == number
    expected = by_hand(model, batch, loss, find_trunk(model))
    assert found.profile.gradient == pytest.approx(expected, rel=1e-3)
    assert found.profile.rms[0] > 0


def test_nothing_stays_behind_in_the_model():
    model = Language()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert probe_model(model, TEXT, of_text).profile.loss > 0
    assert model.calls == 0
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_parts_are_measured_and_stay_frozen():
    torch.manual_seed(0)
    model = Language(tied=False)
    whole = probe_model(model, TEXT, of_text)
    model.blocks[:2].requires_grad_(False)
    assert probe_model(model, TEXT, of_text).profile.gradient == whole.profile.gradient
    assert not model.blocks[0].up.weight.requires_grad


def test_a_named_trunk_and_names_that_are_none():
    model = Language()
    assert probe_model(model, TEXT, of_text, ["embed", "blocks.3"]).profile.trunk == ["embed", "blocks.3"]
    for trunk, words in (
        (["blocks.9"], "trunk: Language has no module blocks.9; did you mean blocks"),
        (["blocks"], "trunk: blocks is not called in a pass through the model"),
        ("blocks", "trunk='blocks': expected names of modules in a list"),
        ([0], r"trunk=\[0\]: expected names of modules in a list"),
    ):
        with pytest.raises(UserError, match=words) as error:
            probe_model(model, TEXT, of_text, trunk)
        assert "\n" not in str(error.value)


def chain(depth=6, activation=nn.Tanh, width=64):
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def test_theory_of_a_chain_and_why_there_is_none_of_others():
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    found = probe_model(chain(width=256), (x, torch.arange(64) % 5), classify)
    assert found.profile.trunk == ["0", "2", "4", "6", "8", "10"]
    measured = [norm / found.profile.gradient[-1] for norm in found.profile.gradient]
    assert found.theory["gradient"] == pytest.approx(measured, rel=0.1)
    assert found.theory["no_prediction"] == ""
    assert "theory" in str(found)
    other = probe_model(Language(), TEXT, of_text)
    assert other.theory["gradient"] is None
    assert "nn.Sequential" in other.theory["no_prediction"]
    assert other.theory["no_prediction"] in str(other)
    words = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11))
    per_word = lambda model, batch: F.cross_entropy(model(batch).flatten(0, 1), batch.flatten())  # noqa: E731
    assert probe_model(words, TEXT["input_ids"], per_word).theory["gradient"] is None


class Lit(LightningModule):
    """Several losses in a dictionary, which `training_step` logs."""

    def __init__(self, manual=False):
        super().__init__()
        self.body, self.seen, self.automatic_optimization = chain(), [], not manual

    def training_step(self, batch):
        self.seen.append(len(batch))
        loss = classify(self.body, batch)
        self.log("loss", loss)
        return {"loss": loss + 1 + self.global_step, "extra": loss}


def test_a_lightning_module_brings_its_loss():
    torch.manual_seed(0)
    model, batch = Lit(), (torch.randn(8, 64), torch.arange(8) % 5)
    found, plain = probe_model(model, batch), probe_model(model.body, batch, classify)
    assert found.profile.gradient == plain.profile.gradient
    assert found.profile.loss == pytest.approx(plain.profile.loss + 1)
    assert found.theory == plain.theory
    assert model.seen == []
    assert model._trainer is None


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(64, 5), "Linear has no loss of its own: give loss="),
        (Lit(manual=True), "Lit.training_step optimizes by itself: give loss="),
    ],
)
def test_without_a_loss(model, words):
    with pytest.raises(UserError, match=words):
        probe_model(model, (torch.randn(8, 64), torch.arange(8) % 5))


# Zeros that hold the gradient up


def zero_head(model):
    nn.init.zeros_(model[-1].weight)
    return model


def test_a_vision_transformer_is_judged_after_its_head_has_moved():
    torch.manual_seed(0)
    model = vit()
    found = probe_model(model, IMAGES, classify)
    assert found.verdict.word == "OK"
    assert found.profile.moved == ["heads.head.weight"]
    assert found.verdict.reason.endswith(
        "judged after a virtual step of heads.head.weight, zero until then, which let no gradient pass"
    )
    assert not model.heads.head.weight.any()
    classify(model, IMAGES).backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()  # its own first step, however small
    after = probe_model(model, IMAGES, classify)
    assert after.profile.moved == []
    assert "virtual" not in after.verdict.reason
    assert after.verdict.decades == pytest.approx(found.verdict.decades, abs=1e-2)


def test_the_size_of_the_virtual_step_is_of_no_account(monkeypatch):
    torch.manual_seed(0)
    model, batch = zero_head(chain()), (torch.randn(8, 64), torch.arange(8) % 5)
    found = []
    for size in (1e-5, 1e-1):
        monkeypatch.setattr("gradflow.diagnostics.first_gradient.STEP", size)
        found.append(probe_model(model, batch, classify))
    assert found[0].verdict.decades == pytest.approx(found[1].verdict.decades, abs=0.05)
    assert found[0].verdict.word == found[1].verdict.word == "OK"


def test_zeros_behind_zeros_take_as_many_steps():
    torch.manual_seed(0)
    model, batch = zero_head(chain()), (torch.randn(8, 64), torch.arange(8) % 5)
    nn.init.zeros_(model[6].weight)
    found = probe_model(model, batch, classify)
    assert found.profile.moved == ["12.weight", "6.weight"]
    assert all(norm > 0 for norm in found.profile.gradient)
    assert "12.weight and 1 more" in found.verdict.reason


def test_scales_at_zero_around_which_the_gradient_flows_need_no_step():
    found = probe_model(Language(scale=0.0), TEXT, of_text)  # ReZero
    assert (found.verdict.word, found.profile.moved) == ("OK", [])
    assert found.profile.waking == 4


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = chain()[:-1], nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.body(x).detach())


def all_dead():
    model = chain(activation=nn.ReLU)
    nn.init.constant_(model[4].bias, -100.0)
    nn.init.zeros_(model[6].bias)
    return model


@pytest.mark.parametrize("head", ["as it is", "at zero"])
@pytest.mark.parametrize("make", [Detached, all_dead])
def test_what_is_dead_stays_dead(make, head):
    torch.manual_seed(0)
    model = make()
    if head == "at zero":
        nn.init.zeros_(list(model.modules())[-1].weight)
    found = probe_model(model, (torch.randn(8, 64), torch.arange(8) % 5), classify)
    assert found.verdict.word == "FAIL"
    assert found.profile.gradient[0] == 0


def test_a_frozen_head_of_zeros_stays_in_the_way():
    model = zero_head(chain())
    model[-1].requires_grad_(False)
    found = probe_model(model, (torch.randn(8, 64), torch.arange(8) % 5), classify)
    assert (found.verdict.word, found.profile.moved) == ("FAIL", [])


def test_a_model_of_ours_with_a_head_of_zeros():
    torch.manual_seed(0)
    model, batch = MLP(POINTS, depth=10, width=16), inputs(POINTS, 16)
    healthy = probe_model(model, batch)
    assert healthy.profile == probe(model, batch, own_loss, trunk_of(model))
    assert healthy.theory["gradient"]
    nn.init.zeros_(model.net.head.weight)
    found = probe_model(model, batch)
    assert found.verdict.word == "OK"
    assert found.profile.moved == ["net.head.weight"]


def test_batches_of_any_shape():
    batch = {"x": torch.ones(6, 2), "rest": [torch.arange(6), "name"], "none": None}
    cut = first_samples(batch, 4)
    assert cut["x"].shape == (4, 2)
    assert cut["rest"][0].tolist() == [0, 1, 2, 3]
    assert cut["rest"][1] == "name"
    assert first_samples((torch.ones(6, 2), torch.ones(3)), 4)[0].shape == (6, 2)  # a graph, say
    double = map_tensors(lambda x: x * 2, UserDict(a=torch.ones(1)))
    assert isinstance(double, UserDict)
    assert double["a"].item() == 2


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (nn.Sequential(nn.Tanh()), classify, "Sequential has no weights to probe"),
        (nn.Sequential(nn.LazyLinear(2)), classify, "call it on a batch first"),
        (nn.Linear(4, 2, dtype=torch.cfloat), classify, "complex weights"),
        (nn.Linear, classify, "expected a network"),
        (nn.Linear(4, 2), lambda model, batch: model(batch[0]), r"one number, not a tensor of shape \[6, 2\]"),
        (nn.Linear(4, 2), lambda model, batch: classify(model, batch).item(), "one number, not a float"),
        (nn.Linear(4, 2), lambda model, batch: classify(model, batch).detach(), "has no gradient"),
    ],
)
def test_what_can_not_be_probed_is_said_in_a_line(model, loss, words):
    with pytest.raises(UserError, match=words):
        probe_model(model, (torch.ones(6, 4), torch.arange(6) % 2), loss)


def test_a_model_that_is_a_single_layer_is_judged_by_its_output():
    layer, batch = nn.Linear(4, 2), (torch.rand(6, 4), torch.arange(6) % 2)
    found = probe_model(layer, batch, classify)
    (dloss,) = torch.autograd.grad(F.cross_entropy(logits := layer(batch[0]), batch[1]), logits)
    assert found.profile.gradient == pytest.approx([dloss.norm().item()], rel=1e-5)
    assert found.verdict.word == "OK"
