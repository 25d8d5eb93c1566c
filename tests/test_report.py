"""tools.report shows the results of runs, and never runs a file that their folders name."""

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from config import Config
from tools import report


def write_run(
    folder, flags="", status="finished", bpb=1.5, age=0.0, seconds=20.0, val="val", **knobs
):
    """A run as train.py leaves it."""
    folder.mkdir(parents=True)
    cfg = dataclasses.asdict(
        Config(config="demo", intuition="Why not.", dataset="d", max_steps=80, **knobs)
    )
    data = {s: {"bytes": 1000, "symbols": 1000, "sha256": s} for s in ("train", val)}
    data["val"] = data.pop(val)
    info = {
        "command": f"train.py config/demo.py {flags}",
        "config": cfg,
        "data": data,
        "status": status,
    }
    info |= {"parameters": {"total": 1000, "n-gram tables": 10}, "device": "x86 cpu", "threads": 2}
    log = [{"event": "train", "step": s, "elapsed": s * 1.0, "bpb": 8 - s / 10} for s in range(20)]
    log += [{"event": "eval", "step": 20, "elapsed": seconds, "bpb": bpb}]
    if status == "finished":
        info["verdict"] = {"val_bpb": str(bpb), "bytes_per_second": 99}
    log = [e | {"time": time.time() - age + e["step"] - 20 + cfg["seed"] % 1000} for e in log]
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(page):
    """The cells of each table row in this page, by the run's folder."""
    found = {}
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if line.startswith("| run |"):
            columns = cells
        elif "](" in line:
            folder = cells[0].split("](")[0][1:]
            found[folder] = dict(zip(columns, cells, strict=True))
    return found


def test_published_runs_are_grouped_by_seed_with_what_they_change(home, capsys):
    for seed, bpb in ((1, 1.5), (2, 1.7)):
        write_run(home / f"results/a-seed{seed}", f"--seed={seed}", seed=seed, bpb=bpb)
    command = "--share_ffn config/demo.py --n_loop 3 --seed=3"
    folder = write_run(home / "results/loop", command, n_loop=3, share_ffn=True, bpb=1.4, seed=3)
    tasks = {"blimp": {"n": 10, "of": 10, "acc": 0.625}, "mmlu": {"n": 5, "of": 90, "acc": 0.25}}
    (folder / "eval.json").write_text(
        json.dumps({"weights": "last.pt", "step": 20, "tasks": tasks})
    )
    write_run(home / "results/dead", "--dropout=0.5", status="interrupted", seed=4, dropout=0.5)
    write_run(home / "out/mine", seed=5, bpb=1.1)
    for _ in range(2):  # the second call must change nothing
        report.main(["--publish"])
    found = rows(Path("results/RUNS.md"))
    text = Path("results/RUNS.md").read_text()
    assert list(found) == ["loop", "a-seed1", "dead"], (
        "the best comes first, an unfinished run last, and no run of out/"
    )
    assert found["loop"]["what it changes"] == "share_ffn=true, n_loop=3"
    assert "| 62.5 | 25.0 (5 items) |" in text
    assert found["a-seed1"]["seeds"] == "1, 2"
    assert found["a-seed1"]["val bpb"] == "1.600 (1.500 to 1.700)"
    assert found["a-seed1"]["why"] == "Why not."
    assert found["a-seed1"]["device"] == "x86 cpu, 2 threads"
    assert "dropout=0.5" in found["dead"]["what it changes"] and "interrupted at 25%" in text
    assert "- `config/stlm_100m.py`: 100M parameters" in text
    assert "config/demo.py" not in text, "the list must leave out a config that has runs"
    assert Path("results/bpb_d.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("out/RUNS.md").exists()
    assert capsys.readouterr().err == ""


def test_a_readers_run_and_a_published_one_are_never_averaged_nor_two_runs_of_one_seed(home):
    for i, (seed, bpb) in enumerate(((1, 1.5), (2, 1.7))):
        write_run(home / f"results/d-seed{i}", seed=seed, bpb=bpb)
    path = write_run(home / "results/elsewhere", seed=1, bpb=1.0, val="another") / "run.json"
    info = json.loads(path.read_text())
    info["config"]["config"] = "gpt2_124m"
    path.write_text(json.dumps(info))
    for name, seed, bpb in (("first", 1, 1.2), ("again", 1, 1.9), ("other", 2, 1.4)):
        write_run(
            home / "out" / name,
            seed=seed,
            bpb=bpb,
            age={"first": 500, "again": 400, "other": 300}[name],
        )
    copy = write_run(home / "out/copy-of-d", seed=2, bpb=1.7)
    (copy / "log.jsonl").write_text((home / "results/d-seed1/log.jsonl").read_text())
    report.main([])
    found = {
        name: (row["seeds"], row["val bpb"]) for name, row in rows(Path("out/RUNS.md")).items()
    }
    assert found == {
        "first": ("1, 2", "1.300 (1.200 to 1.400)"),
        "again": ("1", "1.900"),
        # The reader's copy of a published run does not count as the reader's own.
        "../results/d-seed0": ("1, 2", "1.600 (1.500 to 1.700)"),
    }
    assert sorted(p.name for p in Path("out").glob("*.*")) == ["RUNS.md", "bpb_d.png"]
    # A config that only ran on another text has no row here.
    assert "`config/gpt2_124m.py`" in Path("out/RUNS.md").read_text()
    assert not Path("results/RUNS.md").exists()


def test_folders_that_cannot_be_read_are_named_and_left_out(home, capsys):
    write_run(home / "out/good")
    half = write_run(home / "out/half", seed=2, bpb=1.25)
    with open(half / "log.jsonl", "a") as f:
        f.write('{"event": "tr')  # a kill during a write leaves half a line
    odd = {
        "empty": "",
        "list": "[]",
        "bare": "{}",
        "odd": '{"config": 3, "data": [], "parameters": 1, "command": 0}',
    }
    for name, text in odd.items():
        (home / "out" / name).mkdir()
        (home / "out" / name / "run.json").write_text(text)
    (write_run(home / "out/gone", seed=3) / "log.jsonl").unlink()
    spoilt = {
        "seedless": ("seed", []),
        "endless": ("max_steps", 0),
        "sizeless": ("batch_bytes", "x"),
        "game": ("objective", "game"),
    }
    for name, (key, value) in spoilt.items():
        path = write_run(home / "out" / name, seed=4) / "run.json"
        info = json.loads(path.read_text())
        info["config"][key] = value
        path.write_text(json.dumps(info))
    stale = {"weights": "last.pt", "step": 10, "tasks": {"blimp": {"n": 10, "of": 10, "acc": 0.99}}}
    (write_run(home / "out/stale", seed=5) / "eval.json").write_text(json.dumps(stale))
    report.main([])
    warned = capsys.readouterr().err
    for name in (*odd, "gone", *spoilt):
        assert f"report: skipping out/{name}: " in warned
    text = Path("out/RUNS.md").read_text()
    assert "(1.250 to 1.500)" in text
    assert "99.0" not in text
    assert warned.count("\n") == 10, "one of the warnings must be about the half line"
    assert "a game has no bits per byte" in warned


def test_nothing_that_a_run_folder_names_is_run_or_written(home):
    """The report once looked up the config's name from run.json as a file, and ran it."""
    (home / "evil.py").write_text(f"open({str(home / 'owned')!r}, 'w')")
    names = (str(home / "evil"), "../evil", "evil", str(home / "evil.py"))
    for i, name in enumerate(names):
        path = (
            write_run(home / f"out/{i}", f"{name} --config={name}", seed=i + 1, bpb=1 + i / 10)
            / "run.json"
        )
        info = json.loads(path.read_text())
        info["config"] |= {
            "config": name,
            "dataset": "../../elsewhere/x",
            "intuition": "a | b\n| c |",
        }
        path.write_text(json.dumps(info))
    report.main([])
    assert not (home / "owned").exists() and str(home / "evil") in Path("out/RUNS.md").read_text()
    assert sorted(p.name for p in home.rglob("*.png")) == ["bpb_elsewhere_x.png"]
    assert len(rows(Path("out/RUNS.md"))) == len(names)
    assert "a \\| b \\| c \\|" in Path("out/RUNS.md").read_text()


def test_only_a_copy_of_a_published_run_is_no_run_of_ones_own(home):
    write_run(home / "results/published", seed=1)
    copy = write_run(home / "out/copy", seed=1)
    (copy / "log.jsonl").write_text((home / "results/published/log.jsonl").read_text())
    with pytest.raises(ValueError, match=r"copies of published ones do not count"):
        report.main([])


def test_a_folder_whose_name_is_not_utf8_does_not_end_the_report(home):
    write_run(home / "out/caf\udce9", seed=1)
    write_run(home / "out/good", seed=2, n_layer=2)
    report.main([])
    found = rows(Path("out/RUNS.md"))
    assert list(found) == ["caf?", "good"]
    assert "caf%E9" in found["caf?"]["run"]


def test_kinds_of_race_have_panels_of_their_own(home):
    """Nobody can compare 20 minutes of a CPU with 3 minutes of a GPU."""
    for i, (device, seconds) in enumerate(
        (("x86 cpu", 1), ("x86 cpu", 500), ("x86 cpu", 1200), ("NVIDIA H200", 1))
    ):
        for n_layer in (2, 3):
            path = write_run(
                home / f"out/{i}-{n_layer}", dropout=i / 9, n_layer=n_layer, seconds=seconds
            )
            info = json.loads((path / "run.json").read_text())
            (path / "run.json").write_text(json.dumps(info | {"device": device}))
    [(name, _, experiments)] = report.by_dataset(report.read_runs(publish=False))
    kinds = [
        (on, sorted(group[0].name for group in race)) for on, race in report.races(experiments)
    ]
    assert kinds == [
        ("CPU", ["0-2", "0-3", "1-2", "1-3"]),
        ("CPU", ["2-2", "2-3"]),
        ("GPU", ["3-2", "3-3"]),
    ]
    assert report.draw([(name, 7, experiments)], Path("out")) == [Path("out/bpb_d.png")]


def test_a_picture_has_a_line_for_each_experiment_the_best_on_top():
    rows = report.picture_rows([], [])
    for name, bpbs in (("a", [2.0]), ("$b", [1.5, 1.7]), ("c", [1.8])):
        rows.append(report.Row(name, 80_000, bpbs, "space"))
    figure = Figure(figsize=(9, 2))
    left, right = figure.subplots(1, 2, sharey="row")
    report.draw_race(left, right, sorted(rows, key=lambda row: -row.bpbs[0]))
    figure.draw_without_rendering()
    shown = [label.get_text() for label in left.get_yticklabels()]
    assert shown == ["a", "c", "$b"]
    assert [text.get_text() for text in right.texts] == ["2.000", "1.800", "1.600"]
    assert [text.get_text() for text in left.texts] == ["0.08M"] * 3
    boxes = [text.get_window_extent() for text in (*left.texts, *right.texts)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_what_is_running_is_told_from_its_heartbeat(home, capsys):
    with pytest.raises(ValueError, match=r"no runs in out/ yet .*: .python train.py"):
        report.main([])
    with pytest.raises(ValueError, match=r"unexpected argument '--puplish'"):
        report.main(["--puplish"])
    write_run(home / "out/alive", status="running", seed=1)
    write_run(home / "out/killed", status="running", seed=2, age=9999)
    report.main([])
    out = capsys.readouterr().out
    line = "out/alive [#####               ] 25%, step 20 | train 6.100 bpb | eval 1.500 bpb | "
    assert line + "0:01:00 left" in out
    assert "out/killed" not in out
    text = Path("out/RUNS.md").read_text()
    assert "killed at 25%" in text
    assert "running at 25%" in text
    assert " at 20" in text, "the page must say when the runs had this status"


def change(folder, **changes):
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | changes))


def test_a_run_of_edited_code_is_marked_and_not_published(home, capsys):
    write_run(home / "results/clean")
    for place in ("results/edited", "out/edited"):
        change(write_run(home / place, seed=2), commit="1254c3f-dirty")
    report.main(["--publish"])
    said = capsys.readouterr().err
    assert "results/edited: it was trained with edited code (1254c3f-dirty)" in said
    assert set(rows(home / "results/RUNS.md")) == {"clean"}
    report.main([])
    assert "edited code (1254c3f-dirty)" in rows(home / "out/RUNS.md")["edited"]["status"]


FOREIGN = "<img src=x> [a](http://e.com) ![b](c.png) `d` | www.e.com\n\n# e\n\n```\n---"


def test_foreign_text_is_text_in_the_page(home):
    folder = write_run(home / "out" / "[a](b) <i>", f"--wandb='{FOREIGN}'")
    config = json.loads((folder / "run.json").read_text())["config"]
    config |= {"config": FOREIGN, "intuition": FOREIGN, "dataset": FOREIGN}
    change(folder, config=config, device=FOREIGN + "cpu", status=FOREIGN, commit=FOREIGN)
    report.main([])
    page = (home / "out/RUNS.md").read_text()
    page = re.sub(r"(?<!\\)`[^`\n]*`", "", page)  # code is shown as it is
    assert "<img" not in page and "<i>" not in page and "http:" not in page and "www." not in page
    assert [line for line in page.splitlines() if line.startswith("#")][3:] == []
    table = page.split("## Configs without")[0]
    assert len(re.findall(r"(?<!\\)\]\(", table)) == 1  # the link to the run
    assert "```" not in page and "\n---" not in page


def test_pictures_that_cannot_be_drawn_are_one_line(home, capsys, monkeypatch):
    for seed, bpb in ((1, 1.5), (2, 1.4)):
        write_run(home / f"out/a{seed}", f"--seed={seed} --n_layer={seed}", bpb=bpb, n_layer=seed)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    report.main([])
    said = capsys.readouterr()
    assert said.err == "the pictures were not drawn: division by zero\n"
    assert "runs: 2 -> out/RUNS.md\n" in said.out
    assert len(rows(home / "out/RUNS.md")) == 2


@pytest.mark.parametrize(
    "content", [[], {"tasks": "x"}, {"tasks": {"blimp": {"acc": "x"}}, "weights": "best.pt"}]
)
def test_scores_that_somebody_else_wrote_do_not_end_the_report(content, home, capsys):
    write_run(home / "out/a")
    write_run(home / "out/b", seed=2)
    (home / "out/b/eval.json").write_text(json.dumps(content))
    report.main([])
    if content == []:  # the folder is named, and left out
        assert rows(home / "out/RUNS.md")["a"]["seeds"] == "1337"
    else:
        (row,) = rows(home / "out/RUNS.md").values()
        assert row["seeds"] == "2, 1337"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "eval.json" in said
