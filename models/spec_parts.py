"""Typed configurations of part slots and of the losses that train them (scops_slots.md); torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.spec_base import Spec, added, location


class _FrozenFile(Spec):
    """Where weights that somebody else trained come from."""

    weights: Literal["pretrained", "file", "random"] = "pretrained"
    """`pretrained`: torchvision's download or its cache; `file`: torchvision's state dict at `path`; `random`: drawn."""
    path: str | None = location(None)
    content: str | None = None
    """sha256 of the file at `path`, filled in on the login node."""

    @model_validator(mode="after")
    def _file_has_a_path(self) -> _FrozenFile:
        if (self.weights == "file") != (self.path is not None):
            raise ValueError("weights=file and path go together; for pretrained or random weights set path to null")
        return self


class TrunkSpec(_FrozenFile):
    """A dilated ResNet of output stride 8 whose max pooling rounds up: 128 px give 17 x 17 (scops_slots.md 1, rows 1 to 7).

    It is trained with the rest, at a rate of its own; its batch norms keep the statistics and scales that it came with.
    """

    name: Literal["resnet50", "resnet101", "tiny"] = "resnet50"
    """`tiny`: one narrow block a stage, of random weights, for rehearsals and trials on a CPU."""

    @property
    def channels(self) -> int:
        """Of its last stage."""
        return 128 if self.name == "tiny" else 2048

    def grid(self, resolution: int) -> int:
        """Side of its feature map for square images of `resolution` pixels: 17 for 128, 29 for 224."""
        convolved = (resolution - 1) // 2 + 1
        pooled = convolved // 2 + 1
        return (pooled - 1) // 2 + 1

    @model_validator(mode="after")
    def _tiny_is_random(self) -> TrunkSpec:
        if self.name == "tiny" and self.weights != "random":
            raise ValueError(f"name=tiny has no published weights: set weights=random, it is {self.weights}")
        return self


class LinearHead(Spec):
    """The seed's: slots broadcast to 8 x 8, a position code, four dilated 3 x 3 convolutions summed. All linear."""

    kind: Literal["linear"] = "linear"
    grid: int = Field(default=8, ge=1)


class ConvBroadcast(Spec):
    """Slots broadcast to 8 x 8, a position code, 5 x 5 convolutions with ReLU between, one logit (scops_slots.md 2, 3a)."""

    kind: Literal["conv"] = "conv"
    grid: int = Field(default=8, ge=1)
    layers: int = Field(default=4, ge=2)
    """Convolutions, the output layer included."""
    channels: int = Field(default=64, ge=1)


class MlpBroadcast(Spec):
    """Slots broadcast to the trunk's grid, a position code, an MLP with ReLU per place, one logit (scops_slots.md 2, 3a)."""

    kind: Literal["mlp"] = "mlp"
    layers: int = Field(default=4, ge=2)
    """Linear layers, the output layer included."""
    hidden: int = Field(default=64, ge=1)


class AttentionMasks(Spec):
    """No decoder: the logarithm of the last iteration's attention on the trunk's grid (scops_slots.md 2, 3b)."""

    kind: Literal["attention"] = "attention"


class SlotPixelProduct(Spec):
    """Scaled dot products of slots and projected trunk features (scops_slots.md 2, 3c)."""

    kind: Literal["product"] = "product"


class PixelHead(Spec):
    """No slots at all: SCOPS' own head, four dilated convolutions of the trunk's features, summed (reference row P16)."""

    kind: Literal["pixels"] = "pixels"


MaskSpec = Annotated[
    LinearHead | ConvBroadcast | MlpBroadcast | AttentionMasks | SlotPixelProduct | PixelHead, Field(discriminator="kind")
]


class PartSlotsSpec(Spec):
    """Slot attention on a dilated ResNet; every slot is a part, the first one the background (scops_slots.md 1)."""

    kind: Literal["part_slots"] = "part_slots"
    resolution: int = Field(default=128, ge=32)
    """Side of the images, in pixels."""
    num_parts: int = Field(default=5, ge=1)
    """Without the background, which has a slot of its own."""
    num_iterations: int = Field(default=3, ge=1)
    slot_size: int = Field(default=64, ge=1)
    slot_mlp_size: int = Field(default=128, ge=1)
    trunk: TrunkSpec = TrunkSpec()
    start: Literal["gaussian", "learned"] = "learned"
    """One mu and sigma for all slots, whose roles are then drawn anew for each image, or a vector per slot."""
    train_slots: bool = True
    """false: position code, adapter and slot attention stay as they were drawn, as upstream's optimiser left them."""
    masks: MaskSpec = MlpBroadcast()

    @property
    def num_slots(self) -> int:
        """Background included."""
        return self.num_parts + 1

    @property
    def grid(self) -> int:
        """Side of the trunk's feature map."""
        return self.trunk.grid(self.resolution)

    @model_validator(mode="after")
    def _something_to_train(self) -> PartSlotsSpec:
        if isinstance(self.masks, AttentionMasks) and self.num_iterations < 2:
            raise ValueError("masks.kind attention with num_iterations 1 uses no slot but the first ones: set 2 or more")
        if isinstance(self.masks, PixelHead) and not self.train_slots:
            raise ValueError("masks.kind pixels has no slots: leave train_slots at true")
        if isinstance(self.masks, PixelHead):
            without = [
                name for name in ("start", "num_iterations") if getattr(self, name) != type(self).model_fields[name].default
            ]
            if without:
                raise ValueError(f"masks.kind pixels has no slots: leave {' and '.join(without)} at the default")
        return self


class FeatureNetSpec(_FrozenFile):
    """The frozen VGG19 whose features parts must explain (scops_slots.md 1, rows 20 and 21)."""

    name: Literal["vgg19", "tiny"] = "vgg19"
    """`tiny`: four narrow stages of random weights with the same strides, for rehearsals and trials on a CPU."""

    @property
    def channels(self) -> dict[str, int]:
        """Of each layer that a loss may name."""
        return {"relu3_2": 16, "relu5_4": 64} if self.name == "tiny" else {"relu3_2": 256, "relu5_4": 512}

    @model_validator(mode="after")
    def _tiny_is_random(self) -> FeatureNetSpec:
        if self.name == "tiny" and self.weights != "random":
            raise ValueError(f"name=tiny has no published weights: set weights=random, it is {self.weights}")
        return self


class PartsObjective(Spec):
    """SCOPS' losses (scops_slots.md 3) and those of Choudhury et al. 2021; a term of weight 0 is neither built nor computed."""

    kind: Literal["parts"] = "parts"
    features: FeatureNetSpec = FeatureNetSpec()
    foreground: Literal["truth", "none"] = "truth"
    """`truth`: the features are those of the object alone, by its mask; `none`: the background is to be explained as well."""
    background_row: bool = False
    """The background slot has a row of the basis of its own; else it explains nothing."""
    semantic: float = Field(default=1.0, ge=0)
    """Of the mean squared error between the features and what masks times basis make of them."""
    resolution: int | None = Field(default=32, ge=4)
    """Side of the grid on which features are compared; `null`: that of the images, as the seed has it."""
    concentration: float = Field(default=0.0, ge=0)
    equivariance: float = Field(default=0.0, ge=0)
    """KL between masks of a warped image and warped masks."""
    landmarks: float = Field(default=0.0, ge=0)
    """Squared distance of the same two maps' part centres."""
    orthonormality: float = Field(default=0.0, ge=0)
    compactness: float = Field(default=0.0, ge=0)
    """Choudhury: variance of features within a part."""
    contrast: float = Field(default=0.0, ge=0)
    """Choudhury: a part resembles itself in other images more than other parts."""
    temperature: float = Field(default=0.19, gt=0)
    colour_variance: float = Field(default=0.0, ge=0)
    """Choudhury: variance of RGB within a part."""
    background: float = added(0.0, ge=0)
    """Cross-entropy of the background's mask and what is not foreground: for terms that look at the foreground alone."""

    @property
    def warps(self) -> bool:
        """Whether a second, warped view of each image is needed."""
        return self.equivariance > 0 or self.landmarks > 0

    @property
    def looks_at_features(self) -> bool:
        """Whether the feature net is needed."""
        return self.semantic > 0 or self.compactness > 0 or self.contrast > 0

    def problems(self, model: PartSlotsSpec) -> list[str]:
        """Why this cannot train the model, one sentence each."""
        found = []
        if self.resolution is not None and self.resolution > model.resolution:
            found.append(f"objective.resolution {self.resolution} is above model.resolution {model.resolution}")
        terms = ("semantic", "concentration", "equivariance", "landmarks", "compactness", "contrast", "colour_variance")
        if not any(getattr(self, name) for name in terms):
            found.append(f"every weight of the objective is 0: give one of {', '.join(terms)}")
        inside = ("compactness", "contrast", "colour_variance", "background")
        if self.foreground == "none" and (given := [name for name in inside if getattr(self, name)]):
            found.append(f"{' and '.join(f'objective.{name}' for name in given)} need objective.foreground truth, it is none")
        if self.orthonormality and not self.semantic:
            found.append("objective.orthonormality is about the basis, which only objective.semantic > 0 has")
        if self.background_row and not self.semantic:
            found.append("objective.background_row is a row of the basis, which only objective.semantic > 0 has")
        return found
