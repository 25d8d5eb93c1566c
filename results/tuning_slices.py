"""Make a dataset to tune with, NAME_tune: three slices from the middle of NAME's train are its val.

    python results/tuning_slices.py [NAME]

NAME is shakespeare by default. Each slice is a thirtieth of train, around 1/4, 1/2 and 3/4 of it;
the rest of train is the new train. NAME's own val stays unread.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def entry(symbols, meta):
    """A split's entry in meta.json."""
    return {
        "documents": int((symbols == meta["vocab_size"] - 1).sum()) + 1,
        "bytes": int((symbols != meta["vocab_size"] - 1).sum()),
        "symbols": len(symbols),
        "sha256": hashlib.sha256(symbols.tobytes()).hexdigest(),
    }


def main(name="shakespeare", data_dir=ROOT / "data"):
    folder = Path(data_dir, name)
    meta = json.loads((folder / "meta.json").read_text())
    if meta["tokenizer"] != "bytes":
        raise SystemExit(f"expected bytes in {name}, got {meta['tokenizer']}: prepare it as bytes")
    symbols = np.fromfile(folder / "train.bin", dtype=np.uint8)
    n = len(symbols) // 30
    in_val = np.zeros(len(symbols), dtype=bool)
    for quarter in (1, 2, 3):
        first = quarter * len(symbols) // 4 - n // 2
        in_val[first : first + n] = True

    out = folder.with_name(f"{name}_tune")
    out.mkdir(exist_ok=True)
    splits = {"train": symbols[~in_val], "val": symbols[in_val]}
    for split, part in splits.items():
        part.tofile(out / f"{split}.bin")
        meta[split] = entry(part, meta)
    meta |= {"name": out.name, "split": f"val: three slices from the middle of {name}'s train"}
    (out / "meta.json").write_text(json.dumps(meta, indent=1))
    print(f"{out}: {len(splits['train']):,} bytes of train, {len(splits['val']):,} of val")


if __name__ == "__main__":
    main(*sys.argv[1:])
