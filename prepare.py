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

import errno
import hashlib
import itertools
import json
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from config import Config, load_file, parse
from lib.data import gpt2, read_meta
from lib.files import lock, run_command
from lib.sources import PRESETS, Source, one_line
from model import EOT, GPT2_VOCAB

VAL_CAP = 10_000_000  # bytes: more would only make evaluation slow
HUB_CAP = 1_000_000_000  # bytes taken from the network unless --max_bytes says otherwise
FEW = 20  # documents: with fewer, a hash of each would split the text too unevenly


@dataclass
class PrepareConfig:
    # --- what comes out ---
    name: str = ""  # of the folder in data_dir; empty: from the first source
    tokenizer: Literal["bytes", "gpt2"] = "bytes"  # gpt2: token ids for the BPE baselines
    gpt2_vocab: int = (
        GPT2_VOCAB  # with tokenizer=gpt2: its first tokens, this many with EOT, the last
    )
    data_dir: str = "data"  # where datasets live
    overwrite: bool = (
        False  # make it anew if it is there; the old one stays until the new one is complete
    )
    # --- what goes in ---
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
            if self.encoding:
                self.text_hash.update(bytes([EOT]) + piece if border else piece)
            if border:
                self._write([self.encoding.eot_token] if self.encoding else bytes([EOT]))
            self.bytes += len(piece)
            self.bar.update(len(piece))
            if not self.encoding:
                self._write(piece)
                continue
            waiting += piece
            if (
                len(waiting) > 1 << 20
            ):  # no token spans a space between letters: a long document is encoded in parts
                cut = max(
                    (m.end() for m in re.finditer(rb"[A-Za-z](?= [A-Za-z])", waiting)), default=0
                )
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
        info = {
            "documents": self.documents,
            "bytes": self.bytes,
            "symbols": self.symbols,
            "sha256": sha256,
        }
        return info | (
            {"text_sha256": self.text_hash.hexdigest()} if self.encoding else {}
        )  # (bytes are the text)


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
        size, document_hash = measure(cut_at(left, document())[0], by_position)
        if by_position:
            border = max(int(size * (1 - val_fraction)), size - VAL_CAP + val.bytes)
            for split, part in zip((train, val), cut_at(border, pieces), strict=True):
                split.add(part)
        elif size:
            lowest = min(lowest, document_hash)
            if document_hash <= val_fraction and val.bytes + size <= VAL_CAP:
                in_val.add(document_hash)
                val.add(pieces)
            elif (
                document_hash not in in_val
            ):  # a copy of a val document must not land in train once val is full
                train.add(pieces)
        left -= size
    if val_sources:
        return "a validation split of its own", lowest
    if by_position:
        return (
            f"{len(first)} documents, fewer than {FEW}: each cut at {1 - val_fraction:g} of its length",
            lowest,
        )
    return f"by the hash of each document, {val_fraction:.3g} of them to val", lowest


def measure(pieces, only_size=False):
    """(bytes, hash as a number from 0 to 1) of a document."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        if not only_size:
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
    cfg, words = parse(
        PrepareConfig, sys.argv[1:] if argv is None else argv, f"{__doc__}\npresets{listing}"
    )
    words = words or ["stdlib"]
    stem = Path(words[0] if "//" in words[0] else words[0].partition(":")[0]).stem
    name = cfg.name or (re.sub(r"^\W+|[^\w.+-]", "", stem) or "text") + "-gpt2" * (
        cfg.tokenizer == "gpt2"
    )
    name += f"-{cfg.gpt2_vocab}" * (not cfg.name and cfg.gpt2_vocab != GPT2_VOCAB)
    out = Path(cfg.data_dir) / name
    asked = {"sources": words, "val_source": cfg.val or None, "tokenizer": cfg.tokenizer}
    asked |= {
        key: getattr(cfg, key)
        for key in ("max_bytes", "val_fraction", "text_column", "errors", "gpt2_vocab")
    }
    if (out / "meta.json").is_file() and not cfg.overwrite:
        meta = read_meta(out)
        for key, value in asked.items():
            if meta.get(key, value) != value:
                ways = "--overwrite makes it anew, --name=OTHER keeps both"
                raise ValueError(
                    f"{out} is there already, with {key}={meta[key]!r}, not {value!r}: {ways}"
                )
        sizes = f"train {human(meta['train']['bytes'])}, val {human(meta['val']['bytes'])}"
        print(
            f"{out} is there already ({sizes} from {', '.join(meta['sources'])}): kept; --overwrite makes it anew"
        )
        return
    if out.exists() and not (out / "meta.json").is_file():
        raise ValueError(f"{out} is there and is no dataset: choose another --name")
    sources = [Source(word, cfg) for word in words]
    val_sources = [Source(cfg.val, cfg)] if cfg.val else [v for s in sources if (v := s.val())]
    ours, theirs = ({p.resolve() for s in side for p in s.files} for side in (sources, val_sources))
    if ours & theirs:
        raise ValueError(
            f"--val={cfg.val} is part of the training text: give another source, or leave --val out"
        )
    known = [s.size for s in sources + val_sources]
    total = None if None in known else sum(known)
    cap = cfg.max_bytes or (HUB_CAP if any(s.remote for s in sources) else 0)
    files = sum(len(s.files) for s in sources)
    most = f", of which at most {human(cap)}" if cap and cap < (total or cap + 1) else ""
    print(
        f"reads {', '.join(words)}" + f" ({files} files)" * (files > 1) + f": {human(total)}{most}"
    )
    print(
        f"writes {out}: train.bin, val.bin, meta.json"
        + f" ({cfg.tokenizer} tokens)" * (cfg.tokenizer != "bytes")
    )
    total = min(total, cap) if total and cap else total
    if cfg.tokenizer == "gpt2":
        with one_line(
            "tiktoken's gpt2 encoding (TIKTOKEN_CACHE_DIR can name a folder that holds its files)"
        ):
            cfg.encoding()
    Path(cfg.data_dir).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cfg.data_dir).free
    if total and total > free:
        raise ValueError(
            f"the disk of {cfg.data_dir} has {human(free)} free, this needs about {human(total)}"
        )
    work = out.with_name(f".{name}.tmp")
    old = work.with_name(f"{work.name}-old")

    def sweep():  # also what an earlier run left that was killed
        if old.exists() and not out.exists():  # killed between the two renames below
            old.rename(out)
        for stale in (work, old):
            shutil.rmtree(stale, ignore_errors=True)

    terminated = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # `kill` cleans up as Ctrl-C does
    with lock(
        out.with_name(f".{name}.lock"),
        f"{out} is being prepared by another process: wait until it has ended",
    ):
        try:
            sweep()
            work.mkdir()
            for source in sources + val_sources:
                source.fetch(work / "fetched")
            info = write(work, words, sources, val_sources, cfg, cap, total)
            shutil.rmtree(work / "fetched", ignore_errors=True)
            meta = {"name": name} | asked | info | {"created": time.strftime("%Y-%m-%d %H:%M:%S")}
            (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            if out.exists():
                out.rename(old)
            work.rename(out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("; nothing is left behind") from None
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            raise ValueError(
                f"the disk of {cfg.data_dir} is full ({human(free)} were free at the start)"
            ) from None
        finally:
            sweep()
            signal.signal(signal.SIGTERM, terminated)
    said = " config/bpe_50m.py" * (cfg.tokenizer == "gpt2") + f" --dataset={name}"
    said += f" --gpt2_vocab={cfg.gpt2_vocab}" * (cfg.gpt2_vocab != GPT2_VOCAB)
    symbols, context = (
        info["train"]["symbols"],
        load_file(Config, "config/demo.py")[0]["block_size"],
    )
    if symbols <= context:
        print(
            f"{symbols} symbols to train on are fewer than config/demo.py reads at once, {context}: give more text, or"
        )
        said += f" --block_size={max(1, symbols // 2)} --max_patches=0 --batch_bytes={8 * max(1, symbols // 2)}"
    print(f"next: python train.py{said}" + f" --data_dir={cfg.data_dir}" * (cfg.data_dir != "data"))


def write(work, words, sources, val_sources, cfg, cap, total):
    """Fill `work` with train.bin and val.bin. Returns what meta.json says of them."""
    val_fraction = cfg.val_fraction
    packed = any(
        p.suffix in (".parquet", ".gz") for s in sources for p in s.files
    )  # text is several times its size
    for _ in range(2):
        with tqdm(
            total=None if packed else total,
            unit="B",
            unit_scale=True,
            desc=words[0][-20:],
            disable=None,
        ) as bar:
            splits = {
                split: Split(work / f"{split}.bin", cfg.encoding(), bar)
                for split in ("train", "val")
            }
            try:
                rule, lowest = fill(
                    splits["train"], splits["val"], sources, val_sources, cap, val_fraction
                )
            finally:
                info = {split: s.close() for split, s in splits.items()}
        if info["val"]["bytes"] or lowest == 1:
            break
        val_fraction = (
            lowest  # no document fell on val's side: once more, with the lowest hash there
        )
    kinds = sum((s.left_out for s in sources + val_sources), Counter())
    left_out = (
        "left out: " + ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        if kinds
        else ""
    )
    if not info["train"]["bytes"] + info["val"]["bytes"]:
        raise ValueError(
            f"there is no text in {', '.join(words)}" + f" ({left_out})" * bool(left_out)
        )
    for split, other in (("train", "val"), ("val", "train")):
        if not info[split]["bytes"]:
            ways = "give more text, another --val_fraction, or --val=SOURCE"
            raise ValueError(f"all the text falls into {other}: {ways}")
    print(f"split: {rule}" + f"\n{left_out}" * bool(left_out))
    for split in ("train", "val"):
        print(
            f"{split}: {info[split]['documents']:,} documents, {info[split]['bytes']:,} bytes of text"
        )
    dtype, vocab_size = ("uint8", 256) if cfg.tokenizer == "bytes" else ("uint16", cfg.gpt2_vocab)
    return {"split": rule, "dtype": dtype, "vocab_size": vocab_size} | info


if __name__ == "__main__":
    run_command(main)
