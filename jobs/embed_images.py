"""The images of an `embed` run: tokens of a frozen backbone, shard by shard, on any number of ranks.

Shard i is the business of rank i % world_size; ranks share the run's scratch directory and exchange no tensors. Every rank
looks at its own shards first and keeps those whose content is what was written. Rank 0 alone has the journal, waits for the
others, and makes the store whole; the others wait for it, since Slurm may end a step some time after its first task (WaitTime).

A shard is always computed in batches of `batch_size` from its own first image, in fp32 without TF32: its bytes depend neither
on the rank that made it nor on restarts. Another batch size, thread count or device may change them by rounding (1e-7).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from jobs import ranks
from jobs.attempt import Left, Run, Superseded
from jobs.data.feature_manifest import FeatureManifest, Layout, Shard, manifest_path
from jobs.data.feature_writer import FeatureWriter
from jobs.data.features import FeatureStore
from jobs.data.store import SplitName
from jobs.embed_shard import embed_shard
from jobs.samples import Pixels
from jobs.spec import EmbedSpec
from jobs.watchdog import Watchdog

log = logging.getLogger("jobs")

CHECKPOINT_EVERY_S = 5.0
"""Most seconds between checkpoints: each is one number that says how far the run is."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at what other ranks have done."""
SAY_EVERY_S = 30.0


def made_with(manifest: FeatureManifest) -> str:
    """Digest of everything that a shard's content depends on, but batch size and device."""
    return hashlib.sha256(json.dumps(manifest.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class Embedding:
    """One rank's share of one attempt."""

    run: Run
    spec: EmbedSpec
    images: Mapping[SplitName, Pixels]
    """uint8 [N, S, S, 3]"""
    backbone: torch.nn.Module
    device: torch.device
    manifest: FeatureManifest
    writer: FeatureWriter
    saved: int
    """Steps that the newest checkpoint covers (rank 0)."""
    before: int = 0
    """Steps that were done before the images: an image is one."""
    watchdog: Watchdog
    """Hears a beat before every batch."""
    _begun_at: float = field(default_factory=time.monotonic)
    _begun_with: int = 0
    _done: int = 0
    _changed_at: float = field(default_factory=time.monotonic)
    _looked_at: float = -1e9
    _said_at: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def layout(self) -> Layout:
        """The store's."""
        return self.manifest.layout

    def execute(self, output: Path) -> FeatureStore | None:
        """Do this rank's shards, then wait; the whole store, or None on a further rank that saw no end of it.

        Raises:
            Left: told to leave.
            Superseded: a newer attempt owns the run.
            ConnectionResetError: another rank left its shards undone.
            RuntimeError: no rank finished a shard for `runtime.hang_timeout_s`.
        """
        ended = False
        self._done = self._begun_with = self.writer.images_done()
        try:
            self.watchdog.start()
            missing = self._missing()
            self._begin(missing)
            self.run.at_work(max(self.before + self._done, self.saved))
            self._embed(missing)
            self.watchdog.stop()  # waiting has a patience of its own
            self.writer.end(attempt=self.run.attempt.number, rank=self.run.ranks.rank, done=True)
            ended = True
            if not self.run.is_main:
                self._wait_for_main(output)
                return None
            self._wait_for_others()
            ranks.withdraw(self.run.run_dir, self.run.ranks)  # everybody is here
            if not self.run.owns():
                raise Superseded
            return self.writer.finish(self.manifest, output)
        except BaseException:
            self.watchdog.stop()
            if not ended or self.run.is_main:
                with suppress(OSError):  # the reason that is on its way matters more
                    self.writer.end(attempt=self.run.attempt.number, rank=self.run.ranks.rank, done=False)
            raise

    def _missing(self) -> list[Shard]:
        """This rank's shards that are not there, or not as they were written."""
        missing: list[Shard] = []
        for number, shard in enumerate(self.layout.shards()):
            if number % self.run.ranks.world_size != self.run.ranks.rank:
                continue
            self.on_batch()
            if not self.writer.is_intact(shard):
                self.writer.discard(shard)
                missing.append(shard)
        return missing

    def _begin(self, missing: list[Shard]) -> None:
        """Say how many bytes and how much time are ahead."""
        if self.run.is_main and missing:
            self._say_what_is_ahead(missing)
        self._done = self._begun_with = self.writer.images_done()
        self._begun_at = self._changed_at = time.monotonic()

    def _say_what_is_ahead(self, missing: list[Shard]) -> None:
        ahead = self.layout.images - self.writer.images_done()
        free = shutil.disk_usage(self.run.run_dir.path).free
        rate = self._trial_rate(missing[0]) * self.run.ranks.world_size
        log.info(
            "%d of %d images to embed on %s x %d: %.2f GB of %.2f GB to write (%d bytes per image), about %s at %.1f images/s",
            ahead, self.layout.images, self.device.type, self.run.ranks.world_size, ahead * self.layout.bytes_per_image / 1e9,
            self.layout.images * self.layout.bytes_per_image / 1e9, self.layout.bytes_per_image, _duration(ahead / rate), rate,
        )  # fmt: skip
        if ahead * self.layout.bytes_per_image > free:
            log.warning("the file system has only %.2f GB free", free / 1e9)

    def _trial_rate(self, shard: Shard) -> float:
        """Images per second of one rank, from a short trial."""
        count = self.spec.batch_size if self.device.type == "cuda" else 2
        trial = Shard(part=shard.part, number=0, first=shard.first, count=min(count, shard.count))
        for _ in range(2):  # the first one warms up
            begun = time.monotonic()
            self._compute(trial)
        return trial.count / (time.monotonic() - begun)

    def _compute(self, shard: Shard) -> tuple[np.ndarray, float]:
        return embed_shard(
            self.backbone,
            self.images["test" if shard.part == "test" else "train"],
            shard,
            self.layout,
            batch_size=self.spec.batch_size,
            device=self.device,
            on_batch=self.on_batch,
        )

    def _embed(self, missing: list[Shard]) -> None:
        """Compute the shards; one is written while the next is computed."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards") as pool:
            writing: Future[bool] | None = None
            for shard in missing:
                rows, squared_error = self._compute(shard)
                _settle(writing)
                writing = pool.submit(self.writer.commit, shard, rows, squared_error=squared_error, may_commit=self.run.owns)
            _settle(writing)

    def on_batch(self) -> None:
        """Between batches: leave when told to, and now and then look at what all ranks have done.

        Raises:
            Left: told to leave, or rank 0 has left.
            Superseded: a newer attempt owns the run.
        """
        self.watchdog.beat()
        if self.run.is_main:
            if self.run.flag:
                self._look()
                self._save()
                self.run.leave(self.saved)
        elif self.run.flag.terminating:  # a warning alone is rank 0's to judge
            raise Left(0, None)
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._look()
        if not self.run.owns():
            raise Superseded
        if self.run.is_main:
            if time.monotonic() - self._saved_at >= min(CHECKPOINT_EVERY_S, self.spec.runtime.checkpoint_every_s):
                self._save()
        elif self.writer.ended(attempt=self.run.attempt.number).get(0) is False:
            raise Left(0, None)

    def _look(self) -> None:
        """Count what is there; on rank 0 write it down and say it."""
        self._looked_at = time.monotonic()
        done = self.writer.images_done()
        if done == self._done:
            return
        self._done, self._changed_at = done, self._looked_at
        if self.run.journal is None:
            return
        rate = (done - self._begun_with) / max(1e-9, self._looked_at - self._begun_at)
        step = max(self.before + done, self.saved)
        self.run.journal.metrics(step, {"embed/images": float(done), "embed/images_per_s": rate})
        self.run.journal.flush()
        if self._looked_at - self._said_at >= SAY_EVERY_S and rate > 0:
            self._said_at = self._looked_at
            left = _duration((self.layout.images - done) / rate)
            log.info("%d of %d images, %.1f images/s, about %s left", done, self.layout.images, rate, left)

    def _save(self) -> None:
        """Record how far the run is, if it is further than at the last time."""
        self._saved_at = time.monotonic()
        step, done = self.before + self._done, self._done
        if step <= self.saved:
            return
        self.run.checkpoint(step, lambda folder: _write_state(folder, done))
        self.saved = step

    def _wait_for_others(self) -> None:
        """Rank 0, its own shards done: until all are there and every rank has said so."""
        self._looked_at = -1e9
        while True:
            self.on_batch()
            ended = self.writer.ended(attempt=self.run.attempt.number)
            others = [rank for rank in range(1, self.run.ranks.world_size) if not ended.get(rank, False)]
            if not others and self.writer.is_complete():
                self._look()
                self._save()
                return
            if gone := [rank for rank in others if rank in ended]:
                if self.run.flag.wait(5.0):  # it was told to leave, and so are we
                    continue
                raise ConnectionResetError(f"Connection reset by peer: rank {gone[0]} left its shards undone")
            if time.monotonic() - self._changed_at > self.spec.runtime.hang_timeout_s:
                silent_s = self.spec.runtime.hang_timeout_s
                raise RuntimeError(
                    f"Timed out waiting for shards of rank {', '.join(map(str, others)) or '0'}: {self._done} of "
                    f"{self.layout.images} images are there, and no new ones for {silent_s:.0f} s (runtime.hang_timeout_s)"
                )
            self.run.flag.wait(0.05 if self.run.ranks.world_size == 1 else 0.2)

    def _wait_for_main(self, output: Path) -> None:
        """A further rank, its own shards done: until rank 0 has made the store whole, or nothing has happened for too long."""
        while not manifest_path(output).exists():
            with suppress(FileNotFoundError):  # rank 0 is just clearing the scratch directory
                self.on_batch()
            if time.monotonic() - self._changed_at > self.spec.runtime.hang_timeout_s:
                log.warning("no new shard for %.0f s; rank 0 has the last word", self.spec.runtime.hang_timeout_s)
                return
            time.sleep(0.2)


def _settle(writing: Future[bool] | None) -> None:
    if writing is not None and not writing.result():
        raise Superseded


def _write_state(folder: Path, done: int) -> None:
    (folder / "state.json").write_text(json.dumps({"images": done}), encoding="utf-8")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
