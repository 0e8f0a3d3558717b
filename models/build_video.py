"""Owns the way from a typed configuration to video models and their objective; every weight comes from the given generator."""

from __future__ import annotations

from typing import assert_never

import torch

from models.clip_encoders import CausalConv, ConvGru, ConvLstm, FrameEncoder, OverFrames
from models.decoders import Upsampling
from models.future import FuturePrediction
from models.initialisation import Weights
from models.perceptual import FrameLpips
from models.predictor import MlpStep, Predictor, TransformerStep
from models.slot_attention import TORCH_NORM_EPS
from models.slot_start import FrameStart
from models.spec_video import MlpPredictor, PredictorSpec, TransformerPredictor, VideoObjective, VideoSlotsSpec
from models.video_objective import VideoLoss
from models.video_slots import FrameAttention, VideoSlots


def build_video_slots(spec: VideoSlotsSpec, *, generator: torch.Generator) -> VideoSlots:
    """The model of a spec, on the CPU, with weights and evaluation noise drawn from `generator` alone.

    With one seed variants share the weights that they have in common: encoder, attention and decoder are drawn first, the
    encoder's layers over frames last.
    """
    weights = Weights(scheme="covloss", generator=generator)
    encoder = FrameEncoder(
        resolution=spec.resolution,
        channels=spec.encoder_channels,
        layers=spec.encoder_layers,
        stride=spec.encoder_stride,
        norm=spec.encoder_norm,
        weights=weights,
    )
    attention = FrameAttention(
        input_size=spec.encoder_channels,
        slot_size=spec.slot_size,
        mlp_size=spec.slot_mlp_size,
        iterations=spec.num_iterations,
        weights=weights,
        norm_eps=TORCH_NORM_EPS,
        prior=False,
    )
    decoder = Upsampling(
        resolution=spec.resolution,
        initial_resolution=spec.decoder.initial_resolution,
        slot_size=spec.slot_size,
        channels=spec.decoder.channels,
        kernel_size=spec.decoder.kernel_size,
        weights=weights,
    )
    eval_noise_KD = torch.empty(spec.num_slots, spec.slot_size).normal_(generator=generator)
    start = FrameStart(
        spec.start,
        num_slots=spec.num_slots,
        slot_size=spec.slot_size,
        trainable=spec.trainable_start,
        weights=Weights(scheme="dinosaur", generator=generator),
    )
    recurrence = spec.recurrence
    predictor = None if recurrence is None else _predictor(recurrence.predictor, spec.slot_size, weights)
    return VideoSlots(
        resolution=spec.resolution,
        encoder=encoder,
        over_frames=_over_frames(spec, weights),
        start=start,
        attention=attention,
        predictor=predictor,
        decoder=decoder,
        eval_noise_KD=eval_noise_KD,
        noise=spec.noise,
        detach_every=None if recurrence is None else recurrence.detach_every,
        iterations=(spec.num_iterations, spec.num_iterations if recurrence is None else recurrence.num_iterations),
    )


def build_video_objective(
    spec: VideoObjective, *, model: VideoSlotsSpec, generator: torch.Generator, lpips: FrameLpips | None = None
) -> VideoLoss:
    """The objective of a spec, with the networks of the terms that have a weight, drawn from `generator` alone.

    `lpips`: the net of `spec.lpips` (`build_lpips`); None if and only if `perceptual` is 0.

    Raises ValueError when the objective cannot train this model (`VideoObjective.problems`), or the net is missing or in vain.
    """
    problems = spec.problems(model)
    if (lpips is None) != (spec.perceptual == 0):
        problems.append(f"perceptual is {spec.perceptual:g} and an LPIPS net is {'missing' if lpips is None else 'given'}")
    if problems:
        raise ValueError("; ".join(problems))
    weights = Weights(scheme="covloss", generator=generator)

    def future(of: int) -> FuturePrediction:
        return FuturePrediction(
            image_channels=of, channels=spec.future_channels, detach_target=spec.detach_target, weights=weights
        )

    return VideoLoss(
        spec,
        future_masks=future(1) if spec.future_masks else None,
        future_slots=future(3) if spec.future_slots else None,
        lpips=lpips,
    )


def _over_frames(spec: VideoSlotsSpec, weights: Weights) -> OverFrames | None:
    channels, last = spec.encoder_channels, spec.encoder_layers - 1
    match spec.encoder_time:
        case "none":
            return None
        case "conv_gru":
            return OverFrames({last: ConvGru(channels=channels, weights=weights)})
        case "conv_lstm":
            return OverFrames({last: ConvLstm(channels=channels, weights=weights)})
        case "conv3d":
            return OverFrames({number: CausalConv(channels=channels, weights=weights) for number in range(last + 1)})
        case _:
            assert_never(spec.encoder_time)


def _predictor(spec: PredictorSpec | None, slot_size: int, weights: Weights) -> Predictor | None:
    match spec:
        case None:
            return None
        case MlpPredictor():
            return MlpStep(slot_size=slot_size, hidden=spec.hidden, weights=weights)
        case TransformerPredictor():
            return TransformerStep(
                slot_size=slot_size,
                layers=spec.layers,
                heads=spec.heads,
                feedforward=spec.feedforward,
                pre_norm=spec.pre_norm,
                weights=weights,
            )
        case _:
            assert_never(spec)
