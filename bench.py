"""Measure models: how fast they train and write, and how well they score.

    python bench.py speed                                # 10M, pooled and plain (CUDA: 50M, + BPE)
    python bench.py speed config/demo.py config/stlm_10m.py --rounds=5
    python bench.py eval --model=out/demo                # val, and benchmarks from the Hub
    python bench.py eval --data=DIR --tasks=val,blimp    # benchmarks from files: DIR/blimp.jsonl
    python bench.py eval --text=novel.txt                # bits per byte of any text

`speed` times untrained models on real text: training at each config's own batch size, and
generating one text, then 16 at once. Each measurement has a process of its own; configs take turns;
warm-up does not count.

`eval` scores a run's best weights (--weights=last: the newest) and writes eval.json into its
folder. It follows lm-evaluation-harness: acc takes the choice with the highest log-probability
(ties share the point); acc_norm first divides it by the choice's characters, acc_bytes by its
bytes. BLiMP compares whole sentences, WinoGrande the text after each name, ARC and MMLU the
answers' wording.

A line of DIR/TASK.jsonl is {"context": str, "choices": [str, ...], "answer": int}, or
{"context_options": [str, ...], "continuation": str, "answer": int}; "group": str is optional.
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
import json
import math
import multiprocessing
import platform
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

from config import ROOT, SEED, Config, build, check_limits, load_file, parse
from lib.benchmarks import BENCHMARKS, local_items
from lib.commit import commit
from lib.data import (
    Data,
    bits_per_byte,
    continuation_start,
    encode,
    streamed_bits_per_byte,
    symbols_at_once,
)
from lib.files import (
    first_line,
    game_of,
    load_model,
    load_run,
    newest_run,
    read_json,
    read_utf8,
    run_command,
    write_json,
)
from lib.machine import Machine, flops_per_symbol, parameter_table, pick_device
from lib.optim import make_optimizers
from model import PAD, STLM, NotFinite, rows_of, sample
from train import compile_and_wrap, train_step

SHORTER_WINDOWS = (64, 256)  # nanoGPT's contexts on Shakespeare


@dataclass
class BenchConfig:
    # --- speed and eval ---
    device: str = "auto"  # auto: cuda, else mps, else cpu
    # precision of matrix products; auto: speed chooses as train.py does, eval uses float32
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    json: bool = False  # print JSON instead of a table
    seed: int = 1337  # speed: for weights and batch; eval: for drawing the items of limit
    text: str = ""  # a UTF-8 file to score (eval) or to feed (speed; empty: the standard library)
    # --- speed ---
    rounds: int = 3  # measurements of each config
    seconds: float = 5.0  # train for at least this long, and one step, in each measurement
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: as the config says
    # --- eval ---
    model: str = ""  # a run's folder, a shared folder, USER/NAME on the Hub; empty: the newest run
    out_dir: str = ""  # another name for model
    weights: Literal["best", "last"] = "best"  # best: a run's lowest val loss; last: its newest
    tasks: str = ""  # val and benchmarks, separated by commas; empty: all
    data: str = ""  # folder with TASK.jsonl files; empty: the Hub, through `datasets`
    data_dir: str = ""  # folder of the prepared datasets; empty: the run's
    limit: int = 0  # score this many random items of each benchmark; 0: all
    stride: int = 0  # also score overlapping windows, this many symbols of each; 0: do not

    def __post_init__(self):
        positive = (0, math.inf)
        limits = {"rounds": (1, math.inf), "seconds": positive, "limit": positive}
        check_limits(self, limits | {"stride": positive, "seed": SEED})


def main(argv=None):
    options, words = parse(BenchConfig, sys.argv[1:] if argv is None else argv, __doc__)
    command, *paths = words or [""]
    if command not in ("speed", "eval"):
        raise ValueError(f"unknown command {command!r}: use speed or eval; see --help")
    if command == "speed":
        run_speed(options, paths)
        return
    if paths:
        raise ValueError(f"unexpected argument {paths[0]!r}: eval takes --key=value; see --help")
    run_eval(options)


# --- speed ----------------------------------------------------------------------------------------

LENGTHS = (512, 1024, 2048, 4096)  # bytes of text so far, when generation is timed
N_TEXTS = 16  # texts generated at once


def run_speed(options, paths):
    """Measure configs in turns, each time in a process of its own, and print how they compare."""
    if not paths:
        device, _ = pick_device(options.device)
        names = ["stlm_10m", "plain_10m"]
        if device.type == "cuda":
            names = ["stlm_50m", "plain_50m", "bpe_50m"]
        paths = [str(ROOT / "config" / f"{name}.py") for name in names]
    configs = []
    for path in paths:
        values, _ = load_file(Config, path)
        configs.append(build(Config, values, path))
    text = some_text(options.text)

    arms = [{"config": Path(path).stem, "rounds": []} for path in paths]
    with tqdm(total=options.rounds * len(arms), desc="measuring", unit="run") as bar:
        for r in range(options.rounds):
            for k in range(len(arms)):
                i = (r + k) % len(arms)  # every round starts with another config
                bar.set_postfix_str(arms[i]["config"])
                found = measure_in_new_process(paths[i], configs[i], options, text)
                arms[i]["rounds"].append(found)
                bar.update()
    for arm in arms:
        summarize_rounds(arm, arms[0]["rounds"])

    about = {
        "text": options.text or "the standard library",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }
    if options.json:
        print(json.dumps(about | {"arms": arms}, indent=1))
        return
    print_speed(arms)
    print(f"{arms[0]['device']}, torch {about['torch']}, commit {about['commit']}")
    print(
        f"text: {about['text']}; generation in float32; {options.rounds} rounds: "
        "mean ± standard deviation (ratio to the first config)"
    )


def some_text(path):
    """Up to 1 MiB of real text: a file's, or the standard library's, which every machine has."""
    if path:
        text = read_utf8(path, "text")
    else:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = b"".join(file.read_bytes() for file in files)
    if len(text) < 20_000:
        raise ValueError(
            f"text={path}: expected at least 20000 bytes, got {len(text)}; choose a longer text"
        )
    return text[: 1 << 20]


def measure_in_new_process(path, cfg, options, text):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(measure_speed, cfg, options, text).result()
        except (BrokenExecutor, torch.OutOfMemoryError):
            raise ValueError(
                f"{path}: out of memory, or its process died: set a smaller micro_batch in it"
            ) from None


def measure_speed(cfg, options, text):
    """One measurement of one config, as a dict. The floats were measured; the rest is fixed."""
    machine = Machine(options.device, options.dtype)
    torch.manual_seed(options.seed)
    model = STLM(cfg).to(machine.device)
    symbols = torch.tensor(encode(cfg, text), device=machine.device)
    bytes_per_symbol = len(text) / len(symbols)
    parameters = parameter_table(model)
    T = cfg.block_size
    found = {
        "parameters": parameters["total"],
        "tables": parameters["n-gram tables"],
        "batch": f"{cfg.batch_bytes // T} x {T}",
        "flops_per_byte": round(flops_per_symbol(model) / bytes_per_symbol),
    }
    found |= training_speed(model, cfg, options, symbols, bytes_per_symbol, machine)
    found["mfu"] = machine.mfu(found["flops_per_byte"] * found["train_bytes_per_second"])
    found |= generation_speed(model.eval(), symbols, bytes_per_symbol, machine)
    found["device"] = f"{machine.name}, {torch.get_num_threads()} threads"
    return found


def training_speed(model, cfg, options, symbols, bytes_per_symbol, machine):
    """The speed of train.py's steps, all of them on one batch."""
    T = cfg.block_size
    n_rows = max(1, cfg.batch_bytes // T)  # a game's batch may be shorter than block_size
    micro_batch = machine.rows_per_pass(n_rows, cfg.micro_batch, T)
    generator = torch.Generator().manual_seed(options.seed)
    starts = torch.randint(len(symbols) - T, (n_rows,), generator=generator).tolist()
    idx = torch.stack([symbols[i : i + T] for i in starts])
    targets = torch.stack([symbols[i + 1 : i + 1 + T] for i in starts])

    # the model alone, whatever the config trains it for
    compile_choice = cfg.compile if options.compile == "auto" else options.compile
    cfg = dataclasses.replace(cfg, objective="next_byte", teacher="", compile=compile_choice)
    model.dropout.is_on = cfg.dropout > 0
    model.dropout.rate.fill_(cfg.dropout)
    optimizers = make_optimizers(model, cfg, machine.muon_dtype)
    trained, is_compiled = compile_and_wrap(model, cfg, machine, micro_batch)

    def step(n):
        batch = (idx[:n], targets[:n])
        train_step(trained, optimizers, batch, micro_batch, machine.autocast, cfg.grad_clip)
        machine.synchronize()

    step(micro_batch)  # warm-up: the first pass allocates
    n_steps = 0
    start = time.perf_counter()
    while n_steps == 0 or time.perf_counter() - start < options.seconds:
        step(n_rows)
        n_steps += 1
    seconds = time.perf_counter() - start
    found = {
        "training": f"{machine.dtype_name}, {'compiled' if is_compiled else 'eager'}",
        "train_bytes_per_second": n_steps * n_rows * T * bytes_per_symbol / seconds,
    }
    if machine.device.type == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    elif sys.platform == "linux":  # of the whole process, in KiB
        import resource

        found["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return found


@torch.inference_mode()
def generation_speed(model, symbols, bytes_per_symbol, machine):
    """The speed of generation after texts of several lengths, and of many texts at once.

    It samples symbols as `generate` does, but reads the real text's next symbol instead, so that
    patches are real.
    """
    n_new = round(128 / bytes_per_symbol)
    n_prompt = round(LENGTHS[0] / bytes_per_symbol)
    starts = torch.linspace(0, len(symbols) - n_prompt - n_new - 1, N_TEXTS).long().tolist()
    texts = torch.stack([symbols[i : i + n_prompt + n_new] for i in starts])
    found = {}

    # one text
    timed_generation(model, texts[:1], 0, model.start(1), machine)  # warm-up
    machine.synchronize()
    start = time.perf_counter()
    x, _ = model.read(symbols[None, :n_prompt], model.start(1), last=True)
    sample(model.head(x[:, -1]).cpu())
    found["first_byte_seconds"] = time.perf_counter() - start
    state = model.start(1)
    n_read = 0
    for length in LENGTHS:
        n_prompt = round(length / bytes_per_symbol)
        piece = symbols[None, n_read : n_prompt + n_new]
        seconds, state = timed_generation(model, piece, n_prompt - n_read, state, machine)
        found[f"generate_at_{length}"] = n_new * bytes_per_symbol / seconds
        n_read = n_prompt + n_new

    # many texts
    n_prompt = round(LENGTHS[0] / bytes_per_symbol)
    for _ in range(2):  # the first time is warm-up
        seconds, _ = timed_generation(model, texts, n_prompt, model.start(N_TEXTS), machine)
    found[f"generate_{N_TEXTS}_texts"] = N_TEXTS * n_new * bytes_per_symbol / seconds
    return found


def timed_generation(model, texts, n_prompt, state, machine):
    """Read n_prompt symbols of texts (B, N) and time generating the rest: -> (seconds, state)."""
    if n_prompt > 0:
        _, state = model.read(texts[:, :n_prompt], state)
    machine.synchronize()
    start = time.perf_counter()
    for symbol in texts[:, n_prompt:].split(1, dim=1):
        x, state = model.read(symbol, state)
        sample(model.head(x[:, -1]).cpu())
    return time.perf_counter() - start, state


def summarize_rounds(arm, first_rounds):
    """Add to `arm`, for each measured figure, its mean, spread and ratio to the first arm's."""
    for key, value in arm["rounds"][0].items():
        if not isinstance(value, float):  # a fact, the same in every round
            arm[key] = value
            continue
        values = [found[key] for found in arm["rounds"]]
        first_values = [found[key] for found in first_rounds]
        ratios = [value / first for value, first in zip(values, first_values, strict=True)]
        arm[key] = {
            "mean": statistics.fmean(values),
            "std": statistics.pstdev(values),
            "ratio": {"mean": statistics.fmean(ratios), "min": min(ratios), "max": max(ratios)},
        }


def print_speed(arms):
    lines = [["", *(arm["config"] for arm in arms)]]
    for key in arms[0]:
        if key not in ("config", "rounds", "device"):
            lines.append([key.replace("_", " "), *(speed_cell(arm[key]) for arm in arms)])
    print_table(lines)


def speed_cell(value):
    """A fact (int, str or None) as text; a measured figure as mean ± std (ratio to the first)."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, dict):
        return str(value)
    digits = 0 if value["mean"] > 100 else 3
    ratio = value["ratio"]["mean"]
    return f"{value['mean']:,.{digits}f} ± {value['std']:,.{digits}f} ({ratio:.2f})"


def print_table(lines):
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        print("  ".join(cells))


# --- eval -----------------------------------------------------------------------------------------


def run_eval(options):
    """Score a run's weights on its val and on benchmarks. Write eval.json and print it."""
    # Scores should not depend on the machine.
    dtype = "float32" if options.dtype == "auto" else options.dtype
    machine = Machine(options.device, dtype)
    name = options.model or options.out_dir or newest_run()
    model, checkpoint, path = load_run(name, options.weights, machine.device)
    if game_of(checkpoint):
        raise ValueError(
            f"expected a model of text, got {path}, which plays {game_of(checkpoint)}: its scores "
            "are in the run's log.jsonl"
        )
    tasks = tasks_of(options)
    out = path.parent
    if not path.exists():  # USER/NAME on the Hub -> out/USER--NAME
        out = Path("out", str(path.parent).replace("/", "--"))
    out.mkdir(parents=True, exist_ok=True)
    result = earlier_result(out / "eval.json", path, checkpoint)
    print(f"{path}: step {checkpoint['step']}, {machine.device}", file=sys.stderr)

    text_name = Path(options.text).name  # "" without --text
    scored = []
    how = {"device": str(machine.device), "dtype": machine.dtype_name, "torch": torch.__version__}
    with machine.autocast:
        if options.text:
            data = Data.of_text(model.cfg, read_utf8(options.text, "text"))
            texts = result.setdefault("texts", {})
            texts[text_name] = bits_of(model, data, options) | how
        for task in tasks:
            try:
                if task == "val":
                    result["val"] = val_result(model, checkpoint, path, options, machine) | how
                else:
                    items = items_of(task, options)
                    result["tasks"][task] = benchmark(model, task, items, options) | how
                scored.append(task)
            except ValueError as e:
                if options.tasks or isinstance(e, NotFinite):
                    raise ValueError(f"{task}: {e}") from None
                print(f"{task}: skipped: {e}", file=sys.stderr)
                if isinstance(e, Unreachable):
                    break  # the Hub would not answer for the others either
            # Write after every task, so that Ctrl-C loses no result.
            write_json(out / "eval.json", result)
    write_json(out / "eval.json", result)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print_scores(result, scored, text_name)
        print(f"-> {out / 'eval.json'}")


def tasks_of(options):
    """The names of the tasks to score: "val", and benchmarks in the folder or on the Hub."""
    known = list(BENCHMARKS)
    if options.data:
        known = sorted(p.stem for p in Path(options.data).glob("*.jsonl"))
        if not known:
            raise ValueError(f"no *.jsonl files in {options.data}: see --help for their format")
    named = [task for task in options.tasks.split(",") if task]
    for task in named:
        if task != "val" and task not in known:
            where = f" in {options.data}" if options.data else ""
            raise ValueError(f"no task {task!r}{where}: choose from val, {', '.join(known)}")
    if named:
        return named
    if options.text:
        return []
    return ["val", *known]


def earlier_result(path, weights_path, checkpoint):
    """eval.json's content if it is about these weights, to keep its figures; else a fresh dict."""
    result = {"weights": weights_path.name}
    for key in ("step", "elapsed", "commit"):
        result[key] = checkpoint[key]
    if path.is_file():
        found = {"context": int, "stride": int, "bpb": float, "bytes": int, "bpb_stream": float}
        scores = {"*": {"acc": float, "n": int, "of": int, "chance": float, "*": object}}
        shape = {"tasks": scores, "texts": {"*": found | {"*": object}}, "*": object}
        old = read_json(path, shape | {"val": found | {"*": object}})
        if result.items() <= old.items():
            return {"tasks": {}} | old
    return {"tasks": {}} | result


def val_result(model, checkpoint, path, options, machine):
    """The bits per byte of the run's val, for these weights and for its other checkpoint."""
    data = val_of(checkpoint, options.data_dir)
    found = bits_of(model, data, options)
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


def val_of(checkpoint, data_dir):
    """The val split of the run's dataset."""
    config = dict(checkpoint["config"])
    if data_dir:
        config["data_dir"] = data_dir
    data = Data(SimpleNamespace(**config), "val")
    data.verify(checkpoint)
    return data


def bits_of(model, data, options):
    """Bits per byte of a split, with more and with less context.

    bpb: in windows side by side, as in training. bpb_64, bpb_256: in shorter windows, to be
    compared with models of that context. bpb_stream: in one pass, with the state carried along.
    bpb_documents: the same, with a new state for each document. bpb_stride (--stride): in
    overlapping windows.
    """
    n_symbols = len(data.symbols)
    if n_symbols == 0:
        raise ValueError("expected at least 1 byte to score, got 0: choose another text")
    T = model.cfg.block_size
    stride = min(options.stride, T)
    shorter = [n for n in SHORTER_WINDOWS if n < T]
    has_documents = bool((data.symbols[:-1] == model.eot).any())
    passes = 2 + len(shorter) + has_documents + (stride > 0)
    style = {"desc": "bits", "unit": " symbols", "unit_scale": True, "disable": None}
    with tqdm(total=passes * n_symbols, **style) as bar:
        plain = bits_per_byte(model, data, T, on_progress=bar.update)
        found = {"context": T, "bpb": plain["bpb"], "bytes": plain["bytes"]}
        for n in shorter:
            found[f"bpb_{n}"] = bits_per_byte(model, data, n, on_progress=bar.update)["bpb"]
        found["bpb_stream"] = streamed_bits_per_byte(model, data, on_progress=bar.update)
        if has_documents:
            found["bpb_documents"] = streamed_bits_per_byte(
                model, data, by_document=True, on_progress=bar.update
            )
        if stride > 0:
            overlapping = bits_per_byte(model, data, T, stride=stride, on_progress=bar.update)
            found |= {"stride": stride, "bpb_stride": overlapping["bpb"]}
    return found


class Unreachable(ValueError):
    """The Hub does not answer."""


def items_of(task, options):
    """The items of a task, from options.data or the Hub. ValueError if they cannot be used."""
    if options.data:
        items = list(local_items(Path(options.data) / f"{task}.jsonl"))
    else:
        items = hub_items(task)
    if not items:
        raise ValueError("expected at least 1 item, got 0")
    return items


def hub_items(task):
    _, load = BENCHMARKS[task]
    try:
        return list(load())
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise ValueError(
            f"expected the benchmark's usual columns, got other rows from the Hub ({e!r}); "
            "--data=DIR reads local files"
        ) from None
    except Exception as e:
        raise Unreachable(
            f"cannot load it from the Hub ({first_line(e)[:120]}); --data=DIR reads local files"
        ) from None


def benchmark(model, task, items, options):
    """The figures of a task, of all its items or of options.limit random ones."""
    start = time.perf_counter()
    chosen = items
    if options.limit and options.limit < len(items):
        rng = np.random.default_rng(options.seed)
        numbers = rng.choice(len(items), options.limit, replace=False)
        chosen = [items[i] for i in sorted(numbers)]
    choices = [pairs(item) for item in chosen]
    n_choices = sum(len(item) for item in choices)
    with tqdm(total=n_choices, desc=task, unit=" choices", disable=None) as bar:
        scores = score(model, choices, bar.update)
    grades = [grade(item, found) for item, found in zip(chosen, scores, strict=True)]
    return summary(chosen, grades) | {
        "of": len(items),
        "limit_seed": options.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }


# --- eval: scoring items --------------------------------------------------------------------------


def pairs(item):
    """The texts of an item: (context, continuation) in bytes for each choice."""
    if "context_options" in item:
        continuation = item["continuation"].encode()
        return [(context.encode(), continuation) for context in item["context_options"]]
    context = item["context"].encode()
    return [(context, choice.encode()) for choice in item["choices"]]


# An item in symbols: its number in the list; for each choice, its symbols and where among them the
# continuation starts; how many leading symbols all choices share.
Work = namedtuple("Work", "number rows starts n_shared")


def score(model, items, on_progress=lambda n: None, at_once=0):
    """log p(continuation | EOT, context) of every choice.

    items: for each a list of (context, continuation) in bytes
    on_progress: called for each scored item, with the number of its choices
    at_once: symbols in a batch; 0: as many as the device likes

    Returns for each item a list of (nats, greedy). greedy: each symbol of the continuation is the
    model's most likely next one. The batch does not change scores: padding comes last, where no
    symbol can see it. An item's choices share one pass over their common beginning.
    """
    at_once = at_once or symbols_at_once(model)
    work = []
    for number, item in enumerate(items):
        rows = []
        starts = []
        for context, continuation in item:
            symbols = encode(model.cfg, context + continuation)
            rows.append([model.eot, *symbols])
            starts.append(1 + continuation_start(model.cfg, context, symbols))
        n_shared = min(starts)
        while any(row[:n_shared] != rows[0][:n_shared] for row in rows):
            n_shared -= 1
        work.append(Work(number, rows, starts, n_shared))

    # Items of similar length need little padding.
    work.sort(key=lambda w: (w.n_shared // 16, longest_row(w)))
    results = [None] * len(items)
    for batch in batches_of(work, at_once):
        for w, scores in zip(batch, score_batch(model, batch), strict=True):
            results[w.number] = scores
            on_progress(len(scores))
    return results


def longest_row(w):
    return max(len(row) for row in w.rows)


def batches_of(work, at_once):
    """Neighbouring items, as many as fit into `at_once` symbols with padding; at least one."""
    batch = []
    n_rows = 0
    longest = 0
    n_shared = math.inf
    for w in work:
        n_rows += len(w.rows)
        longest = max(longest, longest_row(w))
        n_shared = min(n_shared, w.n_shared)
        size = (len(batch) + 1) * n_shared + n_rows * (longest - n_shared)
        if batch and size > at_once:
            yield batch
            batch = []
            n_rows = len(w.rows)
            longest = longest_row(w)
            n_shared = w.n_shared
        batch.append(w)
    if batch:
        yield batch


@torch.no_grad()
def score_batch(model, batch):
    """For each item of a batch, the (nats, greedy) of its choices."""
    # read the shared beginnings, a row per item
    device = model.embed.weight.device
    n_shared = min(w.n_shared for w in batch)
    beginnings = torch.tensor([w.rows[0][:n_shared] for w in batch], device=device)
    x, state = model.read(beginnings, model.start(len(batch)))

    # the rest y, a row per choice, and which of its symbols belong to the continuation
    rows = [row for w in batch for row in w.rows]
    starts = [start for w in batch for start in w.starts]
    y = torch.full((len(rows), max(len(row) for row in rows) - n_shared), PAD)
    counts = torch.zeros(y.shape, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        y[i, : len(row) - n_shared] = torch.tensor(row[n_shared:])
        counts[i, start - n_shared : len(row) - n_shared] = True
    y = y.to(device)

    # read on: x[:, t] predicts y[:, t]
    item_of = torch.tensor([i for i, w in enumerate(batch) for _ in w.rows], device=device)
    x = x[item_of, -1:]
    if y.size(1) > 1:
        rest, _ = model.read(y[:, :-1], rows_of(state, item_of))
        x = torch.cat((x, rest), dim=1)
    logits = model.head(x)[:, : y.size(1)]  # y is empty if no row goes beyond the beginning
    # As rows: over a transposed tensor, cross_entropy is off by 5e-7 nats at every symbol.
    nats_of_each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    log_p = -nats_of_each.view_as(y).cpu().double()
    if not log_p.isfinite().all():
        raise NotFinite("log-probabilities")
    is_first = (logits.argmax(dim=2) == y).cpu()
    nats = (log_p * counts).sum(dim=1).tolist()
    greedy = (is_first | ~counts).all(dim=1).tolist()

    scores = iter(zip(nats, greedy, strict=True))
    return [[next(scores) for _ in w.rows] for w in batch]


def grade(item, scores):
    """{metric: points}: 1 if the right choice scores highest, 1/n if it is one of n tied, else 0.

    With a single choice (LAMBADA) greedy decoding must produce it.
    """
    log_p = [nats for nats, _ in scores]
    if len(scores) == 1:
        _, greedy = scores[0]
        return {"acc": float(greedy), "logp": log_p[0]}
    values = {"acc": log_p}
    # Lengths matter neither for whole sentences nor for one continuation after several contexts.
    if item.get("context") and "choices" in item:
        texts = [choice.removeprefix(" ") for choice in item["choices"]]
        values["acc_norm"] = []
        values["acc_bytes"] = []
        for nats, text in zip(log_p, texts, strict=True):
            values["acc_norm"].append(nats / max(1, len(text)))
            values["acc_bytes"].append(nats / max(1, len(text.encode())))
    points = {}
    for metric, found in values.items():
        highest = max(found)
        is_right = found[item["answer"]] == highest
        points[metric] = is_right / found.count(highest)
    return points


def summary(items, grades):
    """Mean of each metric, its standard error, chance, and acc by group."""
    chances = []
    for item in items:
        n_choices = len(pairs(item))
        chances.append(1 / n_choices if n_choices > 1 else 0)
    found = {"n": len(items), "chance": statistics.fmean(chances)}
    for metric in grades[0]:
        if not all(metric in points for points in grades):
            continue
        values = [points[metric] for points in grades]
        error = None
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
        found[metric] = statistics.fmean(values)
        found[f"{metric}_stderr"] = error
    groups = defaultdict(list)
    for item, points in zip(items, grades, strict=True):
        if "group" in item:
            groups[item["group"]].append(points["acc"])
    if groups:
        found["groups"] = {}
        for name, values in sorted(groups.items()):
            found["groups"][name] = {"n": len(values), "acc": statistics.fmean(values)}
    return found


# --- eval: printing -------------------------------------------------------------------------------


def print_scores(result, scored, text):
    """Print what this command has scored; `result` may hold more, from earlier ones."""
    lines = [["", "items", "acc", "acc_norm", "acc_bytes", "chance"]]
    for task in scored:
        if task == "val":
            continue
        found = result["tasks"][task]
        n_items = f"{found['n']:,}"
        if found["n"] < found["of"]:
            n_items += f" of {found['of']:,}"
        metrics = [percent(found, metric) for metric in ("acc", "acc_norm", "acc_bytes")]
        lines.append([task, n_items, *metrics, f"{found['chance']:.1%}"])
    if len(lines) > 1:
        print_table(lines)
    if text:
        print(bits_line(text, result["texts"][text]))
    if "val" in scored:
        print(bits_line(f"val, {result['weights']} of step {result['step']}", result["val"]))
        other = result["val"].get("other")
        if other:
            print(f"val, {other['weights']} of step {other['step']}: {other['bpb']:.4f} bpb")


def percent(found, metric):
    if metric not in found:
        return "-"
    error = found[f"{metric}_stderr"] or 0
    return f"{found[metric]:.1%} ± {error:.1%}"


def bits_line(name, found):
    """All figures of `bits_of` in one line."""
    parts = [f"{found['bpb']:.4f} bpb in windows of {found['context']}"]
    for n in SHORTER_WINDOWS:
        if f"bpb_{n}" in found:
            parts.append(f"{found[f'bpb_{n}']:.4f} of {n}")
    parts.append(f"{found['bpb_stream']:.4f} in one pass")
    if "bpb_documents" in found:
        parts.append(f"{found['bpb_documents']:.4f} document by document")
    if "stride" in found:
        parts.append(f"{found['bpb_stride']:.4f} with a stride of {found['stride']}")
    return f"{name}: {', '.join(parts)}; {found['bytes']:,} bytes"


if __name__ == "__main__":
    run_command(main, out_of_memory="give the config a smaller micro_batch")
