"""From a batch of runs to one sbatch array: submitit renders and submits; its pickles and its wrapper are not used.

The script's name carries the submission token, its index table says which array index is which run, and every task is
`python -m jobs RUN_DIR` under `srun`, one task per GPU, or a pack of runs on one: `python -m jobs.pack RUN_DIR...`. Golden
scripts in tests/orchestrator/golden show the whole text.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import elastic
from orchestrator.errors import ClusterError, Problem

JOB_PREFIX = "orch-"
"""Job names are `orch-<token>`: sacct's comment comes back empty on many sites, the name does not."""
DROPPED = ("submitit_folder", "max_num_timeout", "stderr_to_stdout", "name", "_target_", "runs_per_gpu", elastic.KEY)
"""Keys that mean something to hydra-submitit-launcher alone, or to us alone."""
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SLURM_CONF")
"""What sbatch (and so the job) inherits: nothing of an enclosing job, and no secrets."""
_PACK = 'jobs.pack "${RUN_DIRS[@]}"'
SBATCH_TIMEOUT_S = 120.0
_LOST_ANSWER = re.compile(r"timed out|zero bytes|unexpected message|communication|transport", re.IGNORECASE)
"""Words of sbatch that leave open whether the controller has taken the job."""


class AnswerLost(ClusterError):
    """Whether the job exists is unknown: its intent stays, and a later pass finds the job by its name, or withdraws it."""


def _answer_lost(why: str, path: Path) -> AnswerLost:
    return AnswerLost(
        Problem(
            what=f"whether Slurm took the submission is unknown: {why}",
            where=str(path),
            hint="do not submit again yet: `orch status` finds its jobs by their name, or plans the runs again after a while",
        )
    )


@dataclass(frozen=True, kw_only=True)
class ArrayRequest:
    """One sbatch call, before it is made; renders itself without I/O."""

    token: str
    folder: Path
    """ROOT/slurm/TOKEN."""
    tasks: int
    runs_per_task: int = 1
    """Above 1, a task is a pack: `python -m jobs.pack` with so many run directories (the last task: with those that are left)."""
    resources: Mapping[str, Any]
    """Values of the launcher's schema."""
    dependency: str = ""
    python: str = sys.executable

    @property
    def index_table(self) -> Path:
        """One run directory per line; the line number, divided by `runs_per_task`, is the array index."""
        return self.folder / "index"

    @property
    def _is_elastic(self) -> bool:
        return bool(elastic.world_sizes(self.resources))

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments for submitit's executor."""
        chosen = {key: value for key, value in self.resources.items() if key not in DROPPED and value is not None}
        chosen["tasks_per_node"] = elastic.tasks_per_node(self.resources)
        delay = int(chosen.get("signal_delay_s", 120))
        log = "batch.log"  # below chdir: Slurm would expand a `%` in an absolute path
        extra = {"chdir": str(self.folder), "requeue": True, "kill-on-invalid-dep": "yes", "output": log, "error": log}
        if self._is_elastic:
            del chosen["tasks_per_node"]
            extra |= elastic.sbatch_options(self.resources)
        chosen["additional_parameters"] = extra | dict(chosen.get("additional_parameters", {}))
        chosen["additional_parameters"]["export"] = "ALL"
        chosen["signal_delay_s"] = delay
        chosen["setup"] = [*self._setup(delay), *chosen.get("setup", [])]
        chosen["array_parallelism"] = int(chosen.get("array_parallelism") or self.tasks)
        if self.dependency:
            chosen["dependency"] = self.dependency
        chosen.setdefault("wckey", None)  # submitit's own would be refused where keys are tracked
        return chosen | {"job_name": f"{JOB_PREFIX}{self.token}", "use_srun": False, "stderr_to_stdout": True}

    def _setup(self, signal_delay_s: int) -> list[str]:
        index, each = shlex.quote(str(self.index_table)), self.runs_per_task
        if each == 1:
            code = "$RUN_DIR/code"
            found = [f'RUN_DIR="$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {index})"', 'cd "$RUN_DIR" || exit 2']
        else:
            code = "${RUN_DIRS[0]}/code"
            found = [
                f'mapfile -t -s "$((SLURM_ARRAY_TASK_ID * {each}))" -n {each} RUN_DIRS < {index}',
                '[ "${#RUN_DIRS[@]}" -gt 0 ] || exit 2',
            ]
        return [
            *found,
            f"export ORCH_TOKEN={shlex.quote(self.token)} ORCH_SIGNAL_DELAY_S={signal_delay_s}",
            f'export PYTHONSAFEPATH=1 PYTHONPATH="{code}" PYTHONUNBUFFERED=1',
            "export CUBLAS_WORKSPACE_CONFIG=:4096:8",
            # srun does not take it over from sbatch since Slurm 22.05
            *([f"export SRUN_CPUS_PER_TASK={int(cpus)}"] if (cpus := self.resources.get("cpus_per_task")) else []),
            *([elastic.choice(self.resources)] if self._is_elastic else []),
        ]

    def command(self) -> str:
        """The script's last line. The notice signals are blocked before Python's first instruction."""
        log, task = ("logs/%A_%a.%t.log", 'jobs "$RUN_DIR"') if self.runs_per_task == 1 else ("%A_%a.log", _PACK)
        return (
            f"exec srun {elastic.srun_options(self.resources)}--unbuffered --kill-on-bad-exit=1 --open-mode=append "
            f'--output="{log}" --error="{log}" '
            f"env --block-signal=USR2 --block-signal=TERM {shlex.quote(self.python)} -m {task}"
        )

    def script(self) -> str:
        """The whole sbatch script."""
        return str(_executor(self)._make_submission_file_text(self.command(), self.token))


def _executor(request: ArrayRequest) -> Any:
    """A SlurmExecutor that renders our command as an array; imported late to keep `orch status` light."""
    from submitit.slurm.slurm import SlurmExecutor

    class OrchExecutor(SlurmExecutor):
        """submitit's renderer, without pickles or the in-job wrapper."""

        @classmethod
        def affinity(cls) -> int:
            return 2  # rendering needs no srun; submitting reports a missing sbatch by itself

    executor = OrchExecutor(folder=request.folder)
    parameters = request.parameters()
    _refuse_line_breaks({key: value for key, value in parameters.items() if key != "setup"})
    try:
        executor.update_parameters(**executor._convert_parameters(parameters))
    except (ValueError, TypeError) as error:
        raise ClusterError(Problem(what=f"submitit does not take these resources: {error}", where="resources")) from error
    executor.parameters["map_count"] = request.tasks
    return executor


def _refuse_line_breaks(parameters: Mapping[str, Any]) -> None:
    """Raise ClusterError for a value that would leave its header line and become a command of the script."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            _refuse_line_breaks(value)
        elif len(f"{key}{value}".splitlines()) > 1:
            raise ClusterError(Problem(what="a line break in a setting of the script", where=f"resources.{key}"))


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: an allow-list, so that no SLURM_ variable of an enclosing job and no secret leaks."""
    return {name: environ[name] for name in KEPT_VARIABLES if name in environ}


def write_index(request: ArrayRequest, run_dirs: Sequence[Path]) -> None:
    """Write the index table and the script: part of the intent, on disk before sbatch is called."""
    request.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    request.folder.mkdir(mode=request.folder.parent.stat().st_mode & 0o770, exist_ok=True)  # private, or the team's
    for run_dir in run_dirs:
        if "\n" in str(run_dir):
            raise ValueError(f"a newline in a run directory's path: {run_dir!r}")
    request.index_table.write_text("".join(f"{run_dir}\n" for run_dir in run_dirs), encoding="utf-8")
    (request.folder / "submission.sh").write_text(request.script(), encoding="utf-8")


def sbatch(request: ArrayRequest) -> str:
    """Submit a request's script, as `submit_script`; the array's job id."""
    return submit_script(request.folder / "submission.sh")


def submit_script(path: Path) -> str:
    """Submit a script from its folder; the job id.

    Raises AnswerLost when it did not say whether it took the job, ClusterError with its own words when it refused.
    """
    from submitit.core.utils import FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    try:
        done = subprocess.run(
            ["sbatch", str(path)],
            capture_output=True,
            text=True,
            timeout=SBATCH_TIMEOUT_S,
            env=clean_environment(os.environ),
            cwd=path.parent,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            Problem(what="`sbatch` is not on the PATH", hint="submit from a login node, or run here with `--local`")
        ) from error
    except subprocess.TimeoutExpired as error:
        raise _answer_lost(f"`sbatch` did not answer within {SBATCH_TIMEOUT_S:.0f} s", path) from error
    said = (done.stderr or done.stdout).strip()
    if done.returncode < 0 or (done.returncode > 0 and _LOST_ANSWER.search(said)):
        raise _answer_lost(said or f"`sbatch` was killed by signal {-done.returncode}", path)
    if done.returncode != 0:
        raise ClusterError(
            Problem(
                what=f"sbatch refused: {said}",
                where=str(path),
                hint="compare `resources:` of the sweep with `orch doctor`",
            )
        )
    try:
        return str(SlurmExecutor._get_job_id_from_submission_command(done.stdout))
    except FailedSubmissionError as error:
        raise _answer_lost(f"`sbatch` printed no job id: {said[:200]!r}", path) from error
