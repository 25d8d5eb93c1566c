"""The machine: device, dtype and processes. And the cost of a model: parameters and FLOPs."""

import contextlib
import ctypes
import os
import platform

import torch
import torch.distributed as dist

from lib.files import first_line


class Machine:
    """Where this process computes: its `device`, the `dtype` of matrix products, and its `rank`.

    There are `world` processes. If torchrun started them (it sets RANK and the like), this connects
    them. `why` says how device and dtype were chosen.
    """

    def __init__(self, device="auto", dtype="auto", muon_dtype="auto"):
        self.world = number_from("WORLD_SIZE", 1, lowest=1)
        self.rank = number_from("RANK", 0)
        if self.rank >= self.world:
            raise ValueError(
                f"RANK={self.rank} must be below WORLD_SIZE={self.world}: start processes with "
                "torchrun, which sets both"
            )
        self.device, why_device = pick_device(device, number_from("LOCAL_RANK", 0))
        self.dtype, why_dtype = pick_dtype(dtype, self.device)
        self.muon_dtype, _ = pick_dtype(muon_dtype, self.device)
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        self.muon_dtype_name = str(self.muon_dtype).removeprefix("torch.")
        self.why = f"{self.device} ({why_device}), {self.dtype_name} ({why_dtype})"

        is_mixed = self.dtype != torch.float32
        self.autocast = torch.autocast(self.device.type, self.dtype, enabled=is_mixed)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self.name = torch.cuda.get_device_name(self.device)
            backend = "cpu:gloo,cuda:nccl"
        else:
            self.name = f"{platform.machine()} {self.device.type}"
            backend = "gloo"
        if self.world > 1 and not dist.is_initialized():
            connect(backend, self.world)
        keep_freed_memory()

    def synchronize(self):
        """Wait until the device has finished, so that a clock can be read."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def sum(self, numbers):
        """Each of these numbers, summed over all processes."""
        if self.world == 1:
            return numbers
        # On the CPU, through gloo, so that nobody waits for the GPU.
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def check_agreement(self, facts):
        """ValueError, in all processes, unless all have the same `facts`, {name: text or number}.

        Processes that differ would train on, and nobody would notice.
        """
        everybody = [None] * self.world
        dist.all_gather_object(everybody, facts)
        first = everybody[0]
        for rank, theirs in enumerate(everybody):
            for name in first | theirs:
                if first.get(name) != theirs.get(name):
                    raise ValueError(
                        f"processes disagree about {name}: process 0 has {first.get(name)!r:.80}, "
                        f"process {rank} has {theirs.get(name)!r:.80}; start all of them with the "
                        "same command, code and data"
                    )

    def rows_per_pass(self, share, wanted, T):
        """How many of this process's `share` of rows, T symbols each, go through the model at once.

        `wanted` of them; 0 means all. On a CPU at most 8,192 symbols: that is as fast and takes
        less memory.
        """
        most = min(wanted, share) if wanted else share
        if self.device.type == "cpu":
            most = min(most, 8192 // T)
        most = max(1, most)
        # Prefer passes of one size, a divisor of `share` above half of `most`: one size compiles
        # once.
        for rows in range(most, most // 2, -1):
            if share % rows == 0:
                return rows
        return most

    def mfu(self, flops_per_second):
        """These FLOP/s as a share of the peak of all devices; None if no peak is known."""
        # The peaks are those of bfloat16.
        if self.dtype != torch.bfloat16 or self.name not in PEAKS:
            return None
        return flops_per_second / PEAKS[self.name] / self.world


def number_from(variable, default, lowest=0):
    """A whole number from an environment variable. ValueError if it is none."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < lowest:
        raise ValueError(
            f"{variable}={text!r} must be a number of at least {lowest}: torchrun sets it, "
            f"or unset {variable}"
        )
    return int(text)


def connect(backend, world):
    """Connect the processes that torchrun has started."""
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as e:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(
            f"cannot connect {world} processes through {address} ({first_line(e)[:200]}); start "
            "them with torchrun, and if the port is in use, with another --master_port"
        ) from None


# Dense bfloat16 FLOP/s from the makers' data sheets, by the name that torch gives the device.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def pick_device(name="auto", local_rank=0):
    """-> (device, why)."""
    why = "as requested"
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
            why = "a CUDA device is available"
        elif torch.backends.mps.is_available():
            name = "mps"
            why = "an Apple GPU is available"
        else:
            name = "cpu"
            why = "no GPU found"
    if name.partition(":")[0] not in ("cuda", "mps", "cpu"):
        raise ValueError(f"device={name!r} must be auto, cuda, cuda:N, mps or cpu")
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device={name!r} cannot be used: {first_line(e):.200}") from None
    # Weights saved on "cpu:0" could not be loaded again.
    if device.type == "cpu":
        device = torch.device("cpu")
    return device, why


def pick_dtype(name, device):
    """-> (dtype of matrix products, why).

    The hardware's features decide, never a timing: the same command must train the same model,
    however busy the machine is.
    """
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
    """Ask glibc to keep freed memory instead of returning it to the system.

    Fetching fresh pages can take half the time of an eager step on a CPU.
    """
    m_mmap_threshold = -3
    m_trim_threshold = -1
    # systems without glibc raise
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # Blocks of up to 1 GiB come from the heap; an older glibc accepts at most 32 MiB.
        if not libc.mallopt(m_mmap_threshold, 1 << 30):
            libc.mallopt(m_mmap_threshold, 32 << 20)
        # The heap is never trimmed.
        libc.mallopt(m_trim_threshold, 2**31 - 1)


PARTS = {
    "embeddings": ("embed.", "match", "copy."),
    "n-gram tables": ("grams.", "from_grams."),
    "local encoder": ("encoder.", "pool."),
    "trunk": ("blocks.",),
    "local decoder": ("unpool.", "gate.", "decoder."),
}


def parameter_table(model):
    """Parameters by part: {'embeddings': n, ..., 'total': n}. A tied tensor is counted once."""
    table = dict.fromkeys(PARTS, 0)
    for name, p in model.named_parameters():
        for part, names in PARTS.items():
            if name.startswith(names):
                table[part] += p.numel()
    n_parameters = sum(p.numel() for p in model.parameters())
    # layers that somebody has added
    n_other = n_parameters - sum(table.values())
    if n_other:
        table["other"] = n_other
    table["total"] = n_parameters
    return table


def flops_per_symbol(model):
    """FLOPs of training on one byte (gpt2: token), if all slots for patches are filled.

    6 for each use of a weight (2 forward, 4 backward), plus the products of the attention.
    """
    cfg = model.cfg
    table = parameter_table(model)

    # the trunk, per patch; a shared feed-forward counts in every block
    weights = sum(p.numel() for block in model.blocks for p in block.parameters())
    # scores and sums: 12 C P in training, halved by causality. The factor 6 comes below.
    attention = cfg.n_layer * cfg.n_embd * cfg.n_patches
    per_patch = cfg.n_loop * (weights + attention)
    patches_per_byte = cfg.n_patches / cfg.block_size

    # the rest, per byte
    per_byte = table["embeddings"] + table["local encoder"] + table["local decoder"]
    if cfg.n_grams > 0:
        per_byte += model.from_grams.weight.numel()
    if model.pooled:
        # the table counts these as local, but they run per patch
        to_and_from = model.pool.weight.numel() + model.unpool.weight.numel()
        per_byte -= to_and_from
        per_patch += to_and_from
    return 6 * (per_byte + patches_per_byte * per_patch)
