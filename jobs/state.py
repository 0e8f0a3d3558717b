"""Everything that a training checkpoint holds, and how it begins: a function of the spec alone."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.contract import fsync_directory
from jobs.data.clips_actions import COLORS, SHAPES
from jobs.optimizer import build_adam
from jobs.randomness import derived_seed
from jobs.spec import TrainSpec
from models.build import build_model, build_objective
from models.objectives import Objective
from models.part_objective import BY_IMAGE, ENERGY
from models.part_slots import PartSlots
from models.semantic import LanguageSizes
from models.slot_model import SlotModel
from models.spec import DinosaurSpec
from models.spec_language import LanguageSlotsSpec, SemanticObjective
from models.spec_parts import PartSlotsSpec, PartsObjective
from models.spec_video import VideoObjective, VideoSlotsSpec

PARTS = {
    "reconstruction": (),
    "covariance": ("covariance", "variance"),
    "cosine": ("cosine",),
    "semantic": ("contrastive", "text", "names", "entropy"),
    "video": ("future_masks", "future_slots", "perceptual"),
    "parts": (*BY_IMAGE, "contrast"),
}
"""Named parts of each objective's extra loss; of the last three those whose weight of that name is above 0."""
WEIGHTS = "model.pt"
"""The trained weights' name below a training run's output."""
GATE_PARTS = ("sparsity", "kept_slots", "keep_probability")


def loss_names(spec: TrainSpec) -> tuple[str, ...]:
    """Named scalars of a step, in the order in which ranks exchange them; part models reconstruct nothing."""
    return ("loss", *(() if isinstance(spec.objective, PartsObjective) else ("mse",)), *loss_parts(spec))


def loss_parts(spec: TrainSpec) -> tuple[str, ...]:
    """Those beside loss and mse."""
    gated = isinstance(spec.model, DinosaurSpec) and spec.model.gate is not None
    parts: tuple[str, ...] = PARTS[spec.objective.kind]
    if isinstance(spec.objective, SemanticObjective | VideoObjective | PartsObjective):
        parts = tuple(name for name in parts if getattr(spec.objective, name) > 0)
    if isinstance(spec.objective, PartsObjective) and spec.objective.semantic > 0:
        parts = (*parts, ENERGY)
    return parts + (GATE_PARTS if gated else ())


@dataclass(kw_only=True)
class TrainState:
    """Everything that a checkpoint holds."""

    model: SlotModel
    objective: Objective
    optimizer: torch.optim.Adam
    step: int = 0

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters in a fixed order."""
        return [one for module in (self.model, self.objective) for one in module.parameters() if one.requires_grad]

    def content(self) -> dict[str, Any]:
        """What is saved, not copied: the next step changes it in place."""
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def save(self, folder: Path) -> None:
        """Write the state; `torch.load(weights_only=True)` reads it back."""
        save_content(self.content(), folder)

    def load(self, folder: Path) -> None:
        """Restore in place."""
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def save_content(content: dict[str, Any], folder: Path) -> None:
    """Write what `TrainState.content` gave, or a copy of it."""
    torch.save(content, folder / "state.pt")


def build_state(spec: TrainSpec, device: torch.device) -> TrainState:
    """The state before step 0: a function of the spec alone, and of weights that it names (raises DataError as jobs.weights)."""
    weights = torch.Generator().manual_seed(derived_seed(spec.seed, "weights") % 2**63)
    model = build_model(spec.model, generator=weights)
    if isinstance(spec.model, PartSlotsSpec) and spec.model.trunk.weights != "random":
        _load_trunk(model, spec.model)
    model = model.to(device)
    head = torch.Generator().manual_seed(derived_seed(spec.seed, "head") % 2**63)
    slot_size = getattr(spec.model, "slot_size", 1)
    language = None
    if isinstance(spec.model, LanguageSlotsSpec):
        language = LanguageSizes(text_size=spec.model.text_size, colours=len(COLORS), shapes=len(SHAPES))
    lpips = None
    if isinstance(spec.objective, VideoObjective) and spec.objective.perceptual > 0:
        from jobs.weights import load_lpips  # brings timm and open_clip, which take seconds to import

        lpips = load_lpips(spec.objective.lpips, device)
    objective = build_objective(
        spec.objective,
        slot_size=slot_size,
        num_slots=spec.model.num_slots,
        generator=head,
        language=language,
        video=spec.model if isinstance(spec.model, VideoSlotsSpec) else None,
        lpips=lpips,
    ).to(device)
    parameters = [*model.parameters(), *objective.parameters()] or [torch.nn.Parameter(torch.zeros(1, device=device))]
    trunk = model.trunk.parameters() if isinstance(model, PartSlots) else ()
    return TrainState(
        model=model,
        objective=objective,
        optimizer=build_adam(spec.optimizer, parameters, trunk=trunk, cuda=device.type == "cuda"),
    )


def _load_trunk(model: SlotModel, spec: PartSlotsSpec) -> None:
    """The published weights of a part model's trunk, if its spec names any."""
    from jobs.weights import load_trunk  # as above

    assert isinstance(model, PartSlots)
    load_trunk(model.trunk, spec.trunk)


def save_weights(model: SlotModel, path: Path) -> None:
    """The trained model for other runs, whole or absent."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(temporary, "xb") as handle:
        torch.save(model.state_dict(), handle)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)
