# make run    environment, install, the main experiment (ARGS=--quick for a first look)
# make test   lint, types, all tests
PYTHON ?= python3
BIN := .venv/bin
# Several processes of one thread each beat one process of several for small networks.
export OMP_NUM_THREADS ?= 1

.PHONY: run test lint gallery
run: .venv/installed
	$(BIN)/python experiments/stopgrad_shortcut.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

gallery: run
	$(BIN)/python experiments/short_paths.py
	cp results/stopgrad_shortcut/figures/accuracy_by_depth.png results/stopgrad_shortcut/figures/accuracy_by_depth.csv \
	   results/stopgrad_shortcut/figures/path_lengths.png results/stopgrad_shortcut/figures/path_lengths.csv \
	   results/short_paths/figures/short_path_changes.png results/short_paths/figures/short_path_changes.csv figures/gallery/

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
