"""`orch submit` killed at every line between intent and record: whatever line it was, every run is queued once."""

from __future__ import annotations

from pathlib import Path

from orchestrator import apply, tick
from orchestrator.slurm import submit
from orchestrator.slurm.client import SlurmCommand
from orchestrator.store.runs import Store
from orchestrator.store.schema import transaction
from orchestrator.workspace import Root
from tests.deaths import dies_at, every_line
from tests.orchestrator.stub import StubSlurm
from tests.orchestrator.test_apply import counts, plan, states
from tests.orchestrator.test_apply import submit as queue

WAY = (apply.submit_batches, submit.write_index, Store.intend, submit.sbatch, Store.submitted, transaction)
LONG_AFTER = 4e9
"""Seconds since the epoch: what never reached Slurm is planned again by then."""


def test_that_after_death_at_any_line_every_run_is_queued_exactly_once(tmp_path: Path, stub_slurm: StubSlurm) -> None:
    died = 0
    for number, (function, line) in enumerate(every_line(*WAY)):
        root, before = Root(tmp_path / f"{number}"), len(stub_slurm.calls)
        root.create()
        store = Store(root.store)
        plan(root, store, counts(2))
        store.close()  # a connection does not outlive a fork

        def submitting(root: Root = root) -> None:
            queue(root, Store(root.store))

        died += dies_at(function, line, submitting)
        store = Store(root.store)
        tick.look(root, store, SlurmCommand())
        tick.look(root, store, SlurmCommand(), now=LONG_AFTER)
        queue(root, store)
        where = f"{function.__qualname__}, line {line}"
        assert states(store) == ["queued", "queued"], where
        assert len(stub_slurm.calls) == before + 1, f"{where}: not queued exactly once"
        assert len({run.job for run in store.runs().values()}) == 2, where
        store.close()
    assert died > 40
