"""Typed configurations of language-guided slots and of the CLIP towers below them (language_slots.md); torch-free."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from models.spec_base import Spec, location


class MlpText2Slot(Spec):
    """Initial slots from one sentence feature, through an MLP without norms (language_slots.md 3)."""

    kind: Literal["mlp"] = "mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (256,)
    """Widths of the hidden layers; `[]` is one dense layer."""
    distribution: bool = True
    """true: one mu and log_sigma for all slots, told apart by noise; false: one mu per slot, without noise."""


class TransformerText2Slot(Spec):
    """Initial slots from a sentence's tokens: one learned query per slot attends to them (language_slots.md 3)."""

    kind: Literal["transformer"] = "transformer"
    text_tokens: int = Field(default=77, ge=1)
    """Tokens per sentence, padding included: CLIP's context length."""
    hidden: int = Field(default=64, ge=1)
    heads: int = Field(default=1, ge=1)
    layers: int = Field(default=2, ge=1)
    feedforward: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> TransformerText2Slot:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class NoText2Slot(Spec):
    """No text: mu and log_sigma are parameters (the control of language_slots.md 4, C01)."""

    kind: Literal["none"] = "none"


Text2SlotSpec = Annotated[MlpText2Slot | TransformerText2Slot | NoText2Slot, Field(discriminator="kind")]


class ImageDecoderSpec(Spec):
    """Broadcast to a small grid, one doubling layer per entry of `channels`, then the image (language_slots.md 1 and 4)."""

    initial_resolution: int = Field(default=7, ge=1)
    """`null` in a configuration: what makes the image's side with these `channels`."""
    kernel_size: Literal[3, 5] = 3
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 64, 64, 64, 64), min_length=1)
    """Output widths of the doubling layers, in order; the first takes the slot size."""
    upsample: Literal["deconv", "resize_conv"] = "deconv"
    """A stride-2 transposed convolution, or nearest-neighbour doubling and a convolution."""
    tail_conv: bool = True
    """One more stride-1 layer at the full resolution: more than the rest of the decoder costs."""
    recomputed_maps: Literal[0, 1, 2] = location(1)
    """How many of the (two) full-resolution feature maps the backward pass computes again instead of keeping them: with
    the defaults 1 costs 6 % and 2 costs 30 % more multiplications of a training step."""

    @property
    def resolution(self) -> int:
        """Side of the reconstructed image, in pixels."""
        return int(self.initial_resolution * 2 ** len(self.channels))


class LanguageSlotsSpec(Spec):
    """Slot attention on frozen CLIP tokens, with initial slots from a sentence (language_slots.md)."""

    kind: Literal["language_slots"] = "language_slots"
    resolution: int = Field(default=224, ge=8)
    """Side of the square image that is reconstructed, in pixels."""
    global_features: bool = False
    """One token, CLIP's pooled feature, instead of the patch tokens: every slot then receives the same update."""
    tokens: int = Field(default=49, ge=1)
    """Vision tokens per image: 1 with `global_features`, else a square number."""
    feature_size: int = Field(default=768, ge=1)
    text_size: int = Field(default=512, ge=1)
    num_slots: int = Field(default=7, ge=1, le=256)
    num_iterations: int = Field(default=3, ge=1)
    slot_size: int = Field(default=64, ge=1)
    slot_mlp_size: int = Field(default=128, ge=1)
    enc_pos_enc: bool = False
    """Add a position code to the vision tokens."""
    token_norm: bool = False
    """LayerNorm of the vision tokens first: for a ResNet's, which come without one."""
    text2slot: Text2SlotSpec = MlpText2Slot()
    decoder: ImageDecoderSpec = ImageDecoderSpec()

    @property
    def grid(self) -> int:
        """Side of the square grid of vision tokens."""
        return math.isqrt(self.tokens)

    @model_validator(mode="before")
    @classmethod
    def _fitting_decoder(cls, found: Any) -> Any:
        """`decoder.initial_resolution: null` is the one that fits."""
        decoder = found.get("decoder") if isinstance(found, dict) else None
        if not isinstance(decoder, dict) or decoder.get("initial_resolution", 0) is not None:
            return found
        side, channels = found.get("resolution", 224), decoder.get("channels", (0,) * 5)
        if not isinstance(side, int) or not isinstance(channels, list | tuple):
            return found  # refused below, with words
        return found | {"decoder": decoder | {"initial_resolution": max(1, side >> len(channels))}}

    @model_validator(mode="after")
    def _coupled_keys_agree(self) -> LanguageSlotsSpec:
        problems = []
        decoder = self.decoder
        if decoder.resolution != self.resolution:
            fits = [f"{self.resolution >> n} with {n}" for n in range(1, 9) if self.resolution % (1 << n) == 0]
            problems.append(
                f"decoder.initial_resolution {decoder.initial_resolution} with {len(decoder.channels)} decoder.channels makes "
                f"{decoder.resolution} x {decoder.resolution} pixels, resolution is {self.resolution}; "
                f"that takes {' or '.join(reversed(fits)) or 'an even resolution'}"
            )
        if self.global_features and self.tokens != 1:
            problems.append(f"global_features gives 1 token, tokens is {self.tokens}")
        if self.grid**2 != self.tokens:
            problems.append(f"tokens {self.tokens} is not a square number: 49 is a 7 x 7 grid")
        if self.enc_pos_enc and self.tokens == 1:
            problems.append("enc_pos_enc needs a grid of tokens, tokens is 1: set enc_pos_enc to false")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ClipSizes(NamedTuple):
    """What an architecture of CLIP yields."""

    tokens: int
    """Patch tokens of its vision tower."""
    feature_size: int
    text_size: int
    pooled_size: int
    """Of the pooled and projected feature."""


CLIP_SIZES: dict[str, ClipSizes] = {
    "ViT-S-32": ClipSizes(49, 384, 384, 384),
    "ViT-B-32": ClipSizes(49, 768, 512, 512),
    "ViT-B-32-256": ClipSizes(64, 768, 512, 512),
    "ViT-B-16": ClipSizes(196, 768, 512, 512),
    "ViT-L-14": ClipSizes(256, 1024, 768, 768),
    "ViT-L-14-336": ClipSizes(576, 1024, 768, 768),
    "RN50": ClipSizes(49, 2048, 512, 1024),
    "RN101": ClipSizes(49, 2048, 512, 512),
    "tiny-vit": ClipSizes(16, 32, 16, 24),
    "tiny-resnet": ClipSizes(4, 256, 16, 24),
}
"""Names without `-quickgelu` (language_slots.md 6); of others a configuration gives the sizes itself."""


class ClipSpec(Spec):
    """Frozen CLIP towers of open_clip: tokens of the vision tower, sentence and token features of the text tower."""

    kind: Literal["clip"] = "clip"
    name: str = Field(default="ViT-B-32-quickgelu", min_length=1)
    """open_clip's name of the architecture, or `tiny-vit` or `tiny-resnet`: small ones for rehearsals."""
    pretrained: str | None = "openai"
    """open_clip's tag of the weights; random ones ignore it. Of a file: the tag that it was made from, or null if it has none."""
    weights: Literal["pretrained", "file", "random"] = "pretrained"
    """`pretrained`: open_clip's download or its cache; `file`: a state dict at `path`; `random`: drawn from seed 0."""
    path: str | None = location(None)
    content: str | None = None
    """sha256 of the file at `path`, filled in on the login node."""
    global_features: bool = False
    """The pooled and projected feature as the only token, instead of the patch tokens."""
    tokens: int = Field(default=49, ge=1)
    feature_size: int = Field(default=768, ge=1)
    text_size: int = Field(default=512, ge=1)
    """What the architecture yields: `null` in a configuration takes it from CLIP_SIZES; checked when the towers are built."""

    @model_validator(mode="before")
    @classmethod
    def _known_sizes(cls, found: Any) -> Any:
        """Fill in the sizes that are null. Raises ValueError for an architecture that is not in CLIP_SIZES."""
        sizes = ("tokens", "feature_size", "text_size")
        missing = [key for key in sizes if isinstance(found, dict) and key in found and found[key] is None]
        if not missing:
            return found
        known = CLIP_SIZES.get(str(found.get("name", "ViT-B-32-quickgelu")).removesuffix("-quickgelu"))
        if known is None:
            raise ValueError(f"sizes of {found.get('name')} are not known here: give {', '.join(missing)}")
        yields = {"tokens": known.tokens, "feature_size": known.feature_size, "text_size": known.text_size}
        if found.get("global_features") is True:
            yields |= {"tokens": 1, "feature_size": known.pooled_size}
        return found | {key: yields[key] for key in missing}

    @model_validator(mode="after")
    def _weights_have_a_source(self) -> ClipSpec:
        if (self.weights == "file") != (self.path is not None):
            raise ValueError("weights=file and path go together; for pretrained or random weights set path to null")
        if self.weights == "pretrained" and self.pretrained is None:
            raise ValueError("weights=pretrained needs open_clip's tag in `pretrained`, which is null")
        return self


class SemanticObjective(Spec):
    """MSE + weighted terms that tie slots to the sentence: what could give them meaning (language_slots.md 4 and 8)."""

    kind: Literal["semantic"] = "semantic"
    contrastive: float = Field(default=0.0, ge=0)
    """S01: weight of InfoNCE between a sentence and the best-fitting slot of each image of the batch; pools the batch."""
    temperature: float = Field(default=0.07, gt=0)
    text: float = Field(default=0.0, ge=0)
    """S02: weight of the squared error of the sentence's feature, predicted from the slots."""
    names: float = Field(default=0.0, ge=0)
    """S03: weight of the cross-entropy of the named objects' colours and shapes, predicted from the slots."""
    entropy: float = Field(default=0.0, ge=0)
    """Weight of the masks' entropy, mean over pixels: the upstream option `use_entropy_loss`."""
    hidden: int = Field(default=128, ge=1)
    """Width of the heads, used in training only."""
