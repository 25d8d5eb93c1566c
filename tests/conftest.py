"""All tests share a small dataset in the format of prepare.py and the arguments of a short run."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
]


# The tests use tiny models. When other work keeps a core busy, two threads wait for each other.
torch.set_num_threads(1)

# A shell makes its background jobs ignore Ctrl-C, and their children inherit that.
# These tests interrupt scripts, so restore the handler.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where to try the laws of test_model.py: cpu, cuda, mps"
    )


def write_dataset(folder, train, val):
    """Write folder/{train,val}.bin and meta.json from bytes that have EOT between documents."""
    folder.mkdir(parents=True)
    meta = {"name": folder.name, "tokenizer": "bytes", "dtype": "uint8", "vocab_size": 256}
    for split, text in (("train", train), ("val", val)):
        (folder / f"{split}.bin").write_bytes(text)
        n = len(text) - text.count(0xFF)
        meta[split] = {
            "bytes": n,
            "symbols": len(text),
            "documents": 1,
            "sha256": hashlib.sha256(text).hexdigest(),
        }
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The folder of a dataset, words: documents of common words with EOT between them."""
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, 60)).encode() + b".\n" for _ in range(80)]
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "words", b"\xff".join(documents[:70]), b"\xff".join(documents[70:]))
    return folder


SMALL = [
    "--dataset=words",
    "--block_size=32",
    "--max_patches=16",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
]
SMALL += ["--n_local_embd=16", "--n_grams=1", "--gram_rows=64", "--batch_bytes=256", "--device=cpu"]
SMALL += [
    "--dtype=float32",
    "--max_seconds=0",
    "--eval_interval=0",
    "--eval_bytes=500",
    "--log_interval=1",
]


@pytest.fixture
def small(data_dir):
    return [*SMALL, f"--data_dir={data_dir}"]


def run(script, *args, check=True, **kwargs):
    """Run one of the project's commands as a user does, such as train.py or tools.share."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | kwargs.pop("env", {})
    program = ["-m", script] if str(script).startswith("tools.") else [str(ROOT / script)]
    command = [sys.executable, *program, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, **kwargs)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def message_of(main, args):
    """The one line in which a command reports a user's mistake."""
    with pytest.raises(ValueError) as e:
        main([str(arg) for arg in args])
    assert "\n" not in str(e.value)
    return str(e.value)
