"""Averaged views of test images, against slow ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import MASKS, RGB
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from gradflow.models import views
from gradflow.models.mlp import MLP
from gradflow.models.whitened_cnn import WhitenedCNN
from gradflow.runs.errors import UserError
from gradflow.tasks.task import task_of


def slow(net, images, shift):
    """An image at a time, a view at a time: the mean of plain and mirrored, and that of the moved ones, weigh alike."""
    answers = []
    for image in images:
        padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
        height, width = image.shape[1:]
        moved = [padded[:, top : top + height, top : top + width] for top in (0, 2)]
        groups = [[image]] + ([moved] if shift else [])
        means = [torch.stack([net(v[None])[0] for one in g for v in (one, one.flip(2))]).mean(0) for g in groups]
        answers.append(torch.stack(means).mean(0))
    return torch.stack(answers)


@pytest.mark.parametrize("choice", ["flip", "flip_shift"])
def test_the_mean_over_views_equals_a_slow_one(choice):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 3, 5))
    images = torch.randn(3, 3, 6, 5)
    with torch.no_grad():
        found = views.averaged(net, images, choice)
        torch.testing.assert_close(found, slow(net, images, choice == "flip_shift"))
        assert not torch.allclose(found, net(images))
        assert torch.equal(views.averaged(net, images, "one"), net(images))


def test_views_are_of_the_test_alone():
    """Validation and training see each image once, as it is."""
    torch.manual_seed(0)
    x, y = torch.randn(4, *RGB.shape), torch.arange(4)
    batches = DataLoader([(x, y)], batch_size=None)
    scores = {}
    for choice in ("one", "flip"):
        torch.manual_seed(1)
        model = MLP(RGB, depth=1, width=8, test_views=choice)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(**quiet, enable_checkpointing=False)
        (val,) = trainer.validate(model, batches, verbose=False)
        (test,) = trainer.test(model, batches, verbose=False)
        scores[choice] = (val["loss/val"], test["loss/test"])
    assert scores["one"][0] == scores["one"][1] == scores["flip"][0]
    with torch.no_grad():
        assert scores["flip"][1] == pytest.approx(F.cross_entropy((model(x) + model(x.flip(3))) / 2, y).item())
    assert scores["flip"][1] != scores["one"][1]


def test_a_mirrored_test_changes_nothing_of_a_model_that_is_symmetric_already():
    torch.manual_seed(0)
    model = WhitenedCNN(RGB, channels=(4, 4)).eval()
    x = torch.randn(2, *RGB.shape)
    with torch.no_grad():
        both = [views.averaged(model, images, "flip") for images in (x, x.flip(-1))]
    torch.testing.assert_close(*both)


def test_impossible_views_are_rejected():
    with pytest.raises(UserError, match=r"^model\.test_views=two: expected one of one, flip, flip_shift$"):
        MLP(RGB, test_views="two")
    with pytest.raises(UserError, match=r"^model\.test_views=flip: .*; expected one$"):
        views.check("flip", task_of(MASKS))
