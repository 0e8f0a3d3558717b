"""The command as a person meets it: words, exit codes, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.contract import Outcome, Status, write_outcome
from orchestrator.cli.main import COMMANDS
from orchestrator.store.runs import Store
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command, StubSlurm

Sweep = Callable[..., Path]


def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def finish(orch: Command, *runs: str, status: Status = Status.DONE, reason: str = "") -> None:
    """What jobs would write: an outcome of attempt 1."""
    for run in runs or orch.runs():
        write_outcome(Root(orch.root).run_dir(run), Outcome(status=status, attempt=1, reason=reason))


# --- done, and damaged since -------------------------------------------------------------------------------------------


def test_that_a_done_run_whose_output_is_damaged_can_be_resumed_by_name(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    run_dir = Root(orch.root).run_dir(run)
    run_dir.output.mkdir()
    (run_dir.output / "value.json").write_text("{}")
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=1, files={"output/value.json": 2}))
    assert orch.runs()[run]["state"] == "done"
    assert "nothing to resume" in orch("resume", run).out
    (run_dir.output / "value.json").write_text("")
    assert "queued array" in orch("resume", run).out


# --- help and typing mistakes ----------------------------------------------------------------------------------------


def test_that_help_names_every_command_and_the_root(orch: Command) -> None:
    said = orch("--help").out
    assert all(name in said for name in COMMANDS)
    assert "ORCH_ROOT" in said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_that_every_command_explains_itself(command: str, orch: Command) -> None:
    assert orch(command, "--help").out.startswith("Usage:")
    assert not orch.root.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("plan",),
        ("submit",),
        ("cancel",),
        ("show",),
        ("logs",),
        ("status", "--colour"),
        ("table", "x", "--format", "pdf"),
    ],
    ids=" ".join,
)
def test_that_a_typing_mistake_is_exit_2_with_usage(arguments: tuple[str, ...], orch: Command) -> None:
    assert "Usage:" in orch(*arguments, expect=2).err
    assert not orch.root.exists()


# --- a root with nothing in it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("status",), ("show", "x"), ("logs", "x"), ("resume",), ("cancel", "x"), ("sync",)], ids=" ".join
)
def test_that_without_a_submission_there_is_a_hint_and_no_root(arguments: tuple[str, ...], orch: Command) -> None:
    said = orch(*arguments, expect=2)
    assert "nothing was submitted here yet" in said.err
    assert "hint:" in said.err
    assert not orch.root.exists()


def test_that_planning_writes_nothing(orch: Command, count_sweep: Sweep) -> None:
    said = orch("plan", count_sweep())
    assert "2 cells, 2 runs: 2 new, 0 cached, 0 unfinished" in said.out
    assert not orch.root.exists()


def test_that_plan_prints_json_for_scripts(orch: Command, count_sweep: Sweep) -> None:
    plan = json.loads(orch("plan", count_sweep(seeds=[0, 1, 2]), "--json", "--only", "seed=1").out)
    (run,) = plan["runs"].values()
    assert (run["kind"], run["status"], run["config"]["seed"]) == ("count", "new", 1)
    assert plan["cells"] == [{"coordinates": {"seed": "1"}, "runs": {"count": next(iter(plan["runs"]))}, "cite": None}]


# --- bad input -------------------------------------------------------------------------------------------------------

BAD_SWEEPS = {
    "no yaml": "title: [",
    "unknown key": "titel: x",
    "unknown option": "axes: {seed: {key: seed, values: [0]}}\npipeline: {count: {job: count, set: [colour=red]}}",
    "unknown job": "axes: {seed: {key: seed, values: [0]}}\npipeline: {fly: {job: fly}}",
    "bad value": "axes: {seed: {key: seed, values: [x]}}\npipeline: {count: {job: count}}",
    "empty": "",
}


@pytest.mark.parametrize("bad", BAD_SWEEPS)
@pytest.mark.parametrize("command", ["plan", "submit"])
def test_that_a_bad_sweep_is_exit_2_names_the_file_and_leaves_nothing(
    command: str, bad: str, orch: Command, stub_slurm: StubSlurm, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD_SWEEPS[bad])
    said = orch(command, path, expect=2)
    assert "bad.yaml" in said.err
    assert said.err.startswith("error: ")
    assert (orch.root.exists(), stub_slurm.calls) == (False, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "seed=9"), "seed"),
        (("--only", "colour=red"), "colour"),
        (("--set", "colour=red"), "colour"),
        (("--set", "steps"), "steps"),
    ],
    ids=lambda value: str(value),
)
def test_that_a_selection_or_override_that_matches_nothing_is_exit_2(
    arguments: tuple[str, ...], words: str, orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    assert words in orch("submit", count_sweep(), *arguments, expect=2).err
    assert (orch.root.exists(), stub_slurm.calls) == (False, [])


def test_that_a_missing_sweep_file_is_exit_2(orch: Command, stub_slurm: StubSlurm) -> None:
    assert "nowhere.yaml" in orch("submit", "nowhere.yaml", expect=2).err
    assert not orch.root.exists()


def test_that_impossible_resources_are_exit_2_with_nothing_queued(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    path = count_sweep()
    path.write_text(path.read_text().replace("cpus_per_task: 1", "gpus_per_node: 64"))
    said = orch("submit", path, expect=2)
    assert "resources.count" in said.err
    assert stub_slurm.calls == []
    assert not orch.root.exists()


@pytest.mark.parametrize("root", ["/proc/nowhere/root", "/dev/null/root"])
@pytest.mark.parametrize("local", [(), ("--local",)], ids=["slurm", "local"])
def test_that_an_unwritable_root_is_exit_2_with_nothing_queued(
    root: str, local: tuple[str, ...], orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    elsewhere = Command(root=Path(root), capture=orch.capture, patch=orch.patch)
    said = elsewhere("submit", count_sweep(), *local, expect=2)
    assert "the root cannot be written" in said.err
    assert "--root DIR" in said.err
    assert stub_slurm.calls == []


def test_that_a_name_that_nobody_knows_is_exit_2_with_a_guess(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep("counting"))
    assert "did you mean counting?" in orch("status", "countin", expect=2).err
    assert "more than one run begins like this" in orch("show", "count", expect=2).err


# --- the cluster -----------------------------------------------------------------------------------------------------


def test_that_submitting_without_slurm_is_exit_3_names_the_way_and_leaves_nothing(
    orch: Command, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_slurm(monkeypatch)
    assert "--local" in orch("submit", count_sweep(), expect=3).err
    assert not orch.root.exists()


def test_that_a_refusal_is_exit_3_in_sbatchs_words_and_leaves_nothing(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    stub_slurm.answers(stub_slurm.refused)
    assert "Invalid partition name" in orch("submit", count_sweep(), expect=3).err
    root = Root(orch.root)
    assert list(root.runs.iterdir()) == []
    assert orch.runs() == {}
    store = Store(root.store)
    assert store.sweeps() == []
    store.close()
    stub_slurm.answers()
    orch("submit", count_sweep())
    assert [run["state"] for run in orch.runs().values()] == ["queued", "queued"]


def test_that_a_refused_resubmission_leaves_the_sweep_as_it_was(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0, 1]))
    before = orch.runs("counting")
    stub_slurm.answers(stub_slurm.refused)
    orch("submit", count_sweep(seeds=[1, 2]), expect=3)
    assert orch.runs("counting") == before


def test_that_a_lost_answer_is_exit_3_and_the_next_look_finds_the_jobs(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    stub_slurm.answers(stub_slurm.lost)
    assert "do not submit again" in orch("submit", count_sweep(), expect=3).err
    assert {run["state"] for run in orch.runs().values()} == {"queued"}
    assert len(stub_slurm.calls) == 1


def test_that_half_a_submission_is_kept_and_resumed(orch: Command, stub_slurm: StubSlurm, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "axes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {first: {job: count}, second: {job: count, needs: [first], set: [label=second]}}\n"
        "table: {rows: seed, value: {metric: count/value, step: second, digits: 0}}\n"
    )
    stub_slurm.answers(stub_slurm.taken, stub_slurm.refused)
    orch("submit", path, expect=3)
    assert sorted(run["state"] for run in orch.runs("two").values()) == ["planned", "queued"]
    stub_slurm.answers()
    orch("resume", "two")
    assert {run["state"] for run in orch.runs("two").values()} == {"queued"}


def test_that_status_survives_a_silent_cluster(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep())
    stub_slurm.down()
    assert "Slurm did not answer, showing what is recorded" in orch("status").out
    orch("cancel", "counting", expect=3)
    assert [run["state"] for run in orch.runs().values()] == ["queued", "queued"]


def test_that_status_can_look_at_a_root_of_somebody_else(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep())
    (orch.root / "lock").unlink()
    (orch.root / "lock").mkdir()  # stands for a directory that we may only read
    assert "read-only" in orch("status").out
    assert "cannot be written" in orch("resume", expect=2).err


# --- a sweep's life --------------------------------------------------------------------------------------------------


def test_that_a_finished_sweep_is_not_submitted_again_and_says_so(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    orch("submit", count_sweep())
    finish(orch)
    said = orch("submit", count_sweep())
    assert "nothing to do: all 2 runs of counting are done" in said.out
    assert len(stub_slurm.calls) == 1
    assert "2 cached" in orch("plan", count_sweep()).out


def test_that_submitting_again_while_queued_queues_nothing(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep())
    orch("submit", count_sweep())
    assert len(stub_slurm.calls) == 1


def test_that_only_what_is_new_is_queued(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0, 1]))
    assert "queued array 102: 1 run" in orch("submit", count_sweep(seeds=[0, 1, 2])).out


def test_that_one_run_in_two_sweeps_is_queued_once_and_cancelling_one_sweep_leaves_it(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    orch("submit", count_sweep("one", seeds=[0, 1]))
    orch("submit", count_sweep("two", seeds=[1, 2]))
    assert len(orch.runs()) == 3
    shared = set(orch.runs("one")) & set(orch.runs("two"))
    said = orch("cancel", "one").out
    assert "cancelled 1 run" in said
    assert "left 1 that another sweep needs" in said
    assert {run: one["state"] for run, one in orch.runs("two").items()} == dict.fromkeys(orch.runs("two"), "queued")
    orch("cancel", *shared)
    assert orch.runs("two")[shared.pop()]["state"] == "cancelled"


def test_that_the_last_sweep_that_is_cancelled_takes_the_shared_runs_along(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    for name in ("one", "two"):
        orch("submit", count_sweep(name, seeds=[0]))
    assert "cancelled 0 runs" in orch("cancel", "one").out
    assert "cancelled 1 run" in orch("cancel", "two").out
    orch("resume", "one")
    assert "cancelled 1 run" in orch("cancel", "one").out


def test_that_a_cancelled_sweep_stays_cancelled_until_it_is_resumed(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    orch("submit", count_sweep())
    orch("cancel", "counting")
    assert [line for line in stub_slurm.log if line.startswith("scancel")] == ["scancel 101_[0-1]"]
    stub_slurm.forget()
    assert "2 need `orch resume counting`" in orch("submit", count_sweep()).out
    assert len(stub_slurm.calls) == 1
    assert "queued array 102: 2 runs" in orch("resume", "counting").out
    assert not any(Root(orch.root).run_dir(run).cancel_mark.exists() for run in orch.runs())


def test_that_show_explains_a_failure(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    finish(orch, run, status=Status.FAILED, reason="ValueError: no such colour")
    stub_slurm.forget()
    logs = Root(orch.root).run_dir(run).logs
    (logs / "101_0.0.log").write_text("first\nTraceback: the last line\n")
    said = orch("show", run.partition("-")[2][:6]).out
    for words in (f"{run}: failed", "ValueError: no such colour", "serves:    counting", "the last line", "submitting"):
        assert words in said
    assert json.loads(orch("show", run, "--json").out)["state"] == "failed"
    assert orch("logs", run).out.endswith("the last line\n")
    assert "`orch resume` continues 1 run" in orch("status").out


def test_that_a_run_without_a_log_is_exit_2(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]))
    assert "no log yet" in orch("logs", next(iter(orch.runs())), expect=2).err


def test_that_resume_clears_away_what_slurm_holds_of_runs_that_are_done(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep
) -> None:
    orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    write_outcome(Root(orch.root).run_dir(run), Outcome(status=Status.DONE, attempt=1))
    stub_slurm.hold()
    assert "1 done" in orch("status").out
    said = orch("resume").out
    assert "cancelled 101_0: Slurm held what no run waits for any more" in said
    assert "nothing to resume" in said
    assert "scancel 101_[0]" in " ".join(stub_slurm.log)


def test_that_cancel_clears_away_what_slurm_holds_too(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    """A run that waits is cancelled with its own job; the held one of the run that is done goes too."""
    orch("submit", count_sweep(seeds=[0, 1]))
    done, waiting = orch.runs()
    finish(orch, done)
    stub_slurm.hold()
    assert "cancelled 101_0: Slurm held what no run waits for any more" in orch("cancel", waiting).out
    assert [line for line in stub_slurm.log if line.startswith("scancel")] == ["scancel 101_[0]", "scancel 101_[1]"]


def test_that_resume_names_what_is_held(orch: Command, stub_slurm: StubSlurm, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "axes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {first: {job: count}, second: {job: count, needs: [first], set: [label=second]}}\n"
        "table: {rows: seed, value: {metric: count/value, step: second, digits: 0}}\n"
    )
    orch("submit", path)
    first, second = orch.runs()
    finish(orch, first, status=Status.FAILED, reason="broken")
    finish(orch, second, status=Status.BLOCKED, reason="waits")
    stub_slurm.forget()
    said = orch("resume", second).out
    assert f"held {second}: waits for {first} (failed): `orch resume {first}`" in said
    said = orch("resume").out
    assert said.count("queued array") == 2


def test_that_new_code_reaches_an_unfinished_run_only_on_demand(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.workspace.tree_hash", lambda checkout: "0123456789abcdef")
        orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    spec = Root(orch.root).run_dir(run).spec
    orch("cancel", run)
    orch("resume", run)
    assert json.loads(spec.read_text())["code_tree"] == "0123456789abcdef"
    assert "(other code)" in orch("plan", count_sweep(seeds=[0])).out
    orch("cancel", run)
    orch("resume", run, "--new-code")
    assert json.loads(spec.read_text())["code_tree"] != "0123456789abcdef"
    assert "(other code)" not in orch("plan", count_sweep(seeds=[0])).out
