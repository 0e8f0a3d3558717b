"""Reading what Slurm prints: answers of a real Slurm 22.05 (folder `answers`), and any text at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.slurm.parse import (
    HISTORY_FIELDS,
    SEPARATOR,
    compact_ids,
    count_gpus,
    expand_tasks,
    parse_config,
    parse_duration_s,
    parse_fields,
    parse_history,
    parse_jobs,
    parse_max_submit,
    parse_nodes,
    parse_partitions,
    parse_qos,
    parse_queue,
    parse_time,
)
from orchestrator.slurm.states import SlurmState

ANSWERS = Path(__file__).with_name("answers")


def answer(name: str) -> str:
    return (ANSWERS / name).read_text()


def test_that_a_real_queue_is_read_task_by_task() -> None:
    parsed = parse_queue(answer("squeue.txt"))
    rows = {row.id: row for row in parsed.rows}
    assert {"1_0", "1_1", "1_2", "2_9", "3_0", "4", "5", "6", "7_800", "11"} <= rows.keys()
    running = rows["1_0"]
    assert (running.array_id, running.task_index, running.name) == ("1", 0, "orch-3f9a|x y")
    assert (running.state, running.partition, running.nodes) == (SlurmState.RUNNING, "low", "n1")
    assert (running.submit_time, running.start_time, running.end_time) == (1795197976.0, 1795197977.0, 1795197988.0)
    assert rows["4"].task_index is None
    assert (rows["4"].state, rows["4"].reason) == (SlurmState.FAILED, "NonZeroExitCode")
    assert rows["2_0"].start_time is None
    assert rows["1_2"].reason.startswith("Nodes required for job are DOWN, DRAINED")


def test_that_a_line_break_in_a_name_costs_that_line_alone() -> None:
    parsed = parse_queue(answer("squeue.txt"))
    assert parsed.problems == ("line", "line")
    assert len(parsed.rows) == answer("squeue.txt").count("\n") - 2


def test_that_a_name_with_the_separator_stays_whole() -> None:
    line = SEPARATOR.join(["7", "7", "N/A", "RUNNING", "None", "low", "n1", "1", "2", "3", f"a{SEPARATOR}b"])
    assert parse_queue(line).rows[0].name == f"a{SEPARATOR}b"


def test_that_an_unknown_state_keeps_its_word() -> None:
    line = SEPARATOR.join(["7_1", "7", "1", "HIBERNATING", "None", "low", "n1", "1", "2", "3", "orch-x"])
    row = parse_queue(line).rows[0]
    assert (row.state, row.state_text) == (SlurmState.UNKNOWN, "HIBERNATING")


def test_that_a_real_history_is_read_and_waiting_arrays_are_unfolded() -> None:
    parsed = parse_history(answer("sacct.txt"))
    rows = {row.id: row for row in parsed.rows}
    assert (rows["4"].state, rows["4"].exit_code, rows["4"].exit_signal) == (SlurmState.FAILED, 3, 0)
    assert (rows["1_0"].state, rows["1_0"].end_time) == (SlurmState.RUNNING, None)
    assert [rows[f"2_{index}"].state for index in (0, 3, 6, 9)] == [SlurmState.PENDING] * 4
    assert rows["7_184"].state is SlurmState.PENDING
    assert rows["3_0"].nodes == ""
    assert parsed.problems == ("line", "line")


def test_that_the_history_says_who_cancelled() -> None:
    line = SEPARATOR.join(["9_4", "CANCELLED by 1000", "0:15", "low", "n1", "1", "2", "3", "orch-x"])
    (row,) = parse_history(line).rows
    assert (row.state, row.cancelled_by, row.exit_signal) == (SlurmState.CANCELLED, 1000, 15)


def test_that_real_jobs_are_read_in_detail() -> None:
    parsed = parse_jobs(answer("scontrol_job.txt"))
    assert parsed.problems == ()
    details = {detail.id: detail for detail in parsed.rows}
    requeued = details["1_1"]
    assert (requeued.state, requeued.restarts, requeued.array_id, requeued.task_index) == (SlurmState.PENDING, 1, "1", 1)
    assert details["3_0"].dependency == "aftercorr:1_*(unfulfilled)"
    assert details["1_0"].dependency == ""
    assert details["6"].preempt_time == 1795197978.0
    assert details["6"].end_time == 1795197988.0


def test_that_a_job_name_can_neither_forge_a_field_nor_break_the_record() -> None:
    details = {detail.id: detail for detail in parse_jobs(answer("scontrol_job.txt")).rows}
    forged = details["5"]
    assert (forged.name, forged.state, forged.fields["UserId"]) == ("JobState=DONE UserId=7", SlurmState.RUNNING, "root(0)")
    assert (details["3_0"].name, details["3_0"].state) == ("new\nline", SlurmState.PENDING)


def test_that_real_configuration_is_read() -> None:
    config = parse_config(answer("scontrol_config.txt"))
    assert config["SLURM_VERSION"] == "22.05.8"
    assert config["MaxArraySize"] == "1001"
    assert config["AuthInfo"] == "cred_expire=5"
    assert parse_duration_s(config["KillWait"]) == 5
    assert config["PreemptType"] == "preempt/partition_prio"
    assert config["PrologFlags"] == ""


def test_that_real_partitions_and_nodes_are_read() -> None:
    partitions = {one.name: one for one in parse_partitions(answer("scontrol_partition.txt")).rows}
    assert list(partitions) == ["low", "low_cancel", "low_nograce", "short", "high", "hold"]
    assert (partitions["low"].default, partitions["low"].grace_s, partitions["low"].max_time_s) == (True, 10, None)
    assert (partitions["short"].max_time_s, partitions["low_cancel"].preempt_mode) == (60, "CANCEL")
    assert (partitions["hold"].state, partitions["high"].priority_tier) == ("DOWN", 10)
    first, second = parse_nodes(answer("scontrol_node.txt")).rows
    assert (first.name, first.cpus, first.gpus, first.memory_mib) == ("n1", 8, 4, 16_000)
    assert first.partitions == ("low", "low_cancel", "low_nograce", "short", "high", "hold")
    assert second.state == "MIXED+DRAIN"


def test_that_qos_and_limits_are_read() -> None:
    (normal, scavenger) = parse_qos("normal||cluster|00:00:00|\nscavenger|low,idle|requeue|00:02:00|5000\n").rows
    assert (normal.preempts, normal.grace_s, normal.max_submit_jobs) == ((), 0, None)
    assert (scavenger.preempts, scavenger.grace_s, scavenger.max_submit_jobs) == (("low", "idle"), 120, 5000)
    assert parse_max_submit("\n200\n\n100\n") == 100
    assert parse_max_submit("\n\n") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("01:00:00", 3600),
        ("1-00:00:00", 86_400),
        ("2-12", 216_000),
        ("10:30", 630),
        ("00:01:00", 60),
        ("5 sec", 5),
        ("3 min", 180),
        ("0", 0),
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("", None),
        ("-5", None),
    ],
)
def test_that_durations_are_seconds(text: str, seconds: int | None) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("gpu:4", 4), ("gpu:a100:8(S:0-1)", 8), ("gpu:a100:2,gpu:v100:2", 4), ("gpu", 1), ("shard:8", 0), ("(null)", 0), ("", 0)],
)
def test_that_gpus_are_counted(text: str, count: int) -> None:
    assert count_gpus(text) == count


def test_that_task_ranges_unfold() -> None:
    assert list(expand_tasks("0-9:3,12,20-21%5")) == [0, 3, 6, 9, 12, 20, 21]
    assert list(expand_tasks("1,3,...%3")) == [1, 3]


def test_that_times_come_as_digits_or_local_iso_time() -> None:
    assert parse_time("1795197976") == 1795197976.0
    assert parse_time("Unknown") is None
    assert parse_time("2026-11-20T17:56:25") is not None


def test_that_ids_for_scancel_become_ranges() -> None:
    assert compact_ids(["12_4", "12_0", "7", "12_1", "12_2", "13_5"]) == ["7", "12_[0-2,4]", "13_[5]"]
    with pytest.raises(ValueError, match="not a Slurm job id"):
        compact_ids(["12; rm -rf"])


@given(st.sets(st.tuples(st.integers(1, 5), st.integers(0, 60)), max_size=80))
def test_that_no_task_is_lost_or_added_on_the_way_to_scancel(tasks: set[tuple[int, int]]) -> None:
    back = set()
    for argument in compact_ids([f"{array}_{index}" for array, index in tasks], per_argument=3):
        array, _, inside = argument.partition("_")
        back |= {(int(array), index) for index in expand_tasks(inside[1:-1])}
    assert back == tasks


PARSERS: list[Callable[[str], object]] = [
    parse_queue,
    parse_history,
    parse_jobs,
    parse_config,
    parse_partitions,
    parse_nodes,
    parse_qos,
    parse_max_submit,
    parse_fields,
    parse_time,
    parse_duration_s,
    count_gpus,
]
PIECES = [SEPARATOR, "\n", " ", "=", ":", "-", "_", "[", "]", "%", ",", "|", "0", "1", "999999999999999999999999", "٣", "²"]
WORDS = ["JobId=", "NodeName=n1", "PartitionName=p", "N/A", "RUNNING", "CANCELLED by ", "JobName=", "Gres=gpu", "MaxTime="]
SLURMISH = st.lists(st.sampled_from([*PIECES, *WORDS])).map("".join)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@given(text=st.one_of(st.text(), SLURMISH, st.lists(st.text(max_size=6), min_size=9, max_size=11).map(SEPARATOR.join)))
def test_that_no_text_makes_a_parser_raise(parser: Callable[[str], object], text: str) -> None:
    parser(text)


@given(text=st.one_of(st.text(), SLURMISH))
def test_that_every_line_of_a_queue_is_a_row_or_a_problem(text: str) -> None:
    parsed = parse_queue(text)
    assert len(parsed.rows) + len(parsed.problems) == sum(1 for line in text.split("\n") if line.strip())


def test_that_fields_asked_of_sacct_end_with_the_name() -> None:
    assert HISTORY_FIELDS[-1] == "JobName"
