"""Sentences of clips and their numbers."""

from __future__ import annotations

import pytest

from jobs.data.clips_actions import Actions, Noun, Relation, clip_text, named_objects, phase_texts
from jobs.data.clips_texts import TextTable, phase_table

NOUNS = tuple(Noun(color=color, shape=shape) for color, shape in (("cyan", "cube"), ("red", "cylinder"), ("gray", "cone")))
ACTIONS = Actions(first=Relation.LEFT, reference=2, second=Relation.ON_TOP)


def test_that_sentences_have_the_originals_wording() -> None:
    sentences = (
        "lift up the cyan cube",
        "put down the cyan cube",
        "put the red cylinder to the left of the cyan cube",
        "put the gray cone on top of the red cylinder",
    )
    assert phase_texts(NOUNS, ACTIONS) == sentences
    assert clip_text(NOUNS, ACTIONS) == ", ".join(sentences)
    assert named_objects(ACTIONS) == ((1, -1), (1, -1), (2, 1), (3, 2))


def test_that_the_table_of_phases_never_changes() -> None:
    table = phase_table()
    assert len(table) == 32 + 32 + 32 * 5 * 32
    assert table.digest()[:16] == "366143adec11c711"
    assert table.text(0) == "lift up the blue cube"
    assert table.text(len(table) - 1) == "put the yellow cone behind the yellow cone"


def test_that_number_and_text_are_each_others_inverse() -> None:
    table = phase_table()
    assert all(table.number(table.text(number)) == number for number in range(len(table)))
    assert set(phase_texts(NOUNS, ACTIONS)) <= set(table.texts)


def test_that_repetitions_keep_their_first_number() -> None:
    table = TextTable.of(["b", "a", "b", "c"])
    assert table.texts == ("b", "a", "c")
    with pytest.raises(ValueError, match="twice"):
        TextTable(texts=("a", "a"))
    with pytest.raises(KeyError):
        table.number("d")
    for number in (-1, 3):
        with pytest.raises(IndexError):
            table.text(number)
