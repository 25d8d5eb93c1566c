"""Whole runs of train.py: resuming, processes, checkpoints and mistakes."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, run, write_dataset

import train
from config import Config
from lib.data import Data, bits_per_byte
from lib.files import load_checkpoint, load_model
from lib.machine import Machine


def weights_of(folder):
    return load_checkpoint(folder / "last.pt")["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def events(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return {e["step"]: e["bpb"] for e in events(folder) if e["event"] == "train"}


def test_training_lowers_the_loss_and_leaves_everything(small, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([*small, "--max_steps=60", "--eval_interval=30", f"--out_dir={out}"]) == 0
    verdict = dict(pair.split("=") for pair in capsys.readouterr().out.splitlines()[-1].split())
    assert list(verdict) == [
        "val_bpb",
        "val_nats",
        "params",
        "steps",
        "seconds",
        "bytes_per_second",
    ]
    assert float(verdict["val_bpb"]) < 4.5 < 7 < losses(out)[1]
    assert float(verdict["val_nats"]) == pytest.approx(
        float(verdict["val_bpb"]) * math.log(2), abs=1e-4
    )
    info = json.loads((out / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["config"]["max_steps"] == 60
    assert info["versions"]["torch"]
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    # The files hold only tensors and plain values, under names without wrappers.
    for name in ("last.pt", "best.pt"):
        for key in torch.load(out / name, weights_only=True)["model"]:
            assert "_orig_mod" not in key
            assert "module." not in key
    model, checkpoint = load_model(out / "last.pt")
    found = bits_per_byte(model, Data(Config(**checkpoint["config"]), "val"), 32)["bpb"]
    assert found == pytest.approx(float(verdict["val_bpb"]), abs=1e-4)
    assert load_checkpoint(out / "best.pt")["optimizers"] == [], "best.pt must hold only weights"


def test_the_golden_run(tmp_path, capsys):
    """Law 9: in 200 steps, the model learns as well as before.

    The text has 400 made-up words, and each word limits the choice of the next one.
    """
    rng = np.random.default_rng(7)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(400)]
    word = 0
    text = []
    for _ in range(30_000):  # one of a few words follows each word, the first of them most often
        word = (word * 31 + int(rng.geometric(0.5))) % 400
        text.append(words[word])
    raw = " ".join(text).encode()
    write_dataset(tmp_path / "made", raw[:-20_000], raw[-20_000:])
    sizes = [
        "--block_size=64",
        "--max_patches=24",
        "--n_layer=2",
        "--n_head=2",
        "--n_embd=48",
        "--n_local_embd=32",
    ]
    sizes += [
        "--n_grams=2",
        "--gram_rows=500",
        "--gram_width=16",
        "--n_match=3",
        "--canon_reach=3",
        "--n_loop=2",
    ]
    args = [
        f"--data_dir={tmp_path}",
        "--batch_bytes=512",
        "--max_steps=200",
        "--eval_interval=0",
        "--dropout=0.05",
        "--muon_lr=0.02",
        "--adam_lr=0.005",
        "--n_copy=0",
    ]
    assert (
        train.main(
            [*sizes, *args, "--device=cpu", "--dtype=float32", f"--out_dir={tmp_path / 'run'}"]
        )
        == 0
    )
    verdict = dict(pair.split("=") for pair in capsys.readouterr().out.splitlines()[-1].split())
    assert float(verdict["val_bpb"]) == pytest.approx(1.9617, abs=0.02)


def test_resumed_equals_uninterrupted_bit_for_bit(small, tmp_path):
    """A run with dropout gets a signal after a step without evaluation.

    It resumes with more evaluations.
    """
    args = [
        *small,
        "--max_steps=24",
        "--dropout=0.2",
        "--dropout_schedule=triangle",
        "--eval_interval=10",
    ]
    train.main([*args, f"--out_dir={tmp_path / 'whole'}"])
    original = Data.batch
    calls = []

    def batch_and_interrupt(self, *a):
        calls.append(1)
        if len(calls) == 14:  # the first call only counts patches
            signal.raise_signal(signal.SIGTERM)
        return original(self, *a)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "batch", batch_and_interrupt)
        assert train.main([*args, f"--out_dir={tmp_path / 'parts'}"]) == 130
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == 13
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "interrupted"
    train.main(
        [
            *small[:1],
            f"--out_dir={tmp_path / 'parts'}",
            "--resume",
            "--eval_interval=3",
            "--eval_bytes=300",
        ]
    )
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_run_of_before_there_were_blocks_is_resumed_as_its_own_code_would(data_dir, tmp_path):
    """last_1254c3f.pt holds 5 steps of commit 1254c3f, whose trunk had four lists of layers.

    After 3 more steps the weights must match those that the commit itself reached. The .json file
    has the sum of each tensor and of its absolute values.
    """
    files = ROOT / "tests" / "files"
    expected = json.loads((files / "last_1254c3f.json").read_text())
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(files / "last_1254c3f.pt", out / "last.pt")
    train.main(["--resume", "--max_steps=8", f"--data_dir={data_dir}", f"--out_dir={out}"])
    weights = weights_of(out)
    for name, (total, absolute) in expected.items():
        part, _, rest = name.partition(".")
        if part in ("attention", "feed_forward"):
            name = f"blocks.{rest[0]}.{part}.{rest[2:]}"
        elif part == "canon":
            name = f"blocks.{int(rest[0]) // 2}.canon_{1 + int(rest[0]) % 2}.{rest[2:]}"
        w = weights[name].double()
        assert w.sum().item() == pytest.approx(total, abs=1e-3 * absolute), name
        assert w.abs().sum().item() == pytest.approx(absolute, rel=1e-4), name
    model, _ = load_model(out / "last.pt")
    assert sum(p.numel() for p in model.parameters()) == 11_352, (
        "the shared feed-forward must count once"
    )


def test_weights_of_other_code_are_refused_by_name(small, tmp_path):
    """After a user edits a layer, one line names the tensor, both shapes and the file's commit."""
    out = tmp_path / "run"
    train.main([*small, "--max_steps=1", f"--out_dir={out}"])
    good = load_checkpoint(out / "last.pt")
    name = "blocks.1.feed_forward.up.weight"
    other = {
        "wider": {name: torch.zeros(256, 32)},
        "more": {"blocks.1.feed_forward.gate.weight": torch.zeros(4, 4)},
    }
    for changes in other.values():
        torch.save(good | {"model": good["model"] | changes}, out / "last.pt")
        for command in (
            lambda: train.main(["--resume", "--max_steps=3", f"--out_dir={out}"]),
            lambda: load_model(out / "last.pt"),
        ):
            with pytest.raises(ValueError, match=r"last.pt .*blocks.1.feed_forward") as e:
                command()
            assert "saved by other code" in str(e.value) and good["commit"] in str(e.value)
            assert "\n" not in str(e.value)
            if name in changes:
                expected = tuple(good["model"][name].shape)
                assert "(256, 32)" in str(e.value) and str(expected) in str(e.value)


def test_resuming_with_the_same_config_file_keeps_what_the_command_line_said(small, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("max_steps = 9\nn_layer = 2\n")
    arguments = [a for a in small if not a.startswith("--max_seconds")]
    train.main([str(config), *arguments, "--max_steps=3", f"--out_dir={tmp_path / 'run'}"])
    train.main([str(config), "--resume", f"--out_dir={tmp_path / 'run'}"])
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 3


def test_evaluating_more_changes_no_training_loss(small, tmp_path):
    for name, interval in (("never", 0), ("often", 2)):
        train.main(
            [
                *small,
                "--max_steps=8",
                "--dropout=0.1",
                f"--eval_interval={interval}",
                f"--out_dir={tmp_path / name}",
            ]
        )
    assert losses(tmp_path / "never") == losses(tmp_path / "often")


PROBE = """
import sys, torch, train
step = torch.optim.AdamW.step
seen = []
def spy(self, *a, **k):
    if not seen:
        seen.append({i: p.grad.clone() for i, p in enumerate(train_model[0].parameters())})
        torch.save(seen[0], sys.argv[1])
    return step(self, *a, **k)
train_model = []
make = train.make_optimizers
def remember(model, *a):
    train_model.append(model)
    made = make(model, *a)
    made.reverse()  # AdamW first, so that the spy sees the gradients before any step
    return made
train.make_optimizers = remember
torch.optim.AdamW.step = spy
code = train.main(sys.argv[2:])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
sys.exit(code)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_processes(world, folder, args):
    """Run train.py in `world` processes of gloo.

    Each writes the gradients of its first step to FOLDER.RANK.pt.
    """
    probe = folder.parent / "probe.py"
    probe.write_text(PROBE)
    port = free_port()
    processes = []
    for rank in range(world):
        env = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": "",
        }
        command = [sys.executable, probe, f"{folder}.{rank}.pt", *args, f"--out_dir={folder}"]
        processes.append(subprocess.Popen(command, env=env))
    assert [p.wait(120) for p in processes] == [0] * world
    assert json.loads((folder / "run.json").read_text())["processes"] == world


def processes_of(commands, port, **more_env):
    """Start train.py with the arguments of each rank of two -> the (stderr, status) of each."""
    started = []
    for rank, args in enumerate(commands):
        env = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **more_env,
        }
        command = [sys.executable, ROOT / "train.py", *args]
        started.append(
            subprocess.Popen(
                command,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return [(p.communicate(timeout=120)[1], p.returncode) for p in started]


@pytest.mark.slow
def test_processes_with_other_text_stop_in_one_line(small, data_dir, tmp_path):
    text = (data_dir / "words" / "train.bin").read_bytes()
    val = (data_dir / "words" / "val.bin").read_bytes()
    write_dataset(tmp_path / "other" / "words", text.replace(b"the", b"eht"), val)
    args = [*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"]
    # A thread that aborts while the interpreter shuts down must not change the exit status.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n\n\n"
        "class Aborts:\n    def __del__(self, abort=os.abort):\n        abort()\n\n\n"
        "aborts = Aborts()\n"
    )
    ended = processes_of(
        [args, [*args, f"--data_dir={tmp_path / 'other'}"]],
        free_port(),
        PYTHONPATH=str(tmp_path),
    )
    sums = [
        json.loads((folder / "words" / "meta.json").read_text())["train"]["sha256"]
        for folder in (data_dir, tmp_path / "other")
    ]
    for said, status in ended:
        (line,) = [line for line in said.splitlines() if line.startswith("train.py: ")]
        assert status == 1 and "Traceback" not in said
        assert "data/words/train.bin" in line and all(x in line for x in sums)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_port_in_use_is_one_line(small, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        args = [*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"]
        [(said, status)] = processes_of([args], port)
    assert status == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("train.py: cannot connect 2 processes through ")
    assert f"127.0.0.1:{port}" in said and "--master_port" in said


@pytest.mark.parametrize(
    "objective",
    [
        "next_byte",
        pytest.param("next_patch", marks=pytest.mark.slow),
        pytest.param("game", marks=pytest.mark.slow),
        pytest.param("spin", marks=pytest.mark.slow),
    ],
)
def test_one_process_equals_two(objective, small, tmp_path):
    """1 process x 4 accumulations equals 2 gloo processes x 2.

    The first gradients agree to 1e-6, and the losses of 10 steps to 1e-4.
    """
    args = [*small, f"--objective={objective}"]
    if objective == "game":  # with an odd number of games to read
        args = ["config/selfplay_game.py", "--games=24", "--batch_bytes=891", "--pretrain=0.4"]
        args += ["--n_embd=16", "--n_head=1", "--n_local_embd=16", "--gram_rows=64"]
        args += ["--device=cpu", "--dtype=float32", "--log_interval=1", "--eval_interval=0"]
    if objective == "spin":
        train.main([*small, "--max_steps=5", f"--out_dir={tmp_path / 'base'}"])
        args = ["config/selfplay_text.py", f"--init_from={tmp_path / 'base'}", "--prefix_bytes=8"]
        args += ["--block_size=32", "--batch_bytes=256", "--spin_steps=3", "--eval_bytes=500"]
        args += ["--device=cpu", "--dtype=float32", "--log_interval=1", "--eval_interval=0"]
    args += ["--micro_batch=2", "--max_steps=10", "--grad_clip=0"]
    one = tmp_path / "one"
    two = tmp_path / "two"
    in_processes(1, one, args)
    in_processes(2, two, args)
    expected = torch.load(f"{one}.0.pt", weights_only=True)
    found = torch.load(f"{two}.0.pt", weights_only=True)
    for i, gradient in expected.items():
        assert (gradient - found[i]).norm() <= 1e-6 * gradient.norm() + 1e-12
    measure = "loss" if objective == "game" else "bpb"
    a, b = ({e["step"]: e[measure] for e in events(f) if e["event"] == "train"} for f in (one, two))
    assert len(a) == 10 and a == pytest.approx(b, rel=1e-4, abs=1e-4)
    a, b = (json.loads((folder / "run.json").read_text())["verdict"] for folder in (one, two))
    if objective != "game":
        assert float(a["val_bpb"]) == pytest.approx(float(b["val_bpb"]), rel=1e-4)


def test_killed_during_a_save_leaves_a_loadable_checkpoint(small, tmp_path):
    """Send SIGKILL to a run that does little else than save."""
    out = tmp_path / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *small,
        "--eval_interval=1",
        "--eval_bytes=32",
        "--max_steps=100000",
    ]
    process = subprocess.Popen(
        [*command, f"--out_dir={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.time() + 60
        while not (out / "best.pt").exists() and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(0.37)
    finally:
        process.kill()
        process.wait()
    steps = [load_checkpoint(out / name)["step"] for name in ("last.pt", "best.pt")]
    assert min(steps) >= 1
    train.main([*small, "--resume", f"--max_steps={max(steps) + 2}", f"--out_dir={out}"])
    assert load_checkpoint(out / "last.pt")["step"] == max(steps) + 2


def test_max_seconds_bounds_training_time(small, tmp_path, capsys):
    train.main([*small, "--max_seconds=1.5", f"--out_dir={tmp_path / 'run'}"])
    verdict = dict(pair.split("=") for pair in capsys.readouterr().out.splitlines()[-1].split())
    assert float(verdict["seconds"]) >= 1.5 and int(verdict["steps"]) >= 1
    steps = [e for e in events(tmp_path / "run") if e["event"] == "train"]
    assert all(e["elapsed"] < 1.5 for e in steps[:-1]), (
        "the first step that ends after max_seconds must be the last"
    )


def test_warm_up_follows_the_seconds_that_compiling_took_also_after_resuming(small, tmp_path):
    """A longer run once resumed with a negative learning rate.

    The checkpoint kept the compile time as a share of the first run's length.
    """
    out = f"--out_dir={tmp_path / 'run'}"
    train.main([*small, "--max_seconds=0.5", out])
    checkpoint = load_checkpoint(tmp_path / "run/last.pt")
    torch.save(checkpoint | {"compile_seconds": 0.3}, tmp_path / "run/last.pt")
    train.main(["--resume", "--max_seconds=1.5", "--log_interval=1", out])
    scales = [
        e["lr_scale"]
        for e in events(tmp_path / "run")
        if e["event"] == "train" and e["step"] > checkpoint["step"]
    ]
    assert min(scales) >= 0 and scales[0] > 0.5


def test_init_from_starts_at_the_other_runs_weights(small, tmp_path):
    train.main([*small, "--max_steps=20", f"--out_dir={tmp_path / 'a'}"])
    train.main(
        [*small, "--max_steps=1", f"--init_from={tmp_path / 'a'}", f"--out_dir={tmp_path / 'b'}"]
    )
    assert losses(tmp_path / "b")[1] < 6.5 < losses(tmp_path / "a")[1]
    train.main(["--resume", "--max_steps=3", f"--out_dir={tmp_path / 'b'}"])
    assert load_checkpoint(tmp_path / "b" / "last.pt")["step"] == 3
    with pytest.raises(ValueError, match=r"expected n_layer=2 as in .*best.pt, got 1"):
        train.main(
            [
                *small,
                "--n_layer=1",
                "--max_steps=1",
                f"--init_from={tmp_path / 'a'}",
                f"--out_dir={tmp_path / 'c'}",
            ]
        )


def test_nonfinite_loss_stops_and_keeps_the_last_good_checkpoint(small, tmp_path):
    out = tmp_path / "run"
    args = [
        *small,
        "--max_steps=50",
        "--eval_interval=5",
        "--warmup=0",
        "--grad_clip=0",
        "--n_grams=0",
    ]
    with pytest.raises(
        ValueError,
        match=r"step \d+: loss .*gradient norm .*"
        r"(--resume continues|--overwrite starts again).*--muon_lr=3.3e\+36",
    ) as e:
        train.main([*args, "--muon_lr=1e37", "--adam_lr=1e37", f"--out_dir={out}"])
    assert "\n" not in str(e.value)
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    for path in out.glob("*.pt"):
        assert all(torch.isfinite(w).all() for w in load_checkpoint(path)["model"].values())


def test_user_errors_are_one_line_with_the_fix(small, data_dir, tmp_path):
    out = tmp_path / "run"
    train.main([*small, "--max_steps=2", f"--out_dir={out}"])
    write_dataset(tmp_path / "tiny", b"too short", b"x")
    new = [*small, f"--out_dir={tmp_path / 'new'}"]
    cases = [
        (
            [*small, "--max_steps=2", f"--out_dir={out}"],
            ["already holds a run", "--resume", "--overwrite"],
        ),
        (
            [*small, "--resume", "--n_layer=3", "--max_steps=4", f"--out_dir={out}"],
            ["n_layer=3", "2", "on resume"],
        ),
        ([*small, "--resume", "--max_steps=4", "--out_dir=nowhere"], ["no checkpoint", "nowhere"]),
        (
            [*new, "--max_steps=2", "--batch_bytes=100", "--micro_batch=2"],
            ["batch_bytes=100", "32", "--batch_bytes=96"],
        ),
        ([*new, "--max_steps=2", "--dataset=absent"], ["absent", "words", "prepare.py"]),
        ([*new, "--max_steps=2", f"--data_dir={tmp_path}", "--dataset=tiny"], ["tiny", "9", "33"]),
        ([*new, "--max_steps=2", "--device=cuda:7"], ["cuda:7"]),
        ([*new, "--max_steps=2", "--device=gpu"], ["gpu"]),
        ([*new, "--max_steps=2", "words"], ["'words'", "--help"]),
    ]
    for argv, words in cases:
        with pytest.raises(ValueError) as e:
            train.main(argv)
        assert "\n" not in str(e.value)
        for word in words:
            assert word in str(e.value), str(e.value)
    (out / "last.pt").write_bytes((out / "last.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last.pt cannot be used.*damaged"):
        train.main([*small, "--resume", "--max_steps=4", f"--out_dir={out}"])
    done = run("train.py", "--n_leyer=3", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "n_layer" in done.stderr


def test_other_data_is_refused_on_resume(small, tmp_path):
    write_dataset(tmp_path / "a" / "words", b"first text " * 30, b"val text here")
    write_dataset(tmp_path / "b" / "words", b"other text " * 30, b"val text here")
    out = f"--out_dir={tmp_path / 'run'}"
    train.main([*small, f"--data_dir={tmp_path / 'a'}", "--max_steps=2", out])
    with pytest.raises(ValueError, match="sha256"):
        train.main([*small, f"--data_dir={tmp_path / 'b'}", "--max_steps=4", "--resume", out])


@pytest.mark.slow
def test_the_three_commands_work_on_a_fresh_clone(tmp_path):
    """Run prepare.py, one step of config/stlm_50m.py under torchrun, and sample.py.

    A user's mistake gives one line.
    """
    files = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "a.txt").write_text("Some text that is read from a file. " * 2000)
    run(tmp_path / "prepare.py", "a.txt", cwd=tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "train.py", "config/stlm_50m.py"]
    done = subprocess.run([*torchrun, "--n_leyer=3"], cwd=tmp_path, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]
    assert done.returncode == 1
    assert ours == ["train.py: command line: unknown key 'n_leyer'; did you mean 'n_layer'?"]
    short = ["--max_steps=1", "--batch_bytes=4096"]
    done = subprocess.run([*torchrun, *short], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("dataset=a, the newest")
    assert "49,935,168" in done.stdout
    done = run(tmp_path / "sample.py", "--max_new_bytes=20", cwd=tmp_path)
    assert "stlm_50m/best.pt: step 1, 49,935,168 parameters" in done.stderr and done.stdout


def test_a_run_of_days_says_so_in_its_first_line(small, tmp_path, capsys, monkeypatch):
    def first_step_of_a_minute(self):
        self.elapsed = 60.0
        self.on_signal(signal.SIGTERM, None)
        self.interrupted = True

    monkeypatch.setattr(train.Clock, "tick", first_step_of_a_minute)
    for steps, said in (
        (5000, "3.5 days left at this speed; --max_seconds=3600 trains for an hour"),
        (60, "0:59:00 left\n"),
    ):
        assert (
            train.main([*small, f"--max_steps={steps}", f"--out_dir={tmp_path / str(steps)}"])
            == 130
        )
        first = next(
            line for line in capsys.readouterr().out.splitlines(True) if line.startswith("step 1 ")
        )
        assert said in first


def test_without_a_dataset_the_newest_is_taken_and_a_missing_one_is_a_line(small, tmp_path, capsys):
    args = [a for a in small if not a.startswith(("--dataset", "--data_dir"))] + ["--max_steps=1"]
    write_dataset(tmp_path / "data/one", b"some words of text. " * 30, b"val text here")
    train.main([*args, f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}"])
    assert capsys.readouterr().out.startswith("dataset=one, the newest in ")
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["dataset"] == "one"
    tokens = ["--tokenizer=gpt2", "--pooling=none", "--max_patches=0", "--gpt2_vocab=500"]
    with pytest.raises(
        ValueError, match=r"run python prepare.py SOURCE --tokenizer=gpt2 --gpt2_vocab=500$"
    ):
        train.main(
            [*args, *tokens, f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'other'}"]
        )


def test_the_dtype_is_kept_on_resume_whatever_the_machine(small, tmp_path, monkeypatch):
    args = [a for a in small if not a.startswith("--dtype")]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, out, dtype in ((True, "a", "bfloat16"), (False, "b", "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        train.main([*args, "--max_steps=4", f"--out_dir={tmp_path / out / 'whole'}"])
        train.main(
            [*args, "--max_steps=4", "--eval_interval=2", f"--out_dir={tmp_path / out / 'parts'}"]
        )
        checkpoint = load_checkpoint(tmp_path / out / "parts/last.pt")
        assert checkpoint["dtype"] == checkpoint["muon_dtype"] == dtype
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: not has)
        train.main(["--resume", "--max_steps=6", f"--out_dir={tmp_path / out / 'parts'}"])
        assert load_checkpoint(tmp_path / out / "parts/last.pt")["dtype"] == dtype
        assert dtype in json.loads((tmp_path / out / "parts/run.json").read_text())["why"]


@pytest.mark.parametrize(
    "kind, share, wanted, T, rows",
    [
        ("cpu", 16, 16, 4096, 2),  # a pass has 8 KiB
        ("cpu", 16, 0, 512, 16),
        ("cpu", 6, 0, 4096, 2),
        ("cpu", 3, 0, 4096, 2),  # passes of 2 rows and of 1
        ("cpu", 37, 0, 512, 16),  # no divisor comes close
        ("cpu", 0, 0, 512, 1),  # more processes than rows, which train.py refuses later
        ("cpu", 4, 3, 512, 2),  # two passes of one size
        ("cpu", 2, 0, 16384, 1),
        ("cuda", 16, 16, 4096, 16),
        ("cuda", 16, 0, 4096, 16),
        ("cuda", 4, 16, 4096, 4),
    ],
)
def test_rows_of_a_pass(kind, share, wanted, T, rows):
    machine = Machine("cpu")
    machine.device = torch.device(kind)
    assert machine.rows_per_pass(share, wanted, T) == rows


def test_wandb_gets_what_the_log_gets(small, tmp_path, monkeypatch, capsys):
    class Stub:
        """The calls that train.py makes to wandb."""

        id = "abc"

        def init(self, **about):
            self.about = about
            self.logged = []
            return self

        def log(self, numbers, step):
            self.logged.append((step, numbers))

    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    train.main([*small, "--max_steps=2", "--wandb=tiny", f"--out_dir={tmp_path / 'run'}"])
    assert stub.about["project"] == "tiny"
    assert stub.about["name"] == "run"
    assert stub.about["config"]["max_steps"] == 2
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    of_log = [(e["step"], e["bpb"]) for e in log if e["event"] == "train"]
    assert [(step, n["train/bpb"]) for step, n in stub.logged if "train/bpb" in n] == of_log
    assert len(of_log) == 2
    assert sum("eval/bpb" in n for _, n in stub.logged) == 1

    # a resumed run is the same run there
    assert (stub.about["id"], stub.about["resume"]) == (None, "allow")
    resume = ["--resume", "--max_steps=4", "--wandb=tiny", f"--out_dir={tmp_path / 'run'}"]
    train.main(resume)
    assert (stub.about["id"], stub.about["resume"]) == ("abc", "allow")

    # If it fails, it is no more than an extra.
    monkeypatch.setattr(stub, "log", lambda *_, **__: 1 / 0)
    capsys.readouterr()
    train.main([*resume, "--max_steps=6"])
    said = capsys.readouterr()
    assert said.err.count("wandb: division by zero; going on without it") == 1
    assert said.out.splitlines()[-1].startswith("val_bpb=")

    # If it does not start, nothing is deleted and nothing is trained.
    def no_key(**_):
        raise RuntimeError("no API key\nin two lines")

    monkeypatch.setattr(stub, "init", no_key)
    last = (tmp_path / "run" / "last.pt").read_bytes()
    again = [*small, "--max_steps=2", "--wandb=tiny", f"--out_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="wandb=tiny: no API key; or train without --wandb") as e:
        train.main([*again, "--overwrite"])
    assert "\n" not in str(e.value)
    assert (tmp_path / "run" / "last.pt").read_bytes() == last

    monkeypatch.setitem(sys.modules, "wandb", None)  # as if wandb were not installed
    with pytest.raises(ValueError, match="pip install wandb"):
        train.main([*small, "--max_steps=2", "--wandb=tiny", f"--out_dir={tmp_path / 'other'}"])


def test_what_takes_long_at_the_end_is_announced(small, tmp_path, capsys):
    train.main([*small, "--max_steps=1", f"--out_dir={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    assert "evaluating all of val (0.0 MB)" in lines and lines[-1].startswith("val_bpb=")
