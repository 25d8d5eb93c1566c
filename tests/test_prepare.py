"""Text in: the bins hold exactly the documents, no document of val is in train, and nothing half-made is ever left."""

import csv
import errno
import hashlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, run
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare

OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "*"}  # nobody listens at port 9


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to work in; datasets go to its data/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(name, data_dir="data"):
    """(documents of train, documents of val, meta) of a byte dataset, after checking meta.json against the bins."""
    folder = prepare.Path(data_dir) / name
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    splits = []
    for split in ("train", "val"):
        raw = (folder / f"{split}.bin").read_bytes()
        splits.append(raw.split(b"\xff"))
        counts = {"documents": len(splits[-1]), "bytes": len(raw) - raw.count(0xFF)}
        assert meta[split] == counts | {"sha256": hashlib.sha256(raw).hexdigest()}
        assert b"" not in splits[-1], "documents are not empty, and EOT stands only between them"
    return *splits, meta


def write_rows(path, documents):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents))


def refused(capsys, *args):
    """The one line with which prepare refuses `args`; nothing is left in data/."""
    before = sorted(os.listdir("data")) if os.path.isdir("data") else []
    with pytest.raises(SystemExit) as stop:
        prepare.main([str(a) for a in args])
    assert isinstance(stop.value.code, str), "exit code 1 and a message"  # sys.exit(str) writes it to stderr
    assert stop.value.code.startswith("prepare.py: ") and "\n" not in stop.value.code
    assert (sorted(os.listdir("data")) if os.path.isdir("data") else []) == before
    assert "Traceback" not in capsys.readouterr().err
    return stop.value.code


def sentences(n, seed=0):
    draw = random.Random(seed)
    words = ["the", "naïve", "café", "日本", "🐍", "of", "tea", "10 µg", "sold", "and", "friends"]
    return [f"{i} " + " ".join(draw.choices(words, k=20)) for i in range(n)]


# --- what is in the bins ---------------------------------------------------------------------------------------------

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(unicode_text, min_size=20, max_size=60, unique=True), st.randoms())
def test_the_bins_hold_exactly_the_documents(tmp_path_factory, documents, shuffle):
    home = tmp_path_factory.mktemp("roundtrip")
    for name in ("a", "b"):
        write_rows(home / f"{name}.jsonl", documents)
        shuffle.shuffle(documents)
        try:
            prepare.main([str(home / f"{name}.jsonl"), f"--data_dir={home}", "--val_fraction=0.3"])
        except SystemExit as e:  # (a corpus of next to nothing)
            assert "too little text" in e.code or "no text" in e.code
            return
    order = [json.loads(line)["text"].encode() for line in (home / "a.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    order = [d for d in order if d]
    train, val, meta = result("a", home)
    train_b, val_b, _ = result("b", home)
    assert sorted(train) == sorted(train_b) or "position" in meta["split"]
    if "by hash" in meta["split"]:
        assert sorted(train + val) == sorted(order) and not set(train) & set(val)
        assert train == [d for d in order if d in set(train)] and val == [d for d in order if d in set(val)]
        assert sorted(val) == sorted(val_b), "the split does not depend on the order"
    else:
        assert b"".join(sorted(train)) and all(any(d.startswith(t) for d in order) for t in train)
        assert sum(map(len, train + val)) == sum(map(len, order))


@settings(max_examples=60, deadline=None)
@given(st.lists(unicode_text.filter(bool), min_size=1, max_size=19), st.floats(0.01, 0.99))
def test_few_documents_are_each_cut_in_two(tmp_path_factory, documents, fraction):
    home = tmp_path_factory.mktemp("few")
    write_rows(home / "few.jsonl", documents)
    want = [], []
    for text in documents:
        raw = text.encode()
        cut = int(len(raw) * (1 - fraction))
        while len(raw[:cut].decode("utf-8", "ignore").encode()) < cut:
            cut += 1
        want[0].append(raw[:cut])
        want[1].append(raw[cut:])
    want = [[part for part in split if part] for split in want]
    args = [str(home / "few.jsonl"), f"--data_dir={home}", f"--val_fraction={fraction!r}"]
    if not all(want):
        with pytest.raises(SystemExit, match="too little text"):
            prepare.main(args)
        return
    prepare.main(args)
    assert [*result("few", home)[:2]] == want


def test_one_file_is_split_as_nanogpt_splits_tiny_shakespeare(home, capsys):
    text = random.Random(0).randbytes(1_115_394).translate(bytes(32 + i % 90 for i in range(256)))
    (home / "input.txt").write_bytes(text)
    prepare.main(["input.txt", "--name=shakespeare"])
    assert (home / "data/shakespeare/val.bin").read_bytes() == text[-111_540:]
    assert (home / "data/shakespeare/train.bin").read_bytes() == text[:1_003_854]
    said = capsys.readouterr().out
    assert "1,115,394 bytes" in said and "by position" in said and "train.py --dataset=shakespeare" in said


def test_copies_of_a_document_stay_on_one_side(home, monkeypatch):
    monkeypatch.setattr(prepare, "VAL_BYTES", 700)  # val fills up: later copies of what is in it must not go to train
    documents = sentences(40) * 3
    random.Random(1).shuffle(documents)
    write_rows("copies.jsonl", documents)
    prepare.main(["copies.jsonl", "--val_fraction=0.4"])
    train, val, meta = result("copies")
    assert not set(train) & set(val) and set(train) | set(val) == {d.encode() for d in documents}
    assert 400 < meta["val"]["bytes"] <= 700 and meta["left_out"] == 120 - len(train) - len(val) > 0


def test_val_of_its_own(home):
    documents = sentences(50)
    write_rows("train.jsonl", documents)
    (home / "val.txt").write_text(documents[7], encoding="utf-8")
    prepare.main(["train.jsonl", "--val=val.txt", "--name=own"])
    train, val, meta = result("own")
    assert val == [documents[7].encode()] and meta["left_out"] == 1
    assert train == [d.encode() for d in documents[:7] + documents[8:]]


def test_val_is_capped_where_a_character_ends(home, monkeypatch):
    monkeypatch.setattr(prepare, "VAL_BYTES", 10)
    (home / "v.txt").write_text("日本日本日本", encoding="utf-8")
    (home / "t.txt").write_text("a" * 300, encoding="utf-8")
    prepare.main(["t.txt", "--val=v.txt"])
    assert result("t")[1] == ["日本日".encode()]
    prepare.main(["t.txt", "--name=long"])  # by position: the end of the file, as much as val holds
    train, val, _ = result("long")
    assert (len(train[0]), len(val[0])) == (290, 10)


def test_max_bytes(home):
    (home / "t.txt").write_text("ab日" * 100, encoding="utf-8")
    prepare.main(["t.txt", "--max_bytes=99"])
    train, val, _ = result("t")
    assert train[0] + val[0] == ("ab日" * 100).encode()[:97]


@pytest.mark.parametrize("n", [3, 40])
def test_every_format_gives_the_same_bins(home, n):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = [d + '\n"quoted", and\r\nmore\x00' for d in sentences(n)]
    (home / "folder/deep").mkdir(parents=True)
    for i, d in enumerate(documents):
        (home / f"folder/{'deep/' * (i > n // 2)}{'ab'[i > n // 2]}{i:02}.{'md' if i % 2 else 'txt'}").write_bytes(d.encode())
    (home / "folder/.hidden").write_bytes(b"\xff\xfe")
    write_rows("rows.jsonl", documents)
    rows = [{"text": d, "id": 1} for d in documents]
    (home / "rows.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (home / "lines.json").write_text((home / "rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with open("rows.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.table({"id": range(n), "text": documents}), "rows.parquet", row_group_size=7)
    bins = set()
    sources = ["folder", "folder/**/*.*", "rows.jsonl", "rows.json", "lines.json", "rows.csv", "rows.parquet"]
    for i, source in enumerate(sources):
        prepare.main([source, f"--name=d{i}"])
        train, val, _ = result(f"d{i}")
        joined = sorted(train + val) if n >= 20 else sorted(a + b for a, b in zip(train, val, strict=True))
        assert joined == sorted(d.encode() for d in documents), source
        bins.add((tuple(sorted(train)), tuple(sorted(val))))
    assert len(bins) == 1


def test_bytes_are_kept_but_a_byte_order_mark(home, monkeypatch):
    text = "\ufeffWindows\r\nline\rends \x00 🐍\ufeff日本\n".encode()
    for piece in (1, 2, 3, 5, 1 << 20):  # characters across the borders of pieces
        monkeypatch.setattr(prepare, "PIECE", piece)
        (home / "t.txt").write_bytes(text)
        prepare.main(["t.txt", f"--name=t{piece}"])
        train, val, _ = result(f"t{piece}")
        assert train[0] + val[0] == text[3:]


def test_gpt2_tokens(home, monkeypatch):
    probe = [sys.executable, "-c", "import tiktoken; tiktoken.get_encoding('gpt2')"]
    try:
        if subprocess.run(probe, capture_output=True, timeout=20).returncode:
            pytest.skip("tiktoken's gpt2 files are neither in TIKTOKEN_CACHE_DIR nor to be fetched")
    except subprocess.TimeoutExpired:
        pytest.skip("tiktoken's gpt2 files cannot be fetched in time")
    documents = sentences(60)
    documents[3] = "a few  words \n\n of\t text\u3000 \u00a0 <|endoftext|>\n" * 40
    write_rows("rows.jsonl", documents)
    prepare.main(["rows.jsonl"])
    train, val, byte_meta = result("rows")
    encoding = prepare.gpt2()
    for piece in (64, 1 << 20):  # long documents are encoded in parts: the ids must not show it
        monkeypatch.setattr(prepare, "PIECE", piece)
        prepare.main(["rows.jsonl", "--tokenizer=gpt2", "--overwrite"])
        meta = json.loads((home / "data/rows-gpt2/meta.json").read_text())
        assert (meta["dtype"], meta["vocab_size"]) == ("uint16", 50257)
        for split, want in (("train", train), ("val", val)):
            ids = np.fromfile(home / f"data/rows-gpt2/{split}.bin", dtype=meta["dtype"]).tolist()
            whole = [[*encoding.encode_ordinary(d.decode()), encoding.eot_token] for d in want]
            assert ids == [i for one in whole for i in one][:-1], f"{split} in pieces of {piece}"
            assert meta[split]["bytes"] == byte_meta[split]["bytes"] and meta[split]["tokens"] == len(ids)


def test_the_default_needs_neither_network_nor_datasets(tmp_path):
    code = "import sys, prepare; prepare.main(); prepare.main(['notes']); assert not {'datasets', 'pyarrow'} & {*sys.modules}"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.md").write_text("# A note\n" * 10)
    env = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True)
    train, val, meta = result("stdlib", tmp_path / "data")
    assert 5e6 < meta["train"]["bytes"] + meta["val"]["bytes"] < 3e7
    import dataclasses

    source = prepare.Path(dataclasses.__file__).read_bytes()  # a module chosen by chance
    assert (source in train) != (source in val)
    assert not any(b"class TestCase(unittest" in d for d in train)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("bad.txt", b"ab\xff", ["bad.txt", "byte 2", "0xFF", "--errors=replace"]),
        ("end.txt", "ab日".encode()[:-1], ["end.txt", "byte 2"]),
        ("far.txt", b"x" * 3_000_000 + b"\xc3(", ["byte 3000000"]),
        ("bom.txt", b"\xef\xbb\xbfab\xfe", ["byte 5"]),
        ("bad.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', ["bad.jsonl", "byte 24"]),
        ("empty.txt", b"", ["no text"]),
        ("empty.csv", b"", ["no text"]),
        ("short.txt", b"a", ["too little text"]),
        ("column.jsonl", b'{"body": "a", "id": 3}\n', ["'text'", "body, id", "--text_column="]),
        ("column.csv", b"body,id\na,3\n", ["'text'", "body, id", "--text_column="]),
        ("number.jsonl", b'{"text": 3}\n', ["number.jsonl line 1", "int"]),
        ("list.json", b'["a"]', ["list.json row 1", "str"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl line 2"]),
        ("broken.json", b'[{"text": "a"}', ["broken.json"]),
        ("deep.json", b"[" * 100_000, ["deep.json"]),
        ("surrogate.jsonl", b'{"text": "\\ud800"}\n', ["surrogate.jsonl line 1", "--errors=replace"]),
        ("quote.csv", b'text\n"abc\n', ["quote.csv", "not CSV"]),
        ("ragged.csv", b"id,text\n1,a,b\n", ["ragged.csv line 2", "2 columns"]),
        ("broken.parquet", b"PAR1 or not", ["broken.parquet"]),
    ],
)
def test_bad_files(home, capsys, name, content, words):
    (home / name).write_bytes(content)
    line = refused(capsys, name)
    assert all(word in line for word in words), line


def test_a_parquet_without_the_column(home, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["a"], "n": [3]}), "t.parquet")
    line = refused(capsys, "t.parquet")
    assert "body, n" in line and "--text_column=" in line
    assert "int" in refused(capsys, "t.parquet", "--text_column=n")
    broken = pa.array([b"ok", b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), "bad.parquet")
    assert "bad.parquet row 2" in refused(capsys, "bad.parquet")


@pytest.mark.parametrize(
    "args, words",
    [
        (["notse.txt"], ["notse.txt", "notes.txt", "tinystories"]),
        (["tinystoris"], ["tinystoris", "did you mean tinystories"]),
        (["no/such/file"], ["no/such/file"]),
        (["*.doc"], ["*.doc"]),
        (["void"], ["no file in void"]),
        (["notes.txt", "void"], ["2 sources", "--name="]),
        (["notes.txt", "--val=absent.txt"], ["absent.txt"]),
        (["notes.txt", "--val=notes.txt"], ["train", "--val"]),
        (["notes.txt", "--val=notes.txt", "--val_fraction=0.2"], ["--val", "--val_fraction"]),
        (["notes.txt", "--val_fraction=0"], ["val_fraction=0"]),
        (["notes.txt", "--val_fraction=1"], ["val_fraction=1"]),
        (["notes.txt", "--max_bytes=-1"], ["max_bytes=-1"]),
        (["notes.txt", "--name=../x"], ["../x"]),
        (["notes.txt", "--tokeniser=gpt2"], ["tokenizer"]),
        (["http://127.0.0.1:9/x.txt"], ["127.0.0.1:9", "local files"]),
    ],
)
def test_bad_arguments(home, capsys, args, words):
    (home / "notes.txt").write_text("some text " * 20)
    (home / "void").mkdir()
    line = refused(capsys, *args)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["tinystories", "owner/name"])
def test_without_a_network_the_hub_fails_at_once(tmp_path, name):
    start = time.perf_counter()
    done = run("prepare.py", name, cwd=tmp_path, check=False, env=OFFLINE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "local files" in done.stderr, done.stderr
    assert time.perf_counter() - start < 10 and not (tmp_path / "data").exists()


def test_bytes_that_are_not_utf8_can_be_replaced(home, monkeypatch):
    raw = b"ab\xff\xfe\xfd " + "日本".encode() + b" x\xe6" * 30 + b"\xf0\x9f"
    (home / "bad.txt").write_bytes(raw)
    (home / "bad.jsonl").write_bytes(b'{"text": "' + raw + b'"}')
    monkeypatch.setattr(prepare, "PIECE", 4)
    for source in ("bad.txt", "bad.jsonl"):
        prepare.main([source, "--errors=replace", f"--name={source}"])
        train, val, meta = result(source)
        want = raw.decode("utf-8", "replace") if source == "bad.txt" else (raw + b'"').decode("utf-8", "replace")[:-1]
        assert (train[0] + val[0]).decode() == want and len(train[0]) == pytest.approx(0.9 * len(want.encode()), abs=4)


# --- the network, played by this machine -----------------------------------------------------------------------------


@pytest.fixture
def server(home):
    """A web server of the home folder; what is called cut* breaks off in the middle."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if "cut" not in self.path:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only a part")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_urls(home, server, capsys, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("no_proxy", "*")
    documents = sentences(30)
    write_rows("rows.jsonl", documents)
    pq.write_table(pa.table({"text": documents}), "rows.parquet")
    prepare.main(["rows.jsonl", "--name=local"])
    for source in ("rows.jsonl", "rows.parquet"):
        prepare.main([f"{server}/{source}", "--overwrite"])
        assert result("rows")[:2] == result("local")[:2]
    assert "404" in refused(capsys, f"{server}/absent.txt")
    assert "89 bytes too early" in refused(capsys, f"{server}/cut.txt")


def test_a_hub_dataset(home, monkeypatch, capsys):
    """The library reads a folder laid out as on the Hub; only the address is ours."""
    datasets = pytest.importorskip("datasets")
    (home / "hub").mkdir()
    write_rows("hub/train.jsonl", sentences(40))
    real = {name: getattr(datasets, name) for name in ("load_dataset", "get_dataset_split_names")}
    for name, function in real.items():
        monkeypatch.setattr(datasets, name, lambda _, config, f=function, **kwargs: f(str(home / "hub"), config, **kwargs))
    monkeypatch.setattr(prepare, "hub", lambda: datasets)
    prepare.main(["owner/name"])
    train, val, meta = result("name")
    assert "by hash" in meta["split"] and sorted(train + val) == sorted(d.encode() for d in sentences(40))
    prepare.main(["owner/name", "--max_bytes=500", "--name=part"])
    assert b"".join(sum(result("part")[:2], [])).decode().startswith("0 ") and result("part")[2]["train"]["bytes"] <= 500
    write_rows("hub/validation.jsonl", sentences(5, seed=9))
    prepare.main(["owner/name", "--overwrite"])
    train, val, meta = result("name")
    assert val == [d.encode() for d in sentences(5, seed=9)] and train == [d.encode() for d in sentences(40)]
    assert "id, text" in refused(capsys, "owner/name", "--text_column=body", "--name=other")


# --- what is there already, and what is interrupted ------------------------------------------------------------------


def test_existing_data_is_kept_unless_told(home, capsys):
    (home / "a.txt").write_text("first " * 50)
    prepare.main(["a.txt"])
    before = (home / "data/a/train.bin").read_bytes()
    (home / "a.txt").write_text("second " * 50)
    capsys.readouterr()
    prepare.main(["a.txt"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "--overwrite" in said and (home / "data/a/train.bin").read_bytes() == before
    (home / "a.txt").write_bytes(b"third \xff" * 50)
    refused(capsys, "a.txt", "--overwrite")
    assert (home / "data/a/train.bin").read_bytes() == before, "the old stays until the new is complete"
    (home / "a.txt").write_text("fourth " * 50)
    prepare.main(["a.txt", "--overwrite"])
    assert result("a")[0][0].startswith(b"fourth") and os.listdir("data") == ["a"]
    (home / "data/mine").mkdir()
    (home / "data/mine/thesis.txt").write_text("years of work")
    assert "no dataset" in refused(capsys, "a.txt", "--name=mine", "--overwrite")
    assert (home / "data/mine/thesis.txt").exists()


def test_killed_between_the_two_renames(home, capsys):
    (home / "a.txt").write_text("first " * 50)
    prepare.main(["a.txt"])
    os.rename("data/a", "data/.a.old")
    prepare.main(["a.txt"])
    assert "exists" in capsys.readouterr().out and os.listdir("data") == ["a"] and result("a")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing_half_made(home, kill):
    os.mkfifo("slow.txt")  # a text that never comes to its end, in place of a large one
    (home / "quick.txt").write_text("text " * 100)
    code = "import prepare; find = prepare.find_files; prepare.find_files = lambda w: [prepare.Path(w)]; prepare.main()"
    command = [sys.executable, "-c", code, "slow.txt", "--name=a"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with open("slow.txt", "wb") as slow:  # (opens when prepare reads)
        slow.write(b"text " * 500_000)
        slow.flush()
        deadline = time.time() + 20
        while not any(p.stat().st_size for p in home.glob("data/.a.tmp-*/train.bin")) and time.time() < deadline:
            time.sleep(0.02)
        process.send_signal(kill)
        stderr = process.communicate(timeout=20)[1]
    assert not (home / "data/a").exists()
    if kill == signal.SIGKILL:
        assert process.returncode == -9 and os.listdir("data") != []
    else:
        assert process.returncode == 130 and stderr.count(b"\n") == 1 and os.listdir("data") == []
    prepare.main(["quick.txt", "--name=a"])
    assert os.listdir("data") == ["a"] and result("a")


@pytest.mark.parametrize("after", [0, 3_000])
def test_disk_full(home, capsys, monkeypatch, after):
    (home / "a.txt").write_text("text " * 2000)

    def full_disk(path, mode="r", **kwargs):
        file = open(path, mode, **kwargs)
        if "w" not in mode:
            return file

        class Full(type(file)):
            def write(self, data):
                if self.tell() + len(data) > after:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                return super().write(data)

        file.close()
        return Full(prepare.io.FileIO(path, mode))

    monkeypatch.setattr(prepare, "open", full_disk, raising=False)
    line = refused(capsys, "a.txt")
    assert "disk full" in line and "free" in line and os.listdir("data") == []


@pytest.mark.skipif(os.name == "nt", reason="getrusage")
@pytest.mark.parametrize("splits", ["by position", "by hash"])
def test_memory_does_not_grow_with_the_text(tmp_path, splits):
    code = "import resource, sys, prepare; prepare.main(); print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = {}
    for size in (1, 100):  # MB
        folder = tmp_path / f"{size}"
        folder.mkdir()
        with open(folder / "big.txt", "wb") as file:
            file.writelines(b"%07d text\n" % i * 8000 for i in range(10 * size))
        for i in range(30 * (splits == "by hash")):
            (folder / f"small{i}.txt").write_text(f"{i} small")
        args = [str(folder), f"--data_dir={tmp_path}/data"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=True)
        assert splits in done.stdout
        peaks[size] = int(done.stdout.split()[-1]) / (1024 if sys.platform != "darwin" else 1 << 20)
    assert peaks[100] - peaks[1] < 30, f"{peaks} MB"
