"""Text: windows that follow each other, splits by place, and what is no text."""

from __future__ import annotations

import math
import os
from collections import Counter

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_trivial import told

from gradflow.config import build
from gradflow.config.options import CONF
from gradflow.data.sources.text import text
from gradflow.runs.errors import UserError

TEXT = "".join(f"{n} Äpfel, " for n in range(200))  # 2,090 characters, 2,290 bytes


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "my.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(("unit", "symbols"), [("characters", [*TEXT]), ("bytes", [*TEXT.encode()])])
def test_splits_lie_one_after_the_other_and_no_window_crosses(path, unit, symbols):
    source = text(path, unit, 10)
    alphabet = sorted(set(TEXT)) if unit == "characters" else range(256)
    assert source.spec.tokens == source.spec.outputs == len(alphabet)
    held = len(symbols) // 20
    places = {"train": (0, -2 * held), "val": (-2 * held, -held), "test": (-held, None)}
    for name, (x, y) in source.load().items():
        part = symbols[slice(*places[name])]
        assert len(x) == (len(part) - 1) // 10
        assert [alphabet[code] for code in x.flatten()] == part[: x.numel()]
        assert [alphabet[code] for code in y.flatten()] == part[1 : y.numel() + 1]


def test_the_king_james_bible_has_no_brackets_around_words():
    source = text(None, "bytes", 8)
    letters = "".join(map(chr, source.load()["train"][0].flatten()[:100_000] % 256))
    assert not set("[]") & set(letters)
    assert letters[0].isupper()
    assert "it came to pass" in letters


def test_every_window_of_an_epoch_is_seen_once(composed, path):
    data = build.data(composed("data=text", f"data.path={path}", "data.length=7", "data.batch_size=8"))
    data.setup()
    loader = data.loader("train", training=True)
    windows = torch.cat([loader.batch(3, index)[0] for index in range(len(loader))])
    everything = {tuple(row) for row in data.splits["train"].x.tolist()}
    assert len(windows) == len(loader) * 8
    assert {tuple(row) for row in windows.tolist()} <= everything
    assert len(windows.unique(dim=0)) >= len(everything) - 8  # what does not fill a batch waits for another epoch


def test_the_trivial_answer_is_the_unigrams_bits(composed, path):
    _, scores = told(composed, "data=text", f"data.path={path}", "data.length=1", "data.batch_size=8")
    train = Counter(TEXT[1 : len(TEXT) - 2 * (len(TEXT) // 20)])
    total = sum(train.values())
    bits = -sum(count / total * math.log2(count / total) for count in train.values())
    assert scores["bits_per_character/train"] == pytest.approx(bits)
    assert scores["perplexity/train"] == pytest.approx(2**bits)
    assert scores["loss/train"] == pytest.approx(bits * math.log(2))


def test_a_character_that_training_lacks_counts_as_seen_once(composed, path):
    with open(path, "a", encoding="utf-8") as file:
        file.write("?")
    _, scores = told(composed, "data=text", f"data.path={path}", "data.length=1", "data.batch_size=8")
    held = (len(TEXT) + 1) // 20
    train, test = Counter(TEXT[1 : len(TEXT) + 1 - 2 * held]), Counter((TEXT + "?")[-held + 1 :])
    train["?"] += 1
    total = sum(train.values())
    bits = -sum(count / sum(test.values()) * math.log2(train[symbol] / total) for symbol, count in test.items())
    assert scores["bits_per_character/test"] == pytest.approx(bits)


@pytest.mark.parametrize("program", ["train", "probe"])
def test_text_chooses_its_metrics_and_the_command_line_others(program):
    def metrics(*words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return list(compose(program, ["data=text", *words]).metrics)

    assert metrics() == ["bits_per_character", "perplexity"]
    assert metrics("metrics=[accuracy]") == ["accuracy"]


@pytest.mark.parametrize(
    ("content", "unit", "line"),
    [
        (None, "characters", "No such file or directory; expected a text file"),
        (b"", "bytes", "the file is empty"),
        (b"short", "characters", r"5 characters are too few for windows of data.length=10 .*expected 220 or more"),
        (b"abc\xff" * 100, "characters", r"byte 3 is no UTF-8.*data.unit=bytes"),
        (b"abc\0" * 100, "characters", "characters of code 0, as binary files have.*data.unit=bytes"),
        (b"abc" * 100, "words", "data.unit=words, data.length=10: expected characters or bytes"),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, content, unit, line):
    file = tmp_path / "x.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=line) as found:
        text(str(file), unit, 10)
    assert os.linesep not in str(found.value)
    with pytest.raises(UserError, match="Is a directory"):
        text(str(tmp_path), "bytes", 10)
    with pytest.raises(UserError, match="a device or a pipe"):
        text("/dev/null", "bytes", 10)  # as /dev/zero, which can be read without end
    with pytest.raises(UserError, match=r"data\.path=3: No such file"):
        text(3, "bytes", 10)
    with pytest.raises(UserError, match="Is a directory"):
        text("", "bytes", 10)  # null is the Bible


def test_any_bytes_are_a_text_of_bytes(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(range(256)) * 2)
    assert text(str(file), "bytes", 4).load()["train"][0].flatten()[:256].tolist() == [*range(256)]
