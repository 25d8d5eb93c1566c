"""Try faults on the scripts, and count what goes wrong.

    python results/faults.py                  # about 40 minutes; writes results/FAULTS.md
    python results/faults.py --short          # a few tries of each kind, in 100 seconds
    python results/faults.py urls sharing     # these kinds only

Of each kind of fault it counts the tries and, among them,
    lost         work or a result was lost, or an undamaged old file was destroyed
    silent       nobody noticed, and the result was another one
    tracebacks   a traceback, a crash or a hang reached the user
It prints a line for each of these, and exits with 1 if there is any. Only a full run writes the
page. The models have 36,000 parameters; all happens in a temporary folder, without a network.
"""

import contextlib
import copy
import dataclasses
import errno
import functools
import gzip
import http.server
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import time
import typing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
NOWHERE = "http://127.0.0.1:1"  # a port that refuses at once
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "127.0.0.1",
}

# Children take over what is imported here. (tools.share and tools.report start as __main__.)
import matplotlib.figure  # noqa: E402, F401
import torch  # noqa: E402
import torch._dynamo  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import bench  # noqa: E402
import lib.sources  # noqa: E402
from config import Config, did_you_mean, parse  # noqa: E402
from lib.files import load_checkpoint, read_log, run_command  # noqa: E402
from model import KNOB_LIMITS, KNOBS, STLM  # noqa: E402
from prepare import PrepareConfig  # noqa: E402
from sample import SampleConfig  # noqa: E402

SIZES = """
    --block_size=64 --max_patches=32 --n_layer=2 --n_head=2 --n_embd=32 --n_local_embd=16
    --n_grams=1 --gram_rows=64 --batch_bytes=512 --dropout=0.1 --device=cpu --dtype=float32
    --dataset=words --eval_bytes=2000 --max_seconds=0 --log_interval=1
"""
SIZES = SIZES.split()
BITS = (32, 16, 8, 4)
WORDS = ["the", "of", "and", "in", "is", "that", "for", "was", "with", "not"]
PATIENCE = 30  # seconds for a command before Ctrl-C; then 10 for each of two more signals


# --- a command, and a row of the table ------------------------------------------------------------


class Command:
    """A complete command with its real output and exit status, started in a child of this process.

    The child is a fork, which has imported torch already: that saves three seconds. `before` is
    called in it first.
    """

    def __init__(self, name, *args, folder=".", before=None, encoding="utf-8", stdin=os.devnull):
        self.words = [name, *map(str, args)]
        self.out_file = tempfile.TemporaryFile()  # noqa: SIM115
        self.err_file = tempfile.TemporaryFile()  # noqa: SIM115
        self.is_hung = False
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.run, args=(folder, before, encoding, stdin))
        sys.stdout.flush()
        self.process.start()

    def run(self, folder, before, encoding, stdin):
        """What the child does. Its exceptions and its status are handled as Python itself does."""
        os.setsid()  # Ctrl-C reaches a command and its children, but not this script
        os.chdir(folder)
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        os.dup2(self.out_file.fileno(), 1)
        os.dup2(self.err_file.fileno(), 2)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before:
            before()
        name, *args = self.words
        sys.argv = [str(ROOT / name), *args]
        if name.startswith("tools."):
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / name), run_name="__main__")

    def end(self, patience=PATIENCE):
        """Wait for the end; after `patience` seconds press Ctrl-C, twice; at last kill it."""
        self.process.join(patience)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if self.process.is_alive():
                self.is_hung = number == signal.SIGKILL
                os.killpg(self.process.pid, number)
                self.process.join(10)
        return self

    def kill(self, seconds):
        """Kill it after some seconds. Returns whether it was still alive."""
        self.process.join(seconds)
        is_alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        return is_alive

    @property
    def code(self):
        return self.process.exitcode

    @property
    def out(self):
        return os.pread(self.out_file.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def err(self):
        return os.pread(self.err_file.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def last_line(self):
        return (self.err.strip().splitlines() or [""])[-1]


class Row:
    """A row of the table: a fault, the tries, and what went wrong in them."""

    def __init__(self, function, n, seed):
        self.function = function
        self.name = function.__name__
        self.n = n
        self.rng = random.Random(f"{self.name} {seed}")
        self.counts = Counter()
        self.seen = Counter()  # how commands ended
        self.said = ""

    def next_try(self):
        """Count a try, unless there were enough: -> whether to make it."""
        if self.counts["tries"] >= self.n:
            return False
        self.counts["tries"] += 1
        if sys.stdout.isatty():
            print(f"  {self.counts['tries']} of {self.n}", end="\r", flush=True)
        return True

    def wrong(self, kind, what):
        self.counts[kind] += 1
        print(f"  {kind}: {what}", flush=True)

    def check(self, is_fine, kind, what):
        if not is_fine:
            self.wrong(kind, what)

    def ended(self, command, patience=PATIENCE):
        """Wait for a command, and check that it ends as every command should. Returns it."""
        command.end(patience)
        code = command.code
        is_fine = code in (0, 1, 2, 130) and "Traceback" not in command.err
        # a line of its own, and not half a message in several lines
        if code == 1:
            is_fine = is_fine and re.match(r"\w+\.py: .", command.last_line)
        if not is_fine:
            why = f"ends with {code}: " + " / ".join(command.err.strip().splitlines()[-4:])
            if command.is_hung:
                why = "hangs"
            self.wrong("tracebacks", f"{shlex.join(command.words)} {why}")
        if "Warning: " in command.err:
            print(f"  warning: {shlex.join(command.words)}: {command.err[-500:]}", flush=True)
        self.seen[code] += 1
        return command

    def refused(self):
        return f"{self.seen[1]} refused in a line, {self.seen[0]} went on"

    def cells(self):
        counts = [self.counts[key] for key in ("tries", "lost", "silent", "tracebacks")]
        return [self.function.__doc__, *counts, self.said]


# --- what the rows start from ---------------------------------------------------------------------


def make_box():
    """Make what each row gets a copy of: text, a dataset, runs and shared folders."""
    rng = random.Random(0)
    Path("words.txt").write_text(" ".join(rng.choices(WORDS, k=40_000)))
    for i in range(24):
        text = " ".join(rng.choices(WORDS, k=40))
        Path("notes").mkdir(exist_ok=True)
        Path(f"notes/{i}.md").write_text(text)
        with open("rows.jsonl", "a") as file:
            file.write(json.dumps({"text": text}) + "\n")
    Path("rows.csv").write_text("text\n" + "of the\n" * 30)
    Path("rows.txt.gz").write_bytes(gzip.compress(b"of the " * 500))
    Path("broken.jsonl").write_bytes(b'{"text": "a"}\n{"text": \xff\n')
    Path("latin.txt").write_bytes(b"caf\xe9 " * 99)
    Path("empty.txt").touch()
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfthe of")
    Path("tiny.py").write_text("block_size = 64\nn_layer = 1\nn_head = 1\nn_embd = 16\n")
    with open("tiny.py", "a") as file:
        file.write("n_local_embd = 8\nbatch_bytes = 512\nmax_steps = 3\neval_bytes = 500\n")
    Path("bad.py").write_text("import nothing\n")
    Path("loop").symlink_to(".")
    Path("items").mkdir()
    item = {"context": "of", "choices": [" the", " was"], "answer": 0}
    Path("items/blimp.jsonl").write_text(json.dumps(item) + "\n")

    tiny = ["--eval_interval=8", "--max_steps=16"]
    commands = [
        ("prepare.py", "words.txt"),
        ("train.py", *SIZES, *tiny, "--out_dir=out/run"),
        ("train.py", *SIZES, *tiny, *SELF_PLAY["tictactoe"], "--out_dir=out/game"),
        ("bench.py", "eval", "--model=out/run", "--data=items", "--tasks=val,blimp"),
    ]
    for bits in BITS:
        commands.append(("tools.share", "--model=out/run", f"--to=shared{bits}", f"--bits={bits}"))
    for words in commands:
        command = Command(*words).end()
        if command.code != 0:
            raise ValueError(f"{shlex.join(words)}: {command.err}")


def fresh_box(box, name):
    """A new copy of the box, the folder `name`."""
    shutil.rmtree(name, ignore_errors=True)
    return Path(shutil.copytree(box, name, symlinks=True))


def same(a, b):
    """Whether two trees of dicts, lists, tensors and plain values are equal, to the last bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_of(out):
    """What two runs must have in common to be the same run; an error if there is no whole one."""
    try:
        last = load_checkpoint(f"{out}/last.pt")
        best = load_checkpoint(f"{out}/best.pt")
    except ValueError as e:
        return {"error": e}
    state = {key: last[key] for key in ("model", "objective", "optimizers", "source", "step")}
    state["best"] = best["model"]
    evals = []
    for event in read_log(Path(f"{out}/log.jsonl")):
        if event["event"] == "eval":
            evals.append({key: event[key] for key in event if key not in ("time", "elapsed")})
    return state | {"evals": evals}


def contents(folder):
    """{path: bytes} of all files in a folder."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths}


def places(value, place=()):
    """The places of all parts of a JSON value or a checkpoint, each a tuple of keys."""
    found = [place]
    parts = {}
    if isinstance(value, dict):
        parts = value
    if isinstance(value, list):
        parts = dict(enumerate(value))
    for key, part in parts.items():
        found += places(part, (*place, key))
    return found


def part_at(value, place):
    for key in place:
        value = value[key]
    return value


def with_part(value, place, part):
    """A copy of a value in which the part at a place is another one."""
    if not place:
        return part
    value = copy.copy(value)
    value[place[0]] = with_part(value[place[0]], place[1:], part)
    return value


def limited_memory(megabytes):
    """Let this process take only so much more memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 10**6
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limited_files(size):
    """Let no file grow beyond so many bytes, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# --- kills ----------------------------------------------------------------------------------------

ON_TEXT = {
    "next_byte": [],
    "multi_byte": ["--objective=multi_byte"],
    "masked": ["--objective=masked"],
    "next_patch": ["--objective=next_patch"],
    "distill": ["--objective=distill", "--teacher=out/run"],
}
SELF_PLAY = {
    "spin": [
        "--objective=spin",
        "--init_from=out/run",
        "--dropout=0",
        "--prefix_bytes=32",
        "--spin_steps=4",
    ],
    "tictactoe": [
        "--objective=game",
        "--dropout=0",
        "--block_size=108",
        "--max_patches=44",
        "--games=16",
        "--pretrain=0.4",
    ],
}
SELF_PLAY["nim"] = [*SELF_PLAY["tictactoe"], "--game=nim"]
OBJECTIVES = SELF_PLAY | ON_TEXT


def kill_until_it_ends(row, name, options, n):
    """Kill runs `n` times in all, and resume each until it ends as the run that nobody killed."""
    start = time.monotonic()
    row.ended(Command("train.py", *options, f"--out_dir=out/{name}"), 300)
    usual = time.monotonic() - start
    whole = state_of(f"out/{name}")
    n_runs = 0
    while n > 0:
        n_runs += 1
        out = f"out/{name}{n_runs}"
        is_over = False
        while not is_over:
            command = Command("train.py", *options, f"--out_dir={out}", "--resume=auto")
            if n > 0 and command.kill(row.rng.uniform(0.05, 1) * usual):
                n -= 1
                row.next_try()
            else:
                row.ended(command, 300)
                is_over = True
        if command.code == 0:
            row.check(same(state_of(out), whole), "lost", f"{out} ended in another state")
    return n_runs


def kills(row):
    """kill -9 of train.py, then --resume=auto"""
    options = [*SIZES, "--max_steps=300", "--eval_interval=20"]
    n_runs = kill_until_it_ends(row, "killed", options, row.n)
    return f"{n_runs} runs ended bit for bit as without, optimizers and log and all"


def kills_of_objectives(row):
    """the same with each objective, two games, and self-play on text"""
    steps = ["--max_steps=40", "--eval_interval=5", "--eval_bytes=500"]
    names = [name for name in OBJECTIVES if name != "next_byte"]
    n_runs = 0
    for i, name in enumerate(names):
        # the tries, divided among the objectives
        n = (row.n + i) // len(names)
        if n > 0:
            options = [*SIZES, *steps, *OBJECTIVES[name]]
            n_runs += kill_until_it_ends(row, f"{name}_killed", options, n)
    return f"{n_runs} runs of {', '.join(names[: row.n])} ended bit for bit as without"


def kills_of_prepare(row):
    """kill -9 of prepare.py --overwrite"""
    with open("big.txt", "wb") as file:
        file.writelines(b"%d some words of text\n" % i for i in range(1_500_000))
    start = time.monotonic()
    row.ended(Command("prepare.py", "big.txt"))
    usual = time.monotonic() - start
    whole = Path("data/big/train.bin").read_bytes()
    while row.next_try():
        Command("prepare.py", "big.txt", "--overwrite").kill(row.rng.uniform(0, 1) * usual)
        # killed between two renames, the old data wait for the next process
        if row.counts["tries"] % 5 == 0 or not Path("data/big").exists():
            row.ended(Command("prepare.py", "big.txt", "--overwrite"))
            left = [path for path in Path("data").iterdir() if path.name.startswith(".big.tmp")]
            row.check(not left, "lost", f"{left} stay behind")
        is_whole = Path("data/big/train.bin").read_bytes() == whole
        row.check(is_whole, "lost", "data/big is not whole")
    return "the old data or the new, whole; leftovers are swept up by the next"


def stopped(row):
    """SIGSTOP for 3 seconds under max_seconds"""
    while row.next_try():
        out = f"out/stopped{row.counts['tries']}"
        options = [*SIZES, "--max_seconds=4", "--eval_interval=0", f"--out_dir={out}"]
        command = Command("train.py", *options)
        while "step 5 " not in command.out and command.process.is_alive():
            time.sleep(0.05)
        os.kill(command.process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(command.process.pid, signal.SIGCONT)
        row.ended(command)
        log = [event for event in read_log(Path(f"{out}/log.jsonl")) if event["event"] == "train"]
        unpaid = log[-1]["time"] - log[0]["time"] - log[-1]["elapsed"] + log[0]["elapsed"]
        row.check(unpaid > 2.5, "lost", f"of 3 stopped seconds the run paid for {3 - unpaid:.1f}")
        row.check(log[-1]["lr_scale"] < 0.1, "lost", "the schedule did not decay to its end")
    return "the seconds are not paid for, the schedule decays to its end"


def lost_ranks(row):
    """a rank killed under torchrun --max_restarts=2"""
    n_stuck = 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2", "--max_restarts=2"]
    while row.next_try():
        out = f"out/ranks{row.counts['tries']}"
        run = [*SIZES, "--max_steps=300", "--eval_interval=20", f"--out_dir={out}", "--resume=auto"]
        command = [*torchrun, str(ROOT / "train.py"), *run]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not Path(out, "last.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
        try:
            is_stuck = process.wait(timeout=90) != 0
        except subprocess.TimeoutExpired:
            is_stuck = True
            # Its processes would hold the folder's lock.
            listed = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            )
            for number in (*listed.stdout.split(), process.pid):
                os.kill(int(number), signal.SIGKILL)
            process.wait()
        if is_stuck:  # torch's new processes may look for each other at the old ports
            n_stuck += 1
            row.ended(Command("train.py", *run))
        step = load_checkpoint(f"{out}/last.pt")["step"]
        row.check(step == 300, "lost", f"{out} ended at step {step}")
    return (
        f"{row.n - n_stuck} went on by themselves, {n_stuck} were stuck in torch's restart, and "
        "went on by --resume=auto"
    )


# --- flipped bits ---------------------------------------------------------------------------------


def flip(content, place):
    """The same bytes with one bit flipped; `place` counts bits."""
    flipped = bytearray(content)
    flipped[place // 8] ^= 1 << place % 8
    return flipped


def flips(row):
    """one flipped bit in a checkpoint"""
    content = Path("out/run/last.pt").read_bytes()
    good = load_checkpoint("out/run/last.pt")
    n_refused = 0
    while row.next_try():
        Path("flipped.pt").write_bytes(flip(content, row.rng.randrange(8 * len(content))))
        try:
            row.check(same(good, load_checkpoint("flipped.pt")), "silent", "another checkpoint")
        except ValueError as e:
            n_refused += 1
            row.check("\n" not in str(e) and "flipped.pt" in str(e), "tracebacks", e)
    return f"{n_refused} refused in a line, {row.n - n_refused} where it changes nothing"


def flips_in_shared(row):
    """one flipped bit in a shared folder"""
    good = {bits: STLM.from_pretrained(f"shared{bits}") for bits in BITS}
    n_refused = 0
    while row.next_try():
        bits = BITS[row.counts["tries"] % len(BITS)]
        # every fifth in the knobs or the sums, which come before `about`
        path = Path(f"shared{bits}/model.safetensors")
        content = path.read_bytes()
        n_bytes = len(content)
        if row.counts["tries"] % 5 == 0:
            path = path.with_name("config.json")
            content = path.read_bytes()
            n_bytes = content.index(b'"about"')
        path.write_bytes(flip(content, row.rng.randrange(8 * n_bytes)))
        try:
            model = STLM.from_pretrained(path.parent)
            is_same = model.cfg == good[bits].cfg
            is_same = is_same and same(dict(model.state_dict()), dict(good[bits].state_dict()))
            row.check(is_same, "silent", f"another model at {bits} bits")
        except ValueError as e:
            n_refused += 1
            row.check("\n" not in str(e) and path.name in str(e), "tracebacks", e)
        path.write_bytes(content)
    return f"{n_refused} refused in a line, {row.n - n_refused} where it changes nothing"


# --- odd input ------------------------------------------------------------------------------------

ODD_VALUES = ["0", "-1", "1e30", "nan", "inf", "-inf", "abc", "true", "1.5", "0x10", "é"]
ODD_VALUES += ["", str(2**63), "\udcff", "a\nb"]
ODD_BYTES = (
    b'text \xff\xfe \0 \xe9 " , { } [ "a"} 17 \xed\xa0\x80 PK\3\4 \x1f\x8b PAR1 %PDF'.split()
)
ODD_BYTES += [b"\n", b"\r", b'{"text": ', b'{"text": "\\ud800"}\n', b"text\n1\n", "🐍".encode()]
SUFFIXES = ["txt", "csv", "jsonl", "json", "parquet", "txt.gz", "jsonl.gz", "md"]


def odd_inputs(row):
    """odd command lines, config files, corpora, logs"""
    n_refused = 0
    kinds = [odd_command_line, odd_config_file, odd_corpus, odd_log]
    while row.next_try():
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                kinds[row.counts["tries"] % 4](row)
        except ValueError as e:
            n_refused += 1
            is_line = "\n" not in str(e).replace("a\nb", "")
            row.check(is_line, "tracebacks", f"several lines: {e}")
        except Exception as e:
            row.wrong("tracebacks", f"{type(e).__name__}: {e}")
    n_refused += row.seen[1]
    return f"{n_refused} refused in a line, the rest read as it stands"


def odd_knob(rng):
    return rng.choice([*Config.__dataclass_fields__, "lr", "n_leyer", "", "-", "help me"])


def odd_command_line(row):
    words = [f"--{odd_knob(row.rng)}={row.rng.choice(ODD_VALUES)}" for _ in range(3)]
    parse(Config, words, "", "config/demo.py")


def odd_config_file(row):
    lines = [f"{odd_knob(row.rng)} = {row.rng.choice(ODD_VALUES)!r}" for _ in range(3)]
    lines.append(row.rng.choice(["", "1/0", "import nothing", "def", "exit()", "__doc__ = 5"]))
    Path("odd.py").write_text("\n".join(lines), errors="replace")
    parse(Config, ["odd.py"], "", "config/demo.py")


def odd_corpus(row):
    rng = row.rng
    path = Path(f"odd.{rng.choice(SUFFIXES)}")
    content = b"".join(rng.choices(ODD_BYTES, k=rng.randint(0, 60)))
    if path.suffix == ".gz" and rng.random() < 0.7:
        content = gzip.compress(content)
    path.write_bytes(content)
    errors = rng.choice(["strict", "replace"])
    row.ended(Command("prepare.py", path, "--name=odd", "--overwrite", f"--errors={errors}"))


def odd_log(row):
    lines = Path("out/run/log.jsonl").read_bytes().splitlines()
    for _ in range(5):
        odd = b"".join(row.rng.choices(ODD_BYTES, k=4)).replace(b"\n", b"")
        lines.insert(row.rng.randrange(len(lines)), odd)
    Path("odd.jsonl").write_bytes(b"\n".join(lines))
    n_events = len(read_log(Path("odd.jsonl")))
    row.check(n_events == len(lines) - 5, "lost", f"{len(lines) - 5 - n_events} events of a log")


# --- whole commands, sensible and senseless -------------------------------------------------------

NUMBERS = "0 1 2 3 8 16 32 64 1000 -1 0.5 1.5 1e-9 1e3 1e30 nan inf -inf 0x10 1_000 true abc é"
NUMBERS = [*NUMBERS.split(), "", " 3", "--", "\udcff", "a\nb", str(2**63), "9" * 5000]
NAMES = """
    out/run out/game out/none out shared8 shared4 data data/words words words.txt rows.jsonl
    rows.csv rows.txt.gz broken.jsonl latin.txt notes notes/*.md ** [ *.nothing empty.txt prompt.txt
    items loop loop/loop tiny.py bad.py config/demo.py config/selfplay_game.py nothing.py
    words.txt/x . .. - ~ ~nobody/x $HOME é /dev/null /dev/full /proc/none/x C:\\Users\\me\\x.txt con
    NUL stdlib ann/poems tinystories shakespeare http://127.0.0.1:1/x.txt ftp://x http:// new
    val blimp val,blimp cpu cuda cuda:9 mps meta mit text gpt2 none space masked spin game last
    float32 off replace
"""
NAMES = [*NAMES.split(), "", "a b", "\udcff", "a\nb", "x" * 300]
FLAGS = ["--resume", "--overwrite", "--help", "-h", "--", "-x", "--json", "--publish", "--lr"]
# name of a command -> what makes it short, and the knobs to draw from
SHORT = {
    "train.py": ([*SIZES, "--max_steps=3", "--eval_interval=2", "--out_dir=out/new"], Config),
    "sample.py": (["--model=out/run", "--max_new_bytes=20"], SampleConfig),
    "prepare.py": (["words.txt", "--name=new"], PrepareConfig),
    "bench.py eval": (
        ["eval", "--model=out/run", "--tasks=val,blimp", "--data=items", "--device=cpu"],
        bench.BenchConfig,
    ),
    "bench.py speed": (
        ["speed", "tiny.py", "--rounds=1", "--seconds=0", "--device=cpu"],
        bench.BenchConfig,
    ),
    "tools.share": (["--model=out/run", "--to=new"], None),
    "tools.report": ([], None),
}
SHARE_KNOBS = {
    "model": str,
    "weights": Literal["best", "last"],
    "to": str,
    "private": bool,
    "bits": Literal["0", "4", "8", "16", "32", "5"],
    "license": str,
    "prompt": str,
    "seed": int,
}
# how often each is drawn; bench.py speed takes long
WEIGHTS = {"train.py": 8, "sample.py": 4, "prepare.py": 4, "bench.py eval": 3}


def random_commands(row):
    """whole commands of sensible and senseless words, in new folders"""
    check_forks(row)
    pairs = []
    while row.next_try():
        pairs.append(random_command(row))
        if len(pairs) == 2:
            for started in pairs:
                end_random_command(row, *started)
            pairs = []
    for started in pairs:
        end_random_command(row, *started)
    codes = ", ".join(f"{n} with {code}" for code, n in sorted(row.seen.items()))
    return f"ended: {codes}; what they were not told to change is unchanged"


def random_command(row):
    """Start a command in a new copy of the box: -> (the command, its folder)."""
    rng = row.rng
    weights = [WEIGHTS.get(name, 1) for name in SHORT]
    name = rng.choices(list(SHORT), weights)[0]
    words, knobs = SHORT[name]
    words = list(words)
    kinds = SHARE_KNOBS
    if knobs:
        kinds = {field.name: field.type for field in dataclasses.fields(knobs)}
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
        words += random_words(rng, kinds)
    folder = fresh_box(row.box, f"box{row.counts['tries']}")
    stdin = rng.choice([os.devnull, ROOT / "LICENSE", row.box / "rows.txt.gz"])
    limit = functools.partial(limited_memory, 4000)
    return Command(name.split()[0], *words, folder=folder, stdin=stdin, before=limit), folder


def random_words(rng, kinds):
    """A knob with a value, a flag, or a word, as a list of words."""
    value = rng.choice(rng.choice([NUMBERS, NAMES]))
    if rng.random() < 0.1:
        return [rng.choice([*FLAGS, value])]
    key = rng.choice(list(kinds))
    # Half of the values are sensible: others do not get far.
    if rng.random() < 0.5:
        value = rng.choice(sensible_values(kinds[key]))
    if rng.random() < 0.05:
        key = rng.choice(["n_leyer", "", "é", "out-dir", "max_iters"])
    if rng.random() < 0.2:
        return [f"--{key}", value]
    return [f"--{key}={value}"]


def sensible_values(kind):
    """Values, as text, for a knob of this type."""
    if kind is int:
        return ["0", "1", "2", "3", "4", "8", "32", "64", "100"]
    if kind is float:
        return ["0", "0.001", "0.5", "1", "3"]
    if kind is bool:
        return ["true", "false"]
    return typing.get_args(kind) or NAMES


def end_random_command(row, command, folder):
    row.ended(command)
    # Whoever says one of these may change what is there.
    may_change = ("--overwrite", "--resume", "--to", "--name", "--data_dir")
    if not any(word.startswith(may_change) for word in command.words[1:]):
        after = contents(folder)
        for path, content in contents(row.box).items():
            path = path.relative_to(row.box)
            if path.name != "eval.json" and after.get(folder / path) != content:
                row.wrong("lost", f"{shlex.join(command.words)} changed {path}")
    shutil.rmtree(folder)


def check_forks(row):
    """Check, with a few commands, that a fork gives what a process of its own gives."""
    for words in (
        ["sample.py", "--model=out/run", "--prompt=the", "--max_new_bytes=9"],
        ["sample.py", "--model=nowhere"],
        ["tools.share", "--to=."],
        ["prepare.py", "latin.txt"],
        ["bench.py", "--help"],
        ["train.py", "--n_leyer=3"],
    )[: max(2, row.n // 100)]:
        forked = Command(*words).end()
        name, *args = words
        program = ["-m", name] if name.startswith("tools.") else [str(ROOT / name)]
        process = subprocess.run([sys.executable, *program, *args], capture_output=True, text=True)
        # speeds differ
        is_same = re.sub(r"[\d.,]+", "", process.stderr) == re.sub(r"[\d.,]+", "", forked.err)
        is_same = is_same and (process.stdout, process.returncode) == (forked.out, forked.code)
        row.check(is_same, "silent", f"{words}: a fork gives {forked.err}, not {process.stderr}")


# --- disk, locks, links ---------------------------------------------------------------------------


def full_disk(row):
    """no room for a file, in training and in prepare.py"""
    said = ""
    whole = contents("data/words")
    while row.next_try():
        # A limit on the bytes of a file stands in for a disk that fills up.
        limit = functools.partial(limited_files, row.rng.randint(1000, 500_000))
        out = f"out/full{row.counts['tries']}"
        words = ["train.py", *SIZES, "--max_steps=40", "--eval_interval=8", f"--out_dir={out}"]
        if row.counts["tries"] % 3 == 0:
            limit = functools.partial(limited_files, row.rng.randint(1000, 120_000))
            words = ["prepare.py", "words.txt", "--overwrite"]
        command = row.ended(Command(*words, before=limit))
        row.check(contents("data/words") == whole, "lost", "the old dataset")
        for path in Path(out).glob("*.pt"):
            row.check(load_checkpoint(path)["model"], "lost", f"{path} is not whole")
        if command.code == 1:
            said = command.last_line[:90]
    return f"`{said}…`; what was there is whole"


def two_at_once(row):
    """two train.py, two prepare.py into one folder"""
    run = [*SIZES, "--max_steps=60", "--eval_interval=20"]
    row.ended(Command("train.py", *run, "--out_dir=out/alone"))
    whole = contents("data/words")
    for name in ("train.bin", "val.bin"):
        whole[name] = whole[Path("data/words", name)]
    while row.next_try():
        name = f"two{row.counts['tries']}"
        end_as_alone(row, [Command("train.py", *run, f"--out_dir=out/{name}") for _ in range(2)])
        is_same = same(state_of("out/alone"), state_of(f"out/{name}"))
        row.check(is_same, "lost", f"out/{name} is not as alone")
        end_as_alone(row, [Command("prepare.py", "words.txt", f"--name={name}") for _ in range(2)])
        for part in ("train.bin", "val.bin"):
            is_same = Path(f"data/{name}/{part}").read_bytes() == whole[part]
            row.check(is_same, "lost", f"data/{name}/{part} is not as alone")
    return "one ends as alone, the other is refused in a line or finds the work done"


def end_as_alone(row, commands):
    """Of some commands one must end well."""
    codes = [row.ended(command).code for command in commands]
    row.check(0 in codes, "lost", f"none of {len(codes)} commands got through: {codes}")


def links(row):
    """two runs through two links into one folder; links that lead back"""
    run = [*SIZES, "--max_steps=60", "--eval_interval=20"]
    row.ended(Command("train.py", *run, "--out_dir=out/alone"))
    row.ended(Command("prepare.py", "notes", "--name=alone"))
    Path("notes/back").symlink_to("..")
    Path("notes/self").symlink_to(".")
    Path("notes/nowhere").symlink_to("nowhere")
    Path("notes/round").symlink_to("round")
    alone = Path("data/alone/train.bin").read_bytes()
    sources = ["notes", "notes/**/*.md", "./notes/", "loop/notes"]
    while row.next_try():
        name = f"links{row.counts['tries']}"
        Path(f"out/{name}").mkdir()
        Path(f"{name}a").symlink_to(f"out/{name}")
        Path(f"{name}b").symlink_to(f"{name}a")
        runs = [Command("train.py", *run, f"--out_dir={name}{which}") for which in "ab"]
        end_as_alone(row, runs)
        refused = [command.code for command in runs].count(1)
        row.check(refused == 1, "silent", f"{refused} of two runs in one folder were refused")
        is_same = same(state_of("out/alone"), state_of(f"out/{name}"))
        row.check(is_same, "lost", f"out/{name} is not as alone")

        source = sources[row.counts["tries"] % len(sources)]
        row.ended(Command("prepare.py", source, f"--name={name}"))
        is_same = Path(f"data/{name}/train.bin").read_bytes() == alone
        row.check(is_same, "silent", f"prepare.py {source} is not as without links")
    return "one run ends as alone, the other is refused; each file of a folder is read once"


# --- shared folders -------------------------------------------------------------------------------

ODD_TYPES = ["int64", "int32", "uint8", "int8", "bool", "float64", "complex64", "float8_e5m2"]
ODD_JSON = [None, True, 0, -1, 1.5, 1e308, math.nan, math.inf, 10**9, 10**30, 10**400]
ODD_JSON += ["", "x", "a\nb", "\ud800", "<b>|`", [], [1], [[[]]], {}, {"a": 1}, {"a": {"b": []}}]


class Malice:
    def __reduce__(self):
        return (open, ("it_was_run", "w"))


def hostile_folders(row):
    """weights and knobs by strangers, in shared folders without sums"""
    kinds = [odd_tensor, odd_tensor, odd_file, odd_knob_in_json, odd_knob_in_json, largest_knob]
    limit = functools.partial(limited_memory, 1000)
    while row.next_try():
        bits = row.rng.choice(BITS)
        folder = fresh_box(row.box / f"shared{bits}", f"hostile{row.counts['tries']}")
        config = json.loads((folder / "config.json").read_text())
        del config["sha256"]
        (folder / "config.json").write_text(json.dumps(config))
        kind = kinds[row.counts["tries"] % len(kinds)]
        name = kind(folder, row.rng)
        command = Command("sample.py", f"--model={folder}", "--max_new_bytes=20", before=limit)
        row.ended(command)
        what = f"{kind.__name__} {name} at {bits} bits: {command.code} {command.last_line}"
        # "": numbers that are unusual, but may be meant
        if name:
            row.check(command.code != 0, "silent", what)
            row.check(name in command.last_line, "silent", f"not named: {what}")
        row.check("out of memory" not in command.err, "lost", what)
        shutil.rmtree(folder)
    row.check(not Path("it_was_run").exists(), "lost", "code in a file was run")
    return f"{row.refused()}, all within 1 GB"


# Each of these damages a folder, and returns the name that must be in the message, or "".


def odd_tensor(folder, rng):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    key = rng.choice(sorted(tensors))
    w = tensors[key]
    kind = rng.choice(["type", "shape", "missing", "too many", "not finite", "huge"])
    if kind == "type":
        odd = [name for name in ODD_TYPES if getattr(torch, name) != w.dtype]
        tensors[key] = torch.zeros(w.shape, dtype=getattr(torch, rng.choice(odd)))
    if kind == "shape":
        tensors[key] = rng.choice([w[None], w.flatten()[1:], w[:0], w[:1], w.new_zeros(3, 3)])
        if tensors[key].shape == w.shape:
            tensors[key] = w[None]
    if kind == "missing":
        del tensors[key]
    if kind == "too many":
        key = rng.choice(["more", "more.scale", "blocks.9.qkv", "é"])
        tensors[key] = torch.zeros(3)
    if kind == "not finite":
        tensors[key] = torch.full_like(w.float(), rng.choice([math.nan, math.inf, -math.inf]))
        if w.dtype == torch.float16:
            tensors[key] = tensors[key].half()
    if kind == "huge" and w.is_floating_point():
        tensors[key] = w * 1e30
    save_file({name: w.contiguous() for name, w in tensors.items()}, path)
    if kind == "huge":
        return ""
    # A damaged scale is named, or its matrix.
    return key.removesuffix(".scale")


def odd_file(folder, rng):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    kinds = [
        content[: rng.randrange(len(content))],
        content[: rng.randrange(8 + header)],
        (1 << rng.randrange(64)).to_bytes(8, "little") + content[8:],
        content[:8] + rng.randbytes(header) + content[8 + header :],
        content.replace(b"data_offsets", b"data_offsetz", 1),
        re.sub(rb"\[0,\d+\]", b"[0,9]", content, count=1),
        content + b"more",
        pickle.dumps({"w": Malice()}),
        rng.randbytes(999),
        b"PK\3\4" + content,
        b"",
    ]
    path.write_bytes(rng.choice(kinds))
    if rng.random() < 0.1:
        torch.save({"w": Malice()}, path)
    return "model.safetensors"


def odd_knob_in_json(folder, rng):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = rng.choice(KNOBS)
    kind = rng.choice(["missing", "unknown", "odd", "odd", "huge"])
    if kind == "missing":
        del config[key]
    if kind == "unknown":
        key = rng.choice(["n_leyer", "x", "hidden_size"])
        config[key] = rng.choice(ODD_JSON)
    if kind == "odd":
        odd = [value for value in ODD_JSON if type(value) is not type(config[key])]
        config[key] = rng.choice(odd)
    if kind == "huge":
        key = rng.choice(sorted(KNOB_LIMITS))
        config[key] = rng.choice([KNOB_LIMITS[key][1] + 1, 10**12, 10**30, -1, -(10**9)])
    path.write_text(json.dumps(config))
    return key


def largest_knob(folder, rng):
    """A knob within its limits: the model has other tensors, or is only slow."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = rng.choice(sorted(KNOB_LIMITS))
    config[key] = rng.choice(KNOB_LIMITS[key])
    path.write_text(json.dumps(config))
    return ""


PRIVATE = "zq7private"
# The part behind the last / is a file's name, which may be told.
PRIVATE_TEXTS = [
    f"/home/{PRIVATE}/x.txt",
    f"../{PRIVATE}/x.txt",
    f"~{PRIVATE}/x.txt",
    f"C:\\Users\\{PRIVATE}\\x.txt",
    f"\\\\{PRIVATE}\\share\\x.txt",
    f"file:///home/{PRIVATE}/x.txt",
    f"https://host/{PRIVATE}/x.txt",
    f"https://host/x.txt?token={PRIVATE}",
    f"https://host/x.txt#{PRIVATE}",
    f"https://me:{PRIVATE}@host/x.txt",
    f"https://host?token={PRIVATE}",
    f"s3://{PRIVATE}/x.txt",
    f"{PRIVATE}/NAME:CONFIG",
    f"train.py /home/{PRIVATE}/x.py --seed=3",
    f"train.py --wandb={PRIVATE} --data_dir {PRIVATE}/x",
]


def sharing(row):
    """tools.share of private strings, to links, on a full disk, over an edited card"""
    others = [shared_links, shared_disk, card]
    while row.next_try():
        kind = private_strings
        if row.rng.random() < 0.4:
            kind = row.rng.choice(others)
        kind(row, f"shared_{row.counts['tries']}")
    return "no private string left; links and their targets, old folders and cards were whole"


def private_strings(row, to):
    """Put a private string in the place of another, and look for it in all that goes out."""
    run = fresh_box(row.box / "out/run", f"run_{to}")
    found = {}
    for name in ("run.json", "eval.json"):
        found[name] = json.loads((run / name).read_text())
    found["best.pt"] = load_checkpoint(run / "best.pt")
    strings = []
    for name, value in found.items():
        strings += [(name, place) for place in places(value) if type(part_at(value, place)) is str]
    # each string in turn
    name, place = strings[row.counts["tries"] % len(strings)]
    text = row.rng.choice(PRIVATE_TEXTS)
    changed = with_part(found[name], place, text)
    if name == "best.pt":
        (run / "last.pt").unlink()
        torch.save(changed, run / name)
    else:
        (run / name).write_text(json.dumps(changed))
    command = row.ended(Command("tools.share", f"--model={run}", f"--to={to}"))
    told = command.out.encode()
    if command.code == 0:
        told += b"".join(contents(to).values())
    what = f"{text} as {place} of {name} leaves the machine"
    row.check(PRIVATE.encode() not in told, "silent", what)


def shared_links(row, to):
    """Links in the folder, or the folder itself a link: what they lead to stays as it is."""
    folder = fresh_box("shared8", to)
    mine = fresh_box("shared8", f"mine_{to}")
    before = contents(mine)
    name = row.rng.choice(["README.md", "config.json", "model.py", "model.safetensors", ""])
    target = folder / name
    if name:
        target.unlink()
    else:
        shutil.rmtree(folder)
    target.symlink_to((mine / name).resolve())
    row.ended(Command("tools.share", "--model=out/run", f"--to={to}", "--bits=4"))
    row.check(contents(mine) == before, "lost", f"what the link {target} leads to was changed")


def shared_disk(row, to):
    """A disk that is full at some moment: the old folder stays whole."""
    folder = fresh_box("shared4", to)
    before = contents(folder)
    limit = functools.partial(limited_files, row.rng.randint(0, 200_000))
    command = row.ended(Command("tools.share", "--model=out/run", f"--to={to}", before=limit))
    if command.code:
        row.check(contents(folder) == before, "lost", f"{to} was changed")
    STLM.from_pretrained(folder)


def card(row, to):
    """A card that somebody has edited stays."""
    folder = fresh_box("shared8", to)
    path = folder / "README.md"
    text = path.read_text()
    place = row.rng.randrange(len(text))
    edited = row.rng.choice([text[:place] + "mine" + text[place:], text[:place], "mine", ""])
    path.write_text(edited)
    row.ended(Command("tools.share", "--model=out/run", f"--to={to}", "--bits=16"))
    row.check(path.read_text() == edited, "lost", f"an edited card, {place}")


# --- a web server ---------------------------------------------------------------------------------

TEXT = b"of the and in\n" * 300


class Server(http.server.BaseHTTPRequestHandler):
    """It answers /KIND.SUFFIX as KIND says."""

    def do_GET(self):
        kind = self.path.strip("/").partition(".")[0]
        if kind == "silent":
            time.sleep(60)
        if kind == "head":
            self.write([b"HTTP/1.0 200 OK\r\n"], b"X", 0.02)
        if kind == "nonsense":
            self.write([b"\0\xff" * 999])
        status = {"absent": 404, "broken": 500, "busy": 503, "round": 302}.get(kind, 200)
        self.send_response(status)
        if kind == "round":
            self.send_header("Location", self.path)
        if kind in ("early", "late"):
            self.send_header("Content-Length", str(len(TEXT) + (10 if kind == "early" else -10)))
        if kind == "chunk":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if kind == "endless":
            self.write([], TEXT * 50)
        if kind == "bomb":
            self.write([gzip.compress(b"of the " * 10**7)])
        if kind == "drip":
            self.write([], b"a", 0.02)
        if kind == "gzip":
            self.write([gzip.compress(TEXT)])
        if kind == "html":
            self.write([b"<!DOCTYPE html><html><body>", TEXT, b"</body></html>"])
        if kind == "noise":
            self.write([random.randbytes(5000)])
        self.write([b"1000\r\n" if kind == "chunk" else b"", TEXT])

    def write(self, pieces, again=None, pause=0.0):
        """Send some pieces, then perhaps one again and again, and end."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.wfile.write(piece)
            while again:
                self.wfile.write(again)
                time.sleep(pause)
        raise ConnectionAbortedError

    def log_message(self, *_):
        pass


class Web(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


ANSWERS = ["endless", "drip", "silent", "early", "late", "absent", "broken", "busy", "round"]
ANSWERS += ["head", "nonsense", "chunk", "bomb", "gzip", "html", "noise", "plain"]


def hurry():
    """Shorten what prepare.py waits for."""
    lib.sources.FETCH_SECONDS = 3
    lib.sources.SILENT_SECONDS = 1


def urls(row):
    """URLs that never end, drip, end early, or answer with errors, gzip or HTML"""
    most = 20_000
    with Web(("127.0.0.1", 0), Server) as web:
        address = f"http://127.0.0.1:{web.server_address[1]}"
        server = multiprocessing.get_context("fork").Process(target=web.serve_forever, daemon=True)
        server.start()
        while row.next_try():
            n = row.counts["tries"]
            kind = ANSWERS[n % len(ANSWERS)]
            url = f"{address}/{kind}.{row.rng.choice(SUFFIXES)}"
            words = [url, f"--name=url{n}", f"--max_bytes={most}"]
            start = time.monotonic()
            command = row.ended(Command("prepare.py", *words, before=hurry))
            seconds = time.monotonic() - start
            row.check(seconds < 10, "lost", f"{url} took {seconds:.0f} seconds")
            if command.code == 0:
                size = sum(path.stat().st_size for path in Path(f"data/url{n}").glob("*.bin"))
                row.check(size <= most + 1, "silent", f"{url} gives {size} bytes of {most}")
                is_whole = kind not in ("early", "absent", "broken", "busy", "chunk", "noise")
                row.check(is_whole, "silent", f"{url} is taken for a text")
            else:
                row.check(url in command.last_line, "silent", f"not named: {command.last_line}")
                left = list(Path("data").glob(f".url{n}*"))
                row.check(not left, "lost", f"{left} stay behind")
        server.kill()
    return f"{row.refused()}; the line names the URL"


# --- files of runs --------------------------------------------------------------------------------


def foreign_runs(row):
    """random JSON values anywhere in run.json, log.jsonl, eval.json and config.json's about"""
    report = ["tools.report"]
    resume = ["train.py", "--out_dir=out/run", "--resume", "--max_steps=17"]
    share = ["tools.share", "--model=out/run", "--to=new"]
    score = ["bench.py", "eval", "--model=out/run", "--data=items", "--tasks=val,blimp"]
    # file -> commands that read it
    readers = {
        "out/run/run.json": [report, report, share, resume],
        "out/run/log.jsonl": [report, report, resume],
        "out/run/eval.json": [report, share, score],
        "shared8/config.json": [
            ["sample.py", "--model=shared8", "--max_new_bytes=5"],
            ["tools.share", "--model=shared8", "--to=new"],
            ["bench.py", "eval", "--model=shared8", "--data=items", "--tasks=val,blimp"],
            [*resume, "--overwrite", "--resume=", "--init_from=shared8", *SIZES],
        ],
    }
    while row.next_try():
        n = row.counts["tries"]
        box = fresh_box(row.box, f"box{n}")
        shutil.copytree(box / "out/run", box / "out/good")
        name = list(readers)[n % len(readers)]
        where = spoil_json(box / name, row.rng)
        words = row.rng.choice(readers[name])
        command = row.ended(Command(*words, folder=box))
        what = f"{name} with {where}, {shlex.join(words)}: {command.last_line}"
        if words == report:
            row.check(command.code == 0, "lost", f"no ledger of the other runs: {what}")
            page = (box / "out/RUNS.md").read_text() if command.code == 0 else ""
            row.check("[good]" in page or "[run]" in page, "lost", f"the good run: {what}")
        shutil.rmtree(box)
    return row.refused()


def spoil_json(path, rng):
    """Put an odd value in the place of another; return both as text."""
    is_log = path.suffix == ".jsonl"
    text = path.read_text()
    value = [json.loads(line) for line in text.splitlines()] if is_log else json.loads(text)
    found = places(value["about"], ("about",)) if path.name == "config.json" else places(value)
    place = rng.choice(found)
    odd = rng.choice(ODD_JSON)
    spoilt = with_part(value, place, odd)
    if is_log and place:
        path.write_text("".join(json.dumps(event) + "\n" for event in spoilt))
    else:
        path.write_text(json.dumps(spoilt))
    return f"{odd!r:.50} as {place}"


def unfit_checkpoints(row):
    """checkpoints of other shapes and types, or without some part, on --resume"""
    resume = ["train.py", "--resume", "--max_steps=18"]
    runs = []
    for name in ("next_patch", "spin", "nim"):
        words = [*SIZES, *OBJECTIVES[name], "--max_steps=12", f"--out_dir=out/{name}"]
        row.ended(Command("train.py", *words))
        shutil.copytree(f"out/{name}", "whole")
        row.ended(Command(*resume, "--out_dir=whole"))
        runs.append((Path(f"out/{name}"), state_of("whole")))
        shutil.rmtree("whole")
    while row.next_try():
        run, whole = runs[row.counts["tries"] % len(runs)]
        out = fresh_box(run, f"unfit{row.counts['tries']}")
        checkpoint = load_checkpoint(out / "last.pt")
        place = row.rng.choice(places(checkpoint)[1:])
        spoilt, how = spoil_checkpoint(checkpoint, place, row.rng)
        torch.save(spoilt, out / "last.pt")
        before = contents(out)
        command = row.ended(Command(*resume, f"--out_dir={out}"))
        what = f"{run.name}: {how} as {place}: {command.last_line}"
        if command.code == 1:
            row.check(contents(out) == before, "lost", f"{out} was changed: {what}")
        elif place[0] in ("model", "objective", "optimizers", "source"):
            # (an optimizer whose phase is over keeps any figures)
            is_same = same(state_of(out) | {"optimizers": []}, whole | {"optimizers": []})
            row.check(is_same, "silent", f"another result: {what}")
        shutil.rmtree(out)
    return f"{row.refused()} to the same end; nothing was deleted"


def spoil_checkpoint(checkpoint, place, rng):
    """-> (a checkpoint with another part at a place, or without it, and how it was spoilt)."""
    part = part_at(checkpoint, place)
    if rng.random() < 0.2 and isinstance(part_at(checkpoint, place[:-1]), dict):
        fewer = dict(part_at(checkpoint, place[:-1]))
        del fewer[place[-1]]
        return with_part(checkpoint, place[:-1], fewer), "nothing"
    odd = rng.choice([value for value in ODD_JSON if type(value) is not type(part)])
    if isinstance(part, torch.Tensor) and rng.random() < 0.8:
        kinds = [
            part.double(),
            part.half(),
            part.long(),
            part.bool(),
            part[None],
            part.new_zeros(3),
        ]
        odd = rng.choice([w for w in kinds if (w.dtype, w.shape) != (part.dtype, part.shape)])
        return with_part(checkpoint, place, odd), f"{odd.dtype} {tuple(odd.shape)}"
    return with_part(checkpoint, place, odd), f"{odd!r:.50}"


# --- other systems --------------------------------------------------------------------------------


def busy_replace():
    """As on Windows, where a virus scanner holds a file now and then."""
    replace = os.replace

    def sometimes(source, target):
        if random.random() < 0.3:
            raise PermissionError(errno.EACCES, "Access is denied", str(source))
        replace(source, target)

    random.seed(time.time_ns())
    os.replace = sometimes


def no_fcntl():
    """As on Windows, where there are no such locks."""
    # import again the modules that found it
    sys.modules["fcntl"] = None
    for name in list(sys.modules):
        if name.split(".")[0] in ("filelock", "lib"):
            del sys.modules[name]


def windows(row):
    """Windows as far as Linux can show it: no fcntl, busy files, cp1252, drive letters, CRLF"""
    run = [*SIZES, "--max_steps=20", "--eval_interval=4"]
    row.ended(Command("train.py", *run, "--out_dir=out/alone"))
    kinds = [busy_files, no_locks, narrow_console, drive_letters, carriage_returns]
    while row.next_try():
        kinds[row.counts["tries"] % len(kinds)](row, run, f"windows{row.counts['tries']}")
    return "as on Linux, or refused in a line"


def busy_files(row, run, name):
    command = row.ended(Command("train.py", *run, f"--out_dir=out/{name}", before=busy_replace))
    row.check(command.code == 0, "lost", command.last_line)
    row.check(same(state_of("out/alone"), state_of(f"out/{name}")), "lost", "another state")


def no_locks(row, run, name):
    words = ["train.py", *run, f"--out_dir=out/{name}"]
    commands = [Command(*words, before=no_fcntl) for _ in range(2)]
    end_as_alone(row, commands)
    row.check(sorted(c.code for c in commands) == [0, 1], "silent", "two runs in one folder")
    row.check(same(state_of("out/alone"), state_of(f"out/{name}")), "lost", "another state")
    # A killed process must not lock others out.
    Command(*words, "--overwrite", before=no_fcntl).kill(0.8)
    command = row.ended(Command(*words, "--resume=auto", before=no_fcntl))
    row.check(command.code == 0, "lost", f"after a kill: {command.last_line}")


def narrow_console(row, run, name):
    """Names and text that the console cannot show are escaped."""
    name = f"日記 {name}"
    Path(f"{name}.txt").write_text("天气很好我们去公园散步 " * 500)
    named = [*run, f"--dataset={name}", f"--out_dir=out/{name}"]
    for words in (
        ["prepare.py", f"{name}.txt", f"--name={name.replace(' ', '_')}"],
        ["train.py", *named, f"--dataset={name.replace(' ', '_')}"],
        ["train.py", *named, "--overwrite", *SELF_PLAY["spin"], "--dataset=words"],
        ["sample.py", f"--model=out/{name}", "--prompt=天", "--max_new_bytes=30"],
        ["bench.py", "eval", f"--model=out/{name}", "--tasks=val"],
        ["tools.share", f"--model=out/{name}", f"--to={name}"],
        ["tools.report"],
    ):
        command = row.ended(Command(*words, encoding="cp1252"))
        row.check(command.code == 0, "lost", f"{shlex.join(words)}: {command.last_line}")


def drive_letters(row, run, name):
    """C:\\Users\\me\\book.txt is a dataset called book, or a file that is missing."""
    path = f"C:\\Users\\me\\{name}.txt"
    command = row.ended(Command("prepare.py", path))
    row.check(command.code == 1 and path in command.last_line, "silent", command.last_line)
    Path(path).write_text("of the " * 999)
    row.ended(Command("prepare.py", path))
    is_there = Path(f"data/{name}/train.bin").exists()
    row.check(is_there, "lost", f"{path} is not the dataset {name}")


def carriage_returns(row, run, name):
    """CRLF in config files is no matter; in text it stays."""
    Path(f"{name}.py").write_bytes(b'"""why\r\nso"""\r\nn_layer = 1\r\nmax_steps = 2\r\n')
    words = [word for word in run if not word.startswith(("--n_layer", "--max_s"))]
    row.ended(Command("train.py", f"{name}.py", *words, f"--out_dir=out/{name}"))
    config = load_checkpoint(f"out/{name}/last.pt")["config"]
    is_read = (config["n_layer"], config["max_steps"], config["intuition"]) == (1, 2, "why\nso")
    row.check(is_read, "silent", f"{name}.py was read otherwise")
    text = b"of the\r\nand in\r\n" * 200
    Path(f"{name}.txt").write_bytes(text)
    Path(f"{name}.jsonl").write_bytes(b'{"text": "of"}\r\n' * 10)
    row.ended(Command("prepare.py", f"{name}.txt", f"--name={name}"))
    found = b"".join(
        Path(f"data/{name}", f"{split}.bin").read_bytes() for split in ("train", "val")
    )
    row.check(found == text, "silent", "CRLF in a text was changed")
    row.ended(Command("prepare.py", f"{name}.jsonl", f"--name={name}j"))
    found = (
        Path(f"data/{name}j/val.bin").read_bytes() + Path(f"data/{name}j/train.bin").read_bytes()
    )
    row.check(set(found) <= set(b"of\xff"), "silent", "CRLF got into the rows of a table")


class NotebookStream:
    """Like the sys.stdout of a notebook: no reconfigure, no buffer, no file number."""

    encoding = "UTF-8"
    closed = False

    def __init__(self, number):
        self.number = number

    def write(self, text):
        return os.write(self.number, text.encode(errors="replace"))

    def flush(self):
        pass

    def isatty(self):
        return False


def in_a_notebook():
    sys.stdout = NotebookStream(1)
    sys.stderr = NotebookStream(2)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # as if it had not been imported yet
    for name in list(sys.modules):
        if name.startswith("matplotlib"):
            del sys.modules[name]


def notebook(row):
    """a notebook: MPLBACKEND is set, stdout and stderr are no files"""
    commands = [
        ["train.py", *SIZES, "--max_steps=4", "--out_dir=out/notebook", "--overwrite"],
        ["sample.py", "--model=out/run", "--prompt=the", "--max_new_bytes=20"],
        ["prepare.py", "words.txt", "--overwrite"],
        ["bench.py", "eval", "--model=out/run", "--data=items", "--tasks=val,blimp"],
        ["bench.py", "speed", "tiny.py", "--rounds=1", "--seconds=0"],
        ["tools.share", "--model=out/run", "--to=new"],
        ["tools.report"],
        ["sample.py", "--model=out/run", "--prompt_file=-"],
        ["sample.py", "--model=out/game"],
        ["train.py", "--help"],
    ]
    while row.next_try():
        words = commands[row.counts["tries"] % len(commands)]
        command = row.ended(Command(*words, before=in_a_notebook))
        is_fine = command.code == 0 or words[0] == "sample.py"
        row.check(is_fine, "lost", f"{shlex.join(words)}: {command.last_line}")
    return "results are printed; a picture that cannot be drawn is one line"


# --- the table ------------------------------------------------------------------------------------

# a function, which tries a fault; the tries in full, and with --short
ROWS = [
    (kills, 25, 2),
    (kills_of_objectives, 28, 2),
    (kills_of_prepare, 25, 2),
    (flips, 200, 20),
    (flips_in_shared, 500, 40),
    (odd_inputs, 500, 60),
    (random_commands, 600, 30),
    (full_disk, 12, 2),
    (two_at_once, 5, 1),
    (links, 5, 1),
    (stopped, 3, 1),
    (lost_ranks, 4, 0),
    (hostile_folders, 300, 20),
    (sharing, 180, 18),
    (urls, 68, 8),
    (foreign_runs, 300, 20),
    (unfit_checkpoints, 150, 9),
    (windows, 15, 5),
    (notebook, 10, 4),
]

PAGE = """# Faults tried

Written by `python results/faults.py` (torch {version}). lost: work or a result was lost, or an
undamaged old file was destroyed. silent: nobody noticed, and the result was another one.
tracebacks: a traceback, a crash or a hang reached the user.

{table}

Seen, and left as it is:

- A FIFO as text, prompt or config file is waited for, as every program waits for it.
- A line of a table is read whole, and takes several times its size in memory.
- If one process of a run is stopped (SIGSTOP), or never starts, the others wait for it until torch
  gives up.
- Power cuts: files are synced before they are renamed, but the folder is not; no disk was tried.
- Network file systems: their locks and renames were not tried. Where locks fail, a line says so.
"""


@dataclass
class FaultsConfig:
    short: bool = False  # a few tries of each kind; write no file
    seed: int = 0  # of the random tries


def main(argv=None):
    usage = __doc__ + "\nkinds\n"
    for function, n, n_short in ROWS:
        usage += f"  {function.__name__:<20} {function.__doc__} ({n}, short {n_short})\n"
    cfg, words = parse(FaultsConfig, sys.argv[1:] if argv is None else argv, usage)
    names = [function.__name__ for function, _, _ in ROWS]
    for word in words:
        if word not in names:
            raise ValueError(f"no kind {word!r}{did_you_mean(word, names)}; --help lists all")
    rows = []
    for function, n, n_short in ROWS:
        row = Row(function, n_short if cfg.short else n, cfg.seed)
        if row.n > 0 and (not words or row.name in words):
            rows.append(row)

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["HOME"] = folder
        Path("box").mkdir()
        with contextlib.chdir("box"):
            make_box()
            STLM.from_pretrained("shared8")  # imports the rest of torch
        for i, row in enumerate(rows, 1):
            try_row(row, i, len(rows), Path(folder, "box"))
    if not words and not cfg.short:
        write_page(rows)
    return any(row.counts[kind] for row in rows for kind in ("lost", "silent", "tracebacks"))


def try_row(row, i, n_rows, box):
    print(f"{i} of {n_rows}: {row.name}, {row.function.__doc__}: {row.n} tries", flush=True)
    row.box = box
    start = time.monotonic()
    with contextlib.chdir(fresh_box(box, row.name)):
        row.said = row.function(row)
    shutil.rmtree(row.name)
    figures = ", ".join(f"{row.counts[kind]} {kind}" for kind in ("lost", "silent", "tracebacks"))
    print(f"  {figures}; {row.said} ({time.monotonic() - start:.0f} s)", flush=True)


def write_page(rows):
    head = ["fault", "tries", "lost", "silent", "tracebacks", "what was seen"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    page = PAGE.format(version=torch.__version__, table=table)
    (ROOT / "results/FAULTS.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
