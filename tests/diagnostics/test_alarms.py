"""Each alarm comes once, with its numbers, when what it is about lasts; on networks with known answers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import Spec
from lightning import Callback, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gradflow import runs
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.diagnostics.alarms import KINDS, SUSTAINED, WARM, Alarms
from gradflow.diagnostics.gradient_flow import GradientFlow, probe_steps
from gradflow.diagnostics.probe import Profile, probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import CAUTION, judge, log_ratio
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import LSTM, RNN
from gradflow.models.resnet import ResNet

NUMBERS = Spec("vector", (8,), "classification", outputs=4)
PIXELS = Spec("image", (3, 8, 8), "classification", outputs=4)
QUIET = ("logger=none", "callbacks.progress=null")
LOOK = {
    "healthy": {},
    "vanish": {"gradient": [1e-4, 1.0]},
    "explode": {"gradient": [1e2, 1.0]},
    "dead": {"dead": {"act1": 0.2, "act2": 0.875}},
    "saturated": {"saturated": {"act1": 0.625}},
    "nonfinite": {"loss": math.nan},
    "collapsed": {"alike": 0.9995},
}
NUMBER = {
    "vanish": "shrinks by a factor of 10⁴·⁰ over 2 layers: training will probably stall",
    "explode": "grows by a factor of 10²·⁰ over 2 layers: early layers learn at another pace",
    "dead": "88% of act2 is dead",
    "saturated": "62% of act1 is saturated",
    "nonfinite": "nan",
    "collapsed": "0.9995",
}


def look(kind="healthy"):
    known = {"loss": 0.5, "trunk": ["a", "b"], "gradient": [1.0, 1.0], "rms": [1.0, 1.0], "weights": {}}
    return Profile(**known | LOOK[kind])


@pytest.mark.parametrize("kind", NUMBER)
def test_what_lasts_is_told_once_with_its_numbers(kind):
    alarms = Alarms()
    told = [alarms.probed(step, look(kind)) for step in range(6)]
    assert [len(new) for new in told] == [0] * (SUSTAINED - 1) + [1] + [0] * (6 - SUSTAINED)
    (alarm,) = told[SUSTAINED - 1]
    assert alarm.kind == kind
    assert alarm.sentence.startswith(f"step {SUSTAINED - 1}: ")
    assert NUMBER[kind] in alarm.sentence
    assert "try " in alarm.sentence
    assert alarms.raised == {kind: alarm.sentence}
    assert alarms.keys() == {f"alarm/{name}": float(name == kind) for name in KINDS}


@pytest.mark.parametrize("kind", NUMBER)
def test_an_interruption_starts_the_count_anew(kind):
    alarms = Alarms()
    for seen in [kind] * (SUSTAINED - 1) + ["healthy"] + [kind] * (SUSTAINED - 1):
        assert alarms.probed(0, look(seen)) == []
    assert [alarm.kind for alarm in alarms.probed(9, look(kind))] == [kind]


def test_a_gradient_along_time():
    alarms, seen = Alarms(), look()
    seen.time = [0.0, 0.5, 1.0]
    (alarm,) = [new for step in range(SUSTAINED) for new in alarms.probed(step, seen)]
    assert alarm.kind == "vanish"
    assert "shrinks to nothing over 3 time steps" in alarm.sentence
    assert "model=lstm" in alarm.sentence


def test_a_gap_over_time_is_no_alarm_where_it_was_learned():
    for loss, kinds in ((0.4, []), (0.6, ["explode"])):
        alarms, seen = Alarms(), look()
        alarms.probed(0, look())
        seen.time, seen.loss = [1.0, 1e-9], loss
        assert [alarm.kind for step in range(SUSTAINED) for alarm in alarms.probed(step, seen)] == kinds


def test_a_gradient_of_zero_at_all_time_steps_vanishes():
    alarms, seen = Alarms(), look()
    seen.time = [0.0, 0.0, 0.0]
    assert [alarm.kind for step in range(SUSTAINED) for alarm in alarms.probed(step, seen)] == ["vanish"]


@pytest.mark.parametrize(("loss", "kinds"), [(4.9, []), (5.1, ["diverging"])])
def test_a_loss_far_above_the_first_one(loss, kinds):
    alarms, seen = Alarms(), look()
    alarms.probed(0, look())
    seen.loss = loss
    told = [alarm for step in range(1, 9) for alarm in alarms.probed(step, seen)]
    assert [alarm.kind for alarm in told] == kinds
    for alarm in told:
        assert alarm.sentence.startswith(f"step {SUSTAINED}: the loss is 5.1, where it was 0.5 at the first probe")


@pytest.mark.parametrize(
    "seen",
    [
        {"gradient": [0.06, 1.0]},
        {"gradient": [19.0, 1.0]},
        {"dead": {"a": 0.75}},
        {"saturated": {"a": 0.5}},
        {"alike": 0.998},
    ],
)
def test_within_the_limits_nothing_is_told(seen):
    alarms, fine = Alarms(), look()
    vars(fine).update(seen)
    assert [alarms.probed(step, fine) for step in range(9)] == [[]] * 9


def updated(alarms, ratios=(1e-3, 1e-3, 1e-3), clip=1.0, bad=(), times=1):
    """The kinds that a number of logged steps raised, and their sentences."""
    names = [f"layer{index}" for index in range(len(ratios))]
    told = []
    for step in range(times):
        found = {name: name in bad for name in names}
        told += alarms.updated(step, dict(zip(names, ratios, strict=True)), clip, found)
    return dict(told)


def test_a_gradient_that_is_not_finite_is_told_at_once():
    alarms = Alarms()
    assert "the gradient of layer1 (2 layers)" in updated(alarms, bad=("layer1", "layer2"))["nonfinite"]
    assert updated(alarms, bad=("layer1",), times=3) == {}


def test_a_layer_that_stands_still_beside_others_that_move():
    told = updated(Alarms(), (1e-3, 3e-9, 1e-2), times=9)
    assert list(told) == ["frozen"]
    assert "layer1 changes by 3e-09" in told["frozen"]
    assert "1e-02" in told["frozen"]
    assert updated(Alarms(), (1e-3, 2e-7), times=9) == {}
    assert updated(Alarms(), (0.0, 0.0), times=9) == {}  # a learning rate of 0


def test_a_layer_of_zeros_is_not_taken_for_the_one_that_stands_still():
    assert "layer1" in updated(Alarms(), (math.nan, 1e-9, 1e-3), times=9)["frozen"]


def test_one_step_of_standing_still_is_no_alarm():
    """A branch that starts at scale 0 has no gradient at the first step."""
    alarms = Alarms()
    for ratios in ((0.0, 1e-3), (1e-3, 1e-3), (0.0, 1e-3), (1e-3, 1e-3)):
        assert updated(alarms, ratios) == {}


def test_too_large_updates_and_clipping_wait_for_the_warm_up():
    for alarm, known in (("update_too_large", {"ratios": (1e-3, 0.04, 0.5)}), ("clipped", {"clip": 0.01})):
        alarms = Alarms()
        assert updated(alarms, **known, times=WARM) == {}
        assert list(updated(alarms, **known)) == [alarm]
        assert updated(alarms, **known, times=9) == {}
    assert f"{WARM + 1} of {WARM + 1} logged steps" in alarms.raised["clipped"]


def test_half_of_the_steps_may_be_clipped_and_half_of_the_layers_may_jump():
    alarms = Alarms()
    for _ in range(WARM):
        assert updated(alarms, clip=1.0) == updated(alarms, clip=0.5) == {}
    assert updated(Alarms(), (1e-3, 1e-3, 9.0), times=2 * WARM) == {}


def test_what_was_counted_and_raised_survives():
    first = Alarms()
    updated(first, clip=0.5, times=WARM)
    for _ in range(SUSTAINED - 1):
        first.probed(0, look("vanish"))
    callback = GradientFlow("")
    callback.alarms = first
    held = json.loads(json.dumps(callback.state_dict()))  # plain data, as a checkpoint holds them
    again = GradientFlow("")
    again.load_state_dict(held)
    assert [alarm.kind for alarm in again.alarms.probed(5, look("vanish"))] == ["vanish"]
    assert list(updated(again.alarms, clip=0.5)) == ["clipped"]
    assert again.alarms.start == (0.5, 0)
    assert first.raised == {}  # nothing is shared


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than these trainings."""
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda *given: None)


class Small(DataModule):
    """Clusters of numbers that a network can tell apart."""

    def __init__(self, spec, count):
        def load():
            generator = torch.Generator().manual_seed(0)
            y = torch.arange(count) % spec.outputs
            centres = torch.randn(spec.outputs, *spec.shape, generator=generator)
            x = centres[y] + 0.5 * torch.randn(count, *spec.shape, generator=generator)
            return {"train": (x, y)}

        super().__init__(lambda: Source("clusters", spec, load=load), batch_size=16)


def train(folder, model, steps, lr=0.01, probes=20, more=(), **trainer):
    """The alarms of a short training."""
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=lr)
    callback = GradientFlow(str(folder), every_n_steps=1, probes=probes, on_alarm="log")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "logger": False, "default_root_dir": folder, "callbacks": [*more, callback]}
    Trainer(max_epochs=1, **where, **quiet, **trainer).fit(model, Small(model.spec, 16 * steps))
    return callback.alarms.raised


def mlp(depth, seed=0, **words):
    torch.manual_seed(seed)
    return MLP(NUMBERS, depth=depth, width=32, **words)


def test_a_deep_sigmoid_net_vanishes(tmp_path, capsys):
    raised = train(tmp_path, mlp(20, activation="sigmoid", init="torch"), steps=5)
    assert "vanish" in raised
    assert raised["vanish"].startswith("step 2: the gradient shrinks by a factor of 10¹⁶·")
    assert "explode" not in raised
    assert "ALARM" not in capsys.readouterr().out  # on_alarm=log


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_healthy_nets_raise_nothing(tmp_path, seed):
    """Neither does clipping that never sets in, nor a usual step."""
    assert train(tmp_path, mlp(8, seed, activation="relu", init="he"), WARM + 5, gradient_clip_val=1e6) == {}


def test_a_healthy_resnet_raises_nothing(tmp_path):
    torch.manual_seed(0)
    assert train(tmp_path, ResNet(PIXELS, depth=20, width=8), steps=6, lr=0.05) == {}


@pytest.mark.parametrize("words", [{}, pytest.param({"norm": "batch"}, marks=pytest.mark.slow)])
def test_branches_that_start_at_zero_raise_nothing(tmp_path, words):
    assert train(tmp_path, mlp(10, residual=True, branch_scale=0.0, **words), steps=12) == {}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_large_gain_explodes(tmp_path, activation):
    init = {"name": "mean_field", "sigma_w": 3.0}
    raised = train(tmp_path, mlp(20, activation=activation, init=init), steps=4, lr=1e-9)
    assert "explode" in raised
    assert "vanish" not in raised


def test_dead_units_are_counted(tmp_path):
    model = mlp(2)
    with torch.no_grad():
        model.net.block1.linear.bias[:28] = -100
    raised = train(tmp_path, model, steps=4)
    assert raised["dead"].startswith("step 2: 88% of ")  # 28 of 32
    assert "block1" in raised["dead"]


def test_a_learning_rate_beyond_numbers_is_not_finite(tmp_path):
    raised = train(tmp_path, mlp(2), steps=5, lr=1e38)
    assert "the gradient of 00.block1.linear (3 layers) is not finite" in raised["nonfinite"]


class Searching(Callback):
    """Makes the run look like one of 16-bit gradients, whose infinities are how it finds a scale."""

    def on_fit_start(self, trainer, pl_module):
        trainer.precision_plugin.scaler = object()


def test_an_infinity_in_the_search_for_a_scale_is_none(tmp_path):
    assert "nonfinite" not in train(tmp_path, mlp(2), steps=5, lr=1e38, probes=0, more=[Searching()])


def test_clipping_that_never_ends(tmp_path):
    steps = WARM + 5
    raised = train(tmp_path, mlp(2), steps, gradient_clip_val=1e-6)
    assert f"{WARM + 1} of {WARM + 1} logged steps" in raised["clipped"]


def test_a_step_that_is_far_too_large(tmp_path):
    steps = WARM + 5
    raised = train(tmp_path, mlp(2, activation="tanh"), steps, lr=3.0)
    assert "half of the layers change by" in raised["update_too_large"]


BAD = ("model.depth=20", "model.width=16", "activation=sigmoid", "init=torch", "data=regression", *QUIET)
TEN = ("trainer.limit_train_batches=10", "trainer.max_epochs=1")


@pytest.mark.parametrize("wish", [pytest.param("log", marks=pytest.mark.slow), "warn", "stop", "prune"])
def test_what_follows_an_alarm(trained, capsys, wish):
    run = trained(*BAD, *TEN, f"on_alarm={wish}")
    screen, facts = capsys.readouterr().out, runs.read_json(run / runs.SUMMARY)
    assert screen.count("ALARM vanish: step 2: ") == (wish != "log")
    assert "the gradient shrinks by" in facts["alarms"]["vanish"]
    assert facts["steps"] == (3 if wish in ("stop", "prune") else 10)
    assert facts["status"] == ("pruned" if wish == "prune" else "finished")
    assert ("test" in facts) == (wish != "prune")
    if wish == "prune":
        assert facts["reason"].startswith("vanish: step 2: ")
        assert f"pruned: {facts['reason']}" in screen.replace("\n", " ")


def test_an_unknown_wish(trained, capsys):
    with pytest.raises(SystemExit) as ended:
        trained(*BAD, "on_alarm=shout")
    assert ended.value.code == 2
    assert "on_alarm=shout: expected one of log, warn, stop, prune" in capsys.readouterr().err


def test_a_look_before_the_first_step(trained, capsys):
    run = trained(*BAD, "probe=true", "debug=fast", "on_alarm=warn")
    facts = runs.read_json(run / runs.SUMMARY)
    first, *_ = runs.read_lines(run / runs.FLOW)
    screen = capsys.readouterr().out
    assert "probe: FAIL, log₁₀ gradient ratio = " in screen
    assert "training will probably stall or diverge" in screen
    assert facts["probe"]["decades"] == pytest.approx(first["verdict"]["decades"], rel=1e-4)  # the same weights
    assert facts["verdict"]["start"]["word"] == "FAIL"
    assert facts["steps"] == 3


def test_a_look_that_fails_prunes_before_the_first_step(trained):
    run = trained(*BAD, "probe=true", "on_alarm=prune")
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["status"] == "pruned"
    assert facts["reason"].startswith("before the first step: ‖∂L/∂h₁‖ = 10⁻")
    assert "steps" not in facts
    assert not (run / runs.FLOW).exists()
    assert not (run / runs.LAST).exists()


@pytest.mark.slow
def test_a_look_before_the_first_step_changes_nothing(trained):
    words = ("data=regression", "model.width=16", "model.dropout=0.3", "debug=fast", *QUIET, "test=false")
    plain, looked = (
        torch.load(trained(*words, f"probe={wish}") / runs.LAST, weights_only=True)["state_dict"]
        for wish in ("false", "true")
    )
    assert all(torch.equal(plain[name], looked[name]) for name in plain)


@pytest.mark.slow
def test_alarms_go_on_after_a_resume(trained):
    words = (*BAD, "test=false", "trainer.limit_train_batches=4")
    first = trained(*words, "trainer.max_epochs=1")
    raised = runs.read_json(first / runs.SUMMARY)["alarms"]
    assert raised["vanish"].startswith("step 2: ")
    resumed = trained(*words, "trainer.max_epochs=2", f"resume={first}")
    again = runs.read_json(resumed / runs.SUMMARY)["alarms"]
    assert again | raised == again  # none of them is raised a second time, at another step


def recalled(model, length, steps, lr):
    """The alarms of a network that learns to recall the first of `length` symbols, its gaps over time, and the end."""
    alarms, gaps, generator = Alarms(), [], torch.Generator().manual_seed(1)

    def batch(size):
        x = torch.randint(4, 8, (size, length), generator=generator)
        x[:, 0] = torch.randint(4, (size,), generator=generator)
        return x, x[:, 0].clone()

    x, y = batch(64)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for step in range(steps):
        if step in probe_steps(steps, 20):
            seen = probe(model, (x, y), own_loss, trunk_of(model), torch.float32)
            judged = judge(seen, alarms.start)
            alarms.probed(step, seen)
            gaps.append(log_ratio(seen.time))
        given, target = batch(32)
        optimizer.zero_grad()
        model.loss(model(given), target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return alarms.raised, gaps, judged, seen.loss


def recurrent(make, length, seed=1, **words):
    torch.manual_seed(seed)
    return make(Spec("sequence", (length,), "classification", outputs=4, tokens=8), hidden=32, **words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "lr", "words"),
    [(LSTM, 5e-3, {"forget_bias": "chrono"}), (LSTM, 5e-3, {}), (RNN, 1e-3, {"activation": "relu", "identity": True})],
)
def test_a_memory_that_was_learned_raises_nothing(make, lr, words):
    """Its gradient is largest at the step to be recalled: in the last case beyond CAUTION, for three probes in turn."""
    raised, gaps, judged, loss = recalled(recurrent(make, 20, **words), 20, 500, lr)
    assert loss < 0.1
    assert raised == {}
    assert judged.word == "OK"
    if make is RNN:
        assert any(min(gaps[index : index + SUSTAINED]) > CAUTION for index in range(len(gaps) - SUSTAINED + 1))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_memory_that_explodes(activation):
    init = {"name": "mean_field", "sigma_w": 2.0 if activation == "relu" else 3.0}
    raised, *_ = recalled(recurrent(RNN, 40, activation=activation, init=init), 40, 9, 1e-3)
    assert raised["explode"].startswith("step 2: the gradient grows by ")
