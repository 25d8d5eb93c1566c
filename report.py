"""The ledger of experiments: every run in out/ and results/ as tables and pictures.

    python report.py          # a table -> EXPERIMENTS.md, between its markers; a picture -> results/; what is running

A run is a folder with run.json and log.jsonl (train.py writes them) and perhaps eval.json (bench.py eval). Runs that
differ in nothing but the seed (and the commit) make one row; the flags of its command say what it changes. Figures of
other projects stand in results/peers.json. Nothing that a run folder names is ever run or opened.
"""

import json
import math
import shlex
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from common import duration, write_atomically

BEGIN, END = "<!-- written by `python report.py`: -->", "<!-- :end of what it writes -->"
# Knobs that do not make another experiment of a run
ASIDE = {"dataset", "data_dir", "out_dir", "resume", "overwrite", "seed", "device", "config", "intuition"}
ASIDE |= {"eval_interval", "eval_bytes", "log_interval"}
TASKS = {"blimp": "BLiMP", "arc_easy": "ARC-E", "hellaswag": "HellaSwag", "winogrande": "WinoGr.", "mmlu": "MMLU"}


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_run(folder, now):
    """What the tables and pictures need of one run. Raises where its files are not what train.py and bench.py write."""
    info = read_json(folder / "run.json")
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines if line.endswith("}")]  # (a killed run may leave half a line)
    cfg, data, last = info["config"], info["data"], log[-1]
    run = {
        "folder": folder,
        "log": log,
        "cfg": cfg,
        "config": cfg["config"] or folder.name,
        "flags": flags(info["command"]),
    }
    run |= {key: cfg[key] for key in ("seed", "dataset", "intuition")} | {"status": info["status"]}
    run |= {"parameters": info["parameters"]["total"], "tables": info["parameters"]["n-gram tables"]}
    run |= {"val": (data["val"].get("text_sha256") or data["val"]["sha256"], data["val"]["bytes"])}
    run |= {"train": data["train"].get("text_sha256") or data["train"]["sha256"], "seconds": float(last["elapsed"])}
    symbols = data["train"].get("symbols", data["train"]["bytes"])
    run["epochs"] = last["step"] * cfg["batch_bytes"] / symbols
    run["bytes"] = run["epochs"] * data["train"]["bytes"]
    run["share"] = last["step"] / cfg["max_steps"] if cfg["max_steps"] else last["elapsed"] / cfg["max_seconds"]
    verdict = info.get("verdict", {})
    run |= {"bpb": float(verdict["val_bpb"]) if verdict else None, "speed": verdict.get("bytes_per_second")}
    if run["status"] == "running":  # its log is its heartbeat; a silence of many intervals is an end
        beats = [e["time"] for e in log][-20:]
        usual = (beats[-1] - beats[0]) / (len(beats) - 1) if len(beats) > 1 else 30
        run["silent"] = now - beats[-1]
        run["status"] = "running" if run["silent"] < 120 + 20 * usual else "killed"
    run["device"] = info["device"] + (f", {info['threads']} threads" if "cpu" in info["device"] else "")
    scores = read_json(folder / "eval.json") if (folder / "eval.json").is_file() else {"tasks": {}}
    of_final_weights = (scores.get("weights"), scores.get("step")) == ("last.pt", last["step"])
    tasks = scores["tasks"] if of_final_weights else {}
    return run | {"tasks": {task: (100 * v["acc"], v["n"], v["of"]) for task, v in tasks.items()}}


def flags(command):
    """The --knob=value of a command that make it another experiment, as text."""
    words, found = shlex.split(command)[1:], []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            value = value if equals else "true" if following.startswith("--") or ".py" in following else following
            found += [f"{key}={value}"] if key not in ASIDE else []
    return ", ".join(found)


def read_runs():
    """All runs under results/ and out/; of a run and its copy, the one in results/ (unless the other went on).

    A folder that cannot be read is named and left out.
    """
    runs, now = {}, time.time()
    for path in [*sorted(Path("results").rglob("run.json")), *sorted(Path("out").rglob("run.json"))]:
        try:
            run = read_run(path.parent, now)
            key = (run["config"], run["seed"], run["log"][0]["time"])
            if key not in runs or run["seconds"] > runs[key]["seconds"]:
                runs[key] = run
        except Exception as e:  # whatever is in the folder
            print(f"report.py: {path.parent} is left out: {type(e).__name__}: {e}", file=sys.stderr)
    return list(runs.values())


def experiments_of(runs):
    """Runs of one experiment, whatever their seed, together: [(config name, its flags, [runs])]."""
    found = defaultdict(list)
    for run in runs:  # (a knob that is 0 or empty is off: older versions do not have it)
        knobs = json.dumps({k: v for k, v in run["cfg"].items() if v and k not in ASIDE}, sort_keys=True)
        found[run["config"], knobs, run["device"], run["train"]].append(run)
    return [(name, min((run["flags"] for run in group), key=len), group) for (name, *_), group in found.items()]


# --- the table -------------------------------------------------------------------------------------------------------


def mean(group, key):
    """Mean of a figure over the runs that finished; over all of them if none did."""
    finished = [r for r in group if r["bpb"] is not None] or group
    values = [r[key] for r in finished if r[key] is not None]
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
        n = f" (n={scores[0][1]})" if scores and scores[0][1] != scores[0][2] else ""
        yield f"{statistics.fmean(s[0] for s in scores):.1f}{n}" if scores else "-"
    yield ", ".join(f"{statuses.count(s)} {s}" if len(set(statuses)) > 1 else s for s in sorted(set(statuses)))
    folder = group[0]["folder"]
    yield f"[log]({folder.as_posix()})" if folder.parts[0] == "results" else f"`{folder.as_posix()}`"


HEADS = ["experiment: what it changes", "parameters", "of which tables", "seeds", "val bpb", "bytes read, epochs"]
HEADS += ["training", "bytes/s", "device", *TASKS.values(), "status", ""]


def datasets(runs):
    """[(name of the data, bytes of its val, experiments)], since bpb compares within one val file only."""
    by_val = defaultdict(list)
    for run in runs:
        by_val[run["val"]].append(run)
    name = lambda group: min((r["dataset"] for r in group), key=len)  # noqa: E731
    found = [(name(group), val[1], experiments_of(group)) for val, group in by_val.items()]
    return sorted(found, key=lambda d: d[:2])


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
        why |= {name: group[0]["intuition"] for name, _, group in experiments}
    lines += ["### Why", "", *(f"- `{name}`: {' '.join(why[name].split()) or 'no docstring'}" for name in sorted(why))]
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


def draw(runs, path=Path("results/bpb_parameters.png")):
    """Draw val bpb against parameters, a panel for each val file of several experiments. Returns the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator

    done = [r for r in runs if r["status"] == "finished" and r["bpb"] is not None]
    panels = [p for p in datasets(done) if len(p[2]) > 1]
    if not panels:
        return []
    shape = {"figsize": (6.2 * len(panels), 4.8), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(panels), **shape)
    for ax, (name, val_bytes, experiments) in zip(axes[0], panels, strict=True):
        ax.set(title=name, xlabel="parameters", ylabel="val bits per byte", xscale="log")
        ax.grid(alpha=0.3)
        points(ax, experiments, val_bytes)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter("")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.margins(y=0.15)
        ax.set_xlim(ax.dataLim.x0 / 2, ax.dataLim.x1 * 20)  # names stand to the right of their points
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return [path]


def points(ax, experiments, val_bytes):
    """val bpb against parameters: the mean of the seeds, lowest to highest; other projects as grey crosses."""
    names, path = [], Path("results/peers.json")  # [(x, bpb, name, color)]
    peers = read_json(path)["peers"] if path.is_file() else []
    for peer in (p for p in peers if p["val_bytes"] == val_bytes):
        ax.plot(peer["parameters"], peer["bpb"], "x", color="grey", ms=8)
        names.append((peer["parameters"], peer["bpb"], peer["name"], "grey"))
    colors = {"space": "tab:red", "fixed": "tab:orange", "none": "tab:blue", "gpt2": "tab:green"}
    kinds = []
    for config, change, group in experiments:
        kind = "gpt2" if group[0]["cfg"].get("tokenizer") == "gpt2" else group[0]["cfg"].get("pooling")
        label = {"none": "plain bytes", "gpt2": "BPE"}.get(kind, f"pooled: {kind}")
        bpb, x = mean(group, "bpb"), group[0]["parameters"]
        around = [[bpb - min(r["bpb"] for r in group)], [max(r["bpb"] for r in group) - bpb]]
        style = {"fmt": "o", "ms": 4 if change else 7, "alpha": 0.5 if change else 1, "capsize": 3}
        ax.errorbar(x, bpb, around, color=colors.get(kind), label=None if kind in kinds else label, **style)
        kinds.append(kind)
        gpu = "" if "cpu" in group[0]["device"] else ", GPU"
        lengths = ("max_steps=", "max_seconds=", "micro_batch=", "block_size=")  # a picture has no room for all
        knobs = [k for k in change.split(", ") if k and not k.startswith(lengths)]
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


# --- what is running -------------------------------------------------------------------------------------------------


def running(runs):
    """A line for each run that is going on, from its log."""
    for r in (r for r in runs if r["status"] == "running"):
        train, val = ([e["bpb"] for e in r["log"] if e["event"] == event] for event in ("train", "eval"))
        parts = [f"{r['folder']}: step {r['log'][-1]['step']:,} ({min(1, r['share']):.0%})"]
        parts += [f"train {train[-1]:.3f} bpb"] if train else []
        parts += [f"best val {min(val):.3f}"] if val else []
        left = duration(r["seconds"] / r["share"] * max(0, 1 - r["share"])) if r["share"] > 0 else "unknown time"
        yield " | ".join([*parts, f"{left} left", f"last heard {r['silent']:.0f} s ago"])


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(__doc__.strip())
        return
    if argv:
        raise ValueError(f"what is {argv[0]!r}? report.py takes nothing; see --help")
    runs = read_runs()
    if not runs:
        raise ValueError("no runs under out/ or results/ yet: python train.py makes one, bench.py eval scores it")
    ended = [r for r in runs if r["status"] != "running"]
    if ended:  # (what is running now would be stale in a file)
        write_table(Path("EXPERIMENTS.md"), markdown(ended))
        print(f"{len(ended)} runs -> EXPERIMENTS.md" + "".join(f", {p}" for p in draw(ended)))
    print("\n".join(["running now:", *running(runs)]) if len(ended) < len(runs) else "nothing is running now")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"report.py: {e}")
