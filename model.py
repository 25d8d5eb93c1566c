"""A super tiny language model: bytes in, bytes out, with the expensive layers running once per patch of bytes.

    bytes -> tied byte embedding (+ hashed n-gram embeddings) -> local encoder -> pool at patch ends -> trunk
          -> every byte gets the newest finished patch's vector, gated -> local decoder -> the embedding, transposed

Departures from a vanilla GPT-2 (nanoGPT's model.py), each because it buys quality or speed at this size:
- bytes, not tokens: 256 symbols, so the vocabulary costs 256 rows and every text is in the vocabulary;
- pooling: patches end at spaces (a few-line rule, no second model, no tokenizer); the trunk runs once per patch, reads
  its last byte and the sum of its bytes, and each byte of the decoder gates what it takes of the answer
- local layers mix the last few bytes by channel before a gated feed-forward (SwiGLU, arXiv 2002.05202): no attention at
  byte rate, the reach is exact, the cache is a few vectors
- hashed n-gram embeddings: parameters that cost next to no compute (CANINE, arXiv 2103.06874; BLT, arXiv 2412.09871),
  in one table of many narrow rows for all lengths: rare n-grams need a row of their own more than a wide one.
  `n_words`: and of the last words up to here, which say more than as many bytes more
- weight tying beyond the embedding: `n_loop` runs the trunk again with the same weights (Universal Transformer,
  arXiv 1807.03819), `share_ffn` uses one feed-forward for all trunk layers
- n-gram heads, `n_match`: each byte is told which byte followed when the last few were last seen: an induction head
  that need not be learnt (arXiv 2401.12973; the match model of PAQ). Next to no parameters or compute
- Canon layers, `canon_reach`: attention and feed-forward also see the few positions before (arXiv 2512.17351); cheap,
  and worth most where the trunk runs at every byte
- rotary positions (RoFormer, arXiv 2104.09864), queries and keys normalised (arXiv 2010.04245), squared ReLU (Primer,
  arXiv 2109.08668)
- LayerNorm without weights or biases: one fused kernel on every device, also without a compiler
- output projections start at zero, so that the model starts as its embedding; no biases anywhere; no attention dropout

Shapes: B batch, T bytes, P patches, C channels of the trunk, E channels of the local layers, H heads, D head size.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

EOT, PAD, MASK = 0xFF, 0xFE, 0xFD  # bytes that never occur in UTF-8: document border, nothing there, hidden
NONE = -1  # where the text has not begun
GPT2_VOCAB = 50257
HASH = 50261
UNHASH = pow(HASH, -1, 2**64)  # HASH * UNHASH is 1 where integers wrap around


@dataclass
class ModelConfig:
    # model: what it reads and where patches end
    tokenizer: Literal["bytes", "gpt2"] = "bytes"  # gpt2: the BPE baseline (50257 tokens), with pooling=none
    gpt2_vocab: int = GPT2_VOCAB  # with tokenizer=gpt2: its first tokens, this many with EOT, the last
    pooling: Literal["none", "fixed", "space"] = "space"  # none: no patches; fixed: every max_patch bytes; space: words
    block_size: int = 512  # T: bytes (tokens for gpt2) of context in training
    max_patch: int = 16  # longest patch in bytes; with pooling=fixed the length of every patch
    max_patches: int = 0  # P: patches of context; 0: T (none), T/max_patch (fixed), T/4 (space)
    # model: sizes
    n_layer: int = 6  # trunk layers
    n_head: int = 6  # trunk attention heads
    n_embd: int = 384  # C: trunk width
    n_local_embd: int = 128  # E: local width; with pooling=none bytes are embedded at n_embd
    n_local_enc: int = 1  # local layers before the trunk
    n_local_dec: int = 2  # local layers after the trunk
    local_reach: int = 4  # bytes that one local layer sees, itself included
    n_grams: int = 0  # hashed n-grams embedded at each byte: the last 2 bytes, the last 3, ...; 0: none
    n_words: int = 0  # hashed words embedded as well: from before the newest, the one before it, ...; 0: none
    gram_rows: int = 32768  # rows of the table that all of them share
    gram_width: int = 32  # columns of it, projected to E
    n_match: int = 0  # n-gram heads: what followed the last 2 bytes (tokens: 1), 3 (2), 4 (3), 6, ... when last seen
    canon_reach: int = 1  # trunk positions mixed before attention and before feed-forward (Canon layers); 1: none
    # model: weight tying beyond the embedding
    n_loop: int = 1  # times the trunk runs, with the same weights
    share_ffn: bool = False  # one feed-forward for all trunk layers

    def __post_init__(self):
        for key in (
            "block_size",
            "max_patch",
            "n_layer",
            "n_head",
            "n_embd",
            "n_local_embd",
            "local_reach",
            "gram_rows",
            "gram_width",
            "canon_reach",
            "n_loop",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        for key in ("max_patches", "n_local_enc", "n_local_dec", "n_grams", "n_words", "n_match"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)} must not be negative")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of 2 * n_head={2 * self.n_head} (rotary pairs)")
        if self.tokenizer == "gpt2" and self.pooling != "none":
            raise ValueError("tokenizer='gpt2' is the BPE baseline: it needs pooling='none'")
        if self.n_words and (self.tokenizer == "gpt2" or not self.n_grams):
            raise ValueError(f"n_words={self.n_words} needs tokenizer='bytes' and n_grams of at least 1")
        if not 257 <= self.gpt2_vocab <= GPT2_VOCAB:
            raise ValueError(f"gpt2_vocab={self.gpt2_vocab} must be between 257 and {GPT2_VOCAB}")

    @property
    def match_lengths(self):
        """Symbols that each n-gram head compares."""
        return [int(2 * 1.5**i) if self.tokenizer == "bytes" else 1 + i for i in range(self.n_match)]

    @property
    def lookback(self):
        """Symbols before the present one that an embedding depends on: those of an n-gram; the context of a match."""
        return max(1, self.hashed, self.n_match and self.block_size + self.match_lengths[-1] - 1)

    @property
    def hashed(self):
        """Symbols before the present one that the hashes of an embedding depend on."""
        return max(self.n_grams, self.n_words * self.max_patch)

    @property
    def n_patches(self):
        """P: how many patches the trunk attends to."""
        shortest = {"none": 1, "fixed": self.max_patch, "space": 4}[self.pooling]
        return self.max_patches or math.ceil(self.block_size / shortest)


def norm(x):
    return F.layer_norm(x, (x.size(-1),))


def rotary(positions, head_size):
    """cos and sin of the rotary angles at `positions` (any shape), each (..., 1, head_size)."""
    frequency = 10000 ** -(torch.arange(0, head_size, 2, device=positions.device) / head_size)
    angle = positions[..., None, None] * frequency
    return torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat((-angle.sin(), angle.sin()), dim=-1)


def rotate(x, rope):
    """Turn each pair (x[i], x[i + D / 2]) by its position's angle: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


def attend(q, k, v, window):
    """Causal attention over the last `window` patches, itself included. q, k, v and the result: (B, P, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    P, blocks = q.size(2), []
    if window >= P and q.device.type == "cpu":  # there its bfloat16 backward is up to 4 times slower than float32
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True).transpose(1, 2)
    if window >= P:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    # a block of queries sees its own block and the one before: memory grows with P, not P^2
    for i in range(0, P, window):
        start, end = max(0, i - window + 1), min(i + window, P)
        back = torch.arange(i, end, device=q.device)[:, None] - torch.arange(start, end, device=q.device)
        mask = (back >= 0) & (back < window)
        part = (q[:, :, i:end], k[:, :, start:end], v[:, :, start:end])
        blocks.append(F.scaled_dot_product_attention(*part, attn_mask=mask))
    return torch.cat(blocks, dim=2).transpose(1, 2)


class Ring:
    """Keys and values of each row's newest `window` patches, in one attention layer. Patch p is in slot p % window."""

    def fill(self, k, v, n, window):
        """Take over a whole pass: k, v (B, P, H, D), of which the first n (B,) patches of a row are real."""
        slots = min(window, k.size(1))
        self.k, self.v = (x.new_zeros(x.size(0), slots, *x.shape[2:]) for x in (k, v))
        i = torch.arange(k.size(1), device=k.device)
        row, i = ((i < n[:, None]) & (i >= n[:, None] - window)).nonzero(as_tuple=True)
        self.k[row, i % window], self.v[row, i % window] = k[row, i], v[row, i]

    def push(self, q, k, v, plan):
        """Attend to what is there and to the new patches q, k, v (R, P, H, D); keep these. See Plan."""
        keys, values = torch.cat((self.k[plan.old], k), dim=1), torch.cat((self.v[plan.old], v), dim=1)
        y = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, keys, values)), attn_mask=plan.mask)
        more = plan.slots - self.k.size(1)
        if more > 0:
            self.k, self.v = F.pad(self.k, (0, 0, 0, 0, 0, more)), F.pad(self.v, (0, 0, 0, 0, 0, more))
        self.k[plan.put], self.v[plan.put] = k[plan.take], v[plan.take]
        return y.transpose(1, 2)


class Plan:
    """Which slots of a Ring the next patches of some rows look at and go to; the same for all layers.

    rows (R,) get up to P patches, of which the first new (R,) are real, after the n (R,) they have.
    """

    def __init__(self, rows, n, new, P, window):
        used = min(int(n.max()), window)  # slots beyond were never written, in any row
        self.old = (rows, slice(used))
        slot, i = torch.arange(used, device=n.device), torch.arange(P, device=n.device)
        newest = n[:, None] - 1
        number = torch.cat((newest - (newest - slot) % window, n[:, None] + i), dim=1)  # (R, used + P) whose keys
        back = (n[:, None] + i)[:, :, None] - number[:, None]
        self.mask = ((back >= 0) & (back < window) & (number >= 0)[:, None])[:, None]  # (R, 1, P, used + P)
        self.take = ((i < new[:, None]) & (i >= new[:, None] - window)).nonzero(as_tuple=True)
        self.put = (rows[self.take[0]], (n[self.take[0]] + self.take[1]) % window)
        self.slots = min(window, (int((n + new).max()) + 63) // 64 * 64)  # rings grow by 64 slots at a time


def rows_at(x, i):
    """x (B, N, E), i (B, M) -> (B, M, E): vector i of each row. A look-up, because its backward is the fastest."""
    B, N, E = x.shape
    return F.embedding(i + N * torch.arange(B, device=i.device)[:, None], x.reshape(B * N, E))


def at_ends(x, ends, P):
    """x (B, T, E), ends bool (B, T) -> (B, P, E): the vectors at the first P ends; slots left over get t = 0."""
    t, number = torch.arange(x.size(1), device=x.device).expand_as(ends), ends.cumsum(dim=1) - 1
    where = torch.zeros(len(x), P + 1, dtype=torch.long, device=x.device)  # slot P takes what is not kept
    return rows_at(x, where.scatter(1, torch.where(ends, number.clamp(max=P), P), t)[:, :P])


def patch_sums(x, ends, P):
    """x (B, T, E), ends bool (B, T) -> (B, P + 1, E): sums over the bytes of each patch, and of the unfinished one."""
    B, _, E = x.shape
    slot = (ends.cumsum(dim=1) - ends.long()).clamp(max=P) + (P + 1) * torch.arange(B, device=x.device)[:, None]
    return x.new_zeros(B * (P + 1), E).index_add(0, slot.flatten(), x.flatten(0, 1)).view(B, P + 1, E)


def matches(seen, n, T, window):
    """What followed the newest earlier place with the same n symbols: seen (B, N) -> (B, T), for the last T places.

    NONE where there is no such place, or where it is more than `window` back.
    """
    key, seen = 0, seen[:, max(0, seen.size(1) - T - window - n + 1) :]
    N = seen.size(1) - n + 1
    for i in range(n):
        key = key * HASH + seen[:, i : i + N]  # may wrap around: a hash
    key, place = key.sort(dim=1, stable=True)  # equal ones stand side by side, in the order of the text
    newest = torch.where(F.pad(key[:, 1:] == key[:, :-1], (1, 0)), place.roll(1, dims=1), -window - 1)
    newest = torch.empty_like(place).scatter(1, place, newest)[:, -T:]
    far = torch.arange(N - T, N, device=seen.device) - newest > window
    return torch.where(far, NONE, seen.gather(1, newest.clamp(min=0) + n))


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.out = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, rope, attend):
        B, P, C = x.shape
        qk, v = self.qkv(x).view(B, P, 3 * self.n_head, C // self.n_head).split((2 * self.n_head, self.n_head), dim=2)
        q, k = rotate(norm(qk), rope).to(v.dtype).chunk(2, dim=2)  # (B, P, H, D) each
        y = attend(q, k, v)
        return self.out(y.reshape(B, P, C))


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.up = nn.Linear(cfg.n_embd, 4 * cfg.n_embd, bias=False)
        self.out = nn.Linear(4 * cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x):
        return self.out(F.relu(self.up(x)).square())


class Canon(nn.Module):
    """Adds to each position a sum of the newest `reach` positions, weighted by channel (arXiv 2512.17351).

    Written as shifted products: they fuse under a compiler, and conv1d's backward is slow on a CPU.
    """

    def __init__(self, reach, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(reach, width))

    def forward(self, x, past=None, new=None):
        """x (B, P, C), past (B, reach - 1, C) from before x, or None. Returns the output and the past of what follows;
        `new` (B,) says how many positions of x are real, None: all."""
        before, P = len(self.weight) - 1, x.size(1)
        seen = F.pad(x, (0, 0, before, 0)) if past is None else torch.cat((past, x), dim=1)
        for i, weight in enumerate(self.weight.to(x.dtype)):
            x = x + seen[:, i : i + P] * weight
        if new is None:
            return x, seen[:, P:]
        return x, rows_at(seen, new[:, None] + torch.arange(before, device=x.device))


class LocalLayer(nn.Module):
    """A Canon layer and a gated feed-forward: each byte sees itself and the `reach` - 1 bytes before it, no others."""

    def __init__(self, cfg):
        super().__init__()
        E = cfg.n_local_embd
        self.canon = Canon(cfg.local_reach, E)
        self.up = nn.Linear(E, 4 * E, bias=False)
        self.out = nn.Linear(2 * E, E, bias=False)

    def forward(self, x, past=None):
        """x (B, T, E); past (B, reach - 1, E) from the bytes before, or None. Returns the output and the next past."""
        x, past = self.canon(norm(x), past)
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value), past


class Cache:
    """What generation remembers of the bytes so far, for each of B rows. It stops growing at the context's length."""

    n: torch.Tensor  # (B,) patches so far
    patch: torch.Tensor  # (B, 1, E) vector of the newest finished patch
    tail: torch.Tensor  # (B, lookback) newest bytes, for n-grams, matches and the patch rule
    since: torch.Tensor  # (B,) bytes since the patch rule last spoke
    sum: torch.Tensor  # (B, E) of the encoder's output over the unfinished patch
    past: list  # newest inputs of each local layer
    rings: list  # keys and values of each trunk layer, in each loop
    near: list  # newest inputs of each Canon, in each loop: (B, canon_reach - 1, C)

    def repeat(self, times):
        """A cache with row i of this one times[i] times: one beginning, several ways to go on."""
        new = Cache()
        for key, value in vars(self).items():
            if key == "rings":
                new.rings = [Ring() for _ in value]
                for mine, ring in zip(new.rings, value, strict=True):
                    mine.k, mine.v = (x.repeat_interleave(times, dim=0) for x in (ring.k, ring.v))
            elif key in ("past", "near"):
                setattr(new, key, [x.repeat_interleave(times, dim=0) for x in value])
            else:
                setattr(new, key, value.repeat_interleave(times, dim=0))
        return new


class STLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.pooled = cfg.pooling != "none"
        self.vocab_size = 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab
        E = cfg.n_local_embd if self.pooled else cfg.n_embd
        self.embed = nn.Embedding(self.vocab_size, E)
        self.grams = nn.Embedding(cfg.gram_rows, cfg.gram_width) if cfg.n_grams else None
        width = (cfg.n_grams + cfg.n_words) * cfg.gram_width
        self.from_grams = nn.Linear(width, E, bias=False) if cfg.n_grams else None
        self.match = nn.Parameter(torch.empty(cfg.n_match, E)) if cfg.n_match else None
        if self.pooled:
            self.encoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_enc))
            self.pool = nn.Linear(2 * E, cfg.n_embd, bias=False)
            self.unpool = nn.Linear(cfg.n_embd, E, bias=False)
            self.gate = nn.Linear(E, E, bias=False)
            self.decoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_dec))
        self.attention = nn.ModuleList(Attention(cfg) for _ in range(cfg.n_layer))
        self.feed_forward = nn.ModuleList(FeedForward(cfg) for _ in range(1 if cfg.share_ffn else cfg.n_layer))
        canon = cfg.canon_reach, cfg.n_embd
        self.canon = nn.ModuleList(Canon(*canon) for _ in range(2 * cfg.n_layer if cfg.canon_reach > 1 else 0))
        word = [b >= 0x80 or chr(b).isalnum() for b in range(255)] + [False]
        self.register_buffer("is_space", ~torch.tensor(word), persistent=False)
        # a tensor: a schedule may change it without recompiling
        self.register_buffer("drop", torch.zeros(()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        for name, p in self.named_parameters():
            if name.endswith(".out.weight") or name == "grams.weight":
                nn.init.zeros_(p)
            elif isinstance(self.get_submodule(name.rpartition(".")[0]), nn.Embedding):
                nn.init.normal_(p, std=1 / p.size(1))  # a byte's logit for itself starts at 1, whatever the width
            else:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)

    # --- the pass --------------------------------------------------------------------------------------------------

    def patch_ends(self, idx, prev=None, since=None):
        """Which bytes end a patch: idx (B, T) -> bool (B, T), and (B,) bytes since the rule last spoke.

        Looks at no byte after the one it decides on. `prev` (B,) is the byte before idx, `since` what an earlier call
        returned; without them idx opens the text: its first byte ends a patch, so that every byte has one to look at.
        """
        t = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
        if self.cfg.pooling == "space":
            space = self.is_space[idx]
            before = torch.cat((space[:, :1] if prev is None else self.is_space[prev][:, None], space[:, :-1]), dim=1)
            speaks = space & ~before
        else:
            speaks = torch.full_like(idx, not self.pooled, dtype=torch.bool)  # none: every byte is a patch
        if prev is None:
            speaks, since = speaks | (t == 0), torch.zeros_like(idx[:, 0])
        # t of the newest byte where the rule spoke; from there on every max_patch-th byte ends a patch as well
        last = torch.where(speaks, t, -1 - since[:, None]).cummax(dim=1).values
        return (t - last) % self.cfg.max_patch == 0, (t - last)[:, -1]

    def dropout(self, x):
        if not (self.training and self.may_drop):
            return x
        return x * (torch.rand_like(x, dtype=torch.float32) >= self.drop) / (1 - self.drop)

    may_drop = False  # train.py sets it where dropout is wanted; otherwise dropout stays out of the graph

    def embedding(self, idx, tail=None):
        """(B, T) symbols -> (B, T, E). `tail` (B, lookback) are those before idx; None: idx opens the text."""
        (B, T), V = idx.shape, self.vocab_size
        if tail is None:
            tail = idx.new_full((B, max([self.cfg.hashed, *self.cfg.match_lengths])), NONE)
        seen = torch.cat((tail, idx), dim=1)
        rows, where = [self.embed.weight], [idx]
        for i, length in enumerate(self.cfg.match_lengths):
            rows.append(self.match[i] * self.embed.weight)
            found = matches(seen, length, T, self.cfg.block_size)
            where.append(torch.where(found == NONE, NONE, found + V * (i + 1)))
        # one bag per byte: many look-ups in few rows, whose backward takes a third of a step where it is not one kernel
        rows = torch.cat((*rows, rows[0].new_zeros(1, rows[0].size(1))))
        where = torch.stack(where, dim=-1) % len(rows)  # NONE: the row of zeros
        x = F.embedding_bag(where.flatten(0, 1), rows, mode="sum", padding_idx=len(rows) - 1).view(B, T, -1)
        if self.grams is not None:
            x = x + self.from_grams(self.grams(self.gram_numbers(seen, T)).flatten(2))
        return self.dropout(norm(x))

    def gram_numbers(self, seen, T):
        """Rows of the table for the n-grams and words that end at each of the last T places: seen (B, N) -> (B, T, n).

        A polynomial hash of all symbols from a first one to the last, as the difference of two sums from the left.
        """
        cfg, N = self.cfg, seen.size(1)
        power = torch.full_like(seen[0], HASH).cumprod(0)  # wraps around, as all of this
        total = F.pad(((seen + 1) * torch.full_like(seen[0], UNHASH).cumprod(0)).cumsum(1), (1, 0))
        before = [total[:, N - T - i : N - i] for i in range(1, cfg.n_grams + 1)]
        if cfg.n_words:
            place, word = torch.arange(N, device=seen.device), ~self.is_space[seen.clamp(min=0)] & (seen != NONE)
            newest = torch.where(word & ~F.pad(word[:, :-1], (1, 0)), place - 1, 0).cummax(dim=1).values
            start = newest
            for _ in range(cfg.n_words):  # the space before the word, so that its letters are known to be all
                near = torch.maximum(start, place - cfg.hashed + 1)[:, N - T :]
                before.append(total.gather(1, near))
                start = newest.gather(1, start.clamp(min=0))
        gram = (total[:, N - T + 1 :, None] - torch.stack(before, dim=-1)) * power[N - T :, None]
        return (gram * 2654435761 & 0xFFFFFFFF) * cfg.gram_rows >> 32  # Knuth's multiplicative hash

    def trunk(self, z, positions, attends, near=None, new=None):
        """z (B, P, C) with patch numbers `positions`, (P,) or (B, P); attends[i] does that of the i-th layer run.

        Returns the output and, where new (B,) says how many patches are real, what each Canon remembers; `near` is what
        it remembered before.
        """
        rope, memory = rotary(positions, self.cfg.n_embd // self.cfg.n_head), []

        def mixed(z, half):
            if not self.canon:
                return norm(z)
            z, past = self.canon[half % len(self.canon)](norm(z), near and near[half], new)
            memory.append(past)
            return z

        for run, attend in enumerate(attends):
            i = run % self.cfg.n_layer
            z = z + self.dropout(self.attention[i](mixed(z, 2 * run), rope, attend))
            z = z + self.dropout(self.feed_forward[i % len(self.feed_forward)](mixed(z, 2 * run + 1)))
        return norm(z), memory

    def local(self, layers, x, past):
        """Local layers with residuals. `past`: what each remembers, or None. Returns the output and the new list."""
        news = []
        for i, layer in enumerate(layers):
            y, new = layer(x, past[i] if past else None)
            x = x + self.dropout(y)
            news.append(new)
        return x, news

    def patches(self, last, sums):
        """What the trunk reads (B, P, C): of each patch the last byte (B, P, E) and the sum of all (B, P + 1, E)."""
        return self.pool(torch.cat((norm(last), norm(sums[:, :-1])), dim=-1))

    def informed(self, x, spread):
        """What the decoder reads: each byte and the newest patch's vector, which the byte also gates."""
        return x + spread * (1 + self.gate(norm(x)))

    def hidden(self, idx, n_patches=None, cache=None):
        """idx (B, T) -> (B, T, E), before the head. `n_patches` fixes P (training); None takes as many as there are.

        With a fixed P, a row's patches beyond the first P are dropped and later bytes look at patch P. An empty `cache`
        is filled with what `step` needs to go on after idx.
        """
        cfg, T = self.cfg, idx.size(1)
        x = self.embedding(idx)
        runs = cfg.n_layer * cfg.n_loop
        attends = [lambda q, k, v: attend(q, k, v, cfg.n_patches)] * runs
        if cache is not None:
            cache.rings = [Ring() for _ in range(runs)]

            def fill_and_attend(q, k, v, ring):
                ring.fill(k, v, cache.n, cfg.n_patches)
                return attend(q, k, v, cfg.n_patches)

            attends = [lambda q, k, v, ring=ring: fill_and_attend(q, k, v, ring) for ring in cache.rings]
            cache.n = torch.full_like(idx[:, 0], T)
            cache.tail = F.pad(idx, (cfg.lookback, 0), value=NONE)[:, -cfg.lookback :]
        if not self.pooled:
            x, near = self.trunk(x, torch.arange(T, device=idx.device), attends, new=cache and cache.n)
            if cache is not None:
                cache.near = near
            return x
        x, past = self.local(self.encoder, x, None)
        ends, since = self.patch_ends(idx)
        number = ends.cumsum(dim=1) - 1  # (B, T) the newest finished patch of every byte
        P = n_patches or int(number.max()) + 1
        sums = patch_sums(x, ends, P)
        z = self.patches(at_ends(x, ends, P), sums)  # (B, P, C); slots past a row's last are
        if cache is not None:  # after all real ones, so that nothing real sees them
            cache.n, cache.since, cache.sum = number[:, -1] + 1, since, rows_at(sums, number[:, -1:] + 1)[:, 0]
        z, near = self.trunk(z, torch.arange(P, device=idx.device), attends, new=cache and cache.n)
        spread = rows_at(self.unpool(z), number.clamp(max=P - 1))  # (B, T, E)
        y, more = self.local(self.decoder, self.informed(x, spread), None)
        if cache is not None:
            cache.patch, cache.past, cache.near = spread[:, -1:], past + more, near
        return norm(y)

    def head(self, x):
        return F.linear(x, self.embed.weight).float()

    def forward(self, idx, targets=None):
        """Logits (B, T, V), exact. With targets (B, T): the mean loss in nats, with the static shapes of training."""
        if targets is None:
            return self.head(self.hidden(idx))
        logits = self.head(self.hidden(idx, self.cfg.n_patches))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    # --- using it --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def nats(self, idx, targets):
        """Exact negative log-likelihood of each target, in nats: (B, T)."""
        return F.cross_entropy(self(idx).transpose(1, 2), targets, reduction="none")

    @torch.no_grad()
    def prefill(self, idx):
        """Read idx (B, T >= 1). Returns the logits after its last symbol (B, V), and the cache to go on with."""
        cache = Cache()
        return self.head(self.hidden(idx, cache=cache)[:, -1]), cache

    @torch.no_grad()
    def step(self, idx, cache):
        """Read more symbols of each row, idx (B, S). Returns the logits after each (B, S, V); changes the cache."""
        x = self.embedding(idx, cache.tail)
        ends = torch.ones_like(idx, dtype=torch.bool)
        if self.pooled:
            n_enc = len(self.encoder)
            x, past = self.local(self.encoder, x, cache.past[:n_enc])
            ends, cache.since = self.patch_ends(idx, cache.tail[:, -1], cache.since)
        number = ends.cumsum(dim=1)  # (B, S) new patches so far
        rows = number[:, -1].nonzero()[:, 0]
        if self.pooled:
            whole = torch.cat((cache.sum[:, None], x), dim=1), F.pad(ends, (1, 0))
            sums = patch_sums(*whole, int(number.max()))
            cache.sum = rows_at(sums, number[:, -1:])[:, 0]
        if len(rows):  # the trunk runs for the rows that finish a patch here
            n, new = cache.n[rows], number[rows, -1]
            P = int(new.max())
            plan = Plan(rows, n, new, P, self.cfg.n_patches)
            attends = [lambda q, k, v, ring=ring: ring.push(q, k, v, plan) for ring in cache.rings]
            z = self.patches(at_ends(x[rows], ends[rows], P), sums[rows]) if self.pooled else x
            near = [old[rows] for old in cache.near]
            z, near = self.trunk(z, n[:, None] + torch.arange(P, device=idx.device), attends, near, new)
            for old, newer in zip(cache.near, near, strict=True):
                old[rows] = newer
            cache.n[rows] += new
        if not self.pooled:
            x = z
        else:
            patches = cache.patch
            if len(rows):
                fresh = patches.new_zeros(len(idx), P, patches.size(2)).index_copy(0, rows, self.unpool(z))
                patches = torch.cat((patches, fresh), dim=1)  # (B, 1 + P, E)
            spread = rows_at(patches, number)
            x, more = self.local(self.decoder, self.informed(x, spread), cache.past[n_enc:])
            x, cache.patch, cache.past = norm(x), spread[:, -1:], past + more
        cache.tail = torch.cat((cache.tail, idx), dim=1)[:, idx.size(1) :]
        return self.head(x)

    @torch.inference_mode()
    def generate(self, prompt=b"", max_new=500, temperature=1.0, top_k=0, top_p=1.0, generator=None, stop=True):
        """Yield what follows `prompt` (bytes) as it comes: one byte at a time (a BPE baseline: one token's bytes).

        temperature 0 takes the most likely; top_k > 0 and top_p < 1 (arXiv 1904.09751) leave out the unlikely; `stop`
        ends at EOT. Random numbers come from `generator` (a CPU torch.Generator), or the global one.
        """
        for key, value, low in (("max_new", max_new, 0), ("temperature", temperature, 0), ("top_k", top_k, 0)):
            if value < low:
                raise ValueError(f"{key}={value} must be at least {low}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
        device = self.embed.weight.device
        logits, cache = self.prefill(torch.tensor([[self.eot, *self.encode(prompt)]], device=device))
        for _ in range(max_new):
            symbol = sample(logits[0].float().cpu(), temperature, top_k, top_p, generator)
            if stop and symbol == self.eot:
                return
            yield self.decode([symbol])
            logits = self.step(torch.tensor([[symbol]], device=device), cache)[:, -1]

    @torch.no_grad()
    def loglikelihood(self, context, continuation):
        """log p(continuation | EOT, context) in nats; both are bytes. Nothing is cut, whatever the lengths."""
        before, both = self.encode(context), self.encode(context + continuation)
        idx = torch.tensor([[self.eot, *both]], device=self.embed.weight.device)
        start = min(len(before), len(both) - 1)  # a BPE token across the border belongs to the continuation
        return -self.nats(idx[:, :-1], idx[:, 1:])[0, start:].cpu().double().sum().item()

    @property
    def eot(self):
        return EOT if self.cfg.tokenizer == "bytes" else self.vocab_size - 1

    def encode(self, text):
        """bytes -> list of symbols."""
        if self.cfg.tokenizer == "bytes":
            return list(text)
        return gpt2(self.vocab_size).encode_ordinary(text.decode(errors="replace"))

    def decode(self, symbols):
        """list of symbols -> bytes."""
        return bytes(symbols) if self.cfg.tokenizer == "bytes" else gpt2(self.vocab_size).decode_bytes(symbols)

    # --- accounting ------------------------------------------------------------------------------------------------

    def parameter_table(self):
        """Parameters by part; every tensor is counted once. {'embeddings': n, ..., 'total': n}"""
        parts = {"embeddings": ["embed.", "match"], "n-gram tables": ["grams.", "from_grams."]}
        parts |= {"local encoder": ["encoder.", "pool."], "trunk": ["attention.", "feed_forward.", "canon."]}
        parts |= {"local decoder": ["unpool.", "gate.", "decoder."]}
        counts = {
            part: sum(p.numel() for name, p in self.named_parameters() if name.startswith(tuple(prefixes)))
            for part, prefixes in parts.items()
        }
        counts["total"] = sum(p.numel() for p in self.parameters())
        assert sum(counts.values()) == 2 * counts["total"], "a parameter belongs to no part"
        return counts

    def flops_per_symbol(self):
        """FLOPs of training on one byte (gpt2: token): 6 per weight where it is used, and the attention's products."""
        cfg, n = self.cfg, self.parameter_table()
        rate = cfg.n_patches / cfg.block_size if self.pooled else 1  # trunk positions per byte
        shared = cfg.n_layer if cfg.share_ffn else 1
        trunk = sum(p.numel() for p in self.attention.parameters())
        trunk += shared * sum(p.numel() for p in self.feed_forward.parameters())
        trunk += cfg.n_layer * cfg.n_embd * cfg.n_patches  # scores and sums, halved by causality: 12 C P / 2 = 6 C P
        doors = self.pool.weight.numel() + self.unpool.weight.numel() if self.pooled else 0
        local = n["embeddings"] + n["local encoder"] + n["local decoder"] - doors
        local += self.from_grams.weight.numel() if cfg.n_grams else 0
        return 6 * (local + rate * (doors + cfg.n_loop * trunk))


def sample(logits, temperature, top_k, top_p, generator):
    """One symbol from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    p = F.softmax(logits / temperature, dim=-1)
    p, order = p.sort(descending=True)
    if top_k:
        p[top_k:] = 0
    p[p.cumsum(0) - p >= top_p * p.sum()] = 0  # the smallest set of symbols that holds top_p of what is left
    return int(order[torch.multinomial(p, 1, generator=generator)])


@functools.cache
def gpt2(vocab_size=GPT2_VOCAB):
    """tiktoken's gpt2 encoding (its two files come from TIKTOKEN_CACHE_DIR or the network), or the beginning of it.

    A token's number is the merge that made it, so the first tokens are what BPE would have given with fewer merges.
    """
    import tiktoken

    whole = tiktoken.get_encoding("gpt2")
    ranks = {token: rank for token, rank in whole._mergeable_ranks.items() if rank < vocab_size - 1}
    eot = {"<|endoftext|>": vocab_size - 1}
    return tiktoken.Encoding(f"gpt2-{vocab_size}", pat_str=whole._pat_str, mergeable_ranks=ranks, special_tokens=eot)
