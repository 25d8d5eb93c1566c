"""A trained model in EleutherAI's lm-evaluation-harness (pip install lm-eval), with all its tasks.

python -m tools.harness --model stlm --model_args model=out/demo --tasks blimp,arc_easy --limit 200
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys

import torch
from tqdm import tqdm

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    sys.exit("tools.harness needs lm-evaluation-harness: pip install 'lm-eval>=0.4.9'")

from bench import score
from lib.data import Data, bits_per_byte, decode, encode
from lib.files import load_run, newest_run
from lib.machine import pick_device


@register_model("stlm")
class Harness(LM):
    def __init__(self, model="", out_dir="", weights="best", device="auto", seed=1337, **ignored):
        super().__init__()
        # lm-evaluation-harness asks for cuda unless told otherwise
        if not device or ("cuda" in device and not torch.cuda.is_available()):
            device = "auto"
        device, _ = pick_device(device)
        self.model, _, _ = load_run(model or out_dir or newest_run(), weights, device)
        self.generator = torch.Generator().manual_seed(seed)

    def loglikelihood(self, requests):
        """For each request, (log p of the continuation in nats, does greedy decoding write it)."""
        # Group the choices of a question, so that their common context is read once.
        numbers = {}
        for i, request in enumerate(requests):
            numbers.setdefault((request.task_name, request.doc_id), []).append(i)
        items = []
        for group in numbers.values():
            items.append([tuple(text.encode() for text in requests[i].args) for i in group])
        with tqdm(total=len(requests), desc="loglikelihood", disable=None) as bar:
            scores = score(self.model, items, bar.update)
        results = [None] * len(requests)
        for group, found in zip(numbers.values(), scores, strict=True):
            for i, result in zip(group, found, strict=True):
                results[i] = result
        return results

    def loglikelihood_rolling(self, requests):
        """For each request, log p of a whole text in nats, in windows as long as the context."""
        results = []
        for request in tqdm(requests, disable=None):
            (text,) = request.args
            data = Data.of_text(self.model.cfg, text.encode())
            found = bits_per_byte(self.model, data, self.model.cfg.block_size)
            results.append(-found["nats"])
        return results

    def generate_until(self, requests):
        """For each request, the text up to its first stop string."""
        return [self.generate(*request.args) for request in tqdm(requests, disable=None)]

    def generate(self, context, options):
        stops = options.get("until") or []
        if isinstance(stops, str):
            stops = [stops]
        stops = [stop.encode() for stop in stops if stop]
        max_new = options.get("max_gen_toks", 256)
        if self.model.cfg.tokenizer == "bytes":
            max_new *= 4  # bytes in a token, roughly
        temperature = options.get("temperature", 0.0) if options.get("do_sample") else 0.0
        prompt = encode(self.model.cfg, context.encode())
        text = b""
        for symbol in self.model.generate(prompt, max_new, temperature, generator=self.generator):
            text += decode(self.model.cfg, [symbol])
            ends = [text.index(stop) for stop in stops if stop in text]
            if ends:
                text = text[: min(ends)]
                break
        return text.decode(errors="replace")


if __name__ == "__main__":
    cli_evaluate()
