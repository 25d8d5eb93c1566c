"""results/selfplay.png: lost lines over time, self-play and its controls, from the logs in results/selfplay/."""

import json
from pathlib import Path

from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent / "selfplay"
ARMS = {"self": ("against itself", "tab:red"), "random": ("against random moves", "tab:blue")}
ARMS |= {"none": ("reads random games", "tab:grey")}


def main():
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for opponent, (label, color) in ARMS.items():
        for i, path in enumerate(sorted(FOLDER.glob(f"tictactoe-{opponent}-seed*/log.jsonl"))):
            log = [json.loads(line) for line in path.read_text().splitlines()]
            evals = [e for e in log if e["event"] == "eval"]
            for axes, key in zip(panels, ("lost_first", "lost_second"), strict=True):
                lost = [int(e[key].split("/")[0]) / int(e[key].split("/")[1]) for e in evals]
                minutes = [e["elapsed"] / 60 for e in evals]
                axes.plot(minutes, lost, color=color, lw=1, alpha=0.8, label=None if i else label)
    for axes, title in zip(panels, ("as first", "as second"), strict=True):
        axes.set(title=f"greedy, {title}, against every reply", xlabel="minutes on one CPU core")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the lines that it loses")
    panels[0].legend()
    figure.savefig(FOLDER.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
