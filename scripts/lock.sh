#!/usr/bin/env bash
# Write the lock files: every package by version and hash, for all platforms and Pythons, naming no index.
# requirements.lock is what the project runs on, scripts/setup.lock what installs it, scripts/docs.lock what builds the site.
set -euo pipefail
VENV=${1:-.venv}
uv=$(command -v uv || echo "$VENV/bin/uv")
compile() {
    "$uv" pip compile "$@" --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade --quiet \
        --custom-compile-command "make lock"
}
compile pyproject.toml --extra dev --output-file requirements.lock
printf 'uv\nsetuptools>=77\n' | compile - --no-annotate --output-file scripts/setup.lock
compile --group docs --constraint requirements.lock --no-annotate --output-file scripts/docs.lock
