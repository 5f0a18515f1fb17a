"""Tells those who know the older name that this program is `replay.py` now."""

import shlex
import sys

print(f"error: batch.py is replay.py now; run  python src/{shlex.join(['replay.py', *sys.argv[1:]])}", file=sys.stderr)
sys.exit(2)
