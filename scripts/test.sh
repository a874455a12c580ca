#!/usr/bin/env bash
# Make an environment, check style, run the whole test suite. Works from a bare checkout; needs Python 3.11+ and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ruff check genrec tests scripts
ruff format --check genrec tests scripts
mypy genrec
# Two files of tests at a time, a thread each.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile "$@"
