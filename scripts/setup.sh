#!/usr/bin/env bash
# Make $VENV and install what requirements.lock pins into it. Needs a Python from 3.11 on, and uses uv when it is there.
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: gradflow needs Python 3.11 or newer, and '$PYTHON' is not; say which with  make setup PYTHON=python3.12" >&2
    exit 2
fi

echo "setting up $VENV: the first time this fetches about 3 GB and takes a minute or more"
# Nothing is fetched that a lock file does not name by hash: setuptools is installed before it builds the one package that
# comes as source (antlr4), which would otherwise fetch a setuptools of its own.
"$PYTHON" -m venv --clear "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/setup.lock
# Compiled bytecode halves the time of the first imports.
VIRTUAL_ENV=$VENV "$VENV/bin/uv" pip install --quiet --compile-bytecode --require-hashes --no-build-isolation \
    -r requirements.lock
# The project itself, so that scripts and notebooks of your own can import gradflow from anywhere.
VIRTUAL_ENV=$VENV "$VENV/bin/uv" pip install --quiet --no-deps --no-build-isolation --offline --editable .
