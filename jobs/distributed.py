"""The processes of one attempt on their devices: process group, device, precision, and the few collectives that we use.

Accelerate places the device and the precision; gradients are summed by one flat all_reduce in parameter order, so the order
of reduction does not depend on the step (DDP rebuilds its buckets after the first one, and a resumed run then differs at
three and more ranks). The agreement on when to stop goes over gloo, never over NCCL with a device synchronisation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator  # type: ignore[import-untyped]  # ships no type information

from jobs.attempt import Left, Run
from jobs.eviction import Verdict

T = TypeVar("T")

AGREE_EVERY_S = 1.0


def configure_precision(precision: Literal["fp32", "tf32", "bf16"]) -> None:
    """Set what float32 products may be computed in: exactly, or in TF32."""
    tf32 = precision != "fp32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@dataclass(kw_only=True)
class Group:
    """This rank among the others."""

    rank: int
    world_size: int
    accelerator: Accelerator
    side: Any = None
    """A gloo group for host-side words (None alone)."""
    _check_at: int = field(default=0)
    _checked: tuple[int, float] | None = field(default=None)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        device: torch.device = self.accelerator.device
        return device if device.type == "cuda" else torch.device(device.type)  # Accelerate says `cpu:0` among several ranks

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as configured."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], extra: torch.Tensor) -> torch.Tensor:
        """Sum gradients in place over ranks, and `extra` [M] with them in the same message; returns the summed `extra`.

        Every rank's gradients must be those of its share of a loss that is already divided by the global batch.
        """
        if self.world_size == 1:
            return extra
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1).float() for gradient in gradients), extra.float()])
        dist.all_reduce(flat)
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        return flat[offset:]

    def gather_rows(self, local: torch.Tensor, rows: slice, total: int) -> torch.Tensor:
        """The rows of all ranks [total, ...]; gradient flows into this rank's own `rows` only."""
        if self.world_size == 1:
            return local
        full = torch.zeros(total, *local.shape[1:], dtype=local.dtype, device=local.device)
        full[rows] = local.detach()
        dist.all_reduce(full)
        return torch.cat([full[: rows.start], local, full[rows.stop :]])

    def agree(self, step: int, *, stop: bool, save: bool) -> tuple[bool, bool]:
        """At a step boundary: does any rank want to stop, does rank 0 want to save? About once a second, else (no, no).

        Every rank must call this at every step with the same `step`.
        """
        if self.world_size == 1:
            return stop, save
        if step < self._check_at:
            return False, False
        now = time.monotonic()
        every = 1
        if self._checked is not None and step > self._checked[0]:
            per_step = (now - self._checked[1]) / (step - self._checked[0])
            every = max(1, min(1000, int(AGREE_EVERY_S / max(per_step, 1e-6))))
        self._checked = (step, now)
        words = torch.tensor([int(stop), int(save and self.rank == 0), every if self.rank == 0 else 0])
        dist.all_reduce(words, op=dist.ReduceOp.MAX, group=self.side)
        self._check_at = step + int(words[2])
        return bool(words[0]), bool(words[1])

    def tell(self, word: str) -> str:
        """Rank 0's word, on every rank."""
        if self.world_size == 1:
            return word
        box = [word]
        dist.broadcast_object_list(box, src=0, group=self.side)
        return box[0]

    def tell_number(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        return int(self.tell(str(number)))

    def collect(self, mine: T) -> list[T]:
        """What every rank holds, in rank order, on rank 0; nothing on the others. For words and scores, on the host."""
        if self.world_size == 1:
            return [mine]
        everyone: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(mine, everyone, dst=0, group=self.side)
        return everyone or []

    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite tensors with rank 0's (after a restore)."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def leave_together(run: Run, group: Group, step: int) -> None:
    """All ranks, after the checkpoint of a raised flag: raise Left, or return when it was only a warning."""
    word = run.settle() if run.is_main else None
    verdict = group.tell(word.value if word else "")
    if verdict != Verdict.GO_ON.value:
        raise Left(step, Verdict(verdict) if verdict else None)
    run.flag.lower()


def join(run: Run, *, precision: Literal["fp32", "tf32", "bf16"], timeout_s: float) -> Group:
    """Meet the other ranks and take this rank's device. A collective that waits longer than `timeout_s` raises."""
    place = run.ranks
    cuda = torch.cuda.is_available()
    torch.set_num_threads(run.frozen.config.runtime.threads)
    configure_precision(precision)
    side = None
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # Accelerate reads them; alone there must be none
        os.environ.pop(name, None)
    if place.world_size > 1:
        os.environ |= {"RANK": str(place.rank), "WORLD_SIZE": str(place.world_size), "LOCAL_RANK": str(place.local_rank)}
        store = dist.TCPStore(  # type: ignore[attr-defined]  # exported at run time only
            place.address,
            run.port,
            place.world_size,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=300),
            wait_for_workers=True,
            master_listen_fd=run.listening_fd,
        )
        if cuda:
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(run.port)}
        side = dist.new_group(backend="gloo") if cuda else None
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if precision == "bf16" else "no")
    return Group(rank=place.rank, world_size=place.world_size, accelerator=accelerator, side=side)
