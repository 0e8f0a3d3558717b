"""Owns the frozen convolutional net whose features parts must explain (VGG19, arXiv 1409.1556); left out of checkpoints.

The published weights are torchvision's and are handed in. Random weights have filters whose entries sum to 0, so that a feature
says how a place differs from its surroundings: with torch's defaults every place would have nearly the same features.

Legend: B images, H x W pixels, C channels, h x w a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from models.imagenet_pixels import IMAGENET_MEAN, IMAGENET_STD
from models.spec_parts import FeatureNetSpec

Layer = Literal["relu3_2", "relu5_4"]

RANDOM_SEED = 0
"""What weights=random is drawn from: the same in every process."""
VGG19_ENDS: dict[Layer, int] = {"relu3_2": 13, "relu5_4": 35}
"""Indices in `torchvision.models.vgg19().features`."""
VGG19_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Channels of its 3 x 3 convolutions, each followed by ReLU; a stage but the last ends in a pooling that halves."""
TINY_ENDS: dict[Layer, int] = {"relu3_2": 3, "relu5_4": 7}
TINY_CHANNELS = (8, 16, 32, 64)
RECTIFIED_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""Of weights that sum to 0: of a rectified normal input they see the variance alone, (1 - 1 / pi) / 2."""


class FeatureNetError(ValueError):
    """A feature net that cannot be what its configuration says; one sentence."""


class FeatureNet(nn.Module):
    """Features of some layers; always in eval mode, without any gradient, in float32 also under autocast.

    Its weights are buffers outside the state dict: neither an optimiser nor a checkpoint sees them.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, modules: Sequence[nn.Module], *, ends: Sequence[int]) -> None:
        """`ends`: which of the modules yield features, by their index; those after the last one are dropped."""
        super().__init__()
        self.ends = tuple(ends)
        self.layers = nn.ModuleList(modules[: max(ends) + 1])
        self.register_buffer("mean_C11", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        for module in self.layers.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, value.detach(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureNet:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_B3HW: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _C _h _w"], ...]:
        """One feature map per layer asked for, in that order; images in [0, 1]."""
        found: dict[int, Tensor] = {}
        with torch.autocast(images_B3HW.device.type, enabled=False):
            map_BChw = (images_B3HW.float() - self.mean_C11) / self.std_C11
            for index, layer in enumerate(self.layers):
                map_BChw = layer(map_BChw)
                if index in self.ends:
                    found[index] = map_BChw
        return tuple(found[end] for end in self.ends)


def build_feature_net(spec: FeatureNetSpec, *, layers: Sequence[Layer], state: Mapping[str, Tensor] | None) -> FeatureNet:
    """Build a frozen net on the CPU, up to the last of `layers`. The global random state is not touched, nothing is downloaded.

    Args:
        spec: which one.
        layers: whose features it yields, in this order.
        state: torchvision's state dict (its classifier may be left out); None if and only if weights=random.

    Raises:
        FeatureNetError: `layers` are none, or repeated; there is a state dict where there should be none, or none where there
            should be; or it lacks parameters of the net, or has them in another shape.
    """
    if not layers or len(set(layers)) < len(layers):
        raise FeatureNetError(f"objective.features {spec.name}: name one layer or more, each once, not {list(layers)}")
    if (state is None) != (spec.weights == "random"):
        raise FeatureNetError(
            f"objective.features {spec.name}: weights={spec.weights} and a state dict {'missing' if state is None else 'given'}"
        )
    vgg19 = spec.name == "vgg19"
    ends = [(VGG19_ENDS if vgg19 else TINY_ENDS)[layer] for layer in layers]
    modules = (_vgg19() if vgg19 else _tiny())[: max(ends) + 1]
    if state is None:
        _draw(modules, torch.Generator().manual_seed(RANDOM_SEED))
    else:
        _load(modules, state)
    return FeatureNet(modules, ends=ends)


def _vgg19() -> list[nn.Module]:
    modules: list[nn.Module] = []
    inputs = 3
    for number, stage in enumerate(VGG19_STAGES):
        if number:
            modules.append(nn.MaxPool2d(2))
        for channels in stage:
            modules += [_unfilled_conv(inputs, channels, kernel_size=3, stride=1), nn.ReLU(inplace=True)]
            inputs = channels
    return modules


def _tiny() -> list[nn.Module]:
    """Four strided convolutions, whose maps have the sides of VGG19's: H / 4 after two of them, H / 16 after four."""
    modules: list[nn.Module] = []
    for inputs, channels in pairwise((3, *TINY_CHANNELS)):
        modules += [_unfilled_conv(inputs, channels, kernel_size=4, stride=2), nn.ReLU(inplace=True)]
    return modules


def _unfilled_conv(inputs: int, outputs: int, *, kernel_size: int, stride: int) -> nn.Conv2d:
    """Its constructor would draw from the global random state."""
    layer: nn.Conv2d = skip_init(nn.Conv2d, inputs, outputs, kernel_size, stride=stride, padding=1)  # type: ignore[no-untyped-call]
    return layer


@torch.no_grad()
def _draw(modules: Sequence[nn.Module], generator: torch.Generator) -> None:
    """Normal filters that sum to 0, and no biases."""
    for module in modules:
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.weight.normal_(0, RECTIFIED_GAIN / math.sqrt(module.weight[0].numel()), generator=generator)
            module.weight -= module.weight.mean(dim=(1, 2, 3), keepdim=True)
            module.bias.zero_()


@torch.no_grad()
def _load(modules: Sequence[nn.Module], state: Mapping[str, Tensor]) -> None:
    for index, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            theirs = state.get(f"features.{index}.{name}")
            if theirs is None or theirs.shape != parameter.shape:
                has = "is missing" if theirs is None else f"is {list(theirs.shape)}, not {list(parameter.shape)}"
                raise FeatureNetError(f"the weights do not fit torchvision's vgg19: features.{index}.{name} {has}")
            parameter.copy_(theirs)
