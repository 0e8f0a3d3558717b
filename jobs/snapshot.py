"""A consistent copy of a training state in CPU memory, to be written while training goes on in place.

Costs memory for one copy of the state (a model of P float32 parameters under Adam: 12 P bytes), kept from the first save on
and filled anew by each: fresh pages would make a save several times slower. Page-locked when the state is on a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested dicts, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


class Snapshot:
    """The memory of the copies. A copy is valid until the next is taken."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def take(self, content: dict[str, Any]) -> dict[str, Any]:
        """A copy on the CPU with the structure of `content`: whatever shares memory there does so here.

        `torch.save` makes the same bytes of both when `content` lies on the CPU; from a GPU the same values.
        """
        copies: dict[int, torch.UntypedStorage] = {}
        memo: dict[int, Any] = {}
        waits = False
        for tensor in _tensors(content):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in copies:
                source_N = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
                copies[key] = self._fill(len(copies), source_N).untyped_storage()
                waits = waits or source_N.is_cuda
            alike = torch.empty(0, dtype=tensor.dtype)
            memo[id(tensor)] = alike.set_(copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())
        if waits:
            torch.cuda.synchronize()
        return copy.deepcopy(content, memo)

    def _fill(self, number: int, source_N: torch.Tensor) -> torch.Tensor:
        """The buffer of the n-th storage with the bytes of `source_N` [N] (on a GPU: under way)."""
        if number == len(self._buffers):
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        if self._buffers[number].numel() != source_N.numel():
            self._buffers[number] = torch.empty(source_N.numel(), dtype=torch.uint8, pin_memory=source_N.is_cuda)
        return self._buffers[number].copy_(source_N, non_blocking=source_N.is_cuda)
