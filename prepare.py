"""Turn text into data/NAME/{train,val}.bin + meta.json, which is all that train.py reads.

    python prepare.py                                       # Python's standard library, no network
    python prepare.py mybook.txt "notes/*.md" --name=mine   # files, folders and globs
    python prepare.py tinystories --max_bytes=500_000_000   # a preset, OWNER/NAME[:CONFIG], a URL
    python prepare.py train.parquet --val=val.parquet --name=books-gpt2 --tokenizer=gpt2

Every row of a .jsonl, .json, .csv or .parquet file is a document; any other file is one document.
The .bin files are the text itself in UTF-8, with the byte 0xFF (EOT) between documents, or gpt2's
token ids for a BPE baseline. The val split is --val, or the source's own validation split. Without
either, each document's hash picks its split; with fewer than 20, each document is cut in two.
data/NAME appears only when it is complete.
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

import numpy as np
from tqdm import tqdm

from config import parse
from lib.data import gpt2, read_meta
from lib.files import lock, replace, run_command
from lib.sources import PRESETS, Source, errors_named, is_hub_dataset
from model import EOT, GPT2_VOCAB

VAL_CAP = 10_000_000  # bytes of val: more would only make evaluation slow
HUB_CAP = 1_000_000_000  # most bytes of text if a source is remote; --max_bytes overrides it
FEW = 20  # with fewer documents, a hash of each would split the text too unevenly
PART = 1 << 20  # bytes of text to turn into tokens at once


@dataclass
class PrepareConfig:
    # --- output ---
    name: str = ""  # of the folder in data_dir; empty: the first source's name
    tokenizer: Literal["bytes", "gpt2"] = "bytes"  # gpt2: token ids for the BPE baselines
    gpt2_vocab: int = GPT2_VOCAB  # gpt2: size of the vocabulary: its first tokens, then EOT
    data_dir: str = "data"  # where datasets live
    overwrite: bool = False  # replace an existing dataset, once the new one is complete
    # --- input ---
    val: str = ""  # source of the val split; empty: the source's own, or by val_fraction
    val_fraction: float = 0.1  # share of documents in val; with fewer than 20, share of each
    max_bytes: int = 0  # stop after this much text; 0: take all (with a remote source: 1 GB)
    text_column: str = "text"  # of rows in .jsonl, .json, .csv, .parquet and Hub datasets
    errors: Literal["strict", "replace"] = "strict"  # on invalid UTF-8: stop, or insert U+FFFD

    def __post_init__(self):
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if not 257 <= self.gpt2_vocab <= GPT2_VOCAB:
            raise ValueError(f"gpt2_vocab={self.gpt2_vocab} must be between 257 and {GPT2_VOCAB}")
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes={self.max_bytes} must be at least 0")
        if self.name and not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name={self.name!r} must be a plain folder name")

    def encoding(self):
        """tiktoken's encoding, or None for bytes."""
        return gpt2(self.gpt2_vocab) if self.tokenizer == "gpt2" else None


def main(argv=None):
    usage = f"{__doc__}\npresets"
    for preset, (_, _, _, about) in PRESETS.items():
        usage += f"\n  {preset:<26} {about}"
    cfg, words = parse(PrepareConfig, sys.argv[1:] if argv is None else argv, usage)
    words = words or ["stdlib"]
    out = Path(cfg.data_dir) / (cfg.name or default_name(words[0], cfg))
    asked = {"sources": words, "val_source": cfg.val or None, "tokenizer": cfg.tokenizer}
    for key in ("max_bytes", "val_fraction", "text_column", "errors", "gpt2_vocab"):
        asked[key] = getattr(cfg, key)
    if (out / "meta.json").is_file():
        if not cfg.overwrite:
            keep(out, asked)
            return
    elif out.exists():
        raise ValueError(f"{out} exists but is not a dataset; choose another --name")

    sources = [Source(word, cfg) for word in words]
    val_sources = find_val_sources(sources, cfg)
    cap, total = plan(out, words, sources, val_sources, cfg)
    advice = "; offline, set TIKTOKEN_CACHE_DIR to a folder that holds tiktoken's files"
    with errors_named("tiktoken's gpt2 encoding", advice=advice):
        cfg.encoding()
    with new_folder(out) as folder:
        for source in sources:
            source.fetch(folder / "fetched", cap)
        for source in val_sources:
            source.fetch(folder / "fetched", HUB_CAP)
        info = write(folder, words, sources, val_sources, cfg, cap, total)
        shutil.rmtree(folder / "fetched", ignore_errors=True)
        meta = {"name": out.name, **asked, **info, "created": time.strftime("%Y-%m-%d %H:%M:%S")}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    print(next_command(out.name, cfg))


# --- before ---------------------------------------------------------------------------------------


def default_name(word, cfg):
    """The dataset's name, from its first source: a file, a folder, a URL or OWNER/NAME:CONFIG."""
    if is_hub_dataset(word):
        word, _, _ = word.partition(":")
    # It reads the paths of every system: C:\Users\me\book.txt, /home/me/book.txt
    name = re.sub(r"^\W+|[^\w.+-]", "", PureWindowsPath(word).stem) or "text"
    if cfg.tokenizer == "gpt2":
        name += "-gpt2"
    if cfg.gpt2_vocab != GPT2_VOCAB:
        name += f"-{cfg.gpt2_vocab}"
    return name


def keep(out, asked):
    """Say that the dataset exists. ValueError if this command asks for a different one."""
    meta = read_meta(out)
    for key, value in asked.items():
        if meta.get(key, value) != value:
            raise ValueError(
                f"{out} exists with {key}={meta[key]!r}, not {value!r}: --overwrite replaces it, "
                "--name=OTHER keeps both"
            )
    sizes = f"train {size_text(meta['train']['bytes'])}, val {size_text(meta['val']['bytes'])}"
    sources = ", ".join(asked["sources"])
    print(f"keeping {out} ({sizes} from {sources}); --overwrite replaces it")


def find_val_sources(sources, cfg):
    """The sources of the val split: --val, or validation splits of the sources."""
    if cfg.val:
        val_sources = [Source(cfg.val, cfg)]
    else:
        found = [source.val() for source in sources]
        val_sources = [source for source in found if source]
    train_files = {path.resolve() for source in sources for path in source.files}
    val_files = {path.resolve() for source in val_sources for path in source.files}
    if train_files & val_files:
        raise ValueError(
            f"--val={cfg.val} is part of the training text: give another source, or no --val"
        )
    return val_sources


def plan(out, words, sources, val_sources, cfg):
    """Print the plan.

    Returns the most bytes of text to take (0: all), and the expected size (None: unknown).
    """
    cap = cfg.max_bytes
    if not cap and any(source.remote for source in sources):
        cap = HUB_CAP
    sizes = [source.size for source in sources + val_sources]
    total = None if None in sizes else sum(sizes)
    size = size_text(total)
    if cap and (total is None or cap < total):
        size += f", at most {size_text(cap)} of it"
        total = total and cap
    reads = f"reads {', '.join(words)}"
    n_files = sum(len(source.files) for source in sources)
    if n_files > 1:
        reads += f" ({n_files} files)"
    print(f"{reads}: {size}")
    print(f"writes {out}: train.bin, val.bin, meta.json ({cfg.tokenizer})")
    return cap, total


def size_text(n):
    """A number of bytes as text."""
    if n is None:
        return "unknown size"
    if n < 1e5:
        return f"{n:,} bytes"
    return f"{n / 1e6:,.1f} MB"


# --- splits: where the text goes ------------------------------------------------------------------


class Split:
    """train.bin or val.bin while it is being written."""

    def __init__(self, path, encoding, bar):
        self.file = path.open("wb")
        self.encoding = encoding  # None: bytes
        self.bar = bar
        self.hash = hashlib.sha256()  # of the file
        # For tokens: of the text they stand for, so that reports can tell that it is the same text.
        self.text_hash = hashlib.sha256()
        self.documents = 0
        self.bytes = 0
        self.symbols = 0

    def add(self, pieces):
        """Append a document, unless it is empty. Returns its size in bytes."""
        size = 0
        waiting = b""  # text that is not encoded yet
        for piece in pieces:
            if piece and size == 0 and self.documents > 0:
                self.add_border()
            size += len(piece)
            self.bar.update(len(piece))
            if self.encoding is None:
                self._write(piece)
                continue
            self.text_hash.update(piece)
            for start in range(0, len(piece), PART):
                waiting += piece[start : start + PART]
                if len(waiting) >= PART:
                    cut = place_to_cut(waiting)
                    self._write(self.encoding.encode_ordinary(waiting[:cut].decode()))
                    waiting = waiting[cut:]
        if waiting:
            self._write(self.encoding.encode_ordinary(waiting.decode()))
        if size:
            self.documents += 1
        self.bytes += size
        return size

    def add_border(self):
        """EOT between two documents."""
        if self.encoding is None:
            self._write(bytes([EOT]))
        else:
            self.text_hash.update(bytes([EOT]))
            self._write([self.encoding.eot_token])

    def _write(self, symbols):
        raw = symbols
        if self.encoding:
            raw = np.array(symbols, dtype="<u2").tobytes()
        self.symbols += len(symbols)
        self.hash.update(raw)
        self.file.write(raw)

    def close(self):
        """Close the file. Returns its entry in meta.json."""
        self.file.close()
        info = {
            "documents": self.documents,
            "bytes": self.bytes,
            "symbols": self.symbols,
            "sha256": self.hash.hexdigest(),
        }
        if self.encoding:
            info["text_sha256"] = self.text_hash.hexdigest()
        return info


def place_to_cut(text):
    """Where to cut a long text (bytes) so that its tokens stay the same, if that is possible.

    No token holds a letter and the space after it: the place is the last one of this kind. A text
    without any is cut before its last character, and there one token in a million may differ.
    """
    found = re.match(rb".*[A-Za-z](?= [A-Za-z])", text, re.DOTALL)
    if found:
        return found.end()
    cut = len(text) - 1
    while text[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    return cut


def fill(train, val, sources, val_sources, cap, val_fraction):
    """Send every document to a split. Returns (the rule in words, the lowest hash seen)."""
    for source in val_sources:
        for pieces, _, _ in limited(source.documents(), VAL_CAP - val.bytes):
            val.add(pieces())
    documents = itertools.chain.from_iterable(source.documents() for source in sources)
    first = list(itertools.islice(documents, FEW))
    rule = ""
    in_val = set()
    lowest = 1.0
    for pieces, size, number in limited(itertools.chain(first, documents), cap or math.inf):
        if val_sources:
            rule = "val has its own sources"
            train.add(pieces())
        elif len(first) < FEW:
            share = 1 - val_fraction
            rule = f"{len(first)} documents, fewer than {FEW}: each cut at {share:g} of its length"
            before, after = cut_at(max(int(size * share), size - VAL_CAP + val.bytes), pieces())
            train.add(before)
            val.add(after)
        else:
            rule = f"by the hash of each document, {val_fraction:.3g} of them to val"
            lowest = min(lowest, number)
            if number <= val_fraction and val.bytes + size <= VAL_CAP:
                in_val.add(number)
                val.add(pieces())
            # Once val is full, a copy of one of its documents must not get into train.
            elif number not in in_val:
                train.add(pieces())
    return rule, lowest


def limited(documents, cap):
    """Yield (document, size, hash as a number from 0 to 1) of documents with text.

    Together they have at most `cap` bytes; a document that would exceed them is cut there.
    """
    for document in documents:
        if cap <= 0:
            return
        pieces = functools.partial(beginning, document, cap)
        size, number = measure(pieces())
        if size:
            yield pieces, size, number
        cap -= size


def beginning(document, n):
    pieces, _ = cut_at(n, document())
    return pieces


def measure(pieces):
    """(bytes, hash as a number from 0 to 1) of a document."""
    digest = hashlib.sha256()
    size = 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return size, int.from_bytes(digest.digest()[:8], "big") / 2**64


def cut_at(n, pieces):
    """Cut a document after n bytes, or at the end of the character that they would split.

    Returns the pieces of both parts: two generators over one stream, so use up the first before the
    second.
    """
    pieces = iter(pieces)
    rest = []

    def before():
        left = n
        for piece in pieces:
            if len(piece) > left:
                cut = int(left)
                while cut < len(piece) and piece[cut] & 0xC0 == 0x80:  # inside a character
                    cut += 1
                yield piece[:cut]
                rest.append(piece[cut:])
                return
            left -= len(piece)
            yield piece

    def after():
        yield from rest
        yield from pieces

    return before(), after()


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder that becomes `out` if all goes well, and disappears if not."""
    out = out.resolve()  # a link stays, and leads to the new dataset
    folder = out.with_name(f".{out.name}.tmp")
    old = out.with_name(f".{out.name}.tmp-old")

    def sweep():
        """Remove leftovers, those of a killed process too."""
        if old.exists() and not out.exists():  # killed between the two renames
            old.rename(out)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    in_use = f"another process is preparing {out}: wait until it ends"
    with lock(out, in_use):
        # `kill` cleans up, like Ctrl-C
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            sweep()
            folder.mkdir()
            yield folder
            if out.exists():
                replace(out, old)
            replace(folder, out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("; nothing is left behind") from None
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            raise ValueError(
                f"the disk that holds {out.parent} is full: free some space, or lower --max_bytes"
            ) from None
        finally:
            sweep()
            signal.signal(signal.SIGTERM, handler)


def write(folder, words, sources, val_sources, cfg, cap, total):
    """Write train.bin and val.bin, and print a summary. Returns their part of meta.json."""
    # The text in compressed files is larger than the files, by an unknown factor.
    paths = [path for source in sources for path in source.files]
    if any(path.suffix in (".parquet", ".gz") for path in paths):
        total = None
    bar = {"desc": words[0][-20:], "total": total, "unit": "B", "unit_scale": True, "disable": None}
    info, lowest = fill_bins(folder, sources, val_sources, cfg, cap, cfg.val_fraction, bar)
    if not info["val"]["bytes"] and lowest < 1:
        # No document went to val: fill both again, so that the one with the lowest hash does.
        info, _ = fill_bins(folder, sources, val_sources, cfg, cap, lowest, bar)

    left_out = Counter()
    for source in sources + val_sources:
        left_out += source.left_out
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(left_out.items()))
    if not info["train"]["bytes"] and not info["val"]["bytes"]:
        note = f" (left out: {reasons})" if reasons else ""
        raise ValueError(f"no text in {', '.join(words)}{note}: choose other sources")
    for split, other in (("train", "val"), ("val", "train")):
        if not info[split]["bytes"]:
            raise ValueError(
                f"all the text falls into {other}: give more text, another --val_fraction, "
                "or --val=SOURCE"
            )
    print(f"split: {info['split']}")
    if reasons:
        print(f"left out: {reasons}")
    for split in ("train", "val"):
        n_documents = info[split]["documents"]
        print(f"{split}: {n_documents:,} documents, {info[split]['bytes']:,} bytes of text")
    return info


def fill_bins(folder, sources, val_sources, cfg, cap, val_fraction, bar):
    """Write train.bin and val.bin. Returns (their part of meta.json, the lowest hash seen)."""
    with tqdm(**bar) as progress:
        train = Split(folder / "train.bin", cfg.encoding(), progress)
        val = Split(folder / "val.bin", cfg.encoding(), progress)
        try:
            rule, lowest = fill(train, val, sources, val_sources, cap, val_fraction)
        finally:
            train_info = train.close()
            val_info = val.close()
    info = {
        "split": rule,
        "dtype": "uint8" if cfg.tokenizer == "bytes" else "uint16",
        "vocab_size": 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab,
        "train": train_info,
        "val": val_info,
    }
    return info, lowest


def next_command(name, cfg):
    """The training command to run next."""
    command = "next: python train.py"
    if cfg.tokenizer == "gpt2":
        command += " config/bpe_50m.py"
    command += f" --dataset={name}"
    if cfg.gpt2_vocab != GPT2_VOCAB:
        command += f" --gpt2_vocab={cfg.gpt2_vocab}"
    if cfg.data_dir != "data":
        command += f" --data_dir={cfg.data_dir}"
    return command


if __name__ == "__main__":
    run_command(main)
