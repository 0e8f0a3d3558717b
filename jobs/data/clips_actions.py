"""Owns the words of the pick-and-place clips: colours, shapes, relations, the four phases and what each one says.

A clip has 34 frames. Object 0 is lifted (frames 0-3) and put down (4-7); object 1 is put somewhere relative to object 0
(8-20), object 2 relative to object 0 or another (21-33). `actions` [a, b, c] of the original's scene files: a is the relation
of the third phase, c that of the fourth, b the object that the fourth phase refers to, *counted from 1*.
Source of the wording and of the numbers: language_slots.md 7.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

FRAMES = 34
"""Of every clip."""
COLORS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
SHAPES = ("cube", "cylinder", "sphere", "cone")
NOT_NAMED = -1
"""In place of an object's number in the mask, where the phase names one object only."""
SEPARATOR = ", "
"""Between the four sentences of a whole clip."""
ACTING = 3
"""Objects that an action needs: the lifted one and the two that are moved."""


class Relation(enum.IntEnum):
    """Where the moved object ends; the numbers are those of `actions`."""

    ON_TOP = 0
    IN_FRONT = 1
    RIGHT = 2
    LEFT = 3
    BEHIND = 4


RELATION_WORDS: Mapping[Relation, str] = {
    Relation.ON_TOP: "on top of",
    Relation.IN_FRONT: "in front of",
    Relation.RIGHT: "to the right of",
    Relation.LEFT: "to the left of",
    Relation.BEHIND: "behind",
}


class Phase(enum.IntEnum):
    """What happens in a part of a clip."""

    LIFT = 0
    PUT_DOWN = 1
    FIRST_MOVE = 2
    SECOND_MOVE = 3


PHASE_STARTS = (0, 4, 8, 21)
PHASE_ENDS = (4, 8, 21, 34)
"""First frame of each phase, and the first one after it."""
PHASE_OF_FRAME = tuple(phase for phase in Phase for _ in range(PHASE_STARTS[phase], PHASE_ENDS[phase]))


@dataclass(frozen=True, kw_only=True)
class Noun:
    """What a sentence calls an object: "red cube"."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The script of a clip in the original's three numbers, checked by whoever makes it."""

    first: Relation
    """Of object 1 to object 0."""
    reference: int
    """The object that the second move refers to, counted from 1."""
    second: Relation
    """Of object 2 to the `reference`."""


def name_numbers(nouns: tuple[Noun, ...], named: tuple[int, int]) -> list[list[int]]:
    """(colour, shape) of the two named objects, as places in COLORS and SHAPES; NOT_NAMED twice for one that is not named."""
    return [
        [NOT_NAMED, NOT_NAMED] if one == NOT_NAMED else [COLORS.index(nouns[one - 1].color), SHAPES.index(nouns[one - 1].shape)]
        for one in named
    ]


def lift_text(noun: Noun) -> str:
    """Phase 0."""
    return f"lift up the {noun}"


def put_down_text(noun: Noun) -> str:
    """Phase 1."""
    return f"put down the {noun}"


def move_text(source: Noun, relation: Relation, destination: Noun) -> str:
    """Phases 2 and 3."""
    return f"put the {source} {RELATION_WORDS[relation]} the {destination}"


def phase_texts(nouns: tuple[Noun, ...], actions: Actions) -> tuple[str, str, str, str]:
    """The sentences of the four phases of a clip, given its objects in the order of the scene file."""
    return (
        lift_text(nouns[0]),
        put_down_text(nouns[0]),
        move_text(nouns[1], actions.first, nouns[0]),
        move_text(nouns[2], actions.second, nouns[actions.reference - 1]),
    )


def clip_text(nouns: tuple[Noun, ...], actions: Actions) -> str:
    """The sentence of a whole clip (`fine_grained: false`)."""
    return SEPARATOR.join(phase_texts(nouns, actions))


def named_objects(actions: Actions) -> tuple[tuple[int, int], ...]:
    """(source, destination) of each phase by their numbers in the mask (object k of the scene file has k + 1)."""
    return ((1, NOT_NAMED), (1, NOT_NAMED), (2, 1), (3, actions.reference))
