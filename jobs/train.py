"""Train one slot model. Never imports the tracker.

Also an ad-hoc Hydra entry point (`python -m jobs.train --multirun hydra/launcher=slurm ...`): see jobs/adhoc.py.
"""

from __future__ import annotations

import resource

import torch

from jobs import ranks
from jobs.attempt import Finished, Run, Superseded
from jobs.distributed import join
from jobs.inputs import open_store
from jobs.loop import Training
from jobs.spec import TrainSpec
from jobs.state import WEIGHTS, build_state, save_weights
from jobs.watchdog import Watchdog


def peak_memory_mib(device: torch.device) -> float:
    """Largest amount of memory that this process has used: allocated on the device, or resident on the CPU; in MiB."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(run: Run) -> Finished:
    """Train to the configured step; output is `output/model.pt`."""
    spec = run.frozen.config
    assert isinstance(spec, TrainSpec)
    group = join(run, precision=spec.precision, timeout_s=spec.runtime.hang_timeout_s)
    if run.is_main:
        ranks.withdraw(run.run_dir, run.ranks)  # everybody is here
    store = open_store(run)
    training = Training(
        run=run,
        spec=spec,
        group=group,
        store=store,
        state=build_state(spec, group.device),
        watchdog=Watchdog(timeout_s=spec.runtime.hang_timeout_s, on_hang=run.end_hung).start(),
    )
    try:
        training.restore()
        training.steps()
        training.saver.save(whole=True)
        weights = run.run_dir.output / WEIGHTS
        if run.is_main:
            if not run.owns():
                raise Superseded
            save_weights(training.state.model, weights)
        group.tell("done")  # nobody leaves while another rank still needs it
        group.close()  # not after an exception: peers may sit in a collective, and the reason must be written first
    finally:
        training.saver.close()
        training.watchdog.stop()
    values = {"train/peak_memory_mib": peak_memory_mib(group.device)}
    return Finished(step=training.state.step, values=values, files=(weights,))


if __name__ == "__main__":
    from jobs.adhoc import main

    main()
