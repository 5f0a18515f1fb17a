"""Invalid input prints one line that names what is wrong, and exits with status 2; nothing is left behind."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from invalid_input import LINES, PROGRAMS, QUIET, ROOT, prepare, run
from omegaconf import OmegaConf

from gradflow.config import library_errors
from gradflow.config.arguments import check_arguments
from gradflow.config.command import explain, report_disk
from gradflow.config.options import of_group
from gradflow.config.value_types import _takes_lists, check_sweep, note_replaced
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.sweeps.local import Local

LR = OmegaConf.load(of_group("optimizer")["adam"]).lr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("invalid")
    prepare(made)
    return made


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies there, but for the files that processes lock."""
    paths = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if not path.name.endswith((".lock", ".held"))
    }
    return {
        name: (path.is_file() and path.stat().st_size, path.is_file() and path.stat().st_mtime_ns)
        for name, path in paths.items()
    }


def marked(line: str) -> Any:
    """Two of three of those that are much alike are for `make test-all`."""
    alike = LINES[line] in ("Types", "Values") and list(LINES).index(line) % 3
    return pytest.param(line, marks=[pytest.mark.slow] if alike else [])


def parts(line: str) -> set[str]:
    """Return the keys of a line, and the words of their values: a message has to name one of them."""
    words = [word for word in line.split() if word not in PROGRAMS]
    keys = [re.sub(r"^[+~]+", "", word.partition("=")[0]).split(".") for word in words]
    named = {".".join(key[:n]) for key in keys for n in range(min(2, len(key)), len(key) + 1)}
    values = [word.partition("=")[2] for word in words]
    inner = [*re.findall(r"\w{3,}", " ".join(values)), *(["interpolation"] if "${" in line else [])]
    return {*words, *named, *(key[-1] for key in keys), *values, *inner} - {""}


@pytest.mark.parametrize("line", [marked(line) for line in LINES])
def test_one_line(folder, line, monkeypatch):
    """It names what is wrong, and leaves nothing behind."""
    if LINES[line] == "Devices" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    before = content(folder)
    status, said = run(line, folder)
    assert (status, said.count("\n")) == (2, 1), said
    assert said.startswith("error: ")
    assert any(part in said for part in parts(line) or {"must be given", "are required"}), said
    assert content(folder) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trainer.max_epochs=1", "has 1 epochs behind it; give trainer.max_epochs=2 or more"),
        ("trainer.max_epochs=2 optimizer=sgd", "was trained by another optimizer"),
        ("trainer.max_epochs=2 optimizer.lr=0.5", f"optimizer.lr=0.5: the run to resume has {LR}"),
        ("trainer.max_epochs=2 model.width=8", "holds another model"),
    ],
)
def test_a_checkpoint_that_does_not_fit(folder, words, expected):
    before = content(folder)
    status, said = run(f"{QUIET} resume=done/checkpoints/last.ckpt {words}", folder)
    assert status == 2
    assert expected in said
    assert said.count("\n") == 1
    assert content(folder) == before


def test_a_damaged_folder_is_no_reason_to_refuse_another(folder, tmp_path):
    """`resume=auto` looks at every run below runs/."""
    (tmp_path / "runs" / "day" / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "runs" / "day" / "run" / ".hydra" / "overrides.yaml").write_text("[")
    (tmp_path / "runs" / "day" / "run" / "summary.json").write_text("{")
    status, said = run(f"{QUIET} resume=auto seed=-1", tmp_path)
    assert status == 2
    assert said == "error: seed=-1: expected a whole number from 0 to 4294967295\n"


@pytest.mark.parametrize(
    ("words", "seed"),
    [
        ("+tag=x hydra.run.dir=${tag}", -1),
        ("+lost.tag=3 model.depth=${lost.tag}", -1),
        ("+tag=-2 seed=${oc.select:tag,0}", -2),
        ("+callbacks.stop=null", -1),
    ],
)
def test_a_key_that_something_reads_can_be_added(folder, words, seed):
    """The seed is what is told then."""
    _, said = run(f"data=regression seed=-1 '{words.replace(' ', chr(39) + ' ' + chr(39))}'", folder)
    assert said == f"error: seed={seed}: expected a whole number from 0 to 4294967295\n"


@pytest.mark.parametrize(
    ("key", "takes"), [("model.width", True), ("model.depth", False), ("x.y", False), ("x", False)]
)
def test_a_list_is_taken_where_the_constructor_says_so(key, takes):
    defaults = OmegaConf.create({"model": {"_target_": "gradflow.models.mlp.MLP"}, "x": {"y": 1}})
    assert _takes_lists(key, defaults) == takes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=mlp", "seed=1", "model=cnn"], ["model=mlp is not used: model=cnn comes after it"]),
        (["+a=1", "++a=2", "a=3"], ["+a=1 is not used: a=3 comes after it", "++a=2 is not used: a=3 comes after it"]),
        (["seed=1", "seed=1", "model=mlp", "model.depth=2", "~callbacks.best", "+callbacks.best=null"], []),
    ],
)
def test_a_key_that_is_given_twice_is_named(words, told, capsys):
    note_replaced(words)
    assert capsys.readouterr().out.splitlines() == [f"note: {line}" for line in told]


def test_a_command_tells_which_words_are_not_used(trained, capsys):
    with pytest.raises(SystemExit):
        trained("data=shapes", "seed=1", "data=regression", "seed=-1")
    told = capsys.readouterr().out.splitlines()
    assert told == [f"note: {a} is not used: {b} comes after it"
                    for a, b in (("data=shapes", "data=regression"), ("seed=1", "seed=-1"))]  # fmt: skip


@pytest.mark.parametrize("devices", [0, "0", "two"])
def test_devices_of_a_sweep(devices):
    with pytest.raises(UserError, match=f"trainer.devices={devices}: in a sweep give a number"):
        Local(None, 1).need({"devices": devices})


def test_a_sweep_is_looked_at_once_for_each_word(monkeypatch):
    """A grid of a thousand jobs costs no more than its axes."""
    from hydra import initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from gradflow.config.options import CONF

    loads = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *given, **named: loads.append(1) or load(*given, **named)
    )
    grid = [
        [f"model={model}", f"seed={seed}", f"optimizer.lr={lr}"]
        for model in ("mlp", "lstm") for seed in range(10) for lr in (0.1, 0.2)
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check_sweep(grid, "train")
        assert len(loads) == 1  # of the first jobs' options; those of the others bring no other value


def command(*words: str, folder: Path, flags: tuple[str, ...] = (), program: str = "train"):
    line = [sys.executable, *flags, str(ROOT / "src" / f"{program}.py"), *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)


def test_real_command_lines(tmp_path):
    """What the configuration alone shows is told without loading torch."""
    wrong = command("optimizer.lr=abc", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: optimizer.lr=abc: expected a number, like the default {LR}\n"
    assert not list(tmp_path.iterdir())
    probe = "import sys; sys.argv = ['train.py', '--cfg', 'job']; import train; train.main()"
    heavy = f"{probe}; sys.exit(bool({{'torch', 'lightning', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT / "src", capture_output=True, check=False)
    assert done.returncode == 0
    assert b"model" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "program", "words", "expected"),
    [
        (("-O",), "train", ["model.depth=2.5"], "model.depth=2.5: expected a whole number, like the default 3"),
        ((), "train", ["data=regression", "logger=none"], r"runs/[\w/-]+: can't be made the run's folder"),
        ((), "train", ["-m", "data=regression", "seed=0,x"], "seed=x: expected a whole number, like the default 0"),
        ((), "eval", ["run=nowhere"], "run=nowhere: not a run folder"),
        ((), "probe", ["data=regression", "model=cnn"], "CNN takes image, not vector"),
        ((), "report", ["nowhere"], "nowhere: no such folder"),
    ],
)
def test_more_real_command_lines(tmp_path, flags, program, words, expected):
    """In another folder than the repository's, where one line finds that `runs` is a file."""
    if expected.startswith("runs/"):
        (tmp_path / "runs").touch()
    before = sorted(tmp_path.rglob("*"))
    wrong = command(*words, folder=tmp_path, flags=flags, program=program)
    assert wrong.returncode == 2, wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    assert re.match(f"error: {expected}", wrong.stderr), wrong.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_full_error_adds_the_traceback(trained, monkeypatch):
    monkeypatch.setenv("GRADFLOW_TRACEBACK", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which main sets, and later tests would find
    with pytest.raises(Exception, match="expected a number"):
        trained("optimizer.lr=abc")


def test_a_defect_of_ours_keeps_its_traceback(trained, monkeypatch):
    from gradflow.config import build

    monkeypatch.setattr(build, "data", lambda cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained("data=shapes")
    monkeypatch.setattr(build, "data", lambda cfg: int("a defect"))  # an exception that Hydra raises, too
    with pytest.raises(ValueError, match="a defect"):
        trained("data=shapes")


@pytest.mark.parametrize(
    ("words", "rank", "message"),
    [
        (["hydra.output_subdir=null"], "0", "leave this key out"),
        (["hydra.output_subdir=null"], "1", None),  # Lightning gives it to the ranks that it starts
        (["+hydra.job.env_set.A=1", "+hydra.callbacks.a._target_=b", "+hydra.launcher.c=1"], "0", None),
        (["+hydra.job.nam=a"], "0", r"hydra\.job\.nam: no such key; did you mean hydra\.job\.name\?"),
        (["--cfg=job"], "0", None),
        (["--help"], "0", None),
    ],
)
def test_words_before_hydra(monkeypatch, words, rank, message):
    monkeypatch.setenv("LOCAL_RANK", rank)
    if message is None:
        check_arguments(words)
        return
    with pytest.raises(Exception, match=message):
        check_arguments(words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Invalid learning rate: -1", "x.lr=-1: Invalid learning rate: -1"),
        ("You have passed invalid value 7 for width", "x.width=7: You have passed invalid value 7 for width"),
        ("Thing.__init__() got an unexpected keyword argument 'width'", "x.width: no such key of Thing"),
        ("something\nelse", "x: something else"),
        ("x.width=7: not 7", "x.width=7: not 7"),
    ],
)
def test_a_refusal_is_led_by_the_key_that_it_is_about(text, told):
    assert library_errors.with_key("x", {"lr": -1, "width": 7, "_target_": "Thing"}, ValueError(text)) == told


def test_null_is_named_by_the_key_that_the_user_has_set():
    node, error = {"lr": None, "bias": None, "width": 7}, TypeError("'<' not supported between 'NoneType' and 'int'")
    assert library_errors.with_key("x", node, error, ["x.lr=null"]) == "x.lr=null: expected a value"
    assert library_errors.with_key("x", node, error) == f"x: {error}"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        (
            "callbacks.best=3",
            r"callbacks\.best=3: expected null, or values of its keys \(dirpath, filename, .*",
        ),
        ("model=müll", "model=müll: choose an option; known: .*mlp.*"),
        (
            "data.source.path=/müll",
            r"""data\.source\.path=/müll: Hydra .*; write 'data.source.path="/müll"'""",
        ),
        (
            "data.source.path=['/müll",
            "data.source.path=.*: not of the form key=value, or .* is left open",
        ),
    ],
)
def test_what_is_right_is_said(folder, argument, told):
    status, stderr = run(argument, folder)
    assert status == 2
    assert re.fullmatch(f"error: {told}", stderr.strip())


def test_nearest():
    assert did_you_mean("rmspop", ["sgd", "rmsprop"]) == "did you mean rmsprop?"
    assert did_you_mean("x", ["b", "a"]) == "known: a, b"
    assert explain(ValueError("two\nlines")) == "two lines"


@pytest.mark.parametrize(
    ("arguments", "goes_on"),
    [
        ([], "resume=auto"),
        (["-m"], "continue_sweep=newest"),
        (["-m", "hydra.sweep.dir=here/s"], "continue_sweep=here/s"),  # `newest` looks into multirun/
    ],
)
def test_a_full_disk_says_how_to_go_on(monkeypatch, capsys, arguments, goes_on):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit, match="1"):
        report_disk(OSError(errno.ENOSPC, "No space left on device", "x"), "train")
    assert capsys.readouterr().err.endswith(f"; then {goes_on} goes on\n")
