"""Damaged, foreign, busy and half-written files: one line names each, and nobody uses them."""

import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, message_of, run

import bench
import sample
import train
from config import Config
from lib import files
from lib.data import Data
from lib.files import load_checkpoint, load_model, load_run, lock, read_log
from lib.machine import Machine
from lib.run import Clock, draw_losses
from tools import share


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    train.main(
        [*SMALL, f"--data_dir={data_dir}", "--max_steps=6", "--eval_interval=3", f"--out_dir={out}"]
    )
    return out


@pytest.fixture
def run_folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


# --- checkpoints ----------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def evil_files(path):
    """Write six kinds of checkpoint that run code if something unpickles them."""
    good = torch.load(path, weights_only=True)
    torch.save(Evil(), path.with_name("bare.pt"))
    torch.save(good | {"model": Evil()}, path.with_name("model.pt"))
    torch.save(good | {"config": {"n_layer": Evil()}}, path.with_name("config.pt"))
    torch.save(good | {"more": [Evil()]}, path.with_name("more.pt"))
    torch.save(
        good | {"model": Evil()}, path.with_name("legacy.pt"), _use_new_zipfile_serialization=False
    )
    path.with_name("pickle.pt").write_bytes(pickle.dumps({"model": Evil()}))
    return [
        path.with_name(f"{name}.pt")
        for name in ("bare", "model", "config", "more", "legacy", "pickle")
    ]


def test_a_checkpoint_never_runs_code(run_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for path in evil_files(run_folder / "last.pt"):
        with pytest.raises(ValueError, match=rf"{path.name} cannot be used") as e:
            load_checkpoint(path)
        assert "\n" not in str(e.value) and "weights_only" not in str(e.value)
    assert not (tmp_path / "owned").exists()


def test_foreign_and_broken_checkpoints_are_one_line(run_folder):
    path = run_folder / "last.pt"
    raw = path.read_bytes()
    good = torch.load(path, weights_only=True)

    def saved(**changes):
        torch.save(good | changes, path)
        return path.read_bytes()

    nan = {k: v * np.nan if k == "embed.weight" else v for k, v in good["model"].items()}
    shape = good["model"] | {"embed.weight": torch.zeros(3, 3)}
    torch.save([1, 2], path)
    a_list = path.read_bytes()
    kinds = {
        "html": b"<!DOCTYPE html><html>404</html>",
        "empty": b"",
        "cut": raw[: len(raw) // 2],
        "nan": saved(model=nan),
        "shape": saved(model=shape),
        "config": saved(config=good["config"] | {"n_head": 7}),
        "type": saved(config=good["config"] | {"n_layer": "two"}),
        "other": saved(model={}, config=3),
        "list": a_list,
    }
    for kind, content in kinds.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last.pt") as e:
            load_model(path)
        assert "\n" not in str(e.value) and "weights_only" not in str(e.value), kind


def test_a_flipped_bit_is_seen_or_changes_nothing(run_folder):
    path = run_folder / "last.pt"
    rng = random.Random(0)
    raw = bytearray(path.read_bytes())
    good = load_checkpoint(path)
    seen = 0
    for _ in range(40):
        place = rng.randrange(8 * len(raw))
        raw[place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            found = load_checkpoint(path)
            assert all(torch.equal(found["model"][k], v) for k, v in good["model"].items())
            assert found["config"] == good["config"] and found["step"] == good["step"]
        except ValueError as e:
            seen += "last.pt cannot be used" in str(e)
        raw[place // 8] ^= 1 << place % 8
    assert seen > 30


def test_what_is_left_of_a_run_is_used_and_said(run_folder, capsys):
    (run_folder / "best.pt").write_bytes(b"broken")
    _, checkpoint, path = load_run(run_folder, "best")
    assert path.name == "last.pt" and checkpoint["step"] == 6
    said = capsys.readouterr().err
    assert "best.pt cannot be used" in said
    assert "last.pt instead" in said
    sample.main([f"--out_dir={run_folder}", "--max_new_bytes=5", "--device=cpu"])
    # A broken best.pt does not matter to a run that resumes.
    train.main([f"--out_dir={run_folder}", "--resume", "--max_steps=7"])
    (run_folder / "last.pt").write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"last.pt cannot be used.*best.pt still exists: --init_from"
    ):
        train.main([f"--out_dir={run_folder}", "--resume", "--max_steps=9"])


# --- datasets -------------------------------------------------------------------------------------


def damage(folder, kind):
    meta = json.loads((folder / "meta.json").read_text())
    bin = folder / "train.bin"
    if kind == "cut":
        bin.write_bytes(bin.read_bytes()[:900])
    elif kind == "longer":
        bin.write_bytes(bin.read_bytes() + b"x")
    elif kind == "absent":
        (folder / "val.bin").unlink()
    elif kind == "json":
        (folder / "meta.json").write_text('{"tokenizer": ')
    elif kind == "html":
        (folder / "meta.json").write_text("<html>")
    elif kind == "list":
        (folder / "meta.json").write_text("[]")
    else:
        keys, value = kind
        place = meta
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        (folder / "meta.json").write_text(json.dumps(meta))


KINDS = [
    "cut",
    "longer",
    "absent",
    "json",
    "html",
    "list",
    (("dtype",), "object"),
    (("dtype",), "float64"),
]
KINDS += [
    (("dtype",), None),
    (("tokenizer",), "spaces"),
    (("train", "symbols"), None),
    (("train", "symbols"), -5),
]
KINDS += [
    (("val", "bytes"), 0),
    (("val", "sha256"), None),
    (("vocab_size",), "many"),
    (("train",), 7),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_damaged_dataset_trains_nothing(data_dir, small, tmp_path, kind):
    shutil.copytree(data_dir / "words", tmp_path / "data" / "words")
    damage(tmp_path / "data" / "words", kind)
    with pytest.raises(ValueError, match=r"words.(meta.json|train.bin|val.bin)|no dataset") as e:
        train.main(
            [
                *small,
                f"--data_dir={tmp_path / 'data'}",
                "--max_steps=1",
                f"--out_dir={tmp_path / 'run'}",
            ]
        )
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_one_changed_byte_is_seen_on_resume_and_in_eval(data_dir, run_folder, tmp_path):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    for split in ("val", "train"):
        path = folder / "words" / f"{split}.bin"
        raw = bytearray(path.read_bytes())
        raw[50] ^= 1
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"{split}.bin is damaged or not the same text"):
            train.main(
                [f"--out_dir={run_folder}", "--resume", f"--data_dir={folder}", "--max_steps=8"]
            )
        if split == "val":
            with pytest.raises(ValueError, match=r"val.bin is damaged"):
                bench.main(
                    [
                        "eval",
                        f"--out_dir={run_folder}",
                        f"--data_dir={folder}",
                        "--tasks=val",
                        "--device=cpu",
                    ]
                )
            raw[50] ^= 1
            path.write_bytes(raw)


def test_a_dataset_is_named_not_reached(data_dir, small, tmp_path):
    for name in ("../words", str(data_dir / "words"), "words/../words", ".", "a\nb"):
        with pytest.raises(ValueError, match="no dataset"):
            Data(Config(dataset=name, data_dir=str(data_dir), max_steps=1), "train")


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    pytest.importorskip("tiktoken")
    import hashlib

    raw = np.array([1, 2, 299, 300, 5] * 100, dtype="<u2").tobytes()
    (tmp_path / "t").mkdir()
    info = {"documents": 1, "bytes": 900, "symbols": 500, "sha256": hashlib.sha256(raw).hexdigest()}
    meta = {"tokenizer": "gpt2", "dtype": "uint16", "vocab_size": 300, "train": info, "val": info}
    (tmp_path / "t" / "meta.json").write_text(json.dumps(meta))
    for split in ("train", "val"):
        (tmp_path / "t" / f"{split}.bin").write_bytes(raw)
    cfg = Config(
        dataset="t",
        data_dir=str(tmp_path),
        tokenizer="gpt2",
        gpt2_vocab=300,
        pooling="none",
        max_steps=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.data.symbol_lengths", lambda *_: np.ones(300, dtype=np.int64))
        with pytest.raises(
            ValueError, match=r"train.bin has the token 300, but its vocabulary ends at 299"
        ):
            Data(cfg, "train")


# --- logs -----------------------------------------------------------------------------------------


def test_lines_that_are_no_event_are_named_and_left_out(run_folder, capsys):
    path = run_folder / "log.jsonl"
    lines = path.read_bytes().splitlines()
    bad = [
        b"garbage}",
        b"\xff\xfe",
        b'{"a":1}',
        lines[1][:9] + lines[2],
        b"[]",
        b'{"event": 3, "step": 1}',
        b'{"event": 3, "step": 1, "elapsed": 1, "time": 1}',
    ]
    path.write_bytes(b"\n".join([*lines[:2], *bad, *lines[2:], b'{"event": "tra']))
    assert len(read_log(path)) == len(lines)
    said = capsys.readouterr().err
    assert all(
        f"log.jsonl, line {n} is not an event" in said
        for n in (3, 4, 5, 6, 7, 8, 9, len(lines) + 8)
    )
    train.main([f"--out_dir={run_folder}", "--resume", "--max_steps=7"])
    assert [e["event"] for e in read_log(path)].count("end") == 1
    assert "garbage" not in path.read_text()


# --- two at once ----------------------------------------------------------------------------------


def holder_of(folder, before=""):
    """A process that holds the lock of a folder."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before}\n"
    code += "from lib.files import lock\n"
    code += f"with lock({str(folder)!r}, 'in use'): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_keeps_others_out_until_its_process_ends(tmp_path):
    folder = tmp_path / "run"
    holder = holder_of(folder)
    with pytest.raises(ValueError, match="in use"), lock(folder, "in use"):
        pass
    holder.kill()
    holder.wait()
    with lock(folder, "in use"), pytest.raises(ValueError, match="in use"), lock(folder, "in use"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_locked_whatever_links_lead_there(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "a")
    others = (tmp_path / "b", tmp_path / "c", tmp_path / "c/../a", ".", "../b")
    for other in others:
        with (
            lock(tmp_path / "a", "in use"),
            pytest.raises(ValueError, match="in use"),
            lock(other, "in use"),
        ):
            pass


def test_without_locks_of_the_system_a_file_keeps_others_out(tmp_path):
    """As on systems without fcntl. A process that was killed keeps nobody out."""
    without = "sys.modules['fcntl'] = None"
    first = holder_of(tmp_path / "run", without)
    with pytest.raises(AssertionError):
        holder_of(tmp_path / "run", without)
    first.kill()
    first.wait()
    second = holder_of(tmp_path / "run", without)
    second.communicate("")
    assert second.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_two_runs_into_one_folder_and_what_would_be_thrown_away(small, tmp_path, run_folder):
    out = tmp_path / "new"
    with (
        lock(out, ""),
        pytest.raises(ValueError, match=r"in use by another run"),
    ):
        train.main([*small, "--max_steps=1", f"--out_dir={out}"])
    assert not out.exists()
    with pytest.raises(ValueError, match="would be deleted"):
        train.main(
            [
                *small,
                "--max_steps=1",
                f"--init_from={run_folder}",
                f"--out_dir={run_folder}",
                "--overwrite",
            ]
        )
    assert (run_folder / "last.pt").exists()
    out.mkdir()
    for name in ("log.jsonl", "best.pt", "eval.json"):
        (out / name).write_text("ten years of work")
        with pytest.raises(ValueError, match=f"{name}"):
            train.main([*small, "--max_steps=1", f"--out_dir={out}"])
        with pytest.raises(ValueError, match=r"but no run.json; not deleting it"):
            train.main([*small, "--max_steps=1", f"--out_dir={out}", "--overwrite"])
        assert (out / name).read_text() == "ten years of work"
        (out / name).unlink()


# --- resuming -------------------------------------------------------------------------------------


def test_resume_auto_starts_or_goes_on(small, tmp_path):
    args = [*small, "--resume=auto", f"--out_dir={tmp_path / 'run'}"]
    train.main([*args, "--max_steps=3"])
    train.main([*args, "--max_steps=5"])
    train.main([*args, "--max_steps=5"])  # with nothing left to do, the log still has one "end"
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [e["step"] for e in log if e["event"] == "train"] == [1, 2, 3, 4, 5]
    assert [e["event"] for e in log].count("end") == 1
    assert [e["step"] for e in log if e["event"] == "eval"] == [3, 5]


def test_a_run_without_its_checkpoint_does_not_silently_start_again(small, tmp_path):
    run = tmp_path / "run"
    args = [*small, "--resume=auto", "--max_steps=3", f"--out_dir={run}"]
    train.main(args)
    (run / "last.pt").unlink()
    kept = (run / "log.jsonl").read_text()
    for name in ("best.pt", "nothing"):  # without best.pt, the log still knows of a save
        with pytest.raises(ValueError, match=r"no last.pt to resume from: --overwrite"):
            train.main(args)
        assert (run / "log.jsonl").read_text() == kept
        (run / name).unlink(missing_ok=True)
    # As after a kill before the first save: nothing is lost.
    trained = [line for line in kept.splitlines() if '"train"' in line]
    (run / "log.jsonl").write_text("\n".join(trained))
    train.main(args)
    assert load_checkpoint(run / "last.pt")["step"] == 3


def test_passes_and_rates_may_change_on_resume_and_the_advice_is_taken(
    small, tmp_path, monkeypatch
):
    out = f"--out_dir={tmp_path / 'run'}"
    train.main([*small, "--max_steps=2", out])
    train.main(
        [
            *small,
            "--max_steps=3",
            "--resume",
            "--micro_batch=2",
            "--muon_lr=0.001",
            "--adam_lr=0.0005",
            out,
        ]
    )
    groups = [
        g
        for o in load_checkpoint(tmp_path / "run" / "last.pt")["optimizers"]
        for g in o["param_groups"]
    ]
    assert {g["peak_lr"] for g in groups} == {0.001, 0.0005}
    train.main(["--max_steps=4", "--resume", "--micro_batch=3", out])

    class Three(Machine):
        def __init__(self):
            self.world = 3
            self.rank = 0
            self.device = torch.device("cpu")

    cfg = load_checkpoint(tmp_path / "run" / "last.pt")["config"]
    with pytest.raises(ValueError, match=r"3 processes.*try 2 processes$"):
        train.TextSource(Config(**cfg | {"resume": "true"}), Three())


def test_an_evaluation_that_was_due_is_made_on_resume(small, tmp_path, monkeypatch):
    args = [*small, "--max_steps=8", "--eval_interval=4"]
    train.main([*args, f"--out_dir={tmp_path / 'whole'}"])
    scored = train.bits_per_byte
    # The first run dies between its checkpoint and its evaluation.
    monkeypatch.setattr(train, "bits_per_byte", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*args, f"--out_dir={tmp_path / 'parts'}"])
    monkeypatch.setattr(train, "bits_per_byte", scored)
    train.main(["--resume", f"--out_dir={tmp_path / 'parts'}"])
    evals = [
        [e["bpb"] for e in read_log(tmp_path / name / "log.jsonl") if e["event"] == "eval"]
        for name in ("whole", "parts")
    ]
    assert evals[0] == evals[1] and len(evals[0]) == 2


def test_a_signal_just_before_an_evaluation_does_not_lose_it(small, tmp_path, monkeypatch):
    """A run once lost an evaluation for good.

    The signal came between a step and its evaluation, and the run made one more step.
    """
    out = tmp_path / "run"
    original = train.Log.record

    def record(self, event, step, *args, **values):
        original(self, event, step, *args, **values)
        if (event, step) == ("train", 4):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.Log, "record", record)
    args = [*small, "--max_steps=8", "--eval_interval=4", f"--out_dir={out}"]
    assert train.main(args) == 130
    assert load_checkpoint(out / "last.pt")["step"] == 4
    monkeypatch.setattr(train.Log, "record", original)
    assert train.main([*args, "--resume"]) == 0
    assert [e["step"] for e in read_log(out / "log.jsonl") if e["event"] == "eval"] == [4, 8]


def test_a_signal_during_the_verdict_lets_it_finish(small, tmp_path, monkeypatch, capsys):
    original = train.TextSource.conclude

    def conclude(self, *args):
        signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(train.TextSource, "conclude", conclude)
    out = tmp_path / "run"
    assert train.main([*small, "--max_steps=2", f"--out_dir={out}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("val_bpb=")
    assert json.loads((out / "run.json").read_text())["status"] == "finished"

    def fails(self, *args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(train.TextSource, "conclude", fails)
    with pytest.raises(OSError):
        train.main([f"--out_dir={out}", "--resume"])
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


def test_a_finished_run_whose_log_is_gone_still_has_its_verdict(run_folder, capsys):
    (run_folder / "log.jsonl").unlink()
    assert train.main([f"--out_dir={run_folder}", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("val_bpb=")


def test_a_signal_to_continue_during_an_evaluation_costs_no_step():
    """Such a signal once made the clock forget the whole step after the evaluation."""
    machine = SimpleNamespace(rank=0, synchronize=lambda: None, sum=lambda numbers: numbers)
    clock = Clock(Config(max_steps=9), machine)
    clock.start()
    time.sleep(0.05)
    clock.tick()
    clock.stop()
    clock.on_continue(None, None)
    clock.start()
    time.sleep(0.05)
    clock.tick()
    assert clock.elapsed > 0.09


@pytest.mark.slow
def test_a_process_that_was_stopped_does_not_pay_for_it(tmp_path, data_dir, small):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *small,
        "--max_seconds=4",
        f"--out_dir={tmp_path / 'run'}",
    ]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    while "step 20 " not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=120)
    log = read_log(tmp_path / "run" / "log.jsonl")
    steps = [e for e in log if e["event"] == "train"]
    unpaid = [
        (b["time"] - a["time"]) - (b["elapsed"] - a["elapsed"])
        for a, b in itertools.pairwise(steps)
    ]
    assert max(unpaid) > 2.5
    assert steps[-1]["lr_scale"] < max(e["lr_scale"] for e in steps), (
        "the schedule must still decay"
    )


def test_a_log_that_cannot_be_written_does_not_cost_the_steps(small, tmp_path, monkeypatch):
    original = train.Log.record
    calls = []

    def full(self, event, *args, **values):
        calls.append(event)
        if calls.count("train") == 5:
            raise OSError(28, "No space left on device")
        original(self, event, *args, **values)

    monkeypatch.setattr(train.Log, "record", full)
    with pytest.raises(OSError, match="No space left"):
        train.main([*small, "--max_steps=9", f"--out_dir={tmp_path / 'run'}"])
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 5


def test_more_context_brings_more_patches_and_too_few_are_named(data_dir, tmp_path, capsys):
    base = [
        str(ROOT / "config/demo.py"),
        "--dataset=words",
        f"--data_dir={data_dir}",
        "--device=cpu",
        "--max_steps=1",
    ]
    base += ["--n_layer=1", "--eval_bytes=500", "--gram_rows=64", "--batch_bytes=2048"]
    train.main([*base, "--block_size=1024", f"--out_dir={tmp_path / 'a'}"])
    said = capsys.readouterr().out
    config = load_checkpoint(tmp_path / "a" / "last.pt")["config"]
    assert config["max_patches"] == 256, (
        "a quarter of the config's patches for a quarter of the text"
    )
    base += ["--block_size=512"]
    train.main([*base, "--max_patches=20", f"--out_dir={tmp_path / 'b'}"])
    said = capsys.readouterr().out
    need = int(said.split("--max_patches=")[1].split()[0])
    train.main([*base, f"--max_patches={need}", f"--out_dir={tmp_path / 'c'}"])
    assert "many rows" not in capsys.readouterr().out


# --- figures --------------------------------------------------------------------------------------


def test_frozen_weights_stay_and_the_others_move(data_dir, tmp_path):
    from lib.optim import make_optimizers
    from model import STLM
    from train import train_step

    cfg = Config(
        block_size=32, n_layer=1, n_head=1, n_embd=16, n_local_embd=8, max_steps=1, weight_decay=0.5
    )
    torch.manual_seed(0)
    model = STLM(cfg).train()
    if hasattr(model, "layers"):
        frozen = model.layers[0].attention.qkv.weight
    else:
        frozen = next(m.weight for m in model.modules() if isinstance(m, torch.nn.Linear))
    frozen.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizers = make_optimizers(model, cfg, torch.float32)
    for _ in range(2):
        rows = torch.randint(0, 255, (2, 33))
        train_step(
            model,
            optimizers,
            (rows[:, :-1], rows[:, 1:]),
            2,
            torch.autocast("cpu", enabled=False),
            1.0,
        )
    name = next(k for k, v in model.named_parameters() if v is frozen)
    moved = [k for k, v in model.named_parameters() if not torch.equal(before[k], v)]
    assert name not in moved and len(moved) > 5


def test_impossible_choices_are_named(trained):
    with pytest.raises(ValueError, match="seed=18446744073709551616"):
        sample.main([f"--out_dir={trained}", "--seed=18446744073709551616"])
    with pytest.raises(ValueError, match="n_match=17"):
        Config(n_match=17, max_steps=1)
    with pytest.raises(ValueError, match="prompt must be UTF-8"):
        sample.main([f"--out_dir={trained}", "--prompt=a\udce9b"])
    from model import sample as draw

    logits = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    assert (
        draw(logits, temperature=1e-40)
        == logits.argmax(dim=1).tolist()
        == draw(logits, temperature=0)
    )


def test_one_choice_and_nothing_are_scored(trained, tmp_path):
    model = load_model(trained / "last.pt")[0]
    assert bench.score(model, [[(b"abc", b"")], [(b"", b"")]]) == [[(0.0, True)], [(0.0, True)]]
    lines = [{"context": "the of", "choices": [" and"], "answer": 0}] * 3
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = ["eval", f"--out_dir={trained}", f"--data={tmp_path}", "--tasks=lambada", "--device=cpu"]
    bench.main(args)
    found = json.loads((trained / "eval.json").read_text())["tasks"]["lambada"]
    [[(nats, greedy)]] = bench.score(model, [[(b"the of", b" and")]])
    assert found["acc"] == float(greedy)
    assert found["logp"] == pytest.approx(nats, rel=1e-5)
    assert found["chance"] == 0


def test_a_byte_order_mark_is_no_text(trained, tmp_path, capsys):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfthe of")
    sample.main(
        [
            f"--out_dir={trained}",
            f"--prompt_file={tmp_path / 'p.txt'}",
            "--max_new_bytes=3",
            "--device=cpu",
        ]
    )
    assert capsys.readouterr().out.startswith("the of")


def test_the_way_on_after_a_loss_that_is_not_finite(small, tmp_path, monkeypatch):
    step = train.train_step

    def spoil(when, calls):
        def nan_at(*args):
            calls.append(1)
            return tuple(x * (math.nan if len(calls) == when else 1) for x in step(*args))

        return nan_at

    for when, out in ((2, tmp_path / "early"), (7, tmp_path / "late")):
        monkeypatch.setattr(train, "train_step", spoil(when, []))
        args = [*small, "--max_steps=9", "--eval_interval=5", f"--out_dir={out}"]
        with pytest.raises(ValueError, match="gradient norm nan") as e:
            train.main(args)
        monkeypatch.setattr(train, "train_step", step)
        advice = re.findall(r"--[a-z_]+(?:=[\d.e-]+)?", str(e.value))
        train.main([*args, *advice])
        checkpoint = load_checkpoint(out / "last.pt")
        assert checkpoint["step"] == 9
        assert checkpoint["config"]["muon_lr"] == pytest.approx(0.03 / 3, rel=0.05)


def test_out_of_memory_is_one_line(tmp_path, data_dir, small):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    code += f"sys.argv = ['train.py', *{small!r}, '--max_steps=1', "
    code += f"'--out_dir={tmp_path / 'run'}']; from lib.data import Data; import runpy, torch; "
    code += "Data.batch = lambda *a: torch.empty(1 << 50); "  # a petabyte
    code += f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("train.py: out of memory: set or halve --micro_batch"), (
        done.stderr
    )
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def with_head(data_dir, tmp_path_factory):
    """A run with everything that last.pt can hold."""
    out = tmp_path_factory.mktemp("head") / "run"
    args = [*SMALL, f"--data_dir={data_dir}", "--objective=next_patch", "--max_steps=2"]
    train.main([*args, f"--out_dir={out}"])
    return out


def adam_state(checkpoint, i=1):
    return next(iter(checkpoint["optimizers"][i]["state"].values()))


UNFIT = {
    "no head": lambda c: c["objective"].clear(),
    "another head": lambda c: c["objective"].update({"head.weight": torch.zeros(3, 3)}),
    "a head too many": lambda c: c["objective"].update({"more": torch.zeros(3, 3)}),
    "no optimizers": lambda c: c["optimizers"].clear(),
    "an optimizer too few": lambda c: c["optimizers"].pop(),
    "optimizers of another kind": lambda c: c.update(optimizers=3),
    "no state": lambda c: c["optimizers"][0].pop("state"),
    "fewer groups": lambda c: c["optimizers"][0]["param_groups"].pop(),
    "momentum of another shape": lambda c: adam_state(c, 0).update(momentum=torch.zeros(2, 3, 4)),
    "Adam of another shape": lambda c: adam_state(c).update(exp_avg=torch.zeros(3)),
    "Adam in float64": lambda c: adam_state(c).update(exp_avg_sq=adam_state(c)["exp_avg"].double()),
    "weights in float64": lambda c: c["model"].update(
        {"pool.weight": c["model"]["pool.weight"].double()}
    ),
    "weights of another shape": lambda c: c["model"].update({"pool.weight": torch.zeros(3, 3)}),
    "a weight too few": lambda c: c["model"].pop("pool.weight"),
    "a weight too many": lambda c: c["model"].update(more=torch.zeros(3)),
    "no tensor": lambda c: c["objective"].update({"head.weight": "zeros"}),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_checkpoint_that_does_not_fit_is_one_line(kind, with_head, tmp_path):
    out = shutil.copytree(with_head, tmp_path / "run")
    checkpoint = torch.load(out / "last.pt", weights_only=True)
    checkpoint["commit"] = "0123abc"
    UNFIT[kind](checkpoint)
    torch.save(checkpoint, out / "last.pt")
    before = (out / "log.jsonl").read_bytes()
    message = message_of(train.main, ["--resume", "--max_steps=4", f"--out_dir={out}"])
    assert f"{out}/last.pt" in message
    assert "0123abc" in message and "wrote it" in message
    assert "--out_dir" in message or "--init_from" in message
    assert (out / "log.jsonl").read_bytes() == before


# --- what a run can do without --------------------------------------------------------------------


def test_a_picture_that_cannot_be_drawn_does_not_spoil_the_run(
    small, tmp_path, capsys, monkeypatch
):
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    out = tmp_path / "run"
    assert train.main([*small, "--max_steps=2", f"--out_dir={out}"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("val_bpb=")
    assert said.err == f"{out}/loss.png was not drawn: division by zero\n"
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_a_notebooks_backend_does_not_spoil_the_run(trained, tmp_path):
    backend = "module://matplotlib_inline.backend_inline"
    out = shutil.copytree(trained, tmp_path / "run")
    done = run("train.py", "--resume", f"--out_dir={out}", env={"MPLBACKEND": backend})
    assert done.stdout.splitlines()[-1].startswith("val_bpb=")
    assert done.stderr.count("\n") == 1 and "loss.png was not drawn: " in done.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_the_result_is_printed_before_anything_that_can_fail(small, tmp_path, capsys, monkeypatch):
    """As on a disk that fills up in the last moment."""
    record = train.Log.record

    def full(self, event, *args, **values):
        if event == "end":
            raise OSError(28, "No space left on device")
        record(self, event, *args, **values)

    monkeypatch.setattr(train.Log, "record", full)
    with pytest.raises(OSError):
        train.main([*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("val_bpb=")


def test_a_console_that_cannot_show_a_name_does_not_spoil_the_run(trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "日記")
    env = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = run("train.py", "--resume", f"--out_dir={out}", env=env)
    assert done.stdout.splitlines()[-1].startswith("val_bpb=")
    assert "\\u65e5\\u8a18" in done.stdout
    assert done.stderr == ""
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_names_and_logs_of_any_kind_have_a_picture_or_a_line(trained, tmp_path, capsys):
    for name in ("a $run", "$x$ $\\frac{1}{0}$", "ab"):
        out = shutil.copytree(trained, tmp_path / name)
        (out / "loss.png").unlink()
        train.main(["--resume", f"--out_dir={out}"])
        assert (out / "loss.png").stat().st_size > 5000
    assert capsys.readouterr().err == ""
    for kept in (["train"], ["eval"], []):
        lines = (trained / "log.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        log = [event for event in events if event["event"] in kept]
        path = tmp_path / "loss.png"
        path.unlink(missing_ok=True)
        if log:
            draw_losses(log, path)
            assert path.stat().st_size > 5000
        else:
            with pytest.raises(ValueError, match="no train or eval event"):
                draw_losses(log, path)


def test_a_scanner_that_holds_a_checkpoint_for_a_moment_is_waited_for(small, tmp_path, monkeypatch):
    replace = os.replace
    held = []

    def busy(source, target):
        if str(target).endswith("last.pt") and len(held) < 3:
            held.append(target)
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    assert train.main([*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"]) == 0
    assert len(held) == 3
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_only_the_last_checkpoint_must_be_written(small, tmp_path, monkeypatch, capsys):
    write = files.write_atomically
    failing = []
    written = []

    def full(path, *args):
        if (path.name, len(written)) in failing:
            written.append(path.name)
            raise OSError(f"cannot write {path} (the disk is full)")
        if path.suffix == ".pt":
            written.append(path.name)
        write(path, *args)

    monkeypatch.setattr(files, "write_atomically", full)
    args = [*small, "--max_steps=6", "--eval_interval=2", "--overwrite"]
    out = tmp_path / "run"

    # It writes last.pt, best.pt, last.pt, best.pt, last.pt, best.pt.
    for places, best in (
        ([("last.pt", 0), ("best.pt", 1), ("last.pt", 2)], 6),
        ([("best.pt", 5)], 4),
    ):
        failing[:] = places
        written.clear()
        assert train.main([*args, f"--out_dir={out}"]) == 0
        said = capsys.readouterr()
        assert said.err.count("warning: cannot write ") == len(places)
        assert said.out.splitlines()[-1].startswith("val_bpb=")
        assert load_checkpoint(out / "last.pt")["step"] == 6
        assert load_checkpoint(out / "best.pt")["step"] == best

    failing[:] = [("last.pt", 4)]
    written.clear()
    with pytest.raises(OSError, match=r"cannot write .*last.pt"):
        train.main([*args, f"--out_dir={out}"])


def test_a_folder_that_was_deleted_is_made_again(small, tmp_path, monkeypatch):
    out = tmp_path / "run"
    step = train.train_step
    n_steps = []

    def delete_at_3(*args):
        n_steps.append(1)
        if len(n_steps) == 3:
            shutil.rmtree(out)
        return step(*args)

    monkeypatch.setattr(train, "train_step", delete_at_3)
    args = [*small, "--max_steps=6", "--eval_interval=2", f"--out_dir={out}"]
    assert train.main(args) == 0
    log = read_log(out / "log.jsonl")
    assert [e["step"] for e in log if e["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["event"] for e in log if e["event"] in ("start", "end")] == ["start", "end"]
    assert load_checkpoint(out / "last.pt")["step"] == 6
    assert load_checkpoint(out / "best.pt")["step"] in (4, 6)
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_a_second_ctrl_c_says_what_is_saved(tmp_path):
    machine = SimpleNamespace(rank=0, sum=lambda numbers: numbers)
    clock = Clock(Config(max_steps=9, out_dir=str(tmp_path)), machine)
    clock.on_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt, match="nothing is saved"):
        clock.on_signal(signal.SIGINT, None)
    (tmp_path / "last.pt").touch()
    with pytest.raises(KeyboardInterrupt, match="--resume continues from the newest checkpoint"):
        clock.on_signal(signal.SIGINT, None)


# --- records --------------------------------------------------------------------------------------


def test_a_run_of_edited_code_says_so_wherever_its_commit_stands(
    small, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "commit", lambda config_file: "1254c3f-dirty")
    monkeypatch.setattr(train, "code_changes", lambda config_file: "+an edit, \udcff")
    out = tmp_path / "run"
    train.main([*small, "--max_steps=2", f"--out_dir={out}"])
    assert json.loads((out / "run.json").read_text())["commit"] == "1254c3f-dirty"
    assert load_checkpoint(out / "last.pt")["commit"] == "1254c3f-dirty"
    assert (out / "changes.diff").read_text() == "+an edit, ?"
    share.main([f"--model={out}", f"--to={tmp_path / 'shared'}"])
    assert "1254c3f-dirty" in (tmp_path / "shared" / "README.md").read_text()

    # What was trained with edited code stays so, and the edit is kept.
    monkeypatch.setattr(train, "commit", lambda config_file: "2345678")
    monkeypatch.setattr(train, "code_changes", lambda config_file: "")
    train.main([*small, "--max_steps=3", "--resume", f"--out_dir={out}"])
    assert json.loads((out / "run.json").read_text())["commit"] == "2345678-dirty"
    assert (out / "changes.diff").exists()
    train.main([*small, "--max_steps=2", "--overwrite", f"--out_dir={out}"])
    assert json.loads((out / "run.json").read_text())["commit"] == "2345678"
    assert not (out / "changes.diff").exists()


def test_a_longer_run_says_that_the_learning_rate_jumps(small, tmp_path, capsys):
    args = [*small, f"--out_dir={tmp_path / 'run'}"]
    train.main([*args, "--max_steps=4"])
    for length, jumps in (("--max_steps=4", False), ("--max_steps=8", True)):
        capsys.readouterr()
        train.main([*args, "--resume", length])
        assert ("the learning rate jumps from 0% to 71%" in capsys.readouterr().out) == jumps
    # An interrupted run that goes on as planned does not jump.
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    cfg = Config(**files.known_values(checkpoint["config"], Config))
    clock = SimpleNamespace(progress=lambda step: step / 8, elapsed=0)
    for step in range(9):
        assert train.changes_since(checkpoint | {"step": step}, cfg, clock, None) == []


def test_later_edits_are_kept_after_earlier_ones(small, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for n, edit in enumerate(("+first\n", "+second\n", "+second\n"), 1):
        monkeypatch.setattr(train, "code_changes", lambda config_file, edit=edit: edit)
        train.main([*small, f"--max_steps={n}", "--resume=auto", f"--out_dir={out}"])
    assert (out / "changes.diff").read_text() == "+first\n+second\n"


SLOWLY = [pytest.param(closed, marks=pytest.mark.slow) for closed in ("2>&-", "<&-", "> /dev/full")]


@pytest.mark.parametrize("closed", [">&- 2>&- <&-", "| head -1", *SLOWLY])
def test_a_run_goes_on_without_its_console(closed, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    command = (
        f"{sys.executable} {ROOT / 'train.py'} --resume --max_steps=9 --out_dir={out} {closed}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    info = json.loads((out / "run.json").read_text())
    assert info["status"] == "finished" and info["verdict"]["steps"] == 9
    assert done.returncode == 0
    assert done.stderr == ""


ODD = ["x", None, [], {}, -1, 5, 10**30, math.nan, True]
ENTRIES = ["step", "elapsed", "compile_seconds", "dtype", "muon_dtype", "commit", "data", "config"]
ENTRIES += ["objective", "optimizers", "source", "teacher", "model"]
INNER = [("data", "val"), ("data", "train"), ("config", "dataset"), ("config", "data_dir")]
INNER += [
    ("config", "device"),
    ("config", "objective"),
    ("config", "tokenizer"),
    ("config", "seed"),
]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [*ENTRIES, *INNER], ids=str)
def test_odd_values_in_a_checkpoint_are_one_line_or_harmless(entry, with_head, tmp_path, capsys):
    out = shutil.copytree(with_head, tmp_path / "run")
    path = out / "last.pt"
    (out / "best.pt").unlink()
    good = torch.load(path, weights_only=True)
    for value in ODD:
        checkpoint = dict(good)
        if isinstance(entry, str):
            checkpoint[entry] = value
        else:
            part, key = entry
            checkpoint[part] = checkpoint[part] | {key: value}
        torch.save(checkpoint, path)
        for main, args in (
            (train.main, ["--resume", f"--out_dir={out}", "--max_steps=3"]),
            (bench.main, ["eval", f"--model={out}", "--tasks=val", "--device=cpu"]),
            (sample.main, [f"--model={out}", "--max_new_bytes=2", "--device=cpu"]),
        ):
            try:
                main(args)
            except ValueError as e:
                assert "\n" not in str(e)
        torch.save(good, path)


def test_odd_events_in_a_log_are_left_out(run_folder, capsys):
    path = run_folder / "log.jsonl"
    lines = path.read_text().splitlines()
    event = {"event": "eval", "step": 1, "elapsed": 0.1, "time": 1.0}
    odd = ["[" * 100_000, json.dumps(event), json.dumps(event | {"bpb": math.nan})]
    path.write_text("\n".join([*odd, *lines]))
    train.main([f"--out_dir={run_folder}", "--resume", "--max_steps=9"])
    assert load_checkpoint(run_folder / "best.pt")["step"] == 9
    assert "bpb nan" not in capsys.readouterr().out
