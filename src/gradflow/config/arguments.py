"""What is wrong with the arguments of a command, as far as it shows before Hydra reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import NoReturn

from hydra.conf import HydraConf
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.config import options
from gradflow.config.hydra_internals import get_args_parser
from gradflow.runs.errors import UserError, did_you_mean

_NO_OPTION = re.compile(r"|null|true|false|[-+.\d][\d.e+-]*|\[.*|(?![\"']).*[^ -~].*", re.IGNORECASE)


def check_arguments(arguments: Sequence[str]) -> None:
    """Reject arguments on which Hydra would stumble, or which it would accept in silence."""
    _check_flags(arguments)
    _check_environment()
    added = {argument.partition("=")[0] for argument in arguments}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("="):
            raise UserError(f"{argument}: not of the form key=value")
        several = value[:1] == "[" and _takes_several(name)
        if options.is_group(name) and _NO_OPTION.fullmatch(value) and not several:
            raise UserError(f"{argument}: choose an option; known: {', '.join(options.of_group(name))}")
        if f"+{name}" in added and options.is_group(name):
            raise UserError(f"{argument}: Hydra would drop +{name}=… beside it; write {name}=[…] with all of them")
        if argument.startswith(("+hydra.", "++hydra.")):
            _check_hydra_key(name)
        if argument in ("hydra.run.dir=", "hydra.sweep.dir=", "resume="):
            raise UserError(f"{argument}: give a path, or leave it out")
        if name == "hydra.output_subdir" and runs.first_rank():  # Lightning gives it to the ranks that it starts
            raise UserError(f"{name}: a run's record has its place, .hydra; leave this key out")


def _takes_several(group: str) -> bool:
    """Return whether several options of a group can be chosen at once: those of which the default is a list."""
    return f"- {group}: [" in (options.CONF / "train.yaml").read_text(encoding="utf-8")


def _check_flags(arguments: Sequence[str]) -> None:
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        _, unrecognized, rest = message.partition("unrecognized arguments: ")
        if not unrecognized:
            raise UserError(f"{message.removeprefix('argument ')}; see --help")
        if not rest.startswith("-"):
            raise UserError(f"{rest}: stands apart from the other overrides; write flags before or after them all")
        flags = [flag for action in parser._actions for flag in action.option_strings]
        advice = f"write {rest.lstrip('-')}" if "=" in rest else did_you_mean(rest.split()[0], flags)
        raise UserError(f"{rest}: no such flag; {advice}")

    parser.error = error  # type: ignore[method-assign]
    parser.parse_args(list(arguments))


def _check_environment() -> None:
    """Check what other programs read, too, and would stumble over without saying so."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", threads):
        raise UserError(f"OMP_NUM_THREADS={threads}: expected a whole number, 1 or more, in this environment variable")


def _check_hydra_key(name: str) -> None:
    """Reject a misspelt key of Hydra's own that is added with +: Hydra would take it and do nothing."""
    node, above = OmegaConf.structured(HydraConf), "hydra"
    for part in name.lstrip("+").split(".")[1:]:
        if not OmegaConf.is_dict(node) or not is_dataclass(OmegaConf.get_type(node)):
            return  # of a launcher, a sweeper or a callback, which tells by itself
        if part not in list(node):  # `in` passes over what is still to be chosen
            raise UserError(f"{above}.{part}: no such key; {did_you_mean(part, map(str, node), f'{above}.')}")
        node, above = node._get_node(part), f"{above}.{part}"
