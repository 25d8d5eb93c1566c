"""What is a model worth?

    python bench.py speed                                # 10M, pooled beside plain (on CUDA: 50M, beside BPE as well)
    python bench.py speed config/demo.py config/stlm_10m.py --rounds=5
    python bench.py eval --model=out/demo                # val and benchmarks, from the Hub
    python bench.py eval --data=DIR --tasks=val,blimp    # DIR/blimp.jsonl
    python bench.py eval --text=novel.txt                # bits per byte of any text

speed: training (forward, backward, optimizer step, at the config's own batch) and generation, of untrained models fed
    with real text; every config in a process of its own, configs taking turns, warm-up left out.
eval: scores a run's best weights (or --weights=last) into its eval.json, as lm-evaluation-harness does: acc takes the
    choice with the highest sum of log-probabilities (ties share the point), acc_norm divides by characters, acc_bytes
    by bytes. BLiMP compares whole sentences, WinoGrande what follows either name, ARC and MMLU the answers' texts.
    A line of DIR/TASK.jsonl: {"context": str, "choices": [str, ...], "answer": int} or {"context_options": [str, ...],
    "continuation": str, "answer": int}, with "group" if you like.
"""

import dataclasses
import json
import math
import multiprocessing
import platform
import re
import statistics
import sys
import sysconfig
import time
from collections import defaultdict, namedtuple
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from config import ROOT, Config, build, load_file, parse
from lib.benchmarks import BENCHMARKS, local_items
from lib.data import Data, bits_per_byte, continuation_start, encode, symbols_at_once
from lib.files import (
    commit,
    first_line,
    game_of,
    load_model,
    load_run,
    newest_run,
    read_utf8,
    run_command,
    write_json,
)
from lib.machine import Machine, flops_per_symbol, parameter_table, pick_device
from lib.optim import make_optimizers
from model import PAD, STLM, rows_of, sample
from train import compile_and_wrap, train_step


@dataclass
class BenchConfig:
    # --- all ---
    device: str = "auto"  # auto: cuda, else mps, else cpu
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of matrix products; auto: speed as train.py, eval float32
    )
    json: bool = False  # print JSON instead of a table
    seed: int = 1337  # of the items that limit takes, and of speed's weights and text
    text: str = ""  # a UTF-8 file: eval scores it, speed reads it (empty: the standard library)
    # --- speed ---
    rounds: int = 3  # times each config is measured, taking turns
    seconds: float = 5.0  # of training in a round, at least (and at least one step)
    compile: Literal["auto", "on", "off"] = (
        "auto"  # torch.compile in training; auto: as the config says
    )
    # --- eval ---
    model: str = (
        ""  # a run's folder, a shared one, or USER/NAME on the Hub; empty: the newest under out/
    )
    out_dir: str = ""  # another name of model
    weights: Literal["best", "last"] = "best"  # of the run: lowest val loss, or newest
    tasks: str = ""  # comma-separated: val and names of benchmarks; empty: all there are
    data: str = ""  # folder with TASK.jsonl files; empty: the Hub, through `datasets`
    data_dir: str = ""  # where datasets live; empty: where the run found them
    limit: int = 0  # items of each benchmark, drawn at random; 0: all
    stride: int = 0  # symbols that a window scores in the second val figure; 0: half of the context

    def __post_init__(self):
        for key, low in (("rounds", 1), ("seconds", 0), ("limit", 0), ("stride", 0), ("seed", 0)):
            if not low <= getattr(self, key) < 2**63:
                raise ValueError(
                    f"{key}={getattr(self, key)} must be at least {low} and below 2**63"
                )


# --- speed -----------------------------------------------------------------------------------------------------------

LENGTHS, TOGETHER = (512, 1024, 2048, 4096), 16  # bytes of text so far; texts generated at once


def some_text(path):
    """1 MB of real text: a file, or the standard library, which is the same everywhere."""
    files = [] if path else sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = read_utf8(path, "text") if path else b"".join(p.read_bytes() for p in files)
    if len(text) < 20_000:
        raise ValueError(
            f"text={path} has {len(text)} bytes; speed needs at least 20000 of real text"
        )
    return text[: 1 << 20]


def measure_speed(cfg, options, text):
    """One round of one config, in a process of its own: {name: a float that was measured, or what is known}."""
    machine = Machine(options.device, options.dtype)
    torch.manual_seed(options.seed)
    model = STLM(cfg).to(machine.device)
    symbols = torch.tensor(encode(cfg, text), device=machine.device)
    per_symbol, parameters, T = len(text) / len(symbols), parameter_table(model), cfg.block_size
    found = {"parameters": parameters["total"], "tables": parameters["n-gram tables"]}
    found |= {
        "batch": f"{cfg.batch_bytes // T} x {T}",
        "flops_per_byte": round(flops_per_symbol(model) / per_symbol),
    }
    found |= training_speed(model, cfg, options, symbols, per_symbol, machine)
    found["mfu"] = machine.mfu(found["flops_per_byte"] * found["train_bytes_per_second"])
    found |= generation_speed(model.eval(), symbols, per_symbol, machine)
    return found | {"device": f"{machine.name}, {torch.get_num_threads()} threads"}


def training_speed(model, cfg, options, symbols, per_symbol, machine):
    """Steps as train.py does them, on one batch."""
    T = cfg.block_size
    rows = cfg.batch_bytes // T
    micro_batch = machine.rows_per_pass(rows, cfg.micro_batch, T)
    generator = torch.Generator().manual_seed(options.seed)
    starts = torch.randint(len(symbols) - T, (rows,), generator=generator).tolist()
    idx = torch.stack([symbols[i : i + T] for i in starts])
    targets = torch.stack([symbols[i + 1 : i + 1 + T] for i in starts])

    # the model alone, whatever the config trains it for
    cfg = dataclasses.replace(cfg, objective="next_byte", teacher="")
    model.dropout.is_on = cfg.dropout > 0
    model.dropout.rate.fill_(cfg.dropout)
    optimizers = make_optimizers(model, cfg, machine.muon_dtype)
    if options.compile != "auto":
        cfg = dataclasses.replace(cfg, compile=options.compile)
    trained, is_compiled = compile_and_wrap(model, cfg, machine, micro_batch)

    def step(n_rows):
        batch = idx[:n_rows], targets[:n_rows]
        train_step(trained, optimizers, batch, micro_batch, machine.autocast, cfg.grad_clip)
        machine.synchronize()

    step(micro_batch)  # warm-up
    n_steps = 0
    start = time.perf_counter()
    while n_steps == 0 or time.perf_counter() - start < options.seconds:
        step(rows)
        n_steps += 1
    seconds = time.perf_counter() - start
    found = {
        "training": f"{machine.dtype_name}, {'compiled' if is_compiled else 'eager'}",
        "train_bytes_per_second": n_steps * rows * T * per_symbol / seconds,
    }
    if machine.device.type == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    elif sys.platform == "linux":  # on a CPU: of the whole process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        found["peak_memory_gb"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9
    return found


@torch.inference_mode()
def generation_speed(model, symbols, per_symbol, machine):
    """The text is fed, so that patches are those of real text; a choice is drawn as `generate` does."""
    found, at, n = {}, [round(length / per_symbol) for length in LENGTHS], round(128 / per_symbol)
    starts = torch.linspace(0, len(symbols) - at[0] - n - 1, TOGETHER).long().tolist()
    for texts in (1, TOGETHER):
        rows = torch.stack([symbols[i : i + at[0] + n] for i in starts[:texts]])
        model.read(rows[:, at[0] :], model.read(rows[:, : at[0]], model.start(texts))[1])  # warm-up
        machine.synchronize()
        start = time.perf_counter()
        x, state = model.read(rows[:, : at[0]], model.start(texts), last=True)
        sample(model.head(x[:, -1]).cpu())
        if texts == 1:
            found["first_byte_seconds"] = time.perf_counter() - start
        for i, length in enumerate(at if texts == 1 else at[:1]):
            if i:  # read on to the next length
                state = model.read(symbols[None, at[i - 1] + n : length], state)[1]
                rows = symbols[None, : length + n]
            machine.synchronize()
            start = time.perf_counter()
            for t in range(length, length + n):
                x, state = model.read(rows[:, t, None], state)
                sample(model.head(x[:, -1]).cpu())
            speed = texts * n * per_symbol / (time.perf_counter() - start)
            found[f"generate_at_{LENGTHS[i]}" if texts == 1 else f"generate_{TOGETHER}_texts"] = (
                speed
            )
    return found


def speed(options, paths):
    """Measure configs in turns, a process for each measurement, and print how they compare."""
    if not paths:
        cuda = pick_device(options.device)[0].type == "cuda"
        names = ("stlm_50m", "plain_50m", "bpe_50m") if cuda else ("stlm_10m", "plain_10m")
        paths = [str(ROOT / "config" / f"{name}.py") for name in names]
    configs = [build(Config, load_file(Config, p)[0], p) for p in paths]
    text, source = some_text(options.text), options.text or "the standard library"
    arms = [{"config": Path(path).stem, "rounds": []} for path in paths]
    with tqdm(total=options.rounds * len(arms), desc="measuring", unit="run") as bar:
        for i in [
            (r + i) % len(arms) for r in range(options.rounds) for i in range(len(arms))
        ]:  # taking turns
            bar.set_postfix_str(arms[i]["config"])
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                try:
                    arms[i]["rounds"].append(
                        process.submit(measure_speed, configs[i], options, text).result()
                    )
                except (BrokenExecutor, torch.OutOfMemoryError):
                    reason = "its process died; if for want of memory, give its micro_batch a lower value"
                    raise ValueError(f"{paths[i]}: {reason}") from None
            bar.update()
    for arm in arms:
        summarize_rounds(arm, arms[0]["rounds"])
    versions = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit()}
    if options.json:
        print(json.dumps({"text": source, **versions, "arms": arms}, indent=1))
        return
    print_speed(arms)
    print(
        f"generation in float32; {arms[0]['device']}, torch {versions['torch']}, commit {versions['commit']}"
    )
    print(
        f"text: {source}; {options.rounds} rounds: mean ± standard deviation (ratio to the first)"
    )


def summarize_rounds(arm, first):
    """Of every figure that was measured, mean, spread and ratio to the first arm's rounds."""
    for key, value in arm["rounds"][0].items():
        arm[key], values = value, [a[key] for a in arm["rounds"]]
        if isinstance(value, float):
            ratios = [v / a[key] for v, a in zip(values, first, strict=True)]
            ratio = {"mean": statistics.fmean(ratios), "min": min(ratios), "max": max(ratios)}
            arm[key] = {
                "mean": statistics.fmean(values),
                "std": statistics.pstdev(values),
                "ratio": ratio,
            }


def print_speed(arms):
    """A row for each thing that is known; of what was measured: mean ± standard deviation (ratio to the first arm)."""

    def cell(value):
        if not isinstance(value, dict):
            return f"{value:,}" if isinstance(value, int) else str(value)
        digits = 0 if value["mean"] > 100 else 3
        return f"{value['mean']:,.{digits}f} ± {value['std']:,.{digits}f} ({value['ratio']['mean']:.2f})"

    keys = [key for key in arms[0] if key not in ("config", "rounds", "device")]
    lines = [[key.replace("_", " "), *(cell(a[key]) for a in arms)] for key in keys]
    print_table([["", *(a["config"] for a in arms)], *lines])


def print_table(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
                ]
            )
        )


# --- eval: scoring items ---------------------------------------------------------------------------


def pairs(item):
    """What is scored of an item: [(context, continuation), ...] as bytes, one for each choice."""
    if "context_options" in item:
        return [(c.encode(), item["continuation"].encode()) for c in item["context_options"]]
    return [(item["context"].encode(), c.encode()) for c in item["choices"]]


# An item: its place in the list; of each choice its symbols after EOT and where the continuation starts; what all share
Work = namedtuple("Work", "number rows starts common")


def score(model, items, on_progress=lambda n: None, at_once=0):
    """log p(continuation | EOT, context): items, lists of (context, continuation) in bytes -> lists of (nats, greedy).

    greedy: whether every symbol of the continuation is the model's first choice. Exact, and the same whatever shares a
    batch: items are batched by length; the beginning that an item's choices have in common is read once, then the
    choices go on from there, padded where no real symbol can see it. `on_progress` gets the number of choices scored.
    """
    results, work, at_once = [None] * len(items), [], at_once or symbols_at_once(model)
    for number, item in enumerate(items):
        texts = [encode(model.cfg, context + continuation) for context, continuation in item]
        starts = [
            1 + continuation_start(model.cfg, c, text)
            for (c, _), text in zip(item, texts, strict=True)
        ]
        rows = [[model.eot, *text] for text in texts]
        alike = next(
            (i for i, s in enumerate(zip(*rows, strict=False)) if len(set(s)) > 1),
            min(map(len, rows)),
        )
        work.append(Work(number, rows, starts, min(alike, *starts)))
    work.sort(key=lambda w: (w.common // 16, max(map(len, w.rows))), reverse=True)
    while work:
        batch, n, longest, common = [], 0, 0, work[-1].common
        while work:  # as many as fit with their padding, at least one
            w = work[-1]
            n, longest, common = (
                n + len(w.rows),
                max(longest, *map(len, w.rows)),
                min(common, w.common),
            )
            if batch and (len(batch) + 1) * common + n * (longest - common) > at_once:
                break
            batch.append(work.pop())
        for w, scores in zip(batch, score_batch(model, batch), strict=True):
            results[w.number] = scores
            on_progress(len(scores))
    return results


@torch.no_grad()
def score_batch(model, batch):
    """The (nats, greedy) of every choice of every item of a batch."""
    device, common = model.embed.weight.device, min(w.common for w in batch)
    rows, starts = (
        [row for w in batch for row in w.rows],
        [start for w in batch for start in w.starts],
    )
    y = torch.full((len(rows), max(map(len, rows)) - common), PAD)
    mask = torch.zeros(y.shape, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        y[i, : len(row) - common] = torch.tensor(row[common:])
        mask[i, start - common : len(row) - common] = True
    y, item_of = (
        y.to(device),
        torch.tensor([i for i, w in enumerate(batch) for _ in w.rows], device=device),
    )
    x, state = model.read(
        torch.tensor([w.rows[0][:common] for w in batch], device=device), model.start(len(batch))
    )
    x = x[item_of, -1:]  # (rows, 1, E): what predicts the first of y
    if y.size(1) > 1:
        x = torch.cat((x, model.read(y[:, :-1], rows_of(state, item_of))[0]), dim=1)
    logits = model.head(x)[
        :, : y.size(1)
    ]  # (where all rows are the common beginning, nothing is left to score)
    logp = -F.cross_entropy(logits.transpose(1, 2), y, reduction="none").cpu().double()
    greedy = ((logits.argmax(dim=2) == y).cpu() | ~mask).all(dim=1).tolist()
    scores = iter(zip((logp * mask).sum(dim=1).tolist(), greedy, strict=True))
    return [[next(scores) for _ in w.rows] for w in batch]


def grade(item, scores):
    """{metric: 1 if the answer scores highest, else 0}; ties share the point; one choice (LAMBADA) must be greedy."""
    logp = [nats for nats, _ in scores]
    if len(logp) == 1:
        return {"acc": float(scores[0][1]), "logp": logp[0]}
    values = {"acc": logp}
    if (
        item.get("context") and "choices" in item
    ):  # not for whole sentences, nor for one continuation
        texts = [c.removeprefix(" ") for c in item["choices"]]
        values["acc_norm"] = [v / max(1, len(t)) for v, t in zip(logp, texts, strict=True)]
        values["acc_bytes"] = [
            v / max(1, len(t.encode())) for v, t in zip(logp, texts, strict=True)
        ]
    best = {metric: max(v) for metric, v in values.items()}
    return {m: (v[item["answer"]] == best[m]) / v.count(best[m]) for m, v in values.items()}


def summary(items, grades):
    """Mean of each metric, its standard error, chance, and acc by group."""
    found = {
        "n": len(items),
        "chance": statistics.fmean(1 / n if n > 1 else 0 for n in map(len, map(pairs, items))),
    }
    for metric in [m for m in grades[0] if all(m in g for g in grades)]:
        values = [g[metric] for g in grades]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        found |= {metric: statistics.fmean(values), f"{metric}_stderr": error}
    groups = defaultdict(list)
    for item, g in zip(items, grades, strict=True):
        if "group" in item:
            groups[item["group"]].append(g["acc"])
    if groups:
        found["groups"] = {
            k: {"n": len(v), "acc": statistics.fmean(v)} for k, v in sorted(groups.items())
        }
    return found


def benchmark(model, task, items, options):
    """The figures of a task, of all its items or of a random options.limit of them."""
    work, start = items, time.perf_counter()
    if options.limit and options.limit < len(items):
        chosen = np.random.default_rng(options.seed).choice(
            len(items), options.limit, replace=False
        )
        work = [items[i] for i in sorted(chosen)]
    choices = [pairs(item) for item in work]
    with tqdm(total=sum(map(len, choices)), desc=task, unit=" choices", disable=None) as bar:
        scores = score(model, choices, bar.update)
    found = summary(work, [grade(item, v) for item, v in zip(work, scores, strict=True)])
    return found | {
        "of": len(items),
        "limit_seed": options.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def evaluate(options):
    """Score a run's weights on its val and on benchmarks; write eval.json and print it."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    machine = Machine(options.device, dtype)
    name = options.model or options.out_dir or newest_run()
    model, checkpoint, path = load_run(name, options.weights, machine.device)
    if game_of(checkpoint):
        raise ValueError(
            f"{path} plays {game_of(checkpoint)}, and has no bits per byte: train.py scores it"
        )
    tasks = tasks_of(options)
    out = path.parent
    if not path.exists():  # it is on the Hub
        out = Path("out", str(path.parent).replace("/", "--"))
    out.mkdir(parents=True, exist_ok=True)
    result = earlier_result(out / "eval.json", path, checkpoint)
    print(f"{path}: step {checkpoint['step']}, {machine.device}", file=sys.stderr)

    how = {"device": str(machine.device), "dtype": machine.dtype_name, "torch": torch.__version__}
    with machine.autocast:
        if options.text:
            data = Data.of_text(model.cfg, read_utf8(options.text, "text"))
            texts = result.setdefault("texts", {})
            texts[Path(options.text).name] = bits_two_ways(model, data, options) | how
        for task in tasks:
            try:
                if task == "val":
                    result["val"] = val_result(model, checkpoint, path, options, machine) | how
                else:
                    items = items_of(task, options)
                    result["tasks"][task] = benchmark(model, task, items, options) | how
            except ValueError as e:
                if options.tasks:
                    raise ValueError(f"{task}: {e}") from None
                print(f"{task}: left out: {e}", file=sys.stderr)
                if isinstance(e, Unreachable):
                    break  # the Hub would not answer for the others either
            # a long evaluation that is stopped keeps what it has
            write_json(out / "eval.json", result)
    write_json(out / "eval.json", result)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print_scores(result, tasks, Path(options.text).name)
        print(f"-> {out / 'eval.json'}")


def tasks_of(options):
    """The names of what to score: val, and benchmarks of the folder or of the Hub."""
    known = list(BENCHMARKS)
    if options.data:
        known = sorted(p.stem for p in Path(options.data).glob("*.jsonl"))
        if not known:
            raise ValueError(f"no *.jsonl in {options.data}")
    named = [task for task in options.tasks.split(",") if task]
    for task in named:
        if task != "val" and task not in known:
            raise ValueError(
                f"no task {task!r} in {options.data or 'the list'}; "
                f"there are val, {', '.join(known)}"
            )
    if named:
        return named
    if options.text:
        return []
    return ["val", *known]


def earlier_result(path, weights_path, checkpoint):
    """eval.json, if it is about these weights, so that its other figures stay; else an empty one."""
    result = {"weights": weights_path.name}
    for key in ("step", "elapsed", "commit"):
        result[key] = checkpoint[key]
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if result.items() <= old.items():
            return {"tasks": {}} | old
    return {"tasks": {}} | result


def val_result(model, checkpoint, path, options, machine):
    """The run's val, for these weights; and for its other ones (best.pt, last.pt) what a reader compares."""
    data = val_of(checkpoint, options.data_dir)
    found = bits_two_ways(model, data, options)
    other_path = path.with_name("last.pt" if path.name == "best.pt" else "best.pt")
    if path.suffix == ".pt" and other_path.is_file():
        other, other_checkpoint = load_model(other_path, machine.device)
        bpb = found["bpb"]
        if other_checkpoint["step"] != checkpoint["step"]:
            bpb = bits_per_byte(other, data, model.cfg.block_size)["bpb"]
        found["other"] = {
            "weights": other_path.name,
            "step": other_checkpoint["step"],
            "bpb": bpb,
        }
    return found


def bits_two_ways(model, data, options):
    """bpb of a text in windows side by side, as in training, and with a stride, in overlapping ones."""
    if not len(data.symbols):
        raise ValueError("there is no text to score: it is empty")
    T = model.cfg.block_size
    found = {"context": T, "stride": min(options.stride or max(1, T // 2), T)}
    with tqdm(
        total=2 * len(data.symbols), desc="bits", unit=" symbols", unit_scale=True, disable=None
    ) as bar:
        for key, stride in (("bpb", 0), ("bpb_stride", found["stride"])):
            got = bits_per_byte(model, data, T, stride=stride, on_progress=bar.update)
            found |= {key: got["bpb"], "bytes": got["bytes"]}
    return found


def val_of(checkpoint, data_dir):
    """The val split that the run was trained beside."""
    data = Data(
        SimpleNamespace(**checkpoint["config"] | ({"data_dir": data_dir} if data_dir else {})),
        "val",
    )
    data.verify(checkpoint)
    return data


class Unreachable(ValueError):
    """The Hub does not answer."""


def items_of(task, options):
    """The items of a task, from options.data or the Hub."""
    try:
        items = list(
            local_items(Path(options.data) / f"{task}.jsonl")
            if options.data
            else BENCHMARKS[task][1]()
        )
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        if options.data:
            raise
        raise ValueError(f"its rows on the Hub are other than expected: {e!r}") from None
    except Exception as e:
        if options.data:
            raise
        raise Unreachable(
            f"not from the Hub ({first_line(e)[:120]}); --data=DIR reads local files"
        ) from None
    if not items:
        raise ValueError("has no items")
    return items


def print_scores(result, tasks, text):
    percent = lambda v, m: f"{v[m]:.1%} ± {v[m + '_stderr'] or 0:.1%}" if m in v else "-"  # noqa: E731
    lines = [["", "items", "acc", "acc_norm", "acc_bytes", "chance"]]
    for task in (t for t in tasks if t in result["tasks"]):
        v = result["tasks"][task]
        n = f"{v['n']:,}" + (f" of {v['of']:,}" if v["n"] < v["of"] else "")
        metrics = [percent(v, m) for m in ("acc", "acc_norm", "acc_bytes")]
        lines.append([task, n, *metrics, f"{v['chance']:.1%}"])
    if len(lines) > 1:
        print_table(lines)
    if text:
        print(bits_line(text, result["texts"][text]))
    if "val" in tasks and "val" in result:
        print(bits_line(f"val, {result['weights']} of step {result['step']}", result["val"]))
        other = result["val"].get("other")
        if other:
            print(f"val, {other['weights']} of step {other['step']}: {other['bpb']:.4f} bpb")


def bits_line(name, found):
    return (
        f"{name}: {found['bpb']:.4f} bpb in windows of {found['context']}, "
        f"{found['bpb_stride']:.4f} with a stride of {found['stride']}; {found['bytes']:,} bytes"
    )


def main(argv=None):
    options, words = parse(BenchConfig, sys.argv[1:] if argv is None else argv, __doc__)
    command, *paths = words or [""]
    if command not in ("speed", "eval"):
        raise ValueError(f"unknown command {command!r}: use speed or eval; see --help")
    if paths and command != "speed":
        raise ValueError(
            f"unexpected argument {paths[0]!r}: {command} takes --key=value only; see --help"
        )
    speed(options, paths) if command == "speed" else evaluate(options)


if __name__ == "__main__":
    run_command(main, out_of_memory="give the config a smaller micro_batch")
