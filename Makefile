# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := .run/$(subst /,_,$(abspath $(WORK)))
PACKAGES := fuse3
TEST_PACKAGES := chromium mandoc python3-yaml prometheus prometheus-node-exporter openssl mmdebstrap systemd-container btrfs-progs e2fsprogs gcc libc6-dev pkg-config libfuse3-dev
DEB_PACKAGES := debian-archive-keyring mmdebstrap systemd-container
BENCH_PACKAGES := e2fsprogs rsync rclone lsyncd unison gcc libc6-dev pkg-config libfuse3-dev
EXTRAS := dev

.PHONY: setup check test test-node soak bench demo run man deb rpm

# Debian packages where we may install them, and the virtual environment.
setup:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  missing=; $(PYTHON) -c 'import ensurepip' 2>/dev/null || missing=' python3-venv'; \
	  for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	  if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq; \
	    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]'

check: setup
	$(BIN)/ruff format --check daemon tests packaging
	$(BIN)/ruff check daemon tests packaging
	$(BIN)/lint-imports
	$(BIN)/mypy

# Deploys the folder STORE into the directory WORK until Ctrl-C; what onesync remembers is in .run.
run: setup
	@[ -n "$(WORK)" ] && [ -n "$(STORE)" ] || { echo "Say: make run WORK=directory STORE=folder"; exit 2; }
	@mkdir -p "$(WORK)" "$(STORE)" $(RUN)/state $(RUN)/run
	@echo "Deploying $(STORE) into $(WORK). Ctrl-C flushes and undeploys. From another terminal:"
	@echo "  $(BIN)/onesync status --config $(RUN)/onesync.toml"
	@printf '%s\n' 'working_dir = "$(abspath $(WORK))"' 'onedata_dir = "$(abspath $(STORE))"' \
	  'state_dir = "$(abspath $(RUN))/state"' 'runtime_dir = "$(abspath $(RUN))/run"' \
	  '[mount]' 'require_fuse = false' '[lock]' 'settle_seconds = 0' > $(RUN)/onesync.toml
	@$(BIN)/onesync run --config $(RUN)/onesync.toml

demo: setup
	$(BIN)/python -m tests.demo

test: PACKAGES += $(TEST_PACKAGES)
test: setup
	$(BIN)/pytest -n 5 --dist worksteal
	$(BIN)/pytest -s -m session

# The whole campaign of faults and crash points, in one process and as real ones (what shortens or
# continues it: tests/campaign/test_processes.py), HISTORIES histories of the lock's nemesis, then a
# live session of every actor of a Scipion project, SECONDS long, and what it measured.
soak: SECONDS ?= 1200
soak: HISTORIES ?= 5000
soak: PACKAGES += $(TEST_PACKAGES)
soak: setup
	$(BIN)/pytest -n 4 --dist worksteal -m soak
	ONESYNC_SESSION_SECONDS=$(SECONDS) ONESYNC_HISTORIES=$(HISTORIES) $(BIN)/pytest -s -m session

# The manual pages, into DESTINATION.
man: DESTINATION ?= .run/man
man: setup
	$(BIN)/python packaging/manual.py $(DESTINATION)

# The Debian packages of SUITES, into .run/deb.
deb: SUITES ?= bookworm trixie
deb: PACKAGES += $(DEB_PACKAGES)
deb: setup
	@for suite in $(SUITES); do packaging/build-deb $$suite || exit 1; done

# The RPM package and its source package, into .run/rpm.
rpm: PACKAGES += $(DEB_PACKAGES)
rpm: setup
	packaging/build-rpm

# Booted nodes: of the units, and of nothing but Debian, this machine's or SUITE, and the package. ONLY picks
# tests as pytest's -k does. By file, for those of one share what their nodes are made of.
test-node: SUITE ?= $(shell . /etc/os-release && echo $$VERSION_CODENAME)
test-node: PACKAGES += $(DEB_PACKAGES) buildah mkosi gcc libc6-dev pkg-config libfuse3-dev prometheus btrfs-progs
test-node: setup
	packaging/build-deb $(SUITE)
	ONESYNC_SUITE=$(SUITE) $(BIN)/pytest -n 2 --dist loadfile -m node $(if $(ONLY),-k "$(ONLY)")

# All tools side by side on the same mounts: a table, JSON and plots in .run/bench. QUICK=1 takes small
# sizes; ONLY names scenarios; README=README.md puts the table there.
bench: PACKAGES += $(BENCH_PACKAGES)
bench: EXTRAS := dev,bench
bench: setup
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(README),--readme $(README)) \
	  $(if $(ONLY),--only $(ONLY))
