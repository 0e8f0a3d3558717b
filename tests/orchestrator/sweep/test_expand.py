from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import parse_sweep

Complaint = Callable[[Callable[[], object]], str]

SWEEP = parse_sweep(
    """
base: [experiment=demo]
axes:
  method: {one: {set: [objective=reconstruction]}, two: {set: [objective=covariance, steps=7]}}
  seed: {key: seed, values: [0, 1]}
where:
  - {if: {method: one, seed: 1}, skip: true}
  - {if: {method: two, seed: 1}, cite: 20, source: a page}
  - {if: {seed: 0}, set: [steps=8]}
  - {if: {method: two}, set: [steps=9]}
""",
    "sweeps/s.yaml",
)


def test_that_overrides_come_from_base_then_axes_then_rules_then_the_command_line() -> None:
    cells = {cell.name: cell for cell in expand(SWEEP, overrides=["steps=10"])}
    assert cells["method=two,seed=0"].overrides == (
        "experiment=demo",
        "objective=covariance",
        "steps=7",
        "seed=0",
        "steps=8",
        "steps=9",
    )
    assert cells["method=two,seed=0"].last == ("steps=10",)


def test_that_skipped_cells_are_absent_and_cited_cells_have_a_number_and_no_overrides() -> None:
    cells = {cell.name: cell for cell in expand(SWEEP)}
    assert list(cells) == ["method=one,seed=0", "method=two,seed=0", "method=two,seed=1"]
    cited = cells["method=two,seed=1"]
    assert (cited.cite, cited.source, cited.overrides) == (20.0, "a page", ())


def test_that_only_selects_by_axis_and_takes_either_of_two_options() -> None:
    def names(*only: str) -> list[str]:
        return [cell.name for cell in expand(SWEEP, only=only)]

    assert names("method=two,seed=0") == ["method=two,seed=0"]
    assert names("method=two", "seed=0") == ["method=two,seed=0"]
    assert names("method=one", "method=two,seed=0") == ["method=one,seed=0", "method=two,seed=0"]


def test_that_a_wrong_selection_is_named_with_what_is_allowed(complaint: Complaint) -> None:
    said = complaint(lambda: expand(SWEEP, only=["metod=one,seed=9,x"]))
    assert "--only: unknown axis\n  value:   metod\n  allowed: method, seed\n  hint: did you mean `method`?" in said
    assert "--only: unknown option of axis `seed`\n  value:   9\n  allowed: 0, 1" in said
    assert "--only: is not `axis=option`\n  value:   x" in said
    assert "no cell is left" in complaint(lambda: expand(SWEEP, only=["method=one,seed=1"]))


def test_that_a_malformed_set_is_the_users_error(complaint: Complaint) -> None:
    assert "--set: is not an override" in complaint(lambda: expand(SWEEP, overrides=["steps"]))
    assert "--set: `kind` cannot be overridden" in complaint(lambda: expand(SWEEP, overrides=["kind=train"]))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_that_a_grid_has_one_cell_per_combination_with_names_of_its_own(sizes: list[int]) -> None:
    axes = "\n".join(f"  a{n}: {{key: seed, values: {list(range(size))}}}" for n, size in enumerate(sizes))
    cells = expand(parse_sweep(f"axes:\n{axes}\n", "s.yaml"))
    assert len(cells) == math.prod(sizes) == len({cell.name for cell in cells})
    assert all(len(cell.overrides) == len(sizes) for cell in cells)
