"""A run goes on in its own folder, as if it had never stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import OPTIONS

from gradflow import runs
from gradflow.config import precision, previous_runs, resume
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.models.base import Module
from gradflow.models.whitened_cnn import Whitening
from gradflow.runs import claims, overrides
from gradflow.runs.errors import UserError
from gradflow.training import checkpoints, signals
from gradflow.training.checkpoints import Atomic

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from crash_test import differences  # noqa: E402

WORDS = (
    "data=regression",
    "data.points=200",
    "data.val=70",  # several batches, so that a signal is heard among them
    "data.batch_size=16",
    "model.width=8",
    "model.dropout=0.3",
    "scheduler=cosine",
    "logger=none",
    "callbacks.progress=null",
    "callbacks.gradient_flow.every_n_steps=2",
    "callbacks.gradient_flow.probes=5",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=6",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pictures, and the handlers of pytest after each run."""
    monkeypatch.setattr(GradientFlow, "draw", lambda *_: None)
    before = {number: signal.getsignal(number) for number in signals.NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    claims.release()


@pytest.fixture
def stopped(trained, monkeypatch, tmp_path):
    """Train until the `number`-th call of a method of the model, which gets a signal; the folder of the run."""

    def run(hook: str, number: int, *words: str, sent: int = signal.SIGTERM, status: int = 143) -> Path:
        before, calls = set(tmp_path.glob("runs/*/*")), iter(range(1, 10**6))
        was = getattr(Module, hook)

        def called(self, *arguments):
            if next(calls) == number:
                os.kill(os.getpid(), sent)
            return was(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Module, hook, called)
            with pytest.raises(SystemExit) as ended:
                trained(*words)
        assert ended.value.code == status
        new = set(tmp_path.glob("runs/*/*")) - before
        found = new.pop() if new else max(before, key=lambda path: (path / runs.SUMMARY).stat().st_mtime_ns)
        assert runs.read_json(found / runs.SUMMARY)["status"] == "interrupted"
        return found

    return run


# Which run goes on


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run folder as a run leaves it, without a training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")

    def make(name: str, words: list[str], status: str = "running", age: int = 0) -> Path:
        run = Path("runs", "day", name)
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words) or "[]\n")
        runs.write_json(run / runs.SUMMARY, {"status": status})
        os.utime(run / runs.SUMMARY, (10**9 - age, 10**9 - age))
        return run

    return make


def led(run: Path, *words: str) -> list[str]:
    return [*words, f"hydra.run.dir='{run}'"]


@pytest.mark.parametrize("word", ["seed=1", "resume=null", "+resume=null", "resume=nowhere", "resume=file.ckpt"])
def test_other_words_stay_as_they_are(made, word):
    made("one", ["seed=1"])
    Path("file.ckpt").touch()
    assert resume.arguments_of_resumed_run(["model=mlp", word]) == ["model=mlp", word]
    assert not claims._claims


def test_auto_takes_the_newest_unfinished_run_of_the_same_words(made):
    wanted = ["seed=1", "~callbacks.best", "+trainer.val_check_interval=0.5"]
    made("older", wanted, age=9)
    made("other", ["seed=2"])
    made("fewer", wanted[:2])
    newest = made("newest", [wanted[2], "resume=auto", *wanted[:2]], "failed", age=5)
    made("finished", wanted, "finished")
    made("pruned", wanted, "pruned")
    given = [*wanted, "resume=auto", "hydra/launcher=basic"]
    assert resume.arguments_of_resumed_run(given) == led(newest, *given)
    assert list(claims._claims) == [newest.absolute()]


def test_auto_begins_anew_where_all_are_finished(made):
    made("finished", ["seed=1"], "finished")
    assert resume.arguments_of_resumed_run(["seed=1", "resume=auto"]) == ["seed=1", "resume=auto"]


def test_flags_and_what_follows_them_are_no_part_of_a_run(made):
    run = made("one", ["seed=1"])
    given = ["--config-name", "train", "seed=1", "resume=auto"]
    assert resume.arguments_of_resumed_run(given) == led(run, *given)


HOLDER = "import sys; sys.path.insert(0, sys.argv[1]); from gradflow.runs import locks; from pathlib import Path\n"
HOLDER += "lock = locks.acquire(Path(sys.argv[2])); print(lock is not None, flush=True); sys.stdin.read()"


def test_a_run_that_a_process_is_at_is_left_alone(made):
    older, newer = made("older", ["seed=1"], age=9), made("newer", ["seed=1"])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(ROOT / "src"), str(newer)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"True\n"
        assert resume.arguments_of_resumed_run(["seed=1", "resume=auto"]) == led(older, "seed=1", "resume=auto")
        with pytest.raises(UserError, match=r"resume=runs/day/newer: another process is at work in it"):
            resume.arguments_of_resumed_run([f"resume={newer}"])
        holder.stdin.close()
    assert claims.go_on(newer)  # its lock has ended with it


def test_a_folder_goes_on_with_its_own_words_and_those_given_anew(made):
    run = made("one", ["seed=1", "+trainer.val_check_interval=0.5", "trainer.max_epochs=3"], "finished")
    given = [f"resume={run}", "trainer.max_epochs=5"]
    assert resume.arguments_of_resumed_run(given) == led(run, "seed=1", "+trainer.val_check_interval=0.5", *given)
    absolute = [f"resume={run.absolute()}", "trainer.max_epochs=5"]
    assert resume.arguments_of_resumed_run(absolute)[-1] == f"hydra.run.dir='{run.absolute()}'"


@pytest.mark.parametrize("status", ["finished", "pruned"])
@pytest.mark.parametrize("words", [["resume=runs/day/one"], ["seed=1", "hydra.run.dir=runs/day/one", "resume=auto"]])
def test_what_is_over_ends_at_once(made, status, words, capsys):
    made("one", ["seed=1"], status)
    with pytest.raises(SystemExit) as ended:
        resume.arguments_of_resumed_run(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "resume: runs/day/one is finished already\n"
    assert not claims._claims


def test_a_folder_that_is_given_goes_on_or_is_begun(made, monkeypatch):
    run = made("17", ["seed=1"], "interrupted")
    monkeypatch.setenv("JOB", "17")
    for name in ("runs/day/17", "'runs/day/17'", "runs/day/${oc.env:JOB}"):
        given = ["seed=1", f"hydra.run.dir={name}", "resume=auto"]
        assert resume.arguments_of_resumed_run(given) == led(run, "seed=1", "resume=auto")
    fresh = ["seed=1", "hydra.run.dir=runs/day/18", "resume=auto"]
    assert resume.arguments_of_resumed_run(fresh) == fresh
    assert not list(Path("runs/day").glob("18*"))
    with pytest.raises(UserError, match=r"hydra.run.dir=x: resume=runs/day/17 goes on in its own folder"):
        resume.arguments_of_resumed_run([f"resume={run}", "hydra.run.dir=x"])


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_goes_on_otherwise(made, flag):
    with pytest.raises(UserError, match="a sweep goes on with continue_sweep=newest"):
        resume.arguments_of_resumed_run([flag, "resume=auto", "seed=1,2"])


def test_a_folder_without_a_record_is_no_run(made):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"resume=empty: not a run folder \(there is no .hydra/overrides.yaml in it\)"):
        resume.arguments_of_resumed_run(["resume=empty"])


def test_a_damaged_folder_is_passed_over(made):
    good, bad = made("good", ["seed=1"]), made("bad", ["seed=1"])
    (bad / runs.SUMMARY).write_text('{"status"')
    assert resume.arguments_of_resumed_run(["seed=1", "resume=auto"])[-1] == f"hydra.run.dir='{good}'"


def test_odd_paths(made):
    run = made("it's $5, {x}=[y] ~ ü", ["seed=1"])
    for quoted in (overrides.quoted(run), f'"{run}"'):
        assert overrides.value("resume", resume.arguments_of_resumed_run([f"resume={quoted}"])) == str(run)
    assert overrides.value(
        "hydra.run.dir", resume.arguments_of_resumed_run([f"resume={overrides.quoted(run)}"])
    ) == str(run)


def test_ranks_that_lightning_starts_have_the_words_of_the_first(made, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    run = made("one", ["seed=1"])
    given = ["seed=1", "resume=auto", f"hydra.run.dir={run}"]
    assert resume.arguments_of_resumed_run(given) == given
    assert not claims._claims


def test_the_words_of_a_run_that_goes_on_are_those_of_its_beginning(made):
    run = made("one", ["seed=1", "resume=other/last.ckpt"])
    plain = made("two", ["seed=1", "resume=auto"])
    for wish in ("resume=auto", f"resume={run}"):
        assert overrides.to_record(run, [wish, "seed=1"]) == ["seed=1", "resume=other/last.ckpt"]
        assert overrides.to_record(plain, [wish, "seed=1"]) == ["seed=1"]
    assert overrides.to_record(plain, ["resume=new.ckpt", "seed=1"]) == ["resume=new.ckpt", "seed=1"]
    assert previous_runs.initial_checkpoint(run) == Path("other/last.ckpt")
    assert previous_runs.initial_checkpoint(plain) is None


# Files


def held(step: int) -> dict:
    weights = torch.randn(4000, generator=torch.Generator().manual_seed(step))
    return {"state_dict": {"w": weights}, "global_step": step, "optimizer_states": [{}], "loops": {"at": step}}


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of the steps 1 and 2."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 7\n")
    for step in (1, 2):
        save(tmp_path, step)
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [torch.load(folder / name, weights_only=True)["global_step"] for name in (runs.LAST, runs.PREVIOUS)]


def save(folder: Path, step: int) -> None:
    Atomic(str(folder)).save_checkpoint(held(step), folder / runs.LAST, folder / runs.PREVIOUS)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / runs.CHECKPOINTS).iterdir())


def test_the_one_before_is_kept_and_nothing_else(folder):
    assert steps(folder) == [2, 1]
    assert files(folder) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(folder / runs.LAST, weights_only=True)["run"] == {
        "format": 2,
        "step": 2,
        "config": "seed: 7\n",
        "versions": {},
    }


def test_weights_alone_hold_no_place_to_go_on_from(folder):
    content = {name: value for name, value in held(3).items() if name != "optimizer_states"}
    Atomic(str(folder)).save_checkpoint(content, folder / runs.BEST)
    kept = torch.load(folder / runs.BEST, weights_only=True)
    assert set(kept) == {"state_dict", "global_step", "run"}
    assert kept["run"]["config"] == "seed: 7\n"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_changes_nothing(folder, monkeypatch, moment, error):
    def fails(*_):
        raise error

    owner = os if moment == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, fails)
        with pytest.raises(type(error)) as caught:
            save(folder, 3)
    if isinstance(error, OSError):
        assert caught.value.filename == str(folder / runs.LAST)
        assert files(folder) == ["last.ckpt", "previous.ckpt"]
    assert steps(folder) == [2, 1]
    assert checkpoints.newest(folder) == folder / runs.LAST
    save(folder, 4)  # a draft that stayed is no hindrance
    assert steps(folder) == [4, 2]
    assert files(folder) == ["last.ckpt", "previous.ckpt"]


def test_a_process_that_ends_between_two_renames_leaves_the_one_before(folder, monkeypatch):
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda one, other: rename(one, other) if one.name == "last.ckpt" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(folder, 3)
    assert checkpoints.newest(folder) == folder / runs.PREVIOUS
    assert torch.load(folder / runs.PREVIOUS, weights_only=True)["global_step"] == 2
    monkeypatch.undo()
    save(folder, 4)
    assert steps(folder) == [4, 2]


def flipped(content: bytes) -> bytes:
    place = len(content) // 2  # in the weights
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "torn": lambda content: content[: len(content) // 2],
    "a byte flipped": flipped,
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(3000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_recognised(folder, damage, capsys):
    for name, other in ((runs.LAST, runs.PREVIOUS), (runs.PREVIOUS, None)):
        assert checkpoints.newest(folder) == folder / name
        (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
        if other:
            assert checkpoints.newest(folder) == folder / other
            said = capsys.readouterr().err
            assert said.startswith(f"resume: {folder / name}: not a checkpoint of ours, or damaged (")
            assert said.count("\n") == 1
    before = {path: path.read_bytes() for path in (folder / runs.CHECKPOINTS).iterdir()}
    with pytest.raises(UserError, match="no checkpoint in it can be read; begin anew without resume=…"):
        checkpoints.newest(folder)
    assert before == {path: path.read_bytes() for path in (folder / runs.CHECKPOINTS).iterdir()}


def rewritten(file: Path, change) -> None:
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


TABLES = (runs.METRICS, runs.GRADIENTS, "updates.csv", runs.FLOW, runs.SUMMARY)


@pytest.mark.slow
def test_older_checkpoints_and_those_of_another_package_go_on(trained, stopped):
    """Before they had a number they were kept under the package's name, which a fork changes."""
    whole = trained(*WORDS)
    run = stopped("training_step", 10, *WORDS)

    def of_another_package(content: dict) -> None:
        content["somebodys_package"] = content.pop("run")
        del content["somebodys_package"]["format"]

    rewritten(run / runs.LAST, of_another_package)
    assert trained("resume=auto", *WORDS) == run
    assert list(differences(whole, run)) == []


@pytest.mark.slow
def test_without_counts_nothing_is_cut(trained, stopped, capsys):
    run = stopped("training_step", 10, *WORDS)
    rewritten(run / runs.LAST, lambda content: content.pop("run"))
    before = {name: (run / name).read_bytes() for name in TABLES}
    with pytest.raises(SystemExit) as ended:
        trained("resume=auto", *WORDS)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoints/last.ckpt: does not say how many lines metrics.csv and other tables had" in said
    assert {name: (run / name).read_bytes() for name in TABLES} == before


def test_a_checkpoint_without_counts_is_refused(folder):
    with pytest.raises(UserError, match=r"last.ckpt: does not say how many lines .* had"):
        checkpoints.line_counts(folder / runs.LAST, checkpoints.read(folder / runs.LAST))
    assert checkpoints.line_counts(
        folder / runs.LAST, {"gradflow": {"config": "", "versions": {}, "lines": {"a": 1}}}
    ) == {"a": 1}


def test_a_format_that_is_not_known_yet_is_not_read(folder):
    rewritten(folder / runs.LAST, lambda content: content["run"].update(format=3))
    with pytest.raises(UserError, match=r"last.ckpt: .*it has format 3, and this version reads formats up to 2"):
        checkpoints.read(folder / runs.LAST)


def test_no_checkpoint_yet(tmp_path):
    assert checkpoints.newest(tmp_path) is None


# The same run


def test_stopped_within_a_validation(trained, stopped, capsys):
    """And words that it refuses leave its record as it was."""
    whole = trained(*WORDS)
    run = stopped("validation_step", 2, *WORDS)
    where = os.path.relpath(run)
    told = f"\nstopped by SIGTERM: step 6 is saved; python src/train.py resume={where} goes on\n"
    assert capsys.readouterr().err == told
    record = {path: path.read_bytes() for path in (run / ".hydra").iterdir()}
    with pytest.raises(SystemExit):
        trained(f"resume={run}", "optimizer.lr=0.5")
    assert "optimizer.lr=0.5: the run to resume has other overrides" in capsys.readouterr().err
    assert trained(*reversed(WORDS), "resume=auto") == run
    assert record == {path: path.read_bytes() for path in (run / ".hydra").iterdir()}
    assert f"resume: {where} goes on from step 6, checkpoints/last.ckpt" in capsys.readouterr().out
    assert list(differences(whole, run)) == []
    facts = runs.read_json(run / runs.SUMMARY)
    assert (facts["status"], facts["resumed"], facts["epochs"]) == ("finished", 1, 3)
    assert sorted(facts["overrides"]) == sorted(WORDS)


def test_several_optimizers_go_on_as_one(trained, stopped, capsys):
    """Schedule, momenta and every group's learning rate; a checkpoint of other values names the group."""
    words = (*WORDS, "optimizer=muon", "trainer.gradient_clip_val=0.5")
    whole = trained(*words)
    names = {f"lr/{name}" for name in ("rest", "vectors", "hidden")}
    assert names <= set(runs.read_table(whole / runs.METRICS)[0])
    rates = {name: [rate for _, rate in column(whole, name)] for name in names}
    assert rates["lr/hidden"] == pytest.approx([20 * rate for rate in rates["lr/rest"]])
    assert len({*rates["lr/rest"]}) == 18
    run = stopped("training_step", 8, *words)
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []
    file = f"resume={whole / runs.LAST}"
    for other, told in {
        "optimizer.hidden.lr=0.5": "optimizer.hidden.lr=0.5: the run to resume has 0.02; a resumed run",
        "optimizer=adamw_no_decay": "optimizer: the run to resume was trained by another optimizer; choose the same",
    }.items():
        with pytest.raises(SystemExit) as ended:
            trained(*words, file, other)
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hook", "number"), [("validation_step", 7), pytest.param("training_step", 14, marks=pytest.mark.slow)]
)
def test_a_plateau_goes_on_where_it_was(trained, stopped, hook, number):
    """It waits for no validation twice, and counts none twice; several optimizers follow."""
    chosen = ("optimizer=muon", "optimizer.vectors.lr=0.3", "scheduler.patience=0", "trainer.max_epochs=5")
    words = (*(word for word in WORDS if not word.startswith("scheduler")), "scheduler=plateau", *chosen)
    whole = trained(*words)
    rates = [rate for _, rate in column(whole, "lr/hidden")]
    assert 1 < len({*rates}) < 6
    assert all(len({*rates[epoch : epoch + 6]}) == 1 for epoch in range(0, len(rates), 6))  # it falls between epochs
    assert [rate for _, rate in column(whole, "lr/vectors")] == pytest.approx([15 * rate for rate in rates])
    run = stopped(hook, number, *words)
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []


def test_a_fast_run_goes_on_as_it_began(trained, stopped, monkeypatch):
    """Bit by bit, with a fused step and convolutions in channels_last, and where the machine would choose otherwise."""
    words = (*(word for word in WORDS if not word.startswith(("data", "model"))), "data=shapes", "data.size=16")
    words += ("data.val=70", "model=resnet", "model.depth=8", "model.width=4", "trainer=fast", "trainer.max_epochs=2")
    monkeypatch.setattr(precision, "_is_native", lambda node: True)
    whole = trained(*words)
    assert runs.read_json(whole / runs.SUMMARY)["precision"] == "bf16-mixed"
    run = stopped("training_step", 8, *words)
    monkeypatch.setattr(precision, "_is_native", lambda node: False)
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []


def test_chosen_metrics_go_on_within_an_epoch(trained, stopped, capsys):
    """Those of the whole epoch are written, though two processes saw a part each; other metrics would have seen one."""
    words = (*WORDS, "metrics=[mae,r2]")
    whole = trained(*words)
    run = stopped("training_step", 8, *words)
    with pytest.raises(SystemExit):
        trained(*WORDS, "metrics=[mae]", f"resume={run / runs.LAST}")
    assert "its sums are of mae/train, r2/train, and this run measures mae/train; choose" in capsys.readouterr().err
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []
    assert len([value for _, value in column(run, "r2/train") if value == value]) == 3


def test_every_diagnostic_goes_on_within_an_epoch(trained, stopped):
    """With a transformer, since some ask for attention."""
    shared = [word for word in WORDS if not word.startswith(("data.points", "data=", "model."))]
    words = (
        *shared,
        "data=adding",
        "data.length=6",
        "data.samples=96",
        "model=transformer",
        "model.width=8",
        "model.depth=1",
    )
    words = (*words, f"diagnostics=[{','.join(OPTIONS['diagnostics'])}]")
    whole = trained(*words)
    run = stopped("training_step", 8, *words)
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []
    for name in OPTIONS["diagnostics"]:
        assert runs.read_json(run / f"{name}.layout.json")["axes"], name


def test_what_a_model_measured_of_its_data_goes_on_from_the_checkpoint(trained, stopped, monkeypatch):
    """On another machine the same images may give the whitening layer components of another sign."""
    words = ("model=whitened_cnn", "model.channels=[4]", "data=shapes", "data.size=16", "optimizer=muon", "logger=none")
    words += ("callbacks.progress=null", "trainer.max_epochs=2", "trainer.limit_train_batches=3", "test=false")
    whole = trained(*words)
    weights = torch.load(whole / runs.LAST, weights_only=True)["state_dict"]
    assert not torch.equal(weights["net.whitening.weight"][:12].flatten(1), torch.eye(12))
    run = stopped("training_step", 5, *words)
    measured = Whitening.measure
    monkeypatch.setattr(Whitening, "measure", lambda self, images: measured(self, -images.flip(2)))
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []


PLACES = {
    "the first step": ("training_step", 1),
    "within an epoch": ("training_step", 8),
    "the last batch of an epoch": ("training_step", 6),
    "the first batch of an epoch": ("training_step", 7),
    "the last batch": ("training_step", 18),
    "a validation": ("validation_step", 2),
    "the last batch of a validation": ("validation_step", 5),
    "the beginning of a validation": ("on_validation_start", 1),
    "the end of an epoch": ("on_train_epoch_end", 2),
    "the beginning of the test": ("on_test_start", 1),
    "the test": ("test_step", 2),
}
KINDS = {
    "plain": (),
    "val_check_interval": ("+trainer.val_check_interval=0.5",),
    "check_val_every_n_epoch": ("trainer.check_val_every_n_epoch=2",),
    "accumulated": ("trainer.accumulate_grad_batches=4",),
    "max_steps": ("trainer.max_steps=10",),
    "no validation": ("data.val=0",),
    "muon": ("optimizer=muon", "trainer.accumulate_grad_batches=2"),
    "chosen metrics": ("metrics=[mse,r2]",),
    "saved often": ("callbacks.resume_checkpoint.every_n_steps=2", "callbacks.resume_checkpoint.every_minutes=1e-6"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere(trained, stopped, tmp_path, kind):
    words = (*WORDS, *KINDS[kind])
    whole = trained(*words)
    for place, (hook, number) in PLACES.items():
        if (kind, place) in NEVER:
            continue
        run = stopped(hook, number, *words)
        assert trained(*words, "resume=auto") == run, place
        assert list(differences(whole, run)) == [], place
        shutil.rmtree(run)


NEVER = {("max_steps", "the last batch")} | {
    ("no validation", place) for place in PLACES if PLACES[place][0].startswith(("validation", "on_validation"))
}


@pytest.mark.slow
def test_stopped_again_and_again(trained, stopped):
    words = (*WORDS, "callbacks.resume_checkpoint.every_n_epochs=2")
    whole = trained(*words)
    run = stopped("training_step", 3, *words)
    for hook, number in (("training_step", 2), ("validation_step", 2), ("validation_step", 2), ("training_step", 9)):
        assert stopped(hook, number, *words, "resume=auto") == run
    assert stopped("test_step", 1, *words, f"resume={run}") == run
    assert trained(f"resume={run}") == run
    assert list(differences(whole, run)) == []
    assert runs.read_json(run / runs.SUMMARY)["resumed"] == 6


class Crash(Exception):
    """As abrupt as a kill, for all but the status."""


def crashes(*_) -> None:
    raise Crash


@pytest.fixture
def crashed(trained, monkeypatch, tmp_path):
    """Train until something is called; the folder of the run."""

    def run(owner: type, name: str, *words: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, crashes)
            with pytest.raises(Crash):
                trained(*words)
        return max(tmp_path.glob("runs/*/*"), key=lambda path: path.stat().st_mtime_ns)

    return run


@pytest.mark.slow
def test_crashed_after_a_checkpoint_that_is_damaged(trained, crashed):
    """What lies past the one before it, half a row included, is cut off and written again."""
    whole = trained(*WORDS)
    run = crashed(Module, "on_test_start", *WORDS)
    assert run != whole
    (run / runs.LAST).write_bytes(b"torn")
    for name in runs.count_lines(run):
        with (run / name).open("a") as file:
            file.write("17,0.")
    assert runs.read_json(run / runs.SUMMARY)["status"] == "failed"
    assert crashed(Module, "on_test_start", *WORDS, "resume=auto") == run
    checkpoints.read(run / runs.PREVIOUS)  # whose place the damaged one must not take
    assert trained(*WORDS, "resume=auto") == run
    assert list(differences(whole, run)) == []


@pytest.mark.slow
def test_more_epochs_in_the_same_folder(trained):
    words = tuple(word for word in WORDS if word != "scheduler=cosine")
    whole, run = trained(*words, "trainer.max_epochs=5"), trained(*words)
    assert trained(f"resume={run}", "trainer.max_epochs=5") == run
    assert runs.read_json(run / runs.SUMMARY)["command"].endswith("trainer.max_epochs=5")
    assert "trainer.max_epochs=5" in runs.recorded_overrides(run)
    one, two = (torch.load(path / runs.LAST, weights_only=True) for path in (whole, run))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    assert column(whole, "loss/val") == column(run, "loss/val")
    assert column(whole, "loss/train") == column(run, "loss/train")


def column(run: Path, name: str) -> list[tuple[float, float]]:
    names, rows = runs.read_table(run / runs.METRICS)
    return [(row[0], row[names.index(name)]) for row in rows if row[names.index(name)] == row[names.index(name)]]


@pytest.mark.slow
def test_a_run_from_a_checkpoint_that_is_stopped_before_it_has_one_of_its_own(trained, crashed):
    first = trained(*WORDS, "trainer.max_steps=8")
    file = f"resume={first / runs.LAST}"
    whole = trained(*WORDS, file)
    run = crashed(Module, "training_step", *WORDS, file)
    assert not (run / runs.LAST).exists()
    assert trained(f"resume={run}") == run
    one, two = (torch.load(path / runs.LAST, weights_only=True)["state_dict"] for path in (whole, run))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert runs.read_json(run / runs.SUMMARY)["overrides"][-1] == file


@pytest.mark.slow
def test_stopped_by_an_alarm(trained, stopped, capsys):
    words = (*WORDS, "model.depth=30", "activation=sigmoid", "init=torch", "on_alarm=stop")
    whole = trained(*words)
    assert runs.read_json(whole / runs.SUMMARY)["steps"] == 3
    run = stopped("validation_step", 1, *words)
    assert f"stopped by SIGTERM: nothing is saved yet; python src/train.py resume={os.path.relpath(run)} goes on" in (
        capsys.readouterr().err
    )
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []


@pytest.mark.parametrize("limit", ["trainer.max_epochs=1", "trainer.max_steps=8"])
def test_a_run_that_goes_on_can_not_end_in_its_past(trained, stopped, capsys, limit):
    run = stopped("training_step", 15, *WORDS)  # the third batch of the third epoch
    before = {name: (run / name).read_bytes() for name in (runs.METRICS, runs.SUMMARY)}
    with pytest.raises(SystemExit) as ended:
        trained(f"resume={run}", limit)
    assert ended.value.code == 2
    assert f"behind it; give {limit.partition('=')[0]}=" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_the_bar_names_the_epoch(trained, stopped, capsys):
    words = (
        *(word for word in WORDS if not word.startswith("callbacks.progress")),
        "callbacks.progress.refresh_rate=1",
    )
    run = stopped("training_step", 8, *words)
    capsys.readouterr()
    assert trained(*words, "resume=auto") == run
    first = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Epoch"))
    assert first.startswith(("Epoch 2", "Epoch 3"))  # of the second one's end, unless the third's is within a second


@pytest.mark.slow
def test_sizes_and_what_takes_them(trained):
    run = trained(*WORDS, "model.width=256")
    last, best = ((run / name).stat().st_size for name in (runs.LAST, runs.BEST))
    weights = 4 * runs.read_json(run / runs.SUMMARY)["parameters"]
    assert weights < best < weights + 30_000
    assert 3 * weights < last < 3 * weights + 60_000  # Adam has two numbers for each
    assert runs.read_json(run / runs.SUMMARY)["tested"] == "best.ckpt"
    trained(f"run={run}", program="eval")
    assert runs.read_json(run / runs.SCORES)


def launch(folder: Path, *words: str) -> subprocess.Popen:
    program = [sys.executable, str(ROOT / "src" / "train.py"), *words]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.slow
def test_two_devices_then_one(tmp_path):
    """The mean over the epoch is that of all its samples, whoever saw them; weights that stay make it exact."""
    words = ("data=shapes", "data.size=16", "model.width=8", "optimizer=sgd", "optimizer.lr=1e-30", "logger=none")
    words += (
        "callbacks.progress=null",
        "trainer.max_epochs=1",
        "trainer.max_steps=8",
        "callbacks.resume_checkpoint.every_n_steps=4",
    )
    for name in ("whole", "part"):
        assert ended(launch(tmp_path, *words, "trainer=ddp_cpu", f"hydra.run.dir={name}"))[0] == 0
    part = tmp_path / "part"
    shutil.copy(part / runs.PREVIOUS, part / runs.LAST)
    held = torch.load(part / runs.LAST, weights_only=True)
    assert held["global_step"] == 4
    assert held["run"]["sums"]["accuracy/train"]["count"].shape == (2,)
    runs.write_json(part / runs.SUMMARY, runs.read_json(part / runs.SUMMARY) | {"status": "interrupted"})
    assert ended(launch(tmp_path, "resume=part", "trainer=cpu", "trainer.devices=1"))[0] == 0
    assert runs.read_json(part / runs.SUMMARY)["devices"] == 1
    assert column(part, "accuracy/train") == column(tmp_path / "whole", "accuracy/train")


@pytest.mark.slow
def test_killed_at_random_moments():
    script = [sys.executable, str(ROOT / "scripts" / "crash_test.py"), "--times", "6", "--only", "mlp"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # the control has differed, too
    assert "| mlp | 6 of 6 |" in done.stdout


@pytest.mark.parametrize("word", ["seed=4", "data.val=0.3", "activation=tanh", "scheduler=step"])
def test_another_run_is_refused(tmp_path, monkeypatch, word):
    """Its validation samples would be some that this one has trained on, its network another with the same weights."""
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "runs" / "day" / "17" / ".hydra"
    record.mkdir(parents=True)
    (record / "overrides.yaml").write_text("- data=shapes\n- seed=3\n")
    runs.write_json(record.parent / runs.SUMMARY, {"status": "interrupted"})
    for words in (
        ["resume=runs/day/17", word],
        ["hydra.run.dir=runs/day/17", "resume=auto", "data=shapes", "seed=3", word],
    ):
        with pytest.raises(UserError, match=f"^{re.escape(word)}: the run to resume has other overrides"):
            resume.arguments_of_resumed_run(words)
    free = ("trainer.max_epochs=9", "callbacks.resume_checkpoint.every_n_steps=2", "summary=json")
    fine = resume.arguments_of_resumed_run(["resume=runs/day/17", *free])
    assert fine[:2] == ["data=shapes", "seed=3"]
    with pytest.raises(UserError, match=r"^seed=3: the run to resume has other overrides"):
        resume.arguments_of_resumed_run(["hydra.run.dir=runs/day/17", "resume=auto", "data=shapes"])


def test_the_last_word_has_a_line_of_its_own(stopped, capsys, monkeypatch):
    """On a terminal the line of progress is over before it, and is not drawn anew after it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stopped("training_step", 8, *(word for word in WORDS if word != "callbacks.progress=null"))
    progress, last, rest = capsys.readouterr().err.partition("stopped by SIGTERM: step 8 is saved")
    assert "Epoch 1" in progress
    assert progress.endswith("\n")
    assert last
    assert "Epoch" not in rest


@pytest.mark.parametrize(("status", "goes_on"), [("running", True), ("interrupted", True), ("finished", False)])
def test_a_checkpoint_that_is_not_there_yet(tmp_path, status, goes_on):
    runs.write_json(tmp_path / runs.SUMMARY, {"status": status})
    (tmp_path / runs.OVERRIDES).parent.mkdir()
    (tmp_path / runs.OVERRIDES).write_text("[]")
    with pytest.raises(UserError, match="no such checkpoint; its folder has none") as caught:
        checkpoints.read_for(tmp_path / runs.CHECKPOINTS / "best.ckpt", torch.nn.Linear(1, 1))
    assert ("src/train.py resume=" in str(caught.value)) == goes_on


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"nowhere: no such run folder or checkpoint$"):
        checkpoints.read_for(Path("nowhere"), torch.nn.Linear(1, 1))
