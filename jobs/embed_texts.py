"""Makes the text store of an `embed` run with CLIP towers: features of every sentence, piece by piece, on rank 0 alone.

    RUN/work/texts/    pieces of 256 sentences as jobs.data.feature_writer keeps shards: whole or absent
    RUN/output/texts   the store, renamed there once it is whole

A piece is always computed in batches from its own first sentence, in fp32 without TF32: its bytes do not depend on restarts.
Legend: S sentences, L tokens of the longest, T text features; B sentences of a batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.attempt import Left, Refused, Run, Superseded
from jobs.contract import fsync_directory, write_atomically
from jobs.data.clips_texts import TextTable
from jobs.data.errors import DataError, Place
from jobs.data.feature_manifest import STORED, Layout, Shard
from jobs.data.feature_writer import FeatureWriter, ended_ranks
from jobs.data.features import map_shard
from jobs.data.store import MANIFEST, FileFacts, file_sha256
from jobs.data.text_features import TextManifest, TextStore, text_facts
from jobs.spec import EmbedSpec
from jobs.watchdog import Watchdog
from jobs.weights import weights_digest
from models.clip_towers import ClipError, ClipTowers, text_ids
from models.spec_language import ClipSpec

log = logging.getLogger("jobs")

PIECE = 256
"""Sentences that are written at once."""
BATCH = 32
"""Sentences that are computed at once: no setting, since the features' last bits depend on it."""
CHECKPOINT_EVERY_S = 5.0
"""Most seconds between checkpoints: each is one number that says how far the run is."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at whether the attempt still owns the run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentences:
    """The sentences of a table as the text tower takes them, and the store to be."""

    ids_SL: torch.Tensor
    """int64 [S, 77]"""
    manifest: TextManifest
    """Without the facts of weights and files."""

    @property
    def layout(self) -> Layout:
        """The pieces: [n, 1 + L, T], the sentence's feature and then its tokens'; [n, 1, T] without tokens."""
        return Layout(
            counts={"train": len(self.ids_SL), "test": 0},
            flips=False,
            shard_images=PIECE,
            tokens=1 + (self.manifest.longest or 0),
            feature_size=self.manifest.text_size,
            dtype="fp32",
        )


def read_sentences(spec: EmbedSpec, clip: ClipSpec, texts: TextTable) -> Sentences:
    """Tokenise a table; raises Refused when a sentence is longer than CLIP takes."""
    try:
        ids_SL = text_ids(texts.texts)
    except ClipError as error:
        raise Refused(f"{error}; hint: data.fine_grained=true gives each frame the sentence of its phase alone") from error
    longest = int(ids_SL.argmax(dim=1).max()) + 1
    manifest = TextManifest(
        towers=text_facts(clip),
        texts=texts.digest(),
        sentences=len(texts),
        text_size=clip.text_size,
        longest=longest if spec.text == "tokens" else None,
    )
    return Sentences(ids_SL=ids_SL[:, :longest], manifest=manifest)


def finished_texts(output: Path, manifest: TextManifest) -> TextStore | None:
    """The store at `output`, or None when nothing is there.

    Raises:
        DataError: something else is there.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return None
    store = TextStore.open(output)
    results: dict[str, Any] = {"files": {}, "weights": ""}
    if store.manifest.model_copy(update=results) != manifest.model_copy(update=results):
        raise DataError(
            "already holds features of something else",
            place=Place(file=str(output)),
            expected=f"{dict(manifest.towers)}, {manifest.sentences} sentences",
            hint="remove it and run `embed` again",
        )
    return store


def wait_for_texts(run: Run, output: Path, *, work: Path, pieces: Path) -> None:
    """A further rank of a run that embeds sentences alone: until rank 0 has made the store, or nothing happened for too long.

    Raises:
        Left: told to leave, or rank 0 has left.
        Superseded: a newer attempt owns the run.
    """
    patience_s = run.frozen.config.runtime.hang_timeout_s
    there, changed_at = -1, time.monotonic()
    while not (output / MANIFEST).exists():
        if run.flag.terminating:  # a warning alone is rank 0's to judge
            raise Left(0, None)
        if not run.owns():
            raise Superseded
        with suppress(FileNotFoundError):  # rank 0 is just clearing the scratch directory
            if ended_ranks(work, attempt=run.attempt.number).get(0) is False:
                raise Left(0, None)
            found = len(list((pieces / "facts" / "train").glob("*.json")))
            if found != there:
                there, changed_at = found, time.monotonic()
        if time.monotonic() - changed_at > patience_s:
            log.warning("no new sentences for %.0f s; rank 0 has the last word", patience_s)
            return
        time.sleep(0.2)


@dataclass(kw_only=True)
class TextEmbedding:
    """Rank 0's work on the sentences, in one attempt."""

    run: Run
    sentences: Sentences
    towers: ClipTowers
    device: torch.device
    work: Path
    saved: int
    """Steps that the newest checkpoint covers; a sentence is one."""
    watchdog: Watchdog = field(init=False)
    manifest: TextManifest = field(init=False)
    """With the weights' digest."""
    writer: FeatureWriter = field(init=False)
    _done: int = 0
    _looked_at: float = -1e9
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        timeout_s = self.run.frozen.config.runtime.hang_timeout_s
        self.watchdog = Watchdog(timeout_s=timeout_s, on_hang=self.run.end_hung)
        self.manifest = self.sentences.manifest.model_copy(update={"weights": weights_digest(self.towers)})
        made_with = hashlib.sha256(json.dumps(self.manifest.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
        self.writer = FeatureWriter(self.work, self.layout, made_with=made_with)

    @property
    def layout(self) -> Layout:
        """The pieces'."""
        return self.sentences.layout

    def execute(self, output: Path) -> TextStore:
        """Compute what is missing and make the store whole.

        Raises:
            Left: told to leave.
            Superseded: a newer attempt owns the run.
            DataError: features that are not finite.
        """
        try:
            self.watchdog.start()
            missing = self._missing()
            self._look()
            log.info("%d of %d sentences to embed on %s", self.layout.images - self._done, self.layout.images, self.device.type)
            for piece in missing:
                rows = self._compute(piece)
                if not self.writer.commit(piece, rows, squared_error=0.0, may_commit=self.run.owns):
                    raise Superseded
                self._look()
            self._save()
            return self._finish(output)
        finally:
            self.watchdog.stop()

    def _missing(self) -> list[Shard]:
        """Pieces that are not there, or not as they were written."""
        missing: list[Shard] = []
        for piece in self.layout.shards():
            self.on_batch()
            if not self.writer.is_intact(piece):
                self.writer.discard(piece)
                missing.append(piece)
        return missing

    def _compute(self, piece: Shard) -> np.ndarray:
        """Rows of one piece."""
        rows = np.empty(self.layout.shape(piece), dtype=STORED["fp32"])
        stored = self.manifest.longest or 0
        for at in range(0, piece.count, BATCH):
            self.on_batch()
            first, count = piece.first + at, min(BATCH, piece.count - at)
            found = self.towers.text_features(self.sentences.ids_SL[first : first + count].to(self.device))
            rows[at : at + count, 0] = found.sentence_BT.cpu().numpy()
            rows[at : at + count, 1:] = found.tokens_BLT[:, :stored].cpu().numpy()
        if not np.isfinite(rows).all():
            raise DataError(
                "features of sentences are not finite",
                place=Place(file=piece.name),
                hint="the weights are damaged: get them again",
            )
        return rows

    def on_batch(self) -> None:
        """Between batches: leave when told to, and now and then look whether this attempt still owns the run.

        Raises:
            Left: told to leave.
            Superseded: a newer attempt owns the run.
        """
        self.watchdog.beat()
        if self.run.flag:
            self._save()
            self.run.leave(self.saved)
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        if not self.run.owns():
            raise Superseded
        if time.monotonic() - self._saved_at >= min(CHECKPOINT_EVERY_S, self.run.frozen.config.runtime.checkpoint_every_s):
            self._save()

    def _look(self) -> None:
        """Count what is there and write it down."""
        self._done = self.writer.images_done()
        assert self.run.journal is not None
        self.run.journal.metrics(max(self._done, self.saved), {"embed/texts": float(self._done)})
        self.run.journal.flush()

    def _save(self) -> None:
        """Record how far the run is, if it is further than at the last time."""
        self._saved_at = time.monotonic()
        if self._done <= self.saved:
            return
        done = self._done
        self.run.checkpoint(done, lambda folder: _write_state(folder, done))
        self.saved = done

    def _finish(self, output: Path) -> TextStore:
        """Put the pieces together and rename the store to `output`."""
        whole = (
            self.work / f"whole-{self.run.attempt.number:04d}"
        )  # an attempt that does not know yet that it is over has its own
        whole.mkdir()
        names = self.manifest.arrays()
        files = {"sentence.npy": self._write(whole / "sentence.npy", (rows[:, 0] for rows in self._rows()))}
        if "tokens.npy" in names:
            places_L = torch.arange(self.manifest.longest or 0)
            ends_S = self.sentences.ids_SL.argmax(dim=1)  # end-of-text has the largest id
            padding_SL = (places_L > ends_S[:, None]).numpy()
            files["tokens.npy"] = self._write(whole / "tokens.npy", (rows[:, 1:] for rows in self._rows()))
            files["padding.npy"] = self._write(whole / "padding.npy", iter([padding_SL]))
        manifest = self.manifest.model_copy(update={"files": files})
        write_atomically(whole / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        if not self.run.owns():
            raise Superseded
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(whole, output)
        except OSError:
            if finished_texts(output, self.sentences.manifest) is None:  # else another attempt was there first
                raise
        fsync_directory(output.parent)
        self.writer.remove()
        return TextStore.open(output)

    def _rows(self) -> Iterator[np.ndarray]:
        for piece in self.layout.shards():
            self.watchdog.beat()
            file = self.work / "features" / piece.name
            yield map_shard(file, dtype=STORED["fp32"], shape=self.layout.shape(piece)).rows

    def _write(self, path: Path, pieces: Iterator[np.ndarray]) -> FileFacts:
        """One array of the store, on disk when this returns."""
        dtype, shape = self.manifest.arrays()[path.name]
        with open(path, "xb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype=dtype).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        return FileFacts(bytes=path.stat().st_size, sha256=file_sha256(path))


def _write_state(folder: Path, done: int) -> None:
    (folder / "state.json").write_text(json.dumps({"texts": done}), encoding="utf-8")
