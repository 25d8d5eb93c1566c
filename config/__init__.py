"""Every knob of a run, and how a config file and a command line become one checked `Config`.

    cfg, words = parse(Config, argv, usage, "config/demo.py")        # "config/stlm_10m.py --max_seconds=60 --seed 3"

The dataclass is the only list of knobs: name, type, default, and a comment that `--help` prints. A config file
is plain Python that assigns some of them; it may compute, keep helpers in _underscored names, and build on another file
with `from config.stlm_10m import *`. Its docstring says why the experiment is worth running. The command line wins over
the file. What is misspelt, of the wrong type or impossible is a ValueError that names the key, where it stood and the
nearest name. A name that stands in a log or a checkpoint never leads to a file that is run.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import math
import re
import runpy
import sys
import textwrap
import tokenize
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
__path__.append(str(ROOT / "config" / "races"))  # where `config.NAME` is looked for, too


@dataclass
class Config(ModelConfig):
    # --- run ---
    dataset: str = ""  # folder under data_dir, made by prepare.py; empty: the newest one
    data_dir: str = "data"  # where datasets live
    out_dir: str = ""  # where the run goes; empty: out/ and the config file's name
    init_from: str = ""  # start from the best weights of a run, or a shared folder, or USER/NAME
    resume: Literal["", "true", "auto"] = ""  # continue from last.pt; auto: or start, without one
    overwrite: bool = False  # delete the run that is in out_dir
    seed: int = 1337  # of weights, data order, dropout and masks
    # --- length: one of the two; the schedule follows it ---
    max_steps: int = 0  # optimizer steps
    max_seconds: float = 0.0  # training time, with compiling, without evaluation and saving
    # --- batch ---
    batch_bytes: int = 16384  # bytes (gpt2: tokens) in one optimizer step, over all processes
    micro_batch: int = 0  # rows in one pass of one process, fewer on a CPU; 0: all of its share
    # --- optimizer: Muon for the matrices, AdamW for embeddings, tables and Canon layers ---
    muon_lr: float = 0.02  # peak learning rate of Muon
    adam_lr: float = 0.005  # peak learning rate of AdamW
    momentum: float = 0.95  # of Muon
    beta1: float = 0.6  # of AdamW
    beta2: float = 0.99  # of AdamW
    weight_decay: float = 0.0  # decoupled, on matrices
    warmup: float = 0.02  # share of the run in which the learning rate rises, after compiling
    decay: float = 0.7  # share of the run, at its end, in which it falls linearly to zero
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    dropout: float = 0.0  # largest share dropped; worth it when data repeats
    # linear: rises from 0 to dropout; triangle: rises and falls again
    dropout_schedule: Literal["constant", "linear", "triangle"] = "constant"
    # --- objective: what training predicts (lib/objectives.py, lib/selfplay.py) ---
    objective: Literal[
        "next_byte",
        "multi_byte",
        "masked",
        "next_patch",
        "distill",
        "game",
        "spin",
    ] = "next_byte"  # each has its knobs
    n_future: int = 3  # multi_byte: how many bytes ahead are predicted, the next one included
    mask_share: float = 0.15  # masked: share of the input bytes that are hidden
    mask_span: int = 3  # masked: how many bytes in a row are hidden together
    patch_weight: float = 0.03  # next_patch: weight of the patch's loss beside the bytes'
    teacher: str = ""  # distill: a run's folder, a shared one, or USER/NAME on the Hub
    teacher_share: float = 0.5  # distill: share of the loss that compares with the teacher
    # --- self-play: objective=game (against itself), objective=spin (against its own text) ---
    play_lr: float = 0.002  # game, spin: peak learning rate of self-play (AdamW)
    game: Literal["tictactoe", "nim"] = "tictactoe"  # game: which
    games: int = 256  # game: how many are played in one step, over all processes
    pretrain: float = 0.125  # game: share of the run that reads random games first; 1: all of it
    openings: float = 0.5  # game: share of the games that begin with 0 to 4 random moves
    random_games: float = 0.25  # game: share of the games in which one side's moves are all random
    entropy: float = 0.1  # game: first weight of the entropy bonus; 0.02 collapses
    entropy_end: float = 0.025  # game: its lowest weight; long games need more
    prefix_bytes: int = 64  # spin: how much real text the opponent gets; it writes the rest
    spin_steps: int = 8  # spin: steps against one opponent, the model at the first of them
    spin_beta: float = 0.1  # spin: how steeply the loss judges a log-ratio; 0: no opponent
    next_byte_weight: float = 1.0  # spin: weight of the next-byte loss on the real text
    # --- machine ---
    device: str = "auto"  # auto: cuda, else mps, else cpu
    # of matrix products; auto: bfloat16 where it is native
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on cuda only
    # --- watching ---
    eval_interval: int = 250  # steps between evaluations; 0: only at the end
    eval_bytes: int = (
        200_000  # val bytes (gpt2: tokens) of an evaluation; at the end all are scored
    )
    log_interval: int = 10  # steps between log lines
    wandb: str = ""  # project on wandb.ai to log to, beside log.jsonl (pip install wandb)
    # --- filled in by the loader, no knobs: the name and the docstring of the config file ---
    config: str = ""
    intuition: str = ""

    def __post_init__(self):
        super().__post_init__()
        self.out_dir = self.out_dir or f"out/{self.config or 'run'}"
        if (self.max_steps > 0) == (self.max_seconds > 0):
            raise ValueError(
                f"give one of max_steps={self.max_steps} and max_seconds={self.max_seconds}, above 0"
            )
        for field in dataclasses.fields(Config):
            if field.type in (int, float):
                low, high = LIMITS.get(field.name, (0, math.inf))
                value = getattr(self, field.name)
                if not low <= value <= high or value == math.inf:
                    raise ValueError(f"{field.name}={value} must be between {low} and {high}")
        if self.dropout == 1:
            raise ValueError("dropout=1.0 must be below 1")
        if self.batch_bytes < self.block_size and self.objective != "game":
            raise ValueError(
                f"batch_bytes={self.batch_bytes} must be at least block_size={self.block_size}"
            )
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} + decay={self.decay} must be at most 1")
        if self.resume and self.overwrite:
            raise ValueError("resume continues the run in out_dir, overwrite deletes it: give one")
        if self.objective in ("game", "spin"):
            self.check_selfplay()

    def check_selfplay(self):
        if self.objective == "spin" and self.prefix_bytes > self.block_size - 6:
            raise ValueError(
                f"prefix_bytes={self.prefix_bytes} must be between 1 and {self.block_size - 6}: "
                f"block_size={self.block_size} must leave 6 bytes to write"
            )
        must_be = {"dropout": 0, "teacher": "", "tokenizer": "bytes"}
        for key, value in must_be.items():
            if getattr(self, key) != value:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} does not work with objective={self.objective}: "
                    f"leave it at {value!r}"
                )
        if self.compile == "on":
            raise ValueError(f"compile='on' does not work with objective={self.objective}")


# Lowest and highest values; where nothing is said, 0 and no limit.
LIMITS = {
    "seed": (0, 2**63 - 1),
    "batch_bytes": (1, math.inf),
    "log_interval": (1, math.inf),
    "n_future": (1, math.inf),
    "mask_span": (1, math.inf),
    "dropout": (0, 1),
    "warmup": (0, 1),
    "decay": (0, 1),
    "momentum": (0, 1),
    "beta1": (0, 1),
    "beta2": (0, 1),
    "mask_share": (0, 1),
    "teacher_share": (0, 1),
    "play_lr": (0, 1),
    "games": (2, 10**6),
    "pretrain": (0, 1),
    "openings": (0, 1),
    "random_games": (0, 1),
    "entropy": (0, 10),
    "entropy_end": (0, 10),
    "prefix_bytes": (1, math.inf),
    "spin_steps": (1, math.inf),
    "spin_beta": (0, 100),
    "next_byte_weight": (0, 100),
}


# names of other projects, nanoGPT above all, and what leads to the same here
ELSEWHERE = {
    "learning_rate lr": "--muon_lr (matrices) and --adam_lr (the rest) are the learning rates",
    "min_lr lr_decay_iters": "--decay is the share of the run, at its end, in which the rates fall to zero",
    "warmup_iters": "--warmup is a share of the run",
    "batch_size": "--batch_bytes is a step's batch (rows times block_size), --micro_batch the rows of one pass",
    "gradient_accumulation_steps": "it follows from --batch_bytes and --micro_batch",
    "max_iters epochs": "--max_steps or --max_seconds ends a run",
    "eval_iters": "--eval_bytes is how much of val an evaluation scores",
    "eval_only": "`python bench.py eval` scores a trained model",
    "always_save_checkpoint": "last.pt is written at every --eval_interval, best.pt where val is better",
    "wandb_log wandb_project": "--wandb=PROJECT logs there",
    "vocab_size": "a byte model has 256 symbols, --tokenizer=gpt2 those of --gpt2_vocab",
    "start": "--prompt=TEXT is what to go on from, --prompt_file=FILE a file of it",
    "max_new_tokens": "--max_new_bytes is how much to write",
    "opponent": "--pretrain=1 (objective=game) or --spin_beta=0 (objective=spin) trains without one",
    "play": "`python sample.py` plays against you, if the model plays a game",
}
YES_NO = {"true": True, "1": True, "false": False, "0": False}


def nearest(name, names, cutoff=0.6):
    """The most similar of some names as a hint, or ''."""
    found = difflib.get_close_matches(str(name), names, n=1, cutoff=cutoff)
    return f"; did you mean {found[0]!r}?" if found else ""


def convert(cls, key, value, where, text=False):
    """Return `value` as the field's type. From the command line everything arrives as a string (`text`)."""
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    if key not in fields:
        leads = (f": {lead}" for names, lead in ELSEWHERE.items() if key in names.split())
        lead = next((x for x in leads if set(re.findall(r"--(\w+)", x)) <= set(fields)), "")
        raise ValueError(
            f"{where}: unknown key {key!r}{lead or nearest(key, fields, 0.5) or '; --help lists all'}"
        )
    want = fields[key]
    if typing.get_origin(want) is typing.Literal:
        choices = typing.get_args(want)
        if "on" in choices and str(value).lower() in YES_NO:
            value = "on" if YES_NO[str(value).lower()] else "off"
        if "true" in choices and value in (*YES_NO, False, True):  # a flag that takes a word, too
            value = "true" if YES_NO.get(value, value) else ""
        if value not in choices:
            listed = ", ".join(map(repr, choices))
            raise ValueError(
                f"{where}: {key}={value!r} is not one of {listed}{nearest(value, choices)}"
            )
        return value
    wrong = ValueError(
        f"{where}: {key}={value!r} is not {'a true/false' if want is bool else want.__name__}"
    )
    if text and want is bool:
        value = YES_NO.get(value.lower(), value)
    if text and want in (int, float):
        try:
            value = int(value) if want is int and re.fullmatch(r"-?[\d_]+", value) else float(value)
        except ValueError:
            raise wrong from None
    if {want, type(value)} == {int, float} and float(
        value
    ).is_integer():  # 1e6 is a fine number of steps
        value = want(value)
    if type(value) is not want:
        raise wrong
    return value


def find_file(path):
    """The config file of this name; config/NAME.py may stand in config/races. ValueError with the nearest name."""
    path, races = Path(path), ROOT / "config" / "races"
    for found in [path, ROOT / path] + [races / path.name] * (path.parent.name == "config"):
        if found.is_file():
            return found
    known = [
        str(p.relative_to(ROOT))
        for folder in (ROOT / "config", races)
        for p in sorted(folder.glob("[a-z]*.py"))
    ]
    raise ValueError(f"no config file {path}{nearest(path, known) or f'; there are {known}'}")


def load_file(cls, path):
    """Run a config file. Returns (its assignments as a dict, its docstring); raises ValueError naming key and file."""
    path = find_file(path)
    sys.path.insert(0, str(ROOT))  # config files import each other as config.NAME
    try:
        names = runpy.run_path(str(path))
    except Exception as e:
        raise ValueError(f"{path}: {type(e).__name__}: {e}") from e
    finally:
        sys.path.remove(str(ROOT))
    skip = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    values = {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, skip)}
    values = {k: convert(cls, k, v, path) for k, v in values.items()}
    return values, inspect.cleandoc(names["__doc__"] or "")


def build(cls, values, where="config"):
    """`cls(**values)`, with `where` in front of what its own __post_init__ finds impossible."""
    try:
        return cls(**values)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{where}: {e}") from None


def read_command_line(cls, argv):
    """-> (words without dashes, {key: value} of `--key=value`, `--key value` and `--flag`)."""
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    words, given, i = [], {}, 0
    while i < len(argv):
        arg, i = argv[i], i + 1
        if not arg.startswith("--"):
            words.append(arg)
            continue
        key, equals, value = arg[2:].partition("=")
        following = argv[i] if i < len(argv) else "--"
        is_flag = kinds.get(key) is bool or "true" in typing.get_args(kinds.get(key))
        if not equals and is_flag and following.lower() not in YES_NO:
            value = "true"
        elif not equals and key in kinds:
            if following.startswith("--"):
                raise ValueError(f"command line: --{key} needs a value, as in --{key}=VALUE")
            value, i = following, i + 1
        given[key] = convert(cls, key, value, "command line", text=True)
    return words, given


def parse(cls, argv, usage, default_file=None, either=()):
    """Read `[CONFIG.py] [WORD...] [--key=value | --key value | --flag]...` into an instance of `cls`.

    Returns (config, words): words are the arguments without dashes that are not a config file (one is looked for
    where `default_file` is given: the first word that ends in .py). config.from_command_line holds the keys that stood
    there, config.explicit also those of a file that the user named. Of the keys in `either`, one on the command line
    drops the file's. `--help` prints `usage` and every knob, as this command would set it, and exits.
    """
    asks_for_help = "--help" in argv or "-h" in argv
    words, given = read_command_line(cls, [arg for arg in argv if arg not in ("--help", "-h")])
    values, in_file, where = {}, set(), "command line"
    if default_file:
        named = next((w for w in words if w.endswith(".py")), None)
        words = [w for w in words if w is not named]
        file = named or str(ROOT / default_file)
        values, doc = load_file(cls, file)
        in_file = set(values) if named else set()
        where = f"{file} and the command line" if given else file
        values |= {"config": Path(file).stem, "intuition": doc}
    if given.keys() & set(
        either
    ):  # of keys that exclude each other, the command line drops the file's
        values = {k: v for k, v in values.items() if k not in either}
    if (
        "block_size" in given and values.get("max_patches") and "max_patches" not in given
    ):  # patches for as much text
        values["max_patches"] = math.ceil(
            values["max_patches"] * given["block_size"] / values["block_size"]
        )
    if asks_for_help:
        whose = f"The values are those of {file}.\n\n" if default_file else ""
        print(f"{usage.strip()}\n\n{whose}{describe(cls, values | given)}")
        sys.exit(0)
    config = build(cls, values | given, where)
    config.from_command_line, config.explicit = set(given), in_file | set(given)
    return config, words


def describe(cls, values):
    """The fields of the dataclass as text: each with its value, its comment and its choices."""
    lines = []
    comments = knob_comments(cls)
    for field in dataclasses.fields(cls):
        heading, comment = comments[field.name]
        if field.name in ("config", "intuition"):
            continue
        if heading:
            lines.append(heading)
        value = values.get(field.name, field.default)
        shown = "''" if value == "" else value
        line = f"  --{field.name}={shown}".ljust(28) + f" {comment}"
        choices = typing.get_args(field.type)
        if choices:
            line += f" ({', '.join(choices)})"
        lines.append(line)
    return "\n".join(lines)


def knob_comments(cls):
    """{field: (the heading above it, its comment)} from the source of a dataclass; "" if there is none.

    A heading is a line like `# --- machine ---`. A comment stands behind its field. Lines of
    comment between two fields belong to the second one if nothing stands behind it, else they
    continue the first one's.
    """
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        comments = {}  # line number: text
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.removeprefix("#").strip()

        previous = None
        line = 0
        for node in ast.parse(source).body[0].body:
            if not isinstance(node, ast.AnnAssign):
                continue
            between = [comments.pop(i) for i in range(line, node.lineno) if i in comments]
            line = node.end_lineno + 1
            behind = [comments.pop(i) for i in range(node.lineno, line) if i in comments]
            headings = [text.strip("- ") for text in between if text.startswith("---")]
            others = [text for text in between if not text.startswith("---")]
            if behind and others and previous:
                heading, comment = found[previous]
                found[previous] = (heading, " ".join([comment, *others]).strip())
            elif not behind:
                behind = others
            previous = node.target.id
            found[previous] = ("".join(headings[-1:]), " ".join(behind))
    return found
