"""A super tiny language model: bytes in, bytes out, with the expensive layers running once per patch of bytes.

    bytes -> tied byte embedding (+ hashed n-gram embeddings) -> local encoder -> pool at patch ends -> trunk
          -> every byte gets the newest finished patch's vector, gated -> local decoder -> the embedding, transposed

Departures from a vanilla GPT-2 (nanoGPT's model.py), each because it buys quality or speed at this size:
- bytes, not tokens: 256 symbols, so the vocabulary costs 256 rows and every text is in the vocabulary
- pooling: a patch is a word and the separator after it (a rule of a few lines, no second model, no tokenizer); the
  trunk runs once per patch and reads its last byte and the sum of its bytes; each byte of the decoder gates what it
  takes of the answer
- local layers mix the last few bytes by channel before a gated feed-forward (SwiGLU, arXiv 2002.05202): no attention at
  byte rate, an exact reach, and a few vectors to remember
- hashed n-gram embeddings: parameters that cost next to no compute (CANINE, arXiv 2103.06874; BLT, arXiv 2412.09871).
  One table of many narrow rows for all lengths: rare n-grams need a row of their own more than a wide one
- n-gram matches, `n_match`: each byte is told which byte followed when the last few were last seen: an induction head
  that need not be learnt (arXiv 2401.12973; the match model of PAQ). Next to no parameters or compute
- Canon layers, `canon_reach`: attention and feed-forward also see the few positions before (arXiv 2512.17351); cheap,
  and worth most where the trunk runs at every byte
- weight tying beyond the embedding: `n_loop` runs the trunk again with the same weights (Universal Transformer,
  arXiv 1807.03819), `share_ffn` uses one feed-forward for all trunk layers
- rotary positions (RoFormer, arXiv 2104.09864), queries and keys normalised (arXiv 2010.04245), squared ReLU (Primer,
  arXiv 2109.08668)
- LayerNorm without weights or biases: one fused kernel on every device, also without a compiler
- every residual branch ends in a projection that starts at zero; no biases anywhere; no attention dropout

Shapes: B batch, T or S bytes, P patches, C channels of the trunk, E channels of the local layers, H heads, D head size.
"""

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

EOT, PAD = 0xFF, 0xFE  # bytes that never occur in UTF-8: the border between documents, and nothing
NONE = -1  # in place of a symbol: the text has not begun yet, or there is no match
GPT2_VOCAB = 50257
WORD = [b >= 0x80 or chr(b).isalnum() for b in range(255)] + [
    False
]  # is a byte part of a word? (EOT is not)
HASH = 50261  # the factor of the polynomial hash of n-grams: odd, and larger than any symbol


@dataclass
class ModelConfig:
    # model: what it reads and where patches end
    tokenizer: Literal["bytes", "gpt2"] = (
        "bytes"  # gpt2: the BPE baseline (50257 tokens), with pooling=none
    )
    gpt2_vocab: int = (
        GPT2_VOCAB  # with tokenizer=gpt2: its first tokens, this many with EOT, the last
    )
    pooling: Literal["none", "fixed", "space"] = (
        "space"  # none; fixed: every max_patch bytes; space: after each word
    )
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
    n_grams: int = (
        0  # lengths of the hashed n-grams at each byte: the last 2 bytes, the last 3, ...; 0: none
    )
    gram_rows: int = 32768  # rows of the table that all of them share
    gram_width: int = 32  # columns of it, projected to E
    n_match: int = 0  # n-gram matches: what followed the last 2 bytes (tokens: 1), 3 (2), 4 (3), 6, ... when last seen
    canon_reach: int = (
        1  # trunk positions mixed before attention and before feed-forward (Canon layers); 1: none
    )
    # model: weight tying beyond the embedding
    n_loop: int = 1  # times the trunk runs, with the same weights
    share_ffn: bool = False  # one feed-forward for all trunk layers

    def __post_init__(self):
        may_be_zero = ("max_patches", "n_local_enc", "n_local_dec", "n_grams", "n_match")
        for key, kind in ((f.name, f.type) for f in dataclasses.fields(ModelConfig)):
            value, lowest, choices = (
                getattr(self, key),
                0 if key in may_be_zero else 1,
                get_args(kind),
            )
            if value not in choices if choices else type(value) is not kind:
                raise ValueError(
                    f"{key}={value!r} is not {f'one of {choices}' if choices else kind.__name__}"
                )
            if (kind is int and value < lowest) or (key == "n_match" and value > 16):
                raise ValueError(
                    f"{key}={value} must be at least {lowest}"
                    + " and at most 16" * (key == "n_match")
                )
        if self.n_embd % (2 * self.n_head):
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of 2 * n_head={2 * self.n_head} (rotary pairs)"
            )
        if self.tokenizer == "gpt2" and self.pooling != "none":
            raise ValueError("tokenizer='gpt2' is the BPE baseline: it needs pooling='none'")
        if not 257 <= self.gpt2_vocab <= GPT2_VOCAB:
            raise ValueError(f"gpt2_vocab={self.gpt2_vocab} must be between 257 and {GPT2_VOCAB}")
        if self.pooling == "none" and self.n_patches < self.block_size:
            both = f"max_patches={self.max_patches} is below block_size={self.block_size}"
            raise ValueError(
                f"{both}, but with pooling='none' every byte is a patch: leave it at 0"
            )

    @property
    def match_lengths(self):
        """How many symbols each n-gram match compares."""
        return [
            int(2 * 1.5**i) if self.tokenizer == "bytes" else 1 + i for i in range(self.n_match)
        ]

    @property
    def lookback(self):
        """How many symbols before a byte its embedding needs at most, beside those that a match goes back."""
        return max(1, self.n_grams, *self.match_lengths)

    @property
    def n_patches(self):
        """P: how many patches the trunk attends to."""
        shortest = {"none": 1, "fixed": self.max_patch, "space": 4}[self.pooling]
        return self.max_patches or math.ceil(self.block_size / shortest)


def norm(x):
    """LayerNorm, in autocast's dtype where that is on: matrix products need no more, and at byte rate moving float32 is
    slow. The residual sums stay in float32: in bfloat16 the last small updates would be rounded away."""
    y, kind = F.layer_norm(x, (x.size(-1),)), x.device.type
    return y.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else y


def rotary(positions, head_size):
    """cos and sin of the rotary angles at `positions` (any shape), each (..., 1, head_size)."""
    frequency = 10000 ** -(torch.arange(0, head_size, 2, device=positions.device) / head_size)
    angle = positions[..., None, None] * frequency
    return torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat(
        (-angle.sin(), angle.sin()), dim=-1
    )


def rotate(x, rope):
    """Turn each pair (x[i], x[i + D / 2]) by its position's angle: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


def attend(q, k, v, mask=None):
    """Softmax attention, causal if there is no mask: q (B, P, H, D), k and v (B, N, H, D) -> (B, P, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    dtype = q.dtype
    if (
        q.device.type == "cpu" and dtype == torch.bfloat16
    ):  # its backward is up to 4 times slower than float32's there
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast(q.device.type, enabled=False):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return y.transpose(1, 2).to(dtype)


def rows_at(x, i):
    """x (B, N, E), i (B, M) -> x[b, i[b, m]] (B, M, E): an embedding look-up, because its backward is the fastest."""
    B, N, E = x.shape
    return F.embedding(i + N * torch.arange(B, device=i.device)[:, None], x.reshape(B * N, E))


def patch_parts(x, ends, P):
    """x (B, T, E), ends bool (B, T) -> the last byte of each of the first P patches, (B, P, E), byte 0 where a row has
    fewer; and the sums of their bytes and of those left over, (B, P + 1, E)."""
    B, T, E = x.shape
    number = (ends.cumsum(dim=1) - ends.long()).clamp(
        max=P
    )  # (B, T) the patch that each byte is in
    t = torch.arange(T, device=x.device).expand_as(ends)
    slot = number + (P + 1) * torch.arange(B, device=x.device)[:, None]
    # the sums first: with the look-up before them, torch 2.13's compiler loses the look-up's gradient on a CPU
    sums = (
        x.new_zeros(B * (P + 1), E).index_add(0, slot.flatten(), x.flatten(0, 1)).view(B, P + 1, E)
    )
    last = torch.zeros(B, P + 1, dtype=torch.long, device=x.device).scatter(
        1, torch.where(ends, number, P), t
    )
    return rows_at(x, last[:, :P]), sums


def matches(seen, lengths, T, window):
    """What followed when the newest n symbols were last seen, for each n of `lengths` at each of the last T places:
    seen (B, N) -> (B, T, len(lengths)). NONE where they were never seen before, or more than `window` symbols back."""
    longest, key, keys = max(lengths), 0, []
    seen = seen[:, max(0, seen.size(1) - T - window - longest + 1) :]
    for i in range(
        longest
    ):  # key j is a hash of the i + 1 symbols that end at j + longest - 1, from the newest back
        key = key * HASH + seen[:, longest - 1 - i : seen.size(1) - i]  # (may wrap around)
        keys += [key] if i + 1 in lengths else []
    # one sort for all lengths: equal keys then stand side by side, in the order of the text
    key, place = torch.stack(keys, dim=1).sort(dim=2, stable=True)  # (B, len(lengths), keys)
    seen_before, too_far, n_keys = (
        F.pad(key[..., 1:] == key[..., :-1], (1, 0)),
        -window - 1,
        key.size(2),
    )
    previous = torch.where(
        seen_before, place.roll(1, dims=2), too_far
    )  # the place of the same key before this one
    previous = torch.empty_like(place).scatter(2, place, previous)[..., -T:]
    far = torch.arange(n_keys - T, n_keys, device=seen.device) - previous > window
    followed = seen.gather(1, (previous.clamp(min=0) + longest).flatten(1)).view_as(previous)
    return torch.where(far, NONE, followed).transpose(1, 2)


def newest_matches(seen, lengths, T, window):
    """`matches` for T = 1: one symbol is compared with all, which takes a fraction of the time of sorting them."""
    seen = seen[:, max(0, seen.size(1) - window - max(lengths)) :]
    last, found = seen.size(1) - T, []
    same, place = True, torch.arange(1, last + 1, device=seen.device)
    for i in range(
        max(lengths)
    ):  # same[:, j]: are the i + 1 symbols that end at i + j the newest ones?
        same = (seen[:, : last - i] == seen[:, last - i, None]) & (same[:, 1:] if i else same)
        if not same.any():
            break
        if i + 1 in lengths:
            end = (same * place[i:]).amax(
                dim=1, keepdim=True
            )  # 1 + where the newest of them end; 0: nowhere
            found.append(torch.where((end > 0) & (end > last - window), seen.gather(1, end), NONE))
    found += [seen.new_full((len(seen), 1), NONE)] * (len(lengths) - len(found))
    return torch.stack(found, dim=2)


class Past:
    """The inputs that Canon layers have seen last, for `read`. Each takes its own, in the order in which they run."""

    def __init__(self, inputs, count=None):
        """inputs: a (B, M, C) for each layer. count (B,): how many new positions of each row are real; None: all."""
        self.before, self.after, self.count = iter(inputs), [], count

    def extend(self, x):
        """x (B, N, C) with the layer's last M inputs in front: (B, M + N, C). Of these the newest M are kept."""
        before = next(self.before)
        seen, M = torch.cat((before, x), dim=1), before.size(1)
        kept = (
            None if self.count is None else self.count[:, None] + torch.arange(M, device=x.device)
        )
        self.after.append(seen[:, x.size(1) :] if kept is None else rows_at(seen, kept))
        return seen


class KeyValueCache:
    """Keys and values of the patches so far, for `read`; new ones are written in place, where no earlier state looks.
    Each attention takes its own, in the order in which they run."""

    def __init__(self, buffers, rows, slots, window):
        """buffers: a (B, N, 2 H, D) for each attention; new patches of `rows` (R,) go into `slots` (R, P)."""
        self.buffers, self.rows, self.slots = iter(buffers), rows, slots
        self.used, self.mask = int(slots.max()) + 1, None
        if self.used > min(
            window, slots.size(1)
        ):  # else there is no patch before these: the causal flag is enough
            back = slots[:, :, None] - torch.arange(
                self.used, device=slots.device
            )  # how many patches ago each slot is
            self.mask = ((back >= 0) & (back < window))[:, None]  # (R, 1, P, used)

    def extend(self, k, v):
        """Store k and v (R, P, H, D). Returns all that are there: (R, used, H, D) each."""
        buffer = next(self.buffers)
        buffer[self.rows[:, None], self.slots] = torch.cat((k, v), dim=2).to(buffer.dtype)
        if self.mask is None:
            return k, v
        there = buffer if len(self.rows) == len(buffer) else buffer[self.rows]
        return there[:, : self.used].to(k.dtype).chunk(2, dim=2)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=False)
        self.out = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)

    def forward(self, x, rope, cache=None):
        B, P, C = x.shape
        qk, v = (
            self.qkv(x)
            .view(B, P, 3 * self.n_head, C // self.n_head)
            .split((2 * self.n_head, self.n_head), dim=2)
        )
        q, k = rotate(norm(qk), rope).to(v.dtype).chunk(2, dim=2)  # (B, P, H, D) each
        if cache is not None:
            k, v = cache.extend(k, v)
        y = attend(q, k, v, cache.mask if cache else None)
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

    def forward(self, x, past=None):
        """x (B, P, C) -> (B, P, C). Before x there is nothing, or what `past` remembers."""
        P, before = x.size(1), len(self.weight) - 1
        seen = F.pad(x, (0, 0, before, 0)) if past is None else past.extend(x)
        for i, weight in enumerate(self.weight.to(x.dtype)):
            x = x + seen[:, i : i + P] * weight
        return x


class LocalLayer(nn.Module):
    """A Canon layer and a gated feed-forward: each byte sees itself and the `local_reach` - 1 bytes before it."""

    def __init__(self, cfg):
        super().__init__()
        E = cfg.n_local_embd
        self.canon = Canon(cfg.local_reach, E)
        self.up = nn.Linear(E, 4 * E, bias=False)
        self.out = nn.Linear(2 * E, E, bias=False)

    def forward(self, x, past=None):
        gate, value = self.up(self.canon(norm(x), past)).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class STLM(nn.Module):
    may_drop = (
        False  # train.py sets it where dropout is wanted; otherwise dropout stays out of the graph
    )

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.about = {}  # plain values that stay with shared weights: what they were trained on, and how
        self.pooled = cfg.pooling != "none"
        self.vocab_size = 256 if cfg.tokenizer == "bytes" else cfg.gpt2_vocab
        self.eot = self.vocab_size - 1
        E = cfg.n_local_embd if self.pooled else cfg.n_embd
        self.embed = nn.Embedding(self.vocab_size, E)
        self.grams = nn.Embedding(cfg.gram_rows, cfg.gram_width) if cfg.n_grams else None
        self.from_grams = (
            nn.Linear(cfg.n_grams * cfg.gram_width, E, bias=False) if cfg.n_grams else None
        )
        self.match = nn.Parameter(torch.empty(cfg.n_match, E)) if cfg.n_match else None
        if self.pooled:
            self.encoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_enc))
            self.pool = nn.Linear(2 * E, cfg.n_embd, bias=False)
            self.unpool = nn.Linear(cfg.n_embd, E, bias=False)
            self.gate = nn.Linear(E, E, bias=False)
            self.decoder = nn.ModuleList(LocalLayer(cfg) for _ in range(cfg.n_local_dec))
        self.attention = nn.ModuleList(Attention(cfg) for _ in range(cfg.n_layer))
        self.feed_forward = nn.ModuleList(
            FeedForward(cfg) for _ in range(1 if cfg.share_ffn else cfg.n_layer)
        )
        n_canon = (
            2 * cfg.n_layer if cfg.canon_reach > 1 else 0
        )  # before each attention and each feed-forward
        self.canon = nn.ModuleList(Canon(cfg.canon_reach, cfg.n_embd) for _ in range(n_canon))
        # tensors that no checkpoint holds; the share to drop is one, so that a schedule changes it without recompiling
        self.register_buffer("is_separator", ~torch.tensor(WORD), persistent=False)
        self.register_buffer("drop", torch.zeros(()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        for name, p in self.named_parameters():
            if name.endswith(".out.weight") or name == "grams.weight":
                nn.init.zeros_(p)
            elif isinstance(self.get_submodule(name.rpartition(".")[0]), nn.Embedding):
                nn.init.normal_(
                    p, std=1 / p.size(1)
                )  # logits start near 0, and the loss near 8 bits
            else:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)

    # --- the parts of a pass -----------------------------------------------------------------------------------------

    def patch_ends(self, idx, before=None, since=None):
        """Which bytes end a patch: idx (B, T) -> bool (B, T); and since (B,), how many bytes ago the last one ended.

        Looks at no byte after the one it decides on. `before` (B,) is the symbol before idx, `since` what the call for
        the text up to there returned. Without them idx opens the text, whose first byte always ends a patch, so that
        every byte has a finished patch to look at.
        """
        if before is None:
            before, since = (
                torch.full_like(idx[:, 0], NONE),
                torch.full_like(idx[:, 0], self.cfg.max_patch - 1),
            )
        if self.cfg.pooling == "space":
            separator = self.is_separator[
                torch.cat((before[:, None], idx), dim=1)
            ]  # (NONE is -1: EOT's entry)
            ends = separator[:, 1:] & ~separator[:, :-1]
        else:
            ends = torch.full_like(
                idx, not self.pooled, dtype=torch.bool
            )  # none: every byte is a patch
        # from each of these ends on, every max_patch-th byte ends a patch as well, up to the next one
        t = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
        last = torch.where(ends, t, -1 - since[:, None]).cummax(dim=1).values
        since = (t - last) % self.cfg.max_patch
        return since == 0, since[:, -1]

    def embedding(self, idx, tail):
        """(B, T) symbols -> (B, T, E): of each byte, its matches and its n-grams. `tail` (B, M >= lookback) holds the
        symbols before idx, NONE where the text has not begun."""
        (B, T), seen = idx.shape, torch.cat((tail, idx), dim=1)
        if self.match is None:
            x = self.embed(idx)
        else:
            found = (newest_matches if T == 1 else matches)(
                seen, self.cfg.match_lengths, T, self.cfg.block_size
            )
            found = torch.cat((idx[..., None], found), dim=2)  # (B, T, 1 + n_match)
            scale = torch.cat((torch.ones_like(self.match[:1]), self.match))  # (1 + n_match, E)
            if T == 1:
                x = (self.embed(found.clamp(min=0)) * scale * (found != NONE)[..., None]).sum(dim=2)
            else:
                # One embedding_bag in place of 1 + n_match look-ups, whose backward takes a third of a step. Its table:
                # the embedding, scaled for each of them, and rows of zeros for NONE. There are 64 of these, because on
                # CUDA the backward adds up all look-ups of a row in one thread.
                table = (scale[:, None] * self.embed.weight).flatten(0, 1)
                zeros, t = (
                    table.new_zeros(64, table.size(1)),
                    torch.arange(T, device=idx.device)[:, None],
                )
                first = self.vocab_size * torch.arange(len(scale), device=idx.device)
                rows = torch.where(found == NONE, len(table) + t % 64, found + first)
                x = F.embedding_bag(rows.flatten(0, 1), torch.cat((table, zeros)), mode="sum").view(
                    B, T, -1
                )
        if self.grams is not None:
            x = x + self.from_grams(self.grams(self.gram_indices(seen, T)).flatten(2))
        return self.dropout(F.layer_norm(x, (x.size(-1),)))

    def gram_indices(self, seen, T):
        """Rows of the table for the last 2, 3, ... symbols at each of the last T places: seen (B, N) -> (B, T, n)."""
        N, key, power, keys = seen.size(1), 0, 1, []
        for i in range(self.cfg.n_grams + 1):  # a polynomial hash, from the newest symbol back
            key = key + (seen[:, N - T - i : N - i] + 1) * power
            power = (power * HASH + 2**63) % 2**64 - 2**63  # wraps around, as int64 does
            keys.append(key)
        hashed = (
            torch.stack(keys[1:], dim=-1) * 2654435761
        ) & 0xFFFFFFFF  # Knuth's multiplicative hash: 32 bits
        return (hashed * self.cfg.gram_rows) >> 32  # from 0 to gram_rows - 1

    def dropout(self, x):
        if not (self.training and self.may_drop):
            return x
        return x * (torch.rand_like(x, dtype=torch.float32) >= self.drop) / (1 - self.drop)

    def local(self, layers, x, past=None):
        """Local layers with residuals: (B, T, E) -> (B, T, E)."""
        for layer in layers:
            x = x + self.dropout(layer(x, past))
        return x

    def pool_patches(self, last, sums):
        """What the trunk reads of each patch, (B, P, C): its last byte (B, P, E) and the sum of its bytes (B, P, E)."""
        return self.pool(torch.cat((norm(last), norm(sums)), dim=-1))

    def trunk(self, z, positions, past=None, cache=None):
        """z (B, P, C), the patches with numbers `positions`, (P,) or (B, P), through all layers, n_loop times."""
        rope = rotary(positions, self.cfg.n_embd // self.cfg.n_head)
        for i in [*range(self.cfg.n_layer)] * self.cfg.n_loop:  # n_loop times the same layers
            x = self.canon[2 * i](norm(z), past) if self.canon else norm(z)
            z = z + self.dropout(self.attention[i](x, rope, cache))
            x = self.canon[2 * i + 1](norm(z), past) if self.canon else norm(z)
            z = z + self.dropout(self.feed_forward[0 if self.cfg.share_ffn else i](x))
        return norm(z)

    def mix(self, x, patch):
        """What the decoder reads, (B, T, E): each byte and the newest finished patch's vector, which the byte gates."""
        return x + patch * (1 + self.gate(norm(x)))

    def head(self, x):
        """(..., E) -> logits (..., V): the embedding, transposed."""
        return F.linear(x, self.embed.weight).float()

    # --- training: T bytes and P patches, whatever the text says -----------------------------------------------------

    def hidden(self, idx, return_patches=False):
        """idx (B, T) -> (B, T, E), before the head. A row's patches beyond the first P are dropped: later bytes look at
        patch P, and none is left out of the loss. With `return_patches` also what the trunk reads and what it gives,
        (B, P, C) each, and how many patches of each row are real, (B,)."""
        P, no_text = self.cfg.n_patches, idx.new_full((len(idx), self.cfg.lookback), NONE)
        x = self.embedding(idx, no_text)
        if not self.pooled:
            return self.trunk(x, torch.arange(idx.size(1), device=idx.device))
        x, ends = self.local(self.encoder, x), self.patch_ends(idx)[0]
        if idx.device.type == "cpu" and not torch.compiler.is_compiling():
            # hardly any rows of the trunk without a patch, in few sizes: oneDNN keeps about a megabyte for each size
            P = min(P, 32 * math.ceil(int(ends.sum(dim=1).max()) / 32))
        last, sums = patch_parts(x, ends, P)
        pooled = self.pool_patches(last, sums[:, :P])
        z = self.trunk(
            pooled, torch.arange(P, device=idx.device)
        )  # (slots without a patch come last: unseen)
        newest = (ends.cumsum(dim=1) - 1).clamp(
            max=P - 1
        )  # (B, T) the newest finished patch of each byte
        x = norm(self.local(self.decoder, self.mix(x, rows_at(self.unpool(z), newest))))
        return (x, (pooled, z, newest[:, -1] + 1)) if return_patches else x

    def forward(self, idx, targets, progress=None):
        """The mean loss in nats of predicting targets (B, T) from idx (B, T): the objective next_byte, which is the
        same at any `progress` of the run."""
        return F.cross_entropy(self.head(self.hidden(idx)).flatten(0, 1), targets.flatten())

    # --- reading: any number of bytes, exactly ------------------------------------------------------------------------

    def start(self, n_texts):
        """The state before any text: a dict of tensors and lists of tensors, each with a row per text.

        States can be kept: going back to an earlier one takes back what was read since. Only one way of going on from a
        state is good at a time (new keys and values are written in place); `rows_of` makes copies.
        """
        cfg, weight, runs, E = (
            self.cfg,
            self.embed.weight,
            self.cfg.n_layer * self.cfg.n_loop,
            self.cfg.n_local_embd,
        )
        zeros = lambda *shape: weight.new_zeros(n_texts, *shape)  # noqa: E731
        zero = torch.zeros(n_texts, dtype=torch.long, device=weight.device)
        return {
            "tail": zero[:, None].expand(n_texts, cfg.lookback) + NONE,  # the newest symbols
            "since": zero + cfg.max_patch - 1,  # how many bytes ago the last patch ended
            "sum": zeros(E),  # of the bytes of the unfinished patch
            "patch": zeros(1, E),  # the newest finished patch's vector
            "patches": zero,  # how many there have been
            "cached": zero,  # of how many keys and values are still there
            "keys_values": [zeros(0, 2 * cfg.n_head, cfg.n_embd // cfg.n_head)] * runs,
            "canon": [zeros(cfg.canon_reach - 1, cfg.n_embd)] * (len(self.canon) * cfg.n_loop),
            "local": [zeros(cfg.local_reach - 1, E)] * (cfg.n_local_enc + cfg.n_local_dec),
        }

    @torch.no_grad()
    def read(self, idx, state, last=False):
        """Read the next symbols of each text, idx (B, S >= 1). Returns (B, S, E), before the head, or with `last` only
        the last symbol's (B, 1, E); and the new state."""
        parts = []
        for part in idx.split(
            self.cfg.block_size, dim=1
        ):  # memory grows with the square of a part's length
            x, state = self._read(part, state)
            parts = [x[:, -1:]] if last else [*parts, x]
        return torch.cat(parts, dim=1), state

    def _read(self, idx, state):
        cfg, tail = self.cfg, state["tail"]
        x = self.embedding(idx, tail)
        ends, since = self.patch_ends(idx, tail[:, -1], state["since"])
        tail = torch.cat((tail, idx), dim=1)[:, -cfg.block_size - cfg.lookback :]
        state = state | {"tail": tail, "since": since}
        number = ends.cumsum(dim=1)  # (B, S) how many patches have ended by then
        if not self.pooled:
            return self.read_patches(x, number[:, -1], state)
        encoder_past = Past(state["local"][: cfg.n_local_enc])
        decoder_past = Past(state["local"][cfg.n_local_enc :])
        x, P = self.local(self.encoder, x, encoder_past), int(number[:, -1].max())
        last, sums = patch_parts(x, ends, P)
        sums[:, 0] += state["sum"]
        z = self.pool_patches(last, sums[:, :P])
        z, state = self.read_patches(z, number[:, -1], state)
        patch = rows_at(torch.cat((state["patch"], self.unpool(z)), dim=1), number)
        x = norm(self.local(self.decoder, self.mix(x, patch), decoder_past))
        unfinished = rows_at(sums, number[:, -1:])[:, 0]
        return x, state | {
            "sum": unfinished,
            "patch": patch[:, -1:],
            "local": encoder_past.after + decoder_past.after,
        }

    def read_patches(self, z, count, state):
        """The trunk over the next patches of each text: z (B, P, C), of which a row's first count (B,) are real."""
        rows = count.nonzero()[:, 0]  # of the texts in which a patch has ended
        if not len(rows):
            return z, state
        state = self.make_room(state, z.size(1))
        new = torch.arange(z.size(1), device=z.device)
        past = Past([x[rows] for x in state["canon"]], count[rows] if len(new) > 1 else None)
        cache = KeyValueCache(
            state["keys_values"], rows, state["cached"][rows, None] + new, self.cfg.n_patches
        )
        z = z.index_copy(
            0,
            rows,
            self.trunk(z[rows], state["patches"][rows, None] + new, past, cache).to(z.dtype),
        )
        canon = [
            x.index_copy(0, rows, after)
            for x, after in zip(state["canon"], past.after, strict=True)
        ]
        return z, state | {
            "canon": canon,
            "patches": state["patches"] + count,
            "cached": state["cached"] + count,
        }

    def make_room(self, state, P):
        """The state with room for the keys and values of P more patches; those outside the window are dropped."""
        cached, buffers, window = state["cached"], state["keys_values"], self.cfg.n_patches
        longest = int(cached.max())
        if longest + P <= buffers[0].size(1):
            return state
        drop = (cached - window).clamp(min=0)
        kept = drop[:, None] + torch.arange(min(longest, window), device=cached.device)
        row = torch.arange(len(cached), device=cached.device)[:, None]
        room = P + 64  # so that this is not done at every patch
        buffers = [F.pad(x[row, kept], (0, 0, 0, 0, 0, room)) for x in buffers]
        return state | {"keys_values": buffers, "cached": cached - drop}

    @torch.no_grad()
    def nats(self, idx, targets):
        """The exact negative log-likelihood of each target in nats, (B, T), given all of idx (B, T) up to there."""
        logits = self.head(self.read(idx, self.start(len(idx)))[0])
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    @torch.inference_mode()
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
        """Yield the symbols that follow the prompt, one by one: of bytes, `bytes(model.generate(b"def "))` is the text.

        `prompt` is one text (bytes, str for its UTF-8, or symbols as a list of ints) or a list of texts; for several,
        what comes is lists with a symbol for each, None while its prompt is being read and after its end. temperature 0
        takes the most likely; top_k > 0 and top_p < 1 (arXiv 1904.09751) leave out the unlikely; `stop` ends a text at
        EOT. Random numbers come from `generator` (a CPU torch.Generator), or the global one.
        """
        for key, value, low in (
            ("max_new", max_new, 0),
            ("temperature", temperature, 0),
            ("top_k", top_k, 0),
        ):
            if not value >= low:
                raise ValueError(f"{key}={value} must be at least {low}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
        several = (
            isinstance(prompt, list) and len(prompt) > 0 and not hasattr(prompt[0], "__index__")
        )
        texts = [
            text.encode() if isinstance(text, str) else text
            for text in (prompt if several else [prompt])
        ]
        if self.cfg.tokenizer != "bytes" and any(isinstance(text, bytes) for text in texts):
            raise ValueError("a BPE model reads tokens: data.encode(model.cfg, text) gives them")
        texts = [[self.eot, *text] for text in texts]
        ends = [len(text) + max_new for text in texts]
        state, t = (
            self.start(len(texts)),
            min(map(len, texts)),
        )  # the first t symbols are read at once
        idx = torch.tensor([text[:t] for text in texts])
        while t < max(ends):
            x, state = self.read(idx.to(self.embed.weight.device), state, last=True)
            drawn, made = sample(self.head(x[:, 0]).cpu(), temperature, top_k, top_p, generator), []
            for i, text in enumerate(texts):
                is_new = len(text) == t  # else its prompt is still being read
                if is_new:
                    text.append(drawn[i])
                    ends[i] = min(ends[i], t) if stop and drawn[i] == self.eot else ends[i]
                made.append(drawn[i] if is_new and t < ends[i] else None)
            if any(symbol is not None for symbol in made):
                yield made if several else made[0]
            idx, t = torch.tensor([[text[t]] for text in texts]), t + 1

    # --- weights that load anywhere: tensors in safetensors, plain values in JSON, no code that is run ----------------

    @classmethod
    def with_weights(cls, cfg, weights):
        """The model, in eval mode, with the tensors of a state_dict: they are taken over, and no others made first."""
        with torch.device("meta"):
            model = cls(cfg)
        model.load_state_dict(weights, assign=True)
        device = model.embed.weight.device
        model.is_separator, model.drop = (
            ~torch.tensor(WORD, device=device),
            torch.zeros((), device=device),
        )
        return model.eval()

    @classmethod
    def from_pretrained(cls, name):
        """The model, in eval mode, that save_pretrained wrote into a folder, or push_to_hub to USER/NAME on the Hub."""
        from safetensors.torch import load_file

        folder = Path(name)
        try:
            if not folder.exists() and not folder.parent.exists():
                from huggingface_hub import snapshot_download

                folder = Path(
                    snapshot_download(
                        str(name), allow_patterns=["config.json", "model.safetensors"]
                    )
                )
            config, stored = (
                json.loads((folder / "config.json").read_bytes()),
                load_file(folder / "model.safetensors"),
            )
            about, cfg = dict(config.pop("about", {})), ModelConfig(**config)
            if max(cfg.n_layer, cfg.n_local_enc, cfg.n_local_dec) > len(stored):
                raise ValueError("config.json has more layers than model.safetensors")
            with torch.device("meta"):
                shapes = {key: w.shape for key, w in cls(cfg).state_dict().items()}
            for key in [key for key in shapes if f"{key}.scale" in stored]:
                stored[key] = unpack(stored[key], stored.pop(f"{key}.scale"), shapes[key])
            model = cls.with_weights(cfg, {key: w.float() for key, w in stored.items()})
            if not all(w.isfinite().all() for w in model.parameters()):
                raise ValueError("its weights are not finite")
        except Exception as e:
            why = " ".join(str(e).split())[:300]
            raise ValueError(
                f"no model in {name} (a folder here, or USER/NAME on the Hub): {why}"
            ) from None
        model.about = about
        return model

    def save_pretrained(self, folder, bits=32, card=""):
        """Write model.safetensors, config.json, README.md (the `card`) and a copy of this file. bits: 32, 16 (bfloat16)
        and, see `pack`, 8 or 4, where small tensors keep 16, and the embedding, which is also the head, at least 8."""
        from safetensors.torch import save

        if bits not in (32, 16, 8, 4):
            raise ValueError(f"bits={bits} must be 32, 16, 8 or 4")
        tensors, folder = {}, Path(folder)
        for key, w in self.state_dict().items():
            if bits >= 16 or "canon" in key or key == "match":
                tensors[key] = w.to(torch.float32 if bits == 32 else torch.bfloat16)
            else:
                tensors[key], tensors[f"{key}.scale"] = pack(
                    w, 8 if key == "embed.weight" else bits
                )
        config = {f.name: getattr(self.cfg, f.name) for f in dataclasses.fields(ModelConfig)}
        folder.mkdir(parents=True, exist_ok=True)
        (new := folder / "model.safetensors.tmp").write_bytes(save(tensors))
        new.replace(
            folder / "model.safetensors"
        )  # (the old file may be what loaded weights are still read from)
        (folder / "config.json").write_text(
            json.dumps(config | {"about": self.about | {"bits": bits}}, indent=1)
        )
        (folder / "README.md").write_text(
            card or "`STLM.from_pretrained` in model.py loads it.", encoding="utf-8"
        )
        (folder / "model.py").write_bytes(Path(__file__).read_bytes())

    def push_to_hub(self, name, bits=32, card=""):
        """save_pretrained into USER/NAME on the Hub, made if it is not there. `hf auth login` comes first."""
        from huggingface_hub import create_repo, upload_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, bits, card)
            create_repo(name, exist_ok=True)
            upload_folder(repo_id=name, folder_path=folder)


def pack(w, bits):
    """A matrix as whole numbers in groups, and each group's scale. 8 bits: by row; 4: by 64 weights, two in a byte."""
    groups, most = (
        w if bits == 8 else F.pad(w.flatten(), (0, -w.numel() % 64)).view(-1, 64),
        2 ** (bits - 1),
    )
    scale = (
        groups.gather(1, groups.abs().argmax(dim=1, keepdim=True)) / -most
    ).half()  # the extreme becomes -most
    whole = (
        (groups / scale.float().where(scale != 0, 1)).round().clamp(-most, most - 1).to(torch.int8)
    )
    return whole if bits == 8 else ((whole[:, ::2] + 8) * 16 + whole[:, 1::2] + 8).byte(), scale


def unpack(whole, scale, shape):
    """The inverse of `pack`; the split drops the padding."""
    if whole.dtype == torch.uint8:
        whole = torch.stack((whole >> 4, whole & 15), dim=2).flatten(1) - 8.0
    return (
        (whole * scale.float())
        .flatten()
        .split((shape.numel(), -shape.numel() % whole.size(1)))[0]
        .view(shape)
    )


def rows_of(state, rows):
    """The state of some texts: `rows`, a tensor of their numbers, in which a number may come several times."""
    return {k: [x[rows] for x in v] if isinstance(v, list) else v[rows] for k, v in state.items()}


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Draw a symbol for each row of logits (B, V). Returns a list of ints."""
    if temperature < 1e-6:  # (dividing by less would overflow)
        return logits.argmax(dim=1).tolist()
    logits = logits.double()
    p = F.softmax((logits - logits.amax(dim=1, keepdim=True)) / temperature, dim=1)
    p, order = p.sort(dim=1, descending=True)
    if top_k:
        p[:, top_k:] = 0
    p[p.cumsum(1) - p >= top_p * p.sum(1, keepdim=True)] = (
        0  # the smallest set that holds top_p of what is left
    )
    return order.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0].tolist()
