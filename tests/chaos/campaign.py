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
from dataclasses import dataclass, field, replace
from pathlib import Path

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.broken import MISTAKES, broken_copy
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scene import NAME, Scene, Tracker
from tests.chaos.verdict import Death, Verdict, judge, median
from tests.slurm.cluster import PrivateClusterError, SlurmCluster
from tests.slurm.configuration import Options

REPOSITORY = Path(__file__).resolve().parents[2]
PAIR = 0.25
"""Share of moments at which two faults strike at once."""
RESUME = 0.2
"""Share of moments after which somebody says `orch resume`."""
SLACK = 2
"""Steps that a death may cost beyond two intervals (the newest checkpoint may be damaged): one may be under way."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a campaign goes."""

    seed: int
    injections: int
    runs: int = 16
    steps: int = 900
    every: int = 10
    step_s: float = 0.05
    per_storm: int = 60
    told_every: int = 3
    """Every so many storms one is of faults with notice alone; 0: none."""
    faults: Sequence[Fault] = FAULTS
    patience_s: float = 240.0
    """How long the runs of a storm may take to end after its last fault."""


@dataclass(kw_only=True)
class Report:
    """What a campaign has found."""

    injected: list[tuple[float, Fault]] = field(default_factory=list)
    """(seconds since the epoch, fault) of this storm."""
    struck: Counter[str] = field(default_factory=Counter)
    deaths: dict[str, list[Death]] = field(default_factory=lambda: defaultdict(list))
    """Fault -> attempts that ended nearest to it in time."""
    storms: int = 0
    attempts: int = 0
    recovery_s: list[float] = field(default_factory=list)
    ghosts: int = 0
    """Jobs that Slurm believed to be running though their node had lost power, cancelled by hand."""
    differences: int = 0
    duplicates: int = 0
    problems: list[str] = field(default_factory=list)

    def strike(self, fault: Fault, begun: float) -> None:
        """Count a fault that has struck."""
        self.injected.append((begun, fault))
        self.struck[fault.name] += 1

    def add(self, verdict: Verdict, *, plan: Plan, told: bool) -> None:
        """Count one storm. `told`: all its faults give notice, so that no step may be done again."""
        self.storms += 1
        self.attempts += verdict.attempts
        self.differences += verdict.differences
        self.duplicates += verdict.duplicates
        self.problems += verdict.problems
        for death in verdict.deaths:
            if self.injected:
                nearest = min(self.injected, key=lambda one: abs(one[0] - death.ended_ms / 1000))
                self.deaths[nearest[1].name].append(death)
            if death.replayed > (0 if told else 2 * plan.every + SLACK):
                though = ", though it was told" if told else ""
                self.problems.append(f"{death.run}: {death.replayed} steps were done again{though}")
        self.injected.clear()

    def table(self, plan: Plan) -> str:
        """As Markdown."""
        rows = ["| fault | notice | injected | attempts that ended then | steps done again, most | s to the next step, median |"]
        rows.append("|---|---|---|---|---|---|")
        for one in plan.faults:
            ended = self.deaths[one.name]
            again = median([death.again_s for death in ended if death.again_s is not None])
            most = max((death.replayed for death in ended), default=0)
            rows.append(
                f"| {one.name} | {'yes' if one.notice else 'no'} | {self.struck[one.name]} | {len(ended)} | {most} | {again} |"
            )
        facts = [
            f"seed {plan.seed}: {self.struck.total()} faults in {self.storms} storms",
            f"{self.storms * plan.runs} runs of {plan.steps} steps, checkpoints every {plan.every}: {self.attempts} attempts",
            f"runs that differ from untouched ones: {self.differences}; points that the tracker holds twice: {self.duplicates}",
            f"jobs that Slurm believed to be running on a node that had lost them, cancelled by hand: {self.ghosts}",
            f"seconds from the last fault to everything done (median of storms): {median(self.recovery_s)}",
            *(f"PROBLEM: {problem}" for problem in self.problems),
        ]
        return "\n".join([*rows, "", *(f"- {fact}" for fact in facts)])


def storm(scene: Scene, plan: Plan, injections: int, report: Report, *, told: bool = False) -> None:
    """One storm and its proof. `told`: only of faults that give notice."""
    faults = [fault for fault in plan.faults if fault.notice or not told]
    scene.write_sweep()
    scene.tracker.up()
    scene.orch("submit", str(scene.sweep))
    left, deadline = injections, time.monotonic() + plan.patience_s
    while left > 0 and time.monotonic() < deadline:
        together = 2 if left > 1 and scene.draw.random() < PAIR else 1
        for fault in scene.draw.sample(faults, min(together, len(faults))):
            left -= _strike(scene, fault, report)
        time.sleep(scene.draw.uniform(0.0, 0.5))
        if scene.draw.random() < RESUME:
            scene.helpers.append(scene.orch("resume", NAME, wait=False))
        if (runs := scene.run_ids()) and all(scene.done(run) for run in runs):
            break
    ended = time.monotonic()
    scene.end_helpers()
    scene.tracker.up()
    recover(scene, plan, report)
    report.recovery_s.append(time.monotonic() - ended)
    for _ in range(3):
        if scene.orch("sync", patient=True).returncode == 0:
            break
    report.add(judge(scene), plan=plan, told=told)


def _strike(scene: Scene, fault: Fault, report: Report) -> int:
    """How many faults struck: 1, or 0 when there was nothing to strike."""
    begun = time.time()
    try:
        if fault.strike(scene) is None:
            return 0
    except PrivateClusterError as failure:
        sys.stderr.write(f"{fault.name}: {failure}\n")
        return 0
    report.strike(fault, begun)
    return 1


def recover(scene: Scene, plan: Plan, report: Report) -> None:
    """Say `orch submit` once and `orch resume` until everything is done and nobody is at work; ghosts are cancelled."""
    deadline = time.monotonic() + plan.patience_s
    scene.orch("submit", str(scene.sweep))
    seen: dict[str, str] = {}
    while time.monotonic() < deadline:
        scene.mend_nodes()
        if all(scene.done(run) for run in scene.run_ids()) and not scene.jobs(("RUNNING", "PENDING", "COMPLETING")):
            return
        scene.orch("resume", NAME)
        time.sleep(2.0)
        found = scene.ghosts()
        for run, job in found.items():
            if seen.get(run) == job:  # looked at twice: a person would cancel it
                scene.cluster.run("scancel", job, check=False)
                report.ghosts += 1
        seen = found


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
            injections = min(plan.per_storm, plan.injections - report.struck.total())
            storm(scene, plan, injections, report, told=plan.told_every > 0 and number % plan.told_every == 0)
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
    parser.add_argument("--per-storm", type=int, default=60)
    parser.add_argument("--break", dest="mistake", choices=sorted(MISTAKES), help="run on a copy of the code with this mistake")
    parser.add_argument("--keep", action="store_true", help="keep the files of a storm that has failed")
    options = parser.parse_args(arguments)
    plan = Plan(seed=options.seed, injections=options.injections, per_storm=options.per_storm)
    if options.mistake:
        shown_by = MISTAKES[options.mistake].shown_by
        plan = replace(plan, runs=6, steps=400, told_every=0, faults=[fault for fault in FAULTS if fault.name in shown_by])
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
