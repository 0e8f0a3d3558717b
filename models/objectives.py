"""Owns the training objectives: reconstruction, CovLoss and CosineLoss (arXiv 2306.02577), with their projection head.

Terms over slots compute in float32, also under autocast.

Legend: B images, C = 3 colours, H x W pixels, K slots, D slot size, P projected size, n = B * K pooled slots, T text features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights
from models.slot_model import Inputs, SlotOutput
from models.spec import CosineObjective, CovarianceObjective, ProjectionSpec, ReconstructionObjective

STD_EPS = 1e-4
"""Added to the variance under the root of the variance hinge (VICReg, and the CovLoss code)."""
COSINE_EPS = 1e-12
"""Added to squared norms, as torch's cosine embedding loss does."""


@dataclass(frozen=True, kw_only=True)
class ImageTerms:
    """What an objective adds to the reconstruction error of every image by itself."""

    total_B: Float[Tensor, " B"]
    """The weighted extra loss."""
    parts: dict[str, Float[Tensor, " B"]]
    """Named scalars of every image, to be logged as their means over images."""


@dataclass(frozen=True, kw_only=True)
class SlotTerms:
    """What an objective adds to the reconstruction error of the batch."""

    total: Float[Tensor, ""]
    """The weighted extra loss; zero for plain reconstruction."""
    parts: dict[str, Float[Tensor, ""]]
    """Its parts by name, before any weight."""


class Objective(nn.Module):
    """A loss = mean of `reconstruction_B` and `image_terms(...).total_B`, + `slot_terms(...).total`; owns its heads.

    Heads are used in training only. An output is that of the objective's models: `SlotOutput`, or `VideoOutput` of clips, where
    a clip is what an image is elsewhere.
    """

    pools_batch: bool
    """Whether `slot_terms` must see the slots of the whole global batch; else it is a mean over images."""

    def reconstruction_B(  # noqa: N802  # the suffix is the shape
        self, output: Any, targets: Float[Tensor, "B ..."]
    ) -> Float[Tensor, " B"]:
        """Mean squared error of every image, over colours and pixels or over tokens and features."""
        error: Tensor = (output.reconstruction.float() - targets.float()).square()
        return error.flatten(1).mean(dim=1)

    def image_terms(self, output: Any, inputs: Any) -> ImageTerms | None:
        """The extra loss of every image by itself; None when there is none."""
        return None

    def pooled_rows(self, output: Any, inputs: Any) -> Float[Tensor, "N K D"]:
        """What `slot_terms` is given of these images (of all images where the batch is pooled), with gradient: their slots."""
        slots_NKD: Tensor = output.slots_BKD
        return slots_NKD

    def no_rows(self, noise_0KZ: Float[Tensor, "0 K Z"]) -> Float[Tensor, "0 K D"]:
        """`pooled_rows` of no images at all, given their noise: a rank without a share of the batch pools with the others."""
        return noise_0KZ

    def pooled_text(self, inputs: Inputs) -> Float[Tensor, "B T"] | None:
        """What `slot_terms` must be told of every image's sentence beside its slots, without gradient; None for nothing."""
        return None

    def slot_terms(
        self, slots_BKD: Float[Tensor, "B K D"], *, step: int, text_BT: Float[Tensor, "B T"] | None = None
    ) -> SlotTerms:
        """The extra loss over all slots given, with the `pooled_text` of their images; `step` counts from 1. Here it is 0."""
        return SlotTerms(total=slots_BKD.new_zeros((), dtype=torch.float32), parts={})


class ProjectionHead(nn.Module):
    """Identity, or Linear - norm - ReLU - Linear - norm - ReLU - Linear (CovLoss code, `ProjectionHead`).

    `batchnorm` treats the slots as channels: its statistics run over images and features, so it pools the batch. It
    always uses the batch's own statistics, since the head is never used in evaluation.
    """

    def __init__(self, spec: ProjectionSpec, *, slot_size: int, num_slots: int, weights: Weights) -> None:
        super().__init__()
        self.size = spec.size
        self.pools_batch = spec.kind == "mlp" and spec.norm == "batchnorm"
        self.layers = nn.Sequential()
        match spec.kind:
            case "identity":
                if spec.size != slot_size:
                    raise ValueError(f"projection.size {spec.size} of an identity projection differs from slot_size {slot_size}")
            case "mlp":
                self.layers = nn.Sequential(
                    weights.linear(slot_size, spec.size),
                    _norm(spec, num_slots),
                    nn.ReLU(),
                    weights.linear(spec.size, spec.size),
                    _norm(spec, num_slots),
                    nn.ReLU(),
                    weights.linear(spec.size, spec.size),
                )
            case _:
                assert_never(spec.kind)

    def forward(self, slots_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K P"]:
        """Projected slots, in float32."""
        projected_BKP: Tensor = self.layers(slots_BKD.float())
        return projected_BKP


def _norm(spec: ProjectionSpec, num_slots: int) -> nn.Module:
    match spec.norm:
        case "batchnorm":
            return nn.BatchNorm1d(num_slots, track_running_stats=False)
        case "layernorm":
            return nn.LayerNorm(spec.size)
        case _:
            assert_never(spec.norm)


class Reconstruction(Objective):
    """Mean squared error, and AdaSlot's penalty on kept slots (arXiv 2406.09196) for a gated model."""

    pools_batch = False

    def __init__(self, spec: ReconstructionObjective) -> None:
        super().__init__()
        self.spec = spec

    def image_terms(self, output: SlotOutput, inputs: Inputs) -> ImageTerms | None:
        """sparsity * the share of slots that an image keeps; None without a gate."""
        if output.keep_BK is None or output.keep_probability_BK is None:
            return None
        sparsity_B = self.spec.sparsity * output.keep_BK.float().mean(dim=1)
        kept_B, probability_B = output.keep_BK.sum(dim=1), output.keep_probability_BK.mean(dim=1)
        return ImageTerms(
            total_B=sparsity_B, parts={"sparsity": sparsity_B, "kept_slots": kept_B, "keep_probability": probability_B}
        )


class Covariance(Objective):
    """CovLoss: weight * (var_weight * variance hinge + cov_weight * off-diagonal covariance) over all slots of a batch.

    Not decomposable over the batch: the mean over parts of a batch is another loss.
    """

    pools_batch = True

    def __init__(self, spec: CovarianceObjective, *, head: ProjectionHead) -> None:
        super().__init__()
        self.spec = spec
        self.head = head

    def slot_terms(
        self, slots_BKD: Float[Tensor, "B K D"], *, step: int, text_BT: Float[Tensor, "B T"] | None = None
    ) -> SlotTerms:
        """Raises ValueError for a single slot in all, whose covariance is undefined."""
        with torch.autocast(slots_BKD.device.type, enabled=False):
            pooled_nP = self.head(slots_BKD).flatten(0, 1)
            divisor = self._divisor()
            off_diagonal, variance_P = covariance_terms(pooled_nP)
            covariance = off_diagonal / divisor
            variance = F.relu(self.spec.std_target - (variance_P + STD_EPS).sqrt()).mean()
            total = self.spec.weight * (self.spec.var_weight * variance + self.spec.cov_weight * covariance)
        return SlotTerms(total=total, parts={"covariance": covariance, "variance": variance})

    def _divisor(self) -> int:
        match self.spec.divide_by:
            case "features":
                return self.head.size
            case "features_squared":
                return self.head.size**2
            case _:
                assert_never(self.spec.divide_by)


def covariance_terms(pooled_nP: Float[Tensor, "n P"]) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
    """Sum of squared off-diagonal entries of the unbiased covariance of the columns, and its diagonal.

    Since |Z'Z| = |ZZ'| (Frobenius), the n x n Gram matrix serves when n < P: the P x P covariance is never built.
    Raises ValueError for fewer than two rows.
    """
    rows, features = pooled_nP.shape
    if rows < 2:
        raise ValueError(f"covariance needs at least two slots in the batch, got {rows}")
    centred_nP = pooled_nP - pooled_nP.mean(dim=0)
    gram = centred_nP @ centred_nP.T if rows < features else centred_nP.T @ centred_nP
    variance_P = centred_nP.square().sum(dim=0) / (rows - 1)
    return (gram / (rows - 1)).square().sum() - variance_P.square().sum(), variance_P


class Cosine(Objective):
    """CosineLoss: weight * mean over ordered slot pairs of an image of max(0, cos - margin), a slot with itself adding 0."""

    def __init__(self, spec: CosineObjective, *, head: ProjectionHead) -> None:
        super().__init__()
        self.spec = spec
        self.head = head
        self.pools_batch = head.pools_batch

    def slot_terms(
        self, slots_BKD: Float[Tensor, "B K D"], *, step: int, text_BT: Float[Tensor, "B T"] | None = None
    ) -> SlotTerms:
        """The weight rises linearly over the first `warmup_steps` steps."""
        with torch.autocast(slots_BKD.device.type, enabled=False):
            cosine = cosine_term(self.head(slots_BKD), margin=self.spec.margin)
            ramp = min(1.0, step / self.spec.warmup_steps) if self.spec.warmup_steps else 1.0
            return SlotTerms(total=self.spec.weight * ramp * cosine, parts={"cosine": cosine})


def unit_length(vectors: Float[Tensor, "*N P"]) -> Float[Tensor, "*N P"]:
    """Vectors brought to length 1; one of zeros stays, with a finite gradient."""
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + COSINE_EPS).rsqrt()


def cosine_term(slots_BKP: Float[Tensor, "B K P"], *, margin: float) -> Float[Tensor, ""]:
    """Mean over images and all K * K ordered pairs of max(0, cos - margin) for different slots; one Gram per image."""
    unit_BKP = unit_length(slots_BKP)
    excess_BKK = F.relu(unit_BKP @ unit_BKP.transpose(1, 2) - margin)
    different_KK = ~torch.eye(slots_BKP.shape[1], dtype=torch.bool, device=slots_BKP.device)
    return (excess_BKK * different_KK).mean()
