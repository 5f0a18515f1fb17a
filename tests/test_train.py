from __future__ import annotations


def test_a_run_leaves_what_a_table_needs(trained):
    run = trained("model=mlp", "data=shapes", "debug=fast", "logger=none")
    assert (run / "summary.json").is_file()
