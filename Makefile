# What there is to do with this repository. Each target does its own set-up, on a fresh Debian 12 too:
#
#   make demo                             the whole chain on this computer, with real files, rsync and SSH
#   make demo-mirror                      two mirrors on this computer: publish, sync, compare, backfill; no account
#   make test                             lint, types, shell check, tests
#   make lint                             all of that but the tests
#   make test-network                     as root: only the tests of the network between three hosts, each in a network namespace
#   make faults                           every step and every daemon, killed at every call that changes files or the network; an hour and a half
#   make soak   [BLOCKS=500] [SEED=...]   as root: many blocks through the whole chain while it is cut, killed and filled up; 40 minutes
#   make bench                            the measurements of bench/, which write docs/performance.md
#   make check  [HOST=... RADAR=...]      check config.yaml; with HOST and RADAR this machine too
#   make install HOST=... RADAR=...       as root: the program for one host into /opt/dataflow, its configuration and its unit
#   make units   HOST=... RADAR=...       as root: only the systemd unit of that host, below DESTDIR
#
# HOST is borealis, site-linux, campus or mirror; RADAR the three letters of a radar of config.yaml (the mirror works for all of them).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo demo-mirror test lint test-network faults soak bench check install units demo-programs test-programs

export PYTHON ?= python3
# Where it is set, each start of `dataflow` from a fresh clone compiles the whole program: a quarter of what a step without work takes.
unexport PYTHONDONTWRITEBYTECODE
SHELL_FILES := .ci/run $(wildcard tools/* daemons/*.daemon dataflow/*/*.sh)
DEMO_PROGRAMS := venv rsync rrsync ssh sshd lbzip2
DISK_PROGRAMS := mkfs.ext4 mount umount
FAULTS_PROGRAMS := gcc
NETWORK_PROGRAMS := ip nft nsenter unshare faketime
BLOCKS := 500
BENCH_PROGRAMS := bzip2
READY := .venv/ready

help:
	@sed -n '/^#/!q; s/^# \?//p' Makefile

demo: demo-programs $(READY)
	.venv/bin/dataflow demo

demo-mirror: demo-programs $(READY)
	.venv/bin/dataflow demo-mirror

test: lint test-programs
	.venv/bin/pytest -n 3 --dist worksteal --durations=25

test-network: demo-programs $(READY)
	@tools/system-packages $(NETWORK_PROGRAMS)
	.venv/bin/pytest -n 2 tests/test_network.py

lint: test-programs $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	shellcheck -x $(SHELL_FILES)

faults: demo-programs $(READY)
	@tools/system-packages $(FAULTS_PROGRAMS)
	.venv/bin/python -m faults

soak: demo-programs $(READY)
	@tools/system-packages $(DISK_PROGRAMS)
	.venv/bin/python -m soak --blocks $(BLOCKS) $(if $(SEED),--seed $(SEED))

bench: demo-programs $(READY)
	@tools/system-packages $(BENCH_PROGRAMS)
	.venv/bin/python bench/performance.py

check: $(READY)
	.venv/bin/dataflow check $(HOST) $(if $(RADAR),--radar $(RADAR))

install:
	@tools/install program "$(HOST)" "$(RADAR)"
	@tools/install units "$(HOST)" "$(RADAR)"

units:
	@tools/install units "$(HOST)" "$(RADAR)"

demo-programs:
	@tools/system-packages $(DEMO_PROGRAMS)

test-programs:
	@tools/system-packages $(DEMO_PROGRAMS) $(BENCH_PROGRAMS) $(FAULTS_PROGRAMS) $(DISK_PROGRAMS) $(NETWORK_PROGRAMS) \
	  shellcheck systemd-analyze fusermount3 chromium

# Made anew when pyproject.toml changes; `editable`, so the code itself is always the checkout's.
$(READY): pyproject.toml
	@tools/system-packages venv
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dataflow needs Python 3.11 or later, not " + sys.version)'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
