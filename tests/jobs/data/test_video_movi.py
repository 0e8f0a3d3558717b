"""MOVi's shards, written here by the published schema: an independent protobuf writer, uncompressed TFRecords, PNG frames."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.errors import DataError
from jobs.data.tfrecord import frame
from jobs.data.toy_video import open_toy_video
from jobs.data.video_files import check_videos, open_videos, videos_content_hash
from jobs.data_spec import ToyVideoSpec, VideoFilesSpec

FRAMES, VIDEOS = 24, 5


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = b"", len(content)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def entry(name: str, values: list[bytes]) -> bytes:
    return field(1, field(1, name.encode()) + field(2, field(1, b"".join(field(1, value) for value in values))))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def example(images: np.ndarray, labels: np.ndarray, **instead: list[bytes]) -> bytes:
    features = {
        "metadata/video_name": [b"scene"],
        "video": [png(image) for image in images],
        "forward_flow": [bytes(40_000)],
        "segmentations": [png(mask) for mask in labels],
        **instead,
    }
    return field(1, b"".join(entry(name, values) for name, values in features.items() if values))


@pytest.fixture(scope="module")
def toy() -> tuple[np.ndarray, np.ndarray]:
    batch = open_toy_video(ToyVideoSpec()).train.read(np.arange(VIDEOS), np.tile(np.arange(FRAMES), (VIDEOS, 1)))
    assert batch.labels_BTSS is not None
    return batch.images_BTSS3, batch.labels_BTSS


@pytest.fixture
def folder(toy: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    """Four training videos in three shards, one of them empty, and a test video."""
    images, labels = toy
    payloads = [example(images[video], labels[video]) for video in range(VIDEOS)]
    shards = {"train": [(0, 1, 2), (), (3,)], "validation": [(4,)]}
    for split, parts in shards.items():
        for number, videos in enumerate(parts):
            path = tmp_path / f"movi_a-{split}.tfrecord-{number:05d}-of-{len(parts):05d}"
            path.write_bytes(b"".join(frame(payloads[video]) for video in videos))
    (tmp_path / "dataset_info.json").write_text("{}")
    return tmp_path


def spec(path: Path, **changes: object) -> VideoFilesSpec:
    return VideoFilesSpec.model_validate({"path": str(path), "format": "movi", "max_objects": 10, **changes})


def test_that_frames_and_masks_come_back_exactly(folder: Path, toy: tuple[np.ndarray, np.ndarray]) -> None:
    data = open_videos(spec(folder))
    assert (data.train.count, data.test.count, data.train.num_labels, data.train.has_labels) == (4, 1, 11, True)
    frames = np.array([[0, 5, 23], [1, 2, 3], [7, 8, 9]])
    batch = data.train.read(np.array([3, 0, 1]), frames)
    for row, video in enumerate((3, 0, 1)):
        assert np.array_equal(batch.images_BTSS3[row], toy[0][video, frames[row]])
        assert np.array_equal(np.asarray(batch.labels_BTSS)[row], toy[1][video, frames[row]])
    assert np.array_equal(data.test.read(np.array([0]), frames[:1]).images_BTSS3[0], toy[0][4, frames[0]])
    assert check_videos(spec(folder))[0] == f"4 training videos of at least 24 frames, with masks, from {folder}"


def test_that_content_follows_the_shards(folder: Path) -> None:
    before = videos_content_hash(spec(folder))
    (folder / "dataset_info.json").write_text("{} ")
    assert videos_content_hash(spec(folder)) == before
    with next(folder.glob("*validation*")).open("ab") as stream:
        stream.write(frame(b"more"))
    assert videos_content_hash(spec(folder)) != before


def rewritten(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "movi_a-train.tfrecord-00000-of-00003"
    path.write_bytes(change(path.read_bytes()))


def no_shards(folder: Path) -> None:
    for path in folder.glob("*train*"):
        path.unlink()


def a_missing_shard(folder: Path) -> None:
    (folder / "movi_a-train.tfrecord-00001-of-00003").unlink()


def two_variants(folder: Path) -> None:
    (folder / "movi_b-train.tfrecord-00000-of-00001").write_bytes(b"")


def cut_off(folder: Path) -> None:
    rewritten(folder, lambda whole: whole[:-5])


def head_cut_off(folder: Path) -> None:
    rewritten(folder, lambda whole: whole + struct.pack("<Q", 5))


def compressed(folder: Path) -> None:
    rewritten(folder, lambda whole: b"\x1f\x8b" + whole)


def damaged(folder: Path) -> None:
    rewritten(folder, lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])


def replaced(**instead: list[bytes]) -> Callable[[Path], None]:
    """Another first record."""

    def replace(folder: Path) -> None:
        pixels = np.zeros((FRAMES, 8, 8, 3), np.uint8)
        rewritten(folder, lambda _: frame(example(pixels, pixels[..., 0], **instead)))

    return replace


COLOR = png(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_shards, "no shards of the split `train`"),
        (a_missing_shard, "1 of 3 shards of the split `train` are missing, first number 00001"),
        (two_variants, "shards of different series"),
        (cut_off, r"00000-of-00003: record 2 at byte \d+ \(uncompressed\): payload: truncated"),
        (head_cut_off, "record 3 at byte .*: length and its checksum: truncated"),
        (compressed, r"record 0 at byte 0 .*: length: wrong checksum\n.*expected: an uncompressed TFRecord file"),
        (damaged, "record 0 at byte 0 .*: payload: wrong checksum"),
        (replaced(segmentations=[]), "no feature `segmentations`"),
        (replaced(video=[COLOR] * 23), "holds 23 frames"),
        (replaced(segmentations=[COLOR] * 24), "a frame of `segmentations` has pixels of mode RGB"),
        (replaced(video=[b"no picture"] * 24), "a frame of `video` is no image"),
        (replaced(video=[png(np.zeros((8, 9, 3), np.uint8))] * 24), "masks are 8 x 8 pixels, frames 9 x 8"),
        (replaced(segmentations=[png(np.full((8, 8), 11, np.uint8))] * 24), "a mask holds object 11"),
    ],
)
def test_that_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_videos(spec(folder)).train.read(np.array([0]), np.array([[0, 23]]))


def test_that_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_videos(spec(tmp_path / "nowhere"))
