"""Owns LPIPS between frames (Zhang et al. 2018, arXiv 1801.03924; the lpips package, v0.1), frozen and left out of checkpoints.

The package brings the weights of the linear heads; those of the trunk are torchvision's and are handed in. Features are
computed once per frame, though a frame stands in two pairs.

Legend: B clips, R rows (clips x slots), K slots, T frames, H x W pixels, C channels, h x w a feature map.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.spec_video import LpipsSpec

RANDOM_SEED = 0
"""What weights=random is drawn from: the same in every process."""
TRUNK_NAME = re.compile(r"net\.slice\d+\.(\d+\.\w+)")


class LpipsError(ValueError):
    """An LPIPS net that cannot be what its configuration says; one sentence."""


class FrameLpips(nn.Module):
    """LPIPS of consecutive images; always in eval mode, without gradients to its weights, in float32 also under autocast.

    Its weights are buffers outside the state dict: neither an optimiser nor a checkpoint sees them.
    """

    def __init__(self, net: nn.Module) -> None:
        """`net`: an `lpips.LPIPS`."""
        super().__init__()
        self.net: Any = net
        for module in net.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, value.detach(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> FrameLpips:
        """Stays in eval mode inside an objective that trains: it is frozen."""
        return super().train(False)

    def forward(self, images_RT3HW: Float[Tensor, "R T 3 H W"]) -> Float[Tensor, "R T-1"]:
        """Distance of each image in [-1, 1] to the next; values beyond are clamped, as in the original."""
        from lpips import normalize_tensor  # type: ignore[import-untyped]  # ships neither stubs nor a marker

        rows, frames = images_RT3HW.shape[:2]
        with torch.autocast(images_RT3HW.device.type, enabled=False):
            flat_M3HW = images_RT3HW.float().clamp(-1, 1).flatten(0, 1)
            maps = self.net.net(self.net.scaling_layer(flat_M3HW))
            distances = [
                self._difference(normalize_tensor(map_MChw).view(rows, frames, *map_MChw.shape[1:]), head)
                for map_MChw, head in zip(maps, self.net.lins, strict=True)
            ]
        return torch.stack(distances).sum(dim=0)

    def _difference(self, unit_RTChw: Tensor, head: nn.Module) -> Tensor:
        squares_RTChw = (unit_RTChw[:, 1:] - unit_RTChw[:, :-1]).square()
        weighed_M1hw: Tensor = head(squares_RTChw.flatten(0, 1))
        return weighed_M1hw.mean(dim=(1, 2, 3)).view(squares_RTChw.shape[:2])


def slot_distances(
    net: FrameLpips,
    reconstructions_BTK3HW: Float[Tensor, "B T K 3 H W"],
    masks_BTKHW: Float[Tensor, "B T K H W"],
    *,
    min_area: float,
) -> Float[Tensor, " B"]:
    """Mean LPIPS between a slot's reconstructions in two frames, over slots and pairs of frames of each clip.

    A slot whose mask holds less than `min_area` of the pixels in every frame of a clip counts with 0 and is not computed.
    Raises ValueError for clips of a single frame.
    """
    clips, frames, slots = masks_BTKHW.shape[:3]
    if frames < 2:
        raise ValueError("the perceptual term needs clips of two frames or more")
    images_RT3HW = reconstructions_BTK3HW.transpose(1, 2).flatten(0, 1)
    clip_R = torch.arange(clips, device=masks_BTKHW.device).repeat_interleave(slots)
    if min_area > 0:
        area_BTK = masks_BTKHW.detach().mean(dim=(3, 4))
        large_R = (area_BTK >= min_area).any(dim=1).flatten()
        images_RT3HW, clip_R = images_RT3HW[large_R], clip_R[large_R]
    distances_RT: Tensor = net(images_RT3HW)
    belongs_BR = torch.arange(clips, device=clip_R.device)[:, None] == clip_R
    return torch.where(belongs_BR, distances_RT.sum(dim=1), 0.0).sum(dim=1) / (slots * (frames - 1))


def build_lpips(spec: LpipsSpec, *, state: Mapping[str, Tensor] | None) -> FrameLpips:
    """Build a frozen net on the CPU. The global random state is not touched, and nothing is downloaded.

    Args:
        spec: which one.
        state: torchvision's state dict of the trunk (its classifier may be left out); None if and only if weights=random.

    Raises:
        LpipsError: there is a state dict where there should be none, or none where there should be; or it lacks parameters
            of the trunk, or has them in another shape.
    """
    import lpips  # takes more than a second, and no other model needs it

    if (state is None) != (spec.weights == "random"):
        raise LpipsError(f"lpips {spec.net}: weights={spec.weights} and a state dict {'missing' if state is None else 'given'}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision with arguments of its older releases
        torch.default_generator.manual_seed(RANDOM_SEED)  # torch.manual_seed would reseed the GPUs too
        net: nn.Module = lpips.LPIPS(net=spec.net, pretrained=True, pnet_rand=True, verbose=False)
    if state is not None:
        _load(spec, net, state)
    return FrameLpips(net)


@torch.no_grad()
def _load(spec: LpipsSpec, net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The package numbers the trunk's layers as torchvision does, within slices of its own."""
    for name, parameter in net.named_parameters():
        found = TRUNK_NAME.fullmatch(name)
        if found is None:
            continue
        theirs = state.get(f"features.{found[1]}")
        if theirs is None or theirs.shape != parameter.shape:
            has = "is missing" if theirs is None else f"is {list(theirs.shape)}, not {list(parameter.shape)}"
            raise LpipsError(f"the weights do not fit torchvision's trunk of lpips.net {spec.net}: features.{found[1]} {has}")
        parameter.copy_(theirs)
