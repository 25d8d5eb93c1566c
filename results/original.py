"""The original SuperTinyLanguageModels on our text: its model, optimizer and schedule, scored in bits per byte.

    python results/original.py PATH/TO/SuperTinyLanguageModels TRAIN.parquet VAL.parquet byte_level|baseline SECONDS

In an environment of its own (its requirements, torch, pyarrow). As configured a step has 245,000 tokens and the rate
rises for 5,000 steps, which a CPU does not reach in hours; here a step has one row of its context, and the rate rises
for a twentieth of the steps that fit into SECONDS. Scored on the first 200 kB of val, in its own windows. byte_level
predicts the 12 bytes of the next GPT-2 token at once, padded (id 256, which its loss does not leave out; what is longer
is cut): bits are given with and without those of the padding. (The logs in results/original/ are
from an earlier form of this script, which did the same.)
"""

import json
import math
import os
import random
import sys
import time

os.environ["WANDB_MODE"] = "disabled"
path, train_file, val_file, name, seconds = sys.argv[1:6]
path, files, seconds = (
    os.path.abspath(path),
    [os.path.abspath(f) for f in (train_file, val_file)],
    float(seconds),
)
sys.path.insert(0, path)
os.chdir(path)

import hydra  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from models.build_models import build_model  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from trainers.build_trainers import build_dropout_scheduler, build_optimizer  # noqa: E402
from trainers.loss_fn import cross_entropy_loss_fn, masked_cross_entropy_loss_fn  # noqa: E402
from trainers.scheduler import CosineLRScheduler  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
hydra.utils.to_absolute_path = lambda p: os.path.join(path, p)
torch.manual_seed(1), random.seed(1), np.random.seed(1)
cfg = OmegaConf.load(f"configs/full_configs/{name}.yaml")
model, by_bytes = build_model(model_cfg=cfg["model"]).train(), name == "byte_level"
embedder, T, bytes_of = model.embedding_model, cfg["model"]["context_window"], {}


def symbols(texts, most_bytes):
    """Its ids for the first `most_bytes` of the texts, as its own tokenize_input makes them but fast; and the bytes."""
    ids, size = [], 0
    for text in texts:
        text = text[: most_bytes - size]
        if by_bytes:
            for token in [
                *embedder.pooling_tokenizer.encode(text),
                embedder.pooling_tokenizer.eot_token,
            ]:
                if token not in bytes_of:
                    found = embedder.byte_tokenizer.encode(
                        embedder.pooling_tokenizer.decode([token])
                    )[:12]
                    bytes_of[token] = found + [embedder.byte_tokenizer.pad_token] * (
                        12 - len(found)
                    )
                ids.append(bytes_of[token])
        else:
            ids += embedder.tokenize_input(text)
        size += len(text.encode())
        if size >= most_bytes:
            break
    return torch.tensor(ids), size


train_texts, val_texts = (pq.read_table(f)["text"].to_pylist() for f in files)
random.shuffle(train_texts)
(data, n_bytes), (val, val_bytes) = symbols(train_texts, 30_000_000), symbols(val_texts, 200_000)
optimizer = build_optimizer(model=model, optimizer_config=cfg.trainer["optimizer"])
dropout, rates = build_dropout_scheduler(trainer_cfg=cfg.trainer), cfg.trainer.optimizer
loss_fn = masked_cross_entropy_loss_fn if by_bytes else cross_entropy_loss_fn


def step(scheduler, i):
    scheduler.step(optimizer, i)
    dropout.step(model, i)
    at = random.randint(0, len(data) - T - 2)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, aux = model(data[None, at : at + T])
        loss = loss_fn(out, data[None, at + 1 : at + 1 + T])
    (loss if aux is None else loss + aux).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def score():
    model.eval()
    bits = text_bits = 0.0
    for i in range(0, len(val) - 1, T):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            target = val[i + 1 : i + 1 + T]
            logp = model(val[None, i : i + len(target)])[0].float().log_softmax(-1)
        nats = -logp.gather(-1, target[None, ..., None])[0, ..., 0]
        bits += nats.sum().item() / math.log(2)
        text_bits += (
            nats[target != embedder.byte_tokenizer.pad_token].sum().item() / math.log(2)
            if by_bytes
            else 0
        )
    return {"bpb": bits / val_bytes} | (
        {"bpb_without_padding": text_bits / val_bytes} if by_bytes else {}
    )


warm_up = CosineLRScheduler(5000, 30000, rates.lr, rates.min_lr)
step(warm_up, 1)
start = time.time()
step(warm_up, 2), step(warm_up, 3)
n_steps = max(1, int(seconds / ((time.time() - start) / 2)))
scheduler = CosineLRScheduler(max(1, n_steps // 20), n_steps, rates.lr, rates.min_lr)
start, losses = time.time(), []
while time.time() - start < seconds:
    losses.append(step(scheduler, min(len(losses), n_steps)))
    if len(losses) % 20 == 0:
        print(
            f"step {len(losses)} of about {n_steps}: {np.mean(losses[-20:]):.4f} nats, {time.time() - start:.0f} s"
        )
found = {"config": name, "params": sum(p.numel() for p in model.parameters()), "steps": len(losses)}
found |= {
    "seconds": round(time.time() - start),
    "bytes_read": round(len(losses) * T * n_bytes / len(data)),
}
print(json.dumps(found | {"train_loss": float(np.mean(losses[-20:]))} | score()))
