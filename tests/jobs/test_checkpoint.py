"""Checkpoints: killed at any line the newest valid one is unchanged, and nothing invalid is ever restored."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.checkpoint import MANIFEST, Checkpoint, CheckpointStore, Saved
from jobs.contract import fsync_directory
from tests.chaos.mischief import ERRORS, acting, lines_of, struck
from tests.deaths import dies_at, every_line


def store_in(path: Path, *, config: str = "run", keep: int = 2) -> CheckpointStore:
    return CheckpointStore(directory=path / "checkpoints", config_hash=config, keep=keep)


def save(store: CheckpointStore, step: int, *, may_commit: bool = True, text: str = "") -> Saved | None:
    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"a" * 100 + str(step).encode())
        (folder / "b.txt").write_text(text or f"state {step}")

    return store.save(step, write, world_size=2, threads=1, may_commit=lambda: may_commit)


def newest_step(store: CheckpointStore) -> int | None:
    found, _ = store.newest()
    return None if found is None else found.step


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_that_the_newest_is_found_with_its_facts(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.newest() == (None, [])
    assert save(store, 3)
    saved = save(store, 12)
    assert saved is not None
    assert (saved.step, saved.bytes) == (12, 102 + len("state 12"))
    path = store.directory / "step-0000000012"
    assert store.newest() == (Checkpoint(step=12, path=path, world_size=2, threads=1), [])


def test_that_one_of_a_known_name_is_found_though_the_listing_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node of a network file system may see a directory that it has listed before: what was deleted since, nothing newer."""
    store = store_in(tmp_path)
    for step in (10, 20, 30):
        save(store, step)
    monkeypatch.setattr(os, "listdir", lambda path: ["step-0000000010"])
    found, skipped = store.newest()
    assert (found, [one.path.name for one in skipped]) == (None, ["step-0000000010"])
    found, skipped = store.newest(also=[0, 20, 30, 31])
    assert found is not None
    assert (found.step, skipped) == (30, [])
    spoil_flip(store.directory / "step-0000000030")
    found, skipped = store.newest(also=[20, 30])
    assert found is not None
    assert (found.step, [one.path.name for one in skipped]) == (20, ["step-0000000030"])


SAVING = (CheckpointStore.save, CheckpointStore._prune, CheckpointStore.newest, fsync_directory)


def deaths(act: str, folder: Path) -> int:
    """Saves step 2 beside step 1, and dies so at every line on the way; at how many of them it did. Each time the next save is
    that of a living process, and finds what it needs."""
    died = 0
    for number, (function, line) in enumerate(every_line(*SAVING)):
        store = store_in(folder / f"{number}")
        save(store, 1)
        died += dies_at(function, line, lambda store=store: save(store, 2), act=act)
        renamed = (store.directory / "step-0000000002").exists()
        assert newest_step(store) == (2 if renamed else 1), f"{function.__qualname__}, line {line}"
        store.clear_leftovers()
        save(store, 3)
        assert newest_step(store) == 3
        assert not [name for name in names(store) if not name.startswith("step-")]
    return died


def test_that_a_death_at_any_line_leaves_the_newest_valid_one(tmp_path: Path) -> None:
    assert deaths("kill", tmp_path) > 30


def test_that_a_power_cut_at_any_line_leaves_the_newest_valid_one(tmp_path: Path) -> None:
    """What was not fsynced is lost."""
    assert deaths("power", tmp_path) > 30


@pytest.mark.parametrize("error", ERRORS)
def test_that_an_error_of_the_disk_at_any_line_leaves_the_newest_valid_one(error: str, tmp_path: Path) -> None:
    failed = 0
    for number, line in enumerate(lines_of(CheckpointStore.save)):
        store = store_in(tmp_path / f"{number}")
        save(store, 1)
        with struck(CheckpointStore.save, line, acting(error)), contextlib.suppress(OSError):
            save(store, 2)
            failed -= 1
        failed += 1
        assert newest_step(store) == (2 if (store.directory / "step-0000000002").exists() else 1), f"line {line}"
        save(store, 3)
        assert newest_step(store) == 3
    assert failed > 20


def spoil_flip(folder: Path) -> None:
    content = bytearray((folder / "a.bin").read_bytes())
    content[40] ^= 4
    (folder / "a.bin").write_bytes(content)


def spoil_truncate(folder: Path) -> None:
    os.truncate(folder / "a.bin", 50)


def spoil_missing(folder: Path) -> None:
    (folder / "b.txt").unlink()


def spoil_manifest_missing(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def spoil_manifest_torn(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 40)


def spoil_manifest_keys(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"bytes"', '"bytds"'))


def spoil_step(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"step": 2', '"step": 3'))


def spoil_foreign(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"run"', '"another"'))


def spoil_empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def spoil_unreadable(folder: Path) -> None:
    (folder / "a.bin").unlink()
    (folder / "a.bin").mkdir()
    size = (folder / "a.bin").stat().st_size
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["a.bin"]["bytes"] = size
    (folder / MANIFEST).write_text(json.dumps(manifest))


def spoil_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a directory")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_flip, "a.bin does not match its checksum"),
        (spoil_truncate, "a.bin has 50 bytes, not 101"),
        (spoil_missing, "b.txt is missing"),
        (spoil_manifest_missing, "its manifest cannot be read (FileNotFoundError)"),
        (spoil_manifest_torn, "its manifest cannot be read (JSONDecodeError)"),
        (spoil_manifest_keys, "its manifest cannot be read (KeyError)"),
        (spoil_step, "its manifest says step 3"),
        (spoil_foreign, "it belongs to another, not to run"),
        (spoil_empty, "its manifest cannot be read (FileNotFoundError)"),
        (spoil_unreadable, "a.bin cannot be read (IsADirectoryError)"),
        (spoil_file_instead, "its manifest cannot be read (NotADirectoryError)"),
    ],
)
def test_that_a_spoilt_one_is_skipped_with_its_reason(spoil: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    store = store_in(tmp_path)
    save(store, 1)
    save(store, 2)
    spoil(store.directory / "step-0000000002")
    found, skipped = store.newest()
    assert found is not None
    assert found.step == 1
    assert [(one.path.name, one.reason) for one in skipped] == [("step-0000000002", reason)]
    save(store, 2, text="again")  # takes the spoilt one's place
    assert newest_step(store) == 2
    assert (store.directory / "step-0000000002" / "b.txt").read_text() == "again"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10_000_000), which=st.integers(0, 2))
def test_that_no_flipped_bit_is_believed(bit: int, which: int, tmp_path: Path) -> None:
    """Whatever bit flips in whatever file: the older one is restored, or the newer one with its very content."""
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    store = store_in(tmp_path)
    save(store, 1)
    save(store, 2)
    file = sorted((store.directory / "step-0000000002").iterdir())[which]
    content = bytearray(file.read_bytes())
    content[(bit // 8) % len(content)] ^= 1 << (bit % 8)
    file.write_bytes(content)
    found, _ = store.newest()
    assert found is not None
    assert found.path.name == f"step-{found.step:010d}"
    assert (found.path / "b.txt").read_text() == f"state {found.step}"
    if file.name != MANIFEST:
        assert found.step == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saves=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6), keep=st.integers(1, 3))
def test_that_the_newest_good_one_is_never_deleted(saves: list[tuple[int, bool]], keep: int, tmp_path: Path) -> None:
    """Some saves rot right after they were made, and the run falls back: what it restores is there until the next save."""
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    store = store_in(tmp_path, keep=keep)
    step = 0
    for advance, rots in saves:
        step += advance
        save(store, step)
        assert newest_step(store) == step
        whole = [name for name in names(store) if name.startswith("step-")]
        if rots and len(whole) > 1:
            spoil_flip(store.directory / f"step-{step:010d}")
            step = newest_step(store) or 0


def test_that_only_so_many_are_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(store, step)
    assert names(store) == ["step-0000000003", "step-0000000004"]


def test_that_a_superseded_attempt_commits_nothing(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    save(store, 1)
    assert save(store, 2, may_commit=False) is None
    assert names(store) == ["step-0000000001"]


def test_that_a_failing_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    save(store, 1)

    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.save(2, full, world_size=1, threads=1, may_commit=lambda: True)
    assert names(store) == ["step-0000000001"]


def test_that_a_twins_equal_checkpoint_is_left_in_place(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    save(store, 1, text="first")
    assert save(store, 1, text="second") is not None
    assert (store.directory / "step-0000000001" / "b.txt").read_text() == "first"
