"""The machine and the files: device, dtype, compiler, memory; atomic writes, checkpoints, finding a trained model."""

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
import torch.distributed as dist

from config import ROOT
from model import STLM, ModelConfig

# --- machine ---------------------------------------------------------------------------------------------------------


class Machine:
    """Where this process computes: `device`, `dtype` of matrix products, its `rank` among `world` processes.

    `why` says how they were chosen. Processes that torchrun started (it sets RANK and the like) are connected here.
    """

    def __init__(self, device="auto", dtype="auto", muon_dtype="auto"):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, why_device = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
        self.dtype, why_dtype = pick_dtype(dtype, self.device)
        self.muon_dtype = pick_dtype(muon_dtype, self.device)[0]
        self.dtype_name, self.muon_dtype_name = (str(d).removeprefix("torch.") for d in (self.dtype, self.muon_dtype))
        self.why = f"{self.device} ({why_device}), {self.dtype_name} ({why_dtype})"
        self.autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name(self.device) if cuda else f"{platform.machine()} {self.device.type}"
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        keep_freed_memory()

    def synchronize(self):
        """Wait for what the device still has to do, so that a clock can be read."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def sum(self, numbers):
        """Each of these numbers summed over all processes."""
        if self.world == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def peak_flops(self):
        """Dense FLOP/s by the device's data sheet in bfloat16, or None."""
        peaks = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}
        peak = next((peak for name, peak in peaks.items() if name in self.name), None)
        return peak if self.dtype == torch.bfloat16 else None


def pick_device(name="auto", local_rank=0):
    """-> (device, why)."""
    why = "as requested"
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name, is_there in there.items() if is_there)
        why = {"cuda": "a CUDA device is there", "mps": "an Apple GPU is there", "cpu": "no GPU found"}[name]
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device={name!r} cannot be used: {first_line(e)}") from None
    return device, why


def pick_dtype(name, device):
    """-> (dtype of matrix products, why). It follows from what the hardware says it has, never from a timing: the same
    command must train the same model, however busy the machine is."""
    if name != "auto":
        return getattr(torch, name), "as requested"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "native"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "the CPU has AMX"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "the CPU has AVX512-BF16"
    return torch.float32, "no native bfloat16"


def keep_freed_memory():
    """Ask glibc to keep freed memory and not hand it back: fresh pages cost an eager CPU step up to half its time."""
    with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD: up to 1 GiB comes from the heap
            libc.mallopt(-3, 32 << 20)  # (as much as an older glibc allows)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not trimmed


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


def write_json(path, value):
    write_atomically(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def load_checkpoint(path, device="cpu"):
    """The checkpoint's dict, as Run.save in train.py makes it."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} is not a readable checkpoint: {first_line(e)}") from None


def known_values(config, cls, path):
    """Of a checkpoint's config (a dict) the knobs of `cls`. ValueError where it needs one that is gone."""
    known = {f.name for f in dataclasses.fields(cls)}
    if config.get("n_words"):
        raise ValueError(
            f"{path} has n_words={config['n_words']}, which is gone: `git checkout e465f86` still reads it"
        )
    return {k: v for k, v in config.items() if k in known}


def load_model(path, device="cpu"):
    """The model of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = load_checkpoint(path, device)
    model = STLM(ModelConfig(**known_values(checkpoint["config"], ModelConfig, path)))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), checkpoint


def newest_run():
    """The folder under out/ whose last.pt is the newest."""
    runs = sorted(Path("out").glob("*/last.pt"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise ValueError("no run under out/ yet: python train.py makes one")
    return runs[-1].parent


def commit():
    """The short hash of the code's commit, or 'unknown'."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def first_line(e):
    """The innermost cause of an exception in one line."""
    while e.__cause__ or (e.__context__ and not e.__suppress_context__):
        e = e.__cause__ or e.__context__
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def duration(seconds):
    """Seconds as 1:02:03, or as days."""
    if seconds >= 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
