"""Perplexity and bits a character: two units of one cross-entropy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT, inputs

from gradflow.models.metrics import Metrics
from gradflow.models.perplexity import BitsPerCharacter, Perplexity
from gradflow.tasks.task import task_of

CHOSEN = {"bits": BitsPerCharacter, "perplexity": Perplexity}


def measured(outputs, targets, split="val", spec=TEXT):
    found = Metrics(task_of(spec), {name: metric() for name, metric in CHOSEN.items()})
    for output, target in zip(outputs, targets, strict=True):
        found.add(split, output, target)
    seen = {name.partition("/")[0]: metric for name, metric in found.of(split).items() if metric.update_called}
    return {name: metric.compute().item() for name, metric in seen.items()}


def test_an_even_guess_among_eight_costs_three_bits():
    target = inputs(TEXT, 4)[1]
    assert measured([torch.zeros(4, 12, 8)], [target]) == {
        "bits": pytest.approx(3),
        "perplexity": pytest.approx(8),
    }


@pytest.mark.parametrize(("split", "padded"), [("train", 0), ("val", 0.3)])
def test_batches_of_unlike_size_add_up_and_padding_does_not_count(split, padded):
    torch.manual_seed(0)
    spec = replace(TEXT, ignored=-1 if padded else None)
    targets = [inputs(spec, size)[1] for size in (5, 1, 3)]
    for target in targets:
        target[torch.rand(target.shape) < padded] = -1
    outputs = [torch.randn(*target.shape, 8) for target in targets]
    logits, labels = torch.cat(outputs).flatten(0, 1), torch.cat(targets).flatten()
    nats = F.cross_entropy(logits[labels >= 0], labels[labels >= 0]).item()
    found = measured(outputs, targets, split, spec)
    assert found == {"bits": pytest.approx(nats / math.log(2)), "perplexity": pytest.approx(math.exp(nats))}


def test_less_is_better():
    found = Metrics(task_of(TEXT), {name: metric() for name, metric in CHOSEN.items()})
    assert found.directions == {"loss": "min", "bits": "min", "perplexity": "min"}
