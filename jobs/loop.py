"""The training loop of one attempt: steps, boundaries where it saves or leaves, the short look at held-out images."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from jobs import environment, films, panels, part_panels, scoring
from jobs.accumulation import micro_batches
from jobs.attempt import Run
from jobs.batches import Batch, StepDataset, step_batches
from jobs.checkpoint import Checkpoint
from jobs.data.clip_store import ClipStore
from jobs.data.coco_store import CocoStore
from jobs.data.part_store import PartStore
from jobs.data.sampler import StepSampler
from jobs.data.store import ImageStore
from jobs.data.video_store import VideoStore
from jobs.distributed import Group, leave_together
from jobs.gradients import step_gradients
from jobs.inputs import Store, images_of, needed_run, open_samples
from jobs.journal import START
from jobs.optimizer import learning_rate, set_rate
from jobs.protocols import label_set
from jobs.samples import Samples
from jobs.saving import Saver
from jobs.scoring import Scored
from jobs.scoring_parts import PartTruth, pooled_means, score_parts
from jobs.scoring_video import NoiseName, NoiseSource, score_videos
from jobs.spec import TrainSpec, WarmStartSpec
from jobs.state import WEIGHTS, TrainState, loss_names
from jobs.warm_start import read_weights, warm_start
from jobs.watchdog import Watchdog
from models.spec_video import VideoSlotsSpec
from models.video_slots import VideoSlots

log = logging.getLogger("jobs")

VALIDATED: tuple[str, ...] = ("fg_ari", "video_fg_ari", "video_fg_ari_fixed", "mse")
"""Scores of the short look at held-out images or videos."""
OF_PARTS = ("nmi", "fg_nmi", "nmi_hard", "fg_nmi_hard")
"""Of part models."""
CLIP_STRIDE = 13
"""Of clips the short look sees every 13th frame: neighbours resemble each other, and 13 visits all places of a clip's 34."""


@dataclass(kw_only=True)
class Training:
    """One attempt's loop."""

    run: Run
    spec: TrainSpec
    group: Group
    store: Store
    state: TrainState
    watchdog: Watchdog
    samples: Samples = field(init=False)
    saver: Saver = field(init=False)
    accumulation: int = field(init=False)
    """Micro-batches of each rank per step."""
    _held_out: Samples | None = None
    _flushed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.samples = open_samples(self.run, self.spec, self.store, "train", self.group.device)
        self.saver = Saver(run=self.run, state=self.state, runtime=self.spec.runtime)
        self.accumulation = micro_batches(
            self.spec.runtime.accumulation,
            planned_tasks=self.run.frozen.planned_tasks,
            world_size=self.group.world_size,
            batch_size=self.spec.batch_size,
        )

    def restore(self) -> None:
        """Rank 0 picks the newest valid checkpoint and tells the others which; every rank loads it."""
        step = -1
        if self.run.is_main:
            found = self.run.restore_point()
            step = -1 if found is None else found.step
            self._note_start(found)
            if found is None and self.spec.warm_start is not None:
                self._warm_start(self.spec.warm_start)
        step = self.group.tell_number(step)
        if step >= 0:
            self.state.load(self.run.run_dir.checkpoints / f"step-{step:010d}")
        self.group.copy_from_main([*self.state.model.state_dict().values(), *self.state.objective.state_dict().values()])
        self.saver.restored(self.state.step)

    def _warm_start(self, spec: WarmStartSpec) -> None:
        """Take the earlier run's weights (rank 0; the others receive them with the state)."""
        assert self.run.journal is not None
        needed, _ = needed_run(self.run, "train")
        weights = read_weights(needed.output / WEIGHTS)
        report = warm_start(self.state.model, weights, fresh=spec.fresh, source=needed.id)
        log.info("from %s: %s", needed.id, report.worded())
        self.run.journal.event(0, "warm_start", source=needed.id, loaded=len(report.loaded), fresh=list(report.fresh))

    def _note_start(self, found: Checkpoint | None) -> None:
        assert self.run.journal is not None
        mine = (self.group.world_size, self.spec.runtime.threads)
        step = 0 if found is None else found.step
        self.run.journal.event(
            step, START, cpu=environment.cpu_model(), device=str(self.group.device), world_size=mine[0], threads=mine[1],
            accumulation=self.accumulation,
        )  # fmt: skip
        log.info("world size %d, %d micro-batches per step and rank", mine[0], self.accumulation)
        if found is not None and (found.world_size, found.threads) != mine:
            log.warning(
                "the checkpoint was made with %s ranks and %s threads, this attempt has %s and %s: "
                "equal up to reduction order, not bit for bit",
                found.world_size, found.threads, *mine,
            )  # fmt: skip

    def steps(self) -> None:
        """Run to the last step, saving and leaving as asked."""
        dataset = StepDataset(
            samples=self.samples,
            sampler=self.sampler(),
            seed=self.spec.seed,
            noise_shape=(*(() if self.spec.clip is None else (self.spec.clip.frames,)), *self.state.model.noise_shape),
            rank=self.group.rank,
            world_size=self.group.world_size,
            flip=self.spec.flip,
            shuffled=self.spec.told == "shuffled",
        )
        batches = step_batches(
            dataset,
            start=self.state.step,
            stop=self.spec.steps,
            workers=self.spec.runtime.workers,
            device=self.group.device,
        )
        forward = torch.compile(self.state.model) if self.spec.compile else self.state.model
        while True:
            self._at_boundary()
            if self.state.step >= self.spec.steps:
                return
            self._one_step(next(batches), forward)

    def sampler(self) -> StepSampler:
        """Which images make each step's batch."""
        return StepSampler(
            count=self.samples.count,
            batch_size=self.spec.batch_size,
            seed=self.spec.seed,
            drop_last=self.spec.drop_last,
        )

    def _one_step(self, batch: Batch, forward: object) -> None:
        state, spec = self.state, self.spec
        rate = learning_rate(spec.optimizer, state.step)
        set_rate(state.optimizer, rate)
        state.optimizer.zero_grad(set_to_none=False)
        sums = step_gradients(
            forward,  # type: ignore[arg-type]  # torch.compile keeps the call signature
            state.objective,
            batch,
            self.group,
            step=state.step + 1,
            accumulation=self.accumulation,
        )
        names = loss_names(spec)
        zero = torch.zeros((), device=self.group.device)
        local = torch.stack([sums.get(name, zero).float() for name in names])
        totals = self.group.sum_gradients(state.parameters(), local)
        norm = self._clip()
        state.optimizer.step()
        state.step += 1
        self.run.at_work(state.step)
        self.watchdog.beat()
        if state.step % spec.runtime.log_every == 0 or state.step == spec.steps:
            self._log(dict(zip(names, totals.tolist(), strict=True)), rate, norm)
        if state.step % spec.validation.every_steps == 0 and state.step < spec.steps:
            self._validate()

    def _clip(self) -> torch.Tensor | None:
        limit, parameters = self.spec.optimizer.grad_clip, self.state.parameters()
        if limit is None or not parameters:
            return None
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def _log(self, values: dict[str, float], rate: float, norm: torch.Tensor | None) -> None:
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss is {values['loss']} at step {self.state.step}")
        if self.run.journal is None:
            return
        metrics = {f"train/{name}": value for name, value in values.items()} | {"train/learning_rate": rate}
        if norm is not None:
            metrics["train/grad_norm"] = float(norm)
        self.run.journal.metrics(self.state.step, metrics)
        now = time.monotonic()
        if now - self._flushed_at >= 1.0:
            self.run.journal.flush()
            self._flushed_at = now

    def _at_boundary(self) -> None:
        """Between two steps: save when it is time, leave when we are told to."""
        step = self.state.step
        self.saver.check()
        stop, save = self.group.agree(step, stop=bool(self.run.flag), save=self.saver.overdue())
        if save or stop or self.saver.due():
            self.saver.save(whole=stop)
        if stop:
            leave_together(self.run, self.group, step)

    def _validate(self) -> None:
        """A short look at held-out images or videos, on rank 0: the others meet it again at their next collective."""
        if self.run.journal is None:
            return
        look = self.spec.validation
        names = VALIDATED
        match self.store:
            case VideoStore() as store:
                scored = self._look_at_videos(store, "fresh", keep=look.panel_images)
                means = scored.means()
                if self._starts_from_noise():
                    fixed = self._look_at_videos(store, "fixed", keep=0)
                    means |= {"video_fg_ari_fixed": fixed.means()["video_fg_ari"]}
            case PartStore() as store:
                scored, names = self._look_at_parts(store), OF_PARTS
                means = pooled_means(scored.per_image)
            case store:
                scored = self._look_at_images(store)
                means = scored.means()
        seen = {f"valid/{name}": means[name] for name in names if not math.isnan(means.get(name, math.nan))}
        self.run.journal.metrics(self.state.step, seen)
        if self.state.step // look.every_steps % look.panel_every == 0:
            picture = self.run.run_dir.artifacts / f"panel-{self.state.step:010d}.png"
            panels.save_panel(scored.kept, picture)
            part_panels.save_part_panel(scored.parts, picture)
            films.save_sheet(scored.films, picture)
        self.watchdog.beat()

    def _starts_from_noise(self) -> bool:
        """Whether a video model's slots would follow other noise otherwise."""
        return isinstance(self.spec.model, VideoSlotsSpec) and self.spec.model.start != "learned"

    def _look_at_videos(self, store: VideoStore, noise: NoiseName, *, keep: int) -> Scored:
        """Whole videos; `noise` of their frames as an evaluation's."""
        look, videos = self.spec.validation, store.videos("test")
        model = self.state.model
        assert isinstance(model, VideoSlots)
        frames = 1 if self.spec.clip is None else self.spec.clip.frames
        return score_videos(
            model,
            videos,
            np.arange(min(look.images, videos.count)),
            noise=NoiseSource(noise, model.eval_noise_KD),
            noise_seed=look.noise_seed,
            batch_size=self.spec.batch_size,
            chunk=frames,
            device=self.group.device,
            keep=keep,
            beat=self.watchdog.beat,
        )

    def _look_at_parts(self, store: PartStore) -> Scored:
        """Raises DataError as `PartTruth.of`."""
        look, truth = self.spec.validation, PartTruth.of(store, "test")
        return score_parts(
            self.state.model,
            truth,
            np.arange(min(look.images, len(truth.split))),
            noise_seed=look.noise_seed,
            batch_size=self.spec.batch_size,
            device=self.group.device,
            keep=look.panel_images,
        )

    def _look_at_images(self, store: ImageStore | CocoStore | ClipStore) -> Scored:
        look = self.spec.validation
        if self._held_out is None:
            self._held_out = open_samples(self.run, self.spec, self.store, "test", self.group.device, like=self.samples)
        return scoring.score_images(
            self.state.model,
            self._held_out,
            label_set(store, "own", every=CLIP_STRIDE if isinstance(store, ClipStore) else 1),
            count=look.images,
            noise_seed=look.noise_seed,
            batch_size=self.spec.batch_size,
            device=self.group.device,
            pictures_NHWC=images_of(store, "test"),
            keep=look.panel_images,
        )
