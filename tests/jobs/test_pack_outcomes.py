"""What a pack reads in its runs' directories, and when it speaks for a run: the tables."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.contract import Attempt, Cause, Outcome, RunDir, Status, claim, read_attempts, read_outcome, write_outcome
from jobs.eviction import Slurm
from jobs.pack_outcomes import how_it_ended, oom_kills, speak_for, why_over

SLURM = Slurm(job_id="7_3", restart_count=1, token="t", signal_delay_s=90)


def run_with(folder: Path, tokens: Sequence[str], outcome: Outcome | None = None) -> RunDir:
    run_dir = RunDir(folder / "run")
    run_dir.path.mkdir()
    for number, token in enumerate(tokens):
        claim(run_dir, Attempt(number=0, claimant=str(number), token=token))
    if outcome is not None:
        write_outcome(run_dir, outcome)
    return run_dir


def ended(status: Status, attempt: int, **more: object) -> Outcome:
    return Outcome(status=status, attempt=attempt, **more)  # type: ignore[arg-type]  # the tests name fields freely


@pytest.mark.parametrize(
    ("tokens", "outcome", "expected"),
    [
        ("", None, ""),
        ("s", None, ""),
        ("s", ended(Status.FAILED, 1), ""),
        ("st", None, ""),
        ("st", ended(Status.FAILED, 1), ""),
        ("t", ended(Status.STOPPED, 1), "ended as stopped"),
        ("tt", ended(Status.FAILED, 2), "ended as failed"),
        ("tt", ended(Status.FAILED, 1), ""),
        ("t", ended(Status.BLOCKED, 1), "ended as blocked"),
        ("t", ended(Status.CANCELLED, 1), "ended as cancelled"),
        ("tu", None, "attempt 2, of another submission, owns it"),
        ("tu", ended(Status.FAILED, 2), "attempt 2, of another submission, owns it"),
        ("s", ended(Status.DONE, 1), "done"),
        ("s", ended(Status.DONE, 1, files={"output/lost": 3}), ""),
    ],
)
def test_that_a_run_is_over_when_an_attempt_of_this_submission_says_so(
    tokens: str, outcome: Outcome | None, expected: str, tmp_path: Path
) -> None:
    assert why_over(run_with(tmp_path, tokens, outcome), "t") == expected


@pytest.mark.parametrize(
    ("tokens", "outcome", "before", "attempt"),
    [
        ("t", None, 0, 1),
        ("st", ended(Status.FAILED, 1), 1, 2),
        ("", None, 0, 1),
        ("s", ended(Status.FAILED, 1), 1, 2),
    ],
)
def test_that_a_silent_end_is_told_under_an_attempt_of_this_submission(
    tokens: str, outcome: Outcome | None, before: int, attempt: int, tmp_path: Path
) -> None:
    run_dir = run_with(tmp_path, tokens, outcome)
    assert speak_for(run_dir, SLURM, before=before, status=Status.FAILED, reason="why", cause=Cause.UNEXPLAINED)
    found = read_outcome(run_dir)
    assert found is not None
    assert (found.status, found.attempt, found.reason, found.cause) == (Status.FAILED, attempt, "why", Cause.UNEXPLAINED)
    newest = read_attempts(run_dir)[-1]
    assert (newest.number, newest.token) == (attempt, "t")
    if not tokens.endswith("t"):
        assert (newest.job_id, newest.restart_count) == ("7_3", 1)


@pytest.mark.parametrize(
    ("tokens", "outcome", "before"),
    [
        ("t", ended(Status.FAILED, 1, reason="its own words"), 0),
        ("tt", ended(Status.DONE, 1), 1),
        ("s", ended(Status.DONE, 1), 1),
        ("tu", None, 0),
        ("u", None, 0),
    ],
)
def test_that_nobody_speaks_for_a_run_that_spoke_or_is_anothers(
    tokens: str, outcome: Outcome | None, before: int, tmp_path: Path
) -> None:
    run_dir = run_with(tmp_path, tokens, outcome)
    said = run_dir.outcome.read_bytes() if outcome else b""
    assert not speak_for(run_dir, SLURM, before=before, status=Status.FAILED, reason="why")
    assert (run_dir.outcome.read_bytes() if run_dir.outcome.exists() else b"") == said
    assert len(read_attempts(run_dir)) == len(tokens)


def test_that_an_outcome_without_an_attempt_gets_one_of_this_submission(tmp_path: Path) -> None:
    """A refused run writes its outcome before it claims anything."""
    run_dir = run_with(tmp_path, "s", ended(Status.FAILED, 2, cause=Cause.REFUSED, reason="bad spec"))
    assert not speak_for(run_dir, SLURM, before=1, status=Status.FAILED, reason="why")
    found = read_outcome(run_dir)
    assert found is not None
    assert (found.reason, read_attempts(run_dir)[-1].number, read_attempts(run_dir)[-1].token) == ("bad spec", 2, "t")
    assert why_over(run_dir, "t") == "ended as failed"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "its process ended with exit code 3 and no outcome"),
        (-signal.SIGSEGV, "its process was killed by signal 11 (SIGSEGV)"),
        (-63, "its process was killed by signal 63 (unknown)"),
    ],
)
def test_that_a_silent_end_is_worded(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_that_kills_for_memory_are_counted_in_either_kind_of_control_group(tmp_path: Path) -> None:
    membership, mounted = tmp_path / "cgroup", tmp_path / "fs"
    unified, legacy = mounted / "slurm/job_7", mounted / "memory/slurm/job_7"
    for folder in (unified, legacy):
        folder.mkdir(parents=True)
    (unified / "memory.events").write_text("low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    (legacy / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    membership.write_text("0::/slurm/job_7\n")
    assert oom_kills(membership, mounted) == 2
    membership.write_text("11:cpuset:/\n4:cpu,memory:/slurm/job_7\n1:name=systemd:/\n")
    assert oom_kills(membership, mounted) == 5
    membership.write_text("0::/elsewhere\n")
    assert oom_kills(membership, mounted) == 0
    assert oom_kills(tmp_path / "missing", mounted) == 0
