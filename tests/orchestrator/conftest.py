"""A root, a store and a stand-in for Slurm's commands: shared by the tests of the control plane."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as cli
from orchestrator.slurm.parse import SEPARATOR
from orchestrator.store.runs import Store
from orchestrator.workspace import Root

COUNT = """
title: counting
base: [steps={steps}, step_s={step_s}]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  count: {{job: count, set: [{extra}]}}
resources:
  count: {{timeout_min: 10, cpus_per_task: 1}}
table:
  rows: seed
  value: {{metric: count/value, step: count, digits: 0}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path / "root")
    made.create()
    return made


@pytest.fixture
def store(root: Root) -> Iterator[Store]:
    opened = Store(root.store)
    yield opened
    opened.close()


@pytest.fixture
def count_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep of counting runs: `count_sweep("name", seeds=[0, 1], steps=5)`."""

    def write(
        name: str = "counting", *, seeds: list[int] | None = None, steps: int = 5, step_s: float = 0, extra: str = ""
    ) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(COUNT.format(steps=steps, step_s=step_s, seeds=[0, 1] if seeds is None else seeds, extra=extra))
        return path

    return write


SBATCH = """#!{python}
import json, os, pathlib, sys, time
state, separator = pathlib.Path({state!r}), {separator!r}
number = len(list(state.glob("call-*.json"))) + 1
text = pathlib.Path(sys.argv[-1]).read_text()
(state / f"call-{{number:03d}}.json").write_text(json.dumps(
    {{"arguments": sys.argv[1:], "environment": dict(os.environ), "script": text, "cwd": os.getcwd()}}))
answers = json.loads((state / "answers.json").read_text())
answer = answers[min(number, len(answers)) - 1]
lines = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH"))
if answer["take"]:
    last = int(lines["array"].partition("%")[0].partition("-")[2] or 0)
    with open(state / "queue", "a") as queue:
        for index in range(last + 1):
            cells = (f"{{100 + number}}_{{index}}", str(100 + number), str(index), "PENDING", "Priority", "low", "")
            queue.write(separator.join((*cells, "N/A", "N/A", "N/A", lines["job-name"])) + "\\n")
sys.stderr.write(answer["err"])
sys.stdout.write(answer["out"].replace("JOB", str(100 + number)))
sys.stdout.flush()
time.sleep(answer["sleep_s"])
sys.exit(answer["code"])
"""

SQUEUE = """#!/bin/sh
echo "squeue $*" >> {state}/log
if [ -e {state}/down ]; then echo "Unable to contact slurm controller (connect failure)" >&2; exit 1; fi
if [ -e {state}/queue ]; then cat {state}/queue; fi
"""

QUIET = """#!/bin/sh
echo "$(basename "$0") $*" >> {state}/log
case "$1-$2" in show-config|show-partition|show-node) cat {answers}/scontrol_$2.txt;; esac
"""


@dataclass(frozen=True, kw_only=True)
class StubSlurm:
    """Slurm's commands on a PATH: sbatch answers as told and remembers its calls; squeue lists what sbatch took."""

    state: Path

    def answers(self, *answers: Mapping[str, object]) -> None:
        """What sbatch does at its 1st, 2nd, ... call; the last one goes on."""
        plain = {"out": "Submitted batch job JOB\n", "err": "", "code": 0, "sleep_s": 0, "take": True}
        (self.state / "answers.json").write_text(json.dumps([plain | dict(one) for one in answers or ({},)]))

    @property
    def taken(self) -> Mapping[str, object]:
        """sbatch as it should be."""
        return {}

    @property
    def refused(self) -> Mapping[str, object]:
        """The answer of a controller that does not want the job."""
        words = "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
        return {"out": "", "err": words, "code": 1, "take": False}

    @property
    def lost(self) -> Mapping[str, object]:
        """The job is queued, and the answer never comes back."""
        words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
        return {"out": "", "err": words, "code": 1, "take": True}

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every sbatch call so far: arguments, environment, script, cwd."""
        return [json.loads(path.read_text()) for path in sorted(self.state.glob("call-*.json"))]

    @property
    def log(self) -> list[str]:
        """Every other command line so far."""
        path = self.state / "log"
        return path.read_text().splitlines() if path.exists() else []

    def forget(self) -> None:
        """The queue is empty again."""
        (self.state / "queue").unlink(missing_ok=True)

    def down(self) -> None:
        """The controller does not answer any more."""
        (self.state / "down").touch()


@pytest.fixture
def stub_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubSlurm:
    """The commands of a cluster that queues everything and starts nothing, first on PATH."""
    folder, state = tmp_path / "bin", tmp_path / "stub"
    folder.mkdir()
    state.mkdir()
    answers = Path(__file__).parent / "slurm" / "answers"
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE} | dict.fromkeys(("scancel", "sacct", "sacctmgr", "scontrol"), QUIET)
    for name, text in scripts.items():
        (folder / name).write_text(
            text.format(python=sys.executable, state=str(state), separator=SEPARATOR, answers=str(answers))
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    stub = StubSlurm(state=state)
    stub.answers()
    return stub


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command printed."""

    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """The `orch` command, in this process."""

    root: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: str | Path, expect: int = 0) -> Said:
        """Run it; an exit code other than `expect` fails the test, and so does any exception that it does not word."""
        self.patch.setattr(sys, "argv", ["orch", "--root", str(self.root), *map(str, arguments)])
        self.capture.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        said = Said(**dict(zip(("out", "err"), self.capture.readouterr(), strict=True)))
        assert code == expect, f"orch {' '.join(map(str, arguments))}: exit {code}\n{said.out}\n{said.err}"
        return said

    def runs(self, *what: str) -> dict[str, dict[str, Any]]:
        """`orch status --json` by run id."""
        return {run["id"]: run for run in json.loads(self("status", *what, "--json").out)}


@pytest.fixture
def orch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """On a root that does not exist yet, with a tracker that nobody answers for (no test here is about the tracker)."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    return Command(root=tmp_path / "root", capture=capsys, patch=monkeypatch)
