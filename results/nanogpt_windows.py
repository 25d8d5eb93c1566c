"""Score a model that nanoGPT trained on Tiny Shakespeare on all of val.

    python results/nanogpt_windows.py PATH/TO/nanoGPT [--out_dir=out-shakespeare-char]

nanoGPT's own figure is an estimate over random windows. This one scores each symbol once: in
consecutive windows of block_size, as our val loss, and in windows that slide by a sixteenth of
block_size, where nearly every symbol has a full context. Compare the second with our loss in one
pass. The result is in nats per symbol.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

SYMBOLS_AT_ONCE = 16384


@torch.no_grad()
def nats_per_symbol(model, symbols, stride):
    """Mean loss on symbols[1:], each predicted in a window that begins at a multiple of `stride`.

    Of each window only the symbols count that no earlier window held.
    """
    T = model.config.block_size
    starts = list(range(0, len(symbols) - 1, stride))
    rows_at_once = max(1, SYMBOLS_AT_ONCE // T)
    nats = torch.zeros(len(symbols) - 1)
    scored = torch.zeros(len(symbols) - 1, dtype=torch.bool)
    for i in tqdm(range(0, len(starts), rows_at_once), file=sys.stderr):
        # windows at the end of the text reach back, so that all have T symbols
        first = [min(start, len(symbols) - 1 - T) for start in starts[i : i + rows_at_once]]
        rows = torch.stack([symbols[start : start + T + 1] for start in first])
        # with targets, nanoGPT's model returns the logits of all positions
        logits, _ = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        for start, row in zip(first, losses.view(-1, T), strict=True):
            new = ~scored[start : start + T]
            nats[start : start + T][new] = row[new]
            scored[start : start + T] = True
    assert scored.all(), "each symbol counts once"
    return nats.double().mean().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("--out_dir", default="out-shakespeare-char")
    args = parser.parse_args()
    sys.path.insert(0, str(args.nanogpt))
    from model import GPT, GPTConfig

    checkpoint = torch.load(args.nanogpt / args.out_dir / "ckpt.pt", map_location="cpu")
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    data = np.fromfile(args.nanogpt / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16)
    symbols = torch.from_numpy(data.astype(np.int64))

    T = model.config.block_size
    print(f"windows of {T}: {nats_per_symbol(model, symbols, T):.4f} nats")
    stride = max(1, T // 16)
    print(f"sliding by {stride}: {nats_per_symbol(model, symbols, stride):.4f} nats")


if __name__ == "__main__":
    main()
