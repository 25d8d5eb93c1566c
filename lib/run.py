"""Around the training loop: a clock that all processes share, a log, and a picture."""

import contextlib
import json
import math
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from lib.files import (
    first_line,
    read_json,
    read_log,
    silence_stdout,
    write_atomically,
    write_json,
)

RUN_FILES = (
    "run.json",
    "last.pt",
    "best.pt",
    "log.jsonl",
    "eval.json",
    "loss.png",
    "changes.diff",
)


class Clock:
    """Seconds of training, and the signals that end it. All processes agree on both.

    Evaluation, saving, and time in which the process was suspended do not count.
    """

    def __init__(self, cfg, machine, elapsed=0.0, compile_seconds=0.0):
        self.cfg = cfg
        self.machine = machine
        self.elapsed = elapsed
        self.compile_seconds = compile_seconds
        self.interrupted = False
        self.signals = []
        self.was_suspended = False
        self.last_step_seconds = 0.0

    def start(self):
        self.since = time.perf_counter()
        self.was_suspended = False

    def stop(self):
        self.machine.synchronize()
        self.add_time()

    def tick(self):
        """A step has ended."""
        self.last_step_seconds = self.add_time()

    def add_time(self):
        """Add the time since the last call, and return it."""
        now = time.perf_counter()
        passed = now - self.since
        if self.was_suspended:
            passed = min(passed, self.last_step_seconds)
            self.was_suspended = False
        self.since = now
        # All processes follow rank 0's clock, and stop if any of them got a signal.
        elapsed = self.elapsed + passed if self.machine.rank == 0 else 0.0
        self.elapsed, n_signals = self.machine.sum([elapsed, len(self.signals)])
        self.interrupted = n_signals > 0
        return passed

    def progress(self, step):
        """The share of the run that is done."""
        if self.cfg.max_steps:
            return step / self.cfg.max_steps
        return self.elapsed / self.cfg.max_seconds

    def compile_share(self):
        """The share of the run spent compiling. Warm-up begins after it."""
        if self.cfg.max_steps:
            return 0.0
        return self.compile_seconds / self.cfg.max_seconds

    def is_over(self, step):
        return self.interrupted or (step > 0 and self.progress(step) >= 1)

    def seconds_left(self, step):
        progress = self.progress(step)
        return self.elapsed / progress * max(0, 1 - progress)

    # `with clock:` the first SIGINT or SIGTERM ends the run after the current step

    def __enter__(self):
        self.handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.on_signal)
        if hasattr(signal, "SIGCONT"):  # not on Windows
            self.handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self.on_continue)
        self.start()
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def on_signal(self, number, frame):
        if self.signals and number == signal.SIGINT:
            way = "nothing is saved"
            if Path(self.cfg.out_dir, "last.pt").exists():
                way = "--resume continues from the newest checkpoint"
            raise KeyboardInterrupt(f"; {way}")
        self.signals.append(number)
        if self.machine.rank == 0:
            print("saving, then stopping; Ctrl-C again stops at once", flush=True)

    def on_continue(self, number, frame):
        """The process was suspended (Ctrl-Z) and goes on; the gap must not count."""
        self.was_suspended = True


class Log:
    """log.jsonl (one JSON object per event), run.json (config, machine, status) and stdout.

    Only rank 0 writes and prints; in other processes the methods leave files and stdout alone.
    wandb, if the user wants it, is an extra: if it fails later, training goes on without it.
    """

    def __init__(self, out, is_writer, wandb_project=""):
        self.out = out
        self.is_writer = is_writer
        self.events = []
        self.info = {}
        self.wandb = None
        self.wandb_project = wandb_project
        if wandb_project and is_writer:
            try:
                import wandb
            except ImportError:
                raise ValueError(
                    f"wandb={wandb_project}: wandb is not installed; pip install wandb"
                ) from None
            self.wandb = wandb

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            with contextlib.suppress(OSError):
                self.status(status, self.step, self.elapsed)

    def begin(self, info, step, repeats_eval, changes=""):
        """Delete the files of an earlier run; or, to resume after `step`, cut off the log there.

        repeats_eval: the evaluation at that step will be repeated, so its old result goes, too.
        changes: how the code differs from its commit, to keep as changes.diff
        """
        self.info = info
        if not self.is_writer:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "log.jsonl"
        if self.wandb:
            self.begin_wandb(step)
        if step == 0:
            for name in RUN_FILES:
                (self.out / name).unlink(missing_ok=True)
        elif path.exists():
            # "end", "interrupted" and "start" at this step are no longer true.
            kept_now = ("train",) if repeats_eval else ("train", "eval")
            for event in read_log(path):
                if event["step"] < step or (event["step"] == step and event["event"] in kept_now):
                    self.events.append(event)
            text = "".join(json.dumps(event) + "\n" for event in self.events)
            write_atomically(path, lambda file: file.write(text.encode()))
        if changes:
            self.keep_changes(changes.encode(errors="replace"))

    def keep_changes(self, changes):
        """Write changes.diff, after that of an earlier part of the run."""
        path = self.out / "changes.diff"
        earlier = path.read_bytes() if path.exists() else b""
        if changes not in earlier:
            write_atomically(path, lambda file: file.write(earlier + changes))

    def begin_wandb(self, step):
        """Start a run on wandb.ai or, on resume, continue the one whose id is in run.json."""
        run_id = None
        if step > 0:
            # run.json is no reason not to resume
            with contextlib.suppress(ValueError):
                run_id = read_json(self.out / "run.json", {"wandb_id": str}).get("wandb_id")
        try:
            self.wandb_run = self.wandb.init(
                project=self.wandb_project,
                name=self.out.resolve().name,
                config=self.info["config"],
                dir=self.out,
                id=run_id,
                resume="allow",
            )
        except Exception as e:
            raise ValueError(
                f"wandb={self.wandb_project}: {first_line(e).rstrip('.')}; or train without --wandb"
            ) from None
        self.info["wandb_id"] = self.wandb_run.id

    def best(self, measure):
        """-> (the lowest `measure` of all evaluations so far, its step)."""
        evals = [e for e in self.events if e["event"] == "eval" and measure in e]
        found = [(e[measure], e["step"]) for e in evals]
        return min(found, key=lambda pair: (pair[0], -pair[1]), default=(math.inf, 0))

    def say(self, text, end="\n"):
        if not self.is_writer:
            return
        try:
            print(text, end=end, flush=True)
        except OSError:  # as after `| head`: the run goes on without its reader
            silence_stdout()

    def record(self, event, step, elapsed, **values):
        self.step = step
        self.elapsed = elapsed
        if not self.is_writer:
            return
        entry = {"event": event, "step": step, "elapsed": elapsed, "time": time.time(), **values}
        self.events.append(entry)
        path = self.out / "log.jsonl"
        # If somebody deleted the folder, write the whole log again.
        new = [entry] if path.exists() else self.events
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in new)
        if self.wandb:
            self.record_on_wandb(event, step, elapsed, values)

    def record_on_wandb(self, event, step, elapsed, values):
        numbers = {"elapsed": elapsed}
        for key, value in values.items():
            if isinstance(value, (int, float)):
                numbers[f"{event}/{key}"] = value
        try:
            self.wandb_run.log(numbers, step=step)
        except Exception as e:
            self.wandb = None
            print(f"wandb: {first_line(e)}; going on without it", file=sys.stderr)

    def status(self, status, step, elapsed, **values):
        self.info.update(status=status, step=step, elapsed=elapsed, updated=time.time(), **values)
        if self.is_writer:
            write_json(self.out / "run.json", self.info)


def draw_losses(log, path):
    """Draw the training loss, its running mean over a twentieth of the run, and the val loss."""
    from matplotlib.figure import Figure

    train = np.array([(e["step"], e["bpb"]) for e in log if e["event"] == "train"])
    val = np.array([(e["step"], e["bpb"]) for e in log if e["event"] == "eval"])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = []
    if len(train) > 0:
        # The loss of a single step says more about its text than about the model.
        n = max(1, len(train) // 20)
        mean = np.convolve(train[:, 1], np.ones(n) / n, mode="valid")
        axes.plot(train[:, 0], train[:, 1], color="tab:blue", alpha=0.25, lw=1)
        label = f"training {mean[-1]:.3f} (mean)"
        axes.plot(train[n - 1 :, 0], mean, color="tab:blue", label=label)
        shown.append(mean)
    if len(val) > 0:
        label = f"sample of val {val[-1, 1]:.3f}"
        axes.plot(val[:, 0], val[:, 1], color="tab:orange", marker="o", ms=3, label=label)
        shown.append(val[:, 1])
    if not shown:  # somebody removed the log
        raise ValueError("log.jsonl has no train or eval event")
    # Leave out the first steps, which would flatten the rest.
    lowest = min(curve.min() for curve in shown)
    axes.set_ylim(0.9 * lowest, max(1.1 * shown[-1].max(), 2 * lowest))
    axes.set(xlabel="step", ylabel="bits per byte")
    # a name may hold dollar signs
    axes.set_title(path.resolve().parent.name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    # A font may lack the characters of a name. Then the title shows boxes.
    with warnings.catch_warnings(action="ignore"):
        figure.savefig(path, dpi=110)
