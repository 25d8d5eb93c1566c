"""Turn text into data/NAME/{train,val}.bin + meta.json, which is all that train.py reads.

    python prepare.py                                            # Python's standard library, no network, seconds
    python prepare.py mybook.txt "notes/*.md" --name=mine        # files, folders and globs of them
    python prepare.py tinystories --max_bytes=500_000_000        # a preset, OWNER/NAME[:CONFIG] on the Hub, or a URL
    python prepare.py train.parquet --val=val.parquet --name=books-gpt2 --tokenizer=gpt2

.jsonl, .json, .csv and .parquet give a document per row, every other file is one document. Bins are the text itself,
raw UTF-8 with the byte 0xFF (EOT) between documents; for a BPE baseline, gpt2's token ids. --val or a source's own
validation split wins; else each document's hash decides; fewer than 20 documents are each cut by position. data/NAME
appears only when all of it is there.
"""

import codecs
import contextlib
import errno
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from common import first_line
from config import parse
from data import gpt2
from model import EOT, GPT2_VOCAB

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PRESETS = {  # name: (Hub dataset or URL, its configuration, its text column, what it is)
    "stdlib": ("", "", "", "Python's own standard library, 12 MB, from this machine"),
    "shakespeare": (SHAKESPEARE, "", "text", "Tiny Shakespeare, 1.1 MB"),
    "tinystories": ("roneneldan/TinyStories", "", "text", "short stories in simple words, 2 GB"),
    "wikitext": (
        "EleutherAI/wikitext_document_level",
        "wikitext-103-raw-v1",
        "page",
        "good articles of Wikipedia, 540 MB",
    ),
    "simplewiki": ("wikimedia/wikipedia", "20231101.simple", "text", "Wikipedia in simple English, 250 MB"),
    "openwebtext": ("Skylion007/openwebtext", "", "text", "web pages that Reddit linked to, 40 GB"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text", "educational web pages, 45 GB"),
}
ROWS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # a document per row
VAL_CAP = 10_000_000  # bytes: more would only make evaluation slow
HUB_CAP = 1_000_000_000  # bytes taken from the network unless --max_bytes says otherwise
FEW = 20  # documents: with fewer, a hash of each would split the text too unevenly


@dataclass
class PrepareConfig:
    # what comes out
    name: str = ""  # of the folder in data_dir; empty: from the first source
    tokenizer: Literal["bytes", "gpt2"] = "bytes"  # gpt2: token ids for the BPE baselines
    gpt2_vocab: int = GPT2_VOCAB  # with tokenizer=gpt2: its first tokens, this many with EOT, the last
    data_dir: str = "data"  # where datasets live
    overwrite: bool = False  # make it anew if it is there; the old one stays until the new one is complete
    # what goes in
    val: str = ""  # source of the validation split; empty: its own, or by val_fraction
    val_fraction: float = 0.1  # share of the text that is held out
    max_bytes: int = 0  # stop after this much text; 0: everything (from the network: 1 GB)
    text_column: str = "text"  # of rows in .jsonl, .json, .csv, .parquet and Hub datasets
    errors: Literal["strict", "replace"] = "strict"  # what is not UTF-8: stop there, or put U+FFFD

    def __post_init__(self):
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if not 257 <= self.gpt2_vocab <= GPT2_VOCAB:
            raise ValueError(f"gpt2_vocab={self.gpt2_vocab} must be between 257 and {GPT2_VOCAB}")
        if self.max_bytes < 0:
            raise ValueError(f"max_bytes={self.max_bytes} must not be negative")
        if self.name and not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"name={self.name!r} must be a plain folder name")

    def encoding(self):
        """tiktoken's encoding, or None for bytes."""
        return gpt2(self.gpt2_vocab) if self.tokenizer == "gpt2" else None


# --- sources: a document is a function that yields its text in pieces of whole UTF-8 characters -------------------


class Source:
    """One source of documents: `documents()` starts over at each call; `size` in bytes, or None if unknown."""

    def __init__(self, word, cfg):
        self.word, self.cfg, self.files, self.size = word, cfg, [], None
        self.remote, self.split, self.column = "", "train", cfg.text_column
        paths = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True))
        if word == "stdlib":
            root = Path(sysconfig.get_paths()["stdlib"])
            skip = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
            found = (p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
            self.files = sorted(found, key=lambda p: p.relative_to(root).as_posix())
        elif paths:
            inside = (sorted(Path(p).rglob("*")) if Path(p).is_dir() else [Path(p)] for p in paths)
            self.files = [p for p in itertools.chain.from_iterable(inside) if p.is_file() and p.name[0] != "."]
        elif word in PRESETS:
            self.remote, self.configuration, self.column, _ = PRESETS[word]
        elif word.startswith(("http://", "https://")):
            self.remote, self.configuration = word, ""
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", word) and Path(word).suffix not in {".txt", ".md", *ROWS}:
            self.remote, _, self.configuration = word.partition(":")
        else:
            raise ValueError(f"no such file or preset: {word}; presets: {', '.join(PRESETS)}; Hub datasets: OWNER/NAME")
        if not self.remote:
            self.size = sum(p.stat().st_size for p in self.files)

    def documents(self):
        if self.remote.startswith("http"):
            yield from self._rows(ROWS.get(Path(self.remote).suffix.lower(), "text"), self.remote)
        elif self.remote:
            yield from self._rows(self.remote)
        for path in self.files:
            if path.suffix.lower() in ROWS:
                yield from self._rows(ROWS[path.suffix.lower()], str(path))
            elif self.word != "stdlib" or is_utf8(path):
                yield lambda path=path: read_text(path, self.cfg.errors)

    def val(self):
        """The source's own validation split, as a source, or None."""
        if not self.remote or self.remote.startswith("http"):
            return None
        import datasets

        with one_line(self.remote):
            reach(self.remote)
            names = datasets.get_dataset_split_names(self.remote, self.configuration or None)
        other = Source(self.word, self.cfg)
        other.split = next((n for n in ("validation", "val", "dev") if n in names), None)
        return other if other.split else None

    def _rows(self, builder, file=None):
        """Documents from the rows that `datasets` streams: of a file, of a URL or (file=None) of a Hub dataset."""
        import datasets

        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
        where, column = file or builder, self.column
        options = {"name": self.configuration or None} if not file else {"data_files": file}
        options |= {"text": {"sample_by": "document"}, "csv": {"keep_default_na": False}}.get(builder, {})
        with one_line(where):
            if self.remote:
                reach(where)
            for row in datasets.load_dataset(builder, split=self.split, streaming=True, **options):
                if column not in row:
                    raise ValueError(f"{where} has no column {column!r}; --text_column can be: {', '.join(row)}")
                if row[column]:
                    text = str(row[column]).encode("utf-8", self.cfg.errors)
                    yield lambda text=text: [text]


@contextlib.contextmanager
def one_line(where):
    """Whatever a library throws at unreadable input becomes one line that names the input."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(str(where)):
            raise
        raise ValueError(f"{where} cannot be read: {first_line(e)}") from None


def reach(target):
    """Raise ValueError, within seconds, unless the URL or Hub dataset answers."""
    import huggingface_hub

    try:
        if target.startswith("http"):
            huggingface_hub.get_session().head(target, timeout=10).raise_for_status()
        else:
            huggingface_hub.HfApi().dataset_info(target, timeout=10)
    except Exception as e:
        advice = "offline, `python prepare.py` (the standard library) and local files work"
        raise ValueError(f"{target} cannot be reached ({first_line(e)}); {advice}") from None


def read_text(path, errors):
    """The file in pieces of whole characters, without a byte-order mark; ValueError with the offset if not UTF-8."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(errors), 0
    with open(path, "rb") as f:
        while True:
            piece, held = f.read(1 << 20), len(decoder.getstate()[0])  # held back: the start of a character
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as e:
                where = f"byte {offset - held + e.start} is 0x{e.object[e.start]:02X}"
                raise ValueError(f"{path} is not UTF-8: {where}; --errors=replace goes on") from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text.encode()
            if not piece:
                return
            offset += len(piece)


def is_utf8(path):
    try:
        return all(True for _ in read_text(path, "strict"))
    except ValueError:
        return False


# --- splits: where the text goes ----------------------------------------------------------------------------------


class Split:
    """train.bin or val.bin in the making."""

    def __init__(self, path, encoding, bar):
        self.file, self.encoding, self.bar = path.open("wb"), encoding, bar
        self.hash, self.text_hash = hashlib.sha256(), hashlib.sha256()
        self.documents = self.bytes = self.symbols = 0

    def add(self, pieces):
        """One document; nothing happens if it is empty. Returns its bytes."""
        before, waiting = self.bytes, b""
        for piece in pieces:
            border = piece and self.bytes == before and self.documents
            self.text_hash.update(bytes([EOT]) + piece if border else piece)
            if border:
                self._write([self.encoding.eot_token] if self.encoding else bytes([EOT]))
            self.bytes += len(piece)
            self.bar.update(len(piece))
            if not self.encoding:
                self._write(piece)
                continue
            waiting += piece
            if len(waiting) > 1 << 20:  # no token spans a space between letters: a long document is encoded in parts
                cut = max((m.end() for m in re.finditer(rb"[A-Za-z](?= [A-Za-z])", waiting)), default=0)
                self._write(self.encoding.encode_ordinary(waiting[:cut].decode()))
                waiting = waiting[cut:]
        if waiting:
            self._write(self.encoding.encode_ordinary(waiting.decode()))
        self.documents += self.bytes > before
        return self.bytes - before

    def _write(self, symbols):
        raw = np.array(symbols, dtype="<u2").tobytes() if self.encoding else symbols
        self.symbols += len(symbols)
        self.hash.update(raw)
        self.file.write(raw)

    def close(self):
        self.file.close()
        sha256 = self.hash.hexdigest()
        info = {"documents": self.documents, "bytes": self.bytes, "symbols": self.symbols, "sha256": sha256}
        return info | ({"text_sha256": self.text_hash.hexdigest()} if self.encoding else {})  # (bytes are the text)


def fill(train, val, sources, val_sources, cap, val_fraction):
    """Send every document where it belongs. Returns (the rule in words, the lowest hash seen)."""
    for source in val_sources:
        for document in source.documents():
            if val.bytes >= VAL_CAP:
                break
            val.add(cut_at(VAL_CAP - val.bytes, document())[0])
    documents = itertools.chain.from_iterable(source.documents() for source in sources)
    first = list(itertools.islice(documents, FEW))
    by_position = len(first) < FEW and not val_sources
    lowest, left, in_val = 1.0, cap or float("inf"), set()
    for document in itertools.chain(first, documents):
        if left <= 0:
            break
        pieces = cut_at(left, document())[0]
        if val_sources:
            left -= train.add(pieces)
            continue
        size, document_hash = measure(cut_at(left, document())[0])
        if by_position:
            border = max(int(size * (1 - val_fraction)), size - VAL_CAP + val.bytes)
            for split, part in zip((train, val), cut_at(border, pieces), strict=True):
                split.add(part)
        elif size:
            lowest = min(lowest, document_hash)
            if document_hash <= val_fraction and val.bytes + size <= VAL_CAP:
                in_val.add(document_hash)
                val.add(pieces)
            elif document_hash not in in_val:  # a copy of a val document must not land in train once val is full
                train.add(pieces)
        left -= size
    if val_sources:
        return "a validation split of its own", lowest
    if by_position:
        return f"{len(first)} documents, fewer than {FEW}: each cut at {1 - val_fraction:g} of its length", lowest
    return f"by the hash of each document, {val_fraction:.3g} of them to val", lowest


def measure(pieces):
    """(bytes, hash as a number from 0 to 1) of a document."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return size, int.from_bytes(digest.digest()[:8], "big") / 2**64


def cut_at(n, pieces):
    """A document's pieces up to byte n (to the end of that character), and those after it: two generators over one
    stream, so the first must be used up before the second."""
    pieces, rest = iter(pieces), []

    def before():
        left = n
        for piece in pieces:
            if len(piece) > left:
                at = int(left)
                while at < len(piece) and piece[at] & 0xC0 == 0x80:  # inside a character
                    at += 1
                yield piece[:at]
                rest.append(piece[at:])
                return
            left -= len(piece)
            yield piece

    return before(), (piece for part in (rest, pieces) for piece in part)


# --- the run ------------------------------------------------------------------------------------------------------


def human(n):
    return "unknown size" if n is None else f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n:,} bytes"


def main(argv=None):
    listing = "".join(f"\n  {name}".ljust(30) + f" {what}" for name, (*_, what) in PRESETS.items())
    cfg, words = parse(PrepareConfig, sys.argv[1:] if argv is None else argv, f"{__doc__}\npresets{listing}")
    words = words or ["stdlib"]
    stem = Path(words[0] if "//" in words[0] else words[0].partition(":")[0]).stem
    name = cfg.name or (re.sub(r"^\W+|[^\w.+-]", "", stem) or "text") + "-gpt2" * (cfg.tokenizer == "gpt2")
    name += f"-{cfg.gpt2_vocab}" * (not cfg.name and cfg.gpt2_vocab != GPT2_VOCAB)
    out = Path(cfg.data_dir) / name
    if (out / "meta.json").is_file() and not cfg.overwrite:
        meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
        sizes = f"train {human(meta['train']['bytes'])}, val {human(meta['val']['bytes'])}"
        print(f"{out} is there already ({sizes} from {', '.join(meta['sources'])}): kept; --overwrite makes it anew")
        return
    if out.exists() and not (out / "meta.json").is_file():
        raise ValueError(f"{out} is there and is no dataset: choose another --name")
    sources = [Source(word, cfg) for word in words]
    val_sources = [Source(cfg.val, cfg)] if cfg.val else [v for s in sources if (v := s.val())]
    ours, theirs = ({p.resolve() for s in side for p in s.files} for side in (sources, val_sources))
    if ours & theirs:
        raise ValueError(f"--val={cfg.val} is part of the training text: give another source, or leave --val out")
    known = [s.size for s in sources + val_sources]
    total = None if None in known else sum(known)
    cap = cfg.max_bytes or (HUB_CAP if any(s.remote for s in sources) else 0)
    total = min(total or cap, cap) if cap else total
    files = sum(len(s.files) for s in sources)
    print(f"reads {', '.join(words)}" + f" ({files} files)" * (files > 1) + f": {human(total)}")
    print(f"writes {out}: train.bin, val.bin, meta.json" + f" ({cfg.tokenizer} tokens)" * (cfg.tokenizer != "bytes"))
    if cfg.tokenizer == "gpt2":
        with one_line("tiktoken's gpt2 encoding (TIKTOKEN_CACHE_DIR can name a folder that holds its files)"):
            cfg.encoding()
    Path(cfg.data_dir).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cfg.data_dir).free
    if total and total > free:
        raise ValueError(f"the disk of {cfg.data_dir} has {human(free)} free, this needs about {human(total)}")

    def sweep():  # also what an earlier run left that was killed
        for stale in Path(cfg.data_dir).glob(f".{name}.tmp-*"):
            if stale.name.endswith("-old") and not out.exists():  # killed between the two renames below
                stale.rename(out)
            shutil.rmtree(stale, ignore_errors=True)

    sweep()
    work = Path(cfg.data_dir) / f".{name}.tmp-{os.getpid()}"
    work.mkdir()
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` cleans up as Ctrl-C does
    try:
        write(work, name, words, sources, val_sources, cfg, cap, total)
        if out.exists():
            out.rename(work.with_name(f"{work.name}-old"))
        work.rename(out)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise ValueError(f"the disk of {cfg.data_dir} is full ({human(free)} were free at the start)") from None
    finally:
        signal.signal(signal.SIGTERM, terminated)
        sweep()
    said = " config/bpe_50m.py" * (cfg.tokenizer == "gpt2") + f" --dataset={name}"
    said += f" --gpt2_vocab={cfg.gpt2_vocab}" * (cfg.gpt2_vocab != GPT2_VOCAB)
    print(f"next: python train.py{said}" + f" --data_dir={cfg.data_dir}" * (cfg.data_dir != "data"))


def write(work, name, words, sources, val_sources, cfg, cap, total):
    """Fill `work` with train.bin, val.bin and meta.json."""
    val_fraction = cfg.val_fraction
    packed = any(p.suffix == ".parquet" for s in sources for p in s.files)  # its text is several times its size
    for _ in range(2):
        with tqdm(total=None if packed else total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
            splits = {split: Split(work / f"{split}.bin", cfg.encoding(), bar) for split in ("train", "val")}
            try:
                rule, lowest = fill(splits["train"], splits["val"], sources, val_sources, cap, val_fraction)
            finally:
                info = {split: s.close() for split, s in splits.items()}
        if info["val"]["bytes"] or lowest == 1:
            break
        val_fraction = lowest  # no document fell on val's side: once more, with the lowest hash there
    if not info["train"]["bytes"] + info["val"]["bytes"]:
        raise ValueError(f"there is no text in {', '.join(words)}")
    for split, other in (("train", "val"), ("val", "train")):
        if not info[split]["bytes"]:
            raise ValueError(
                f"all the text falls into {other}: give more text, another --val_fraction, or --val=SOURCE"
            )
    dtype, vocab_size = ("uint8", 256) if cfg.tokenizer == "bytes" else ("uint16", cfg.gpt2_vocab)
    meta = {"name": name, "sources": words, "val_source": cfg.val or None, "split": rule, "tokenizer": cfg.tokenizer}
    meta |= {"dtype": dtype, "vocab_size": vocab_size} | info | {"created": time.strftime("%Y-%m-%d %H:%M:%S")}
    (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    print(f"split: {rule}")
    for split in ("train", "val"):
        print(f"{split}: {info[split]['documents']:,} documents, {info[split]['bytes']:,} bytes of text")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"prepare.py: {e}")
    except KeyboardInterrupt:
        sys.exit("prepare.py: interrupted; nothing is left behind")
