#!/usr/bin/env bash
# Make an environment, install, run the whole test suite. Works from a bare checkout; needs Python 3.11+ and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
python -m pytest "$@"
