"""Owns the training objective of part slots: a weighted sum of terms that say what a part is, without a reconstruction.

Legend: B images, K slots (the background is number 0), P = K - 1 parts, R rows of the basis, H x W pixels, C channels of a
feature layer (E of all layers together).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.feature_net import Layer
from models.objectives import ImageTerms, Objective, SlotTerms
from models.part_slots import masks_at
from models.part_terms import (
    background_error,
    concentration,
    equivariance,
    landmark_error,
    orthonormality,
    part_contrast,
    part_descriptors,
    semantic_error,
    warped_masks,
    within_part_variance,
)
from models.part_types import PartInputs, PartOutput
from models.spec_parts import PartsObjective

LAYER_WEIGHTS: dict[Layer, float] = {"relu3_2": 0.33, "relu5_4": 1.0}
"""Of compactness and contrast, which use both (Choudhury et al., scops_slots.md 3); the semantic term uses the last alone."""
BY_IMAGE = (
    *("semantic", "concentration", "equivariance", "landmarks", "orthonormality", "compactness", "colour_variance"),
    "background",
)
"""The terms of single images, in the order in which they are logged."""
ENERGY = "semantic_energy"
"""Logged beside the semantic term: what that is of parts that explain nothing."""


def feature_layers(spec: PartsObjective) -> tuple[Layer, ...]:
    """Which layers `PartInputs.features` must hold, in this order; none when no term with a weight looks at features."""
    if spec.compactness or spec.contrast:
        return tuple(LAYER_WEIGHTS)
    return ("relu5_4",) if spec.semantic else ()


class PartsLoss(Objective):
    """Mean of `image_terms(...).total_B`, + `slot_terms` of the whole batch's part descriptors; owns the basis."""

    basis_RC: nn.Parameter | None

    def __init__(self, spec: PartsObjective, *, num_parts: int, basis_RC: Float[Tensor, "R C"] | None) -> None:
        """`basis_RC`: the initial basis, a row per part (the background's first, if it has one); None without a semantic term."""
        super().__init__()
        self.spec = spec
        self.num_parts = num_parts
        self.pools_batch = spec.contrast > 0
        self.layers = feature_layers(spec)
        """Of `PartInputs.features`."""
        self.basis_RC = None if basis_RC is None else nn.Parameter(basis_RC)

    def reconstruction_B(  # noqa: N802  # the suffix is the shape
        self, output: PartOutput, targets: Float[Tensor, "B ..."]
    ) -> Float[Tensor, " B"]:
        """Zeros: images are not reconstructed."""
        return output.masks_BKHW.new_zeros(len(output.masks_BKHW))

    def image_terms(self, output: PartOutput, inputs: PartInputs) -> ImageTerms | None:
        """The weighted loss of every image, and its parts before their weights; None when no term of single images has a weight.

        Orthonormality is a term of the basis alone, the same for every image. Raises ValueError when the features, the foreground
        or the second view that a term needs is not there.
        """
        with torch.autocast(output.masks_BKHW.device.type, enabled=False):
            parts = self._parts(output, inputs)
        if not parts:
            return None
        weighted = [getattr(self.spec, name) * part_B for name, part_B in parts.items() if name != ENERGY]
        total_B = torch.stack(weighted).sum(dim=0)
        return ImageTerms(total_B=total_B, parts=parts)

    def pooled_rows(self, output: PartOutput, inputs: PartInputs) -> Float[Tensor, "B P E"]:
        """With contrast unit descriptors of the parts, those of all layers beside each other; else the slots."""
        if not self.pools_batch:
            return super().pooled_rows(output, inputs)
        with torch.autocast(output.masks_BKHW.device.type, enabled=False):
            seen_BPHW = self._seen(output, inputs)
            return torch.cat([part_descriptors(seen_BPHW, layer) for layer in self._features(inputs)], dim=2)

    def no_rows(self, noise_0KZ: Float[Tensor, "0 K Z"]) -> Float[Tensor, "0 P E"]:
        """In the shape of `pooled_rows`."""
        if not self.pools_batch:
            return super().no_rows(noise_0KZ)
        return noise_0KZ.new_zeros(0, self.num_parts, sum(self.spec.features.channels[layer] for layer in self.layers))

    def slot_terms(
        self, slots_BKD: Float[Tensor, "B K D"], *, step: int, text_BT: Float[Tensor, "B T"] | None = None
    ) -> SlotTerms:
        """Contrast of the `pooled_rows` of the whole batch, a weighted sum over layers; without contrast 0."""
        if not self.pools_batch:
            return super().slot_terms(slots_BKD, step=step, text_BT=text_BT)
        channels = [self.spec.features.channels[layer] for layer in self.layers]
        by_layer = zip(self.layers, torch.split(slots_BKD.float(), channels, dim=2), strict=True)
        with torch.autocast(slots_BKD.device.type, enabled=False):
            found = [
                LAYER_WEIGHTS[layer] * part_contrast(descriptors_BPC, temperature=self.spec.temperature)
                for layer, descriptors_BPC in by_layer
            ]
        contrast = torch.stack(found).sum()
        return SlotTerms(total=self.spec.contrast * contrast, parts={"contrast": contrast})

    def _parts(self, output: PartOutput, inputs: PartInputs) -> dict[str, Tensor]:
        """By name, those with a weight alone, in the order of BY_IMAGE."""
        spec, parts = self.spec, dict[str, Tensor]()
        masks_BPHW = output.masks_BKHW[:, 1:]
        if spec.semantic:
            parts["semantic"], parts[ENERGY] = semantic_error(
                output.masks_BKHW if spec.background_row else masks_BPHW,
                self._basis(),
                self._features(inputs)[-1],
                self._foreground(inputs),
                resolution=spec.resolution or masks_BPHW.shape[-1],
            )
        if spec.concentration:
            parts["concentration"] = concentration(masks_BPHW)
        if spec.warps:
            parts |= self._second_view(output, inputs)
        if spec.orthonormality:
            parts["orthonormality"] = orthonormality(self._basis()).expand(len(masks_BPHW))
        if spec.compactness or spec.colour_variance:
            seen_BPHW = self._seen(output, inputs)
            if spec.compactness:
                by_layer = zip(self.layers, self._features(inputs), strict=True)
                parts["compactness"] = torch.stack(
                    [LAYER_WEIGHTS[layer] * within_part_variance(seen_BPHW, features) for layer, features in by_layer]
                ).sum(dim=0)
            if spec.colour_variance:
                parts["colour_variance"] = within_part_variance(seen_BPHW, inputs.images_B3HW.float())
        if spec.background:
            foreground_BHW = self._foreground(inputs)
            assert foreground_BHW is not None  # PartsObjective.problems
            parts["background"] = background_error(output.masks_BKHW[:, 0], foreground_BHW)
        return parts

    def _second_view(self, output: PartOutput, inputs: PartInputs) -> dict[str, Tensor]:
        if inputs.warped is None or output.warped_logits_BKhw is None:
            raise ValueError("objective.equivariance and objective.landmarks need a second view of each image")
        target_BKHW = warped_masks(output.logits_BKhw, inputs.warped.grid_BHW2)
        parts: dict[str, Tensor] = {}
        if self.spec.equivariance:
            parts["equivariance"] = equivariance(output.warped_logits_BKhw, target_BKHW)
        if self.spec.landmarks:
            parts["landmarks"] = landmark_error(output.warped_logits_BKhw, target_BKHW)
        return parts

    def _basis(self) -> Tensor:
        """As it is used: not negative."""
        if self.basis_RC is None:
            raise ValueError("objective.semantic and objective.orthonormality need a basis")
        return self.basis_RC.relu()

    def _features(self, inputs: PartInputs) -> tuple[Tensor, ...]:
        if inputs.features is None or len(inputs.features) != len(self.layers):
            given = "none" if inputs.features is None else f"{len(inputs.features)} layers"
            raise ValueError(f"the objective needs the features of {', '.join(self.layers)}, given {given}")
        return tuple(layer.float() for layer in inputs.features)

    def _foreground(self, inputs: PartInputs) -> Tensor | None:
        if self.spec.foreground == "none":
            return None
        if inputs.foreground_BHW is None:
            raise ValueError("objective.foreground truth needs the foreground of each image")
        return inputs.foreground_BHW.float()

    def _seen(self, output: PartOutput, inputs: PartInputs) -> Tensor:
        """How the parts share the foreground among themselves [B,P,H,W]: they sum to it.

        With the background among them, pixels of the object that it takes would cost nothing, and it would take all.
        """
        foreground_BHW = self._foreground(inputs)
        assert foreground_BHW is not None  # PartsObjective.problems
        size = output.masks_BKHW.shape[2:]
        return masks_at(output.logits_BKhw[:, 1:], (size[0], size[1])) * foreground_BHW[:, None]


def build_parts_objective(spec: PartsObjective, *, num_parts: int, generator: torch.Generator) -> PartsLoss:
    """The objective of a spec; its basis |N(0, 1)|, if a term uses one, is drawn from `generator` alone."""
    basis_RC = None
    if spec.semantic or spec.orthonormality:
        rows = num_parts + 1 if spec.background_row else num_parts
        basis_RC = torch.empty(rows, spec.features.channels["relu5_4"]).normal_(generator=generator).abs_()
    return PartsLoss(spec, num_parts=num_parts, basis_RC=basis_RC)
