"""A prepared dataset: its order in training, bits per byte of a split; and text <-> symbols.

For byte models the symbols are the bytes. The BPE baseline's are GPT-2's tokens, or the first of them: only this file
and prepare.py know tiktoken.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import torch

from model import EOT, GPT2_VOCAB

# --- symbols ---------------------------------------------------------------------------------------------------------


@functools.cache
def gpt2(vocab_size=GPT2_VOCAB):
    """tiktoken's gpt2 encoding (its two files come from TIKTOKEN_CACHE_DIR or the network), or the beginning of it.

    A token's number is the merge that made it, so the first tokens are what BPE would have given with fewer merges.
    """
    import tiktoken

    whole = tiktoken.get_encoding("gpt2")
    ranks = {token: rank for token, rank in whole._mergeable_ranks.items() if rank < vocab_size - 1}
    eot = {"<|endoftext|>": vocab_size - 1}
    return tiktoken.Encoding(
        f"gpt2-{vocab_size}", pat_str=whole._pat_str, mergeable_ranks=ranks, special_tokens=eot
    )


def encode(cfg, text):
    """bytes -> list of the symbols of a model with this config."""
    if cfg.tokenizer == "bytes":
        return list(text)
    return gpt2(cfg.gpt2_vocab).encode_ordinary(text.decode(errors="replace"))


def decode(cfg, symbols):
    """list of symbols -> bytes."""
    return (
        bytes(symbols) if cfg.tokenizer == "bytes" else gpt2(cfg.gpt2_vocab).decode_bytes(symbols)
    )


@functools.cache
def symbol_lengths(tokenizer, gpt2_vocab):
    """How many bytes of text each symbol stands for, (V,): 0 for EOT, the last."""
    lengths = np.ones(EOT + 1, dtype=np.int64)
    if tokenizer == "gpt2":
        decode_one = gpt2(gpt2_vocab).decode_single_token_bytes
        lengths = np.array([len(decode_one(i)) for i in range(gpt2_vocab)])
    lengths[-1] = 0
    return lengths


def continuation_start(cfg, context, symbols):
    """How many of a text's symbols lie entirely within the context (bytes) that it begins with."""
    ends = np.cumsum(symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab)[symbols])
    return int(np.searchsorted(ends, len(context), side="right"))


# --- a dataset -------------------------------------------------------------------------------------------------------


def newest_dataset(cfg):
    """The name of the dataset in data_dir that was prepared last, of those for the config's tokenizer, or None."""
    found, wanted = [], (cfg.tokenizer, 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab)
    for path in Path(cfg.data_dir).glob("*/meta.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a broken one is none
            meta = json.loads(path.read_text(encoding="utf-8"))
            if (meta["tokenizer"], meta.get("vocab_size", 256)) == wanted:
                found.append((path.stat().st_mtime, path.parent.name))
    return max(found)[1] if found else None


def read_meta(folder):
    """A dataset's meta.json, held against its bins. ValueError that names the file if they do not fit each other."""
    path, advice = (
        Path(folder) / "meta.json",
        "copy the dataset again, or make it anew with prepare.py --overwrite",
    )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        dtype = np.dtype({"bytes": "uint8", "gpt2": "uint16"}[meta["tokenizer"]])
        bins = {path.with_name(f"{split}.bin"): meta[split] for split in ("train", "val")}
        sizes = {
            bin: (bin.stat().st_size, int(split["symbols"]) * dtype.itemsize)
            for bin, split in bins.items()
        }
        possible = meta["dtype"] == dtype.name and int(meta["vocab_size"]) > 1
        possible &= all(
            int(split["bytes"]) > 0 and len(split["sha256"]) == 64 for split in bins.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} cannot be used ({type(e).__name__}: {e}); {advice}") from None
    if not possible:
        raise ValueError(f"{path} says what cannot be: {meta}; {advice}")
    for bin, (size, expected) in sizes.items():
        if size != expected:
            raise ValueError(
                f"{bin} has {size:,} bytes, where meta.json says {expected:,}; {advice}"
            )
    return meta


class Data:
    """One split as a memory map of symbols, and how many bytes of text each symbol stands for (0 for EOT)."""

    def __init__(self, cfg, split):
        folder = Path(cfg.data_dir) / cfg.dataset
        if not re.fullmatch(r"\w[\w.+-]*", cfg.dataset) or not (folder / "meta.json").is_file():
            known = sorted(p.parent.name for p in Path(cfg.data_dir).glob("*/meta.json"))
            raise ValueError(
                f"no dataset {folder}; there are {known}; python prepare.py makes one (see its --help)"
            )
        self.meta, self.lengths = read_meta(folder), symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab)
        found, n = (self.meta["tokenizer"], self.meta["vocab_size"]), len(self.lengths)
        if found != (cfg.tokenizer, n):
            raise ValueError(
                f"{folder} has {found[1]} symbols of {found[0]}, the config {n} of {cfg.tokenizer}"
            )
        self.path, self.split, self.sha256 = (
            folder / f"{split}.bin",
            split,
            self.meta[split]["sha256"],
        )
        self.symbols = np.memmap(self.path, dtype=self.meta["dtype"], mode="r")
        if n > 256 and self.symbols.max() >= n:
            raise ValueError(
                f"{self.path} has the token {self.symbols.max()}, but its vocabulary ends at {n - 1}"
            )
        self.bytes_per_symbol = self.meta[split]["bytes"] / len(self.symbols)
        self._epoch = (None, None)

    def verify(self, checkpoint):
        """ValueError unless the split is, to the last bit, what this checkpoint's run was trained with."""
        with open(self.path, "rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
        trained = (
            checkpoint["data"].get(self.split, {}).get("sha256")
        )  # (a shared model may tell nothing of its data)
        for where, sha256 in (("meta.json", self.sha256), ("the checkpoint", trained)):
            if found != sha256:
                raise ValueError(
                    f"{self.path} is damaged or other text: its sha256 is not the one in {where}"
                )

    @classmethod
    def of_text(cls, cfg, text):
        """Any text (bytes, valid UTF-8) as if it were a split with one document."""
        self = cls.__new__(cls)
        self.symbols, self.lengths = (
            np.array(encode(cfg, text)),
            symbol_lengths(cfg.tokenizer, cfg.gpt2_vocab),
        )
        return self

    def batch(self, seed, step, rows, T, rank=0, world=1):
        """This rank's share of the global batch of `rows` rows at `step`: int64 array (rows / world, T + 1).

        The corpus is a circle. An epoch starts at a fresh random point and cuts it into n = size // T windows that
        touch end to end, visited in random order: an epoch has every symbol as target at most once, all but fewer than
        T of them once.
        """
        size = len(self.symbols)
        n = size // T
        out = np.empty((rows // world, T + 1), dtype=np.int64)
        for i in range(len(out)):
            epoch, place = divmod(step * rows + rank * len(out) + i, n)
            if self._epoch[0] != (seed, epoch, T):
                rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
                self._epoch = ((seed, epoch, T), (int(rng.integers(size)), rng.permutation(n)))
            shift, order = self._epoch[1]
            start = (shift + int(order[place]) * T) % size
            row = self.symbols[start : start + T + 1]
            out[i] = (
                row
                if len(row) == T + 1
                else np.concatenate((row, self.symbols[: T + 1 - len(row)]))
            )
        return out

    def windows(self, T, limit=0, stride=0):
        """(start, stop, first) of consecutive windows of T symbols, of which those from `first` on are to be scored.

        With a limit (in symbols), an even spread of the windows. With a stride (and no limit), windows overlap and each
        scores its last `stride` symbols, which then have at least T - stride before them (except at the start).
        """
        size = len(self.symbols)
        if stride:
            rest = [
                (first + stride - T, min(first + stride, size), first)
                for first in range(T, size, stride)
            ]
            return [(0, min(T, size), 0), *rest]
        starts = np.arange(0, size, T)
        if limit and limit < size:
            starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // T)).round().astype(int)]
        return [(int(s), min(int(s) + T, size), int(s)) for s in starts]


# --- bits per byte ---------------------------------------------------------------------------------------------------


def symbols_at_once(model):
    """How many symbols to score in one pass: enough to keep the device busy, with at most 256 MB of logits on a CPU and
    2 GB elsewhere."""
    many, logits = (
        (16384, 1 << 28) if model.embed.weight.device.type == "cpu" else (131072, 1 << 31)
    )
    return min(many, logits // (4 * model.vocab_size))


@torch.no_grad()
def bits_per_byte(model, data, T, limit=0, stride=0, machine=None, on_progress=lambda n: None):
    """Score windows of a split (see Data.windows): every symbol once, given those before it in its window (the first:
    given the one before the window, or EOT). EOT is left out of both sums.

    Returns {"nats", "bytes", "bpb", "overflow": share of windows with more patches than the trunk attends to,
    "bytes_per_patch"}. With a `machine` of several processes each scores its share; `on_progress` is called with the
    number of symbols of each batch.
    """
    device, cfg = model.embed.weight.device, model.cfg
    lengths = torch.from_numpy(data.lengths).to(device)
    total = np.zeros(5)
    windows = data.windows(T, limit, stride)
    windows = windows[machine.rank :: machine.world] if machine else windows
    rows = max(1, symbols_at_once(model) // T)
    was_training = model.training
    model.eval()
    while windows:
        start, stop, first = windows[0]
        batch = [
            w for w in windows[:rows] if (w[1] - w[0], w[2] - w[0]) == (stop - start, first - start)
        ]
        windows = windows[len(batch) :]  # (the last window may be shorter: it goes alone)
        y = torch.from_numpy(
            np.stack([data.symbols[w[0] : w[1]] for w in batch]).astype(np.int64)
        ).to(device)
        before = [[data.symbols[w[0] - 1] if w[0] else model.eot] for w in batch]
        x = torch.cat((torch.tensor(before, dtype=torch.long, device=device), y[:, :-1]), dim=1)
        ends, scored = model.patch_ends(x)[0], slice(first - start, None)
        n_bytes = lengths[y[:, scored]]
        nats = (model.nats(x, y)[:, scored] * (n_bytes > 0)).cpu().double().sum()
        overflow = (ends.sum(dim=1) > cfg.n_patches).sum()
        total += [s.item() for s in (nats, n_bytes.sum(), overflow, ends[:, scored].sum())] + [
            len(batch)
        ]
        on_progress(y[:, scored].numel())
    model.train(was_training)
    nats, n_bytes, overflow, ends, n = machine.sum(total.tolist()) if machine else total.tolist()
    found = {"nats": nats, "bytes": int(n_bytes), "bpb": nats / math.log(2) / max(1, n_bytes)}
    return found | {"overflow": overflow / max(1, n), "bytes_per_patch": n_bytes / max(1, ends)}
