"""What `trainer.precision=auto` comes to, and that a run keeps it."""

from __future__ import annotations

import sys

import pytest
import torch
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.config import precision


def resolved(run, chosen: str = "auto", **trainer) -> str:
    node = {"accelerator": "cpu", "precision": chosen} | trainer
    return precision.resolve(OmegaConf.create({"run_dir": str(run), "trainer": node}))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True}, "32-true"),
        ({"avx512_f": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"architecture": "aarch64", "bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False}, "32-true"),
    ],
)
def test_a_processor_with_and_without_the_instructions(monkeypatch, tmp_path, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolved(tmp_path) == expected
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resolved(tmp_path) == "32-true"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_that_emulates_counts_as_one_without(monkeypatch, tmp_path, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert resolved(tmp_path, accelerator="gpu") == expected
    assert resolved(tmp_path, accelerator="auto") == expected


def test_a_run_that_goes_on_keeps_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "_is_native", lambda node: False)
    for recorded, expected in {"bf16-mixed": "bf16-mixed", "16-mixed": "32-true", "${oc.env:HOME}": "32-true"}.items():
        runs.write_json(tmp_path / runs.SUMMARY, {"precision": recorded})
        assert resolved(tmp_path) == expected
    assert resolved(tmp_path, "64-true") == "64-true"
