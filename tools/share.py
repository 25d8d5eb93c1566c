"""Share a trained model: a folder, or a repository on the Hub, from which anyone can load it.

    python -m tools.share --to=notes_10m                              # the newest run
    python -m tools.share --model=out/demo --to=demo_8bit --bits=8    # a quarter of the size
    python -m tools.share --model=out/demo --to=USER/NAME             # to the Hub; `hf auth login` comes first

Writes model.safetensors (the weights), config.json, model.py (all the code that is needed to use them) and README.md,
the model card: what the model is, what it read, what it is worth, and some text that it wrote. Before you share: what a
model has read often it can recite.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from config import parse
from lib.data import decode, encode
from lib.files import first_line, game_of, is_hub_name, load_run, newest_run, run_command
from lib.machine import parameter_table
from model import STLM


@dataclass
class ShareConfig:
    model: str = (
        ""  # a run's folder, a shared one or USER/NAME on the Hub; empty: the newest run under out/
    )
    weights: Literal["best", "last"] = "best"  # of a run: lowest val loss, or newest
    to: str = ""  # the folder to write, or USER/NAME on the Hub (./USER/NAME is a folder)
    bits: int = 32  # of a weight: 32, 16, 8 (about as good) or 4 (a little worse)
    license: str = "mit"  # of the weights, as the Hub calls it
    prompt: str = ""  # of the sample in the card; empty: the start of a document
    seed: int = 1337  # of the sample


CARD = """---
license: {license}
library_name: stlm
pipeline_tag: text-generation
tags: [stlm, byte-level]
---

# {name}

A super tiny language model: {parameters:,} parameters, of which {tables:,} are a table of n-grams, {megabytes:.2f} MB
({bits} bits a weight). It reads {symbols}, in training {context:,} at a time.

{python}In a clone of stlm `python sample.py --model={to}` writes text, and `python bench.py eval` with the same
`--model` says how well.

## What it read, and what it is worth

{facts}

## A sample

````
{sample}
````

## Limits

It is tiny: it knows the form of what it read and hardly any facts, and follows no instructions. What it writes may be
wrong, offensive, or a passage of what it read. License of the weights: {license}.
"""

PYTHON = """```python
from model import STLM  # the file model.py that lies here; it needs torch and safetensors

model = STLM.from_pretrained("{to}")
print(bytes(model.generate({prompt!r}, 200, temperature=0.8)).decode(errors="replace"))
```

"""


def about_run(checkpoint, path):
    """What is told of a model beside its weights: from its checkpoint and, where they lie beside it and speak of these
    weights, run.json and eval.json."""
    keys = ("step", "elapsed", "commit", "data", "command", "device", "verdict", "val", "tasks")
    keys += ("chosen_on_val", "game")
    about = {key: checkpoint[key] for key in keys if key in checkpoint}
    if path.suffix == ".pt":
        about["chosen_on_val"] = path.name == "best.pt"
        about |= about_checkpoint(checkpoint, path)
    # the folders of this machine are nobody's business
    sources = []
    for source in about["data"].get("sources", []):
        sources.append(Path(source).name if source[:1] in "/.~" else source)
    about["data"] = about["data"] | {"sources": sources}
    if "command" in about:
        about["command"] = re.sub(r"(?<![\w.])[/~]\S*/", "", about["command"])
    return about


def about_checkpoint(checkpoint, path):
    """What run.json and eval.json beside a checkpoint say of its weights."""
    about = {}
    game = game_of(checkpoint)
    if game:
        about["game"] = game
    run = {}
    scores = {}
    if path.with_name("run.json").is_file():
        run = json.loads(path.with_name("run.json").read_text(encoding="utf-8"))
    if path.with_name("eval.json").is_file():
        scores = json.loads(path.with_name("eval.json").read_text(encoding="utf-8"))
    for key in ("command", "device"):
        if key in run:
            about[key] = run[key]
    # the verdict is of a game's best weights, of all others' final ones
    verdict_step = run.get("verdict_step", run.get("best_step", run.get("step")))
    if "verdict" in run and verdict_step == checkpoint["step"]:
        about["verdict"] = run["verdict"]
    if (scores.get("weights"), scores.get("step")) == (path.name, checkpoint["step"]):
        about["tasks"] = {}
        for task, found in scores["tasks"].items():
            about["tasks"][task] = {key: v for key, v in found.items() if key != "groups"}
        if "val" in scores:
            about["val"] = scores["val"]
    return about


def write_card(cfg, model, small, megabytes):
    """The text of README.md. `small` has the weights of cfg.bits that are shared: it writes the sample."""
    about, data, is_bytes = model.about, model.about["data"], model.cfg.tokenizer == "bytes"
    facts = [
        f"- text: {data.get('name') or 'not told'}"
        + f" ({', '.join(data['sources'])})" * bool(data["sources"])
    ]
    for split in (s for s in ("train", "val") if s in data):
        facts += [
            f"- {split}: {data[split]['bytes']:,} bytes in {data[split]['documents']:,} documents"
        ]
    where = f"{about['elapsed']:,.0f} seconds on {about.get('device', 'an unknown machine')}"
    facts += [f"- training: {about['step']:,} steps in {where}; commit {about['commit']}"]
    facts += [f"- command: `{about['command']}`"] if "command" in about else []
    if "game" in about:
        facts += [f"- it plays {about['game']}"]
    if about.get("chosen_on_val") and "game" in about:
        facts += ["- weights: those that lost the fewest lines in the run's evaluations"]
    elif about.get("chosen_on_val"):
        facts += ["- weights: those with the lowest loss in the run's evaluations: chosen on val"]
    if "val" in about:
        facts += [f"- val at 32 bits: {about['val']['bpb']:.4f} bits per byte"]
    if verdict := about.get("verdict"):
        facts += [f"- at 32 bits: {', '.join(f'{key}={value}' for key, value in verdict.items())}"]
    if tasks := about.get("tasks"):
        facts += [
            "",
            "| benchmark | items | accuracy ± standard error | chance |",
            "|---|---|---|---|",
        ]
    for task, v in (tasks or {}).items():
        facts += [
            f"| {task} | {v['n']:,} | {v['acc']:.1%} ± {v['acc_stderr'] or 0:.1%} | {v['chance']:.1%} |"
        ]
    generator, prompt = (
        torch.Generator().manual_seed(cfg.seed),
        encode(model.cfg, cfg.prompt.encode()),
    )
    sample = decode(
        model.cfg, list(small.generate(prompt, 400, temperature=0.8, generator=generator))
    )
    python = PYTHON.format(prompt=cfg.prompt, to=cfg.to if is_hub_name(cfg.to) else ".")
    values = {"facts": "\n".join(facts), "sample": cfg.prompt + sample.decode(errors="replace")}
    values |= {
        "name": Path(cfg.to).name,
        "to": cfg.to if is_hub_name(cfg.to) else Path(cfg.to).name,
        "context": model.cfg.block_size,
        "megabytes": megabytes,
    }
    values |= {"symbols": "bytes" if is_bytes else "GPT-2's tokens", "python": python * is_bytes}
    values |= {
        "parameters": (parts := parameter_table(model))["total"],
        "tables": parts["n-gram tables"],
    }
    return CARD.format(**vars(cfg) | values)


def main(argv=None):
    cfg, words = parse(ShareConfig, sys.argv[1:] if argv is None else argv, __doc__)
    if words:
        raise ValueError(
            f"unexpected argument {words[0]!r}: tools.share takes --key=value only; see --help"
        )
    to = Path(cfg.to)
    if not cfg.to:
        raise ValueError("say where to: --to=DIR, or --to=USER/NAME for the Hub")
    if to.exists() and not (
        (to / "config.json").is_file() and (to / "model.safetensors").is_file()
    ):
        raise ValueError(f"to={to} is there and is no shared folder: give another --to")
    model, checkpoint, path = load_run(cfg.model or newest_run(), cfg.weights)
    model.about = about_run(checkpoint, path)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, cfg.bits)
        megabytes = Path(folder, "model.safetensors").stat().st_size / 1e6
        card = write_card(cfg, model, STLM.from_pretrained(folder), megabytes)
    write = model.push_to_hub if is_hub_name(cfg.to) else model.save_pretrained
    try:
        write(cfg.to, cfg.bits, card)
    except Exception as e:  # the Hub's client has many kinds
        raise ValueError(f"cannot write to {cfg.to}: {first_line(e)}") from None
    print(f"{path} -> {cfg.to}; python sample.py --model={cfg.to} writes text with it")


if __name__ == "__main__":
    run_command(main)
