"""What a byte of training costs at different context lengths: python results/length_cost.py [CONFIG.py] [DATASET]

Steps of 16,384 bytes as train.py does them, 1,024 to 16,384 bytes of context, in turns; the median of the rounds.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from config import Config, parse
from lib.data import Data
from lib.machine import Machine
from lib.optim import make_optimizers, train_step
from model import STLM

LENGTHS, BATCH, ROUNDS = (1024, 2048, 4096, 8192, 16384), 16384, 5
config = sys.argv[1] if len(sys.argv) > 1 else "config/stlm_10m.py"
dataset = sys.argv[2] if len(sys.argv) > 2 else "stdlib"
machine, runs, seconds = Machine(), {}, {T: [] for T in LENGTHS}
for T in LENGTHS:
    argv = [config, f"--block_size={T}", f"--batch_bytes={BATCH}", f"--dataset={dataset}"]
    cfg, _ = parse(Config, argv, "", either=("max_steps", "max_seconds"), default_file=config)
    model = STLM(cfg).to(machine.device).train()
    model.may_drop = cfg.dropout > 0
    model.drop.fill_(cfg.dropout)
    rows = torch.from_numpy(Data(cfg, "train").batch(1, 0, BATCH // T, T)).to(machine.device)
    runs[T] = (
        model,
        make_optimizers(model, cfg, machine.muon_dtype),
        rows,
        machine.rows_per_pass(len(rows), 0, T),
        cfg,
    )
for i in range(ROUNDS + 1):
    for T, (model, optimizers, rows, micro_batch, cfg) in runs.items():
        machine.synchronize()
        start = time.perf_counter()
        train_step(model, optimizers, rows, micro_batch, machine.autocast, cfg.grad_clip)
        machine.synchronize()
        seconds[T] += [time.perf_counter() - start] * (i > 0)  # (the first warms up)
medians = {T: statistics.median(s) for T, s in seconds.items()}
for T in LENGTHS:
    ratio, spread = (
        medians[T] / medians[LENGTHS[0]],
        f"{min(seconds[T]):.2f} to {max(seconds[T]):.2f}",
    )
    print(
        f"{T:>6} bytes: {BATCH / medians[T]:>8,.0f} bytes/s, {ratio:.2f}x per byte ({spread} s, n={ROUNDS})"
    )
about = {
    "config": config,
    "device": machine.name,
    "dtype": machine.dtype_name,
    "threads": torch.get_num_threads(),
}
print(json.dumps(about | {"torch": torch.__version__, "seconds": seconds}))
