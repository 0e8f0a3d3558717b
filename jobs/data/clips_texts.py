"""Owns the numbers of sentences: text features are computed once per sentence, and a frame carries its sentence's number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.data.clips_actions import COLORS, SHAPES, Noun, Relation, lift_text, move_text, put_down_text


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A finite set of sentences in a fixed order; the place of a sentence is its number."""

    texts: tuple[str, ...]
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {text: number for number, text in enumerate(self.texts)}
        if len(numbers) != len(self.texts):
            raise ValueError("a sentence occurs twice; TextTable.of leaves out the repetitions")
        object.__setattr__(self, "_numbers", numbers)

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextTable:
        """The sentences in order of their first appearance."""
        return cls(texts=tuple(dict.fromkeys(texts)))

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, number: int) -> str:
        """Sentence of a number; raises IndexError outside [0, len)."""
        if number < 0:
            raise IndexError(number)
        return self.texts[number]

    def number(self, text: str) -> int:
        """Number of a sentence; raises KeyError when it is not in the table."""
        return self._numbers[text]

    def digest(self) -> str:
        """sha256 over all sentences in order, in hex: names features that were computed from them."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def phase_table() -> TextTable:
    """Every sentence that a single phase can have: 32 + 32 + 32 * 5 * 32 = 5184, the same for all data sets of this kind.

    Two objects may bear the same name in files, so a name may stand on both sides.
    """
    nouns = tuple(Noun(color=color, shape=shape) for color in COLORS for shape in SHAPES)
    moves = (move_text(source, relation, other) for source in nouns for relation in Relation for other in nouns)
    return TextTable(texts=(*map(lift_text, nouns), *map(put_down_text, nouns), *moves))
