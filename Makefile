# `make` alone prints what can be made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := sample_models
BENCH ?=
FUZZ_SECONDS ?= 60
# Tests run side by side already, and layers within them; more threads of numpy only wait for each other.
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest test-large zoo fuzz bench bench-results bench-formats bench-ablation bench-loss clean

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/riq  ## compress, report, decompress and verify a sample model on its real data
	@mkdir -p demo
	$(BIN)/riq compress $(SAMPLE)/cnn.onnx --calibration $(SAMPLE)/calibration.npz --deviation 0.01 -o demo/cnn.riqz --force
	$(BIN)/riq report demo/cnn.riqz
	$(BIN)/riq decompress demo/cnn.riqz --force
	$(BIN)/riq verify demo/cnn.riqz --against $(SAMPLE)/cnn.onnx --calibration $(SAMPLE)/heldout.npz --deviation 0.02

test: $(VENV)/test  ## lint, type-check, and run the tests that are fast
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict riq_cli
	$(BIN)/pytest -n auto --dist worksteal

test-all: $(VENV)/test  ## run what make test leaves out: slow tests, and property tests on many more examples
	$(BIN)/pytest -n auto --dist worksteal -m '(slow or hypothesis) and not zoo' --hypothesis-profile thorough

test-lowest:  ## run the fast tests with the lowest release of each dependency, in an environment of their own
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python -m tests.lowest > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --editable '.[test]' --constraint $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/pytest -n auto --dist worksteal

zoo: $(VENV)/test  ## test on real models and in Chromium; what is fetched goes to ~/.cache/riq-zoo
	$(BIN)/pytest -n 2 --dist loadfile -m zoo -rs

fuzz: $(VENV)/test  ## damage manifests, archives and models at random for FUZZ_SECONDS; what goes wrong is kept in fuzz-failures
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

bench: $(VENV)/test  ## measure speeds; asserts nothing
	$(BIN)/python -m tests.bench speed

bench-results: $(VENV)/test  ## compress real models, and write the page of results; BENCH='--model cnn --json FILE' takes options
	$(BIN)/python -m tests.bench results $(BENCH)

bench-formats: $(VENV)/test  ## open and run each file that a model may ship as; BENCH='--folder FOLDER' keeps them
	$(BIN)/python -m tests.bench formats $(BENCH)

bench-ablation: $(VENV)/test  ## measure what each stage of the search is worth; BENCH='--model cnn --json FILE' takes options
	$(BIN)/python -m tests.bench ablation $(BENCH)

test-large: $(VENV)/test  ## time and memory on a decoder of 1.1 billion weights; BENCH='--size 0.1B --preset small' takes options
	$(BIN)/python -m tests.bench large $(BENCH)

bench-loss: $(VENV)/train  ## train small networks, and hold fixed layouts against riq under a loss
	$(BIN)/python -m tests.bench loss

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) $(VENV)-lowest demo

$(VENV)/riq: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/test: $(VENV)/riq
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/train: $(VENV)/test
	$(BIN)/python -m pip install --quiet torch==2.13.0 onnxscript==0.7.2
	@touch $@
