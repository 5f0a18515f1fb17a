#!/usr/bin/env bash
# Build docs/ as a site into build/site, with what scripts/docs.lock pins. That is installed into $VENV the first time, and then no
# network is needed. It stands apart from requirements.lock because its icons are 17,000 files, which no run needs.
set -euo pipefail
VENV=${1:-.venv}
VIRTUAL_ENV=$VENV "$VENV/bin/uv" pip install --quiet --require-hashes --no-build-isolation -r scripts/docs.lock
# What a page has left out since the last build is not to stay in the site.
rm -rf build/site
"$VENV/bin/python" -m zensical build --strict --clean --config-file .zensical.toml
echo "the site is  build/site/index.html"
