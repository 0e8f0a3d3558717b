"""Scores of one model on whole videos, which go through it in chunks of frames with the slots carried on.

A score of a video is taken from its whole table of pixels. Noise is named by (noise seed, video, frame), so a score depends on
the chunks and on the batch by the model's rounding alone. Without true masks there are scores of the reconstruction and of how
the slots are used.

Legend: B videos, T frames of each, M = B * T of a chunk, S pixels of the square's side, C labels (0 = background), K slots,
D slot size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, assert_never

import numpy as np
import torch
from torch import Tensor

from jobs.data.video import Int64, Videos
from jobs.films import Film
from jobs.protocols import predicted_ids
from jobs.randomness import standard_normal
from jobs.scoring import Scored
from models import video_scores
from models.video_slots import VideoOutput, VideoState, signed

NoiseName = Literal["fresh", "fixed", "fixed_per_seed"]
LEAST_ERROR = 1e-10
"""Of images in [0, 1]: a smaller one counts as this, 100 dB."""

VideoModel = Callable[[Tensor, Tensor, VideoState | None], VideoOutput]
"""As `VideoSlots.forward`."""


class NoiseSource(NamedTuple):
    """Where the noise of frames comes from."""

    name: NoiseName
    fixed_KD: Tensor
    """The checkpoint's; otherwise only its shape counts."""

    def draw(self, noise_seed: int, videos_B: Int64, frames_T: Int64) -> Tensor:
        """Noise [B,T,K,D] of these frames, on the CPU but for `fixed`."""
        shape, size = (int(self.fixed_KD.shape[0]), int(self.fixed_KD.shape[1])), (len(videos_B), len(frames_T))
        match self.name:
            case "fresh":
                drawn = [standard_normal(shape, noise_seed, "evaluation", int(i), int(t)) for i in videos_B for t in frames_T]
                return torch.from_numpy(np.stack(drawn)).view(*size, *shape)
            case "fixed_per_seed":
                return torch.from_numpy(standard_normal(shape, noise_seed, "evaluation")).expand(*size, *shape)
            case "fixed":
                return self.fixed_KD.expand(*size, *shape)
            case _:
                assert_never(self.name)


@dataclass(kw_only=True)
class _Chunks:
    """What was found in the chunks of some videos so far; each entry has an axis [B,t], on the CPU."""

    per_frame: dict[str, list[Tensor]] = field(default_factory=dict)
    counts_BtCK: list[Tensor] = field(default_factory=list)
    slots_BtSS: list[Tensor] = field(default_factory=list)
    reconstruction_Bt3SS: list[Tensor] = field(default_factory=list)
    """uint8, of the first videos only."""

    def add(self, output: VideoOutput, clips_BT3SS: Tensor, labels_BTSS: Tensor | None, *, num_labels: int, keep: int) -> None:
        """Count one chunk."""
        videos, frames, slots, side = output.masks_BTKHW.shape[:4]
        masks_MKSS = output.masks_BTKHW.flatten(0, 1)
        ids_BTSS = predicted_ids(masks_MKSS, (side, side), "own").view(videos, frames, side, side)
        known_BTSS = torch.zeros_like(ids_BTSS) if labels_BTSS is None else labels_BTSS
        counts_BTCK = video_scores.frame_tables(known_BTSS, ids_BTSS, num_labels=num_labels, num_predictions=slots)
        shown_BT3SS = ((output.reconstruction + 1) / 2).clamp(0, 1)
        found = {
            "mse": (output.reconstruction - signed(clips_BT3SS)).square(),
            "psnr": (shown_BT3SS - clips_BT3SS).square(),
        }
        for name, errors_BT3SS in found.items():
            self.per_frame.setdefault(name, []).append(errors_BT3SS.flatten(2).double().mean(dim=2).cpu())
        entropy_M = video_scores.mask_entropy(masks_MKSS[:, None])
        self.per_frame.setdefault("mask_entropy", []).append(entropy_M.view(videos, frames).cpu())
        self.counts_BtCK.append(counts_BTCK.cpu())
        if keep > 0:
            self.slots_BtSS.append(ids_BTSS[:keep].cpu())
            self.reconstruction_Bt3SS.append((shown_BT3SS[:keep] * 255).round().to(torch.uint8).cpu())

    def scores(self, *, has_labels: bool) -> dict[str, Tensor]:
        """Every score [B], and `objects` when masks are known."""
        per_frame = {name: torch.cat(parts, dim=1) for name, parts in self.per_frame.items()}
        per_frame["psnr"] = -10 * per_frame["psnr"].clamp(min=LEAST_ERROR).log10()
        found = {name: values_BT.mean(dim=1) for name, values_BT in per_frame.items()}
        return found | table_scores(torch.cat(self.counts_BtCK, dim=1), has_labels=has_labels)

    def films(self, images_BTSS3: np.ndarray, labels_BTSS: np.ndarray | None, *, keep: int) -> list[Film]:
        """Of the first `keep` videos."""
        if keep <= 0:
            return []
        slots_BTSS = torch.cat(self.slots_BtSS, dim=1).numpy()
        reconstruction_BTSS3 = torch.cat(self.reconstruction_Bt3SS, dim=1).movedim(2, -1).numpy()
        return [
            Film(
                images_TSS3=images_BTSS3[i],
                labels_TSS=None if labels_BTSS is None else labels_BTSS[i],
                slots_TSS=slots_BTSS[i],
                reconstruction_TSS3=reconstruction_BTSS3[i],
            )
            for i in range(len(slots_BTSS))
        ]


def table_scores(counts_BTCK: Tensor, *, has_labels: bool) -> dict[str, Tensor]:
    """Scores [B] from counts of pixels by frame, label and slot; without labels (C = 1) of how the slots are used alone."""
    used = {"slots_used": video_scores.slots_used(counts_BTCK), "largest_share": video_scores.largest_share(counts_BTCK)}
    if not has_labels:
        return used
    tracks = video_scores.tracks(counts_BTCK)
    return used | {
        "fg_ari": video_scores.frame_fg_ari(counts_BTCK),
        "video_fg_ari": video_scores.video_fg_ari(counts_BTCK),
        "fg_ari_gap": video_scores.fg_ari_gap(counts_BTCK),
        "tube_miou": video_scores.tube_miou(counts_BTCK),
        "tube_mbo": video_scores.tube_mbo(counts_BTCK),
        "id_switches_per_100_frames": tracks.switch_rate(),
        "mota": tracks.mota(),
        "motp": tracks.motp(),
        "idf1": tracks.idf1(),
        "objects": (counts_BTCK[:, :, 1:].sum(dim=(1, 3)) > 0).sum(dim=1),
    }


@torch.no_grad()
def score_videos(
    model: VideoModel,
    videos: Videos,
    chosen_N: Int64,
    *,
    noise: NoiseSource,
    noise_seed: int,
    batch_size: int,
    chunk: int,
    device: torch.device,
    keep: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> Scored:
    """Score `model` in fp32 on every frame of the videos with the numbers `chosen_N` (maybe none), in that order.

    `batch_size` videos at a time go through the model, `chunk` frames of each. Of the first `keep` videos a film is kept.
    `beat` is called before each chunk.
    """
    frames = videos.video_frames
    found: dict[str, list[Tensor]] = {}
    films: list[Film] = []
    for start in range(0, len(chosen_N), batch_size):
        videos_B = chosen_N[start : start + batch_size]
        batch = videos.read(videos_B, np.tile(np.arange(frames), (len(videos_B), 1)))
        wanted = min(keep - len(films), len(videos_B))
        chunks, state = _Chunks(), None
        for first in range(0, frames, chunk):
            beat()
            part = slice(first, first + chunk)
            images_BTSS3 = torch.from_numpy(batch.images_BTSS3[:, part]).to(device)
            labels_BTSS = None if batch.labels_BTSS is None else torch.from_numpy(batch.labels_BTSS[:, part]).to(device)
            clips_BT3SS = images_BTSS3.movedim(-1, 2).float() / 255
            noise_BTKD = noise.draw(noise_seed, videos_B, np.arange(frames)[part]).to(device)
            output = model(clips_BT3SS, noise_BTKD, state)
            state = output.state
            chunks.add(output, clips_BT3SS, labels_BTSS, num_labels=videos.num_labels, keep=wanted)
        for name, values_B in chunks.scores(has_labels=batch.labels_BTSS is not None).items():
            found.setdefault(name, []).append(values_B.double().cpu())
        films += chunks.films(batch.images_BTSS3, batch.labels_BTSS, keep=wanted)
    per_video = {name: torch.cat(values).numpy() for name, values in found.items()}
    objects_N = per_video.pop("objects", np.zeros(0))
    return Scored(per_image=per_video, objects_N=objects_N.astype(np.int64), films=films)
