"""A super tiny language model that reads and writes bytes.

Most of its compute goes into a transformer, the trunk, which runs once per patch: a word and the
separator after it. Cheap local layers run at every byte:

    bytes
      -> embedding       a row per byte, plus hashed n-grams, plus n-gram matches
      -> local encoder   a few bytes of context
      -> pooling         one vector per patch, from its last byte and the sum of its bytes
      -> trunk           a causal transformer over patches
      -> gate            every byte takes the vector of the newest finished patch
      -> local decoder
      -> head            the embedding, transposed, mixed with what the n-gram matches say

How this differs from GPT-2 (nanoGPT's model.py). Each item improved bits per byte or speed:
- Bytes, not tokens: the vocabulary costs 256 rows and can spell every text.
- Pooling: a rule of a few lines, not a tokenizer or a second model, decides where a patch ends.
- Local layers mix the last few bytes channel by channel, then apply SwiGLU (arXiv 2002.05202). They
  need no attention at byte rate, and remember only a few vectors while generating.
- Hashed n-gram embeddings: parameters that cost almost no compute (CANINE, arXiv 2103.06874; BLT,
  arXiv 2412.09871). All lengths share one table of many narrow rows, because a rare n-gram needs a
  row of its own more than it needs a wide one. Deep models add such rows to the values of their
  attention, too (DeepSeek's Engram; nanochat, PR 854; modded-nanogpt, PR 366); here it gained
  nothing.
- n-gram matches (`n_match`): each byte sees which byte came next the last time the same few bytes
  occurred. It is an induction head for free (arXiv 2401.12973; PAQ's match model). With
  `n_copy` the head may copy that byte (pointer sentinel mixture, arXiv 1609.07843).
- Canon layers (`canon_reach`): attention and feed-forward also see the few positions before
  (arXiv 2512.17351). They are cheap, and help most if the trunk runs at every byte.
- Weight tying beyond the embedding: `n_loop` runs the trunk several times with the same weights
  (Universal Transformer, arXiv 1807.03819); `share_ffn` uses one feed-forward in all blocks.
- Rotary positions (arXiv 2104.09864), normalised queries and keys (arXiv 2010.04245), squared ReLU
  (Primer, arXiv 2109.08668), LayerNorm without weights, no biases, no attention dropout.
- Every residual branch ends in a projection that starts at zero.

Shapes: B batch, T or S bytes, P patches, H heads, D head size, V symbols,
        C width of the trunk, E width of the local layers, D input of the head (see `hidden`).
"""

import codecs
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

__version__ = "0.1.0"

EOT = 0xFF  # separates documents; like PAD, it never occurs in UTF-8
PAD = 0xFE  # fills unused slots
NONE = -1  # "no symbol": before the text began, or no match
GPT2_VOCAB = 50257
HASH = 50261  # factor of the polynomial hashes: odd, and larger than any symbol
IS_WORD = [b >= 0x80 or chr(b).isalnum() for b in range(256)]  # is this byte part of a word?
IS_WORD[EOT] = False

# The lowest and the highest value of each whole number among the knobs. The highest are far above
# any useful value: they keep a config.json that somebody else wrote from taking all memory.
KNOB_LIMITS = {
    "gpt2_vocab": (257, GPT2_VOCAB),
    "block_size": (1, 2**20),
    "max_patch": (1, 2**20),
    "max_patches": (0, 2**20),
    "n_layer": (1, 512),
    "n_head": (1, 4096),
    "n_embd": (1, 65536),
    "n_local_embd": (1, 65536),
    "n_local_enc": (0, 512),
    "n_local_dec": (0, 512),
    "local_reach": (1, 4096),
    "n_grams": (0, 64),
    "gram_rows": (1, 2**28),
    "gram_width": (1, 65536),
    "n_match": (0, 16),
    "match_window": (0, 2**20),
    "n_copy": (0, 16),
    "canon_reach": (1, 4096),
    "n_loop": (1, 512),
}


@dataclass
class ModelConfig:
    # --- model: symbols and patches ---
    tokenizer: Literal["bytes", "gpt2"] = "bytes"  # gpt2: the BPE baseline, needs pooling=none
    gpt2_vocab: int = GPT2_VOCAB  # gpt2: size of the vocabulary: its first tokens, then EOT
    pooling: Literal["none", "fixed", "space"] = "space"  # space: a patch ends after each word
    block_size: int = 512  # T: bytes (gpt2: tokens) of context in training
    max_patch: int = 16  # longest patch in bytes; with pooling=fixed the length of every patch
    max_patches: int = 0  # P: patches of context; 0: T/4, or T (none), T/max_patch (fixed)
    # --- model: sizes ---
    n_layer: int = 6  # trunk blocks
    n_head: int = 6  # attention heads in a trunk block
    n_embd: int = 384  # C: trunk width
    n_local_embd: int = 128  # E: local width (pooling=none has no local layers)
    n_local_enc: int = 1  # local layers before the trunk
    n_local_dec: int = 2  # local layers after the trunk
    local_reach: int = 4  # bytes that a local layer sees, its own included
    n_grams: int = 0  # hashed n-grams per byte: the last 2 bytes, the last 3, ...; 0: none
    gram_rows: int = 32768  # rows of the table that all n-grams share
    gram_width: int = 32  # columns of that table, projected to E
    n_match: int = 0  # n-gram matches: the last 2, 3, 4, 6, ... bytes (gpt2: 1, 2, ... tokens)
    match_window: int = 0  # how far back matches look when text is read on; 0: block_size
    n_copy: int = 0  # the head may copy what followed an n-gram's last n_copy places; 0: no copying
    canon_reach: int = 1  # trunk positions that a Canon layer mixes; 1: no Canon layers
    # --- model: weight tying beyond the embedding ---
    n_loop: int = 1  # how often the trunk runs, with the same weights
    share_ffn: bool = False  # one feed-forward for all trunk blocks

    def __post_init__(self):
        for field in dataclasses.fields(ModelConfig):
            key = field.name
            value = getattr(self, key)
            choices = get_args(field.type)
            if choices and value not in choices:
                raise ValueError(f"{key}={value!r} must be one of {choices}")
            if not choices and type(value) is not field.type:
                raise ValueError(f"{key}={value!r} must be of type {field.type.__name__}")
            if field.type is int:
                lowest, highest = KNOB_LIMITS[key]
                if value < lowest:
                    raise ValueError(f"{key}={value} must be at least {lowest}")
                if value > highest:
                    raise ValueError(f"{key}={value} must be at most {highest}")
        if self.n_embd % (2 * self.n_head) != 0:
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of 2 * n_head={2 * self.n_head}: "
                "rotary positions need an even head size"
            )
        if self.tokenizer == "gpt2" and self.pooling != "none":
            raise ValueError("tokenizer='gpt2' is the BPE baseline: it needs pooling='none'")
        if self.pooling == "none" and self.n_patches < self.block_size:
            raise ValueError(
                f"max_patches={self.max_patches} is below block_size={self.block_size}, "
                "but with pooling='none' every byte is a patch: leave it at 0"
            )

    @property
    def match_lengths(self):
        """How many symbols each n-gram match compares."""
        if self.tokenizer == "gpt2":
            return [1 + i for i in range(self.n_match)]
        return [int(2 * 1.5**i) for i in range(self.n_match)]

    @property
    def match_reach(self):
        """How many symbols back n-gram matches look. A row of training ends before."""
        return self.match_window or self.block_size

    @property
    def n_copied(self):
        """How many symbols the head may copy from, at each position."""
        return self.n_copy * self.n_match

    @property
    def lookback(self):
        """Longest n-gram or match key, in symbols: how much history the embedding needs."""
        return max(1, self.n_grams, *self.match_lengths)

    @property
    def n_patches(self):
        """P: how many patches the trunk attends to."""
        if self.max_patches:
            return self.max_patches
        if self.pooling == "none":
            return self.block_size
        if self.pooling == "fixed":
            return math.ceil(self.block_size / self.max_patch)
        return math.ceil(self.block_size / 4)


# --- functions of tensors -------------------------------------------------------------------------


def norm(x):
    """LayerNorm without weights. Under autocast it returns autocast's dtype.

    torch would return float32, and moving float32 at byte rate is slow. The residual stream itself
    stays in float32: bfloat16 would round away the last small updates.
    """
    y = F.layer_norm(x, (x.size(-1),))
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        y = y.to(torch.get_autocast_dtype(device_type))
    return y


def rotary(positions, head_size):
    """cos and sin of the rotary angles at `positions` (any shape), each (..., 1, D)."""
    channels = torch.arange(0, head_size, 2, device=positions.device)
    frequency = 10000 ** -(channels / head_size)
    angle = positions[..., None, None] * frequency  # (..., 1, D / 2)
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return cos, sin


def rotate(x, rope):
    """Turn each pair (a, b) = (x[i], x[i + D / 2]) to (a cos - b sin, b cos + a sin)."""
    cos, sin = rope
    swapped = x.roll(x.size(-1) // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin)


def attend(q, k, v, mask=None):
    """Softmax attention, causal if there is no mask.

    q (B, P, H, D), k and v (B, N, H, D) -> (B, P, H, D)
    """
    dtype = q.dtype
    # On a CPU, attention's backward in bfloat16 takes up to 4 times as long as in float32.
    if q.device.type == "cpu" and dtype == torch.bfloat16:
        q = q.float()
        k = k.float()
        v = v.float()
    q = q.transpose(1, 2)
    k = k.transpose(1, 2)
    v = v.transpose(1, 2)
    with torch.autocast(q.device.type, enabled=False):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return y.transpose(1, 2).to(dtype)


def rows_at(x, i):
    """x (B, N, E), i (B, M) -> (B, M, E): row i[b, m] of x[b]."""
    B, N, E = x.shape
    offset = N * torch.arange(B, device=i.device)[:, None]
    # An embedding look-up has the fastest backward of all ways to gather.
    return F.embedding(i + offset, x.reshape(B * N, E))


def patch_parts(x, ends, P):
    """Last byte and sum of each patch: x (B, T, E), ends bool (B, T) -> (B, P, E), (B, P + 1, E).

    Bytes after the first P patches are summed in the last slot, P. A row with fewer patches sums
    its unfinished one in the next slot, and the slots after that hold zeros. Missing last bytes
    repeat byte 0.
    """
    B, T, E = x.shape
    patch = (ends.cumsum(dim=1) - ends.long()).clamp(max=P)  # (B, T) which patch a byte is in

    # Sums first: if the look-up came first, torch 2.13's compiler would lose the look-up's gradient
    # on a CPU.
    slot = patch + (P + 1) * torch.arange(B, device=x.device)[:, None]
    sums = x.new_zeros(B * (P + 1), E)
    sums = sums.index_add(0, slot.flatten(), x.flatten(0, 1)).view(B, P + 1, E)

    # Where each patch's last byte is. All other bytes write to slot P, which is not read.
    t = torch.arange(T, device=x.device).expand_as(ends)
    slot = torch.where(ends, patch, P)
    last = torch.zeros(B, P + 1, dtype=torch.long, device=x.device).scatter(1, slot, t)
    return rows_at(x, last[:, :P]), sums


def matches(seen, lengths, T, window, n_places=1):
    """The symbol that followed when the newest n symbols last occurred, for each n in `lengths`.

    seen (B, N) -> (B, T, n_places * len(lengths)), for the last T positions: first of the newest
    place of each n, then of the place before it, and so on. NONE if these n symbols did not occur
    so often before, or did so more than `window` symbols ago.
    """
    longest = max(lengths)
    # Keep T + window keys of each length. The longest are made of `longest` symbols.
    n_needed = T + window + longest - 1
    seen = seen[:, -n_needed:]
    N = seen.size(1)
    K = N - longest + 1

    # Key j of each length n hashes the n symbols that end at position j + longest - 1, from the
    # newest one back.
    key = 0
    keys = []
    for n in range(1, longest + 1):
        first = longest - n
        key = key * HASH + seen[:, first : first + K]  # (B, K) int64, may wrap around
        if n in lengths:
            keys.append(key)
    keys = torch.stack(keys, dim=1)  # (B, L, K), L lengths

    # After a stable sort equal keys are neighbours, in the order of the text: the one before an
    # entry is its previous occurrence.
    keys, place = keys.sort(dim=2, stable=True)
    rank = torch.arange(K, device=seen.device)
    here = rank[K - T :]
    found = []
    for back in range(1, n_places + 1):
        seen_before = (keys == keys.roll(back, dims=2)) & (rank >= back)
        previous = torch.where(seen_before, place.roll(back, dims=2), -1)
        # back in the order of the text
        previous = torch.empty_like(place).scatter(2, place, previous)[..., -T:]  # (B, L, T)
        exists = (previous >= 0) & (here - previous <= window)
        # Key j ends at position j + longest - 1; the next position holds the symbol that followed.
        after = previous.clamp(min=0) + longest
        followed = seen.gather(1, after.flatten(1)).view_as(after)
        found.append(torch.where(exists, followed, NONE))
    return torch.cat(found, dim=1).transpose(1, 2)


def newest_matches(seen, lengths, window, n_places=1):
    """`matches` at the newest position alone: seen (B, N) -> (B, 1, n_places * len(lengths)).

    Comparing one position with all others is much faster than sorting them.
    """
    longest = max(lengths)
    seen = seen[:, -window - longest :]
    B, N = seen.shape
    newest = N - 1
    place = torch.arange(1, N, device=seen.device)  # position + 1, so that 0 can mean "nowhere"

    same = torch.ones_like(seen, dtype=torch.bool)
    found = []
    for n in range(1, longest + 1):
        # same[:, j]: are the n symbols that end at position j + n - 1 also the newest n?
        first = newest - n + 1
        same = same[:, 1:] & (seen[:, :first] == seen[:, first, None])
        # If no n symbols match, no longer n-gram can.
        if not same.any():
            break
        if n in lengths:
            after = same * place[n - 1 :]
            if n_places == 1:
                after = after.amax(dim=1, keepdim=True)
            else:
                after = F.pad(after, (0, n_places)).topk(n_places, dim=1).values
            is_near = (after > 0) & (after > newest - window)
            found.append(torch.where(is_near, seen.gather(1, after), NONE))  # (B, n_places)

    nothing = seen.new_full((B, n_places), NONE)
    while len(found) < len(lengths):
        found.append(nothing)
    return torch.stack(found, dim=2).view(B, 1, -1)


def rows_of(state, rows):
    """The part of a state (see STLM.start) that belongs to some of its texts.

    rows: a tensor of their indices, which may repeat, or a mask
    """
    chosen = {}
    for key, value in state.items():
        if isinstance(value, list):
            chosen[key] = [x[rows] for x in value]
        else:
            chosen[key] = value[rows]
    return chosen


class NotFinite(ValueError):
    """A model's output is NaN or infinite."""

    def __init__(self, what):
        super().__init__(
            f"expected finite {what}, got NaN or infinity: the weights are damaged, or training "
            "diverged; copy the model again, or train it with lower learning rates"
        )


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Draw one symbol per row of logits (B, V), none whose logit is -inf. Returns a list of ints.

    NotFinite if a logit is NaN or inf.
    """
    highest = logits.amax(dim=1, keepdim=True)
    if not highest.isfinite().all():
        raise NotFinite("logits")
    # 0 would give 0 / 0, and a temperature this close to it means the same.
    if temperature < 1e-6:
        return logits.argmax(dim=1).tolist()
    logits = logits.double() - highest
    p = F.softmax(logits / temperature, dim=1)
    p, symbols = p.sort(dim=1, descending=True)
    if top_k > 0:
        p[:, top_k:] = 0
    # Keep the smallest set of symbols that holds top_p of what is left.
    before = p.cumsum(dim=1) - p
    p[before >= top_p * p.sum(dim=1, keepdim=True)] = 0
    drawn = torch.multinomial(p, 1, generator=generator)
    return symbols.gather(1, drawn)[:, 0].tolist()


# --- layers ---------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.out = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, rope, cache=None):
        B, P, C = x.shape
        H = self.n_head
        qkv = self.qkv(x).view(B, P, 3 * H, C // H)
        qk, v = qkv.split((2 * H, H), dim=2)
        # Normalised, so that attention scores cannot grow with the weights. Queries and keys
        # together, because fewer calls make generation faster. rope is float32.
        qk = rotate(norm(qk), rope).to(v.dtype)
        q, k = qk.chunk(2, dim=2)  # (B, P, H, D) each
        if cache is None:
            y = attend(q, k, v)
        else:
            k, v = cache.extend(k, v)
            y = attend(q, k, v, cache.mask)
        return self.out(y.reshape(B, P, C))


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.up = nn.Linear(cfg.n_embd, 4 * cfg.n_embd, bias=False)
        self.out = nn.Linear(4 * cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        x = F.relu(self.up(x)).square()
        return self.out(x)


class Canon(nn.Module):
    """x plus a sum of its newest `reach` positions, weighted channel by channel (2512.17351).

    Written as shifted products, which fuse under a compiler: conv1d's backward is slow on a CPU.
    """

    def __init__(self, reach, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(reach, width))

    def forward(self, x, past=None):
        """x (B, P, C) -> (B, P, C). Before x come zeros, or the inputs in `past`."""
        P = x.size(1)
        reach = len(self.weight)
        if past is None:
            seen = F.pad(x, (0, 0, reach - 1, 0))
        else:
            seen = past.extend(x)
        for i, weight in enumerate(self.weight.to(x.dtype)):
            x = x + seen[:, i : i + P] * weight
        return x


class NoCanon(nn.Module):
    """Takes a Canon layer's place if canon_reach=1: nn.Identity with a `past`."""

    def forward(self, x, past=None):
        return x


class Dropout(nn.Module):
    """Dropout whose rate is a tensor, so that a schedule can change it without a recompile."""

    def __init__(self):
        super().__init__()
        self.is_on = False  # train.py switches it on; otherwise dropout stays out of the graph
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x):
        if not (self.training and self.is_on):
            return x
        kept = torch.rand_like(x, dtype=torch.float32) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """A block of the trunk: GPT-2's, with a Canon layer in front of each of its two halves."""

    def __init__(self, cfg, dropout):
        super().__init__()
        self.attention = Attention(cfg)
        self.feed_forward = FeedForward(cfg)
        if cfg.canon_reach > 1:
            self.canon_1 = Canon(cfg.canon_reach, cfg.n_embd)
            self.canon_2 = Canon(cfg.canon_reach, cfg.n_embd)
        else:
            self.canon_1 = NoCanon()
            self.canon_2 = NoCanon()
        self.dropout = dropout  # all blocks share one

    def forward(self, x, rope, past=None, cache=None):
        x = x + self.dropout(self.attention(self.canon_1(norm(x), past), rope, cache))
        x = x + self.dropout(self.feed_forward(self.canon_2(norm(x), past)))
        return x


class LocalLayer(nn.Module):
    """Mixes each byte with the `local_reach` - 1 before it, then applies a gated feed-forward."""

    def __init__(self, cfg):
        super().__init__()
        E = cfg.n_local_embd
        self.canon = Canon(cfg.local_reach, E)
        self.up = nn.Linear(E, 4 * E, bias=False)
        self.out = nn.Linear(2 * E, E, bias=False)

    def forward(self, x, past=None):
        x = self.canon(norm(x), past)
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


# --- the memory of layers while a text is read in pieces ------------------------------------------


class Past:
    """The newest inputs of Canon layers. Each layer takes its own, in the order they run."""

    def __init__(self, inputs, count=None):
        """inputs: one (B, M, C) per layer.

        count (B,): how many of each row's new positions are real; padding follows. None: all.
        """
        self.before = iter(inputs)
        self.after = []  # the newest inputs of each layer, for the next state
        self.count = count

    def extend(self, x):
        """x (B, N, C) -> (B, M + N, C): the layer's last M inputs, then x. Keeps the newest M."""
        before = next(self.before)
        M = before.size(1)
        seen = torch.cat((before, x), dim=1)
        if self.count is None:
            newest = seen[:, x.size(1) :]
        else:
            newest = rows_at(seen, self.count[:, None] + torch.arange(M, device=x.device))
        self.after.append(newest)
        return seen


class KeyValueCache:
    """Keys and values of the patches so far. Each block takes its own, in the order they run.

    New ones are written in place, into slots that no earlier state looks at.
    """

    def __init__(self, buffers, rows, slots, window):
        """buffers: a (B, N, 2 H, D) per block. New patches of `rows` (R,) go to `slots` (R, P)."""
        self.buffers = iter(buffers)
        self.rows = rows
        self.slots = slots
        self.n_used = int(slots.max()) + 1
        # With no earlier patches and at most `window` new ones the causal flag is enough. Else each
        # patch sees `window` patches.
        self.mask = None
        if self.n_used > min(window, slots.size(1)):
            age = slots[:, :, None] - torch.arange(self.n_used, device=slots.device)
            self.mask = ((age >= 0) & (age < window))[:, None]  # (R, 1, P, n_used)

    def extend(self, k, v):
        """Store k and v (R, P, H, D). Returns all there are, (R, n_used, H, D) each."""
        buffer = next(self.buffers)
        new = torch.cat((k, v), dim=2).to(buffer.dtype)
        buffer[self.rows[:, None], self.slots] = new
        if self.mask is None:
            return k, v
        if len(self.rows) < len(buffer):
            buffer = buffer[self.rows]
        return buffer[:, : self.n_used].to(k.dtype).chunk(2, dim=2)


# --- the model ------------------------------------------------------------------------------------


class STLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.about = {}  # plain values saved with shared weights: data, command, results
        self.pooled = cfg.pooling != "none"
        self.vocab_size = 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab
        self.eot = self.vocab_size - 1
        E = cfg.n_local_embd if self.pooled else cfg.n_embd  # without local layers E is C
        # The seed of all weights. Drawn before the layers are made, because making them also draws
        # random numbers; on the CPU even if with_weights makes the model on "meta".
        seed = int(torch.randint(2**62, (), device="cpu"))

        # embedding
        self.embed = nn.Embedding(self.vocab_size, E)
        self.grams = None
        self.match = None
        if cfg.n_grams > 0:
            self.grams = nn.Embedding(cfg.gram_rows, cfg.gram_width)
            self.from_grams = nn.Linear(cfg.n_grams * cfg.gram_width, E, bias=False)
        if cfg.n_match > 0:
            self.match = nn.Parameter(torch.empty(cfg.n_match, E))
        self.copy = None
        if cfg.n_copied > 0:
            self.copy = nn.Linear(E, 1 + cfg.n_copied, bias=False)

        # local layers
        if self.pooled:
            self.encoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_enc))
            self.pool = nn.Linear(2 * E, cfg.n_embd, bias=False)
            self.unpool = nn.Linear(cfg.n_embd, E, bias=False)
            self.gate = nn.Linear(E, E, bias=False)
            self.decoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_dec))

        # trunk; all layers share one dropout, so that its rate is set in one place
        self.dropout = Dropout()
        self.blocks = nn.ModuleList(Block(cfg, self.dropout) for _ in range(cfg.n_layer))
        if cfg.share_ffn:
            for block in self.blocks[1:]:
                block.feed_forward = self.blocks[0].feed_forward

        # a look-up table, not saved
        self.register_buffer("is_separator", ~torch.tensor(IS_WORD), persistent=False)
        # on "meta", with_weights brings the weights
        if not self.embed.weight.is_meta:
            self.reset_parameters(seed)

    def reset_parameters(self, seed):
        """Random initial weights, which depend only on the seed and each tensor's name."""
        for name, p in self.named_parameters():
            # Residual branches and n-grams start at zero: at first they add nothing. The head
            # starts with the same trust in all matches.
            if name.endswith(".out.weight") or name in ("grams.weight", "copy.weight"):
                std = 0.0
            # The embedding, also the head, is so small that the loss starts near 8 bits per byte.
            elif name == "embed.weight":
                std = 1 / p.size(1)
            # Matrices keep the variance of their input; Canon layers and matches start small.
            else:
                n_inputs = p[0].numel()
                std = n_inputs**-0.5
            # Each tensor has its own generator, seeded with its name: adding or moving layers does
            # not change the initial values of the others.
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.empty(p.shape, device="cpu").normal_(std=std, generator=generator)
            with torch.no_grad():
                p.copy_(values)

    # --- the parts of a pass ---

    def patch_ends(self, idx, before=None, since=None):
        """Which bytes end a patch: idx (B, T) -> bool (B, T), and the new `since` (B,).

        `since` counts the bytes after the last end; `before` (B,) is the symbol before idx. Without
        them the text begins with idx. The first byte of a text always ends a patch, so that every
        byte has a finished patch to look at. No decision depends on a later byte.
        """
        if before is None:
            before = torch.full_like(idx[:, 0], NONE)
            since = torch.full_like(idx[:, 0], self.cfg.max_patch - 1)

        # The rule: a patch ends at the first separator after a word. (NONE = -1 looks up EOT's.)
        if self.cfg.pooling == "space":
            separator = self.is_separator[torch.cat((before[:, None], idx), dim=1)]
            ends = separator[:, 1:] & ~separator[:, :-1]
        elif self.cfg.pooling == "fixed":
            ends = torch.zeros_like(idx, dtype=torch.bool)
        elif self.cfg.pooling == "none":
            ends = torch.ones_like(idx, dtype=torch.bool)
        else:
            raise ValueError(f"no rule for pooling={self.cfg.pooling!r}: add it to patch_ends")

        # Long patches are cut: one also ends every max_patch bytes after an end that the rule set.
        t = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
        last_end = torch.where(ends, t, -1 - since[:, None]).cummax(dim=1).values
        since = (t - last_end) % self.cfg.max_patch
        return since == 0, since[:, -1]

    def embedding(self, idx, tail):
        """idx (B, T) -> (B, T, E): each symbol, its n-gram matches and its n-grams.

        Also returns the matches, as `find_matches` does. tail (B, M >= lookback) holds the symbols
        before idx, and NONE before the text.
        """
        seen = torch.cat((tail, idx), dim=1)
        if self.match is None:
            found = idx.new_empty(*idx.shape, 0)
            x = self.embed(idx)
        else:
            found = self.find_matches(seen, idx.size(1))
            x = self.embed_with_matches(idx, found[..., : self.cfg.n_match])
        if self.grams is not None:
            grams = self.grams(self.gram_indices(seen, idx.size(1)))  # (B, T, n_grams, gram_width)
            x = x + self.from_grams(grams.flatten(2))
        # Not `norm`: this begins the residual stream, which stays in float32.
        return self.dropout(F.layer_norm(x, (x.size(-1),))), found

    def find_matches(self, seen, T):
        """The n-gram matches of the last T symbols: seen (B, N) -> (B, T, n_places * n_match).

        The first n_match are those of the newest places. n_places = max(1, n_copy).
        """
        lengths = self.cfg.match_lengths
        n_places = max(1, self.cfg.n_copy)
        if T == 1:
            return newest_matches(seen, lengths, self.cfg.match_reach, n_places)
        return matches(seen, lengths, T, self.cfg.match_reach, n_places)

    def embed_with_matches(self, idx, found):
        """embed[symbol] + the sum of match[m] * embed[its match m], over the matches that exist."""
        B, T = idx.shape
        found = torch.cat((idx[..., None], found), dim=2)  # (B, T, 1 + n_match)
        scale = torch.cat((torch.ones_like(self.match[:1]), self.match))  # (1 + n_match, E)

        if T == 1:
            exists = (found != NONE)[..., None]
            return (self.embed(found.clamp(min=0)) * scale * exists).sum(dim=2)

        # The backward of these look-ups would take a third of a training step. It is faster as one
        # embedding_bag over a table that holds the embedding once per scale. NONE looks up a row of
        # zeros. There are 64 of those, because CUDA sums the gradients of a row in one thread.
        table = (scale[:, None] * self.embed.weight).flatten(0, 1)  # ((1 + n_match) V, E)
        zeros = table.new_zeros(64, table.size(1))
        zero_row = len(table) + torch.arange(T, device=idx.device)[:, None] % 64
        first_row = self.vocab_size * torch.arange(len(scale), device=idx.device)
        rows = torch.where(found == NONE, zero_row, first_row + found)
        x = F.embedding_bag(rows.flatten(0, 1), torch.cat((table, zeros)), mode="sum")
        return x.view(B, T, -1)

    def gram_indices(self, seen, T):
        """Table rows of the last 2, 3, ... symbols: seen (B, N) -> (B, T, n_grams), last T places.

        The key of n symbols is the sum of (s + 1) * HASH**i over i < n, where s is the symbol i
        places back, or NONE. Its row is (key * 2654435761 mod 2**32) * gram_rows / 2**32, rounded
        down. So only the lowest 32 bits of a key count: int64 may wrap around.
        """
        N = seen.size(1)
        key = 0
        power = 1
        keys = []
        for i in range(self.cfg.n_grams + 1):
            key = key + (seen[:, N - T - i : N - i] + 1) * power
            # wraps around like int64, without a call to torch
            power = (power * HASH + 2**63) % 2**64 - 2**63
            keys.append(key)
        # Knuth's multiplicative hash spreads the keys over 32 bits, then over the table.
        hashed = (torch.stack(keys[1:], dim=-1) * 2654435761) & 0xFFFFFFFF
        return (hashed * self.cfg.gram_rows) >> 32

    def local(self, layers, x, past=None):
        """Local layers with residuals: (B, T, E) -> (B, T, E)."""
        for layer in layers:
            x = x + self.dropout(layer(x, past))
        return x

    def pool_patches(self, last, sums):
        """The trunk's input (B, P, C), from the last byte and the sum of each patch, (B, P, E)."""
        return self.pool(torch.cat((norm(last), norm(sums)), dim=-1))

    def trunk(self, z, positions, past=None, cache=None):
        """All blocks, n_loop times: z (B, P, C), patches numbered `positions`, (P,) or (B, P)."""
        # All blocks use the same angles: compute them once per pass.
        rope = rotary(positions, self.cfg.n_embd // self.cfg.n_head)
        for _ in range(self.cfg.n_loop):
            for block in self.blocks:
                z = block(z, rope, past, cache)
        return norm(z)

    def mix(self, x, patch):
        """Add to each byte x (B, T, E) the vector of its newest finished patch, through a gate."""
        return x + patch * (1 + self.gate(norm(x)))

    def with_matches(self, x, found):
        """The input of the head (B, T, D): x (B, T, E) and, if they are copied, the matches."""
        if self.copy is None:
            return x
        return torch.cat((x, found.to(self.embed.weight.dtype)), dim=2)

    def head(self, x):
        """(..., D) -> logits (..., V): the embedding, transposed.

        With `n_copy` they are the log of a mixture (arXiv 1609.07843): x also decides how
        much to believe the model's own prediction, and how much each match.
        """
        if self.copy is None:
            return F.linear(x, self.embed.weight).float()
        x, found = x.split((self.embed.embedding_dim, self.cfg.n_copied), dim=-1)
        p = F.linear(x, self.embed.weight).float().softmax(dim=-1)
        # The odds of each match against the model's own prediction, at first e^-3. The limit keeps
        # exp finite.
        own, copied = self.copy(x).float().split((1, self.cfg.n_copied), dim=-1)
        odds = (copied - own - 3).clamp(max=30).exp() * (found != NONE)
        # Logits need not be normalised: p sums to 1 plus all odds.
        p = p.scatter_add(-1, found.clamp(min=0).long(), odds)
        return (p + 1e-20).log()

    # --- training: T bytes and P patches, whatever the text ---

    def forward(self, idx, targets, progress=None):
        """Mean loss in nats of predicting targets (B, T) from idx (B, T).

        The objective next_byte. It ignores `progress`, the share of the run that is done.
        """
        logits = self.head(self.hidden(idx))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def hidden(self, idx, return_patches=False):
        """idx (B, T) -> (B, T, D), the input of the head; D = E + n_copied.

        Patches after the first P are dropped; their bytes use the last patch kept, and still count
        in the loss. With `return_patches` it also returns the trunk's input and output, (B, P, C)
        each, and the number of real patches in each row, (B,).
        """
        T = idx.size(1)
        P = self.cfg.n_patches
        no_text = idx.new_full((len(idx), self.cfg.lookback), NONE)
        x, found = self.embedding(idx, no_text)
        if not self.pooled:
            x = self.trunk(x, torch.arange(T, device=idx.device))
            return self.with_matches(x, found)

        # bytes to patches
        x = self.local(self.encoder, x)
        ends, _ = self.patch_ends(idx)
        if idx.device.type == "cpu" and not torch.compiler.is_compiling():
            # Skip slots that no row fills, in steps of 32: oneDNN keeps about 1 MB for each size.
            most = int(ends.sum(dim=1).max())
            P = min(P, 32 * math.ceil(most / 32))
        last, sums = patch_parts(x, ends, P)
        pooled = self.pool_patches(last, sums[:, :P])

        # the trunk; empty slots come last, so that no real patch sees them
        z = self.trunk(pooled, torch.arange(P, device=idx.device))

        # patches to bytes
        newest = (ends.cumsum(dim=1) - 1).clamp(max=P - 1)  # (B, T) newest finished patch
        x = self.mix(x, rows_at(self.unpool(z), newest))
        x = self.with_matches(norm(self.local(self.decoder, x)), found)
        if return_patches:
            return x, (pooled, z, newest[:, -1] + 1)
        return x

    # --- reading: any number of bytes, no patch dropped ---

    def start(self, n_texts):
        """The state before any text: a dict of tensors and lists of tensors, with a row per text.

        The first symbol that is read should be EOT: in training, each document comes after one.
        `read` returns a new state. To undo reading, continue an earlier state: this invalidates the
        later ones, because keys and values are written in place. To branch, first copy the state
        with `rows_of`.
        """
        cfg = self.cfg
        weight = self.embed.weight
        zero = torch.zeros(n_texts, dtype=torch.long, device=weight.device)
        n_runs = cfg.n_layer * cfg.n_loop
        n_canon = 2 * n_runs if cfg.canon_reach > 1 else 0
        n_local = cfg.n_local_enc + cfg.n_local_dec

        def zeros(*shape):
            return weight.new_zeros(n_texts, *shape)

        return {
            # the newest symbols
            "tail": zero[:, None].expand(n_texts, cfg.lookback) + NONE,
            # bytes since the last patch ended, and the sum of their vectors
            "since": zero + cfg.max_patch - 1,
            "sum": zeros(cfg.n_local_embd),
            # the newest finished patch's vector, as the decoder reads it
            "patch": zeros(1, cfg.n_local_embd),
            # patches so far, and how many of them have keys and values in the cache
            "n_patches": zero,
            "n_cached": zero,
            "keys_values": [zeros(0, 2 * cfg.n_head, cfg.n_embd // cfg.n_head)] * n_runs,
            # the newest inputs of the Canon layers, in the trunk and in the local layers
            "canon": [zeros(cfg.canon_reach - 1, cfg.n_embd)] * n_canon,
            "local": [zeros(cfg.local_reach - 1, cfg.n_local_embd)] * n_local,
        }

    @torch.no_grad()
    def read(self, idx, state, last=False):
        """Read the next symbols of each text: idx (B, S >= 1) -> (B, S, D), and the new state.

        With `last` only the last symbol's vector is returned, (B, 1, D). `head` gives the logits.
        """
        # In parts: the attention mask grows with the square of a part's length.
        outputs = []
        for part in idx.split(self.cfg.block_size, dim=1):
            x, state = self.read_part(part, state)
            if last:
                outputs = [x[:, -1:]]
            else:
                outputs.append(x)
        return torch.cat(outputs, dim=1), state

    def read_part(self, idx, state):
        """`read` for a single part, of at most block_size symbols."""
        cfg = self.cfg
        tail = state["tail"]
        x, found = self.embedding(idx, tail)
        ends, since = self.patch_ends(idx, tail[:, -1], state["since"])
        n_ended = ends.cumsum(dim=1)  # (B, S) patches of this part that have ended so far
        tail = torch.cat((tail, idx), dim=1)[:, -cfg.match_reach - cfg.lookback :]
        state = state | {"tail": tail, "since": since}
        if not self.pooled:
            x, state = self.read_patches(x, n_ended[:, -1], state)
            return self.with_matches(x, found), state

        # bytes to patches; the first patch began in an earlier part
        encoder_past = Past(state["local"][: cfg.n_local_enc])
        x = self.local(self.encoder, x, encoder_past)
        P = int(n_ended[:, -1].max())
        last, sums = patch_parts(x, ends, P)
        sums[:, 0] += state["sum"]
        pooled = self.pool_patches(last, sums[:, :P])

        # the trunk
        z, state = self.read_patches(pooled, n_ended[:, -1], state)

        # patches to bytes; patch 0 is the newest of the earlier parts
        patches = torch.cat((state["patch"], self.unpool(z)), dim=1)
        patch = rows_at(patches, n_ended)
        decoder_past = Past(state["local"][cfg.n_local_enc :])
        x = norm(self.local(self.decoder, self.mix(x, patch), decoder_past))

        state = state | {
            "sum": rows_at(sums, n_ended[:, -1:])[:, 0],
            "patch": patch[:, -1:],
            "local": encoder_past.after + decoder_past.after,
        }
        return self.with_matches(x, found), state

    def read_patches(self, z, count, state):
        """The trunk over new patches: z (B, P, C), of which count (B,) in each row are real."""
        P = z.size(1)
        rows = count.nonzero()[:, 0]  # (R,) the texts in which a patch has ended
        if len(rows) == 0:
            return z, state

        # gather the caches and positions of these texts
        state = self.make_room(state, P)
        new = torch.arange(P, device=z.device)
        positions = state["n_patches"][rows, None] + new
        slots = state["n_cached"][rows, None] + new
        cache = KeyValueCache(state["keys_values"], rows, slots, self.cfg.n_patches)
        # With P = 1 every new patch is real, and no count is needed.
        past = Past([x[rows] for x in state["canon"]], count[rows] if P > 1 else None)

        # run
        z_new = self.trunk(z[rows], positions, past, cache)

        # put the results back
        z = z.index_copy(0, rows, z_new.to(z.dtype))
        canon = []
        for x, after in zip(state["canon"], past.after, strict=True):
            canon.append(x.index_copy(0, rows, after))
        state = state | {
            "canon": canon,
            "n_patches": state["n_patches"] + count,
            "n_cached": state["n_cached"] + count,
        }
        return z, state

    def make_room(self, state, P):
        """Make room for keys and values of P more patches, dropping those outside the window."""
        n_cached = state["n_cached"]
        window = self.cfg.n_patches
        most = int(n_cached.max())
        if most + P <= state["keys_values"][0].size(1):
            return state
        drop = (n_cached - window).clamp(min=0)
        kept = drop[:, None] + torch.arange(min(most, window), device=n_cached.device)
        row = torch.arange(len(n_cached), device=n_cached.device)[:, None]
        room = P + 64  # so that this is not done at every patch
        buffers = []
        for x in state["keys_values"]:
            buffers.append(F.pad(x[row, kept], (0, 0, 0, 0, 0, room)))
        return state | {"keys_values": buffers, "n_cached": n_cached - drop}

    @torch.no_grad()
    def nats(self, idx, targets):
        """Exact -log p of each target in nats, (B, T), given all of idx (B, T) up to there."""
        # `read`, not `hidden`: here no patch may be dropped.
        x, _ = self.read(idx, self.start(len(idx)))
        return F.cross_entropy(self.head(x).transpose(1, 2), targets, reduction="none")

    # --- writing ---

    def generate(
        self,
        prompt=b"",
        max_new=500,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        generator=None,
        stop=True,
    ):
        """Yield the symbols that follow the prompt: `bytes(model.generate(b"def "))` is the text.

        The model reads EOT, then the prompt. An EOT that it draws ends the text.

        prompt: one text (bytes, str or a list of ints) or a list of texts. For a list of texts it
            yields lists of one symbol per text: None while the prompt is read and after the end.
        temperature: 0 takes the most likely symbol.
        top_k, top_p: leave out unlikely symbols (top_p: arXiv 1904.09751).
        generator: a CPU torch.Generator; None: the global one.
        stop: a text ends at EOT; False: the model goes on after it.
        """
        for key, value in {"max_new": max_new, "temperature": temperature, "top_k": top_k}.items():
            if not value >= 0:  # nan, too
                raise ValueError(f"{key}={value} must be at least 0")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must be above 0 and at most 1")

        # A list of ints (numpy's, too) is one text; any other list holds several.
        is_list = isinstance(prompt, list) and len(prompt) > 0
        several = is_list and not hasattr(prompt[0], "__index__")
        prompts = prompt if several else [prompt]
        texts = [[self.eot, *self.symbols(text)] for text in prompts]
        ends = [len(text) + max_new for text in texts]

        # All texts are read together: first as many symbols as the shortest prompt has, then one
        # symbol at a time, from the prompt while it lasts, then from the model. t symbols of each
        # text have been read, so text[t] comes next; text i ends before text[ends[i]].
        device = self.embed.weight.device
        state = self.start(len(texts))
        t = min(len(text) for text in texts)
        idx = torch.tensor([text[:t] for text in texts])
        while t < max(ends):
            # Not around the yield: the caller's code runs there, and may never come back.
            with torch.inference_mode():
                x, state = self.read(idx.to(device), state, last=True)
                logits = self.head(x[:, 0]).cpu()
                drawn = sample(logits, temperature, top_k, top_p, generator)
            new = [None] * len(texts)
            for i, text in enumerate(texts):
                if len(text) > t:  # its prompt is still being read
                    continue
                text.append(drawn[i])
                if stop and drawn[i] == self.eot:
                    ends[i] = min(ends[i], t)
                if t < ends[i]:
                    new[i] = drawn[i]
            if any(symbol is not None for symbol in new):
                yield new if several else new[0]
            # Texts that have ended are read on, to no effect.
            idx = torch.tensor([[text[t]] for text in texts])
            t += 1

    def generate_text(self, prompts, max_new=500, **options):
        """What follows each prompt, as a list of str: whole characters, the prompt not included.

        prompts: one text or a list of texts (str or bytes).
        options: those of `generate`.
        """
        if self.cfg.tokenizer != "bytes":
            raise ValueError(
                "expected a model of bytes, got BPE tokens: decode `generate`'s tokens"
            )
        if isinstance(prompts, (str, bytes)):
            prompts = [prompts]
        written = [[] for _ in prompts]
        if prompts:
            for drawn in self.generate(list(prompts), max_new, **options):
                for symbols, symbol in zip(written, drawn, strict=True):
                    if symbol is not None:
                        symbols.append(symbol)
        texts = []
        for symbols in written:
            text = bytes(symbols).replace(bytes([EOT]), b"\n\n")  # with stop=False
            # A byte that fits no character becomes U+FFFD. What max_new cut is left out.
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            texts.append(decoder.decode(text, final=len(symbols) < max_new))
        return texts

    def symbols(self, text):
        """bytes, str or a list of ints -> its symbols."""
        if isinstance(text, str):
            text = text.encode()
        if isinstance(text, bytes) and self.cfg.tokenizer != "bytes":
            raise ValueError(
                "expected tokens for a BPE model, got text: pass lib.data.encode(model.cfg, text)"
            )
        return text

    # --- sharing. You may stop reading here: the rest saves and loads weights ---
    # As safetensors and JSON, which load anywhere and run no code.

    @classmethod
    def with_weights(cls, cfg, weights):
        """A model in eval mode that uses these tensors directly; nothing is initialised first.

        ValueError if a tensor is missing, unknown or of another shape.
        """
        with torch.device("meta"):
            model = cls(cfg)
        model.load_state_dict(fitting_weights(model, weights), assign=True)
        # Buffers that are not saved have no data yet.
        device = model.embed.weight.device
        model.is_separator = ~torch.tensor(IS_WORD, device=device)
        model.dropout.rate = torch.zeros((), device=device)
        return model.eval()

    @classmethod
    def from_pretrained(cls, name):
        """A model in eval mode from a folder of save_pretrained, or USER/NAME on the Hub.

        ValueError if a file is damaged, was changed since it was saved, or was saved by other code.
        """
        folder = find_folder(name)
        try:
            cfg, about, sums = read_config(folder / "config.json")
            if sums is None:
                print(f"{name}: no sha256 in config.json: damage goes unnoticed", file=sys.stderr)
            with torch.device("meta"):
                expected = dict(cls(cfg).saved_tensors())
            weights = read_weights(folder / "model.safetensors", expected, sums)
            model = cls.with_weights(cfg, weights)
            for key, w in model.named_parameters():
                if not w.isfinite().all():
                    raise ValueError(
                        f"{key}: expected finite weights, got NaN or infinity; {COPY_AGAIN}"
                    )
        except Exception as e:
            why = " ".join(str(e).split())[:400]
            raise ValueError(f"the model in {name} cannot be used: {why}") from None
        model.about = about
        return model

    def save_pretrained(self, folder, bits=32, card="", modeling=""):
        """Write model.safetensors, config.json, a copy of this file, and the `card` as README.md.

        bits: 32, 16 (bfloat16), 8 or 4 (see `pack`). At 8 or 4 bits, small tensors keep 16, and the
            embedding, which is also the head, keeps 8. Names are those of state_dict(); a
            feed-forward that all blocks share is stored once, as that of block 0.
        card: Markdown; if it is empty, README.md stays as it is.
        modeling: the text of lib/modeling_stlm.py. With it transformers loads the folder, too.

        config.json holds the sha256 of the weights and of the knobs, for from_pretrained to check.
        Other code that writes one of the two files must renew "sha256" or leave it out.
        """
        from safetensors.torch import save

        if bits not in (32, 16, 8, 4):
            raise ValueError(f"bits={bits} must be 32, 16, 8 or 4")
        tensors = {}
        for key, w in self.saved_tensors():
            is_small = "canon" in key or key in ("match", "copy.weight") or w.dim() != 2
            if not w.is_floating_point():
                tensors[key] = w
            elif bits == 32:
                tensors[key] = w.float()
            elif bits == 16 or is_small:
                tensors[key] = w.bfloat16()
            else:
                packed, scale = pack(w, 8 if key == "embed.weight" else bits)
                tensors[key] = packed
                tensors[f"{key}.scale"] = scale
        weights = save(tensors)
        knobs = {key: getattr(self.cfg, key) for key in KNOBS}
        sums = {"weights": sha256(weights), "knobs": sha256_of_knobs(knobs)}
        config = knobs | {"sha256": sums, "about": self.about | {"bits": bits}}

        contents = {"model.py": Path(__file__).read_bytes()}
        if modeling:
            config |= FOR_TRANSFORMERS
            contents["modeling_stlm.py"] = modeling.encode()
            contents["tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIG, indent=1).encode()
        if card:
            contents["README.md"] = card.encode()
        contents["model.safetensors"] = weights
        contents["config.json"] = json.dumps(config, indent=1).encode()
        write_together(Path(folder), contents)

    def saved_tensors(self):
        """Yield (name, tensor) of all parameters and saved buffers, a shared one once."""
        seen = set()
        for name, w in self.state_dict(keep_vars=True).items():
            if id(w) not in seen:
                seen.add(id(w))
                yield name, w.detach()

    def push_to_hub(self, name, bits=32, card="", private=False, modeling=""):
        """save_pretrained to USER/NAME on the Hub. Run `hf auth login` first.

        private: a new repository is private, and a public one is refused.
        """
        from huggingface_hub import create_repo, repo_info, upload_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, bits, card, modeling)
            # With None, an organization's own setting decides.
            create_repo(name, exist_ok=True, private=private or None)
            if private and not repo_info(name).private:
                raise ValueError(
                    f"expected a private repository, got {name}, which is public: make it private "
                    "in its settings, or choose another name"
                )
            upload_folder(repo_id=name, folder_path=folder)


def write_together(folder, contents):
    """Write files, {name: bytes}, into a folder: all of them, or none if one cannot be written.

    A link among the old files is replaced. What it points to stays as it is.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as new:
            for name, content in contents.items():
                Path(new, name).write_bytes(content)
            replace_together(folder, Path(new), contents)
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_together(folder, new, names):
    """Move files from `new` to `folder`: all of them, or none if one cannot be moved."""
    moved = []
    try:
        for name in names:
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                raise IsADirectoryError(f"expected no folder {folder / name}, got one; move it")
            moved.append(name)
            if os.path.lexists(folder / name):
                (folder / name).replace(new / f"{name}.old")
            (new / name).replace(folder / name)
    except BaseException:
        for name in moved:
            if os.path.lexists(new / f"{name}.old"):
                (new / f"{name}.old").replace(folder / name)
        raise


KNOBS = [field.name for field in dataclasses.fields(ModelConfig)]
# Knobs that were added after models were first shared, with the values that mean "as before". Only
# these may be missing from a config.json. Whoever adds a knob to ModelConfig adds it here as well.
ADDED_KNOBS = {"match_window": 0, "n_copy": 0}
# How transformers finds the classes in modeling_stlm.py.
FOR_TRANSFORMERS = {
    "model_type": "stlm",
    "architectures": ["STLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_stlm.STLMConfig",
        "AutoModelForCausalLM": "modeling_stlm.STLMForCausalLM",
    },
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "STLMTokenizer",
    "auto_map": {"AutoTokenizer": ["modeling_stlm.STLMTokenizer", None]},
}
# What transformers may write into a config.json. It means nothing here.
IGNORED_KEYS = (
    *FOR_TRANSFORMERS,
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
)
COPY_AGAIN = "copy or download the model again"
OTHER_CODE = (
    "the model is damaged or was saved by other code: copy it again, or use the model.py of its "
    "folder or commit"
)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def sha256_of_knobs(knobs):
    return sha256(json.dumps(knobs, sort_keys=True).encode())


def check_sum(file, expected, found):
    if found != expected:
        raise ValueError(
            f"{file} is damaged, or was changed since it was saved: expected the sha256 "
            f"{str(expected)[:12]!r}, got {found[:12]!r}; {COPY_AGAIN}; if you changed it on "
            'purpose, remove "sha256" from config.json'
        )


def find_folder(name):
    """The folder of a shared model. USER/NAME, if there is no folder USER, comes from the Hub.

    ValueError if there is no model.
    """
    folder = Path(name)
    if (folder / "model.safetensors").exists():
        return folder
    if (folder / "last.pt").exists() or (folder / "best.pt").exists():
        raise ValueError(
            f"expected a shared model in {name}, got a run of train.py: share it first, with "
            f"`python -m tools.share --model={name} --to=FOLDER`, and load FOLDER"
        )
    if folder.exists():
        raise ValueError(f"no model in {name}: model.safetensors is missing; {COPY_AGAIN}")
    if folder.parent.exists():
        raise ValueError(f"no model in {name}: expected a folder, or USER/NAME on the Hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"no folder {name} here: to load it from the Hub, pip install huggingface_hub"
        ) from None
    try:
        files = ["config.json", "model.safetensors"]
        return Path(snapshot_download(str(name), allow_patterns=files))
    except Exception as e:  # no network, no such repository, and many more
        why = " ".join(str(e).split())[:400]
        raise ValueError(
            f"no model in {name}: expected a folder, or USER/NAME on the Hub ({why})"
        ) from None


def read_config(path):
    """-> (the ModelConfig, `about`, the sums) of a config.json, which anybody may have written.

    The sums are None if the model was shared before save_pretrained wrote any.
    """
    if not path.is_file():  # a pipe would never end
        raise ValueError(f"config.json is missing; {COPY_AGAIN}")
    if path.stat().st_size > 2**20:
        raise ValueError(f"config.json: expected at most 1 MiB, got a larger file; {COPY_AGAIN}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"config.json: expected JSON, got {e}; {COPY_AGAIN}") from None
    if not isinstance(config, dict):
        raise ValueError(f"config.json: expected an object, got {config!r:.40}; {COPY_AGAIN}")
    about = config.pop("about", {})
    if not isinstance(about, dict):
        raise ValueError(f"config.json: expected about={{...}}, got {about!r:.40}; {COPY_AGAIN}")
    has_sums = "sha256" in config
    sums = config.pop("sha256", None)
    if has_sums and not (isinstance(sums, dict) and sums.keys() >= {"weights", "knobs"}):
        raise ValueError(
            f"config.json: expected sha256={{weights, knobs}}, got {sums!r:.40}; {COPY_AGAIN}"
        )

    # The knobs by name first: a sum cannot tell which of them is wrong.
    for key in IGNORED_KEYS:
        config.pop(key, None)
    for key in config:
        if key not in KNOBS:
            raise ValueError(f"config.json: unknown knob {key!r:.40}; {OTHER_CODE}")
    for key in KNOBS:
        if key not in config and key not in ADDED_KNOBS:
            raise ValueError(f"config.json: the knob {key} is missing; {COPY_AGAIN}")
    try:
        cfg = ModelConfig(**ADDED_KNOBS | config)
    except ValueError as e:
        raise ValueError(f"config.json: {e!s:.200}; {COPY_AGAIN}") from None
    if sums:
        check_sum("config.json", sums["knobs"], sha256_of_knobs(config))
    return cfg, about, sums


def read_weights(path, expected, sums):
    """The tensors of a model.safetensors, unpacked, under today's names.

    expected: the model's own tensors, on "meta". Only a file whose header fits them is read, so
        that no file takes more memory than its model.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    if not path.is_file():
        raise ValueError(f"model.safetensors is missing; {COPY_AGAIN}")
    try:
        with safe_open(path, "pt") as file:
            check_header(file, expected)
    except SafetensorError as e:
        raise ValueError(f"model.safetensors: {e}; {COPY_AGAIN}") from None
    except ValueError as e:
        raise ValueError(f"model.safetensors: {e}") from None

    # Not mapped: whoever overwrites or cuts the file later must not change this model.
    content = path.read_bytes()
    if sums:
        check_sum("model.safetensors", sums["weights"], sha256(content))
    stored = current_names(load(content))
    weights = {}
    for name, w in expected.items():
        found = stored[name]
        if f"{name}.scale" in stored:
            found = unpack(found, stored[f"{name}.scale"], w.shape)
        elif w.is_floating_point():
            found = found.float()
        weights[name] = found
    return weights


def check_header(file, expected):
    """ValueError unless an open safetensors file holds what the model's tensors can be made of.

    Floats are stored as F32, F16 or BF16; or, packed, a matrix as I8 or U8 with a scale as F16.
    Integers and booleans, which an edited model may have in buffers, must have the model's type.
    """
    keys = current_names({key: key for key in file.keys()})  # noqa: SIM118
    stored = {name: file.get_slice(key) for name, key in keys.items()}
    for name, w in expected.items():
        if name not in stored:
            raise ValueError(f"{name} is missing; {OTHER_CODE}")
        found = stored.pop(name)
        scale = stored.pop(f"{name}.scale", None)
        dtype = found.get_dtype()
        shape = w.shape
        if w.is_floating_point() and w.dim() == 2 and dtype in ("I8", "U8"):
            shape, scale_shape = packed_shapes(w.shape, dtype)
            if scale is None:
                raise ValueError(f"{name}.scale is missing; {OTHER_CODE}")
            check_shape(f"{name}.scale", scale.get_shape(), scale_shape)
            check_dtype(f"{name}.scale", scale.get_dtype(), ["F16"])
        elif scale is not None:
            raise ValueError(f"{name}.scale: expected no scale for {dtype}; {OTHER_CODE}")
        elif w.is_floating_point():
            check_dtype(name, dtype, ["F32", "F16", "BF16"])
        check_shape(name, found.get_shape(), shape)
        if not w.is_floating_point():
            check_dtype(name, found[...].dtype, [w.dtype])
    for name in stored:
        raise ValueError(f"{name!r:.80} is not a tensor of this model; {OTHER_CODE}")


def fitting_weights(model, weights):
    """A saved model's tensors under today's names. ValueError if one does not fit."""
    weights = current_names(weights)
    if model.cfg.share_ffn:
        # It is stored once.
        shared = {k: w for k, w in weights.items() if k.startswith("blocks.0.feed_forward.")}
        for i in range(1, model.cfg.n_layer):
            for name, w in shared.items():
                weights[name.replace("blocks.0.", f"blocks.{i}.")] = w
    expected = model.state_dict()
    for name, w in expected.items():
        if name not in weights:
            raise ValueError(f"{name} is missing; {OTHER_CODE}")
        check_shape(name, weights[name].shape, w.shape)
        check_dtype(name, weights[name].dtype, [w.dtype])
    for name in weights:
        if name not in expected:
            raise ValueError(f"{name!r:.80} is not a tensor of this model; {OTHER_CODE}")
    return weights


def check_shape(name, found, expected):
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{name}: expected the shape {tuple(expected)}, got {tuple(found)}; {OTHER_CODE}"
        )


def check_dtype(name, found, expected):
    if found not in expected:
        kinds = " or ".join(map(str, expected))
        raise ValueError(f"{name}: expected the type {kinds}, got {found}; {OTHER_CODE}")


def current_names(weights):
    """A saved model's tensors under today's names.

    Up to commit 1254c3f the parts of blocks were separate lists: attention.3.qkv.weight,
    canon.7.weight.
    """
    renamed = {}
    for name, w in weights.items():
        part, _, rest = name.partition(".")
        i, _, rest = rest.partition(".")
        if part in ("attention", "feed_forward"):
            name = f"blocks.{i}.{part}.{rest}"
        elif part == "canon" and i.isdecimal():
            name = f"blocks.{int(i) // 2}.canon_{1 + int(i) % 2}.{rest}"
        renamed[name] = w
    return renamed


def pack(w, bits):
    """Round a matrix to integers of 8 or 4 bits. Returns them, and a float16 scale per group.

    A weight is its integer times its group's scale; a file holds the scales as NAME.scale. With 8
    bits a group is a row. With 4 bits it is 64 weights of the matrix, read row by row and padded
    with zeros at its end, and two of them make a byte: 16 * (first + 8) + second + 8. An unpacked
    matrix gives the same integers and scales again.
    """
    if bits == 8:
        groups = w
    else:
        groups = F.pad(w.flatten(), (0, -w.numel() % 64)).view(-1, 64)
    # The scale has the sign that makes each group's extreme the most negative number, -limit.
    limit = 2 ** (bits - 1)
    place = groups.abs().argmax(dim=1, keepdim=True)
    scale = (groups.gather(1, place) / -limit).half()
    scale = scale.where(scale != 0, 0)  # no -0
    divisor = scale.float().where(scale != 0, 1)
    whole = (groups / divisor).round().clamp(-limit, limit - 1).to(torch.int8)
    # A tiny scale is so inexact that the extreme may not have become -limit. Then the unpacked
    # matrix would have another scale.
    whole = whole.scatter(1, place, -limit) * (scale != 0)
    if bits == 4:
        whole = ((whole[:, ::2] + 8) * 16 + whole[:, 1::2] + 8).byte()
    return whole, scale


def packed_shapes(shape, dtype):
    """The shapes that `pack` gives a matrix and its scale: dtype I8 for 8 bits, U8 for 4."""
    if dtype == "I8":
        return shape, (shape[0], 1)
    n_groups = math.ceil(shape.numel() / 64)
    return (n_groups, 32), (n_groups, 1)


def unpack(whole, scale, shape):
    """The inverse of `pack`: a matrix of this shape."""
    if whole.dtype == torch.uint8:
        whole = torch.stack((whole >> 4, whole & 15), dim=2).flatten(1) - 8.0
    values = (whole * scale.float()).flatten()
    return values[: shape.numel()].view(shape)
