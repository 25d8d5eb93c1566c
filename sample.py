"""Write text with a trained model.

    python sample.py                                     # the newest run under out/
    python sample.py --model=out/stlm_10m --prompt="The mitochondria" --temperature=0.7
    cat question.txt | python sample.py --prompt_file=- --max_new_bytes=200

The text streams to stdout in UTF-8, the prompt first; everything else goes to stderr. If the model
plays a game, you play against it: python sample.py --model=out/selfplay_game
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import codecs
import math
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from config import SEED, check_limits, parse
from lib.data import decode, encode
from lib.files import game_of, load_run, newest_run, read_utf8, run_command
from lib.games import GAMES, play_person
from lib.machine import pick_device


@dataclass
class SampleConfig:
    # --- model ---
    model: str = ""  # a run's folder, a shared folder, USER/NAME on the Hub; empty: the newest run
    out_dir: str = ""  # another name for model
    weights: Literal["best", "last"] = "best"  # best: a run's lowest val loss; last: its newest
    device: str = "auto"  # auto: cuda, else mps, else cpu
    # --- text ---
    prompt: str = ""  # text to continue; empty: start a document
    prompt_file: str = ""  # read the prompt from this file; - is standard input
    max_new_bytes: int = 500  # bytes after the prompt
    num_samples: int = 1  # texts to write, one after the other
    stop: bool = True  # end a text where its document ends; false: go on after an empty line
    # --- sampling ---
    temperature: float = 0.8  # below 1 is safer, above 1 is wilder; 0: always the most likely byte
    top_k: int = 0  # sample from the k most likely bytes; 0: from all
    top_p: float = 1.0  # sample from the most likely bytes that together have this probability
    seed: int = 1337  # same seed, same text

    def __post_init__(self):
        if self.model and self.out_dir:
            raise ValueError("give model or out_dir, not both: they mean the same")
        if self.prompt and self.prompt_file:
            raise ValueError("give prompt or prompt_file, not both")
        limits = {"num_samples": (1, math.inf), "seed": SEED}
        for key in ("max_new_bytes", "temperature", "top_k"):
            limits[key] = (0, math.inf)
        check_limits(self, limits)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


def main(argv=None):
    cfg, words = parse(SampleConfig, sys.argv[1:] if argv is None else argv, __doc__)
    if words:
        raise ValueError(
            f"unexpected argument {words[0]!r}: give it as --prompt={words[0]!r}; see --help"
        )
    prompt = read_prompt(cfg)
    device, _ = pick_device(cfg.device)
    name = cfg.model or cfg.out_dir or newest_run()
    model, checkpoint, path = load_run(name, cfg.weights, device)
    # A byte is so little work that threads would mostly wait for each other: on a busy machine, ten
    # times as long as they work.
    if device.type == "cpu":
        torch.set_num_threads(1)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{path}: step {checkpoint['step']}, {parameters:,} parameters, {device}", file=sys.stderr
    )
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(encoding="utf-8")
    game = game_of(checkpoint)
    if game and prompt:
        raise ValueError(
            f"expected a model of text for a prompt, got {name}, which plays {game}: leave the "
            "prompt out to play against it"
        )
    if game:
        play_person(GAMES[game](device), model)
        return

    generator = torch.Generator().manual_seed(cfg.seed)
    for i in range(cfg.num_samples):
        if i > 0:
            print(f"--- sample {i + 1} ---", file=sys.stderr)
        write_text(model, prompt, cfg, generator)


def read_prompt(cfg):
    """The prompt in bytes."""
    if cfg.prompt_file:
        return read_utf8(cfg.prompt_file, "prompt_file")
    try:
        return cfg.prompt.encode()
    except UnicodeEncodeError as e:  # bytes that are not UTF-8 arrive as surrogates
        raise ValueError(
            f"prompt must be UTF-8: character {e.start} is {cfg.prompt[e.start]!r}"
        ) from None


def write_text(model, prompt, cfg, generator):
    """Print a text while the model writes it; print its speed to stderr."""
    # A character may arrive in up to four pieces.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    print(decoder.decode(prompt), end="", flush=True)
    start = time.perf_counter()
    n = 0
    symbols = model.generate(
        encode(model.cfg, prompt),
        cfg.max_new_bytes,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        generator=generator,
        stop=cfg.stop,
    )
    for symbol in symbols:
        if symbol == model.eot:  # with stop=false
            n += 1
            text = decoder.decode(b"", final=True) + "\n\n"
        else:
            piece = decode(model.cfg, [symbol])
            n += len(piece)
            text = decoder.decode(piece)
        print(text, end="", flush=True)
        # a BPE baseline writes several bytes at once
        if n >= cfg.max_new_bytes:
            break
    # What the model left unfinished is U+FFFD; a character that max_new_bytes cut is left out.
    print(decoder.decode(b"", final=n < cfg.max_new_bytes), flush=True)
    seconds = time.perf_counter() - start
    print(f"{n} bytes in {seconds:.2f} s: {n / seconds:,.0f} bytes/s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
