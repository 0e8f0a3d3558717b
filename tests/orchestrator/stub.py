"""A stand-in for Slurm's commands, and the `orch` command in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as cli
from orchestrator.slurm.states import LAUNCH_FAILED

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
    job = str(100 + number)
    last = int(lines.get("array", "").partition("%")[0].partition("-")[2] or 0)
    tasks = [(f"{{job}}_{{index}}", job, str(index)) for index in range(last + 1)] if "array" in lines else [(job, job, "N/A")]
    with open(state / "queue", "a") as queue:
        for task in tasks:
            cells = (*task, "PENDING", "Priority", "low", "")
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

    def hold(self) -> None:
        """What is queued is held, as after a failed launch."""
        queue = self.state / "queue"
        queue.write_text(queue.read_text().replace("Priority", LAUNCH_FAILED))

    def forget(self) -> None:
        """The queue is empty again."""
        (self.state / "queue").unlink(missing_ok=True)

    def down(self) -> None:
        """The controller does not answer any more."""
        (self.state / "down").touch()


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
