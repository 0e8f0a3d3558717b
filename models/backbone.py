"""Owns frozen ViT backbones: images in, tokens of one block out. Builds through timm and loads no file: weights are handed in.

Legend: B images, H = W pixels, N tokens, C features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.imagenet_pixels import IMAGENET_MEAN, IMAGENET_STD
from models.spec import BackboneSpec

RANDOM_SEED = 0
"""What weights=random is drawn from: the same in every process."""
NAMED_AT_MOST = 8
"""Keys of a state dict that an error names."""


class BackboneError(ValueError):
    """A backbone that cannot be what its configuration says; one sentence per problem."""


class Backbone(nn.Module):
    """Tokens of one block of a ViT, before the final norm, without prefix tokens; always in eval mode, without gradients."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, vit: nn.Module, *, resolution: int, block: int, normalise: bool) -> None:
        super().__init__()
        self.vit = vit
        self.resolution = resolution
        """Side of the images that it takes, in pixels."""
        self._last = block - 1
        self._normalise = normalise
        self.register_buffer("mean_3", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_3", torch.tensor(IMAGENET_STD), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode inside a model that trains: it is frozen."""
        return super().train(False)

    def forward(self, images_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Images in [0, 1] -> tokens in float32; raises BackboneError for images of another side than `resolution`."""
        if images_BCHW.shape[-2:] != (self.resolution, self.resolution):
            height, width = images_BCHW.shape[-2:]
            raise BackboneError(f"images of {height} x {width} pixels, the backbone takes {self.resolution} x {self.resolution}")
        images = images_BCHW
        if self._normalise:
            images = (images_BCHW - self.mean_3[:, None, None]) / self.std_3[:, None, None]
        tokens: Tensor = self.vit.forward_intermediates(  # type: ignore[operator]  # a method of every timm ViT
            images, indices=[self._last], norm=False, stop_early=True, output_fmt="NLC", intermediates_only=True
        )[0]
        return tokens.float()


def build_backbone(spec: BackboneSpec, *, state: Mapping[str, Tensor] | None) -> Backbone:
    """Build a frozen backbone for the square images that give `spec.tokens` tokens.

    Blocks after `spec.block`, the final norm and the classifier are left out. Weights are loaded at the architecture's own
    resolution; for another one timm resamples its position embedding. The global random state is not touched.

    Args:
        spec: which one.
        state: timm's state dict of the architecture; None if and only if weights=random.

    Raises:
        BackboneError: timm does not know the name; it is not a ViT, or another one than the spec says (blocks, feature size,
            no square grid of tokens); or the state dict lacks parameters, or has foreign or other ones.
    """
    if (state is None) != (spec.weights == "random"):
        raise BackboneError(
            f"backbone {spec.name}: weights={spec.weights} and a state dict {'missing' if state is None else 'given'}"
        )
    vit = _create(spec)
    _check_blocks(spec, vit)
    known = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    vit.prune_intermediate_layers([spec.block - 1], prune_norm=True, prune_head=True)
    if state is not None:
        _load(spec, vit, state, known)
    resolution = _set_resolution(spec, vit)
    return Backbone(vit, resolution=resolution, block=spec.block, normalise=spec.normalise == "imagenet")


def _create(spec: BackboneSpec) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)  # torch.manual_seed would reseed the GPUs too
        try:
            vit = timm.create_model(spec.name, pretrained=False)
        except RuntimeError as error:
            close = timm.list_models(f"*{spec.name.split('.')[0][:12]}*")[:NAMED_AT_MOST]
            hint = f"; names like it: {', '.join(close)}" if close else ""
            raise BackboneError(f"backbone.name {spec.name!r}: {error}{hint}") from error
    needed = ("blocks", "num_prefix_tokens", "embed_dim", "patch_embed", "forward_intermediates", "prune_intermediate_layers")
    if not all(hasattr(vit, name) for name in needed):
        raise BackboneError(f"backbone.name {spec.name!r} is a {type(vit).__name__}, not a ViT with blocks of tokens")
    return vit


def _check_blocks(spec: BackboneSpec, vit: Any) -> None:
    problems = []
    if spec.block > len(vit.blocks):
        problems.append(f"backbone.block is {spec.block}, {spec.name} has {len(vit.blocks)} blocks, counted from 1")
    if spec.feature_size != vit.embed_dim:
        problems.append(f"backbone.feature_size is {spec.feature_size}, tokens of {spec.name} have {vit.embed_dim} features")
    if problems:
        raise BackboneError("; ".join(problems))


def _load(spec: BackboneSpec, vit: nn.Module, state: Mapping[str, Tensor], known: Mapping[str, tuple[int, ...]]) -> None:
    """Every parameter that is used must be there, in its shape; what only the left-out parts have may be."""
    used = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    missing = sorted(set(used) - set(state))
    unexpected = sorted(set(state) - set(known))
    mismatched = [
        f"{name} {list(state[name].shape)}, not {list(shape)}"
        for name, shape in used.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:NAMED_AT_MOST])}{', ...' if len(names) > NAMED_AT_MOST else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if names
    ]
    if problems:
        raise BackboneError(f"the weights do not fit {spec.name}: " + "; ".join(problems))
    vit.load_state_dict({name: state[name] for name in used}, strict=True)


def _set_resolution(spec: BackboneSpec, vit: Any) -> int:
    """Make the ViT take images of as many patches as there are tokens; their side in pixels."""
    height, width = vit.patch_embed.patch_size
    grid = math.isqrt(spec.tokens)
    if grid**2 != spec.tokens or height != width:
        raise BackboneError(f"backbone.tokens {spec.tokens} is no square grid of {spec.name}'s {height} x {width} patches")
    resolution: int = grid * height
    if tuple(vit.patch_embed.img_size) != (resolution, resolution):
        if not hasattr(vit, "set_input_size"):
            expected = vit.patch_embed.num_patches
            raise BackboneError(f"backbone.tokens is {spec.tokens}, {spec.name} makes {expected} and no other number")
        vit.set_input_size(img_size=(resolution, resolution))
    return resolution
