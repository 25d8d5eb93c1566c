"""The optimizers: Muon for the matrices, AdamW for the rest."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Keller Jordan, kellerjordan.github.io/posts/muon).

    Matrices of one shape go through the Newton-Schulz iteration as one batch, in `dtype`, whatever
    the model's dtype: bfloat16 if the hardware has it. In float32 the iteration would cost as much
    as a tiny model.
    """

    def __init__(self, params, lr, momentum, weight_decay, dtype):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        groups = [{"params": same_shape} for same_shape in by_shape.values()]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]  # frozen ones have none
            if not params:
                continue
            grad = torch.stack([p.grad for p in params])  # (n, rows, columns)

            # The group's momentum is one tensor, kept under its first matrix.
            state = self.state[group["params"][0]]
            if not state or state["momentum"].shape != grad.shape:
                state["momentum"] = torch.zeros_like(grad)
            state["momentum"].lerp_(grad, 1 - group["momentum"])

            grad = grad.lerp_(state["momentum"], group["momentum"])
            update = orthogonal(grad.to(self.dtype)).to(grad.dtype)
            scale = max(1, grad.size(1) / grad.size(2)) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * scale)


def orthogonal(x, steps=5):
    """Approximately the nearest matrices with singular values 1: (n, rows, columns) -> the same.

    The singular values end up between about 0.7 and 1.2.
    """
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    if is_tall:
        x = x.mT
    return x


def make_optimizers(objective, cfg, muon_dtype):
    """The optimizers of a run. Each steps in its `phase`, (first, last) as shares of the run.

    Muon and AdamW train on text. A game starts with them, while the model reads random games; then
    one AdamW for all weights takes over. objective=spin uses that AdamW alone.
    """
    optimizers = []
    if cfg.objective != "spin":
        reading_ends = cfg.pretrain if cfg.objective == "game" else 1.0
        for optimizer in make_muon_and_adam(objective, cfg, muon_dtype):
            optimizer.phase = (0.0, reading_ends)
            optimizers.append(optimizer)
    if cfg.objective in ("game", "spin"):
        adam = torch.optim.AdamW(
            objective.parameters(), lr=cfg.play_lr, weight_decay=0.0, fused=True
        )
        adam.phase = (cfg.pretrain if cfg.objective == "game" else 0.0, 1.0)
        optimizers.append(adam)
    # The schedule sets "lr" to a share of "peak_lr".
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def make_muon_and_adam(objective, cfg, muon_dtype):
    """Muon for the matrices of all layers, AdamW for everything else."""
    matrices = {}
    for module in objective.modules():
        if isinstance(module, torch.nn.Linear):
            matrices[id(module.weight)] = module.weight
    others = [p for p in objective.parameters() if id(p) not in matrices]
    n_parameters = len(list(objective.parameters()))
    assert len(matrices) + len(others) == n_parameters, "the optimizers do not hold the whole model"

    muon = Muon(matrices.values(), cfg.muon_lr, cfg.momentum, cfg.weight_decay, muon_dtype)
    betas = (cfg.beta1, cfg.beta2)
    adam = torch.optim.AdamW(others, lr=cfg.adam_lr, betas=betas, weight_decay=0.0, fused=True)
    return muon, adam


def load_optimizers(optimizers, states):
    """Restore the optimizers' state. ValueError if it belongs to other parameters.

    Learning rates and the like stay as this command says.
    """
    if len(states) != len(optimizers):
        raise ValueError(f"expected {len(optimizers)} optimizers, got {len(states)}")
    for optimizer, state in zip(optimizers, states, strict=True):
        for entries in state["state"].values():
            for key, x in entries.items():
                if x.dtype != torch.float32:  # torch would convert it
                    raise ValueError(f"expected {key} in float32, got {x.dtype}")
        groups = [dict(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, ours in zip(optimizer.param_groups, groups, strict=True):
            del ours["lr"]  # the schedule sets it before a step
            group.update(ours)
        check_state(optimizer)


def check_state(optimizer):
    """ValueError unless an optimizer has the whole state of its parameters."""
    first, last = optimizer.phase
    may_be_new = first > 0 or first == last
    if may_be_new and not optimizer.state:
        return
    expected = {}
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.requires_grad]
        if isinstance(optimizer, Muon):
            for p in params[:1]:
                expected[p] = {"momentum": (len(params), *p.shape)}
        else:
            for p in params:
                expected[p] = {"step": (), "exp_avg": tuple(p.shape), "exp_avg_sq": tuple(p.shape)}
    for p, shapes in expected.items():
        found = {key: tuple(x.shape) for key, x in optimizer.state.get(p, {}).items()}
        if found != shapes:
            raise ValueError(f"expected an optimizer's state of {shapes}, got {found}")


def active_optimizers(optimizers, progress):
    """The optimizers that step at this point of the run."""
    active = []
    for optimizer in optimizers:
        first, last = optimizer.phase
        if first <= progress and first < last and (progress < last or last == 1.0):
            active.append(optimizer)
    return active
