"""Images scaled to [0, 1] only; tests of the mean 0 and the variance 1 are with the DataModule's."""

from __future__ import annotations

import pytest
import torch

from gradflow.config import build
from gradflow.data.moments import normaliser
from gradflow.data.splits import Part
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def test_unit_is_the_bytes_over_255(composed):
    def inputs(*words):
        data = build.data(composed("data=shapes", "data.size=16", *words))
        data.setup()
        return data.splits["train"].x[:50], data.loader("train").batch(0, 0)[0][:50]

    raw, unit = inputs("data.normalize=unit")
    torch.testing.assert_close(unit, raw / 255)
    _, standard = inputs()
    assert torch.equal(standard, inputs("data.normalize=standard")[1])
    assert not torch.equal(standard, unit)


def test_what_can_not_be_is_one_line(composed):
    with pytest.raises(UserError, match=r"data\.normalize=none: expected standard or unit"):
        build.data(composed("data=shapes", "data.normalize=none"))
    numbers = Part(torch.rand(4, 1, 2, 2), torch.zeros(4).long())
    spec = Spec("image", (1, 2, 2), "classification", outputs=2)
    with pytest.raises(UserError, match=r"data\.normalize=unit: is for images of bytes, and these are torch.float32"):
        normaliser(numbers, spec, torch.device("cpu"), "unit")
    assert normaliser(numbers, spec, torch.device("cpu"), "standard") is None
