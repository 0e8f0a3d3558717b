"""Owns the configuration of the private cluster: what a test may vary, and the slurm.conf that follows from it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a test may vary. The defaults are quick: short delays everywhere."""

    nodes: int = 2
    cpus: int = 8
    gpus: int = 4
    memory_mib: int = 16_000
    preempt_mode: str = "REQUEUE"
    """Of `low`: REQUEUE or CANCEL."""
    grace_s: int = 10
    """GraceTime of `low` and `low_cancel`."""
    user_signal: bool = True
    """preempt_send_user_signal: an eviction delivers the job's `--signal` instead of SIGTERM."""
    accounting: bool = True
    max_array_size: int = 1001
    max_job_count: int = 40_000
    min_job_age_s: int = 300
    kill_wait_s: int = 5
    cred_expire_s: int = 5
    """Also how long a requeued job waits before it may start again; Slurm takes 120 for less than 5."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses, drawn below those that the kernel gives to outgoing connections.

    One of the kernel's own choice may be another process's before the daemon that it is meant for has started.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports on the loopback between 10000 and 32000")


def character_devices(count: int) -> list[str]:
    """Devices that stand in for GPUs; Slurm only looks at their existence (gres.conf refuses plain files)."""
    usual = [f"/dev/tty{number}" for number in range(10, 64)]
    found = [name for name in usual if Path(name).is_char_device()]
    others = sorted(str(path) for path in Path("/dev").iterdir() if path.is_char_device() and str(path) not in found)
    return (found + others)[:count]


def slurm_conf(here: Path, options: Options, nodes: Sequence[str], ports: Sequence[int], gpus: int, dbd_port: int) -> str:
    """The text of slurm.conf; `ports` are the controller's and then one per node."""
    grace = f"GraceTime={options.grace_s}"
    over = f"Nodes={','.join(nodes)} MaxTime=UNLIMITED DefaultTime=60"
    accounting = (
        [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=localhost",
            f"AccountingStoragePort={dbd_port}",
            f"AccountingStoragePass={here}/munge/socket",
            "AccountingStorageTRES=gres/gpu",
        ]
        if options.accounting
        else []
    )
    lines = [
        "ClusterName=orchtest",
        "SlurmctldHost=localhost(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=cred_expire={options.cred_expire_s},socket={here}/munge/socket",
        f"StateSaveLocation={here}/state",
        f"SlurmdSpoolDir={here}/spool-%n",
        f"SlurmctldPidFile={here}/slurmctld.pid",
        f"SlurmdPidFile={here}/slurmd-%n.pid",
        f"SlurmctldLogFile={here}/slurmctld.log",
        f"SlurmdLogFile={here}/slurmd-%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "SlurmdParameters=config_overrides",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "DefMemPerCPU=100",
        "GresTypes=gpu",
        "ReturnToService=2",
        "SlurmdTimeout=30",
        "SlurmctldTimeout=30",
        f"KillWait={options.kill_wait_s}",
        f"MinJobAge={options.min_job_age_s}",
        f"MaxArraySize={options.max_array_size}",
        f"MaxJobCount={options.max_job_count}",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "PriorityType=priority/basic",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=2,sched_min_interval=100000,batch_sched_delay=0,bf_interval=2,bf_max_job_test=200",
        *(["SlurmctldParameters=preempt_send_user_signal"] if options.user_signal else []),
        *accounting,
    ]
    for node, port in zip(nodes, ports[1:], strict=True):
        lines.append(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={options.cpus} "
            f"RealMemory={options.memory_mib} Gres=gpu:{gpus} State=UNKNOWN"
        )
    lines += [
        f"PartitionName=low {over} Default=YES PriorityTier=1 PreemptMode={options.preempt_mode} {grace}",
        f"PartitionName=low_cancel {over} PriorityTier=1 PreemptMode=CANCEL {grace}",
        f"PartitionName=low_nograce {over} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
        f"PartitionName=short Nodes={','.join(nodes)} MaxTime=1 DefaultTime=1 PriorityTier=1 PreemptMode=REQUEUE {grace}",
        f"PartitionName=high {over} PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=hold {over} PriorityTier=1 State=DOWN",
    ]
    return "\n".join(lines) + "\n"
