"""Can a small classifier tell a model's text from real text? Its accuracy on held-out text; 50% means that it cannot.

    python results/tell_apart.py out/RUN...        # of the newest weights; about 2 minutes each on a CPU core

The model continues PREFIX bytes of real text to a row of LENGTH bytes; a fresh byte model of about 60,000 parameters
with one output, which reads the whole row, learns on rows of train and is judged on rows of val. A row and its real
counterpart share their beginning, and fall on the same side of the split.
"""

import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config, build
from lib.data import Data
from lib.files import known_values, load_run
from lib.games import uniform
from model import STLM, ModelConfig
from selfplay import write_on

PREFIX, LENGTH, TRAIN_ROWS, VAL_ROWS, STEPS, BATCH = 64, 256, 3072, 384, 500, 64
SHAPE = {
    "block_size": LENGTH,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "n_local_embd": 48,
    "n_grams": 2,
}
SHAPE |= {"gram_rows": 800, "gram_width": 16}


class Classifier(nn.Module):
    """How likely a row (B, T) is real: a logit for each, (B,), from the mean of all outputs of a byte model."""

    def __init__(self):
        super().__init__()
        self.body = STLM(ModelConfig(**SHAPE))
        self.out = nn.Linear(self.body.cfg.n_local_embd, 1)

    def forward(self, text):
        return self.out(self.body.hidden(text).mean(dim=1))[:, 0]


def pairs(model, data, n, seed):
    """Real rows (n, LENGTH) and the model's continuations of their beginnings (n, LENGTH)."""
    real = torch.from_numpy(data.batch(seed, 0, n, LENGTH)[:, :LENGTH])
    u = uniform(seed, n, LENGTH - PREFIX, "cpu")
    own = [
        write_on(model, a[:, :PREFIX], b)
        for a, b in zip(real.split(256), u.split(256), strict=True)
    ]
    return real, torch.cat(own)


def main():
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        model, checkpoint, path = load_run(folder, "last")
        cfg = build(Config, known_values(checkpoint["config"], Config, path))
        val = Data(cfg, "val")
        n_val = min(VAL_ROWS, len(val.symbols) // LENGTH)
        real, own = pairs(model, Data(cfg, "train"), TRAIN_ROWS, seed=1)
        torch.manual_seed(1)
        classifier, order = Classifier(), torch.Generator().manual_seed(1)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.003, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        is_real = torch.cat((torch.ones(BATCH // 2), torch.zeros(BATCH // 2)))
        for _ in range(STEPS):
            rows = torch.randint(TRAIN_ROWS, (BATCH // 2,), generator=order)
            loss = F.binary_cross_entropy_with_logits(
                classifier(torch.cat((real[rows], own[rows]))), is_real
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        real, own = pairs(model, val, n_val, seed=2)
        with torch.no_grad():
            right = torch.cat([classifier(real) > 0, classifier(own) <= 0]).double().mean().item()
        print(
            f"{folder} told_apart={right:.4f} rows={2 * n_val} last_loss={loss.item():.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
