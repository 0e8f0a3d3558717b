"""Typed configurations of images with parts, one kind each; torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.spec_base import Spec


class ToyCreaturesSpec(Spec):
    """Drawn creatures of one category with five parts and ten keypoints (scops_slots.md 4): no files needed."""

    kind: Literal["toy_creatures"] = "toy_creatures"
    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=128, ge=32)
    train_images: int = Field(default=8000, ge=1)
    """The first of the endless series that the seed names for this split: more of them leave the others as they are."""
    test_images: int = Field(default=1000, ge=1)
