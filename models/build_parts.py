"""Owns the way from a typed configuration to part models; every weight comes from the given generator."""

from __future__ import annotations

from typing import assert_never

import torch

from models.dilated_resnet import build_trunk
from models.initialisation import Weights
from models.part_masks import AttentionLogits, ConvMasks, DilatedConvs, LinearMasks, MlpMasks, ProductMasks, SlotMasks
from models.part_slots import FeatureAdapter, PartAttention, PartSlots
from models.slot_attention import TORCH_NORM_EPS, SlotAttention
from models.slot_start import FrameStart
from models.spec_parts import (
    AttentionMasks,
    ConvBroadcast,
    LinearHead,
    MlpBroadcast,
    PartSlotsSpec,
    PixelHead,
    SlotPixelProduct,
)


def build_part_slots(spec: PartSlotsSpec, *, generator: torch.Generator) -> PartSlots:
    """The model of a spec, on the CPU, with weights drawn from `generator` alone; the trunk's are random, whatever its spec says.

    Published weights come later, through `trunk.load_published`. With one seed variants share the weights that they have in
    common: trunk, adapter and attention are drawn first, then the head, initial slots last.
    """
    weights = Weights(scheme="covloss", generator=generator)
    trunk = build_trunk(spec.trunk, weights=weights)
    if isinstance(spec.masks, PixelHead):
        head = DilatedConvs(trunk.channels, spec.num_slots, bias=True, weights=weights)
        return PartSlots(noise_shape=(spec.num_slots, 1), trunk=trunk, slots=None, head=head, train_slots=True)
    adapter = FeatureAdapter(grid=spec.grid, channels=trunk.channels, slot_size=spec.slot_size, weights=weights)
    attention = SlotAttention(
        input_size=spec.slot_size,
        slot_size=spec.slot_size,
        mlp_size=spec.slot_mlp_size,
        iterations=spec.num_iterations,
        weights=weights,
        norm_eps=TORCH_NORM_EPS,
        prior=False,
    )
    masks = _slot_masks(spec, spec.masks, weights)
    start = FrameStart(
        spec.start,
        num_slots=spec.num_slots,
        slot_size=spec.slot_size,
        trainable=True,
        weights=Weights(scheme="dinosaur", generator=generator),
    )
    return PartSlots(
        noise_shape=(spec.num_slots, spec.slot_size),
        trunk=trunk,
        slots=PartAttention(adapter=adapter, start=start, attention=attention),
        head=masks,
        train_slots=spec.train_slots,
    )


def _slot_masks(
    spec: PartSlotsSpec,
    masks: LinearHead | ConvBroadcast | MlpBroadcast | AttentionMasks | SlotPixelProduct,
    weights: Weights,
) -> SlotMasks:
    match masks:
        case LinearHead():
            return LinearMasks(grid=masks.grid, slot_size=spec.slot_size, weights=weights)
        case ConvBroadcast():
            return ConvMasks(
                grid=masks.grid, slot_size=spec.slot_size, channels=masks.channels, layers=masks.layers, weights=weights
            )
        case MlpBroadcast():
            return MlpMasks(grid=spec.grid, slot_size=spec.slot_size, hidden=masks.hidden, layers=masks.layers, weights=weights)
        case AttentionMasks():
            return AttentionLogits()
        case SlotPixelProduct():
            return ProductMasks(channels=spec.trunk.channels, slot_size=spec.slot_size, weights=weights)
        case _:
            assert_never(masks)
