"""Typed configurations of video slots and of losses between frames (video_slots.md); torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.spec_base import Spec, UpsamplingDecoder, added, location


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
    """Iterations of slot attention on every frame after a clip's first; where nothing is said, as many as on that one."""
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
    encoder_time: Literal["none", "conv_gru", "conv_lstm", "conv3d"] = added("none")
    """What feature maps know of earlier frames. `conv_gru`, `conv_lstm`: such a state behind the last convolution; `conv3d`:
    behind each a convolution over this frame and the two before it, S3D made causal. Gradients go back over the whole clip."""
    decoder: UpsamplingDecoder = UpsamplingDecoder()
    start: Literal["gaussian", "gaussian_per_slot", "learned"] = "gaussian"
    """Slots before a frame's first iteration: one mu and sigma for all slots, one per slot (V7), or a vector per slot (V7)."""
    trainable_start: bool = True
    """false: mu and sigma stay as they were drawn, which is what the original did (video_slots.md 4.1)."""
    noise: Literal["frame", "clip", "fixed"] = "frame"
    """Drawn for every frame, once for a clip (V1b), or never: `eval_noise_KD` of the checkpoint, in training too."""
    recurrence: Recurrence | None = None
    """`null`: every frame starts anew."""

    @model_validator(mode="before")
    @classmethod
    def _iterations_as_on_the_first_frame(cls, found: Any) -> Any:
        if not isinstance(found, dict) or "num_iterations" not in found:
            return found
        match found.get("recurrence"):
            case dict() as told:
                return found | {"recurrence": {"num_iterations": found["num_iterations"]} | told}
            case Recurrence() as told if "num_iterations" not in told.model_fields_set:
                return found | {"recurrence": told.model_copy(update={"num_iterations": found["num_iterations"]})}
            case _:
                return found

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
