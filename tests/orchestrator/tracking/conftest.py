"""Stores, servers and run directories for the tracking tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from jobs.contract import write_atomically
from jobs.journal import END
from orchestrator.lifecycle import RunState
from orchestrator.tracking.cursors import Cursor
from orchestrator.tracking.mlflow_store import default_uri, initialise
from orchestrator.tracking.record import AttemptFacts, RunFacts


class JsonCursors:
    """Cursors in one JSON file: what the control plane's store does, in the simplest form that survives a process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, list[str | int]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, run_id: str) -> Cursor:
        found = self._read().get(run_id)
        return Cursor(None, -1) if found is None else Cursor(str(found[0]), int(found[1]))

    def set_run(self, run_id: str, tracker_run: str) -> None:
        write_atomically(self.path, json.dumps(self._read() | {run_id: [tracker_run, -1]}))

    def advance(self, run_id: str, step: int) -> None:
        known = self._read()
        write_atomically(self.path, json.dumps(known | {run_id: [known[run_id][0], step]}))


class MemoryCursors:
    """Cursors in a dictionary."""

    def __init__(self) -> None:
        self.known: dict[str, Cursor] = {}

    def get(self, run_id: str) -> Cursor:
        return self.known.get(run_id, Cursor(None, -1))

    def set_run(self, run_id: str, tracker_run: str) -> None:
        self.known[run_id] = Cursor(tracker_run, -1)

    def advance(self, run_id: str, step: int) -> None:
        self.known[run_id] = Cursor(self.known[run_id].tracker_run, step)


@pytest.fixture
def memory_cursors() -> MemoryCursors:
    return MemoryCursors()


@pytest.fixture
def json_cursors(root: Path) -> JsonCursors:
    return JsonCursors(root / "cursors.json")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised embedded store, built once: the schema takes seconds."""
    root = tmp_path_factory.mktemp("template")
    initialise(default_uri(root), root)
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    """A root with an embedded store of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        place = str(tmp_path / "mlartifacts")
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'orch'", (place,))
    return tmp_path


@pytest.fixture
def uri(root: Path) -> str:
    return default_uri(root)


@pytest.fixture
def rows(root: Path) -> Callable[[], list[tuple[str, str, int, int, float]]]:
    """Every stored point as (run id, metric, step, timestamp, value), read from the store's own file."""

    def read() -> list[tuple[str, str, int, int, float]]:
        with closing(sqlite3.connect(root / "mlflow.db")) as connection:
            return connection.execute(
                "SELECT tags.value, metrics.key, metrics.step, metrics.timestamp, metrics.value FROM metrics"
                " JOIN tags ON tags.run_uuid = metrics.run_uuid AND tags.key = 'orch.run_id' ORDER BY 1, 2, 3"
            ).fetchall()

    return read


class RunMaker:
    """Writes journals as a job would, with chosen times, and gives the facts about them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def journal(self, run: str, attempt: int, restored: int, lines: list[Mapping[str, object]]) -> None:
        folder = self.root / "runs" / run / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        head = {"attempt": attempt, "restored": restored, "time": 0.0}
        text = "".join(json.dumps(line) + "\n" for line in [head, *lines])
        (folder / f"{attempt:04d}.jsonl").write_text(text)

    def steps(self, run: str, *, last: int, event: str = END, attempt: int = 1, first: int = 1) -> None:
        """One attempt with `train/loss` = 1/step and `train/lr` at every step, covered at the end."""
        lines: list[Mapping[str, object]] = [
            {"s": step, "t": 1000 * attempt * 10_000 + step, "m": {"train/loss": 1 / step, "train/lr": 0.1}}
            for step in range(first, last + 1)
        ]
        lines.append({"s": last, "t": 1000 * attempt * 10_000 + last, "e": event, "d": {}})
        self.journal(run, attempt, first - 1, lines)

    def facts(self, run: str, state: RunState = RunState.DONE, **more: object) -> RunFacts:
        told: dict[str, object] = {
            "run_id": run,
            "kind": "train",
            "state": state,
            "run_dir": self.root / "runs" / run,
            "config": {"kind": "train", "seed": 0, "model": {"kind": "slot_autoencoder", "num_slots": 5}},
            "code_tree": "tree1",
            "attempts": (AttemptFacts(job_id="12_0", restart_count=0, node="n1"),),
            "steps": 10,
        }
        return RunFacts(**(told | more))  # type: ignore[arg-type]  # a test's shorthand


@pytest.fixture
def make(root: Path) -> RunMaker:
    return RunMaker(root)


class Server:
    """MLflow's server on loopback, killed and started again on the same store and port."""

    def __init__(self, folder: Path, store: Path) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.pid = 0
        self.log = folder / "server.log"
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), f"sqlite:///{store}", str(folder / "artifacts")]
        with open(self.log, "ab") as log:
            self.starter = subprocess.Popen(
                [*command, str(port)], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def start(self) -> None:
        assert self.starter.stdin is not None
        assert self.starter.stdout is not None
        print("start", file=self.starter.stdin, flush=True)
        self.pid = int(self.starter.stdout.readline())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)  # polling for the fact that it answers
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0

    def close(self) -> None:
        self.kill()
        self.starter.communicate()


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    """A server over the root's store, not yet started. Its artifacts go through HTTP."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/1' WHERE name = 'orch'")
    one = Server(root, root / "mlflow.db")
    yield one
    one.close()
