"""Try faults on the scripts, and count what they lose.

The faults are kills, flipped bits, odd input, a full disk, two processes in one folder, a stopped
process and a lost rank.

    python results/faults.py            # about 12 minutes on 2 cores; writes results/FAULTS.md
    python results/faults.py --short    # 5 kills, 20 flips, 50 odd inputs; writes no file

The script works in a temporary folder with a model of 36,000 parameters. A try is lost if it ends
in another state than without the fault, or in a traceback. The script exits with 1 if any is lost.
"""

import contextlib
import gzip
import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import prepare  # noqa: E402
from config import Config, parse  # noqa: E402
from lib.files import load_checkpoint, read_log  # noqa: E402

SHORT = "--short" in sys.argv
SIZES = "--block_size=64 --max_patches=32 --n_layer=2 --n_head=2 --n_embd=32 --n_local_embd=16"
SIZES += " --n_grams=1 --gram_rows=64"
SIZES += " --batch_bytes=512 --dropout=0.1 --device=cpu --dtype=float32 --dataset=words"
SIZES += " --eval_bytes=2000"
RUN = f"{SIZES} --max_steps=300 --eval_interval=20 --max_seconds=0 --log_interval=1".split()
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
random.seed(0)
rows = []  # (fault, tries, lost, what the scripts said)


def script(name, *args, **options):
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": ENV}
    return subprocess.Popen(
        [sys.executable, str(ROOT / name), *map(str, args)], **output, **options
    )


def one_line(text):
    """Whether a failed script printed no traceback, and ended with a line of its own."""
    lines = text.strip().splitlines()
    return (
        "Traceback" not in text
        and bool(lines)
        and bool(re.match(r"(train|prepare|sample|bench)\.py: ", lines[-1]))
    )


def note(fault, tries, lost, said):
    rows.append((fault, tries, lost, said))
    print(f"{fault}: {tries} tries, {lost} lost; {said}", flush=True)


def weights(path):
    return load_checkpoint(path)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def kills_of_training(n):
    start = time.time()
    script("train.py", *RUN, "--out_dir=out/whole").communicate()
    usual = time.time() - start
    whole = weights("out/whole/last.pt")
    kills = 0
    lost = 0
    ends = 0
    while kills < n:
        args = [*RUN, f"--out_dir=out/killed{ends}", "--resume=auto"]
        while True:
            process = script("train.py", *args)
            patience = random.uniform(0.55, 1.0) * usual if kills < n else None
            try:
                said = process.communicate(timeout=patience)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
            break
        log = [
            (e["step"], e["bpb"])
            for e in read_log(Path(f"out/killed{ends}/log.jsonl"))
            if e["event"] == "eval"
        ]
        expected = [
            (e["step"], e["bpb"])
            for e in read_log(Path("out/whole/log.jsonl"))
            if e["event"] == "eval"
        ]
        lost += (
            process.returncode != 0
            or not same(whole, weights(f"out/killed{ends}/last.pt"))
            or log != expected
        )
        if lost:
            print(said[-500:])
        ends += 1
    note(
        "kill -9 of train.py, then --resume=auto",
        kills,
        lost,
        f"{ends} runs ended bit for bit as without, log and all",
    )


def kills_of_prepare(n):
    with open("big.txt", "wb") as f:
        f.writelines(b"%d some words of text\n" % i for i in range(3_000_000))
    start = time.time()
    script("prepare.py", "big.txt").communicate()
    usual = time.time() - start
    whole = Path("data/big/train.bin").read_bytes()
    lost = 0
    for i in range(n):
        process = script("prepare.py", "big.txt", "--overwrite")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(0.1, 1.0) * usual)
        process.kill()
        process.communicate()
        if i % 5 == 4:  # the next process sweeps up
            script("prepare.py", "big.txt", "--overwrite").communicate()
            lost += bool([p for p in Path("data").iterdir() if p.name.startswith(".big.tmp")])
        lost += Path("data/big").exists() and Path("data/big/train.bin").read_bytes() != whole
    note(
        "kill -9 of prepare.py --overwrite",
        n,
        lost,
        "the old data or the new, whole; leftovers are swept up by the next",
    )


def flips(n):
    path = Path("out/whole/last.pt")
    raw = bytearray(path.read_bytes())
    good = weights(path)
    seen = 0
    lost = 0
    for _ in range(n):
        place = random.randrange(8 * len(raw))
        raw[place // 8] ^= 1 << place % 8
        Path("out/flipped.pt").write_bytes(raw)
        try:
            lost += not same(good, weights("out/flipped.pt"))
        except ValueError as e:
            seen += 1
            lost += "\n" in str(e)
        raw[place // 8] ^= 1 << place % 8
    note(
        "one flipped bit in a checkpoint",
        n,
        lost,
        f"{seen} refused in a line, {n - seen} where it changes nothing",
    )


def odd_inputs(n):
    """Try command lines, config files, corpora and logs in this process.

    Each must give a result or a ValueError of one line.
    """
    values = [
        "",
        "0",
        "-1",
        "1e30",
        "nan",
        "inf",
        "-inf",
        "abc",
        str(2**63),
        "true",
        "1.5",
        "0x10",
        "é",
        "\udcff",
        "a\nb",
    ]
    knobs = [*Config.__dataclass_fields__, "lr", "n_leyer", "", "-", "help me"]
    words = [
        b"text",
        b"\xff\xfe",
        b"\0",
        b"\xe9",
        b'"',
        b",",
        b"\n",
        b"\r",
        b"{",
        b"}",
        b"[",
        b'{"text": ',
        b'"a"}',
        b"17",
    ]
    words += [
        b"\xed\xa0\x80",
        b'{"text": "\\ud800"}\n',
        b"text\n1\n",
        b"PK\3\4",
        b"\x1f\x8b",
        b"PAR1",
        b"%PDF",
        "🐍".encode(),
    ]
    refused = 0
    lost = 0
    for i in range(n):
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                if i % 4 == 0:
                    parse(
                        Config,
                        [f"--{random.choice(knobs)}={random.choice(values)}" for _ in range(3)],
                        "",
                        "config/demo.py",
                    )
                elif i % 4 == 1:
                    lines = [
                        f"{random.choice(knobs)} = {random.choice(values)!r}" for _ in range(3)
                    ]
                    Path("odd.py").write_text(
                        "\n".join([*lines, random.choice(["", "1/0", "import nothing", "def"])]),
                        errors="replace",
                    )
                    parse(Config, ["odd.py"], "", "config/demo.py")
                elif i % 4 == 2:
                    suffix = random.choice(
                        ["txt", "csv", "jsonl", "json", "parquet", "txt.gz", "jsonl.gz", "md"]
                    )
                    content = b"".join(random.choices(words, k=random.randint(0, 60)))
                    if suffix.endswith("gz") and random.random() < 0.7:
                        content = gzip.compress(content)
                    Path(f"odd.{suffix}").write_bytes(content)
                    errors = random.choice(["strict", "replace"])
                    prepare.main(
                        [f"odd.{suffix}", "--name=odd", "--overwrite", f"--errors={errors}"]
                    )
                else:
                    lines = Path("out/whole/log.jsonl").read_bytes().splitlines()[:20]
                    for _ in range(5):
                        lines.insert(
                            random.randrange(len(lines)),
                            b"".join(random.choices(words, k=4)).replace(b"\n", b""),
                        )
                    Path("odd.jsonl").write_bytes(b"\n".join(lines))
                    assert len(read_log(Path("odd.jsonl"))) >= 19
        except ValueError as e:
            refused += 1
            lost += "\n" in str(e).replace("a\nb", "")
        except BaseException as e:
            lost += 1
            print(f"odd input {i}: {type(e).__name__}: {e}")
    note(
        "odd command lines, config files, corpora, logs",
        n,
        lost,
        f"{refused} refused in a line, the rest read as it stands",
    )


def full_disk(n):
    lost = 0
    said = ""
    for i in range(n):
        # A limit on the bytes of a file stands in for a disk that fills up.
        limit = random.randint(200_000, 900_000)

        def set_limit(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        args = [*RUN, "--n_embd=64", f"--out_dir=out/full{i}"]
        process = script("train.py", *args, preexec_fn=set_limit)
        text = process.communicate()[0]
        ended = process.returncode == 0 or one_line(text)
        left = [p for p in Path(f"out/full{i}").glob("*.pt") if not weights(p)]
        lost += not ended or bool(left)
        if process.returncode:
            said = text.strip().splitlines()[-1][:90]
    note("no room for a file", n, lost, f"`{said}…`; what was there is whole")


def two_at_once(n):
    lost = 0
    for i in range(n):
        for name, args in (
            ("train.py", [*RUN, f"--out_dir=out/two{i}"]),
            ("prepare.py", ["big.txt", f"--name=two{i}"]),
        ):
            pair = [script(name, *args) for _ in range(2)]
            said = [process.communicate()[0] for process in pair]
            ended = [process.returncode for process in pair]
            refused = [text for text, code in zip(said, ended, strict=True) if code]
            lost += 0 not in ended or not all(map(one_line, refused))
        lost += not same(weights("out/whole/last.pt"), weights(f"out/two{i}/last.pt"))
        alone = Path("data/big/train.bin").read_bytes()
        lost += Path(f"data/two{i}/train.bin").read_bytes() != alone
    note(
        "two train.py, two prepare.py into one folder",
        2 * n,
        lost,
        "one ends as alone, the other is refused in a line",
    )


def stopped(n):
    lost = 0
    for i in range(n):
        args = [
            *SIZES.split(),
            "--max_steps=0",
            "--max_seconds=6",
            "--eval_interval=0",
            f"--out_dir=out/stopped{i}",
        ]
        process = script("train.py", *args)
        while "step 1 " not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        process.communicate()
        log = [e for e in read_log(Path(f"out/stopped{i}/log.jsonl")) if e["event"] == "train"]
        lost += log[-1]["time"] - log[0]["time"] < log[-1]["elapsed"] - log[0]["elapsed"] + 4
    note(
        "SIGSTOP for 5 seconds under max_seconds",
        n,
        lost,
        "the seconds are not paid for, the schedule decays to its end",
    )


def lost_ranks(n):
    lost = 0
    hung = 0
    for i in range(n):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--max_restarts=2",
        ]
        command += [str(ROOT / "train.py"), *RUN, f"--out_dir=out/rank{i}", "--resume=auto"]
        with open(f"rank{i}.txt", "w") as said:
            process = subprocess.Popen(command, env=ENV, stdout=said, stderr=subprocess.DEVNULL)
        while "\nval " not in Path(f"rank{i}.txt").read_text():  # wait for the first checkpoint
            time.sleep(0.05)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            hung += 1
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            ).stdout.split()
            for number in (process.pid, *map(int, children)):
                os.kill(number, signal.SIGKILL)
            process.wait()
            script("train.py", *RUN, f"--out_dir=out/rank{i}", "--resume=auto").communicate()
        lost += load_checkpoint(f"out/rank{i}/last.pt")["step"] != 300
    note(
        "a rank killed under torchrun --max_restarts=2",
        n,
        lost,
        f"{n - hung} went on by themselves, "
        f"{hung} hung in torch's restart and went on by --resume=auto",
    )


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        words = ["the", "of", "and", "in", "is", "that", "for", "was", "with", "not"]
        Path("words.txt").write_text(" ".join(random.choices(words, k=40_000)))
        prepare.main(["words.txt"])
        kills_of_training(3 if SHORT else 25)
        kills_of_prepare(2 if SHORT else 25)
        flips(20 if SHORT else 200)
        odd_inputs(50 if SHORT else 500)
        full_disk(1 if SHORT else 5)
        two_at_once(1 if SHORT else 5)
        stopped(1 if SHORT else 3)
        if not SHORT:
            lost_ranks(4)
        os.chdir(ROOT)
    head = ["fault", "tries", "lost", "what was seen"]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * 4, *rows))
    if not SHORT:
        writer = f"Written by `python results/faults.py` (torch {torch.__version__})."
        page = f"# Faults tried\n\n{writer}\n\n{table}\n"
        Path("results/FAULTS.md").write_text(page, encoding="utf-8")
    return sum(row[2] for row in rows) > 0


if __name__ == "__main__":
    sys.exit(main())
