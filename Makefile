# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := fuse3 prometheus mmdebstrap systemd-container

.PHONY: setup check test demo

# Debian packages where we may install them, and the virtual environment.
setup:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	  if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'

check: setup
	$(BIN)/ruff format --check daemon tests
	$(BIN)/ruff check daemon tests
	$(BIN)/lint-imports
	$(BIN)/mypy

demo: setup
	$(BIN)/python -m tests.demo

test: setup
	$(BIN)/pytest
