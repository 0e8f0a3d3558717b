"""`python -m jobs.verify REQUEST`: run each configuration untouched and killed at random moments, and compare bit for bit.

The request is JSON: {"folder", "first": [{"id", "config", "needs"}], "runs": [the same with "kills" and "ranks"], "seed"}.
What comes first (data, features) runs untouched; a run that needs another struck one starts from that one's struck version.
One JSON object per finished run goes to stdout.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import forks
from jobs.compare import differences
from jobs.contract import ExitCode, RunDir, Status, read_outcome
from jobs.forks import end_group, make_run, run_group

log = logging.getLogger("jobs")

PATIENCE = 50
"""Attempts in a row that may end by our own kills before the run is left alone to finish."""
ROUNDS = 12
"""Times a run is made anew because it finished before its last kill; each strikes twice as early as the one before."""


def untouched(run_dir: RunDir, ranks: int) -> float:
    """Run to the end; seconds it took. Raises RuntimeError with the run's own reason."""
    begun = time.monotonic()
    end_group(run_group(run_dir, ranks=ranks, launch=f"verify-{run_dir.id}"))
    outcome = read_outcome(run_dir)
    if outcome is None or outcome.status is not Status.DONE:
        raise RuntimeError(f"the run fails without any kill: {outcome.reason if outcome else 'no outcome'}")
    return time.monotonic() - begun


def killed(run_dir: RunDir, ranks: int, kills: int, whole_s: float, moments: random.Random) -> int:
    """Run the same with `kills` signals at random moments, restarted each time; how many hit a living process."""
    hits = 0
    for number in range(PATIENCE * (kills + 1)):
        pids = run_group(run_dir, ranks=ranks, launch=f"verify-{run_dir.id}-{number}")
        if hits < kills:
            time.sleep(moments.uniform(0.0, max(0.2, 2.0 * whole_s / (kills + 1))))
            how = moments.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2))
            victims = pids if how is not signal.SIGKILL or moments.random() < 0.5 else [moments.choice(pids)]
            hits += _send(victims, how)
        end_group(pids, grace_s=5.0)
        outcome = read_outcome(run_dir)
        if outcome is not None and outcome.status is Status.DONE:
            return hits
    raise RuntimeError("the run does not finish any more")


def _send(pids: Sequence[int], how: signal.Signals) -> int:
    """Signal the processes that still run; 1 if any did."""
    hit = 0
    for pid in pids:
        done = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if done is None:
            os.kill(pid, how)
            hit = 1
    return hit


def verify(folder: Path, one: dict[str, Any], moments: random.Random) -> dict[str, Any]:
    """One configuration: untouched, killed, compared."""
    ranks, kills = int(one["ranks"]), int(one["kills"])
    plain = make_run(folder / "untouched", one["id"], one["config"], one["needs"])
    struck = make_run(folder / "killed", one["id"], one["config"], one["needs"])
    for place in (folder / "untouched", folder / "killed"):
        for need in one["needs"].values():
            link = place / need
            if not link.exists():
                link.symlink_to(folder / need)
    hits, found = 0, list[str]()
    try:
        seconds = untouched(plain, ranks)
        for round_ in range(ROUNDS):
            hits += killed(struck, ranks, kills - hits, seconds / 2**round_, moments)
            found = differences(plain, struck)
            if hits >= kills or found:
                break
            shutil.rmtree(struck.path)
            make_run(folder / "killed", one["id"], one["config"], one["needs"])
    except RuntimeError as error:
        return {"id": one["id"], "error": str(error)}
    return {"id": one["id"], "kills": hits, "seconds": round(seconds, 2), "differences": found}


def main(arguments: Sequence[str]) -> int:
    """Entry point; exit code 0 when everything was compared, equal or not."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    folder, moments = Path(request["folder"]), random.Random(int(request["seed"]))
    forks.warm()
    for one in request["first"]:
        done = forks.wait(forks.start(make_run(folder, one["id"], one["config"], one["needs"])))
        if done.code != 0:
            outcome = read_outcome(RunDir(folder / one["id"]))
            sys.stdout.write(json.dumps({"id": one["id"], "error": outcome.reason if outcome else "no outcome"}) + "\n")
            return ExitCode.FAILED
    for one in request["runs"]:
        sys.stdout.write(json.dumps(verify(folder, one, moments)) + "\n")
        sys.stdout.flush()
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
