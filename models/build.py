"""Owns the way from a typed configuration to modules; every initial weight comes from the given generator."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from models.decoders import FullResolution, Upsampling
from models.initialisation import Weights
from models.objectives import Cosine, Covariance, Objective, ProjectionHead, Reconstruction
from models.random_masks import RandomMasks
from models.slot_attention import SlotAttention
from models.slot_autoencoder import ConvEncoder, SlotAutoencoder
from models.slot_model import SlotModel
from models.spec import (
    CosineObjective,
    CovarianceObjective,
    FullResolutionDecoder,
    ModelSpec,
    ObjectiveSpec,
    ProjectionSpec,
    ReconstructionObjective,
    SlotAutoencoderSpec,
    UntrainedScoreSpec,
    UpsamplingDecoder,
)


def build_model(spec: ModelSpec, *, generator: torch.Generator) -> SlotModel:
    """The model of a spec, on the CPU, with weights drawn from `generator` alone."""
    match spec:
        case SlotAutoencoderSpec():
            return _autoencoder(spec, Weights(scheme=spec.init, generator=generator))
        case UntrainedScoreSpec():
            return RandomMasks(resolution=spec.resolution, num_slots=spec.num_slots)
        case _:
            assert_never(spec)


def build_objective(spec: ObjectiveSpec, *, slot_size: int, num_slots: int, generator: torch.Generator) -> Objective:
    """The objective of a spec, with its projection head (torch's default distributions) drawn from `generator` alone.

    Raises ValueError when an identity projection's size differs from the slot size.
    """
    match spec:
        case ReconstructionObjective():
            return Reconstruction(spec)
        case CovarianceObjective():
            return Covariance(spec, head=_head(spec.projection, slot_size, num_slots, generator))
        case CosineObjective():
            return Cosine(spec, head=_head(spec.projection, slot_size, num_slots, generator))
        case _:
            assert_never(spec)


def _autoencoder(spec: SlotAutoencoderSpec, weights: Weights) -> SlotAutoencoder:
    encoder = ConvEncoder(resolution=spec.resolution, channels=spec.encoder_channels, layers=spec.encoder_layers, weights=weights)
    attention = SlotAttention(
        input_size=spec.encoder_channels,
        slot_size=spec.slot_size,
        mlp_size=spec.slot_mlp_size,
        iterations=spec.num_iterations,
        weights=weights,
    )
    return SlotAutoencoder(
        num_slots=spec.num_slots,
        slot_size=spec.slot_size,
        encoder=encoder,
        attention=attention,
        decoder=_decoder(spec, weights),
    )


def _decoder(spec: SlotAutoencoderSpec, weights: Weights) -> nn.Module:
    match spec.decoder:
        case FullResolutionDecoder():
            return FullResolution(
                resolution=spec.resolution,
                slot_size=spec.slot_size,
                channels=spec.decoder.channels,
                layers=spec.decoder.layers,
                kernel_size=spec.decoder.kernel_size,
                weights=weights,
            )
        case UpsamplingDecoder():
            return Upsampling(
                resolution=spec.resolution,
                initial_resolution=spec.decoder.initial_resolution,
                slot_size=spec.slot_size,
                channels=spec.decoder.channels,
                kernel_size=spec.decoder.kernel_size,
                weights=weights,
            )
        case _:
            assert_never(spec.decoder)


def _head(spec: ProjectionSpec, slot_size: int, num_slots: int, generator: torch.Generator) -> ProjectionHead:
    weights = Weights(scheme="covloss", generator=generator)
    return ProjectionHead(spec, slot_size=slot_size, num_slots=num_slots, weights=weights)
