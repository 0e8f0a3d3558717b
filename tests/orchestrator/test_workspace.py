"""The root on disk: frozen code, frozen specs, one lock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator import workspace
from orchestrator.errors import ClusterError, UserError
from orchestrator.workspace import Root, discard, freeze, refreeze_code, refreeze_places, snapshot_code, tree_hash


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working copy with both packages under git."""
    folder = tmp_path / "checkout"
    for name, text in {
        "jobs/__init__.py": "",
        "jobs/conf/a.yaml": "x: 1",
        "models/m.py": "y = 1",
        "README.md": "no code",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_that_a_snapshot_holds_the_code_and_says_where_it_comes_from(root: Root, checkout: Path) -> None:
    made = snapshot_code(root, checkout)
    assert names(made.path) == {"jobs/__init__.py", "jobs/conf/a.yaml", "models/m.py", "dirty.diff", "commit.json"}
    assert len(made.commit) == 40
    assert not made.dirty


def test_that_one_tree_is_copied_once_and_a_changed_tree_again(root: Root, checkout: Path) -> None:
    first = snapshot_code(root, checkout)
    before = first.path.stat().st_mtime_ns
    assert snapshot_code(root, checkout) == first
    assert first.path.stat().st_mtime_ns == before
    (checkout / "models/m.py").write_text("y = 2")
    (checkout / "jobs/new.py").write_text("")
    second = snapshot_code(root, checkout)
    assert second.dirty
    assert second.tree != first.tree
    assert "+y = 2" in (second.path / "dirty.diff").read_text()
    assert json.loads((second.path / "commit.json").read_text())["untracked"] == ["jobs/new.py"]
    assert (first.path / "models/m.py").read_text() == "y = 1"
    assert sorted(path.name for path in root.snapshots.iterdir()) == sorted([first.tree, second.tree])


def test_that_only_what_a_job_imports_is_the_code(checkout: Path) -> None:
    before = tree_hash(checkout)
    (checkout / "README.md").write_text("other")
    (checkout / "jobs/__pycache__").mkdir()
    (checkout / "jobs/__pycache__/x.py").write_text("")
    assert tree_hash(checkout) == before
    (checkout / "models/m.py").rename(checkout / "models/n.py")
    assert tree_hash(checkout) != before


def test_that_a_snapshot_cut_short_by_death_is_never_used(root: Root, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workspace.os, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            snapshot_code(root, checkout)
    assert not (root.snapshots / tree_hash(checkout)).exists()
    assert "models/m.py" in names(snapshot_code(root, checkout).path)


def test_that_code_without_git_is_still_frozen(root: Root, checkout: Path) -> None:
    subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    made = snapshot_code(root, checkout)
    assert (made.commit, made.dirty) == ("", False)


def test_that_a_damaged_snapshot_is_named(root: Root, checkout: Path) -> None:
    made = snapshot_code(root, checkout)
    (made.path / "commit.json").unlink()
    with pytest.raises(ClusterError, match="damaged"):
        snapshot_code(root, checkout)


def test_that_a_frozen_run_is_never_changed(root: Root, checkout: Path) -> None:
    made = snapshot_code(root, checkout)
    spec = {"id": "count-1", "code_tree": made.tree}
    assert freeze(root, "count-1", spec, tree=made.tree) == made.tree
    assert freeze(root, "count-1", {"id": "other", "code_tree": "new"}, tree="new") == made.tree
    run_dir = root.run_dir("count-1")
    assert json.loads(run_dir.spec.read_text()) == spec
    assert run_dir.code.resolve() == made.path
    assert run_dir.path.stat().st_mode & 0o777 == 0o700


def test_that_a_freeze_that_died_before_its_spec_is_done_again_with_the_present_code(root: Root) -> None:
    root.run_dir("count-1").path.mkdir()
    root.run_dir("count-1").code.symlink_to(Path("..", "..", "snapshots", "old"))
    assert freeze(root, "count-1", {"code_tree": "new"}, tree="new") == "new"
    assert root.run_dir("count-1").code.readlink().name == "new"


def test_that_a_run_gets_newer_code_only_on_demand_and_says_so(root: Root, checkout: Path) -> None:
    freeze(root, "count-1", {"id": "count-1", "code_tree": "old"}, tree=snapshot_code(root, checkout).tree)
    (checkout / "models/m.py").write_text("y = 2")
    newer = snapshot_code(root, checkout)
    refreeze_code(root, "count-1", newer)
    run_dir = root.run_dir("count-1")
    assert run_dir.code.resolve() == newer.path
    assert json.loads(run_dir.spec.read_text())["code_tree"] == newer.tree


def test_that_discarding_spares_a_run_that_was_started(root: Root) -> None:
    for run in ("a", "b"):
        freeze(root, run, {}, tree="t")
    root.run_dir("b").attempts.mkdir()
    discard(root, ["a", "b", "unknown"])
    assert [path.name for path in root.runs.iterdir()] == ["b"]


def test_that_the_lock_is_held_by_one(root: Root) -> None:
    with root.lock() as first, root.lock(wait=False) as second:
        assert (first, second) == (True, False)
    with root.lock(wait=False) as again:
        assert again


def test_that_a_root_that_cannot_be_locked_is_read_only_and_not_a_crash(root: Root) -> None:
    (root.path / "lock").mkdir()  # stands for EROFS and EACCES, which root never sees
    with root.lock(wait=False) as mine:
        assert not mine
    with pytest.raises(UserError, match="cannot be written"), root.lock():
        pass


@pytest.mark.parametrize("path", ["/proc/nowhere/root", "/dev/null/root"])
def test_that_an_unwritable_root_is_the_users_error(path: str) -> None:
    with pytest.raises(UserError, match="the root cannot be written"):
        Root(Path(path)).create()


def test_that_a_finished_run_learns_where_its_data_lie_now_and_nothing_else(tmp_path: Path) -> None:
    root = Root(tmp_path)
    spec_path = root.run_dir("prepare-1").spec
    spec_path.parent.mkdir(parents=True)
    old = {"kind": "prepare", "data": {"path": "/old", "content": "c0ffee"}, "runtime": {"workers": 2}}
    spec_path.write_text(json.dumps({"id": "prepare-1", "config": old}))
    moved = {"kind": "prepare", "data": {"path": "/new", "content": "c0ffee"}, "runtime": {"workers": 8}, "later": {"path": "/x"}}
    refreeze_places(root, "prepare-1", moved)
    found = json.loads(spec_path.read_text())
    assert found == {"id": "prepare-1", "config": old | {"data": {"path": "/new", "content": "c0ffee"}}}
