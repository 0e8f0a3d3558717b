"""Owns the reading of what Slurm's commands print. Pure: text in, rows out; no text makes it raise.

A line that cannot be read is a *problem* beside the rows: kept, logged once by the client, never a crash and never a
reason to drop the other lines. The formats are asked for in `client.py` with the constants of this file.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

from orchestrator.slurm.rows import (
    HistoryRow,
    JobDetail,
    NodeFacts,
    Parsed,
    PartitionFacts,
    QosFacts,
    QueueRow,
)
from orchestrator.slurm.states import read_state

SEPARATOR = "\x1f"
"""ASCII unit separator: in no name that a person types. The name stands last, so that even there it does no harm."""
QUEUE_FORMAT = SEPARATOR.join(("%i", "%F", "%K", "%T", "%r", "%P", "%N", "%V", "%S", "%e", "%j"))
HISTORY_FIELDS = ("JobID", "State", "ExitCode", "Partition", "NodeList", "Submit", "Start", "End", "JobName")
QOS_FIELDS = ("Name", "Preempt", "PreemptMode", "GraceTime", "MaxSubmitJobsPerUser")

_NOTHING = frozenset({"", "N/A", "NONE", "None", "Unknown", "UNKNOWN", "(null)", "None assigned"})
_UNLIMITED = frozenset({"UNLIMITED", "INFINITE", "Partition_Limit"})
_KEY = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/:.\[\]]*)=")
_JOB_NAME = re.compile(r"(?:^| )JobName=(.*?) (?=UserId=\S*\(\d+\) GroupId=)", re.DOTALL)
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)
_TASKS = re.compile(r"(\d+)_\[([^\]]*)\]?", re.ASCII)
_ID = re.compile(r"(\d{1,15})(?:_(\d{1,15}))?", re.ASCII)
_MOST_TASKS = 4_000_001
"""Slurm's own ceiling of MaxArraySize: a longer range is a misreading, not an array."""
_MOST_UNFOLDED = 200_000
"""Tasks that one answer's `12_[0-9]` may stand for altogether: beyond that its lines are problems, not rows."""

Item = TypeVar("Item")


def _is_number(text: str) -> bool:
    return text.isdigit() and text.isascii() and len(text) <= 15


@functools.lru_cache(maxsize=4096)  # thousands of rows, few distinct times
def parse_time(text: str) -> float | None:
    """Seconds since the epoch, from digits (SLURM_TIME_FORMAT=%s) or from local ISO time; None for N/A and nonsense."""
    if text in _NOTHING:
        return None
    if _is_number(text):
        return float(text)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text).timestamp()
    return None


def parse_duration_s(text: str) -> int | None:
    """Seconds of `[days-]hours:minutes:seconds`, `minutes:seconds`, `30 sec` or plain seconds; None for unlimited or nonsense."""
    words = text.split()
    match = _DURATION.fullmatch(words[0]) if words else None
    if match is None or any(len(part or "") > 9 for part in match.groups()):
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(days) * 86_400 + hours * 3600 + minutes * 60 + seconds
    total = 0
    for part in parts:
        total = total * 60 + part
    unit = words[1] if len(words) > 1 else "sec"
    return total * 60 if unit.startswith("min") else total


def parse_count(text: str) -> int | None:
    """A limit such as `1001`; None for unlimited, absent and nonsense."""
    return int(text) if _is_number(text) else None


def expand_tasks(text: str) -> Iterator[int]:
    """Task indices of `0-9:3,12%5`, as far as listed: sacct ends a long list with `...`."""
    return itertools.chain.from_iterable(_ranges(text))


def _ranges(text: str) -> Iterator[range]:
    for piece in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7})(?::(\d{1,7}))?)?", piece, re.ASCII)
        if match is not None:
            first, last, step = int(match[1]), int(match[2] or match[1]), max(1, int(match[3] or 1))
            yield range(first, min(last, _MOST_TASKS) + 1, step)


def _unfolded(text: str, most: int) -> list[int] | None:
    """`expand_tasks`, or None when it lists more than `most` indices."""
    return list(expand_tasks(text)) if sum(map(len, _ranges(text))) <= most else None


def _each_line(text: str, read: Callable[[str], Item | None]) -> Parsed[Item]:
    return _each(text.split("\n"), read)


def _each(lines: Iterable[str], read: Callable[[str], Item | None]) -> Parsed[Item]:
    rows: list[Item] = []
    problems: list[str] = []
    for line in lines:
        if line.strip():
            row = read(line)
            if row is None:
                problems.append(line)
            else:
                rows.append(row)
    return Parsed(rows=tuple(rows), problems=tuple(problems))


# --- squeue -----------------------------------------------------------------------------------------------------------


def _queue_row(line: str) -> QueueRow | None:
    cells = line.split(SEPARATOR, 10)
    if len(cells) != 11:
        return None
    job, array, index, state_text, reason, partition, nodes, submit, start, end, name = cells
    base, _, task = job.partition("_")
    if not _is_number(base) or not _is_number(array) or (task and not _is_number(task)):
        return None  # also `12_[3-9]`: asked with -r, Slurm never writes it
    state = read_state(state_text)
    return QueueRow(
        id=job,
        array_id=array,
        task_index=int(index) if _is_number(index) else None,
        name=name,
        state=state.state,
        state_text=state.text,
        reason=reason,
        partition=partition,
        nodes=nodes,
        submit_time=parse_time(submit),
        start_time=parse_time(start),
        end_time=parse_time(end),
    )


def parse_queue(text: str) -> Parsed[QueueRow]:
    """Read `squeue -h -r -o QUEUE_FORMAT`."""
    return _each_line(text, _queue_row)


# --- sacct ------------------------------------------------------------------------------------------------------------


def parse_history(text: str) -> Parsed[HistoryRow]:
    """Read `sacct -n -P -X --delimiter=SEPARATOR -o HISTORY_FIELDS`; a pending `12_[0-9]` becomes one row per task."""
    rows: list[HistoryRow] = []
    problems: list[str] = []
    left = _MOST_UNFOLDED
    for line in text.split("\n"):
        if not line.strip():
            continue
        cells = line.split(SEPARATOR, len(HISTORY_FIELDS) - 1)
        single = _ID.fullmatch(cells[0])
        several = _TASKS.fullmatch(cells[0])
        indices = None if several is None else _unfolded(several[2], left)
        if len(cells) != len(HISTORY_FIELDS) or (single is None and indices is None):
            problems.append(line)
        elif several is not None and indices is not None:
            left -= len(indices)
            rows += [_history_row(several[1], index, cells) for index in indices]
        elif single is not None:
            rows.append(_history_row(single[1], None if single[2] is None else int(single[2]), cells))
    return Parsed(rows=tuple(rows), problems=tuple(problems))


def _history_row(array_id: str, task_index: int | None, cells: list[str]) -> HistoryRow:
    _, state_text, exit_text, partition, nodes, submit, start, end, name = cells
    state = read_state(state_text)
    code, _, signum = exit_text.partition(":")
    return HistoryRow(
        id=array_id if task_index is None else f"{array_id}_{task_index}",
        array_id=array_id,
        task_index=task_index,
        name=name,
        state=state.state,
        state_text=state.text,
        cancelled_by=state.cancelled_by,
        exit_code=parse_count(code) or 0,
        exit_signal=parse_count(signum) or 0,
        partition=partition,
        nodes="" if nodes in _NOTHING else nodes,
        submit_time=parse_time(submit),
        start_time=parse_time(start),
        end_time=parse_time(end),
    )


# --- scontrol ---------------------------------------------------------------------------------------------------------


def parse_fields(line: str) -> dict[str, str]:
    """`Key=value Key=value ...` with blanks inside values; the first of a repeated key counts."""
    found: dict[str, str] = {}
    marks = list(_KEY.finditer(line))
    for mark, following in itertools.zip_longest(marks, marks[1:]):
        end = len(line) if following is None else following.start()
        found.setdefault(mark[1], line[mark.end() : end].strip())
    return found


def _job_detail(line: str) -> JobDetail | None:
    name = _JOB_NAME.search(line)  # a name may hold anything, also ` JobState=`: taken out before the rest is read
    rest = line if name is None else f"{line[: name.start()]} {line[name.end() :]}"
    fields = parse_fields(rest)
    if not _is_number(fields.get("JobId", "")):
        return None
    index = parse_count(fields.get("ArrayTaskId", ""))
    array_id = fields.get("ArrayJobId", fields["JobId"])
    state = read_state(fields.get("JobState", ""))
    return JobDetail(
        id=array_id if index is None else f"{array_id}_{index}",
        array_id=array_id,
        task_index=index,
        name="" if name is None else name[1],
        state=state.state,
        state_text=state.text,
        reason=fields.get("Reason", ""),
        dependency=_text(fields, "Dependency"),
        restarts=parse_count(fields.get("Restarts", "")) or 0,
        partition=fields.get("Partition", ""),
        nodes=_text(fields, "NodeList"),
        submit_time=parse_time(fields.get("SubmitTime", "")),
        start_time=parse_time(fields.get("StartTime", "")),
        end_time=parse_time(fields.get("EndTime", "")),
        preempt_time=parse_time(fields.get("PreemptTime", "")),
        fields=fields,
    )


def _text(fields: Mapping[str, str], key: str) -> str:
    value = fields.get(key, "")
    return "" if value in _NOTHING else value


def parse_jobs(text: str) -> Parsed[JobDetail]:
    """Read `scontrol show job -o`: one line per job; an array shows its started tasks and one line for the rest."""
    return _each(re.split(r"\n(?=JobId=)", text), _job_detail)  # a name may hold a line break


def parse_config(text: str) -> dict[str, str]:
    """Read `scontrol show config`: `Key = value` lines; `(null)` becomes the empty text."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        key, equals, value = line.partition("=")
        if equals and key.strip():
            found.setdefault(key.strip(), "" if value.strip() == "(null)" else value.strip())
    return found


def _partition(line: str) -> PartitionFacts | None:
    fields = parse_fields(line)
    if not fields.get("PartitionName"):
        return None
    return PartitionFacts(
        name=fields["PartitionName"],
        state=fields.get("State", ""),
        default=fields.get("Default", "NO") == "YES",
        total_nodes=parse_count(fields.get("TotalNodes", "")) or 0,
        max_nodes=parse_count(fields.get("MaxNodes", "")),
        max_time_s=parse_duration_s(fields.get("MaxTime", "")),
        priority_tier=parse_count(fields.get("PriorityTier", "")) or 0,
        preempt_mode=fields.get("PreemptMode", ""),
        grace_s=parse_duration_s(fields.get("GraceTime", "")) or 0,
    )


def parse_partitions(text: str) -> Parsed[PartitionFacts]:
    """Read `scontrol show partition -o`."""
    return _each_line(text, _partition)


def count_gpus(gres: str) -> int:
    """GPUs in a node's Gres text: `gpu:4`, `gpu:a100:4(S:0-1),shard:8`, `gpu:a100:2,gpu:v100:2`."""
    total = 0
    for piece in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = piece.strip().split(":")
        if words[0] == "gpu":
            total += (parse_count(words[-1]) or 0) if len(words) > 1 else 1
    return total


def _node(line: str) -> NodeFacts | None:
    fields = parse_fields(line)
    if not fields.get("NodeName"):
        return None
    return NodeFacts(
        name=fields["NodeName"],
        partitions=tuple(name for name in fields.get("Partitions", "").split(",") if name),
        cpus=parse_count(fields.get("CPUEfctv", "")) or parse_count(fields.get("CPUTot", "")) or 0,
        gpus=count_gpus(_text(fields, "Gres")),
        memory_mib=parse_count(fields.get("RealMemory", "")) or 0,
        state=fields.get("State", ""),
    )


def parse_nodes(text: str) -> Parsed[NodeFacts]:
    """Read `scontrol show node -o`."""
    return _each_line(text, _node)


# --- sacctmgr ---------------------------------------------------------------------------------------------------------


def _qos(line: str) -> QosFacts | None:
    cells = line.split("|")
    if len(cells) != len(QOS_FIELDS) or not cells[0]:
        return None
    name, preempts, mode, grace, most = cells
    return QosFacts(
        name=name,
        preempts=tuple(other for other in preempts.split(",") if other),
        preempt_mode=mode,
        grace_s=parse_duration_s(grace) or 0,
        max_submit_jobs=parse_count(most),
    )


def parse_qos(text: str) -> Parsed[QosFacts]:
    """Read `sacctmgr -n -P show qos format=QOS_FIELDS`."""
    return _each_line(text, _qos)


def parse_max_submit(text: str) -> int | None:
    """The smallest limit in `sacctmgr -n -P show assoc user=... format=MaxSubmitJobs`; None when there is none."""
    counts = (parse_count(line.strip()) for line in text.split("\n"))
    return min((count for count in counts if count is not None), default=None)


def compact_ids(job_ids: list[str], *, per_argument: int = 200) -> list[str]:
    """Job ids as few arguments for scancel: tasks of one array become `12_[0-4,7]`; raises ValueError for a non-id."""
    tasks: dict[str, set[int]] = {}
    plain: dict[str, None] = {}
    for job_id in job_ids:
        match = _ID.fullmatch(job_id)
        if match is None:
            raise ValueError(f"not a Slurm job id: {job_id!r}")
        if match[2] is None:
            plain[match[1]] = None
        else:
            tasks.setdefault(match[1], set()).add(int(match[2]))
    arguments = list(plain)
    for array_id, indices in tasks.items():
        ranges: list[list[int]] = []
        for index in sorted(indices):
            if ranges and index == ranges[-1][1] + 1:
                ranges[-1][1] = index
            else:
                ranges.append([index, index])
        pieces = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges]
        for begin in range(0, len(pieces), per_argument):
            arguments.append(f"{array_id}_[{','.join(pieces[begin : begin + per_argument])}]")
    return arguments
