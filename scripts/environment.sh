# Sourced by the other scripts: a virtual environment in .venv with genrec and its test needs. Does nothing when it is up to date.
PYTHON="${PYTHON:-python3}"
stamp=".venv/.genrec-$(cksum pyproject.toml | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed ($PYTHON)" >&2; exit 2; }
  echo "installing into .venv (a few minutes the first time)"
  "$PYTHON" -m venv .venv
  # torch first: a looser range, resolved with nothing there, would pull gigabytes of CUDA packages on a CPU machine.
  if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    .venv/bin/python -m pip install --quiet "torch==2.13.0" || .venv/bin/python -m pip install --quiet "torch>=2.6"
  fi
  .venv/bin/python -m pip install --quiet -e ".[test]"
  touch "$stamp"
fi
source .venv/bin/activate
