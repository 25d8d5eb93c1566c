"""The ledger of experiments: every run in a table and in pictures.

    python -m tools.report              # your runs in out/ -> out/RUNS.md and out/bpb_DATA.png
    python -m tools.report --publish    # the runs in results/ -> results/RUNS.md and pictures there

It also prints the progress of whatever is running. A run is a folder with run.json and log.jsonl
(from train.py) and perhaps eval.json (from bench.py eval). Runs that differ only in seed and commit
share a row, which shows their mean; a seed that ran twice starts a second row. Published runs with
the same val text get rows, too, and the pictures add the results of other projects
(results/peers.json). Runs of edited code are marked, and not published. Nothing that a run's files
name is ever run or opened.
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import ast
import contextlib
import itertools
import json
import math
import os
import re
import shlex
import statistics
import sys
import time
import urllib.parse
import warnings
from collections import defaultdict, namedtuple
from pathlib import Path
from types import SimpleNamespace

from config import ROOT
from lib.benchmarks import BENCHMARKS
from lib.files import (
    duration,
    extra,
    game_of,
    markdown_text,
    read_json,
    read_log,
    run_command,
    write_atomically,
)

# Knobs ignored when runs are grouped; by_dataset compares config file and machine itself.
NOT_COMPARED = {
    "dataset",
    "data_dir",
    "out_dir",
    "resume",
    "overwrite",
    "seed",
    "device",
    "config",
    "intuition",
    "eval_interval",
    "eval_bytes",
    "log_interval",
}
# Knobs of self-play make no difference to other runs.
SELF_PLAY = {
    "play_lr",
    "game",
    "games",
    "pretrain",
    "openings",
    "random_games",
    "entropy",
    "entropy_end",
    "prefix_bytes",
    "spin_steps",
    "spin_beta",
    "next_byte_weight",
}
TASKS = {task: label for task, (label, _) in BENCHMARKS.items()}
SCORES = {"acc": float, "n": int, "of": int}  # of a task in eval.json


# --- reading runs ---------------------------------------------------------------------------------


def clean(text):
    """Text from a run's files, on one line and without characters that UTF-8 cannot write."""
    return " ".join(str(text).encode(errors="replace").decode().split())


def read_run(folder, now):
    """What table and pictures need of a run.

    Raises all kinds of errors if its files are not as train.py writes them.
    """
    info = read_json(folder / "run.json")
    log = read_log(folder / "log.jsonl")
    if game_of(info):
        raise ValueError("a game has no bits per byte; its log.jsonl says how it went")
    knobs = info["config"]
    train = info["data"]["train"]
    val = info["data"]["val"]
    verdict = info.get("verdict", {})
    last = log[-1]
    epochs = last["step"] * int(knobs["batch_bytes"]) / train.get("symbols", train["bytes"])
    if knobs["max_steps"]:
        share = last["step"] / knobs["max_steps"]
    else:
        share = last["elapsed"] / knobs["max_seconds"]
    tasks, scored_best = read_tasks(folder / "eval.json", last["step"])
    run = SimpleNamespace(
        folder=folder,
        name=re.sub(r"[-_]seed\d+$", "", clean(folder.name)),
        is_mine=folder.parts[0] == "out",
        log=log,  # the events in log.jsonl
        knobs=knobs,  # the whole config
        config=clean(knobs["config"]),  # the name of its file
        dataset=clean(knobs["dataset"]),
        seed=int(knobs["seed"]),
        why=clean(str(knobs["intuition"]).split("\n\n")[0]),
        changes=clean(changes_in(info["command"])),
        device=device_of(info),
        parameters=int(info["parameters"]["total"]),
        tables=int(info["parameters"]["n-gram tables"]),  # of these parameters
        train=text_hash(train),
        val=(text_hash(val), int(val["bytes"])),
        n_bytes=epochs * train["bytes"],  # text read in training
        epochs=epochs,
        seconds=last["elapsed"],  # of training
        share=min(1.0, share),  # of the planned length
        bpb=float(verdict["val_bpb"]) if verdict else None,  # of all of val; None: not finished
        speed=float(verdict.get("bytes_per_second", 0)),
        tasks=tasks,  # benchmark -> (accuracy in %, items scored, items there are)
        scored_best=scored_best,  # the tasks were scored with best.pt
        status=status_of(info, log, now),
        commit=clean(info.get("commit")),
        silent=now - last["time"],  # seconds since the last event
    )
    for key in ("parameters", "seconds", "epochs", "n_bytes", "share", "speed", "bpb"):
        value = getattr(run, key)
        if value is not None and not 0 <= value < 1e15:
            raise ValueError(f"expected {key} between 0 and 1e15, got {value}")
    if run.bpb == 0 or run.parameters == 0:
        raise ValueError(
            f"expected bpb and parameters above 0, got bpb={run.bpb}, parameters={run.parameters}"
        )
    return run


def text_hash(data):
    """The sha256 of a split's text; for tokens that of the text they stand for."""
    return str(data.get("text_sha256") or data["sha256"])


def device_of(info):
    name = clean(info["device"])
    if "cpu" not in name:
        return name
    threads = info["threads"]
    return f"{name}, 1 thread" if threads == 1 else f"{name}, {threads} threads"


def status_of(info, log, now):
    """The run's status. A run that claims to be running but has long been silent was killed."""
    status = clean(info["status"])
    if status != "running":
        return status
    intervals = [after["time"] - before["time"] for before, after in itertools.pairwise(log[-20:])]
    usual = statistics.median(intervals) if intervals else 30
    return "running" if now - log[-1]["time"] < 120 + 20 * usual else "killed"


def read_tasks(path, last_step):
    """-> (benchmarks in eval.json, whether best.pt was scored).

    They count only if they score the final weights or best.pt, not an earlier last.pt.
    """
    if not path.is_file():
        return {}, False
    found = read_json(path, {"weights": str, "step": int, "tasks": {"*": SCORES}})
    weights = found.get("weights")
    is_final = weights == "last.pt" and found.get("step") == last_step
    tasks = {}
    if is_final or weights == "best.pt":
        for task, result in found.get("tasks", {}).items():
            if result.keys() == SCORES.keys():
                tasks[task] = (100 * result["acc"], result["n"], result["of"])
    return tasks, weights == "best.pt"


def changes_in(command):
    """The knobs in a command that set its experiment apart from the config file's, as text."""
    words = shlex.split(command.replace("'", "").replace('"', ""))[1:]
    found = []
    for i, word in enumerate(words):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            # The next word is the value, unless it is another knob or the config file.
            value = words[i + 1] if i + 1 < len(words) else "--"
            if value.startswith("--") or ".py" in value:
                value = "true"
        if key not in NOT_COMPARED:
            found.append(f"{key}={value}")
    return ", ".join(found)


def read_runs(publish):
    """All runs under results/ and, without `publish`, also under out/.

    A run that was copied from out/ to results/ counts once, in results/ (unless the one in out/ has
    gone on). Folders that cannot be read are named and skipped.
    """
    now = time.time()
    paths = sorted(Path("results").rglob("run.json"))
    if not publish:
        paths += sorted(Path("out").rglob("run.json"))
    runs = {}
    for path in paths:
        try:
            run = read_run(path.parent, now)
        except Exception as e:  # a folder may hold anything
            print(f"report: skipping {path.parent}: {type(e).__name__}: {e}", file=sys.stderr)
            continue
        if publish and run.commit.endswith("-dirty"):
            print(
                f"report: skipping {path.parent}: it was trained with edited code ({run.commit}): "
                "commit the code and train again",
                file=sys.stderr,
            )
            continue
        key = (run.config, run.seed, run.log[0]["time"])
        if key not in runs or run.seconds > runs[key].seconds:
            runs[key] = run
    return sorted(runs.values(), key=lambda run: run.log[0]["time"])


def by_dataset(runs):
    """[(dataset, bytes of its val, experiments)]: bpb can be compared within one val text only.

    An experiment is a list of runs that agree in everything compared here, but not in their seeds.
    """
    groups = defaultdict(lambda: defaultdict(list))
    n_times = defaultdict(int)
    for run in runs:
        ignored = NOT_COMPARED
        if run.knobs.get("objective") != "spin":
            ignored = NOT_COMPARED | SELF_PLAY
        # A knob that is 0 or empty is off. Leave it out, because older runs may lack it.
        knobs = {key: value for key, value in run.knobs.items() if value and key not in ignored}
        experiment = (
            json.dumps(knobs, sort_keys=True),
            run.bpb is None,
            run.val,
            run.train,
            run.config,
            run.device,
            run.parameters,
            run.is_mine,
        )
        # The second run of a seed starts an experiment of its own.
        n_times[experiment, run.seed] += 1
        groups[run.val][experiment, n_times[experiment, run.seed]].append(run)

    found = []
    for (_, n_bytes), experiments in groups.items():
        experiments = list(experiments.values())
        name = min((group[0].dataset for group in experiments), key=len)
        found.append((name, n_bytes, experiments))
    return sorted(found, key=lambda dataset: dataset[:2])


def mean(group, key):
    return statistics.fmean(getattr(run, key) for run in group)


# --- the page -------------------------------------------------------------------------------------


def cells(group, page):
    """An experiment's row of the table, by column. The link leads to its first seed."""
    first = group[0]
    is_finished = first.bpb is not None  # by_dataset: then all are
    place = os.path.relpath(first.folder, page.parent).replace(os.sep, "/")
    config = re.sub("[`|]", "", first.config)  # the rest is text between backticks
    megabytes = mean(group, "n_bytes") / 1e6
    row = {
        "run": f"[{markdown_text(place)}]({urllib.parse.quote(os.fsencode(place))})",
        "config": f"`{config}`",
        # the shortest: some commands spell out defaults
        "what it changes": markdown_text(min((run.changes for run in group), key=len)) or "-",
        "why": markdown_text(first.why) or "no docstring",
        "parameters": f"{first.parameters:,}",
        "of which tables": f"{first.tables:,}" if first.tables else "-",
        "seeds": ", ".join(str(seed) for seed in sorted(run.seed for run in group)),
        "val bpb": bpb_cell(group),
        "bytes read, epochs": f"{megabytes:,.1f} MB, {mean(group, 'epochs'):.2f}",
        "training": f"{mean(group, 'seconds'):,.0f} s",
        "bytes/s": f"{mean(group, 'speed'):,.0f}" if is_finished else "-",
        "device": markdown_text(first.device),
    }
    for task, column in TASKS.items():
        row[column] = task_cell(group, task)
    statuses = []
    for run in group:
        statuses.append(run.status if run.share == 1 else f"{run.status} at {run.share:.0%}")
        if run.commit.endswith("-dirty"):
            statuses.append(f"edited code ({run.commit})")
    row["status"] = markdown_text(", ".join(dict.fromkeys(statuses)))  # each once, in order
    return row


def bpb_cell(group):
    values = [run.bpb for run in group]
    if values[0] is None:  # then it is None for all
        return "-"
    text = f"{statistics.fmean(values):.3f}"
    if len(values) > 1:
        text += f" ({min(values):.3f} to {max(values):.3f})"
    return text


def task_cell(group, task):
    scores = [run.tasks[task] for run in group if task in run.tasks]
    if not scores:
        return "-"
    accuracies, n_items, n_all = zip(*scores, strict=True)
    notes = []
    if n_items[0] != n_all[0]:
        notes.append(f"{n_items[0]} items")
    if len(scores) < len(group):
        notes.append(f"{len(scores)} of {len(group)} seeds")
    if any(run.scored_best for run in group):
        notes.append("best weights")
    text = f"{statistics.fmean(accuracies):.1f}"
    if notes:
        text += f" ({', '.join(notes)})"
    return text


def table(experiments, page):
    """The lines of a Markdown table, the lowest bpb first. It leaves out tasks nobody scored."""

    def bpb_or_last(group):
        return mean(group, "bpb") if group[0].bpb else math.inf

    rows = [cells(group, page) for group in sorted(experiments, key=bpb_or_last)]
    columns = []
    for column in rows[0]:
        if column not in TASKS.values() or any(row[column] != "-" for row in rows):
            columns.append(column)
    lines = [markdown_row(columns), markdown_row("---" for _ in columns)]
    for row in rows:
        lines.append(markdown_row(row[column] for column in columns))
    return lines


def markdown_row(texts):
    return "| " + " | ".join(texts) + " |"


def write_page(runs, datasets, page):
    """A table for each val text, then the configs that have not been run."""
    when = ""
    if any(run.status == "running" for run in runs):
        when = f" at {time.strftime('%Y-%m-%d %H:%M')}"
    rule = "Each table has its own val text: compare runs only within a table."
    lines = ["# All runs", "", f"Written by tools.report{when}. {rule}", ""]
    for name, n_bytes, experiments in datasets:
        lines += [
            f"## {markdown_text(name)} (val: {n_bytes:,} bytes)",
            "",
            *table(experiments, page),
            "",
        ]

    lines += ["## Configs without a row here", ""]
    with_row = {run.config for run in runs}
    paths = sorted((ROOT / "config").glob("[a-z]*.py"))
    paths += sorted((ROOT / "config" / "races").glob("[a-z]*.py"))
    for path in paths:
        if path.stem in with_row:
            continue
        # Parse the file for its docstring; never run it.
        with contextlib.suppress(SyntaxError):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            why = markdown_text(docstring or "no docstring")
            lines.append(f"- `{path.relative_to(ROOT).as_posix()}`: {why}")
    text = "\n".join([*lines, ""])
    write_atomically(page, lambda file: file.write(text.encode()))


# --- pictures -------------------------------------------------------------------------------------

KINDS = {
    "space": ("pooled at spaces", "tab:red"),
    "fixed": ("pooled at fixed lengths", "tab:orange"),
    "none": ("plain bytes", "tab:blue"),
    "gpt2": ("BPE", "tab:green"),
    "peer": ("other projects", "grey"),
}
Row = namedtuple("Row", "name parameters bpbs kind")  # bpbs: one for each seed


def races(experiments):
    """[(CPU or GPU, finished experiments)] by kind of race: minutes and hours are kept apart."""
    found = defaultdict(list)
    for group in experiments:
        first = group[0]
        # EXPERIMENTS.md has separate tables for the runs in these folders, all of one size
        is_in_table = not first.is_mine and first.folder.parent.name in ("objectives", "repeat")
        if first.bpb is None or is_in_table:
            continue
        device = "CPU" if "cpu" in first.device else "GPU"
        seconds = mean(group, "seconds")
        length = sum(1 for limit in (600, 3600, 36000, 360000) if seconds >= limit)
        found[device, length].append(group)
    return [(key[0], found[key]) for key in sorted(found) if len(found[key]) > 1]


def picture_rows(race, peers):
    """The rows of a picture, the highest bpb first."""
    rows = [Row(peer["name"], peer["parameters"], [peer["bpb"]], "peer") for peer in peers]
    for group in race:
        first = group[0]
        kind = first.knobs.get("pooling")
        if first.knobs.get("tokenizer") == "gpt2":
            kind = "gpt2"
        if kind not in KINDS:
            kind = "none"
        name = f"{first.name} (yours)" if first.is_mine else first.name
        rows.append(Row(name, first.parameters, [run.bpb for run in group], kind))
    return sorted(rows, key=lambda row: -statistics.fmean(row.bpbs))


def draw(datasets, folder):
    """A picture for each val text, with two panels for each kind of race. Returns the paths."""
    from matplotlib.figure import Figure

    all_peers = read_json(ROOT / "results" / "peers.json")["peers"]
    # A dataset's name may be anything, ../../x too.
    slugs = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name, _, _ in datasets]
    paths = []
    for slug, (name, n_bytes, experiments) in zip(slugs, datasets, strict=True):
        found = races(experiments)
        if not found:
            continue
        peers = [peer for peer in all_peers if peer["val_bytes"] == n_bytes]
        pictured = [picture_rows(race, peers) for _, race in found]
        heights = [len(rows) + 3 for rows in pictured]
        figure = Figure(figsize=(9, 0.27 * sum(heights)), layout="constrained")
        panels = figure.subplots(
            len(found),
            2,
            sharey="row",
            squeeze=False,
            height_ratios=heights,
            width_ratios=(1, 2),
        )
        for (device, race), rows, (left, right) in zip(found, pictured, panels, strict=True):
            seconds = [mean(group, "seconds") for group in race]
            span = duration(min(seconds))
            if duration(max(seconds)) != span:
                span += f" to {duration(max(seconds))}"
            right.set_title(f"{name}: {span} on a {device}", fontsize=10, parse_math=False)
            draw_race(left, right, rows)
        if slugs.count(slug) > 1:
            slug += f"_{experiments[0][0].val[0][:8]}"
        path = folder / f"bpb_{slug}.png"
        path.unlink(missing_ok=True)  # savefig would write through a link
        with warnings.catch_warnings(action="ignore"):  # of a font that lacks a character
            figure.savefig(path, dpi=90)
        paths.append(path)
    return paths


def draw_race(left, right, rows):
    """A line for each experiment: its parameters on the left, its bpb on the right.

    A bar spans the seeds.
    """
    from matplotlib.ticker import EngFormatter

    style = {"textcoords": "offset points", "xytext": (7, 0), "va": "center", "fontsize": 8}
    shown = set()
    for y, (_, parameters, bpbs, kind) in enumerate(rows):
        label, color = KINDS[kind]
        if kind in shown:
            label = None  # the legend has it
        shown.add(kind)
        left.plot(parameters, y, "o", color=color)
        left.annotate(f"{parameters / 1e6:.2f}M", (parameters, y), **style)
        bpb = statistics.fmean(bpbs)
        bar = [[bpb - min(bpbs)], [max(bpbs) - bpb]]
        right.errorbar(bpb, y, xerr=bar, fmt="o", capsize=3, color=color, label=label)
        right.annotate(f"{bpb:.3f}", (max(bpbs), y), **style)
    left.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8, parse_math=False)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.xaxis.set_minor_formatter("")
    left.set_xlabel("parameters, n-gram tables included", fontsize=8)
    left.margins(x=0.3)
    right.set_xlabel("bits per byte of val: lower is better", fontsize=8)
    right.margins(x=0.12)
    right.legend(fontsize=8, loc="upper right")
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)


# --- running now ----------------------------------------------------------------------------------


def progress_line(run):
    """How far a running run is, from its log."""
    newest = {}  # kind of event -> bpb
    for event in run.log:
        if "bpb" in event:
            newest[event["event"]] = event["bpb"]
    bar = "#" * round(20 * run.share)
    step = run.log[-1]["step"]
    parts = [f"{run.folder} [{bar:<20}] {run.share:.0%}, step {step:,}"]
    for kind, bpb in newest.items():
        parts.append(f"{kind} {bpb:.3f} bpb")
    if run.share > 0:
        total = run.seconds / run.share
        parts.append(f"{duration(total - run.seconds)} left")
    parts.append(f"last event {run.silent:.0f} s ago")
    return " | ".join(parts)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(__doc__.strip())
        return
    for word in argv:
        if word != "--publish":
            raise ValueError(f"unexpected argument {word!r}: the only one is --publish; see --help")
    publish = "--publish" in argv
    folder = Path("results" if publish else "out")
    runs = read_runs(publish)
    shown = runs if publish else [run for run in runs if run.is_mine]
    if not shown:
        raise ValueError(
            f"no runs in {folder}/ yet (copies of published ones do not count): `python train.py` "
            "makes the first one in out/"
        )

    # Keep only runs on a val text that one of the shown runs has, too.
    vals = {run.val for run in shown}
    runs = [run for run in runs if run.val in vals]
    datasets = by_dataset(runs)
    write_page(runs, datasets, folder / "RUNS.md")
    written = [folder / "RUNS.md"]
    with extra("the pictures were not drawn"):
        written += draw(datasets, folder)
    print(f"runs: {len(shown)} -> {', '.join(str(path) for path in written)}")
    alive = [progress_line(run) for run in shown if run.status == "running"]
    print("\n".join(alive) or "nothing is running now")


if __name__ == "__main__":
    run_command(main)
