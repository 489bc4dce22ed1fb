# Every target sets up its own virtual environment first. Variables to override:
#   make quickstart TORCH=torch PYTHON=python3.12 ARGS="--task pick-place-v3 --seed 2"
#   make test DEV=dev        # without ManiSkill and robosuite; their tests are skipped
#   make test WORKERS=0      # in one process; default: one per core
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DEV ?= dev,maniskill,robosuite
ARGS ?=
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow test-lerobot test-ray check docs format clean

quickstart: $(VENV)/.installed
	$(BIN)/dsrl quickstart $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/pytest tests/ -v -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest tests/ -v -m slow $(ARGS)

# LeRobot asks for other versions than ManiSkill, so it has an environment of its own.
test-lerobot: .venv-lerobot/.installed
	.venv-lerobot/bin/python -m pytest tests/base_policies/test_lerobot.py tests/base_policies/test_lerobot_vla.py \
		tests/demos/test_lerobot_writer.py -v $(ARGS)

# Ray takes 260 MB and its tests minutes of waiting, so they stand apart.
test-ray: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet -e ".[ray]"
	$(BIN)/pytest tests/rollouts/test_ray_faults.py tests/train/test_ray_backend.py -v $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, into site/; warnings, dead links and whatever would be loaded from the web are errors.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python scripts/check_site.py site

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Torch goes first and by version: left to itself, pip may fetch a build with gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[report]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[$(DEV)]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@

.venv-lerobot/.installed: pyproject.toml scripts/lerobot_environment.txt
	TORCH="$(TORCH)" scripts/make_lerobot_environment.sh .venv-lerobot
	touch $@

clean:
	rm -rf $(VENV) .venv-lerobot site
