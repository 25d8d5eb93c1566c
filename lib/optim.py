"""How weights change: Muon for the matrices, AdamW for the rest, their schedules, and one training step."""

import math
import sys

import torch
from torch.nn.parallel import DistributedDataParallel


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

    Matrices of one shape go through the Newton-Schulz iteration as one batch, in `dtype`: bfloat16 where that is fast,
    whatever the model's dtype, because for tiny models the iteration would otherwise cost as much as the model.
    """

    def __init__(self, params, lr, momentum, weight_decay, dtype):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        self.dtype, defaults = dtype, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": same_shape} for same_shape in by_shape.values()], defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [
                p for p in group["params"] if p.grad is not None
            ]  # what is frozen stays as it is
            if not params:
                continue
            grad = torch.stack([p.grad for p in params])  # (n, rows, columns)
            state = self.state[
                group["params"][0]
            ]  # the group's momentum is one tensor, kept under its first matrix
            if not state or state["momentum"].shape != grad.shape:
                state["momentum"] = torch.zeros_like(grad)
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            update = orthogonal(grad.lerp_(state["momentum"], group["momentum"]).to(self.dtype)).to(
                grad.dtype
            )
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
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def make_optimizers(model, cfg, muon_dtype):
    """Muon for the matrices of the layers; AdamW for the embedding, the n-gram table, the matches and Canon layers."""
    matrices = {id(m.weight): m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)}
    others = [p for p in model.parameters() if id(p) not in matrices]
    assert len(matrices) + len(others) == len(list(model.parameters())), (
        "the optimizers do not hold the whole model"
    )
    adam = torch.optim.AdamW(
        others, lr=cfg.adam_lr, betas=(cfg.beta1, cfg.beta2), weight_decay=0.0, fused=True
    )
    optimizers = [
        Muon(matrices.values(), cfg.muon_lr, cfg.momentum, cfg.weight_decay, muon_dtype),
        adam,
    ]
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def load_optimizers(optimizers, states):
    """What a checkpoint remembers; the learning rates stay as they were asked for."""
    for optimizer, state in zip(optimizers, states, strict=True):
        rates = [group["peak_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["peak_lr"] = rate


def lr_scale(progress, cfg, start=0.0):
    """Rise, hold, fall to zero. progress is the share of the run that is done, 0 to 1; the rise begins at `start`."""
    rise = (progress - start + 1e-3) / max(cfg.warmup, 1e-3)  # (the first step is not at zero)
    return max(0.0, min(1.0, rise, (1 - progress) / max(cfg.decay, 1e-9)))


def dropout_at(progress, cfg):
    shape = {"constant": 1.0, "linear": progress, "triangle": 1 - abs(2 * progress - 1)}
    return cfg.dropout * shape[cfg.dropout_schedule]


def set_schedules(model, optimizers, cfg, progress, start=0.0):
    """Learning rates and dropout for the next step. Returns the share of the peak learning rates."""
    scale = lr_scale(progress, cfg, start)
    for group in (g for o in optimizers for g in o.param_groups):
        group["lr"] = group["peak_lr"] * scale
    model.drop.fill_(dropout_at(progress, cfg))
    return scale


def prepare_for_training(model, machine, compile, rows, T):
    """-> (the model, compiled if that is wanted and works, wrapped if there are several processes; is it compiled?)"""
    trained, compiled = model, False
    if compile == "on" or (compile == "auto" and machine.device.type == "cuda"):
        try:  # a forward and backward pass proves it
            idx, trained = (
                torch.zeros(rows, T, dtype=torch.long, device=machine.device),
                torch.compile(model),
            )
            with machine.autocast:
                loss = trained(idx, torch.zeros_like(idx), torch.zeros((), device=machine.device))
            loss.sum().backward()
            compiled = True
        except Exception as e:
            reason = (str(e).splitlines() or [""])[0]
            print(
                f"torch.compile fails here ({type(e).__name__}: {reason}): going on without it",
                file=sys.stderr,
            )
            trained = model
        model.zero_grad(set_to_none=True)
    if machine.world > 1:
        devices = [machine.device.index] if machine.device.type == "cuda" else None
        trained = DistributedDataParallel(trained, device_ids=devices)
    return trained, compiled


def train_step(model, optimizers, batch, micro_batch, autocast, grad_clip, progress=0.0):
    """One optimizer step on this process's rows, batch (rows, T + 1), `micro_batch` rows at a time.

    Returns these rows' mean loss in nats (and what the objective watches) and the gradient's norm, on the device.
    """
    parts, loss = batch.split(micro_batch), 0
    progress = torch.full(
        (), progress, device=batch.device
    )  # a tensor: a number would compile anew at every step
    for i, part in enumerate(parts):
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = i == len(parts) - 1
        with autocast:
            part_loss = model(part[:, :-1].contiguous(), part[:, 1:].contiguous(), progress) / len(
                parts
            )
        part_loss.view(-1)[0].backward()
        loss = loss + part_loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss, norm
