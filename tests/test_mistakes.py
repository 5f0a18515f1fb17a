"""A mistake ends in one line that names the key, and exit status 2; nothing is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradflow.command import explain
from gradflow.mistakes import nearest

ROOT = Path(__file__).parents[1]
MISTAKES = {  # the command line, and what the line must say
    "optimizer.lr=abc": r"optimizer\.lr=abc: expected a number, like the default 0\.001",
    "model.depth=2.5": r"model\.depth=2\.5: expected a whole number",
    "model.residual=3": r"model\.residual=3: expected true or false",
    "model=cnn model.channels=7": r"model\.channels=7: expected a list",
    "model.depth=true": r"model\.depth=True: expected a whole number",
    "model=foo": r"model=foo: no such option; known: bn_cnn, cnn",
    "model=resnt": r"model=resnt: no such option; did you mean resnet\?",
    "optimizer.lrr=1": r"optimizer\.lrr: no such key; did you mean optimizer\.lr\?",
    "foo=1": r"foo: no such key; known: activation",
    "data=shapes data.batch_size=-4": r"data\.batch_size=-4: expected 1 or more",
    "data=shapes data.batch_size=20000": r"data\.batch_size=20000: there are 9000 training samples",
    "data=shapes data.size=7": r"data\.size=7.*expected 16 to 64",
    "data=adding data.length=1": r"data\.length=1: .* at least 2 steps",
    "data=adding data.samples=3": r"data\.samples=3: expected at least one batch of 64",
    "data=image_folder": r"data\.root=… must be given",
    "model.residual=true model.branch_scale=deep": r"branch_scale=deep: expected a number or depth, like",
    "model=lstm data=adding model.forget_bias=chorno": r"forget_bias=chorno: expected a number or chrono",
    "data=auto data.memory=gpu": r"data.memory=gpu: expected auto, device, host, mapped",
    "data=adding data.crop=4": r"data.crop: no such key",
    "data=shapes data.flip=true data.alternate=true": r"data.flip=true, data.alternate=true: expected one",
    "on_alarm=panic": r"on_alarm=panic: expected one of log, warn, stop, prune",
    "data=shapes callbacks.gradient_flow.probes=-1": r"probes=-1: expected 0 or more",
    "data=shapes model.label_smoothing=1.5": r"label_smoothing=1.5: expected a fraction",
    "data=image_folder data.root=nowhere": r"data\.root=nowhere: found 0 class folders in nowhere or nowhere/train",
    "data=shapes model=resnet model.depth=21": r"model\.depth=21: a ResNet has 6n \+ 2 layers .*; 20 is near",
    "data=shapes model=densenet model.depth=20": r"model\.depth=20: a DenseNet has 3n \+ 4 layers .*; 19 is near",
    "data=shapes model.width=0": r"model\.width=0: expected 1 or more",
    "data=shapes model.dropout=1.0": r"model\.dropout=1\.0: expected a fraction",
    "data=shapes model.norm=bach": r"model\.norm=bach: expected one of none, batch, layer",
    "data=shapes model.loss=hinge": r"model\.loss=hinge: expected one of auto, cross_entropy, mse",
    "data=shapes model.l2=-1": r"model\.l2=-1.*expected 0 or more",
    "data=regression model.loss=cross_entropy": r"model\.loss=cross_entropy: these data ask for numbers",
    "data=adding model=cnn": r"CNN takes image, not sequence; for these data choose model=gru or lstm or mlp or rnn",
    "data=regression model=lstm": r"LSTM takes sequence or image, not vector; for these data choose model=mlp",
    "data=adding model=rnn activation=gelu": r"activation=gelu: .* tanh and relu only",
    "data=shapes optimizer=sgd optimizer.lr=-1": r"optimizer: Invalid learning rate: -1",
    "data=shapes scheduler=step scheduler.unit=week": r"scheduler\.unit=week: expected one of run, epoch, step",
    "data=shapes scheduler.warmup=-1": r"scheduler\.warmup=-1: expected a number of steps, 0 or more",
    "data=shapes trainer.precision=17": r"trainer: Precision 17 is invalid",
    "data=shapes trainer.strategy=magic": r"trainer: .*magic",
    "data=shapes logger.mode=onlin": r"logger\.mode=onlin: no such mode; did you mean online\?",
    "data=shapes seed=-1": r"seed=-1: expected a whole number from 0",
    "data=shapes seed=1.5": r"seed=1\.5: expected a whole number",
    "data=shapes resume=nowhere.ckpt": r"nowhere\.ckpt: no such checkpoint",
    "data=shapes callbacks.gradient_flow.every_n_steps=0": r"every_n_steps=0: expected 1 or more",
    "data=shapes +optimizer.nesterov=true optimizer=rmsprop": r"optimizer: .*nesterov",
    "data=shapes optimizer._target_=os.system": r"optimizer: _target_ os\.system is not one of",
    "model": r"model: not of the form key=value",
    "model=[mlp": r"model=\[mlp: not of the form key=value, or a bracket or quote is left open",
    "--model=mlp": r"--model=mlp: write model=mlp",
    "seed=0,1": r"seed=0,1: several values; add -m",
    "data=shapes trainer=null": r"trainer=null: choose an option",
    "data=shapes optimizer=null": r"optimizer=null: choose an option",
    "model=cnn model.channels=[8.5,4]": r"model\.channels=\[8\.5, 4\]: expected a list, each entry a whole number",
    "model=cnn model.channels=[8,a]": r"model\.channels=\[8, 'a'\]: expected a list, each entry a whole number",
    "data=shapes model=cnn model.channels=[]": r"model\.channels=\[\]: expected a width",
    "optimizer.betas=5": r"optimizer\.betas=5: expected a list",
    "data=shapes optimizer.betas=[0.9]": r"optimizer: ",
    "data=shapes data.val=1.5": r"data\.val=1\.5: expected a whole number of samples or a fraction",
    "data=adding data.val=100.5": r"data\.val=100\.5: expected a whole number",
    "data=shapes trainer.max_epochs=0": r"trainer\.max_epochs=0: expected 1 or more, or -1",
    "data=shapes trainer.max_epochs=-1": r"trainer\.max_epochs=-1: the run has no end; give trainer\.max_steps",
    "data=shapes trainer.max_steps=0": r"trainer\.max_steps=0: expected 1 or more",
    "data=shapes trainer.limit_train_batches=0.0": r"trainer\.limit_train_batches=0\.0: expected",
    "data=shapes trainer.accumulate_grad_batches=0": r"trainer\.accumulate_grad_batches=0: expected 1 or more",
    "data=shapes trainer.check_val_every_n_epoch=0": r"trainer\.check_val_every_n_epoch=0: expected 1 or more",
    "data=shapes trainer.gradient_clip_val=-1": r"trainer\.gradient_clip_val=-1: expected 0 or more",
    "data=shapes trainer=ddp_cpu data.batch_size=65": r"data\.batch_size=65: 2 devices can't share it equally",
    "data=shapes scheduler=step scheduler.unit=epoch": r"scheduler\.milestones=.*: expected 1 or more each",
    "data=shapes logger.mode=online": r"logger\.mode=online: no W&B key is configured",
    "data=shapes hydra.run.dir=/proc/x": r"/proc/x: can't be made the run's folder",
    "data=shapes init=mean_field init.sigma_w=-1": r"init\.sigma_w=-1.*expected sigma_w > 0",
}


def line_of(capsys) -> str:
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("words", MISTAKES)
def test_one_line(trained, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        trained(*words.split())
    assert stopped.value.code == 2
    line = line_of(capsys)
    assert line.startswith("error: ")
    assert re.search(MISTAKES[words], line), line
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("option", ["gpu", "ddp"])
def test_a_gpu_that_is_not_there(trained, capsys, option):
    with pytest.raises(SystemExit):
        trained("data=shapes", f"trainer={option}")
    assert line_of(capsys).startswith("error: trainer.accelerator=gpu: no GPU is here")


def test_checkpoints_that_are_torn_or_of_another_model(trained, tmp_path, capsys):
    small = ("data=regression", "debug=fast", "logger=none", "callbacks.progress=null", "test=false")
    last = trained(*small, "model.width=8") / "checkpoints" / "last.ckpt"
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(last.read_bytes()[:-1000])
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil(tmp_path / "ran")}, evil)
    for file, words in ((torn, "damaged"), (evil, "damaged"), (last, "holds another model")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            trained(*small, f"resume={file}")
        assert stopped.value.code == 2
        assert words in line_of(capsys)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Runs code when it is unpickled by somebody careless."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_scoring_in_an_empty_folder_leaves_it(trained, tmp_path):
    with pytest.raises(SystemExit):
        trained("run=nowhere", program="score")
    assert tmp_path.is_dir()


RESUMED = ("data=regression", "debug=fast", "logger=none", "callbacks.progress=null", "test=false")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "has 1 epochs behind it; give trainer.max_epochs=2 or more"),
        ("trainer.max_epochs=2 optimizer=sgd", "was trained by another optimizer"),
        ("trainer.max_epochs=2 optimizer.lr=0.5", "optimizer.lr=0.5: the run to resume has 0.001"),
    ],
)
def test_resume(trained, capsys, words, expected):
    run = trained(*RESUMED)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        trained(*RESUMED, f"resume={run}", *words.split())
    assert stopped.value.code == 2
    assert expected in line_of(capsys)


def test_a_run_is_never_written_over(trained, tmp_path, capsys):
    trained(*RESUMED, "hydra.run.dir=mine")
    capsys.readouterr()
    before = (tmp_path / "mine" / "summary.json").read_text()
    with pytest.raises(SystemExit):
        trained(*RESUMED, "hydra.run.dir=mine")
    assert "mine: holds a run already" in line_of(capsys)
    assert (tmp_path / "mine" / "summary.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run=nowhere", r"run=nowhere: not a run folder"),
        ("", "run=… must be given"),
        ("run=RUN split=vall", "split=vall: regression has test, train, val"),
        ("run=RUN checkpoint=worst", "worst.ckpt: no such checkpoint"),
    ],
)
def test_score(trained, capsys, words, expected):
    if "RUN" in words:
        run = trained("data=regression", "debug=fast", "logger=none", "callbacks.progress=null", "test=false")
        words = words.replace("RUN", str(run))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        trained(*words.split(), program="score")
    assert stopped.value.code == 2
    assert expected in line_of(capsys)


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "src" / "train.py"), *words]
    return subprocess.run(program, capture_output=True, text=True, cwd=folder, check=False)


def test_real_command_lines(tmp_path):
    """What the configuration alone shows is told without loading torch."""
    wrong = command("optimizer.lr=abc", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: optimizer.lr=abc: expected a number, like the default 0.001\n"
    assert not list(tmp_path.glob("runs/*/*"))
    for words in (["--help"], ["--cfg", "job"]):
        shown = command(*words, folder=tmp_path)
        assert shown.returncode == 0
        assert "model" in shown.stdout
    probe = "import sys; sys.argv = ['train.py', '--cfg', 'job']; import train; train.main()"
    heavy = f"{probe}; sys.exit(bool({{'torch', 'lightning', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT / "src", capture_output=True, check=False)
    assert done.returncode == 0


def test_full_error_adds_the_traceback(trained, monkeypatch):
    monkeypatch.setenv("GRADFLOW_TRACEBACK", "1")
    with pytest.raises(Exception, match="expected a number"):
        trained("optimizer.lr=abc")


def test_a_defect_of_ours_keeps_its_traceback(trained, monkeypatch):
    from gradflow import build

    monkeypatch.setattr(build, "data", lambda cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained("data=shapes")


def test_nearest():
    assert nearest("rmspop", ["sgd", "rmsprop"]) == "did you mean rmsprop?"
    assert nearest("x", ["b", "a"]) == "known: a, b"
    assert explain(ValueError("two\nlines")) == "two lines"
