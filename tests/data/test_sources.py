"""Every source that reads no files, asked for batches."""

from __future__ import annotations

import pytest
import torch
from conftest import OPTIONS, entries_of

from gradflow.config import build
from gradflow.tasks.task import task_of


@pytest.mark.parametrize("option", OPTIONS["data"])
def test_batches_fit_the_spec_and_are_a_function_of_seed_epoch_and_index(composed, option):
    cfg = composed(f"data={option}")
    if "root" in cfg.data.keys():  # noqa: SIM118  `in` denies a value that is missing
        pytest.skip("reads files")

    def loader(seed: int):
        torch.manual_seed(seed)  # nothing may rest on it
        data = build.data(composed(f"data={option}", "seed=3"))
        data.prepare_data()
        data.setup()
        return data, data.loader("train", training=True)

    (data, one), (_, two) = loader(0), loader(1)
    x, target = one.batch(1, 0)
    again = two.batch(1, 0)
    assert torch.equal(x, again[0])
    assert torch.equal(target, again[1])
    spec = data.spec
    assert x.shape == (data.batch_size, *spec.shape)
    assert x.dtype == (torch.int64 if spec.tokens else torch.float32)
    assert x.is_floating_point() or 0 <= x.min() <= x.max() < spec.tokens
    numbers = task_of(spec).asks_for == "numbers"
    assert target.shape[: 1 + len(entries_of(spec))] == (data.batch_size, *entries_of(spec))
    assert target.is_floating_point() or not numbers
    assert not all(torch.equal(a, b) for a, b in zip((x, target), one.batch(2, 0), strict=True))
