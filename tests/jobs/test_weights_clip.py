"""Weights of CLIP towers: from a file, from open_clip, random; and what the login node can tell of them without torch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from running import REPOSITORY
from safetensors.torch import save_file
from torch import Tensor

from jobs.clip_tags import Weights, find_weights, parse_table, uses_quick_gelu
from jobs.data.errors import DataError
from jobs.weights import load_clip, weights_digest
from jobs.weights_file import cached_weights, check_weights, weights_content
from models.clip_towers import TINY
from models.spec_language import ClipSpec

CPU = torch.device("cpu")
SPECS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"name": "tiny-vit", "tokens": 16, "feature_size": 32, "text_size": 16},
    "tiny-resnet": {"name": "tiny-resnet", "tokens": 4, "feature_size": 256, "text_size": 16},
}


def of_file(name: str, path: Path, **changes: Any) -> ClipSpec:
    return ClipSpec.model_validate(SPECS[name] | {"weights": "file", "path": str(path), "pretrained": None} | changes)


def pretrained(name: str, tag: str) -> ClipSpec:
    return ClipSpec(name=name, pretrained=tag)


def state_of(name: str) -> dict[str, Tensor]:
    """open_clip's own state dict of the whole model, of another draw than weights=random."""
    torch.manual_seed(7)
    return dict(open_clip.CLIP(**TINY[name]).state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    for name in SPECS:
        state = state_of(name)
        save_file(state, made / f"{name}.safetensors")
        torch.save(state, made / f"{name}.pt")
        torch.save({"epoch": 3, "state_dict": state}, made / f"{name}-wrapped.pth")
    return made


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("ending", [".safetensors", ".pt", "-wrapped.pth"])
def test_that_weights_of_a_file_are_those_that_were_saved(name: str, ending: str, folder: Path) -> None:
    path = folder / f"{name}{ending}"
    spec = of_file(name, path)
    content = weights_content(spec)
    assert content == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_clip(spec.model_copy(update={"content": content}), CPU)
    saved = state_of(name)
    assert loaded.clip.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.clip.state_dict().items())
    random = ClipSpec.model_validate(SPECS[name] | {"weights": "random"})
    assert weights_digest(loaded) == weights_digest(load_clip(spec, CPU)) != weights_digest(load_clip(random, CPU))
    assert check_weights(spec, {}) == [f"{name} from {path} ({path.stat().st_size} bytes)"]


def test_that_a_file_of_another_architecture_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-resnet.pt: the weights do not fit tiny-vit: .* missing \(") as caught:
        load_clip(of_file("tiny-vit", folder / "tiny-resnet.pt"), CPU)
    assert "open_clip's own parameters of the whole tiny-vit" in caught.value.hint


def test_that_a_changed_file_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match="sha256 is") as caught:
        load_clip(of_file("tiny-vit", folder / "tiny-vit.pt", content="0" * 64), CPU)
    assert "changed or replaced" in caught.value.hint


def test_that_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    spec = of_file("tiny-vit", tmp_path / "absent.pt")
    for look in (lambda: load_clip(spec, CPU), lambda: check_weights(spec, {})):
        with pytest.raises(DataError, match=r"absent.pt: cannot be read") as caught:
            look()
        assert caught.value.expected.startswith("a state dict of open_clip's tiny-vit")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"tokens": 9}, "tokens is 9, tiny-vit yields 16"), ({"name": "tiny-vlt"}, "knows no such architecture")],
)
def test_that_towers_that_cannot_be_are_an_error_of_the_users(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        load_clip(ClipSpec.model_validate(SPECS["tiny-vit"] | {"weights": "random"} | changes), CPU)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """What was asked of open_clip; nothing can be downloaded, and the cache is empty."""
    asked: list[tuple[str, str]] = []

    def unreachable(name: str, *, pretrained: str, device: str) -> None:
        asked.append((name, pretrained))
        raise RuntimeError("Failed to download weights for tag 'openai': no network\nand more")

    monkeypatch.setattr("jobs.weights.open_clip.create_model", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "hint"),
    [
        ("ViT-B-32", "openai", "name=ViT-B-32-quickgelu"),
        ("RN50", "openai", "name=RN50-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "name=ViT-B-32"),
    ],
)
def test_that_weights_of_another_activation_are_an_error_before_any_download(
    name: str, tag: str, hint: str, downloads: list[tuple[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="GELU") as caught:
        load_clip(pretrained(name, tag), CPU)
    assert caught.value.hint.endswith(hint)
    with pytest.raises(DataError, match="GELU") as at_submit:
        check_weights(pretrained(name, tag), {})
    assert at_submit.value.hint == f"set {hint}"
    of_a_file = ClipSpec(name=name, pretrained=tag, weights="file", path=str(tmp_path / "absent.pt"))
    for look in (lambda: load_clip(of_a_file, CPU), lambda: check_weights(of_a_file, {})):
        with pytest.raises(DataError, match="GELU"):
            look()
    assert downloads == []


def test_that_an_unknown_tag_is_an_error_with_those_that_there_are(downloads: list[tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="open_clip has for ViT-B-32-quickgelu") as caught:
        load_clip(pretrained("ViT-B-32-quickgelu", "opnai"), CPU)
    assert "laion400m_e31" in str(caught.value)
    with pytest.raises(DataError, match="pretrained 'opnai'") as at_submit:
        check_weights(pretrained("ViT-B-32-quickgelu", "opnai"), {})
    assert "laion400m_e31" in at_submit.value.expected
    assert downloads == []


def test_that_a_missing_network_is_told_with_the_place_that_was_looked_at(
    downloads: list[tuple[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load_clip(pretrained("ViT-B-32-quickgelu", "openai"), CPU)
    assert downloads == [("ViT-B-32-quickgelu", "openai")]
    for part in ("ViT-B-32-quickgelu (openai)", "no network)", str(tmp_path / "hub"), "weights=file path=FILE", "HF_HOME"):
        assert part in str(caught.value)


def test_that_what_open_clip_gives_is_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_clip.CLIP(**TINY["tiny-vit"])
    monkeypatch.setattr("jobs.weights.open_clip.create_model", lambda name, *, pretrained, device: model)
    monkeypatch.setattr("jobs.weights.check_tag", lambda name, tag: None)
    monkeypatch.setattr("models.clip_towers.check_tag", lambda name, tag: None)
    before = torch.random.get_rng_state()
    loaded = load_clip(ClipSpec.model_validate(SPECS["tiny-vit"]), CPU).clip.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_that_the_table_of_weights_is_open_clips_own() -> None:
    for name, tags in _PRETRAINED.items():
        for tag, facts in tags.items():
            found = find_weights(name, tag)
            assert found is not None, (name, tag)
            repository, _, file = facts["hf_hub"].rpartition("/")
            assert (found.repository, found.quick_gelu) == (repository, facts.get("quick_gelu", False))
            assert found.files[-1] == (file or "open_clip_pytorch_model.bin")
    assert find_weights("ViT-B-32", "OpenAI") == find_weights("ViT-B-32-quickgelu", "openai")


def test_that_the_activations_are_open_clips_own() -> None:
    for name in open_clip.list_models():
        assert uses_quick_gelu(name) == bool(open_clip.get_model_config(name).get("quick_gelu", False))
    assert uses_quick_gelu("tiny-vit") is None


@pytest.mark.parametrize("source", ["", "_PRETRAINED = load()", "_PRETRAINED = {name: {} for name in names}"])
def test_that_a_table_of_another_form_is_unknown(source: str) -> None:
    assert parse_table(source) is None


def test_that_a_table_is_read_with_names_and_literals() -> None:
    one = "_A = dict(x=_pcfg(hf_hub='o/r/', quick_gelu=True), y=_pcfg(url='u'))"
    source = f"{one}\n_PRETRAINED = {{'A': _A, 'B': dict(z=_c(hf_hub='o/s/f.bin'))}}"
    found: Mapping[str, Mapping[str, Weights]] | None = parse_table(source)
    assert found == {
        "A": {
            "x": Weights(repository="o/r", files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), quick_gelu=True)
        },
        "B": {"z": Weights(repository="o/s", files=("f.safetensors", "f.bin"), quick_gelu=False)},
    }


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_that_the_cache_is_looked_at_where_open_clip_keeps_its_weights(file: str, tmp_path: Path) -> None:
    spec, environ = pretrained("ViT-B-32-quickgelu", "openai"), {"HF_HOME": str(tmp_path)}
    assert cached_weights(spec, environ) is None
    said = check_weights(spec, environ)
    assert said[0] == f"ViT-B-32-quickgelu (openai) is not in {tmp_path / 'hub'}: the job will try to download it"
    assert "open_clip.create_model('ViT-B-32-quickgelu', pretrained='openai')" in said[1]
    path = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "abc" / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert check_weights(spec, environ) == [f"ViT-B-32-quickgelu (openai) from {path}"]
    assert cached_weights(pretrained("ViT-B-16-quickgelu", "openai"), environ) is None


def test_that_the_login_nodes_look_at_clip_imports_neither_torch_nor_open_clip() -> None:
    program = (
        "import sys; from jobs.weights_file import check_weights; from models.spec import ClipSpec; "
        "said = check_weights(ClipSpec(), {'HF_HOME': '/nowhere'}); "
        "print(len(said), sorted({'torch', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "2 []\n"
