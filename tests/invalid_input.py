"""Two hundred and more command lines that people get wrong, and a folder in which to try them.

`python tests/invalid_input.py` prints what each is answered, to be read by whoever changes a message.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

ROOT = Path(__file__).parents[1]
PROGRAMS = ("train", "eval", "probe", "report", "replay")
QUIET = "data=regression debug=fast logger=none callbacks.progress=null test=false"

# In a folder with: a finished run `done`, copies of it with something damaged, a sweep in multirun/d/t, and an empty
# `file`. A line is one of train.py's unless it begins with the name of another program, or of an environment variable.
TABLE = {
    "Names": """
        model=resnt
        model=foo
        optimizer=Adam
        activation=relu6
        init=uniform
        scheduler=platoe
        data=cifra10
        trainer=foo
        logger=tensorbord
        callbacks=foo
        experiment=deep
        debug=slow
        -m search=mlp2
        hydra/launcher=foo
        optimizer.lrr=1
        optimzer=adam
        foo=1
        lr=0.1
        data=adding data.crop=4
        callbacks.resume_checkpint.every_n_epochs=1
        callbacks.last.every_n_steps=5
        callbacks.best.monitor=foo data=regression
        +trainer.foo=1 data=regression
        +optimizer.nesterov=true optimizer=rmsprop data=regression
        +data.foo=1 data=regression
        +sed=1 data=regression
        +callbacks.stop.patience=3 data=regression
        scheduler=cosine +scheduler.foo=1 data=regression
        probe sed=1
        eval run=done foo=1
        hydra.foo=1
        hydra.sweep.dirr=x
        +hydra.foo=1
        ++hydra.run.dirr=x
        --foo
        --model=mlp
    """,
    "Form": """
        model
        model=
        =1
        model=[mlp
        model.depth='3
        model=[mlp,cnn]
        trainer=null
        callbacks=3
        seed=0,1
        ~seed
        +seed=1
        model=mlp -m seed=0
        --cfg foo
        --run --multirun
        model.depth=${foo}
        model.depth=${oc.env:NOT_SET}
        model.depth=${model.depth}
        hydra.mode=FOO
        hydra.run.dir=
        hydra.searchpath=[file:///nowhere]
        hydra.output_subdir=null
        run_dir=x
        OMP_NUM_THREADS=abc data=regression
        report
        report done --out
        report done --compare
    """,
    "Types": """
        optimizer.lr=abc
        optimizer.lr=nan
        optimizer.betas=5
        model.depth=2.5
        model.depth=true
        model.residual=3
        model=cnn model.channels=7
        model=cnn model.channels=[8.5,4]
        model=cnn model.channels=[8,a]
        scheduler=step scheduler.milestones=[a]
        trainer.max_epochs=two
        trainer.deterministic=maybe
        trainer.devices=two
        trainer.gradient_clip_val=abc data=regression
        trainer.gradient_clip_val=nan
        +optimizer.maximize=inf
        data=regression optimizer.lr=1e300
        data=regression optimizer.lr=null
        data=regression +trainer.detect_anomaly=3
        data=regression trainer.max_time=-1
        seed=1.5
        data.seed=foo data=regression
        resume=3
        eval run=[done]
        probe batch=foo
        -m data=regression model.depth=2,a
        -m hydra/sweeper=optuna data=regression model.depth=interval(0.5,1.5)
    """,
    "Values": """
        data=regression seed=-1
        data=regression data.seed=-1
        data=regression data.batch_size=-4
        data=regression data.batch_size=20000
        data=regression data.val=1.0
        data=adding data.val=100.5
        data=adding data.samples=3
        data=adding data.length=1
        data=adding data.length=1000000000
        data=adding data.samples=100000000000 data.fresh=false
        data=regression data.points=200000000
        data=regression model.norm=batch data.batch_size=1
        data=shapes data.size=7
        data=shapes data.crop=32
        data=shapes data.flip=true data.alternating_flip=true
        data=shapes data.alternate=true
        data=auto data.memory=gpu
        data=regression model.width=0
        data=regression model.width=[64,a]
        data=regression model.width=[64,null]
        data=regression model.width=[64,32]
        data=regression model.skips=7
        data=regression model.depth=-1
        data=regression model.width=100000000000
        data=regression model.depth=100000000
        data=regression model.depth=1000000 model.width=1
        data=regression model.dropout=1.0
        data=regression model.norm=bach
        data=regression model.loss=hinge
        data=regression model.l2=-1
        data=regression model.residual=true model.branch_scale=deep
        data=shapes model.label_smoothing=1.5
        data=shapes model=cnn model.channels=[]
        data=shapes model=cnn model.kernel=4
        data=shapes model=resnet model.depth=21
        data=shapes model=densenet model.depth=20
        data=adding model=lstm model.forget_bias=chorno
        data=regression init=mean_field init.sigma_w=-1
        data=regression optimizer.lr=-1
        data=regression optimizer.betas=[0.9]
        data=regression scheduler.warmup=-1
        data=regression scheduler=cosine scheduler.floor=-5
        data=regression logger=none scheduler.warmup=100000
        data=regression scheduler=step scheduler.unit=week
        data=regression scheduler=step scheduler.unit=epoch
        data=regression scheduler=step scheduler.gamma=-1
        data=regression trainer.precision=bf32
        data=regression trainer.max_epochs=0
        data=regression trainer.max_epochs=-1
        data=regression trainer.max_steps=0
        data=regression trainer.max_steps=null
        data=regression trainer.limit_train_batches=0.0
        data=regression trainer.limit_val_batches=2.5
        data=regression trainer.limit_train_batches=0.01
        data=regression trainer.limit_test_batches=0
        data=regression trainer.limit_test_batches=0.01
        data=regression trainer.accumulate_grad_batches=0
        data=regression trainer.accumulate_grad_batches=null
        data=regression trainer.check_val_every_n_epoch=0
        data=regression trainer.gradient_clip_val=-1
        data=regression trainer.gradient_clip_algorithm=foo
        data=regression trainer.num_sanity_val_steps=-3
        data=regression +trainer.val_check_interval=0
        data=regression +trainer.val_check_interval=1000
        data=regression trainer.max_time=foo
        data=regression +trainer.callbacks=[foo]
        data=regression on_alarm=panic
        summary=long
        data=regression callbacks.gradient_flow.every_n_steps=0
        data=regression callbacks.gradient_flow.probes=-1
        data=regression callbacks.gradient_flow.probes=1000000000
        data=regression callbacks.best.save_top_k=-2
        data=regression callbacks.best.monitor=mse/val +callbacks.best.mode=max
        data=regression callbacks.best.dirpath=file
        data=regression callbacks.gradient_flow.run_dir=x
        data=regression +callbacks.stop=3
        data=regression +callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStoping}
        data=regression +callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping}
        data=regression logger.mode=onlin
        data=regression logger.save_dir=file
        WANDB_MODE=foo data=regression
        WANDB_MODE=online data=regression
        probe data=regression seeds=0
        probe data=regression seeds=1000000000
    """,
    "What does not go together": """
        data=adding model=cnn
        data=regression model=lstm
        data=regression model.loss=cross_entropy
        data=regression +model.spec=3
        data=regression +trainer.fast_dev_run=true
        data=regression +trainer.min_epochs=20
        data=regression +optimizer.foreach=true +optimizer.fused=true
        probe data=regression model=cnn
        data=regression trainer=ddp_cpu data.batch_size=65
        continue_sweep=newest
        -m data=regression optimizer.lr=interval(0,1)
        -m hydra/sweeper=optuna data=regression
        -m hydra/sweeper=optuna hydra.sweeper.sampler=grid data=regression optimizer.lr=interval(0,1)
    """,
    "Devices": """
        data=regression trainer=gpu
        CUDA_VISIBLE_DEVICES=7 data=regression trainer=gpu
        data=regression trainer.devices=0
        data=regression trainer.devices=-2
        data=regression trainer.devices=-1
        data=regression trainer.devices=3
        data=regression trainer.num_nodes=2
        data=regression trainer.precision=16-mixed
        data=regression trainer.strategy=magic
        data=regression trainer.strategy=ddp_notebook
        CXX=nowhere data=regression trainer.compile=true
        eval run=done accelerator=gpu
    """,
    "Folders and data": """
        data=regression hydra.run.dir=/proc/x
        data=regression hydra.run.dir=file/x
        data=regression hydra.run.dir=done
        probe data=regression hydra.run.dir=done
        data=image_folder
        data=image_folder data.root=nowhere
        data=cifar10 data.root=file
        report nowhere
        report done --out file
        report done --out page.html
    """,
    "Earlier runs": """
        data=regression resume=
        data=regression resume=nowhere.ckpt
        data=regression resume=file
        data=regression resume=done/metrics.csv
        data=regression resume=multirun/d/t
        resume=badmetrics trainer.max_epochs=2
        resume=badgradients trainer.max_epochs=2
        resume=badflow trainer.max_epochs=2
        replay run=badnonfinite
        eval
        eval run=nowhere
        eval run=done split=vall
        eval run=done checkpoint=worst
        eval run=torn
        eval run=badoverrides
        eval run=badscores
        -m data=regression resume=auto seed=0,1
    """,
    "Sweeps": """
        -m data=regression model.dpth=1,2
        -m data=regression seed=0,1 continue_sweep=nowhere
        -m data=regression seed=0,1 continue_sweep=newest
        -m data=regression seed=0,1 continue_sweep=tornsweep
        -m hydra/sweeper=optuna data=regression seed=0,1 continue_sweep=badstudy
        -m data=regression seed=0,1 hydra.sweep.dir=multirun/d/t
        -m data=regression seed=0,1 hydra.launcher.jobs=0
        -m data=regression seed=0,1 hydra.launcher.foo=3
        -m data=regression seed=0,1 hydra.launcher._target_=os.system
        -m search=mlp data=regression hydra.sweeper.sampler=tpee
        -m search=mlp data=regression hydra.sweeper.n_trials=0
    """,
    "What must not be run": """
        data=regression optimizer._target_=os.system
        data=regression +callbacks.x={_target_:gradflow.config.checks.os.mkdir,path:made}
        data=regression +callbacks.x={_target_:gradflow.config.build.torch.load,f:file,weights_only:false}
        data=regression data.source._target_=gradflow.runs.write_json
        data=regression +callbacks.x={_target_:torch.nn.Linear,in_features:1,out_features:1}
        data=regression +hydra.callbacks.x._target_=os.system
        resume=foreign
        eval run=linked
    """,
}
LINES = {line: group for group, lines in TABLE.items() for line in map(str.strip, lines.strip().splitlines())}


class Read(dict[str, Any]):
    """What Hydra has read of conf/, which it does three times a command line; it changes what it reads."""

    known: dict[str, Any] = {}

    def __contains__(self, key: object) -> bool:
        return key in self.known

    def __missing__(self, key: str) -> Any:
        self[key] = deepcopy(self.known[key])
        return self[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key not in self.known:
            self.known[key] = deepcopy(value)


def read_once(self: Any, delegate: Any) -> None:
    self.delegate, self.cache = delegate, Read()


def prepare(folder: Path) -> None:
    """What the lines of the table speak of."""
    (folder / "file").touch()
    status, said = run(f"{QUIET} hydra.run.dir=done", folder)
    assert status == 0, said
    for name in ("torn", "badoverrides", "badscores", "foreign", "linked"):
        shutil.copytree(folder / "done", folder / name)
    (folder / "torn" / "checkpoints" / "best.ckpt").write_bytes(b"PK\3\4")
    (folder / "badoverrides" / ".hydra" / "overrides.yaml").write_text("- [data=regression")
    (folder / "badscores" / "scores.json").write_text("{")
    (folder / "foreign" / ".hydra" / "overrides.yaml").write_text(
        "- data.source._target_=gradflow.sweeps.job_process.JobProcess\n"
    )
    (folder / "linked" / "scores.json").symlink_to("../file")
    for name, file in {"badmetrics": "metrics.csv", "badgradients": "gradients.csv", "badflow": "flow.jsonl"}.items():
        shutil.copytree(folder / "done", folder / name)
        first, _, *rest = (folder / name / file).read_bytes().splitlines(keepends=True)
        (folder / name / file).write_bytes(b"".join([first, b"torn\n", *rest]))
    shutil.copytree(folder / "done", folder / "badnonfinite")
    (folder / "badnonfinite" / "nonfinite.json").write_text('{"epoch": 0}')
    for name, text in {"multirun/d/t": "", "tornsweep": "0,data=regr", "badstudy": ""}.items():
        (folder / name).mkdir(parents=True)
        header = "number,overrides,state,objective,seconds,folder,error\n"
        (folder / name / "jobs.csv").write_text(header + text)
    (folder / "badstudy" / "multirun.yaml").touch()
    (folder / "badstudy" / "study.journal").write_text('{"op_code":0}\n{"op_code"\n')


def run(line: str, folder: Path) -> tuple[int, str]:
    """The exit status and stderr of a line, run in this process."""
    words = shlex.split(line) if line.count("'") % 2 == 0 else line.split()
    environment = [words.pop(0) for word in list(words) if re.match("[A-Z_]+=", word)]
    program = words.pop(0) if words and words[0] in PROGRAMS else "train"
    plain = program != "report" and not any(word.startswith(("-", "hydra.mode")) for word in words)
    argv = [str(ROOT / "src" / f"{program}.py"), *words]
    mode = (lambda *_, **__: RunMode.RUN) if plain else Hydra.get_mode  # which composes all of it to know that
    said = io.StringIO()
    with (
        patch.object(CachingConfigRepository, "__init__", read_once),
        patch("gradflow.data.memory.free", lambda: 16 * 2**30),
        patch.object(Hydra, "get_mode", mode),
        inside(folder),
        patch.object(sys, "argv", argv),
        patch.dict(os.environ, {"GRADFLOW_TRACEBACK": ""} | dict(word.split("=", 1) for word in environment)),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            __import__(program).main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return status, said.getvalue().replace(f"{folder.resolve()}/", "")


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    os.environ |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for line in LINES:
            status, message = run(line, folder)
            print(f"{line}\n  {message.strip()}" + (f"\n  status {status}" if status != 2 else ""))


def line_of(capsys) -> str:
    """The one line on stderr; other tests ask for it, too."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src")]
    main()
