"""Every knob of a run, and how a config file and a command line set them.

    # e.g. argv = ["config/stlm_10m.py", "--max_seconds=60", "--seed", "3"]
    cfg, words = parse(Config, argv, usage, "config/demo.py")

The dataclass is the only list of knobs: name, type, default, and a comment, which --help prints.

A config file is plain Python that assigns some of them. It may compute, use names that begin with
an underscore, and build on another file with `from config.stlm_10m import *`. Its docstring says
why the experiment is worth running. The command line wins over the file.

A misspelt name, a wrong type or an impossible value raises a ValueError that names the key and its
source; for a misspelt name, also the nearest valid one. Only a file that the user or this code
names is ever run: a name in a log or a checkpoint never leads to one. In words and in knobs that
name files, a ~ in front is the home folder: the shell leaves that of --out_dir=~/x as it is.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import numbers
import os
import re
import runpy
import sys
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
__path__.append(str(ROOT / "config" / "races"))  # `import config.NAME` looks here, too


@dataclass
class Config(ModelConfig):
    # --- run ---
    dataset: str = ""  # folder under data_dir, made by prepare.py; empty: the newest one
    data_dir: str = "data"  # where datasets live
    out_dir: str = ""  # where the run goes; empty: out/ and the config file's name
    init_from: str = ""  # start from the best weights of a run, or a shared folder, or USER/NAME
    resume: Literal["", "true", "auto"] = ""  # continue from last.pt; auto: start if there is none
    overwrite: bool = False  # delete the run that is in out_dir
    seed: int = 1337  # for weights, data order, dropout and masks
    # --- length: give one of the two; the schedule follows it ---
    max_steps: int = 0  # optimizer steps
    max_seconds: float = 0.0  # training time: includes compiling, excludes evaluation and saving
    # --- batch ---
    batch_bytes: int = 16384  # bytes (gpt2: tokens) in one optimizer step, over all processes
    micro_batch: int = 0  # most rows per forward and backward pass; fewer save memory; 0: all
    # --- optimizer: Muon for the matrices, AdamW for embeddings, tables and Canon layers ---
    muon_lr: float = 0.02  # peak learning rate of Muon
    adam_lr: float = 0.005  # peak learning rate of AdamW
    momentum: float = 0.95  # of Muon
    beta1: float = 0.6  # of AdamW
    beta2: float = 0.99  # of AdamW
    weight_decay: float = 0.0  # of Muon (decoupled)
    warmup: float = 0.02  # share of the run in which the learning rate rises, after compiling
    decay: float = 0.7  # final share of the run, in which the learning rate falls linearly to 0
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    dropout: float = 0.0  # dropout rate (of a schedule: the peak); helps if text is read often
    # linear: rises from 0 to dropout; triangle: rises and falls again
    dropout_schedule: Literal["constant", "linear", "triangle"] = "constant"
    # --- objective: the loss (lib/objectives.py, lib/selfplay.py) ---
    objective: Literal[
        "next_byte",
        "multi_byte",
        "masked",
        "next_patch",
        "distill",
        "game",
        "spin",
    ] = "next_byte"  # the training loss; the others have knobs of their own
    n_future: int = 3  # multi_byte: how many bytes ahead are predicted, the next one included
    mask_share: float = 0.15  # masked: share of the input bytes that are hidden
    mask_span: int = 3  # masked: how many bytes in a row are hidden together
    patch_weight: float = 0.03  # next_patch: weight of the patch loss; the byte loss has 1
    teacher: str = ""  # distill: a run's folder, a shared folder, or USER/NAME on the Hub
    teacher_share: float = 0.5  # distill: share of the loss that compares with the teacher
    # --- self-play: objective=game (against itself), objective=spin (against its own text) ---
    play_lr: float = 0.002  # game, spin: peak learning rate of self-play (AdamW)
    game: Literal["tictactoe", "nim"] = "tictactoe"  # game: the game to learn
    games: int = 256  # game: games played in one step, over all processes
    pretrain: float = 0.125  # game: share of the run spent reading random games first; 1: all
    openings: float = 0.5  # game: share of the games that begin with 0 to 4 random moves
    random_games: float = 0.25  # game: share of the games in which one side's moves are all random
    entropy: float = 0.1  # game: initial weight of the entropy bonus; at 0.02 play collapses
    entropy_end: float = 0.025  # game: lowest weight of the bonus; long games need a higher one
    prefix_bytes: int = 64  # spin: real text the opponent continues
    spin_steps: int = 8  # spin: steps before the opponent is renewed
    spin_beta: float = 0.1  # spin: factor on the log-ratios in the loss; 0: no opponent
    next_byte_weight: float = 1.0  # spin: weight of the next-byte loss on the real text
    # --- machine ---
    device: str = "auto"  # auto: cuda, else mps, else cpu
    # precision of matrix products; auto: bfloat16 if the hardware has it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on cuda only
    # --- evaluation and logging ---
    eval_interval: int = 250  # steps between evaluations; 0: only at the end
    eval_bytes: int = 200_000  # val bytes (gpt2: tokens) per evaluation; the final one scores all
    log_interval: int = 10  # steps between log lines
    wandb: str = ""  # also log to this project on wandb.ai (pip install wandb)
    # --- not knobs: the name and the docstring of the config file ---
    config: str = ""
    intuition: str = ""

    def __post_init__(self):
        super().__post_init__()
        self.out_dir = self.out_dir or f"out/{self.config or 'run'}"
        has_steps = self.max_steps > 0
        has_seconds = self.max_seconds > 0
        if has_steps == has_seconds:  # both or neither
            raise ValueError(
                f"max_steps={self.max_steps}, max_seconds={self.max_seconds}: one of them must be "
                "above 0, the other 0"
            )
        limits = {}
        for field in dataclasses.fields(Config):
            if field.type in (int, float):
                limits[field.name] = LIMITS.get(field.name, (0, math.inf))
        check_limits(self, limits)
        if self.dropout == 1:  # it divides by 1 - dropout
            raise ValueError("dropout=1.0 must be below 1")
        # a game's rows are games, which may be shorter
        if self.batch_bytes < self.block_size and self.objective != "game":
            raise ValueError(
                f"batch_bytes={self.batch_bytes} must be at least block_size={self.block_size}"
            )
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} + decay={self.decay} must be at most 1")
        if self.resume and self.overwrite:
            raise ValueError("resume continues the run, overwrite deletes it: give one of them")
        if self.objective in ("game", "spin"):
            self.check_selfplay()

    def check_selfplay(self):
        if self.objective == "spin" and self.prefix_bytes > self.block_size - 6:
            raise ValueError(
                f"prefix_bytes={self.prefix_bytes} must be between 1 and {self.block_size - 6}, "
                f"with block_size={self.block_size}"
            )
        must_be = {"dropout": 0, "teacher": "", "tokenizer": "bytes"}
        for key, value in must_be.items():
            if getattr(self, key) != value:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} does not work with objective={self.objective}: "
                    f"give --{key}={value!r}"
                )
        if self.compile == "on":
            raise ValueError(
                f"compile='on' does not work with objective={self.objective}: give --compile=auto"
            )


def check_limits(cfg, limits):
    """ValueError unless the knobs in `limits`, {name: (lowest, highest)}, are within them."""
    for key, (low, high) in limits.items():
        value = getattr(cfg, key)
        if value == math.inf:
            raise ValueError(f"{key}={value} must be finite")
        if not low <= value <= high:  # nan fails the comparison, too
            limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ValueError(f"{key}={value} must be {limit}")


# Lowest and highest values. The other numbers are at least 0.
SEED = (0, 2**63 - 1)
SHARES = (
    "dropout",
    "warmup",
    "decay",
    "momentum",
    "beta1",
    "beta2",
    "mask_share",
    "teacher_share",
    "pretrain",
    "openings",
    "random_games",
)
AT_LEAST_ONE = (
    "batch_bytes",
    "log_interval",
    "n_future",
    "mask_span",
    "prefix_bytes",
    "spin_steps",
)
LIMITS = {
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(AT_LEAST_ONE, (1, math.inf)),
    "seed": SEED,
    "muon_lr": (0, 1e37),
    "adam_lr": (0, 1e37),
    "play_lr": (0, 1),
    "games": (2, 10**6),
    "entropy": (0, 10),
    "entropy_end": (0, 10),
    "spin_beta": (0, 100),
    "next_byte_weight": (0, 100),
}


# Names from nanoGPT and other projects, and the knobs that do the same here.
ELSEWHERE = {
    "learning_rate lr": "use --muon_lr for the matrices and --adam_lr for the rest",
    "min_lr lr_decay_iters": "--decay is the share of the run in which the rates fall to zero",
    "warmup_iters": "--warmup is a share of the run",
    "batch_size": "--batch_bytes is the size of a step, --micro_batch the rows of one pass",
    "gradient_accumulation_steps": "it follows from --batch_bytes and --micro_batch",
    "max_iters epochs": "use --max_steps or --max_seconds",
    "eval_iters": "--eval_bytes is the amount of val in an evaluation",
    "eval_only": "`python bench.py eval` scores a trained model",
    "always_save_checkpoint": "every evaluation writes last.pt, and best.pt if val is lower",
    "wandb_log wandb_project": "use --wandb=PROJECT",
    "vocab_size": "a byte model has 256 symbols, --tokenizer=gpt2 those of --gpt2_vocab",
    "start": "use --prompt=TEXT or --prompt_file=FILE",
    "max_new_tokens": "use --max_new_bytes",
    "opponent": "use --pretrain=1 (objective=game) or --spin_beta=0 (objective=spin) for none",
    "play": "`python sample.py` plays against you, if the model plays a game",
}
YES_NO = {"true": True, "1": True, "false": False, "0": False}
# The knobs of all commands that name a file or a folder.
PATHS = (
    "data",
    "data_dir",
    "init_from",
    "model",
    "out_dir",
    "prompt_file",
    "teacher",
    "text",
    "to",
    "val",
)


def did_you_mean(word, choices):
    """'; did you mean X?' with the most similar choice, or ''."""
    found = difflib.get_close_matches(str(word), choices, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def convert(cls, key, value, where, is_text=False):
    """`value` as the type of the field `key`. is_text: it comes from the command line, as a string.

    ValueError that begins with `where`, the value's source, if there is no such field or the value
    does not fit.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    if key not in kinds:
        advice = hint(key, kinds)
        if not is_text:
            advice += f"; if it is no knob, call it _{key}: names that begin with _ are left alone"
        raise ValueError(f"{where}: unknown key {key!r}{advice}")
    kind = kinds[key]
    choices = typing.get_args(kind)
    if choices:
        converted = to_choice(value, choices)
        expected = f"one of {', '.join(repr(choice) for choice in choices)}"
        if isinstance(value, str):
            expected += did_you_mean(value, choices)
    elif kind is bool:
        converted = YES_NO.get(value.lower()) if is_text else value
        expected = "true or false"
    elif kind is str:
        converted = value
        if key in PATHS and isinstance(value, str):
            converted = os.path.expanduser(value)
        expected = "str"
    else:
        converted = to_number(value, kind, is_text)
        expected = kind.__name__
    if converted is None or (not choices and type(converted) is not kind):
        raise ValueError(f"{where}: {key}={shown(value)}: expected {expected}")
    return converted


def shown(value):
    """repr(value) on one line of at most 100 characters, whatever object a config file made."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return " ".join(text.split())[:100]


def hint(key, kinds):
    """The end of a message about an unknown key: a knob that does the same, or a similar name."""
    for names, advice in ELSEWHERE.items():
        # only if this command has the knobs that the advice names
        knobs = re.findall(r"--(\w+)", advice)
        if key in names.split() and all(knob in kinds for knob in knobs):
            return f": {advice}"
    return did_you_mean(key, kinds) or "; --help lists all"


def to_choice(value, choices):
    """The choice, or None. If `choices` has "on" or "true", then true, false, 1 and 0 work, too."""
    if not isinstance(value, (str, int)):  # an odd object of a config file
        return None
    is_yes = YES_NO.get(str(value).lower())
    if is_yes is not None and "on" in choices:
        return "on" if is_yes else "off"
    if is_yes is not None and "true" in choices:
        return "true" if is_yes else ""
    return value if value in choices else None


def to_number(value, kind, is_text):
    """The int or float, or None. 1e6 is a fine int, 3 a fine float, and so are numpy's numbers."""
    try:
        number = ast.literal_eval(value) if is_text else value
        if not isinstance(number, numbers.Real) or isinstance(number, bool):
            return None
        if kind is int and not float(number).is_integer():
            return None
        return kind(number)
    except Exception:  # not a number, too large, or nested too deeply
        return None


def find_file(path):
    """The config file of this name. config/NAME.py may also be in config/races."""
    path = Path(path)
    places = [path, ROOT / path]
    if path.parent in (Path("config"), ROOT / "config"):
        places.append(ROOT / "config" / "races" / path.name)
    for place in places:
        if place.is_file():
            return place
    known = []
    for folder in ("config", "config/races"):
        known += [f"{folder}/{file.name}" for file in sorted((ROOT / folder).glob("[a-z]*.py"))]
    advice = did_you_mean(path, known) or f": there are {known}"
    raise ValueError(f"no config file {path}{advice}")


def load_file(cls, path):
    """Run a config file. Returns (its assignments as a dict, its docstring)."""
    path = find_file(path)
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))  # config files import each other as config.NAME
    try:
        names = runpy.run_path(str(path))
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # sys.exit() in the file raises SystemExit
        problem = " ".join(f"{type(e).__name__} {e}".split())
        raise ValueError(f"{path}: expected assignments, got {problem}; correct the file") from e
    finally:
        sys.path[:] = before
    docstring = names.get("__doc__") or ""
    if not isinstance(docstring, str):
        raise ValueError(f"{path}: __doc__={shown(docstring)}: expected str")
    not_knobs = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    values = {}
    for key, value in names.items():
        if not key.startswith("_") and not isinstance(value, not_knobs):
            values[key] = convert(cls, key, value, path)
    return values, inspect.cleandoc(docstring)


def build(cls, values, where="config"):
    """`cls(**values)`. If its __post_init__ refuses a value, the message begins with `where`."""
    try:
        return cls(**values)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{where}: {e}") from None


def read_command_line(cls, argv):
    """-> (words without dashes, {key: value} of `--key=value`, `--key value` and `--flag`)."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    words = []
    given = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(os.path.expanduser(word))
            continue
        key, equals, value = word[2:].partition("=")
        if not equals and key in kinds:
            is_flag = kinds[key] is bool or "true" in typing.get_args(kinds[key])
            following = rest[0] if rest else "--"
            if is_flag and following.lower() not in YES_NO:
                value = "true"
            elif following.startswith("--"):
                raise ValueError(f"command line: --{key} needs a value, as in --{key}=VALUE")
            else:
                value = rest.pop(0)
        given[key] = convert(cls, key, value, "command line", is_text=True)
    return words, given


def parse(cls, argv, usage, default_file=None, either=()):
    """Turn `[CONFIG.py] [WORD...] [--key=value | --key value | --flag]...` into an instance of cls.

    default_file: the config file to use if argv names none; None: the command takes no config file
    either: keys that exclude each other; if one is on the command line, the file's are ignored

    Returns (cfg, the other words). cfg.file is the config file. cfg.from_command_line holds the
    keys given there; cfg.explicit also those in a config file that the user named. `--help` prints
    `usage` and every knob with the value that it would have, and exits.
    """
    asks_for_help = "--help" in argv or "-h" in argv
    words, given = read_command_line(cls, [arg for arg in argv if arg not in ("--help", "-h")])
    values = {}
    explicit = set(given)
    where = "command line"
    file = None
    if default_file:
        file = str(ROOT / default_file)
        for word in words:
            if word.endswith(".py"):
                file = word
                break
        values, docstring = load_file(cls, file)
        if file in words:
            words.remove(file)
            explicit |= set(values)
        where = f"{file} and the command line" if given else file
        values["config"] = Path(file).stem
        values["intuition"] = docstring

    if any(key in given for key in either):
        for key in either:
            values.pop(key, None)
    # More text has more patches.
    if "block_size" in given and "max_patches" not in given and values.get("max_patches"):
        ratio = given["block_size"] / values["block_size"]
        values["max_patches"] = math.ceil(values["max_patches"] * ratio)
    values |= given
    if asks_for_help:
        print(usage.strip() + "\n")
        if default_file:
            print(f"The values are those of {file} and of this command line.\n")
        print(list_knobs(cls, values))
        sys.exit(0)
    cfg = build(cls, values, where)
    cfg.file = file and find_file(file)
    cfg.from_command_line = set(given)
    cfg.explicit = explicit
    return cfg, words


def list_knobs(cls, values):
    """The fields of a dataclass as text: each with its value, its comment and its choices."""
    lines = []
    comments = knob_comments(cls)
    for field in dataclasses.fields(cls):
        if field.name in ("config", "intuition"):
            continue
        heading, *comment = comments[field.name]
        if heading:
            lines.append(heading)
        value = values.get(field.name, field.default)
        if value == "":
            value = "''"
        line = f"  --{field.name}={value}"
        line = f"{line:<27}  {' '.join(comment)}"
        choices = [choice for choice in typing.get_args(field.type) if choice]
        if choices:
            line += f" ({', '.join(choices)})"
        lines.append(textwrap.fill(line, 100, subsequent_indent=" " * 29, break_on_hyphens=False))
    return "\n".join(lines)


def knob_comments(cls):
    """{field: [the heading above it, or "", and the lines of its comment]}, from the source.

    A heading is a line like `# --- machine ---`. A comment follows its field on the same line.
    Comment lines between two fields belong to the second if it has no comment on its own line;
    otherwise they continue the comment of the first.
    """
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        name = None
        heading = ""
        between = []
        for line in inspect.getsource(base).splitlines():
            code, _, behind = line.strip().partition("# ")
            field = re.match(r"(\w+): ", code)
            if code.startswith("def "):
                break
            if field:
                if behind and between and name:
                    found[name] += between
                    between = []
                name = field[1]
                found[name] = [heading, *between]
                heading = ""
                between = []
            if behind.startswith("---"):
                heading = behind.strip("- ")
            elif behind and not code:
                between.append(behind)
            elif behind and name:
                found[name].append(behind)
    return found
