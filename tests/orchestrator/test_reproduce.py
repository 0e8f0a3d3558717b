"""A finished run once more from its frozen code: equal here, and every kind of difference found and said."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import RunDir, read_outcome
from jobs.journal import AttemptJournal, Entry, Journal
from orchestrator import likeness
from orchestrator.likeness import Verdict
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command

Sweep = Callable[..., Path]
TRAINING = """
base: [experiment=demo, data=mdsprites_easy, data.train.count=18, data.test.count=4, batch_size=6, objective=covariance,
       objective.projection.size=8, steps=6, validation.every_steps=2, validation.images=4, runtime.log_every=1,
       runtime.checkpoint_every_steps=3]
axes: {seed: {key: seed, values: [0]}}
table: {rows: seed, value: {metric: eval/fg_ari, digits: 3}}
"""


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.find_slurm", lambda: None)


def everything_below(root: Path) -> dict[str, bytes | str]:
    """Every file's content and every link's target; not what belongs to the store and its locks."""
    return {
        path.relative_to(root).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for part in ("runs", "snapshots", "environments")
        for path in sorted((root / part).rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def reproduced(orch: Command, *arguments: str | Path, expect: int = 0) -> dict[str, Any]:
    """The report by run: fact by name."""
    raw = json.loads(orch("reproduce", *arguments, "--json", expect=expect).out)
    assert raw["equal"] is (expect == 0)
    return {one["run"]: {fact["what"]: fact for fact in one["facts"]} for one in raw["runs"]}


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- counting runs ---------------------------------------------------------------------------------------------------


def test_that_a_finished_cell_is_reproduced_and_the_original_is_only_read(orch: Command, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(), "--local")
    before = everything_below(orch.root)
    said = orch("reproduce", "counting", "--only", "seed=1").out
    assert "1 of 1 runs reproduced" in said
    assert "5 values of 1 metrics" in said
    assert everything_below(orch.root) == before
    (place,) = (orch.root / "reproductions").iterdir()
    (run,) = (place / "runs").iterdir()
    assert json.loads((run / "spec.json").read_text())["config"]["seed"] == 1
    assert Path(os.readlink(run / "code")).name == json.loads((run / "spec.json").read_text())["code_tree"]
    assert (place / "snapshots").is_dir()


def test_that_a_changed_metric_is_found_and_is_exit_4(orch: Command, count_sweep: Sweep, tmp_path: Path) -> None:
    orch("submit", count_sweep(seeds=[0]), "--local")
    (run,) = orch.runs()
    journal = Root(orch.root).run_dir(run).journals / "0001.jsonl"
    lines = journal.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"s":3' in line and '"m"' in line)
    value = json.loads(lines[at])["m"]["count/value"]
    lines[at] = lines[at].replace(str(value), str(value * 2))
    journal.write_text("\n".join(lines) + "\n")
    fact = reproduced(orch, run, "--into", tmp_path / "again", expect=4)[run]["metrics"]
    assert fact["verdict"] == "different"
    assert "1 of 5 values differ, first count/value at step 3" in fact["detail"]
    assert "relative 0.5" in fact["detail"]


def test_that_a_changed_snapshot_is_refused(orch: Command, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]), "--local")
    code = next((orch.root / "snapshots").glob("*/jobs/count.py"))
    code.write_text(code.read_text() + "\n# changed\n")
    assert "somebody changed it" in orch("reproduce", next(iter(orch.runs())), expect=2).err


def test_that_training_stopped_early_is_compared_up_to_there_and_leaves_out_who_needs_it(orch: Command, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "base: [steps=9]\naxes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {first: {job: count}, second: {job: count, needs: [first], set: [label=second]}}\n"
        "table: {rows: seed, value: {metric: count/value, step: second, digits: 0}}\n"
    )
    orch("submit", path, "--local")
    first, second = orch.runs()
    found = reproduced(orch, "two", "--steps", "4")
    assert set(found) == {first}
    assert found[first]["metrics"]["original"] == "4 values of 1 metrics"
    assert found[first]["configuration"]["detail"] == "stopped at step 4 of 9"
    assert f"left out {second}" in orch("reproduce", second, "--steps", "4").err


def test_that_what_is_not_done_or_not_known_or_in_the_way_is_exit_2(orch: Command, count_sweep: Sweep, tmp_path: Path) -> None:
    orch("submit", count_sweep(seeds=[0]), "--local")
    orch("submit", count_sweep("bad", seeds=[5], extra="fail_at=2"), "--local", expect=4)
    assert "is not done" in orch("reproduce", "bad", expect=2).err
    assert "no submitted sweep is called so" in orch("reproduce", "nothing", "--only", "seed=0", expect=2).err
    assert "unknown option of axis" in orch("reproduce", "counting", "--only", "seed=7", expect=2).err
    assert "place of the original" in orch("reproduce", "counting", "--into", orch.root, expect=2).err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert "something else is there" in orch("reproduce", "counting", "--into", tmp_path / "full", expect=2).err
    assert not (orch.root / "reproductions").exists()


def test_that_the_same_place_again_goes_on_and_runs_nothing_twice(orch: Command, count_sweep: Sweep, tmp_path: Path) -> None:
    orch("submit", count_sweep(seeds=[0]), "--local")
    (run,) = orch.runs()
    for _ in range(2):
        reproduced(orch, run, "--into", tmp_path / "again")
    assert len(list((tmp_path / "again" / "runs" / run / "attempts").glob("*.json"))) == 1


def test_that_an_imported_cell_is_reproduced_from_the_code_of_the_archive(
    orch: Command, count_sweep: Sweep, tmp_path: Path
) -> None:
    orch("submit", count_sweep(seeds=[0]), "--local")
    (run,) = orch.runs()
    orch("export", "counting", tmp_path / "a.tar.gz")
    orch("import", tmp_path / "a.tar.gz", "--root", tmp_path / "new")
    elsewhere = Command(root=tmp_path / "new", capture=orch.capture, patch=orch.patch)
    found = reproduced(elsewhere, run)[run]
    assert [found[what]["verdict"] for what in ("configuration", "code", "environment", "metrics")] == ["equal"] * 4


# --- training runs ---------------------------------------------------------------------------------------------------


def test_that_a_training_cell_comes_again_bit_for_bit_and_a_changed_weight_is_found(orch: Command, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "training.yaml"
    path.write_text(TRAINING)
    orch("submit", path, "--local")
    kinds = {one["kind"]: run for run, one in orch.runs().items()}
    assert set(kinds) == {"prepare", "train", "evaluate"}
    found = reproduced(orch, kinds["evaluate"], "--into", tmp_path / "again")
    assert set(found) == set(kinds.values())
    train = found[kinds["train"]]
    for what in ("configuration", "code", "environment", "cpu", "device", "world size", "threads", "metrics", "weights"):
        assert train[what]["verdict"] == "equal", train[what]
    assert found[kinds["prepare"]]["output"]["verdict"] == "equal"
    assert found[kinds["evaluate"]]["metrics"]["verdict"] == "equal"

    archive, new = tmp_path / "training.tar.gz", tmp_path / "new"
    orch("export", "training", archive, "--weights")
    orch("import", archive, "--root", new)
    score = RunDir(new / "runs" / kinds["evaluate"])
    assert f"{read_outcome(score).values['eval/fg_ari']:.3f}" in (new / "imported" / "table.md").read_text()  # type: ignore[union-attr]
    for part in ("output/model.pt", "journal/0001.jsonl", "spec.json"):
        assert (new / "runs" / kinds["train"] / part).read_bytes() == (orch.root / "runs" / kinds["train"] / part).read_bytes()

    weights = RunDir(orch.root / "runs" / kinds["train"]).output / "model.pt"
    state = torch.load(weights, weights_only=True)
    name = next(name for name, one in state.items() if one.is_floating_point() and one.numel() > 1)
    state[name].view(-1)[0] += 1e-3
    torch.save(state, weights)
    fact = reproduced(orch, kinds["evaluate"], "--into", tmp_path / "again", expect=4)[kinds["train"]]["weights"]
    assert fact["verdict"] == "different"
    assert f"most in {name}: relative" in fact["detail"]
    assert fact["detail"].startswith("1 of ")
    early = reproduced(orch, kinds["train"], "--steps", "4")[kinds["train"]]
    assert (early["metrics"]["verdict"], early["weights"]["verdict"]) == ("equal", "not compared")


def test_that_the_distance_of_weights_is_that_of_a_plain_loop() -> None:
    import torch

    from jobs.weights_alike import distance

    one = torch.tensor([[1.0, -4.0], [0.5, 2.0]])
    other = one.clone()
    assert distance(one, other) == 0.0
    other[0, 0] = 1.25
    expected = max(abs(a - b) for a, b in zip(one.view(-1).tolist(), other.view(-1).tolist(), strict=True)) / 4.0
    assert distance(one, other) == pytest.approx(expected)
    assert distance(one, one.double()) == math.inf
    assert distance(one, one[:1]) == math.inf
    other[0, 0] = math.nan
    assert distance(one, other) == math.inf
    assert distance(other, other.clone()) == 0.0
    assert distance(torch.tensor([3]), torch.tensor([4])) == pytest.approx(0.25)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_that_packages_that_differ_are_named_and_not_judged() -> None:
    old, new = (
        ("numpy-2.0.dist-info", "torch-2.13.dist-info"),
        ("numpy-2.1.dist-info", "timm-1.0.dist-info", "torch-2.13.dist-info"),
    )
    fact = likeness.environment("a", "b", (old, new))
    assert (fact.verdict, fact.judged) == (Verdict.DIFFERENT, False)
    assert fact.detail == "numpy 2.0 -> 2.1, timm absent -> 1.0"
    assert "not recorded" in likeness.environment("a", "b").detail
    assert likeness.environment("", "b").verdict is Verdict.UNKNOWN


def test_that_a_configuration_is_compared_key_by_key() -> None:
    one = {"steps": 5, "model": {"slots": 4, "decoder": {}}}
    assert likeness.configuration(one, one, stopped_at=None).verdict is Verdict.EQUAL
    other = {"steps": 3, "model": {"slots": 4, "decoder": {}}}
    assert likeness.configuration(one, other, stopped_at=3).verdict is Verdict.EQUAL
    assert likeness.configuration(one, other, stopped_at=None).detail == "steps"
    found = likeness.configuration(one, {"steps": 3, "model": {"slots": 5}}, stopped_at=3)
    assert found.detail.startswith("model.decoder, model.slots")
    assert found.verdict is Verdict.DIFFERENT


def journal(*entries: tuple[int, dict[str, float]]) -> Journal:
    made = tuple(Entry(step=step, time_ms=0, metrics=values) for step, values in entries)
    return Journal(attempts=(AttemptJournal(attempt=1, restored_step=0, entries=made),))


def test_that_every_scalar_counts_and_measurements_of_the_machine_do_not() -> None:
    one = likeness.series_of(journal((1, {"a": 1.0, "b": math.nan}), (2, {"a": 2.0, "train/peak_memory_mib": 7.0})), "train")
    assert set(one) == {(1, "a"), (1, "b"), (2, "a")}
    assert likeness.metrics(one, one).verdict is Verdict.EQUAL
    assert likeness.metrics(one, {**one, (2, "a"): math.nextafter(2.0, 3.0)}).verdict is Verdict.DIFFERENT
    assert "1 values stand on one side alone" in likeness.metrics(one, {**one, (3, "a"): 1.0}).detail
    assert likeness.metrics(one, {**one, (3, "a"): 1.0}, stopped_at=2).verdict is Verdict.EQUAL
    assert likeness.metrics(one, {(1, "a"): 1.0, (2, "a"): 2.0}, stopped_at=2).verdict is Verdict.DIFFERENT
    assert likeness.metrics({}, one).verdict is Verdict.UNKNOWN
    progress = likeness.series_of(journal((1, {"prepare/records": 1.0}), (9, {"prepare/records": 9.0})), "prepare")
    assert progress == {(0, "prepare/records"): 9.0}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(1.0, 1.0, 0.0), (math.nan, math.nan, 0.0), (1.0, 2.0, 0.5), (-1.0, 1.0, 2.0), (math.inf, 1.0, math.inf), (0.0, 1.0, 1.0)],
)
def test_that_a_relative_difference_is_taken_from_the_larger_one(one: float, other: float, expected: float) -> None:
    assert likeness.relative(one, other) == likeness.relative(other, one) == expected
