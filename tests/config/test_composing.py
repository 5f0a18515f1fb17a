"""The suite composes what the same options give once; nothing may tell that from Hydra's own way."""

from __future__ import annotations

import composing
import pytest
from conftest import OPTIONS
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from gradflow.config.options import CONF

RECIPES = OPTIONS["experiment"][::9]


def composed(words: list[str]) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*words, "run_dir=x"], return_hydra_config=True)
    del config.hydra.runtime.cwd
    return OmegaConf.to_yaml(config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_the_same(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    lines = [
        [f"experiment={recipe}"],
        [f"experiment={recipe}", "+optimizer.betas=[0.5,0.9]", "seed=3", "optimizer=sgd"],
    ]
    lines.append([f"experiment={recipe}", "optimizer=sgd", "optimizer.lr=2", "~callbacks.best"])
    first, again = map(composed, lines), map(composed, lines)  # which comes from what was kept
    ours = list(zip(first, again, strict=True))
    monkeypatch.setattr(config_loader_impl, "create_defaults_list", composing._create)
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", composing._compose)
    assert ours == [(plain, plain) for plain in map(composed, lines)]
