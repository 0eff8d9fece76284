# make demo   set-up if needed, then the main job on generated data
# make test   set-up if needed, then all tests
# make setup  make .venv; PYTHON=python3.12 chooses the interpreter
# make docs   set-up if needed, then the site in docs/_build/html
# make lint   ruff, and the order of the rooms, as CI runs them
# make test-core       the wheel with the oldest torch and numpy alone, in an environment of its own
# make test-libraries  blocks in networks of torchvision, timm, segmentation_models.pytorch,
#                      ultralytics and transformers, in an environment of its own
# make test-openmmlab  the original OpenMMLab packages on the oldest torch, in an environment of its
#                      own; compiles mmcv once. Python 3.11 and older have this torch
# make notebooks       execute docs/notebooks and store the outputs; one of them in .venv-libraries

PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: setup demo test docs lint test-core test-libraries test-openmmlab notebooks

setup:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not on PATH. Install Python 3.11 or 3.12 and run: make setup PYTHON=python3.11" >&2; \
	  exit 2; }
	@$(PYTHON) tools/setup_env.py

demo: setup
	@$(RUN) tools/demo.py

test: setup
	@$(RUN) -m pytest

docs: setup
	@$(RUN) -m sphinx -W -n --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "site: docs/_build/html/index.html"

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports --no-logo

test-core:
	@$(PYTHON) tests/environments.py core

test-libraries:
	@$(PYTHON) tests/environments.py libraries

test-openmmlab:
	@$(PYTHON) tests/environments.py openmmlab

notebooks: setup
	@$(RUN) tests/notebooks.py ablate_two_blocks ccnet_on_street
	@test -x .venv-libraries/bin/python || { \
	  echo "error: .venv-libraries is missing. Run: make test-libraries" >&2; \
	  exit 2; }
	@.venv-libraries/bin/python tests/notebooks.py attention_in_torchvision
