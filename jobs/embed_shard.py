"""Computes one shard of an `embed` run: images in, stored tokens and their rounding error out; no files, no signals.

Legend: B images of a batch, N tokens, C features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from jobs.data.errors import DataError, Place
from jobs.data.feature_manifest import STORED, DTypeName, Layout, Shard
from jobs.samples import Pixels, to_images

TORCH_DTYPES: Mapping[DTypeName, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def embed_shard(
    backbone: torch.nn.Module,
    images_NHWC: Pixels,
    shard: Shard,
    layout: Layout,
    *,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[], None],
) -> tuple[np.ndarray, float]:
    """Tokens of one shard as they are stored, and the sum of squared differences to those in fp32.

    Args:
        backbone: images [B,3,H,W] in [0, 1] -> tokens [B,N,C], on `device`.
        images_NHWC: all images of the split, uint8.
        shard: which of them, and whether mirrored.
        layout: the store's.
        batch_size: images at once.
        device: where to compute.
        on_batch: called before each batch; whatever it raises ends the call.

    Raises:
        DataError: tokens that are not finite in the stored dtype.
    """
    rows = np.empty(layout.shape(shard), dtype=STORED[layout.dtype])
    squared_error = 0.0
    for at in range(0, shard.count, batch_size):
        on_batch()
        first = shard.first + at
        count = min(batch_size, shard.count - at)
        batch_BHWC = torch.from_numpy(np.array(images_NHWC[first : first + count])).to(device)
        if shard.part == "train_mirrored":
            batch_BHWC = batch_BHWC.flip(2)
        with torch.inference_mode():
            tokens_BNC = backbone(to_images(batch_BHWC))
            kept_BNC = tokens_BNC.to(TORCH_DTYPES[layout.dtype])
            batch_error = (kept_BNC.float() - tokens_BNC).square().sum(dtype=torch.float64).item()
        if not np.isfinite(batch_error):
            raise DataError(
                f"tokens are not finite in {layout.dtype}",
                place=Place(file=shard.name, record=at),
                expected=f"values up to {torch.finfo(TORCH_DTYPES[layout.dtype]).max:.3g}",
                hint="set dtype=bf16 or fp32; if it persists, the weights are damaged",
            )
        squared_error += batch_error
        bits = kept_BNC.view(torch.uint16) if layout.dtype == "bf16" else kept_BNC
        rows[at : at + count] = bits.cpu().numpy()
    return rows, squared_error
