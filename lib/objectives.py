"""Objectives: what a model is trained for. The next byte, and other answers to that question.

    python train.py config/demo.py --objective=masked     # or multi_byte, next_patch, distill

An objective is a module around the model. `forward(*batch, progress)` takes the tensors of a batch
and the share of the run that is done (a tensor, so that a schedule does not compile anew), and
returns a loss in nats. Of text, a batch is bytes idx (B, T) and the bytes that follow them, targets
(B, T); lib/selfplay.py has the objectives game and spin, with batches of their own.

Evaluation, sampling and best.pt see the model alone. next_byte is the model itself; so is any other
objective whose knob switches it off (n_future=1, mask_share=0, ...).

An objective with `watches` returns (1 + n,): the loss, and n figures for the log, of these names.
From "next_byte" the log makes its bpb, so that runs can be compared whatever their losses add. (Not
those of masked: theirs is of text with gaps.)
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import files
from lib.selfplay import PlayGame, Spin
from model import norm

MASK = 0xFD  # in place of a hidden byte; like EOT and PAD it never occurs in UTF-8
ANNEALED = 0.5  # share of the run after which multi_byte is next_byte


def make_objective(model, cfg):
    """The module to train for `cfg`, where the model is."""
    if cfg.teacher and cfg.objective != "distill":
        raise ValueError(f"teacher={cfg.teacher} only works with --objective=distill")
    # switched off by their knobs, all of these are next_byte
    objective = model
    if cfg.objective == "multi_byte":
        if cfg.n_future > 1:
            objective = MultiByte(model, cfg)
    elif cfg.objective == "masked":
        if cfg.mask_share > 0:
            objective = Masked(model, cfg)
    elif cfg.objective == "next_patch":
        if cfg.patch_weight > 0:
            objective = NextPatch(model, cfg)
    elif cfg.objective == "distill":
        if cfg.teacher_share > 0:
            objective = Distill(model, cfg)
    elif cfg.objective == "game":
        objective = PlayGame(model, cfg)
    elif cfg.objective == "spin":
        objective = Spin(model, cfg)
    elif cfg.objective != "next_byte":
        raise ValueError(f"make_objective makes no objective={cfg.objective!r}: add it")
    return objective.to(model.embed.weight.device)


class MultiByte(nn.Module):
    """Each place predicts the byte that follows, and to a lesser degree those after it: with n_future=3 one softmax is
    held against the next three bytes with weights 1, 1/2, 1/4. All but the first fall to 0 over the first half of the
    run, so that the model ends as one of the next byte.

    The idea: which bytes come soon can be learnt before their exact order, and gives every place more to learn from.
    Heads of their own (arXiv 2404.19737) would cost parameters; one softmax with falling weights is how records of
    modded-nanogpt do it; arXiv 2505.22757 found this order, from many to one, the best for the next symbol. Here it was
    a little better on Shakespeare and no better on the textbooks.
    """

    def __init__(self, model, cfg):
        super().__init__()
        if cfg.n_future > cfg.block_size:
            raise ValueError(
                f"n_future={cfg.n_future} looks beyond block_size={cfg.block_size}: take fewer bytes"
            )
        self.model, self.n_future, self.watches = model, cfg.n_future, ("next_byte",)
        self.register_buffer("weights", 0.5 ** torch.arange(1, cfg.n_future), persistent=False)

    def forward(self, idx, targets, progress):
        logp = F.log_softmax(self.model.head(self.model.hidden(idx)), dim=-1)
        next_byte = F.nll_loss(logp.flatten(0, 1), targets.flatten())
        # (B, T, n_future - 1): what follows each target; -1 past the row's end, where there is nothing
        later = F.pad(targets[:, 1:], (0, self.n_future - 1), value=-1).unfold(
            1, self.n_future - 1, 1
        )
        nats = -logp.gather(2, later.clamp(min=0)) * (later >= 0) * self.weights
        loss = next_byte + (1 - progress / ANNEALED).clamp(min=0) * nats.mean(dim=(0, 1)).sum()
        return torch.stack((loss, next_byte))


class Masked(nn.Module):
    """The next byte is predicted as ever, but `mask_share` of the bytes that are read are hidden, `mask_span` in a
    row: the model has to draw on what stands further back (MEAP, arXiv 2502.07490), and a text that is read many times
    never looks the same twice. Patches, n-grams and matches come from what is left to see: nothing hidden leaks.
    It lost wherever it was tried, even where text was read eight times: gaps spoil the n-grams and matches around them.
    """

    def __init__(self, model, cfg):
        super().__init__()
        if cfg.tokenizer != "bytes":
            raise ValueError(
                f"objective=masked needs tokenizer='bytes': {cfg.tokenizer!r} has no symbol to spare"
            )
        if cfg.mask_span > cfg.block_size:
            raise ValueError(
                f"mask_span={cfg.mask_span} hides more than block_size={cfg.block_size}: take fewer bytes"
            )
        self.model, self.span = model, cfg.mask_span
        self.start = 1 - (1 - cfg.mask_share) ** (
            1 / cfg.mask_span
        )  # a place is hidden if a span covers it

    def mask(self, idx):
        """idx (B, T) -> the same with spans replaced. Which ones follows from torch's generator, as for dropout."""
        B, T = idx.shape
        starts = torch.rand(B, T + self.span - 1, device=idx.device) < self.start
        return idx.masked_fill(starts.unfold(1, self.span, 1).any(dim=2), MASK)

    def forward(self, idx, targets, progress):
        return self.model(self.mask(idx), targets)


class NextPatch(nn.Module):
    """Beside the bytes, the trunk predicts the patch that it will read next: a linear head on its output at patch p is
    held against the pooled vector of patch p + 1, normalised; their mean squared error gets the small `patch_weight`.
    The idea: a trunk that expects the right word helps with all of its bytes. (SuperTinyLanguageModels proposed it as
    next-thought prediction; as in JEPA, arXiv 2301.08243, vectors are predicted, and the targets carry no gradient.)

    The layers that make the targets learn all the same, and could make them all alike, which is easy to predict. The
    log shows whether they do: `variance` of the targets, 0 when all are the same, at most 1; and `explained`, the share
    of it that the head predicts, 0 when it does no better than their mean. None became alike, and little was gained.
    """

    def __init__(self, model, cfg):
        super().__init__()
        if not model.pooled:
            raise ValueError(
                "objective=next_patch needs patches, pooling='none' has none: --pooling=space makes some"
            )
        self.model, self.weight, self.watches = (
            model,
            cfg.patch_weight,
            ("next_byte", "variance", "explained"),
        )
        self.head = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, idx, targets, progress):
        x, (pooled, z, count) = self.model.hidden(idx, return_patches=True)
        next_byte = F.cross_entropy(self.model.head(x).flatten(0, 1), targets.flatten())
        target, guess = (
            norm(pooled.detach()[:, 1:]).float(),
            self.head(z[:, :-1]).float(),
        )  # (B, P - 1, C)
        real = (torch.arange(1, pooled.size(1), device=idx.device) < count[:, None])[
            ..., None
        ]  # slots with a patch
        error, n = ((guess - target).square() * real).sum(), real.sum().clamp(min=1)
        mean = (target * real).sum(dim=(0, 1)) / n
        spread = ((target - mean).square() * real).sum()
        # divided by all slots, not by the real ones: so it does not matter in how many passes a step reads its rows
        loss = next_byte + self.weight * error / (
            len(idx) * self.model.cfg.n_patches * target.size(2)
        )
        return torch.stack(
            (loss, next_byte, spread / (n * target.size(2)), 1 - error / spread.clamp(min=1e-9))
        )


class Distill(nn.Module):
    """`teacher_share` of the loss is the distance to a larger model's distribution of the next byte, KL(teacher ||
    model), the rest the data's (arXiv 1503.02531). 256 likelihoods say more than the one byte that came, most of all
    where text is read many times (arXiv 2509.14786). All byte models have the same symbols, so any can teach any other.
    The best of these wherever it was tried; what the teacher's own training cost belongs beside every figure.
    """

    def __init__(self, model, cfg):
        super().__init__()
        if not cfg.teacher or Path(cfg.teacher).resolve() == Path(cfg.out_dir).resolve():
            raise ValueError(
                f"objective=distill needs --teacher=DIR, a trained run's folder other than {cfg.out_dir}"
            )
        teacher, _, path = files.load_run(cfg.teacher, "best", model.embed.weight.device)
        has, need = (
            f"{m.vocab_size} symbols of tokenizer={m.cfg.tokenizer}" for m in (teacher, model)
        )
        if has != need:
            raise ValueError(
                f"teacher: {path} has {has}, this config {need}; a teacher must have the same"
            )
        if (most := teacher.cfg.block_size) < cfg.block_size:
            raise ValueError(
                f"teacher: {path} knows block_size={most}, not {cfg.block_size}: --block_size={most}"
            )
        self.model, self.share, self.watches = model, cfg.teacher_share, ("next_byte",)
        self.teacher = (teacher,)  # in a tuple: no part of this module, its weights and its modes

    def forward(self, idx, targets, progress):
        with torch.no_grad():
            teacher = F.log_softmax(
                self.teacher[0].head(self.teacher[0].hidden(idx)), dim=-1
            ).flatten(0, 1)
        student = F.log_softmax(self.model.head(self.model.hidden(idx)), dim=-1).flatten(0, 1)
        next_byte = F.nll_loss(student, targets.flatten())
        distance = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return torch.stack(((1 - self.share) * next_byte + self.share * distance, next_byte))
