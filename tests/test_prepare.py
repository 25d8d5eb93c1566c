"""prepare.py writes exactly the text of any source.

A failure gives one line and leaves no files.
"""

import contextlib
import csv
import errno
import functools
import glob
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, message_of, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prepare
from lib.sources import found_by

SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(tmp_path, *args, name="d"):
    """Run prepare in this process. Returns the documents of train and of val, and meta.json."""
    data = tmp_path / "data"
    prepare.main([*map(str, args), f"--name={name}", f"--data_dir={data}", "--overwrite"])
    assert [p.name for p in data.iterdir()] == [name], "prepare must leave nothing else"
    meta = json.loads((data / name / "meta.json").read_text(encoding="utf-8"))
    bins = [(data / name / f"{split}.bin").read_bytes() for split in ("train", "val")]
    for split, raw in zip(("train", "val"), bins, strict=True):
        assert meta[split]["bytes"] == len(raw) - raw.count(0xFF)
        assert meta[split]["symbols"] == len(raw)
        assert meta[split]["documents"] == raw.count(0xFF) + 1
    return *(raw.split(b"\xff") for raw in bins), meta


def write_jsonl(path, documents, column="text"):
    rows = (json.dumps({"id": i, column: d}) + "\n" for i, d in enumerate(documents))
    path.write_text("".join(rows), encoding="utf-8")
    return path


def articles(n, start=0):
    return [
        f"Article {i}: ünïcode, 日本, 🐍 and {i * i} words.\n" * (1 + i % 3)
        for i in range(start, start + n)
    ]


# --- the text and nothing but the text ------------------------------------------------------------


@SETTINGS
@given(st.text(st.characters(codec="utf-8"), min_size=4, max_size=300), st.floats(0.05, 0.95))
def test_one_document_is_cut_by_position_at_a_character(tmp_path, text, fraction):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    raw = text.encode().removeprefix(b"\xef\xbb\xbf")
    cut = int(len(raw) * (1 - fraction))
    try:
        train, val, meta = make(tmp_path, path, f"--val_fraction={fraction}")
    except ValueError as e:  # the text was so short that one side got nothing
        assert "all the text falls into" in str(e)
        assert cut < 4 or cut + 4 > len(raw)
        return
    assert train[0] + val[0] == raw
    assert len(train) == len(val) == 1
    assert "cut at" in meta["split"]
    assert 0 <= len(train[0]) - cut < 4
    train[0].decode()
    val[0].decode()


def test_the_split_of_tiny_shakespeare_is_nanogpts(tmp_path):
    raw = (bytes(range(32, 127)) * 12000)[:1115394]
    (tmp_path / "input.txt").write_bytes(raw)
    train, val, _ = make(tmp_path, tmp_path / "input.txt")
    assert len(train[0]) == 1003854
    assert val[0] == raw[-111540:]


@SETTINGS
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
        min_size=25,
        max_size=40,
        unique=True,
    )
)
def test_every_document_goes_whole_to_one_side_in_order(tmp_path, documents):
    train, val, _ = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", documents))
    raw = [d.encode() for d in documents]
    assert sorted(train + val) == sorted(raw)
    assert train == [d for d in raw if d in train]
    assert val == [d for d in raw if d in val]


def test_the_hash_decides_whatever_the_order_and_copies_stay_together(tmp_path):
    documents = articles(200)
    a = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", documents))
    b = make(tmp_path, write_jsonl(tmp_path / "b.jsonl", documents[::-1] + documents[:50]))
    assert set(a[0]) == set(b[0])
    assert set(a[1]) == set(b[1])
    assert not set(b[0]) & set(b[1])
    assert 8 < len(a[1]) < 35


def test_all_formats_give_the_same_bins(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = articles(60)
    expected = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", documents))[:2]
    (tmp_path / "a.json").write_text(json.dumps([{"text": d} for d in documents]), encoding="utf-8")
    pq.write_table(pa.table({"text": documents, "n": range(60)}), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["n", "text"], *enumerate(documents)])
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    for i, document in enumerate(documents):
        (folder / f"{i:03}.{'md' if i % 2 else 'txt'}").write_bytes(document.encode())
    for source in ("a.json", "a.parquet", "a.csv", "folder", "folder/**/*.*"):
        assert make(tmp_path, tmp_path / source)[:2] == expected, source
    write_jsonl(tmp_path / "column.jsonl", documents, "story")
    assert make(tmp_path, tmp_path / "column.jsonl", "--text_column=story")[:2] == expected


def test_a_validation_source_wins(tmp_path):
    val = write_jsonl(tmp_path / "v.jsonl", articles(3, 90))
    train, val, _ = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", articles(30)), f"--val={val}")
    assert [d.decode() for d in train] == articles(30)
    assert [d.decode() for d in val] == articles(3, 90)


def test_val_is_never_empty_and_never_more_than_its_cap(tmp_path, monkeypatch):
    # The hash alone would leave val empty in two of three cases of 20 documents and 2%.
    for start in range(0, 60, 20):
        source = write_jsonl(tmp_path / "a.jsonl", articles(20, start))
        _, val, _ = make(tmp_path, source, "--val_fraction=0.02")
        assert val != [b""]
    monkeypatch.setattr(prepare, "VAL_CAP", 500)
    (tmp_path / "a.txt").write_text("word " * 4000)
    assert len(make(tmp_path, tmp_path / "a.txt")[1][0]) == 500
    train, val, _ = make(tmp_path, write_jsonl(tmp_path / "b.jsonl", articles(200)))
    assert sum(map(len, val)) <= 500
    assert len(train) + len(val) == 200


def test_what_val_holds_never_comes_to_train(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "VAL_CAP", 700)
    train, val, _ = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", articles(200) * 3))
    assert val != [b""]
    assert not set(train) & set(val)
    same = write_jsonl(tmp_path / "b.jsonl", articles(30))
    with pytest.raises(ValueError, match="part of the training text"):
        make(tmp_path, same, f"--val={tmp_path}/./b.jsonl")


def test_a_csv_cell_is_text_whatever_it_says(tmp_path):
    cells = ["NA", "null", "nan", "a, b", 'say "x"', "two\nlines", *articles(30)]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["text"], *([c] for c in cells)])
    train, val, _ = make(tmp_path, tmp_path / "a.csv")
    assert sorted(train + val) == sorted(c.encode() for c in cells)


def test_a_folder_that_is_no_dataset_is_left_alone(tmp_path):
    (tmp_path / "data" / "d").mkdir(parents=True)
    (tmp_path / "data" / "d" / "thesis.txt").write_text("ten years of work")
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(ValueError, match="not a dataset"):
        make(tmp_path, tmp_path / "a.txt")
    assert (tmp_path / "data" / "d" / "thesis.txt").exists()


def test_killed_between_the_two_renames_of_overwrite_the_old_data_come_back(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    make(tmp_path, tmp_path / "a.txt")
    (tmp_path / "data" / "d").rename(tmp_path / "data" / ".d.tmp-old")
    with pytest.raises(ValueError, match="no text"):
        (tmp_path / "empty.txt").touch()
        prepare.main([str(tmp_path / "empty.txt"), "--name=d", f"--data_dir={tmp_path / 'data'}"])
    assert (tmp_path / "data" / "d" / "meta.json").exists()


def test_max_bytes_stops(tmp_path):
    train, val, _ = make(
        tmp_path, write_jsonl(tmp_path / "a.jsonl", articles(200)), "--max_bytes=3000"
    )
    assert 3000 <= sum(map(len, train + val)) < 3004
    (tmp_path / "b.txt").write_text("é" * 5000, encoding="utf-8")
    train, val, _ = make(tmp_path, tmp_path / "b.txt", "--max_bytes=3001")
    assert len(train[0] + val[0]) == 3002


@pytest.mark.parametrize("size", [(1 << 20) - 3, (1 << 20) - 2, (1 << 20) - 1, 1 << 20])
def test_characters_across_the_border_of_two_reads(tmp_path, size):
    raw = b"a" * size + "🐍".encode() + b"\r\n\0end"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + raw)
    train, val, _ = make(tmp_path, tmp_path / "a.txt")
    assert train[0] + val[0] == raw, "CRLF and NUL must stay, a byte-order mark must not"
    (tmp_path / "b.txt").write_bytes(b"a" * size + b"\xf0\x9f bad")
    with pytest.raises(ValueError, match=rf"b.txt is not UTF-8: byte {size} is 0xF0"):
        make(tmp_path, tmp_path / "b.txt")


@pytest.mark.parametrize("vocab", [50257, 1000])
def test_gpt2_tokens_decode_to_the_text(vocab, tmp_path):
    try:
        encoding = prepare.gpt2(vocab)
    except Exception as e:
        pytest.skip(
            "tiktoken's gpt2 files are not here (TIKTOKEN_CACHE_DIR names their folder): "
            f"{type(e).__name__}"
        )
    from config import Config
    from lib.data import Data

    documents = [*articles(30), "word " * 300_000]  # prepare encodes the last one in pieces
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    prepare.main(
        [
            str(path),
            "--tokenizer=gpt2",
            f"--gpt2_vocab={vocab}",
            f"--data_dir={tmp_path}",
            "--name=a",
        ]
    )
    prepare.main([str(path), f"--data_dir={tmp_path}", "--name=b"])
    found = []
    bytes_meta = json.loads((tmp_path / "b/meta.json").read_text())
    knobs = {
        "dataset": "a",
        "data_dir": str(tmp_path),
        "tokenizer": "gpt2",
        "pooling": "none",
        "max_steps": 1,
    }
    for split in ("train", "val"):
        data = Data(Config(**knobs, gpt2_vocab=vocab), split)
        assert data.symbols.dtype == np.uint16 and data.symbols.max() == vocab - 1
        assert data.meta[split]["text_sha256"] == bytes_meta[split]["sha256"], (
            "the hash must be of the text, whatever its symbols"
        )
        text = encoding.decode(data.symbols.tolist())
        n_bytes = len(text.replace("<|endoftext|>", "").encode())
        assert data.meta[split]["bytes"] == n_bytes == data.lengths[data.symbols].sum()
        found += text.split("<|endoftext|>")
    assert sorted(found) == sorted(documents)
    with pytest.raises(ValueError, match=rf"expected a vocabulary of 500 .gpt2., got {vocab}"):
        Data(Config(**knobs, gpt2_vocab=500), "val")


class Letters:
    """An encoding whose tokens are bytes. It keeps the texts that it is given."""

    eot_token = 256

    def __init__(self):
        self.texts = []

    def encode_ordinary(self, text):
        self.texts.append(text)
        return list(text.encode())


LONG = {
    "one letter": "a" * 50_000,
    "Chinese": "天气很好我们去公园散步" * 1500,
    "snakes": "🐍" * 12_000,
    "no space": "abcdefghijklmnopqrstuvwxyz,0123456789\n" * 1200,
    "a place at the start": "a b" + "c" * 50_000,
    "words": "word and " * 5500,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("size", [7, 1000, 10**6])
def test_a_long_document_is_encoded_in_parts_in_linear_time(tmp_path, monkeypatch, kind, size):
    """Whatever it holds, and whatever pieces it comes in."""
    monkeypatch.setattr(prepare, "PART", 1000)
    searched = []
    place_to_cut = prepare.place_to_cut
    monkeypatch.setattr(
        prepare, "place_to_cut", lambda t: searched.append(len(t)) or place_to_cut(t)
    )
    text = LONG[kind]
    pieces = [text[i : i + size].encode() for i in range(0, len(text), size)]
    bar = SimpleNamespace(update=lambda n: None)
    split = prepare.Split(tmp_path / "a.bin", Letters(), bar)
    assert split.add(pieces) == len(text.encode())
    split.close()
    assert np.fromfile(tmp_path / "a.bin", dtype="<u2").astype(np.uint8).tobytes() == text.encode()
    assert max(len(part.encode()) for part in split.encoding.texts) < 3000
    assert sum(searched) < 3 * len(text.encode())
    if kind == "words":
        assert all(part.startswith(" ") for part in split.encoding.texts[1:])
    start = time.time()
    assert place_to_cut(b"a" * (1 << 17)) == (1 << 17) - 1
    assert time.time() - start < 2


def test_a_cut_between_words_changes_no_token(tmp_path, monkeypatch):
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("needs tiktoken's gpt2 files: set TIKTOKEN_CACHE_DIR")
    text = "The naïve café  sold 10 µg of 日本 tea,\nand it's   here .\n" * 50
    encoding = prepare.gpt2(50257)
    monkeypatch.setattr(prepare, "PART", 100)
    split = prepare.Split(tmp_path / "a.bin", encoding, SimpleNamespace(update=lambda n: None))
    split.add([text.encode()])
    split.close()
    found = np.fromfile(tmp_path / "a.bin", dtype="<u2").tolist()
    assert found == encoding.encode_ordinary(text)


@pytest.mark.parametrize(
    "word, name",
    [
        ("C:\\Users\\me\\book.txt", "book"),
        ("D:/x/diary.txt", "diary"),
        ("d:diary.txt", "diary"),
        ("\\\\server\\share\\a.b.md", "a.b"),
        ("/home/me/a.b.md", "a.b"),
        ("notes\\2024", "2024"),
        ("C:\\", "text"),
        ("roneneldan/TinyStories", "TinyStories"),
        ("wikimedia/wikipedia:20231101.simple", "wikipedia"),
        ("https://example.org/x/a.txt", "a"),
        ("notes/*.md", "text"),
        ("..", "text"),
    ],
)
def test_the_name_of_a_dataset_comes_from_a_path_of_any_system(word, name):
    assert prepare.default_name(word, prepare.PrepareConfig()) == name
    cfg = prepare.PrepareConfig(tokenizer="gpt2", gpt2_vocab=500)
    assert prepare.default_name(word, cfg) == f"{name}-gpt2-500"


@pytest.mark.parametrize(
    "bad",
    [
        "--name=../elsewhere",
        "--name=.",
        "--max_bytes=-1",
        "--val_fraction=1",
        "--gpt2_vocab=256",
        "--nam=a",
    ],
)
def test_impossible_knobs_are_refused_by_name(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(ValueError, match=bad[2:].partition("=")[0]):
        prepare.main(["a.txt", bad])
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_folder_above_as_a_source(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "a.txt").write_text("text " * 100)
    monkeypatch.chdir(tmp_path / "here")
    prepare.main([".."])
    assert (tmp_path / "here/data/text/meta.json").is_file()


def test_the_default_needs_neither_network_nor_datasets(tmp_path):
    code = "import sys, prepare; prepare.main([]); sys.exit('datasets' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0
    raw = (tmp_path / "data" / "stdlib" / "train.bin").read_bytes()
    assert len(raw) > 5e6
    assert raw.count(b"import ") > 500
    assert b"\xff" in raw
    assert "; --overwrite replaces it" in run("prepare.py", cwd=tmp_path).stdout


# --- text goes in as it is ------------------------------------------------------------------------


def write_csv(path, cells, column="text"):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["n", column], *enumerate(cells)])
    return path


AS_IT_IS = [
    "007",
    "1.10",
    "0",
    "False",
    "3" * 31,
    "2024-01-02",
    "1e5",
    "+3",
    " a ",
    "NaN",
    "-0",
    "0x1F",
    "1_000",
    "null",
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_cells_are_neither_read_as_numbers_nor_trimmed(tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"a.{suffix}"
    cells = [*AS_IT_IS, *articles(20)]
    if suffix == "csv":
        write_csv(path, cells)
    elif suffix == "jsonl":
        write_jsonl(path, cells)
    elif suffix == "json":
        path.write_text(json.dumps([{"text": c} for c in cells], indent=1), encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": cells}), path)
    train, val, _ = make(tmp_path, path)
    assert sorted(train + val) == sorted(c.encode() for c in cells)


def test_columns_of_bytes_are_text_and_others_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = articles(30)
    pq.write_table(pa.table({"text": [d.encode() for d in documents]}), tmp_path / "bytes.parquet")
    train, val, _ = make(tmp_path, tmp_path / "bytes.parquet")
    assert sorted(train + val) == sorted(d.encode() for d in documents)
    odd = {
        "list": [["a"]] * 30,
        "int": [3] * 30,
        "float": [0.5] * 30,
        "dict": [{"a": 1}] * 30,
        "bool": [True] * 30,
    }
    for kind, column in odd.items():
        pq.write_table(pa.table({"text": column}), tmp_path / "odd.parquet")
        with pytest.raises(
            ValueError, match=rf"odd.parquet, row 1: column 'text' holds {kind}, not text"
        ):
            make(tmp_path, tmp_path / "odd.parquet")
        (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"text": v}) + "\n" for v in column))
        with pytest.raises(
            ValueError, match=rf"odd.jsonl, line 1: column 'text' holds {kind}, not text"
        ):
            make(tmp_path, tmp_path / "odd.jsonl")
    for kind in (pa.string(), pa.large_string()):
        cells = pa.array([*(d.encode() for d in documents), b"caf\xe9"])
        cells = cells.cast(pa.large_binary() if kind == pa.large_string() else pa.binary()).view(
            kind
        )
        pq.write_table(pa.table({"text": cells}), tmp_path / "latin.parquet")
        with pytest.raises(ValueError, match=r"latin.parquet, row 31: 'utf-8' codec"):
            make(tmp_path, tmp_path / "latin.parquet")
        repaired = make(tmp_path, tmp_path / "latin.parquet", "--errors=replace")
        assert "caf\ufffd".encode() in repaired[0] + repaired[1]
    pq.write_table(pa.table({"text": documents}), tmp_path / "shard-1.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "shard-0.parquet")
    pq.write_table(pa.table({}), tmp_path / "shard-2.parquet")
    assert make(tmp_path, tmp_path / "shard-*.parquet")[0] == train, (
        "empty shards must add nothing and stop nothing"
    )


BAD_ROWS = {
    "a.jsonl": (b'{"text": "x\\ud800y"}', "line 31", "x\ufffdy"),
    "half.jsonl": (b'{"text": "half a li', "line 31", None),
    "latin.jsonl": (b'{"text": "caf\xe9"}', "line 31", "caf\ufffd"),
    "number.jsonl": (b"17", "line 31", None),
    "deep.jsonl": (b"[" * 100_000, "line 31", None),
    "digits.jsonl": (b'{"text": ' + b"9" * 5000 + b"}", "line 31", None),
    "column.jsonl": (b'{"txt": "x"}', "line 31", None),
    "cells.csv": (b"1,2,3", "line 32", None),
    "quote.csv": (b'30,"a quote "inside" it', "line 3", None),
    "latin.csv": (b"30,caf\xe9", "line 32", "caf\ufffd"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_line_and_errors_replace_goes_on(tmp_path, name, capsys):
    bad, where, instead = BAD_ROWS[name]
    documents = [f"document {i}" for i in range(30)]
    path = tmp_path / name
    if name.endswith("jsonl"):
        write_jsonl(path, documents)
        rest = b'{"text": "and on"}'
    else:
        write_csv(path, documents)
        rest = b"31,and on"
    path.write_bytes(path.read_bytes() + bad + b"\n" + rest + b"\n")
    with pytest.raises(ValueError, match=rf"{name}, {where}") as e:
        make(tmp_path, path)
    assert "--errors=replace" in str(e.value) and "\n" not in str(e.value)
    train, val, _ = make(tmp_path, path, "--errors=replace")
    found = [d.decode() for d in train + val]
    assert set(documents) <= set(found)
    if name != "quote.csv":  # an open quote swallows the next row
        assert "and on" in found
    if instead:
        assert instead in found
    else:
        assert "left out: 1 broken rows" in capsys.readouterr().out


def test_columns_in_place_of_rows_are_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": ["a", "b"], "n": [1, 2]}))
    with pytest.raises(ValueError, match=r"a.json, line 1: column 'text' holds list"):
        make(tmp_path, tmp_path / "a.json")


def test_a_folder_gives_what_a_person_would_call_its_text(tmp_path, capsys):
    folder = tmp_path / "project"
    documents = articles(30)
    folder.mkdir()
    for i, document in enumerate(documents):
        place = folder / ("src" if i % 2 else "docs") / f"{i:03}.{'py' if i % 2 else 'txt'}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(document.encode())
    for name in (
        ".git/config",
        ".ssh/id_rsa",
        ".env",
        "src/.ipynb_checkpoints/a.txt",
        "src/__pycache__/a.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for training")
    (folder / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0binary")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "data.zip").write_bytes(b"PK\3\4rest")
    (folder / "package.json").write_text(json.dumps({"name": "x", "version": 1}, indent=1))
    (folder / "figures.csv").write_text("n,figure\n1,2.5\n")
    (folder / "deep.json").write_text("[" * 100_000)
    (tmp_path / "secret.txt").write_text("not for training")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "again.txt").symlink_to(folder / "docs" / "000.txt")
    train, val, _ = make(tmp_path, folder)
    assert sorted(train + val) == sorted(d.encode() for d in documents)
    said = capsys.readouterr().out
    assert "4 hidden" in said
    assert "1 in caches" in said
    assert "1 reached by links that leave the folder" in said
    assert "2 tables without a column 'text' (.json)" in said
    assert "1 tables without a column 'text' (.csv)" in said
    assert "1 not UTF-8 text (.png)" in said and "1 not UTF-8 text (.zip)" in said
    assert make(tmp_path, f"{folder}/**/*")[:2] == (train, val), "folder and glob must agree"
    train, val, _ = make(tmp_path, folder, "--errors=replace")
    assert "caf\ufffd".encode() in train + val
    for name in ("only", "only/.hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "only/.hidden/a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no text in .*left out: 1 hidden"):
        make(tmp_path, tmp_path / "only")


@pytest.mark.parametrize("word", ["x", "x/", "x/**/*.txt", "x/**", "x/**/", "**/*.txt", "x/*", "."])
def test_links_that_lead_back_add_nothing_and_hang_nothing(tmp_path, monkeypatch, word, capsys):
    monkeypatch.chdir(tmp_path)
    documents = articles(30)
    for i, document in enumerate(documents):
        path = Path("x/sub/deep" if i % 2 else "x/sub", f"{i}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document, encoding="utf-8")
    for name in ("x/a", "x/b", "x/sub/c", "x/sub/deep/d"):
        Path(name).symlink_to(tmp_path / "x", target_is_directory=True)
    Path("x/loop").symlink_to("loop")
    Path("x/nowhere").symlink_to("absent")
    Path("x/.hidden.txt").symlink_to("sub/0.txt")
    train, val, _ = make(tmp_path / "out", word)
    assert sorted(train + val) == sorted(d.encode() for d in documents)
    said = capsys.readouterr().out
    assert "leave the folder" not in said and "not UTF-8" not in said
    assert "1 hidden" in said or "hidden" not in said


@pytest.mark.parametrize("word", ["x", "x/**/*.txt", "x/**", "x/*"])
def test_folders_outside_are_not_entered_through_links(tmp_path, monkeypatch, word, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x/sub").mkdir(parents=True)
    Path("x/sub/a.txt").write_text("text " * 100)
    Path("other/deep").mkdir(parents=True)
    for i in range(9):
        Path(f"other/deep/{i}.txt").write_text("not for training")
    Path("x/sub/link").symlink_to("/", target_is_directory=True)
    Path("x/link").symlink_to(tmp_path / "other", target_is_directory=True)
    train, val, _ = make(tmp_path / "out", word)
    assert train[0] + val[0] == b"text " * 100
    assert "2 reached by links that leave the folder" in capsys.readouterr().out


def test_a_glob_finds_what_pythons_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.txt",
        "x/b.txt",
        "x/y/c.txt",
        "x/y/z/d.md",
        "[q]/y/e.txt",
        ".h/f.txt",
        "x/.g.txt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("text")
    for pattern in (
        "**/*.txt",
        "**",
        "x/**/*",
        "x/**/y/**/*.md",
        "**/y/*.txt",
        "x/**/c.txt",
        "x/y**/*.txt",
        "**/**/*.txt",
        "x/**/**/**/*.md",
        "x//**//*.txt",
        "./**/x/**",
        "*/y/../*.txt",
        "[[]q]/**/*.txt",
        ".h/**/*.txt",
        "absent/**/*.txt",
        f"{tmp_path}/**/*.txt",
        f"{tmp_path}/x/**",
        "*.txt",
        "x/y/c.txt",
    ):
        expected = {
            os.path.normpath(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()
        }
        found = {os.path.normpath(p) for p in found_by(pattern) if Path(p).is_file()}
        assert found == expected, pattern


def test_packed_text_is_unpacked_or_named_for_what_it_is(tmp_path):
    import gzip

    documents = articles(30)
    write_jsonl(tmp_path / "a.jsonl", documents)
    expected = make(tmp_path, tmp_path / "a.jsonl")[:2]
    raw = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    assert make(tmp_path, tmp_path / "b.jsonl.gz")[:2] == expected
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"text " * 100))
    train, val, _ = make(tmp_path, tmp_path / "c.txt.gz")
    assert train[0] + val[0] == b"text " * 100
    kinds = {
        "zip": b"PK\3\4",
        "zstd": b"\x28\xb5\x2f\xfd",
        "UTF-16": "text".encode("utf-16"),
        "PDF": b"%PDF-1.4",
    }
    for kind, content in kinds.items():
        for name in ("d.txt", "d.jsonl", "d.csv"):
            (tmp_path / name).write_bytes(content * 9)
            with pytest.raises(ValueError, match=kind) as e:
                make(tmp_path, tmp_path / name)
            assert "--errors" not in str(e.value) and "\n" not in str(e.value)
    for name in ("e.jsonl.gz", "e.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(raw)[:-20])
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            make(tmp_path, tmp_path / name)


def test_the_same_name_for_other_text_is_an_error(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"text {name} " * 100)

    def ask(*args):
        prepare.main([*map(str, args), "--name=x", f"--data_dir={tmp_path / 'data'}"])

    ask(tmp_path / "a.txt")
    ask(tmp_path / "a.txt")
    assert "; --overwrite replaces it" in capsys.readouterr().out
    meta = json.loads((tmp_path / "data/x/meta.json").read_text())
    for sources in (None, 5, "text"):  # of another program, or edited
        (tmp_path / "data/x/meta.json").write_text(json.dumps(meta | {"sources": sources}))
        with pytest.raises(ValueError, match=r"exists with sources=.*--overwrite"):
            ask(tmp_path / "a.txt")
    (tmp_path / "data/x/meta.json").write_text(json.dumps(meta))
    for other in (
        [tmp_path / "b.txt"],
        [tmp_path / "a.txt", "--max_bytes=99"],
        [tmp_path / "a.txt", "--val_fraction=0.5"],
    ):
        with pytest.raises(
            ValueError,
            match=r"exists with (sources|max_bytes|val_fraction)=.*--overwrite",
        ):
            ask(*other)


def test_too_little_text_says_so_and_its_advice_works(tmp_path, capsys, monkeypatch):
    import shlex

    import train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A poem. " * 30)
    prepare.main(["a.txt"])
    _, _, command = capsys.readouterr().out.splitlines()[-1].partition("train.py")
    args = [*shlex.split(command), "--max_steps=1", "--device=cpu", "--out_dir=run"]
    _, _, advice = message_of(train.main, args).partition("or add ")
    train.main([*args, *shlex.split(advice)])


def test_two_at_once(tmp_path):
    from lib.files import lock

    (tmp_path / "a.txt").write_text("text " * 100)
    work = tmp_path / "data" / ".a.tmp"
    with lock(tmp_path / "data" / "a", ""):
        work.mkdir()
        with pytest.raises(ValueError, match="another process is preparing"):
            prepare.main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path / 'data'}"])
        assert work.exists(), "the second process must not remove the first one's work"
    prepare.main([str(tmp_path / "a.txt"), f"--data_dir={tmp_path / 'data'}"])
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["a"]


# --- URLs -----------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder, and some answers that no file gives."""

    def do_GET(self):
        kind = self.path.strip("/").partition(".")[0]
        if kind not in ("cut", "chunk", "endless", "drip", "silent", "head", "html"):
            return super().do_GET()
        if kind == "silent":
            time.sleep(3)
            return
        if kind == "head":  # a header that does not end
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            return self.write_for_ever(b"X", 0.05)
        self.send_response(200)
        if kind == "cut":
            self.send_header("Content-Length", "5000")
        if kind == "chunk":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if kind == "chunk":
            self.wfile.write(b"1000\r\n")
        if kind in ("cut", "chunk"):
            self.wfile.write(b"text " * 100)
        if kind == "endless":
            head = b"\x1f\x8b" if self.path.endswith("gz") else b""
            head = b"[" if self.path.endswith("json") else head
            self.wfile.write(head)
            self.write_for_ever(b"a text without a line" * 1000, 0)
        if kind == "drip":
            self.write_for_ever(b"a", 0.005)

    def write_for_ever(self, piece, pause):
        with contextlib.suppress(OSError):
            for _ in range(10**4):
                self.wfile.write(piece)
                time.sleep(pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """The address of a server for the files in tmp_path."""
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_gives_what_its_file_gives(tmp_path, web, capsys):
    documents = articles(40)
    write_jsonl(tmp_path / "a.jsonl", documents)
    train, val, meta = make(tmp_path, f"{web}/a.jsonl")
    assert sorted(train + val) == sorted(d.encode() for d in documents)
    assert meta["sources"] == [f"{web}/a.jsonl"]
    said = capsys.readouterr().out
    assert "unknown size" in said and "left out" not in said
    assert socket.getdefaulttimeout() is None
    (tmp_path / "other").mkdir()
    write_jsonl(tmp_path / "other/a.jsonl", articles(40, 100))
    train, val, meta = make(tmp_path, f"{web}/a.jsonl", f"{web}/other/a.jsonl")
    assert sorted(train + val) == sorted(d.encode() for d in documents + articles(40, 100))


@pytest.mark.parametrize("text", ["é" * 3000, "\ufeffé日🐍" * 999, "a line\n" * 999, "🐍" * 251])
def test_of_a_long_text_at_a_url_max_bytes_are_read(tmp_path, web, text, capsys, monkeypatch):
    monkeypatch.setattr("lib.sources.BEYOND", 20)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for most in (1000, 1001, 1002, 1003, 1004):
        expected = make(tmp_path, tmp_path / "a.txt", f"--max_bytes={most}")[:2]
        assert "the rest is left out" not in capsys.readouterr().out
        assert make(tmp_path, f"{web}/a.txt", f"--max_bytes={most}")[:2] == expected
        is_long = len(text.encode()) > 1024
        said = f"{web}/a.txt has more than {most:,} bytes: the rest is left out"
        assert (said in capsys.readouterr().out) == is_long


def test_of_a_long_table_at_a_url_whole_rows_are_read(tmp_path, web, monkeypatch):
    monkeypatch.setattr("lib.sources.BEYOND", 400)
    documents = [f"line {i},\nand another one, 日本" * (1 + i % 5) for i in range(400)]
    write_jsonl(tmp_path / "a.jsonl", documents)
    write_csv(tmp_path / "a.csv", documents)
    known = {d.encode() for d in documents}
    for most in (3000, 3007, 3100):
        train, val, _ = make(tmp_path, f"{web}/a.jsonl", f"--max_bytes={most}")
        *whole, last = train + val
        assert set(whole) <= known and len(whole) > 20
        assert last in known or last in documents[len(whole)].encode()
        assert 1500 < sum(map(len, train + val)) <= most


def test_endless_answers_end(tmp_path, web, monkeypatch):
    monkeypatch.setattr(prepare, "HUB_CAP", 20_000)
    for most, size in (("--max_bytes=1000", 1000), ("--max_bytes=0", 20_000)):
        train, val, _ = make(tmp_path, f"{web}/endless.txt", most)
        assert train[0] + val[0] == (b"a text without a line" * 1000)[:size]
    monkeypatch.setattr("lib.sources.BEYOND", 100)
    train, val, _ = make(tmp_path, f"{web}/drip.txt", "--max_bytes=100")
    assert train[0] + val[0] == b"a" * 100
    (tmp_path / "a.txt").write_text("text " * 100)
    train, val, _ = make(tmp_path, tmp_path / "a.txt", f"--val={web}/endless.txt")
    assert train[0] == b"text " * 100 and 20_000 <= len(val[0]) <= 20_100


def test_what_cannot_be_cut_is_refused(tmp_path, web, monkeypatch):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("lib.sources.BEYOND", 100)
    documents = articles(90)
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps([{"text": d} for d in documents]))
    (tmp_path / "b.jsonl").write_text(json.dumps([{"text": d} for d in documents]))
    raw = write_jsonl(tmp_path / "c.jsonl", documents).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.txt").write_bytes(gzip.compress(raw))
    names = ("a.parquet", "a.json", "b.jsonl", "a.jsonl.gz", "a.txt")
    for name in (*names, "endless.txt.gz", "endless.json"):
        args = [f"{web}/{name}", "--max_bytes=500", f"--data_dir={tmp_path / 'data'}"]
        message = message_of(prepare.main, args)
        assert message.startswith(f"{web}/{name} has more than 600 bytes, and only ")
        assert "download it yourself" in message
        if not name.startswith("endless"):
            train, val, _ = make(tmp_path, args[0])
            assert sum(map(len, train + val)) > 5000


@pytest.mark.parametrize(
    "name, why",
    [
        ("cut.txt", "expected 5,000 bytes, got 500"),
        ("chunk.txt", "IncompleteRead"),
        ("absent.txt", "404"),
        ("drip.txt", "takes more than 1 seconds"),
        ("head.txt", "takes more than 1 seconds"),
        ("silent.txt", "timed out"),
        ("latin.txt", "is not UTF-8: byte 3 is 0xE9"),
        ("latin.jsonl", "line 1 is not UTF-8"),
        ("row.jsonl", "line 2: "),
        ("row.csv", "no column 'text'"),
        ("zip.txt", "a zip archive"),
        ("empty.txt", ""),
    ],
)
def test_a_download_that_fails_names_its_url(tmp_path, web, name, why, monkeypatch):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    (tmp_path / "row.jsonl").write_text('{"text": "a"}\n{"text": "b')
    (tmp_path / "row.csv").write_text("title\na\n")
    (tmp_path / "zip.txt").write_bytes(b"PK\3\4")
    (tmp_path / "empty.txt").write_bytes(b"")
    monkeypatch.setattr("lib.sources.FETCH_SECONDS", 1)
    monkeypatch.setattr("lib.sources.SILENT_SECONDS", 0.5)
    start = time.time()
    message = message_of(prepare.main, [f"{web}/{name}", f"--data_dir={tmp_path / 'data'}"])
    assert f"{web}/{name}" in message and why in message
    assert name == "empty.txt" or message.startswith(f"{web}/{name}")
    assert time.time() - start < 2.5
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://127.0.0.1:1/a", "https://a b/c"])
def test_an_impossible_url_is_named(tmp_path, url):
    message = message_of(prepare.main, [url, f"--data_dir={tmp_path / 'data'}"])
    assert message.startswith(f"{url} cannot be reached")


# --- failures -------------------------------------------------------------------------------------

BAD = {
    "absent.txt": (None, ["absent.txt", "stdlib", "tinystories"]),
    "no/such.jsonl": (None, ["no/such.jsonl"]),
    "no/such.txt.gz": (None, ["no such file or preset: no/such.txt.gz"]),
    "no/such.py": (None, ["no such file or preset: no/such.py"]),
    "shakespear": (None, ["shakespear", "presets: stdlib, shakespeare"]),
    "empty.txt": (b"", ["no text", "empty.txt"]),
    "blank.jsonl": (b'{"text": ""}\n' * 30, ["no text", "blank.jsonl"]),
    "latin.txt": (
        "caf\xe9 au lait".encode("latin-1"),
        ["latin.txt", "byte 3 is 0xE9", "--errors=replace"],
    ),
    "cut.txt": ("日本".encode()[:-1], ["cut.txt", "byte 3", "UTF-8"]),
    "column.jsonl": (
        b'{"title": "a", "body": "b"}\n',
        ["column.jsonl", "'text'", "title, body", "--text_column"],
    ),
    "column.csv": (b"title,body\na,b\n", ["column.csv", "title, body"]),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', ["broken.jsonl"]),
    "broken.parquet": (b"PAR1 this is no parquet file", ["broken.parquet"]),
    "one.txt": (b"x", ["all the text falls into"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, words = BAD[name]
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(ValueError) as e:
        prepare.main([name])
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)
    assert not list(Path().glob("data/*")) + list(Path().glob("data/.*"))


def test_errors_replace_goes_on(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait " * 20)
    train, val, _ = make(tmp_path, tmp_path / "a.txt", "--errors=replace")
    assert (train[0] + val[0]).decode() == "caf\ufffd au lait " * 20


def test_the_command_line_says_one_line(tmp_path):
    assert "val_fraction=2" in message_of(prepare.main, ["--val_fraction=2"])
    assert "'name'" in message_of(prepare.main, ["--nam=x"])
    done = run("prepare.py", "absent.txt", check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("prepare.py: ") and "absent.txt" in done.stderr


@pytest.mark.parametrize("source", ["tinystories", "https://example.org/a.txt"])
def test_no_network_is_one_line_within_seconds(tmp_path, source):
    """The proxy does not exist, so the script can reach no host."""
    proxy = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    start = time.time()
    done = run(
        "prepare.py",
        source,
        check=False,
        cwd=tmp_path,
        env=proxy | {"HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert time.time() - start < 60
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "data").glob("*"))


def test_full_disk_is_one_line_and_keeps_what_was_there(tmp_path, monkeypatch):
    make(tmp_path, write_jsonl(tmp_path / "a.jsonl", articles(30)))
    before = {p: p.read_bytes() for p in (tmp_path / "data" / "d").iterdir()}

    def full(self, symbols):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare.Split, "_write", full)
    with pytest.raises(ValueError, match=r"disk that holds .* is full"):
        make(tmp_path, write_jsonl(tmp_path / "b.jsonl", articles(40)))
    assert {p: p.read_bytes() for p in (tmp_path / "data" / "d").iterdir()} == before
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["d"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_and_the_next_just_works(tmp_path, number):
    (tmp_path / "big.txt").write_bytes(b"some words of text\n" * 10_000_000)
    command = [sys.executable, str(ROOT / "prepare.py"), "big.txt"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline:
        if list(tmp_path.glob("data/.big.tmp/train.bin")):
            break
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert not (tmp_path / "data" / "big").exists()
    if number != signal.SIGKILL:
        assert error.strip().splitlines()[-1].endswith("nothing is left behind")
        assert "Traceback" not in error
        assert not list((tmp_path / "data").iterdir())
    (tmp_path / "big.txt").write_bytes(b"some words of text\n" * 1000)
    run("prepare.py", "big.txt", cwd=tmp_path)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["big"]


def test_memory_does_not_grow_with_the_input(tmp_path):
    code = "import resource, sys, prepare; prepare.main(sys.argv[1:]);"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for name, copies in (("small", 1), ("large", 150)):
        with open(tmp_path / f"{name}.txt", "wb") as f:
            for _ in range(copies):
                f.write(b"a million bytes of text with sp." * 31250)
        command = [sys.executable, "-c", code, f"{name}.txt"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 50_000, "the peak must grow by less than 50,000 kilobytes"


def test_a_linked_dataset_stays_a_link(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 200)
    data = tmp_path / "data"
    (tmp_path / "big").mkdir()
    data.mkdir()
    make(tmp_path, tmp_path / "a.txt", name="a")
    (data / "a").rename(tmp_path / "big" / "a")
    (data / "a").symlink_to(tmp_path / "big" / "a")
    for _ in range(2):
        prepare.main([str(tmp_path / "a.txt"), f"--data_dir={data}", "--overwrite"])
        assert (data / "a").is_symlink() and (data / "a/train.bin").stat().st_size > 500
        assert [path.name for path in data.iterdir()] == ["a"]
        assert [path.name for path in (tmp_path / "big").iterdir()] == ["a"]


def test_a_table_may_be_cut_exactly_at_a_line(tmp_path, web, monkeypatch):
    line = json.dumps({"text": "a" * 50}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 3000)
    monkeypatch.setattr("lib.sources.BEYOND", 10 * len(line))
    for most in range(20 * len(line) - 3, 20 * len(line) + 3):
        train, val, _ = make(tmp_path, f"{web}/a.jsonl", f"--max_bytes={most}")
        assert b"a" * 50 in train + val
