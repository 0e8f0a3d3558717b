"""Score one training run on held-out data, with several noise seeds. A run of its own, preemptible per piece."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from jobs import ranks
from jobs.attempt import Finished, Refused, Run
from jobs.data.clip_store import ClipStore
from jobs.data.coco_store import CocoStore
from jobs.data.part_store import PartStore
from jobs.data.store import ImageStore
from jobs.data.video_store import VideoStore
from jobs.distributed import Group, join
from jobs.evaluate_parts import PartEvaluation
from jobs.evaluate_video import VideoEvaluation
from jobs.inputs import images_of, needed_run, open_samples, open_store
from jobs.pieces import Pieces
from jobs.protocols import LabelSet, label_set
from jobs.randomness import derived_seed
from jobs.samples import Pixels, Samples
from jobs.scoring import Scored, score_images
from jobs.spec import EvaluateSpec, TrainSpec
from jobs.state import WEIGHTS
from jobs.watchdog import Watchdog
from models.build import build_model
from models.slot_model import SlotModel
from models.spec import DinosaurSpec
from models.video_slots import VideoSlots

PIECE_IMAGES = 1000
"""What a kill without notice costs at most."""


def load_trained(run: Run, device: torch.device) -> tuple[SlotModel, TrainSpec]:
    """The model of the needed training run, with its weights."""
    needed, spec = needed_run(run, "train")
    assert isinstance(spec, TrainSpec)
    generator = torch.Generator().manual_seed(derived_seed(spec.seed, "weights") % 2**63)
    model = build_model(spec.model, generator=generator)
    model.load_state_dict(torch.load(needed.output / WEIGHTS, map_location="cpu", weights_only=True))
    return model.to(device).eval(), spec


@dataclass(kw_only=True)
class ImageEvaluation(Pieces):
    """Pieces of at most PIECE_IMAGES images."""

    store: ImageStore | CocoStore | ClipStore
    model: SlotModel
    samples: Samples = field(init=False)
    labels: LabelSet = field(init=False)
    pictures_NHWC: Pixels = field(init=False)

    def __post_init__(self) -> None:
        self.labels = label_set(self.store, self.spec.protocol, every=self.spec.every)
        self.samples = open_samples(self.run, self.trained, self.store, "test", self.group.device)
        self.pictures_NHWC = images_of(self.store, "test")
        if not self.count:
            masks = len(self.labels.instances_NHW)
            raise Refused(f"protocol {self.spec.protocol} scores none of the {masks} test images")

    @property
    def count(self) -> int:
        """How many images the protocol scores."""
        return len(self.labels.scored())

    @property
    def piece_size(self) -> int:
        """As PIECE_IMAGES says."""
        return PIECE_IMAGES

    @property
    def batch_size(self) -> int:
        """As the specification says."""
        return self.spec.batch_size

    def score(self, noise_seed: int, first: int, count: int, *, keep: int) -> Scored:
        """Score images; of the first `keep` a look is kept."""
        gated = isinstance(self.trained.model, DinosaurSpec) and self.trained.model.gate is not None
        return score_images(
            self.model,
            self.samples,
            self.labels,
            noise_seed=noise_seed,
            batch_size=self.batch_size,
            device=self.group.device,
            first=first,
            count=count,
            gate_noise=not gated or self.spec.gate == "noisy",
            text_swap=True,
            pictures_NHWC=self.pictures_NHWC,
            keep=keep,
        )

    def counts(self) -> dict[str, float]:
        """Images, and those without an object where masks are known."""
        counts = {"eval/images": float(self.count)}
        if self.labels.has_masks:
            counts["eval/images_without_objects"] = float(self.progress.without_objects)
        return counts


def evaluate(run: Run) -> Finished:
    """Mean scores over images and noise seeds; output is `output/scores.json`, and pictures among the artifacts."""
    spec = run.frozen.config
    assert isinstance(spec, EvaluateSpec)
    group = join(run, precision="fp32", timeout_s=spec.runtime.hang_timeout_s)  # whatever the run was trained in
    if run.is_main:
        ranks.withdraw(run.run_dir, run.ranks)  # everybody is here
    watchdog = Watchdog(timeout_s=spec.runtime.hang_timeout_s, on_hang=run.end_hung).start()
    try:
        evaluation = _evaluation(run, spec, group, watchdog)
        evaluation.steps(evaluation.restore())
        found = evaluation.finish() if run.is_main else Finished(step=0)
        group.tell("done")  # nobody leaves while another rank still needs it
        group.close()
    finally:
        watchdog.stop()
    return found


def _evaluation(run: Run, spec: EvaluateSpec, group: Group, watchdog: Watchdog) -> Pieces:
    """That of the store's kind; raises Refused and DataError."""
    model, trained = load_trained(run, group.device)
    store = open_store(run)
    if isinstance(store, VideoStore):
        assert isinstance(model, VideoSlots)
        videos = store.videos("test")
        return VideoEvaluation(run=run, spec=spec, group=group, watchdog=watchdog, trained=trained, videos=videos, model=model)
    if isinstance(store, PartStore):
        return PartEvaluation(run=run, spec=spec, group=group, watchdog=watchdog, trained=trained, store=store, model=model)
    return ImageEvaluation(run=run, spec=spec, group=group, watchdog=watchdog, trained=trained, store=store, model=model)
