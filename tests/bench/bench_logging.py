"""What logging costs the training thread per step: our journal with the tracker up and dead, and MLflow's log_metrics.

usage: python tests/bench/bench_logging.py [STEPS]

All three log the same ten scalars per step in one process, in turns, so that a busy machine slows all alike. The journal
is flushed every 100 steps, as a loop does about once a second; those flushes are part of its figures. `tracker up`
ships the journal to a SQLite store from another process all the while; `tracker dead` does the same to a closed port.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from jobs.journal import CHECKPOINT, JournalWriter  # noqa: E402
from orchestrator.tracking.mlflow_store import default_uri, initialise  # noqa: E402

VALUES = {f"train/metric_{i}": 0.1 * i + 1e-3 for i in range(10)}
DEAD = "http://127.0.0.1:1"
SHIPPER = """
import sys, time
from pathlib import Path
from orchestrator.errors import TrackerError
from orchestrator.lifecycle import RunState
from orchestrator.tracking.cursors import Cursor
from orchestrator.tracking.record import AttemptFacts, RunFacts
from orchestrator.tracking.shipper import ship

class Cursors(dict):
    def get(self, run):
        return super().get(run, Cursor(None, -1))
    def set_run(self, run, tracker_run):
        self[run] = Cursor(tracker_run, -1)
    def advance(self, run, step):
        self[run] = Cursor(self[run].tracker_run, step)

uri, root, run = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
facts = RunFacts(run_id=run.name, kind="train", state=RunState.RUNNING, run_dir=run, attempts=(AttemptFacts(),))
cursors, said = Cursors(), False
while True:
    try:
        ship(uri, root, [facts], cursors)
    except TrackerError:
        pass
    if not said:
        print("shipping", flush=True)
        said = True
    time.sleep(0.5)
"""


def microseconds(log: Callable[[int], None], steps: range) -> list[float]:
    """The time of each call."""
    taken: list[float] = []
    for step in steps:
        start = time.perf_counter_ns()
        log(step)
        taken.append((time.perf_counter_ns() - start) / 1000)
    return taken


def journaled(journal: JournalWriter) -> Callable[[int], None]:
    """One step of the training thread."""

    def log(step: int) -> None:
        journal.metrics(step, VALUES)
        if step % 100 == 99:
            journal.flush()

    return log


def shipper(uri: str, root: Path, run: Path) -> subprocess.Popen[str]:
    """A process that keeps shipping one run; returned once it has tried."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SHIPPER, uri, str(root), str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "shipping\n"
    return process


def measure(steps: int) -> dict[str, list[float]]:
    """Times per step of the three ways, interleaved in rounds."""
    import mlflow

    found: dict[str, list[float]] = {"journal, tracker up": [], "journal, tracker dead": [], "mlflow.log_metrics": []}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        initialise(default_uri(root), root)
        mlflow.set_tracking_uri(f"sqlite:///{root / 'theirs.db'}")
        with mlflow.start_run():
            mlflow.log_metrics(VALUES, step=0)  # builds the schema
            rounds = 5
            share = max(1, steps // rounds)
            for turn in range(rounds):
                span = range(turn * share, (turn + 1) * share)
                for name, uri in (("journal, tracker up", default_uri(root)), ("journal, tracker dead", DEAD)):
                    run = root / "runs" / f"{turn}{uri == DEAD:d}"
                    journal = JournalWriter(run / "journal", attempt=1, restored_step=0)
                    for step in range(1, 2001):
                        journal.metrics(step, VALUES)
                    journal.event(2000, CHECKPOINT)
                    journal.flush()
                    process = shipper(uri, root, run)
                    try:
                        found[name].extend(microseconds(journaled(journal), span))
                    finally:
                        process.kill()
                        process.communicate()
                    journal.close()
                few = range(span.start, span.start + max(1, share // 20))
                found["mlflow.log_metrics"].extend(microseconds(lambda step: mlflow.log_metrics(VALUES, step=step), few))
    return found


def main() -> None:
    """Print medians, and how many times dearer MLflow's own call is."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    found = measure(steps)
    base = statistics.median(found["journal, tracker up"])
    print(f"{len(VALUES)} scalars per step, microseconds on the training thread")
    for name, taken in found.items():
        median, high = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        print(f"{name:24s} median {median:9.1f}  99th {high:9.1f}  n {len(taken):6d}  ratio {median / base:7.1f}")


if __name__ == "__main__":
    main()
