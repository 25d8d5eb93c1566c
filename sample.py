"""Write text with a trained model, streamed as it comes.

    python sample.py                                     # the newest run under out/
    python sample.py --model=out/stlm_10m --prompt="The mitochondria" --temperature=0.7
    cat question.txt | python sample.py --prompt_file=- --max_new_bytes=200

Text goes to stdout (UTF-8; the prompt first), everything else to stderr. `--help` lists every knob.
"""

import codecs
import os
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from config import parse
from lib.data import decode, encode
from lib.files import load_run, newest_run, read_utf8
from lib.machine import pick_device


@dataclass
class SampleConfig:
    # model
    model: str = (
        ""  # a run's folder, a shared one, or USER/NAME on the Hub; empty: the newest under out/
    )
    out_dir: str = ""  # another name of model
    weights: Literal["best", "last"] = (
        "best"  # of the run: those of the lowest val loss, or the newest
    )
    device: str = "auto"  # auto: cuda, else mps, else cpu
    # text
    prompt: str = ""  # what to go on from; empty: the start of a document
    prompt_file: str = ""  # read the prompt from this file; - is standard input
    max_new_bytes: int = 500  # bytes after the prompt
    num_samples: int = 1  # texts to write, one after the other
    stop: bool = True  # end a text where the model ends its document
    # choice of the next byte
    temperature: float = 0.8  # below 1 is safer, above 1 is wilder; 0: always the most likely
    top_k: int = 0  # only the k most likely; 0: all
    top_p: float = 1.0  # only the most likely that together hold this share
    seed: int = 1337  # same seed, same text

    def __post_init__(self):
        if self.model and self.out_dir:
            raise ValueError("give model or out_dir, not both: they mean the same")
        if self.prompt and self.prompt_file:
            raise ValueError("give prompt or prompt_file, not both")
        for key in ("max_new_bytes", "temperature", "top_k", "seed"):
            if not getattr(self, key) >= 0:  # (nan is not)
                raise ValueError(f"{key}={getattr(self, key)} must not be negative")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed} must be below 2**63")
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


def main(argv=None):
    cfg, words = parse(SampleConfig, sys.argv[1:] if argv is None else argv, __doc__)
    if words:
        raise ValueError(
            f"what is {words[0]!r}? Say --prompt={words[0]!r} to go on from it; see --help"
        )
    try:
        prompt = cfg.prompt.encode()
    except UnicodeEncodeError as e:  # (bytes that are not UTF-8 arrive as surrogates)
        raise ValueError(
            f"prompt is not UTF-8: its character {e.start} is {cfg.prompt[e.start]!r}"
        ) from None
    if cfg.prompt_file:
        prompt = read_utf8(cfg.prompt_file, "prompt_file")
    device = pick_device(cfg.device)[0]
    model, checkpoint, path = load_run(
        cfg.model or cfg.out_dir or newest_run(), cfg.weights, device
    )
    if (
        device.type == "cpu"
    ):  # a byte is little work: threads wait for each other, on a busy machine ten times as long
        torch.set_num_threads(1)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{path}: step {checkpoint['step']}, {parameters:,} parameters, {device}", file=sys.stderr
    )
    sys.stdout.reconfigure(encoding="utf-8")
    generator = torch.Generator().manual_seed(cfg.seed)
    for i in range(cfg.num_samples):
        if i:
            print(f"--- sample {i + 1} ---", file=sys.stderr)
        decoder = codecs.getincrementaldecoder("utf-8")(
            "replace"
        )  # a character may arrive in four pieces
        print(decoder.decode(prompt), end="", flush=True)
        start, n = time.perf_counter(), 0
        choice = {
            "temperature": cfg.temperature,
            "top_k": cfg.top_k,
            "top_p": cfg.top_p,
            "generator": generator,
        }
        for symbol in model.generate(
            encode(model.cfg, prompt), cfg.max_new_bytes, stop=cfg.stop, **choice
        ):
            piece = decode(model.cfg, [symbol])
            n += len(piece)
            print(decoder.decode(piece), end="", flush=True)
            if n >= cfg.max_new_bytes:  # (a BPE baseline writes several bytes at once)
                break
        print(decoder.decode(b"", final=True), flush=True)
        seconds = time.perf_counter() - start
        print(f"{n} bytes in {seconds:.2f} s: {n / seconds:,.0f} bytes/s", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
