"""Frozen CLIP towers: which features they give, from which weights, and what they refuse. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.clip_pixels import CLIP_MEAN, CLIP_STD, denormalised, normalised
from models.clip_towers import TINY, ClipError, ClipTowers, build_clip, check_tag, text_ids
from models.spec_language import CLIP_SIZES, ClipSpec

VIT: dict[str, Any] = {"name": "tiny-vit", "weights": "random", "tokens": 16, "feature_size": 32, "text_size": 16}
RESNET: dict[str, Any] = {"name": "tiny-resnet", "weights": "random", "tokens": 4, "feature_size": 256, "text_size": 16}
SPECS = {"vit": VIT, "resnet": RESNET}
SENTENCES = ("lift up the red cube", "put the red cylinder to the left of the cyan cube")


def built(which: str, state: Mapping[str, Tensor] | None = None, **changes: Any) -> ClipTowers:
    source = {} if state is None else {"weights": "file", "path": "weights.pt", "pretrained": None}
    return build_clip(ClipSpec.model_validate(SPECS[which] | source | changes), state=state)


@pytest.fixture(scope="module", params=list(SPECS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def state(name: str) -> dict[str, Tensor]:
    """Weights that all differ from their defaults, norms and their statistics too."""
    torch.manual_seed(3)
    whole = open_clip.CLIP(**TINY[SPECS[name]["name"]])
    for parameter in whole.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    for key, buffer in whole.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return dict(whole.state_dict())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plain(name: str, state: Mapping[str, Tensor]) -> Any:
    """open_clip's own model."""
    whole = open_clip.CLIP(**TINY[SPECS[name]["name"]])
    whole.load_state_dict(state)
    return whole.eval()


@torch.no_grad()
def test_that_vision_tokens_are_after_the_final_norm_and_unprojected(name: str, state: dict[str, Tensor], images: Tensor) -> None:
    tokens = built(name, state).vision_tokens(images)
    whole = plain(name, state)
    seen: list[Tensor] = []
    layer = whole.visual.ln_post if name == "vit" else whole.visual.layer4
    if name == "vit":
        whole.visual.output_tokens = True
        expected = whole.visual(normalised(images))[1]
    else:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        whole.visual(normalised(images))
        expected = seen[0].flatten(2).transpose(1, 2)
    assert tokens.shape == (2, SPECS[name]["tokens"], SPECS[name]["feature_size"])
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_that_the_global_feature_is_the_pooled_one_as_it_is(name: str, state: dict[str, Tensor], images: Tensor) -> None:
    tokens = built(name, state, global_features=True, tokens=1, feature_size=24).vision_tokens(images)
    expected = plain(name, state).encode_image(normalised(images), normalize=False)
    torch.testing.assert_close(tokens, expected[:, None], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_that_the_sentence_is_the_end_of_text_feature_before_the_projection(name: str, state: dict[str, Tensor]) -> None:
    found = built(name, state).text_features(text_ids(SENTENCES))
    assert found.sentence_BT.shape == (2, 16)
    projected = found.sentence_BT @ state["text_projection"]
    torch.testing.assert_close(projected, plain(name, state).encode_text(text_ids(SENTENCES)), atol=1e-6, rtol=1e-6)
    ends = [int((~row).sum()) - 1 for row in found.padding_BL]
    assert ends == [6, 13]
    assert all(torch.equal(found.tokens_BLT[row, end], found.sentence_BT[row]) for row, end in enumerate(ends))


def test_that_ids_cut_behind_the_longest_sentence_have_the_same_features(name: str, state: dict[str, Tensor]) -> None:
    towers, ids = built(name, state), text_ids(SENTENCES)
    whole, cut = towers.text_features(ids), towers.text_features(ids[:, :14])
    torch.testing.assert_close(cut.sentence_BT, whole.sentence_BT, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cut.tokens_BLT, whole.tokens_BLT[:, :14], atol=1e-6, rtol=1e-5)
    assert torch.equal(cut.padding_BL, whole.padding_BL[:, :14])


def test_that_towers_are_frozen_and_stay_in_eval_mode(name: str, images: Tensor) -> None:
    towers = built(name)
    outer = nn.Sequential(towers).train()
    assert outer.training
    assert not any(module.training for module in towers.modules())
    assert not any(parameter.requires_grad for parameter in towers.parameters())
    before = {key: value.clone() for key, value in towers.state_dict().items()}
    assert not towers.vision_tokens(images).requires_grad
    assert all(torch.equal(value, before[key]) for key, value in towers.state_dict().items())


def test_that_features_are_float32_also_under_autocast(name: str, images: Tensor) -> None:
    towers = built(name)
    exact, words = towers.vision_tokens(images), towers.text_features(text_ids(SENTENCES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(towers.vision_tokens(images), exact)
        assert torch.equal(towers.text_features(text_ids(SENTENCES)).sentence_BT, words.sentence_BT)


def test_that_random_weights_are_one_draw_that_leaves_the_global_state_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(name).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second = built(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_that_half_precision_weights_are_loaded_into_float32(name: str, state: dict[str, Tensor]) -> None:
    towers = built(name, {key: value.half() if value.is_floating_point() else value for key, value in state.items()})
    assert {parameter.dtype for parameter in towers.parameters()} == {torch.float32}


def test_that_every_wrong_key_of_a_state_dict_is_named(name: str, state: dict[str, Tensor]) -> None:
    broken = {key: value for key, value in state.items() if key != "ln_final.weight"}
    broken["neck.weight"] = torch.zeros(1)
    broken["positional_embedding"] = torch.zeros(5, 16)
    with pytest.raises(ClipError) as caught:
        built(name, broken)
    said = str(caught.value)
    assert "1 missing (ln_final.weight)" in said
    assert "1 unexpected (neck.weight)" in said
    assert "positional_embedding [5, 16], not [77, 16]" in said


@pytest.mark.parametrize(
    ("architecture", "tag", "said"),
    [
        (
            "ViT-B-32",
            "openai",
            "computes GELU, the weights 'openai' were trained with QuickGELU; hint: backbone.name=ViT-B-32-quickgelu",
        ),
        ("RN50", "openai", "hint: backbone.name=RN50-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "trained with GELU; hint: backbone.name=ViT-B-32"),
        ("ViT-B-32", "opnai", "backbone.pretrained 'opnai': open_clip has for ViT-B-32: .*openai"),
        ("ViT-S-32", "openai", "open_clip has for ViT-S-32: none"),
    ],
)
def test_that_weights_of_another_activation_are_an_error_and_not_a_warning(architecture: str, tag: str, said: str) -> None:
    with pytest.raises(ClipError, match=said):
        check_tag(architecture, tag)


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [
        ("ViT-B-32-quickgelu", "openai"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("RN50-quickgelu", "openai"),
        ("ViT-B-16-quickgelu", "openai"),
        ("ViT-L-14-quickgelu", "openai"),
    ],
)
def test_that_fitting_weights_are_accepted(architecture: str, tag: str) -> None:
    check_tag(architecture, tag)


def test_that_the_tag_is_checked_when_towers_are_built() -> None:
    spec = ClipSpec(name="ViT-B-32", weights="file", path="weights.pt", pretrained="openai")
    with pytest.raises(ClipError, match="QuickGELU"):
        build_clip(spec, state={})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 49}, "backbone.tokens is 49, tiny-vit yields 16"),
        ({"feature_size": 768}, "backbone.feature_size is 768, tiny-vit yields 32"),
        ({"text_size": 512}, "backbone.text_size is 512, tiny-vit yields 16"),
        ({"global_features": True}, "backbone.tokens is 16, tiny-vit yields 1; backbone.feature_size is 32, tiny-vit yields 24"),
        ({"name": "ViT-B-33"}, "backbone.name 'ViT-B-33': open_clip knows no such architecture; names like it: .*ViT-B-32"),
        ({"name": "ViT-B-16-SigLIP"}, "is not a plain CLIP"),
    ],
)
def test_that_another_architecture_than_the_spec_says_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ClipError, match=said):
        built("vit", **changes)


def test_that_a_state_dict_is_given_if_and_only_if_weights_are_not_random() -> None:
    with pytest.raises(ClipError, match="weights=random and a state dict given"):
        build_clip(ClipSpec.model_validate(VIT), state={})
    with pytest.raises(ClipError, match="weights=file and a state dict missing"):
        build_clip(ClipSpec.model_validate(VIT | {"weights": "file", "path": "a"}), state=None)
    with pytest.raises(ValidationError, match="path go together"):
        ClipSpec(weights="file")
    with pytest.raises(ValidationError, match="needs open_clip's tag"):
        ClipSpec(pretrained=None)


def test_that_images_of_another_side_are_refused() -> None:
    with pytest.raises(ClipError, match="images of 48 x 64 pixels, the vision tower takes 64 x 64"):
        built("vit").vision_tokens(torch.zeros(1, 3, 48, 64))


SIZES = [  # tokens, vision features, pooled and text features, millions of parameters of the towers as far as the sheet has them
    ("ViT-B-32-quickgelu", 49, 768, 512, 512, 87.8, 63.4),
    ("ViT-B-16-quickgelu", 196, 768, 512, 512, 86.2, 63.4),
    ("ViT-L-14-quickgelu", 256, 1024, 768, 768, 304, 123.7),
    ("ViT-S-32", 49, 384, 384, 384, 22.6, 40.4),
    ("RN50-quickgelu", 49, 2048, 1024, 512, 38.3, None),
]


@pytest.mark.parametrize(("architecture", "tokens", "features", "pooled", "text", "vision_m", "text_m"), SIZES)
def test_that_open_clips_towers_have_the_sheets_sizes(
    architecture: str, tokens: int, features: int, pooled: int, text: int, vision_m: float, text_m: float | None
) -> None:
    sizes = {"name": architecture, "weights": "random", "text_size": text}
    with torch.device("meta"):
        whole = build_clip(ClipSpec.model_validate(sizes | {"tokens": tokens, "feature_size": features}), state=None)
    other = {"tokens": 1, "feature_size": pooled, "global_features": True}
    with torch.device("meta"):
        build_clip(ClipSpec.model_validate(sizes | other), state=None)
    count = sum(parameter.numel() for parameter in whole.clip.visual.parameters())
    assert abs(count / 1e6 - vision_m) < (0.5 if vision_m > 100 else 0.06)
    if text_m is not None:
        rest = sum(parameter.numel() for parameter in whole.parameters()) - count
        assert abs(rest / 1e6 - text_m) < 0.06


WORDS = {
    "blue": [1746], "brown": [2866], "gray": [7048], "green": [1901], "purple": [5496], "red": [736], "yellow": [4481],
    "cyan": [1470, 550], "cube": [11353], "cylinder": [22092], "sphere": [6987], "cone": [10266],
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_that_words_have_clips_ids(word: str) -> None:
    expected = [49406, *WORDS[word], 49407]
    ids = text_ids([word])
    assert ids.shape == (1, 77)
    assert ids[0].tolist() == expected + [0] * (77 - len(expected))


def test_that_the_sheets_sentence_has_fourteen_ids() -> None:
    assert int((text_ids(SENTENCES)[1] != 0).sum()) == 14


def test_that_a_sentence_is_never_cut_silently() -> None:
    text_ids(["cube " * 75])
    with pytest.raises(ClipError, match="more than the 77 ids"):
        text_ids(["cube", "cube " * 76])


def test_that_pixels_are_in_clips_units(images: Tensor) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(normalised(images), (images - mean) / std)
    torch.testing.assert_close(denormalised(normalised(images)), images)
    assert float(denormalised(torch.full((1, 3, 2, 2), 99.0)).max()) == 1


def test_that_the_sizes_known_to_the_login_node_are_open_clips() -> None:
    for name, known in CLIP_SIZES.items():
        config = TINY.get(name) or open_clip.get_model_config(name)
        vision, text, pooled = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
        resnet = not isinstance(vision["layers"], int)
        stride, features = (32, 32 * vision["width"]) if resnet else (vision["patch_size"], vision["width"])
        assert known == ((vision["image_size"] // stride) ** 2, features, text["width"], pooled), name
