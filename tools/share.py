"""Share a trained model as a folder or a repository on the Hub that anyone can load, or as a page.

    python -m tools.share --to=notes_10m                              # the newest run
    python -m tools.share --model=out/demo --to=demo_8bit --bits=8    # a quarter of the size
    python -m tools.share --model=out/demo --to=USER/NAME --private   # to the Hub
    python -m tools.share --model=out/demo --to=demo.html             # a page: open it in a browser

Before the third one, run `hf auth login`. The folder gets model.safetensors (the weights),
config.json, model.py (all the code that a byte model needs) and README.md, a model card with a
sample of the model's text. If somebody has edited README.md, it stays as it is. A byte model that
plays no game also gets modeling_stlm.py and tokenizer_config.json, for transformers:
AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True), and AutoTokenizer alike.

A name that ends in .html is a page: one file with the weights and the code in it. It works offline
and sends nothing. The code is in tools/page.html, which describes model.py once more, in
JavaScript: if you have changed a layer there, change it in both.

Of the run, the files tell numbers and names, but no paths and no addresses. All that they tell is
printed first. Beware: a model can recite text that it has read often.
"""

import base64
import dataclasses
import json
import os
import re
import shlex
import sys
import tempfile
import urllib.parse
from codecs import getincrementaldecoder
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from config import ROOT, Config, parse, read_command_line
from lib.benchmarks import BENCHMARKS
from lib.commit import git
from lib.data import decode, encode
from lib.files import (
    ABOUT,
    first_line,
    fitting,
    game_of,
    is_hub_name,
    load_run,
    markdown_text,
    newest_run,
    read_json,
    run_command,
    write_atomically,
)
from lib.machine import parameter_table
from lib.sources import PRESETS, is_hub_dataset
from model import KNOBS, STLM, sha256


@dataclass
class ShareConfig:
    model: str = ""  # a run's folder, a shared folder, USER/NAME on the Hub; empty: the newest run
    weights: Literal["best", "last"] = "best"  # best: a run's lowest val loss; last: its newest
    # the folder to write, a page (NAME.html), or USER/NAME on the Hub (./USER/NAME is a folder)
    to: str = ""
    private: bool = False  # on the Hub: only you can see the repository
    # per weight: 32, 16, 8 (about as good) or 4 (slightly worse); 0: a page 8, a run 32, a shared
    # folder as many as it has
    bits: int = 0
    license: str = "mit"  # of the weights, by its name on the Hub
    prompt: str = ""  # of the sample in the card, or in the page; empty: the start of a document
    seed: int = 1337  # for the sample

    def __post_init__(self):
        # It goes into the card's YAML.
        if re.fullmatch(r"\w[\w.-]*", self.license, re.ASCII) is None:
            raise ValueError(
                f"license={self.license!r} must be a name like mit or cc-by-4.0, as on the Hub"
            )


def main(argv=None):
    cfg, words = parse(ShareConfig, sys.argv[1:] if argv is None else argv, __doc__)
    if words:
        raise ValueError(
            f"unexpected argument {words[0]!r}: tools.share takes --key=value; see --help"
        )
    check_target(cfg)
    model, checkpoint, path = load_run(cfg.model or newest_run(), cfg.weights)
    model.about = about_run(checkpoint, path)
    if not cfg.bits:
        bits = 8 if is_page(cfg.to) else model.about.get("bits")
        cfg.bits = bits if bits in (32, 16, 8, 4) else 32
    model.about["bits"] = cfg.bits
    if is_page(cfg.to):
        share_page(model, cfg, path)
        return

    # Write the sample with the weights as shared: fewer bits may change it.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, cfg.bits)
        megabytes = Path(folder, "model.safetensors").stat().st_size / 1e6
        sample = ""
        if "game" not in model.about:
            sample = write_sample(STLM.from_pretrained(folder), cfg)
    card = signed(write_card(cfg, model, megabytes, sample))
    modeling = ""
    if is_for_transformers(model):
        modeling = (ROOT / "lib/modeling_stlm.py").read_text(encoding="utf-8")

    try:
        if has_edited_card(cfg.to):
            card = ""
        print_list(cfg, model.about, card, modeling)
        if is_hub_name(cfg.to):
            model.push_to_hub(cfg.to, cfg.bits, card, cfg.private, modeling)
        else:
            model.save_pretrained(cfg.to, cfg.bits, card, modeling)
    except Exception as e:  # the Hub's client raises many kinds
        raise ValueError(f"cannot write to {cfg.to}: {first_line(e)}") from None
    does = "plays against you" if "game" in model.about else "writes text with it"
    print(f"{path} -> {cfg.to}; python sample.py --model={cfg.to} {does}")


def check_target(cfg):
    """ValueError if `to` is no place to write to."""
    if not cfg.to:
        raise ValueError("give --to=DIR, --to=NAME.html for a page, or --to=USER/NAME for the Hub")
    if is_hub_name(cfg.to) and not is_page(cfg.to):
        return
    if cfg.private:
        raise ValueError(f"to={cfg.to} is not on the Hub: --private needs --to=USER/NAME")
    to = Path(cfg.to)
    if to.name in ("", ".."):
        raise ValueError(f"to={cfg.to} has no name of its own: give the folder's name")
    if to.is_symlink():
        raise ValueError(f"to={cfg.to} is a link: give the folder that it leads to, or another one")
    if is_page(cfg.to):
        if to.exists() and not is_as_written(to):
            raise ValueError(
                f"to={cfg.to} was not written by tools.share, or was edited: give another --to"
            )
    elif to.exists() and not is_shared_folder(to):
        raise ValueError(f"to={cfg.to} exists but is not a shared folder: give another --to")


def is_shared_folder(folder):
    """Whether a folder holds a model of ours, and not one of another project."""
    if not (folder / "model.safetensors").is_file():
        return False
    try:
        return set(KNOBS) <= read_json(folder / "config.json").keys()
    except ValueError:
        return False


def is_for_transformers(model):
    """Whether lib/modeling_stlm.py can do what the model is for: write text, byte by byte."""
    return model.cfg.tokenizer == "bytes" and "game" not in model.about


def print_list(cfg, about, card="", modeling=""):
    """Print what is about to leave this machine."""
    files = ["model.safetensors", "config.json", "model.py"]
    if is_page(cfg.to):
        files = [f"{Path(cfg.to).name} (with the weights)"]
    if modeling:
        files += ["modeling_stlm.py", "tokenizer_config.json"]
    if card:
        with_sample = "" if "game" in about else " (with a sample of the model's text)"
        files.append(f"README.md{with_sample}")
    elif not is_page(cfg.to):
        print(
            f"{cfg.to}/README.md was not written by this command, or was edited: it stays; "
            "delete it to get a new card",
            file=sys.stderr,
        )
    print(f"sharing {', '.join(files)}; beside the model's knobs they tell")
    for key, value in about.items():
        print(f"  {key}: {json.dumps(value)}")


# --- the model's metadata -------------------------------------------------------------------------


FIGURE = r"\d[\d.,]*(e[-+]?\d+)?(/\d+)?"  # 1.25, or 1/560 for a game


def about_run(checkpoint, path):
    """What to share of a run beside its weights: the fields of ABOUT, without anything private."""
    found = dict(checkpoint)
    if path.suffix == ".pt":
        found["chosen_on_val"] = path.name == "best.pt"
        found |= about_checkpoint(checkpoint, path)
    if found.get("game"):
        found["data"] = {}  # it read no text
    about = {"step": 0, "elapsed": 0.0, "commit": "unknown", "data": {}}
    about |= fitting(found, ABOUT, path)

    data = about["data"]
    if "sources" in data:
        names = [source_name(source) for source in data["sources"]]
        data["sources"] = [name for name in names if name]
    about["command"] = public_command(about.get("command", ""))
    verdict = about.get("verdict", {})
    about["verdict"] = {k: v for k, v in verdict.items() if re.fullmatch(FIGURE, str(v))}
    # A benchmark of somebody's own may be named after anything.
    tasks = about.get("tasks", {})
    about["tasks"] = {task: tasks[task] for task in BENCHMARKS if task in tasks}
    for key in ("command", "verdict", "tasks", "game"):
        if not about.get(key):
            about.pop(key, None)
    return about


def about_checkpoint(checkpoint, path):
    """Metadata in run.json and eval.json beside a checkpoint, if it is about these weights."""
    about = {"game": game_of(checkpoint) or None}
    run_path = path.with_name("run.json")
    run = read_json(run_path) if run_path.is_file() else {}
    for key in ("command", "device"):
        about[key] = run.get(key)
    # The verdict is about the best weights of a game, and about the final ones of any other run.
    verdict_step = run.get("verdict_step", run.get("best_step", run.get("step")))
    if verdict_step == checkpoint["step"]:
        about["verdict"] = run.get("verdict")

    eval_path = path.with_name("eval.json")
    scores = read_json(eval_path) if eval_path.is_file() else {}
    if (scores.get("weights"), scores.get("step")) == (path.name, checkpoint["step"]):
        about["tasks"] = scores.get("tasks")
        about["val"] = scores.get("val")
    return about


# a file's name or a glob; a Hub dataset or a preset
PUBLIC_NAME = r"[\w .*?()+-]+\.(txt|md|py|jsonl|json|csv|parquet)(\.gz)?|[\w.-]+"


def source_name(source):
    """The name of a source without folders, host, query, owner and configuration, or "".

    "https://host/p/a.txt?token=s" -> "a.txt", "OWNER/NAME:CONFIG" -> "NAME". A folder has none: its
    name may be that of a person or a project.
    """
    if is_hub_dataset(source) or source in (*PRESETS, "stdlib"):
        name = source.partition(":")[0].rpartition("/")[2]
    else:
        url = re.match(r"\w[\w+.-]+:/(/[^/?#]*)?", source)  # but not C:/
        if url:
            source = urllib.parse.unquote(source[url.end() :])
            source = re.split(r"[?#;]", source)[0]
        name = re.split(r"[/\\:]", source)[-1]
        if "." not in name:
            return ""
    return name if re.fullmatch(PUBLIC_NAME, name) else ""


def public_command(command):
    """A training command with its numbers, its choices and a config file of ours, and nothing else.

    "" if today's knobs do not fit it. Up to commit 1254c3f, selfplay.py trained as well.
    """
    try:
        program, *rest = shlex.split(command)
        words, knobs = read_command_line(Config, rest)
    except (ValueError, RecursionError, MemoryError):
        return ""
    if program not in ("train.py", "selfplay.py"):
        return ""
    public = [program]
    for word in words:
        path = Path(word)
        folders = (Path("config"), Path("config/races"))
        is_in_config = path.parent in (*folders, *(ROOT / folder for folder in folders))
        # A file that is not committed may be named after anything.
        ours = [f"{folder}/{path.name}" for folder in folders]
        if is_in_config and git("ls-files", "--", *ours):
            public.append(f"config/{path.name}")
    for field in dataclasses.fields(Config):
        if field.name in knobs and field.type is not str:
            public.append(f"--{field.name}={knobs[field.name]}")
    return " ".join(public)


# --- the card -------------------------------------------------------------------------------------

CARD = """---
license: {license}
library_name: stlm
{tags}
---

# {name}

A super tiny language model: {parameters:,} parameters, {tables:,} of them in a table of n-grams,
{megabytes:.2f} MB ({bits} bits per weight). It reads {symbols}, in training {context:,} at a time.

{usage}

## Training data and results

{facts}

{sample}## Limits

The model is tiny. {limits} License of
the weights: {license}.
"""

# For models that write text and for models that play a game.
TAGS = "pipeline_tag: text-generation\ntags: [stlm, byte-level]"
TAGS_OF_GAME = "tags: [stlm, byte-level, game]"
USAGE = """{python}In a clone of stlm, `python sample.py --model={to}` writes text, and
`python bench.py eval --model={to}` scores the model."""
USAGE_OF_GAME = "In a clone of stlm, `python sample.py --model={to}` plays against you."
LIMITS = """It has learnt the form of its training text and hardly any facts, and it does not
follow instructions. Its text may be wrong, offensive, or a passage of the training text."""
LIMITS_OF_GAME = "It plays this one game and writes nothing else."

SAMPLE = """## A sample

{fence}
{sample}
{fence}

"""

PYTHON = """```python
from model import STLM  # model.py is in this folder; it needs torch and safetensors

model = STLM.from_pretrained("{to}")
print(bytes(model.generate({prompt!r}, 200, temperature=0.8)).decode(errors="replace"))
```

"""

TRANSFORMERS = """Or with transformers, which runs the two Python files of this folder:

```python
from transformers import pipeline

write = pipeline("text-generation", model="{to}", trust_remote_code=True)
print(write({prompt!r}, max_new_tokens=200, do_sample=True, temperature=0.8)[0]["generated_text"])
```

"""


def write_card(cfg, model, megabytes, sample):
    """The text of README.md."""
    is_on_hub = is_hub_name(cfg.to)
    name = Path(cfg.to).name
    to = cfg.to
    if not is_on_hub:
        to = name if re.fullmatch(r"[\w.-]+", name) else "DIR"
    python = ""
    if model.cfg.tokenizer == "bytes":
        here = to if is_on_hub else "."
        python = PYTHON.format(prompt=cfg.prompt, to=here)
        if is_for_transformers(model):
            python += TRANSFORMERS.format(prompt=cfg.prompt, to=here)
    parameters = parameter_table(model)
    if "game" in model.about:
        tags = TAGS_OF_GAME
        usage = USAGE_OF_GAME.format(to=to)
        limits = LIMITS_OF_GAME
        sample = ""
    else:
        tags = TAGS
        usage = USAGE.format(python=python, to=to)
        limits = LIMITS
        # longer than any in the sample, which would end the block
        fence = max(["```", *re.findall("`+", sample)], key=len) + "`"
        sample = SAMPLE.format(fence=fence, sample=sample)
    return CARD.format(
        license=cfg.license,
        tags=tags,
        name=markdown_text(name),
        parameters=parameters["total"],
        tables=parameters["n-gram tables"],
        megabytes=megabytes,
        bits=cfg.bits,
        symbols="bytes" if model.cfg.tokenizer == "bytes" else "GPT-2's tokens",
        context=model.cfg.block_size,
        usage=usage,
        facts="\n".join(facts_of(model.about)),
        sample=sample,
        limits=limits,
    )


def facts_of(about):
    """The card's list of facts, and its table of benchmarks, as lines.

    All text in `about` may come from others: markdown_text shows it.
    """
    data = about["data"]
    if "game" in about:
        data = {"name": "none: random games, then games against itself"}
    facts = [f"- text: {markdown_text(data.get('name') or 'unknown')}"]
    if data.get("sources"):
        facts[0] += f" ({markdown_text(', '.join(data['sources']))})"
    for split in ("train", "val"):
        found = {"bytes": 0, "documents": 0} | data.get(split, {})
        if found["bytes"]:
            facts.append(f"- {split}: {found['bytes']:,} bytes in {found['documents']:,} documents")
    device = markdown_text(about.get("device", "an unknown machine"))
    facts.append(
        f"- training: {about['step']:,} steps in {about['elapsed']:,.0f} seconds on {device}; "
        f"commit {markdown_text(about['commit'])}"
    )
    if "command" in about:
        facts.append(f"- command: `{about['command']}`")
    if "game" in about:
        facts.append(f"- it plays {markdown_text(about['game'])}")
    if about.get("chosen_on_val"):
        if "game" in about:
            facts.append("- weights: those that lost the fewest lines during the run")
        else:
            facts.append("- weights: those with the lowest val loss during the run (chosen on val)")
    if "bpb" in about.get("val", {}):
        facts.append(f"- val at 32 bits: {about['val']['bpb']:.4f} bits per byte")
    if "verdict" in about:
        figures = ", ".join(f"{key}={value}" for key, value in about["verdict"].items())
        facts.append(f"- at 32 bits: {markdown_text(figures)}")
    return facts + table_of(about.get("tasks", {}))


def table_of(tasks):
    """The table of benchmarks, as lines."""
    rows = []
    for task, found in tasks.items():
        if {"n", "acc", "chance"} <= found.keys():
            accuracy = f"{found['acc']:.1%} ± {found.get('acc_stderr', 0):.1%}"
            chance = f"{found['chance']:.1%}"
            rows.append(f"| {markdown_text(task)} | {found['n']:,} | {accuracy} | {chance} |")
    if not rows:
        return []
    heading = [
        "",
        "| benchmark | items | accuracy ± standard error | chance |",
        "|---|---|---|---|",
    ]
    return heading + rows


def write_sample(model, cfg):
    generator = torch.Generator().manual_seed(cfg.seed)
    prompt = encode(model.cfg, cfg.prompt.encode())
    symbols = list(model.generate(prompt, 400, temperature=0.8, generator=generator))
    # The last character may be incomplete: this decoder keeps it back.
    text = getincrementaldecoder("utf-8")(errors="replace").decode(decode(model.cfg, symbols))
    return cfg.prompt + text


# --- the page -------------------------------------------------------------------------------------


def is_page(to):
    return Path(to).suffix.lower() == ".html"


def share_page(model, cfg, path):
    """Write a page, NAME.html, that runs the model of `path`."""
    if model.cfg.tokenizer != "bytes":
        raise ValueError(f"{path} reads GPT-2's tokens, a page only bytes: share it with --to=DIR")
    if "game" in model.about:
        raise ValueError(f"{path} plays a game, a page only writes text: share it with --to=DIR")
    print_list(cfg, model.about)
    page = signed(fill_page(model, cfg)).encode()
    write_atomically(Path(cfg.to), lambda file: file.write(page), len(page))
    print(f"{path} -> {cfg.to}, {len(page) / 1e6:.2f} MB: open it in a browser")


def fill_page(model, cfg):
    """The text of tools/page.html with the model in it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, cfg.bits)
        config = Path(folder, "config.json").read_text(encoding="utf-8")
        weights = Path(folder, "model.safetensors").read_bytes()
    shared = {"name": Path(cfg.to).stem, "prompt": cfg.prompt, "license": cfg.license}
    parts = {
        "shared": json.dumps(shared),
        "config": config,
        "weights": base64.b64encode(weights).decode(),
    }
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        begin = f'<script id="{name}" type="text/plain">'
        # Whatever the metadata says, "</script>" must not end the element. In JSON, a "<" stands
        # inside a string.
        page = page.replace(begin, begin + content.replace("<", "\\u003c"))
    return page


# --- a card or a page that somebody has edited ----------------------------------------------------

SIGNATURE = "\n<!-- Written by tools.share. If you edit this file, it stays as it is. "


def signed(content):
    """A card or a page with a comment at its end, which tells whether somebody has edited it."""
    return f"{content}{SIGNATURE}sha256 {sha256(content.encode())} -->\n"


def has_edited_card(to):
    """Whether the README.md in a folder or on the Hub is not as this command wrote it."""
    path = Path(to, "README.md")
    if is_hub_name(to):
        from huggingface_hub import file_exists, hf_hub_download

        if not file_exists(to, "README.md"):
            return False
        path = Path(hf_hub_download(to, "README.md"))
    elif not os.path.lexists(path):
        return False
    return not is_as_written(path)


def is_as_written(path):
    """Whether a card or a page is as this command wrote it."""
    if not path.is_file():  # a folder, say, or a link to nothing
        return False
    text = path.read_bytes().decode(errors="replace")
    content, _, _ = text.rpartition(SIGNATURE)
    return text == signed(content)


if __name__ == "__main__":
    run_command(main)
