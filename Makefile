# Everything that a contributor or a continuous-integration job runs. Each target sets up .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: benchmark test test-slow lint check baseline bench clean

## Run the default experiment on embedded data and print its leaderboard.
benchmark: $(INSTALLED)
	$(BIN)/keyhole run

## Lint, type-check and test.
test: lint
	$(PYTEST) -n auto -m "not slow and not real_data"

## The longer checks; those on real data run where KEYHOLE_DATA_DIR is set.
test-slow: $(INSTALLED)
	$(PYTEST) -m "slow or real_data"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## The regression gate: run the ci experiment and compare it with the accepted figures.
check: $(INSTALLED)
	mkdir -p runs
	install -m 600 baselines/ci/root runs/ci.root
	$(BIN)/keyhole run ci --secret-root runs/ci.root --fresh
	$(BIN)/keyhole check runs/ci --baseline baselines/ci --summary runs/ci/gate.md

## Accept the latest `make check` run as the new baseline: make baseline REASON="why".
baseline: $(INSTALLED)
	$(BIN)/keyhole baseline accept runs/ci baselines/ci --reason "$(REASON)"

## Speed of the hot paths, compared with the saved run where there is one.
bench: $(INSTALLED)
	$(PYTEST) tests/benchmarks/bench_*.py -p no:xdist --benchmark-autosave --benchmark-compare --benchmark-columns=min,median,ops

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[development]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
