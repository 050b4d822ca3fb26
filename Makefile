# Two commands do everything: `make serve` and `make test`. Each installs what it needs into .venv on its first run.
.PHONY: serve test test-docker check docs constraints clean help headless

POSE_PORT ?= 8000
export POSE_PORT
BIN := .venv/bin
# the first interpreter that is new enough
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

serve: .venv/.serve ## start the service on port 8000 (POSE_PORT changes it)
	@exec $(BIN)/pose serve

test: .venv/.develop ## run the tests; ARGS goes to pytest. Training has a process of its own: it takes signals and threads
	$(BIN)/python -m pytest $(ARGS) tests/app tests/benchmarks tests/docker/test_files.py tests/e2e tests/model
	$(BIN)/python -m pytest $(ARGS) tests/training

test-docker: .venv/.develop ## build the image, start the stack and test it; needs Docker with compose
	$(BIN)/python -m pytest $(ARGS) tests/docker

check: .venv/.develop ## formatting, lint, types, import boundaries
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.serve: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into .venv: PyTorch is about 6 GB, this takes minutes and happens once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@$(MAKE) --no-print-directory headless
	@touch $@

.venv/.develop: .venv/.serve
	@echo "installing the tools for training and tests into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,quantise,export,dev]'
	@$(MAKE) --no-print-directory headless
	@touch $@

headless: # where the display libraries that OpenCV links to are missing, its headless build of the same version serves
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	  echo "no libGL on this machine: taking OpenCV's headless build"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
	    opencv-python-headless==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("opencv-python"))'); }

docs: .venv/.develop ## write docs/openapi.json, docs/settings.md and .env.example from the code
	$(BIN)/python tests/app/test_openapi.py
	$(BIN)/python tests/app/test_settings_page.py
	$(BIN)/python tests/docker/test_files.py

constraints: ## write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[^+ ]+$$' | sort -f > constraints.partial
	mv constraints.partial constraints.txt

clean: ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
