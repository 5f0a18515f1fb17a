"""The first word of a run, while torch is loaded, and what is as it was afterwards."""

from __future__ import annotations

import gc
import sys

import pytest
from lightning_utilities.core.imports import RequirementCache

from gradflow.training import startup


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.unfreeze()
    gc.freeze()  # as conftest left it


def test_a_terminal_has_a_word_while_torch_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with startup.loading():
        assert capsys.readouterr().err == "\r\x1b[Kloading torch …\r"
    assert capsys.readouterr().err == "\r\x1b[K"


def test_a_pipe_has_none(capsys):
    with startup.loading():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [None, ImportError])
def test_libraries_find_each_other_afterwards(error):
    torchvision = RequirementCache("torchvision")
    try:
        with startup.loading():
            assert not torchvision
            assert RequirementCache("torch")
            assert not gc.isenabled()
            if error:
                raise error
    except ImportError:
        pass
    assert torchvision
    assert gc.isenabled()
