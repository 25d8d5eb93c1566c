"""The order of the data, bits per byte, symbols and datasets."""

import itertools
import json
import math
import os
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from lib.data import (
    Data,
    bits_per_byte,
    continuation_start,
    decode,
    encode,
    newest_dataset,
    read_meta,
    streamed_bits_per_byte,
    symbol_lengths,
)
from model import STLM, ModelConfig, NotFinite


def make_data(symbols):
    data = Data.__new__(Data)
    data.symbols = np.asarray(symbols)
    data.lengths = symbol_lengths("bytes", 0)
    return data


# --- data order -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(9, 400), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_visits_each_byte_once_and_all_but_fewer_than_T(size, T, epoch):
    data = make_data(np.arange(size))  # every symbol is its own position
    n = size // T
    rows = np.concatenate([data.batch(3, step, 1, T) for step in range(epoch * n, epoch * n + n)])
    targets = rows[:, 1:].ravel()
    assert len(set(targets)) == len(targets) > size - T
    assert (rows[:, 1:] == (rows[:, :-1] + 1) % size).all(), (
        "a row must be a slice of the text, which is a circle"
    )


def test_epochs_differ_and_seeds_differ_and_both_repeat():
    data = make_data(np.arange(1000))
    n = 100
    epochs = [
        np.concatenate([data.batch(s, e * n + i, 1, 10) for i in range(n)])
        for s, e in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[0] == epochs[2]).all()
    assert (epochs[0] == epochs[3]).all()
    assert epochs[0][:, 0].min() % 10 != epochs[1][:, 0].min() % 10, (
        "the windows of another epoch must start at another offset"
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world):
    data = make_data(np.arange(997))
    for step in (0, 3, 40):
        whole = data.batch(7, step, 8, 12)
        shares = [data.batch(7, step, 8, 12, rank, world) for rank in range(world)]
        assert (np.concatenate(shares) == whole).all()


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["none", "space"])
def test_bits_per_byte_is_the_sum_over_every_byte_of_the_file(pooling):
    """Compare with one byte at a time.

    EOT counts in neither sum. The windows have T symbols, and the last one fewer.
    """
    torch.manual_seed(0)
    model = STLM(
        ModelConfig(pooling=pooling, block_size=16, n_layer=1, n_head=1, n_embd=16, n_local_embd=16)
    ).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    symbols = np.frombuffer(
        b"one two three\xfffour five, six seven eight\xffnine ten eleven", dtype=np.uint8
    )
    total = 0.0
    before = 255
    for start in range(0, len(symbols), 16):
        window = [before, *symbols[start : start + 16].tolist()]
        for t in range(1, len(window)):
            if window[t] != 255:
                x = model.read(torch.tensor([window[:t]]), model.start(1))[0]
                logits = model.head(x)[0, -1].double()
                total -= logits.log_softmax(0)[window[t]].item()
        before = window[-1]
    result = bits_per_byte(model, make_data(symbols), 16)
    assert result["nats"] == pytest.approx(total, abs=1e-4)
    assert result["bytes"] == len(symbols) - 2
    assert result["bpb"] == pytest.approx(total / math.log(2) / (len(symbols) - 2), rel=1e-5)


@pytest.mark.parametrize("by_document", [False, True])
@torch.no_grad()
def test_one_pass_scores_each_byte_with_all_before_it(by_document):
    """streamed_bits_per_byte, compared with a read of each byte's whole past at once."""
    torch.manual_seed(0)
    knobs = {"block_size": 16, "n_match": 2, "n_copy": 1, "match_window": 40, "n_layer": 1}
    model = STLM(ModelConfig(**knobs, n_head=1, n_embd=16, n_local_embd=16)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    documents = [b"the cat sat on the mat and the cat ran", b"", b"on the mat a cat sat, and ran"]
    symbols = np.frombuffer(b"\xff".join(documents), dtype=np.uint8)
    total = 0.0
    texts = [[*d] for d in documents] if by_document else [symbols.tolist()]
    for text in texts:
        x = torch.tensor([[255, *text]])
        log_p = model.head(model.read(x[:, :-1] if text else x, model.start(1))[0]).log_softmax(2)
        total -= sum(log_p[0, t, s].item() for t, s in enumerate(text) if s != 255)
    found = streamed_bits_per_byte(model, make_data(symbols), by_document)
    n_bytes = sum(len(d) for d in documents)
    assert found == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)


def test_uniform_model_scores_eight_bits():
    model = STLM(ModelConfig(block_size=16, n_layer=1, n_head=1, n_embd=16, n_local_embd=16))
    model.embed.weight.data.zero_()
    assert bits_per_byte(model, make_data(np.arange(200) % 256), 16)["bpb"] == pytest.approx(
        8.0, abs=1e-6
    )


def test_bits_per_byte_that_are_not_finite_are_an_error():
    model = STLM(ModelConfig(block_size=16, n_layer=1, n_head=1, n_embd=16, n_local_embd=16))
    model.embed.weight.data[3] = math.nan
    with pytest.raises(NotFinite, match="expected finite bits per byte"):
        bits_per_byte(model, make_data(np.arange(200) % 256), 16)


def test_evaluation_reports_overflow():
    model = STLM(
        ModelConfig(block_size=16, max_patches=4, n_layer=1, n_head=1, n_embd=16, n_local_embd=16)
    )
    few = np.frombuffer(b"abcdefg hijklmn " * 8, np.uint8)
    many = np.frombuffer(b"a b c d e f g h " * 8, np.uint8)
    assert bits_per_byte(model, make_data(few), 16)["overflow"] == 0
    result = bits_per_byte(model, make_data(many), 16)
    assert result["overflow"] == 1 and 1.5 < result["bytes_per_patch"] < 2.1


# --- symbols and datasets -------------------------------------------------------------------------


@pytest.fixture(params=["bytes", "gpt2"])
def tokenizer(request):
    if request.param == "gpt2" and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("needs tiktoken's gpt2 files: set TIKTOKEN_CACHE_DIR")
    return ModelConfig(tokenizer=request.param, pooling="none", gpt2_vocab=1000)


def test_symbols_are_the_text_and_a_continuation_is_what_does_not_lie_whole_in_its_context(
    tokenizer,
):
    """Cut the text at each character, and compare with the symbols decoded one by one."""
    text = "It's 7 o'clock:  the café — 日本 🐍 — is  open, Answer: yes it is\n"
    symbols = encode(tokenizer, text.encode())
    assert decode(tokenizer, symbols) == text.encode()
    lengths = [len(decode(tokenizer, [s])) for s in symbols]
    assert [symbol_lengths(tokenizer.tokenizer, 1000)[s] for s in symbols] == lengths
    for cut in range(len(text) + 1):
        context = text[:cut].encode()
        whole = [end for end in itertools.accumulate(lengths) if end <= len(context)]
        assert continuation_start(tokenizer, context, symbols) == len(whole)
    assert continuation_start(tokenizer, b"", []) == 0


def test_any_text_is_a_split_without_a_copy_or_with_two_bytes_per_token(tokenizer):
    text = "the café, 日本 🐍 and so on ".encode() * 40_000
    encode(tokenizer, b"warm up")
    tracemalloc.start()
    data = Data.of_text(tokenizer, text)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decode(tokenizer, data.symbols.tolist()) == text
    if tokenizer.tokenizer == "bytes":
        assert data.symbols.dtype == np.uint8 and peak < 100_000
    else:
        assert data.symbols.dtype == np.uint16 and kept < 2 * len(data.symbols) + 100_000
    assert len(Data.of_text(tokenizer, b"").symbols) == 0


WRONG = {
    ("train", "bytes"): [10, True, "9", 9.0, math.nan, 10**400, 0, -9, None, [], {}],
    ("val", "symbols"): [True, "4", 4.0, 10**4000, -4, None],
    ("val", "documents"): [-1, True, "1", 0.5, None],
    ("vocab_size",): [True, 1, -256, "256", 256.0, None],
    ("dtype",): ["uint16", "a\nb", 8, None],
    ("tokenizer",): ["words", "", [], None],
    ("train", "sha256"): ["", "x" * 64, ["a"] * 64, 5, None],
    ("train",): [None, [], 5, "text"],
}
WRONG = [(keys, value) for keys, values in WRONG.items() for value in values]


@pytest.mark.parametrize("keys, value", WRONG, ids=lambda x: str(x)[:20])
def test_an_impossible_entry_of_meta_json_is_refused_in_one_line(tmp_path, keys, value):
    write_dataset(tmp_path / "d", b"some text", b"more")
    path = tmp_path / "d/meta.json"
    meta = json.loads(path.read_text())
    place = meta
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json cannot be used .*--overwrite") as e:
        read_meta(tmp_path / "d")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    del place[keys[-1]]
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json cannot be used"):
        read_meta(tmp_path / "d")


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "[" * 100_000, '{"a": ' + "9" * 5000, "\xff"]
)
def test_a_meta_json_that_is_no_object_is_refused_in_one_line(tmp_path, content):
    write_dataset(tmp_path / "d", b"some text", b"more")
    (tmp_path / "d/meta.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"meta\.json cannot be used .*--overwrite") as e:
        read_meta(tmp_path / "d")
    assert "\n" not in str(e.value)
    assert newest_dataset(Config(max_steps=1, data_dir=str(tmp_path))) is None


def test_a_token_has_at_most_128_bytes_of_text(tmp_path):
    write_dataset(tmp_path / "d", b"some text!", b"more")
    path = tmp_path / "d/meta.json"
    meta = json.loads(path.read_text()) | {"tokenizer": "gpt2", "dtype": "uint16"}
    for split, tokens in (("train", 5), ("val", 2)):
        meta[split] |= {"symbols": tokens, "bytes": 128 * tokens}
    path.write_text(json.dumps(meta))
    assert read_meta(tmp_path / "d") == meta
    meta["train"]["bytes"] += 1
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"at most 640 bytes of text in .*train\.bin, got 641"):
        read_meta(tmp_path / "d")


def test_the_newest_dataset_of_the_configs_tokenizer(tmp_path):
    cfg = Config(max_steps=1, data_dir=str(tmp_path))
    assert newest_dataset(cfg) is None
    for age, name in enumerate(("c", "b", "a")):
        write_dataset(tmp_path / name, b"some text", b"more")
        os.utime(tmp_path / name / "meta.json", (1e9 - age, 1e9 - age))
    assert newest_dataset(cfg) == "c"
    for name, broken in (
        ("d", ""),
        ("e", "[]"),
        ("f", '{"name": "other"}'),
        ("g", "\xff"),
        ("h", "[" * 9**6),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text(broken, encoding="latin-1")
    assert newest_dataset(cfg) == "c", "the search must pass over broken datasets"
    meta = json.loads((tmp_path / "a/meta.json").read_text())
    (tmp_path / "a/meta.json").write_text(
        json.dumps(meta | {"tokenizer": "gpt2", "vocab_size": 50257})
    )
    assert newest_dataset(cfg) == "c", "a byte model must pass over a newer dataset of tokens"
    tokens = Config(max_steps=1, data_dir=str(tmp_path), tokenizer="gpt2", pooling="none")
    assert newest_dataset(tokens) == "a"
    fewer_tokens = Config(
        max_steps=1, data_dir=str(tmp_path), tokenizer="gpt2", pooling="none", gpt2_vocab=500
    )
    assert newest_dataset(fewer_tokens) is None
