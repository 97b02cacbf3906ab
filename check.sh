#!/usr/bin/env bash
# The one gate: lint, format, types, and tests (the import arrows are a test). `PYTHON` picks the interpreter.
# `./check.sh lint` ends before the tests; whatever else is said goes to pytest.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
if [ -d web/node_modules ]; then (cd web && npx tsc --noEmit); fi
if [ "${1:-}" = lint ]; then exit; fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # a process of tests for each core, so one thread each
"$python" -m pytest -n auto --dist loadgroup "$@"
