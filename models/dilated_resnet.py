"""Owns the trunk of part models: a ResNet (arXiv 1512.03385) whose last two stages are dilated instead of strided.

Blocks, strides and dilations are torchvision's with replace_stride_with_dilation=[False, True, True]; the max pooling rounds
up, as DeepLab's does, so that 128 pixels give 17 x 17. Batch norms are frozen, hence an affine map per channel, which is
taken into the convolution before: neither its time nor its memory is spent.

Legend: B images, H x W pixels, C channels, h x w a feature map, g x g the trunk's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.imagenet_pixels import normalised
from models.initialisation import Weights
from models.spec_parts import TrunkSpec

NORM_EPS = 1e-5
EXPANSION = 4
"""Channels of a block, by the width of its 3 x 3 convolution."""
STATISTICS = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
"""Our names of a batch norm's constants, and torchvision's."""
NOISE_SIDE = 64
"""Of the noise images from which random weights' statistics are taken, in pixels."""
NOISE_GRIDS = (1, 4, 16, 64)
"""Sides of the grids of noise that such images are enlarged from, from one colour to white noise.

Of one kind of noise alone, statistics do not carry over to photographs: features of a deep trunk then grow a hundredfold.
"""
IMAGES_PER_GRID = 2
NAMED_AT_MOST = 8
"""Keys of a state dict that an error names."""


class TrunkError(ValueError):
    """Published weights that do not fit the trunk; one sentence."""


@dataclass(frozen=True, kw_only=True)
class TrunkSizes:
    """What tells ResNets apart."""

    stem: int
    """Channels of the first convolution."""
    widths: tuple[int, int, int, int]
    """Of each stage's 3 x 3 convolutions."""
    blocks: tuple[int, int, int, int]
    """Number per stage."""


SIZES = {
    "resnet50": TrunkSizes(stem=64, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3)),
    "resnet101": TrunkSizes(stem=64, widths=(64, 128, 256, 512), blocks=(3, 4, 23, 3)),
    "tiny": TrunkSizes(stem=16, widths=(8, 16, 24, 32), blocks=(1, 1, 1, 1)),
}


class NormedConv(nn.Module):
    """A convolution with the frozen batch norm behind it; the norm's constants are buffers of the state dict."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, weights: Weights
    ) -> None:
        super().__init__()
        deviation = math.sqrt(2 / (outputs * kernel_size**2))  # Kaiming by fan-out, as torchvision draws them
        weight = torch.empty(outputs, inputs, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.normal_(0, deviation, generator=weights.generator))
        for name in STATISTICS:
            self.register_buffer(name, torch.full((outputs,), float(name in ("scale", "variance"))))
        self._stride, self._dilation = stride, dilation

    def forward(self, inputs_BChw: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """The norm's output."""
        factor = self.scale * (self.variance + NORM_EPS).rsqrt()
        return self._convolved(inputs_BChw, self.weight * factor[:, None, None, None], self.shift - self.mean * factor)

    @torch.no_grad()
    def measure(self, inputs_BChw: Float[Tensor, "B _ _ _"]) -> None:
        """Take mean and variance from what the convolution makes of these inputs."""
        raw_BChw = self._convolved(inputs_BChw, self.weight, None)
        self.mean.copy_(raw_BChw.mean(dim=(0, 2, 3)))
        self.variance.copy_(raw_BChw.var(dim=(0, 2, 3), correction=0))

    def _convolved(self, inputs_BChw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self._dilation * (weight.shape[-1] // 2)
        return F.conv2d(inputs_BChw, weight, bias, self._stride, padding, self._dilation)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut, with the stride in the 3 x 3 one."""

    def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, weights: Weights) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = NormedConv(inputs, width, 1, weights=weights)
        self.conv2 = NormedConv(width, width, 3, stride=stride, dilation=dilation, weights=weights)
        self.conv3 = NormedConv(width, outputs, 1, weights=weights)
        whole = stride == 1 and inputs == outputs
        self.downsample = None if whole else NormedConv(inputs, outputs, 1, stride=stride, weights=weights)

    def forward(self, inputs_BChw: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Features of the same size, or of half of it."""
        changed = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(inputs_BChw)))))
        return F.relu_(changed + (inputs_BChw if self.downsample is None else self.downsample(inputs_BChw)))


class DilatedResNet(nn.Module):
    """Images to features of output stride 8; trained, but for its norms, which no mode and no optimiser changes."""

    def __init__(self, sizes: TrunkSizes, *, weights: Weights) -> None:
        super().__init__()
        self.channels = EXPANSION * sizes.widths[-1]
        """Of its features."""
        self.conv1 = NormedConv(3, sizes.stem, 7, stride=2, weights=weights)
        stages: list[nn.Sequential] = []
        channels, before = sizes.stem, 1
        for width, blocks, stride, dilation in zip(sizes.widths, sizes.blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True):
            stage = nn.Sequential()
            for index in range(blocks):  # the first block of a stage still has the dilation of the stage before
                first = index == 0
                stage.append(
                    Bottleneck(
                        channels, width, stride=stride if first else 1, dilation=before if first else dilation, weights=weights
                    )
                )
                channels = EXPANSION * width
            stages.append(stage)
            before = dilation
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, images_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C g g"]:
        """Images in [0, 1] -> features, in float32 (also under autocast) and channels last in memory."""
        seen = normalised(images_B3HW).contiguous(memory_format=torch.channels_last)
        hidden = F.max_pool2d(F.relu_(self.conv1(seen)), kernel_size=3, stride=2, padding=1, ceil_mode=True)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return hidden.float()

    @torch.no_grad()
    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take weights and norms from torchvision's state dict; its classifier and its norms' counters are ignored.

        Raises:
            TrunkError: keys are missing, foreign or of another shape. Nothing has been loaded then.
        """
        ours = {_published(name): value for name, value in self.state_dict().items()}
        theirs = {name for name in state if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")}
        missing, foreign = sorted(ours.keys() - theirs), sorted(theirs - ours.keys())
        mismatched = [
            f"{name} {list(state[name].shape)}, not {list(value.shape)}"
            for name, value in ours.items()
            if name in state and state[name].shape != value.shape
        ]
        problems = [
            f"{len(names)} {what} ({', '.join(names[:NAMED_AT_MOST])}{', ...' if len(names) > NAMED_AT_MOST else ''})"
            for what, names in (("missing", missing), ("unexpected", foreign), ("of another shape", mismatched))
            if names
        ]
        if problems:
            raise TrunkError(f"the weights do not fit the trunk: {'; '.join(problems)}")
        for name, value in ours.items():
            value.copy_(state[name])


def build_trunk(spec: TrunkSpec, *, weights: Weights) -> DilatedResNet:
    """A trunk of random weights drawn from `weights.generator` alone, whatever `spec.weights` says; published ones come later.

    Its norms get the statistics of noise images from the same generator, without which random features would grow or die out.
    """
    trunk = DilatedResNet(SIZES[spec.name], weights=weights)
    drawn = [torch.rand(IMAGES_PER_GRID, 3, grid, grid, generator=weights.generator) for grid in NOISE_GRIDS]
    images_B3HW = torch.cat([F.interpolate(noise, size=(NOISE_SIDE, NOISE_SIDE), mode="bilinear") for noise in drawn])
    convs = [module for module in trunk.modules() if isinstance(module, NormedConv)]
    hooks = [conv.register_forward_pre_hook(lambda conv, inputs: conv.measure(*inputs)) for conv in convs]
    with torch.no_grad():
        trunk(images_B3HW)
    for hook in hooks:
        hook.remove()
    return trunk


def _published(name: str) -> str:
    """Torchvision's name of one of our parameters or buffers: `layer1.0.conv2.mean` is its `layer1.0.bn2.running_mean`."""
    layer, part = name.rsplit(".", 1)
    if layer.endswith(".downsample"):
        return f"{layer}.0.weight" if part == "weight" else f"{layer}.1.{STATISTICS[part]}"
    return name if part == "weight" else f"{layer.replace('conv', 'bn')}.{STATISTICS[part]}"
