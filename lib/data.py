"""A prepared dataset: its order in training, and bits per byte of a split. Text <-> symbols.

A byte model's symbols are the bytes. The BPE baseline's are GPT-2's tokens, or only the first
`gpt2_vocab` of them, EOT included. Only this file and prepare.py use tiktoken.
"""

import contextlib
import functools
import hashlib
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lib.files import read_json
from model import EOT, GPT2_VOCAB, NotFinite

# --- symbols --------------------------------------------------------------------------------------


@functools.cache
def gpt2(vocab_size=GPT2_VOCAB):
    """tiktoken's gpt2 encoding, cut to `vocab_size` tokens: the first ones, with EOT as the last.

    tiktoken takes its two files from TIKTOKEN_CACHE_DIR or the network. A cut vocabulary is a
    proper one: tokens are numbered in merge order, so the first n are those of fewer merges.
    """
    import tiktoken

    whole = tiktoken.get_encoding("gpt2")
    ranks = {token: rank for token, rank in whole._mergeable_ranks.items() if rank < vocab_size - 1}
    return tiktoken.Encoding(
        f"gpt2-{vocab_size}",
        pat_str=whole._pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": vocab_size - 1},
    )


def encode(cfg, text):
    """bytes -> list of symbols, for a model with this config."""
    if cfg.tokenizer == "bytes":
        return list(text)
    return gpt2(cfg.gpt2_vocab).encode_ordinary(text.decode(errors="replace"))


def decode(cfg, symbols):
    """list of symbols -> bytes."""
    if cfg.tokenizer == "bytes":
        return bytes(symbols)
    return gpt2(cfg.gpt2_vocab).decode_bytes(symbols)


@functools.cache
def symbol_lengths(tokenizer, gpt2_vocab):
    """Bytes of text in each symbol, (V,). The last symbol, EOT, has 0."""
    if tokenizer == "bytes":
        lengths = np.ones(EOT + 1, dtype=np.int64)
    else:
        decode_one = gpt2(gpt2_vocab).decode_single_token_bytes
        lengths = np.array([len(decode_one(i)) for i in range(gpt2_vocab)])
    lengths[-1] = 0
    return lengths


def continuation_start(cfg, context, symbols):
    """How many of a text's symbols lie entirely within the context (bytes) that it begins with."""
    ends = np.cumsum(symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab)[symbols])
    return int(np.searchsorted(ends, len(context), side="right"))


# --- a dataset ------------------------------------------------------------------------------------


def newest_dataset(cfg):
    """The name of the newest dataset in data_dir for the config's tokenizer, or None."""
    vocab_size = 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab
    found = []
    for path in Path(cfg.data_dir).glob("*/meta.json"):
        # a broken dataset does not count
        with contextlib.suppress(OSError, ValueError, KeyError):
            meta = read_json(path)
            if (meta["tokenizer"], meta.get("vocab_size", 256)) == (cfg.tokenizer, vocab_size):
                found.append((path.stat().st_mtime, path.parent.name))
    if not found:
        return None
    _, name = max(found)
    return name


def read_meta(folder):
    """A dataset's meta.json. ValueError, with the file's name, if it does not fit the bins."""
    path = Path(folder) / "meta.json"
    advice = "copy the dataset again, or make a new one with prepare.py --overwrite"
    try:
        meta = read_json(path)
        dtype = np.dtype({"bytes": "uint8", "gpt2": "uint16"}[meta["tokenizer"]])
        most_bytes = {"bytes": 1, "gpt2": 128}[meta["tokenizer"]]  # in a symbol
        if meta["dtype"] != dtype.name:
            raise ValueError(f"expected dtype={dtype.name}, got {meta['dtype']!r}")
        check_count(meta, "vocab_size", 2)
        for split in ("train", "val"):
            info = meta[split]
            check_count(info, "bytes", 1)
            check_count(info, "symbols", 1)
            check_count(info, "documents", 0)
            if not re.fullmatch("[0-9a-f]{64}", info["sha256"]):
                raise ValueError(f"expected a sha256 for {split}, got {info['sha256']!r}")
            bin_path = path.with_name(f"{split}.bin")
            size = bin_path.stat().st_size
            expected = info["symbols"] * dtype.itemsize
            if size != expected:
                raise ValueError(f"expected {expected:,} bytes in {bin_path}, got {size:,}")
            # Bits per byte would be too low.
            most = info["symbols"] * most_bytes
            if info["bytes"] > most:
                raise ValueError(
                    f"expected at most {most:,} bytes of text in {bin_path}, got {info['bytes']:,}"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        why = f"{type(e).__name__}: {str(e)[:200]}"
        raise ValueError(f"{path} cannot be used ({why}); {advice}") from None
    return meta


def check_count(info, key, lowest):
    """ValueError unless info[key] is a whole number of at least `lowest`."""
    value = info[key]
    if type(value) is not int or value < lowest:  # not bool, which is an int, too
        raise ValueError(f"expected {key} of at least {lowest}, got {value!r}")


@functools.lru_cache(maxsize=1)
def epoch_order(seed, epoch, size, n_windows):
    """-> (where an epoch starts in a text of `size` symbols, the order of its windows)."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return int(rng.integers(size)), rng.permutation(n_windows)


class Data:
    """One split: a memory map of its symbols, and how many bytes of text each symbol stands for."""

    def __init__(self, cfg, split):
        folder = Path(cfg.data_dir) / cfg.dataset
        # a plain name, which cannot lead out of data_dir
        is_name = re.fullmatch(r"\w[\w.+-]*", cfg.dataset) is not None
        if not is_name or not (folder / "meta.json").is_file():
            known = sorted(p.parent.name for p in Path(cfg.data_dir).glob("*/meta.json"))
            raise ValueError(
                f"no dataset {folder}: choose one of {known}, or make one with python prepare.py"
            )
        self.meta = read_meta(folder)
        self.lengths = symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab)  # (V,)
        vocab_size = len(self.lengths)
        if (self.meta["tokenizer"], self.meta["vocab_size"]) != (cfg.tokenizer, vocab_size):
            raise ValueError(
                f"{folder}: expected a vocabulary of {vocab_size} ({cfg.tokenizer}), got "
                f"{self.meta['vocab_size']} ({self.meta['tokenizer']}): choose another --dataset, "
                "--tokenizer or --gpt2_vocab"
            )
        self.path = folder / f"{split}.bin"
        self.split = split
        self.symbols = np.memmap(self.path, dtype=self.meta["dtype"], mode="r")
        # Any byte is a symbol, but not any token: look at all of them.
        if cfg.tokenizer != "bytes" and self.symbols.max() >= vocab_size:
            raise ValueError(
                f"{self.path} has the token {self.symbols.max()}, but its vocabulary ends at "
                f"{vocab_size - 1}: make it anew with prepare.py --overwrite"
            )
        # Below 1 for bytes, because EOT is a symbol but not text.
        self.bytes_per_symbol = self.meta[split]["bytes"] / len(self.symbols)

    @functools.cached_property
    def sha256(self):
        """Of the split's file itself, whatever meta.json says."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def verify(self, checkpoint):
        """ValueError unless this is, to the last bit, the split that the checkpoint's run used."""
        found = self.sha256
        # None for a shared model that does not name its training text
        trained = checkpoint.get("data", {}).get(self.split, {}).get("sha256")
        for where, sha256 in (
            ("meta.json", self.meta[self.split]["sha256"]),
            ("the checkpoint", trained),
        ):
            if found != sha256:
                raise ValueError(
                    f"{self.path} is damaged or not the same text: expected the sha256 in {where} "
                    f"({sha256}), got {found}; copy the dataset again"
                )

    @classmethod
    def of_text(cls, cfg, text):
        """Any text (bytes of valid UTF-8) as a split. It has only symbols and lengths."""
        self = cls.__new__(cls)
        if cfg.tokenizer == "bytes":
            self.symbols = np.frombuffer(text, dtype=np.uint8)  # the text itself, not a copy
        else:
            self.symbols = np.array(encode(cfg, text), dtype=np.uint16)
        self.lengths = symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab)
        return self

    def batch(self, seed, step, n_rows, T, rank=0, world=1):
        """This rank's share of the global batch of `step`: int64 array (n_rows / world, T + 1).

        The text is a circle. An epoch cuts it into size // T windows, starting at a random point,
        and visits them in random order. So an epoch predicts each symbol at most once, and leaves
        out fewer than T symbols.
        """
        size = len(self.symbols)
        n_windows = size // T
        rows = np.empty((n_rows // world, T + 1), dtype=np.int64)
        for i in range(len(rows)):
            window = step * n_rows + rank * len(rows) + i
            epoch, place = divmod(window, n_windows)
            first, order = epoch_order(seed, epoch, size, n_windows)
            start = (first + int(order[place]) * T) % size
            row = self.symbols[start : start + T + 1]
            if len(row) < T + 1:  # around the end of the circle
                row = np.concatenate((row, self.symbols[: T + 1 - len(row)]))
            rows[i] = row
        return rows

    def windows(self, T, limit=0, stride=0):
        """Consecutive windows of T symbols to score: a list of (start, stop, first).

        Symbols before `first` are only context. With a limit (in symbols) the list is an even
        spread of all windows. With a stride, windows overlap: each after the first scores its last
        `stride` symbols, which then have at least T - stride symbols of context.
        """
        size = len(self.symbols)
        windows = []
        if stride:
            windows.append((0, min(T, size), 0))
            for first in range(T, size, stride):
                windows.append((first + stride - T, min(first + stride, size), first))
            return windows
        starts = np.arange(0, size, T)
        if limit and limit < size:
            n = max(1, limit // T)
            starts = starts[np.linspace(0, len(starts) - 1, n).round().astype(int)]
        for start in starts.tolist():
            windows.append((start, min(start + T, size), start))
        return windows


# --- bits per byte --------------------------------------------------------------------------------


def symbols_at_once(model):
    """How many symbols to score in one pass: enough to keep the device busy, few enough to fit."""
    if model.embed.weight.device.type == "cpu":
        most = 16384
        logits_bytes = 1 << 28
    else:
        most = 131072
        logits_bytes = 1 << 31
    return min(most, logits_bytes // (4 * model.vocab_size))


def batches_of(windows, n_rows):
    """Neighbouring windows of one shape, up to n_rows at a time."""
    batch = []
    batch_shape = None
    for start, stop, first in windows:
        shape = (stop - start, first - start)
        if batch and (len(batch) == n_rows or shape != batch_shape):
            yield batch
            batch = []
        batch.append((start, stop, first))
        batch_shape = shape
    if batch:
        yield batch


@torch.no_grad()
def bits_per_byte(model, data, T, limit=0, stride=0, machine=None, on_progress=lambda n: None):
    """Score the windows of a split (see Data.windows), each symbol once. EOT adds no nats or bytes.

    The model predicts a symbol from those before it in its window, and from the one before the
    window (EOT if there is none). With several processes in `machine`, each scores its share.
    `on_progress` is called with the number of symbols scored in each batch.

    Returns a dict: nats; bytes; bpb; overflow, the share of windows with more patches than the
    trunk attends to; bytes_per_patch. NotFinite if the nats are NaN or infinite.
    """
    device = model.embed.weight.device
    lengths = torch.from_numpy(data.lengths).to(device)
    windows = data.windows(T, limit, stride)
    if machine:
        windows = windows[machine.rank :: machine.world]
    nats = 0.0
    n_bytes = 0
    n_patches = 0
    n_overflow = 0
    was_training = model.training
    model.eval()
    for batch in batches_of(windows, max(1, symbols_at_once(model) // T)):
        symbols = np.stack([data.symbols[start:stop] for start, stop, _ in batch])
        before = [data.symbols[start - 1] if start else model.eot for start, _, _ in batch]
        y = torch.from_numpy(symbols.astype(np.int64)).to(device)  # (rows, n), n <= T
        x = torch.tensor(before, dtype=torch.long, device=device)[:, None]
        x = torch.cat((x, y[:, :-1]), dim=1)
        ends, _ = model.patch_ends(x)
        n_overflow += (ends.sum(dim=1) > model.cfg.n_patches).sum().item()

        # Leave out context, equally long in all windows of a batch, and EOT, which has no bytes.
        window_start, _, first = batch[0]
        n_context = first - window_start
        y_bytes = lengths[y[:, n_context:]]  # (rows, n_scored)
        y_nats = model.nats(x, y)[:, n_context:] * (y_bytes > 0)
        nats += y_nats.cpu().double().sum().item()
        n_bytes += y_bytes.sum().item()
        n_patches += ends[:, n_context:].sum().item()
        on_progress(y_bytes.numel())
    model.train(was_training)

    sums = [nats, n_bytes, n_patches, n_overflow, len(windows)]
    if machine:
        sums = machine.sum(sums)
    nats, n_bytes, n_patches, n_overflow, n_windows = sums
    if not math.isfinite(nats):
        raise NotFinite("bits per byte")
    return {
        "nats": nats,
        "bytes": int(n_bytes),
        "bpb": nats / math.log(2) / max(1, n_bytes),
        "overflow": n_overflow / max(1, n_windows),
        "bytes_per_patch": n_bytes / max(1, n_patches),
    }


@torch.no_grad()
def streamed_bits_per_byte(model, data, by_document=False, on_progress=lambda n: None):
    """Bits per byte of a split that is read once from its beginning to its end. EOT is left out.

    The state is carried along: each byte is predicted from the trunk's last P patches and from
    matches up to `match_window` symbols back. `by_document` begins each document with a new state.
    """
    device = model.embed.weight.device
    lengths = torch.from_numpy(data.lengths).to(device)
    symbols = torch.from_numpy(data.symbols.astype(np.int64))
    ends = [len(symbols)]
    if by_document:
        ends = [*((symbols == model.eot).nonzero()[:, 0] + 1).tolist(), len(symbols)]
    nats = 0.0
    n_bytes = 0
    start = 0
    for end in ends:
        state = model.start(1)
        before = torch.tensor([model.eot])
        for y in symbols[start:end].split(model.cfg.block_size):
            x = torch.cat((before, y[:-1])).to(device)
            hidden, state = model.read(x[None], state)
            y_bytes = lengths[y.to(device)]
            y_nats = F.cross_entropy(model.head(hidden[0]), y.to(device), reduction="none")
            nats += (y_nats * (y_bytes > 0)).cpu().double().sum().item()
            n_bytes += y_bytes.sum().item()
            before = y[-1:]
            on_progress(len(y))
        start = end
    if not math.isfinite(nats):
        raise NotFinite("bits per byte")
    return nats / math.log(2) / max(1, n_bytes)
