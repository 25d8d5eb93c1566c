"""Train a super tiny language model. Edit this file directly.

    python train.py                                        # config/demo.py, 3 minutes on a laptop's CPU
    python train.py config/stlm_10m.py --dataset=textbooks --max_steps=20000
    python train.py config/stlm_10m.py --resume --max_steps=40000
    torchrun --nproc_per_node=4 train.py config/stlm_50m.py

Reads data/DATASET (see prepare.py); writes out/RUN: last.pt and best.pt (weights_only=True loads them), log.jsonl, run.json,
loss.png. The last line on stdout is the verdict of the final weights on the whole val file. `--help` lists every knob.
"""

import dataclasses
import json
import math
import os
import platform
import shutil
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
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from config import build, parse
from model import STLM, ModelConfig, gpt2

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
    # optimizer: Muon for the matrices, AdamW for embeddings, tables and convolutions
    muon_lr: float = 0.02  # peak learning rate of Muon
    adam_lr: float = 0.005  # peak learning rate of AdamW
    momentum: float = 0.95  # of Muon
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW
    weight_decay: float = 0.0  # decoupled, on matrices
    warmup: float = 0.02  # share of the run in which the learning rate rises
    decay: float = 0.7  # share of the run, at its end, in which it falls linearly to zero
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    dropout: float = 0.0  # largest share dropped; worth it when data repeats
    dropout_schedule: Literal["constant", "linear", "triangle"] = "constant"  # linear: from 0 up; triangle: up and down again
    # machine
    device: str = "auto"  # auto: cuda, else mps, else cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: bfloat16 where it is faster
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on cuda, if it works
    # watching
    eval_interval: int = 250  # steps between evaluations; 0: only at the end
    eval_bytes: int = 200_000  # val bytes of an evaluation, evenly spread; the whole file is scored at the end
    log_interval: int = 10  # steps between log lines
    # filled in by the loader
    config: str = ""  # name of the config file
    intuition: str = ""  # its docstring: why the experiment is worth running

    def __post_init__(self):
        super().__post_init__()
        self.out_dir = self.out_dir or f"out/{self.config or 'run'}"
        if (self.max_steps > 0) == (self.max_seconds > 0):
            raise ValueError(f"give one of max_steps={self.max_steps} and max_seconds={self.max_seconds}, above 0")
        for key in ("batch_bytes", "log_interval"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        for key in ("micro_batch", "muon_lr", "adam_lr", "weight_decay", "grad_clip", "eval_interval", "eval_bytes", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)} must not be negative")
        for key in ("dropout", "warmup", "decay", "momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, key) <= 1 or (key == "dropout" and self.dropout == 1):
                raise ValueError(f"{key}={getattr(self, key)} must be between 0 and 1")
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} + decay={self.decay} must be at most 1")
        if self.resume and (self.overwrite or self.init_from):
            raise ValueError("resume goes on with the run in out_dir: it excludes overwrite and init_from")


MAY_CHANGE = {"max_steps", "max_seconds", "device", "compile", "eval_interval", "eval_bytes", "log_interval"}
MAY_CHANGE |= {"resume", "overwrite", "out_dir", "data_dir", "init_from"}  # (on resume; the last have done their work by then)


# --- data: a pure function of (seed, step) --------------------------------------------------------------------------------


class Data:
    """One split as a memory map of symbols, and how many bytes of text each symbol stands for (0 for EOT)."""

    def __init__(self, cfg, split):
        folder = Path(cfg.data_dir) / cfg.dataset
        if not (folder / "meta.json").is_file():
            known = sorted(p.parent.name for p in Path(cfg.data_dir).glob("*/meta.json"))
            raise ValueError(f"no dataset {folder}; there are {known}; python prepare.py SOURCE --name={cfg.dataset} makes it")
        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if self.meta["tokenizer"] != cfg.tokenizer:
            raise ValueError(f"{folder} was made with tokenizer={self.meta['tokenizer']}, the config says {cfg.tokenizer}")
        self.symbols = np.memmap(folder / f"{split}.bin", dtype=self.meta["dtype"], mode="r")
        if cfg.tokenizer == "bytes":
            self.length = np.ones(256, dtype=np.int64)
            self.eot = 255
        else:
            encoding = gpt2()
            self.length = np.array([len(b) for b in encoding.token_byte_values()] + [0], dtype=np.int64)
            self.eot = encoding.eot_token
        self.length[self.eot] = 0
        self.sha256 = self.meta[split]["sha256"]
        self.bytes_per_symbol = self.meta[split]["bytes"] / len(self.symbols)
        self._epoch = (None, None)

    def batch(self, seed, step, rows, T, rank=0, world=1):
        """This rank's share of the global batch of `rows` rows at `step`: int64 array (rows / world, T + 1).

        The corpus is a circle. An epoch starts at a fresh random point and cuts it into n = size // T windows that touch end
        to end, visited in a random order: in an epoch every symbol is a target at most once, and all but fewer than T are.
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

    def windows(self, T, limit=0):
        """(start, stop) of consecutive windows of T; with a limit (in symbols), an even spread of them."""
        starts = np.arange(0, len(self.symbols), T)
        if limit and limit < len(self.symbols):
            starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // T)).round().astype(int)]
        return [(int(s), min(int(s) + T, len(self.symbols))) for s in starts]


@torch.no_grad()
def evaluate(model, data, T, limit=0, rank=0, world=1):
    """Score windows of the split: every symbol once, given those before it in its window (the first: given EOT).

    Returns {"nats", "bytes", "bpb", "overflow", "bytes_per_patch"}; sums over all ranks. EOT counts in neither sum.
    """
    device, cfg = model.embed.weight.device, model.cfg
    length = torch.from_numpy(data.length).to(device)
    total = torch.zeros(5, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    windows = data.windows(T, limit)[rank::world]
    rows = max(1, 16384 // T) if device.type == "cpu" else max(1, 131072 // T)
    was_training = model.training
    model.eval()
    while windows:
        size = windows[0][1] - windows[0][0]
        batch = [w for w in windows[:rows] if w[1] - w[0] == size]  # the last window may be shorter: it goes alone
        windows = windows[len(batch) :]
        y = torch.from_numpy(np.stack([data.symbols[a:b] for a, b in batch]).astype(np.int64)).to(device)
        before = [[data.symbols[a - 1] if a else data.eot] for a, b in batch]
        x = torch.cat((torch.tensor(before, dtype=torch.long, device=device), y[:, :-1]), dim=1)
        ends = model.patch_ends(x)[0].sum(dim=1)
        nats = model.nats(x, y) * (length[y] > 0)
        sums = [nats.double().sum(), length[y].sum(), (ends > cfg.n_patches).sum(), ends.sum(), len(batch)]
        total += torch.stack([torch.as_tensor(s, dtype=torch.float64, device=total.device) for s in sums])
    model.train(was_training)
    if world > 1:
        dist.all_reduce(total)
    nats, n_bytes, overflow, ends, n = total.tolist()
    bpb = nats / math.log(2) / max(1, n_bytes)
    return {
        "nats": nats, "bytes": int(n_bytes), "bpb": bpb, "overflow": overflow / n, "bytes_per_patch": n_bytes / max(1, ends)
    }  # fmt: skip


# --- optimizer ------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

    Matrices of one shape go through the Newton-Schulz iteration as one batch: for tiny models that is most of its cost.
    """

    def __init__(self, params, lr, momentum, weight_decay, dtype):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.dtype = dtype
        super().__init__([{"params": ps} for ps in by_shape.values()], dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

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
        x = 3.4445 * x + torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
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


def lr_scale(progress, cfg):
    """Rise, hold, fall to zero. progress is the share of the run that is done, 0 to 1."""
    return min(1.0, (progress + 1e-3) / max(cfg.warmup, 1e-3), (1 - progress) / max(cfg.decay, 1e-9))


def dropout_at(progress, cfg):
    shape = {"constant": 1.0, "linear": progress, "triangle": 1 - abs(2 * progress - 1)}
    return cfg.dropout * shape[cfg.dropout_schedule]


# --- machine --------------------------------------------------------------------------------------------------------------


def pick_device(cfg, local_rank=0):
    """-> (device, dtype of matrix products, whether to compile, one line that says why)."""
    if cfg.device != "auto":
        name, why = cfg.device, "as told"
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
    gain = 1.0
    if cfg.dtype != "auto":
        dtype, reason = getattr(torch, cfg.dtype), "as told"
    elif device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        reason = "native" if dtype == torch.bfloat16 else "no native bfloat16"
    elif device.type == "cpu":
        gain = _time_matmul(torch.float32) / _time_matmul(torch.bfloat16)
        dtype = torch.bfloat16 if gain > 1.5 else torch.float32
        reason = f"bfloat16 products run at {gain:.1f}x float32's speed"
    else:
        dtype, reason = torch.float32, "safe on this device"
    compiled = cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda")
    dtype_name = str(dtype).removeprefix("torch.")
    return device, dtype, compiled, f"device {device} ({why}), {dtype_name} ({reason}), compile {'on' if compiled else 'off'}"


def _time_matmul(dtype):
    a, times = torch.ones(512, 512, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


def keep_freed_memory():
    """Ask glibc to keep freed memory instead of handing it back: fresh pages cost an eager CPU step up to half its time."""
    try:
        import ctypes

        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: up to 1 GiB comes from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not trimmed
    except (OSError, AttributeError):
        pass  # not glibc


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}


def peak_flops(device):
    """Dense bfloat16 FLOP/s of the device by its data sheet, or None."""
    if device.type != "cuda":
        return None
    return next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name(device)), None)


# --- files ----------------------------------------------------------------------------------------------------------------


def write_atomically(path, write):
    """write(file) to a temporary file, then rename: whatever happens, `path` is a whole file, the old or the new."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as f:
        write(f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def load_checkpoint(path, device="cpu"):
    """The checkpoint's dict: model, optimizers, step, elapsed, best, config, intuition, commit, data."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} is not a readable checkpoint: {str(e).splitlines()[0]}") from None


def load_model(path, device="cpu"):
    """The model of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = load_checkpoint(path, device)
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    model = STLM(ModelConfig(**{k: v for k, v in checkpoint["config"].items() if k in known}))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), checkpoint


def draw(log, path):
    """Loss against step, training and val, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for event, key, style in (("train", "bpb", {"alpha": 0.6, "lw": 1}), ("eval", "bpb", {"marker": "o", "ms": 3})):
        points = [(e["step"], e[key]) for e in log if e["event"] == event]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{event}: {points[-1][1]:.3f}", **style)
    values = sorted(e["bpb"] for e in log if e["event"] in ("train", "eval"))
    if values:
        axes.set_ylim(values[0] * 0.95, min(values[-1], values[0] * 2.2))
    axes.set(xlabel="step", ylabel="bits per byte", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


# --- the run --------------------------------------------------------------------------------------------------------------


def main(argv=None):
    cfg, words = parse(Config, sys.argv[1:] if argv is None else argv, __doc__, "config/demo.py")
    if words:
        raise ValueError(f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, main_process = int(os.environ.get("LOCAL_RANK", 0)), rank == 0
    say = print if main_process else (lambda *a, **k: None)

    out = Path(cfg.out_dir)
    last, best, checkpoint = out / "last.pt", out / "best.pt", None
    if cfg.resume:
        checkpoint = load_checkpoint(last)
        old = build(Config, checkpoint["config"] | {"out_dir": cfg.out_dir}, str(last))
        for key in sorted(cfg.given - MAY_CHANGE - {"config", "intuition"}):
            if getattr(cfg, key) != getattr(old, key):
                raise ValueError(
                    f"{key}={getattr(cfg, key)!r}, but {last} was trained with {getattr(old, key)!r}; on resume only "
                    f"{', '.join(sorted(MAY_CHANGE - {'resume', 'overwrite'}))} may change"
                )
        changes = {k: getattr(cfg, k) for k in cfg.given & MAY_CHANGE} | {"resume": True, "overwrite": False}
        if {"max_steps", "max_seconds"} & cfg.given:
            changes |= {k: getattr(cfg, k) for k in ("max_steps", "max_seconds")}
        cfg = dataclasses.replace(old, **changes)
    elif (out / "run.json").exists() and not cfg.overwrite:
        raise ValueError(f"{out} already holds a run: --resume goes on with it, --overwrite throws it away, --out_dir=DIR avoids it")
    if cfg.dataset == "stdlib" and not (Path(cfg.data_dir) / "stdlib" / "meta.json").is_file() and main_process and world == 1:
        say("data/stdlib is not there yet; running: python prepare.py stdlib", flush=True)
        import prepare

        prepare.main(["stdlib", f"--data_dir={cfg.data_dir}"])
    train_data, val_data = Data(cfg, "train"), Data(cfg, "val")
    T = cfg.block_size
    if len(train_data.symbols) < T + 1:
        raise ValueError(f"data/{cfg.dataset} has {len(train_data.symbols)} symbols to train on, fewer than block_size={T} + 1")
    rows = cfg.batch_bytes // T
    micro = cfg.micro_batch or max(1, rows // world)
    accumulation = rows // (micro * world)
    if accumulation * micro * world * T != cfg.batch_bytes:
        unit = micro * world * T
        raise ValueError(
            f"batch_bytes={cfg.batch_bytes} is not a multiple of micro_batch={micro} x {world} processes x block_size={T} "
            f"= {unit}; try --batch_bytes={max(1, round(cfg.batch_bytes / unit)) * unit}"
        )
    if checkpoint and checkpoint["data"] != train_data.sha256:
        raise ValueError(f"data/{cfg.dataset} is not the data that {last} was trained on (its sha256 differs)")

    device, dtype, compiled, reason = pick_device(cfg, local_rank)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    keep_freed_memory()

    torch.manual_seed(cfg.seed)
    raw_model = STLM(cfg)
    if cfg.init_from:
        source = Path(cfg.init_from)
        weights = load_checkpoint(source / "best.pt" if (source / "best.pt").exists() else source / "last.pt")["model"]
        try:
            raw_model.load_state_dict(weights)
        except RuntimeError as e:
            raise ValueError(f"--init_from={source} holds another model: {str(e).splitlines()[1].strip()}") from None
    raw_model.cfg_dropout = cfg.dropout
    raw_model.to(device)
    optimizers = make_optimizers(raw_model, cfg, dtype)
    step, elapsed, best_bpb = 0, 0.0, math.inf
    if checkpoint:
        raw_model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, elapsed, best_bpb = checkpoint["step"], checkpoint["elapsed"], checkpoint["best"]
    model = torch.compile(raw_model) if compiled else raw_model
    if world > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    n_parameters = raw_model.parameter_table()
    symbols_per_step = accumulation * micro * world * T
    say(reason)
    say(", ".join(f"{part} {n:,}" for part, n in n_parameters.items() if n) + " parameters (embedding tied to the head)")
    say(
        f"{len(train_data.symbols):,} symbols of {cfg.dataset}; a step: {accumulation} x {micro} rows x {T} x {world} processes "
        f"= {symbols_per_step:,}, an epoch: {len(train_data.symbols) / symbols_per_step:,.0f} steps; P = {cfg.n_patches} patches",
        flush=True,
    )

    run = {
        "status": "running", "command": " ".join(["train.py", *(sys.argv[1:] if argv is None else argv)]), "started": time.time(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}",
        "threads": torch.get_num_threads(), "processes": world, "dtype": str(dtype), "compile": compiled,
        "torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(), "commit": commit(),
        "parameters": n_parameters, "data": train_data.meta, "config": dataclasses.asdict(cfg),
    }  # fmt: skip
    log = []
    if main_process:
        if not cfg.resume and out.exists():
            for path in (last, best, out / "log.jsonl", out / "run.json", out / "loss.png"):
                path.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if cfg.resume and (out / "log.jsonl").exists():
            lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
            log = [json.loads(line) for line in lines if line.endswith("}")]
            log = [e for e in log if e.get("step", 0) <= step]
            text = "".join(json.dumps(e) + "\n" for e in log)
            write_atomically(out / "log.jsonl", lambda f: f.write(text.encode()))

    def record(event, **values):
        if main_process:
            log.append({"event": event, "step": step, "elapsed": round(elapsed, 3), "time": time.time(), **values})
            with open(out / "log.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(log[-1]) + "\n")

    def set_status(status, **values):
        run.update(status=status, step=step, elapsed=elapsed, updated=time.time(), **values)
        if main_process:
            write_atomically(out / "run.json", lambda f: f.write(json.dumps(run, indent=1).encode()))

    def save(path):
        if main_process:
            state = {
                "model": raw_model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                "elapsed": elapsed, "best": best_bpb, "config": dataclasses.asdict(cfg), "commit": run["commit"],
                "data": train_data.sha256, "parameters": n_parameters,
            }  # fmt: skip
            write_atomically(path, lambda f: torch.save(state, f))

    stop = []  # signals that arrived; the loop ends after the step
    handlers = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    peak, live = peak_flops(device), sys.stdout.isatty()
    set_status("running")
    record("start", reason=reason, parameters=n_parameters["total"])
    raw_model.train()
    tick, logged, stopped = time.perf_counter(), (step, elapsed), False
    try:
        while not stopped:
            progress = step / cfg.max_steps if cfg.max_steps else elapsed / cfg.max_seconds
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = group["peak_lr"] * lr_scale(progress, cfg)
            if cfg.dropout:
                raw_model.drop.fill_(dropout_at(progress, cfg))
                torch.manual_seed(hash((cfg.seed, step, rank)) & 0x7FFFFFFF)  # dropout needs no state to resume
            batch = torch.from_numpy(train_data.batch(cfg.seed, step, rows, T, rank, world)).to(device)
            loss = torch.zeros((), device=device)
            for i, part in enumerate(batch.split(micro)):
                if world > 1:
                    model.require_backward_grad_sync = i == accumulation - 1
                try:
                    with autocast:
                        part_loss = model(part[:, :-1], part[:, 1:]) / accumulation
                    part_loss.backward()
                except Exception as e:
                    if not compiled or cfg.compile == "on" or world > 1 or step > 0:
                        raise
                    say(f"torch.compile does not work here ({type(e).__name__}): going on without it")
                    model, compiled = raw_model, False
                    raw_model.zero_grad(set_to_none=True)
                    with autocast:
                        part_loss = model(part[:, :-1], part[:, 1:]) / accumulation
                    part_loss.backward()
                loss += part_loss.detach()
            limit = cfg.grad_clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), limit)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1

            now = time.perf_counter()
            elapsed, tick = elapsed + now - tick, now
            state = torch.tensor([elapsed, float(len(stop))], dtype=torch.float64)
            if world > 1:  # all ranks follow the clock of rank 0, and stop at the same step
                state = state.to(device, torch.float32 if device.type == "mps" else torch.float64)
                dist.broadcast(state[:1], 0)
                dist.all_reduce(state[1:])
                elapsed = state[0].item()
            done = step >= cfg.max_steps if cfg.max_steps else elapsed >= cfg.max_seconds
            stopped = done or state[1].item() > 0
            pause = stopped or (cfg.eval_interval and step % cfg.eval_interval == 0)

            if pause or step % cfg.log_interval == 0 or step == 1:
                loss, norm = loss.item(), norm.item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    set_status("failed")
                    record("failed", loss=str(loss))
                    raise ValueError(
                        f"step {step}: loss {loss}, gradient norm {norm}, learning rates {cfg.muon_lr:g} and {cfg.adam_lr:g} "
                        f"x {lr_scale(progress, cfg):.3f}: lower them; last good checkpoint: {last if last.exists() else 'none yet'}"
                    )
                speed = (step - logged[0]) * symbols_per_step * train_data.bytes_per_symbol / max(1e-9, elapsed - logged[1])
                flops = speed / train_data.bytes_per_symbol * raw_model.flops_per_symbol()
                mfu = f"{flops / peak / world:.1%}" if peak else "n/a"
                bpb = loss / math.log(2) / train_data.bytes_per_symbol
                left = elapsed * (cfg.max_steps - step) / step if cfg.max_steps else cfg.max_seconds - elapsed
                record("train", bpb=bpb, norm=norm, lr_scale=lr_scale(progress, cfg), bytes_per_second=speed, mfu=mfu)
                say(
                    f"step {step} | train {bpb:.4f} bpb | norm {norm:.2f} | {speed:,.0f} bytes/s | mfu {mfu} | {clock(max(0, left))} left",
                    end="   \r" if live and not pause else "\n",
                    flush=True,
                )
                logged = (step, elapsed)
            if pause:
                synchronize()
                elapsed += time.perf_counter() - tick
                save(last)
                if not done and not stopped:
                    result = evaluate(raw_model, val_data, T, cfg.eval_bytes, rank, world)
                    note(say, record, result, raw_model)
                    if result["bpb"] < best_bpb:
                        best_bpb = result["bpb"]
                        save(best)
                    set_status("running")
                logged, tick = (step, elapsed), time.perf_counter()
        if not done:
            set_status("interrupted")
            record("interrupted")
            say(f"stopped by a signal after step {step}; {last} is saved: --resume goes on")
            return 128 + stop[0] if stop else 1
        result = evaluate(raw_model, val_data, T, 0, rank, world)
        note(say, record, result, raw_model)
        if result["bpb"] < best_bpb:
            best_bpb = result["bpb"]
            save(best)
        speed = step * symbols_per_step * train_data.bytes_per_symbol / elapsed
        verdict = {
            "val_bpb": round(result["bpb"], 4), "val_nats": round(result["bpb"] * math.log(2), 4), "params": n_parameters["total"],
            "steps": step, "seconds": round(elapsed, 1), "bytes_per_second": round(speed),
        }  # fmt: skip
        record("end", **verdict)
        set_status("finished", verdict=verdict)
        if main_process:
            draw(log, out / "loss.png")
        say(f"weights, log and loss.png are in {out}; python sample.py --out_dir={out} writes text")
        say(" ".join(f"{k}={v}" for k, v in verdict.items()), flush=True)
        return 0
    except BaseException:
        if run["status"] == "running":
            set_status("failed")
        raise
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)


def note(say, record, result, model):
    """Log and print an evaluation."""
    record("eval", **result)
    pooled = f" | {result['bytes_per_patch']:.2f} bytes/patch, {result['overflow']:.2%} of rows overflow" if model.pooled else ""
    say(f"val {result['bpb']:.4f} bpb on {result['bytes']:,} bytes{pooled}", flush=True)


def commit():
    try:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    try:
        code = main()
    except ValueError as e:
        sys.exit(f"train.py: {e}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.exit(code)
