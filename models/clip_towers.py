"""Owns frozen CLIP towers, ViT and ResNet by one path: images to vision tokens, text ids to sentence and token features.

Builds through open_clip; reads no file of weights: they are handed in, in open_clip's own names.

Legend: B images or sentences, H = W pixels, N vision tokens, C vision features, L text tokens, T text features.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import open_clip  # type: ignore[import-untyped]  # ships neither stubs nor a marker
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.clip_pixels import normalised
from models.spec_language import ClipSpec

CONTEXT_LENGTH = 77
VOCABULARY = 49408
RANDOM_SEED = 0
"""What weights=random is drawn from: the same in every process."""
NAMED_AT_MOST = 8
"""Keys of a state dict, or names, that an error lists."""
QUICK = "-quickgelu"

_TINY_TEXT = {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
TINY: Mapping[str, Mapping[str, Any]] = {
    "tiny-vit": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": _TINY_TEXT,
    },
    "tiny-resnet": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
        "text_cfg": _TINY_TEXT,
    },
}
"""Architectures for rehearsals and tests, beside open_clip's: 16 tokens of 32 features, 4 of 256; text features of 16."""


class ClipError(ValueError):
    """CLIP towers that cannot be what their configuration says; one sentence per problem."""


class TextFeatures(NamedTuple):
    """What the text tower says of sentences, after its final norm and before its projection, in float32."""

    sentence_BT: Float[Tensor, "B T"]
    """The feature at the end-of-text token."""
    tokens_BLT: Float[Tensor, "B L T"]
    padding_BL: Bool[Tensor, "B L"]
    """True after the end-of-text token."""


class ClipTowers(nn.Module):
    """Both towers; always in eval mode (batch norm too), without gradients, in float32 also under autocast."""

    def __init__(self, clip: nn.Module, *, resolution: int, global_features: bool) -> None:
        super().__init__()
        self.clip = clip
        self.resolution = resolution
        """Side of the images that it takes, in pixels."""
        self._global = global_features
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ClipTowers:
        """Stays in eval mode inside a model that trains: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def vision_tokens(self, images_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Tokens of images in [0, 1].

        A ViT's patch tokens are those after its final norm, without CLS and without the projection; a ResNet's the last
        feature map as it is. With global features the pooled and projected one alone, not brought to unit length.
        Raises ClipError for images of another side than `resolution`.
        """
        height, width = images_BCHW.shape[-2:]
        if (height, width) != (self.resolution, self.resolution):
            raise ClipError(f"images of {height} x {width} pixels, the vision tower takes {self.resolution} x {self.resolution}")
        with torch.autocast(images_BCHW.device.type, enabled=False):
            found = self._intermediates(
                image=normalised(images_BCHW.float()),
                image_indices=1,
                image_output_fmt="NCHW",
                normalize=False,
                normalize_intermediates=True,
                intermediates_only=not self._global,
            )
        if self._global:
            pooled_BC: Tensor = found["image_features"]
            return pooled_BC[:, None]
        tokens_BCHW: Tensor = found["image_intermediates"][-1]
        return tokens_BCHW.flatten(2).transpose(1, 2).contiguous()

    @torch.no_grad()
    def text_features(self, ids_BL: Int[Tensor, "B L"]) -> TextFeatures:
        """Features of sentences by their ids (`text_ids`), which may be cut behind the longest sentence: a token never looks
        at later ones, so that changes features by rounding alone, and costs CLIP's 77 / L less."""
        length = ids_BL.shape[1]
        clip: Any = self.clip
        with torch.autocast(ids_BL.device.type, enabled=False):
            embedded_BLT = clip.token_embedding(ids_BL) + clip.positional_embedding[:length]
            tokens_BLT: Tensor = clip.ln_final(clip.transformer(embedded_BLT, attn_mask=clip.attn_mask[:length, :length]))
        end_B = ids_BL.argmax(dim=1)  # end-of-text has the largest id
        rows_B = torch.arange(len(ids_BL), device=ids_BL.device)
        padding_BL = torch.arange(length, device=ids_BL.device) > end_B[:, None]
        return TextFeatures(sentence_BT=tokens_BLT[rows_B, end_B], tokens_BLT=tokens_BLT, padding_BL=padding_BL)

    def _intermediates(self, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.clip.forward_intermediates(**options)  # type: ignore[operator]  # a method of open_clip's
        return found


def text_ids(sentences: Sequence[str]) -> Int[Tensor, "B 77"]:
    """CLIP's ids of sentences, with start and end of text and zeros behind; raises ClipError when one is too long."""
    ids_BL: Tensor = open_clip.tokenize(list(sentences), context_length=CONTEXT_LENGTH + 1)
    too_long = ids_BL[:, CONTEXT_LENGTH].nonzero().flatten().tolist()
    if too_long:
        sentence = sentences[too_long[0]]
        raise ClipError(f"{sentence!r} has more than the {CONTEXT_LENGTH} ids that CLIP takes, its start and end included")
    return ids_BL[:, :CONTEXT_LENGTH]


def check_tag(name: str, tag: str) -> None:
    """That open_clip has weights `tag` for the architecture `name`, and that both use the same activation.

    open_clip itself only warns about the activation, and then computes something else than the weights were trained for.

    Raises:
        ClipError: it has not, or the activations differ; with the names that would fit.
    """
    plain = name.removesuffix(QUICK)
    found = open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(plain, tag)
    if not found:
        known = sorted({*open_clip.list_pretrained_tags_by_model(name), *open_clip.list_pretrained_tags_by_model(plain)})
        raise ClipError(f"backbone.pretrained {tag!r}: open_clip has for {name}: {', '.join(known) or 'none'}")
    wanted, had = bool(found.get("quick_gelu", False)), bool(_config(name).get("quick_gelu", False))
    if wanted != had:
        fitting = plain + QUICK if wanted else plain
        spoken = {True: "QuickGELU", False: "GELU"}
        raise ClipError(
            f"backbone.name {name!r} computes {spoken[had]}, the weights {tag!r} were trained with {spoken[wanted]}; "
            f"hint: backbone.name={fitting}"
        )


def build_clip(spec: ClipSpec, *, state: Mapping[str, Tensor] | None) -> ClipTowers:
    """Build frozen towers on the CPU. The global random state is not touched.

    Args:
        spec: which ones.
        state: open_clip's state dict of the whole model; None if and only if weights=random.

    Raises:
        ClipError: open_clip does not know the name, or it is not a plain CLIP; the tag is unknown or of another activation;
            the towers have other sizes than the spec says; or the state dict lacks parameters, or has foreign or other ones.
    """
    if (state is None) != (spec.weights == "random"):
        raise ClipError(
            f"backbone {spec.name}: weights={spec.weights} and a state dict {'missing' if state is None else 'given'}"
        )
    config = _config(spec.name)
    if spec.weights != "random" and spec.pretrained is not None:
        check_tag(spec.name, spec.pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)  # torch.manual_seed would reseed the GPUs too
        clip = open_clip.CLIP(**config).float()
    _check_sizes(spec, config)
    if state is not None:
        _load(spec, clip, state)
    return ClipTowers(clip, resolution=config["vision_cfg"]["image_size"], global_features=spec.global_features)


def _config(name: str) -> dict[str, Any]:
    """open_clip's arguments of the architecture."""
    found = TINY.get(name) or open_clip.get_model_config(name)
    if found is None:
        close = difflib.get_close_matches(name, [*TINY, *open_clip.list_models()], n=NAMED_AT_MOST)
        hint = f"; names like it: {', '.join(close)}" if close else ""
        raise ClipError(f"backbone.name {name!r}: open_clip knows no such architecture{hint}")
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in found.items()}
    foreign = sorted(set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    foreign += [f"{part}.{key}" for part in ("vision_cfg", "text_cfg") for key in config[part] if "timm" in key or "hf_" in key]
    if foreign or not isinstance(config["vision_cfg"].get("image_size"), int):
        raise ClipError(f"backbone.name {name!r} is not a plain CLIP (it sets {', '.join(foreign) or 'image_size'})")
    return config


def _check_sizes(spec: ClipSpec, config: Mapping[str, Any]) -> None:
    vision = config["vision_cfg"]
    resnet = not isinstance(vision["layers"], int)
    patch, features = (32, 32 * vision["width"]) if resnet else (vision["patch_size"], vision["width"])
    found = {"tokens": (vision["image_size"] // patch) ** 2, "feature_size": features}
    if spec.global_features:
        found = {"tokens": 1, "feature_size": config["embed_dim"]}
    found["text_size"] = config["text_cfg"]["width"]
    problems = [
        f"backbone.{key} is {getattr(spec, key)}, {spec.name} yields {value}"
        for key, value in found.items()
        if getattr(spec, key) != value
    ]
    if problems:
        raise ClipError("; ".join(problems))


def _load(spec: ClipSpec, clip: nn.Module, state: Mapping[str, Tensor]) -> None:
    known = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    mismatched = [
        f"{name} {list(state[name].shape)}, not {list(shape)}"
        for name, shape in known.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    groups = (("missing", sorted(set(known) - set(state))), ("unexpected", sorted(set(state) - set(known))))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:NAMED_AT_MOST])}{', ...' if len(names) > NAMED_AT_MOST else ''})"
        for what, names in (*groups, ("of another shape", mismatched))
        if names
    ]
    if problems:
        raise ClipError(f"the weights do not fit {spec.name}: " + "; ".join(problems))
    clip.load_state_dict(dict(state), strict=True)
