"""Shared by the sweep tests: one composer (it remembers), the repository's sweeps, and a plan without a cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.errors import UserError
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.sweep.plan import Known, Plan, plan

ROOT = Path(__file__).parents[3]
Planner = Callable[..., Plan]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def composer() -> Composer:
    return Composer(ROOT / "jobs" / "conf")


@pytest.fixture(scope="session")
def mutations() -> ModuleType:
    """The generator of broken sweeps, `mutations.py` beside this file."""
    spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def planned(composer: Composer) -> Planner:
    """Text of a sweep -> its plan, with made-up file contents and an empty store."""

    def make(
        text: str,
        *,
        only: Sequence[str] = (),
        overrides: Sequence[str] = (),
        content: Callable[[str, str], str] = lambda kind, path: "c" * 64,
        existing: Callable[[str], Known | None] = lambda run_id: None,
        code_tree: str = "",
    ) -> Plan:
        sweep = parse_sweep(text, "sweeps/s.yaml")
        cells = expand(sweep, only=only, overrides=overrides)
        return plan(sweep, cells, composer, content=content, existing=existing, code_tree=code_tree)

    return make


@pytest.fixture(scope="session")
def complaint() -> Callable[[Callable[[], object]], str]:
    """What a call that must raise UserError says."""

    def say(call: Callable[[], object]) -> str:
        with pytest.raises(UserError) as caught:
            call()
        return str(caught.value)

    return say
