"""The counting job: its state is one integer. The whole contract without torch, to rehearse a site or a sweep's scale."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from jobs.attempt import Finished, Run, Superseded
from jobs.contract import write_atomically
from jobs.spec import CountSpec


def next_value(value: int, seed: int, step: int) -> int:
    """The state after `step`: a hash chain, so that a skipped or repeated step shows in every later value."""
    digest = hashlib.blake2b(f"{value}/{seed}/{step}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def count(run: Run) -> Finished:
    """Count to `steps`, journalling each value; final output is `output/value.json`."""
    spec = run.frozen.config
    assert isinstance(spec, CountSpec)
    restored = run.restore_point()
    assert run.journal is not None
    step, value = 0, 0
    if restored is not None:
        state = json.loads((restored.path / "state.json").read_text(encoding="utf-8"))
        step, value = int(state["step"]), int(state["value"])
    last_saved_step, last_saved, last_flush = step, time.monotonic(), time.monotonic()

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({"step": step, "value": value}), encoding="utf-8")

    while True:
        if run.flag:
            if step > last_saved_step:
                run.checkpoint(step, write)
                last_saved_step, last_saved = step, time.monotonic()
            run.leave(step)
        if step >= spec.steps:
            break
        if spec.fail_at is not None and step >= spec.fail_at:
            raise ValueError(f"the configuration asks to fail at step {spec.fail_at}")
        if spec.step_s:
            run.flag.wait(spec.step_s)
        step += 1
        value = next_value(value, spec.seed, step)
        run.journal.metrics(step, {"count/value": float(value % 1_000_003)})
        now = time.monotonic()
        if now - last_flush >= 1.0:
            run.journal.flush()
            last_flush = now
        runtime = spec.runtime
        if step - last_saved_step >= runtime.checkpoint_every_steps or now - last_saved >= runtime.checkpoint_every_s:
            run.checkpoint(step, write)
            last_saved_step, last_saved = step, now
    if step > last_saved_step:
        run.checkpoint(step, write)
    if not run.owns():
        raise Superseded
    run.run_dir.output.mkdir(exist_ok=True)
    result = run.run_dir.output / "value.json"
    write_atomically(result, json.dumps({"step": step, "value": value}) + "\n")
    return Finished(step=step, values={"count/value": float(value % 1_000_003)}, files=(result,))
