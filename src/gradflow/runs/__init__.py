# ruff: noqa: F401, F403
"""The run folder. What is used from elsewhere, under one name: `runs.SUMMARY`, `runs.write_json`. No torch here."""

from gradflow.runs.file_names import *
from gradflow.runs.files import (
    append_json,
    read_json,
    read_lines,
    replace_nonfinite,
    write_json,
    write_text,
    write_whole,
)
from gradflow.runs.folder import find, first_rank, in_sweep, recorded_overrides, shared_folder
from gradflow.runs.run_summary import Diverged, Pruned, Run, read_objective, write_objective
from gradflow.runs.tables import Table, check_intact, count_lines, flush_tables, read_table, truncate_tables
