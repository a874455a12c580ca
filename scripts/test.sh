#!/usr/bin/env bash
# Make an environment, check style, run the whole test suite. Works from a bare checkout; needs Python 3.11+ and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ruff check --select F,I genrec tests scripts  # to become: ruff check genrec tests scripts && mypy genrec
ruff format --check genrec tests scripts
python -m pytest "$@"
