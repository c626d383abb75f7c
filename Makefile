# Everything runs in a virtual environment, .venv, which the first command makes. To use an environment that is already
# active (conda, say): make demo VENV=$CONDA_PREFIX
VENV ?= .venv
PY := $(VENV)/bin/python

# The Python that .venv is made from: the first that really runs (a pyenv shim may not), is 3.11 or newer and has venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# One or several parameter files (see params/); a later one wins. Without any, a notebook runs with its own small defaults.
PARAMS ?=
# Which sound is matched, where its preset goes, with which synth's model:
# make match SOUND=my.wav OUT=outputs/my MODEL=surge_human
SOUND ?=
OUT ?= outputs/match
MODEL ?= dexed
# More arguments, for those that take them: make lab ARGS="--no-browser --port 8080"; make lock ARGS=--upgrade
ARGS ?=
# Where else pip may look. On Linux without an NVIDIA card, PyTorch's index of CPU builds saves gigabytes.
INDEX ?=

# Test files side by side, one core each. Notebooks go one after the other: some use what others leave.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PLATFORM_DIRS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-release test-slow test-faults test-fuzz lab data train evaluate search match surge
.PHONY: lint format lock wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

define venv
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		python='$(PYTHON)'; \
		test -n "$$python" || { echo "No Python 3.11 or newer with venv was found. Install one (Debian, Ubuntu:" \
			"apt install python3-venv) or say where it is: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		"$$python" -m venv $(VENV); \
	fi
endef

setup: $(VENV)/.done ## make .venv and install synthnb with all it needs (the others do this by themselves)

$(VENV)/.done: pyproject.toml requirements.lock
	$(venv)
	@echo "Installing synthnb and its packages into $(VENV); this takes a few minutes ..."
	@$(PY) -m pip install --quiet $(if $(INDEX),--extra-index-url $(INDEX)) \
		--constraint requirements.lock --editable '.[notebooks,dev]'
	@# Kernels listen on this machine only; without this, each start warns that they do so unencrypted.
	@mkdir -p $(VENV)/etc/ipython && echo "c.IPKernelApp.log_level = 'ERROR'" >$(VENV)/etc/ipython/ipython_kernel_config.py
	@touch $@

demo: setup ## match a real recording: outputs/demo/ gets the preset, both sounds, a picture and how close it came
	@mkdir -p outputs/demo
	@echo "Matching a recording (notebooks/04_match_a_sound.ipynb); this takes a minute or two ..."
	@$(PY) -m papermill notebooks/04_match_a_sound.ipynb outputs/demo/04_match_a_sound.ipynb \
		-f params/match/demo.yaml --cwd notebooks --no-progress-bar --log-level WARNING
	@$(PY) -c "import json; d = json.load(open('outputs/demo/match.json'))['distances']; \
		print('How close it came: ' + ', '.join(f'{k} {v:.3g}' for k, v in d.items()))"
	@echo "See outputs/demo/: $$(ls -m outputs/demo | tr -d '\n')"

test: setup ## run the quick tests, then every notebook from top to bottom
	@$(PYTEST) synthnb/tests
	@$(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

test-release: setup ## what a release must hold: README's snippets run, the wheel works, matches come as close as ever
	@$(PY) -m pytest -m release synthnb/tests/test_release.py

test-slow: setup ## run the tests that take minutes
	@$(PY) -m pytest -m slow synthnb/tests

test-faults: setup ## break datasets in every way that is known, and show what they survive
	@$(PY) -m pytest -m "slow or not slow" -s --show-capture=no synthnb/tests/test_faults.py

test-fuzz: setup ## feed damaged files of every kind to everything that reads files (minutes, seeded)
	@$(PY) -m synthnb.tools.fuzz

lab: setup ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab $(ARGS) notebooks/00_tour.ipynb

# $(call papermill,NOTEBOOK,FOLDER): run a notebook with PARAMS; the executed copy is outputs/FOLDER/<name of the params>.ipynb
executed = outputs/$(2)/$(or $(basename $(notdir $(lastword $(PARAMS)))),defaults).ipynb
define papermill
	@mkdir -p outputs/$(2)
	@$(PY) -m papermill notebooks/$(1).ipynb $(executed) $(addprefix -f ,$(PARAMS)) \
		--cwd notebooks --no-progress-bar --log-output
	@echo "Executed notebook: $(executed)"
endef

data: setup ## render a dataset (notebook 01; PARAMS=params/generate/NAME.yaml for a real size)
	$(call papermill,01_generate_data,generate)

train: setup ## train the model (notebook 02; PARAMS=params/train/NAME.yaml for a real size)
	$(call papermill,02_train,train)

evaluate: setup ## measure a model against its baselines (notebook 03; PARAMS=params/evaluate/NAME.yaml)
	$(call papermill,03_evaluate,evaluate)

search: setup ## compare searches at equal renders and seconds (notebook 09; PARAMS=params/search/NAME.yaml)
	$(call papermill,09_search,search)

match: setup ## match your own recording: make match SOUND=my.wav OUT=outputs/my
	@test -n "$(SOUND)" || { echo "Say which recording: make match SOUND=my.wav" >&2; exit 1; }
	@$(PY) -m synthnb match "$(SOUND)" --out "$(OUT)" --model "$(MODEL)"

surge: setup ## get Surge XT: the official release, checked, put where plugins are (no root rights needed)
	@$(PY) -m synthnb surge

lint: setup ## check style and common mistakes, in code and notebooks
	@$(PY) -m ruff check --output-format concise .
	@$(PY) -m ruff format --check .

format: setup ## mend what lint can mend by itself
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

lock: ## choose the exact versions of all packages anew, for every platform (ARGS=--upgrade: the newest)
	$(venv)
	@$(PY) -m pip install --quiet uv
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --all-extras --annotation-style line \
		--custom-compile-command "make lock" $(ARGS) pyproject.toml --output-file requirements.lock

wheel: setup ## build dist/synthnb-*.whl: the package without its tests and tools
	@$(PY) -m hatchling build -t wheel

clean: ## remove .venv and caches (datasets/ and outputs/ stay)
	@rm -rf .venv .pytest_cache .ruff_cache
	@find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
