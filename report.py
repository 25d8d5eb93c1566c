"""The ledger of experiments: every run in out/ and results/ as tables and pictures (`python bench.py report`).

A run is a folder with run.json and log.jsonl (train.py writes them) and perhaps eval.json (bench.py eval). Runs that
differ in nothing but the seed (and the commit) make one row. Figures of other projects stand in results/peers.json.
"""

import dataclasses
import json
import math
import re
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from config import ROOT, build, load_file
from train import Config, clock, write_atomically

BEGIN, END = "<!-- written by `python bench.py report`: -->", "<!-- :end of what it writes -->"
# Keys that do not make another experiment of a run
ASIDE = {"dataset", "data_dir", "out_dir", "resume", "overwrite", "seed", "device", "config", "intuition"}
ASIDE |= {"eval_interval", "eval_bytes", "log_interval"}
TASKS = {"blimp": "BLiMP", "arc_easy": "ARC-E", "hellaswag": "HellaSwag", "winogrande": "WinoGr.", "mmlu": "MMLU"}


def warn(text):
    print(f"bench.py: {text}", file=sys.stderr)


def read_json(path):
    """A file's JSON object, or {} with a warning that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        warn(f"{path} is left out: not a JSON object")
    except (OSError, ValueError) as e:
        warn(f"{path} is left out: {e}")
    return {}


def read_log(path):
    """The events of a log.jsonl; lines that are not whole events are counted in a warning."""
    if not path.is_file():
        warn(f"{path.parent} has no log.jsonl")
        return []
    events, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            e = json.loads(line)
            if not all(math.isfinite(x) for x in (e["step"], e["elapsed"], e["time"], e.get("bpb", 0))):
                raise ValueError("a number is not finite")
            e["event"].strip()
            events.append(e)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            bad += 1
    if bad:
        warn(
            f"{path}: {bad} of {bad + len(events)} lines are not events (a killed run may leave half a line): left out"
        )
    return events


def number(x, kind=float):
    """x as a number, or None."""
    try:
        return kind(x) if math.isfinite(float(x)) else None
    except (TypeError, ValueError):
        return None


def read_run(folder, now):
    """What the tables and pictures need of one run, or None with a warning."""
    info, log = read_json(folder / "run.json"), read_log(folder / "log.jsonl")
    try:
        return take(folder, info, log, now) if info else None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        warn(f"{folder / 'run.json'} is left out: {type(e).__name__}: {e}")


def take(folder, info, log, now):
    cfg, parameters, data = info["config"], info["parameters"], info["data"]
    run = {"folder": folder, "log": log, "cfg": cfg, "config": str(cfg.get("config") or folder.name)}
    run |= {"seed": int(cfg["seed"]), "dataset": str(cfg["dataset"]), "intuition": str(cfg.get("intuition", ""))}
    run |= {"parameters": int(parameters["total"]), "tables": int(parameters.get("n-gram tables", 0))}
    hashes = [str(data[split].get("text_sha256") or data[split]["sha256"]) for split in ("val", "train")]
    run |= {"val": (hashes[0], int(data["val"]["bytes"])), "train": hashes[1]}
    train_bytes = int(data["train"]["bytes"])
    step, run["seconds"] = (log[-1][k] if log else float(info.get(k, 0)) for k in ("step", "elapsed"))
    run["bytes"] = step * int(cfg["batch_bytes"]) * train_bytes / int(data["train"].get("symbols", train_bytes))
    run["epochs"] = run["bytes"] / train_bytes
    run["share"] = step / cfg["max_steps"] if cfg.get("max_steps") else run["seconds"] / cfg["max_seconds"]
    verdict = info.get("verdict") or (log[-1] if log and log[-1]["event"] == "end" else {})
    run |= {"bpb": number(verdict.get("val_bpb")), "speed": number(verdict.get("bytes_per_second"))}
    run["status"] = str(info.get("status", "unknown"))
    if run["status"] == "running":  # its log is its heartbeat; a silence of many intervals is an end
        beats = [e["time"] for e in log][-20:]
        usual = (beats[-1] - beats[0]) / (len(beats) - 1) if len(beats) > 1 else 30
        run["silent"] = now - (beats[-1] if beats else number(info.get("updated")) or 0)
        run["status"] = "running" if run["silent"] < 120 + 20 * usual else "killed"
    run["device"] = str(info.get("device", "?"))
    run["device"] += f", {info.get('threads')} threads" if "cpu" in run["device"] else ""
    evaluation = read_json(folder / "eval.json") if (folder / "eval.json").is_file() else {}
    tasks = evaluation.get("tasks", {})
    well = isinstance(tasks, dict) and all(isinstance(v, dict) for v in tasks.values())
    if not well or not all(
        isinstance(v.get("acc"), (int, float)) and number(v["acc"]) is not None for v in tasks.values()
    ):
        warn(f"{folder / 'eval.json'}: its tasks are left out: they are not what bench.py eval writes")
        tasks = {}
    if tasks and (evaluation.get("weights") != "last.pt" or evaluation.get("step") != step):
        warn(f"{folder / 'eval.json'}: its tasks are left out: they are not those of the run's final weights")
        tasks = {}
    run["tasks"] = tasks
    return run


def read_runs():
    """All runs under results/ and out/; of a run and its copy, the one in results/ (unless the other went on)."""
    runs, now = {}, time.time()
    for path in [*sorted(Path("results").rglob("run.json")), *sorted(Path("out").rglob("run.json"))]:
        run = read_run(path.parent, now)
        if run:
            key = (run["config"], run["seed"], run["log"][0]["time"] if run["log"] else str(path))
            if key in runs and run["seconds"] <= runs[key]["seconds"]:
                runs[key]["tasks"] = runs[key]["tasks"] or run["tasks"]
            else:
                runs[key] = run
    return list(runs.values())


# --- what an experiment changes --------------------------------------------------------------------------------------


def config_file(name):
    """(values of config/NAME.py with all defaults, its docstring, the config it builds on) or None if it is gone."""
    path = ROOT / "config" / f"{name}.py"
    try:
        values, doc = load_file(Config, path)
        values = dataclasses.asdict(build(Config, values, path))
    except ValueError:
        return None
    parent = re.search(r"^from config\.(\w+) import \*", path.read_text(encoding="utf-8"), re.M)
    return values, doc, parent and parent[1]


def difference(values, base):
    """The knobs of a config that are not as in its base, as text; knobs that the base has never heard of as well."""
    keys = [k for k in values if k not in ASIDE and (k not in base or values[k] != base[k])]
    return ", ".join(f"{k}={values[k]:g}" if isinstance(values[k], float) else f"{k}={values[k]}" for k in keys)


def rows(runs):
    """Runs of one experiment, whatever their seed, together: [(config name, its change, [runs])]."""
    found, files = defaultdict(list), {}
    for run in runs:
        name = run["config"]
        files[name] = files[name] if name in files else config_file(name)
        gone = {f.name: f.default for f in dataclasses.fields(Config)}
        change = difference(run["cfg"], files[name][0] if files[name] else gone)
        found[name, change if files[name] else f"(its file is gone) {change}", run["device"], run["train"]].append(run)
    return [(name, change, group) for (name, change, *_), group in found.items()]


# --- the table -------------------------------------------------------------------------------------------------------


def mean(group, key):
    """Of the runs that have a bpb, if there are any."""
    ended = [r for r in group if r["bpb"] is not None] or group
    values = [r[key] for r in ended if r[key] is not None]
    return statistics.fmean(values) if values else None


def cells(name, change, group):
    bpb = [r["bpb"] for r in group if r["bpb"] is not None]
    spread = f" ({min(bpb):.3f} to {max(bpb):.3f})" if len(bpb) > 1 else ""
    speed, statuses = mean(group, "speed"), [r["status"] for r in group]
    yield f"`{name}`" + (f": {change}" if change else "")
    yield f"{group[0]['parameters']:,}"
    yield f"{group[0]['tables']:,}" if group[0]["tables"] else "-"
    yield ", ".join(str(r["seed"]) for r in group)
    yield f"{statistics.fmean(bpb):.3f}{spread}" if bpb else "-"
    yield f"{mean(group, 'bytes') / 1e6:,.1f} MB, {mean(group, 'epochs'):.2f}"
    yield f"{mean(group, 'seconds'):,.0f} s"
    yield f"{speed:,.0f}" if speed else "-"
    yield ", ".join(sorted({r["device"] for r in group}))
    for task in TASKS:
        scores = [r["tasks"][task] for r in group if task in r["tasks"]]
        n = f" (n={scores[0].get('n')})" if scores and scores[0].get("n") != scores[0].get("of") else ""
        yield f"{100 * statistics.fmean(s['acc'] for s in scores):.1f}{n}" if scores else "-"
    yield ", ".join(f"{statuses.count(s)} {s}" if len(set(statuses)) > 1 else s for s in sorted(set(statuses)))
    folder = group[0]["folder"]
    yield f"[log]({folder.as_posix()})" if folder.parts[0] == "results" else f"`{folder.as_posix()}`"


HEADS = ["experiment: what it changes", "parameters", "of which tables", "seeds", "val bpb", "bytes read, epochs"]
HEADS += ["training", "bytes/s", "device", *TASKS.values(), "status", ""]


def datasets(runs):
    """[(name of the data, bytes of its val, rows)], since bpb compares within one val file only."""
    by_val = defaultdict(list)
    for run in runs:
        by_val[run["val"]].append(run)
    found = [(min((r["dataset"] for r in group), key=len), val[1], rows(group)) for val, group in by_val.items()]
    return sorted(found, key=lambda d: (d[0], d[1]))


def markdown(runs):
    """The tables, a section for each val file, and why each config is there."""
    lines, why = [], {}
    for name, size, experiments in datasets(runs):
        lines += [f"### {name} (val: {size:,} bytes)", ""]
        experiments.sort(key=lambda e: (mean(e[2], "bpb") is None, mean(e[2], "bpb") or 0))
        table = [list(cells(*e)) for e in experiments]
        keep = [i for i in range(len(HEADS)) if HEADS[i] not in TASKS.values() or any(row[i] != "-" for row in table)]
        for row in [HEADS, ["---"] * len(HEADS), *table]:
            lines.append("| " + " | ".join(row[i].replace("|", "\\|").replace("\n", " ") for i in keep) + " |")
        lines.append("")
        why |= {config: group[0]["intuition"] for config, _, group in experiments}
    lines += ["### Why", ""]
    for config in sorted(why):
        base, file = "", config_file(config)
        if file and file[2] and (parent := config_file(file[2])):
            base = f" (`{file[2]}` with {difference(file[0], parent[0])})"
        lines.append(f"- `{config}`{base}: {' '.join((file[1] if file else why[config]).split()) or 'no docstring'}")
    return "\n".join([*lines, ""])


def write_table(path, text):
    """Put text between the markers of the file; without markers, at its end."""
    old = path.read_text(encoding="utf-8") if path.exists() else "# Experiments\n"
    if old.count(BEGIN) != old.count(END) or old.count(BEGIN) > 1 or old.find(BEGIN) > old.find(END):
        raise ValueError(f"{path}: the markers {BEGIN!r} and {END!r} must stand there once each, in this order")
    if BEGIN not in old:
        old = f"{old.rstrip()}\n\n## All runs\n\n{BEGIN}\n{END}\n"
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    write_atomically(path, lambda f: f.write(f"{before}{BEGIN}\n\n{text}\n{END}{after}".encode()))


# --- pictures --------------------------------------------------------------------------------------------------------


def peers():
    """Figures of other projects: [{"name", "val_bytes", "parameters", "seconds", "bpb", "source"}]."""
    path = Path("results/peers.json")
    return read_json(path).get("peers", []) if path.is_file() else []


def draw(runs, folder=Path("results")):
    """Write bpb_parameters.png, bpb_time.png and loss_curves.png: a panel for each val file of several experiments.

    Runs under a folder called `trials` are in the table only.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator

    done = [r for r in runs if r["status"] == "finished" and r["bpb"] is not None and "trials" not in r["folder"].parts]
    panels, written = [p for p in datasets(done) if len(p[2]) > 1], []
    pictures = {"bpb_parameters": "parameters", "bpb_time": "seconds of training", "loss_curves": "seconds of training"}
    for picture, xlabel in pictures.items() if panels else ():
        figure, axes = plt.subplots(
            1, len(panels), figsize=(6.2 * len(panels), 4.8), layout="constrained", squeeze=False
        )
        for ax, (name, size, experiments) in zip(axes[0], panels, strict=True):
            ylabel = "training loss, bits per byte" if picture == "loss_curves" else "val bits per byte"
            ax.set(title=name, xlabel=xlabel, ylabel=ylabel)
            ax.grid(alpha=0.3)
            if picture == "loss_curves":
                curves(ax, experiments)
            else:
                points(ax, experiments, "parameters" if picture == "bpb_parameters" else "seconds", size)
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
                ax.xaxis.set_minor_formatter("")
                ax.margins(y=0.15)
                low, high = ax.dataLim.intervalx
                wide = max(10, high / low)  # (times that differ by a second only should look it)
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide < 100 else (1, 3)))
                ax.set_xlim(low / wide**0.2, high * wide**0.6)  # names stand to the right of their points
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"{picture}.png")
        figure.savefig(written[-1], dpi=100)
        plt.close(figure)
    return written


UNNAMED = ("max_steps=", "max_seconds=", "micro_batch=", "(its file is gone)")  # where a picture has no room for all


def points(ax, experiments, key, val_bytes):
    """val bpb against parameters or time: the mean of the seeds, lowest to highest; other projects as grey crosses."""
    names = []  # [(x, bpb, name, color)]
    for peer in (p for p in peers() if p.get("val_bytes") == val_bytes and p.get(key) and p.get("bpb")):
        ax.plot(peer[key], peer["bpb"], "x", color="grey", ms=8)
        names.append((peer[key], peer["bpb"], peer["name"], "grey"))
    colors = {"space": "tab:red", "fixed": "tab:orange", "none": "tab:blue", "gpt2": "tab:green"}
    kinds = []
    for config, change, group in experiments:
        kind = "gpt2" if group[0]["cfg"].get("tokenizer") == "gpt2" else group[0]["cfg"].get("pooling")
        label = {"none": "plain bytes", "gpt2": "BPE"}.get(kind, f"pooled: {kind}")
        bpb, x = mean(group, "bpb"), mean(group, key)
        around = [[bpb - min(r["bpb"] for r in group)], [max(r["bpb"] for r in group) - bpb]]
        style = {"fmt": "o", "ms": 4 if change else 7, "alpha": 0.5 if change else 1, "capsize": 3}
        ax.errorbar(x, bpb, around, color=colors.get(kind), label=None if kind in kinds else label, **style)
        kinds.append(kind)
        gpu = "" if "cpu" in group[0]["device"] else ", GPU"
        knobs = [k for k in change.split(", ") if k and not k.startswith(UNNAMED)]
        said = f": {knobs[0]}" + " …" * (len(knobs) > 1) if knobs else ""
        names.append((x, bpb, f"{config}{gpu}{said}", "black"))
    ax.legend(fontsize=8)
    span, taken = max(n[1] for n in names) - min(n[1] for n in names) or 1, []
    for x, bpb, name, color in sorted(names, key=lambda n: -n[1]):
        y = bpb
        while any(abs(math.log(x / other)) < 1.5 and abs(y - there) < 0.05 * span for other, there in taken) or any(
            0.1 < math.log(other / x) < 1.5 and abs(y + 0.035 * span - there) < 0.05 * span
            for other, there, *_ in names
        ):
            y -= 0.01 * span  # below the name or the point in its way
        taken.append((x, y))
        place = {"xytext": (7, 4 + 200 * (y - bpb) / span), "textcoords": "offset points"}
        ax.annotate(name, (x, bpb), color=color, fontsize=8, **place)


def curves(ax, experiments, most=8):
    """Training loss against time, smoothed, of the best experiments: one seed each."""
    highest, lowest = 0.0, math.inf
    for name, change, group in sorted(experiments, key=lambda e: mean(e[2], "bpb"))[:most]:
        x, y = [], []
        for e in (e for e in group[0]["log"] if e["event"] == "train" and "bpb" in e):
            share = max(0.1, 1 / (1 + len(y)))  # a running mean at first, then a decaying one
            y.append(e["bpb"] if not y else y[-1] + share * (e["bpb"] - y[-1]))
            x.append(e["elapsed"])
        if y:
            ax.plot(x, y, lw=1.2, label=f"{name} {change}"[:48])
            highest, lowest = max(highest, y[len(y) // 8]), min(lowest, *y)
    if highest:
        ax.set_ylim(lowest * 0.97, highest * 1.05)
        ax.legend(fontsize=8)


# --- what is running -------------------------------------------------------------------------------------------------


def running(runs):
    """A line for each run that is going on, from its log."""
    for r in (r for r in runs if r["status"] == "running"):
        last = r["log"][-1] if r["log"] else {}
        left = f"{clock(r['seconds'] / r['share'] * max(0, 1 - r['share']))} left" if r["share"] > 0 else "starting"
        loss = next(
            (f"train {e['bpb']:.3f} bpb" for e in reversed(r["log"]) if e["event"] == "train" and "bpb" in e), ""
        )
        best = min((e["bpb"] for e in r["log"] if e["event"] == "eval" and "bpb" in e), default=None)
        parts = [f"{r['folder']}: step {last.get('step', 0):,} ({min(1, r['share']):.0%})", loss]
        parts += [f"best val {best:.3f}" if best else "", left, f"last heard {r['silent']:.0f} s ago"]
        yield " | ".join(p for p in parts if p)


def report():
    runs = read_runs()
    if not runs:
        raise ValueError("no runs under out/ or results/ yet: python train.py makes one, bench.py eval scores it")
    ended = [r for r in runs if r["status"] != "running"]
    if ended:  # (what is running now would be stale in a file)
        write_table(Path("EXPERIMENTS.md"), markdown(ended))
        print(f"{len(ended)} runs -> EXPERIMENTS.md" + "".join(f", {p}" for p in draw(ended)))
    if sys.stdout.isatty() or len(ended) < len(runs):
        lines = list(running(runs)) if sys.stdout.isatty() else []
        print("\n".join(["running now:", *lines]) if lines else "nothing is running now" * sys.stdout.isatty())
