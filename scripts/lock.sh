#!/usr/bin/env bash
# Write the two lock files: every package by version and hash, for all platforms and Pythons, naming_file no index.
# requirements.lock is what the project runs on, scripts/setup.lock what installs it.
set -euo pipefail
VENV=${1:-.venv}
uv=$(command -v uv || echo "$VENV/bin/uv")
compile() {
    "$uv" pip compile "$@" --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade --quiet \
        --custom-compile-command "make lock"
}
compile pyproject.toml --extra dev --output-file requirements.lock
printf 'uv\nsetuptools>=77\n' | compile - --no-annotate --output-file scripts/setup.lock
