"""Where text comes from: files, folders, globs, tables, URLs and the Hub.

Each source gives documents. A document is a function that yields its text in pieces of whole UTF-8
characters, so that no book has to fit into memory. Text is taken as it stands. Input that is not
text either raises an error that says where, or is left out and counted.
"""

import codecs
import contextlib
import csv
import functools
import glob
import gzip
import itertools
import json
import os
import re
import sysconfig
import urllib.parse
import urllib.request
from collections import Counter, namedtuple
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from lib.files import first_line

# address: a Hub dataset or a URL; configuration and column: of a Hub dataset
Preset = namedtuple("Preset", "address configuration column about")
PRESETS = {
    "stdlib": Preset("", "", "", "Python's own standard library, 12 MB, from this machine"),
    "shakespeare": Preset(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "",
        "text",
        "Tiny Shakespeare, 1.1 MB",
    ),
    "tinystories": Preset(
        "roneneldan/TinyStories",
        "",
        "text",
        "short stories in simple words, 2 GB",
    ),
    "wikitext": Preset(
        "EleutherAI/wikitext_document_level",
        "wikitext-103-raw-v1",
        "page",
        "Wikipedia's good and featured articles, 540 MB",
    ),
    "simplewiki": Preset(
        "wikimedia/wikipedia",
        "20231101.simple",
        "text",
        "Wikipedia in simple English, 250 MB",
    ),
    "openwebtext": Preset(
        "Skylion007/openwebtext",
        "",
        "text",
        "web pages that Reddit linked to, 40 GB",
    ),
    "fineweb-edu": Preset(
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        "text",
        "educational web pages, 45 GB",
    ),
}
# folders of Python's library that hold tests or other people's code
NOT_STDLIB = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"}
FETCH_SECONDS = 3600  # longest time that a download may take
SILENT_SECONDS = 10  # longest time that a server may say nothing
BEYOND = 1 << 20  # bytes to download beyond the wanted ones, so that the last row is whole


def is_hub_dataset(word):
    """Whether a word looks like OWNER/NAME or OWNER/NAME:CONFIG."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", word) is not None


class Source:
    """One source of documents, named by a word of the command line."""

    def __init__(self, word, cfg):
        self.word = word
        self.cfg = cfg
        self.files = []
        self.size = None  # bytes; None: unknown
        self.left_out = Counter()  # how many files and rows were left out, by reason
        self.remote = ""  # a Hub dataset or a URL
        self.configuration = ""
        self.split = "train"
        self.column = cfg.text_column

        paths = [Path(path) for path in sorted(found_by(word))]
        if Path(word).exists():  # a name may have * or [ in it
            paths = [Path(word)]
        # OWNER/NAME.txt is a misspelt path
        looks_like_file = suffix_of(Path(word)) in (".txt", ".md", ".py", ".zip", *ROWS)
        # "stdlib" wins over files; these over other presets
        if word == "stdlib":
            self.add_stdlib()
        elif Path(word).is_file():
            self.files = [Path(word)]
        elif paths:
            self.add_found(paths)
        elif word in PRESETS:
            self.remote, self.configuration, column, _ = PRESETS[word]
            if "text_column" not in cfg.explicit:
                self.column = column
        elif word.startswith(("http://", "https://")):
            self.remote = word
        elif is_hub_dataset(word) and not looks_like_file:
            self.remote, _, self.configuration = word.partition(":")
        else:
            raise ValueError(
                f"no such file or preset: {word}; presets: {', '.join(PRESETS)}; "
                "Hub datasets: OWNER/NAME"
            )
        if not self.remote:
            self.size = sum(path.stat().st_size for path in self.files)

    def add_stdlib(self):
        root = Path(sysconfig.get_paths()["stdlib"])
        found = []
        for path in root.rglob("*.py"):
            place = path.relative_to(root)
            if not NOT_STDLIB & set(place.parts):
                found.append((place.as_posix(), path))
        self.add_text_files([path for _, path in sorted(found)], root)

    def add_found(self, paths):
        """Add the files of a glob, or all files in a folder."""
        found = []
        for path in paths:
            # A link to a folder may lead back to it: follow none but the word itself.
            if path.is_dir() and (not path.is_symlink() or path == Path(self.word)):
                found += sorted(path.rglob("*"))
            else:
                found.append(path)
        # the part of the word in front of the first wildcard
        root = self.word
        if not Path(root).is_dir():
            root = os.path.dirname(re.split(r"[*?[]", root)[0])
        self.add_text_files(found, Path(root))

    def add_text_files(self, paths, root):
        """Add the text files under `root`, each once; count the others by the reason."""
        known = set()
        for path in dict.fromkeys(paths):
            if not path.is_file() and not path.is_dir():
                continue
            reason = self.reason_to_leave_out(path, root)
            if reason:
                self.left_out[reason] += 1
            elif path.is_file() and path.resolve() not in known:
                self.files.append(path)
                known.add(path.resolve())

    def reason_to_leave_out(self, path, root):
        """Why a file in a folder, or a link to another folder, is not part of its text, or ""."""
        leaves = not path.resolve().is_relative_to(root.resolve())
        if path.is_dir() and not leaves:
            return ""
        parts = path.relative_to(root).parts
        errors = self.cfg.errors
        if any(part.startswith(".") for part in parts):
            return "hidden"
        if {"__pycache__", "node_modules"} & set(parts):
            return "in caches"
        if leaves:
            return "reached by links that leave the folder"
        if suffix_of(path) in ROWS:
            if not has_column(path, self.column, errors):
                return f"tables without a column {self.column!r} ({path.suffix})"
        elif not is_text(path, errors):
            return f"not UTF-8 text ({path.suffix or 'no suffix'})"
        return ""

    def fetch(self, folder, most):
        """Download the file of a URL into `folder`: of text, little more than `most` bytes."""
        if not self.remote.startswith("http"):
            return
        # in a folder of its own, because two URLs may end in the same name
        folder.mkdir(exist_ok=True)
        folder = folder / str(len(os.listdir(folder)))
        folder.mkdir()
        with reached(self.remote), tqdm(unit="B", unit_scale=True, disable=None) as bar:
            path = folder / (Path(urllib.parse.urlparse(self.remote).path).name or "text")
            # in a thread, because a server that sends a byte now and then could hold us forever
            with ThreadPool(1) as thread:
                work = thread.apply_async(download, (self.remote, path, most, bar))
                work.wait(FETCH_SECONDS)
            if not work.ready():
                raise ValueError(
                    f"{self.remote} takes more than {FETCH_SECONDS:,} seconds: download it "
                    "yourself, and give the file"
                )
            is_cut = work.get()
        if is_cut:
            print(f"{self.remote} has more than {most:,} bytes: the rest is left out")
        self.files = [path]

    def documents(self):
        """Yield the documents; each call starts again at the first one."""
        self.left_out["broken rows"] = 0
        if self.remote and not self.files:
            yield from self.documents_of(self.remote, self.hub_rows())
        for path in self.files:
            name = self.remote or path
            read_rows = ROWS.get(suffix_of(path))
            if read_rows:
                yield from self.documents_of(name, read_rows(path, self.column, self.cfg.errors))
            else:
                yield functools.partial(read_text, path, self.cfg.errors, name)

    def documents_of(self, name, rows):
        """A document for each row of a table."""
        with errors_named(name):
            for where, row in rows:
                try:
                    text = text_of(row, self.column, self.cfg.errors)
                except ValueError as e:
                    if self.cfg.errors == "strict":
                        raise ValueError(
                            f"{name}, {where}: {e}; --errors=replace repairs or skips it"
                        ) from None
                    self.left_out["broken rows"] += 1
                    continue
                if text:
                    yield functools.partial(iter, [text])

    def val(self):
        """The source's own validation split, as a source, or None."""
        if not self.remote or self.remote.startswith("http"):
            return None
        import datasets
        import huggingface_hub

        with reached(self.remote):
            huggingface_hub.HfApi().dataset_info(self.remote, timeout=10)
            names = datasets.get_dataset_split_names(self.remote, self.configuration or None)
        for name in ("validation", "val", "dev"):
            if name in names:
                other = Source(self.word, self.cfg)
                other.split = name
                return other
        return None

    def hub_rows(self):
        import datasets

        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
        rows = datasets.load_dataset(
            self.remote, self.configuration or None, split=self.split, streaming=True
        )
        return ((f"row {n}", row) for n, row in enumerate(rows, 1))


def found_by(pattern):
    """The paths that a glob finds, and the links to folders that its `**` does not enter.

    glob.glob enters them, and never ends if they lead back.
    """
    parts = re.fullmatch(r"(|.*?[/\\])\*\*(?:[/\\]+(.*))?", pattern)
    if not parts:
        return set(glob.glob(pattern))
    start, rest = parts.groups(default="")
    found = set()
    for top in glob.glob(start or "."):
        for folder, names, _ in os.walk(top):
            names[:] = [name for name in names if not name.startswith(".")]
            paths = [os.path.join(folder, name) for name in names]
            found |= {path for path in paths if os.path.islink(path)}
            found |= found_by(os.path.join(glob.escape(folder), rest or "*"))
    return found


def download(url, path, most, bar):
    """Write the file of a URL to `path`. Returns whether it was cut, a little after `most` bytes.

    A table is cut after a line, text after a character. ValueError for a file of another kind.
    """
    most += BEYOND
    size = 0
    with urllib.request.urlopen(url, timeout=SILENT_SECONDS) as response, open(path, "wb") as file:
        expected = response.length or 0  # 0: unknown
        bar.total = min(expected, most) or None
        while size <= most:
            piece = response.read1(1 << 16)
            if not piece:
                break
            file.write(piece)
            size += len(piece)
            bar.update(len(piece))
    if size <= most:
        if size < expected:
            raise ConnectionError(f"expected {expected:,} bytes, got {size:,}")
        return False

    with open(path, "r+b") as file:
        head = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        is_table = suffix_of(path) in ROWS
        if head.startswith((GZIP, b"PAR1")) or (is_table and head.startswith(b"[")):
            raise ValueError(
                f"{url} has more than {most:,} bytes, and only text, .jsonl and .csv can be cut: "
                "download it yourself, and give the file"
            )
        file.seek(most - BEYOND)
        rest = file.read(BEYOND)
        end = rest.rfind(b"\n") + 1 if is_table else len(rest) - 1
        while 0 < end < len(rest) and rest[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        file.truncate(most - BEYOND + end)
    return True


@contextlib.contextmanager
def errors_named(source, problem="cannot be read", advice=""):
    """Turn whatever a library raises for unreadable input into one line that names the source."""
    try:
        yield
    except Exception as e:
        # our own messages already name it
        if isinstance(e, ValueError) and str(e).startswith(str(source)):
            raise
        raise ValueError(f"{source} {problem}: {first_line(e)}{advice}") from None


def reached(source):
    advice = "; offline, `python prepare.py` (the standard library) and local files work"
    return errors_named(source, "cannot be reached", advice)


# --- tables: a document per row -------------------------------------------------------------------
# A reader of rows yields (where, row), or (where, error) for a row that it cannot parse.


def text_of(row, column, errors):
    """A row's text, as bytes; b"" for null. ValueError if the column is missing or is not text."""
    if isinstance(row, Exception):
        raise ValueError(first_line(row))
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with the column {column!r}, got {type(row).__name__}")
    if column not in row:
        raise ValueError(
            f"no column {column!r}; --text_column can be: {', '.join(str(name) for name in row)}"
        )
    value = row[column]
    if value is None:
        return b""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds {type(value).__name__}, not text")
    if errors == "replace":
        value = re.sub("[\ud800-\udfff]", "\ufffd", value)
    return value.encode()


def json_rows(path, column, errors):
    """The rows of a file with an object on each line, or with all of them in one list."""
    lines = lines_of(path, errors)
    for where, line in lines:
        if where == "line 1" and line.lstrip().startswith("["):
            rows = json.loads(line + "".join(line for _, line in lines))
            for n, row in enumerate(rows, 1):
                yield f"row {n}", row
        elif line.strip():
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as e:
                yield where, e


def csv_rows(path, column, errors):
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in lines_of(path, errors)), strict=True)
    header = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            yield f"line {reader.line_num}", e
            continue
        where = f"line {reader.line_num}"
        if not row:  # an empty line
            continue
        if header is None:
            header = row
        elif len(row) != len(header):
            yield (
                where,
                ValueError(f"expected {len(header)} cells as in the header, got {len(row)}"),
            )
        else:
            yield where, dict(zip(header, row, strict=True))


def parquet_rows(path, column, errors):
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            # A row without the column, so that text_of raises its error, which names the others. An
            # empty table has no rows to complain about.
            if file.metadata.num_rows:
                yield "row 1", dict.fromkeys(names)
            return
        n = 0
        for batch in file.iter_batches(1000, columns=[column]):
            cells = batch.column(0)
            # as bytes, so that a row that is not UTF-8 is named, or repaired
            if pyarrow.types.is_string(cells.type) or pyarrow.types.is_large_string(cells.type):
                cells = cells.cast(pyarrow.large_binary())
            for cell in cells.to_pylist():
                n += 1
                yield f"row {n}", {column: cell}


ROWS = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}


def has_column(path, column, errors):
    """Whether a table in a folder holds documents: most .json files of a project do not."""
    suffix = suffix_of(path)
    try:
        _, row = next(ROWS[suffix](path, column, errors), (None, {column: ""}))
    except Exception as e:
        row = e
    if isinstance(row, dict):
        return column in row
    return suffix in (".jsonl", ".parquet")


# --- files ----------------------------------------------------------------------------------------

GZIP = b"\x1f\x8b"
# the first bytes of files that are not UTF-8 text
NOT_TEXT = {
    b"PK\3\4": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"%PDF": "a PDF",
    b"PAR1": "parquet: its name must end in .parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def suffix_of(path):
    """The suffix in lower case, without .gz: .txt for a.txt and a.txt.gz."""
    if path.suffix.lower() == ".gz":
        path = Path(path.stem)
    return path.suffix.lower()


def open_text(path):
    """Open in binary mode, through gzip if need be. ValueError if it begins as in NOT_TEXT."""
    with open(path, "rb") as file:
        head = file.read(8)
    for magic, kind in NOT_TEXT.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {kind}; expected UTF-8 text, plain or gzip-compressed")
    return gzip.open(path, "rb") if head.startswith(GZIP) else open(path, "rb")


def lines_of(path, errors):
    """Yield ("line N", text) for each line, without a byte-order mark."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8", errors)
            except UnicodeDecodeError as e:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8: byte {e.start} is "
                    f"0x{line[e.start]:02X}; --errors=replace puts U+FFFD there"
                ) from None
            if number == 1:
                text = text.removeprefix("\ufeff")
            yield f"line {number}", text


def read_text(path, errors, name):
    """Yield a file in pieces of whole characters, without a byte-order mark; errors have `name`."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0
    with errors_named(name), open_text(path) as file:
        while True:
            piece = file.read(1 << 20)
            held_back, _ = decoder.getstate()  # the beginning of a character
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as e:
                place = offset - len(held_back) + e.start
                raise ValueError(
                    f"{name} is not UTF-8: byte {place} is 0x{e.object[e.start]:02X}; "
                    "--errors=replace puts U+FFFD there"
                ) from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text.encode()
            if not piece:
                return
            offset += len(piece)


def is_text(path, errors):
    """Whether the first 2 MiB of a file are text: no NUL and, unless errors="replace", UTF-8."""
    try:
        for piece in itertools.islice(read_text(path, errors, path), 2):
            if b"\0" in piece:
                return False
    except ValueError:
        return False
    return True
