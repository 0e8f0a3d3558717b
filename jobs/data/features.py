"""The feature store: tokens of a frozen backbone, in sharded memory maps with a manifest."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class Features(Protocol):
    """Tokens of one split, read-only."""

    @property
    def count(self) -> int:
        """Images."""
        ...

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        """Tokens [B,N,C] of images `indices` [B] in the stored dtype, those of the mirrored image where `mirrored` [B]."""
        ...
