"""Owns what a whole storm is about: which runs, on what kind of site, and conditions that last from its start to its end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

COUNT = """
title: storm
base: [step_s={step_s}, steps={steps}, runtime.checkpoint_every_steps={every}, runtime.max_attempts_without_progress=1000]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  count: {{job: count}}
resources:
  count: {{partition: {partition}, timeout_min: {minutes}, signal_delay_s: 30, cpus_per_task: 1}}
table:
  rows: seed
  value: {{metric: count/value, step: count, digits: 0}}
"""
TRAIN = """
title: storm
base: [experiment=demo, data=mdsprites_easy, data.train.count=256, data.test.first=256, data.test.count=32, steps={steps},
       batch_size=16, runtime.checkpoint_every_steps={every}, runtime.log_every=1, validation.every_steps=1000,
       runtime.max_attempts_without_progress=1000]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  prepare: {{job: prepare}}
  train: {{job: train, needs: [prepare]}}
resources:
  prepare: {{partition: {partition}, timeout_min: {minutes}}}
  train: {{partition: {partition}, timeout_min: {minutes}, nodes: 2, tasks_per_node: 1, signal_delay_s: 30}}
table:
  rows: seed
  value: {{metric: train/loss, step: train}}
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The runs of a storm."""

    kind: Literal["count", "train"]
    sweep: str
    """YAML with places for the numbers."""
    metric: str
    """That the tracker must hold once for every step."""
    runs: int
    steps: int
    every: int
    """Steps between checkpoints: what a death without notice may cost."""
    step_s: float = 0.0


COUNTING = Work(kind="count", sweep=COUNT, metric="count/value", runs=16, steps=900, every=10, step_s=0.05)
"""A hash chain: a step skipped, repeated or done by a wrong state shows in every later value."""
LONG = replace(COUNTING, steps=1600)
"""Outlives a storm's longer pauses."""
TRAINING = Work(kind="train", sweep=TRAIN, metric="train/loss", runs=2, steps=300, every=10)
"""Two tasks on two nodes each; weights and losses must be those of runs that nobody touched, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Conditions of one storm."""

    name: str
    work: Work = COUNTING
    partition: str = "low"
    minutes: int = 10
    """Time limit of every job."""
    told: bool = False
    """Only faults that give notice: no step may be done again."""
    skew_s: tuple[float, ...] = ()
    """Of each node's clock."""
    accounting: bool = True
    """Whether sacct knows anything."""
    tracker: bool = True
    """Whether it answers before the storm is over."""
    left_out: frozenset[str] = field(default_factory=frozenset)
    """Names of faults that would make no sense here."""


WEATHERS = (
    Weather(name="PreemptMode=REQUEUE"),
    Weather(name="notice alone", work=LONG, told=True),
    Weather(name="PreemptMode=CANCEL, no accounting", partition="low_cancel", accounting=False),
    Weather(
        name="training on two tasks",
        work=TRAINING,
        left_out=frozenset(
            {"a second attempt by hand", "power cut at a line of the job"}
        ),  # of one task: other bits; torch's files
    ),
    Weather(name="no grace, clocks apart", partition="low_nograce", skew_s=(-90.0, 0.0, 120.0)),
    Weather(
        name="limits of one minute, no tracker",
        minutes=1,
        work=LONG,
        tracker=False,
        left_out=frozenset({"tracker killed while shipping", "tracker fails, dawdles or hangs up", "orch sync killed"}),
    ),
)
"""In this order, over and over."""
