"""Typed configurations of models and objectives; torch-free, so that the login node can validate them.

Every field is part of a run's identity. A field added after a release declares its neutral value with `added(...)`:
runs made before it existed then keep their ids (DESIGN: Identity).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


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
    num_slots: int = Field(default=7, ge=1)
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


class MlpPredictor(Spec):
    """Slots of the next frame's start: s + MLP(LN(s)) per slot (video_slots.md 3, late recipe)."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=128, ge=1)
    """Width of the hidden layer; the recipe's is twice the slot size."""


class TransformerPredictor(Spec):
    """Slots of the next frame's start: transformer layers among a frame's slots (SAVi, arXiv 2111.12594; video_slots.md 5)."""

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(default=1, ge=1)
    heads: int = Field(default=4, ge=1)
    feedforward: int = Field(default=256, ge=1)
    pre_norm: bool = False
    """false: a norm behind each part's sum, as SAVi; true: before each part, as SlotFormer's recipe."""


PredictorSpec = Annotated[MlpPredictor | TransformerPredictor, Field(discriminator="kind")]


class Recurrence(Spec):
    """Slots of one frame start the next (video_slots.md 4: V2, V3, V8, V9)."""

    detach_every: int = Field(default=1, ge=0)
    """Every n-th frame of a clip takes the slots without their gradient: 1 is each (V3), 0 none, full BPTT (V2)."""
    num_iterations: int = Field(default=3, ge=1)
    """Iterations of slot attention on every frame after a clip's first."""
    predictor: PredictorSpec | None = None
    """Between frames; `null`: slots start as they ended."""


class VideoSlotsSpec(Spec):
    """Slot attention on clips, per frame or recurrent, with a convolutional encoder on square images (video_slots.md)."""

    kind: Literal["video_slots"] = "video_slots"
    resolution: int = Field(default=64, ge=8)
    num_slots: int = Field(default=7, ge=1)
    num_iterations: int = Field(default=3, ge=1)
    """Iterations of slot attention on a clip's first frame, or on every frame without recurrence."""
    slot_size: int = Field(default=64, ge=1)
    slot_mlp_size: int = Field(default=128, ge=1)
    encoder_channels: int = Field(default=64, ge=1)
    encoder_layers: int = Field(default=4, ge=1)
    encoder_stride: Literal[1, 2] = 1
    """Of the first convolution: 2 makes a quarter of the tokens, as SAVi-M does at 128 x 128."""
    encoder_norm: bool = False
    """LayerNorm before the encoder's MLP: the original has none, SAVi has."""
    decoder: UpsamplingDecoder = UpsamplingDecoder()
    start: Literal["gaussian", "gaussian_per_slot", "learned"] = "gaussian"
    """Slots before a frame's first iteration: one mu and sigma for all slots, one per slot (V7), or a vector per slot (V7)."""
    trainable_start: bool = True
    """false: mu and sigma stay as they were drawn, which is what the original did (video_slots.md 4.1)."""
    noise: Literal["frame", "clip", "fixed"] = "frame"
    """Drawn for every frame, once for a clip (V1b), or never: `eval_noise_KD` of the checkpoint, in training too."""
    recurrence: Recurrence | None = None
    """`null`: every frame starts anew."""

    @model_validator(mode="after")
    def _coupled_keys_agree(self) -> VideoSlotsSpec:
        problems = []
        ratio, rest = divmod(self.resolution, self.decoder.initial_resolution)
        if rest or ratio < 2 or ratio & (ratio - 1):
            problems.append(
                f"resolution {self.resolution} is not decoder.initial_resolution {self.decoder.initial_resolution} "
                "times a power of two (2, 4, 8, 16, ...)"
            )
        if self.resolution % self.encoder_stride:
            problems.append(f"resolution {self.resolution} is odd: set encoder_stride to 1")
        if self.start == "learned" and self.noise != "frame":
            problems.append(f"start=learned uses no noise: leave noise at frame, it is {self.noise}")
        if self.recurrence is not None and self.noise == "clip":
            problems.append("with recurrence noise is drawn for a clip's first frame alone: leave noise at frame, it is clip")
        predictor = None if self.recurrence is None else self.recurrence.predictor
        if isinstance(predictor, TransformerPredictor) and self.slot_size % predictor.heads:
            problems.append(f"slot_size {self.slot_size} is not a multiple of recurrence.predictor.heads {predictor.heads}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class LpipsSpec(Spec):
    """A frozen LPIPS net (arXiv 1801.03924): the trunk's weights; those of the linear heads come with the lpips package."""

    net: Literal["alex", "vgg"] = "alex"
    weights: Literal["pretrained", "file", "random"] = "pretrained"
    """`pretrained`: torchvision's download or its cache; `file`: torchvision's state dict at `path`; `random`: from seed 0."""
    path: str | None = location(None)
    content: str | None = None
    """sha256 of the file at `path`, filled in on the login node."""

    @property
    def smallest_side(self) -> int:
        """Of images that it takes, in pixels."""
        return {"alex": 31, "vgg": 16}[self.net]

    @model_validator(mode="after")
    def _file_has_a_path(self) -> LpipsSpec:
        if (self.weights == "file") != (self.path is not None):
            raise ValueError("weights=file and path go together; for pretrained or random weights set path to null")
        return self


class VideoObjective(Spec):
    """MSE + weighted terms between a slot in one frame and in the next; a term of weight 0 is neither built nor computed.

    The original logged these terms and trained on the MSE alone (video_slots.md 4.1). They compare equal slot indices, so they
    mean something where indices are aligned in training: recurrence, learned starts, one noise per clip.
    """

    kind: Literal["video"] = "video"
    future_masks: float = Field(default=0.0, ge=0)
    """V4: weight of the squared error of each frame's masks, predicted from the masks of the frame before."""
    future_slots: float = Field(default=0.0, ge=0)
    """V5: likewise of each slot's reconstruction on white."""
    future_channels: int = Field(default=32, ge=1)
    """Width of the convolutional autoencoders that predict."""
    detach_target: bool = False
    """Predictions are drawn to what comes, and not what comes to predictions."""
    perceptual: float = Field(default=0.0, ge=0)
    """V6: weight of LPIPS between each slot's reconstructions on white of two frames."""
    lpips: LpipsSpec = LpipsSpec()
    min_area: float = Field(default=0.01, ge=0, le=0.1)
    """LPIPS is taken as 0 for a slot that holds less than this share of the pixels in every frame of a clip; 0 computes all."""

    def problems(self, model: VideoSlotsSpec) -> list[str]:
        """Why this cannot train the model, one sentence each."""
        found, side = [], model.resolution
        if (self.future_masks or self.future_slots) and side % 8:
            found.append(f"future_masks and future_slots halve images three times: resolution {side} is not a multiple of 8")
        if self.perceptual and side < self.lpips.smallest_side:
            found.append(f"lpips.net {self.lpips.net} takes {self.lpips.smallest_side} pixels and more, resolution is {side}")
        return found


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


ModelSpec = Annotated[SlotAutoencoderSpec | UntrainedScoreSpec | DinosaurSpec | LanguageSlotsSpec, Field(discriminator="kind")]


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


ObjectiveSpec = Annotated[
    ReconstructionObjective | CovarianceObjective | CosineObjective | SemanticObjective, Field(discriminator="kind")
]
