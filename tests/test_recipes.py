"""Every recipe in the folder composes, builds, and fits two steps on data of its own kind."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from conftest import OPTIONS, inputs
from PIL import Image
from torchvision import datasets

from gradflow import runs
from gradflow.config import build
from gradflow.config.options import CONF
from gradflow.data.sources import cifar10, image_folder, shapes
from gradflow.data.sources.source import Source
from gradflow.diagnostics.probe import probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import judge
from gradflow.optimizers.groups import build_optimizer

RECIPES = OPTIONS["experiment"]


def marked(recipe):
    """Those that change another recipe are trained by `make test-all`."""
    first = yaml.safe_load((CONF / f"experiment/{recipe}.yaml").read_text(encoding="utf-8")).get("defaults", [{}])[0]
    return pytest.param(recipe, marks=pytest.mark.slow if first in RECIPES else ())


def stand_in(root, cache=None):
    """The spec of CIFAR-10 with images that need no download."""
    return Source("cifar10", cifar10.SPEC, load=shapes.shapes(32, 3).load)


@pytest.mark.parametrize("recipe", [marked(recipe) for recipe in RECIPES])
def test_two_steps(trained, monkeypatch, recipe):
    monkeypatch.setattr(stand_in, "__module__", cifar10.__name__)  # a config may name what was defined there
    monkeypatch.setattr(cifar10, "cifar10", stand_in)
    limits = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.max_epochs=1", "test=false")
    run = trained(
        f"experiment={recipe}",
        "data.batch_size=32",  # larger ones cost seconds, and show nothing more
        "logger=none",
        "callbacks.progress=null",
        "callbacks.gradient_flow.probes=0",
        *limits,
        "+trainer.fast_dev_run=false",
    )
    summary = runs.read_json(run / runs.SUMMARY)
    assert summary["steps"] == 2
    assert (run / runs.GRADIENTS).is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_it_sets_of_a_callback_is_read(composed, recipe):
    """A node without a _target_ is of a callback that is not there, and nothing would read it."""
    nodes = composed(f"experiment={recipe}").callbacks
    assert [name for name, node in nodes.items() if node and "_target_" not in node] == []


def test_cifar10_recipes_are_strict(composed):
    for recipe in (name for name in RECIPES if name.startswith(("small_cnn", "cifar10"))):
        assert composed(f"experiment={recipe}").data.source._target_ == "gradflow.data.sources.cifar10.cifar10"


def architecture(composed, *words):
    cfg = composed(*words)
    return cfg, build.model(cfg, cifar10.SPEC)


def test_small_cnn_is_the_published_one(composed):
    """Keras prints 122,570 parameters for it."""
    cfg, model = architecture(composed, "experiment=small_cnn")
    assert sum(p.numel() for p in model.parameters()) == 122_570
    assert (cfg.data.batch_size, cfg.data.crop, cfg.data.flip, cfg.trainer.max_epochs) == (64, 0, False, 10)
    assert composed("experiment=small_cnn_avg").model.pool == "avg"


def test_the_documented_copy_of_cifar10_is_one_for_image_folder(tmp_path, monkeypatch):
    """docs/recipes.md shows how it is made; here of an archive of 20 images."""

    class Archive(list):
        classes = ("airplane", "automobile")

        def __init__(self, root, train, download):
            shades = range(20) if train else range(6)
            super().__init__((Image.new("RGB", (32, 32), (10 * n, 0, 0)), n % 2) for n in shades)

    monkeypatch.setattr(datasets, "CIFAR10", Archive)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (CONF.parent / "docs" / "recipes.md").read_text(), re.DOTALL)
    exec(code, {})
    source = image_folder.image_folder("cifar10-jpeg", 32, 3)
    source.prepare()
    splits = source.load()
    assert {split: len(x) for split, (x, _) in splits.items()} == {"train": 20, "test": 6}
    assert splits["train"][1].tolist() == [0] * 10 + [1] * 10
    assert abs(splits["test"][0][:, 0].float().mean((1, 2)) - torch.tensor([0, 20, 40, 10, 30, 50])).max() < 3


def test_resnet20_follows_he_et_al(composed):
    cfg, model = architecture(composed, "experiment=cifar10_resnet20")
    assert 0.265e6 < sum(p.numel() for p in model.parameters()) < 0.275e6
    factor = model.scheduler(64_000, 351)
    assert [round(factor(t), 6) for t in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    optimizer = model.optimizer(model.parameters())
    assert {optimizer.defaults[k] for k in ("lr",)} == {0.1}
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.9, 1e-4)
    assert (cfg.data.batch_size, cfg.data.val, cfg.data.crop, cfg.data.flip) == (128, 5000, 4, True)
    assert cfg.trainer.max_steps == 64_000


@pytest.mark.parametrize("depth", [20, 56])
def test_a_plain_net_is_its_residual_net_without_skips(composed, depth):
    plain, residual = (composed(f"experiment=cifar10_{kind}{depth}") for kind in ("plain", "resnet"))
    assert (plain.model.depth, plain.model.skip, residual.model.skip) == (depth, False, True)
    plain.model.skip = True
    assert plain == residual
    residual.model.depth = 20
    assert residual == composed("experiment=cifar10_resnet20")


def test_fewer_iterations_keep_the_shape_of_the_schedule(composed):
    model = architecture(composed, "experiment=cifar10_resnet20", "trainer.max_steps=8000")[1]
    factor = model.scheduler(8000, 351)
    assert [round(factor(t), 6) for t in (3999, 4000, 5999, 6000)] == [1, 0.1, 0.1, 0.01]


def test_every_convolution_of_the_short_recipes_is_trained_by_muon(composed):
    """The whitening layer stands first and is not trained, so that all kernels are between the first and last layer."""
    model = architecture(composed, "experiment=cifar10_cpu")[1]
    optimizer = build_optimizer(model.optimizer, model)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    kernels = [p for p in model.parameters() if p.ndim == 4]
    assert len(kernels) == 6
    assert {id(p) for p in by_name["hidden"]["params"]} == {id(p) for p in kernels}
    assert by_name["hidden"]["fixed_norm"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("deep_sigmoid_mlp_")])
def test_a_cure_changes_one_thing(composed, recipe):
    """Its choices are those of the disease but for the group or key that it is named after."""
    before, after = (composed(f"experiment={name}") for name in ("deep_sigmoid_mlp", recipe))
    changed = {group for group in ("model", "activation", "init", "optimizer", "data") if before[group] != after[group]}
    expected = {"relu": "activation", "big_lr": "optimizer"} | dict.fromkeys(OPTIONS["optimizer"], "optimizer")
    word = recipe.removeprefix("deep_sigmoid_mlp_")
    assert changed - ({"model"} if word == "relu" else set()) == {expected.get(word, "model")}


@pytest.mark.parametrize("recipe", ["exploding", "exploding_rnn"])
def test_what_is_said_to_explode_does(composed, recipe):
    """Before the first step, by the gradient and not by the step size; its pair differs by clipping alone."""
    cfg, clipped = composed(f"experiment={recipe}"), composed(f"experiment={recipe}_clipped")
    assert (cfg.trainer.gradient_clip_val, clipped.trainer.gradient_clip_val) == (None, 1)
    clipped.trainer.gradient_clip_val = None
    assert cfg == clipped
    torch.manual_seed(0)
    model = build.model(cfg, build.data(cfg).spec)
    x, y = inputs(model.spec, 32)
    told = judge(probe(model, (x, y), own_loss, trunk_of(model)))
    assert told.word == "FAIL"
    assert told.decades == pytest.approx(6.5, abs=1.0)
    assert told.axis == ("time" if recipe == "exploding_rnn" else "depth")


def test_long_memory_takes_every_recurrent_model(composed):
    for model in ("rnn", "lstm", "gru"):
        cfg = composed("experiment=long_memory", f"model={model}")
        assert build.model(cfg, build.data(cfg).spec).net.layer1.input_size == 2
    assert cfg.trainer.gradient_clip_val == 1
