"""Pictures as files that say what they show and where they may be cut. Needs Pillow alone: the login node reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "orch"
"""Of the text in a PNG."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a picture says of itself."""

    text: str
    """What stands where, as far as the picture's own lettering leaves it open."""
    ends: tuple[int, ...]
    """Where each image or video ends, in pixels from the top; a cut elsewhere goes through one."""

    def whole_until(self, most_px: int) -> int:
        """The height of as many whole images or videos as fit into `most_px`, and of the first in any case."""
        return max((end for end in self.ends if end <= most_px), default=self.ends[0])


def shown(picture: Image.Image) -> Shown | None:
    """What an opened PNG or GIF says; None of a picture that says nothing."""
    told = picture.info.get(KEY, picture.info.get("comment"))
    try:
        found = json.loads(told) if isinstance(told, str | bytes) else None
    except ValueError:
        return None  # somebody else's comment
    if not isinstance(found, dict) or not found.get("ends"):
        return None
    return Shown(text=str(found.get("text", "")), ends=tuple(int(end) for end in found["ends"]))


def save_png(picture: Image.Image, path: Path, says: Shown) -> None:
    """Whole or absent; the folder is made, its parent must be there."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    info = PngInfo()
    info.add_text(KEY, json.dumps(asdict(says)))
    picture.save(temporary, format="PNG", pnginfo=info)
    temporary.replace(path)


def save_gif(frames: Sequence[Image.Image], path: Path, says: Shown, *, frame_ms: int) -> None:
    """An endless film, whole or absent; the frames have palettes, the folder is made, its parent must be there."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    first, *others = frames
    first.save(
        temporary,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=frame_ms,
        loop=0,
        optimize=False,
        comment=json.dumps(asdict(says)).encode(),
    )
    temporary.replace(path)
