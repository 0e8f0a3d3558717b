"""Typed configurations of models and objectives; torch-free, so that the login node can validate them.

Every field is part of a run's identity. A field added after a release declares its neutral value with `added(...)`:
runs made before it existed then keep their ids (DESIGN: Identity).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Base of every typed configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


def added(neutral: Any, **constraints: Any) -> Any:
    """A field that came later: left out of the canonical form while it equals `neutral`."""
    return Field(default=neutral, json_schema_extra={"neutral": neutral}, **constraints)


def location(default: Any = ..., **constraints: Any) -> Any:
    """A field that says where something lies or how fast it runs: never part of a run's identity."""
    return Field(default=default, json_schema_extra={"location": True}, **constraints)


class FullResolutionDecoder(Spec):
    """Broadcast each slot to the full image grid, then stride-1 convolutions (Multi-dSprites; slot_attention.md 3)."""

    kind: Literal["full_resolution"] = "full_resolution"
    channels: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    kernel_size: int = Field(default=5, ge=1)


class UpsamplingDecoder(Spec):
    """Broadcast to a small grid, then stride-2 transposed convolutions (CLEVR; slot_attention.md 1)."""

    kind: Literal["upsampling"] = "upsampling"
    channels: int = Field(default=64, ge=1)
    initial_resolution: int = Field(default=8, ge=1)
    kernel_size: int = Field(default=5, ge=1)


DecoderSpec = Annotated[FullResolutionDecoder | UpsamplingDecoder, Field(discriminator="kind")]


class SlotAutoencoderSpec(Spec):
    """Slot attention autoencoder (Locatello et al. 2020) with a convolutional encoder on square images."""

    kind: Literal["slot_autoencoder"] = "slot_autoencoder"
    resolution: int = Field(default=64, ge=8)
    num_slots: int = Field(default=5, ge=1)
    num_iterations: int = Field(default=3, ge=1)
    slot_size: int = Field(default=64, ge=1)
    encoder_channels: int = Field(default=64, ge=1)
    encoder_layers: int = Field(default=4, ge=1)
    slot_mlp_size: int = Field(default=128, ge=1)
    init: Literal["reference", "covloss"] = "covloss"
    """`reference`: glorot-uniform everywhere as the official code; `covloss`: torch defaults, mu ~ N(0,1), log_sigma ~ U[0,1)."""
    decoder: DecoderSpec = FullResolutionDecoder()

    @model_validator(mode="after")
    def _decoder_reaches_resolution(self) -> SlotAutoencoderSpec:
        if isinstance(self.decoder, UpsamplingDecoder):
            ratio, rest = divmod(self.resolution, self.decoder.initial_resolution)
            if rest or ratio < 2 or ratio & (ratio - 1):
                raise ValueError(
                    f"resolution {self.resolution} is not initial_resolution {self.decoder.initial_resolution} "
                    "times a power of two (2, 4, 8, 16, ...)"
                )
        return self


class UntrainedScoreSpec(Spec):
    """Masks drawn at random instead of a model: the floor that every score must be read against."""

    kind: Literal["random_masks"] = "random_masks"
    resolution: int = Field(default=64, ge=8)
    num_slots: int = Field(default=5, ge=1)


ModelSpec = Annotated[SlotAutoencoderSpec | UntrainedScoreSpec, Field(discriminator="kind")]


class ProjectionSpec(Spec):
    """Projection head on the final slots (covloss.md 1)."""

    kind: Literal["identity", "mlp"] = "identity"
    size: int = Field(default=1024, ge=1)
    """Width and output of the MLP head; for `identity` it must equal the slot size."""
    norm: Literal["batchnorm", "layernorm"] = "batchnorm"


class ReconstructionObjective(Spec):
    """Mean squared error alone."""

    kind: Literal["reconstruction"] = "reconstruction"


class CovarianceObjective(Spec):
    """CovLoss: MSE + weight * (var_weight * std_loss + cov_weight * cov_loss) (arXiv 2306.02577; covloss.md 2)."""

    kind: Literal["covariance"] = "covariance"
    weight: float = Field(default=1.0, ge=0)
    var_weight: float = Field(default=0.0, ge=0)
    cov_weight: float = Field(default=1.0, ge=0)
    std_target: float = Field(default=0.0, ge=0)
    divide_by: Literal["features", "features_squared"] = "features_squared"
    projection: ProjectionSpec = ProjectionSpec(kind="mlp", size=1024, norm="layernorm")


class CosineObjective(Spec):
    """CosineLoss: MSE + weight * mean over ordered slot pairs of max(0, cos - margin) within an image (covloss.md 2)."""

    kind: Literal["cosine"] = "cosine"
    weight: float = Field(default=0.01, ge=0)
    margin: float = Field(default=0.2, ge=-1, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    projection: ProjectionSpec = ProjectionSpec(kind="identity", size=64)


ObjectiveSpec = Annotated[ReconstructionObjective | CovarianceObjective | CosineObjective, Field(discriminator="kind")]
