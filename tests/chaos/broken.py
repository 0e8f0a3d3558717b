"""Owns known mistakes: what a campaign that proves anything must find. Each is a change of one place of the code."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("orchestrator", "jobs", "models")


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One line of code made wrong."""

    file: str
    right: str
    wrong: str
    shown_by: tuple[str, ...]
    """Names of the faults that bring it to light; a campaign on it needs no others."""


MISTAKES: dict[str, Mistake] = {
    "cursor-first": Mistake(
        file="orchestrator/tracking/shipper.py",
        right="        tracker.log(tracked.id, points=chunk)\n",
        wrong="        _advance(cursors, facts.run_id, chunk[-1].step)\n        tracker.log(tracked.id, points=chunk)\n",
        shown_by=("orch sync killed", "tracker killed while shipping"),
    ),
    "unchecked-restore": Mistake(
        file="jobs/checkpoint.py",
        right="if sha256(path / name) != expected_sha256:",
        wrong="if False:",
        shown_by=("newest checkpoint damaged",),
    ),
    "everyone-owns": Mistake(
        file="jobs/contract.py",
        right='    return not (run_dir.attempts / f"{attempt.number + 1:04d}.json").exists()',
        wrong="    return True",
        shown_by=("a second attempt by hand",),
    ),
    "absent-is-done": Mistake(
        file="orchestrator/decide.py",
        right='state=RunState.LOST, reason="Slurm no longer knows it, and there is no outcome"',
        wrong='state=RunState.DONE, reason=""',
        shown_by=("SIGKILL of the rank",),
    ),
}
"""No missing fsync among them: only a power cut would show it, and the tests have none."""


def broken_copy(repository: Path, folder: Path, name: str) -> Path:
    """A copy of the packages with the mistake in it; raises ValueError when the code no longer has that place."""
    mistake = MISTAKES[name]
    for package in PACKAGES:
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / mistake.file
    text = path.read_text(encoding="utf-8")
    if text.count(mistake.right) != 1:
        raise ValueError(f"{mistake.file} holds {text.count(mistake.right)} times what {name} would change")
    path.write_text(text.replace(mistake.right, mistake.wrong), encoding="utf-8")
    return folder
