"""Who imports whom, held to docs/architecture.md: top may import what stands below, never back."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
# The rooms from the top. Those on one line don't know each other, and `spec` is the contract between models and data.
ORDER = """
    sweeps
    config | report
    training
    diagnostics
    models | data
    tasks | optimizers
    theory | plots
    runs
    spec
"""
HEIGHT = {
    room.strip(): height for height, line in enumerate(reversed(ORDER.strip().splitlines())) for room in line.split("|")
}
NO_TORCH = ("runs", "plots", "report")
NO_LIGHTNING = ("theory", *(f"diagnostics.{name}" for name in ("probe", "norms", "layers", "verdict", "nonfinite")))
MODULES = {
    ".".join(path.relative_to(SRC / "gradflow").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (SRC / "gradflow").rglob("*.py")
}


def imported(text: str, inside_functions: bool) -> set[str]:
    """Return what a file imports of other packages and of ours; what only a type checker reads counts as well."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
    return names


def ours(name: str, inside_functions: bool = True) -> set[str]:
    names = imported(MODULES[name].read_text(), inside_functions)
    return {one.removeprefix("gradflow.") for one in names} & set(MODULES) - {name, ""}


def room(name: str) -> str:
    return name.partition(".")[0]


def wrong(text: str, of: str) -> list[str]:
    """Return the rooms that a file in room `of` may not import."""
    rooms = {room(one.removeprefix("gradflow.")) for one in imported(text, True) if one.startswith("gradflow.")}
    return sorted(other for other in rooms if other != of and HEIGHT.get(other, 99) >= HEIGHT[of])


@pytest.mark.parametrize("name", [name for name in MODULES if name and not name.startswith("_")])
def test_no_room_imports_what_stands_above_it(name):
    assert room(name) in HEIGHT, f"{name}: a room that has no place in the order"
    assert wrong(MODULES[name].read_text(), room(name)) == []


def test_the_test_sees_an_import_that_climbs():
    assert wrong("from gradflow.data import loader", "models") == ["data"]
    assert wrong("def f():\n    from gradflow.config import build", "training") == ["config"]
    assert wrong("import gradflow.runs.files", "theory") == []


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({name: ours(name, inside_functions=False) for name in MODULES}).prepare()


def test_report_and_sweeps_can_be_deleted():
    """Nothing but the sweeps themselves, which end with a report, imports either."""
    importing = {name for name in MODULES if {room(one) for one in ours(name)} & {"report", "sweeps"}}
    assert {room(name) for name in importing} <= {"report", "sweeps"}


@pytest.mark.parametrize(
    ("modules", "packages"),
    [
        (NO_TORCH, {"torch", "lightning"}),
        (NO_LIGHTNING, {"lightning", "hydra"}),
        (("diagnostics.model_probe",), {"lightning"}),
        (("config.command",), {"torch", "lightning", "numpy", "matplotlib"}),
    ],
)
def test_what_starts_without_torch_or_lightning(modules, packages):
    names = [f"gradflow.{name}" for name in MODULES if name in modules or room(name) in modules]
    code = f"import {', '.join(names)}, sys; print(set(sys.modules) & {packages})"
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


UNUSED = {"matplotlib", "torchvision", "wandb", "tensorboard"}  # by a run without a logger, before its pictures
STARTED = f"""
import sys
from gradflow.training import signals

watch = signals.watch

def spy(on):  # which a run calls before its first step, and before its test
    watch(on)
    print("unused", *sorted(set(sys.modules) & {UNUSED}), file=sys.stderr)

signals.watch = spy
import train
train.main()
assert "matplotlib" in sys.modules
"""


@pytest.mark.slow
def test_a_run_imports_nothing_that_it_does_not_use(tmp_path):
    words = ["model=mlp", "data=shapes", "data.size=16", "logger=none", "callbacks.progress=null", "summary=json"]
    words += [f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
    command = [sys.executable, "-c", STARTED, *words, "trainer=cpu", f"hydra.run.dir={tmp_path}/run"]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert (done.returncode, set(lines)) == (0, {"unused"}), done.stderr
    assert len(lines) > 2
    assert (tmp_path / "run" / "gradients.png").stat().st_size > 10_000
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
