"""The ledger of experiments: every run as a page and as pictures.

    python -m tools.report              # your runs in out/ -> out/RUNS.md and out/bpb_DATA.png; what is running
    python -m tools.report --publish    # those in results/ -> results/RUNS.md and results/bpb_DATA.png

A run is a folder with run.json and log.jsonl (train.py writes them) and perhaps eval.json (bench.py eval). Runs that
differ in nothing but seed and commit make one row, whose bpb is their mean; a seed that ran twice makes a second row.
Beside yours stand the published runs that were scored on the same text, in rows of their own, and in the pictures what
other projects reached (results/peers.json). Nothing that a run folder names is ever run or opened.
"""

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
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator
from matplotlib.transforms import Bbox

from config import ROOT
from lib.benchmarks import BENCHMARKS
from lib.files import duration, game_of, read_log, run_command, write_atomically

# Knobs that do not make another experiment of a run
ASIDE = {
    "dataset",
    "data_dir",
    "out_dir",
    "resume",
    "overwrite",
    "seed",
    "device",
    "config",
    "intuition",
}
ASIDE |= {"eval_interval", "eval_bytes", "log_interval"}
# Knobs of self-play, which say nothing about other runs
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


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def clean(text):
    """A text from a run's files on one line, in what UTF-8 can write."""
    return " ".join(str(text).encode(errors="replace").decode().split())


def read_run(folder, now):
    """What page and pictures need of a run. Raises where its files are not what run.py and bench.py write."""
    info, log = read_json(folder / "run.json"), read_log(folder / "log.jsonl")
    cfg, data, last, verdict = info["config"], info["data"], log[-1], info.get("verdict", {})
    if game_of(info):
        raise ValueError(
            "a game has no bits per byte; log.jsonl and its last line tell how it went"
        )
    text = {
        split: str(data[split].get("text_sha256") or data[split]["sha256"])
        for split in ("train", "val")
    }
    run = {
        "folder": folder,
        "log": log,
        "cfg": cfg,
        "status": clean(info["status"]),
        "seconds": last["elapsed"],
    }
    run |= {
        "name": re.sub(r"[-_]seed\d+$", "", clean(folder.name)),
        "mine": folder.parts[0] == "out",
    }
    run |= {key: clean(cfg[key]) for key in ("config", "dataset")} | {"seed": int(cfg["seed"])}
    run |= {
        "why": clean(str(cfg["intuition"]).split("\n\n")[0]),
        "changes": clean(flags(info["command"])),
    }
    run |= {
        "parameters": int(info["parameters"]["total"]),
        "tables": int(info["parameters"]["n-gram tables"]),
    }
    run |= {"val": (text["val"], int(data["val"]["bytes"])), "train": text["train"]}
    run["epochs"] = (
        last["step"]
        * int(cfg["batch_bytes"])
        / data["train"].get("symbols", data["train"]["bytes"])
    )
    run["bytes"] = run["epochs"] * data["train"]["bytes"]
    length, done = (
        (cfg["max_steps"], last["step"])
        if cfg["max_steps"]
        else (cfg["max_seconds"], last["elapsed"])
    )
    run["share"] = min(1.0, done / length)
    run |= {
        "bpb": float(verdict["val_bpb"]) if verdict else None,
        "speed": float(verdict.get("bytes_per_second", 0)),
    }
    if (
        run["status"] == "running"
    ):  # its log is its heartbeat; a silence of many intervals is an end
        intervals = [b["time"] - a["time"] for a, b in itertools.pairwise(log[-20:])] or [30]
        run["silent"] = now - last["time"]
        run["status"] = (
            "running" if run["silent"] < 120 + 20 * statistics.median(intervals) else "killed"
        )
    on_cpu, n = "cpu" in info["device"], info["threads"]
    run["device"] = clean(info["device"]) + f", {n} thread{'s' * (n > 1)}" * on_cpu
    scores = read_json(folder / "eval.json") if (folder / "eval.json").is_file() else {}
    run["tasks"] = {}
    run["scored_best"] = scores.get("weights") == "best.pt"
    # benchmarks count if they are of the final weights, or of the best ones of this very run
    if run["scored_best"] or (scores.get("weights"), scores.get("step")) == (
        "last.pt",
        last["step"],
    ):
        for task, v in scores["tasks"].items():
            run["tasks"][task] = (100 * float(v["acc"]), int(v["n"]), int(v["of"]))
    numbers = [run[key] for key in ("seconds", "epochs", "bytes", "share", "speed")] + [
        run["bpb"] or 0
    ]
    if (
        not all(map(math.isfinite, numbers))
        or not 0 < run["parameters"] < 1e15
        or (run["bpb"] or 1) <= 0
    ):
        raise ValueError(f"its figures cannot be: {numbers}, {run['parameters']} parameters")
    return run


def flags(command):
    """The --knob=value of a command that make it another experiment, as text."""
    words, found = shlex.split(command.replace("'", "").replace('"', ""))[1:], []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            value = (
                value
                if equals
                else "true"
                if following.startswith("--") or ".py" in following
                else following
            )
            found += [f"{key}={value}"] if key not in ASIDE else []
    return ", ".join(found)


def read_runs(publish):
    """All runs under results/ and, unless they are to be published, out/; of a run and its copy, the one in results/
    (unless the other went on). A folder that cannot be read is named and left out."""
    runs, now = {}, time.time()
    roots = ["results"] if publish else ["results", "out"]
    for path in (p for root in roots for p in sorted(Path(root).rglob("run.json"))):
        try:
            run = read_run(path.parent, now)
            key = (run["config"], run["seed"], run["log"][0]["time"])
            if key not in runs or run["seconds"] > runs[key]["seconds"]:
                runs[key] = run
        except Exception as e:  # whatever is in the folder
            print(f"report: {path.parent} is left out: {type(e).__name__}: {e}", file=sys.stderr)
    return sorted(runs.values(), key=lambda run: run["log"][0]["time"])


def datasets(runs):
    """[(name of the data, bytes of its val, experiments)], since bpb compares within one val file only. An experiment
    is a list of runs that differ in nothing but their seeds, so that their mean says something."""
    found, times = defaultdict(lambda: defaultdict(list)), defaultdict(int)
    for run in runs:  # (a knob that is 0 or empty is off: older versions do not have it)
        aside = ASIDE if run["cfg"].get("objective") == "spin" else ASIDE | SELF_PLAY
        knobs = json.dumps(
            {k: v for k, v in run["cfg"].items() if v and k not in aside}, sort_keys=True
        )
        same = ("val", "train", "config", "device", "parameters", "mine")
        key = (knobs, run["bpb"] is None, *(run[k] for k in same))
        times[key, run["seed"]] += 1  # a second run of a seed is no second seed
        found[run["val"]][key, times[key, run["seed"]]].append(run)
    name = lambda of: min((group[0]["dataset"] for group in of), key=len)  # noqa: E731
    return sorted(
        [(name(of.values()), val[1], list(of.values())) for val, of in found.items()],
        key=lambda d: d[:2],
    )


def mean(group, key):
    return statistics.fmean(run[key] for run in group)


# --- the page --------------------------------------------------------------------------------------------------------

HEADS = [
    "run",
    "config",
    "what it changes",
    "why",
    "parameters",
    "of which tables",
    "seeds",
    "val bpb",
]
HEADS += ["bytes read, epochs", "training", "bytes/s", "device", *TASKS.values(), "status"]


def cells(group, page):
    """The cells of an experiment's row in this page."""
    first, bpb = group[0], [r["bpb"] for r in group]  # (all have one, or none has)
    place = os.path.relpath(first["folder"], page.parent).replace(os.sep, "/")
    yield f"[{clean(place).translate({ord(c): None for c in '[]'})}]({urllib.parse.quote(place)})"
    yield f"`{first['config']}`"
    yield min((r["changes"] for r in group), key=len) or "-"
    yield first["why"] or "no docstring"
    yield f"{first['parameters']:,}"
    yield f"{first['tables']:,}" if first["tables"] else "-"
    yield ", ".join(str(r["seed"]) for r in sorted(group, key=lambda r: r["seed"]))
    spread = f" ({min(bpb):.3f} to {max(bpb):.3f})" if len(bpb) > 1 and bpb[0] else ""
    yield f"{statistics.fmean(bpb):.3f}{spread}" if bpb[0] else "-"
    yield f"{mean(group, 'bytes') / 1e6:,.1f} MB, {mean(group, 'epochs'):.2f}"
    yield f"{mean(group, 'seconds'):,.0f} s"
    yield f"{mean(group, 'speed'):,.0f}" if bpb[0] else "-"
    yield first["device"]
    for task in TASKS:
        scores = [r["tasks"][task] for r in group if task in r["tasks"]]
        notes = [f"{scores[0][1]} items"] if scores and scores[0][1] != scores[0][2] else []
        notes += [f"{len(scores)} of {len(group)} seeds"] if len(scores) < len(group) else []
        notes += ["best weights"] if any(r["scored_best"] for r in group) else []
        yield (
            f"{statistics.fmean(s[0] for s in scores):.1f}" + f" ({', '.join(notes)})" * bool(notes)
            if scores
            else "-"
        )
    yield ", ".join(
        dict.fromkeys(f"{r['status']} at {r['share']:.0%}".removesuffix(" at 100%") for r in group)
    )


def write_page(runs, found, page):
    """A table for each val file, and the configs that have no row in any."""
    when = (
        f" at {time.strftime('%Y-%m-%d %H:%M')}"
        if any(r["status"] == "running" for r in runs)
        else ""
    )
    rule = "Each table has its own val text: compare within it."
    lines = ["# All runs", "", f"Written by tools.report{when}. {rule}", ""]
    for name, size, experiments in found:
        lines += [f"## {name} (val: {size:,} bytes)", ""]
        best_first = sorted(
            experiments, key=lambda group: mean(group, "bpb") if group[0]["bpb"] else math.inf
        )
        table = [list(cells(group, page)) for group in best_first]
        keep = [
            i
            for i in range(len(HEADS))
            if HEADS[i] not in TASKS.values() or any(row[i] != "-" for row in table)
        ]
        for row in [HEADS, ["---"] * len(HEADS), *table]:
            lines.append(
                "| " + " | ".join(" ".join(row[i].replace("|", "\\|").split()) for i in keep) + " |"
            )
        lines.append("")
    lines += ["## Configs without a row here", ""]
    ran = {run["config"] for run in runs}
    for path in [
        p
        for folder in ("config", "config/races")
        for p in sorted((ROOT / folder).glob("[a-z]*.py"))
    ]:
        if path.stem not in ran:  # (its docstring is read, nothing is run)
            with contextlib.suppress(SyntaxError):
                why = (
                    ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "no docstring"
                )
                lines.append(f"- `{path.relative_to(ROOT).as_posix()}`: {clean(why)}")
    write_atomically(page, lambda f: f.write("\n".join([*lines, ""]).encode()))


# --- pictures --------------------------------------------------------------------------------------------------------

KINDS = {
    "space": ("pooled at spaces", "tab:red"),
    "fixed": ("pooled at fixed lengths", "tab:orange"),
}
KINDS |= {
    "none": ("plain bytes", "tab:blue"),
    "gpt2": ("BPE", "tab:green"),
    "peer": ("other projects", "grey"),
}


def races(experiments):
    """[(CPU or GPU, experiments that finished)], a pair for each kind of race: minutes apart from hours."""
    found = defaultdict(list)
    for group in experiments:
        parent = group[0]["folder"].parent.name
        a_table_shows_it = not group[0]["mine"] and parent in (
            "objectives",
            "repeat",
        )  # many of one size
        if group[0]["bpb"] and not a_table_shows_it:
            length = sum(mean(group, "seconds") >= limit for limit in (600, 3600, 36000, 360000))
            found["CPU" if "cpu" in group[0]["device"] else "GPU", length].append(group)
    return [(key[0], found[key]) for key in sorted(found) if len(found[key]) > 1]


def draw(found, folder):
    """For each val file a picture of bpb against parameters, with a panel for each kind of race. Returns the paths."""
    paths, peers = [], read_json(ROOT / "results" / "peers.json")["peers"]
    slugs = [
        re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name, *_ in found
    ]  # (it may be called ../../x)
    for slug, (name, val_bytes, experiments) in zip(slugs, found, strict=True):
        panels = races(experiments)
        others = [
            [p | {"mine": False, "cfg": {"pooling": "peer"}}]
            for p in peers
            if p["val_bytes"] == val_bytes
        ]
        figure = Figure(figsize=(8 * len(panels), 6.5), layout="constrained") if panels else None
        for i, (device, race) in enumerate(panels):
            seconds, sizes = (
                [mean(group, key) for group in race] for key in ("seconds", "parameters")
            )
            sizes += [other[0]["parameters"] for other in others]
            span = " to ".join(dict.fromkeys(map(duration, (min(seconds), max(seconds)))))
            ax = figure.add_subplot(
                1, len(panels), i + 1, xscale="log", xlim=(min(sizes) / 4, max(sizes) * 4)
            )
            title = (
                f"{name}: {span} of training on a {device}\nlower is better; a bar spans the seeds"
            )
            ax.set_title(title, fontsize=10, parse_math=False)
            ax.set(xlabel="parameters, tables of n-grams among them", ylabel="val bits per byte")
            ax.secondary_yaxis(
                "right", (lambda y: y * math.log(2), lambda y: y / math.log(2))
            ).set_ylabel("nats")
            ax.grid(alpha=0.3)
            ax.margins(y=0.2)
            names = points(ax, [*race, *others])
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_minor_formatter("")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            figure.draw_without_rendering()  # (now it is known where everything stands)
            write_names(ax, names)
        if panels:
            twice = f"_{experiments[0][0]['val'][0][:8]}" * (slugs.count(slug) > 1)
            paths.append(folder / f"bpb_{slug}{twice}.png")
            paths[-1].unlink(missing_ok=True)  # (savefig would write through a link)
            figure.savefig(paths[-1], dpi=90)
    return paths


def points(ax, race):
    """A dot for each experiment, a square if it is the reader's own, a cross for each peer: [(x, y, name, color)]."""
    names, shown = [], set()
    for group in race:
        cfg, values = group[0]["cfg"], [r["bpb"] for r in group]
        x, bpb = group[0]["parameters"], statistics.fmean(values)
        kind, color = KINDS.get(
            "gpt2" if cfg.get("tokenizer") == "gpt2" else str(cfg.get("pooling")), KINDS["none"]
        )
        marker, ink = (
            ("x", "grey") if color == "grey" else ("s" if group[0]["mine"] else "o", "black")
        )
        bar = (
            {"yerr": [[bpb - min(values)], [max(values) - bpb]], "capsize": 3}
            if len(values) > 1
            else {}
        )
        ax.errorbar(
            x, bpb, fmt=marker, ms=6, color=color, label=None if kind in shown else kind, **bar
        )
        shown.add(kind)
        names.append((x, bpb, f"{group[0]['name']}{' (yours)' * group[0]['mine']} {bpb:.3f}", ink))
    ax.legend(fontsize=8)
    return names


def write_names(ax, names):
    """Write each name as near to its dot as there is room, with a line to it where it had to move away."""
    around = [
        (math.cos(a * math.pi / 8), math.sin(a * math.pi / 8))
        for a in (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 4, 12)
    ]
    taken, point = [ax.get_legend().get_window_extent()], ax.figure.dpi / 72
    dots = [ax.transData.transform(name[:2]) for name in names]
    for x, y, name, color in sorted(names, key=lambda n: -n[1]):
        dot = ax.transData.transform((x, y))
        line = {
            "arrowstyle": "-",
            "color": color,
            "lw": 0.5,
            "alpha": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
        }
        style = {
            "textcoords": "offset points",
            "fontsize": 8,
            "va": "center",
            "arrowprops": line,
            "color": color,
        }
        text = ax.annotate(name, (x, y), xytext=(0, 0), in_layout=False, parse_math=False, **style)
        width, height = Text.get_window_extent(text).size
        for dx, dy in ((r * dx, r * dy) for r in range(9, 200, 4) for dx, dy in around):
            left = dot[0] + dx * point - (0 if dx > 1 else width if dx < -1 else width / 2)
            box = Bbox.from_bounds(left, dot[1] + dy * point - height / 2, width, height).padded(2)
            free = not any(box.overlaps(other) for other in taken) and not any(
                box.contains(*dot) for dot in dots
            )
            if free and ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max):
                break
        text.set(position=(dx, dy), ha="left" if dx > 1 else "right" if dx < -1 else "center")
        taken.append(box)


# --- what is running -------------------------------------------------------------------------------------------------


def running(runs):
    """A line for each run that is going on, from its log."""
    for r in (r for r in runs if r["status"] == "running"):
        newest = {e["event"]: e["bpb"] for e in r["log"] if "bpb" in e}
        losses = "".join(f"{event} {bpb:.3f} bpb | " for event, bpb in newest.items())
        left = (
            duration(r["seconds"] / r["share"] * (1 - r["share"]))
            if r["share"] > 0
            else "unknown time"
        )
        bar = f"[{'#' * round(20 * r['share']):<20}] {r['share']:.0%}, step {r['log'][-1]['step']:,.0f}"
        yield f"{r['folder']} {bar} | {losses}{left} left | last heard {r['silent']:.0f} s ago"


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(__doc__.strip())
        return
    publish = "--publish" in argv
    if unknown := [word for word in argv if word != "--publish"]:
        raise ValueError(f"what is {unknown[0]!r}? There is only --publish; see --help")
    folder, runs = Path("results" if publish else "out"), read_runs(publish)
    shown = [run for run in runs if publish or run["mine"]]
    if not shown:
        raise ValueError(f"no runs in {folder}/ yet: `python train.py` makes the first one in out/")
    found = [d for d in datasets(runs) if publish or any(group[0]["mine"] for group in d[2])]
    write_page(runs, found, folder / "RUNS.md")
    written = [folder / "RUNS.md", *draw(found, folder)]
    print(f"{len(shown)} run{'s' * (len(shown) > 1)} -> {', '.join(map(str, written))}")
    print("\n".join(running(shown)) or "nothing is running now")


if __name__ == "__main__":
    run_command(main)
