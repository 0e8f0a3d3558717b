"""Owns the private Slurm cluster of the tests: plain processes on loopback under one directory, nothing shared.

By hand, for trying things:

    eval "$(python tests/slurm/cluster.py up /tmp/c1)"     # prints `export SLURM_CONF=...`
    squeue; sbatch -p low --wrap 'sleep 60'
    python tests/slurm/cluster.py down /tmp/c1

Partitions, all over the same nodes: `low` (preemptible: PreemptMode and GraceTime as asked), `low_cancel`
(PreemptMode=CANCEL), `low_nograce` (GraceTime=0), `high` (takes the nodes of the others), `short` (as `low`, for jobs of
at most one minute) and `hold` (State=DOWN: queues everything, starts nothing).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.configuration import Options, character_devices, free_ports, slurm_conf

REAPER = Path(__file__).with_name("reaper.py")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
NEEDED_FOR_ACCOUNTING = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])


class PrivateClusterError(RuntimeError):
    """The private cluster did not do what a test needs of it; carries the ends of the logs."""


def missing_programs(accounting: bool = True) -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    wanted = NEEDED + (NEEDED_FOR_ACCOUNTING if accounting else ())
    return [name for name in wanted if shutil.which(name, path=SEARCH) is None]


def _program(name: str) -> str:
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise PrivateClusterError(f"{name} is not installed: apt-get install slurm-wlm slurmdbd mariadb-server")
    return found


def comes_true(fact: Callable[[], object], timeout_s: float, *, pause_s: float) -> bool:
    """Poll until `fact()` is true or `timeout_s` have passed, pausing thrice as long as a look takes: others need the cores."""
    deadline = time.monotonic() + timeout_s
    while not (began := time.monotonic()) > deadline:
        if fact():
            return True
        time.sleep(max(pause_s, 3 * (time.monotonic() - began)))
    return bool(fact())


class SlurmCluster:
    """One cluster. `start` returns when every node is idle; `stop` leaves no process behind."""

    def __init__(self, directory: Path, options: Options | None = None, *, die_with_parent: bool = True) -> None:
        self.directory = directory
        self.options = options or Options()
        self._die_with_parent = die_with_parent
        self._reapers: dict[str, int] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.nodes = [f"n{number}" for number in range(1, self.options.nodes + 1)]
        self.conf = directory / "slurm.conf"

    # --- start and stop -------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The environment for commands that shall talk to this cluster, free of other SLURM_ variables."""
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {"SLURM_CONF": str(self.conf), "PATH": SEARCH}

    def start(self) -> SlurmCluster:
        """Start everything; raises PrivateClusterError with the logs when it does not come up, and then stops it again."""
        missing = missing_programs(self.options.accounting)
        if missing:
            raise PrivateClusterError(f"missing programs: {', '.join(missing)}")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start_munge()
            if self.options.accounting:
                self._start_accounting()
            self._write_configuration()
            self._spawn("slurmctld", [_program("slurmctld"), "-D", "-i", "-f", str(self.conf)])
            for node in self.nodes:
                self._spawn_node(node)
            self.until(self._all_idle, 30, "nodes did not become idle")
        except BaseException:
            self.stop()
            raise
        self._save()
        return self

    def stop(self) -> None:
        """End every process of the cluster; safe to call twice."""
        for signum, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGUSR1, 15.0)):
            for name in sorted(self._reapers, key=lambda name: name in ("mariadb", "slurmdbd", "munged")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._reapers[name], signum)
            deadline = time.monotonic() + patience_s
            while self._living() and time.monotonic() < deadline:
                time.sleep(0.02)
        self._reapers.clear()
        self._children.clear()

    def _living(self) -> list[str]:
        for child in self._children.values():
            child.poll()
        return [name for name, pid in self._reapers.items() if _runs(pid)]

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        flags = ["--die-with-parent"] if self._die_with_parent else []
        with open(self.directory / f"{name}.out", "ab") as output:
            child = subprocess.Popen(
                [sys.executable, str(REAPER), *flags, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
                cwd=self.directory,
                start_new_session=True,
            )
        self._children[name] = child
        self._reapers[name] = child.pid

    def _spawn_node(self, node: str) -> None:
        self._spawn(node, [_program("slurmd"), "-D", "-f", str(self.conf), "-N", node])

    def _start_munge(self) -> None:
        """A munged of our own, with its own key; it signs what the daemons and commands say to each other."""
        here = self.directory / "munge"
        here.mkdir(mode=0o755, exist_ok=True)
        key = here / "key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--{name}-file={here}/{name}" for name in ("key", "log", "pid", "seed")]
        self._spawn("munged", [_program("munged"), "--foreground", "--force", f"--socket={here}/socket", *files])
        self.until(lambda: (here / "socket").exists(), 15, "munged does not listen")

    def _install_database(self, data: Path) -> None:
        """MariaDB's tables; once more when it fails, which was seen to happen on a busy machine."""
        command = [
            *(_program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"),
            *("--skip-name-resolve", "--auth-root-authentication-method=normal", "--user=root"),
        ]
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return
            shutil.rmtree(data, ignore_errors=True)
        raise PrivateClusterError(f"mariadb-install-db failed three times: {done.stdout[-1500:]} {done.stderr[-1500:]}")

    def _start_accounting(self) -> None:
        here = self.directory
        data = here / "mariadb"
        (mysql_port, self._dbd_port) = free_ports(2)
        self._install_database(data)
        self._spawn(
            "mariadb",
            [
                *(_program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--socket={here}/mariadb.sock", "--user=root"),
                *("--bind-address=127.0.0.1", f"--port={mysql_port}", f"--pid-file={here}/mariadb.pid"),
                *("--skip-grant-tables", "--skip-networking=0", "--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"),
                *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-log-file-size=16M"),
            ],
        )
        self.until(lambda: _listens(mysql_port), 30, "MariaDB does not listen")
        conf = here / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={here}/munge/socket\nDbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self._dbd_port}\nSlurmUser=root\n"
            f"LogFile={here}/slurmdbd.log\nPidFile={here}/slurmdbd.pid\nDebugLevel=info\n"
            f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={mysql_port}\n"
            "StorageUser=root\nStorageLoc=slurm_acct\n"
        )
        conf.chmod(0o600)
        self.accounting_up()

    def _write_configuration(self) -> None:
        here, options = self.directory, self.options
        ports = free_ports(1 + options.nodes)
        (here / "state").mkdir(exist_ok=True)
        devices = character_devices(options.nodes * options.gpus)
        per_node = len(devices) // options.nodes
        gres = ["AutoDetect=off"]
        for index, node in enumerate(self.nodes):
            mine = devices[index * per_node : (index + 1) * per_node]
            gres += [f"NodeName={node} Name=gpu File={device}" for device in mine]
        (here / "gres.conf").write_text("\n".join(gres) + "\n")
        self.conf.write_text(slurm_conf(here, options, self.nodes, ports, per_node, getattr(self, "_dbd_port", 0)))
        if options.accounting:
            self.run("sacctmgr", "-i", "add", "cluster", "orchtest", retry_s=15)
            self.run("sacctmgr", "-i", "add", "account", "lab", "Cluster=orchtest")
            self.run("sacctmgr", "-i", "add", "user", _user_name(), "Account=lab", "DefaultAccount=lab")

    def _all_idle(self) -> bool:
        answer = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t", check=False)
        states = dict(line.split() for line in answer.stdout.split("\n") if line)
        return len(states) == len(self.nodes) and all(state == "idle" for state in states.values())

    # --- commands and waiting -------------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, retry_s: float = 0.0) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command against this cluster."""
        deadline = time.monotonic() + retry_s
        while True:
            answer = subprocess.run(
                [_program(command[0]), *command[1:]], capture_output=True, text=True, env=self.env, timeout=60
            )
            if answer.returncode == 0 or not check:
                return answer
            if time.monotonic() >= deadline:
                raise PrivateClusterError(f"{' '.join(command)}: exit {answer.returncode}\n{answer.stderr}{self._logs()}")
            time.sleep(0.2)

    def until(self, fact: Callable[[], object], timeout_s: float, otherwise: str) -> None:
        """Wait until `fact()` is true; raise with `otherwise` and the logs after `timeout_s`."""
        if not comes_true(fact, timeout_s, pause_s=0.05):
            raise PrivateClusterError(f"{otherwise} (waited {timeout_s:.0f} s){self._logs()}")

    def sbatch(self, script: str, *options: str, partition: str = "low") -> str:
        """Submit the shell lines `script`; returns the job id. Output goes to the cluster's directory."""
        defaults = ["--parsable", f"--partition={partition}", f"--output={self.directory}/job-%A_%a.out"]
        text = f"#!/bin/bash\n{script}\n"
        answer = subprocess.run(
            [_program("sbatch"), *defaults, *options], input=text, capture_output=True, text=True, env=self.env, timeout=60
        )
        if answer.returncode != 0:
            raise PrivateClusterError(f"sbatch: exit {answer.returncode}\n{answer.stderr}")
        return answer.stdout.strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """`scontrol show job` as fields; empty when slurmctld no longer knows it."""
        answer = self.run("scontrol", "show", "job", "-o", job, check=False)
        fields = (word.split("=", 1) for word in answer.stdout.split() if "=" in word)
        return {pair[0]: pair[1] for pair in reversed(list(fields))}

    def state(self, job: str) -> str:
        """Slurm's word for the job's state; empty when slurmctld no longer knows it."""
        return self.show(job).get("JobState", "")

    def wait(self, job: str, states: Collection[str], timeout_s: float = 60.0) -> str:
        """Wait until the job is in one of `states` ("" = no longer known); returns the state."""
        seen: list[str] = []

        def arrived() -> bool:
            seen.append(self.state(job))
            return seen[-1] in states

        try:
            self.until(arrived, timeout_s, f"job {job} did not reach {sorted(states)}")
        except PrivateClusterError as failure:
            raise PrivateClusterError(f"{failure}\nlast seen: {seen[-1]!r}: {self.show(job)}") from None
        return seen[-1]

    # --- mischief -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def closed(self, partition: str = "low") -> Iterator[None]:
        """Meanwhile jobs queue there and none starts: a short run would be over before a test has looked at it."""
        self.run("scontrol", "update", f"PartitionName={partition}", "State=DOWN")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"PartitionName={partition}", "State=UP")

    def evict(self, job: str, timeout_s: float = 90.0) -> None:
        """Let a high-priority job take all nodes; returns when the victim has left RUNNING and nothing blocks it."""
        before = self.show(job)
        if before.get("JobState") != "RUNNING":
            raise PrivateClusterError(f"job {job} is {before.get('JobState', 'unknown')}, not RUNNING: nothing to evict")
        taker = self.sbatch("sleep 600", f"--nodes={len(self.nodes)}", "--exclusive", "--job-name=taker", partition="high")
        try:
            self.until(
                lambda: (now := self.show(job)).get("JobState") != "RUNNING" or now.get("Restarts") != before.get("Restarts"),
                timeout_s,
                f"job {job} was not evicted",
            )
        finally:
            self.run("scancel", taker)

    def node_down(self, node: str) -> None:
        """The node loses power: slurmd, step daemons and jobs die at once, and slurmctld is told."""
        pid = self._reapers.pop(node)
        os.kill(pid, signal.SIGUSR1)
        child = self._children.pop(node, None)
        self.until(lambda: (child is not None and child.poll() is not None) or not _runs(pid), 15, f"{node} did not die")
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        self._save()

    def node_up(self, node: str) -> None:
        """The node comes back, empty."""
        self._spawn_node(node)
        port = int(self.conf.read_text().split(f"NodeName={node} ")[1].split(" Port=")[1].split()[0])
        self.until(lambda: _listens(port), 30, f"slurmd of {node} does not listen")
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.until(
            lambda: self.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%t").stdout.strip() in ("idle", "mix", "alloc"),
            60,
            f"{node} did not come back",
        )
        self._save()

    def daemon_restarts(self, node: str) -> None:
        """slurmd of a node is killed and started again at once; its step daemons and their jobs live on."""
        os.kill(self._reapers[node], signal.SIGUSR2)

    def controller_down(self, signum: int = signal.SIGTERM) -> None:
        """Stop slurmctld: every command fails until `controller_up`.

        SIGTERM lets it save its state; SIGUSR1 kills it, and it forgets what it did in the last seconds: submitted jobs
        are gone, cancelled ones are back, and their ids are given out again.
        """
        pid = self._reapers.pop("slurmctld")
        os.kill(pid, signum)
        child = self._children.pop("slurmctld", None)
        self.until(lambda: (child is not None and child.poll() is not None) or not _runs(pid), 15, "slurmctld did not die")

    def controller_up(self) -> None:
        """Start slurmctld again from its saved state."""
        self._spawn("slurmctld", [_program("slurmctld"), "-D", "-f", str(self.conf)])
        self.until(lambda: self.run("scontrol", "ping", check=False).returncode == 0, 30, "slurmctld did not answer")
        self._save()

    def accounting_down(self) -> None:
        """Kill slurmdbd; slurmctld keeps what it would have told it."""
        pid = self._reapers.pop("slurmdbd")
        os.kill(pid, signal.SIGUSR1)
        child = self._children.pop("slurmdbd", None)
        self.until(lambda: (child is not None and child.poll() is not None) or not _runs(pid), 15, "slurmdbd did not die")

    def accounting_up(self) -> None:
        """Start slurmdbd, which finds its configuration beside the one that SLURM_CONF names."""
        self._spawn("slurmdbd", [_program("slurmdbd"), "-D"])
        self.until(lambda: _listens(self._dbd_port), 30, "slurmdbd does not listen")

    def clear(self) -> None:
        """Cancel every job and wait until all nodes are idle again: call between tests."""
        self.run("scancel", "-f", f"--user={_user_name()}", check=False)
        for node in self.nodes:
            if node not in self._reapers:
                self.node_up(node)
        self.until(lambda: not self.run("squeue", "-h", "-o", "%i").stdout.strip(), 60, "jobs did not end")
        self.until(self._all_idle, 60, "nodes did not become idle")

    # --- for the command line -------------------------------------------------------------------------------------

    def _save(self) -> None:
        content = {"options": dataclasses.asdict(self.options), "reapers": self._reapers}
        (self.directory / "cluster.json").write_text(json.dumps(content))

    @classmethod
    def attach(cls, directory: Path) -> SlurmCluster:
        """The cluster that `up` started in this directory."""
        content = json.loads((directory / "cluster.json").read_text())
        cluster = cls(directory, Options(**content["options"]))
        cluster._reapers = {str(name): int(pid) for name, pid in content["reapers"].items() if _is_reaper(int(pid))}
        return cluster

    def _logs(self) -> str:
        parts = []
        for path in sorted(self.directory.glob("*.log")) + sorted(self.directory.glob("*.out")):
            if not path.name.startswith("job-"):
                tail = path.read_text(errors="replace").splitlines()[-15:]
                parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n" + "\n".join(parts)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def _is_reaper(pid: int) -> bool:
    """Whether the pid is still one of ours: a number may have been given to another process since."""
    try:
        return str(REAPER).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def temporary_directory() -> Path:
    """A directory with a short name (sockets allow 107 characters) that job processes can read."""
    return Path(tempfile.mkdtemp(prefix="orch-slurm-"))


def main(arguments: Sequence[str]) -> int:
    """`up DIR [key=value ...]` and `down DIR`."""
    verb, directory = arguments[0], Path(arguments[1]).resolve()
    if verb == "up":
        given = dataclasses.asdict(Options())
        for text in arguments[2:]:
            key, value = text.split("=", 1)
            kind = type(given[key])
            given[key] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
        if (directory / "cluster.json").exists() or (directory / "slurm.conf").exists():
            main(["down", str(directory)])
            shutil.rmtree(directory)
        cluster = SlurmCluster(directory, Options(**given), die_with_parent=False).start()
        sys.stdout.write(f"export SLURM_CONF={cluster.conf}\n")
        return 0
    if verb == "down":
        if (directory / "cluster.json").exists():
            SlurmCluster.attach(directory).stop()
        return 0
    sys.stderr.write("usage: cluster.py up DIR [option=value ...] | down DIR\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
