"""Owns the copy of the code that a storm runs: it obeys orders (mischief.py), and may have a known mistake in it.

A campaign that proves anything must find each of these mistakes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("orchestrator", "jobs", "models")
MISCHIEF = Path(__file__).with_name("mischief.py")


BEGINNING = '''    """Entry point; returns the exit code."""
'''
OBEDIENT = f"""{BEGINNING}    from jobs import mischief

    mischief.install(Path(arguments[0]).resolve())
"""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One place of the code made wrong."""

    file: str
    right: str
    wrong: str
    shown_by: tuple[str, ...]
    """Names of the faults that bring it to light; a campaign on it needs no others."""


MANIFEST_FIRST = """        try:
            facts = {"step": step, "config": self.config_hash, "world_size": world_size, "threads": threads, "files": {}}
            (temporary / MANIFEST).write_text(json.dumps(facts))
            shown = self.directory / f"{_PREFIX}{step:010d}"
            if not shown.exists():
                os.rename(temporary, shown)
                temporary.mkdir()
                write(shown)
            write(temporary)
"""
INTEND = "        store.intend(token, batch.runs, after=after, now=time.time(), runs_per_task=batch.runs_per_task)\n"
TRY, ACT = "        try:\n", "            job = sbatch(request)\n"

MISTAKES: dict[str, Mistake] = {
    "no-fsync": Mistake(
        file="jobs/checkpoint.py",
        right="                _fsync(file)\n",
        wrong="",
        shown_by=("power cut at a line of the job",),
    ),
    "manifest-first": Mistake(
        file="jobs/checkpoint.py",
        right="        try:\n            write(temporary)\n",
        wrong=MANIFEST_FIRST,
        shown_by=("SIGKILL at a line of the job",),
    ),
    "cursor-first": Mistake(
        file="orchestrator/tracking/shipper.py",
        right="        tracker.log(tracked.id, points=chunk)\n",
        wrong="        _advance(cursors, facts.run_id, chunk[-1].step)\n        tracker.log(tracked.id, points=chunk)\n",
        shown_by=("tracker killed while shipping", "tracker fails, dawdles or hangs up"),
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
        shown_by=("SIGKILL of all runs",),
    ),
    "act-before-intent": Mistake(
        file="orchestrator/apply.py",
        right=INTEND + TRY + ACT,
        wrong=TRY + ACT + f"    {INTEND}",
        shown_by=("orch killed at a line",),
    ),
}


def armed_copy(repository: Path, folder: Path, mistake: str | None = None) -> Path:
    """A copy of the packages that obeys orders, with a mistake in it if asked for.

    Raises ValueError when the code no longer has one of these places.
    """
    for package in PACKAGES:
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(MISCHIEF, folder / "jobs" / MISCHIEF.name)
    _change(folder / "jobs" / "__main__.py", BEGINNING, OBEDIENT)
    if mistake is not None:
        _change(folder / MISTAKES[mistake].file, MISTAKES[mistake].right, MISTAKES[mistake].wrong)
    return folder


def _change(path: Path, right: str, wrong: str) -> None:
    text = path.read_text(encoding="utf-8")
    if text.count(right) != 1:
        raise ValueError(f"{path} holds {text.count(right)} times what is to be changed: {right!r}")
    path.write_text(text.replace(right, wrong), encoding="utf-8")
