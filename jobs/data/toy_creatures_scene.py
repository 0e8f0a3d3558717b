"""Owns what the toy creatures consist of: parts, joints, colours, and where everything lies; no pixels.

Creature i of a split is a function of (seed, split, i): all its numbers are words of one stream of that name. It is seen from
the side: torso, head with an ear, a tail and four legs of two segments each, bent at every joint by up to 35 degrees; then
scaled, mirrored, moved and mildly warped (jobs.data.toy_creatures_warp). Colours are drawn anew for every
image; the kind of texture belongs to the part.

Legend: Q keypoints, C control points of the warp; lengths are parts of the image's side before scaling, x to the right (where
the creature looks before mirroring), y down, the origin in the torso. Only + - * / and roots on float64: the same scenes on
every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from jobs.data.store import SplitName
from jobs.randomness import generator

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Texture = Literal["stripes", "dots", "checker", "gradient", "plain"]
Background = Literal["noise", "gradient", "clutter"]
Vector = tuple[float, float]
Color = tuple[float, float, float]

PARTS = ("head", "torso", "legs", "tail", "ear")
"""Labels 1 to 5."""
TEXTURES: Mapping[str, Texture] = {
    "head": "gradient", "torso": "dots", "legs": "stripes", "tail": "checker", "ear": "plain",
}  # fmt: skip
KEYPOINTS: Mapping[str, str] = {
    "nose": "head", "eye": "head", "ear_tip": "ear", "withers": "torso", "rump": "torso", "tail_tip": "tail",
    "front_paw_near": "legs", "front_paw_far": "legs", "hind_paw_near": "legs", "hind_paw_far": "legs",
}  # fmt: skip
"""Name -> the part that it lies on."""
BACKGROUNDS: tuple[Background, ...] = ("noise", "gradient", "clutter")
CLUTTER: tuple[Literal["bar", "triangle", "ring", "cross"], ...] = ("bar", "triangle", "ring", "cross")

JOINT_SLOPE = 0.31530
"""Tangent of half of 35 degrees."""
SIZE = 1.15
"""Of a creature of scale 1, which is then about as wide as the image."""
SCALES = (0.6, 1.1)
SHIFT = 0.15
WARP_CONTROLS = 4
"""Along each side of the image."""
WARP_UNIT = 2.0**-20
WARP_STEPS = 1 << 15
"""Displacements of control points are whole numbers of units below this: at most 1/32 of the side."""

TORSO_RADII = (0.205, 0.115)
NECK = (0.125, -0.07)
HEAD_AT, HEAD_RADIUS = (0.10, -0.085), 0.105
"""From the neck."""
EAR_AT, EAR_AXIS, EAR_RADII = (-0.035, -0.075), (-0.02, -0.115), (0.044, 0.006)
"""From the head's centre."""
EYE_AT, EYE_RADIUS, PUPIL_AT, PUPIL_RADIUS = (0.038, -0.022), 0.023, (0.046, -0.02), 0.012
NOSE_AT, NOSE_RADIUS = (0.093, 0.018), 0.02
TAIL_AT, TAIL_AXES, TAIL_RADII = (-0.175, -0.05), ((-0.115, -0.07), (-0.08, -0.11)), (0.036, 0.034, 0.022)
LEG_LENGTHS, LEG_RADII = (0.12, 0.115), (0.045, 0.034, 0.027)
HIPS: Mapping[str, Vector] = {
    "front_paw_near": (0.095, 0.045), "front_paw_far": (0.15, 0.035),
    "hind_paw_near": (-0.145, 0.045), "hind_paw_far": (-0.095, 0.04),
}  # fmt: skip
FAR_SHADE = 0.62
"""Of the colours of the legs behind the torso."""

JOINTS = 12
"""Neck, ear, tail (2), legs (2 each)."""
CLUTTER_PIECES = 14
CLUTTER_WORDS = 9
"""Kind, place (2), size, slope of the angle, sign, colour (3)."""
LATTICES = (4, 9, 20, 64)
"""Sides of the random grids of a noise background."""
SECTIONS = {
    "joints": JOINTS, "place": 4, "warp": 2 * WARP_CONTROLS**2, "colors": 6 * len(PARTS), "background": 1 + 12,
    "clutter": CLUTTER_PIECES * CLUTTER_WORDS,
}  # fmt: skip
LATTICE_WORDS = -(-3 * sum(side * side for side in LATTICES) // 8)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One simple shape, in one paint. Pieces are laid from the first to the last."""

    part: int
    """1 to 5."""
    at: Vector
    """Centre of an ellipse; where a tapering limb begins."""
    axis: Vector
    """Of an ellipse the unit vector along the first radius; of a limb from its beginning to its end."""
    radii: Vector
    """Of an ellipse its semi-axes; of a limb half its width at beginning and end, which are round."""
    limb: bool
    texture: Texture
    colors: tuple[Color, Color]
    """In [0, 1]: of the ground and of the figure; a gradient goes from the first to the second."""


@dataclass(frozen=True, kw_only=True)
class Litter:
    """One shape of a cluttered background; lengths and places in image sides from the image's centre."""

    kind: Literal["bar", "triangle", "ring", "cross"]
    at: Vector
    size: float
    direction: Vector
    """Unit vector."""
    color: Color


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A creature before drawing."""

    pieces: tuple[Piece, ...]
    keypoints_Q2: Float64
    """As in KEYPOINTS."""
    scale: float
    """From the lengths of the pieces to image sides."""
    shift: Vector
    """Of the creature's origin from the image's centre, in image sides."""
    mirrored: bool
    warp_C2: Float64
    """Displacements of the control points, row by row, (x, y) in image sides: whole numbers of WARP_UNIT."""
    background: Background
    corners_43: Float64
    """Colours of the corners, row by row, in [0, 1]; two of them span the colours of noise."""
    lattices: tuple[UInt8, ...]
    """[3, side, side] for each of LATTICES."""
    clutter: tuple[Litter, ...]
    """Empty unless the background is clutter."""


def draw_scene(seed: int, split: SplitName, index: int) -> Scene:
    """Creature number `index` of a split."""
    stream = generator(seed, "toy_creatures", split, index).bit_generator
    total = sum(SECTIONS.values())
    words = np.asarray(stream.random_raw(total + LATTICE_WORDS), np.uint64)
    uniform = (words[:total] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    drawn = dict(zip(SECTIONS, np.split(uniform, np.cumsum(list(SECTIONS.values()))[:-1]), strict=True))
    size_u, x_u, y_u, mirror_u = drawn["place"].tolist()
    joints = iter([_turn(JOINT_SLOPE * (2 * u - 1)) for u in drawn["joints"].tolist()])
    pieces, keypoints = _creature(joints, _paints(drawn["colors"]))
    background = BACKGROUNDS[min(int(drawn["background"][0] * len(BACKGROUNDS)), len(BACKGROUNDS) - 1)]
    steps = np.floor(drawn["warp"] * (2 * WARP_STEPS)) - WARP_STEPS
    return Scene(
        pieces=pieces,
        keypoints_Q2=np.array([keypoints[name] for name in KEYPOINTS]),
        scale=SIZE * (SCALES[0] + (SCALES[1] - SCALES[0]) * size_u),
        shift=(SHIFT * (2 * x_u - 1), SHIFT * (2 * y_u - 1)),
        mirrored=mirror_u < 0.5,
        warp_C2=steps.reshape(-1, 2) * WARP_UNIT,
        background=background,
        corners_43=drawn["background"][1:].reshape(4, 3),
        lattices=tuple(_lattices(words[total:])),
        clutter=tuple(_litter(drawn["clutter"])) if background == "clutter" else (),
    )


def _creature(joints: Iterator[Vector], paints: Mapping[str, tuple[Color, Color]]) -> tuple[tuple[Piece, ...], dict[str, Vector]]:
    """The pieces from back to front, and the keypoints by name. Takes the joints' turns (unit vectors) one by one."""
    points: dict[str, Vector] = {"withers": (0.10, -0.065), "rump": (-0.15, -0.035)}

    def ellipse(name: str, at: Vector, radii: Vector, *, color: Color | None = None) -> Piece:
        colors = paints[name] if color is None else (color, color)
        texture: Texture = TEXTURES[name] if color is None else "plain"
        return Piece(part=PARTS.index(name) + 1, at=at, axis=(1.0, 0.0), radii=radii, limb=False, texture=texture, colors=colors)

    def limb(name: str, at: Vector, axis: Vector, radii: Vector, *, shade: float = 1.0) -> Piece:
        ground, figure = (_shaded(color, shade) for color in paints[name])
        part, texture = PARTS.index(name) + 1, TEXTURES[name]
        return Piece(part=part, at=at, axis=axis, radii=radii, limb=True, texture=texture, colors=(ground, figure))

    neck, ear_turn = next(joints), next(joints)
    center = _plus(NECK, _turned(HEAD_AT, neck))
    on_head = {"nose": NOSE_AT, "eye": PUPIL_AT, "white": EYE_AT, "ear": EAR_AT}
    face = {name: _plus(center, _turned(at, neck)) for name, at in on_head.items()}
    ear_axis = _turned(EAR_AXIS, _turned(neck, ear_turn))
    points |= {"nose": face["nose"], "eye": face["eye"], "ear_tip": _plus(face["ear"], ear_axis)}
    head = [
        ellipse("head", center, (HEAD_RADIUS, HEAD_RADIUS)),
        ellipse("head", face["nose"], (NOSE_RADIUS, NOSE_RADIUS), color=(0.1, 0.07, 0.07)),
        ellipse("head", face["white"], (EYE_RADIUS, EYE_RADIUS), color=(0.97, 0.97, 0.95)),
        ellipse("head", face["eye"], (PUPIL_RADIUS, PUPIL_RADIUS), color=(0.03, 0.03, 0.05)),
        limb("ear", face["ear"], ear_axis, EAR_RADII),
    ]

    def chain(name: str, at: Vector, axes: tuple[Vector, Vector], radii: tuple[float, float, float], shade: float) -> list[Piece]:
        first = next(joints)
        upper = _turned(axes[0], first)
        middle = _plus(at, upper)
        lower = _turned(axes[1], _turned(first, next(joints)))
        end = _plus(middle, lower)
        ends[name] = end
        part = name if name in PARTS else "legs"
        return [
            limb(part, at, upper, (radii[0], radii[1]), shade=shade),
            limb(part, middle, lower, (radii[1], radii[2]), shade=shade),
        ]

    ends: dict[str, Vector] = {}
    tail = chain("tail", TAIL_AT, TAIL_AXES, TAIL_RADII, 1.0)
    down = ((0.0, LEG_LENGTHS[0]), (0.0, LEG_LENGTHS[1]))
    legs = {paw: chain(paw, hip, down, LEG_RADII, FAR_SHADE if paw.endswith("far") else 1.0) for paw, hip in HIPS.items()}
    points["tail_tip"] = ends.pop("tail")
    points |= ends
    far, near = ([piece for paw, pieces in legs.items() if paw.endswith(side) for piece in pieces] for side in ("far", "near"))
    return (*far, *tail, ellipse("torso", (0.0, 0.0), TORSO_RADII), *near, *head), points


def _paints(uniform: Float64) -> dict[str, tuple[Color, Color]]:
    """Two colours for each part, one light and one dark, of any hue."""
    colors = uniform.reshape(len(PARTS), 2, 3)
    dark, light = 0.5 * colors[:, 0], 1 - 0.5 * colors[:, 1]
    first_light = (uniform.reshape(len(PARTS), 6)[:, 0] * 1024) % 1 < 0.5
    return {
        name: (_color(light[row]), _color(dark[row])) if first_light[row] else (_color(dark[row]), _color(light[row]))
        for row, name in enumerate(PARTS)
    }


def _litter(uniform: Float64) -> Iterator[Litter]:
    for kind, x, y, size, slope, sign, *color in uniform.reshape(CLUTTER_PIECES, CLUTTER_WORDS).tolist():
        red, green, blue = color
        cosine, sine = _turn(2 * slope - 1)
        yield Litter(
            kind=CLUTTER[min(int(kind * len(CLUTTER)), len(CLUTTER) - 1)],
            at=(1.1 * (x - 0.5), 1.1 * (y - 0.5)),
            size=0.05 + 0.1 * size,
            direction=(cosine, sine) if sign < 0.5 else (-cosine, sine),
            color=(red, green, blue),
        )


def _lattices(words: npt.NDArray[np.uint64]) -> Iterator[UInt8]:
    """Random bytes on grids, from whole words."""
    values = words.astype("<u8").view(np.uint8)
    start = 0
    for side in LATTICES:
        count = 3 * side * side
        yield values[start : start + count].reshape(3, side, side)
        start += count


def _turn(slope: float) -> Vector:
    """The unit vector at the angle 2 arctan(slope): rational, hence the same on every machine."""
    square = slope * slope
    return (1 - square) / (1 + square), 2 * slope / (1 + square)


def _turned(vector: Vector, turn: Vector) -> Vector:
    return vector[0] * turn[0] - vector[1] * turn[1], vector[0] * turn[1] + vector[1] * turn[0]


def _plus(one: Vector, other: Vector) -> Vector:
    return one[0] + other[0], one[1] + other[1]


def _shaded(color: Color, shade: float) -> Color:
    return color[0] * shade, color[1] * shade, color[2] * shade


def _color(color_3: Float64) -> Color:
    red, green, blue = color_3.tolist()
    return red, green, blue
