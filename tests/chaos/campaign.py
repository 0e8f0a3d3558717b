"""The fault campaign: storms of seeded faults on a real Slurm of three nodes, each followed by proof that nothing was lost.

    python tests/chaos/campaign.py --injections 300 --seed 1        # `make chaos`
    python tests/chaos/campaign.py --injections 40 --break cursor-first

A storm is a sweep of counting runs (their state is a hash chain: a step skipped, repeated or done by a wrong state shows in every
later value) and a series of faults at random moments. Then the faults stop, `orch resume` is said until everything is done,
and disk, tracker and queue are held against a run that nobody touched. What is drawn is a function of the seed; what the machine
makes of it is not, so a storm can be said again, not replayed to the microsecond.

`--break` runs the same storms on a copy of the code with one known mistake in it: then the campaign must fail.
Exit code 0 when nothing was lost, 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.broken import MISTAKES, broken_copy
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scene import NAME, Scene, Tracker
from tests.chaos.verdict import Verdict, judge, median
from tests.slurm.cluster import PrivateClusterError, SlurmCluster
from tests.slurm.configuration import Options

REPOSITORY = Path(__file__).resolve().parents[2]
PAIR = 0.25
"""Share of moments at which two faults strike at once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a campaign goes."""

    seed: int
    injections: int
    runs: int = 12
    steps: int = 400
    every: int = 10
    step_s: float = 0.05
    per_storm: int = 40
    faults: Sequence[Fault] = FAULTS
    patience_s: float = 240.0
    """How long the runs of a storm may take to end after its last fault."""


@dataclass(kw_only=True)
class Report:
    """What a campaign has found."""

    struck: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Fault -> steps that its victims, hit by nothing else meanwhile, had journalled and did again."""
    storms: int = 0
    attempts: int = 0
    replayed: list[int] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    differences: int = 0
    duplicates: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one storm."""
        self.storms += 1
        self.attempts += verdict.attempts
        self.replayed += verdict.replayed
        self.again_s += verdict.again_s
        self.differences += verdict.differences
        self.duplicates += verdict.duplicates
        self.problems += verdict.problems

    def table(self, plan: Plan) -> str:
        """As Markdown."""
        rows = ["| fault | notice | injected |", "|---|---|---|"]
        rows += [f"| {one.name} | {'yes' if one.notice else 'no'} | {self.struck[one.name]} |" for one in plan.faults]
        worst = max(self.replayed, default=0)
        facts = [
            f"seed {plan.seed}: {self.struck.total()} faults in {self.storms} storms",
            f"{self.storms * plan.runs} runs of {plan.steps} steps, {self.attempts} attempts",
            f"steps done again: at most {worst} of an attempt (checkpoints every {plan.every}), {sum(self.replayed)} in all",
            f"runs that differ from untouched ones: {self.differences}; points that the tracker holds twice: {self.duplicates}",
            f"seconds from a run's last step to its next attempt's first (median): {median(self.again_s)}",
            f"seconds from the last fault to everything done (median of storms): {median(self.recovery_s)}",
            *(f"PROBLEM: {problem}" for problem in self.problems),
        ]
        return "\n".join([*rows, "", *(f"- {fact}" for fact in facts)])


def storm(scene: Scene, plan: Plan, injections: int, report: Report) -> None:
    """One storm and its proof."""
    scene.write_sweep()
    scene.tracker.up()
    scene.orch("submit", str(scene.sweep))
    left, deadline = injections, time.monotonic() + plan.patience_s
    while left > 0 and time.monotonic() < deadline:
        together = 2 if left > 1 and scene.draw.random() < PAIR else 1
        for fault in scene.draw.sample(list(plan.faults), together):
            if _strike(scene, fault):
                report.struck[fault.name] += 1
                left -= 1
        time.sleep(scene.draw.uniform(0.0, 0.5))
        if scene.draw.random() < 0.2:
            scene.helpers.append(scene.orch("resume", NAME, wait=False))
        if all(scene.done(run) for run in scene.run_ids()) and scene.run_ids():
            break
    ended = time.monotonic()
    scene.end_helpers()
    scene.tracker.up()
    recover(scene, plan)
    report.recovery_s.append(time.monotonic() - ended)
    scene.orch("sync")
    report.add(judge(scene))


def _strike(scene: Scene, fault: Fault) -> bool:
    try:
        return fault.strike(scene) is not None
    except PrivateClusterError as failure:
        sys.stderr.write(f"{fault.name}: {failure}\n")
        return False


def recover(scene: Scene, plan: Plan) -> None:
    """Say `orch submit` once and `orch resume` until everything is done and nobody is at work."""
    deadline = time.monotonic() + plan.patience_s
    scene.orch("submit", str(scene.sweep))
    while time.monotonic() < deadline:
        if all(scene.done(run) for run in scene.run_ids()) and not scene.jobs(("RUNNING", "PENDING", "COMPLETING")):
            return
        scene.orch("resume", NAME)
        time.sleep(2.0)


def campaign(cluster: SlurmCluster, plan: Plan, folder: Path, *, code: Path = REPOSITORY) -> Report:
    """Storms until enough faults have struck."""
    report, number = Report(), 0
    tracker = Tracker(folder=folder / "tracker")
    try:
        while report.struck.total() < plan.injections and number < 3 + 2 * plan.injections // plan.per_storm:
            scene = Scene(
                cluster=cluster,
                folder=folder / f"storm-{number}",
                code=code,
                runs=plan.runs,
                steps=plan.steps,
                every=plan.every,
                step_s=plan.step_s,
                draw=random.Random(f"{plan.seed}/{number}"),
                tracker=tracker,
            )
            number += 1
            storm(scene, plan, min(plan.per_storm, plan.injections - report.struck.total()), report)
            facts = f"{report.struck.total()} faults so far, {len(report.problems)} problems"
            sys.stdout.write(f"storm {plan.seed}/{number - 1}: {facts}\n")
            sys.stdout.flush()
            if not report.problems:
                scene.clear()
            else:
                break
    finally:
        tracker.down()
    return report


def main(arguments: Sequence[str]) -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--injections", type=int, default=300)
    parser.add_argument("--per-storm", type=int, default=40)
    parser.add_argument("--break", dest="mistake", choices=sorted(MISTAKES), help="run on a copy of the code with this mistake")
    parser.add_argument("--keep", action="store_true", help="keep the files of a storm that has failed")
    options = parser.parse_args(arguments)
    plan = Plan(seed=options.seed, injections=options.injections, per_storm=options.per_storm)
    folder = Path(tempfile.mkdtemp(prefix="orch-chaos-"))
    code = broken_copy(REPOSITORY, folder / "code", options.mistake) if options.mistake else REPOSITORY
    cluster = SlurmCluster(folder / "slurm", Options(nodes=3, grace_s=3, kill_wait_s=3)).start()
    try:
        report = campaign(cluster, plan, folder, code=code)
    finally:
        cluster.stop()
    sys.stdout.write(report.table(plan) + "\n")
    if report.problems and options.keep:
        sys.stdout.write(f"files: {folder}\n")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
