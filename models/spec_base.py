"""What typed configurations are made of: the base class, two kinds of field, decoders that several systems share; torch-free.

Every field is part of a run's identity. A field added after a release declares its neutral value with `added(...)`:
runs made before it existed then keep their ids (DESIGN: Identity).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of every typed configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


def added(neutral: Any, **constraints: Any) -> Any:
    """A field that came later: left out of the canonical form while it equals `neutral`."""
    return Field(default=neutral, json_schema_extra={"neutral": neutral}, **constraints)


def location(default: Any = ..., **constraints: Any) -> Any:
    """A field that says where something lies or how fast it runs: never part of a run's identity."""
    return Field(default=default, json_schema_extra={"location": True}, **constraints)


class FullResolutionDecoder(Spec):
    """Broadcast each slot to the full image grid, then stride-1 convolutions (Multi-dSprites; slot_attention.md 3)."""

    kind: Literal["full_resolution"] = "full_resolution"
    channels: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    kernel_size: int = Field(default=5, ge=1)


class UpsamplingDecoder(Spec):
    """Broadcast to a small grid, then stride-2 transposed convolutions (CLEVR; slot_attention.md 1)."""

    kind: Literal["upsampling"] = "upsampling"
    channels: int = Field(default=64, ge=1)
    initial_resolution: int = Field(default=8, ge=1)
    kernel_size: int = Field(default=5, ge=1)


DecoderSpec = Annotated[FullResolutionDecoder | UpsamplingDecoder, Field(discriminator="kind")]
