"""What a dry run and a resume proof have in common: which pipelines are distinct, and a warm process that runs them.

Configurations that differ only in their seed count as one: they are the same code, memory and time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchError, Problem
from orchestrator.local import KEPT
from orchestrator.slurm.submit import clean_environment
from orchestrator.submission import checkout
from orchestrator.sweep.plan import Plan, PlannedRun


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One distinct pipeline and the cells that it stands for."""

    name: str
    """The first cell's name."""
    cells: tuple[str, ...]
    runs: Mapping[str, PlannedRun]
    """step name -> run, in pipeline order."""


def _without_seed(run: PlannedRun) -> str:
    config = run.spec.model_dump(mode="json")
    config.pop("seed", None)
    return json.dumps(config, sort_keys=True)


def distinct_chains(made: Plan) -> list[Chain]:
    """The distinct pipelines of a plan, in the order of its cells."""
    found: dict[tuple[str, ...], list[Any]] = {}
    keys = {run.id: _without_seed(run) for run in made.runs.values()}
    for cell in made.cells:
        if cell.runs:
            key = tuple(keys[run] for run in cell.runs.values())
            found.setdefault(key, []).append(cell)
    return [
        Chain(
            name=cells[0].cell.name,
            cells=tuple(cell.cell.name for cell in cells),
            runs={step: made.runs[run] for step, run in cells[0].runs.items()},
        )
        for cells in found.values()
    ]


def in_warm_process(module: str, make_request: Callable[[Path], Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run `python -m MODULE REQUEST` from the working copy; its JSON lines as they come. Temporary files go with it."""
    import os

    with tempfile.TemporaryDirectory(prefix="orch-") as name:
        folder = Path(name)
        request = folder / "request.json"
        request.write_text(json.dumps(make_request(folder)), encoding="utf-8")
        environment = clean_environment(os.environ) | {key: os.environ[key] for key in KEPT if key in os.environ}
        environment |= {"PYTHONPATH": str(checkout()), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        with (
            open(folder / "stderr", "w+", encoding="utf-8") as errors,
            subprocess.Popen(
                [sys.executable, "-m", module, str(request)],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
            ) as process,
        ):  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield json.loads(line)
            except GeneratorExit:
                process.kill()
                raise
            if process.wait() not in (0, 1):
                errors.seek(0)
                raise OrchError(Problem(what=f"the rehearsal broke off: {errors.read()[-2000:]}"))
