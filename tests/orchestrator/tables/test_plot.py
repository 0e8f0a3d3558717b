"""The plot of effects: what is drawn where, and files that a person can open."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli.table import check_plot, write_plot
from orchestrator.errors import UserError
from orchestrator.tables.assemble import assemble
from orchestrator.tables.plot import draw
from tests.orchestrator.tables.test_effects import TABLE, against, scores
from tests.orchestrator.tables.test_factorial import crossed, grid


def ablation():
    return assemble(against(TABLE), scores(TABLE))


def test_that_an_ablation_has_a_dot_per_row_in_the_tables_order_with_its_verdict():
    (axes,) = draw(ablation()).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["A  (should try)", "B", "GONE"]
    first, second, _ = ablation().blocks[0].effects.lines
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.lines[1:]]
    for y, effect in enumerate((first.estimates[0], second.estimates[0])):
        assert ([effect.low, effect.high], [y, y]) in [(list(x), list(at)) for x, at in drawn]
        assert ([effect.value], [y]) in [(list(x), list(at)) for x, at in drawn]
    assert [text.get_text() for text in axes.texts] == ["no number"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert axes.get_xlabel() == "effect on Score (higher is better), 95 % interval"


def test_that_a_dot_is_filled_only_when_its_interval_leaves_zero_out():
    (axes,) = draw(ablation()).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True]


def test_that_a_factorial_is_sorted_by_size_in_a_panel_per_part():
    model = crossed(grid(lambda a, b, c: a + 3 * b * c - 2 * c, seeds=2, noise=0.0), within={"init": ("0",)})
    everything, few = draw(model).axes
    labels = [[tick.get_text() for tick in axes.get_yticklabels()] for axes in (everything, few)]
    assert labels[0][:3] == ["kernel × init", "init: few → many", "slots: few → many"]
    assert labels[1] == ["kernel: few → many", "slots: few → many", "slots × kernel"]
    assert [axes.get_title() for axes in (everything, few)] == ["all cells", "init: few"]


def test_that_labels_are_text_and_no_mathematics(tmp_path: Path):
    table = {"base": [0.1, 0.2], "a$_{$": [0.1, 0.3]}
    write_plot(assemble(against(table), scores(table)), tmp_path / "p.svg")
    assert "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(("name", "head"), [("p.png", b"\x89PNG"), ("p.pdf", b"%PDF"), ("p.SVG", b"<?xml")])
def test_that_each_suffix_gives_its_format(tmp_path: Path, name: str, head: bytes):
    check_plot(tmp_path / name)
    write_plot(ablation(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(head)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_that_other_suffixes_and_tables_without_effects_are_the_users_to_mend(tmp_path: Path, record, values):
    with pytest.raises(UserError, match="no format of a plot"):
        check_plot(tmp_path / "p.jpeg")
    with pytest.raises(UserError, match="has no effects to draw"):
        write_plot(assemble(record, values), tmp_path / "p.png")
    with pytest.raises(UserError, match="cannot write the plot"):
        write_plot(ablation(), tmp_path / "nowhere" / "p.png")
