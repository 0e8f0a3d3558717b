"""Owns the fixtures of the private Slurm cluster: one per test session, started when the first test asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateClusterError, SlurmCluster, missing_programs, temporary_directory
from tests.slurm.configuration import Options
from tests.slurm.orch import Orch


def require_slurm() -> None:
    """Skip when ORCH_SKIP_SLURM=1; otherwise a machine without Slurm fails the test."""
    if os.environ.get("ORCH_SKIP_SLURM") == "1":
        pytest.skip("ORCH_SKIP_SLURM=1")
    missing = missing_programs()
    if missing:
        pytest.fail(
            f"the tests on a real Slurm need {', '.join(missing)}: apt-get install slurm-wlm slurmdbd mariadb-server "
            "(or set ORCH_SKIP_SLURM=1 to go without them)",
            pytrace=False,
        )


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """For tests that need Slurm's programs."""
    require_slurm()


@pytest.fixture(scope="session")
def slurm_cluster_factory(slurm_programs: None) -> Iterator[Callable[[Options], SlurmCluster]]:
    """Starts further clusters with other options; all end with the session, also after a failure."""
    started: list[SlurmCluster] = []

    def start(options: Options) -> SlurmCluster:
        cluster = SlurmCluster(temporary_directory(), options)
        started.append(cluster)
        return cluster.start()

    try:
        yield start
    finally:
        for cluster in reversed(started):
            cluster.stop()
            if os.environ.get("ORCH_KEEP_SLURM") != "1":
                shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def session_cluster(slurm_cluster_factory: Callable[[Options], SlurmCluster]) -> SlurmCluster:
    """The one cluster that most tests share."""
    return slurm_cluster_factory(Options())


@pytest.fixture
def slurm_cluster(session_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The shared cluster, empty and with every node up before and after the test."""
    session_cluster.clear()
    yield session_cluster
    try:
        session_cluster.clear()
    except PrivateClusterError as failure:
        pytest.fail(str(failure), pytrace=False)


@pytest.fixture(scope="session")
def tracker_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised embedded store: making one takes `orch submit` seconds, in which a short run would be over."""
    from orchestrator.tracking.mlflow_store import default_uri, initialise

    folder = tmp_path_factory.mktemp("tracker")
    initialise(default_uri(folder), folder)
    return folder / "mlflow.db"


@pytest.fixture
def make_orch(tracker_store: Path) -> Callable[[SlurmCluster, Path], Orch]:
    """The command on a fresh root of a cluster."""

    def make(cluster: SlurmCluster, root: Path) -> Orch:
        root.mkdir(mode=0o700)
        shutil.copyfile(tracker_store, root / "mlflow.db")
        return Orch(cluster=cluster, root=root)

    return make
