"""The machine: on which device and in which dtype this process computes, its place among the others; and what a model
asks of it: parameters and FLOPs."""

import contextlib
import ctypes
import os
import platform

import torch
import torch.distributed as dist

from lib.files import first_line


class Machine:
    """Where this process computes: `device`, `dtype` of matrix products, its `rank` among `world` processes.

    `why` says how they were chosen. Processes that torchrun started (it sets RANK and the like) are connected here.
    """

    def __init__(self, device="auto", dtype="auto", muon_dtype="auto"):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, why_device = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
        self.dtype, why_dtype = pick_dtype(dtype, self.device)
        self.muon_dtype = pick_dtype(muon_dtype, self.device)[0]
        self.dtype_name, self.muon_dtype_name = (
            str(d).removeprefix("torch.") for d in (self.dtype, self.muon_dtype)
        )
        self.why = f"{self.device} ({why_device}), {self.dtype_name} ({why_dtype})"
        self.autocast = torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype != torch.float32
        )
        cuda = self.device.type == "cuda"
        self.name = (
            torch.cuda.get_device_name(self.device)
            if cuda
            else f"{platform.machine()} {self.device.type}"
        )
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        keep_freed_memory()

    def synchronize(self):
        """Wait for what the device still has to do, so that a clock can be read."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def sum(self, numbers):
        """Each of these numbers summed over all processes."""
        if self.world == 1:
            return numbers
        total = torch.tensor(
            numbers, dtype=torch.float64
        )  # on the CPU, through gloo: the GPU need not be waited for
        dist.all_reduce(total)
        return total.tolist()

    def rows_per_pass(self, share, wanted, T):
        """How many of this process's `share` of rows, T symbols each, go through the model at once: `wanted`, or all
        if that is 0; on a CPU a divisor of it and 8,192 symbols at most, which are as fast and take less memory (but
        where the only divisors are much smaller than that, all)."""
        rows = max(1, min(wanted or share, share))
        most = max(1, 8192 // T) if self.device.type == "cpu" else rows
        fits = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= most)
        return fits if 4 * fits > min(most, rows) else rows

    def mfu(self, flops_per_second):
        """Share of the peak of all devices that these FLOP/s are, or None if the peak is unknown."""
        peak = self.peak_flops()
        if peak is None:
            return None
        return flops_per_second / peak / self.world

    def peak_flops(self):
        """Dense FLOP/s by the device's data sheet in bfloat16, or None."""
        if self.dtype != torch.bfloat16:
            return None
        for name, peak in PEAKS.items():
            if name in self.name:
                return peak
        return None


# Dense bfloat16 FLOP/s, as data sheets have them.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}


def pick_device(name="auto", local_rank=0):
    """-> (device, why)."""
    why = "as requested"
    if name == "auto":
        there = {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
            "cpu": True,
        }
        name = next(name for name, is_there in there.items() if is_there)
        why = {
            "cuda": "a CUDA device is there",
            "mps": "an Apple GPU is there",
            "cpu": "no GPU found",
        }[name]
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


PARTS = {
    "embeddings": ("embed.", "match"),
    "n-gram tables": ("grams.", "from_grams."),
    "local encoder": ("encoder.", "pool."),
    "trunk": ("blocks.",),
    "local decoder": ("unpool.", "gate.", "decoder."),
}


def parameter_table(model):
    """Parameters by part; every tensor is counted once. {'embeddings': n, ..., 'total': n}"""
    table = dict.fromkeys(PARTS, 0)
    for name, p in model.named_parameters():
        part = next((part for part, names in PARTS.items() if name.startswith(names)), "other")
        table[part] = table.get(part, 0) + p.numel()
    table["total"] = sum(table.values())
    return table


def flops_per_symbol(model):
    """FLOPs of training on one byte (gpt2: token).

    6 for each weight where it is used (2 forward, 4 backward), and the products of the attention.
    """
    cfg = model.cfg
    table = parameter_table(model)

    # the trunk, per patch; a feed-forward that blocks share counts in each of them
    weights = sum(p.numel() for block in model.blocks for p in block.parameters())
    # scores and sums cost 12 C P in training, halved by causality: 6 C P
    attention = cfg.n_layer * cfg.n_embd * cfg.n_patches
    per_patch = cfg.n_loop * (weights + attention)

    # the rest, per byte
    per_byte = table["embeddings"] + table["local encoder"] + table["local decoder"]
    if cfg.n_grams > 0:
        per_byte += model.from_grams.weight.numel()

    if not model.pooled:
        return 6 * (per_byte + per_patch)
    to_and_from = model.pool.weight.numel() + model.unpool.weight.numel()
    patches_per_byte = cfg.n_patches / cfg.block_size
    return 6 * (per_byte - to_and_from + patches_per_byte * (per_patch + to_and_from))
