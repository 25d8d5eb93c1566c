"""Muon and the schedules."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import Config
from lib.optim import Muon, active_optimizers, orthogonal
from train import dropout_at, lr_scale


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (1, 20, 6)])
def test_orthogonal_makes_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_muon_in_batches_equals_muon_one_by_one():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(3)]
    copies = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    together = [Muon(weights, 0.1, 0.9, 0.01, torch.float32)]
    apart = [Muon([c], 0.1, 0.9, 0.01, torch.float32) for c in copies]
    for step in range(4):
        for w, c in zip(weights, copies, strict=True):
            w.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            c.grad = w.grad.clone()
        for optimizer in together + apart:
            optimizer.step()
    for w, c in zip(weights, copies, strict=True):
        assert torch.allclose(w, c, atol=1e-6)


@pytest.mark.parametrize(
    "schedule, expected",
    [("constant", [0.4] * 3), ("linear", [0, 0.2, 0.4]), ("triangle", [0, 0.4, 0])],
)
def test_dropout_schedules(schedule, expected):
    cfg = Config(max_steps=1, dropout=0.4, dropout_schedule=schedule)
    assert [dropout_at(p, cfg) for p in (0, 0.5, 1)] == pytest.approx(expected)


def test_learning_rate_rises_holds_and_falls_to_zero():
    cfg = Config(max_steps=1, warmup=0.1, decay=0.5)
    scales = [lr_scale(p, (0, 1), cfg) for p in np.linspace(0, 1, 101)]
    assert 0 < scales[0] < 0.05 and scales[15] == scales[45] == 1 and scales[100] == 0
    assert all(a > b for a, b in itertools.pairwise(scales[50:]))
    # Compiling took the first 30% of the time.
    late = [lr_scale(p, (0, 1), cfg, start=0.3) for p in np.linspace(0.3, 1, 71)]
    assert all(
        0 <= lr_scale(p, (0, 1), cfg, start) <= 1 for p in (0, 0.2, 1) for start in (0, 0.5, 3)
    ), "a rate must never be negative"
    assert 0 < late[0] < 0.05 and late[5] < 0.6 and late[15] == 1 and late[70] == 0


def test_each_optimizer_steps_and_is_scheduled_in_its_phase():
    cfg = Config(max_steps=1, warmup=0.1, decay=0.5)
    reader = SimpleNamespace(phase=(0.0, 0.25))
    player = SimpleNamespace(phase=(0.25, 1.0))
    active = [active_optimizers([reader, player], p) for p in (0, 0.24, 0.25, 0.9, 1.0)]
    assert active == [[reader], [reader], [player], [player], [player]]
    never = SimpleNamespace(phase=(0.0, 0.0))
    assert active_optimizers([never], 0.0) == []
    for p in np.linspace(0, 1, 21):
        whole = lr_scale(p, (0, 1), cfg)
        assert lr_scale(0.25 + 0.75 * p, player.phase, cfg) == pytest.approx(whole)
