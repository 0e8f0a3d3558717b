"""The one error of data files: what is wrong, in which file, at which record and byte, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something was read: a file, and as far as known a record and its first byte."""

    file: str
    record: int | None = None
    """Counted from 0."""
    offset: int | None = None
    """Bytes from the start of the uncompressed stream."""

    def __str__(self) -> str:
        text = self.file
        if self.record is not None:
            text += f": record {self.record}"
        if self.offset is not None:
            text += f" at byte {self.offset} (uncompressed)"
        return text


class DataError(Exception):
    """A data file or store that is missing, truncated, corrupt or not what was asked for."""

    def __init__(self, what: str, *, place: Place, expected: str = "", hint: str = "") -> None:
        self.what = what
        self.place = place
        self.expected = expected
        self.hint = hint
        lines = [f"{place}: {what}"]
        if expected:
            lines.append(f"  expected: {expected}")
        if hint:
            lines.append(f"  hint: {hint}")
        super().__init__("\n".join(lines))
