"""Objectives: the losses that a model is trained with. The next byte, and others to try.

    python train.py config/demo.py --objective=masked     # or multi_byte, next_patch, distill

An objective is a module around the model. `forward(*batch, progress)` takes the tensors of a batch
and the share of the run that is done (a tensor, so that a schedule needs no recompile), and returns
a loss in nats. A batch of text is the bytes idx (B, T) and the bytes that follow them, targets
(B, T). The batches of the objectives game and spin are described in lib/selfplay.py.

Evaluation, sampling and best.pt use the model alone. next_byte is the model itself; so is any other
objective whose knob switches it off (n_future=1, mask_share=0, ...).

An objective with n names in `watches` returns a tensor (1 + n,): the loss, then a figure to log
under each name. The log turns "next_byte" into its bpb, so that runs with different losses can be
compared. (masked cannot: its next-byte loss is about text with gaps.)
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import files
from lib.selfplay import PlayGame, Spin
from model import norm

MASK = 0xFD  # stands for a hidden byte; like EOT and PAD it never occurs in UTF-8
ANNEALED = 0.5  # share of the run after which multi_byte is next_byte


def make_objective(model, cfg):
    """The module to train for `cfg`, on the model's device."""
    if cfg.teacher and cfg.objective != "distill":
        raise ValueError(f"teacher={cfg.teacher} only works with --objective=distill")
    # (module, is it on?) An objective that its own knob switches off is next_byte.
    objectives = {
        "next_byte": (None, False),
        "multi_byte": (MultiByte, cfg.n_future > 1),
        "masked": (Masked, cfg.mask_share > 0),
        "next_patch": (NextPatch, cfg.patch_weight > 0),
        "distill": (Distill, cfg.teacher_share > 0),
        "game": (PlayGame, True),
        "spin": (Spin, True),
    }
    if cfg.objective not in objectives:
        raise ValueError(f"make_objective has no objective={cfg.objective!r}: add it")
    module, is_on = objectives[cfg.objective]
    if not is_on:
        return model
    return module(model, cfg).to(model.embed.weight.device)


class MultiByte(nn.Module):
    """Each position predicts the next byte and, with less weight, the bytes after it.

    With n_future=3 one softmax is compared with the next three bytes, with weights 1, 1/2 and 1/4.
    All but the first weight fall to 0 over the first half of the run.

    The idea: a model can learn which bytes come soon before it learns their exact order, and every
    position has more to learn from. Separate heads (arXiv 2404.19737) would cost parameters. One
    softmax with falling weights comes from records of modded-nanogpt; arXiv 2505.22757 found this
    order, from many bytes to one, the best for the next symbol. Here it was slightly better on
    Shakespeare and no better on the textbooks.
    """

    watches = ("next_byte",)

    def __init__(self, model, cfg):
        super().__init__()
        if cfg.n_future > cfg.block_size:
            raise ValueError(f"n_future={cfg.n_future} must be at most block_size={cfg.block_size}")
        self.model = model
        self.n_future = cfg.n_future
        self.register_buffer("weights", 0.5 ** torch.arange(1, cfg.n_future), persistent=False)

    def forward(self, idx, targets, progress):
        log_p = F.log_softmax(self.model.head(self.model.hidden(idx)), dim=-1)  # (B, T, V)
        next_byte = F.nll_loss(log_p.flatten(0, 1), targets.flatten())

        # (B, T, n_future - 1) the bytes after each target; -1 beyond the end of the row
        n_later = self.n_future - 1
        later = F.pad(targets[:, 1:], (0, n_later), value=-1).unfold(1, n_later, 1)
        nats = -log_p.gather(2, later.clamp(min=0)) * (later >= 0) * self.weights
        strength = (1 - progress / ANNEALED).clamp(min=0)
        loss = next_byte + strength * nats.mean(dim=(0, 1)).sum()
        return torch.stack((loss, next_byte))


class Masked(nn.Module):
    """Predict the next byte while a share of the input is hidden, in spans of `mask_span` bytes.

    The model has to use bytes further back (MEAP, arXiv 2502.07490), and a text that is read many
    times never looks the same twice. Patches, n-grams and matches are made from the masked text, so
    nothing hidden leaks. It lost wherever it was tried, even on text read eight times: gaps spoil
    the n-grams and matches around them.
    """

    def __init__(self, model, cfg):
        super().__init__()
        if cfg.tokenizer != "bytes":
            raise ValueError(
                f"objective=masked needs tokenizer='bytes', got {cfg.tokenizer!r}: "
                "tokens have no symbol for a mask"
            )
        if cfg.mask_span > cfg.block_size:
            raise ValueError(
                f"mask_span={cfg.mask_span} must be at most block_size={cfg.block_size}"
            )
        self.model = model
        self.span = cfg.mask_span
        # A byte stays visible only if no span starts at any of the `span` positions that cover it.
        self.start_rate = 1 - (1 - cfg.mask_share) ** (1 / cfg.mask_span)

    def mask(self, idx):
        """idx (B, T) -> the same with random spans replaced by MASK (torch's generator)."""
        B, T = idx.shape
        starts = torch.rand(B, T + self.span - 1, device=idx.device) < self.start_rate
        is_hidden = starts.unfold(1, self.span, 1).any(dim=2)  # (B, T, span) -> (B, T)
        return idx.masked_fill(is_hidden, MASK)

    def forward(self, idx, targets, progress):
        return self.model(self.mask(idx), targets)


class NextPatch(nn.Module):
    """Besides the next byte, the trunk predicts the vector of the next patch.

    A linear head on the trunk's output at patch p is compared with the normalised pooled vector of
    patch p + 1; their mean squared error has the weight `patch_weight`. The idea: a trunk that
    expects the right word helps with all of its bytes. SuperTinyLanguageModels proposed it as
    next-thought prediction. As in JEPA (arXiv 2301.08243) the targets carry no gradient.

    The layers that produce the targets are still trained and could make all targets alike, which
    would be easy to predict. The log shows whether that happens: `variance` of the targets, from 0
    (all alike) to 1; and `explained`, the share of it that the head predicts, 0 if it only predicts
    the mean. The targets never collapsed, and the gain was small.
    """

    watches = ("next_byte", "variance", "explained")

    def __init__(self, model, cfg):
        super().__init__()
        if not model.pooled:
            raise ValueError(
                f"objective=next_patch needs patches, got pooling={cfg.pooling!r}: "
                "try --pooling=space"
            )
        self.model = model
        self.weight = cfg.patch_weight
        self.head = nn.Linear(cfg.n_embd, cfg.n_embd, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, idx, targets, progress):
        x, (pooled, z, count) = self.model.hidden(idx, return_patches=True)
        next_byte = F.cross_entropy(self.model.head(x).flatten(0, 1), targets.flatten())

        target = norm(pooled.detach()[:, 1:]).float()  # (B, P - 1, C)
        guess = self.head(z[:, :-1]).float()
        B, _, C = target.shape
        # (B, P - 1, 1) the slots that hold a patch
        is_real = torch.arange(1, pooled.size(1), device=idx.device) < count[:, None]
        is_real = is_real[..., None]
        n = is_real.sum().clamp(min=1)
        error = ((guess - target).square() * is_real).sum()
        mean = (target * is_real).sum(dim=(0, 1)) / n
        spread = ((target - mean).square() * is_real).sum()

        # Divided by all slots, not by the real ones, so that the loss of a step does not depend on
        # how many micro-batches it is split into.
        loss = next_byte + self.weight * error / (B * self.model.cfg.n_patches * C)
        variance = spread / (n * C)
        explained = 1 - error / spread.clamp(min=1e-9)
        return torch.stack((loss, next_byte, variance, explained))


class Distill(nn.Module):
    """Predict the next byte, and imitate a larger model's distribution of it (arXiv 1503.02531).

    A `teacher_share` of the loss is KL(teacher || model). 256 probabilities say more than the one
    byte that came, most of all when text is read many times (arXiv 2509.14786). All byte models
    have the same symbols, so one can teach any other whose context is no longer. It was the best
    objective wherever it was tried; the cost of training the teacher belongs beside every figure.
    """

    watches = ("next_byte",)

    def __init__(self, model, cfg):
        super().__init__()
        if not cfg.teacher or Path(cfg.teacher).resolve() == Path(cfg.out_dir).resolve():
            raise ValueError(
                "objective=distill needs --teacher=DIR, the folder of a trained run "
                f"other than {cfg.out_dir}"
            )
        teacher, checkpoint, path = files.load_run(cfg.teacher, "best", model.embed.weight.device)
        game = files.game_of(checkpoint)
        if game:
            raise ValueError(
                f"teacher: expected a model of text, got {path}, which plays {game}: "
                "give another --teacher"
            )
        has = f"{teacher.vocab_size} symbols of tokenizer={teacher.cfg.tokenizer}"
        needs = f"{model.vocab_size} symbols of tokenizer={model.cfg.tokenizer}"
        if has != needs:
            raise ValueError(
                f"teacher: expected {needs}, got {has} in {path}: give another --teacher"
            )
        longest = teacher.cfg.block_size
        if longest < cfg.block_size:
            raise ValueError(
                f"teacher: {path} was trained with block_size={longest}, this config has "
                f"{cfg.block_size}: use --block_size={longest}"
            )
        self.model = model
        self.share = cfg.teacher_share
        self.fingerprint = files.fingerprint(teacher)  # to notice on resume that it has changed
        # in a tuple, so that it is not a submodule: not trained, not saved, never in train mode
        self.teacher = (teacher,)

    def forward(self, idx, targets, progress):
        (teacher,) = self.teacher
        with torch.no_grad():
            logits = teacher.head(teacher.hidden(idx))
            teacher_log_p = F.log_softmax(logits, dim=-1).flatten(0, 1)  # (B * T, V)
        logits = self.model.head(self.model.hidden(idx))
        log_p = F.log_softmax(logits, dim=-1).flatten(0, 1)
        next_byte = F.nll_loss(log_p, targets.flatten())
        distance = F.kl_div(log_p, teacher_log_p, reduction="batchmean", log_target=True)
        loss = (1 - self.share) * next_byte + self.share * distance
        return torch.stack((loss, next_byte))
