"""Share a trained model: write a folder, or a repository on the Hub, from which anyone can load it.

    python -m tools.share --to=notes_10m                              # the newest run
    python -m tools.share --model=out/demo --to=demo_8bit --bits=8    # a quarter of the size
    python -m tools.share --model=out/demo --to=USER/NAME             # to the Hub

Before the last one, run `hf auth login`. The folder gets model.safetensors (the weights),
config.json, model.py (all the code that a byte model needs) and README.md, a model card with a
sample of the model's text. Beware: a model can recite text that it has read often.
"""

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from config import parse
from lib.data import decode, encode
from lib.files import first_line, game_of, is_hub_name, load_run, newest_run, read_json, run_command
from lib.machine import parameter_table
from model import STLM


@dataclass
class ShareConfig:
    model: str = ""  # a run's folder, a shared folder, USER/NAME on the Hub; empty: the newest run
    weights: Literal["best", "last"] = "best"  # best: a run's lowest val loss; last: its newest
    to: str = ""  # the folder to write, or USER/NAME on the Hub (./USER/NAME is a folder)
    bits: int = 32  # per weight: 32, 16, 8 (about as good) or 4 (slightly worse)
    license: str = "mit"  # of the weights, by its name on the Hub
    prompt: str = ""  # of the sample in the card; empty: the start of a document
    seed: int = 1337  # for the sample


def main(argv=None):
    cfg, words = parse(ShareConfig, sys.argv[1:] if argv is None else argv, __doc__)
    if words:
        raise ValueError(
            f"unexpected argument {words[0]!r}: tools.share takes --key=value; see --help"
        )
    if not cfg.to:
        raise ValueError("give --to=DIR, or --to=USER/NAME for the Hub")
    to = Path(cfg.to)
    is_shared = (to / "config.json").is_file() and (to / "model.safetensors").is_file()
    if to.exists() and not is_shared:
        raise ValueError(f"to={to} exists but is not a shared folder: give another --to")
    model, checkpoint, path = load_run(cfg.model or newest_run(), cfg.weights)
    model.about = about_run(checkpoint, path)

    # Write the sample with the weights as shared: fewer bits may change it.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, cfg.bits)
        megabytes = Path(folder, "model.safetensors").stat().st_size / 1e6
        sample = write_sample(STLM.from_pretrained(folder), cfg)
    card = write_card(cfg, model, megabytes, sample)

    write = model.push_to_hub if is_hub_name(cfg.to) else model.save_pretrained
    try:
        write(cfg.to, cfg.bits, card)
    except Exception as e:  # the Hub's client raises many kinds
        raise ValueError(f"cannot write to {cfg.to}: {first_line(e)}") from None
    print(f"{path} -> {cfg.to}; python sample.py --model={cfg.to} writes text with it")


# --- the model's metadata -------------------------------------------------------------------------


def about_run(checkpoint, path):
    """Metadata to share with the weights: from the checkpoint, run.json and eval.json."""
    about = {}
    for key in (
        "step",
        "elapsed",
        "commit",
        "data",
        "command",
        "device",
        "verdict",
        "val",
        "tasks",
        "chosen_on_val",
        "game",
    ):
        if key in checkpoint:
            about[key] = checkpoint[key]
    if path.suffix == ".pt":
        about["chosen_on_val"] = path.name == "best.pt"
        about |= about_checkpoint(checkpoint, path)

    # strip local paths
    sources = []
    for source in about["data"].get("sources", []):
        sources.append(Path(source).name if source[:1] in "/.~" else source)
    about["data"] = about["data"] | {"sources": sources}
    if "command" in about:
        about["command"] = re.sub(r"(?<![\w.])[/~]\S*/", "", about["command"])
    return about


def about_checkpoint(checkpoint, path):
    """Metadata in run.json and eval.json beside a checkpoint, if it is about these weights."""
    about = {}
    game = game_of(checkpoint)
    if game:
        about["game"] = game

    run_path = path.with_name("run.json")
    run = read_json(run_path) if run_path.is_file() else {}
    for key in ("command", "device"):
        if key in run:
            about[key] = run[key]
    # The verdict is about the best weights of a game, and about the final ones of any other run.
    verdict_step = run.get("verdict_step", run.get("best_step", run.get("step")))
    if "verdict" in run and verdict_step == checkpoint["step"]:
        about["verdict"] = run["verdict"]

    eval_path = path.with_name("eval.json")
    scores = read_json(eval_path) if eval_path.is_file() else {}
    if (scores.get("weights"), scores.get("step")) == (path.name, checkpoint["step"]):
        about["tasks"] = {}
        for task, found in scores["tasks"].items():
            about["tasks"][task] = {key: v for key, v in found.items() if key != "groups"}
        if "val" in scores:
            about["val"] = scores["val"]
    return about


# --- the card -------------------------------------------------------------------------------------

CARD = """---
license: {license}
library_name: stlm
pipeline_tag: text-generation
tags: [stlm, byte-level]
---

# {name}

A super tiny language model: {parameters:,} parameters, {tables:,} of them in a table of n-grams,
{megabytes:.2f} MB ({bits} bits per weight). It reads {symbols}, in training {context:,} at a time.

{python}In a clone of stlm, `python sample.py --model={to}` writes text, and
`python bench.py eval --model={to}` scores the model.

## Training data and results

{facts}

## A sample

````
{sample}
````

## Limits

The model is tiny. It has learnt the form of its training text and hardly any facts, and it does not
follow instructions. Its text may be wrong, offensive, or a passage of the training text. License of
the weights: {license}.
"""

PYTHON = """```python
from model import STLM  # model.py is in this folder; it needs torch and safetensors

model = STLM.from_pretrained("{to}")
print(bytes(model.generate({prompt!r}, 200, temperature=0.8)).decode(errors="replace"))
```

"""


def write_card(cfg, model, megabytes, sample):
    """The text of README.md."""
    is_on_hub = is_hub_name(cfg.to)
    python = ""
    if model.cfg.tokenizer == "bytes":
        python = PYTHON.format(prompt=cfg.prompt, to=cfg.to if is_on_hub else ".")
    parameters = parameter_table(model)
    return CARD.format(
        license=cfg.license,
        name=Path(cfg.to).name,
        parameters=parameters["total"],
        tables=parameters["n-gram tables"],
        megabytes=megabytes,
        bits=cfg.bits,
        symbols="bytes" if model.cfg.tokenizer == "bytes" else "GPT-2's tokens",
        context=model.cfg.block_size,
        python=python,
        to=cfg.to if is_on_hub else Path(cfg.to).name,
        facts="\n".join(facts_of(model.about)),
        sample=sample,
    )


def facts_of(about):
    """The card's list of facts, and its table of benchmarks, as lines."""
    data = about["data"]
    text = f"- text: {data.get('name') or 'unknown'}"
    if data["sources"]:
        text += f" ({', '.join(data['sources'])})"
    facts = [text]
    for split in ("train", "val"):
        if split in data:
            n_bytes = data[split]["bytes"]
            n_documents = data[split]["documents"]
            facts.append(f"- {split}: {n_bytes:,} bytes in {n_documents:,} documents")
    device = about.get("device", "an unknown machine")
    facts.append(
        f"- training: {about['step']:,} steps in {about['elapsed']:,.0f} seconds on {device}; "
        f"commit {about['commit']}"
    )
    if "command" in about:
        facts.append(f"- command: `{about['command']}`")
    if "game" in about:
        facts.append(f"- it plays {about['game']}")
    if about.get("chosen_on_val"):
        if "game" in about:
            facts.append("- weights: those that lost the fewest lines during the run")
        else:
            facts.append("- weights: those with the lowest val loss during the run (chosen on val)")
    if "val" in about:
        facts.append(f"- val at 32 bits: {about['val']['bpb']:.4f} bits per byte")
    if about.get("verdict"):
        figures = ", ".join(f"{key}={value}" for key, value in about["verdict"].items())
        facts.append(f"- at 32 bits: {figures}")
    if about.get("tasks"):
        facts += ["", "| benchmark | items | accuracy ± standard error | chance |"]
        facts.append("|---|---|---|---|")
        for task, found in about["tasks"].items():
            accuracy = f"{found['acc']:.1%} ± {found['acc_stderr'] or 0:.1%}"
            facts.append(f"| {task} | {found['n']:,} | {accuracy} | {found['chance']:.1%} |")
    return facts


def write_sample(model, cfg):
    generator = torch.Generator().manual_seed(cfg.seed)
    prompt = encode(model.cfg, cfg.prompt.encode())
    symbols = list(model.generate(prompt, 400, temperature=0.8, generator=generator))
    return cfg.prompt + decode(model.cfg, symbols).decode(errors="replace")


if __name__ == "__main__":
    run_command(main)
