"""The video model: sizes, coupled keys, every variant against the plain loop over frames, carried state, evaluation noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_video import PlainVideo, counterparts, seeded, twins
from pydantic import ValidationError
from torch import Tensor, nn

from models.build_video import build_video_slots
from models.spec_base import UpsamplingDecoder
from models.spec_video import MlpPredictor, Recurrence, TransformerPredictor, VideoSlotsSpec
from models.video_slots import VideoOutput, VideoSlots, VideoState, signed, slot_reconstructions

SMALL = VideoSlotsSpec(
    resolution=16,
    num_slots=3,
    slot_size=8,
    num_iterations=2,
    slot_mlp_size=9,
    encoder_channels=6,
    encoder_layers=2,
    decoder=UpsamplingDecoder(channels=7, initial_resolution=4),
)
FRAMES = 5
ATTEND = TransformerPredictor(heads=2, feedforward=12)


def small(**changes: Any) -> VideoSlotsSpec:
    """Validated, unlike a copy."""
    return VideoSlotsSpec.model_validate(SMALL.model_dump() | changes)


def recurrent(detach_every: int = 1, **changes: Any) -> dict[str, Any]:
    return {"recurrence": Recurrence(detach_every=detach_every, num_iterations=2).model_copy(update=changes).model_dump()}


SPECS = {
    "V0 per frame": SMALL,
    "V1b one noise per clip": small(noise="clip"),
    "fixed noise": small(noise="fixed"),
    "V2 full gradient": small(**recurrent(0)),
    "V3 detached": small(**recurrent(1)),
    "truncated every 2": small(**recurrent(2)),
    "V7 learned": small(start="learned"),
    "V7 mu and sigma per slot": small(start="gaussian_per_slot"),
    "V3 and V7": small(start="learned", **recurrent(1)),
    "fewer iterations later": small(num_iterations=3, **recurrent(1, num_iterations=1)),
    "V9 SAVi": small(start="learned", encoder_norm=True, encoder_stride=2, **recurrent(0, num_iterations=1, predictor=ATTEND)),
    "pre-norm, two layers": small(**recurrent(1, predictor=ATTEND.model_copy(update={"layers": 2, "pre_norm": True}))),
    "MLP between frames": small(**recurrent(0, predictor=MlpPredictor(hidden=5))),
    "frozen mu and sigma": small(trainable_start=False),
}


def built(spec: VideoSlotsSpec, seed: int = 0) -> VideoSlots:
    return build_video_slots(spec, generator=seeded(seed))


def batch(spec: VideoSlotsSpec, *, clips: int = 2, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    images = torch.rand(clips, frames, 3, spec.resolution, spec.resolution, generator=seeded(1))
    return images, torch.randn(clips, frames, spec.num_slots, spec.slot_size, generator=seeded(2))


def parts(output: VideoOutput) -> tuple[Tensor, ...]:
    return output[:5]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_that_later_frames_have_the_first_ones_iterations_unless_said_otherwise() -> None:
    for told in ({"detach_every": 1}, Recurrence(detach_every=1)):
        spec = VideoSlotsSpec.model_validate({"num_iterations": 2, "recurrence": told})
        assert spec.recurrence == Recurrence(detach_every=1, num_iterations=2)
    spec = VideoSlotsSpec.model_validate({"num_iterations": 2, "recurrence": {"num_iterations": 1}})
    assert spec.recurrence == Recurrence(num_iterations=1)
    assert VideoSlotsSpec(recurrence=Recurrence()).recurrence == Recurrence(num_iterations=3)


def test_that_the_base_model_has_the_sheets_sizes() -> None:
    model = built(VideoSlotsSpec(resolution=128))
    assert parameters(model.encoder.convs) + parameters(model.encoder.positions) == 312_576
    assert parameters(model.encoder.mlp) == 8_320
    assert parameters(model.attention) + parameters(model.start) == 54_336
    assert parameters(model.decoder) == 514_948
    assert parameters(model) == 890_180
    assert parameters(built(VideoSlotsSpec(resolution=128, encoder_norm=True)).encoder) == 312_576 + 8_448
    assert parameters(built(VideoSlotsSpec())) == 890_180 - (64 * 64 * 25 + 64)


def test_that_learned_starts_have_one_row_per_slot() -> None:
    for start, count in (("learned", 7 * 64), ("gaussian_per_slot", 2 * 7 * 64), ("gaussian", 2 * 64)):
        assert parameters(built(VideoSlotsSpec.model_validate({"start": start})).start) == count


def test_that_the_first_convolutions_stride_makes_a_quarter_of_the_tokens() -> None:
    for stride, tokens in ((1, 256), (2, 64)):
        spec = small(encoder_stride=stride)
        assert built(spec)(*batch(spec)).attention_BTKN.shape == (2, FRAMES, 3, tokens)


@pytest.mark.parametrize("name", SPECS)
def test_that_outputs_and_gradients_equal_the_plain_loop_over_frames(name: str) -> None:
    ours, plain = twins(SPECS[name])
    clips, noise = batch(SPECS[name])
    output, expected = ours(clips, noise), plain(clips, noise)
    for mine, theirs in zip(output[:4], expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
    (output.reconstruction - signed(clips)).square().mean().backward()
    (expected[0] - signed(clips)).square().mean().backward()
    for label, theirs, mine in counterparts(plain, ours, gradient):
        if not (label in ("mu", "log_sigma") and not SPECS[name].trainable_start):
            assert theirs.grad is not None
            assert bool(theirs.grad.any())
            torch.testing.assert_close(mine, theirs.grad, atol=1e-6, rtol=1e-4, msg=label)


def gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def frame_gradients(spec: VideoSlotsSpec, *, of: int) -> list[bool]:
    """Which frames of a clip have a part in the gradient of the last slots of frame `of`."""
    clips, noise = batch(spec)
    clips.requires_grad_(True)
    built(spec)(clips, noise).slots_BTKD[:, of].square().sum().backward()
    assert clips.grad is not None
    return [bool(frame.any()) for frame in clips.grad.unbind(1)]


def test_that_gradients_go_back_over_frames_as_far_as_asked() -> None:
    yes, no = True, False
    assert frame_gradients(SPECS["V0 per frame"], of=3) == [no, no, no, yes, no]
    assert frame_gradients(SPECS["V2 full gradient"], of=4) == [yes] * 5
    assert frame_gradients(SPECS["V3 detached"], of=4) == [no, no, no, no, yes]
    assert frame_gradients(SPECS["truncated every 2"], of=3) == [no, no, yes, yes, no]
    assert frame_gradients(SPECS["truncated every 2"], of=4) == [no, no, no, no, yes]


def noise_used(spec: VideoSlotsSpec) -> list[bool]:
    """Which frames' noise has a part in what the clip's slots are."""
    clips, noise = batch(spec)
    noise.requires_grad_(True)
    built(spec)(clips, noise).slots_BTKD.square().sum().backward()
    found = torch.zeros_like(noise) if noise.grad is None else noise.grad
    return [bool(frame.any()) for frame in found.unbind(1)]


def test_that_each_variant_uses_the_noise_that_it_says() -> None:
    first = [True, False, False, False, False]
    assert noise_used(SPECS["V0 per frame"]) == [True] * 5
    assert noise_used(SPECS["V7 mu and sigma per slot"]) == [True] * 5
    for name in ("V1b one noise per clip", "V2 full gradient", "V3 detached", "pre-norm, two layers"):
        assert noise_used(SPECS[name]) == first
    assert noise_used(small(noise="fixed", **recurrent())) == noise_used(SPECS["fixed noise"])


@pytest.mark.parametrize("name", ["fixed noise", "V7 learned", "V3 and V7", "V9 SAVi"])
def test_that_variants_without_noise_leave_it_alone(name: str) -> None:
    clips, noise = batch(SPECS[name])
    model = built(SPECS[name])
    assert torch.equal(model(clips, noise).slots_BTKD, model(clips, -noise).slots_BTKD)


CHUNKS = [(1,) * FRAMES, (2, 2, 1), (3, 2), (1, 4)]


@pytest.mark.parametrize("name", SPECS)
def test_that_a_video_in_chunks_with_its_state_carried_is_the_whole_video(name: str) -> None:
    """To rounding: matrix products of more rows are cut into other blocks, and nothing else differs."""
    model = built(SPECS[name])
    clips, noise = batch(SPECS[name])
    with torch.no_grad():
        whole = model(clips, noise)
        for lengths in CHUNKS:
            state: VideoState | None = None
            found = []
            for images, drawn in zip(clips.split(lengths, dim=1), noise.split(lengths, dim=1), strict=True):
                output = model(images, drawn, state)
                state = output.state
                found.append(parts(output))
            for mine, joined in zip(parts(whole), (torch.cat(values, dim=1) for values in zip(*found, strict=True)), strict=True):
                torch.testing.assert_close(joined, mine, atol=2e-6, rtol=1e-5)
            assert state is not None
            assert state.frames == whole.state.frames == FRAMES
            assert torch.equal(state.noise_BKD, noise[:, 0])


def test_that_chunks_without_the_state_are_not_the_whole_video() -> None:
    for name in ("V1b one noise per clip", "V3 detached", "fewer iterations later"):
        model = built(SPECS[name])
        clips, noise = batch(SPECS[name])
        assert not torch.allclose(model(clips[:, 2:], noise[:, 2:]).slots_BTKD, model(clips, noise).slots_BTKD[:, 2:], atol=1e-3)


def test_that_truncation_counts_frames_of_the_video_across_chunks() -> None:
    spec = SPECS["truncated every 2"]
    clips, noise = batch(spec)
    clips.requires_grad_(True)
    model = built(spec)
    state = model(clips[:, :3], noise[:, :3]).state
    model(clips[:, 3:4], noise[:, 3:4], state).slots_BTKD.square().sum().backward()
    assert clips.grad is not None
    assert [bool(frame.any()) for frame in clips.grad.unbind(1)] == [False, False, True, True, False]


def test_that_fixed_noise_is_in_the_state_dict_and_the_same_for_every_frame_of_every_clip() -> None:
    model = built(SMALL)
    held = model.state_dict()["eval_noise_KD"]
    assert held.shape == model.noise_shape == (3, 8)
    fixed = model.fixed_noise(4, 6)
    assert fixed.shape == (4, 6, 3, 8)
    assert torch.equal(fixed, held.expand(4, 6, 3, 8))
    other = built(SMALL, seed=1)
    assert not torch.equal(other.eval_noise_KD, held)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.fixed_noise(1, 1)[0, 0], held)
    assert "eval_noise_KD" not in dict(model.named_parameters())


def test_that_evaluation_with_fixed_noise_leaves_the_global_random_state_alone() -> None:
    model = built(SMALL).eval()
    clips, noise = batch(SMALL)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = model(clips, model.fixed_noise(2, FRAMES)).slots_BTKD
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(model(clips, model.fixed_noise(2, FRAMES)).slots_BTKD, first)
    assert not torch.allclose(model(clips, noise).slots_BTKD, first)


def test_that_fixed_noise_gives_a_clip_the_same_slots_in_any_batch_and_an_equal_frame_the_same_slots() -> None:
    model = built(SMALL)
    clips, _ = batch(SMALL)
    still = clips[:, :1].expand(-1, FRAMES, -1, -1, -1)
    slots = model(still, model.fixed_noise(2, FRAMES)).slots_BTKD
    torch.testing.assert_close(slots, slots[:, :1].expand_as(slots), atol=1e-6, rtol=1e-5)
    alone = model(still[1:], model.fixed_noise(1, FRAMES)).slots_BTKD
    torch.testing.assert_close(alone, slots[1:], atol=1e-6, rtol=1e-5)


def test_that_frozen_mu_and_sigma_are_buffers_of_the_state_dict() -> None:
    trained, frozen = built(SMALL), built(SPECS["frozen mu and sigma"])
    assert {"start.mu", "start.log_sigma"} <= set(dict(trained.named_parameters()))
    assert not [name for name, _ in frozen.named_parameters() if name.startswith("start.")]
    assert trained.state_dict().keys() == frozen.state_dict().keys()
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("name", SPECS)
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(SPECS[name], seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = built(SPECS[name], seed=3).state_dict(), built(SPECS[name], seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() > 1)


def test_that_variants_share_their_initial_weights() -> None:
    base = built(SMALL).state_dict()
    for name in ("V7 learned", "V3 detached", "MLP between frames", "V1b one noise per clip"):
        variant = built(SPECS[name]).state_dict()
        shared = [key for key in base if not key.startswith(("start.", "predictor."))]
        assert all(torch.equal(base[key], variant[key]) for key in shared)


def test_that_no_frame_sees_a_later_one_and_no_clip_another() -> None:
    for name in ("V2 full gradient", "V9 SAVi"):
        model = built(SPECS[name])
        clips, noise = batch(SPECS[name])
        changed = clips.clone()
        changed[0, 3:] = 0
        before, after = model(clips, noise).slots_BTKD, model(changed, noise).slots_BTKD
        torch.testing.assert_close(before[0, :3], after[0, :3], atol=1e-6, rtol=0)
        torch.testing.assert_close(before[1], after[1], atol=1e-6, rtol=0)
        assert not torch.allclose(before[0, 3:], after[0, 3:])


def test_that_permuting_the_noise_permutes_every_frames_slots() -> None:
    spec, order = small(**recurrent(1, predictor=ATTEND)), [2, 0, 1]
    model = built(spec)
    clips, noise = batch(spec)
    output, permuted = model(clips, noise), model(clips, noise[:, :, order])
    torch.testing.assert_close(permuted.slots_BTKD, output.slots_BTKD[:, :, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted.reconstruction, output.reconstruction, atol=1e-5, rtol=0)


def test_that_a_slots_reconstruction_is_its_colours_on_white_and_adds_up_to_the_image() -> None:
    output = built(SMALL)(*batch(SMALL))
    shown = slot_reconstructions(output)
    masks = output.masks_BTKHW[:, :, :, None]
    torch.testing.assert_close(shown, output.colours_BTK3HW * masks + (1 - masks) * 1.0)
    torch.testing.assert_close((shown - (1 - masks)).sum(dim=2), output.reconstruction, atol=1e-5, rtol=0)
    torch.testing.assert_close(masks.sum(dim=2), torch.ones_like(masks[:, :, 0]))


@pytest.mark.parametrize("name", SPECS)
def test_that_bf16_autocast_leaves_every_output_in_fp32_and_close(name: str) -> None:
    model = built(SPECS[name])
    clips, noise = batch(SPECS[name])
    full = model(clips, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(clips, noise)
    for mine, exact in zip(parts(low), parts(full), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, atol=0.15, rtol=0.1)
    low.reconstruction.square().mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


def test_that_the_cpus_parts_of_slots_change_nothing() -> None:
    model = built(SMALL)
    clips, noise = batch(SMALL)
    found = []
    for count in (1, 4, 1000):
        model._cpu_slots = count
        found.append(model(clips, noise).reconstruction)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": 60}, "resolution 60 is not decoder.initial_resolution 8 times a power of two"),
        ({"start": "learned", "noise": "clip"}, "start=learned uses no noise"),
        ({"noise": "clip", "recurrence": {}}, "with recurrence noise is drawn for a clip's first frame alone"),
        ({"slot_size": 30, "recurrence": {"predictor": {"kind": "transformer"}}}, "slot_size 30 is not a multiple of recurrence"),
        ({"encoder_stride": 3}, "Input should be 1 or 2"),
        ({"recurrence": {"detach_every": -1}}, "greater than or equal to 0"),
        ({"recurrence": {"predictor": {"kind": "mlp", "heads": 2}}}, "Extra inputs are not permitted"),
    ],
)
def test_that_keys_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VideoSlotsSpec.model_validate(changes)


def test_that_the_oracle_itself_is_a_loop() -> None:
    """Its outputs for a clip are those of its frames, each given alone."""
    _, plain = twins(SMALL)
    assert isinstance(plain, PlainVideo)
    clips, noise = batch(SMALL)
    alone = [plain(clips[:, index : index + 1], noise[:, index : index + 1])[0] for index in range(FRAMES)]
    assert torch.equal(torch.cat(alone, dim=1), plain(clips, noise)[0])
