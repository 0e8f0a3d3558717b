"""A bounded slice of the fuzzer, by number of inputs; `make fuzz` runs it for minutes. What it has found stands here by name."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from jobs.contract import RunDir, read_attempts, read_outcome
from jobs.data.clips_files import scene_names
from jobs.data.clips_media import open_image
from jobs.data.errors import DataError, Place
from jobs.data.mat_file import NotWholeError, check_mat
from jobs.data.movi import _decoded
from jobs.journal import last_entry, read_attempt
from orchestrator.slurm.parse import HISTORY_FIELDS, SEPARATOR, parse_history
from tests.fuzz.campaign import Count, attempt, limited_memory, made
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

INPUTS = {"sweep": 60, "movi": 100, "slurm": 60, "mat": 120}
"""Slower targets have fewer; the others have 200 each."""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_that_only_the_documented_errors_come_out(target: Target, tmp_path: Path) -> None:
    for name in ("corpus", "read"):
        (tmp_path / name).mkdir()
    corpus, count = target.corpus(tmp_path / "corpus"), Count()
    with limited_memory():
        for number in range(len(corpus) + INPUTS.get(target.name, 200)):
            data = made(target, corpus, seed=1, number=number)
            attempt(target, data, tmp_path / "read", count, label=f"--seed 1 --only {target.name} --at {number}")
    assert count.faults == []
    assert count.tried > len(corpus)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_that_an_unchanged_input_is_read_without_complaint(target: Target, tmp_path: Path) -> None:
    for name in ("corpus", "read"):
        (tmp_path / name).mkdir()
    for data in target.corpus(tmp_path / "corpus"):
        target.read(data, tmp_path / "read")


def test_that_an_input_depends_on_its_seed_and_number_alone() -> None:
    corpus = [b'{"s": 1, "t": 2}\n' * 5, b"x" * 50]
    target = Target(name="any", corpus=lambda _: corpus, read=lambda *_: None, allowed=())
    inputs = [made(target, corpus, seed=3, number=number) for number in range(50)]
    assert inputs == [made(target, corpus, seed=3, number=number) for number in range(50)]
    assert len({*inputs}) > 25
    assert mutated(random.Random(1), [b""]) == b""


def test_that_a_reader_that_raises_something_else_is_a_fault(tmp_path: Path) -> None:
    def read(data: bytes, _: Path) -> None:
        raise {b"a": DataError("x", place=None), b"b": IndexError("y"), b"c": MemoryError()}[data]  # type: ignore[arg-type]

    target, count = Target(name="any", corpus=lambda _: [b"a"], read=read, allowed=(DataError,)), Count()
    for data in (b"a", b"b", b"c"):
        attempt(target, data, tmp_path, count, label="here")
    assert (count.tried, count.refused) == (3, 1)
    assert [fault.split(": ")[:2] for fault in count.faults] == [["here", "IndexError"], ["here", "MemoryError"]]


@pytest.mark.parametrize(
    "line",
    [
        b'{"s": Infinity, "t": 1, "m": {}}', b'{"s": -1, "t": 1}', b'{"s": 1e30, "t": 1}', b'{"s": 1, "t": 1, "d": [1]}',
        b'{"s": 1, "t": 1, "m": {"a": 1' + b"0" * 400 + b"}}", b"[" * 50_000, b'{"s": 1, "t": NaN}',
    ],
)  # fmt: skip
def test_that_a_damaged_line_of_a_journal_is_left_out(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "0001.jsonl").write_bytes(b'{"attempt": 1, "restored": 0}\n{"s": 1, "t": 5}\n' + line + b'\n{"s": 2, "t": 6}\n')
    found = read_attempt(tmp_path / "0001.jsonl")
    assert found is not None
    assert [entry.step for entry in found.entries] == [1, 2]
    last = last_entry(tmp_path)
    assert last is not None
    assert last.step == 2


def test_that_run_files_of_another_form_are_unknown_and_no_crash(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.attempts.mkdir()
    for text in ("[" * 50_000, '{"status": "done", "attempt": Infinity}'):
        run_dir.outcome.write_text(text)
        assert read_outcome(run_dir) is None
    for text in ("[" * 50_000, '{"number": 1, "claimant": "c", "restart_count": null}', '{"number": 7, "claimant": "c"}'):
        (run_dir.attempts / "0001.json").write_text(text)
        assert [(one.number, one.claimant) for one in read_attempts(run_dir)] == [(1, "")]


def test_that_a_line_of_sacct_stands_for_a_bounded_number_of_tasks() -> None:
    rest = ["PENDING", "0:0", "low", "n", "1", "2", "3", "orch-x"]
    assert len(rest) + 1 == len(HISTORY_FIELDS)
    huge, fine = (SEPARATOR.join((tasks, *rest)) for tasks in ("7_[" + "0-3999999," * 50 + "1]", "8_[0-9]"))
    parsed = parse_history(f"{huge}\n{fine}\n")
    assert len(parsed.rows) == 10
    assert parsed.problems == (huge,)


def test_that_a_list_of_scenes_names_files_and_no_way_out_of_their_folder(tmp_path: Path) -> None:
    for name in ("../secret.json", "/etc/passwd", "..", "", "a\\u0000b"):
        (tmp_path / "train_annos.json").write_text(f'["{name}"]')
        with pytest.raises(DataError, match="not a list of names"):
            scene_names(tmp_path, "train")


@pytest.mark.parametrize(
    "damage", [(b"IDAT", b"\x09\x08\x08\x08"), (b"\0\0\0\x0dIHDR", b"\0\0\0\x02IHDR")], ids=["chunk", "head"]
)
def test_that_a_damaged_image_is_refused_whatever_pillow_raises(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 3).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue().replace(*damage))
    with pytest.raises(DataError, match="cannot be read"):
        open_image(tmp_path / "a.png", "L")
    with pytest.raises(DataError, match="no image"):
        _decoded((tmp_path / "a.png").read_bytes(), "L", name="video", place=Place(file="a"))


def test_that_damage_that_crashes_scipy_is_refused_before_scipy_sees_it(tmp_path: Path) -> None:
    mat = next(target for target in TARGETS if target.name == "mat")
    for content in mat.corpus(tmp_path):
        check_mat(content)
    plain = bytearray(mat.corpus(tmp_path)[1])
    plain[256] = 8  # an element of a type that the format does not have
    with pytest.raises(NotWholeError, match="1 bytes of type 8"):
        check_mat(bytes(plain))
