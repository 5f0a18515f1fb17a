"""What we use of Hydra 1.3 that it does not promise to keep; pyproject.toml allows no newer minor version.

`get_args_parser` is the parser of `hydra.main`, of which the flags are known. Without it: write the list of flags down.
`locate` is `hydra.utils.get_object` without its print to stderr. Without it: silence `get_object`.
"""

from hydra._internal.utils import _locate as locate
from hydra._internal.utils import get_args_parser

__all__ = ["get_args_parser", "locate"]
