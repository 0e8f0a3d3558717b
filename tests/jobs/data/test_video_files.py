"""Videos on disk: the pixels of the wanted frames whatever the codec, with or without masks, and errors that name the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.data.clips_media import write_frames, write_video
from jobs.data.errors import DataError
from jobs.data.toy_video import open_toy_video
from jobs.data.video_files import check_videos, open_videos, videos_content_hash
from jobs.data.video_media import read_frames
from jobs.data_spec import ToyVideoSpec, VideoFilesSpec

FRAMES = 30
TOY = ToyVideoSpec(video_frames=FRAMES, resolution=64)


@pytest.fixture(scope="module")
def toy() -> tuple[np.ndarray, np.ndarray]:
    """Images [3, F, 64, 64, 3] and masks of three videos."""
    batch = open_toy_video(TOY).train.read(np.arange(3), np.tile(np.arange(FRAMES), (3, 1)))
    assert batch.labels_BTSS is not None
    return batch.images_BTSS3, batch.labels_BTSS


@pytest.fixture
def folder(toy: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    """Two training videos, one of them as frames, and one test video, all with masks."""
    images, labels = toy
    for split, videos in (("train", (0, 1)), ("test", (2,))):
        (tmp_path / split / "images").mkdir(parents=True)
        for video in videos:
            write_frames(tmp_path / split / "masks" / f"v{video}", labels[video])
    write_video(tmp_path / "train/images/v0.mkv", images[0], codec="ffv1")
    write_frames(tmp_path / "train/images/v1", images[1])
    write_video(tmp_path / "test/images/v2.mkv", images[2], codec="ffv1")
    return tmp_path


def spec(folder: Path, **changes: object) -> VideoFilesSpec:
    return VideoFilesSpec.model_validate({"path": str(folder), "video_frames": FRAMES, **changes})


def everything(path: Path, **changes: object) -> None:
    """Read all training videos as a whole."""
    videos = open_videos(spec(path, **changes)).train
    videos.read(np.arange(videos.count), np.tile(np.arange(videos.video_frames), (videos.count, 1)))


def coded(path: Path, images: np.ndarray, codec: str, *, gop: int, b_frames: int) -> None:
    """A video whose frames are coded from their neighbours, some out of order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def decoded_from_the_start(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_that_frames_and_masks_come_back_exactly(folder: Path, toy: tuple[np.ndarray, np.ndarray]) -> None:
    data = open_videos(spec(folder))
    assert (data.train.count, data.test.count, data.train.num_labels) == (2, 1, 24)
    frames = np.array([[3, 7, 8], [0, 12, 29]])
    batch = data.train.read(np.array([1, 0]), frames)
    for row, video in enumerate((1, 0)):
        assert np.array_equal(batch.images_BTSS3[row], toy[0][video, frames[row]])
        assert np.array_equal(np.asarray(batch.labels_BTSS)[row], toy[1][video, frames[row]])
    test = data.test.read(np.array([0]), frames[:1])
    assert np.array_equal(test.images_BTSS3[0], toy[0][2, frames[0]])


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
@pytest.mark.parametrize(("codec", "gop", "b_frames"), [("mpeg4", 7, 0), ("mpeg4", 7, 2), ("mpeg4", 1000, 0), ("libx264", 8, 3)])
def test_that_any_window_equals_decoding_from_the_start(
    tmp_path: Path, toy: tuple[np.ndarray, np.ndarray], suffix: str, codec: str, gop: int, b_frames: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = tmp_path / f"v.{suffix}"
    coded(path, toy[0][0], codec, gop=gop, b_frames=b_frames)
    whole = decoded_from_the_start(path)
    assert len(whole) == FRAMES
    for start in (0, 5, 6, 7, 8, 15, 22, 27):
        wanted = [start, start + 1, start + 2]
        found = read_frames(path, wanted, video_frames=FRAMES)
        assert all(np.array_equal(one, whole[frame]) for one, frame in zip(found, wanted, strict=True)), start


def test_that_a_late_window_does_not_decode_what_lies_before(
    tmp_path: Path, toy: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.data import video_media

    path = tmp_path / "v.mkv"
    coded(path, toy[0][0], "mpeg4", gop=10, b_frames=0)
    fed = []
    real = video_media.decode_packets

    def counted(context: object, packets: list[object]) -> object:
        fed.append(len(packets))
        return real(context, packets)  # type: ignore[arg-type]

    monkeypatch.setattr(video_media, "decode_packets", counted)
    read_frames(path, [21, 22], video_frames=FRAMES)
    assert fed == [10]


def test_that_frames_are_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((FRAMES, 40, 80, 3), np.uint8)
    wide[:, :, 20:60] = 200
    masks = (wide[..., 0] > 0).astype(np.uint8) * 4
    for split in ("train", "test"):
        write_frames(tmp_path / split / "images" / "v", wide)
        write_frames(tmp_path / split / "masks" / "v", masks)
    batch = open_videos(spec(tmp_path, resolution=20)).train.read(np.array([0]), np.array([[0, 29]]))
    assert batch.images_BTSS3.shape == (1, 2, 20, 20, 3)
    assert (batch.images_BTSS3[:, :, :, 2:-2] == 200).all()
    assert (np.asarray(batch.labels_BTSS) == 4).all()


def test_that_resized_masks_hold_no_new_numbers(folder: Path, toy: tuple[np.ndarray, np.ndarray]) -> None:
    shutil.rmtree(folder / "train/masks/v0")
    write_frames(folder / "train/masks/v0", 4 * toy[1][0])
    batch = open_videos(spec(folder, resolution=24)).train.read(np.array([0]), np.arange(FRAMES)[None])
    assert set(np.unique(batch.labels_BTSS)) <= set(range(0, 24, 4))


def test_that_a_video_file_that_is_too_short_is_named(folder: Path, toy: tuple[np.ndarray, np.ndarray]) -> None:
    write_video(folder / "train/images/v0.mkv", toy[0][0, :-1], codec="ffv1")
    with pytest.raises(DataError, match=r"v0\.mkv: holds 29 frames\n.*at least 30"):
        open_videos(spec(folder)).train.read(np.array([0]), np.array([[0, 1]]))


def test_that_videos_without_masks_are_welcome(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "masks")
    videos = open_videos(spec(folder)).train
    assert not videos.has_labels
    assert videos.num_labels == 1
    assert videos.read(np.array([0]), np.array([[0]])).labels_BTSS is None


def test_that_frames_are_in_the_order_of_their_numbers(folder: Path, toy: tuple[np.ndarray, np.ndarray]) -> None:
    for place in (folder / "train/images/v1", folder / "train/masks/v1"):
        for path in place.iterdir():
            path.rename(path.with_name(f"frame_{int(path.stem)}.png"))
    batch = open_videos(spec(folder)).train.read(np.array([1]), np.array([[1, 2, 10, 20]]))
    assert np.array_equal(batch.images_BTSS3[0], toy[0][1, [1, 2, 10, 20]])
    assert np.array_equal(np.asarray(batch.labels_BTSS)[0], toy[1][1, [1, 2, 10, 20]])


def test_that_a_longer_video_is_cut_off(folder: Path) -> None:
    videos = open_videos(spec(folder, video_frames=10)).train
    videos.read(np.array([0, 1]), np.array([[9], [9]]))
    with pytest.raises(IndexError, match="frame 10 does not exist; there are 10"):
        videos.read(np.array([0]), np.array([[10]]))


def remove_video(folder: Path) -> None:
    (folder / "train/images/v0.mkv").unlink()


def no_split(folder: Path) -> None:
    shutil.rmtree(folder / "test")


def empty_split(folder: Path) -> None:
    shutil.rmtree(folder / "test/images")
    (folder / "test/images").mkdir()


def no_video_inside(folder: Path) -> None:
    (folder / "train/images/v0.mkv").write_bytes(b"nothing of the kind" * 100)


def cut_off(folder: Path) -> None:
    path = folder / "train/images/v0.mkv"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def short_folder(folder: Path) -> None:
    (folder / "train/images/v1/0029.png").unlink()


def short_masks(folder: Path) -> None:
    (folder / "train/masks/v0/0011.png").unlink()


def shifted_masks(folder: Path) -> None:
    """One is missing, and another behind the end makes up the number."""
    (folder / "train/masks/v1/0011.png").rename(folder / "train/masks/v1/0030.png")


def shifted_masks_of_a_file(folder: Path) -> None:
    (folder / "train/masks/v0/0011.png").rename(folder / "train/masks/v0/0030.png")


def missing_masks(folder: Path) -> None:
    shutil.rmtree(folder / "train/masks/v0")


def other_size(folder: Path) -> None:
    Image.new("RGB", (64, 48)).save(folder / "train/images/v1/0007.png")


def other_mask_size(folder: Path) -> None:
    for path in (folder / "train/masks/v1").iterdir():
        Image.new("L", (32, 64)).save(path)


def one_other_mask_size(folder: Path) -> None:
    Image.new("L", (32, 64)).save(folder / "train/masks/v1/0003.png")


def colored_mask(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "train/masks/v1/0003.png")


def large_number(folder: Path) -> None:
    Image.new("L", (64, 64), 24).save(folder / "train/masks/v1/0003.png")


def broken_image(folder: Path) -> None:
    (folder / "train/images/v1/0003.png").write_bytes(b"\x89PNG no more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_split, r"test/images: no such folder\n.*expected: train/images/NAME.mp4"),
        (empty_split, "test/images: holds no videos"),
        (no_video_inside, "v0.mkv: cannot be decoded"),
        (cut_off, "v0.mkv: (holds [0-9]+ frames|cannot be decoded|frame [0-9]+)"),
        (short_folder, r"images/v1: holds 29 frames\n.*at least 30 \(data.video_frames\)\n.*shortest video"),
        (short_masks, "masks/v0: holds 29 frames"),
        (
            shifted_masks,
            r"masks/v1: mask 0012.png stands where that of frame 11 should\n.*the name of its frame, 0011\n.*missing",
        ),
        (shifted_masks_of_a_file, r"masks/v0: mask 0012.png stands where that of frame 11 should\n.*number 11: consecutive"),
        (missing_masks, r"train/masks: no masks of v0 \(1 of 2 videos have none\)"),
        (other_size, "v1: frames differ in size: 64 x 48, 64 x 64 pixels"),
        (other_mask_size, "masks/v1: masks are 32 x 64 pixels, frames 64 x 64"),
        (one_other_mask_size, "masks/v1: masks are 32 x 64, 64 x 64 pixels, frames 64 x 64"),
        (colored_mask, r"masks/v1/0003.png: its pixels are RGB"),
        (large_number, r"masks/v1: a mask holds object 24\n.*0 \(background\) .. 23"),
        (broken_image, "images/v1/0003.png: cannot be read"),
    ],
)
def test_that_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    everything(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        everything(folder)


def test_that_a_video_that_vanishes_is_named(folder: Path) -> None:
    videos = open_videos(spec(folder)).train
    remove_video(folder)
    with pytest.raises(DataError, match=r"v0\.mkv: no such file"):
        videos.read(np.array([0]), np.array([[0]]))


def test_that_damage_inside_a_video_raises_nothing_but_data_errors(folder: Path) -> None:
    path = folder / "train/images/v0.mkv"
    whole = bytearray(path.read_bytes())
    errors = 0
    for at in range(0, len(whole), len(whole) // 12):
        damaged = whole.copy()
        damaged[at : at + 40] = bytes(byte ^ 0x5A for byte in damaged[at : at + 40])
        path.write_bytes(bytes(damaged))
        try:
            found = read_frames(path, list(range(FRAMES)), video_frames=FRAMES)
        except DataError:
            errors += 1
        else:
            assert np.stack(found).shape == (FRAMES, 64, 64, 3)
    assert errors > 0


def test_that_the_check_says_what_is_there(folder: Path) -> None:
    shutil.rmtree(folder / "test/masks")
    assert check_videos(spec(folder)) == [
        f"2 training videos of at least 30 frames, with masks, from {folder}",
        f"1 test videos of at least 30 frames, without masks, from {folder}",
    ]
    cut_off(folder)
    with pytest.raises(DataError, match=r"v0\.mkv"):
        check_videos(spec(folder))


def test_that_content_follows_names_and_sizes_and_not_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = videos_content_hash(spec(folder))
    moved = tmp_path_factory.mktemp("moved") / "there"
    shutil.copytree(folder, moved)
    assert videos_content_hash(spec(moved)) == before
    seen = {before}
    for damage in (short_folder, cut_off, remove_video):
        damage(moved)
        seen.add(videos_content_hash(spec(moved)))
    shutil.rmtree(moved / "test/masks")
    seen.add(videos_content_hash(spec(moved)))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": " "}, "path is empty"),
        ({"max_objects": 255}, "less than or equal to 254"),
    ],
)
def test_that_impossible_settings_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **change)
