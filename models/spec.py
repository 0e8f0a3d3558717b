"""Typed configurations of the image models, of objectives, and what a run may name; torch-free, for the login node.

Those of language-guided, video and part slots have files of their own (spec_language.py, spec_video.py, spec_parts.py).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from models.spec_base import DecoderSpec, FullResolutionDecoder, Spec, UpsamplingDecoder, added, location
from models.spec_language import ClipSpec, LanguageSlotsSpec, SemanticObjective
from models.spec_parts import PartSlotsSpec, PartsObjective
from models.spec_video import VideoObjective, VideoSlotsSpec


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


class PatchMlpDecoder(Spec):
    """Slot plus learned position, then an MLP per patch to features and an alpha logit (DINOSAUR; dinosaur.md 1)."""

    kind: Literal["patch_mlp"] = "patch_mlp"
    hidden: int = Field(default=2048, ge=1)
    layers: int = Field(default=4, ge=2)
    """Linear layers, the output layer included."""
    positions: Literal["normal", "xavier"] = "normal"
    """The position table's distribution: N(0, 0.02^2) as DINOSAUR, or Xavier-uniform as the CovLoss code."""


class PatchTransformerDecoder(Spec):
    """Autoregressive transformer over patches that attends to the slots (DINOSAUR; dinosaur.md 1)."""

    kind: Literal["patch_transformer"] = "patch_transformer"
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=8, ge=1)
    feedforward: int = Field(default=3072, ge=1)


class CocoAdaptiveDecoder(Spec):
    """Broadcast to a small grid, an MLP per position, stride-2 layers up to an image (CovLoss on COCO; slot_attention.md 5)."""

    kind: Literal["coco_adaptive"] = "coco_adaptive"
    channels: int = Field(default=32, ge=1)
    initial_resolution: int = Field(default=8, ge=1)
    conv_layers: int = Field(default=6, ge=3)
    """n: n - 2 doubling layers, one stride-1 layer, the output layer; the image's side is initial_resolution * 2^(n - 2)."""

    @property
    def resolution(self) -> int:
        """Side of the reconstructed image, in pixels."""
        return int(self.initial_resolution * 2 ** (self.conv_layers - 2))


TokenDecoderSpec = Annotated[PatchMlpDecoder | PatchTransformerDecoder | CocoAdaptiveDecoder, Field(discriminator="kind")]


class GateSpec(Spec):
    """AdaSlot's gate: every slot is kept or dropped by a hard Gumbel-softmax sample (arXiv 2406.09196; adaslot.md 1)."""

    temperature: float = Field(default=1.0, gt=0)


class DinosaurSpec(Spec):
    """Slot attention on frozen ViT tokens: DINOSAUR, CovLoss's COCO models, AdaSlot (dinosaur.md, adaslot.md)."""

    kind: Literal["dinosaur"] = "dinosaur"
    tokens: int = Field(default=196, ge=1)
    """Tokens per image, a square number: the grid of the ViT's patches."""
    feature_size: int = Field(default=768, ge=1)
    num_slots: int = Field(default=7, ge=1)
    num_iterations: int = Field(default=3, ge=1)
    slot_size: int = Field(default=256, ge=1)
    adapter: Literal["dinosaur", "covloss"] = "dinosaur"
    """`dinosaur`: LN, Linear C-C, ReLU, Linear C-D; `covloss`: LN, Linear C-D, ReLU, LN, Linear D-D, ReLU, Linear D-D."""
    init: Literal["dinosaur", "covloss"] = "dinosaur"
    """`dinosaur`: torch defaults with zero biases, Xavier slot prior, LN eps 1e-5; `covloss`: as in the autoencoder, eps 1e-3."""
    decoder: TokenDecoderSpec = PatchMlpDecoder()
    gate: GateSpec | None = None
    """`null`: every slot is kept."""

    @property
    def grid(self) -> int:
        """Side of the square grid of tokens."""
        return math.isqrt(self.tokens)

    def shapes(self) -> dict[str, Any]:
        """What decides the parameters' shapes, the gate's apart: a model can start from the weights of one that agrees."""
        found = self.model_dump(include={"feature_size", "slot_size", "adapter"})
        unseen = {"positions", "heads", "initial_resolution"}
        found |= {f"decoder.{name}": value for name, value in self.decoder.model_dump(exclude=unseen).items()}
        return found | ({"tokens": self.tokens} if isinstance(self.decoder, PatchMlpDecoder) else {})

    @model_validator(mode="after")
    def _square_grid(self) -> DinosaurSpec:
        if self.grid**2 != self.tokens:
            raise ValueError(f"tokens {self.tokens} is not a square number: 196 is a 14 x 14 grid")
        if isinstance(self.decoder, PatchTransformerDecoder) and self.feature_size % self.decoder.heads:
            raise ValueError(f"feature_size {self.feature_size} is not a multiple of decoder.heads {self.decoder.heads}")
        if self.gate is not None and not isinstance(self.decoder, PatchMlpDecoder):
            raise ValueError(
                f"a gate needs decoder.kind patch_mlp, not {self.decoder.kind}: AdaSlot masks the MLP decoder's alpha"
            )
        return self


class BackboneSpec(Spec):
    """A frozen timm ViT: tokens of one block, before the final norm, without prefix tokens (dinosaur.md 1)."""

    kind: Literal["timm"] = added("timm")
    name: str = Field(default="vit_base_patch16_224.dino", min_length=1)
    """timm's name of the architecture and of its pretrained tag."""
    weights: Literal["pretrained", "file", "random"] = "pretrained"
    """`pretrained`: timm's download or its cache; `file`: a state dict at `path`; `random`: drawn from seed 0, for rehearsals."""
    path: str | None = location(None)
    content: str | None = None
    """sha256 of the file at `path`, filled in on the login node."""
    block: int = Field(default=12, ge=1)
    """Tokens are the output of this block, counted from 1."""
    tokens: int = Field(default=196, ge=1)
    feature_size: int = Field(default=768, ge=1)
    """What the architecture yields; checked when it is built, so that the login node can compare without torch."""
    normalise: Literal["imagenet", "none"] = "imagenet"
    """Pixel statistics; CovLoss feeds [0, 1] as it is."""

    @model_validator(mode="after")
    def _file_has_a_path(self) -> BackboneSpec:
        if (self.weights == "file") != (self.path is not None):
            raise ValueError("weights=file and path go together; for pretrained or random weights set path to null")
        return self


def _backbone_kind(value: Any) -> str:
    """A backbone from before there were CLIP towers does not say its kind."""
    found = value.get("kind", "timm") if isinstance(value, dict) else getattr(value, "kind", "timm")
    return str(found)


AnyBackbone = Annotated[Annotated[BackboneSpec, Tag("timm")] | Annotated[ClipSpec, Tag("clip")], Discriminator(_backbone_kind)]


class UntrainedScoreSpec(Spec):
    """Masks drawn at random instead of a model: the floor that every score must be read against."""

    kind: Literal["random_masks"] = "random_masks"
    resolution: int = Field(default=64, ge=8)
    num_slots: int = Field(default=5, ge=1)


ModelSpec = Annotated[
    SlotAutoencoderSpec | UntrainedScoreSpec | DinosaurSpec | LanguageSlotsSpec | VideoSlotsSpec | PartSlotsSpec,
    Field(discriminator="kind"),
]


class ProjectionSpec(Spec):
    """Projection head on the final slots (covloss.md 1)."""

    kind: Literal["identity", "mlp"] = "identity"
    size: int = Field(default=1024, ge=1)
    """Width and output of the MLP head; for `identity` it must equal the slot size."""
    norm: Literal["batchnorm", "layernorm"] = "batchnorm"


class ReconstructionObjective(Spec):
    """Mean squared error; with a gated model also a penalty on kept slots."""

    kind: Literal["reconstruction"] = "reconstruction"
    sparsity: float = added(0.0, ge=0)
    """AdaSlot's lambda: adds sparsity * mean over images and slots of the kept slots' indicator."""


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


ObjectiveSpec = Annotated[
    ReconstructionObjective | CovarianceObjective | CosineObjective | SemanticObjective | VideoObjective | PartsObjective,
    Field(discriminator="kind"),
]
