"""Choices that nothing in a run refers to."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import OPTIONS
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from gradflow.config import no_effect
from gradflow.config.options import CONF
from gradflow.runs.errors import UserError


@pytest.mark.parametrize("model", OPTIONS["model"])
def test_a_model_uses_the_groups_that_its_configuration_refers_to(composed, model):
    cfg = composed(f"model={model}", "activation=tanh", "init=he", "optimizer=sgd")
    node = OmegaConf.to_yaml(cfg.model)
    unused = [f"{group}={option}" for group, option in (("activation", "tanh"), ("init", "he"))
              if f"${{{group}" not in node]  # fmt: skip
    assert no_effect.unused(cfg, [f"model={model}", "activation=tanh", "init=he", "optimizer=sgd"]) == unused


def test_groups_that_are_built_or_set_other_keys_have_an_effect_by_themselves():
    passive = {group for group in OPTIONS if no_effect.only_referred_to(group)}
    assert {"activation", "init"} <= passive
    assert not passive & {"model", "optimizer", "scheduler", "data", "trainer", "logger", "callbacks", "experiment"}


@pytest.mark.parametrize("reference", ["${act}", "${act.name}", "${oc.select:act.name}", "${other.it}", "x-${.of}"])
def test_every_way_to_refer_is_seen(reference):
    cfg = OmegaConf.create({"act": {"name": "relu"}, "model": {"uses": reference, "of": "${act.name}"},
                            "other": {"it": "${act}"}, "run_dir": "${hydra:nowhere}"})  # fmt: skip
    assert not no_effect.is_unused(cfg, "act")
    assert no_effect.is_unused(OmegaConf.create({"act": {"name": "relu"}, "model": {"w": 3}, "run_dir": "x"}), "act")


def test_what_changed_by_hand_counts(composed):
    assert no_effect.unused(composed("model.activation={name: relu}"), ["activation=tanh"]) == ["activation=tanh"]


SAME = "has no effect: nothing in the configuration of {} refers to activation, so these jobs would be the same"
GRIDS = {
    "model=lstm activation=sigmoid,relu,tanh": "activation=sigmoid,relu,tanh: " + SAME.format("model=lstm"),
    "model=mlp,gru activation=relu,tanh seed=0,1": "activation=relu,tanh: " + SAME.format("model=gru"),
    "model=lstm activation.name=relu,tanh": "activation.name=relu,tanh: " + SAME.format("model=lstm"),
    "model=lstm activation=leaky_relu activation.negative_slope=1,2": "activation.negative_slope=1,2: "
    + SAME.format("model=lstm"),
    "model=mlp,resnet activation=relu,tanh seed=0,1": "",
    "model=lstm,gru activation=tanh init=he,glorot": "",
    "model=lstm activation=tanh seed=0,1": "",
}


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=[pytest.mark.slow] if place > 1 else []) for place, words in enumerate(GRIDS)]
)
def test_a_sweep_over_what_has_no_effect_is_refused_before_a_job(words):
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words.split()), None)[0]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", overrides=[], run_mode=RunMode.MULTIRUN)
        compose = lambda words: loader.load_sweep_config(config, list(words))  # noqa: E731
        if not GRIDS[words]:
            no_effect.check_sweep(jobs, compose)
            return
        with pytest.raises(UserError) as refused:
            no_effect.check_sweep(jobs, compose)
    assert str(refused.value).startswith(GRIDS[words])


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_leaves_nothing(tmp_path):
    words = ["-m", "model=lstm", "activation=sigmoid,relu", "data=adding"]
    program = [sys.executable, str(CONF.parent / "src" / "train.py"), *words]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: activation=sigmoid,relu: has no effect")
    assert not list(tmp_path.glob("multirun/*/*"))
