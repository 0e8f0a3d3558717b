"""Owns what a storm happens to: a private three-node Slurm, one root, a tracking server, and runs that prove their exactness."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs.contract import RunDir, Status, read_outcome
from jobs.journal import Journal, read_journal
from tests.chaos.mischief import SKEW
from tests.chaos.proxy import Proxy
from tests.chaos.weather import Weather
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import free_ports
from tests.slurm.orch import processes_of

ORCH = "from orchestrator.cli.main import main; main()"
STRUCK = """
import importlib, sys
sys.path.append({repository!r})
from tests.chaos.mischief import acting, struck
module, _, name = {function!r}.partition(":")
found = importlib.import_module(module)
for part in name.split("."):
    found = getattr(found, part)
from orchestrator.cli.main import main
with struck(found, {line}, acting("kill")):
    main()
"""
"""`orch` that is killed right before a line."""
REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "storm"
DISABLED = "#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n"
"""sacct of a site without accounting."""
ROOT_BYTES = 192 << 20
"""Of the file system that the runs lie on, which faults fill."""


@dataclass(kw_only=True)
class Scene:
    """One storm's stage. Its files lie below `folder`."""

    cluster: SlurmCluster
    folder: Path
    code: Path
    """The tree whose `orch` is run."""
    weather: Weather
    draw: random.Random
    tracker: Tracker
    mounted: bool = False
    """Whether the root is a small file system of its own."""
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Processes that a fault has started and that may still live."""

    @property
    def root(self) -> Path:
        """Of the runs."""
        return self.folder / "root"

    @property
    def sweep(self) -> Path:
        """The sweep file."""
        return self.folder / f"{NAME}.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """Of `orch`."""
        mine = {"ORCH_ROOT": str(self.root), "MLFLOW_TRACKING_URI": self.tracker.uri, "PYTHONPATH": str(self.code)}
        quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "OMP_NUM_THREADS": "1"}
        found = os.environ | self.cluster.env | mine | quick
        return found if self.weather.accounting else found | {"PATH": f"{self.folder / 'site'}{os.pathsep}{found['PATH']}"}

    @property
    def patient(self) -> dict[str, str]:
        """The same, with MLflow's own timeouts and retries."""
        return {name: value for name, value in self.environment.items() if not name.startswith("MLFLOW_HTTP_")}

    def begin(self) -> None:
        """Make folder, root and sweep file, and the conditions of the weather."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOT_BYTES},mode=700", "tmpfs", str(self.root)]
        self.mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        weather, work = self.weather, self.weather.work
        self.sweep.write_text(
            work.sweep.format(
                step_s=work.step_s,
                steps=work.steps,
                every=work.every,
                seeds=list(range(work.runs)),
                partition=weather.partition,
                minutes=weather.minutes,
            )
        )
        if weather.skew_s:
            (self.root / SKEW).write_text(json.dumps(dict(zip(self.cluster.nodes, weather.skew_s, strict=True))))
        if not weather.accounting:
            (self.folder / "site").mkdir()
            (self.folder / "site" / "sacct").write_text(DISABLED)
            (self.folder / "site" / "sacct").chmod(0o755)

    def orch(
        self, *words: str, path: str = "", wait: bool = True, patient: bool = False, struck: tuple[str, int] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `orch WORDS`; `path` goes before PATH. `patient`: with MLflow's own patience for a slow tracker.

        `struck`: (function, line): it is killed right before that line.
        """
        environment = self.patient if patient else self.environment
        if path:
            environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
        log = open(self.folder / "orch.log", "ab")  # noqa: SIM115  # the child keeps it
        program = ORCH
        if struck is not None:
            program = STRUCK.format(repository=str(REPOSITORY), function=struck[0], line=struck[1])
        command = [sys.executable, "-c", program, *words]
        process = subprocess.Popen(command, env=environment, cwd=self.code, stdout=log, stderr=log)
        log.close()
        if wait:
            process.wait(timeout=300)
        return process

    def run_ids(self) -> list[str]:
        """Runs that were frozen."""
        return sorted(path.name for path in (self.root / "runs").glob("[a-z]*-*"))

    def run_dir(self, run: str) -> RunDir:
        """Of a run."""
        return RunDir(self.root / "runs" / run)

    def journal(self, run: str) -> Journal:
        """Of a run."""
        return read_journal(self.run_dir(run).journals)

    def done(self, run: str) -> bool:
        """Whether its outcome says so."""
        outcome = read_outcome(self.run_dir(run))
        return outcome is not None and outcome.status is Status.DONE

    def jobs(self, states: Sequence[str] = ("RUNNING",)) -> list[str]:
        """Ids of this user's jobs in the queue, array tasks apart."""
        wanted = ("-t", ",".join(states), "-p", self.weather.partition, "-o", "%i")
        answer = self.cluster.run("squeue", "-h", "-r", *wanted, check=False)
        return answer.stdout.split()

    def working(self) -> list[str]:
        """Runs that a process works on now, and that are not done."""
        return [run for run in self.run_ids() if not self.done(run) and processes_of([run])]

    def mend_nodes(self) -> None:
        """What an administrator does with nodes that Slurm has drained by itself, after a launch that failed amid the faults."""
        answer = self.cluster.run("sinfo", "-h", "-N", "-p", "low", "-t", "drain,down", "-o", "%N", check=False)
        for node in sorted(set(answer.stdout.split())):
            self.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    def ghosts(self) -> dict[str, str]:
        """Run -> job that Slurm believes to be running though no process works on it.

        A controller that was killed comes back with what it had saved; when a node has lost power meanwhile, Slurm finds out
        after twenty rounds of pings (here 200 s, at SlurmdTimeout=300 half an hour).
        """
        environment = self.environment
        told = subprocess.run(
            [sys.executable, "-c", ORCH, "status", "--json"],
            env=environment,
            cwd=self.code,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if told.returncode:
            return {}
        running = {one["id"]: one["job"] for one in json.loads(told.stdout) if one["state"] == "running"}
        alive = set(self.jobs())
        return {run: job for run, job in running.items() if job in alive and not processes_of([run])}

    def end_helpers(self) -> None:
        """Wait for what faults have started; who lasts longer than a minute is killed."""
        deadline = time.monotonic() + 60
        for process in self.helpers:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.helpers.clear()

    def clear(self) -> None:
        """End everything of this storm and remove its files."""
        for process in self.helpers:
            process.kill()
            process.wait()
        self.helpers.clear()
        for pid in processes_of(self.run_ids()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.clear()
        unmount(self.root)
        shutil.rmtree(self.folder, ignore_errors=True)


class Tracker:
    """A real MLflow server, which may be killed and started again, behind a proxy with moods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self.proxy = Proxy(self.port)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """For clients: the proxy's."""
        return f"http://127.0.0.1:{self.proxy.port}"

    @property
    def answers(self) -> bool:
        """Whether it is up."""
        return self.process is not None

    def up(self) -> None:
        """Start it, and return when it answers."""
        if self.process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.proxy.mood = "honest"
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        store = [f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db", f"--artifacts-destination={self.folder}/artifacts"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen([*command, *store], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"the tracking server does not listen: {(self.folder / 'server.log').read_text()[-2000:]}")

    def close(self) -> None:
        """End server and proxy."""
        self.down()
        self.proxy.close()

    def down(self) -> None:
        """SIGKILL it with all its workers."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def unmount(root: Path) -> None:
    """Take a root's own file system away, if it has one."""
    if root.is_mount():
        subprocess.run(["umount", "--lazy", str(root)], capture_output=True)


def points(uri: str, metric: str, *, cwd: Path, environment: Mapping[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Run id -> (step, value) of every point of a metric that the tracker holds, as often as it holds it."""
    program = (
        "import json, sys\nfrom mlflow import MlflowClient\n"
        "client = MlflowClient(sys.argv[1])\nfound = {}\n"
        "for run in client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000):\n"
        "    name = run.data.tags.get('orch.run_id')\n"
        "    if name:\n"
        "        history = client.get_metric_history(run.info.run_id, sys.argv[2])\n"
        "        found.setdefault(name, []).extend((point.step, point.value) for point in history)\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, uri, metric], capture_output=True, text=True, env=dict(environment), cwd=cwd, timeout=300
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {run: [(int(step), float(value)) for step, value in found] for run, found in json.loads(done.stdout).items()}
