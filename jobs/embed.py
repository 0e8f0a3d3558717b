"""The `embed` job: what frozen towers say of a `prepare` run's images, and of its sentences, once for all training runs.

Of a timm backbone the images' tokens, `output/features`. Of CLIP towers first the sentences' features, `output/texts`, by
rank 0 alone, and then, unless images=none, the frames' tokens. A step is one sentence or one image. How the work is shared
and survives a kill stands in `embed_images.py` and `embed_texts.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from jobs.attempt import Finished, Refused, Run
from jobs.data.clip_store import ClipStore
from jobs.data.coco_store import CocoStore
from jobs.data.feature_manifest import FeatureManifest, backbone_facts, manifest_path
from jobs.data.feature_writer import FeatureWriter, finished_store, pooled_error_floor, say_ended
from jobs.data.store import MANIFEST
from jobs.data.text_features import TextStore
from jobs.distributed import configure_precision
from jobs.embed_images import Embedding, made_with
from jobs.embed_texts import TextEmbedding, finished_texts, read_sentences, wait_for_texts
from jobs.inputs import Store, open_store
from jobs.spec import EmbedSpec
from jobs.watchdog import Watchdog
from jobs.weights import load_backbone, load_clip, weights_digest
from models.backbone import Backbone
from models.clip_towers import ClipTowers
from models.spec import BackboneSpec
from models.spec_language import ClipSpec

FEATURES = "features"
"""The place of the images' tokens below a run's output."""
TEXTS = "texts"
"""The place of the sentences' features below a run's output, and of their pieces below its scratch directory."""


def run_embed(run: Run) -> Finished:
    """Embed what the needed `prepare` run holds; see the module."""
    spec = run.frozen.config
    assert isinstance(spec, EmbedSpec)
    torch.set_num_threads(spec.runtime.threads)
    configure_precision("fp32")
    restored = run.restore_point() if run.is_main else None
    saved = 0 if restored is None else restored.step
    match spec.backbone:
        case BackboneSpec() as backbone:
            return _run_backbone(run, spec, backbone, open_store(run), saved=saved)
        case ClipSpec() as clip:
            return _run_clip(run, spec, clip, open_store(run), saved=saved)


class VisionTower(torch.nn.Module):
    """The vision tower as a backbone: images [B,3,H,W] in [0, 1] -> tokens [B,N,C]."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.towers = towers
        self.resolution = towers.resolution
        """Side of the images that it takes, in pixels."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Tokens of images."""
        return self.towers.vision_tokens(images_BCHW)


def _run_backbone(run: Run, spec: EmbedSpec, backbone: BackboneSpec, images: Store, *, saved: int) -> Finished:
    if not isinstance(images, CocoStore):
        raise Refused("an `embed` run with a backbone of kind `timm` needs data of kind `coco`")
    if spec.images == "none":
        raise Refused("images=none leaves nothing to do: only a backbone of kind `clip` has something to say of sentences")
    return _embed_images(run, spec, images, lambda: load_backbone(backbone, _device(run)), saved=saved, texts=None)


def _run_clip(run: Run, spec: EmbedSpec, clip: ClipSpec, clips: Store, *, saved: int) -> Finished:
    if not isinstance(clips, ClipStore):
        raise Refused("an `embed` run with a backbone of kind `clip` needs data of kind `toy_clevr` or `clips`")
    if spec.flips:
        raise Refused("flips=true: a mirrored frame would contradict left and right in its sentence; set flips=false")

    @cache
    def towers() -> ClipTowers:
        found = load_clip(clip, _device(run))
        _check_resolution(spec, clips, found.resolution)
        return found

    texts = _embed_texts(run, spec, clip, clips, towers, saved=saved) if run.is_main else None
    if spec.images == "all":
        return _embed_images(run, spec, clips, lambda: VisionTower(towers()), saved=saved, texts=texts)
    work = run.run_dir.path / "work"
    if texts is None:
        wait_for_texts(run, run.run_dir.output / TEXTS, work=work, pieces=work / TEXTS)
        return Finished(step=0)
    shutil.rmtree(work, ignore_errors=True)
    count = texts.manifest.sentences
    assert run.journal is not None
    run.journal.metrics(count, {"embed/texts": float(count)})
    return Finished(step=count, values={"embed/texts": float(count)}, files=_text_files(texts))


def _embed_texts(
    run: Run, spec: EmbedSpec, clip: ClipSpec, clips: ClipStore, towers: Callable[[], ClipTowers], *, saved: int
) -> TextStore:
    """Rank 0: the store of the sentences, made now or by an earlier attempt."""
    output, work = run.run_dir.output / TEXTS, run.run_dir.path / "work" / TEXTS
    try:
        sentences = read_sentences(spec, clip, clips.texts)
        store = finished_texts(output, sentences.manifest)
        if store is None:
            device = _device(run)
            made = TextEmbedding(run=run, sentences=sentences, towers=towers(), device=device, work=work, saved=saved)
            store = made.execute(output)
        elif work.exists():
            shutil.rmtree(work)
        return store
    except BaseException:
        with suppress(OSError):  # the reason that is on its way matters more; further ranks look here
            say_ended(work.parent, attempt=run.attempt.number, rank=0, done=False)
        raise


def _embed_images(
    run: Run,
    spec: EmbedSpec,
    images: CocoStore | ClipStore,
    load: Callable[[], Backbone | VisionTower],
    *,
    saved: int,
    texts: TextStore | None,
) -> Finished:
    """Every rank: the store of the images' tokens, made now or by an earlier attempt."""
    manifest = expected_manifest(run, spec, images)
    output, work = run.run_dir.output / FEATURES, run.run_dir.path / "work"
    before = 0 if texts is None else texts.manifest.sentences
    store = finished_store(output, manifest)
    if store is None:
        store = _start(run, spec, images, load(), manifest, work, saved=saved, before=before).execute(output)
    elif run.is_main and work.exists():
        shutil.rmtree(work)
    if store is None:  # a further rank whose share is done, and rank 0 has the last word
        return Finished(step=0)
    total = store.manifest.layout.images
    values = {"embed/images": float(total), "embed/error_floor": pooled_error_floor(store.manifest)}
    files = (manifest_path(store.path), *(store.path / name for name in store.manifest.files))
    if texts is not None:
        values["embed/texts"] = float(before)
        files += _text_files(texts)
    if run.journal is not None:
        run.journal.metrics(before + total, values)
    return Finished(step=before + total, values=values, files=files)


def _text_files(texts: TextStore) -> tuple[Path, ...]:
    return (texts.path / MANIFEST, *(texts.path / name for name in texts.manifest.files))


def expected_manifest(run: Run, spec: EmbedSpec, images: CocoStore | ClipStore) -> FeatureManifest:
    """The manifest of the store to be, without the facts of weights and shards."""
    return FeatureManifest(
        prepare=run.frozen.needs["prepare"],
        backbone=backbone_facts(spec.backbone),
        weights="",
        resolution=images.manifest.resolution,
        dtype=spec.dtype,
        tokens=spec.backbone.tokens,
        feature_size=spec.backbone.feature_size,
        counts=images.manifest.counts,
        flips=spec.flips,
        shard_images=spec.shard_images,
    )


def _check_resolution(spec: EmbedSpec, images: CocoStore | ClipStore, resolution: int) -> None:
    side = images.manifest.resolution
    if resolution != side:
        raise Refused(
            f"the prepared images have {side} x {side} pixels, and {spec.backbone.name} with "
            f"backbone.tokens {spec.backbone.tokens} takes {resolution} x {resolution}: set data.resolution or backbone.tokens"
        )


def _device(run: Run) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", run.ranks.local_rank % torch.cuda.device_count())


def _start(
    run: Run,
    spec: EmbedSpec,
    images: CocoStore | ClipStore,
    backbone: Backbone | VisionTower,
    manifest: FeatureManifest,
    work: Path,
    *,
    saved: int,
    before: int,
) -> Embedding:
    """Look at what is there."""
    _check_resolution(spec, images, backbone.resolution)
    complete = manifest.model_copy(
        update={"weights": weights_digest(backbone.towers if isinstance(backbone, VisionTower) else backbone)}
    )
    return Embedding(
        run=run,
        spec=spec,
        images={"train": images.images("train"), "test": images.images("test")},
        backbone=backbone,
        device=_device(run),
        manifest=complete,
        writer=FeatureWriter(work, complete.layout, made_with=made_with(complete)),
        saved=saved,
        before=before,
        watchdog=Watchdog(timeout_s=spec.runtime.hang_timeout_s, on_hang=run.end_hung),
    )
