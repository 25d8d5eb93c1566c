"""What report.py writes must be what the runs did, and nothing that a run folder names may be run."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

import report
from config import Config


def write_run(folder, flags="", status="finished", bpb=1.5, age=0.0, **knobs):
    """A run as train.py leaves it."""
    folder.mkdir(parents=True)
    cfg = dataclasses.asdict(Config(config="demo", intuition="Why not.", dataset="d", max_steps=80, **knobs))
    data = {s: {"bytes": 1000, "symbols": 1000, "sha256": s} for s in ("train", "val")}
    info = {"command": f"train.py config/demo.py {flags}", "config": cfg, "data": data, "status": status}
    info |= {"parameters": {"total": 1000, "n-gram tables": 10}, "device": "x86 cpu", "threads": 2}
    log = [{"event": "train", "step": s, "elapsed": s * 1.0, "bpb": 8 - s / 10} for s in range(20)]
    log += [{"event": "eval", "step": 20, "elapsed": 20.0, "bpb": bpb}]
    if status == "finished":
        info["verdict"] = {"val_bpb": str(bpb), "bytes_per_second": 99}
    log = [e | {"time": time.time() - age + e["elapsed"] - 20 + cfg["seed"] % 1000} for e in log]
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prose_stays_seeds_are_grouped_and_flags_are_told(home, capsys):
    for seed, bpb in ((1, 1.5), (2, 1.7)):
        write_run(home / f"results/a{seed}", f"--seed={seed}", seed=seed, bpb=bpb)
    folder = write_run(
        home / "results/loop",
        "--share_ffn config/demo.py --n_loop 3 --seed=3",
        n_loop=3,
        share_ffn=True,
        bpb=1.4,
        seed=3,
    )
    tasks = {"blimp": {"n": 10, "of": 10, "acc": 0.625}, "mmlu": {"n": 5, "of": 90, "acc": 0.25}}
    (folder / "eval.json").write_text(json.dumps({"weights": "last.pt", "step": 20, "tasks": tasks}))
    write_run(home / "results/dead", "--dropout=0.5", status="interrupted", seed=4, dropout=0.5)
    copy = write_run(home / "out/copy-of-a1", seed=1, bpb=1.5)
    (copy / "log.jsonl").write_text((home / "results/a1/log.jsonl").read_text())
    Path("EXPERIMENTS.md").write_text(f"# Mine\n\nbefore\n\n{report.BEGIN}\nstale\n{report.END}\n\nafter: é\n")
    for _ in range(2):
        report.main([])
    text = Path("EXPERIMENTS.md").read_text()
    assert text.startswith("# Mine\n\nbefore\n") and text.endswith("\n\nafter: é\n") and "stale" not in text
    lines = [line for line in text.splitlines() if line.startswith("| `demo`")]
    assert len(lines) == 3 and "- `demo`: Why not." in text
    assert "share_ffn=true, n_loop=3 |" in lines[0] and "| 62.5 |" in lines[0] and "25.0 (n=5)" in lines[0]
    assert "| 1, 2 |" in lines[1] and "1.600 (1.500 to 1.700)" in lines[1] and "[log](results/a1)" in lines[1]
    assert "dropout=0.5" in lines[2] and "interrupted" in lines[2]
    assert Path("results/bpb_parameters.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""
    Path("EXPERIMENTS.md").write_text(f"{report.END} {report.BEGIN}")
    with pytest.raises(ValueError, match="markers"):
        report.main([])


def test_folders_that_cannot_be_read_are_named_and_left_out(home, capsys):
    write_run(home / "out/good")
    half = write_run(home / "out/half", seed=2, bpb=1.25)
    with open(half / "log.jsonl", "a") as f:
        f.write('{"event": "tr')  # killed while it wrote
    odd = {"empty": "", "list": "[]", "bare": "{}", "odd": '{"config": 3, "data": [], "parameters": 1, "command": 0}'}
    for name, text in odd.items():
        (home / "out" / name).mkdir()
        (home / "out" / name / "run.json").write_text(text)
    (write_run(home / "out/gone", seed=3) / "log.jsonl").unlink()
    stale = {"weights": "last.pt", "step": 10, "tasks": {"blimp": {"n": 10, "of": 10, "acc": 0.99}}}
    (write_run(home / "out/stale", seed=4) / "eval.json").write_text(json.dumps(stale))
    report.main([])
    warned = capsys.readouterr().err
    for name in (*odd, "gone"):
        assert f"out/{name} is left out" in warned
    text = Path("EXPERIMENTS.md").read_text()
    assert "(1.250 to 1.500)" in text and "99.0" not in text and warned.count("\n") == 5


def test_no_code_is_run_whatever_a_run_folder_names(home):
    """A config's name in run.json was once looked up as a file and run."""
    (home / "evil.py").write_text(f"open({str(home / 'owned')!r}, 'w')")
    for i, name in enumerate((str(home / "evil"), "../evil", "evil", str(home / "evil.py"))):
        path = write_run(home / f"results/{i}", f"{name} --config={name}", seed=i + 1) / "run.json"
        info = json.loads(path.read_text())
        info["config"]["config"] = name
        path.write_text(json.dumps(info))
    report.main([])
    assert not (home / "owned").exists() and str(home / "evil") in Path("EXPERIMENTS.md").read_text()


def test_what_is_running_is_told_from_its_heartbeat(home, capsys):
    with pytest.raises(ValueError, match=r"no runs under out/ or results/ yet: python train.py"):
        report.main([])
    write_run(home / "out/alive", status="running", seed=1)
    os.utime(write_run(home / "out/killed", status="running", seed=2, age=9999) / "run.json")
    report.main([])
    out = capsys.readouterr().out
    assert "running now" in out and "out/alive: step 20 (25%)" in out and "0:01:00 left" in out
    assert "out/killed" not in out
    text = Path("EXPERIMENTS.md").read_text()
    assert "killed |" in text and "alive" not in text, "what is running would be stale in a file"
