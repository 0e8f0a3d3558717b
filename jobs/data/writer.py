"""An image store under construction: arrays of their final size, written chunk by chunk at fixed places.

To write a chunk again changes nothing, and neither does a second writer of the same records: arrays are created once,
exclusively, and never truncated. So an attempt that does not know yet that it was superseded does no harm.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.contract import fsync_directory
from jobs.data.errors import DataError, Place
from jobs.data.multi_dsprites import Record, label_map
from jobs.data.store import SplitName, StoreManifest

LOST_HINT = "an earlier attempt's scratch files are gone or damaged: remove the run's directory and submit the run again"


class StoreWriter:
    """Writes records into the arrays below a scratch directory.

    Plain writes rather than memory maps: a full disk is then an OSError and not a SIGBUS.
    """

    def __init__(self, work: Path, manifest: StoreManifest, *, may_create: bool) -> None:
        """Open the arrays, creating those that are missing if `may_create`.

        Raises:
            DataError: an array is missing, or is another than the manifest says.
        """
        self._files: dict[str, tuple[int, int]] = {}
        try:
            for name, (dtype, shape) in manifest.arrays().items():
                path = work / name
                if may_create and not path.exists():
                    _create_npy(path, dtype=dtype, shape=shape)
                self._files[name] = _open_npy(path, dtype=dtype, shape=shape)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; everything written is on disk already."""
        while self._files:
            _, (handle, _) = self._files.popitem()
            os.close(handle)

    def write(self, split: SplitName, *, at: int, records: Sequence[Record]) -> None:
        """Write records to places `at` .. of a split, and wait until they are on disk."""
        self.put(sprite_rows(split, records), at=at)

    def put(self, rows: Mapping[str, npt.NDArray[Any]], *, at: int) -> None:
        """Write rows to places `at` .. of the named arrays, and wait until they are on disk."""
        for name, array in rows.items():
            handle, header_bytes = self._files[name]
            content = memoryview(array.tobytes())
            offset = header_bytes + at * (content.nbytes // len(array))
            while content.nbytes:
                written = os.pwrite(handle, content, offset)
                content, offset = content[written:], offset + written
            os.fsync(handle)


def sprite_rows(split: SplitName, records: Sequence[Record]) -> Mapping[str, npt.NDArray[Any]]:
    """Return what records add to the arrays of their split, by the array's path below the store."""
    return {
        f"{split}/images.npy": np.stack([record.image_HW3 for record in records]),
        f"{split}/labels.npy": np.stack([label_map(record) for record in records]),
        f"{split}/factors.npy": np.stack([record.factors_E9 for record in records]),
    }


def _create_npy(path: Path, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Make a .npy file of its final size, all zero, unless somebody else has made it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + dtype.itemsize * int(np.prod(shape)))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # exclusive, and never seen half-made
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    fsync_directory(path.parent.parent)


def _open_npy(path: Path, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Open a .npy file for writing in place; returns its handle and the size of its header."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"not a .npy array ({error})", place=Place(file=str(path)), hint=LOST_HINT) from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f"holds {array.dtype} {list(array.shape)}",
            place=Place(file=str(path)),
            expected=f"{dtype} {list(shape)}",
            hint=LOST_HINT,
        )
    return os.open(path, os.O_WRONLY), path.stat().st_size - array.nbytes
