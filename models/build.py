"""Owns the way from a typed configuration to modules; every initial weight comes from the given generator."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from models.build_parts import build_part_slots
from models.build_video import build_video_objective, build_video_slots
from models.decoders import CocoAdaptive, FullResolution, Upsampling
from models.dinosaur import Dinosaur, token_adapter
from models.gate import Gate
from models.image_decoder import ImageDecoder
from models.initialisation import Weights
from models.language_slots import LanguageSlots, TokenEncoder
from models.objectives import Cosine, Covariance, Objective, ProjectionHead, Reconstruction
from models.part_objective import build_parts_objective
from models.patch_mlp import PatchMlp
from models.patch_transformer import PatchTransformer
from models.perceptual import FrameLpips
from models.random_masks import RandomMasks
from models.semantic import LanguageSizes, Semantic
from models.slot_attention import NORM_EPS, TORCH_NORM_EPS, SlotAttention
from models.slot_autoencoder import ConvEncoder, SlotAutoencoder
from models.slot_model import SlotModel
from models.spec import (
    CocoAdaptiveDecoder,
    CosineObjective,
    CovarianceObjective,
    DinosaurSpec,
    ModelSpec,
    ObjectiveSpec,
    PatchMlpDecoder,
    PatchTransformerDecoder,
    ProjectionSpec,
    ReconstructionObjective,
    SlotAutoencoderSpec,
    UntrainedScoreSpec,
)
from models.spec_base import FullResolutionDecoder, UpsamplingDecoder
from models.spec_language import LanguageSlotsSpec, MlpText2Slot, NoText2Slot, SemanticObjective, TransformerText2Slot
from models.spec_parts import PartSlotsSpec, PartsObjective
from models.spec_video import VideoObjective, VideoSlotsSpec
from models.text2slot import SentenceDistribution, SentencePerSlot, SharedPrior, Text2Slot, WordsPerSlot


def build_model(spec: ModelSpec, *, generator: torch.Generator) -> SlotModel:
    """The model of a spec, on the CPU, with weights drawn from `generator` alone."""
    match spec:
        case SlotAutoencoderSpec():
            return _autoencoder(spec, Weights(scheme=spec.init, generator=generator))
        case UntrainedScoreSpec():
            return RandomMasks(resolution=spec.resolution, num_slots=spec.num_slots)
        case DinosaurSpec():
            return _dinosaur(spec, Weights(scheme=spec.init, generator=generator))
        case LanguageSlotsSpec():
            return _language_slots(spec, Weights(scheme="covloss", generator=generator))
        case VideoSlotsSpec():
            return build_video_slots(spec, generator=generator)
        case PartSlotsSpec():
            return build_part_slots(spec, generator=generator)
        case _:
            assert_never(spec)


def build_objective(
    spec: ObjectiveSpec,
    *,
    slot_size: int,
    num_slots: int,
    generator: torch.Generator,
    language: LanguageSizes | None = None,
    video: VideoSlotsSpec | None = None,
    lpips: FrameLpips | None = None,
) -> Objective:
    """The objective of a spec, with its heads (torch's default distributions) drawn from `generator` alone.

    `language`: of a model that is told sentences; `video`, `lpips`: the model of clips, and the net of a perceptual term. Raises
    ValueError when an identity projection's size differs from the slot size, or a term needs one of these that is not there.
    """
    match spec:
        case ReconstructionObjective():
            return Reconstruction(spec)
        case CovarianceObjective():
            return Covariance(spec, head=_head(spec.projection, slot_size, num_slots, generator))
        case CosineObjective():
            return Cosine(spec, head=_head(spec.projection, slot_size, num_slots, generator))
        case SemanticObjective():
            weights = Weights(scheme="covloss", generator=generator)
            return Semantic(spec, slot_size=slot_size, language=language, weights=weights)
        case VideoObjective():
            if video is None:
                raise ValueError("objective.kind video is for models of clips")
            return build_video_objective(spec, model=video, generator=generator, lpips=lpips)
        case PartsObjective():
            return build_parts_objective(spec, num_parts=num_slots - 1, generator=generator)
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


def _dinosaur(spec: DinosaurSpec, weights: Weights) -> Dinosaur:
    norm_eps = NORM_EPS if spec.init == "covloss" else TORCH_NORM_EPS
    adapter = token_adapter(
        spec.adapter, feature_size=spec.feature_size, slot_size=spec.slot_size, norm_eps=norm_eps, weights=weights
    )
    attention = SlotAttention(
        input_size=spec.slot_size,
        slot_size=spec.slot_size,
        mlp_size=4 * spec.slot_size,
        iterations=spec.num_iterations,
        weights=weights,
        norm_eps=norm_eps,
    )
    decoder = _token_decoder(spec, weights)
    gate = None
    if spec.gate is not None:  # drawn last: with one seed, the rest is that of the model without a gate
        gate_weights = Weights(scheme="dinosaur", generator=weights.generator)
        gate = Gate(slot_size=spec.slot_size, temperature=spec.gate.temperature, weights=gate_weights)
    return Dinosaur(
        num_slots=spec.num_slots,
        slot_size=spec.slot_size,
        grid=spec.grid,
        adapter=adapter,
        attention=attention,
        gate=gate,
        decoder=decoder,
    )


def _token_decoder(spec: DinosaurSpec, weights: Weights) -> PatchMlp | PatchTransformer | CocoAdaptive:
    match spec.decoder:
        case PatchMlpDecoder():
            return PatchMlp(
                slot_size=spec.slot_size,
                hidden=spec.decoder.hidden,
                layers=spec.decoder.layers,
                feature_size=spec.feature_size,
                positions=weights.position_table(spec.tokens, spec.slot_size, spec.decoder.positions),
                weights=weights,
            )
        case PatchTransformerDecoder():
            return PatchTransformer(
                slot_size=spec.slot_size,
                feature_size=spec.feature_size,
                layers=spec.decoder.layers,
                heads=spec.decoder.heads,
                feedforward=spec.decoder.feedforward,
                weights=Weights(scheme="covloss", generator=weights.generator),
            )
        case CocoAdaptiveDecoder():
            return CocoAdaptive(
                initial_resolution=spec.decoder.initial_resolution,
                doublings=spec.decoder.conv_layers - 2,
                slot_size=spec.slot_size,
                channels=spec.decoder.channels,
                weights=weights,
            )
        case _:
            assert_never(spec.decoder)


def _language_slots(spec: LanguageSlotsSpec, weights: Weights) -> LanguageSlots:
    """`weights` should draw torch's default distributions, as the original does."""
    encoder = TokenEncoder(
        grid=spec.grid,
        feature_size=spec.feature_size,
        slot_size=spec.slot_size,
        position_code=spec.enc_pos_enc,
        norm=spec.token_norm,
        norm_eps=TORCH_NORM_EPS,
        weights=weights,
    )
    attention = SlotAttention(
        input_size=spec.slot_size,
        slot_size=spec.slot_size,
        mlp_size=spec.slot_mlp_size,
        iterations=spec.num_iterations,
        weights=weights,
        norm_eps=TORCH_NORM_EPS,
        prior=False,
    )
    decoder = ImageDecoder(
        initial_resolution=spec.decoder.initial_resolution,
        slot_size=spec.slot_size,
        channels=spec.decoder.channels,
        kernel_size=spec.decoder.kernel_size,
        upsample=spec.decoder.upsample,
        tail_conv=spec.decoder.tail_conv,
        recomputed_maps=spec.decoder.recomputed_maps,
        weights=weights,
    )
    text2slot = _text2slot(spec, weights)  # drawn last: with one seed, the rest is the same for every form of it
    return LanguageSlots(
        num_slots=spec.num_slots,
        slot_size=spec.slot_size,
        encoder=encoder,
        text2slot=text2slot,
        attention=attention,
        decoder=decoder,
    )


def _text2slot(spec: LanguageSlotsSpec, weights: Weights) -> Text2Slot:
    form = spec.text2slot
    match form:
        case MlpText2Slot(distribution=True):
            return SentenceDistribution(
                text_size=spec.text_size, hidden_sizes=form.hidden_sizes, slot_size=spec.slot_size, weights=weights
            )
        case MlpText2Slot():
            return SentencePerSlot(
                text_size=spec.text_size,
                hidden_sizes=form.hidden_sizes,
                num_slots=spec.num_slots,
                slot_size=spec.slot_size,
                weights=weights,
            )
        case TransformerText2Slot():
            return WordsPerSlot(
                text_size=spec.text_size,
                text_tokens=form.text_tokens,
                hidden=form.hidden,
                heads=form.heads,
                layers=form.layers,
                feedforward=form.feedforward,
                num_slots=spec.num_slots,
                slot_size=spec.slot_size,
                weights=weights,
            )
        case NoText2Slot():
            return SharedPrior(slot_size=spec.slot_size, weights=Weights(scheme="dinosaur", generator=weights.generator))
        case _:
            assert_never(form)


def _head(spec: ProjectionSpec, slot_size: int, num_slots: int, generator: torch.Generator) -> ProjectionHead:
    weights = Weights(scheme="covloss", generator=generator)
    return ProjectionHead(spec, slot_size=slot_size, num_slots=num_slots, weights=weights)
