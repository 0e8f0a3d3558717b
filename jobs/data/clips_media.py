"""Owns the pixels of one clip: chosen frames of a video (PyAV) or of a folder of images, and the writing of both.

A video whose frames are all coded on their own (ffv1, mjpeg) costs one decoded frame per frame asked for; of any other the
frames before the last one wanted are decoded too, at most 34. Legend: F frames, H x W pixels of the clip, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.data.clips_actions import FRAMES
from jobs.data.clips_files import check_pairs, frame_files
from jobs.data.errors import DataError, Place

UInt8 = npt.NDArray[np.uint8]

Codec = Literal["ffv1", "mpeg4"]
"""`ffv1`: the exact pixels; `mpeg4`: as small as the original's files, frames coded from their neighbours."""
PIXELS: dict[Codec, str] = {"ffv1": "bgr0", "mpeg4": "yuv420p"}
BITS_PER_PIXEL = 4
"""Of mpeg4, per frame: hardly visible losses."""
FRAME_RATE = 8


def read_frames(path: Path, wanted: Sequence[int]) -> list[UInt8]:
    """Frames [H, W, 3] of a clip by number, ascending and without repetition.

    Raises:
        DataError: missing, unreadable, no picture in it, or fewer than 34 frames.
    """
    return _from_video(path, wanted) if path.suffix else _images(_listed(path), wanted, "RGB")


def read_masks(path: Path, wanted: Sequence[int], *, media: Path) -> list[UInt8]:
    """Masks [H, W] from a folder of 8-bit images that belong to the frames of `media`, as `read_frames`.

    Raises:
        DataError: also when masks and frames do not go together by their names.
    """
    masks = _listed(path)
    check_pairs(masks, None if media.suffix else _listed(media), wanted)
    return _images(masks, wanted, "L")


def _listed(folder: Path) -> tuple[Path, ...]:
    files = frame_files(folder)
    if len(files) < FRAMES:
        raise _too_few(folder, len(files))
    return files


def _images(files: Sequence[Path], wanted: Sequence[int], mode: Literal["RGB", "L"]) -> list[UInt8]:
    return [open_image(files[frame], mode) for frame in wanted]


def open_image(path: Path, mode: Literal["RGB", "L"]) -> UInt8:
    """Pixels of an image file; raises DataError when it cannot be read, or for "L" when it is not 8-bit grey."""
    try:
        with Image.open(path) as image:
            if mode == "L" and image.mode != "L":
                raise DataError(
                    f"its pixels are {image.mode}", place=Place(file=str(path)), expected="8-bit grey: numbers of objects"
                )
            pixels: UInt8 = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read ({error})", place=Place(file=str(path)), hint="copy the file again") from error
    return pixels


def _from_video(path: Path, wanted: Sequence[int]) -> list[UInt8]:
    last = wanted[-1]
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("holds no video", place=Place(file=str(path)))
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.size]
            if len(packets) < FRAMES:
                raise _too_few(path, len(packets))
            alone = all(packet.is_keyframe for packet in packets)
            fed = [packets[frame] for frame in wanted] if alone else packets
            keep = set(range(len(wanted)) if alone else wanted)
            found: list[UInt8] = []
            for number, frame in enumerate(decode_packets(stream.codec_context, fed)):
                if number in keep:
                    found.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                if len(found) == len(wanted):
                    return found
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"cannot be decoded ({error})",
            place=Place(file=str(path)),
            hint="copy the file again, or give the clip as a folder of frames",
        ) from error
    raise DataError(
        f"frame {last} cannot be decoded", place=Place(file=str(path)), expected=f"{FRAMES} frames", hint="copy the file again"
    )


def decode_packets(context: av.VideoCodecContext, packets: Sequence[av.Packet[av.VideoStream]]) -> Iterator[av.VideoFrame]:
    """The frames of packets, in the order in which they are shown."""
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)


def _too_few(path: Path, found: int) -> DataError:
    return DataError(
        f"holds {found} frames",
        place=Place(file=str(path)),
        expected=f"{FRAMES} frames, those of the four phases",
        hint="the clip was cut or not copied whole; copy it again, or take its scene out of the split's list",
    )


def write_video(path: Path, frames_FHW3: UInt8, *, codec: Codec) -> None:
    """Write a video (the suffix names the container); even sides for mpeg4."""
    _, height, width, _ = frames_FHW3.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS[codec]
        stream.codec_context.thread_count = 1
        if codec == "ffv1":
            stream.codec_context.gop_size = 1  # by default its frames need the ones before
        else:
            stream.codec_context.bit_rate = BITS_PER_PIXEL * height * width * FRAME_RATE
        for frame_HW3 in frames_FHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        container.mux(stream.encode(None))


def write_frames(folder: Path, frames: UInt8) -> None:
    """Write frames [F, H, W, 3], or masks [F, H, W], as numbered PNGs."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")
