"""The embedded store: made once, whole or not at all."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

from orchestrator.tracking.address import shown
from orchestrator.tracking.mlflow_store import default_uri, initialise, initialised, sqlite_path


def test_that_initialising_again_changes_nothing(root, uri):
    before = (root / "mlflow.db").read_bytes()
    initialise(uri, root)
    assert (root / "mlflow.db").read_bytes() == before


def test_that_a_store_whose_building_died_is_not_taken_for_whole(tmp_path):
    uri = default_uri(tmp_path)
    assert not initialised(uri)
    (tmp_path / "mlflow.db").touch()
    assert not initialised(uri)


def test_that_a_death_while_the_store_is_built_leaves_nothing_that_looks_like_one(tmp_path, empty_store):
    code = (
        "import os, sys; from pathlib import Path; from orchestrator.tracking import mlflow_store as store\n"
        "def die(uri, root): store.sqlite_path(uri).write_bytes(b'half'); os._exit(9)\n"
        "store.MlflowTracker = die; store.initialise(store.default_uri(Path(sys.argv[1])), Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert not (tmp_path / "mlflow.db").exists()
    initialise(default_uri(tmp_path), tmp_path)
    assert initialised(default_uri(tmp_path))


def test_that_a_store_made_by_another_process_meanwhile_is_not_replaced(tmp_path, empty_store, monkeypatch):
    uri, looked = default_uri(tmp_path), threading.Event()

    def look(tracking_uri):
        found = initialised(tracking_uri)
        looked.set()
        return found

    monkeypatch.setattr("orchestrator.tracking.mlflow_store.initialised", look)
    with open(tmp_path / ".mlflow.db.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other process is building
        second = threading.Thread(target=initialise, args=(uri, tmp_path))
        second.start()
        looked.wait()
        shutil.copy(empty_store, tmp_path / "mlflow.db")
        made = (tmp_path / "mlflow.db").stat().st_ino
    second.join()
    assert (tmp_path / "mlflow.db").stat().st_ino == made


def test_that_processes_racing_for_a_fresh_store_all_get_a_whole_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from orchestrator.tracking.mlflow_store import *;"
        "root = Path(sys.argv[1]); initialise(default_uri(root), root); assert initialised(default_uri(root))"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert outputs == [(b"", b"")] * 2  # and MLflow is silent
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM experiments WHERE name = 'orch'").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        place = connection.execute("SELECT artifact_location FROM experiments WHERE name = 'orch'").fetchone()[0]
    assert place == str(tmp_path / "mlartifacts")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_that_a_server_needs_no_store(tmp_path):
    initialise("http://127.0.0.1:1", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert sqlite_path("http://127.0.0.1:1") is None


def test_that_passwords_are_not_shown():
    assert shown("https://user:secret@tracker:5000/x") == "https://tracker:5000/x"


def test_that_neither_records_nor_tables_import_mlflow():
    code = (
        "import sys, orchestrator.tracking.record, orchestrator.tracking.shipper, orchestrator.tracking.cursors,"
        "orchestrator.tables.assemble, orchestrator.tables.render;"
        "print([name for name in ('mlflow', 'torch', 'pydantic', 'sqlalchemy') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
