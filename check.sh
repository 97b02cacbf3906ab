#!/usr/bin/env bash
# The one gate: lint, format, types, and tests (the import arrows are a test). `PYTHON` picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest "$@"
