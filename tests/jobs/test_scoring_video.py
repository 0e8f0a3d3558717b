"""Scores of whole videos: the same for any chunks and batches, golden values through a model, and the noise of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.data.toy_video import ToyVideos
from jobs.data.video import Int64, VideoBatch, check_numbers
from jobs.data_spec import RecordRange, ToyVideoSpec
from jobs.scoring import Scored
from jobs.scoring_video import NoiseName, NoiseSource, score_videos
from models.build_video import build_video_slots
from models.spec_video import VideoSlotsSpec
from models.video_slots import VideoOutput, VideoSlots, VideoState, signed

FRAMES, SIDE, SLOTS = 7, 32, 3
CPU = torch.device("cpu")
GT = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]])
SWAPPED = np.array([[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [1, 1, 0, 0]])
MODEL: dict[str, Any] = {
    "resolution": SIDE, "num_slots": SLOTS, "num_iterations": 2, "slot_size": 8, "slot_mlp_size": 16, "encoder_channels": 8,
    "encoder_layers": 2, "decoder": {"initial_resolution": 8, "channels": 8},
}  # fmt: skip
V3 = MODEL | {"recurrence": {"detach_every": 1}}
V9 = MODEL | {"start": "gaussian_per_slot", "recurrence": {"num_iterations": 1, "predictor": {"kind": "mlp", "hidden": 8}}}
LSTM, CONV3D = MODEL | {"encoder_time": "conv_lstm"}, MODEL | {"encoder_time": "conv3d"}


def toy(count: int = 3) -> ToyVideos:
    spec = ToyVideoSpec.model_validate({"resolution": SIDE, "video_frames": FRAMES})
    return ToyVideos(spec=spec, videos=RecordRange(first=50, count=count))


def built(config: dict[str, Any] = MODEL) -> VideoSlots:
    model = build_video_slots(VideoSlotsSpec.model_validate(config), generator=torch.Generator().manual_seed(0))
    return model.eval()


@dataclass(frozen=True)
class Painted:
    """Videos whose images say which slot owns a pixel, by their red."""

    slots_NTSS: np.ndarray
    labels_NTSS: np.ndarray | None
    num_labels: int = 3

    @property
    def count(self) -> int:
        return len(self.slots_NTSS)

    @property
    def video_frames(self) -> int:
        return int(self.slots_NTSS.shape[1])

    @property
    def resolution(self) -> int:
        return int(self.slots_NTSS.shape[2])

    @property
    def has_labels(self) -> bool:
        return self.labels_NTSS is not None

    def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
        check_numbers(videos_B, frames_BT, count=self.count, video_frames=self.video_frames)
        slots = self.slots_NTSS[videos_B[:, None], frames_BT].astype(np.uint8)
        images = np.stack([slots, slots + 100, slots * 0], axis=-1)
        labels = None if self.labels_NTSS is None else self.labels_NTSS[videos_B[:, None], frames_BT].astype(np.uint8)
        return VideoBatch(images_BTSS3=images, labels_BTSS=labels)


def reads_slots(clips_BT3SS: Tensor, noise_BTKD: Tensor, state: VideoState | None = None) -> VideoOutput:
    """An oracle: masks are what the red of `Painted` says, and the reconstruction is the image."""
    slots_BTSS = (clips_BT3SS[:, :, 0] * 255).round().long()
    masks = torch.nn.functional.one_hot(slots_BTSS, noise_BTKD.shape[2]).movedim(-1, 2).float()
    nothing = VideoState(slots_BKD=noise_BTKD[:, 0], noise_BKD=noise_BTKD[:, 0], frames=0)
    return VideoOutput(signed(clips_BT3SS), masks, noise_BTKD, noise_BTKD, masks[:, :, :, None].repeat(1, 1, 1, 3, 1, 1), nothing)


def enlarged(*frames: np.ndarray) -> np.ndarray:
    return np.kron(np.stack(frames), np.ones((1, 3, 3), np.int64))[None]


def score(model: Any, videos: Any, **changes: Any) -> Scored:
    fixed_KD = getattr(model, "eval_noise_KD", torch.zeros(SLOTS, 8))
    name: NoiseName = changes.pop("noise", "fresh")
    settings: dict[str, Any] = {"noise_seed": 3, "batch_size": 2, "chunk": 24, "device": CPU}
    return score_videos(model, videos, np.arange(videos.count), noise=NoiseSource(name, fixed_KD), **(settings | changes))


@pytest.mark.parametrize("config", [MODEL, V3, V9, LSTM, CONV3D], ids=["V0", "V3", "V9", "ConvLSTM", "3-D convolutions"])
def test_that_scores_depend_on_chunks_and_batches_by_rounding_alone(config: dict[str, Any]) -> None:
    """Where two slots share a pixel alike, rounding decides which of them owns it."""
    model, videos = built(config), toy()
    whole = score(model, videos, batch_size=3, keep=2)
    for chunk, batch_size in ((1, 3), (3, 3), (4, 1), (100, 2)):
        other = score(model, videos, chunk=chunk, batch_size=batch_size, keep=2)
        assert list(other.per_image) == list(whole.per_image)
        for name, values in whole.per_image.items():
            atol = 1e-5 if name in ("mse", "psnr", "mask_entropy") else 0.01
            np.testing.assert_allclose(other.per_image[name], values, rtol=1e-4, atol=atol, equal_nan=True, err_msg=name)
        np.testing.assert_array_equal(other.objects_N, whole.objects_N)
        assert [film.slots_TSS.shape for film in other.films] == [(FRAMES, SIDE, SIDE)] * 2
        np.testing.assert_array_equal(other.films[1].images_TSS3, whole.films[1].images_TSS3)
        assert (other.films[1].slots_TSS == whole.films[1].slots_TSS).mean() > 0.99


def test_that_equal_masks_score_exactly_alike_in_any_chunks_and_batches() -> None:
    draw = np.random.default_rng(0)
    videos = Painted(draw.integers(0, SLOTS, (4, FRAMES, 16, 16)), draw.integers(0, 3, (4, FRAMES, 16, 16)))
    whole = score(reads_slots, videos)
    for chunk, batch_size in ((1, 1), (2, 3), (3, 4), (6, 2)):
        other = score(reads_slots, videos, chunk=chunk, batch_size=batch_size)
        for name, values in whole.per_image.items():
            np.testing.assert_array_equal(other.per_image[name], values, err_msg=name)


def test_that_slots_are_carried_from_chunk_to_chunk() -> None:
    """Otherwise a recurrent model would find other slots in the second chunk."""
    model, videos = built(V3), toy()

    def forgets(clips: Tensor, noise: Tensor, state: VideoState | None) -> VideoOutput:
        found: VideoOutput = model(clips, noise, None)
        return found

    forgets.eval_noise_KD = model.eval_noise_KD  # type: ignore[attr-defined]  # a function may carry what `score` looks for
    carried, forgotten = score(model, videos, chunk=3), score(forgets, videos, chunk=3)
    assert not np.allclose(carried.per_image["mse"], forgotten.per_image["mse"], rtol=1e-4)


def test_that_a_perfect_model_scores_one() -> None:
    truth = enlarged(GT, GT, GT.T, GT)
    found = score(reads_slots, Painted(truth, truth), chunk=3)
    means = found.means()
    for name in ("fg_ari", "video_fg_ari", "tube_miou", "tube_mbo", "mota", "motp", "idf1"):
        assert means[name] == 1.0, name
    for name in ("fg_ari_gap", "id_switches_per_100_frames", "mask_entropy", "mse"):
        assert means[name] == 0.0, name
    assert means["psnr"] == 100.0
    assert means["slots_used"] == 3.0
    assert means["largest_share"] == pytest.approx(10 / 16)
    assert found.objects_N.tolist() == [2]


@pytest.mark.parametrize("chunk", [1, 2])
def test_that_a_swap_of_identities_scores_as_the_golden_values_say(chunk: int) -> None:
    found = score(reads_slots, Painted(enlarged(GT, SWAPPED), enlarged(GT, GT)), chunk=chunk).means()
    once = score(reads_slots, Painted(np.stack([[GT, SWAPPED]]), np.stack([[GT, GT]])), chunk=chunk).means()
    assert once["fg_ari"] == 1.0
    assert once["video_fg_ari"] == pytest.approx(-0.087912, abs=1e-6)
    assert once["fg_ari_gap"] == pytest.approx(1.087912, abs=1e-6)
    assert once["tube_miou"] == once["tube_mbo"] == pytest.approx(0.325)
    assert found["tube_miou"] == pytest.approx(0.325)
    assert found["id_switches_per_100_frames"] == 50.0
    assert (found["mota"], found["motp"], found["idf1"]) == (0.5, 1.0, 0.5)


def test_that_errors_are_those_of_whole_videos() -> None:
    """Unequal chunks count by their frames; the units are the model's, and of psnr those of images in [0, 1]."""

    def grey(clips: Tensor, noise: Tensor, state: VideoState | None) -> VideoOutput:
        return reads_slots(clips, noise)._replace(reconstruction=torch.full_like(clips, -2.0))  # below black: shown as black

    truth = enlarged(GT, GT, GT.T, GT, SWAPPED)
    videos = Painted(truth, truth)
    images = videos.read(np.array([0]), np.arange(5)[None]).images_BTSS3 / 255
    found = score(grey, videos, chunk=3).means()
    assert found["mse"] == pytest.approx(((2 * images - 1 + 2) ** 2).mean(), rel=1e-6)
    per_frame = (images**2).mean(axis=(2, 3, 4))
    assert found["psnr"] == pytest.approx((-10 * np.log10(per_frame)).mean(), rel=1e-6)


def test_that_videos_without_masks_are_scored_by_reconstruction_and_use_of_slots_alone() -> None:
    truth = enlarged(GT, SWAPPED)
    found = score(reads_slots, Painted(truth, None, num_labels=1), keep=1)
    known = score(reads_slots, Painted(truth, truth))
    assert set(found.per_image) == {"mse", "psnr", "mask_entropy", "slots_used", "largest_share"}
    assert found.objects_N.size == 0
    assert found.films[0].labels_TSS is None
    for name, values in found.per_image.items():
        np.testing.assert_array_equal(values, known.per_image[name])


def test_that_a_video_without_objects_is_counted_and_left_out_of_means() -> None:
    truth = np.concatenate([enlarged(GT, GT), 0 * enlarged(GT, GT)])
    found = score(reads_slots, Painted(truth, truth), batch_size=1)
    assert found.objects_N.tolist() == [2, 0]
    assert np.isnan(found.per_image["video_fg_ari"]).tolist() == [False, True]
    assert found.means()["video_fg_ari"] == 1.0


def test_that_fresh_noise_is_named_by_seed_video_and_frame() -> None:
    source = NoiseSource("fresh", torch.zeros(2, 3))
    whole = source.draw(0, np.arange(4), np.arange(5))
    assert whole.shape == (4, 5, 2, 3)
    assert len(torch.unique(whole.flatten(2).flatten(0, 1), dim=0)) == 20
    torch.testing.assert_close(source.draw(0, np.array([3]), np.array([2, 4])), whole[3:, [2, 4]], rtol=0, atol=0)
    assert not torch.equal(source.draw(1, np.arange(4), np.arange(5)), whole)


def test_that_fixed_noise_is_the_checkpoints_for_all_seeds_videos_and_frames() -> None:
    fixed = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        found = NoiseSource("fixed", fixed).draw(seed, np.arange(4), np.arange(5))
        assert torch.equal(found, fixed.expand(4, 5, 2, 3))


def test_that_noise_fixed_per_seed_is_equal_over_frames_and_differs_between_seeds() -> None:
    one, other = (NoiseSource("fixed_per_seed", torch.zeros(2, 3)).draw(seed, np.arange(4), np.arange(5)) for seed in (0, 1))
    assert torch.equal(one, one[:1, :1].expand(4, 5, 2, 3))
    assert not torch.equal(one, other)
    assert one.std() > 0


def test_that_fixed_noise_aligns_the_slots_of_equal_frames() -> None:
    """V1: equal noise and equal frames give equal masks, so nothing is lost over time; fresh noise permutes them."""
    model = built()
    still = toy(1).read(np.zeros(1, np.int64), np.zeros((1, 1), np.int64))

    class Still(Painted):
        def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
            assert still.labels_BTSS is not None
            size = (1, frames_BT.shape[1], 1, 1)
            return VideoBatch(images_BTSS3=np.tile(still.images_BTSS3, (*size, 1)), labels_BTSS=np.tile(still.labels_BTSS, size))

    empty = np.zeros((1, FRAMES, SIDE, SIDE), np.int64)
    fixed, fresh = (score(model, Still(empty, empty, num_labels=7), noise=name, keep=1, chunk=3) for name in ("fixed", "fresh"))
    slots = fixed.films[0].slots_TSS
    assert all(np.array_equal(frame, slots[0]) for frame in slots)
    assert not all(np.array_equal(frame, fresh.films[0].slots_TSS[0]) for frame in fresh.films[0].slots_TSS)
    assert abs(fixed.per_image["fg_ari_gap"].item()) < 0.02  # not 0: of more pixels, fewer pairs are a pixel with itself


def test_that_no_videos_have_no_scores() -> None:
    found = score_videos(
        built(), toy(), np.zeros(0, np.int64), noise=NoiseSource("fresh", torch.zeros(SLOTS, 8)), noise_seed=0, batch_size=2,
        chunk=4, device=CPU,
    )  # fmt: skip
    assert (found.per_image, found.films, found.objects_N.size) == ({}, [], 0)
