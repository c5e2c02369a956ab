# Every target does its own set-up in .venv; nothing has to be done first. `make help` lists them.

# The first Python on the path that fits and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
VENV ?= .venv
# Where CPU builds of torch are offered; used where it can be reached, else make says what pip takes,
# and asks on a terminal. Make it empty to get the build that pip takes by itself, on Linux the one
# for NVIDIA GPUs, or name a mirror.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# What users install: this checkout, or a wheel made from it.
PACKAGE ?= .

BIN := $(VENV)/bin
# For pytest: a process per core; one that has no test left takes some of another's.
PARALLEL := -n auto --dist loadfile
SOURCES := pyproject.toml setup.py constraints.txt \
	$(shell find mixmfl entrypoints plans -type f ! -name '*.pyc' ! -name '*.so')

# An installed package, and this checkout with the tools that develop it. Only one of them is in
# an environment; the second serves whoever wants the first.
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install develop demo network-demo benchmark benchmark-patients privacy test slow coverage mutants lowest lock wheelhouse sbom fuzz faults audit check format docs tables clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

install: $(if $(wildcard $(DEVELOPED)),$(DEVELOPED),$(INSTALLED)) ## the commands, in .venv/bin

develop: $(DEVELOPED) ## the same with tests and tools, running from this checkout

demo: install ## the main job on simulated data; ends with a table and a page
	$(BIN)/mixmfl_demo -o demo

network-demo: develop ## a coordinator and three hospitals as processes of this machine, mutual TLS
	$(BIN)/mixmfl_network_demo -o network-demo

benchmark: install ## compare the methods on the phantom's three settings; an hour on two cores
	for setting in mix-modal multi-modal cross-modal; do \
	folder=benchmark/$$setting && \
	$(BIN)/mixmfl_demo_data -o $$folder/federation --setting $$setting --spacing 4 --tests 4 && \
	$(BIN)/mixmfl_plan_preprocess -i $$folder/federation -o $$folder/work --preset phantom -c 2d && \
	$(BIN)/mixmfl_benchmark -i $$folder/work -o $$folder/out --methods baselines,mdm+site || exit 1; \
	done

# For fuzz.
COUNT ?= 2000
SEED ?= 0
# For lock: what an image and an offline installation hold.
EXTRAS ?= network privacy dicom-seg

# For benchmark-patients; `mixmfl_benchmark_patients --help` has more.
DATA ?=
OUT ?= benchmark/patients
PATIENTS ?= --sets A,C --folds 0,1 --size 1000

benchmark-patients: install ## the methods on patients in DATA=…, which is only read; goes on; many hours
	@test -n "$(DATA)" || { echo "DATA=FOLDER is needed: a folder of patients per hospital and" \
		"splits.json, as docs/benchmark.md describes them" >&2; exit 1; }
	$(BIN)/mixmfl_benchmark_patients -i "$(DATA)" -o "$(OUT)" $(PATIENTS)

# For privacy: `make privacy DATA=FOLDER`, a folder per hospital, attacks on these patients; DATA is only read. MEMORY=OUT, of
# `make benchmark-patients`, attacks what a memory of its hospitals would send, too.
ATTACK ?=
MEMORY ?=

privacy: develop ## attack what sites send, with and without protection; an hour on two cores
ifeq ($(DATA),)
	$(BIN)/mixmfl_demo_data -o privacy/federation --setting multi-modal --spacing 4 --cases 16
endif
	$(BIN)/mixmfl_plan_preprocess -i "$(or $(DATA),privacy/federation)" -o privacy/work --preset $(if $(DATA),patients,phantom) -c 2d
	$(BIN)/mixmfl_measure_privacy -i privacy/work -o privacy/out $(ATTACK)
ifneq ($(MEMORY),)
	$(BIN)/python benchmarks/moments_attack.py $(MEMORY)
endif

test: develop ## the tests, without those marked slow or gpu
	$(BIN)/pytest $(PARALLEL)

slow: develop ## the slow tests; those on real MRI need MIXMFL_TEST_DATA
	$(BIN)/pytest -m slow

coverage: develop ## what the tests run of mixmfl/ and entrypoints/; less than 95 % is an error
	$(BIN)/pytest $(PARALLEL) --cov --cov-report term

mutants: develop ## change aggregation, memory, geometry and sampling line by line: do tests notice? hours
	$(BIN)/mutmut run
	$(BIN)/mutmut results

lowest: develop ## the tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(BIN)/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct \
		--torch-backend cpu '.[dev]'
	.venv-lowest/bin/pytest $(PARALLEL)

lock: develop ## choose new versions for deploy/requirements.lock, with their hashes
	$(BIN)/uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --quiet --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint constraints.txt \
		--no-annotate --no-emit-find-links --emit-index-annotation --custom-compile-command "make lock" \
		--extra-index-url "$(TORCH_INDEX)" --index-strategy unsafe-best-match -o deploy/requirements.lock

wheelhouse: develop ## all packages of deploy/requirements.lock, by their hashes, to install without a network
	rm -rf wheelhouse build
	$(BIN)/python -m build --wheel --outdir wheelhouse .
	$(BIN)/python -m pip wheel --disable-pip-version-check --require-hashes --no-deps \
		$(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -r deploy/requirements.lock -w wheelhouse
	$(BIN)/python deploy/list_wheels.py wheelhouse > wheelhouse.txt
	mv wheelhouse.txt wheelhouse/requirements.txt

sbom: develop ## what deploy/requirements.lock installs, as CycloneDX, in sbom.json
	$(BIN)/cyclonedx-py requirements deploy/requirements.lock --pyproject pyproject.toml \
		--output-reproducible -o sbom.json

fuzz: develop ## mutations of all that is read: 2,000 of each kind, COUNT=…; an hour on two cores
	PYTHONPATH=tests/helpers:tests/fuzz $(BIN)/python tests/fuzz/run.py -n $(COUNT) --seed $(SEED)

# For faults: processes killed per job; runs over a network, ten faults in each.
KILLS ?= 50
NETWORK_RUNS ?= 40

faults: develop ## kill -9, no room, a clock that jumps, cut links: what is lost; goes on; many hours
	PYTHONPATH=tests/helpers $(BIN)/python benchmarks/faults.py -o faults --kills $(KILLS)
	PYTHONPATH=tests/helpers $(BIN)/python benchmarks/network_faults.py -o faults/network --runs $(NETWORK_RUNS)

audit: develop ## known weaknesses of the installed packages; asks a service on the internet
	$(BIN)/pip-audit --skip-editable

check: develop ## style, types, who imports whom, and that nothing is looked up by a name from outside
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/repository/test_packaging.py tests/repository/test_lookups.py -k "import or look_up or rule"

format: develop ## put the code in the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: develop ## the documentation as a site, in site/; nothing is fetched, a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

tables: develop ## the tables of messages and settings in docs/, from the code
	$(BIN)/python docs/generate.py

clean: ## remove what was built, never demo/
	rm -rf build dist site mutants ./*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): $(SOURCES)
	@rm -rf build # setuptools would install what it finds there, deleted modules too
	$(call install_in_environment,$(PACKAGE))

$(DEVELOPED): pyproject.toml setup.py constraints.txt
	$(call install_in_environment,--editable '.[dev]')

# Make the environment and install into it. Meanwhile it is marked as unfinished: pip takes what it
# was interrupted at for installed, so an environment that still has the mark is emptied first.
# The index serves the whole install, not torch alone, so that torchvision is of the same build.
define install_in_environment
	@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 with venv is needed and was not found;" \
		"install one (Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=…" >&2; \
		exit 1; }
	@mkdir -p $(VENV)
	@if [ -e $(VENV)/.unfinished ]; then \
		find $(VENV) -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +; fi
	@touch $(VENV)/.unfinished
	@rm -f $(INSTALLED) $(DEVELOPED)
	$(PYTHON) -m venv $(VENV)
	@index="$(TORCH_INDEX)"; \
	if [ -n "$$index" ] && ! $(BIN)/python -c 'import sys, urllib.request as web; \
		web.urlopen(sys.argv[1] + "/torch/", timeout=10)' "$$index" 2>/dev/null; then \
		index=; \
		if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import importlib.metadata as m; \
			m.version("torch")' 2>/dev/null; then \
			echo "$(TORCH_INDEX), which has torch for CPUs, cannot be reached from here. Elsewhere" \
				"pip most often finds torch for NVIDIA GPUs alone: several gigabytes, which a CPU" \
				"does not need. 'make TORCH_INDEX=URL …' takes a mirror of yours, and" \
				"'make TORCH_INDEX= …' what pip finds, without a question." >&2; \
			if [ -t 0 ]; then printf 'Take what pip finds? [y/N] ' >&2; read -r answer; \
				case "$$answer" in [yY]*) ;; *) exit 1;; esac; fi; \
		fi; \
	fi; \
	set -x; $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		$${index:+--extra-index-url "$$index"} $(1)
	@mv $(VENV)/.unfinished $@ && touch $@
endef
