"""The text store: features of every sentence of a data set's text table, in memory maps with a manifest. Torch-free.

    STORE/sentence.npy    float32 [S, T]: the feature of each sentence
    STORE/tokens.npy      float32 [S, L, T]: those of its tokens, start and end included; only with text=tokens
    STORE/padding.npy     bool [S, L]: True behind a sentence's end; with the tokens
    STORE/manifest.json   written last: towers, digest of the sentences, bytes and sha256 of every file

Legend: S sentences in the order of the table, L tokens of the longest, T text features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.data.clips_texts import TextTable
from jobs.data.errors import DataError, Place
from jobs.data.feature_manifest import REBUILD_HINT
from jobs.data.store import MANIFEST, ArrayLayout, FileFacts, file_sha256
from models.spec_language import ClipSpec

VISION_ONLY = frozenset({"path", "global_features", "tokens", "feature_size"})
"""Keys of the towers that a sentence's feature does not depend on."""


class TextManifest(BaseModel):
    """The content of a text store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["texts-1"] = "texts-1"
    """Layout of the store and its version."""
    towers: Mapping[str, Any]
    """What the text tower was configured with (`text_facts`)."""
    weights: str = ""
    """sha256 over the parameters that were used (jobs.weights.weights_digest)."""
    texts: str
    """Digest of the sentences (TextTable.digest)."""
    sentences: int
    text_size: int
    longest: int | None
    """Tokens of the longest sentence, start and end included; None: only one feature per sentence is stored."""
    files: Mapping[str, FileFacts] = {}
    """Path below the store -> facts."""

    def arrays(self) -> ArrayLayout:
        """Return dtype and shape of every array, by path below the store."""
        found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "sentence.npy": (np.dtype("<f4"), (self.sentences, self.text_size))
        }
        if self.longest is not None:
            found["tokens.npy"] = np.dtype("<f4"), (self.sentences, self.longest, self.text_size)
            found["padding.npy"] = np.dtype(np.bool_), (self.sentences, self.longest)
        return found


def text_facts(clip: ClipSpec) -> dict[str, Any]:
    """What a manifest says of the towers: what a sentence's feature depends on, not where the weights lay."""
    return clip.model_dump(mode="json", exclude=set(VISION_ONLY))


@dataclass(frozen=True, kw_only=True, eq=False)
class TextStore:
    """A whole store, its arrays mapped read-only."""

    path: Path
    manifest: TextManifest
    sentence_ST: npt.NDArray[np.float32]
    tokens_SLT: npt.NDArray[np.float32] | None
    """None when only one feature per sentence is stored."""
    padding_SL: npt.NDArray[np.bool_] | None
    """True behind a sentence's end; None as the tokens."""

    @classmethod
    def open(cls, path: Path) -> TextStore:
        """Map a store after comparing its files' sizes with the manifest (`verify` reads everything).

        Raises:
            DataError: no manifest, one of another layout, or arrays that are missing or others than it says.
        """
        manifest = read_text_manifest(path / MANIFEST)
        arrays = {name: _map(path, manifest, name) for name in manifest.arrays()}
        return cls(
            path=path,
            manifest=manifest,
            sentence_ST=arrays["sentence.npy"],
            tokens_SLT=arrays.get("tokens.npy"),
            padding_SL=arrays.get("padding.npy"),
        )

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest.

        Raises:
            DataError: a file's content is another than when it was written.
        """
        for name, facts in self.manifest.files.items():
            if (found := file_sha256(self.path / name)) != facts.sha256:
                raise DataError(
                    f"sha256 is {found}", place=Place(file=str(self.path / name)), expected=facts.sha256, hint=REBUILD_HINT
                )

    def check(self, texts: TextTable, clip: ClipSpec) -> None:
        """Refuse features of other sentences, of another order, or of other towers than the configuration says.

        Raises:
            DataError: with every difference.
        """
        asked = text_facts(clip)
        found = dict(self.manifest.towers)
        differences = [
            f"backbone.{name} is {asked.get(name)!r}, the stored features were made with {found.get(name)!r}"
            for name in sorted(asked.keys() | found.keys())
            if asked.get(name) != found.get(name)
        ]
        if (digest := texts.digest()) != self.manifest.texts:
            differences.append(
                f"the data's {len(texts)} sentences ({digest[:12]}) are not the {self.manifest.sentences} "
                f"({self.manifest.texts[:12]}) that the stored features were made from"
            )
        if differences:
            raise DataError(
                "; ".join(differences),
                place=Place(file=str(self.path / MANIFEST)),
                hint="name the `embed` step of this configuration and of these data among the needs",
            )


def read_text_manifest(path: Path) -> TextManifest:
    """Read and check a manifest.

    Raises:
        DataError: none there, damaged, of another layout, or it lists other files than its own counts ask for.
    """
    place = Place(file=str(path))
    try:
        manifest = TextManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"no features of sentences here ({error.strerror})",
            place=place,
            expected="the output of a finished `embed` run with a backbone of kind `clip`",
            hint="`orch status` shows whether it has finished; until then its pieces lie in work/",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a manifest of a text store: {key} {first['msg']}", place=place, hint=REBUILD_HINT) from error
    if set(manifest.files) != set(manifest.arrays()):
        raise DataError(
            f"lists the files {sorted(manifest.files)}", place=place, expected=f"{sorted(manifest.arrays())}", hint=REBUILD_HINT
        )
    return manifest


def _map(path: Path, manifest: TextManifest, name: str) -> npt.NDArray[Any]:
    """Map one array, read-only; raises DataError when it is not what the manifest says."""
    dtype, shape = manifest.arrays()[name]
    facts, place = manifest.files[name], Place(file=str(path / name))
    expected = f"{dtype} {list(shape)} in {facts.bytes} bytes"
    try:
        if (size := (path / name).stat().st_size) != facts.bytes:
            raise DataError(f"{size} bytes long", place=place, expected=expected, hint=REBUILD_HINT)
        array: npt.NDArray[Any] = np.load(path / name, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", place=place, expected=expected, hint=REBUILD_HINT) from error
    except ValueError as error:
        raise DataError(f"not a .npy array ({error})", place=place, expected=expected, hint=REBUILD_HINT) from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(f"holds {array.dtype} {list(array.shape)}", place=place, expected=expected, hint=REBUILD_HINT)
    return array
