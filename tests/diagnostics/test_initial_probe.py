"""The command src/probe.py, as a user gives it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.diagnostics.advice import _norms_and_branches, depth_budget, replaced
from gradflow.diagnostics.initial_probe import geometric_mean
from gradflow.diagnostics.probe import Profile
from gradflow.runs.locks import LOCK

SMALL = ("data=regression", "batch=16", "seeds=2")
BAD = ("model.depth=20", "model.width=16", "activation=sigmoid", "init=torch", *SMALL)
GOOD = ("model.depth=3", "model.width=16", *SMALL)
RANK = {"OK": 0, "CAUTION": 1, "FAIL": 2}


def seen(run):
    return runs.read_json(run / runs.PROBE)


def given(words, change):
    """The command line with a suggestion in the place of what it replaces."""
    new = change.split()
    keys = [word.partition("=")[0] for word in new]
    return [word for word in words if not replaced(word.partition("=")[0], keys)] + new


@pytest.mark.parametrize("tried", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_a_net_that_fails_and_what_helps(trained, capsys, tmp_path, tried):
    """What is suggested gives the ratio that it says, and a better word; `strict` ends what fails."""
    with pytest.raises(SystemExit) as ended:
        trained(*BAD, "strict=true", program="probe")
    assert ended.value.code == 3
    (run,) = tmp_path.glob("runs/*/*")
    screen, told = capsys.readouterr().out, seen(run)
    assert told["verdict"]["word"] == "FAIL"
    assert f"log₁₀ gradient ratio = {told['verdict']['decades']:.1f} ± " in screen
    assert all(f"block{number}" in screen for number in range(1, 21))
    assert screen.count("\ntry  ") == len(told["advice"]) > 2
    gaps = [abs(one["decades"]) for one in told["advice"]]
    assert gaps == sorted(gaps)
    assert len({line.index("  ratio ") for line in screen.splitlines() if line.startswith("try  ")}) == 1
    for one in told["advice"][:tried]:
        assert f"{one['word']:<7}  ratio {round(one['decades'], 1) + 0.0:4.1f}: " in screen
        again = seen(trained(*given(BAD, one["words"]), "advice=false", program="probe"))["verdict"]
        assert again["decades"] == pytest.approx(one["decades"], rel=1e-6)
        assert again["word"] == one["word"]
        assert RANK[again["word"]] < RANK["FAIL"]


@pytest.mark.pictures
def test_a_net_that_is_fine_and_what_the_record_holds(trained, capsys):
    run = trained(*GOOD, "strict=true", program="probe")
    screen, told = capsys.readouterr().out, seen(run)
    assert "OK  log₁₀ gradient ratio = " in screen
    assert "try  " not in screen
    assert "FAIL" not in screen
    profile = {"loss", "trunk", "gradient", "rms", "weights", "time", "dead", "saturated", "alike", "waking"}
    more = {"step", "keys", "verdict", "seeds", "theory", "words", "choices", "data", "advice"}
    assert set(told) == profile | more
    assert told["advice"] == []
    assert told["words"] == [*GOOD, "strict=true"]
    assert told["choices"]["model"] == "mlp"
    assert not [group for group in told["choices"] if "/" in group]
    assert told["data"]["name"] == "regression"
    assert set(told["verdict"]) == {"word", "axis", "decades", "reason", "meaning", "sd"}
    left = {path.name for path in run.iterdir() if path.is_file()}
    assert left == {runs.PROBE, runs.DEPTH, runs.WEIGHT_GRADIENTS, LOCK}


@pytest.mark.slow
def test_averages_are_of_logarithms(trained):
    """Over the draws that the next seeds make."""
    words = ("model.depth=6", "model.width=8", *SMALL[:-1], "advice=false")
    both = seen(trained(*words, "seeds=2", program="probe"))
    single = [seen(trained(*words, "seeds=1", f"seed={seed}", "data.seed=0", program="probe")) for seed in (0, 1)]
    expected = [math.sqrt(a * b) for a, b in zip(*(one["gradient"] for one in single), strict=True)]
    assert both["gradient"] == pytest.approx(expected, rel=1e-9, abs=0)
    gaps = [one["verdict"]["decades"] for one in single]
    assert both["verdict"]["decades"] == pytest.approx(np.mean(gaps), abs=1e-9)
    assert both["verdict"]["sd"] == pytest.approx(np.std(gaps), abs=1e-9)
    assert single[0]["verdict"]["sd"] == 0


def test_a_zero_stays_zero_in_an_average():
    one, other = (Profile(0.5, ["a", "b"], [first, 4.0], [1.0, 1.0], {}) for first in (0.0, 1.0))
    assert geometric_mean([one, other]).gradient == pytest.approx([0.0, 4.0])


def test_the_first_look_of_a_run_is_at_the_same_weights(trained):
    words = ("model.depth=6", "model.width=8", "data=regression")
    probed = seen(trained(*words, "seeds=1", "advice=false", program="probe"))
    run = trained(*words, "debug=fast", "logger=none", "callbacks.progress=null", "test=false", "probe=true")
    first = runs.read_lines(run / runs.FLOW)[0]
    assert first["gradient"] == pytest.approx(probed["gradient"], rel=1e-4, abs=0)
    assert runs.read_json(run / runs.SUMMARY)["probe"]["decades"] == pytest.approx(probed["verdict"]["decades"])


def test_a_recurrent_net_is_judged_over_time(trained, capsys):
    words = ("model=rnn", "model.hidden=16", "data=adding", "data.length=40", "init=torch", "batch=16", "seeds=2")
    run = trained(*words, program="probe")
    screen, told = capsys.readouterr().out, seen(run)
    assert told["verdict"]["axis"] == "time"
    assert told["verdict"]["word"] == "FAIL"
    assert len(told["time"]) == 40
    assert "step 1 " in screen
    assert "step 40 " in screen
    assert "block" not in screen
    assert (run / runs.TIME).is_file()
    assert not (run / runs.DEPTH).exists()
    assert any("chrono" in one["words"] for one in told["advice"])
    for one in told["advice"][:1]:
        again = seen(trained(*given(words, one["words"]), "advice=false", program="probe"))["verdict"]
        assert again["decades"] == pytest.approx(one["decades"], rel=1e-6)


def test_a_sweep(trained, capsys, tmp_path):
    """A job that FAILs does not end it, strict or not."""
    words = ("model.depth=2,20", "activation=sigmoid,relu", "init=torch", "model.width=16", *SMALL)
    trained("-m", "hydra/launcher=basic", *words, "advice=false", "strict=true", program="probe")
    screen = capsys.readouterr().out
    (folder,) = tmp_path.glob("multirun/*/*")
    assert (folder / runs.PHASE).read_bytes()[:4] == b"\x89PNG"
    jobs = [line for line in screen.splitlines() if line.endswith(("sigmoid", "relu"))]
    assert [line.split()[-2:] for line in jobs] == [
        [f"model.depth={depth}", f"activation={phi}"] for depth in (2, 20) for phi in ("sigmoid", "relu")
    ]
    for number, line in enumerate(jobs):
        told = seen(folder / str(number))["verdict"]
        assert line.split()[0] == told["word"]
        assert f"log₁₀ gradient ratio = {told['decades']:5.1f}" in line
    assert jobs[2].startswith("FAIL")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("seeds=0",), "seeds=0, batch=64: expected 1 or more, and 2 or more"),
        (("batch=1",), "seeds=3, batch=1"),
        (("model.dpth=3",), "model.dpth: no such key"),
        (("model=mlpp",), "model=mlpp: no such option"),
        (("strict=maybe",), "strict=maybe: expected true or false"),
        (("model=resnet", "data=adding"), "ResNet takes image, not sequence"),
    ],
)
def test_wrong_words_are_one_line(trained, capsys, words, reason):
    with pytest.raises(SystemExit) as ended:
        trained("data=regression", *words, program="probe")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_no_random_number_is_taken(trained):
    """Beside those that the seed at the start of a command sets."""
    states = []
    for words in (("advice=false", "seeds=1"), ("advice=true", "seeds=3")):
        trained("model=rnn", "model.hidden=8", "data=adding", "data.length=30", "init=torch", *words, program="probe")
        states.append((torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())))  # noqa: NPY002
    assert states[0] == states[1]


def test_replaced():
    assert replaced("model", ["model"])
    assert replaced("model.depth", ["model", "init"])
    assert not replaced("model.depth", ["model.width"])
    assert not replaced("models", ["model"])


def test_the_depth_that_keeps_r_small():
    for rate in (0.5, 0.9, 1.2):
        budget = depth_budget({"keys": {"flow/rate_depth": rate}})
        assert (budget - 1) * abs(math.log10(rate)) <= 1.3 < budget * abs(math.log10(rate))
    assert depth_budget({"keys": {}}) == 0


@pytest.mark.slow
def test_a_net_that_is_dead_at_birth(trained, capsys):
    """Twenty layers of two units (Lu et al. 2019): no gradient arrives, in any draw, and that has no spread."""
    words = ("model.depth=20", "model.width=2", "activation=relu", *SMALL, "advice=false")
    run = trained(*words, program="probe")
    told = seen(run)["verdict"]
    assert told["word"] == "FAIL"
    assert "is dead" in told["reason"]
    assert told["sd"] == 0
    assert "FAIL  log₁₀ gradient ratio = -inf ± 0.0" in capsys.readouterr().out


@pytest.mark.parametrize("residual", [True, False])
def test_a_scale_of_branches_is_suggested_once(residual):
    wanted = [words for fits, words, _ in _norms_and_branches("mlp", OmegaConf.create({"residual": residual})) if fits]
    scaled = [words for words in wanted if "model.branch_scale=depth" in words]
    assert scaled == ["model.branch_scale=depth" if residual else "model.residual=true model.branch_scale=depth"]
