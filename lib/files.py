"""Files: atomic writes, locks, checkpoints, finding a trained model; and how a command ends."""

import codecs
import contextlib
import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch

from config import ROOT
from model import STLM, ModelConfig

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomically(path, write, size=0):
    """write(file) to a temporary file, then rename: whatever happens, `path` is a whole file, the old or the new.
    `size` in bytes, where it is known, is for what is said of a full disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        why, needed = e.__cause__ or e, f", {size / 1e6:,.1f} are needed" * (size > 0)
        if isinstance(e, RuntimeError) or e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free / 1e6
            why = f"the disk is full, or a limit reached: {free:,.0f} MB are free{needed}"
        raise OSError(f"cannot write {path} ({why}); what was there is untouched") from None


def write_json(path, value):
    write_atomically(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def read_utf8(path, knob):
    """The bytes of a UTF-8 text file ("-": standard input), without a byte-order mark. `knob` is named in errors."""
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
    """The events of a run's log.jsonl. A line that is none (a killed run leaves half of one) is named and left out."""
    events = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        try:
            event = json.loads(line)
            for key in {"step", "elapsed", "time", *event.keys() & {"bpb"}}:
                event[key] = float(event[key]) if key != "step" else int(event[key])
            events += [event] if isinstance(event["event"], str) else []
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            print(f"{path}, line {number} is no event: left out", file=sys.stderr)
    return events


@contextlib.contextmanager
def lock(path, message):
    """Hold a lock file, or raise ValueError(message) where another process does: two that write into one folder would
    destroy each other's work. The system frees it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+b")  # noqa: SIM115
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(message) from None
        except OSError as e:
            print(
                f"{path.parent} has no locks ({e}): nothing keeps a second process out",
                file=sys.stderr,
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder has just removed it
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def load_checkpoint(path, device="cpu"):
    """The checkpoint's dict, as Run.save in run.py makes it. ValueError that says why if it is damaged or foreign."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        with zipfile.ZipFile(
            path
        ) as file:  # torch writes the checksum of each part, but never looks at it
            damaged = file.testzip()
        checkpoint = None if damaged else torch.load(path, map_location=device, weights_only=True)
        why = f"the checksum of {damaged} is wrong" if damaged else "it was made by another program"
    except pickle.UnpicklingError:
        why = "it holds more than tensors and plain values, which could be code"
    except Exception as e:
        why = f"{first_line(e)}: it is damaged, cut short, or no checkpoint"
    else:
        if isinstance(checkpoint, dict) and {"model", "config", "step"} <= checkpoint.keys():
            why = "its weights are not finite"
            if all(w.isfinite().all() for w in checkpoint["model"].values()):
                return checkpoint
    best = Path(path).with_name("best.pt")
    if Path(path).name == "last.pt" and best.exists():
        why += f"; {best} is left: --init_from={best.parent} starts from it"
    raise ValueError(f"{path} cannot be used: {why}")


def known_values(config, cls):
    """Of a checkpoint's config (a dict) the knobs that `cls` has today."""
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: config[name] for name in names if name in config}


def load_model(path, device="cpu"):
    """The model of a checkpoint, in eval mode, and the checkpoint's dict."""
    checkpoint = load_checkpoint(path, device)
    try:
        cfg = ModelConfig(**known_values(checkpoint["config"], ModelConfig))
        model = STLM.with_weights(cfg, checkpoint["model"])
    except (RuntimeError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(
            f"{path} cannot be used: its weights and its config do not fit: {first_line(e)} "
            f"(commit {checkpoint.get('commit', 'unknown')})"
        ) from None
    return model.to(device), checkpoint


def game_of(checkpoint):
    """The name of the game that the checkpoint's model plays, or ""."""
    config = checkpoint["config"]
    # Up to commit 1254c3f self-play had a knob `opponent`, and on text an empty `game`.
    if config.get("objective") == "game" or "opponent" in config:
        return config.get("game", "")
    return checkpoint.get("game", "")


def load_run(name, first="best", device="cpu"):
    """-> (model, checkpoint, path) of a run's folder: its `first`.pt, or its other one, and where `first` is broken
    that is said. Or of a shared folder, here or under USER/NAME on the Hub, where config.json tells of the run."""
    there = [
        p
        for p in (Path(name, f"{which}.pt") for which in dict.fromkeys((first, "best", "last")))
        if p.exists()
    ]
    for path in there:
        try:
            return *load_model(path, device), path
        except ValueError as e:
            if path == there[-1]:
                raise
            print(f"{e}; {there[-1]} is used instead", file=sys.stderr)
    path = Path(name) / "model.safetensors"
    if not path.exists() and not is_hub_name(name):
        raise ValueError(
            f"no run in {name}: it has none of last.pt, best.pt and {path.name} (what tools.share writes)"
        )
    model = STLM.from_pretrained(name).to(device)
    nothing = {"step": 0, "elapsed": 0.0, "commit": "unknown", "data": {}}
    run = nothing | {k: v for k, v in model.about.items() if type(v) is type(nothing.get(k, v))}
    config = dataclasses.asdict(model.cfg) | {
        "dataset": str(run["data"].get("name") or ""),
        "data_dir": "data",
    }
    return model, run | {"config": config}, path


def is_hub_name(name):
    """Whether it is USER/NAME on the Hub. A folder wins, be it one that is missing in a folder that is there."""
    return (
        re.fullmatch(r"(?!out/)\w[\w.-]*/\w[\w.-]*", str(name)) is not None
        and not Path(name).parent.exists()
    )


def newest_run():
    """The folder under out/ whose last.pt is the newest; before there is one, the model that comes with the code."""
    if runs := sorted(Path("out").glob("*/last.pt"), key=lambda p: p.stat().st_mtime):
        return runs[-1].parent
    print(
        "no run under out/ yet (python train.py makes one): results/models/shakespeare_80k is taken",
        file=sys.stderr,
    )
    return ROOT / "results/models/shakespeare_80k"


def commit():
    """The short hash of the code's commit, or 'unknown'."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def first_line(e):
    """The innermost cause of an exception in one line."""
    while e.__cause__ or (e.__context__ and not e.__suppress_context__):
        e = e.__cause__ or e.__context__
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def duration(seconds):
    """Seconds as 1:02:03, or as days."""
    if seconds >= 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def run_command(main, out_of_memory="it needs less to do at once"):
    """Run a command's main and exit. A user's mistake is one line on stderr, a fault of ours a traceback."""
    name = Path(sys.argv[0]).name
    try:
        sys.exit(main())
    except KeyboardInterrupt as e:
        print(f"{name}: interrupted{e}", file=sys.stderr)
        sys.exit(130)
    except EOFError:
        sys.exit(f"{name}: stopped, because standard input has ended")
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        message = str(e)
        if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in message:
            message = f"out of memory: {out_of_memory}"
        elif isinstance(e, RuntimeError):
            raise
        # Where all processes fail alike, rank 0 speaks first and torchrun stops those that wait.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)
        sys.exit(f"{name}: {message}")
