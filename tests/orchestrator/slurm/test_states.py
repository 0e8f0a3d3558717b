"""Slurm's words for states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.slurm.states import ENDED, EXECUTING, WAITING, SlurmState, read_state


def test_that_every_state_but_unknown_is_in_exactly_one_set() -> None:
    for state in SlurmState:
        found = [group for group in (WAITING, EXECUTING, ENDED) if state in group]
        assert len(found) == (0 if state is SlurmState.UNKNOWN else 1), state


def test_that_every_state_is_explained() -> None:
    import ast
    import inspect

    import orchestrator.slurm.states as module

    tree = ast.parse(inspect.getsource(module))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SlurmState").body
    for member, following in zip(body[1:], [*body[2:], None], strict=True):
        if isinstance(member, ast.Assign):
            assert isinstance(following, ast.Expr), ast.unparse(member)


@pytest.mark.parametrize("state", list(SlurmState))
def test_that_every_word_is_read_as_itself(state: SlurmState) -> None:
    assert read_state(state.value).state is state


def test_that_who_cancelled_is_kept() -> None:
    reading = read_state("CANCELLED by 1000")
    assert (reading.state, reading.cancelled_by, reading.text) == (SlurmState.CANCELLED, 1000, "CANCELLED by 1000")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED+", SlurmState.CANCELLED),
        ("COMPLETING,NODE_FAIL", SlurmState.COMPLETING),
        ("PENDING+REQUEUED", SlurmState.PENDING),
        (" RUNNING\n", SlurmState.RUNNING),
        ("EXPEDITING", SlurmState.UNKNOWN),
        ("not COMPLETED", SlurmState.UNKNOWN),
        ("COMPLETED_TWICE", SlurmState.UNKNOWN),
        ("", SlurmState.UNKNOWN),
    ],
)
def test_that_a_word_is_read_tolerantly_but_never_guessed(text: str, state: SlurmState) -> None:
    reading = read_state(text)
    assert reading.state is state
    assert reading.text == text.strip()


@given(st.text())
def test_that_no_text_is_a_crash_and_none_is_lost(text: str) -> None:
    assert read_state(text).text == text.strip()
