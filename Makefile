# make run         environment, install, the main experiment (ARGS=--quick for a first look)
# make test        lint, types, all tests but the slow ones
# make test-slow   the slow ones
# make fuzz        random residual programs (PROGRAMS=20000, 0.1 s each), and counts of what was in them
# make test-floors the fast tests on the oldest Python and the oldest releases that pyproject.toml allows
# make docs        the documentation, to docs/_build/html
# make notebooks   docs/notebooks/ executed anew, with what they show
# make answer      the answer's grid (resumes where it was interrupted); CIFAR10=DIR adds CIFAR-10 from a folder of images
# make answer-more the same question in other settings
# make costs       the tables of what measurements cost, and of the same by other libraries (a quiet machine, half an hour)
# make gpu         on a machine with a GPU: its tests, step times, and the answer's grid on all of CIFAR-10 (CIFAR10=DIR), in half an hour
PYTHON ?= python3
OLDEST ?= 3.11
BIN := .venv/bin
OUT ?= results
PYTEST := -m pytest -n 2 --dist worksteal
CIFAR10 ?=
PROGRAMS ?= 20000
# Several processes of one thread each beat one process of several for small networks.
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-slow fuzz test-floors lint docs notebooks answer answer-more gallery costs gpu
run: .venv/with-experiments
	$(BIN)/python experiments/stopgrad_shortcut.py $(ARGS)

test: lint
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/with-test
	$(BIN)/python $(PYTEST) -m slow $(ARGS)

fuzz: .venv/with-test
	$(BIN)/python -m tests.probes.test_random_programs --programs $(PROGRAMS) $(ARGS)

# Old releases warn of each other, which is no failure here.
test-floors: .venv-floors/installed
	$(BIN)/uv pip freeze --python .venv-floors --exclude-editable
	.venv-floors/bin/python --version
	.venv-floors/bin/python $(PYTEST) -m "not slow" -W default $(ARGS)

lint: .venv/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/with-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

notebooks: .venv/with-test
	$(BIN)/python -m pytest --overwrite docs/notebooks
	$(BIN)/python tests/docs/test_notebooks.py  # leaves out when each cell ran

answer: .venv/with-experiments
	$(BIN)/python experiments/answer.py --out $(OUT) $(if $(CIFAR10),--cifar10 $(CIFAR10)) $(ARGS)

answer-more: .venv/with-experiments
	$(BIN)/python experiments/robustness.py --out $(OUT) $(ARGS)

gallery: run answer
	$(BIN)/python experiments/short_paths.py
	$(BIN)/python experiments/dose_and_timing.py
	$(BIN)/python experiments/explanations.py
	for figure in stopgrad_shortcut/figures/accuracy_by_depth stopgrad_shortcut/figures/path_lengths \
	    short_paths/figures/short_path_changes dose_and_timing/figures/dose_and_timing_56 answer/figures/answer \
	    explanations/figures/explanations; do \
	    cp results/$$figure.png results/$$figure.csv figures/gallery/ || exit 1; done

costs: .venv/with-experiments
	$(BIN)/python benchmarks/measurements.py --to docs/tables/costs_measurements.csv
	$(BIN)/python benchmarks/peers.py --to docs/tables

# Each part ends by itself, and leaves what it has found; what the next ones do does not hang on it.
gpu: .venv/with-test
	$(if $(CIFAR10),,$(error make gpu: give CIFAR10=DIR, a folder of CIFAR-10's images (train/CLASS/* beside test/CLASS/*)))
	mkdir -p $(OUT)/gpu
	-timeout 300 $(BIN)/python -m pytest tests/gpu 2>&1 | tee $(OUT)/gpu/tests.txt
	-timeout 120 $(BIN)/python benchmarks/training_step.py --device cuda --networks 'cifar_resnet(56), 32 x 32' 2>&1 | tee $(OUT)/gpu/small_steps.txt
	-timeout 180 $(BIN)/python benchmarks/training_step.py --device cuda --autocast --channels-last --compile \
	    --networks 'imagenet_resnet(50), 224 x 224' 2>&1 | tee $(OUT)/gpu/large_steps.txt
	-timeout 900 $(BIN)/python experiments/answer.py --parts 4 --cifar10 $(CIFAR10) --cifar10-images 44900 --cifar10-size 32 \
	    --cifar10-depth 56 --epochs 20 --seeds 1000 1001 1002 --device cuda --capture --workers 4 --out $(OUT) $(ARGS) 2>&1 \
	    | tee $(OUT)/gpu/answer.txt

# The checkout in .venv, with the packages of one extra of pyproject.toml.
.venv/with-%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv-floors/installed: pyproject.toml | .venv/with-test
	$(BIN)/uv venv --quiet --clear --seed --python $(OLDEST) .venv-floors
	$(BIN)/uv pip install --quiet --python .venv-floors --resolution lowest-direct --editable '.[test]'
	touch $@
