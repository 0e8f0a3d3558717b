"""Keeps torch on one thread (a fork of a process with a thread pool hangs), and makes `running` importable by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from jobs import prepare as job

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))

from running import make_data  # noqa: E402  # the path first


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished `prepare` run, `data`: 22 training and 6 test images of 16 x 16 pixels."""
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return root


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` in chunks of five."""
    monkeypatch.setattr(job, "CHUNK_RECORDS", 5)
    monkeypatch.setattr(job, "CHUNK_IMAGES", 5)
