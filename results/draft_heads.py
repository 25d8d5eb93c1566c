"""Would small heads that draft several bytes make generation faster? An estimate, before anything of it is built.

    python results/draft_heads.py out/RUN [STEPS]        # about 5 minutes on a CPU core

Heads are trained on a finished model, whose weights stay as they are: head j reads the last hidden vector and the bytes
drafted since, and predicts byte j + 1 through the model's own embedding. Then the model writes at temperature 0.8, and
for each place the chance that the first j drafts would have been accepted is exact: the product of min(1, q / p) over
the bytes that were written (speculative sampling, arXiv 2211.17192). The price is measured: reading k symbols at once
against reading one, and the heads. A state of the model cannot be cut back to the last accepted byte, so either that is
free (`at_most`), or what was accepted after the newest good state is read again with the next drafts (`as_built`).
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config, build
from lib.data import Data
from lib.files import known_values, load_run
from model import norm

DRAFTS, MOST, TEMPERATURE, ROWS, LENGTH = 5, 12, 0.8, 16, 512


class Heads(nn.Module):
    """z (..., E) and the byte that was drafted -> the next z; logits are the model's head of it."""

    def __init__(self, E):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(2 * E, 4 * E, bias=False) for _ in range(DRAFTS))
        self.out = nn.ModuleList(nn.Linear(4 * E, E, bias=False) for _ in range(DRAFTS))

    def step(self, j, z, embedded):
        return norm(z + self.out[j](F.relu(self.up[j](torch.cat((z, embedded), dim=-1))).square()))


def log_q(heads, model, z, text):
    """z (B, T, E) before each byte of text (B, T): the drafts' log-probabilities (DRAFTS, B, T - DRAFTS, V), whose
    entry j belongs to byte j + 1 after each place."""
    T, out = text.size(1) - DRAFTS, []
    z = z[:, :T]
    for j in range(DRAFTS):
        z = heads.step(j, z, norm(model.embed(text[:, j : j + T])))
        out.append(model.head(z))
    return torch.stack(out)


def seconds(call, n=30):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[n // 2]


def cost_of_reading(model, row, states, k):
    times = [
        seconds(lambda t=t, state=state: model.head(model.read(row[:, t : t + k], state)[0]))
        for t, state in states
    ]
    return sum(times) / len(times)


def as_built(chance, cost, drafting, k):
    """Play it through on what was written: bytes made, and seconds. `waiting` bytes are good but in no state yet."""
    made, spent, generator = 0, 0.0, torch.Generator().manual_seed(1)
    for row in range(ROWS):
        t, waiting = 0, 1
        while t < chance.size(2):
            drafts = k if waiting + k <= MOST else 0  # else the state catches up
            lucky = torch.rand(k, generator=generator) < chance[:k, row, t]
            accepted = int(lucky[:drafts].long().cumprod(dim=0).sum())
            spent += cost[waiting + drafts] + drafts * drafting
            waiting = 1 if accepted == drafts else waiting + accepted + 1
            made, t = made + accepted + 1, t + accepted + 1
    return made, spent


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 600
    model, checkpoint, path = load_run(folder, "best")
    cfg = build(Config, known_values(checkpoint["config"], Config, path))
    train, val = Data(cfg, "train"), Data(cfg, "val")
    heads = Heads(model.embed.weight.size(1))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.002, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        batch = torch.from_numpy(train.batch(1, step, 8, 1024))
        idx, targets = batch[:, :-1], batch[:, 1:]
        with torch.no_grad():
            z = model.read(idx, model.start(len(idx)))[0]
        wanted = torch.stack(
            [targets[:, j + 1 : targets.size(1) - DRAFTS + j + 1] for j in range(DRAFTS)]
        )
        loss = F.cross_entropy(log_q(heads, model, z, targets).flatten(0, 2), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    # what it writes, and how likely each of its bytes was to the model and to the heads
    prompts = torch.from_numpy(val.batch(2, 0, ROWS, LENGTH)[:, :LENGTH])
    written = model.generate([row.tolist() for row in prompts], LENGTH, TEMPERATURE, stop=False)
    written = torch.cat((prompts, torch.tensor(list(written)).T), dim=1)
    with torch.no_grad():
        z = model.read(written[:, :-1], model.start(ROWS))[0][:, LENGTH - 1 :]
        text = written[:, LENGTH:]
        log_p = (model.head(z) / TEMPERATURE).log_softmax(dim=-1).gather(2, text[..., None])[..., 0]
        q = (log_q(heads, model, z, text) / TEMPERATURE).log_softmax(dim=-1)
    T = text.size(1) - DRAFTS
    chance = torch.stack(
        [
            (q[j].gather(2, text[:, j + 1 : j + 1 + T, None])[..., 0] - log_p[:, j + 1 : j + 1 + T])
            .exp()
            .clamp(max=1)
            for j in range(DRAFTS)
        ]
    )  # (DRAFTS, ROWS, T) that draft j + 1 is accepted if those before it were

    # what reading costs, from states along a text, so that patches end as often as they do
    row, places = written[:1], range(LENGTH, 2 * LENGTH - MOST, 16)
    states = [(t, model.read(row[:, :t], model.start(1), last=True)[1]) for t in places]
    with torch.inference_mode():
        cost = [0.0] + [cost_of_reading(model, row, states, k) for k in range(1, MOST + 1)]
        zs, e = z[:1, :1], norm(model.embed(text[:1, :1]))
        drafting = seconds(lambda: model.head(heads.step(0, zs, e)).softmax(dim=-1).max(), 200)
    print(
        f"{path}: loss of the heads {loss.item():.3f} nats; a draft takes {drafting / cost[1]:.2f} of a byte's time"
    )
    for k in range(1, DRAFTS + 1):
        made = 1 + chance[:k].cumprod(dim=0).mean(dim=(1, 2)).sum().item()
        price = cost[1 + k] + k * drafting
        n, spent = as_built(chance, cost, drafting, k)
        print(
            f"drafts={k} bytes_per_read={made:.2f} read_costs={cost[1 + k] / cost[1]:.2f} "
            f"at_most={made * cost[1] / price:.2f} as_built={n * cost[1] / spent:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
