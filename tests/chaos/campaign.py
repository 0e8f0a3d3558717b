"""The fault campaign: storms of seeded faults on a real Slurm of three nodes, each followed by proof that nothing was lost.

    python tests/chaos/campaign.py --injections 300 --seed 1        # `make chaos`
    python tests/chaos/campaign.py --injections 40 --break cursor-first

A storm is a sweep of counting runs (their state is a hash chain: a step skipped, repeated or done by a wrong state shows in every
later value) or of training runs, in one of several weathers (weather.py), and a series of faults at random moments and lines of
the code. Then the faults stop, `orch resume` is said until everything is done, and disk, tracker and queue are held against runs
that nobody touched. What is drawn is a function of the seed; what the machine makes of it is not, so a storm can be said again,
not replayed to the microsecond.

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.broken import MISTAKES, armed_copy
from tests.chaos.fault import Fault
from tests.chaos.faults import FAULTS
from tests.chaos.report import Report
from tests.chaos.scene import NAME, REPOSITORY, Scene, Tracker, unmount
from tests.chaos.verdict import judge
from tests.chaos.weather import COUNTING, WEATHERS, Weather, Work
from tests.slurm.cluster import PrivateClusterError, SlurmCluster
from tests.slurm.configuration import Options

PAIR = 0.25
"""Share of moments at which two faults strike at once."""
RESUME = 0.2
"""Share of moments after which somebody says `orch resume`."""
OPTIONS = Options(nodes=3, grace_s=3, kill_wait_s=3)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a campaign goes."""

    seed: int
    injections: int
    per_storm: int = 50
    weathers: Sequence[Weather] = WEATHERS
    faults: Sequence[Fault] = FAULTS
    patience_s: float = 300.0
    """How long the runs of a storm may take to end after its last fault."""


def storm(scene: Scene, plan: Plan, injections: int, report: Report, calm: Path | None) -> None:
    """One storm and its proof. `calm`: the root of the same runs untouched, where values are not known beforehand."""
    weather = scene.weather
    faults = [one for one in plan.faults if (one.notice or not weather.told) and one.name not in weather.left_out]
    scene.begin()
    (scene.tracker.up if weather.tracker else scene.tracker.down)()
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
    report.add(judge(scene, calm), weather)


def _strike(scene: Scene, fault: Fault, report: Report) -> int:
    """How many faults struck: 1, or 0 when there was nothing to strike."""
    begun = time.time()
    try:
        if fault.strike(scene) is None:
            return 0
    except (PrivateClusterError, OSError) as failure:  # OSError: the disk of the root is full for us as well
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
        if (runs := scene.run_ids()) and all(map(scene.done, runs)) and not scene.jobs(("RUNNING", "PENDING", "COMPLETING")):
            return
        scene.orch("resume", NAME)
        time.sleep(2.0)
        found = scene.ghosts()
        for run, job in found.items():
            if seen.get(run) == job:  # looked at twice: a person would cancel it
                scene.cluster.run("scancel", job, check=False)
                report.ghosts += 1
        seen = found


def untouched(cluster: SlurmCluster, work: Work, folder: Path, tracker: Tracker, code: Path) -> Path:
    """The root of the same runs, which nobody strikes."""
    weather = Weather(name="calm", work=work, tracker=False)
    scene = Scene(cluster=cluster, folder=folder, code=code, weather=weather, draw=random.Random(), tracker=tracker)
    scene.begin()
    scene.orch("submit", str(scene.sweep))
    deadline = time.monotonic() + 600
    while not ((runs := scene.run_ids()) and all(map(scene.done, runs))):
        if time.monotonic() > deadline:
            raise TimeoutError(f"untouched runs did not end: {runs}")
        time.sleep(1.0)
        scene.orch("resume", NAME)
    return scene.root


def campaign(cluster: SlurmCluster, plan: Plan, folder: Path, *, code: Path) -> Report:
    """Storms until enough faults have struck."""
    report, number = Report(), 0
    tracker = Tracker(folder / "tracker")
    calm: dict[str, Path] = {}
    try:
        while report.struck.total() < plan.injections and number < 3 + 3 * plan.injections // plan.per_storm:
            weather = plan.weathers[number % len(plan.weathers)]
            if weather.work.kind != "count" and weather.work.kind not in calm:
                place = folder / f"calm-{weather.work.kind}"
                calm[weather.work.kind] = untouched(cluster, weather.work, place, tracker, REPOSITORY)
            scene = Scene(
                cluster=cluster,
                folder=folder / f"storm-{number}",
                code=code,
                weather=weather,
                draw=random.Random(f"{plan.seed}/{number}"),
                tracker=tracker,
            )
            number += 1
            begun = time.monotonic()
            injections = min(plan.per_storm, plan.injections - report.struck.total())
            storm(scene, plan, injections, report, calm.get(weather.work.kind))
            facts = f"{report.struck.total()} faults so far, {len(report.problems)} problems, {time.monotonic() - begun:.0f} s"
            sys.stdout.write(f"storm {plan.seed}/{number - 1} ({weather.name}): {facts}\n")
            sys.stdout.flush()
            if report.problems:
                break
            scene.clear()
    finally:
        tracker.close()
        for root in calm.values():
            unmount(root)
    return report


def main(arguments: Sequence[str]) -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--injections", type=int, default=300)
    parser.add_argument("--per-storm", type=int, default=50)
    parser.add_argument("--weather", type=int, choices=range(len(WEATHERS)), help="storms of this one of the weathers alone")
    parser.add_argument("--break", dest="mistake", choices=sorted(MISTAKES), help="run on a copy of the code with this mistake")
    parser.add_argument("--keep", action="store_true", help="keep the files of a storm that has failed")
    options = parser.parse_args(arguments)
    plan = Plan(seed=options.seed, injections=options.injections, per_storm=options.per_storm)
    if options.weather is not None:
        plan = replace(plan, weathers=[WEATHERS[options.weather]])
    if options.mistake:
        shown_by = MISTAKES[options.mistake].shown_by
        small = Weather(name="a known mistake", work=replace(COUNTING, runs=6, steps=2400))
        faults = [fault for fault in FAULTS if fault.name in shown_by]
        plan = replace(plan, weathers=[small], faults=faults, patience_s=150.0)
    folder = Path(tempfile.mkdtemp(prefix="orch-chaos-"))
    code = armed_copy(REPOSITORY, folder / "code", options.mistake)
    cluster = SlurmCluster(folder / "slurm", OPTIONS).start()
    try:
        report = campaign(cluster, plan, folder, code=code)
    finally:
        cluster.stop()
    sys.stdout.write(report.table(plan.faults, f"seed {plan.seed}") + "\n")
    if report.problems and options.keep:
        sys.stdout.write(f"files: {folder}\n")
    else:
        for mounted in folder.glob("*/root"):
            unmount(mounted)
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
