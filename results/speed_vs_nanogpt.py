"""Compare the training speed of this project with nanoGPT's on this machine.

Both get equal parameters, context and batch.

    python results/speed_vs_nanogpt.py PATH/TO/nanoGPT [--rounds=5] [--fast] [--sizes=0.8M,10M]

Each arm is a process of its own. After a warm-up it trains for a few steps: forward, backward,
clipping and optimizer. The arms take turns, and a ratio compares two arms of one round. By default,
all arms run in float32 without a compiler; with --fast, they use bfloat16 autocast and
torch.compile. Context and batch come from nanoGPT's Shakespeare recipe. Both read bytes, so nanoGPT
gets vocab_size 256. The script prints a line of JSON per arm.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
T = 256
SIZES = {
    "0.8M": {
        "batch": 64,
        "steps": 5,
        "nanogpt": {"n_layer": 4, "n_head": 4, "n_embd": 128},
        "none": {"n_layer": 4, "n_head": 4, "n_embd": 128},
        "space": {"n_layer": 4, "n_head": 4, "n_embd": 112, "n_local_embd": 92, "max_patches": 60},
    },
    "10M": {
        "batch": 64,
        "steps": 2,
        "nanogpt": {"n_layer": 6, "n_head": 6, "n_embd": 384},
        "none": {"n_layer": 6, "n_head": 6, "n_embd": 384},
        "space": {"n_layer": 6, "n_head": 6, "n_embd": 372, "n_local_embd": 176, "max_patches": 60},
    },
}


def worker(arm, size, path, fast):
    """Train one arm for a few steps; print its bytes/s and parameters."""
    spec = SIZES[size]
    batch = spec["batch"]
    steps = spec["steps"]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=fast)
    text = torch.frombuffer(
        bytearray((ROOT / "model.py").read_bytes() * 20), dtype=torch.uint8
    ).long()
    starts = torch.randint(
        len(text) - T - 1, (100, batch), generator=torch.Generator().manual_seed(0)
    )
    torch.manual_seed(0)
    if arm == "nanogpt":
        sys.path.insert(0, path)
        sys.modules.pop("model", None)
        from model import GPT, GPTConfig

        model = GPT(GPTConfig(block_size=T, vocab_size=256, dropout=0.0, bias=False, **spec[arm]))
        optimizers = [model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")]
        forward = torch.compile(model) if fast else model

        def loss_of(x, y):
            return forward(x, y)[1]

    else:
        from config import Config
        from lib.machine import keep_freed_memory, pick_dtype
        from lib.optim import make_optimizers
        from model import STLM

        cfg = Config(pooling=arm, block_size=T, max_steps=1, **spec[arm])
        model = STLM(cfg)
        muon_dtype, _ = pick_dtype("auto", torch.device("cpu"))
        optimizers = make_optimizers(model, cfg, muon_dtype)
        keep_freed_memory()
        loss_of = torch.compile(model) if fast else model
    for step in range(2 + steps):
        if step == 2:
            start = time.perf_counter()
        rows = torch.stack([text[s : s + T + 1] for s in starts[step].tolist()])
        with autocast:
            loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    print(json.dumps([batch * T * steps / seconds, sum(p.numel() for p in model.parameters())]))


def main():
    options = dict(a[2:].partition("=")[::2] for a in sys.argv[1:] if a.startswith("--"))
    words = [a for a in sys.argv[1:] if not a.startswith("--")]
    fast = "fast" in options
    if "worker" in options:
        return worker(*options["worker"].split(","), words[0], fast)
    if not words or not (Path(words[0]) / "model.py").exists():
        sys.exit(__doc__)
    kind = "bfloat16 + compile" if fast else "float32"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {kind}")
    for size in options.get("sizes", "0.8M,10M").split(","):
        speeds = {}
        arms = ("nanogpt", "none", "space")
        for _ in range(int(options.get("rounds", 5))):
            for arm in arms:
                command = [sys.executable, __file__, words[0], f"--worker={arm},{size}"]
                if fast:
                    command.append("--fast")
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                speed, parameters = json.loads(done.stdout.splitlines()[-1])
                speeds.setdefault(arm, []).append(speed)
                speeds[f"{arm} parameters"] = parameters
        for arm in arms:
            ratios = [a / b for a, b in zip(speeds[arm], speeds["nanogpt"], strict=True)]
            line = {
                "size": size,
                "arm": arm,
                "parameters": speeds[f"{arm} parameters"],
                "T": T,
                "batch": SIZES[size]["batch"],
            }
            line |= {"dtype": "bfloat16+compile" if fast else "float32", "rounds": len(ratios)}
            line |= {"bytes_per_second_median": round(statistics.median(speeds[arm]))}
            line |= {
                f"ratio_{f.__name__}": round(f(ratios), 2) for f in (min, statistics.median, max)
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
