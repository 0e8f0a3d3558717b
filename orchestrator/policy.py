"""How patient the control plane is. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Waiting times, in seconds; all of them are about not mistaking a transient answer for a fact."""

    intent_age_s: float = 180.0
    """An intent without a job is withdrawn only when it is older than this (sbatch may still be under way)."""
    missing_s: float = 30.0
    """A job that squeue does not list and sacct does not explain is lost only after this long."""
