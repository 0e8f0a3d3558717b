# `make demo` and `make test` do all the set-up that they need on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check chaos fuzz bench lock clean

setup: .venv/.complete

.venv/.complete: requirements.lock pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	env -u MLFLOW_TRACKING_URI $(BIN)/orch --root demo submit sweeps/demo.yaml --local
	env -u MLFLOW_TRACKING_URI $(BIN)/orch --root demo table demo --pictures demo/masks.png
	@echo
	@echo "curves, configurations and pictures of every run:"
	@echo "  $(BIN)/mlflow ui --backend-store-uri 'sqlite:///$(CURDIR)/demo/mlflow.db'"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/slurm --durations=10
	$(BIN)/python tests/with_slurm.py $(BIN)/python -m pytest -n 2 --dist loadfile tests/slurm --durations=10

# Faults on a private Slurm of three nodes, INJECTIONS of them from SEED (some 20 s per ten); needs what the tests on Slurm need
INJECTIONS ?= 300
SEED ?= 1
chaos: setup
	$(BIN)/python tests/with_slurm.py $(BIN)/python tests/chaos/campaign.py --injections $(INJECTIONS) --seed $(SEED)

# Damaged and hostile input for everything that is read, for FUZZ_MINUTES from FUZZ_SEED
FUZZ_MINUTES ?= 5
FUZZ_SEED ?= 0
fuzz: setup
	$(BIN)/python -m tests.fuzz.campaign $(FUZZ_MINUTES) --seed $(FUZZ_SEED)

bench: setup
	$(BIN)/python tests/bench/bench_models.py
	$(BIN)/python tests/bench/bench_logging.py
	$(BIN)/python tests/bench/bench_checkpoint.py
	$(BIN)/python tests/bench/bench_dinosaur.py
	$(BIN)/python tests/bench/bench_features.py
	$(BIN)/python tests/bench/bench_online.py
	$(BIN)/python tests/bench/bench_scores.py
	$(BIN)/python tests/bench/bench_language.py
	$(BIN)/python tests/bench/bench_video.py
	$(BIN)/python tests/bench/bench_parts.py

lock:
	$(BIN)/uv pip compile pyproject.toml --extra test --python-version 3.11 --no-emit-index-url --no-header --quiet -o requirements.lock

clean:
	rm -rf .venv demo runs
