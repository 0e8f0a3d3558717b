"""Clips on disk: what the toy renderer wrote comes back, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.data import clips_media
from jobs.data.clips import check_clips, open_clips, square
from jobs.data.clips_actions import COLORS, FRAMES, NOT_NAMED, SHAPES
from jobs.data.clips_files import clips_content_hash
from jobs.data.clips_media import write_video
from jobs.data.clips_writer import Form, write_clips
from jobs.data.errors import DataError
from jobs.data.toy_clevr import open_toy_clevr
from jobs.data_spec import ClipsSpec, RecordRange, ToyClevrSpec

SPEC = ToyClevrSpec(seed=1, resolution=32, train=RecordRange(first=0, count=6), test=RecordRange(first=6, count=2))
FIRST = "CLEVR_new_000000"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], Path]:
    """Clips of a form, written once."""
    root = tmp_path_factory.mktemp("clips")

    def make(form: Form) -> Path:
        if not (root / form).exists():
            write_clips(SPEC, root / form, form=form)
        return root / form

    return make


@pytest.fixture
def folder(made: Callable[[Form], Path], tmp_path: Path) -> Path:
    """Clips that a test may damage."""
    return Path(shutil.copytree(made("ffv1"), tmp_path / "clips"))


def spec(folder: Path, **changes: Any) -> ClipsSpec:
    return ClipsSpec(path=str(folder), **{"resolution": 32, **changes})


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = FIRST) -> None:
    path = folder / "scenes" / f"{name}.json"
    scene = json.loads(path.read_text())
    change(scene)
    path.write_text(json.dumps(scene))


@pytest.mark.parametrize("form", ["ffv1", "frames"])
@pytest.mark.parametrize("fine_grained", [True, False])
def test_that_written_clips_come_back_exactly(made: Callable[[Form], Path], form: Form, fine_grained: bool) -> None:
    found = open_clips(spec(made(form), fine_grained=fine_grained))
    drawn = open_toy_clevr(SPEC.model_copy(update={"fine_grained": fine_grained}))
    assert found.texts == drawn.texts
    for loaded, expected in ((found.train, drawn.train), (found.test, drawn.test)):
        assert loaded.count == expected.count
        assert loaded.has_labels
        indices = np.random.default_rng(0).permutation(loaded.count)[:60]
        indices[1] = indices[0]
        one, other = loaded.read(indices), expected.read(indices)
        assert np.array_equal(one.images_BSS3, other.images_BSS3)
        assert np.array_equal(one.labels_BSS, other.labels_BSS)
        assert np.array_equal(one.sentences_B, other.sentences_B)
        assert np.array_equal(one.named_B2, other.named_B2)
        assert np.array_equal(one.names_B22, other.names_B22)
        assert np.array_equal(loaded.sentences(indices), one.sentences_B)
        assert np.array_equal(expected.sentences(indices), one.sentences_B)


def test_that_names_are_what_the_sentence_calls_its_objects(made: Callable[[Form], Path]) -> None:
    data = open_clips(spec(made("ffv1")))
    batch = data.train.read(np.arange(0, data.train.count, 5))
    for sentence, pair_22 in zip(batch.sentences_B.tolist(), batch.names_B22.tolist(), strict=True):
        called = [f"the {COLORS[color]} {SHAPES[shape]}" for color, shape in pair_22 if color != NOT_NAMED]
        text = data.texts.text(sentence)
        assert text.endswith(called[-1])
        assert called[0] in text


def test_that_masks_are_part_of_the_content(folder: Path) -> None:
    with_masks = clips_content_hash(folder)
    mask = next((folder / "masks").rglob("*.png"))
    mask.write_bytes(mask.read_bytes() + b" ")
    changed = clips_content_hash(folder)
    shutil.rmtree(folder / "masks")
    assert len({with_masks, changed, clips_content_hash(folder)}) == 3


def test_that_only_the_first_clips_are_read_when_asked_for(made: Callable[[Form], Path]) -> None:
    some = open_clips(spec(made("ffv1"), max_clips=2))
    assert (some.train.count, some.test.count) == (2 * FRAMES, 2 * FRAMES)
    every = open_clips(spec(made("ffv1"))).train
    assert np.array_equal(some.train.read(np.array([5, 40])).images_BSS3, every.read(np.array([5, 40])).images_BSS3)


def test_that_frames_coded_from_their_neighbours_are_the_right_ones(made: Callable[[Form], Path]) -> None:
    loaded, drawn = open_clips(spec(made("mpeg4"))).train, open_toy_clevr(SPEC).train
    clip = drawn.read(np.arange(FRAMES)).images_BSS3.astype(int)
    for frame in (0, 2, 13, 16, 26, 33):
        image = loaded.read(np.array([frame])).images_BSS3[0].astype(int)
        errors = np.abs(clip - image).mean(axis=(1, 2, 3))
        assert errors.argmin() == frame
        assert errors[frame] < 6


def test_that_frames_coded_on_their_own_are_decoded_alone(made: Callable[[Form], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = clips_media.decode_packets
    monkeypatch.setattr(clips_media, "decode_packets", lambda context, fed: decoded.append(len(fed)) or decode(context, fed))
    for form, packets in (("ffv1", 2), ("mpeg4", FRAMES)):
        open_clips(spec(made(form))).train.read(np.array([20, 3]))
        assert decoded.pop() == packets


def test_that_scene_files_have_the_originals_keys(made: Callable[[Form], Path]) -> None:
    scene = json.loads((made("ffv1") / "scenes" / f"{FIRST}.json").read_text())
    assert {"image_filename", "image_index", "split", "objects", "actions"} <= set(scene)
    assert {"color", "shape", "size", "material", "pixel_coords", "3d_coords", "rotation"} == set(scene["objects"][0])
    first_labels = open_toy_clevr(SPEC).train.read(np.array([0])).labels_BSS[0]
    x, y, _ = scene["objects"][1]["pixel_coords"]
    assert first_labels[int(y), int(x)] == 2


def test_that_other_sizes_are_resized_and_cropped_as_the_masks_are(made: Callable[[Form], Path]) -> None:
    frames = open_clips(spec(made("ffv1"), resolution=48)).train
    batch = frames.read(np.array([0]))
    assert batch.images_BSS3.shape == (1, 48, 48, 3)
    assert batch.labels_BSS.shape == (1, 48, 48)
    wide = np.zeros((40, 60), np.uint8)
    wide[:, :10], wide[:, 10:50], wide[:, 50:] = 1, 2, 3
    assert np.unique(square(wide, 20, Image.Resampling.NEAREST)).tolist() == [2]
    assert square(wide.T, 20, Image.Resampling.NEAREST).shape == (20, 20)


def test_that_clips_of_too_many_objects_are_left_out(made: Callable[[Form], Path]) -> None:
    folder = made("ffv1")
    counts = [len(json.loads(path.read_text())["objects"]) for path in sorted((folder / "scenes").iterdir())]
    limit = max(min(counts[:6]), min(counts[6:]))
    kept = [number for number, count in enumerate(counts[:6]) if count <= limit]
    assert 0 < len(kept) < 6
    some, every = open_clips(spec(folder, max_n_objects=limit)).train, open_clips(spec(folder)).train
    assert some.count == len(kept) * FRAMES
    for place, number in enumerate(kept):
        one, other = some.read(np.array([place * FRAMES])), every.read(np.array([number * FRAMES]))
        assert np.array_equal(one.images_BSS3, other.images_BSS3)


def test_that_an_object_filter_that_leaves_nothing_is_an_error(folder: Path) -> None:
    for path in (folder / "scenes").iterdir():
        edit(folder, lambda scene: scene["objects"].extend(scene["objects"][:3]), path.stem)
    with pytest.raises(DataError, match=r"train_annos\.json: no clip has at most 3 objects[\s\S]*at least 6"):
        open_clips(spec(folder, max_n_objects=3))


def test_that_masks_may_be_missing_altogether(folder: Path) -> None:
    shutil.rmtree(folder / "masks")
    frames = open_clips(spec(folder)).train
    assert not frames.has_labels
    assert frames.read(np.array([0])).labels_BSS is None


def set_actions(*actions: int) -> Callable[[dict[str, Any]], None]:
    return lambda scene: scene.update(actions=list(actions))


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "relation": (set_actions(5, 1, 2), r"actions\.0: unknown relation 5[\s\S]*0 on top of.*4 behind"),
    "second relation": (set_actions(0, 1, -1), r"actions\.2: unknown relation -1"),
    "object": (set_actions(0, 7, 2), r"actions\.1: object 7 does not exist[\s\S]*counted from 1"),
    "object 0": (set_actions(0, 0, 2), r"actions\.1: object 0 does not exist"),
    "itself": (set_actions(0, 3, 2), r"actions\.1: object 3 would be moved relative to itself"),
    "two actions": (set_actions(0, 1), r"actions\.2: Field required"),
    "no actions": (lambda scene: scene.pop("actions"), r"actions: Field required"),
    "color": (lambda scene: scene["objects"][1].update(color="pink"), r"objects\.1\.color: unknown color `pink`[\s\S]*blue"),
    "shape": (lambda scene: scene["objects"][0].update(shape="torus"), r"objects\.0\.shape: unknown shape `torus`"),
    "few objects": (lambda scene: scene.update(objects=scene["objects"][:2]), r"objects: 2 given[\s\S]*at least 3"),
    "coordinates": (lambda scene: scene["objects"][2].update(pixel_coords="x"), r"objects\.2\.pixel_coords: .*'x' given"),
    "missing video": (lambda scene: scene.update(image_filename="lost"), r"images: no images: neither lost\.avi"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_that_a_damaged_scene_is_named_with_key_and_value(folder: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    edit(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        open_clips(spec(folder))
    assert f"{FIRST}.json" in str(caught.value)


@pytest.mark.parametrize("name", ["scenes/CLEVR_new_000003.json", "train_annos.json"])
def test_that_broken_json_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:-1])
    with pytest.raises(DataError, match=rf"{Path(name).name}: not JSON \(.*line 1"):
        open_clips(spec(folder))


@pytest.mark.parametrize("name", ["scenes/CLEVR_new_000003.json", "train_annos.json", "val_annos.json", "images"])
def test_that_a_missing_file_is_named_with_the_layout(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(DataError, match=rf"{Path(name).name}: no such file or folder[\s\S]*expected: train_annos\.json"):
        open_clips(spec(folder))


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", '["a", "a"]'])
def test_that_a_list_of_another_form_is_refused(folder: Path, content: str) -> None:
    (folder / "val_annos.json").write_text(content)
    with pytest.raises(DataError, match=r"val_annos\.json: (not a list of names|`a` stands there twice)"):
        open_clips(spec(folder))


def test_that_a_short_video_is_refused(folder: Path) -> None:
    write_video(folder / "images" / f"{FIRST}.avi", np.zeros((20, 32, 32, 3), np.uint8), codec="ffv1")
    with pytest.raises(DataError, match=rf"{FIRST}\.avi: holds 20 frames[\s\S]*expected: 34 frames"):
        open_clips(spec(folder)).train.read(np.array([3]))


def test_that_a_short_folder_of_frames_is_refused(made: Callable[[Form], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("frames"), tmp_path / "clips"))
    (folder / "images" / FIRST / "0012.png").unlink()
    with pytest.raises(DataError, match=rf"{FIRST}: holds 33 frames"):
        open_clips(spec(folder)).train.read(np.array([3]))


def test_that_a_video_that_is_none_is_refused(folder: Path) -> None:
    (folder / "images" / f"{FIRST}.avi").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=rf"{FIRST}\.avi: cannot be decoded"):
        open_clips(spec(folder)).train.read(np.array([3]))


def test_that_masks_must_fit_frames_and_objects(folder: Path) -> None:
    mask = folder / "masks" / FIRST / "0003.png"
    frames = open_clips(spec(folder)).train
    for pixels, message in (
        (np.full((32, 32), 9, np.uint8), "a mask holds object 9"),
        (np.zeros((16, 32), np.uint8), "masks are 32 x 16 pixels, frames 32 x 32"),
        (np.zeros((32, 32, 3), np.uint8), "its pixels are RGB"),
    ):
        Image.fromarray(pixels).save(mask)
        with pytest.raises(DataError, match=message):
            frames.read(np.array([3]))
    mask.unlink()
    with pytest.raises(DataError, match=f"masks/{FIRST}: holds 33 frames"):
        frames.read(np.array([3]))


def test_that_masks_belong_to_the_frames_of_their_numbers(folder: Path) -> None:
    masks = folder / "masks" / FIRST
    (masks / "0003.png").rename(masks / "0034.png")
    with pytest.raises(DataError, match=r"mask 0004.png stands where that of frame 3 should"):
        open_clips(spec(folder)).train.read(np.array([3]))


def test_that_the_content_hash_knows_lists_scenes_and_videos_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    hashes = [clips_content_hash(folder)]
    moved = folder.rename(tmp_path / "moved")
    assert clips_content_hash(moved) == hashes[0]
    edit(moved, lambda scene: scene["objects"][0].update(color="red" if scene["objects"][0]["color"] != "red" else "blue"))
    hashes.append(clips_content_hash(moved))
    with open(moved / "images" / f"{FIRST}.avi", "ab") as video:
        video.write(b"more")
    hashes.append(clips_content_hash(moved))
    (moved / "val_annos.json").write_text(json.dumps(["CLEVR_new_000006.json"]))
    hashes.append(clips_content_hash(moved))
    assert len(set(hashes)) == 4
    (moved / "images" / f"{FIRST}.avi").unlink()
    with pytest.raises(DataError, match="no images"):
        clips_content_hash(moved)


def test_that_a_look_says_what_is_there_and_finds_damage(folder: Path) -> None:
    found = check_clips(spec(folder))
    assert found[0].startswith("6 training clips of 34 frames, with masks")
    assert found[1].startswith("2 test clips")
    assert found[2] == "5184 sentences"
    (folder / "images" / "CLEVR_new_000006.avi").write_bytes(b"")
    with pytest.raises(DataError, match="CLEVR_new_000006"):
        check_clips(spec(folder))


def test_that_a_specification_without_a_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        ClipsSpec.model_validate({})
    with pytest.raises(ValidationError, match="path is empty"):
        ClipsSpec(path=" ")


def test_that_the_place_is_not_part_of_the_identity() -> None:
    schema = ClipsSpec.model_json_schema()["properties"]
    assert schema["path"].get("location") is True
    assert "location" not in schema["content"]
