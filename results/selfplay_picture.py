"""Draw results/selfplay.png from the logs in results/selfplay/.

The picture shows how many lines self-play and its controls lose over time.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent / "selfplay"
LINES = ("lost_first", "lost_second")
ARMS = {"self": ("against itself", "tab:red"), "random": ("against random moves", "tab:blue")}
ARMS |= {"none": ("reads random games", "tab:grey")}


def main():
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for opponent, (label, color) in ARMS.items():
        for i, path in enumerate(sorted(FOLDER.glob(f"tictactoe-{opponent}-seed*/log.jsonl"))):
            log = [json.loads(line) for line in path.read_text().splitlines()]
            evals = [e for e in log if e["event"] == "eval"]
            lines = [
                [int(e[key].split("/")[0]) / int(e[key].split("/")[1]) for e in evals]
                for key in LINES
            ]
            lost = [*lines, [e["perfect_second"][2] for e in evals]]
            for axes, values in zip(panels, lost, strict=True):
                minutes = [e["elapsed"] / 60 for e in evals]
                axes.plot(minutes, values, color=color, lw=1, alpha=0.8, label=None if i else label)
    titles = ("lines lost as first", "lines lost as second", "games lost as second to perfect play")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="minutes on one CPU core")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share, greedy")
    panels[1].legend(loc="lower left")
    figure.savefig(FOLDER.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
