"""What is left out of a picture is no difference."""

from __future__ import annotations

from gradflow.plots.thinning import cut


def test_a_long_name_keeps_its_ends():
    assert cut(["03.blocks.3.attention.out_proj", "short"], 21) == ["03.blocks.…n.out_proj", "short"]
    assert {len(name) for most in range(3, 9) for name in cut(["0123456789"], most)} == set(range(3, 9))


def test_names_that_would_look_alike_stay_whole():
    names = [f"encoder.layers.{number}.attention.out" for number in range(3)]
    assert cut(names, 12) == names
    assert cut([*names, "another.long.name"], 12)[-1] == "anothe….name"
