"""Train a super tiny language model. Edit this file directly.

    python train.py                                        # config/demo.py, 3 minutes on a laptop's CPU
    python train.py config/stlm_10m.py --dataset=textbooks --max_steps=20000
    python train.py config/stlm_10m.py --resume --max_steps=40000
    torchrun --nproc_per_node=4 train.py config/stlm_50m.py

Reads data/DATASET (see prepare.py); writes out/RUN: last.pt and best.pt (weights_only=True loads them), log.jsonl,
run.json, loss.png. The last line on stdout is the verdict of the final weights on the whole val file. See also --help.
"""

import dataclasses
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from config import build, parse
from model import EOT, STLM, ModelConfig, gpt2

ROOT = Path(__file__).resolve().parent


@dataclass
class Config(ModelConfig):
    # run
    dataset: str = "stdlib"  # folder under data_dir, made by prepare.py
    data_dir: str = "data"  # where datasets live
    out_dir: str = ""  # where the run goes; empty: out/ and the config file's name
    init_from: str = ""  # out folder whose best weights to start from (fine-tuning)
    resume: bool = False  # go on from out_dir/last.pt, bit for bit
    overwrite: bool = False  # throw away what is in out_dir
    seed: int = 1337  # of weights, data order and dropout, each from a generator of its own
    # length: one of the two; the schedule follows it
    max_steps: int = 0  # optimizer steps
    max_seconds: float = 0.0  # training time, without start-up, evaluation and saving
    # batch
    batch_bytes: int = 16384  # bytes (tokens for gpt2) in one optimizer step, over all processes
    micro_batch: int = 0  # rows of block_size in one forward pass of one process; 0: all of its share
    # optimizer: Muon for the matrices, AdamW for embeddings, tables and Canon layers
    muon_lr: float = 0.02  # peak learning rate of Muon
    adam_lr: float = 0.005  # peak learning rate of AdamW
    momentum: float = 0.95  # of Muon
    beta1: float = 0.6  # of AdamW
    beta2: float = 0.99  # of AdamW
    weight_decay: float = 0.0  # decoupled, on matrices
    warmup: float = 0.02  # share of the run in which the learning rate rises
    decay: float = 0.7  # share of the run, at its end, in which it falls linearly to zero
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    dropout: float = 0.0  # largest share dropped; worth it when data repeats
    dropout_schedule: Literal["constant", "linear", "triangle"] = "constant"  # linear: from 0 up; triangle: and down
    # machine
    device: str = "auto"  # auto: cuda, else mps, else cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: bfloat16 where it is faster
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on cuda, if it works
    # watching
    eval_interval: int = 250  # steps between evaluations; 0: only at the end
    eval_bytes: int = 200_000  # val bytes (gpt2: tokens) of an evaluation, evenly spread; at the end all are scored
    log_interval: int = 10  # steps between log lines
    # filled in by the loader: the name and the docstring of the config file
    config: str = ""
    intuition: str = ""

    def __post_init__(self):
        super().__post_init__()
        self.out_dir = self.out_dir or f"out/{self.config or 'run'}"
        if (self.max_steps > 0) == (self.max_seconds > 0):
            raise ValueError(f"give one of max_steps={self.max_steps} and max_seconds={self.max_seconds}, above 0")
        floats = {f.name: getattr(self, f.name) for f in dataclasses.fields(Config) if f.type in (int, float)}
        for key, value in floats.items():
            low = 1 if key in ("batch_bytes", "log_interval") else 0
            high = 1 if key in ("dropout", "warmup", "decay", "momentum", "beta1", "beta2") else math.inf
            if not low <= value <= high or (key == "dropout" and value == 1):
                raise ValueError(f"{key}={value} must be between {low} and {high}")
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} + decay={self.decay} must be at most 1")
        if self.resume and (self.overwrite or self.init_from):
            raise ValueError("resume goes on with the run in out_dir: it excludes overwrite and init_from")


# On resume, what may be given anew: lengths, the machine, intervals, and where things are.
MAY_CHANGE = {"max_steps", "max_seconds", "device", "compile", "eval_interval", "eval_bytes", "log_interval"}
MAY_CHANGE |= {"out_dir", "data_dir", "resume", "overwrite", "init_from"}


# --- data: a pure function of (seed, step) ---------------------------------------------------------------------------


class Data:
    """One split as a memory map of symbols, and how many bytes of text each symbol stands for (0 for EOT)."""

    def __init__(self, cfg, split):
        folder = Path(cfg.data_dir) / cfg.dataset
        if not (folder / "meta.json").is_file():
            known = sorted(p.parent.name for p in Path(cfg.data_dir).glob("*/meta.json"))
            raise ValueError(f"no dataset {folder}; there are {known}; python prepare.py makes one (see its --help)")
        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if self.meta["tokenizer"] != cfg.tokenizer:
            raise ValueError(f"{folder} has tokenizer={self.meta['tokenizer']!r}, the config says {cfg.tokenizer!r}")
        if cfg.tokenizer == "gpt2" and self.meta["vocab_size"] != cfg.gpt2_vocab:
            found = self.meta["vocab_size"]
            raise ValueError(
                f"{folder} has a vocabulary of {found} tokens, the config says gpt2_vocab={cfg.gpt2_vocab}"
            )
        self.symbols = np.memmap(folder / f"{split}.bin", dtype=self.meta["dtype"], mode="r")
        self.eot, self.length = symbol_lengths(cfg)
        self.bytes_per_symbol = self.meta[split]["bytes"] / len(self.symbols)
        self._epoch = (None, None)

    @classmethod
    def of_text(cls, model, text):
        """Any text (bytes, valid UTF-8) as if it were a split with one document."""
        self = cls.__new__(cls)
        self.symbols, self._epoch = np.array(model.encode(text)), (None, None)
        self.eot, self.length = symbol_lengths(model.cfg)
        self.bytes_per_symbol = len(text) / max(1, len(self.symbols))
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
            out[i] = row if len(row) == T + 1 else np.concatenate((row, self.symbols[: T + 1 - len(row)]))
        return out

    def windows(self, T, limit=0, stride=0):
        """(start, stop, first) of consecutive windows of T symbols, of which those from `first` on are to be scored.

        With a limit (in symbols), an even spread of the windows. With a stride, windows overlap and each scores its
        last `stride` symbols, which then have at least T - stride before them (except at the start of the text).
        """
        size = len(self.symbols)
        if stride:
            rest = [(first + stride - T, min(first + stride, size), first) for first in range(T, size, stride)]
            return [(0, min(T, size), 0), *rest]
        starts = np.arange(0, size, T)
        if limit and limit < size:
            starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // T)).round().astype(int)]
        return [(int(s), min(int(s) + T, size), int(s)) for s in starts]


def symbol_lengths(cfg):
    """-> (EOT, table of how many bytes of text each symbol stands for: 0 for EOT)."""
    eot, length = EOT, np.ones(256, dtype=np.int64)
    if cfg.tokenizer == "gpt2":
        decode, eot = gpt2(cfg.gpt2_vocab).decode_single_token_bytes, cfg.gpt2_vocab - 1
        length = np.array([len(decode(i)) for i in range(cfg.gpt2_vocab)])
    length[eot] = 0
    return eot, length


def symbols_at_once(model):
    """How many symbols to score in one pass: as many as a device does well, while their logits stay small."""
    many, logits = (16384, 1 << 28) if model.embed.weight.device.type == "cpu" else (131072, 1 << 31)
    return min(many, logits // (4 * model.vocab_size))


@torch.no_grad()
def evaluate(model, data, T, limit=0, rank=0, world=1, stride=0, progress=lambda n: None):
    """Score windows of the split: every symbol once, given those before it in its window (the first: given EOT).

    Returns {"nats", "bytes", "bpb", "overflow", "bytes_per_patch"}; sums over all ranks. EOT counts in neither sum.
    `progress` is called with the number of symbols of each batch.
    """
    device, cfg = model.embed.weight.device, model.cfg
    length = torch.from_numpy(data.length).to(device)
    total = torch.zeros(5, dtype=torch.float64)
    windows = data.windows(T, limit, stride)[rank::world]
    rows = max(1, symbols_at_once(model) // T)
    was_training = model.training
    model.eval()
    while windows:
        start, stop, first = windows[0]
        batch = [w for w in windows[:rows] if (w[1] - w[0], w[2] - w[0]) == (stop - start, first - start)]
        windows = windows[len(batch) :]  # (the last window may be shorter: it goes alone)
        y = torch.from_numpy(np.stack([data.symbols[w[0] : w[1]] for w in batch]).astype(np.int64)).to(device)
        before = [[data.symbols[w[0] - 1] if w[0] else data.eot] for w in batch]
        x = torch.cat((torch.tensor(before, dtype=torch.long, device=device), y[:, :-1]), dim=1)
        ends = model.patch_ends(x)[0]
        overflow = (ends.sum(dim=1) > cfg.n_patches).sum()
        scored = slice(first - start, None)
        n_bytes = length[y[:, scored]]
        nats = (model.nats(x, y)[:, scored] * (n_bytes > 0)).cpu()
        sums = [nats.double().sum(), n_bytes.sum(), overflow, ends[:, scored].sum(), torch.tensor(len(batch))]
        total += torch.stack([s.cpu().double() for s in sums])
        progress(y[:, scored].numel())
    model.train(was_training)
    if world > 1:
        total = total.to(device)
        dist.all_reduce(total)
    nats, n_bytes, overflow, ends, n = total.tolist()
    found = {"nats": nats, "bytes": int(n_bytes), "bpb": nats / math.log(2) / max(1, n_bytes)}
    return found | {"overflow": overflow / max(1, n), "bytes_per_patch": n_bytes / max(1, ends)}


# --- optimizer -------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

    Matrices of one shape go through the Newton-Schulz iteration as one batch, in bfloat16 where that is fast, whatever
    the model's dtype: for tiny models the iteration would otherwise cost as much as the model.
    """

    def __init__(self, params, lr, momentum, weight_decay, dtype):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.dtype = dtype
        super().__init__(
            [{"params": ps} for ps in by_shape.values()], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group["params"]
            grad = torch.stack([p.grad for p in params])  # (n, rows, columns)
            state = self.state[params[0]]
            if not state:
                state["momentum"] = torch.zeros_like(grad)
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            update = orthogonal(grad.lerp_(state["momentum"], group["momentum"]).to(self.dtype)).to(grad.dtype)
            scale = max(1, grad.size(1) / grad.size(2)) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * scale)


def orthogonal(x, steps=5):
    """(n, rows, columns) -> nearly the nearest matrices with singular values 1 (they end between about 0.7 and 1.2)."""
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def make_optimizers(model, cfg, dtype):
    """Muon for the matrices of the layers, AdamW for everything that is looked up or is one filter per channel."""
    matrices = {id(m.weight): m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)}
    others = [p for p in model.parameters() if id(p) not in matrices]
    n = sum(p.numel() for p in matrices.values()) + sum(p.numel() for p in others)
    assert n == sum(p.numel() for p in model.parameters()), "the optimizers do not hold the whole model"
    adam = torch.optim.AdamW(others, lr=cfg.adam_lr, betas=(cfg.beta1, cfg.beta2), weight_decay=0.0, fused=True)
    optimizers = [Muon(matrices.values(), cfg.muon_lr, cfg.momentum, cfg.weight_decay, dtype), adam]
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def train_step(model, optimizers, batch, micro, autocast, grad_clip):
    """One optimizer step on this process's rows, batch (rows, T + 1), `micro` rows at a time.

    Returns the mean loss of these rows in nats and the gradient's norm, both tensors on the device.
    """
    parts, loss = batch.split(micro), torch.zeros((), device=batch.device)
    for i, part in enumerate(parts):
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = i == len(parts) - 1
        with autocast:
            part_loss = model(part[:, :-1].contiguous(), part[:, 1:].contiguous()) / len(parts)
        part_loss.backward()
        loss += part_loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss, norm


def lr_scale(progress, cfg):
    """Rise, hold, fall to zero. progress is the share of the run that is done, 0 to 1."""
    return min(1.0, (progress + 1e-3) / max(cfg.warmup, 1e-3), (1 - progress) / max(cfg.decay, 1e-9))


def dropout_at(progress, cfg):
    shape = {"constant": 1.0, "linear": progress, "triangle": 1 - abs(2 * progress - 1)}
    return cfg.dropout * shape[cfg.dropout_schedule]


# --- machine ---------------------------------------------------------------------------------------------------------


def pick_device(name="auto", local_rank=0):
    """-> (device, why)."""
    if name != "auto":
        name, why = (f"cuda:{local_rank}" if name == "cuda" else name), "as told"
    elif torch.cuda.is_available():
        name, why = f"cuda:{local_rank}", "a CUDA device is there"
    elif torch.backends.mps.is_available():
        name, why = "mps", "an Apple GPU is there"
    else:
        name, why = "cpu", "no GPU found"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device={name!r} cannot be used: {str(e).splitlines()[0]}") from None
    return device, why


def pick_dtype(name, device):
    """-> (dtype of matrix products, why)."""
    if name != "auto":
        return getattr(torch, name), "as told"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "native"
    if device.type == "cpu":
        gain = torch.tensor(_time_matmul(torch.float32) / _time_matmul(torch.bfloat16))
        if dist.is_initialized():  # all processes decide alike
            dist.broadcast(gain, 0)
        dtype = torch.bfloat16 if gain.item() > 1.5 else torch.float32
        return dtype, f"bfloat16 products run at {gain.item():.1f}x float32's speed"
    return torch.float32, "no native bfloat16"


def _time_matmul(dtype):
    """Seconds of one product of 512 x 512 matrices: the best of many, so that a busy machine decides alike."""
    a, times = torch.ones(512, 512, dtype=dtype), []
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


def compile_or_not(model, autocast, rows, T, device):
    """torch.compile, proven by a forward and backward pass; where that fails, a printed line and the model itself."""
    compiled = torch.compile(model)
    try:
        idx = torch.zeros(rows, T, dtype=torch.long, device=device)
        with autocast:
            loss = compiled(idx, torch.zeros_like(idx))
        loss.backward()
    except Exception as e:
        reason = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        print(f"torch.compile fails here ({reason}): going on without it", file=sys.stderr)
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled


def keep_freed_memory():
    """Ask glibc to keep freed memory and not hand it back: fresh pages cost an eager CPU step up to half its time."""
    try:
        import ctypes

        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD: up to 1 GiB comes from the heap
            libc.mallopt(-3, 32 << 20)  # (as much as an older glibc allows)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not trimmed
    except (OSError, AttributeError):
        pass  # not glibc


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}


def peak_flops(device):
    """Dense bfloat16 FLOP/s of the device by its data sheet, or None."""
    if device.type != "cuda":
        return None
    return next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name(device)), None)


# --- files -----------------------------------------------------------------------------------------------------------


def write_atomically(path, write):
    """write(file) to a temporary file, then rename: whatever happens, `path` is a whole file, the old or the new."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({e.__cause__ or e}); what was there is untouched") from None


def load_checkpoint(path, device="cpu"):
    """The checkpoint's dict: model, optimizers, step, elapsed, best, config, parameters, data, commit."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as e:
        raise ValueError(
            f"{path} is not a readable checkpoint: {(str(e).splitlines() or [type(e).__name__])[0]}"
        ) from None


def load_model(path, device="cpu"):
    """The model of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = load_checkpoint(path, device)
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    model = STLM(ModelConfig(**{k: v for k, v in checkpoint["config"].items() if k in known}))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), checkpoint


class Run:
    """The run's folder: log.jsonl (a JSON object per event), run.json (what, where, status), checkpoints, loss.png.

    Every process has one; only that of rank 0 prints and writes.
    """

    def __init__(self, cfg, rank):
        self.cfg, self.writes, self.out = cfg, rank == 0, Path(cfg.out_dir)
        self.last, self.best_path = self.out / "last.pt", self.out / "best.pt"
        self.step, self.elapsed, self.best, self.log, self.info = 0, 0.0, math.inf, [], {}

    def say(self, text, end="\n"):
        if self.writes:
            print(text, end=end, flush=True)

    def start(self, **info):
        """Make the folder, or trim a resumed run's log to the checkpoint's step."""
        self.info = info
        if not self.writes:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "log.jsonl"
        if not self.cfg.resume:
            for name in ("last.pt", "best.pt", "log.jsonl", "run.json", "loss.png", "eval.json"):
                (self.out / name).unlink(missing_ok=True)
        elif path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            events = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave half a line
            self.log = [e for e in events if e["step"] <= self.step]
            write_atomically(path, lambda f: f.write("".join(json.dumps(e) + "\n" for e in self.log).encode()))
        self.status("running")

    def record(self, event, **values):
        if self.writes:
            entry = {"event": event, "step": self.step, "elapsed": self.elapsed, "time": time.time()}
            self.log.append(entry | values)
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(self.log[-1]) + "\n")

    def status(self, status, **values):
        self.info |= {"status": status, "step": self.step, "elapsed": self.elapsed, "updated": time.time()} | values
        if self.writes:
            write_atomically(self.out / "run.json", lambda f: f.write(json.dumps(self.info, indent=1).encode()))

    def save(self, path, model, optimizers):
        if self.writes:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            state |= {"step": self.step, "elapsed": self.elapsed, "best": self.best}
            state |= {k: self.info[k] for k in ("config", "parameters", "data", "commit")}
            write_atomically(path, lambda f: torch.save(state, f))

    def evaluation(self, result, model, optimizers):
        """Log and print what `evaluate` returned; keep the weights if they are the best so far."""
        self.record("eval", **result)
        patches = f" | {result['bytes_per_patch']:.2f} bytes/patch, {result['overflow']:.2%} of rows overflow"
        self.say(f"val {result['bpb']:.4f} bpb on {result['bytes']:,} bytes" + patches * model.pooled)
        if result["bpb"] < self.best:
            self.best = result["bpb"]
            self.save(self.best_path, model, optimizers)

    def draw(self):
        """loss.png: training and val loss against the step."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for event, style in (("train", {"alpha": 0.6, "lw": 1}), ("eval", {"marker": "o", "ms": 3})):
            points = [(e["step"], e["bpb"]) for e in self.log if e["event"] == event]
            axes.plot(*zip(*points, strict=True), label=f"{event} {points[-1][1]:.3f}", **style)
        values = [e["bpb"] for e in self.log if "bpb" in e]
        axes.set_ylim(min(values) * 0.95, min(max(values), min(values) * 2.2))  # the first steps would flatten the rest
        axes.set(xlabel="step", ylabel="bits per byte", title=self.out.name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.out / "loss.png", dpi=110)
        plt.close(figure)


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def commit():
    try:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- the run ---------------------------------------------------------------------------------------------------------


def resumed(cfg):
    """The config of the run in out_dir, with what may change taken from the command line, and its last checkpoint."""
    path = Path(cfg.out_dir) / "last.pt"
    checkpoint = load_checkpoint(path)
    old = build(Config, checkpoint["config"], path)
    for key in sorted(cfg.given - MAY_CHANGE):
        if getattr(cfg, key) != getattr(old, key):
            may = ", ".join(sorted(MAY_CHANGE - {"resume", "overwrite", "init_from"}))
            there = getattr(old, key)
            raise ValueError(f"{key}={getattr(cfg, key)!r}, but {path} has {there!r}; on resume only {may} may change")
    given = cfg.told & MAY_CHANGE | {"out_dir", "resume", "overwrite", "init_from"}
    if given & {"max_steps", "max_seconds"}:
        given |= {"max_steps", "max_seconds"}
    return dataclasses.replace(old, **{k: getattr(cfg, k) for k in given}), checkpoint


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(Config, argv, __doc__, "config/demo.py", either=("max_steps", "max_seconds"))
    if words:
        raise ValueError(f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help")
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))  # torchrun sets them
    world = int(os.environ.get("WORLD_SIZE", 1))
    checkpoint = None
    if cfg.resume:
        cfg, checkpoint = resumed(cfg)
    elif not cfg.overwrite and any((Path(cfg.out_dir) / name).exists() for name in ("run.json", "last.pt", "best.pt")):
        ways = "--resume goes on with it, --overwrite throws it away, --out_dir=DIR avoids it"
        raise ValueError(f"{cfg.out_dir} already holds a run: {ways}")
    run = Run(cfg, rank)

    # data and batch
    if cfg.dataset == "stdlib" and not (Path(cfg.data_dir) / "stdlib" / "meta.json").is_file() and world == 1:
        import prepare

        run.say("the dataset is not there yet; running: python prepare.py stdlib")
        prepare.main(["stdlib", f"--data_dir={cfg.data_dir}"])
    train_data, val_data = Data(cfg, "train"), Data(cfg, "val")
    T, size = cfg.block_size, len(train_data.symbols)
    if size < T + 1:
        raise ValueError(f"{cfg.dataset} has {size} symbols to train on; block_size={T} needs at least {T + 1}")
    if checkpoint and checkpoint["data"]["train"] != train_data.meta["train"]:
        raise ValueError(f"{cfg.dataset} is not the data that {run.last} was trained on: its sha256 differs")
    rows = cfg.batch_bytes // T
    micro = min(cfg.micro_batch or rows, max(1, rows // world))
    accumulation = rows // (micro * world)
    if accumulation * micro * world * T != cfg.batch_bytes:
        unit = micro * world * T
        raise ValueError(
            f"batch_bytes={cfg.batch_bytes} is not a multiple of micro_batch={micro} x {world} processes x "
            f"block_size={T} = {unit}; try --batch_bytes={max(1, round(cfg.batch_bytes / unit)) * unit}"
        )

    # machine
    device, why_device = pick_device(cfg.device, local_rank)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    dtype, why_dtype = pick_dtype(cfg.dtype, device)
    compiled = cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    keep_freed_memory()

    # model: raw_model is what is saved, evaluated and sampled; model is what trains, compiled or wrapped
    torch.manual_seed(cfg.seed)
    raw_model = STLM(cfg)
    if checkpoint:
        raw_model.load_state_dict(checkpoint["model"])
    elif cfg.init_from:
        path = next((p for p in (Path(cfg.init_from) / "best.pt", Path(cfg.init_from) / "last.pt") if p.exists()), None)
        try:
            raw_model.load_state_dict(load_checkpoint(path or Path(cfg.init_from) / "last.pt")["model"])
        except RuntimeError as e:
            raise ValueError(f"{path} holds another model: {str(e).splitlines()[1].strip()}") from None
    raw_model.may_drop = cfg.dropout > 0
    raw_model.to(device).train()
    optimizers = make_optimizers(raw_model, cfg, pick_dtype("auto", device)[0])
    if checkpoint:
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        run.step, run.elapsed = checkpoint["step"], checkpoint["elapsed"]
        run.best = load_checkpoint(run.best_path)["best"] if run.best_path.exists() else math.inf
    model, tick = raw_model, time.perf_counter()
    if compiled:
        model = compile_or_not(raw_model, autocast, micro, T, device)
        run.elapsed += time.perf_counter() - tick  # races count the time to compile
    compiled = model is not raw_model
    reason = f"{device} ({why_device}), {str(dtype)[6:]} ({why_dtype}), compile {'on' if compiled else 'off'}"
    if world > 1:
        devices = [device.index] if device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
    parameters, per_step = raw_model.parameter_table(), accumulation * micro * world * T
    run.say(reason)
    run.say("parameters (the head is the embedding):")
    run.say("\n".join(f"  {part:<14} {n:>12,}" for part, n in parameters.items()))
    run.say(f"a step: {accumulation} x {micro} rows x {T} x {world} processes = {per_step:,} of {size:,} symbols")
    run.start(
        command=shlex.join(["train.py", *argv]),
        config=dataclasses.asdict(cfg),
        parameters=parameters,
        data=train_data.meta,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}",
        why=reason,
        processes=world,
        threads=torch.get_num_threads(),
        versions={"torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform()},
        commit=commit(),
    )
    run.record("start")

    def rank_zero(seconds):
        """Every process follows the clock of rank 0: learning rates and the end depend on it."""
        if world == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64, device=device)
        dist.broadcast(clock, 0)
        return clock.item()

    def progress():
        return run.step / cfg.max_steps if cfg.max_steps else run.elapsed / cfg.max_seconds

    signals = []  # that arrived: the loop ends after the step; a second one ends it at once

    def on_signal(number, frame):
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)

    handlers = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    peak, live = peak_flops(device), sys.stdout.isatty()
    run.elapsed = rank_zero(run.elapsed)
    tick, logged, stop = time.perf_counter(), (run.step, run.elapsed), progress() >= 1 and run.step > 0
    try:
        while not stop:
            scale = lr_scale(progress(), cfg)
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = group["peak_lr"] * scale
            if cfg.dropout:
                raw_model.drop.fill_(dropout_at(progress(), cfg))
                torch.manual_seed((cfg.seed * 1_000_003 + run.step) * world + rank)  # so that resuming needs no state
            batch = torch.from_numpy(train_data.batch(cfg.seed, run.step, rows, T, rank, world))
            on_cuda = device.type == "cuda"  # pinned: the copy does not wait for the steps before, which may still run
            batch = (batch.pin_memory() if on_cuda else batch).to(device, non_blocking=on_cuda)
            loss, norm = train_step(model, optimizers, batch, micro, autocast, cfg.grad_clip)
            run.step += 1

            now = time.perf_counter()
            run.elapsed, tick = run.elapsed + now - tick, now
            interrupted = len(signals) > 0
            if world > 1:  # all heed a signal that any of them got
                heard = torch.tensor([float(interrupted)], device=device)
                dist.all_reduce(heard)
                interrupted = heard.item() > 0
            run.elapsed = rank_zero(run.elapsed)
            stop = interrupted or progress() >= 1
            pause = stop or (cfg.eval_interval and run.step % cfg.eval_interval == 0)

            if pause or run.step % cfg.log_interval == 0 or run.step == 1:
                if world > 1:
                    dist.all_reduce(loss)
                loss, norm = loss.item() / world, norm.item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    run.record("failed", loss=str(loss), norm=str(norm))
                    raise ValueError(
                        f"step {run.step}: loss {loss}, gradient norm {norm}; muon_lr is {cfg.muon_lr * scale:.3g}, "
                        f"adam_lr {cfg.adam_lr * scale:.3g}: lower them; last good checkpoint: "
                        f"{run.last if run.last.exists() else 'none yet'}"
                    )
                symbols_per_second = (run.step - logged[0]) * per_step / max(1e-9, run.elapsed - logged[1])
                speed = symbols_per_second * train_data.bytes_per_symbol
                mfu = f"{symbols_per_second * raw_model.flops_per_symbol() / peak / world:.1%}" if peak else "n/a"
                bpb = loss / math.log(2) / train_data.bytes_per_symbol
                left = clock(run.elapsed / progress() * max(0, 1 - progress()))
                run.record("train", bpb=bpb, norm=norm, lr_scale=scale, bytes_per_second=round(speed), mfu=mfu)
                line = f"step {run.step} | train {bpb:.4f} bpb | norm {norm:.2f} | {speed:,.0f} bytes/s | mfu {mfu}"
                run.say(f"{line} | {left} left", end="   \r" if live and not pause else "\n")
                logged = (run.step, run.elapsed)
            if pause:
                synchronize()
                run.elapsed = rank_zero(run.elapsed + time.perf_counter() - tick)
                run.save(run.last, raw_model, optimizers)
                if not stop:
                    run.evaluation(evaluate(raw_model, val_data, T, cfg.eval_bytes, rank, world), raw_model, optimizers)
                    run.status("running")
                logged, tick = (run.step, run.elapsed), time.perf_counter()
        if progress() < 1:
            run.record("interrupted")
            run.status("interrupted")
            run.say(f"stopped by a signal after step {run.step}; {run.last} is saved, --resume goes on")
            if world > 1:
                dist.barrier()
            return 130
        result = evaluate(raw_model, val_data, T, 0, rank, world)
        run.evaluation(result, raw_model, optimizers)
        verdict = {"val_bpb": f"{result['bpb']:.4f}", "val_nats": f"{result['bpb'] * math.log(2):.4f}"}
        verdict |= {"params": parameters["total"], "steps": run.step, "seconds": f"{run.elapsed:.1f}"}
        verdict |= {"bytes_per_second": round(run.step * per_step * train_data.bytes_per_symbol / run.elapsed)}
        run.record("end", **verdict)
        run.status("finished", verdict=verdict)
        if run.writes:
            run.draw()
        run.say(f"weights, log and loss.png are in {run.out}; python sample.py --out_dir={run.out} writes text")
        if world > 1:
            dist.barrier()  # a process that leaves while another still writes would break its connection
        run.say(" ".join(f"{k}={v}" for k, v in verdict.items()))
        return 0
    except BaseException:
        run.status("failed")
        raise
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)


if __name__ == "__main__":
    try:
        code = main()
    except (ValueError, OSError) as e:
        sys.exit(f"train.py: {e}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped at once; the newest checkpoint is whole, --resume goes on with it")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.exit(code)
