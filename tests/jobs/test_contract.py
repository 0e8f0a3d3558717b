"""The run directory's records: claims, ownership, outcomes; a crash or a twin at any line leaves them readable."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract import (
    Attempt,
    Cause,
    Outcome,
    RunDir,
    Status,
    claim,
    manifest_problem,
    owns,
    read_attempts,
    read_outcome,
    write_atomically,
    write_outcome,
)


class Killed(BaseException):
    """Stands for SIGKILL."""


def attempt(name: str) -> Attempt:
    return Attempt(number=0, claimant=name, token="t", job_id="7_3", restart_count=2)


def test_that_claims_are_numbered_and_the_newest_owns(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first = claim(run_dir, attempt("a"))
    assert owns(run_dir, first)
    second = claim(run_dir, attempt("b"))
    assert (first.number, second.number) == (1, 2)
    assert not owns(run_dir, first)
    assert owns(run_dir, second)
    assert read_attempts(run_dir) == [first, second]


def test_that_simultaneous_claimants_get_different_numbers(tmp_path: Path) -> None:
    run_dir, found, start = RunDir(tmp_path), [], threading.Barrier(8)

    def race(name: str) -> None:
        start.wait()
        found.append(claim(run_dir, attempt(name)))

    threads = [threading.Thread(target=race, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.number for one in found) == list(range(1, 9))
    assert [owns(run_dir, one) for one in found].count(True) == 1
    assert not [name for name in os.listdir(run_dir.attempts) if name.startswith(".")]


@pytest.mark.parametrize("victim", ["os.link", "os.fsync", "jobs.contract.fsync_directory"])
def test_that_a_death_while_claiming_leaves_a_whole_claim_or_none(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    run_dir = RunDir(tmp_path)
    claim(run_dir, attempt("a"))
    with monkeypatch.context() as patch:
        patch.setattr(victim, die)
        with pytest.raises(Killed):
            claim(run_dir, attempt("b"))
    assert [one.claimant for one in read_attempts(run_dir)] == ["a", "b"] if victim.startswith("jobs") else ["a"]
    assert owns(run_dir, claim(run_dir, attempt("c")))


def test_that_an_unreadable_claim_still_counts(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    first = claim(run_dir, attempt("a"))
    (run_dir.attempts / "0002.json").write_text("")
    assert not owns(run_dir, first)
    assert [one.number for one in read_attempts(run_dir)] == [1, 2]
    assert claim(run_dir, attempt("c")).number == 3


outcomes = st.builds(
    Outcome,
    status=st.sampled_from(Status),
    attempt=st.integers(1, 10**6),
    step=st.integers(0, 10**9),
    reason=st.text(),
    cause=st.none() | st.sampled_from(Cause),
    finished_at=st.floats(1, 1e10),
    values=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    files=st.dictionaries(st.text(), st.integers(0, 2**50)),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(outcome=outcomes, cut=st.integers(1, 10**4))
def test_that_an_outcome_written_is_the_outcome_read_and_half_of_it_is_none(outcome: Outcome, cut: int, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write_outcome(run_dir, outcome)
    assert read_outcome(run_dir) == outcome
    content = run_dir.outcome.read_bytes()
    run_dir.outcome.write_bytes(content[: max(0, len(content) - 2 - cut)])
    assert read_outcome(run_dir) is None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"status": "superb", "attempt": 1}', '{"status": "done"}', "\xff"])
def test_that_nonsense_is_no_outcome(text: str, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.outcome.write_text(text, encoding="latin-1")
    assert read_outcome(run_dir) is None
    assert manifest_problem(run_dir) == f"run {run_dir.id} has no outcome"


def test_that_a_result_is_usable_only_whole(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    (tmp_path / "x").write_text("abc")
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=1, files={"x": 3}))
    assert manifest_problem(run_dir) is None
    (tmp_path / "x").write_text("ab")
    assert manifest_problem(run_dir) == f"x of run {run_dir.id} has 2 bytes, its manifest says 3"


@pytest.mark.parametrize("victim", ["os.fsync", "os.replace", "jobs.contract.fsync_directory"])
def test_that_a_reader_sees_the_old_text_or_the_new(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(victim, die)
        with pytest.raises(Killed):
            write_atomically(path, "new")
    assert path.read_text() == ("new" if victim.startswith("jobs") else "old")
    assert os.listdir(tmp_path) == ["file"]
