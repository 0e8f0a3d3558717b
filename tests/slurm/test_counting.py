"""The counting job through every contract of DESIGN.md section 2, on the real Slurm."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Status, read_attempts, read_outcome
from jobs.count import next_value
from tests.slurm.cluster import Options, SlurmCluster
from tests.slurm.orch import Orch, series, write_count_sweep

pytestmark = pytest.mark.slurm


@pytest.fixture
def orch(slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path) -> Orch:
    return make_orch(slurm_cluster, tmp_path / "root")


def expected_value(seed: int, steps: int) -> int:
    value = 0
    for step in range(1, steps + 1):
        value = next_value(value, seed, step)
    return value


def final_value(orch: Orch, run_id: str) -> int:
    return int(json.loads((orch.run_dir(run_id).output / "value.json").read_text())["value"])


def assert_exact(orch: Orch, run_id: str, *, seed: int, steps: int) -> None:
    """The final state and the whole series are those of a run that nobody touched."""
    assert final_value(orch, run_id) == expected_value(seed, steps)
    found, value = series(orch.journal(run_id)), 0
    for step in range(1, steps + 1):
        value = next_value(value, seed, step)
        assert found[step - 1] == (step, "count/value", float(value % 1_000_003))
    assert len(found) == steps


def start(orch: Orch, tmp_path: Path, name: str, **values: object) -> dict[str, str]:
    """Submit a one-run sweep and wait until it counts."""
    orch("submit", write_count_sweep(tmp_path, name, **values))
    run = orch.only_run(name)
    orch.wait_for_step(run["id"], 3)
    return orch.only_run(name)


@pytest.mark.parametrize("partition", ["low", "low_cancel", "low_nograce"])
def test_that_an_evicted_run_goes_on_exactly(orch: Orch, tmp_path: Path, partition: str) -> None:
    """PreemptMode REQUEUE and CANCEL with grace lose nothing; without grace at most one checkpoint interval is redone."""
    run = start(orch, tmp_path, "evicted", partition=partition, steps=200, every=5)
    for attempt in (2, 3):
        orch.cluster.evict(run["job"])
        orch.wait_for_attempt(run["id"], attempt)
    orch.wait_for_state("evicted", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=200)
    attempts = read_attempts(orch.run_dir(run["id"]))
    assert [one.restart_count for one in attempts] == list(range(len(attempts)))
    assert len(attempts) >= 3
    assert {one.job_id for one in attempts} == {run["job"]}
    if partition != "low_nograce":  # with notice no step is lost
        journals = orch.journal(run["id"]).attempts
        assert all(later.restored_step == earlier.entries[-1].step for earlier, later in itertools.pairwise(journals))


def test_that_a_site_which_evicts_with_sigterm_alone_loses_nothing(
    slurm_cluster_factory: Callable[[Options], SlurmCluster], make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    cluster = slurm_cluster_factory(Options(user_signal=False, accounting=False))
    orch = make_orch(cluster, tmp_path / "root")
    run = start(orch, tmp_path, "termed", steps=150)
    cluster.evict(run["job"])
    orch.wait_for_state("termed", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=150)
    assert len(read_attempts(orch.run_dir(run["id"]))) == 2


def test_that_a_run_requeues_itself_ahead_of_its_time_limit(orch: Orch, tmp_path: Path) -> None:
    """Slurm looks at limits twice a minute: the notice comes 10 to 40 s after the start, so the run must outlast that."""
    run = start(orch, tmp_path, "limited", partition="short", minutes=1, signal_delay=50, steps=600)
    orch.wait_for_state("limited", ["done"], timeout_s=240)
    assert_exact(orch, run["id"], seed=0, steps=600)
    assert len(read_attempts(orch.run_dir(run["id"]))) >= 2


def test_that_a_cancelled_run_stays_cancelled_and_resume_continues_it(orch: Orch, tmp_path: Path) -> None:
    run = start(orch, tmp_path, "unwanted", steps=150, every=1)
    orch("cancel", "unwanted")
    orch.cluster.wait(run["job"], ["CANCELLED", "COMPLETED", ""])
    assert orch.wait_for_state("unwanted", ["cancelled"])
    assert orch.cluster.state(run["job"]) in ("CANCELLED", "COMPLETED", "")
    orch("resume", "unwanted")
    orch.wait_for_state("unwanted", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=150)
    assert orch.journal(run["id"]).attempts[-1].restored_step > 0


def test_that_a_plain_scancel_during_checkpoints_stays_cancelled(orch: Orch, tmp_path: Path) -> None:
    run = start(orch, tmp_path, "scancelled", steps=4000, every=1, step_s=0.001)
    orch.cluster.run("scancel", run["job"])
    orch.cluster.wait(run["job"], ["CANCELLED", ""])
    orch.wait_for_state("scancelled", ["cancelled"])
    assert orch.cluster.state(run["job"]) in ("CANCELLED", "")


def test_that_a_signal_during_start_up_is_no_failure(orch: Orch, tmp_path: Path) -> None:
    """A USR2 before any handler exists is FAILED 12:0, unless the job's first instruction blocks it."""
    sweep = write_count_sweep(tmp_path, "early", steps=150)
    orch("submit", sweep)
    run = orch.only_run("early")
    orch.until(lambda: orch.cluster.state(run["job"]) == "RUNNING", 30, "it did not start")
    for _ in range(20):
        orch.cluster.run("scancel", "--signal=USR2", run["job"], check=False)
    orch.wait_for_state("early", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=150)


def test_that_a_dead_node_costs_an_interval_and_no_more(orch: Orch, tmp_path: Path) -> None:
    run = start(orch, tmp_path, "powerless", steps=150, every=10)
    orch.wait_for_step(run["id"], 12)
    node = orch.cluster.show(run["job"])["NodeList"]
    reached = orch.step(run["id"])
    orch.cluster.node_down(node)
    orch.wait_for_state("powerless", ["done"], timeout_s=120)
    assert_exact(orch, run["id"], seed=0, steps=150)
    assert orch.journal(run["id"]).attempts[-1].restored_step >= reached - 10


def test_that_a_killed_run_is_lost_until_resumed_and_never_done_and_its_time_is_accounted_for(orch: Orch, tmp_path: Path) -> None:
    """Evicted with notice first: that replays nothing, the kill does."""
    run = start(orch, tmp_path, "killed", steps=150, every=20)
    orch.cluster.evict(run["job"])
    orch.wait_for_attempt(run["id"], 2)
    evicted = orch.only_run("killed")["usage"]
    orch.until(lambda: unsaved_steps(orch, run["id"]) >= 5, 30, "it saves whatever it counts")
    os.kill(read_attempts(orch.run_dir(run["id"]))[-1].pid, signal.SIGKILL)
    lost = orch.wait_for_state("killed", ["lost"])[run["id"]]
    assert "no outcome" in lost["reason"]
    orch("resume")
    orch.wait_for_state("killed", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=150)
    assert_accounted(orch, run["id"], evicted)


def unsaved_steps(orch: Orch, run_id: str) -> int:
    """Steps in a run's journals that no checkpoint covers."""
    return orch.step(run_id) - orch.journal(run_id).covered_step


def assert_accounted(orch: Orch, run_id: str, evicted: dict[str, Any]) -> None:
    """What `orch` says of the time of a run that was evicted with notice, then killed without, then resumed."""
    usage = orch.only_run(run_id)["usage"]
    before, after = evicted["task_seconds"], usage["task_seconds"]
    assert (before["replayed"], after["replayed"]) == (0, pytest.approx(1, abs=4)), usage
    assert after["replayed"] >= 0.3  # five steps of 0.1 s, less a bit
    assert min(before["productive"], before["restarting"], before["checkpointing"]) > 0
    assert 0 < evicted["queued_seconds"] < usage["queued_seconds"]
    attempts, journals = read_attempts(orch.run_dir(run_id)), orch.journal(run_id).attempts
    lasted = [journal.entries[-1].time_ms / 1000 - one.started_at for one, journal in zip(attempts, journals, strict=True)]
    assert sum(after.values()) == pytest.approx(sum(lasted), abs=0.01)
    assert after["productive"] >= 12  # of 150 steps of 0.1 s
    line = next(line for line in orch("status").splitlines() if line.startswith("goodput"))
    assert line in orch("show", run_id)
    assert orch("table", "killed").splitlines()[-1].startswith(line)


def test_that_an_administrators_requeue_keeps_the_run(orch: Orch, tmp_path: Path) -> None:
    run = start(orch, tmp_path, "requeued", steps=150, every=5)
    orch.cluster.run("scontrol", "requeue", run["job"])
    orch.wait_for_state("requeued", ["done"])
    assert orch.only_run("requeued")["job"] == run["job"]
    assert_exact(orch, run["id"], seed=0, steps=150)


def test_that_a_submission_killed_after_sbatch_is_adopted(orch: Orch, tmp_path: Path) -> None:
    sweep = write_count_sweep(tmp_path, "orphans", seeds=[0, 1], steps=30)
    killed = (
        "import os\nfrom orchestrator.store.runs import Store\n"
        "Store.submitted = lambda *a, **k: os._exit(9)\n"
        "from orchestrator.cli.main import main\nmain()"
    )
    environment = os.environ | orch.cluster.env | {"ORCH_ROOT": str(orch.root)}
    done = subprocess.run(
        [sys.executable, "-c", killed, "submit", str(sweep)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 9, done.stderr
    found = orch.runs("orphans")
    assert all(run["job"] for run in found.values()), found
    orch("submit", sweep)  # nothing is queued a second time
    orch.wait_for_state("orphans", ["done"])
    assert all(len(read_attempts(orch.run_dir(run))) == 1 for run in found)


def test_that_a_submission_killed_before_sbatch_is_withdrawn_and_queued_again(orch: Orch, tmp_path: Path) -> None:
    sweep = write_count_sweep(tmp_path, "unborn", steps=20)
    killed = (
        "import os\nimport orchestrator.slurm.submit as submit\nsubmit.sbatch = lambda request: os._exit(9)\n"
        "from orchestrator.cli.main import main\nmain()"
    )
    environment = os.environ | orch.cluster.env | {"ORCH_ROOT": str(orch.root)}
    subprocess.run([sys.executable, "-c", killed, "submit", str(sweep)], env=environment, capture_output=True, timeout=120)
    assert orch.only_run("unborn")["state"] == "submitting"
    with sqlite3.connect(orch.root / "orch.db") as store:
        store.execute("UPDATE submissions SET created_at = created_at - 3600")
    assert orch.only_run("unborn")["state"] == "planned"
    orch("submit", sweep)
    run = orch.wait_for_state("unborn", ["done"])
    assert len(read_attempts(orch.run_dir(next(iter(run))))) == 1


def test_that_a_double_submission_is_harmless(orch: Orch, tmp_path: Path) -> None:
    """Two jobs believe that they own one run: the newest claimant goes on, the other ends quietly."""
    run = start(orch, tmp_path, "twice", steps=150, every=2)
    (script,) = (orch.root / "slurm").glob("*/submission.sh")
    orch.cluster.run("sbatch", str(script))
    orch.wait_for_state("twice", ["done"])
    assert_exact(orch, run["id"], seed=0, steps=150)
    attempts = read_attempts(orch.run_dir(run["id"]))
    assert len(attempts) == 2
    outcome = read_outcome(orch.run_dir(run["id"]))
    assert outcome is not None
    assert (outcome.status, outcome.attempt) == (Status.DONE, 2)


def test_that_a_failed_need_blocks_its_dependents_until_it_is_mended(orch: Orch, tmp_path: Path) -> None:
    sweep = tmp_path / "chain.yaml"
    text = """
title: chain
base: [step_s=0.05, steps=150]
axes:
  seed: {key: seed, values: [0, 1]}
pipeline:
  first: {job: count, set: [label=first, runtime.checkpoint_every_steps=5]}
  second: {job: count, needs: [first], set: [label=second]}
resources: {first: {partition: low}, second: {partition: low}}
table:
  rows: seed
  value: {metric: count/value, step: second}
"""
    sweep.write_text(text)
    orch("submit", sweep)
    first = {run: one for run, one in orch.runs("chain").items() if not _needs(orch, run)}
    victim = next(iter(first))
    orch.wait_for_step(victim, 3)
    orch.cluster.run("scancel", first[victim]["job"])  # task 0 of the first array
    orch.until(
        lambda: sorted(run["state"] for run in orch.runs("chain").values()) == ["cancelled", "done", "done", "planned"],
        60, "the chain did not settle", lambda: json.dumps(orch.runs("chain"), indent=1),
    )  # fmt: skip
    orch("resume", "chain")
    orch.wait_for_state("chain", ["done"])


def _needs(orch: Orch, run: str) -> dict[str, str]:
    return dict(json.loads(orch.run_dir(run).spec.read_text())["needs"])


def test_that_every_point_is_in_the_tracker_once_whatever_happened(orch: Orch, tmp_path: Path) -> None:
    run = start(orch, tmp_path, "tracked", steps=300, every=5)
    orch("sync")
    orch.cluster.evict(run["job"])
    with orch.standing(run["id"], 2) as processes:
        orch("table", "tracked")
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
    orch.wait_for_state("tracked", ["lost"])
    orch("sync")
    orch("resume", "tracked")
    orch.wait_for_state("tracked", ["done"])
    table = orch("table", "tracked")
    assert str(expected_value(0, 300) % 1_000_003) in table
    connection = f"sqlite:///{orch.root / 'mlflow.db'}"
    counted = subprocess.run(
        [sys.executable, "-c", _COUNT_POINTS, connection, run["id"]], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert counted.split() == ["300", "300"]


_COUNT_POINTS = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(run,) = client.search_runs([e.experiment_id for e in client.search_experiments()], f"tags.`orch.run_id` = '{sys.argv[2]}'")
history = client.get_metric_history(run.info.run_id, "count/value")
print(len(history), len({point.step for point in history}))
"""


def test_that_a_refused_sbatch_leaves_nothing_behind(orch: Orch, tmp_path: Path) -> None:
    sweep = write_count_sweep(tmp_path, "refused", partition="nowhere")
    orch("submit", sweep, expect=2)
    assert not list((orch.root / "runs").glob("*"))
    good = write_count_sweep(tmp_path, "refused", partition="low", label="x")
    good.write_text(good.read_text().replace("cpus_per_task: 1", "cpus_per_task: 1, constraint: unheard_of"))
    said = orch("submit", good, expect=3)
    assert not list((orch.root / "runs").glob("*")), said
    assert orch.runs() == {}
