"""Turn a dataclass, a config file and a command line into one checked config.

    cfg, paths = parse(Config, argv, usage)        # "config/demo.py --max_seconds=60 --seed 3"

The dataclass is the only list of knobs: name, type, default, and a trailing comment that `--help` prints. A config file
is plain Python that assigns some of them; it may compute, keep helpers in _underscored names, and build on another file
with `from config.stlm_10m import *`. Its docstring says why the experiment is worth running. The command line wins over
the file. What is misspelt, of the wrong type or impossible is a ValueError that names the key, where it stood and the
nearest name.
"""

import dataclasses
import difflib
import inspect
import re
import runpy
import sys
import types
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # config files import each other as config.NAME from anywhere


def _convert(cls, key, value, where, text=False):
    """Return `value` as the field's type. From the command line everything arrives as a string (`text`)."""
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
        raise ValueError(
            f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists all")
        )
    want = fields[key]
    if typing.get_origin(want) is typing.Literal:
        choices = typing.get_args(want)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: {key}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")
        return value
    wrong = ValueError(f"{where}: {key}={value!r} is not {'a true/false' if want is bool else want.__name__}")
    if text and want is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise wrong
        return value.lower() in ("true", "1")
    if text and want in (int, float):
        try:
            value = int(value) if want is int and re.fullmatch(r"-?[\d_]+", value) else float(value)
        except ValueError:
            raise wrong from None
    if want is int and isinstance(value, float) and value.is_integer():  # 1e6 is a fine number of steps
        value = int(value)
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is not want:
        raise wrong
    return value


def load_file(cls, path):
    """Run a config file. Returns (its assignments as a dict, its docstring); raises ValueError naming key and file."""
    if not Path(path).is_file():
        known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "config").glob("[a-z]*.py"))
        near = difflib.get_close_matches(str(path), known, n=1)
        raise ValueError(f"no config file {path}" + (f"; did you mean {near[0]}?" if near else f"; there are {known}"))
    sys.path.insert(0, str(ROOT))
    try:
        names = runpy.run_path(str(path))
    except Exception as e:
        raise ValueError(f"{path}: {type(e).__name__}: {e}") from e
    finally:
        sys.path.remove(str(ROOT))
    skip = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    values = {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, skip)}
    values = {k: _convert(cls, k, v, path) for k, v in values.items()}
    return values, inspect.cleandoc(names["__doc__"] or "")


def build(cls, values, where="config"):
    """`cls(**values)`, with `where` in front of what its own __post_init__ finds impossible."""
    try:
        return cls(**values)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{where}: {e}") from None


def parse(cls, argv, usage, default_file=None, either=()):
    """Read `[CONFIG.py] [WORD...] [--key=value | --key value | --flag]...` into an instance of `cls`.

    Returns (config, words): words are the arguments without dashes that are not a config file (one is looked for
    where `default_file` is given: the first word that ends in .py). config.given is the set of keys that were
    said, in a file the user named or on the command line; config.told those of the command line alone. Of the keys in
    `either`, one on the command line drops the file's. `--help` prints `usage` and every knob, and exits.
    """
    if "--help" in argv or "-h" in argv:
        print(usage.strip() + "\n\n" + describe(cls))
        sys.exit(0)
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    words, given, i = [], {}, 0
    while i < len(argv):
        arg, i = argv[i], i + 1
        if not arg.startswith("--"):
            words.append(arg)
            continue
        key, eq, value = arg[2:].partition("=")
        if not eq:
            if kinds.get(key) is bool:
                value = "true"
                if i < len(argv) and argv[i].lower() in ("true", "false"):
                    value, i = argv[i], i + 1
            elif key in kinds and i < len(argv) and not argv[i].startswith("--"):
                value, i = argv[i], i + 1
            elif key in kinds:
                raise ValueError(f"command line: --{key} needs a value, as in --{key}=VALUE")
        given[key] = _convert(cls, key, value, "command line", text=True)
    values, said, where = {}, set(given), "command line"
    if default_file:
        named = next((w for w in words if w.endswith(".py")), None)
        if named:
            words.remove(named)
        file = named or str(ROOT / default_file)
        values, doc = load_file(cls, file)
        said |= set(values) if named else set()
        where = f"{file} and the command line" if given else file
        values |= {"config": Path(file).stem, "intuition": doc}
    if given.keys() & set(either):  # of keys that exclude each other, the command line drops the file's
        values = {k: v for k, v in values.items() if k not in either}
    config = build(cls, values | given, where)
    config.given, config.told = said, set(given)
    return config, words


def describe(cls):
    """The dataclass as text: each knob with its default and its trailing comment, in groups as in the source."""
    lines, group = [], None
    for base in reversed(cls.__mro__[:-1]):
        for line in inspect.getsource(base).splitlines():
            if title := re.match(r"    # (.+)", line):
                group = title[1]
            elif knob := re.match(r"    (\w+): .+? = (.+?)  # (.+)", line):
                lines += [group] if group else []
                group = None
                default = knob[2].replace('"', "'")
                lines.append(f"  --{knob[1]}={default}".ljust(29) + f" {knob[3]}")
    return "\n".join(lines)
