"""The error tree and the exit codes of `orch`. Words are chosen here and in `cli/`; nowhere else prints.

OrchError                exit 1  our bug, when nothing narrower fits
 |-- UserError           exit 2  YAML, config, data file, path: something the user can mend
 |-- ClusterError        exit 3  Slurm (or the file system behind it) did not answer, or refused
 |-- TrackerError        exit 3  MLflow cannot be reached
 +-- RunsFailed          exit 4  the command worked, some runs did not
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters spelled out: what somebody else wrote must not command our terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: what, where, the offending value, what is allowed, how to mend it."""

    what: str
    where: str = ""
    """`file:line: key` as far as known."""
    value: str = ""
    allowed: str = ""
    hint: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.value:
            lines.append(f"  value:   {self.value}")
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return printable("\n".join(lines))


class OrchError(Exception):
    """Base of every error that `orch` words for a person."""

    exit_code = 1

    def __init__(self, *problems: Problem) -> None:
        self.problems: Sequence[Problem] = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class UserError(OrchError):
    """Input that the user can mend; nothing was queued and nothing is left behind."""

    exit_code = 2


class ClusterError(OrchError):
    """Slurm did not answer or refused."""

    exit_code = 3


class TrackerError(OrchError):
    """The tracker cannot be reached; no point is lost, the journals keep them."""

    exit_code = 3


class RunsFailed(OrchError):
    """Some runs failed; the command itself did its work."""

    exit_code = 4
