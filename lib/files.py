"""Files: atomic writes, locks, checkpoints, finding a trained model. And how a command ends."""

import atexit
import codecs
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import signal
import sys
import time
import typing
import zipfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from config import ROOT, Config, convert
from model import STLM, ModelConfig

REPLACE_SECONDS = 5  # how long to try to replace a file that another program holds


def write_atomically(path, write, size=0):
    """Call write(file) on a temporary file, then rename it to `path`.

    Makes the folder if there is none. Whatever happens, `path` is a whole file, the old or the new
    one. `size` (bytes, if known) goes into the message about a full disk.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except (OSError, RuntimeError) as e:
        temporary.unlink(missing_ok=True)
        # torch.save raises a RuntimeError while it handles the OSError
        error = e.__context__ if isinstance(e, RuntimeError) else e
        if not isinstance(error, OSError):
            raise
        why = str(error)
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free / 1e6
            why = f"the disk is full, or a quota is used up: {free:,.0f} MB are free"
            if size:
                why += f", {size / 1e6:,.1f} MB are needed"
        raise OSError(f"cannot write {path} ({why}); any earlier version is untouched") from None


def replace(source, target):
    """os.replace. On Windows a virus scanner may hold the file for a moment: then try again."""
    deadline = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def write_json(path, value):
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def read_json(path, shape=None):
    """The object in a JSON file, which anybody may have written, as a dict.

    Entries that do not have the `shape` (see `fitting`) are left out, and a line says so.
    ValueError, with the file's name, if there is no JSON object at all.
    """
    if not Path(path).is_file():  # a pipe would never end
        raise ValueError(f"{path} is missing, or not a file")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: expected JSON, got {first_line(e)}; delete the file") from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ValueError(f"{path}: expected a JSON object, got a {kind}; delete the file")
    if shape is None:
        return found
    return fitting(found, shape, path)


def fitting(value, shape, where=None):
    """The part of a JSON value that has a shape; None if no part has.

    shape: a type (float: any finite number; object: anything); a regular expression, for a text; a
        list with the shape of its items; or {key: shape}, in which the key "*" stands for all
        others. No key is required.
    where: where the value is from, to print what is left out; None: print nothing
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        parts = {}
        for key, whole in value.items():
            expected = shape.get(key, shape.get("*"))
            if expected is not None:
                place = f"{where}: {key}" if where else None
                part = fitting(whole, expected, place)
                if part is not None or expected is object:
                    parts[key] = part
        return parts
    if isinstance(shape, list) and isinstance(value, list):
        parts = [fitting(part, shape[0], where) for part in value]
        return [part for part in parts if part is not None]
    if shape is object:
        return value
    expected = type(shape).__name__
    if isinstance(shape, (dict, list)):
        fits = False
    elif isinstance(shape, str):
        expected = f"text like {shape}"
        fits = isinstance(value, str) and re.fullmatch(shape, value) is not None
    elif shape is float:
        # not nan, inf or 10**400, which json.loads accepts
        fits = isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    else:
        fits = isinstance(value, shape)
    if isinstance(shape, type):
        expected = shape.__name__
    # a bool is an int
    if fits and (shape is bool or not isinstance(value, bool)):
        return value
    if where and value is not None:
        found = first_line(ValueError(repr(value)))[:60]
        print(f"{where}: expected {expected}, got {found}: left out", file=sys.stderr)
    return None


def read_utf8(path, knob):
    """The bytes of a UTF-8 file ("-": standard input), without a byte-order mark.

    ValueError if it cannot be read; the message names the `knob` that named the file.
    """
    if path == "-" and not hasattr(sys.stdin, "buffer"):
        raise ValueError(
            f"{knob}=-: expected bytes on standard input, got none, as in a notebook; "
            f"give --{knob}=FILE"
        )
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        raw.decode("utf-8")
    except OSError as e:
        raise ValueError(f"{knob}={path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{knob}={path} is not UTF-8: byte {e.start} is 0x{raw[e.start]:02X}"
        ) from None
    return raw.removeprefix(codecs.BOM_UTF8)


def read_log(path):
    """The events of a run's log.jsonl.

    Lines that are not events (a killed run leaves half of one) are reported and skipped.
    """
    events = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            event["step"] = int(event["step"])
            for key in ("elapsed", "time", "bpb", "lost"):
                if key in event or key in ("elapsed", "time"):
                    event[key] = float(event[key])
                    if not math.isfinite(event[key]):
                        raise ValueError(f"expected a finite {key}")
            if not isinstance(event["event"], str):
                raise TypeError("expected the event's name")
            events.append(event)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ):
            print(f"{path}, line {number} is not an event: skipped", file=sys.stderr)
    return events


@contextlib.contextmanager
def lock(folder, message, suffix=""):
    """Lock a folder, because two processes that write into one destroy each other's work.

    ValueError(message) if another process holds the lock. It is a file beside the folder, whatever
    links lead there. The system frees it when the process ends, however it ends.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock{suffix}"
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ValueError(message) from None
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(
            f"{folder.parent} does not support locks ({e}): do not start a second process there",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it on release
            path.unlink()
        held.release()


def load_checkpoint(path, device="cpu"):
    """A checkpoint as train.py saves it, a dict. ValueError if it is damaged or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        # torch writes the checksum of each part, but never verifies it
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        check_entries(checkpoint)
        if not all(w.isfinite().all() for w in checkpoint["model"].values()):
            raise ValueError("its weights are not finite")
        return checkpoint
    except pickle.UnpicklingError:
        why = "it holds objects other than tensors and plain values, and those could run code"
    except ValueError as e:
        why = str(e)
    except Exception as e:
        why = f"it is damaged, cut short or not a checkpoint ({first_line(e)})"
    best = path.with_name("best.pt")
    if path.name == "last.pt" and best.exists():
        why += f"; {best} still exists: --init_from={best.parent} starts from it"
    raise ValueError(f"{path} cannot be used: {why}")


SPLIT = {"bytes": int, "documents": int, "sha256": str}
# What a checkpoint holds: see `fitting`. Older ones may lack all but the first three entries.
CHECKPOINT = {
    "model": dict,
    "config": {"dataset": str, "data_dir": str, "tokenizer": str, "*": object},
    "step": int,
    "elapsed": float,
    "compile_seconds": float,
    "dtype": "float32|bfloat16",
    "muon_dtype": "float32|bfloat16",
    "commit": str,
    "teacher": str,
    "data": {"train": SPLIT | {"*": object}, "val": SPLIT | {"*": object}, "*": object},
    "objective": dict,
    "optimizers": list,
    "source": dict,
}


def check_entries(checkpoint):
    """ValueError unless all entries of a checkpoint are as train.py writes them."""
    if not isinstance(checkpoint, dict) or not {"model", "config", "step"} <= checkpoint.keys():
        raise ValueError("expected a checkpoint of train.py, got another program's file")
    found = fitting(checkpoint, CHECKPOINT)
    for key in CHECKPOINT.keys() & checkpoint.keys():
        if key not in found or found[key] != checkpoint[key]:
            wrote = f"commit {checkpoint.get('commit')!r:.20} wrote it"
            raise ValueError(f"its entry {key!r} is not as train.py writes it; {wrote}")
    if not 0 <= checkpoint["step"] < 2**53:
        raise ValueError(f"its step is {checkpoint['step']}, not a number of steps")
    for key in ("dataset", "data_dir", "tokenizer"):
        if key not in checkpoint["config"]:
            raise ValueError(f"its config has no {key}")


@contextlib.contextmanager
def fitting_code(path, checkpoint):
    """Errors inside mean that the checkpoint does not fit this code: say so in one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as e:
        commit = checkpoint.get("commit", "unknown")
        raise ValueError(
            f"{path} does not fit this code: {first_line(e)}; commit {commit} wrote it: go on with "
            "that code, or start anew with another --out_dir"
        ) from None


def known_values(config, cls):
    """The knobs in a checkpoint's config (a dict) that the dataclass `cls` still has.

    ValueError if one has a value of another type.
    """
    names = [field.name for field in dataclasses.fields(cls) if field.name in config]
    return {name: convert(cls, name, config[name], "its config") for name in names}


def load_model(path, device="cpu"):
    """The model of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = load_checkpoint(path, device)
    try:
        cfg = ModelConfig(**known_values(checkpoint["config"], ModelConfig))
        model = STLM.with_weights(cfg, checkpoint["model"])
    except (RuntimeError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(
            f"{path} cannot be used: its weights do not fit its config: {first_line(e)} "
            f"(commit {checkpoint.get('commit', 'unknown')})"
        ) from None
    return model.to(device), checkpoint


def fingerprint(model):
    """A text that changes with any weight of the model."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


KNOWN_GAMES = typing.get_args(Config.__annotations__["game"])


def game_of(checkpoint):
    """The name of the game that the checkpoint's model plays, or "". ValueError if unknown."""
    config = checkpoint["config"]
    name = checkpoint.get("game", "")
    # Up to commit 1254c3f, self-play had a knob `opponent`; if it played on text, `game` was empty.
    if config.get("objective") == "game" or "opponent" in config:
        name = config.get("game", "")
    if name and name not in KNOWN_GAMES:
        raise ValueError(f"expected a model that plays one of {KNOWN_GAMES}, got {name!r:.40}")
    return name


# What is shared of a run (the `about` of config.json), and nothing else: see `fitting`. Texts that
# could hold a path or an address do not fit; tools.share looks at sources, command and verdict.
PUBLIC_SPLIT = SPLIT | {"sha256": "[0-9a-f]{64}"}
ACCURACIES = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "acc_bytes", "acc_bytes_stderr")
ABOUT = {
    "step": int,
    "elapsed": float,
    "commit": r"[0-9a-f]{4,40}(-dirty)?|unknown",
    "command": str,
    "device": r"[\w .()+-]+",
    "data": {
        "name": r"\w[\w.+-]*",
        "sources": [str],
        "train": PUBLIC_SPLIT,
        "val": PUBLIC_SPLIT,
    },
    "verdict": {"*": object},
    "val": {
        "bpb": float,
        "bpb_64": float,
        "bpb_256": float,
        "bpb_stream": float,
        "bpb_documents": float,
        "bpb_stride": float,
        "bytes": int,
        "context": int,
        "stride": int,
    },
    "tasks": {"*": {"n": int, "of": int, "chance": float} | dict.fromkeys(ACCURACIES, float)},
    "chosen_on_val": bool,
    "game": "|".join(KNOWN_GAMES),
    "bits": int,
}


def load_run(name, first="best", device="cpu"):
    """-> (model, checkpoint, path) of a run's folder, a shared folder, or USER/NAME on the Hub.

    In a run's folder: `first`.pt or, if that is missing or broken, the other checkpoint (if broken,
    with a warning). For a shared model, its config.json becomes a dict with a checkpoint's keys.
    """
    paths = []
    for which in dict.fromkeys((first, "best", "last")):
        path = Path(name, f"{which}.pt")
        if path.exists():
            paths.append(path)
    for path in paths:
        try:
            model, checkpoint = load_model(path, device)
            return model, checkpoint, path
        except ValueError as e:
            if path == paths[-1]:
                raise
            print(f"{e}; using {paths[-1]} instead", file=sys.stderr)

    path = Path(name) / "model.safetensors"
    if not path.exists() and not is_hub_name(name):
        raise ValueError(
            f"no run in {name}: expected last.pt, best.pt or {path.name} (written by tools.share)"
        )
    model = STLM.from_pretrained(name).to(device)
    checkpoint = {"step": 0, "elapsed": 0.0, "commit": "unknown", "data": {}}
    checkpoint |= fitting(model.about, ABOUT, f"{name}/config.json: about")
    checkpoint["config"] = dataclasses.asdict(model.cfg)
    checkpoint["config"]["dataset"] = str(checkpoint["data"].get("name") or "")
    checkpoint["config"]["data_dir"] = "data"
    return model, checkpoint, path


def is_hub_name(name):
    """Whether `name` is USER/NAME on the Hub.

    An existing folder wins, and so does a missing one whose parent exists.
    """
    if re.fullmatch(r"(?!out/)\w[\w.-]*/\w[\w.-]*", str(name)) is None:
        return False
    return not Path(name).parent.exists()


def newest_run():
    """The run on text under out/ that was saved last, or the model that comes with the code.

    A run that plays a game is passed over; its name has to be given.
    """
    runs = sorted(Path("out").glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    for path in reversed(runs):
        run = path.parent
        game = game_of_run(run)
        if not game:
            return run
        print(f"{run} plays {game}: passed over; to play, give --model={run}", file=sys.stderr)
    print(
        "no run on text under out/ yet (python train.py makes one): using "
        "results/models/shakespeare_80k",
        file=sys.stderr,
    )
    return ROOT / "results/models/shakespeare_80k"


def game_of_run(folder):
    """The name of the game that a run's model plays, or "". Reads run.json, not the weights."""
    try:
        return game_of(read_json(folder / "run.json", {"config": {"*": object}}))
    except (ValueError, KeyError):  # loading the run will say what is wrong with it
        return ""


def first_line(e):
    """The innermost cause of an exception in one line."""
    while e.__cause__ or (e.__context__ and not e.__suppress_context__):
        e = e.__cause__ or e.__context__
    lines = str(e).strip().splitlines()
    return lines[0] if lines else type(e).__name__


def markdown_text(text):
    """Text that anybody may have written, on one line, as Markdown that shows it and does no more.

    It makes no HTML, link, image, code or table of it.
    """
    text = " ".join(str(text).encode(errors="replace").decode().split())
    text = re.sub(r"[\\`*\[\]|!#]", r"\\\g<0>", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # GitHub makes links of these by itself.
    text = re.sub(r"(?i)\b(https?|ftp):", r"\1&#58;", text)
    text = text.replace("@", "&#64;")
    return re.sub(r"(?i)\bwww\.", "www&#46;", text)


@contextlib.contextmanager
def extra(what):
    """Something that a command can do without: if it fails, a line on stderr says so."""
    try:
        yield
    except Exception as e:
        print(f"{what}: {first_line(e):.200}", file=sys.stderr)


def duration(seconds):
    """Seconds as 1:02:03, or as days."""
    if seconds >= 86400:
        return f"{seconds / 86400:.1f} days"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def silence_stdout():
    """Print nowhere from now on, because the reader has gone or the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(main, out_of_memory="use a smaller model or a smaller input"):
    """Run a command's main, then exit. A user's mistake prints one line, a bug a traceback.

    `out_of_memory` is the remedy in the message about memory.
    """
    name = Path(sys.argv[0]).name
    # While modules were imported, Ctrl-C ended the process at once.
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A stream that is closed (>&-) is None.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # Escape what the console cannot show, as a file on Windows cannot. A notebook shows everything.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except KeyboardInterrupt as e:
        print(f"{name}: interrupted{e}", file=sys.stderr)
        status = 130
    except EOFError:
        print(f"{name}: stopped, because standard input has ended", file=sys.stderr)
        status = 1
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        silence_stdout()
        status = 0
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        message = str(e)
        if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in message:
            message = f"out of memory: {out_of_memory}"
        elif "by peer" in message:
            message = "another process of this run has ended; its own message says why"
        elif isinstance(e, RuntimeError):
            raise
        # If all processes fail alike, rank 0 speaks first, and torchrun stops those that wait.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
        status = 1
    if os.environ.get("WORLD_SIZE", "1") != "1":
        leave(status)
    sys.exit(status)


def leave(status):
    """End this process now, without the interpreter's clean-up; what was printed is not lost.

    While the interpreter shuts down, a thread of torch.distributed sometimes aborts the process.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
