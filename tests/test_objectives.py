"""The objectives: each learns and resumes, and none of them sees the text that it predicts."""

import json
import signal
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from conftest import message_of

import train
from config import Config
from lib.data import Data
from lib.files import load_checkpoint, load_model
from lib.objectives import MASK, make_objective
from model import STLM, ModelConfig

# The objectives of text. The objectives game and spin make their own batches: see test_selfplay.py.
# All laws apply to a new objective.
OBJECTIVES = sorted(set(get_args(Config.__annotations__["objective"])) - {"game", "spin"})
OTHERS = [name for name in OBJECTIVES if name != "next_byte"]
POOLINGS = get_args(ModelConfig.__annotations__["pooling"])


@pytest.fixture(scope="module")
def teacher(data_dir, tmp_path_factory):
    """The folder of a teacher, which trained for 60 steps on the words."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    knobs = [
        "--block_size=64",
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=32",
        "--n_local_embd=32",
        "--n_match=2",
    ]
    knobs += [
        "--batch_bytes=512",
        "--max_steps=60",
        "--max_seconds=0",
        "--eval_interval=0",
        "--dtype=float32",
    ]
    assert (
        train.main(
            [
                "--dataset=words",
                f"--data_dir={data_dir}",
                "--device=cpu",
                *knobs,
                f"--out_dir={out}",
            ]
        )
        == 0
    )
    return out


def tiny(objective, teacher="", **knobs):
    """Returns (objective, model, idx, targets) with random weights everywhere.

    idx is text in 3 rows of 48 bytes, and targets are the next bytes.
    """
    sizes = {
        "block_size": 48,
        "max_patches": 20,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "n_local_embd": 16,
    }
    sizes |= {
        "n_grams": 2,
        "gram_rows": 50,
        "gram_width": 8,
        "n_match": 2,
        "canon_reach": 2,
        "max_steps": 1,
    }
    teacher = str(teacher) if objective == "distill" else ""
    cfg = Config(**sizes | {"objective": objective, "teacher": teacher} | knobs)
    torch.manual_seed(0)
    model = STLM(cfg)
    made = make_objective(model, cfg)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    letters = torch.tensor(list(b"abcdefgh    .\xc3\xff"))
    text = letters[torch.randint(len(letters), (3, 49))]
    return made, model, text[:, :-1], text[:, 1:]


def loss_of(objective, idx, targets, progress=0.0):
    return losses_of(objective, idx, targets, progress)[0]


def losses_of(objective, idx, targets, progress=0.0):
    """The loss, and then the figures that the objective watches."""
    torch.manual_seed(1)  # for the choice of masked bytes
    return objective(idx, targets, torch.tensor(progress)).view(-1)


def logits_of(objective, model, idx, targets):
    """The logits from the objective's pass, and the output of its own head if it has one."""
    seen = []
    head = model.head

    def watch_head(x):
        seen.append(head(x))
        return seen[-1]

    model.head = watch_head
    hook = None
    if hasattr(objective, "head") and objective is not model:
        hook = objective.head.register_forward_hook(lambda *a: seen.append(a[2]))
    loss_of(objective, idx, targets)
    del model.head
    if hook:
        hook.remove()
    return seen


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_is_seen_before_it_is_predicted(name, pooling, teacher):
    """Byte t changes no logits before t, and no guess about a patch from before t.

    The targets change neither.
    """
    if (name, pooling) == ("next_patch", "none"):
        pytest.skip("pooling=none makes no patches")
    knobs = {"pooling": pooling, "max_patch": 5} | (
        {"max_patches": 0} if pooling != "space" else {}
    )
    objective, model, idx, targets = tiny(name, teacher, **knobs)
    before = logits_of(objective, model, idx, targets)
    for a, b in zip(before, logits_of(objective, model, idx, targets.roll(7, dims=1)), strict=True):
        assert torch.equal(a, b)
    for t in range(idx.size(1)):
        changed = idx.clone()
        changed[:, t] = torch.where(changed[:, t] == 32, 97, 32)
        after = logits_of(objective, model, changed, targets)
        assert torch.allclose(before[0][:, :t], after[0][:, :t], atol=1e-5), t
        if name == "next_patch":
            ended = model.patch_ends(idx)[0][:, :t].sum(dim=1)
            for a, b, n in zip(before[1], after[1], ended, strict=True):
                n = min(n, len(a), len(b))  # no patch follows the last one
                assert torch.allclose(a[:n], b[:n], atol=1e-5), t


def test_what_is_masked_has_no_influence():
    objective, _, idx, targets = tiny("masked", mask_share=0.3, mask_span=4)
    torch.manual_seed(1)
    hidden = objective.mask(idx) == MASK
    assert 0.1 < hidden.float().mean() < 0.5
    other = torch.where(hidden, torch.where(idx == 32, 97, 32), idx)
    assert not torch.equal(other, idx)
    assert torch.equal(loss_of(objective, idx, targets), loss_of(objective, other, targets))
    assert not torch.equal(objective.mask(idx) == MASK, hidden), (
        "the mask must change from step to step"
    )


@pytest.mark.parametrize("span", [1, 3, 8])
def test_the_masked_share_is_what_was_asked_for(span):
    objective = tiny("masked", mask_share=0.15, mask_span=span)[0]
    hidden = objective.mask(torch.full((200, 500), 97)) == MASK
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert hidden[:, 0].float().mean().item() == pytest.approx(0.15, abs=0.1), (
        "the share must hold where a row begins"
    )
    starts = (hidden[:, 1:] & ~hidden[:, :-1]).sum().item()
    assert starts > 0 and hidden.sum().item() / starts >= span * 0.95


def test_a_detached_head_leaves_the_model_as_it_was():
    """With no weight, or cut off from the trunk's output, the patch loss reaches only its head."""
    objective, model, idx, targets = tiny("next_patch")
    model(idx, targets).backward()
    plain = gradients(model)
    hidden = model.hidden

    def cut_off(idx, return_patches):
        x, (pooled, z, count) = hidden(idx, return_patches)
        return x, (pooled, z.detach(), count)

    for weight, how in ((0.0, hidden), (0.1, cut_off), (0.1, hidden)):
        objective.zero_grad()
        objective.weight = weight
        model.hidden = how
        loss_of(objective, idx, targets).backward()
        differs = max(
            (g - plain[name]).norm() / (plain[name].norm() + 1e-9)
            for name, g in gradients(model).items()
        )
        assert (differs <= 1e-6) == (how is cut_off or not weight)
        assert (objective.head.weight.grad.norm() > 0) == (weight > 0)


def test_the_guard_sees_a_collapse():
    objective, model, idx, targets = tiny("next_patch")
    _, next_byte, variance, explained = losses_of(objective, idx, targets)
    assert 0.1 < variance <= 1 and explained < 1 and next_byte == model(idx, targets)
    pool = model.pool_patches

    def collapse(last, sums):
        return pool(last, sums) * 0 + torch.arange(16)

    model.pool_patches = collapse
    assert losses_of(objective, idx, targets)[2] < 1e-6


def test_a_teacher_equal_to_the_student_has_nothing_to_teach(teacher):
    student, checkpoint = load_model(teacher / "best.pt")
    cfg = Config(
        **checkpoint["config"] | {"objective": "distill", "teacher": str(teacher), "out_dir": "new"}
    )
    cfg.teacher_share = 1.0
    data = torch.from_numpy(Data(cfg, "val").batch(0, 0, 4, 64))
    objective = make_objective(student.train(), cfg)
    loss = loss_of(objective, data[:, :-1], data[:, 1:])
    loss.backward()
    assert loss.item() == 0 and all(g.abs().max() < 1e-6 for g in gradients(student).values())
    assert not objective.teacher[0].training, "the teacher must not train with the student"
    assert set(objective.parameters()) == set(student.parameters())
    assert not set(objective.parameters()) & set(objective.teacher[0].parameters())


def test_several_bytes_ahead_with_weights_that_fall_to_none():
    objective, model, idx, targets = tiny("multi_byte", n_future=4)
    model(idx, targets).backward()
    plain = gradients(model)
    for progress in (0.5, 0.7, 1.0):
        model.zero_grad()
        loss = loss_of(objective, idx, targets, progress)
        loss.backward()
        assert torch.equal(loss, model(idx, targets))
        assert all(torch.equal(plain[name], g) for name, g in gradients(model).items())
    logits = model.head(model.hidden(idx))
    expected = 0
    for i in range(4):  # the byte i after the next
        nats = F.cross_entropy(
            logits[:, : 48 - i].flatten(0, 1), targets[:, i:].flatten(), reduction="sum"
        )
        # At 0.3 of the run, the later bytes have lost 3/5 of their weight.
        share = 1 if i == 0 else 0.4
        expected += 0.5**i * nats / targets.numel() * share
    assert loss_of(objective, idx, targets, 0.3).item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_weight_it_is_the_model_itself(teacher):
    off = {"next_byte": {}, "multi_byte": {"n_future": 1}, "masked": {"mask_share": 0.0}}
    off |= {"next_patch": {"patch_weight": 0.0}, "distill": {"teacher_share": 0.0}}
    for name, knobs in off.items():
        objective, model = tiny(name, teacher, **knobs)[:2]
        assert objective is model


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "masked"])
def test_a_step_is_the_same_in_one_pass_or_three(name, teacher):
    """The rows differ in patches, so a row beside others leaves slots of the trunk empty."""
    objective, _, idx, targets = tiny(name, teacher)
    whole = loss_of(objective, idx, targets).item()
    parts = [loss_of(objective, idx[i : i + 1], targets[i : i + 1]).item() for i in range(3)]
    assert whole == pytest.approx(sum(parts) / 3, rel=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_one_graph_serves_the_whole_schedule(name, teacher):
    objective, _, idx, targets = tiny(name, teacher)
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.0, 0.1, 1.0):
            expected = losses_of(objective, idx, targets, progress).tolist()
            assert len(expected) == 1 + len(getattr(objective, "watches", ()))
            assert losses_of(compiled, idx, targets, progress).tolist() == pytest.approx(
                expected, rel=1e-4
            )


# --- whole runs -----------------------------------------------------------------------------------


def arguments(small, name, teacher):
    args = [*small, f"--objective={name}"]
    if name == "distill":
        args.append(f"--teacher={teacher}")
    return args


def events(folder, event="train"):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [e for e in log if e["event"] == event]


@pytest.mark.parametrize("name", OTHERS)
def test_each_learns_and_leaves_a_model(name, small, teacher, tmp_path, capsys):
    out = tmp_path / "run"
    args = [
        *arguments(small, name, teacher),
        "--max_steps=60",
        "--micro_batch=4",
        f"--out_dir={out}",
    ]
    assert train.main(args) == 0
    verdict = dict(pair.split("=") for pair in capsys.readouterr().out.splitlines()[-1].split())
    assert float(verdict["val_bpb"]) < 4.5
    log = events(out)
    model = load_model(out / "best.pt")[0]
    assert log[0]["bpb"] > 7 > 5 > log[-1]["bpb"]
    assert int(verdict["params"]) == sum(p.numel() for p in model.parameters()), (
        "params must leave out weights that only training needs"
    )
    if name == "next_patch":
        assert load_checkpoint(out / "last.pt")["objective"]
    assert not load_checkpoint(out / "best.pt")["objective"]
    if name == "next_patch":
        errors = [(1 - e["explained"]) * e["variance"] for e in log]
        assert errors[0] == pytest.approx(1, abs=0.03)
        assert errors[-1] < 0.5
        assert log[-1]["variance"] > 0


@pytest.mark.parametrize("name", OTHERS)
def test_resumed_equals_uninterrupted_bit_for_bit(name, small, teacher, tmp_path):
    args = [*arguments(small, name, teacher), "--max_steps=12", "--micro_batch=4"]
    train.main([*args, f"--out_dir={tmp_path / 'whole'}"])
    original = Data.batch
    calls = []

    def batch_and_interrupt(self, *a):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *a)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "batch", batch_and_interrupt)
        assert train.main([*args, f"--out_dir={tmp_path / 'parts'}"]) == 130
    assert train.main([*small[:1], "--resume", f"--out_dir={tmp_path / 'parts'}"]) == 0
    whole, parts = (load_checkpoint(tmp_path / n / "last.pt") for n in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 12
    for key in ("model", "objective"):
        assert whole.get(key, {}).keys() == parts.get(key, {}).keys()
        assert all(torch.equal(w, parts[key][k]) for k, w in whole.get(key, {}).items())
    kept = ("step", "bpb", "norm", "variance", "explained")
    whole, parts = (
        [[e.get(k) for k in kept] for e in events(tmp_path / n)] for n in ("whole", "parts")
    )
    assert whole == parts


def test_a_run_from_before_there_were_objectives_goes_on(small, tmp_path):
    out = tmp_path / "run"
    train.main([*small, "--max_steps=3", f"--out_dir={out}"])
    checkpoint = load_checkpoint(out / "last.pt")
    del checkpoint["objective"], checkpoint["source"]
    for key in (
        "objective",
        "n_future",
        "mask_share",
        "mask_span",
        "patch_weight",
        "teacher",
        "teacher_share",
    ):
        del checkpoint["config"][key]
    torch.save(checkpoint, out / "last.pt")
    train.main([*small, "--resume", "--max_steps=5", f"--out_dir={out}"])
    assert load_checkpoint(out / "last.pt")["config"]["objective"] == "next_byte"


def test_bad_settings_are_one_line(small, teacher, tmp_path):
    new = [*small, "--max_steps=1", f"--out_dir={tmp_path / 'new'}"]
    learns = [*new, "--objective=distill"]
    other = run_with_tokens(tmp_path)
    cases = [
        ([*new, "--objective=next_bite"], ["objective='next_bite'", "did you mean 'next_byte'"]),
        ([*new, "--objective=multi_byte", "--n_future=33"], ["n_future=33", "block_size=32"]),
        ([*new, "--objective=multi_byte", "--n_future=0"], ["n_future=0"]),
        ([*new, "--objective=masked", "--mask_share=1.5"], ["mask_share=1.5", "between 0 and 1"]),
        ([*new, "--objective=masked", "--mask_span=0"], ["mask_span=0"]),
        (
            [*new, "--objective=masked", "--mask_span=1000000000"],
            ["mask_span=1000000000", "block_size="],
        ),
        (
            [*new, "--objective=next_patch", "--pooling=none", "--max_patches=0"],
            ["pooling='none'", "--pooling=space"],
        ),
        ([*new, "--objective=next_patch", "--patch_weight=-1"], ["patch_weight=-1"]),
        ([*learns, "--teacher_share=-0.1"], ["teacher_share=-0.1", "between 0 and 1"]),
        (learns, ["--teacher=DIR"]),
        ([*learns, "--teacher=nowhere"], ["no run in nowhere"]),
        ([*learns, f"--teacher={tmp_path / 'new'}"], ["other than", "new"]),
        (
            [*learns, f"--teacher={other}"],
            ["300 symbols of tokenizer=gpt2", "256 symbols of tokenizer=bytes"],
        ),
        (
            [*learns, f"--teacher={teacher}", "--block_size=128"],
            ["block_size=64, this config has 128", "--block_size=64"],
        ),
        ([*new, f"--teacher={teacher}"], ["--objective=distill"]),
    ]
    for argv, words in cases:
        with pytest.raises(ValueError) as e:
            train.main(argv)
        assert "\n" not in str(e.value)
        for word in words:
            assert word in str(e.value), str(e.value)
    cfg = Config(max_steps=1, tokenizer="gpt2", pooling="none", gpt2_vocab=300, objective="masked")
    with pytest.raises(ValueError, match="needs tokenizer='bytes'"):
        make_objective(STLM(cfg), cfg)


def run_with_tokens(folder):
    """The folder of a run with a model of tokens."""
    cfg = Config(
        max_steps=1,
        tokenizer="gpt2",
        pooling="none",
        gpt2_vocab=300,
        n_layer=1,
        n_head=1,
        n_embd=16,
    )
    (folder / "tokens").mkdir()
    state = {"model": STLM(cfg).state_dict(), "config": vars(cfg), "step": 1}
    torch.save(state, folder / "tokens/best.pt")
    return folder / "tokens"


def test_a_teacher_that_has_changed_is_said_on_resume(small, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    train.main([*small, "--max_steps=2", f"--out_dir={teacher}"])
    args = [*small, "--objective=distill", f"--teacher={teacher}", f"--out_dir={tmp_path / 'run'}"]
    train.main([*args, "--max_steps=2"])
    said = f"the weights in teacher={teacher} have changed since this run was saved"
    for seed, has_changed in ((1337, False), (5, True)):
        train.main(
            [*small, "--max_steps=2", f"--seed={seed}", f"--out_dir={teacher}", "--overwrite"]
        )
        capsys.readouterr()
        train.main([*args, "--max_steps=2", "--resume"])
        assert (said in capsys.readouterr().out) == has_changed


def test_a_game_is_no_teacher_of_text(small, tmp_path):
    game = tmp_path / "game"
    args = ["config/selfplay_game.py", "--n_embd=16", "--n_head=1", "--n_local_embd=16"]
    args += ["--device=cpu", "--gram_rows=64", "--games=8", "--batch_bytes=256", "--pretrain=1"]
    train.main([*args, "--max_seconds=0", "--max_steps=1", f"--out_dir={game}"])
    distill = ["--objective=distill", f"--teacher={game}", f"--out_dir={tmp_path / 'run'}"]
    message = message_of(train.main, [*small, *distill, "--max_steps=2"])
    assert "expected a model of text" in message and "plays tictactoe" in message
    assert "\n" not in message
