"""Owns the pixels of one video of any length: chosen frames of a video file (PyAV) or of a folder of images, cut to a square.

Decoding starts at the last frame coded on its own at or before the first one wanted, where the file's time stamps say which
that is, and else at the start. Legend: F frames, H x W pixels of the video, S pixels of the square's side, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import av.error
import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.data.clips import square
from jobs.data.clips_files import check_pairs, frame_files
from jobs.data.clips_media import decode_packets, open_image
from jobs.data.errors import DataError, Place

UInt8 = npt.NDArray[np.uint8]


def read_frames(path: Path, wanted: Sequence[int], *, video_frames: int) -> list[UInt8]:
    """Frames [H, W, 3] of a video file, or of a folder of images in the order of their names; ascending, no repetition.

    Raises:
        DataError: missing, unreadable, damaged, no picture in it, or fewer than `video_frames` frames.
    """
    if not path.exists():
        raise DataError("no such file or folder", place=Place(file=str(path)), hint="copy the video again")
    if path.is_dir():
        files = _files(path, video_frames)
        return [open_image(files[frame], "RGB") for frame in wanted]
    return _from_video(path, wanted, video_frames)


def read_masks(folder: Path, wanted: Sequence[int], *, media: Path, video_frames: int) -> list[UInt8]:
    """Masks [H, W] from a folder of 8-bit grey images that belong to the frames of `media`, as `read_frames`.

    Raises:
        DataError: also when masks and frames do not go together by their names.
    """
    masks = _files(folder, video_frames)
    check_pairs(masks, _files(media, video_frames) if media.is_dir() else None, wanted)
    return [open_image(masks[frame], "L") for frame in wanted]


def fitted(
    images: Sequence[UInt8], masks: Sequence[UInt8] | None, *, side: int, max_objects: int, place: Place
) -> tuple[UInt8, UInt8 | None]:
    """Frames [F, S, S, 3] and masks [F, S, S]: short side resized (bicubic; masks nearest), the middle kept.

    Raises:
        DataError: frames that differ in size, masks of another size than their frames, or a number above `max_objects`.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise DataError(f"frames differ in size: {_listed(sizes)} pixels", place=place, expected="one size per video")
    squares_FSS3 = np.stack([square(image, side, Image.Resampling.BICUBIC) for image in images])
    if masks is None:
        return squares_FSS3, None
    if {mask.shape for mask in masks} != sizes:
        found = _listed({mask.shape[:2] for mask in masks})
        raise DataError(f"masks are {found} pixels, frames {_listed(sizes)}", place=place, expected="the same size")
    largest = max(int(mask.max()) for mask in masks)
    if largest > max_objects:
        raise DataError(
            f"a mask holds object {largest}",
            place=place,
            expected=f"0 (background) .. {max_objects}",
            hint="set data.max_objects to the largest number of all masks",
        )
    return squares_FSS3, np.stack([square(mask, side, Image.Resampling.NEAREST) for mask in masks])


def too_few(place: Place, *, found: int, video_frames: int) -> DataError:
    """The error of a video, or of its masks, that ends early."""
    return DataError(
        f"holds {found} frames",
        place=place,
        expected=f"at least {video_frames} (data.video_frames)",
        hint="copy it again, or set data.video_frames to the length of the shortest video",
    )


def _listed(sizes: set[tuple[int, ...]]) -> str:
    return ", ".join(f"{width} x {height}" for height, width in sorted(sizes))


def _files(folder: Path, video_frames: int) -> tuple[Path, ...]:
    files = frame_files(folder)
    if len(files) < video_frames:
        raise too_few(Place(file=str(folder)), found=len(files), video_frames=video_frames)
    return files


def _from_video(path: Path, wanted: Sequence[int], video_frames: int) -> list[UInt8]:
    place = Place(file=str(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("holds no video", place=place)
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.size]
            shown = [packet for packet in packets if not packet.is_discard]
            if len(shown) < video_frames:
                raise too_few(place, found=len(shown), video_frames=video_frames)
            # AVI's time stamps number the packets as they lie in the file, which is not always the order of showing
            ordered = container.format.name != "avi" or all(packet.is_keyframe for packet in packets)
            found = _decoded(stream.codec_context, packets, shown, wanted, place, ordered=ordered)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"cannot be decoded ({error})", place=place, hint="copy the file again, or give the video as a folder of frames"
        ) from error
    if len(found) < len(wanted):
        missing = next(frame for frame in wanted if frame not in found)
        raise DataError(f"frame {missing} cannot be decoded", place=place, hint="copy the file again")
    return [found[frame] for frame in wanted]


def _decoded(
    context: av.VideoCodecContext,
    packets: Sequence[av.Packet[av.VideoStream]],
    shown: Sequence[av.Packet[av.VideoStream]],
    wanted: Sequence[int],
    place: Place,
    *,
    ordered: bool,
) -> dict[int, UInt8]:
    """Pixels by frame number, of those wanted that can be decoded; `ordered`: time stamps tell the order of showing."""
    stamps = sorted(packet.pts for packet in shown if packet.pts is not None)
    stamped = ordered and len(set(stamps)) == len(shown)
    number_of: dict[int | None, int] = {stamp: number for number, stamp in enumerate(stamps)} if stamped else {}
    start = 0
    if stamped:
        first = stamps[wanted[0]]
        alone = [at for at, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None and packet.pts <= first]
        start = alone[-1] if alone else 0
    found: dict[int, UInt8] = {}
    for count, frame in enumerate(decode_packets(context, packets[start:])):
        number = number_of.get(frame.pts, -1) if stamped else count
        if number in wanted:
            if frame.is_corrupt:
                raise DataError(f"frame {number} is damaged", place=place, hint="copy the file again")
            found[number] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        if len(found) == len(wanted):
            break
    return found
