"""Compare the speed of an older commit with this one, in turns, on one machine and one text.

    OMP_NUM_THREADS=1 python results/before_after.py --old=e465f86 \\
        --config=config/stlm_10m.py --rounds=4 --text=FILE

The script checks out the older commit into a temporary folder, and runs each commit's own
`bench.py speed`: it trains as train.py does, and generates in float32. It prints medians, and
ratios within a round, and adds both commits' rounds to results/before_after.json.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from config import parse  # noqa: E402
from lib.commit import commit  # noqa: E402
from lib.files import write_json  # noqa: E402

FIGURES = (
    "train_bytes_per_second",
    "first_byte_seconds",
    "generate_at_512",
    "generate_at_1024",
    "generate_at_2048",
)
FIGURES += ("generate_at_4096", "generate_16_texts")


@dataclass
class Options:
    # --- what to measure ---
    old: str = "e465f86"  # the commit to compare this one with
    config: str = "config/stlm_10m.py"  # a config file that both have
    old_config: str = ""  # its name at the old commit, if it has moved since
    text: str = ""  # a UTF-8 file; empty: the standard library
    rounds: int = 4  # how often to measure each commit
    seconds: float = 10.0  # length of training in a round
    eager: bool = False  # pass --compile=off: older commits ignore the config's choice


def measure(folder, config, options):
    command = [
        sys.executable,
        "bench.py",
        "speed",
        config,
        "--rounds=1",
        f"--seconds={options.seconds}",
        "--json",
    ]
    command += ["--compile=off"] if options.eager else []
    command += [f"--text={Path(options.text).resolve()}"] if options.text else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["arms"][0]["rounds"][0]


def main():
    options, _ = parse(Options, sys.argv[1:], __doc__)
    rounds = {"old": [], "new": []}
    new = commit()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["git", "worktree", "add", "--detach", folder, options.old], cwd=ROOT, check=True
        )
        try:
            for i in range(options.rounds):
                rounds["old"].append(measure(folder, options.old_config or options.config, options))
                rounds["new"].append(measure(ROOT, options.config, options))
                print(f"round {i + 1} of {options.rounds}", file=sys.stderr)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)
    device = rounds["new"][0]["device"]
    print(
        f"{options.config}, {options.old} beside {new}, {device}, {options.rounds} rounds: medians"
    )
    for figure in FIGURES:
        old, now = ([r[figure] for r in rounds[which]] for which in ("old", "new"))
        ratios = [b / a for a, b in zip(old, now, strict=True)]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        medians = f"{statistics.median(old):>9,.4g} {statistics.median(now):>9,.4g}"
        print(f"{figure:<24} {medians} {statistics.median(ratios):.2f} ({span})")
    path = ROOT / "results" / "before_after.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    about = {
        "old": options.old,
        "new": new,
        "config": options.config,
        "text": Path(options.text).name,
    }
    write_json(path, [*found, about | {"rounds": rounds}])


if __name__ == "__main__":
    main()
