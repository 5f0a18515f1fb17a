"""Tells those who know the older name that this program is `eval.py` now."""

import shlex
import sys

print(f"error: score.py is eval.py now; run  python src/{shlex.join(['eval.py', *sys.argv[1:]])}", file=sys.stderr)
sys.exit(2)
