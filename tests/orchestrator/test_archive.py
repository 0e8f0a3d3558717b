"""An archive of a table's sources: same bytes, no places of the machine, the same table elsewhere, and nothing taken on trust."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Outcome, Status, write_outcome
from orchestrator import importing
from orchestrator.archive import (
    MANIFEST,
    definition_without_paths,
    journal_without_paths,
    legal,
    read_manifest,
    without_paths,
)
from orchestrator.errors import UserError
from orchestrator.store.runs import Store
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command, StubSlurm

Sweep = Callable[..., Path]
Members = dict[str, bytes]


@pytest.fixture
def finished(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> Path:
    """The archive of a sweep whose two runs are done, as jobs would leave them; one has weights."""
    orch("submit", count_sweep())
    stub_slurm.forget()
    for number, run in enumerate(orch.runs()):
        place = Root(orch.root).run_dir(run)
        for folder in (place.journals, place.attempts, place.output):
            folder.mkdir(exist_ok=True)
        claimed = {"number": 1, "claimant": "c", "environment": "ab12", "job_id": f"101_{number}", "started_at": time.time() + 60}
        (place.attempts / "0001.json").write_text(json.dumps(claimed) + "\n")
        lines = [
            {"attempt": 1, "restored": 0, "time": 1.0}, {"s": 5, "t": 7, "m": {"count/value": 10.5 + number}},
            {"s": 5, "t": 8, "e": "read", "d": {"file": f"{orch.root}/runs/x"}}, {"s": 5, "t": 9, "e": "end", "d": {}},
        ]  # fmt: skip
        (place.journals / "0001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
        (place.output / "value.json").write_text('{"step": 5}')
        (place.output / "model.pt").write_bytes(b"weights" * (number + 1))
        write_outcome(place, Outcome(status=Status.DONE, attempt=1, step=5, finished_at=3.0, reason="read /home/me/data/x.txt"))
    file = orch.root.parent / "table.tar.gz"
    orch("export", "counting", file)
    return file


@pytest.fixture
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same archive alone, made once."""
    file = tmp_path / "table.tar.gz"
    if not _MADE:
        _MADE.append(request.getfixturevalue("finished").read_bytes())
    file.write_bytes(_MADE[0])
    return file


_MADE: list[bytes] = []


def members(file: Path) -> Members:
    with tarfile.open(file) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def packed(file: Path, content: Members, *, manifest: bytes | None = None, extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """An archive with these members and a manifest that fits them."""
    content = {name: one for name, one in content.items() if name != MANIFEST}
    facts = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in content.items()}
    text = json.dumps({"format": 1, "sweep": "counting", "files": facts}).encode() if manifest is None else manifest
    with tarfile.open(file, "w:gz") as tar:
        for name, one in {MANIFEST: text, **content}.items():
            header = tarfile.TarInfo(name)
            header.size = len(one)
            tar.addfile(header, io.BytesIO(one))
        for header in extra:
            tar.addfile(header, io.BytesIO(b"\0" * header.size))
    return file


def refused(orch: Command, file: Path, words: str) -> None:
    """An import of the file is exit 2, says why, and leaves nothing."""
    target = orch.root.parent / "new"
    before = sorted(os.listdir(orch.root.parent))
    assert words in orch("import", file, "--root", target, expect=2).err
    assert sorted(os.listdir(orch.root.parent)) == before


# --- export ----------------------------------------------------------------------------------------------------------


def test_that_exporting_twice_gives_the_same_bytes(finished: Path, orch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    again = finished.with_name("again.tar.gz")
    monkeypatch.setattr("time.time", lambda: 2e9)  # another day
    orch("export", "counting.yaml", again)
    assert again.read_bytes() == finished.read_bytes()
    assert not [name for name in os.listdir(finished.parent) if name.startswith(".")]


def test_that_an_archive_names_no_place_of_this_machine(finished: Path, orch: Command) -> None:
    content = members(finished)
    for name, one in content.items():
        for place in (str(orch.root), str(orch.root.parent), str(Path.home()), "/home/me", os.getcwd()):
            assert place.encode() not in one or name.startswith("snapshots/"), name
    assert b"read elsewhere/x.txt" in content[next(name for name in content if name.endswith("outcome.json"))]
    journal = content[next(name for name in content if name.endswith(".jsonl"))]
    assert b'"file":"elsewhere/x"' in journal
    assert b"torn" not in journal


def test_that_weights_are_packed_on_demand_alone(finished: Path, orch: Command) -> None:
    assert not [name for name in members(finished) if name.endswith(".pt")]
    orch("export", "counting", finished, "--weights")
    assert sorted(one for name, one in members(finished).items() if name.endswith(".pt")) == [b"weights", b"weightsweights"]


def test_that_a_sweep_at_work_an_unknown_one_and_a_wrong_name_are_exit_2(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, tmp_path: Path
) -> None:
    orch("submit", count_sweep())
    assert "2 runs are still queued or at work" in orch("export", "counting", tmp_path / "a.tar.gz", expect=2).err
    assert "no submitted sweep" in orch("export", "nothing", tmp_path / "a.tar.gz", expect=2).err
    assert ".tar.gz" in orch("export", "counting", tmp_path / "a.zip", expect=2).err
    assert not list(tmp_path.glob("*a.*"))


def test_that_paths_in_texts_become_their_last_part() -> None:
    found = without_paths({"a": "/data/my files/coco", "b": ["no /a/b/c.txt, [/d/e]", "eval/x", "http://a.b/c/d"], "/k/l/m": 1})
    assert found == {"a": "elsewhere/coco", "b": ["no elsewhere/c.txt, [elsewhere/e]", "eval/x", "http://a.b/c/d"], "/k/l/m": 1}
    assert without_paths("in /my root/x!", ["/my root"]) == "in elsewhere/x!"
    assert definition_without_paths("set: [data.path=/s/u/coco, a=b] # x/y") == "set: [data.path=elsewhere/coco, a=b] # x/y"
    untouched = b'{"s": 1,  "m": {"train/loss": 1e-3}}\n'
    assert journal_without_paths(untouched + b"{") == untouched


# --- import ----------------------------------------------------------------------------------------------------------


def test_that_an_imported_root_has_the_same_runs_and_sources(finished: Path, orch: Command) -> None:
    before = orch.runs()
    target = finished.parent / "new"
    assert "imported counting" in orch("import", finished, "--root", target).out
    elsewhere = Command(root=target, capture=orch.capture, patch=orch.patch)
    found = elsewhere.runs("counting")
    assert {run: one["state"] for run, one in found.items()} == dict.fromkeys(before, "done")
    content = members(finished)
    for name, one in content.items():
        place = target / name if "/" in name else target / "imported" / name
        assert place.read_bytes() == one
    run = next(iter(found))
    assert (Root(target).run_dir(run).code / "jobs" / "count.py").is_file()
    again = finished.with_name("again.tar.gz")
    elsewhere("export", "counting", again)
    same = {name for name, one in members(again).items() if one == content.get(name)}
    assert set(content) - same <= {"record.json", MANIFEST}  # which hold the time of the import


def test_that_the_table_of_an_imported_root_has_the_same_bytes(
    finished: Path, orch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    target = finished.parent / "new"
    orch("import", finished, "--root", target)
    elsewhere = Command(root=target, capture=orch.capture, patch=orch.patch)
    content = members(finished)
    for style in ("md", "csv", "json"):
        known = ("--no-ship",) if style != "md" else ()
        here = orch("table", "counting", "--format", style, *known).out
        assert elsewhere("table", "counting", "--format", style, *known).out == here
        assert content[f"table.{style}"].decode() == here
    assert "10" in here or "11" in here


def test_that_an_imported_root_knows_what_its_runs_used_and_how_long_they_were_queued(finished: Path, orch: Command) -> None:
    target = finished.parent / "new"
    orch("import", finished, "--root", target)
    elsewhere = Command(root=target, capture=orch.capture, patch=orch.patch)
    here = {run: one["usage"] for run, one in orch.runs().items()}
    assert {run: one["usage"] for run, one in elsewhere.runs().items()} == here
    assert all(one["queued_seconds"] > 50 for one in here.values())  # of which a journal knows nothing


def test_that_an_archive_from_before_anybody_counted_time_is_read(finished: Path, orch: Command) -> None:
    content = members(finished)
    told = json.loads(content["record.json"])
    for run in told["runs"]:
        del run["usage"]
    older = packed(finished.with_name("older.tar.gz"), content | {"record.json": json.dumps(told).encode()})
    target = finished.parent / "new"
    orch("import", older, "--root", target)
    elsewhere = Command(root=target, capture=orch.capture, patch=orch.patch)
    assert [one["usage"]["queued_seconds"] for one in elsewhere.runs().values()] == [0.0, 0.0]  # from the journals alone


@pytest.mark.parametrize("usage", [7, [], {"gpus": {}}, {"gpus": {"productive_ms": -1}, "tasks": {}, "queued_ms": 0}], ids=str)
def test_that_an_archive_whose_runs_used_no_time_that_there_is_is_refused(usage: Any, archive: Path, orch: Command) -> None:
    content = members(archive)
    told = json.loads(content["record.json"])
    told["runs"][0]["usage"] = usage
    refused(orch, packed(archive, content | {"record.json": json.dumps(told).encode()}), "its record cannot be read")


def test_that_an_import_needs_a_root_of_its_own(finished: Path, orch: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in orch.root.rglob("*")}
    assert "a root of its own" in orch("import", finished, expect=2).err
    assert {path: path.stat().st_mtime_ns for path in orch.root.rglob("*")} == before


@pytest.mark.parametrize("moment", ["_store", "_build", "_build_run", "tree_hash"])
def test_that_an_interrupted_import_leaves_nothing(
    moment: str, archive: Path, orch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, before = archive.parent / "new", sorted(os.listdir(archive.parent))
    calls: list[int] = []
    real: Callable[..., Any] = getattr(importing, moment)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        real(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        importing.import_archive(archive, Root(target))
    assert calls
    assert sorted(os.listdir(archive.parent)) == before


def test_that_what_a_killed_import_left_is_cleared_by_the_next_one(archive: Path, orch: Command) -> None:
    left = archive.parent / ".new.importing"
    (left / "runs").mkdir(parents=True)
    (left / "runs" / "rubbish").write_text("x")
    orch("import", archive, "--root", archive.parent / "new")
    assert not left.exists()
    assert not (archive.parent / "new" / "runs" / "rubbish").exists()


# --- archives of strangers -------------------------------------------------------------------------------------------

BAD_NAMES = (
    "/etc/passwd", "../x", "runs/../../x", "runs/a/../b/spec.json", "runs/..", "snapshots/ab/jobs/../../x", "runs/a/logs/x.log",
    "orch.db", "site.json", "runs/a/output/model.pt/x", "snapshots/ab/x.py", "snapshots/ab/jobs/.hidden", "runs/a/code", "",
    "runs//spec.json", "runs/a\\b/spec.json", "runs/a\n/spec.json", "record.json\n", "mlflow.db", "runs/é/spec.json",
)  # fmt: skip


def test_that_a_name_outside_the_layout_is_refused(archive: Path, orch: Command) -> None:
    content = members(archive)
    for name in BAD_NAMES:
        assert not legal(name)
        refused(orch, packed(archive, content | {name: b"x"}), "names a file that no archive has")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE],
    ids=["sym", "hard", "dir", "fifo", "chr"],
)
def test_that_an_entry_that_is_no_plain_file_is_refused(kind: bytes, archive: Path, orch: Command) -> None:
    content = members(archive)
    victim = next(name for name in content if name.endswith("outcome.json"))
    facts = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in content.items()}
    facts[victim]["bytes"] = 0
    header = tarfile.TarInfo(victim)
    header.type, header.linkname = kind, "/etc/passwd"
    del content[victim]
    content.pop(MANIFEST)
    text = json.dumps({"format": 1, "sweep": "counting", "files": {k: v for k, v in facts.items() if k != MANIFEST}}).encode()
    refused(orch, packed(archive, content, manifest=text, extra=(header,)), "no plain file")


def test_that_a_file_that_is_not_in_the_manifest_or_comes_twice_is_refused(archive: Path, orch: Command) -> None:
    content = members(archive)
    content.pop(MANIFEST)
    for name in ("../../x", "/tmp/x", next(iter(content)), MANIFEST):
        refused(orch, packed(archive, content, extra=(tarfile.TarInfo(name),)), "not in its manifest, or comes twice")


def test_that_a_changed_a_longer_and_a_missing_file_are_refused(archive: Path, orch: Command) -> None:
    content = members(archive)
    manifest = content.pop(MANIFEST)
    victim = next(name for name in content if name.endswith("value.json"))
    refused(orch, packed(archive, content | {victim: b'{"step": 6}'}, manifest=manifest), "checksum")
    refused(orch, packed(archive, content | {victim: b'{"step": 55}'}, manifest=manifest), "of the size that its manifest says")
    del content[victim]
    refused(orch, packed(archive, content, manifest=manifest), "lacks 1 files")


def test_that_a_header_cannot_make_an_import_unpack_or_remember_more_than_the_manifest_says(archive: Path, orch: Command) -> None:
    content = members(archive)
    manifest = content.pop(MANIFEST)
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo(MANIFEST)
        header.size, header.pax_headers = len(manifest), {"comment": "0" * (8 << 20)}
        tar.addfile(header, io.BytesIO(manifest))
    refused(orch, archive, "does not begin with its manifest")
    for size in (1 << 40, -512):
        header = tarfile.TarInfo(MANIFEST)
        header.size = size
        archive.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"0" * 10_000))
        refused(orch, archive, "does not begin with its manifest")
    with tarfile.open(archive, "w:gz") as tar:
        for name, one in {MANIFEST: manifest, "record.json": content["record.json"] + b" " * (8 << 20)}.items():
            header = tarfile.TarInfo(name)
            header.size = len(one)
            tar.addfile(header, io.BytesIO(one))
    refused(orch, archive, "of the size that its manifest says")


def test_that_a_manifest_that_claims_more_than_the_disk_has_is_refused(archive: Path, orch: Command) -> None:
    content = members(archive)
    raw = json.loads(content.pop(MANIFEST))
    raw["files"]["record.json"]["bytes"] = 1 << 60
    refused(orch, packed(archive, content, manifest=json.dumps(raw).encode()), "there is room for")


def test_that_a_cut_file_and_other_files_are_refused(archive: Path, orch: Command) -> None:
    whole = archive.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-2000],
        b"",
        b"PK\x03\x04",
        gzip.compress(b"x" * 5000),
        whole[:40] + b"\0" * 9999,
    ):
        archive.write_bytes(content)
        refused(orch, archive, "is no archive of `orch export`, or is damaged")


def test_that_a_changed_code_snapshot_is_refused_even_if_the_manifest_fits(archive: Path, orch: Command) -> None:
    content = members(archive)
    content.pop(MANIFEST)
    name = next(name for name in content if name.endswith("jobs/count.py"))
    refused(
        orch, packed(archive, content | {name: content[name] + b"\nimport os\n"}), "not the one that its runs were frozen with"
    )


def test_that_a_record_that_does_not_fit_is_refused(archive: Path, orch: Command) -> None:
    content = members(archive)
    content.pop(MANIFEST)
    record = json.loads(content["record.json"])
    run = record["runs"][0]
    bad: list[dict[str, Any]] = [
        record | {"runs": record["runs"][1:]},
        record | {"runs": [run | {"state": "running"}, *record["runs"][1:]]},
        record | {"runs": [run | {"id": "../x"}, *record["runs"][1:]]},
        record | {"runs": [run | {"code_tree": "../../etc"}, *record["runs"][1:]]},
        record | {"runs": [run | {"needs": {"train": "../../x"}}, *record["runs"][1:]]},
        record | {"name": "other"},
        {},
    ]
    for one in bad:
        refused(orch, packed(archive, content | {"record.json": json.dumps(one).encode()}), "damaged")
    refused(orch, packed(archive, content | {"record.json": b"[" * 100_000}), "damaged")


def test_that_odd_manifests_are_errors_in_words() -> None:
    whole = {
        "format": 1,
        "sweep": "s",
        "files": {name: {"bytes": 1, "sha256": "0" * 64} for name in ("record.json", "sweep.yaml", "sweep.json")},
    }
    assert read_manifest(json.dumps(whole)).total_bytes == 3
    for change in (
        {"format": 2}, {"sweep": 3}, {"sweep": ""}, {"files": []}, {"files": {}}, {"files": whole["files"] | {"table.md": 3}},  # type: ignore[operator]
        {"files": whole["files"] | {"table.md": {"bytes": -1, "sha256": "0" * 64}}},  # type: ignore[operator]
        {"files": whole["files"] | {"table.md": {"bytes": True, "sha256": "0" * 64}}},  # type: ignore[operator]
        {"files": whole["files"] | {"table.md": {"bytes": 1, "sha256": "x"}}},  # type: ignore[operator]
    ):  # fmt: skip
        with pytest.raises(UserError):
            read_manifest(json.dumps(whole | change))
    for text in ("", "[]", "3", "null", "[" * 100_000, "{"):
        with pytest.raises(UserError):
            read_manifest(text)


def test_that_the_store_of_an_imported_root_is_no_ones_but_its_own(archive: Path, orch: Command) -> None:
    orch("import", archive, "--root", archive.parent / "new")
    store = Store(Root(archive.parent / "new").store)
    assert {(record.job, record.token) for record in store.runs().values()} == {("", "")}
    store.close()
