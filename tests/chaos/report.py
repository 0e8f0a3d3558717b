"""Owns what a campaign has found, and its table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.fault import Fault
from tests.chaos.verdict import Death, Verdict, median
from tests.chaos.weather import Weather

SLACK = 2
"""Steps that a death may cost beyond two intervals (the newest checkpoint may be damaged): one may be under way."""


@dataclass(kw_only=True)
class Report:
    """What a campaign has found."""

    injected: list[tuple[float, Fault]] = field(default_factory=list)
    """(seconds since the epoch, fault) of this storm."""
    struck: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)
    """Faults of storms after which everything was as it should be."""
    deaths: dict[str, list[Death]] = field(default_factory=lambda: defaultdict(list))
    """Fault -> attempts that ended nearest to it in time."""
    told: dict[str, list[Death]] = field(default_factory=lambda: defaultdict(list))
    """The same in storms of faults that give notice alone: nothing else can have ended these."""
    weathers: Counter[str] = field(default_factory=Counter)
    runs: int = 0
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

    def add(self, verdict: Verdict, weather: Weather) -> None:
        """Count one storm."""
        self.weathers[weather.name] += 1
        self.runs += weather.work.runs
        self.attempts += verdict.attempts
        self.differences += verdict.differences
        self.duplicates += verdict.duplicates
        problems = list(verdict.problems)
        most = 0 if weather.told else 2 * weather.work.every + SLACK
        for death in verdict.deaths:
            if self.injected:
                nearest = min(self.injected, key=lambda one: abs(one[0] - death.ended_ms / 1000))[1]
                self.deaths[nearest.name].append(death)
                if weather.told:
                    self.told[nearest.name].append(death)
            if death.replayed > most:
                though = ", though it was told" if weather.told else ""
                problems.append(f"{death.run}: {death.replayed} steps were done again{though}")
        if not problems:
            self.recovered.update(fault.name for _, fault in self.injected)
        self.problems += problems
        self.injected.clear()

    def table(self, faults: Sequence[Fault], title: str) -> str:
        """As Markdown."""
        heads = ("fault", "notice", "injected", "recovered", "attempts that ended then", "steps done again, most")
        rows = [f"| {' | '.join((*heads, 's to the next step, median'))} |", "|---|---|---|---|---|---|---|"]
        for one in faults:
            ended = self.deaths[one.name]
            again = median([death.again_s for death in ended if death.again_s is not None])
            counted = self.told[one.name] if one.notice else ended
            most = max((death.replayed for death in counted), default="-")
            cells = (one.name, "yes" if one.notice else "no", self.struck[one.name], self.recovered[one.name], len(ended), most)
            rows.append(f"| {' | '.join(map(str, (*cells, again)))} |")
        storms = ", ".join(f"{name} ({number})" for name, number in self.weathers.items())
        facts = [
            f"{title}: {self.struck.total()} faults, {self.recovered.total()} recovered from, in {self.weathers.total()} storms",
            f"storms: {storms}",
            f"{self.runs} runs in {self.attempts} attempts",
            f"runs that differ from untouched ones: {self.differences}; points that the tracker holds twice: {self.duplicates}",
            f"jobs that Slurm believed to be running on a node that had lost them, cancelled by hand: {self.ghosts}",
            f"seconds from the last fault to everything done (median of storms): {median(self.recovery_s)}",
            *(f"PROBLEM: {problem}" for problem in self.problems),
        ]
        note = "Steps done again: of faults with notice, in the storms of notice alone; of others, whatever else struck nearby."
        return "\n".join([*rows, "", note, "", *(f"- {fact}" for fact in facts)])
