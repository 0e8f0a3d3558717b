"""The embedded store: made once, whole or not at all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

from orchestrator.tracking.mlflow_store import default_uri, initialise, initialised, shown, sqlite_path


def test_that_initialising_again_changes_nothing(root, uri):
    before = (root / "mlflow.db").read_bytes()
    initialise(uri, root)
    assert (root / "mlflow.db").read_bytes() == before


def test_that_a_store_whose_building_died_is_not_taken_for_whole(tmp_path):
    uri = default_uri(tmp_path)
    assert not initialised(uri)
    (tmp_path / "mlflow.db").touch()
    assert not initialised(uri)


def test_that_processes_racing_for_a_fresh_store_all_get_a_whole_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from orchestrator.tracking.mlflow_store import *;"
        "root = Path(sys.argv[1]); initialise(default_uri(root), root); assert initialised(default_uri(root))"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    assert outputs == [(b"", b"")] * 3  # and MLflow is silent
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
