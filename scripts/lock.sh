#!/usr/bin/env bash
# Write requirements.lock: every package by version and hash, for all platforms and Pythons, naming no index.
set -euo pipefail
VENV=${1:-.venv}
uv=$(command -v uv || echo "$VENV/bin/uv")
"$uv" pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
    --upgrade --quiet --custom-compile-command "make lock" --output-file requirements.lock
