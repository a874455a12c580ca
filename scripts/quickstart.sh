#!/usr/bin/env bash
# From a bare checkout to a trained model on real data, a results table, a recommendation and a search.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"  # rounding differs with it, and with rounding the last digits of the table
genrec run configs/movielens-100k.yaml "$@"
genrec recommend runs/movielens-100k --user 196
genrec search runs/movielens-100k "sci fi adventure" --user 196
