"""W&B: a resumed run is the same W&B run, each row once; and whatever happens to W&B, the run goes on."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.image
import pytest
import torch
import wandb
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk import wandb_setup
from wandb_records import leveldb_records, read_wandb

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.training import wandb_logger
from gradflow.training.wandb_files import drop_empty, files, rows
from gradflow.training.wandb_logger import ResumableWandbLogger, choose_mode

ROOT = Path(__file__).parents[2]
WIDE = {f"grad_norm/{layer:02}": layer / 7 for layer in range(40)}  # a row of about 2 KiB


@pytest.fixture
def logger(tmp_path, monkeypatch):
    """A process's logger of the run in this folder; two segments of a run never begin in the same second."""
    made: list[ResumableWandbLogger] = []

    def make(mode: str = "offline") -> ResumableWandbLogger:
        while list(tmp_path.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
            time.sleep(0.05)
        made.append(ResumableWandbLogger(save_dir=str(tmp_path), project="p", mode=mode))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


@pytest.fixture
def key(monkeypatch):
    """A key is configured, and W&B learns of it."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    yield
    wandb.teardown()


def train(logger, steps, start=0):
    for step in range(start, steps):
        logger.log_metrics({"loss": 1 / (step + 1)} | WIDE, step)


def history(folder):
    return [row for path in files(folder) for row in read_wandb(path)[0]]


def service() -> int:
    connection = wandb_setup.singleton()._connection
    assert connection is not None
    return connection._proc._process.pid  # type: ignore[union-attr]


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B: ")]


def test_a_resumed_run_is_the_same_run_and_has_each_row_once(logger, tmp_path, capsys):
    first = logger()
    train(first, 6)
    state = torch.save(first.state_dict(), tmp_path / "state")
    train(first, 9, start=6)
    first.close(1)
    second, state = logger(), torch.load(tmp_path / "state", weights_only=True)
    second.load_state_dict(state)
    train(second, 12, start=6)
    second.close(0)
    assert second.facts == first.facts == {"id": (tmp_path / runs.WANDB_ID).read_text().strip(), "mode": "offline"}
    assert [path.name for path in files(tmp_path)] == [f"run-{first.facts['id']}.wandb"] * 2
    told = history(tmp_path)
    assert [row["_step"] for row in told] == [row["trainer/global_step"] for row in told] == list(range(12))
    assert [row["loss"] for row in told] == [1 / (step + 1) for step in range(12)]
    assert [number for number, _ in rows(files(tmp_path)[1])] == [9, 10, 11]
    assert not lines(capsys)


@pytest.mark.slow
def test_pictures_count_and_a_run_that_was_over_goes_on(logger, tmp_path):
    picture = tmp_path / "gradients.png"
    matplotlib.image.imsave(picture, [[0.0, 1.0], [1.0, 0.0]])
    first = logger()
    train(first, 4)
    state = first.state_dict()
    first.log_image("gradients", [str(picture)])
    first.log_metrics({"loss/test": 0.5}, 4)
    first.close(0)
    second = logger()
    second.load_state_dict(state)
    second.log_image("gradients", [str(picture)])  # as it was: not sent again
    train(second, 8, start=4)  # more epochs: other rows than those of then
    second.close(0)
    told = history(tmp_path)
    assert [row["_step"] for row in told] == list(range(10))
    assert [row["trainer/global_step"] for row in told] == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    assert [("gradients/filenames" in row, "loss/test" in row) for row in told[4:7]] == [
        (True, False),
        (False, True),
        (False, False),
    ]


@pytest.mark.slow
def test_rows_that_the_service_held_back_are_sent_again(logger, tmp_path, capsys):
    """A machine that goes down takes the service with it: its file ends in the middle of a block."""
    first = logger()
    train(first, 69)
    state = first.state_dict()
    train(first, 70, start=69)
    time.sleep(0.5)  # for what is under way
    os.kill(service(), signal.SIGKILL)
    first.close(0)
    (file,) = files(tmp_path)
    os.truncate(file, (file.stat().st_size // 32768 - 1) * 32768)  # one block at least is gone
    left = [number for number, _ in rows(file)]
    assert 0 < len(left) < 69
    assert left == list(range(len(left)))
    capsys.readouterr()
    second = logger()
    second.load_state_dict(state)
    train(second, 70, start=69)
    second.close(0)
    told = history(tmp_path)
    assert [row["_step"] for row in told] == list(range(70))
    assert [row["loss"] for row in told] == [1 / (step + 1) for step in range(70)]
    assert not lines(capsys)


@pytest.mark.slow
def test_rows_that_nobody_kept_are_told(logger, tmp_path, capsys):
    first = logger()
    train(first, 3)
    state = first.state_dict() | {"calls": 200}
    first.close(0)
    second = logger()
    second.load_state_dict(state)
    train(second, 201, start=200)
    assert "W&B: lacks 197 rows of this run; metrics.csv and gradients.csv have them" in lines(capsys)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_says_nothing(logger, tmp_path):
    one = logger()
    one.load_state_dict({"id": "another", "calls": 100, "step": 99, "tail": [[99, {"loss": 1.0}]]})
    train(one, 2)
    one.close(0)
    assert [row["_step"] for row in history(tmp_path)] == [0, 1]


def test_a_torn_file_is_read_up_to_the_tear(logger, tmp_path):
    one = logger()
    train(one, 60)
    one.close(0)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    assert len(whole) > 2 * 32768
    assert [number for number, _ in rows(file, 32768)][-1] == 59
    assert 0 < len(list(rows(file, 32768))) < 60
    for length in range(0, len(whole), 1499):
        file.write_bytes(whole[:length])
        numbers = [number for number, _ in rows(file)]
        assert numbers == list(range(len(numbers)))
    assert 50 < len(numbers) < 60


@pytest.mark.slow
def test_a_checkpoint_stays_small(logger, tmp_path):
    one = logger()
    train(one, 300)
    torch.save(one.state_dict(), tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 100_000


@pytest.mark.parametrize("blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_training_outlives_the_service(logger, tmp_path, capsys, monkeypatch, blow):
    monkeypatch.setattr(wandb_logger, "PATIENCE", 1.0)
    one = logger()
    train(one, 2)
    os.kill(service(), blow)
    begin = time.monotonic()
    train(one, 500, start=2)
    one.close(0)
    assert time.monotonic() - begin < 5
    (line,) = lines(capsys)
    assert re.fullmatch(r"W&B: off from step \d+ on \(.*Error: .*\); metrics.csv and gradients.csv go on", line)
    assert one.facts["lost"] in line
    assert one.state_dict()["calls"] == 500
    after = logger()  # the next run of this process has a service of its own
    train(after, 2)
    after.close(0)
    assert "lost" not in after.facts


@pytest.mark.slow
def test_a_service_that_hangs_at_the_end(logger, capsys, monkeypatch):
    monkeypatch.setattr(wandb_logger, "PATIENCE", 1.0)
    one = logger()
    train(one, 2)
    os.kill(service(), signal.SIGSTOP)
    begin = time.monotonic()
    one.close(0)
    assert 0.5 < time.monotonic() - begin < 5
    assert len(lines(capsys)) == 1


def test_a_service_that_ends_badly_does_not_end_the_run(logger, monkeypatch):
    """W&B ends the process with the status of its service."""
    one, teardown = logger(), wandb.teardown
    train(one, 2)
    monkeypatch.setattr(wandb, "teardown", lambda: (teardown(), sys.exit(2)))
    one.close(0)
    assert "lost" not in one.facts


@pytest.mark.slow
def test_a_service_that_hangs_after_the_end(logger, monkeypatch):
    monkeypatch.setattr(wandb_logger, "PATIENCE", 1.0)
    one, teardown = logger(), wandb.teardown
    train(one, 2)
    pid = service()
    monkeypatch.setattr(wandb, "teardown", lambda: (os.kill(pid, signal.SIGSTOP), teardown()))
    begin = time.monotonic()
    one.close(0)
    assert 0.5 < time.monotonic() - begin < 5


@pytest.mark.slow
def test_a_row_that_is_refused_leaves_those_before(logger, tmp_path, capsys):
    one = logger()
    train(one, 3)
    one.log_metrics({1: 0.5}, 3)  # type: ignore[dict-item]
    train(one, 5, start=4)
    one.close(0)
    (line,) = lines(capsys)
    assert line.startswith("W&B: off from step 3 on (TypeError: ")
    assert [row["_step"] for row in history(tmp_path)] == [0, 1, 2]


def test_a_full_disk(logger, tmp_path, capsys):
    one = logger()
    train(one, 2)
    resource.prlimit(service(), resource.RLIMIT_FSIZE, (40_000, 40_000))
    train(one, 100, start=2)
    one.close(0)
    (line,) = lines(capsys)
    assert re.fullmatch(r"W&B: the last rows are not in .*\.wandb; metrics.csv and gradients.csv have them", line)
    assert one.facts["lost"] in line


def test_a_folder_that_can_not_be_written(logger, tmp_path, capsys):
    (tmp_path / "wandb").write_text("in the way")
    one = logger()
    one.log_hyperparams({"lr": 0.1})
    train(one, 3)
    one.close(0)
    (line,) = lines(capsys)
    assert line.startswith("W&B: off from step 0 on (")
    assert "lost" in one.facts


@pytest.fixture(params=["closed", pytest.param("hole", marks=pytest.mark.slow)])
def nowhere(request, key, monkeypatch):
    """A host that refuses, and one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{one.getsockname()[1]}")
        if request.param == "hole":
            yield
            return
    yield


def test_a_host_out_of_reach(logger, nowhere, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wandb_logger, "REACH", 0.5)
    one = logger("auto")
    begin = time.monotonic()
    train(one, 3)
    assert time.monotonic() - begin < 4
    one.close(0)
    wandb.teardown()
    assert time.monotonic() - begin < 5
    (line,) = lines(capsys)
    assert line.startswith("W&B: offline, can't begin online: ")
    assert one.facts["mode"] == "offline"
    assert [row["_step"] for row in read_wandb(files(tmp_path, "offline-run-*")[0])[0]] == [0, 1, 2]


def test_which_mode(monkeypatch, tmp_path):
    assert choose_mode("auto") == ("offline", None)  # conftest's WANDB_MODE
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"WANDB_MODE=ofline: no such mode; did you mean offline\?"):
        choose_mode("auto")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    assert choose_mode("auto") == ("offline", "no W&B key is configured; run  wandb login  or set WANDB_API_KEY")
    with pytest.raises(UserError, match=r"logger\.mode=online: no W&B key"):
        choose_mode("online")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"logger\.mode=online: WANDB_API_KEY invalid"):
        choose_mode("online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert choose_mode("auto") == choose_mode("online") == ("online", None)
    assert choose_mode("disabled") == ("disabled", None)
    wandb.teardown()


class Server(ThreadingHTTPServer):
    """As much of W&B's server as its client needs: runs with their history."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, list[dict]] = {}
        self.offsets: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Clients may hang up."""

    def appended(self, run: str, offset: int, content: list[str]) -> None:
        self.offsets.append(offset)
        self.runs[run][offset:] = [json.loads(line) for line in content]

    def answer(self, query: str, given: dict) -> dict:
        name = given.get("name")
        model = {"id": "P", "name": "p", "entity": {"id": "E", "name": "e"}}
        if "query RunResumeStatus" in query:
            return {"model": model | {"bucket": self.resumed(name) if name in self.runs else None}}
        if "mutation UpsertBucket" in query:
            self.runs.setdefault(name, [])
            return {"upsertBucket": {"bucket": {"id": "B", "name": name, "project": model}, "inserted": True}}
        if "query ServerFeaturesQuery" in query:
            return {"serverInfo": {"features": []}}
        if "mutation CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        return {}

    def resumed(self, name: str) -> dict:
        told = self.runs[name]
        tail = json.dumps([json.dumps(told[-1])] if told else [])
        counts = {"historyLineCount": len(told), "logLineCount": 0, "eventsLineCount": 0}
        rest = {"config": "{}", "eventsTail": "[]", "summaryMetrics": "{}", "wandbConfig": '{"t": 1}'}
        return {"id": "B", "name": name, "historyTail": tail} | counts | rest


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Not on the screen."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(gzip.decompress(content) if self.headers["Content-Encoding"] == "gzip" else content)
        if self.path.endswith("/file_stream"):
            lines = asked.get("files", {}).get("wandb-history.jsonl")
            if lines:
                self.server.appended(self.path.split("/")[-2], lines["offset"], lines["content"])
            answer: dict = {}
        else:
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        told = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


@pytest.fixture
def server(key, monkeypatch):
    one = Server()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{one.server_port}")
    yield one
    one.shutdown()
    one.server_close()


@pytest.mark.slow
def test_an_online_run_goes_on_where_the_server_is(logger, server, tmp_path, capsys):
    first = logger("online")
    train(first, 5)
    state = first.state_dict()
    train(first, 7, start=5)
    first.log_metrics({"loss/test": 0.5}, 7)
    first.close(1)
    (told,) = server.runs.values()
    assert [row["_step"] for row in told] == list(range(8))
    second = logger("online")
    second.load_state_dict(state)
    train(second, 10, start=5)
    second.close(0)
    assert [row["_step"] for row in told] == list(range(11))
    assert [row["trainer/global_step"] for row in told] == [*range(8), 7, 8, 9]
    assert [row["loss"] for row in told if "loss" in row] == [1 / (step + 1) for step in range(10)]
    assert [number for number, _ in rows(files(tmp_path)[-1])] == [8, 9, 10]
    assert list(server.runs) == [second.facts["id"]]
    assert not lines(capsys)


@pytest.mark.slow
def test_offline_segments_are_synced_into_one_run(logger, server, tmp_path, capsys):
    first = logger("offline")
    train(first, 5)
    first.close(1)
    second = logger("online")  # what came before is not there yet
    assert second.experiment.offline
    second.load_state_dict(first.state_dict())
    train(second, 8, start=5)
    second.close(0)
    (line,) = lines(capsys)
    assert line.startswith("W&B: offline, like the part of this run that was not uploaded yet (to upload: wandb sync ")
    sync = [Path(sys.executable).with_name("wandb"), "sync", tmp_path / "wandb"]
    subprocess.run(sync, check=True, timeout=60, cwd=tmp_path, capture_output=True)
    (told,) = server.runs.values()
    assert [row["_step"] for row in told] == list(range(8))
    assert [row["loss"] for row in told] == [1 / (step + 1) for step in range(8)]
    again = subprocess.run(sync, check=True, timeout=60, cwd=tmp_path, capture_output=True, text=True)
    assert "No runs to sync" in again.stderr
    third = logger("online")  # all is there
    third.load_state_dict(second.state_dict())
    train(third, 10, start=8)
    third.close(0)
    assert third.facts["mode"] == "online"
    assert [row["_step"] for row in told] == list(range(10))


@pytest.mark.slow
def test_a_host_that_goes_away_in_the_middle(logger, server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_logger, "REACH", 2.0)
    one = logger("online")
    train(one, 3)
    answering = Handler.do_POST
    monkeypatch.setattr(Handler, "do_POST", lambda self: time.sleep(1000))
    begin = time.monotonic()
    train(one, 6, start=3)
    assert time.monotonic() - begin < 1
    one.close(0)
    assert time.monotonic() - begin < 5
    (line,) = lines(capsys)
    assert line.startswith("W&B: not all was uploaded within 2 s; to upload: wandb sync ")
    monkeypatch.setattr(Handler, "do_POST", answering)
    sync = [Path(sys.executable).with_name("wandb"), *re.search("wandb (sync .*)", line)[1].split()]
    subprocess.run(sync, check=True, timeout=60, cwd=tmp_path, capture_output=True)
    (told,) = server.runs.values()
    assert [row["_step"] for row in told] == list(range(6))


COMMAND = (
    sys.executable,
    ROOT / "src" / "train.py",
    "data=regression",
    "logger.mode=offline",
    "callbacks.progress=null",
)
LONG = ("trainer.max_epochs=12", "trainer.log_every_n_steps=1", "callbacks.gradient_flow.every_n_steps=3")


def told(run):
    """All that W&B holds of a run, but for the time and the place."""
    kept = [{name: row[name] for name in row if name not in ("_runtime", "_timestamp")} for row in history(run)]
    return [{name: value for name, value in row.items() if not name.endswith("/filenames")} for row in kept]


@pytest.mark.slow
def test_killed_and_resumed_in_earnest(tmp_path):
    """Once the run alone, once with the service, as when a machine goes down."""
    words = (*COMMAND, *LONG, "callbacks.resume_checkpoint.every_n_steps=20", "resume=auto")
    subprocess.run([*words, "hydra.run.dir=whole"], cwd=tmp_path, check=True, timeout=100, capture_output=True)
    for kill_all, rows_before in ((False, 30), (True, 110), (False, 150)):
        process = subprocess.Popen([*words, "hydra.run.dir=killed"], cwd=tmp_path, stdout=subprocess.PIPE)
        while not (tmp_path / "killed" / runs.METRICS).is_file() or rows_before > steps(tmp_path / "killed"):
            assert process.poll() is None
            time.sleep(0.002)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for victim in (process.pid, *(map(int, children) if kill_all else ())):
            os.kill(victim, signal.SIGKILL)
        process.communicate()
    subprocess.run([*words, "hydra.run.dir=killed"], cwd=tmp_path, check=True, timeout=100, capture_output=True)
    whole, killed = told(tmp_path / "whole"), told(tmp_path / "killed")
    assert len(files(tmp_path / "killed")) == 4
    assert [row["_step"] for row in killed] == list(range(len(whole)))
    assert killed == whole
    assert {path.stem for path in files(tmp_path / "killed")} == {
        f"run-{(tmp_path / 'killed' / runs.WANDB_ID).read_text().strip()}"
    }


def steps(run):
    return (run / runs.METRICS).read_bytes().count(b"\n")


class Noted:
    def __init__(self):
        self.facts = {}

    def note(self, **facts):
        self.facts |= facts


@pytest.mark.parametrize(("error", "status"), [(runs.Pruned("bad"), 0), (ValueError("bad"), 1)])
def test_the_end_of_a_run_is_the_end_of_its_wandb_run(logger, tmp_path, error, status):
    one, run = logger(), Noted()
    train(one, 2)
    with pytest.raises(type(error)), wandb_logger.ended([one], run):
        raise error
    assert run.facts == {"wandb": one.facts}
    assert exit_code(files(tmp_path)[0]) == status
    assert wandb.run is None


def exit_code(path):
    found = [Record.FromString(content) for content in leveldb_records(path.read_bytes()[7:])]
    return next(record.exit.exit_code for record in found if record.HasField("exit"))


def test_a_segment_without_a_record_is_dropped(tmp_path):
    """Over one, `wandb sync` uploads none of them."""
    for name, content in (
        ("offline-run-1-x", b":W&B\xe1\xbe\x00"),
        ("offline-run-2-x", b":W&B\xe1\xbe\x00" + bytes(40)),
    ):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-x.wandb").write_bytes(content[: 7 if name.endswith("1-x") else None])
    drop_empty(tmp_path)
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["offline-run-2-x"]
