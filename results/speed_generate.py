"""Generation bytes/s of a config, untrained (speed does not depend on the weights), after a prompt of 512 bytes.

python results/speed_generate.py [CONFIG.py] [--bytes=2048]      default: config/stlm_10m.py, 4 x its context
"""

import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from config import build, load_file  # noqa: E402
from model import STLM  # noqa: E402
from train import Config  # noqa: E402

path = next((a for a in sys.argv[1:] if a.endswith(".py")), str(ROOT / "config" / "stlm_10m.py"))
n = next((int(a.partition("=")[2]) for a in sys.argv[1:] if a.startswith("--bytes=")), 4096)
torch.manual_seed(0)
model = STLM(build(Config, load_file(Config, path)[0], path)).eval()
for p in model.parameters():  # random, the zero-initialised ones too, so that no product is a product with zeros
    if not p.any():
        torch.nn.init.normal_(p, std=0.02)
text = (ROOT / "EXPERIMENTS.md").read_bytes()
words = iter((text * (1 + n // len(text)))[512:])
start = time.perf_counter()
with torch.inference_mode():  # the bytes fed are those of a real text, so that patches are as long as in real text
    logits, cache = model.prefill(torch.tensor([[model.eot, *text[:511]]]))
    logits[0].softmax(0).multinomial(1)
    print(
        json.dumps(
            {"config": Path(path).stem, "prompt": 512, "seconds_to_first_byte": round(time.perf_counter() - start, 3)}
        )
    )
    for length in range(512, 512 + n, 512):
        start = time.perf_counter()
        for _ in range(512):
            logits = model.step(torch.tensor([next(words)]), cache)
            logits[0].softmax(0).multinomial(1)
        speed = 512 / (time.perf_counter() - start)
        print(json.dumps({"length": length, "bytes_per_second": round(speed)}), flush=True)
