# Two commands do everything on a machine with Python 3.11, git and make: `make demo` and `make test`. `make` alone lists all.
PYTHON ?= python3
# One exact version: a range would let pip pick a build with several gigabytes of CUDA where none is needed.
TORCH ?= torch==2.13.0
CHECKPOINT := inhibidistilbert/checkpoints/tiny-sentiment
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

LOWEST := .venv-lowest
EPOCHS ?= 4
SEED ?= 0
CASES ?=
# Most tests compute on one thread or wait for a process. A file's tests stay together, for the fixtures they share. The order
# of the files is that of tests/conftest.py; xdist's own would end with those that have few tests, however long they take.
WORKERS ?= auto
# The plugins by their names: pytest prepares the whole library of any other it finds, which takes each worker seconds.
PYTEST := -m pytest --disable-plugin-autoload -p xdist -p timeout -p hypothesispytest \
  --numprocesses "$(WORKERS)" --dist loadfile --no-loadscope-reorder
kernel-repository: OUTPUT ?= build/kernel-repository
page: OUTPUT ?= build/page
CHROMIUM ?= chromium
evaluate: OUTPUT ?= runs/evaluate

RECIPE ?= study
AUTHORS_RECIPE ?= study-authors
ONLY ?= *
ENCODER ?= .cache/data/minilm
TEXTS ?= .cache/data/study/unlabelled.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-lowest test-sharding test-ray data study-data study check checkpoint-sources kernel-repository
.PHONY: release-sources benchmark-model results-index evaluate fuzz gpu page test-page

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## classify real sentences, in process and from an exported folder
	$(BIN)/python -m inhibidistilbert.demo

test: $(INSTALLED) ## the tests, without the slow ones
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) -m "not slow"

test-full: $(INSTALLED) ## all tests
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST)

fuzz: $(INSTALLED) ## spoilt folders and command lines: no traceback, hang or wrong label; SEED=0, CASES="--folders 500 --lines 1000"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seed "$(SEED)" $(CASES)

test-lowest: ## the tests on the lowest transformers, in an environment of their own; TORCH=torch==2.11.0 for the lowest torch
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" "transformers==5.17.0"
	HF_HUB_OFFLINE=1 $(LOWEST)/bin/python $(PYTEST) -m "not slow"

test-sharding: $(INSTALLED) ## training under FSDP and DeepSpeed, which it installs, on two processes of this CPU
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "deepspeed==0.19.8"
	HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests/distillation/test_processes.py

test-ray: $(INSTALLED) ## labelling on a cluster of Ray, which it installs, with a worker killed on purpose
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[ray]"
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_labelling_on_ray.py

check: $(INSTALLED) ## lint, format, types, and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

data: $(INSTALLED) ## fetch and prepare the offline data of the shipped checkpoint into .cache/data
	$(BIN)/python -m studies.distillation.review_data .cache/data

study-data: $(INSTALLED) ## the data of the distillation study too, in .cache/data/study
	$(BIN)/python -m studies.distillation.study_data .cache/data

study: $(INSTALLED) ## the rows that the distillation study lacks; ONLY='sarcasm/*/0' for some of them
	HF_HUB_OFFLINE=1 $(BIN)/python -m studies.distillation.study --recipe "$(RECIPE)" --only "$(ONLY)" \
	  --authors-recipe "$(AUTHORS_RECIPE)" --encoder "$(ENCODER)" --texts "$(TEXTS)"

checkpoint-sources: $(INSTALLED) ## renew the source files inside the shipped checkpoint after a change to them
	$(BIN)/python -c "from inhibidistilbert.modeling.sources import write_remote_code as w; w('$(CHECKPOINT)')"

release-sources: $(INSTALLED) ## add this version's source files to those that `publish --verify` knows
	$(BIN)/python -m inhibidistilbert.publishing.known_sources

benchmark-model: $(INSTALLED) ## a model of DistilBERT-base's size beside its peers on this CPU: benchmarks/results/model_cpu_<kind>.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[onnx,openvino]"
	HF_HUB_OFFLINE=1 $(BIN)/inhibidistilbert benchmark model base --device cpu --dtype float32 --dtype int8 --threads 1 --threads 2 \
	  --shape 1x32 --shape 1x128 --shape 8x128 --shape 1x512 --shape 4x512 --samples 100 --seconds 10 \
	  --against softmax_sdpa --against softmax_sdpa@float32 --against torch_compile --against onnxruntime --against openvino \
	  --against openvino@bfloat16 --output benchmarks/results

results-index: $(INSTALLED) ## benchmarks/results/README.md and all pictures, from the tables there
	$(BIN)/python -m inhibidistilbert.benchmarks.index benchmarks/results

evaluate: data ## fine-tune the shipped checkpoint on Rotten Tomatoes and evaluate it; EPOCHS=4, OUTPUT=runs/evaluate
	HF_HUB_OFFLINE=1 $(BIN)/inhibidistilbert evaluate $(CHECKPOINT) --task rotten_tomatoes --fine-tune --epochs $(EPOCHS) \
	    --data train=.cache/data/rotten_tomatoes_train.csv --data test=.cache/data/rotten_tomatoes_test.csv --output "$(OUTPUT)"

kernel-repository: $(INSTALLED) ## the operator as a kernel for the Hub, in OUTPUT=build/kernel-repository
	$(BIN)/python -m inhibidistilbert.publishing.kernel_repository "$(OUTPUT)"

page: $(INSTALLED) ## a page that runs the shipped checkpoint in the browser, in OUTPUT=build/page; needs npm
	HF_HUB_OFFLINE=1 $(BIN)/python -m inhibidistilbert.space $(CHECKPOINT) "$(OUTPUT)"
	@echo "to see it: $(BIN)/python -m http.server --bind localhost --directory '$(OUTPUT)' 8000, then open http://localhost:8000"

test-page: OUTPUT := build/page
test-page: page ## the page in CHROMIUM=chromium, beside Python's answers; its pictures in build/page-pictures
	npm ci --prefix tests/space/browser --ignore-scripts --no-audit --no-fund
	HF_HUB_OFFLINE=1 PAGE="$(OUTPUT)" CHROMIUM="$(CHROMIUM)" PAGE_SCREENSHOTS=build/page-pictures \
	  $(BIN)/python -m pytest tests/space/test_browser.py

gpu: ## everything measured on a GPU, by the PYTHON that has a torch for it, with nothing installed: 5 to 8 minutes
	HF_HUB_OFFLINE=1 $(PYTHON) -m inhibidistilbert.cli benchmark gpu --output benchmarks/results

# Bytecode is made by all cores in the end, where pip would take a minute of one. Some packages hold templates, no Python.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@
