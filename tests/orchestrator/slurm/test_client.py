"""The client against programs that stand in for Slurm's: what it runs, and what it makes of faults."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError
from orchestrator.slurm.client import SlurmCommand, scrubbed_environment
from orchestrator.slurm.rows import History, HistoryUnavailable, Verdict

UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Programs:
    """Puts shell scripts on PATH in the place of Slurm's commands, and records how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_CONF": "here"}

    def says(self, name: str, *, out: str = "", err: str = "", code: int = 0, before: str = "") -> None:
        path = self.directory / name
        lines = ["#!/bin/sh", f'printf "%s\\n" "$*" >> {self.directory}/{name}.calls', before]
        lines += [f"printf '%s' {shlex.quote(out)}", f"printf '%s' {shlex.quote(err)} >&2", f"exit {code}"]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.directory / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def client(self, timeout_s: float = 10.0) -> SlurmCommand:
        return SlurmCommand(environment=self.environment, timeout_s=timeout_s)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture(autouse=True)
def _path(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs.environment["PATH"])


def test_that_an_empty_queue_is_an_answer_and_a_failure_is_not(programs: Programs) -> None:
    programs.says("squeue")
    assert programs.client().jobs("me").rows == ()
    programs.says("squeue", err=UNREACHABLE, code=1)
    with pytest.raises(ClusterError, match=r"exit code 1: .*Unable to contact") as caught:
        programs.client().jobs("me")
    assert "hint:" in str(caught.value)
    assert "squeue -h -r -u me" in str(caught.value)


def test_that_an_error_line_beside_exit_code_0_is_a_failure(programs: Programs) -> None:
    programs.says("squeue", err="squeue: error: Invalid user: me\n")
    with pytest.raises(ClusterError, match="Invalid user"):
        programs.client().jobs("me")


def test_that_a_command_that_hangs_is_a_cluster_error(programs: Programs) -> None:
    programs.says("squeue", before="exec sleep 60")
    with pytest.raises(ClusterError, match="did not answer within 0 s"):
        programs.client(timeout_s=0.3).jobs("me")


def test_that_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ClusterError, match="`squeue` is not on PATH") as caught:
        SlurmCommand(environment={"PATH": str(tmp_path / "nothing")}).jobs("me")
    assert "--local" in str(caught.value)


def test_that_a_question_killed_by_a_signal_is_asked_once_more(programs: Programs) -> None:
    mark = programs.directory / "killed"
    programs.says("scontrol", out="JobId=5 JobState=RUNNING", before=f"[ -e {mark} ] || {{ touch {mark}; kill -TERM $$; }}")
    detail = programs.client().show_job("5")
    assert detail is not None
    assert detail.id == "5"
    assert len(programs.calls("scontrol")) == 2


def test_that_commands_see_no_variable_of_the_job_around_them() -> None:
    inside = {"SLURM_ARRAY_TASK_ID": "3", "SBATCH_PARTITION": "x", "SQUEUE_FORMAT": "%i", "SLURM_CONF": "c", "HOME": "h"}
    assert scrubbed_environment(inside) == {"SLURM_CONF": "c", "HOME": "h", "SLURM_TIME_FORMAT": "%s"}


def test_that_accounting_switched_off_is_a_value(programs: Programs) -> None:
    programs.says("sacct", err="Slurm accounting storage is disabled\n", code=1)
    answer = programs.client().history(["1"], since=0.0)
    assert answer == HistoryUnavailable(reason="this site keeps no job accounting", permanent=True)


def test_that_a_database_that_does_not_answer_is_a_passing_value(programs: Programs) -> None:
    programs.says("sacct", err="sacct: error: Problem talking to the database: Connection refused\n", code=1)
    answer = programs.client().history(["1"], since=0.0)
    assert isinstance(answer, HistoryUnavailable)
    assert not answer.permanent


def test_that_thousands_of_arrays_are_still_one_bounded_question(programs: Programs) -> None:
    programs.says("sacct")
    answer = programs.client().history([str(number) for number in range(1, 5000)], since=0.0)
    assert isinstance(answer, History)
    (call,) = programs.calls("sacct")
    assert len(call) < 500
    assert isinstance(programs.client().history([], since=0.0), History)
    assert len(programs.calls("sacct")) == 1


def test_that_an_unknown_job_is_a_value(programs: Programs) -> None:
    programs.says("scontrol", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert programs.client().show_job("99") is None
    assert programs.client().requeue("99").verdict is Verdict.UNKNOWN_JOB
    assert programs.client().update_dependency("99", "afterok:1").verdict is Verdict.UNKNOWN_JOB


def test_that_a_refusal_is_a_value_and_silence_is_an_error(programs: Programs) -> None:
    programs.says("scontrol", err="1_4: Job is pending execution\n", code=1)
    assert programs.client().requeue("1_4").verdict is Verdict.REFUSED
    programs.says("scontrol", err="Unexpected message received for job 1_4\n", code=1)
    with pytest.raises(ClusterError):
        programs.client().requeue("1_4")


def test_that_cancelling_thousands_of_tasks_is_one_call(programs: Programs) -> None:
    programs.says("scancel", err="scancel: error: Kill job error on job id 9: Invalid job id specified\n", code=1)
    programs.client().cancel([f"12_{index}" for index in range(10_000)] + ["9"])
    assert programs.calls("scancel") == ["9 12_[0-9999]"]


def test_that_a_refused_cancel_is_an_error(programs: Programs) -> None:
    programs.says("scancel", err="scancel: error: Kill job error on job id 9: Access/permission denied\n", code=1)
    with pytest.raises(ClusterError, match="permission denied"):
        programs.client().cancel(["9"])


def test_that_an_unreadable_line_is_logged_once(programs: Programs, caplog: pytest.LogCaptureFixture) -> None:
    programs.says("squeue", out="what is this\n")
    client = programs.client()
    with caplog.at_level(logging.WARNING):
        assert client.jobs("me").problems == ("what is this",)
        client.jobs("me")
    assert [record.getMessage() for record in caplog.records] == ["squeue printed a line that we cannot read: 'what is this'"]
