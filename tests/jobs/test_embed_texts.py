"""Embed runs with CLIP towers: the same bytes however often they were interrupted, and of no other sentences or towers."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import attempt, outcome_of, said

from jobs import embed, embed_images, embed_texts, forks
from jobs.contract import Cause, RunDir, Status
from jobs.data.clip_store import ClipStore
from jobs.data.clips_texts import TextTable
from jobs.data.errors import DataError
from jobs.data.feature_writer import FeatureWriter
from jobs.data.features import FeatureStore
from jobs.data.text_features import TextStore
from jobs.data_spec import ToyClevrSpec
from jobs.journal import CHECKPOINT, read_journal
from jobs.samples import to_images
from jobs.spec import EmbedSpec
from jobs.weights import load_clip
from models.clip_towers import text_ids
from models.spec_language import ClipSpec

VIT = {"kind": "clip", "name": "tiny-vit", "weights": "random", "tokens": 16, "feature_size": 32, "text_size": 16}
RESNET = {"kind": "clip", "name": "tiny-resnet", "weights": "random", "tokens": 4, "feature_size": 256, "text_size": 16}
LARGE = VIT | {"name": "ViT-S-32", "tokens": 49, "feature_size": 384, "text_size": 384}
DATA = {
    "kind": "toy_clevr", "resolution": 64, "fine_grained": False,
    "train": {"first": 0, "count": 9}, "test": {"first": 9, "count": 4},
}  # fmt: skip
CLIPS = 13
"""As many sentences: each clip has one of its own."""
FRAMES = 34 * CLIPS


def towers_spec(**changes: Any) -> ClipSpec:
    return ClipSpec.model_validate(VIT | changes)


def config(**changes: Any) -> dict[str, Any]:
    runtime = {"hang_timeout_s": 60.0, "max_attempts_without_progress": 1000}
    base = {"kind": "embed", "backbone": VIT, "images": "none", "flips": False, "shard_images": 128, "runtime": runtime}
    return base | changes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished `prepare` run, `data`."""
    root = tmp_path_factory.mktemp("prepared")
    assert attempt(forks.make_run(root, "data", {"kind": "prepare", "data": DATA}, {})) == [0]
    return root


@pytest.fixture(scope="module")
def clips(prepared: Path) -> ClipStore:
    return ClipStore.open(prepared / "data" / "output" / "store", ToyClevrSpec.model_validate(DATA))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embed_texts, embed_images):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(embed_texts, "PIECE", 4)
    monkeypatch.setattr(embed_texts, "BATCH", 2)


def embed_run(root: Path, prepared: Path, **changes: Any) -> RunDir:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data").symlink_to(prepared / "data")
    return forks.make_run(root, "embedded", config(**changes), {"prepare": "data"})


def stored(run_dir: RunDir) -> dict[str, str]:
    """Every file of a run's output with its checksum."""
    files = (file for file in sorted(run_dir.output.rglob("*")) if file.is_file())
    return {str(file.relative_to(run_dir.output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def saved_steps(run_dir: RunDir) -> list[int]:
    """The steps of a run's checkpoints."""
    return [entry.step for entry in read_journal(run_dir.journals).counting() if entry.event == CHECKPOINT]


Untouched = Callable[..., RunDir]


@pytest.fixture(scope="module")
def untouched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Untouched:
    """Runs that nobody interrupted, on one rank: each made once."""
    made: dict[str, RunDir] = {}

    def of(**changes: Any) -> RunDir:
        if repr(changes) not in made:
            run_dir = embed_run(tmp_path_factory.mktemp("untouched"), prepared, **changes)
            assert attempt(run_dir) == [0], said(run_dir)
            made[repr(changes)] = run_dir
        return made[repr(changes)]

    return of


@pytest.mark.parametrize("backbone", [VIT, RESNET])
def test_that_each_sentences_features_are_the_text_towers(backbone: Any, untouched: Untouched, clips: ClipStore) -> None:
    store = TextStore.open(untouched(backbone=backbone, text="tokens").output / "texts")
    store.verify()
    towers = load_clip(ClipSpec.model_validate(backbone), torch.device("cpu"))
    assert store.tokens_SLT is not None
    assert store.padding_SL is not None
    assert len(clips.texts) == len(store.sentence_ST) == CLIPS
    lengths = []
    for number, sentence in enumerate(clips.texts.texts):
        alone = towers.text_features(text_ids([sentence]))
        length = int((~alone.padding_BL).sum())
        lengths.append(length)
        np.testing.assert_allclose(store.sentence_ST[number], alone.sentence_BT[0], atol=1e-5)
        np.testing.assert_allclose(store.tokens_SLT[number, :length], alone.tokens_BLT[0, :length], atol=1e-5)
        assert store.padding_SL[number].tolist() == [place >= length for place in range(store.padding_SL.shape[1])]
    assert store.tokens_SLT.shape == (CLIPS, max(lengths), 16)
    assert len(set(lengths)) > 1
    assert store.sentence_ST.dtype == store.tokens_SLT.dtype == np.float32


def test_that_a_sentences_feature_depends_neither_on_its_piece_nor_on_its_place_there(
    untouched: Untouched, clips: ClipStore, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TextStore.open(untouched().output / "texts").sentence_ST
    monkeypatch.setattr(embed_texts, "PIECE", 5)
    monkeypatch.setattr(embed_texts, "BATCH", 3)
    reverse = TextTable(texts=clips.texts.texts[::-1])
    run_dir = embed_run(tmp_path, prepared)

    def reversed_table() -> None:
        ClipStore.texts = property(lambda store: reverse)  # type: ignore[assignment,method-assign]  # in this fork only

    assert attempt(run_dir, hook=reversed_table) == [0], said(run_dir)
    found = TextStore.open(run_dir.output / "texts")
    np.testing.assert_allclose(found.sentence_ST[::-1], expected, atol=1e-6)
    found.check(reverse, towers_spec())
    with pytest.raises(DataError, match="the data's 13 sentences"):
        found.check(clips.texts, towers_spec())


def test_that_the_outcome_names_every_file_and_the_journal_the_progress(untouched: Untouched) -> None:
    run_dir = untouched()
    outcome = outcome_of(run_dir)
    assert outcome.status is Status.DONE
    assert outcome.step == CLIPS
    assert outcome.values == {"embed/texts": CLIPS}
    assert set(outcome.files) == {f"output/{name}" for name in stored(run_dir)}
    assert set(stored(run_dir)) == {"texts/manifest.json", "texts/sentence.npy"}
    progress = [entry.metrics["embed/texts"] for entry in read_journal(run_dir.journals).counting() if entry.metrics]
    assert progress == [0, 4, 8, 12, 13, 13]
    assert saved_steps(run_dir) == [4, 8, 12, 13]
    assert not (run_dir.path / "work").exists()
    assert TextStore.open(run_dir.output / "texts").tokens_SLT is None


def kill_at(renames: int, *, target: str = "work/texts/features") -> Callable[[], None]:
    """A hook for a fork that dies right after its n-th rename to a place."""

    def hook() -> None:
        real, count = os.rename, iter(range(1_000_000))

        def rename(source: Any, place: Any) -> None:
            real(source, place)
            if target in str(place) and next(count) == renames:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename  # type: ignore[assignment]  # in this fork only

    return hook


@pytest.mark.parametrize("text", ["sentence", "tokens"])
def test_that_kills_between_pieces_change_no_byte(text: str, untouched: Untouched, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, text=text)
    for hook in (kill_at(0), kill_at(2), kill_at(0, target="output/texts")):
        assert attempt(run_dir, hook=hook) == [-signal.SIGKILL], said(run_dir)
    assert attempt(run_dir) == [0], said(run_dir)
    assert stored(run_dir) == stored(untouched(text=text))
    assert not (run_dir.path / "work").exists()


def test_that_damaged_pieces_and_half_a_store_are_made_again(untouched: Untouched, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def die() -> None:
        embed_texts.write_atomically = lambda path, text: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]  # in this fork only

    assert attempt(run_dir, hook=die) == [-signal.SIGKILL]
    work = run_dir.path / "work" / "texts"
    assert (work / "whole-0001" / "sentence.npy").exists()
    pieces = work / "features" / "train"
    content = bytearray((pieces / "00000.npy").read_bytes())
    content[-1] ^= 1
    (pieces / "00000.npy").write_bytes(bytes(content))
    (pieces / "00001.npy").unlink()
    assert attempt(run_dir) == [0], said(run_dir)
    assert stored(run_dir) == stored(untouched())


def watched(there: set[str]) -> Callable[[], None]:
    """A hook for a fork in which no piece that is there may be written again."""

    def hook() -> None:
        commit = FeatureWriter.commit

        def only_missing(writer: Any, piece: Any, *args: Any, **named: Any) -> bool:
            assert piece.name not in there, "computed again"
            return commit(writer, piece, *args, **named)

        FeatureWriter.commit = only_missing  # type: ignore[method-assign]  # in this fork only

    return hook


def signal_after_two_pieces() -> None:
    """In the forks: rank 0, which alone is at the sentences, gets a SIGTERM when eight are there."""
    look = embed_texts.TextEmbedding._look

    def last(embedding: embed_texts.TextEmbedding) -> None:
        look(embedding)
        if embedding._done == 8:
            os.kill(os.getpid(), signal.SIGTERM)
            assert embedding.run.flag.wait(30.0)

    embed_texts.TextEmbedding._look = last  # type: ignore[method-assign]


@pytest.mark.parametrize(("images", "world_size"), [("none", 1), ("none", 2), ("all", 2)])
def test_that_a_signal_among_the_sentences_ends_all_ranks_and_the_next_attempt_goes_on(
    images: str, world_size: int, untouched: Untouched, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared, images=images)
    codes = attempt(run_dir, world_size=world_size, hook=signal_after_two_pieces)
    assert codes == [75] + [0] * (world_size - 1), said(run_dir)
    outcome = outcome_of(run_dir)
    assert outcome.status is Status.STOPPED
    assert outcome.step == 8
    assert not run_dir.output.exists()
    there = {f"train/{path.stem}.npy" for path in (run_dir.path / "work" / "texts" / "facts").rglob("*.json")}
    assert len(there) == 2
    hook = watched(there) if images == "none" else None  # shards of images have the same names
    assert attempt(run_dir, world_size=world_size, hook=hook) == [0] * world_size, said(run_dir)
    assert stored(run_dir) == stored(untouched(images=images))


def test_that_a_finished_store_is_not_computed_again(untouched: Untouched, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)
    assert attempt(run_dir, hook=kill_at(0, target="output/texts")) == [-signal.SIGKILL]

    def never() -> None:
        embed.load_clip = None  # type: ignore[assignment]  # calling it would fail

    assert attempt(run_dir, world_size=2, hook=never) == [0, 0], said(run_dir)
    assert stored(run_dir) == stored(untouched())


@pytest.mark.parametrize("backbone", [VIT, RESNET, VIT | {"global_features": True, "tokens": 1, "feature_size": 24}])
def test_that_vision_tokens_are_the_vision_towers(backbone: Any, untouched: Untouched, clips: ClipStore) -> None:
    run_dir = untouched(backbone=backbone, images="all", dtype="fp32")
    store = FeatureStore.open(run_dir.output / "features")
    spec = ClipSpec.model_validate(backbone)
    store.check_backbone(spec, resolution=64)
    with pytest.raises(DataError, match=r"backbone.text_size is 17, the store's tokens were made with 16"):
        store.check_backbone(spec.model_copy(update={"text_size": 17}))
    towers = load_clip(spec, torch.device("cpu"))
    for split, count in (("train", 9 * 34), ("test", 4 * 34)):
        some = np.array([0, 1, 127, 128, count - 1])
        images = clips.frames(split).read(some).images_BSS3  # type: ignore[arg-type]  # both are names of splits
        exact = towers.vision_tokens(to_images(torch.from_numpy(images)))
        torch.testing.assert_close(store.split(split).read(some, np.zeros(5, bool)), exact, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    texts = TextStore.open(run_dir.output / "texts")
    assert texts.manifest.weights == store.manifest.weights


def test_that_sentences_come_before_images_in_one_run_of_both(untouched: Untouched) -> None:
    run_dir = untouched(images="all")
    outcome = outcome_of(run_dir)
    assert outcome.step == CLIPS + FRAMES
    assert outcome.values["embed/texts"] == CLIPS
    assert outcome.values["embed/images"] == FRAMES
    assert set(outcome.files) == {f"output/{name}" for name in stored(run_dir)}
    assert {name.split("/")[0] for name in stored(run_dir)} == {"features", "texts"}
    entries = [entry for entry in read_journal(run_dir.journals).counting() if "embed/images" in entry.metrics]
    assert [entry.step - entry.metrics["embed/images"] for entry in entries] == [CLIPS] * len(entries)
    assert CLIPS in saved_steps(run_dir)
    assert saved_steps(run_dir)[-1] == CLIPS + FRAMES


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_kills_among_sentences_and_frames_change_no_byte(
    world_size: int, untouched: Untouched, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared, images="all")
    for target in ("work/texts/features", "output/texts", "work/features"):
        pids = forks.run_group(run_dir, ranks=world_size, launch=target.replace("/", "-"), hook=kill_at(0, target=target))
        codes = [one.code for one in forks.end_group(pids, grace_s=0.1)]  # the others are ended as srun does
        assert -signal.SIGKILL in codes, said(run_dir)
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    assert stored(run_dir) == stored(untouched(images="all"))
    assert not (run_dir.path / "work").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "tiny-resnet"}, "backbone.name is 'tiny-resnet', the stored features were made with 'tiny-vit'"),
        ({"pretrained": None}, "backbone.pretrained is None"),
        ({"weights": "file", "path": "x.pt", "content": "0" * 64}, "backbone.content is '000"),
        ({"text_size": 17}, "backbone.text_size is 17"),
    ],
)
def test_that_features_of_other_towers_are_refused(
    changes: dict[str, Any], problem: str, untouched: Untouched, clips: ClipStore
) -> None:
    store = TextStore.open(untouched().output / "texts")
    store.check(clips.texts, towers_spec())
    with pytest.raises(DataError, match=problem):
        store.check(clips.texts, towers_spec(**changes))


def test_that_the_vision_towers_keys_are_no_concern_of_sentences(untouched: Untouched, clips: ClipStore) -> None:
    store = TextStore.open(untouched().output / "texts")
    store.check(clips.texts, towers_spec(global_features=True, tokens=1, feature_size=24))


@pytest.mark.parametrize("change", ["dropped", "swapped", "another"])
def test_that_features_of_other_sentences_are_refused(change: str, untouched: Untouched, clips: ClipStore) -> None:
    texts = clips.texts.texts
    other = {"dropped": texts[1:], "swapped": (texts[1], texts[0], *texts[2:]), "another": ("lift up the red cube", *texts[1:])}
    with pytest.raises(DataError, match=r"sentences .* are not the 13 "):
        TextStore.open(untouched().output / "texts").check(TextTable(texts=other[change]), towers_spec())


def test_that_a_store_of_something_else_is_not_taken_for_the_runs_own(
    untouched: Untouched, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared, text="tokens")
    run_dir.output.mkdir(parents=True)
    (run_dir.output / "texts").symlink_to(untouched().output / "texts")
    assert attempt(run_dir) == [1]
    assert "already holds features of something else" in outcome_of(run_dir).reason


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("no manifest", "no features of sentences here"),
        ("no array", r"sentence.npy: cannot be read"),
        ("short", r"sentence.npy: 0 bytes long"),
        ("other manifest", "not a manifest of a text store: sentences"),
    ],
)
def test_that_damaged_stores_are_told(damage: str, problem: str, untouched: Untouched, tmp_path: Path) -> None:
    for name in ("manifest.json", "sentence.npy"):
        (tmp_path / name).write_bytes((untouched().output / "texts" / name).read_bytes())
    TextStore.open(tmp_path).verify()
    match damage:
        case "no manifest":
            (tmp_path / "manifest.json").unlink()
        case "no array":
            (tmp_path / "sentence.npy").unlink()
        case "short":
            (tmp_path / "sentence.npy").write_bytes(b"")
        case _:
            (tmp_path / "manifest.json").write_text('{"store": "texts-1", "texts": "", "towers": {}, "sentences": "many"}')
    with pytest.raises(DataError, match=problem) as caught:
        TextStore.open(tmp_path)
    assert caught.value.hint


def test_that_a_changed_byte_is_found_by_verify(untouched: Untouched, tmp_path: Path) -> None:
    for name in ("manifest.json", "sentence.npy"):
        (tmp_path / name).write_bytes((untouched().output / "texts" / name).read_bytes())
    content = bytearray((tmp_path / "sentence.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "sentence.npy").write_bytes(bytes(content))
    with pytest.raises(DataError, match="sha256 is"):
        TextStore.open(tmp_path).verify()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"flips": True}, "a mirrored frame would contradict left and right"),
        (
            {"backbone": VIT | {"name": "ViT-S-32", "tokens": 49, "feature_size": 384, "text_size": 384}},
            "64 x 64 pixels, and ViT-S",
        ),
        ({"backbone": {"name": "vit_tiny_patch16_224", "weights": "random"}}, "needs data of kind `coco`"),
    ],
)
def test_that_what_does_not_go_together_is_refused(changes: Any, problem: str, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, **changes)
    assert attempt(run_dir) == [1]
    assert outcome_of(run_dir).cause is Cause.REFUSED
    assert problem in outcome_of(run_dir).reason


def test_that_a_sentence_too_long_for_clip_is_refused(clips: ClipStore) -> None:
    spec = EmbedSpec.model_validate(config())
    with pytest.raises(embed_texts.Refused, match=r"more than the 77 ids .*hint: data.fine_grained=true"):
        embed_texts.read_sentences(spec, towers_spec(), TextTable(texts=("red " * 80,)))


def test_that_weights_that_are_not_numbers_are_told(prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def broken() -> None:
        real = embed.load_clip

        def with_nan(*args: Any) -> Any:
            towers = real(*args)
            towers.clip.token_embedding.weight.data.fill_(float("nan"))  # type: ignore[union-attr]  # a submodule
            return towers

        embed.load_clip = with_nan

    assert attempt(run_dir, hook=broken) == [1]
    assert "features of sentences are not finite" in outcome_of(run_dir).reason
