"""How alike a run and its reproduction are, fact by fact. Pure: texts and numbers in, verdicts out."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.journal import Journal

MEASURED = frozenset({"embed/images_per_s", "train/peak_memory_mib"})
"""Metrics of the machine: they differ between any two runs."""
BY_STEP = frozenset({"train", "count", "evaluate"})
"""Kinds whose every value must come again; the others journal their progress when there is time, and the last value counts."""
Series = Mapping[tuple[int, str], float]
"""(step, metric) -> value."""


class Verdict(enum.StrEnum):
    """What is found of one fact."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "not compared"
    """One of the two sides has no such fact; the detail says why."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of the comparison."""

    what: str
    verdict: Verdict
    original: str = ""
    reproduced: str = ""
    detail: str = ""
    judged: bool = False
    """Whether a difference means that the run was not reproduced; circumstances (machine, packages) only explain."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """One run beside its reproduction."""

    run: str
    kind: str
    facts: tuple[Fact, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing that is judged differs."""
        return not any(fact.judged and fact.verdict is Verdict.DIFFERENT for fact in self.facts)


def plain(what: str, original: str, reproduced: str, *, judged: bool = False, detail: str = "") -> Fact:
    """A fact that is one text on each side; an empty one was not recorded."""
    if not original or not reproduced:
        return Fact(what=what, verdict=Verdict.UNKNOWN, original=original, reproduced=reproduced, detail=detail or "not recorded")
    verdict = Verdict.EQUAL if original == reproduced else Verdict.DIFFERENT
    return Fact(what=what, verdict=verdict, original=original, reproduced=reproduced, detail=detail, judged=judged)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            key: leaf for name, one in value.items() for key, leaf in _leaves(one, f"{path}.{name}" if path else name).items()
        }
    return {path: value}


def configuration(original: Mapping[str, Any], reproduced: Mapping[str, Any], *, stopped_at: int | None) -> Fact:
    """Key by key; a run that was stopped early on purpose may differ in its `steps`."""
    left, right = _leaves(original), _leaves(reproduced)
    keys = [key for key in {**left, **right} if key not in left or key not in right or left[key] != right[key]]
    if stopped_at is not None:
        keys = [key for key in keys if key != "steps"]
    early = "" if stopped_at is None else f"stopped at step {stopped_at} of {original.get('steps')}"
    return Fact(
        what="configuration",
        verdict=Verdict.DIFFERENT if keys else Verdict.EQUAL,
        original=f"{len(left)} keys",
        reproduced=f"{len(right)} keys",
        detail="; ".join(part for part in (", ".join(sorted(keys)[:8]), early) if part),
        judged=True,
    )


def environment(
    original: str, reproduced: str, packages: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None)
) -> Fact:
    """By fingerprint; with the packages that differ where both lists were recorded (`name-version.dist-info`)."""
    detail = ""
    if original and reproduced and original != reproduced:
        before, after = packages
        if before is None or after is None:
            detail = "which packages differ was not recorded"
        else:
            old, new = (dict(_named(one) for one in listed) for listed in (before, after))
            changed = [
                f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ]
            detail = ", ".join(changed[:12]) + (f" and {len(changed) - 12} more" if len(changed) > 12 else "")
    return plain("environment", original, reproduced, detail=detail)


def _named(folder: str) -> tuple[str, str]:
    name, _, version = folder.removesuffix(".dist-info").rpartition("-")
    return (name, version) if name else (version, "?")


def series_of(journal: Journal, kind: str) -> Series:
    """Every scalar that counts; of kinds that journal progress the last value of each metric, as of step 0."""
    found: dict[tuple[int, str], float] = {}
    for entry in journal.counting():
        for name, value in entry.metrics.items():
            if name not in MEASURED:
                found[entry.step if kind in BY_STEP else 0, name] = value
    return found


def relative(one: float, other: float) -> float:
    """|one - other| over the larger of both magnitudes; 0 for equal ones (NaN equals NaN), inf where it has no value."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    found = abs(one - other) / max(abs(one), abs(other))
    return math.inf if math.isnan(found) else found


def metrics(original: Series, reproduced: Series, *, stopped_at: int | None = None) -> Fact:
    """Every value of one beside that of the other, up to the step at which the reproduction was stopped."""
    if stopped_at is not None:
        # at its own last step a run logs, and does not validate: what one side alone has there says nothing
        original, reproduced = (
            {key: value for key, value in one.items() if key[0] < stopped_at or (key[0] == stopped_at and key in other)}
            for one, other in ((original, reproduced), (reproduced, original))
        )
    if not original:
        return Fact(what="metrics", verdict=Verdict.UNKNOWN, reproduced=_counted(reproduced), detail="the original has none")
    common = [key for key in sorted(original) if key in reproduced]
    alone = len(original) + len(reproduced) - 2 * len(common)
    differing = [key for key in common if repr(original[key]) != repr(reproduced[key])]
    detail: list[str] = []
    if differing:
        worst = max(differing, key=lambda key: relative(original[key], reproduced[key]))
        step, name = differing[0]
        detail.append(
            f"{len(differing)} of {len(common)} values differ, first {name} at step {step}; "
            f"most {worst[1]} at step {worst[0]}: {original[worst]!r} and {reproduced[worst]!r}, "
            f"relative {relative(original[worst], reproduced[worst]):.2g}"
        )
    if alone:
        detail.append(f"{alone} values stand on one side alone")
    return Fact(
        what="metrics",
        verdict=Verdict.DIFFERENT if differing or alone else Verdict.EQUAL,
        original=_counted(original),
        reproduced=_counted(reproduced),
        detail="; ".join(detail),
        judged=True,
    )


def _counted(series: Series) -> str:
    return f"{len(series)} values of {len({name for _, name in series})} metrics"


def weights(report: Mapping[str, Any] | None, *, why_not: str = "") -> Fact:
    """From the report of `jobs.weights_alike`; None when there was nothing to compare, and why."""
    if report is None:
        return Fact(what="weights", verdict=Verdict.UNKNOWN, detail=why_not)
    total, differing = int(report["tensors"]), list(report["different"])
    detail = ""
    if differing:
        at = f", most in {report['worst']}: relative {report['relative']:.2g}" if report.get("worst") else ""
        detail = f"{len(differing)} of {total} tensors differ{at}"
    verdict = Verdict.DIFFERENT if differing else Verdict.EQUAL
    return Fact(what="weights", verdict=verdict, original=f"{total} tensors", detail=detail, judged=True)


def outputs(same: Iterable[str], different: Iterable[str], absent: Iterable[str]) -> Fact:
    """Files that other runs read, byte for byte; `absent`: those that the original no longer has."""
    equal, differing, gone = sorted(same), sorted(different), sorted(absent)
    what = "output"
    if not equal and not differing:
        return Fact(what=what, verdict=Verdict.UNKNOWN, detail="the original's files are not here" if gone else "no files")
    detail = ", ".join(differing[:6]) + (" ..." if len(differing) > 6 else "")
    if gone:
        detail = "; ".join(part for part in (detail, f"{len(gone)} files of the original are not here") if part)
    verdict = Verdict.DIFFERENT if differing else Verdict.EQUAL
    return Fact(what=what, verdict=verdict, original=f"{len(equal) + len(differing)} files", detail=detail, judged=True)
