"""Is there a Slurm here, what is its profile, what may be queued. The one place where the control plane opens Slurm."""

from __future__ import annotations

import os
import pwd
import shutil

from orchestrator.batches import Limits
from orchestrator.errors import ClusterError, Problem
from orchestrator.site import Site, load, probe, save
from orchestrator.slurm.client import Slurm, SlurmCommand
from orchestrator.workspace import Root


def user_name() -> str:
    """Whose jobs we ask about."""
    return pwd.getpwuid(os.getuid()).pw_name


def find_slurm() -> Slurm | None:
    """Slurm's commands when they are on the PATH."""
    return SlurmCommand() if shutil.which("squeue") and shutil.which("sbatch") else None


def require_slurm() -> Slurm:
    """Slurm, or a ClusterError that names the way without it."""
    slurm = find_slurm()
    if slurm is None:
        raise ClusterError(
            Problem(
                what="no Slurm here: `sbatch` and `squeue` are not on the PATH",
                hint="run this on a login node, or use `orch submit SWEEP --local` on this machine",
            )
        )
    return slurm


def site_profile(root: Root, slurm: Slurm) -> Site:
    """The profile that `orch doctor` wrote; probed now when there is none, and kept if the root exists."""
    if not root.path.is_dir():
        return probe(slurm, user=user_name())
    known = load(root.site)
    if known is not None:
        return known
    site = probe(slurm, user=user_name())
    save(site, root.site)
    return site


def keep_profile(root: Root, site: Site) -> None:
    """Write a profile that was probed before the root was made."""
    if not root.site.exists():
        save(site, root.site)


def limits_of(site: Site) -> Limits:
    """What may be queued at this site."""
    sizes = [sum(shape.count for shape in partition.shapes) for partition in site.partitions]
    return Limits(
        max_array_size=site.largest_chunk,
        max_tasks=site.max_submit_jobs or site.max_job_count,
        avoidable_nodes=min((size for size in sizes if size > 1), default=0) // 2,
    )
