"""What is a model worth, and what has been tried?

    python bench.py speed                                # 10M, pooled beside plain (on CUDA: 50M, beside BPE as well)
    python bench.py speed config/demo.py config/stlm_10m.py --rounds=5
    python bench.py eval --out_dir=out/demo              # val and five benchmarks, from the Hub
    python bench.py eval --data=DIR --tasks=val,blimp --limit=2000         # DIR/blimp.jsonl and the like
    python bench.py eval --text=novel.txt                # bits per byte of any text
    python bench.py report                               # every run in out/ and results/ -> EXPERIMENTS.md and pictures

speed: training (forward, backward, optimizer step, at the config's own batch) and generation, of untrained models fed
    with real text; every config in a process of its own, configs taking turns, warm-up left out.
eval: scores the run's final weights into out_dir/eval.json. Follows lm-evaluation-harness: acc takes the choice with
    the highest sum of log-probabilities (equals share the point), acc_norm divides by its characters, acc_bytes by its
    bytes. BLiMP compares whole sentences, WinoGrande what follows either name, ARC and MMLU the answers' texts (cloze).
    (The harness puts a space before BLiMP's sentences and names MMLU's subject.)
    A line of DIR/TASK.jsonl: {"context": str, "choices": [str, ...], "answer": int} or {"context_options": [str, ...],
    "continuation": str, "answer": int}, with "group" if you like.
report: writes between the markers in EXPERIMENTS.md; what stands outside them stays. On a terminal it also says what is
    running now.
"""

import json
import math
import multiprocessing
import platform
import re
import statistics
import sys
import sysconfig
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from config import build, load_file, parse
from model import PAD, STLM, sample
from report import read_json, report
from sample import newest_run

ROOT = Path(__file__).resolve().parent


@dataclass
class BenchConfig:
    # all
    device: str = "auto"  # auto: cuda, else mps, else cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: speed as train.py, eval float32
    json: bool = False  # print JSON instead of a table
    seed: int = 1337  # of the items that limit takes, and of speed's weights and text
    text: str = ""  # a UTF-8 file: eval scores it, speed reads it (empty: val of the config's dataset, else stdlib)
    # speed
    rounds: int = 3  # times each config is measured, taking turns
    seconds: float = 5.0  # of training in a round, at least (and at least one step)
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile in training; auto: on cuda, if it works
    # eval
    out_dir: str = ""  # the run's folder; empty: the newest under out/
    weights: Literal["last", "best"] = "last"  # of the run: final, or lowest progress evaluation
    tasks: str = ""  # comma-separated: val and names of benchmarks; empty: all there are
    data: str = ""  # folder with TASK.jsonl files; empty: the Hub, through `datasets`
    data_dir: str = ""  # where datasets live; empty: where the run found them
    limit: int = 0  # items of each benchmark, drawn at random; 0: all
    stride: int = 0  # symbols that a window scores in the second val figure; 0: half of the context

    def __post_init__(self):
        for key, low in (("rounds", 1), ("seconds", 0), ("limit", 0), ("stride", 0), ("seed", 0)):
            if not getattr(self, key) >= low:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")


# --- speed -----------------------------------------------------------------------------------------------------------

LENGTHS, TOGETHER = (512, 1024, 2048, 4096), 16  # bytes of text so far; texts generated at once


def some_text(cfg, configs):
    """Real text to read, the same for all: the file in cfg.text, or a dataset's val, or the standard library."""
    vals = [Path(c.data_dir) / c.dataset / "val.bin" for c in configs if c.tokenizer == "bytes"]
    path = Path(cfg.text) if cfg.text else next((p for p in vals if p.is_file()), None)
    if path:
        text, name = path.read_bytes()[: 1 << 20].replace(b"\xff", b"\n\n"), str(path)
    else:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text, name = b"".join(p.read_bytes() for p in files)[: 1 << 20], "the standard library"
    if len(text) < 20_000:
        raise ValueError(f"{name} has {len(text)} bytes; speed needs at least 20000 of real text")
    return text, name


def measure_speed(config, cfg, text):
    """One round of one config, in a process of its own: {name of the figure: value}."""
    device = train.pick_device(cfg.device)[0]
    dtype = train.pick_dtype(cfg.dtype, device)[0]
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    synchronize = wait.get(device.type, lambda: None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    train.keep_freed_memory()
    torch.manual_seed(cfg.seed)
    raw_model = STLM(config).to(device)
    raw_model.may_drop = config.dropout > 0
    raw_model.drop.fill_(config.dropout)
    symbols = torch.tensor(raw_model.encode(text), device=device)
    per_symbol, T = len(text) / len(symbols), config.block_size
    found = {"flops_per_byte": raw_model.flops_per_symbol() / per_symbol}

    # training, as train.py does it
    rows = config.batch_bytes // T
    micro = min(config.micro_batch or rows, rows)
    start = torch.randint(len(symbols) - T, (rows,), generator=torch.Generator().manual_seed(cfg.seed))
    batch = torch.stack([symbols[i : i + T + 1] for i in start.tolist()])
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    optimizers = train.make_optimizers(raw_model, config, train.pick_dtype("auto", device)[0])
    model = raw_model
    if cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda"):
        model = train.compile_or_not(raw_model, autocast, micro, T, device)
    train.train_step(model, optimizers, batch[:micro], micro, autocast, config.grad_clip)  # warm-up
    synchronize()
    steps, tick = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - tick < cfg.seconds:
        train.train_step(model, optimizers, batch, micro, autocast, config.grad_clip)
        synchronize()
        steps += 1
    found["training"] = str(dtype)[6:] + (", compiled" if model is not raw_model else ", eager")
    found["train_bytes_per_second"] = steps * rows * T * per_symbol / (time.perf_counter() - tick)
    peak = train.peak_flops(device) if dtype == torch.bfloat16 else None
    found["mfu"] = found["flops_per_byte"] * found["train_bytes_per_second"] / peak if peak else None
    if device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    elif sys.platform == "linux":  # on a CPU: of the whole process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        found["peak_memory_bytes"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024

    # generation: the text is fed, so that patches are those of real text; a choice is drawn as `generate` does
    raw_model.eval()
    del optimizers, model
    at = [round(n / per_symbol) for n in LENGTHS]
    n = round(128 / per_symbol)
    start = torch.linspace(0, len(symbols) - at[0] - n - 1, TOGETHER).long().tolist()
    for texts in (1, TOGETHER):
        rows = torch.stack([symbols[i : i + at[0] + n] for i in start[:texts]])
        raw_model.step(rows[:, at[0] :], raw_model.prefill(rows[:, : at[0]])[1])  # warm-up
        synchronize()
        tick = time.perf_counter()
        logits, cache = raw_model.prefill(rows[:, : at[0]])
        sample(logits[0].cpu(), 1.0, 0, 1.0, None)
        if texts == 1:
            found["first_byte_seconds"] = time.perf_counter() - tick
        for i, length in enumerate(at if texts == 1 else at[:1]):
            if i:  # read on to the next length
                raw_model.step(symbols[None, at[i - 1] + n : length], cache)
                rows = symbols[None, : length + n]
            synchronize()
            tick = time.perf_counter()
            for t in range(n):
                for row in raw_model.step(rows[:, length + t, None], cache)[:, -1].cpu():
                    sample(row, 1.0, 0, 1.0, None)
            speed = texts * n * per_symbol / (time.perf_counter() - tick)
            found[f"generate_at_{LENGTHS[i]}" if texts == 1 else f"generate_{TOGETHER}_texts"] = speed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return found | {"device": f"{name}, {torch.get_num_threads()} threads"}


def speed(cfg, paths):
    if not paths:
        cuda = train.pick_device(cfg.device)[0].type == "cuda"
        names = ("stlm_50m", "plain_50m", "bpe_50m") if cuda else ("stlm_10m", "plain_10m")
        paths = [str(ROOT / "config" / f"{name}.py") for name in names]
    configs = [build(train.Config, load_file(train.Config, p)[0], p) for p in paths]
    text, source = some_text(cfg, configs)
    arms = []
    for path, config in zip(paths, configs, strict=True):
        if config.batch_bytes < config.block_size:
            raise ValueError(f"{path}: batch_bytes={config.batch_bytes} is below block_size={config.block_size}")
        with torch.device("meta"):
            parameters = STLM(config).parameter_table()
        arms.append({"config": Path(path).stem, "parameters": parameters["total"], "rounds": []})
        arms[-1]["tables"] = parameters["n-gram tables"]
        arms[-1]["batch"] = f"{config.batch_bytes // config.block_size} x {config.block_size}"
    spawn = multiprocessing.get_context("spawn")
    with tqdm(total=cfg.rounds * len(arms), desc="measuring", unit="run", disable=None) as bar:
        for r in range(cfg.rounds):
            for i in [(r + i) % len(arms) for i in range(len(arms))]:  # another arm goes first in every round
                bar.set_postfix_str(arms[i]["config"])
                with ProcessPoolExecutor(1, mp_context=spawn) as process:
                    try:
                        arms[i]["rounds"].append(process.submit(measure_speed, configs[i], cfg, text).result())
                    except (BrokenProcessPool, torch.OutOfMemoryError):
                        reason = "its process died; if for want of memory, give its micro_batch a lower value"
                        raise ValueError(f"{paths[i]}: {reason}") from None
                bar.update()
    for arm in arms:
        arm |= {key: arm["rounds"][0][key] for key in ("device", "training", "flops_per_byte")}
        for key in arm["rounds"][0]:
            values = [a[key] for a in arm["rounds"]]
            if key not in arm and values[0] is not None:
                spread = statistics.stdev(values) if len(values) > 1 else None
                ratios = [v / a[key] for v, a in zip(values, arms[0]["rounds"], strict=True)]
                ratio = {"mean": statistics.fmean(ratios), "min": min(ratios), "max": max(ratios)}
                arm[key] = {"mean": statistics.fmean(values), "std": spread, "ratio": ratio}
    versions = {"torch": torch.__version__, "python": platform.python_version(), "commit": train.commit()}
    if cfg.json:
        print(json.dumps({"text": source, **versions, "arms": arms}, indent=1))
        return

    def plus(v, form):
        return form.format(v["mean"]) + (f" ± {form.format(v['std'])}" if v["std"] is not None else "")

    show = {"parameters": "{:,}", "tables": "{:,}", "batch": "{}", "training": "{}", "flops_per_byte": "{:,.0f}"}
    lines = [["", *(a["config"] for a in arms)]]
    lines += [[key.replace("_", " "), *(form.format(a[key]) for a in arms)] for key, form in show.items()]
    forms = {"first_byte_seconds": ("seconds to first byte", 1, "{:.3f}"), "mfu": ("MFU", 100, "{:.1f}%")}
    forms |= {"peak_memory_bytes": ("peak memory, GB", 1e-9, "{:.2f}")}
    for key in arms[0]["rounds"][0]:
        if key not in arms[0] or not isinstance(arms[0][key], dict):
            lines += [["MFU", *["n/a"] * len(arms)]] if key == "mfu" else []
            continue
        label, unit, form = forms.get(key, (key.replace("_", " ").replace(" per second", "/s"), 1, "{:,.0f}"))
        label = label.replace("generate", "generate bytes/s,")
        scaled = [a[key] | {"mean": a[key]["mean"] * unit, "std": a[key]["std"] and a[key]["std"] * unit} for a in arms]
        lines.append([label, *(plus(v, form) for v in scaled)])
        ratios = [v["ratio"] for v in scaled]
        lines.append(["  ratio", *(f"{r['mean']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios)])
    print_table(lines)
    print(f"generation in float32; {arms[0]['device']}, torch {versions['torch']}, commit {versions['commit']}")
    print(f"text: {source}; {cfg.rounds} rounds: mean ± standard deviation, ratio to the first (lowest to highest)")


def print_table(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]))


# --- eval: benchmark items -------------------------------------------------------------------------------------------

# BLiMP's 67 paradigms by phenomenon (arXiv 1912.00582, table 4)
PHENOMENA = {
    "anaphor agreement": "anaphor_",
    "argument structure": "animate_|causative|drop_argument|inchoative|intransitive|passive_|transitive",
    "binding": "principle_A_",
    "control/raising": "existential_there_(ob|sub)ject_raising|expletive_it_object_raising|tough_vs_raising_",
    "determiner-noun agreement": "determiner_noun_agreement_",
    "ellipsis": "ellipsis_n_bar_",
    "filler-gap": "wh_questions_|wh_vs_that_",
    "irregular forms": "irregular_past_participle_",
    "island effects": "adjunct_island|complex_NP_island|coordinate_|left_branch_|sentential_subject_island|wh_island",
    "NPI licensing": "matrix_question_npi_|npi_present_|only_npi_|sentential_negation_npi_",
    "quantifiers": "existential_there_quantifiers_|superlative_quantifiers_",
    "subject-verb agreement": "distractor_agreement_|(ir)?regular_plural_subject_verb_agreement_",
}


def hub_items(task):
    """The items of a benchmark on the Hub, in the schema of the local files. Wording as in lm-evaluation-harness."""
    import datasets

    def rows(path, config, split):
        return datasets.load_dataset(path, config, split=split)

    if task == "blimp":
        for config in datasets.get_dataset_config_names("nyu-mll/blimp"):
            for d in rows("nyu-mll/blimp", config, "train"):
                sentences = [d["sentence_good"], d["sentence_bad"]]
                yield {"context": "", "choices": sentences, "answer": 0, "group": d["UID"]}
    elif task == "arc_easy":
        for d in rows("allenai/ai2_arc", "ARC-Easy", "test"):
            answer = d["choices"]["label"].index(d["answerKey"])
            yield cloze(d["question"], d["choices"]["text"]) | {"answer": answer}
    elif task == "mmlu":
        for d in rows("cais/mmlu", "all", "test"):
            yield cloze(d["question"].strip(), d["choices"]) | {"answer": d["answer"], "group": d["subject"]}
    elif task == "hellaswag":
        clean = lambda s: re.sub(r"\[.*?\]", "", s.strip().replace(" [title]", ". ")).replace("  ", " ")  # noqa: E731
        for d in rows("Rowan/hellaswag", None, "validation"):
            context = clean(f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}")
            yield {"context": context, "choices": [f" {clean(e)}" for e in d["endings"]], "answer": int(d["label"])}
    elif task == "winogrande":
        for d in rows("allenai/winogrande", "winogrande_xl", "validation"):
            before, after = d["sentence"].split("_")
            options = [before + d["option1"], before + d["option2"]]
            yield {"context_options": options, "continuation": f" {after.strip()}", "answer": int(d["answer"]) - 1}


HUB_TASKS = ("blimp", "arc_easy", "hellaswag", "winogrande", "mmlu")


def cloze(question, choices):
    return {"context": f"Question: {question}\nAnswer:", "choices": [f" {c}" for c in choices]}


def local_items(path):
    """The items of a JSONL file. What is not in the schema is a ValueError with file and line."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                d = json.loads(line)
                partial = "context_options" in d
                choices = d["context_options" if partial else "choices"]
                rest = d["continuation" if partial else "context"]
                assert isinstance(choices, list) and len(choices) > 1, "fewer than two choices"
                assert all(isinstance(s, str) for s in (*choices, rest)), "context and choices must be text"
                assert all(choices) and (rest or not partial), "an empty choice"
                assert type(d["answer"]) is int and 0 <= d["answer"] < len(choices), f"answer={d['answer']!r}"
                assert isinstance(d.get("group", ""), str), "group must be text"
                "".join((*choices, rest)).encode()
            except (ValueError, TypeError, KeyError, AssertionError) as e:
                missing = "no " if isinstance(e, KeyError) else ""
                raise ValueError(f"{path}, line {number}: {missing}{e}; see --help for what a line must be") from None
            yield d


def pairs(item):
    """What is scored of an item: [(context, continuation), ...] as bytes, one for each choice."""
    if "context_options" in item:
        return [(c.encode(), item["continuation"].encode()) for c in item["context_options"]]
    return [(item["context"].encode(), c.encode()) for c in item["choices"]]


@torch.no_grad()
def score(model, items, progress=lambda n: None, share=True, at_once=0):
    """log p(continuation | EOT, context): items, lists of (context, continuation) in bytes -> lists of (nats, greedy).

    greedy: whether every symbol of the continuation is the model's first choice. Exact, and the same whatever shares a
    batch: items are batched by length; the beginning that an item's choices have in common is read once (`share`), then
    the choices go on from its cache, padded where no real symbol can see it.
    """
    device, results, work = model.embed.weight.device, [None] * len(items), []
    for number, item in enumerate(items):
        rows = [[model.eot, *model.encode(context + continuation)] for context, continuation in item]
        # a BPE token across the border belongs to the continuation
        starts = [min(1 + len(model.encode(c)), len(row) - 1) for (c, _), row in zip(item, rows, strict=True)]
        alike = next((i for i, s in enumerate(zip(*rows, strict=False)) if len(set(s)) > 1), min(map(len, rows)))
        common = min(alike, *starts) if share else 1
        work.append((common, max(map(len, rows)) - common, number, rows, starts))
    work.sort(key=lambda w: (w[0] // 16, w[1]))
    at_once = at_once or train.symbols_at_once(model)
    while work:
        batch, common, tail, n = [], work[0][0], 0, 0
        for w in work:  # as many as fit, at least one
            shortest = min(common, w[0])
            longest, rows = max(tail + common, w[0] + w[1]) - shortest, n + len(w[3])
            if batch and (len(batch) + 1) * shortest + rows * longest > at_once:
                break
            batch, common, tail, n = [*batch, w], shortest, longest, rows
        work = work[len(batch) :]
        prefix = torch.tensor([w[3][0][:common] for w in batch], device=device)
        rows, starts = [row for w in batch for row in w[3]], [start for w in batch for start in w[4]]
        y = torch.full((n, max(len(row) for row in rows) - common), PAD)
        mask = torch.zeros(y.shape, dtype=torch.bool)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            y[i, : len(row) - common] = torch.tensor(row[common:])
            mask[i, start - common : len(row) - common] = True
        y, times = y.to(device), torch.tensor([len(w[3]) for w in batch], device=device)
        logits, cache = model.prefill(prefix)
        logits = logits.repeat_interleave(times, dim=0)[:, None]  # (n, 1, V): before the first of y
        if y.size(1) > 1:
            logits = torch.cat((logits, model.step(y[:, :-1], cache.repeat(times))), dim=1)
        logits = logits[:, : y.size(1)]  # (where all rows are the common beginning, nothing is left to score)
        logp = -F.cross_entropy(logits.transpose(1, 2), y, reduction="none").cpu().double()
        greedy = ((logits.argmax(dim=2) == y).cpu() | ~mask).all(dim=1).tolist()
        scores = iter(zip((logp * mask).sum(dim=1).tolist(), greedy, strict=True))
        for _, _, number, rows, _ in batch:
            results[number] = [next(scores) for _ in rows]
            progress(len(rows))
    return results


def grade(item, logp):
    """{metric: 1 if the item's answer scores highest, else 0}; choices that score the same share the point."""
    values = {"acc": logp}
    if item.get("context") and "choices" in item:  # not for whole sentences, nor for one continuation
        texts = [c.removeprefix(" ") for c in item["choices"]]
        values["acc_norm"] = [v / max(1, len(t)) for v, t in zip(logp, texts, strict=True)]
        values["acc_bytes"] = [v / max(1, len(t.encode())) for v, t in zip(logp, texts, strict=True)]
    best = {metric: max(v) for metric, v in values.items()}
    return {m: (v[item["answer"]] == best[m]) / v.count(best[m]) for m, v in values.items()}


def summary(items, grades):
    """Mean of each metric, its standard error, chance, and acc by group."""
    found = {"n": len(items), "chance": statistics.fmean(1 / len(pairs(i)) for i in items)}
    for metric in [m for m in grades[0] if all(m in g for g in grades)]:
        values = [g[metric] for g in grades]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        found |= {metric: statistics.fmean(values), f"{metric}_stderr": error}
    groups = defaultdict(list)
    for item, g in zip(items, grades, strict=True):
        if "group" in item:
            groups[item["group"]].append(g["acc"])
    if groups:
        found["groups"] = {k: {"n": len(v), "acc": statistics.fmean(v)} for k, v in sorted(groups.items())}
        by = {}
        for name, pattern in PHENOMENA.items():
            if values := [a for k, v in groups.items() if re.match(pattern, k) for a in v]:
                by[name] = {"n": len(values), "acc": statistics.fmean(values)}
        if sum(v["n"] for v in by.values()) == len(items):
            found["phenomena"] = by
    return found


def benchmark(model, task, items, cfg):
    total = len(items)
    if cfg.limit and cfg.limit < total:
        chosen = np.random.default_rng(cfg.seed).choice(total, cfg.limit, replace=False)
        items = [items[i] for i in sorted(chosen)]
    work = [pairs(item) for item in items]
    tick = time.perf_counter()
    with tqdm(total=sum(map(len, work)), desc=task, unit=" choices", disable=None) as bar:
        scores = score(model, work, bar.update)
    found = summary(items, [grade(item, [nats for nats, _ in v]) for item, v in zip(items, scores, strict=True)])
    kinds = {"context_options": "what follows each option", "context": "each choice's text (cloze)"}
    kinds = {next((v for k, v in kinds.items() if i.get(k)), "whole sentences") for i in items}
    terms = {"scored": ", ".join(sorted(kinds)), "of": total, "limit_seed": cfg.seed}
    return terms | {"seconds": round(time.perf_counter() - tick, 1)} | found


def evaluate(cfg):
    out = Path(cfg.out_dir) if cfg.out_dir else newest_run()
    path, device = out / f"{cfg.weights}.pt", train.pick_device(cfg.device)[0]
    model, checkpoint = train.load_model(path, device)
    train.keep_freed_memory()
    run = build(train.Config, checkpoint["config"] | ({"data_dir": cfg.data_dir} if cfg.data_dir else {}), path)
    there = tuple(sorted(p.stem for p in Path(cfg.data).glob("*.jsonl"))) if cfg.data else HUB_TASKS
    named = [t for t in cfg.tasks.split(",") if t]
    if unknown := [t for t in named if t not in ("val", *there)]:
        raise ValueError(f"no task {unknown[0]!r} in {cfg.data or 'the list'}; there are val, {', '.join(there)}")
    if cfg.data and not there:
        raise ValueError(f"no *.jsonl in {cfg.data}")
    tasks = named or ([] if cfg.text else ["val", *there])
    result = {"weights": path.name, "tasks": {}} | {key: checkpoint[key] for key in ("step", "elapsed", "commit")}
    if (out / "eval.json").is_file():  # other figures of the same weights stay
        old = read_json(out / "eval.json")
        if isinstance(old.get("tasks"), dict) and all(old.get(k) == v for k, v in result.items() if k != "tasks"):
            result = old
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    say(f"{path}: step {checkpoint['step']}, {checkpoint['parameters']['total']:,} parameters, {device}")
    dtype = train.pick_dtype("float32" if cfg.dtype == "auto" else cfg.dtype, device)[0]
    how = {"device": str(device), "dtype": str(dtype)[6:], "torch": torch.__version__}
    T, lines = run.block_size, [["", "items", "acc", "acc_norm", "acc_bytes", "chance"]]
    stride = min(cfg.stride or max(1, T // 2), T)

    def bits(name, data, where):
        """Two figures of a text: windows side by side, as in training, and overlapping ones."""
        found = {"context": T, "stride": stride, **how}
        with tqdm(total=2 * len(data.symbols), desc=name, unit=" symbols", unit_scale=True, disable=None) as bar:
            for key, step in (("bpb", 0), ("bpb_stride", stride)):
                got = train.evaluate(model, data, T, stride=step, progress=bar.update)
                found |= {key: got["bpb"], "bytes": got["bytes"]}
        where[name] = found
        return (
            f"{name}: {found['bpb']:.4f} bpb in windows of {T}, {found['bpb_stride']:.4f} with a stride of {stride}; "
            f"{found['bytes']:,} bytes"
        )

    notes = []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if cfg.text:
            notes.append(bits(Path(cfg.text).name, read_text(model, cfg.text), result.setdefault("texts", {})))
        for task in tasks:
            try:
                if task == "val":
                    data = train.Data(run, "val")
                    if data.meta["val"] != checkpoint["data"]["val"]:
                        raise ValueError(f"{run.dataset}'s val is not the one this run was trained beside (sha256)")
                    notes.append(bits("val", data, result))
                    continue
                try:
                    items = list(local_items(Path(cfg.data) / f"{task}.jsonl") if cfg.data else hub_items(task))
                except Exception as e:
                    if cfg.data:
                        raise
                    reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
                    raise ValueError(f"not from the Hub ({reason}); --data=DIR reads local files") from None
                if not items:
                    raise ValueError("has no items")
                result["tasks"][task] = benchmark(model, task, items, cfg) | how
            except ValueError as e:
                if named:
                    raise ValueError(f"{task}: {e}") from None
                say(f"{task}: left out: {e}")
                continue
            write_json(out / "eval.json", result)  # a long evaluation that is stopped keeps what it has
    write_json(out / "eval.json", result)
    if cfg.json:
        print(json.dumps(result, indent=1))
        return
    percent = lambda v, m: f"{v[m]:.1%} ± {v[m + '_stderr'] or 0:.1%}" if m in v else "-"  # noqa: E731
    for task in (t for t in tasks if t in result["tasks"]):
        v = result["tasks"][task]
        n = f"{v['n']:,}" + (f" of {v['of']:,}" if v["n"] < v["of"] else "")
        row = [f"{task}: {v['scored']}", n, *(percent(v, m) for m in lines[0][2:5]), f"{v['chance']:.1%}"]
        lines.append(row)
        lines += [[f"  {k}", f"{g['n']:,}", f"{g['acc']:.1%}", "", "", ""] for k, g in v.get("phenomena", {}).items()]
    if len(lines) > 1:
        print_table(lines)
    print("\n".join([*notes, f"-> {out / 'eval.json'}"]))


def read_text(model, path):
    """A text file as data to score."""
    try:
        raw = Path(path).read_bytes()
        raw.decode("utf-8")
    except OSError as e:
        raise ValueError(f"text={path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"text={path} is not UTF-8: byte {e.start} is 0x{raw[e.start]:02X}") from None
    if not raw:
        raise ValueError(f"text={path} is empty")
    return train.Data.of_text(model, raw)


def write_json(path, value):
    train.write_atomically(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def main(argv=None):
    cfg, words = parse(BenchConfig, sys.argv[1:] if argv is None else argv, __doc__)
    command, *paths = words or [""]
    if command not in ("speed", "eval", "report"):
        raise ValueError(f"which of speed, eval and report? ({command!r} is none of them; see --help)")
    if paths and command != "speed":
        raise ValueError(f"what is {paths[0]!r}? {command} takes --key=value only; see --help")
    if command == "speed":
        speed(cfg, paths)
    elif command == "eval":
        evaluate(cfg)
    else:
        report()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"bench.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
