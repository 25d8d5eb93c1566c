"""Where text comes from: files, folders and globs, rows of tables, URLs, the Hub. Each gives documents, as they stand.

A document is a function that yields its text in pieces of whole UTF-8 characters, so that a book of any size fits into
memory. What is no text is named, by file and line, or left out and counted; nothing is guessed, converted or trimmed.
"""

import codecs
import contextlib
import csv
import glob
import gzip
import itertools
import json
import os
import re
import shutil
import sysconfig
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

from lib.files import first_line

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
PRESETS = {  # name: (Hub dataset or URL, its configuration, its text column, what it is)
    "stdlib": ("", "", "", "Python's own standard library, 12 MB, from this machine"),
    "shakespeare": (SHAKESPEARE, "", "text", "Tiny Shakespeare, 1.1 MB"),
    "tinystories": ("roneneldan/TinyStories", "", "text", "short stories in simple words, 2 GB"),
    "wikitext": (
        "EleutherAI/wikitext_document_level",
        "wikitext-103-raw-v1",
        "page",
        "good articles, 540 MB",
    ),
    "simplewiki": (
        "wikimedia/wikipedia",
        "20231101.simple",
        "text",
        "Wikipedia in simple English, 250 MB",
    ),
    "openwebtext": ("Skylion007/openwebtext", "", "text", "web pages that Reddit linked to, 40 GB"),
    "fineweb-edu": (
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        "text",
        "educational web pages, 45 GB",
    ),
}


class Source:
    """One source of documents: `documents()` starts over at each call; `size` in bytes, or None if unknown;
    `left_out` counts what was no text, by kind."""

    def __init__(self, word, cfg):
        self.word, self.cfg, self.files, self.size, self.left_out = word, cfg, [], None, Counter()
        self.remote, self.split, self.column = "", "train", cfg.text_column
        paths = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True))
        if word == "stdlib":
            root = Path(sysconfig.get_paths()["stdlib"])
            skip = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"}
            found = (p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
            self._take_text(sorted(found, key=lambda p: p.relative_to(root).as_posix()), root)
        elif Path(word).is_file():
            self.files = [Path(word)]
        elif paths:
            fixed = word if Path(word).is_dir() else os.path.dirname(re.split(r"[*?[]", word)[0])
            inside = (sorted(Path(p).rglob("*")) if Path(p).is_dir() else [Path(p)] for p in paths)
            self._take_text(itertools.chain.from_iterable(inside), Path(fixed))
        elif word in PRESETS:
            self.remote, self.configuration, self.column, _ = PRESETS[word]
        elif word.startswith(("http://", "https://")):
            self.remote, self.configuration = word, ""
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", word) and Path(word).suffix not in {
            ".txt",
            ".md",
            *ROWS,
        }:
            self.remote, _, self.configuration = word.partition(":")
        else:
            raise ValueError(
                f"no such file or preset: {word}; presets: {', '.join(PRESETS)}; Hub datasets: OWNER/NAME"
            )
        if not self.remote:
            self.size = sum(p.stat().st_size for p in self.files)

    def _take_text(self, paths, root):
        """Of the files under a folder those that a person would call its text, once each."""
        known = set()
        for path in (p for p in paths if p.is_file()):
            parts, place, kind = path.relative_to(root).parts, path.resolve(), ""
            if any(part.startswith(".") for part in parts):
                kind = "hidden"
            elif {"__pycache__", "node_modules"} & set(parts):
                kind = "in caches"
            elif not place.is_relative_to(root.resolve()):
                kind = "reached by links that leave the folder"
            elif suffix_of(path) in ROWS:
                has = has_column(path, self.column, self.cfg.errors)
                kind = "" if has else f"tables without a column {self.column!r} ({path.suffix})"
            elif not is_text(path, self.cfg.errors):
                kind = f"not UTF-8 text ({path.suffix or 'no suffix'})"
            if not kind and place not in known:
                self.files.append(path)
            known.add(place)
            self.left_out[kind] += bool(kind)

    def fetch(self, folder):
        """Bring the file that a URL names into `folder`."""
        if self.remote.startswith("http"):
            folder.mkdir(exist_ok=True)
            path = folder / (Path(urllib.parse.urlparse(self.remote).path).name or "text")
            with (
                reached(self.remote),
                urllib.request.urlopen(self.remote, timeout=10) as answer,
                path.open("wb") as f,
            ):
                shutil.copyfileobj(answer, f)
                expected, n = answer.headers.get("Content-Length"), f.tell()
                if expected and n != int(expected):
                    raise OSError(f"{n} of {expected} bytes arrived")
            self.files = [path]

    def documents(self):
        self.left_out["broken rows"] = 0
        if self.remote and not self.files:
            yield from self._of_rows(self.remote, self._hub_rows())
        for path in self.files:
            read = ROWS.get(suffix_of(path))
            if read:
                yield from self._of_rows(path, read(path, self.column, self.cfg.errors))
            else:
                yield lambda path=path: read_text(path, self.cfg.errors)

    def _of_rows(self, name, rows):
        with one_line(name):
            for where, row in rows:
                try:
                    text = text_of(row, self.column, self.cfg.errors)
                except ValueError as e:
                    if self.cfg.errors == "strict":
                        raise ValueError(
                            f"{name}, {where}: {e}; --errors=replace goes on"
                        ) from None
                    self.left_out["broken rows"] += 1
                    continue
                if text:
                    yield lambda text=text: [text]

    def val(self):
        """The source's own validation split, as a source, or None."""
        if not self.remote or self.remote.startswith("http"):
            return None
        import datasets
        import huggingface_hub

        with reached(self.remote):
            huggingface_hub.HfApi().dataset_info(self.remote, timeout=10)
            names = datasets.get_dataset_split_names(self.remote, self.configuration or None)
        other = Source(self.word, self.cfg)
        other.split = next((n for n in ("validation", "val", "dev") if n in names), None)
        return other if other.split else None

    def _hub_rows(self):
        import datasets

        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
        rows = datasets.load_dataset(
            self.remote, self.configuration or None, split=self.split, streaming=True
        )
        return ((f"row {n}", row) for n, row in enumerate(rows, 1))


@contextlib.contextmanager
def one_line(where, advice=""):
    """Whatever a library throws at unreadable input becomes one line that names the input."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(str(where)):
            raise
        raise ValueError(
            f"{where} cannot be {'reached' if advice else 'read'}: {first_line(e)}{advice}"
        ) from None


def reached(where):
    return one_line(
        where, "; offline, `python prepare.py` (the standard library) and local files work"
    )


def text_of(row, column, errors):
    """The text in a row's column as it stands, in bytes. ValueError if there is none or it is no text."""
    if isinstance(row, Exception):
        raise ValueError(first_line(row))
    if not isinstance(row, dict):
        raise ValueError(f"a row is {type(row).__name__}, not an object with the column {column!r}")
    if column not in row:
        raise ValueError(
            f"there is no column {column!r}; --text_column can be: {', '.join(map(str, row))}"
        )
    value = b"" if row[column] is None else row[column]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds {type(value).__name__}, not text")
    return (re.sub("[\ud800-\udfff]", "\ufffd", value) if errors == "replace" else value).encode()


def json_rows(path, column, errors):
    """(where, row or what is wrong with it) of a file of objects: one on each line, or all in one list."""
    lines = lines_of(path, errors)
    for where, line in lines:
        if where == "line 1" and line.lstrip().startswith("["):
            rows = json.loads(line + "".join(line for _, line in lines))
            yield from ((f"row {n}", row) for n, row in enumerate(rows, 1))
        elif line.strip():
            try:
                yield where, json.loads(line)
            except ValueError as e:
                yield where, e


def csv_rows(path, column, errors):
    csv.field_size_limit(2**31 - 1)
    rows, header = csv.reader((line for _, line in lines_of(path, errors)), strict=True), None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as e:
            yield f"line {rows.line_num}", e
            continue
        if row is None:
            return
        if header and row:
            wrong = ValueError(f"{len(row)} cells, where the header has {len(header)}")
            yield (
                f"line {rows.line_num}",
                wrong if len(row) != len(header) else dict(zip(header, row, strict=True)),
            )
        header = header or row


def parquet_rows(path, column, errors):
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names, n = file.schema_arrow.names, 0
        if column not in names and file.metadata.num_rows:
            yield "row 1", dict.fromkeys(names)
        for batch in file.iter_batches(1000, columns=[column]) if column in names else ():
            yield from (
                (f"row {i}", {column: cell})
                for i, cell in enumerate(batch.column(0).to_pylist(), n + 1)
            )
            n += len(batch)


def has_column(path, column, errors):
    """Whether a table in a folder is meant: not every .json or .csv of a project holds documents."""
    try:
        row = next(ROWS[suffix_of(path)](path, column, errors), (None, {column: ""}))[1]
    except ValueError as e:
        row = e
    return column in row if isinstance(row, dict) else suffix_of(path) in (".jsonl", ".parquet")


ROWS = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}  # a document per row
GZIP = b"\x1f\x8b"
NOT_TEXT = {
    b"PK\3\4": "a zip archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"BZh": "packed by bzip2",
}
NOT_TEXT |= {
    b"\xfd7zXZ": "packed by xz",
    b"%PDF": "a PDF",
    b"PAR1": "parquet: its name must end in .parquet",
}
NOT_TEXT |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def suffix_of(path):
    """.txt of a.txt and of a.txt.gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def open_text(path):
    """A file of bytes, unpacked if it is gzip's. ValueError for what its first bytes say is no UTF-8 text."""
    with open(path, "rb") as f:
        head = f.read(8)
    for magic, what in NOT_TEXT.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {what}; only UTF-8 text, plain or in .gz, can be read")
    return gzip.open(path, "rb") if head.startswith(GZIP) else open(path, "rb")


def lines_of(path, errors):
    """("line N", text) of each line, without a byte-order mark."""
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            try:
                text = line.decode("utf-8", errors)
            except UnicodeDecodeError as e:
                bad = f"byte {e.start} is 0x{line[e.start]:02X}"
                raise ValueError(
                    f"{path}, line {number} is not UTF-8: {bad}; --errors=replace goes on"
                ) from None
            yield f"line {number}", text.removeprefix("\ufeff") if number == 1 else text


def read_text(path, errors):
    """The file in pieces of whole characters, without a byte-order mark; ValueError with the offset if not UTF-8."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(errors), 0
    with one_line(path), open_text(path) as f:
        while True:
            piece, held = (
                f.read(1 << 20),
                len(decoder.getstate()[0]),
            )  # held back: the start of a character
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as e:
                where = f"byte {offset - held + e.start} is 0x{e.object[e.start]:02X}"
                raise ValueError(
                    f"{path} is not UTF-8: {where}; --errors=replace goes on"
                ) from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text.encode()
            if not piece:
                return
            offset += len(piece)


def is_text(path, errors):
    """Whether the file begins like text: two million bytes of UTF-8 without a NUL."""
    try:
        return not any(b"\0" in piece for piece in itertools.islice(read_text(path, errors), 2))
    except ValueError:
        return False
