# make run    environment, install, the main experiment (ARGS=--quick for a first look)
# make test   lint, types, all tests
# make answer the sceptic's controls, and the verdict on them (goes on where it was interrupted)
PYTHON ?= python3
BIN := .venv/bin
OUT ?= results
ANSWER := learning_rates magnitude_or_direction budget dose_and_timing forward_statistics alignment
# Several processes of one thread each beat one process of several for small networks.
export OMP_NUM_THREADS ?= 1

.PHONY: run test lint answer gallery
run: .venv/installed
	$(BIN)/python experiments/stopgrad_shortcut.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

answer: .venv/installed
	set -e; for script in $(ANSWER); do $(BIN)/python experiments/$$script.py --out $(OUT) $(ARGS); done
	$(BIN)/python experiments/verdict.py --out $(OUT)

gallery: run answer
	$(BIN)/python experiments/short_paths.py
	for figure in stopgrad_shortcut/figures/accuracy_by_depth stopgrad_shortcut/figures/path_lengths \
	    short_paths/figures/short_path_changes dose_and_timing/figures/dose_and_timing_56 verdict/figures/verdict; do \
	    cp results/$$figure.png results/$$figure.csv figures/gallery/ || exit 1; done

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
