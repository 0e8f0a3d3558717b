"""The one place that talks to MLflow: connecting, creating the embedded store, and `Tracker` over MlflowClient.

mlflow is imported when a connection is made, not before: it takes seconds, and most commands never need it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import Problem, TrackerError
from orchestrator.tracking.address import shown
from orchestrator.tracking.points import Point
from orchestrator.tracking.tracker import RejectedError, TrackedRun, TrackerStatus

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPERIMENT = "orch"
PAGE = 200
_SQLITE = "sqlite:///"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_REFUSALS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
)


def default_uri(root: Path) -> str:
    """The embedded store of a root: one SQLite file."""
    return f"{_SQLITE}{root.resolve() / 'mlflow.db'}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of an embedded store, or None for a server."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


@contextmanager
def _environment(timeout_s: int) -> Iterator[None]:
    """MLflow's settings for our calls. No retries: a repeated create could make a second run; the next shipping repeats.

    MLFLOW_HTTP_REQUEST_TIMEOUT is honoured when the user has set it.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **_QUIET}
    if "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ:
        wanted["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_s)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _calling(tracking_uri: str, timeout_s: int) -> Iterator[None]:
    """Turn what MLflow and its transports raise into TrackerError or RejectedError."""
    with _environment(timeout_s):
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code in _REFUSALS:
                raise RejectedError(_first_line(error)) from error
            raise _unreachable(tracking_uri, error) from error
        except (requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            raise _unreachable(tracking_uri, error) from error


def _first_line(error: Exception) -> str:
    return (shown(str(error)).strip().splitlines() or [type(error).__name__])[0]


def _unreachable(tracking_uri: str, error: Exception) -> TrackerError:
    if "out-of-date database schema" in str(error):
        hint = f"`mlflow db upgrade {shown(tracking_uri)}` brings an older store to this MLflow"
    elif sqlite_path(tracking_uri):
        hint = "is the file readable and writable, and its disk not full? Nothing is lost: the journals hold every point"
    else:
        hint = "is the server up, and MLFLOW_TRACKING_URI right? Nothing is lost: the journals hold every point"
    what = f"the tracker does not work: {_first_line(error)}"
    return TrackerError(Problem(what=what, where=shown(tracking_uri), hint=hint))


def initialised(tracking_uri: str) -> bool:
    """Whether an embedded store is there and whole; needs no mlflow. True for a server, which looks after itself."""
    path = sqlite_path(tracking_uri)
    if path is None:
        return True
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as connection:
            return connection.execute("SELECT 1 FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone() is not None
    except sqlite3.Error:
        return False


def initialise(tracking_uri: str, root: Path) -> None:
    """Create the embedded store once; does nothing when it is there, or when the tracker is a server.

    The schema takes seconds to build and MLflow's own first touch breaks when several processes do it at once, so it is
    built in a file beside, under a lock, and renamed when whole. Raises TrackerError.
    """
    path = sqlite_path(tracking_uri)
    if path is None or initialised(tracking_uri):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if initialised(tracking_uri):
                return
            if path.exists():  # somebody's own store: only our experiment is missing
                MlflowTracker(tracking_uri, root)
                return
            building = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            building.touch()  # SQLite itself would not let a team's group write
            try:
                MlflowTracker(f"{_SQLITE}{building}", root).dispose()
                os.replace(building, path)
            finally:
                building.unlink(missing_ok=True)
    except OSError as error:
        raise _unreachable(tracking_uri, error) from error


class MlflowTracker:
    """`Tracker` over one MLflow store or server.

    With a root it may write: it makes the experiment, and embedded stores keep artifacts in ROOT/mlartifacts. Without one
    it only reads.
    """

    def __init__(self, tracking_uri: str, root: Path | None, *, timeout_s: int = 10) -> None:
        self.tracking_uri = tracking_uri
        self._timeout_s = timeout_s
        with _environment(timeout_s):
            # Settings must be there before the import: it configures logging and telemetry.
            from mlflow.tracking import MlflowClient
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with self._calls():
            self._client: MlflowClient = MlflowClient(tracking_uri=tracking_uri)
        found = self._find_experiment()
        self._experiments: list[str] = [] if found is None else [found]
        if root is not None and not self._experiments:
            artifacts = str(root.resolve() / "mlartifacts") if sqlite_path(tracking_uri) else None
            self._experiments = [self._create_experiment(artifacts)]

    def _calls(self) -> AbstractContextManager[None]:
        return _calling(self.tracking_uri, self._timeout_s)

    def _find_experiment(self) -> str | None:
        with self._calls():
            found = self._client.get_experiment_by_name(EXPERIMENT)
        return None if found is None else str(found.experiment_id)

    def _create_experiment(self, artifacts: str | None) -> str:
        try:
            with self._calls():
                return str(self._client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        except RejectedError as error:  # somebody was faster
            found = self._find_experiment()
            if found is None:
                raise _unreachable(self.tracking_uri, error) from error
            return found

    def dispose(self) -> None:
        """Close the connections to an embedded store's file."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        engine = SqlAlchemyStore._engine_map.pop(self.tracking_uri, None)
        if engine is not None:
            engine.dispose()

    def get(self, tracker_run: str) -> TrackedRun | None:
        try:
            with self._calls():
                run = self._client.get_run(tracker_run)
        except RejectedError:
            return None
        return _tracked(run) if run.info.lifecycle_stage == "active" else None

    def find(self, tag: str, value: str) -> TrackedRun | None:
        quote = '"' if "'" in value else "'"
        with self._calls():
            page = self._client.search_runs(
                self._experiments,
                filter_string=f"tags.`{tag}` = {quote}{value}{quote}",
                max_results=1,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            )
        return _tracked(page[0]) if page else None

    def search(self, condition: str) -> Iterator[TrackedRun]:
        token: str | None = None
        while self._experiments:
            with self._calls():
                page = self._client.search_runs(
                    self._experiments,
                    filter_string=condition,
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                    page_token=token,
                )
            yield from map(_tracked, page)
            token = page.token
            if not token:
                return

    def create(self, name: str, *, started_ms: int, tags: Mapping[str, str]) -> TrackedRun:
        with self._calls():
            return _tracked(self._client.create_run(self._experiments[0], start_time=started_ms, tags=dict(tags), run_name=name))

    def log(
        self,
        tracker_run: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        with self._calls():
            self._client.log_batch(
                tracker_run,
                metrics=[Metric(point.name, point.value, point.time_ms, point.step) for point in points],
                params=[Param(key, value) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
                synchronous=True,
            )

    def steps_of(self, tracker_run: str, name: str) -> frozenset[int]:
        with self._calls():
            return frozenset(int(point.step) for point in self._client.get_metric_history(tracker_run, name))

    def history(self, tracker_run: str, name: str) -> tuple[tuple[int, float], ...]:
        with self._calls():
            points = self._client.get_metric_history(tracker_run, name)
        found = {int(point.step): float(point.value) for point in sorted(points, key=lambda point: point.timestamp)}
        return tuple(sorted(found.items()))

    def set_status(self, tracker_run: str, status: TrackerStatus, *, ended_ms: int | None) -> None:
        with self._calls():
            if ended_ms is None:
                self._client.update_run(tracker_run, status=status.value)
            else:
                self._client.set_terminated(tracker_run, status=status.value, end_time=ended_ms)

    def artifacts(self, tracker_run: str) -> dict[str, int]:
        found: dict[str, int] = {}
        folders: list[str | None] = [None]
        while folders:
            with self._calls():
                listing = self._client.list_artifacts(tracker_run, folders.pop())
            folders.extend(one.path for one in listing if one.is_dir)
            found.update({one.path: int(one.file_size or 0) for one in listing if not one.is_dir})
        return found

    def upload(self, tracker_run: str, file: Path, *, folder: str = "") -> None:
        with self._calls():
            self._client.log_artifact(tracker_run, str(file), folder or None)

    def upload_text(self, tracker_run: str, text: str, *, path: str) -> None:
        with self._calls():
            self._client.log_text(tracker_run, text, path)

    def download_text(self, tracker_run: str, path: str) -> str:
        with self._calls(), tempfile.TemporaryDirectory(prefix="orch-") as place:
            return Path(self._client.download_artifacts(tracker_run, path, place)).read_text(encoding="utf-8")


def _tracked(run: Run) -> TrackedRun:
    return TrackedRun(
        id=run.info.run_id,
        status=TrackerStatus(run.info.status),
        ended_ms=run.info.end_time,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        latest={metric.key: int(metric.step) for metric in run.data.to_proto().metrics},
    )
