"""A trained model in EleutherAI's lm-evaluation-harness (pip install lm-eval), with every task it has.

python -m tools.harness --model stlm --model_args model=out/demo --tasks blimp,arc_easy --limit 200
"""

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
        usable = device and (
            "cuda" not in device or torch.cuda.is_available()
        )  # (lm-eval's own default is cuda)
        device = pick_device(device if usable else "auto")[0]
        self.model, *_ = load_run(model or out_dir or newest_run(), weights, device)
        self.generator = torch.Generator().manual_seed(seed)

    def loglikelihood(self, requests):
        """[(log p of the continuation in nats, whether it is what greedy decoding writes)], one for each request."""
        items = {}  # the choices of one question stand together, so that its context is read once
        for i, request in enumerate(requests):
            items.setdefault((request.task_name, request.doc_id), []).append(i)
        work = [
            [tuple(text.encode() for text in requests[i].args) for i in item]
            for item in items.values()
        ]
        with tqdm(total=len(requests), desc="loglikelihood", disable=None) as bar:
            scores = score(self.model, work, bar.update)
        found = dict(
            zip(
                (i for item in items.values() for i in item),
                (s for item in scores for s in item),
                strict=True,
            )
        )
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests):
        """[log p of a whole text in nats], in consecutive windows of the context."""
        texts = (
            Data.of_text(self.model.cfg, request.args[0].encode())
            for request in tqdm(requests, disable=None)
        )
        return [
            -bits_per_byte(self.model, data, self.model.cfg.block_size)["nats"] for data in texts
        ]

    def generate_until(self, requests):
        """[text up to the first stop string]; a token of max_gen_toks counts as 4 bytes."""
        return [self.generate(*request.args) for request in tqdm(requests, disable=None)]

    def generate(self, context, options):
        until, text = options.get("until") or [], b""
        stops = [s.encode() for s in ([until] if isinstance(until, str) else until) if s]
        most = options.get("max_gen_toks", 256) * (4 if self.model.cfg.tokenizer == "bytes" else 1)
        temperature = options.get("temperature", 0.0) if options.get("do_sample") else 0.0
        prompt = encode(self.model.cfg, context.encode())
        for symbol in self.model.generate(prompt, most, temperature, generator=self.generator):
            text += decode(self.model.cfg, [symbol])
            if found := [text.index(s) for s in stops if s in text]:
                text = text[: min(found)]
                break
        return text.decode(errors="replace")


if __name__ == "__main__":
    cli_evaluate()
