"""Owns what the clips of toy-CLEVR consist of: objects, actions, and where every object is in a given frame; no pixels.

The numbers of clip i are words i*W .. i*W + W-1 of one Philox stream keyed by the seed, so a clip is a function of (seed, i)
and of the range of object counts alone. Objects stand on a grid of 5 columns and 4 rows (later rows are nearer to the
viewer), a little off its points; a moved object ends exactly one step from the object that its sentence refers to, or on it.
Clips in which a relation could not be seen (a moved object behind a stack) or be had (two objects in one place) are not drawn.

Legend: N clips, K = max_n_objects, A scripts; lengths are parts of the image's side, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from jobs.data.clips_actions import ACTING, COLORS, PHASE_ENDS, PHASE_STARTS, SHAPES, Actions, Noun, Phase, Relation
from jobs.data_spec import ToyClevrSpec

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

COLUMNS, ROWS = 5, 4
CELLS = COLUMNS * ROWS
FIRST_X, STEP_X = 0.14, 0.18
FIRST_Y, STEP_Y = 0.42, 0.15
"""Of the grid; y is where an object's foot stands."""
JITTER = 0.01
"""Largest distance from the grid along x and y."""
HALF_SIZES = (0.055, 0.085)
SIZES = ("small", "large")
LIFT = 0.15
"""Height of the lifted object."""
ARC = 0.12
"""Height of a move at its middle."""
HALF_HEIGHTS = {"cube": 1.0, "cylinder": 1.15, "sphere": 1.0, "cone": 1.1}
"""In units of the half size."""

PHILOX_BLOCK = 4
PAIRS = len(COLORS) * len(SHAPES)
MOST_OBJECTS = 8
CLIP_WORDS = 6
"""Number of objects, script, place of object 0, floor colour (3)."""
OBJECT_WORDS = 3
"""Size, jitter (2)."""
WORDS = CLIP_WORDS + PAIRS + CELLS + OBJECT_WORDS * MOST_OBJECTS


@dataclass(frozen=True, kw_only=True)
class _Script:
    """One possible triple of actions and what it does to the grid, relative to object 0."""

    actions: Actions
    ends: tuple[tuple[int, int], tuple[int, int]]
    """(column, row) where objects 1 and 2 end."""
    hidden: tuple[tuple[int, int], ...]
    """(column, row) of cells behind a stack: they stay empty."""
    least_row: int
    """Of object 0: a stack of three needs room above."""


_STEPS = {
    Relation.ON_TOP: (0, 0),
    Relation.IN_FRONT: (0, 1),
    Relation.RIGHT: (1, 0),
    Relation.LEFT: (-1, 0),
    Relation.BEHIND: (0, -1),
}


def _script(actions: Actions) -> _Script | None:
    """What a triple does; None when two objects would be in one place or one of the three behind a stack."""
    places = [(0, 0, 0)]
    for relation, reference in ((actions.first, 0), (actions.second, actions.reference - 1)):
        column, row, level = places[reference]
        step = _STEPS[relation]
        places.append((column + step[0], row + step[1], level + 1 if relation is Relation.ON_TOP else 0))
    stacks = {(column, row) for column, row, level in places if level > 0}
    behind = {(column, row - 1) for column, row in stacks}
    if len(set(places)) < ACTING or any((column, row) in behind for column, row, _ in places):
        return None
    return _Script(
        actions=actions,
        ends=((places[1][0], places[1][1]), (places[2][0], places[2][1])),
        hidden=tuple(sorted(behind)),
        least_row=2 if max(level for _, _, level in places) == 2 else 0,
    )


def _scripts() -> tuple[_Script, ...]:
    triples = (
        Actions(first=first, reference=reference, second=second)
        for first in Relation
        for reference in (1, 2)
        for second in Relation
    )
    return tuple(script for actions in triples if (script := _script(actions)) is not None)


SCRIPTS: Final = _scripts()


def _start_cells(script: _Script) -> tuple[int, ...]:
    """Cells of object 0 from which the script stays on the grid."""
    return tuple(
        row * COLUMNS + column
        for row in range(script.least_row, ROWS)
        for column in range(COLUMNS)
        if all(0 <= column + dx < COLUMNS and 0 <= row + dy < ROWS for dx, dy in script.ends)
    )


_STARTS: Final = tuple(_start_cells(script) for script in SCRIPTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """N clips before drawing. Rows of objects beyond `number_N` mean nothing."""

    number_N: Int64
    script_N: Int64
    pair_NK: Int64
    """color * 4 + shape; no two objects of a clip share it."""
    size_NK: Int64
    foot_NK2: Float64
    """x and y on the ground before anything moves."""
    end_N22: Float64
    """x and y on the ground where objects 1 and 2 end."""
    end_height_N2: Float64
    """Above the ground there."""
    floor_N3: Float64
    """In [0, 1)."""

    def nouns(self, clip: int) -> tuple[Noun, ...]:
        """What the objects of a clip are called."""
        pairs = self.pair_NK[clip, : int(self.number_N[clip])].tolist()
        return tuple(Noun(color=COLORS[pair // len(SHAPES)], shape=SHAPES[pair % len(SHAPES)]) for pair in pairs)

    def actions(self, clip: int) -> Actions:
        """The script of a clip."""
        return SCRIPTS[int(self.script_N[clip])].actions

    @property
    def exists(self) -> Bool:
        """Whether there is an object [N, K]."""
        exists: Bool = np.arange(self.pair_NK.shape[1]) < self.number_N[:, None]
        return exists

    @property
    def half_heights(self) -> Float64:
        """Half the height of each object [N, K]."""
        factor_S = np.array([HALF_HEIGHTS[shape] for shape in SHAPES])
        half_NK: Float64 = np.asarray(HALF_SIZES)[self.size_NK] * factor_S[self.pair_NK % len(SHAPES)]
        return half_NK

    def positions(self, frame_N: Int64) -> tuple[Float64, Float64]:
        """Feet on the ground [N, K, 2] and heights above it [N, K] in one frame of each clip."""
        foot_NK2 = self.foot_NK2.copy()
        height_NK = np.zeros(foot_NK2.shape[:2])
        height_NK[:, 0] = LIFT * (_progress(frame_N, Phase.LIFT)[1] - _progress(frame_N, Phase.PUT_DOWN)[1])
        for mover, phase in ((1, Phase.FIRST_MOVE), (2, Phase.SECOND_MOVE)):
            linear_N, smooth_N = _progress(frame_N, phase)
            start_N2, end_N2 = self.foot_NK2[:, mover], self.end_N22[:, mover - 1]
            foot_NK2[:, mover] = start_N2 + smooth_N[:, None] * (end_N2 - start_N2)
            height_NK[:, mover] = smooth_N * self.end_height_N2[:, mover - 1] + 4 * ARC * linear_N * (1 - linear_N)
        return foot_NK2, height_NK


def _progress(frame_N: Int64, phase: Phase) -> tuple[Float64, Float64]:
    """How much of a phase is over at the end of a frame, in [0, 1]: evenly, and with a soft start and end."""
    start, end = PHASE_STARTS[phase], PHASE_ENDS[phase]
    linear_N = np.clip((frame_N - start + 1) / (end - start), 0.0, 1.0)
    return linear_N, linear_N * linear_N * (3 - 2 * linear_N)


def draw_scenes(spec: ToyClevrSpec, clips_N: Int64) -> Scenes:
    """The clips of these numbers, each independent of the others asked for."""
    uniform_NW = _uniforms(spec.seed, clips_N)
    count, most = len(clips_N), spec.max_n_objects
    clip_NC, pairs_NP, cells_NG, objects_NO = np.split(uniform_NW, np.cumsum([CLIP_WORDS, PAIRS, CELLS]), axis=1)
    object_NKO = objects_NO.reshape(count, -1, OBJECT_WORDS)[:, :most]
    number_N = spec.min_n_objects + _choice(clip_NC[:, 0], spec.max_n_objects - spec.min_n_objects + 1)
    script_N = _choice(clip_NC[:, 1], len(SCRIPTS))
    cell_NK, end_cell_N2, reference_N = _cells(script_N, clip_NC[:, 2], cells_NG, most=most)
    foot_NK2 = _cell_feet(cell_NK) + JITTER * (2 * object_NKO[:, :, 1:] - 1)
    size_NK = _choice(object_NKO[:, :, 0], len(SIZES))
    pair_NK = np.argsort(pairs_NP, axis=1, kind="stable")[:, :most]
    scenes = Scenes(
        number_N=number_N, script_N=script_N, pair_NK=pair_NK, size_NK=size_NK, foot_NK2=foot_NK2,
        end_N22=_cell_feet(end_cell_N2) + (foot_NK2[:, 0] - _cell_feet(cell_NK[:, 0]))[:, None],
        end_height_N2=np.zeros((count, 2)), floor_N3=clip_NC[:, 3:6],
    )  # fmt: skip
    first_N, second_N = (
        np.array([getattr(script.actions, name) for script in SCRIPTS])[script_N] for name in ("first", "second")
    )
    top_NK = 2 * scenes.half_heights
    scenes.end_height_N2[:, 0] = np.where(first_N == Relation.ON_TOP, top_NK[:, 0], 0.0)
    below_N = np.where(reference_N == 1, top_NK[:, 0], top_NK[:, 1] + scenes.end_height_N2[:, 0])
    scenes.end_height_N2[:, 1] = np.where(second_N == Relation.ON_TOP, below_N, 0.0)
    return scenes


def _cells(script_N: Int64, start_N: Float64, keys_NG: Float64, *, most: int) -> tuple[Int64, Int64, Int64]:
    """First cells [N, K], last cells [N, 2] of objects 1 and 2, and `reference` [N]."""
    starts_N = np.array([len(starts) for starts in _STARTS])[script_N]
    table_AG = np.array([starts + (0,) * (CELLS - len(starts)) for starts in _STARTS])
    start_cell_N = table_AG[script_N, np.minimum((start_N * starts_N).astype(np.int64), starts_N - 1)]
    offset_A2 = np.array([[row * COLUMNS + column for column, row in script.ends] for script in SCRIPTS])
    end_N2 = start_cell_N[:, None] + offset_A2[script_N]
    keys_NG = keys_NG.copy()
    row_N = np.arange(len(script_N))
    keys_NG[row_N[:, None], end_N2] = 2.0  # taken: sorted to the end
    keys_NG[row_N, start_cell_N] = 2.0
    for clip, script in enumerate(script_N.tolist()):
        for column, row in SCRIPTS[script].hidden:
            cell = int(start_cell_N[clip]) + row * COLUMNS + column
            if cell >= 0:
                keys_NG[clip, cell] = 2.0
    others_NK = np.argsort(keys_NG, axis=1, kind="stable")[:, : most - 1]
    reference_A = np.array([script.actions.reference for script in SCRIPTS])
    return np.concatenate([start_cell_N[:, None], others_NK], axis=1), end_N2, reference_A[script_N]


def _cell_feet(cell: Int64) -> Float64:
    """x and y of cells, in a new last axis."""
    feet: Float64 = np.stack([FIRST_X + STEP_X * (cell % COLUMNS), FIRST_Y + STEP_Y * (cell // COLUMNS)], axis=-1)
    return feet


def _choice(uniform: Float64, options: int) -> Int64:
    """Integers in [0, options)."""
    return np.minimum((uniform * options).astype(np.int64), options - 1)


def _uniforms(seed: int, clips_N: Int64) -> Float64:
    """[N, WORDS] in [0, 1): 53 bits of each word of the stream."""
    blocks = -(-WORDS // PHILOX_BLOCK)
    words_NW = np.empty((len(clips_N), blocks * PHILOX_BLOCK), np.uint64)
    drawn: dict[int, npt.NDArray[np.uint64]] = {}
    for row, clip in enumerate(clips_N.tolist()):
        if clip not in drawn:
            drawn[clip] = np.random.Philox(key=seed, counter=clip * blocks).random_raw(blocks * PHILOX_BLOCK)
        words_NW[row] = drawn[clip]
    uniform_NW: Float64 = (words_NW[:, :WORDS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform_NW
