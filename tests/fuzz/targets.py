"""What is fuzzed: each target makes a corpus with the project's own writers, and reads bytes with the project's own readers.

A reader may refuse with the errors that its docstring names, and with nothing else.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.contract import Attempt, Outcome, RunDir, Status, claim, manifest_problem, read_attempts, read_outcome, write_outcome
from jobs.data.clips_files import scene_names
from jobs.data.clips_scene import read_scene
from jobs.data.clips_writer import write_clips
from jobs.data.coco_annotations import read_annotations, read_images
from jobs.data.errors import DataError, Place
from jobs.data.example import byte_strings, parse_example
from jobs.data.inflate import GzipReader
from jobs.data.movi import open_movi
from jobs.data.multi_dsprites import RecordShape, decode, encode, label_map
from jobs.data.part_files import Layout, numbers
from jobs.data.pascal_part import read_annotation
from jobs.data.sprites import generate
from jobs.data.store import Manifest, read_manifest
from jobs.data.tfrecord import CRC, LENGTH, frame, masked_crc, read_records, write_records
from jobs.data_spec import RecordRange, SpriteGeneratorSpec, ToyClevrSpec, VideoFilesSpec
from jobs.journal import JournalWriter, last_entry, read_attempt, read_journal
from jobs.times import read_times
from orchestrator.errors import UserError
from orchestrator.goodput import in_seconds, usage_of
from orchestrator.slurm import parse
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.tracking.points import covered_points
from tests.fuzz.mutate import mutated

REPOSITORY = Path(__file__).parents[2]
ANSWERS = REPOSITORY / "tests" / "orchestrator" / "slurm" / "answers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One reader under test."""

    name: str
    corpus: Callable[[Path], Sequence[bytes]]
    """Given an empty folder: whole inputs that are read without complaint."""
    read: Callable[[bytes, Path], object]
    """Given an input and a folder for the file that holds it."""
    allowed: tuple[type[Exception], ...]
    change: Callable[[random.Random, Sequence[bytes]], bytes] = mutated


# --- sweeps ----------------------------------------------------------------------------------------------------------------


def _sweeps(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((REPOSITORY / "sweeps").glob("*.yaml"))]


def _read_sweep(data: bytes, folder: Path) -> None:
    from orchestrator.sweep.document import read_text

    path = folder / "fuzzed.yaml"
    path.write_bytes(data)
    sweep = parse_sweep(read_text(path), str(path))
    if np.prod([len(axis.options) for axis in sweep.axes.values()], dtype=float) <= 200:
        expand(sweep)


# --- run directories -------------------------------------------------------------------------------------------------------


def _journals(folder: Path) -> list[bytes]:
    made = []
    for attempt, (restored, steps) in enumerate([(0, 0), (0, 12), (10, 25)], start=1):
        writer = JournalWriter(folder, attempt=attempt, restored_step=restored)
        for step in range(restored + 1, steps + 1):
            writer.metrics(step, {"train/loss": 1.0 / step, "train/grad_norm": float("nan") if step == 7 else 2.5})
            if step % 5 == 0:
                writer.event(step, "checkpoint", bytes=1 << 20, note='a "quoted" é')
        writer.event(steps, "end")
        writer.close()
        made.append((folder / f"{attempt:04d}.jsonl").read_bytes())
    return made


def _read_journal(data: bytes, folder: Path) -> None:
    path = folder / "0001.jsonl"
    path.write_bytes(data)
    read_attempt(path)
    found = read_journal(folder)
    covered_points(found, from_step=0)
    last = last_entry(folder)
    if last is not None:
        dict(last.metrics), dict(last.detail)  # as the readers use them
    run_dir = RunDir(folder / "run")
    run_dir.journals.mkdir(parents=True, exist_ok=True)
    (run_dir.journals / "0001.jsonl").write_bytes(data)
    if not run_dir.attempts.exists():
        claim(run_dir, Attempt(number=0, claimant="c", started_at=1e9))
    in_seconds(usage_of(read_times(run_dir), [], with_gpus=False))


def _run_files(folder: Path) -> list[bytes]:
    run_dir = RunDir(folder)
    claim(run_dir, Attempt(number=0, claimant="c", token="t", job_id="12_3", node="n1"))
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=1, step=7, values={"eval/x": 1.0}, files={"output/a": 3}))
    return [run_dir.outcome.read_bytes(), (run_dir.attempts / "0001.json").read_bytes()]


def _read_run_files(data: bytes, folder: Path) -> None:
    run_dir = RunDir(folder)
    run_dir.attempts.mkdir(exist_ok=True)
    run_dir.outcome.write_bytes(data)
    (run_dir.attempts / "0001.json").write_bytes(data)
    read_outcome(run_dir)
    manifest_problem(run_dir)
    max(attempt.number for attempt in read_attempts(run_dir))
    in_seconds(usage_of(read_times(run_dir), [1], with_gpus=True))
    for attempt in read_attempts(run_dir):
        min(attempt.restart_count, 1), attempt.job_id.partition("_"), attempt.started_at + 1.0  # as the readers use them


# --- Slurm -----------------------------------------------------------------------------------------------------------------

PARSERS: tuple[Callable[[str], object], ...] = (
    parse.parse_queue, parse.parse_history, parse.parse_jobs, parse.parse_config, parse.parse_partitions, parse.parse_nodes,
    parse.parse_qos, parse.parse_max_submit, parse.parse_fields, parse.parse_time, parse.parse_duration_s, parse.count_gpus,
)  # fmt: skip


def _slurm_answers(_: Path) -> list[bytes]:
    made = [path.read_bytes() for path in sorted(ANSWERS.glob("*.txt"))]
    several = parse.SEPARATOR.join(
        ("12_[0-3,7%2]", "PENDING", "0:0", "low", "None assigned", "1", "Unknown", "Unknown", "orch-x")
    )
    return [*made, several.encode(), b"low|normal|requeue|00:02:00|1000\n"]


def _read_slurm(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "replace")
    for parser in PARSERS:
        parser(text)


# --- records ---------------------------------------------------------------------------------------------------------------

SHAPE = RecordShape(resolution=8, entities=3)


def _payloads(_: Path) -> list[bytes]:
    return [encode(record) for record in generate(SpriteGeneratorSpec(seed=1, resolution=8, max_sprites=2), first=0, count=4)]


def _gzip_files(folder: Path) -> list[bytes]:
    made = []
    for level in (0, 9):
        stream = io.BytesIO()
        write_records(stream, _payloads(folder), level=level)
        made.append(stream.getvalue())
    return made


def _read_gzip(data: bytes, _: Path) -> None:
    for payload in read_records(io.BytesIO(data), name="fuzzed"):
        label_map(decode(payload, shape=SHAPE, place=Place(file="fuzzed")))


def _framed(folder: Path) -> list[bytes]:
    return [b"".join(map(frame, _payloads(folder)))]


def _change_framed(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Also lengths that carry a right checksum: up to 2**64 - 1 bytes, in a file of a few hundred."""
    data = bytearray(rng.choice(corpus))
    if rng.random() < 0.3:
        at = 0
        for _ in range(rng.randrange(4)):
            at += LENGTH.size + 2 * CRC.size + LENGTH.unpack_from(data, at)[0]
        length = LENGTH.pack(rng.choice((0, 1, 2**16, 2**28, 2**28 + 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)))
        data[at : at + LENGTH.size + CRC.size] = length + CRC.pack(masked_crc(length))
        return bytes(data)
    return mutated(rng, corpus)


def _read_framed(data: bytes, folder: Path) -> None:
    _read_gzip(gzip.compress(data, compresslevel=1), folder)


def _read_payload(data: bytes, folder: Path) -> None:
    features = parse_example(data, place=Place(file="fuzzed"))
    for name, feature in features.items():
        try:
            byte_strings(feature, name=name, place=Place(file="fuzzed"))
        except DataError:
            continue
    _read_framed(frame(data), folder)


def _read_inflated(data: bytes, _: Path) -> None:
    reader = GzipReader(io.BytesIO(data), name="fuzzed")
    while reader.skip(1 << 16):
        pass
    GzipReader(io.BytesIO(data), name="fuzzed").read(1 << 40)


# --- MOVi ------------------------------------------------------------------------------------------------------------------

FRAMES = 3
MOVI = VideoFilesSpec.model_validate(
    {"path": "/nowhere", "format": "movi", "max_objects": 10, "video_frames": FRAMES, "resolution": 16}
)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _movi(_: Path) -> list[bytes]:
    ramp = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    lists = {"video": [_png(np.stack([ramp] * 3, axis=-1))] * FRAMES, "segmentations": [_png(ramp % 4)] * FRAMES}
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, _field(1, b"".join(_field(1, one) for one in values))))
        for name, values in lists.items()
    ]
    return [_field(1, b"".join(entries))]


def _read_movi(data: bytes, folder: Path) -> None:
    """The payload behind right checksums, and the bytes as they are, as a shard."""
    for content in (frame(data), data):
        (folder / "movi_a-train.tfrecord-00000-of-00001").write_bytes(content)
        try:
            videos = open_movi(MOVI.model_copy(update={"path": str(folder)}), "train")
            if videos.count:
                videos.read(np.zeros(1, np.int64), np.arange(FRAMES)[None])
        except DataError:
            continue


# --- lists and scenes ------------------------------------------------------------------------------------------------------


def _scenes(folder: Path) -> list[bytes]:
    rows = RecordRange(first=0, count=2)
    write_clips(ToyClevrSpec(seed=1, resolution=32, train=rows, test=RecordRange(first=2, count=1)), folder, form="frames")
    return [path.read_bytes() for path in (*sorted((folder / "scenes").glob("*.json")), folder / "train_annos.json")]


def _read_scene(data: bytes, folder: Path) -> None:
    path = folder / "train_annos.json"
    path.write_bytes(data)
    for read in (lambda: read_scene(path), lambda: scene_names(folder, "train")):
        try:
            read()
        except DataError:
            continue


COCO = {
    "info": {"note": 'a "quoted" { brace'},
    "images": [
        {"id": 9, "file_name": "9.jpg", "height": 10, "width": 12},
        {"id": 4, "file_name": "4.jpg", "height": 8, "width": 8},
    ],
    "annotations": [
        {"id": 31, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": [[0, 0, 5, 0, 5, 5]]},
        {"id": 7, "image_id": 9, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [120], "size": [10, 12]}},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}


def _read_coco(data: bytes, folder: Path) -> None:

    path = folder / "instances.json"
    path.write_bytes(data)
    for read in (read_images, read_annotations):
        try:
            read(path)
        except DataError:
            continue


def _lists(_: Path) -> list[bytes]:
    return [b"1 20.0 10.0 40.0 20.0\n2 10.0 10.0 30.0 40.0\n", b"000001.jpg 20 15 -32 2e1\r\n", b"7\t0 0 0 0\n\n"]


def _read_list(data: bytes, folder: Path) -> None:
    path = folder / "list.txt"
    path.write_bytes(data)
    for line, row in enumerate(Layout(expected="a list", hint="").rows(path), start=1):
        numbers(path, line, row[1:], count=4, expected="4 numbers")


def _mats(folder: Path) -> list[bytes]:
    from scipy.io import savemat

    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    parts = np.empty((1, 1), dtype=[("part_name", object), ("mask", object)])
    parts[0, 0] = ("head", mask)
    objects = np.empty((1, 1), dtype=[("class", object), ("mask", object), ("parts", object)])
    objects[0, 0] = ("horse", mask, parts)
    made = []
    for compressed in (True, False):
        savemat(folder / "a.mat", {"anno": {"imname": "a", "objects": objects}}, do_compression=compressed)
        made.append((folder / "a.mat").read_bytes())
    return made


def _read_mat(data: bytes, folder: Path) -> None:
    path = folder / "a.mat"
    path.write_bytes(data)
    read_annotation(path)


def _manifests(_: Path) -> list[bytes]:
    facts = {"train/images.npy": {"bytes": 3, "sha256": "0" * 64}}
    made = {"resolution": 8, "entities": 3, "counts": {"train": 2, "test": 1}, "source": {"kind": "fuzz"}, "files": facts}
    return [Manifest.model_validate(made).model_dump_json().encode()]


def _read_manifest(data: bytes, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(data)
    read_manifest(path, Manifest).arrays()


TARGETS: tuple[Target, ...] = (
    Target(name="sweep", corpus=_sweeps, read=_read_sweep, allowed=(UserError,)),
    Target(name="journal", corpus=_journals, read=_read_journal, allowed=()),
    Target(name="run_files", corpus=_run_files, read=_read_run_files, allowed=()),
    Target(name="slurm", corpus=_slurm_answers, read=_read_slurm, allowed=()),
    Target(name="gzip", corpus=_gzip_files, read=_read_gzip, allowed=(DataError,)),
    Target(name="inflate", corpus=_gzip_files, read=_read_inflated, allowed=(DataError,)),
    Target(name="frames", corpus=_framed, read=_read_framed, allowed=(DataError,), change=_change_framed),
    Target(name="example", corpus=_payloads, read=_read_payload, allowed=(DataError,)),
    Target(name="movi", corpus=_movi, read=_read_movi, allowed=()),
    Target(name="scene", corpus=_scenes, read=_read_scene, allowed=()),
    Target(name="coco", corpus=lambda _: [json.dumps(COCO).encode()], read=_read_coco, allowed=()),
    Target(name="lists", corpus=_lists, read=_read_list, allowed=(DataError,)),
    Target(name="mat", corpus=_mats, read=_read_mat, allowed=(DataError,)),
    Target(name="manifest", corpus=_manifests, read=_read_manifest, allowed=(DataError,)),
)
