"""A run: its step and clock, the signals it gets, and what it leaves in its folder. For train.py and selfplay.py."""

import contextlib
import dataclasses
import json
import math
import platform
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from lib import files
from lib.data import bits_per_byte
from lib.files import commit, duration, write_atomically, write_json
from lib.machine import flops_per_symbol, parameter_table
from lib.objectives import own_weights

OF_A_RUN = (
    "run.json",
    "last.pt",
    "best.pt",
    "log.jsonl",
    "eval.json",
    "loss.png",
)  # what it leaves in out_dir


class Run:
    """A run's step and clock, the signals it gets, and its folder: log.jsonl (a JSON object per event), run.json (what,
    where, status), checkpoints, loss.png. Every process has one; only that of rank 0 prints and writes."""

    script, measure = (
        "train.py",
        "bpb",
    )  # the script's name; the figure of an evaluation that should be low

    def __init__(self, cfg, machine, checkpoint):
        self.cfg, self.machine, self.writes, self.out = (
            cfg,
            machine,
            machine.rank == 0,
            Path(cfg.out_dir),
        )
        self.last_path, self.best_path = self.out / "last.pt", self.out / "best.pt"
        saved = checkpoint or {"step": 0, "elapsed": 0.0, "compile_seconds": None}
        self.step, self.elapsed = saved["step"], saved["elapsed"]
        self.compile_seconds = saved.get(
            "compile_seconds", 0.0
        )  # before the first step, all of them training time
        self.log, self.info, self.signals, self.usual, self.wandb = [], {}, [], 0.0, None
        self.interrupted = self.was_stopped = False
        if cfg.wandb and self.writes:
            try:
                import wandb
            except ImportError:
                raise ValueError(
                    f"wandb={cfg.wandb}: wandb is not installed; pip install wandb"
                ) from None
            self.wandb = wandb

    def say(self, text, end="\n"):
        if self.writes:
            print(text, end=end, flush=True)

    def begin(self, argv, model, objective, optimizers, batches, compiled):
        """Say what will run; make the folder, or cut a resumed run's log to the checkpoint's step."""
        cfg, machine, parameters = self.cfg, self.machine, parameter_table(model)
        self.model, self.objective, self.optimizers = model, objective, optimizers
        why = f"{machine.why}, compile {'on' if compiled else 'off'}"
        self.say(f"{why}\nparameters (the head is the embedding):")
        self.say("\n".join(f"  {part:<14} {n:>12,}" for part, n in parameters.items()))
        length = f"{cfg.max_steps:,} steps" if cfg.max_steps else f"{cfg.max_seconds:g} seconds"
        self.say(f"{batches}\ntraining for {length}; Ctrl-C saves and stops")
        patches = model.patch_ends(batches.at(self.step)[:, :-1])[0].sum(dim=1).float()
        if (patches > cfg.n_patches).float().mean() > 0.05:
            need = math.ceil(patches.quantile(0.99).item())
            self.say(
                f"many rows have more patches than max_patches={cfg.n_patches}: --max_patches={need} would do"
            )
        self.model_flops, self.batches = flops_per_symbol(model), batches
        versions = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        self.info = {
            "command": shlex.join([self.script, *argv]),
            "config": dataclasses.asdict(cfg),
            "commit": commit(),
        }
        self.info |= {
            "parameters": parameters,
            "data": batches.data.meta,
            "device": machine.name,
            "why": why,
        }
        self.info |= {
            "processes": machine.world,
            "threads": torch.get_num_threads(),
            "versions": versions,
        }
        self.compile_seconds = (
            self.elapsed if self.compile_seconds is None else self.compile_seconds
        )
        if self.writes:
            self.out.mkdir(parents=True, exist_ok=True)
            if not cfg.resume or not self.step:
                for name in OF_A_RUN:
                    (self.out / name).unlink(missing_ok=True)
            elif (path := self.out / "log.jsonl").exists():
                self.log = [
                    e
                    for e in files.read_log(path)
                    if e["step"] <= self.step and e["event"] != "end"
                ]
                write_atomically(
                    path,
                    lambda f: f.write("".join(json.dumps(e) + "\n" for e in self.log).encode()),
                )
        missed = not any(e["event"] == "eval" and e["step"] == self.step for e in self.log)
        due = self.step > 0 and (self.is_due(cfg.eval_interval) or self.done())
        self.owes_an_evaluation = machine.sum([due and missed and self.writes])[0] > 0
        self.best = min(
            (e[self.measure] for e in self.log if e["event"] == "eval"), default=math.inf
        )
        if self.wandb:
            about = {"project": cfg.wandb, "name": self.out.name, "config": self.info["config"]}
            self.wandb = self.wandb.init(**about, dir=self.out)
        self.status("running")
        self.record("start")

    # --- signals and the clock

    def __enter__(self):
        self.handlers = {
            s: signal.signal(s, self.on_signal) for s in (signal.SIGINT, signal.SIGTERM)
        }
        if hasattr(signal, "SIGCONT"):  # (not on Windows)
            went_on = lambda *_: setattr(self, "was_stopped", True)  # noqa: E731
            self.handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, went_on)
        self.start_clock()
        return self

    def __exit__(self, kind, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind:
            with contextlib.suppress(OSError):
                if issubclass(
                    kind, OSError
                ):  # a log that cannot be written need not cost the steps
                    self.save(self.last_path)
                self.status("failed")
        elif self.machine.world > 1:
            dist.barrier()  # a process that leaves while another still writes would break its connection

    def on_signal(self, number, frame):
        """The first signal ends the loop after the step; a second Ctrl-C ends it at once."""
        if self.signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signals.append(number)
        self.say("stopping after this step; Ctrl-C again stops at once")

    def start_clock(self):
        self.clock_from, self.logged = time.perf_counter(), (self.step, self.elapsed)

    def stop_clock(self):
        """Before what is no training time: evaluation and saving."""
        self.machine.synchronize()
        self.read_clock()

    def read_clock(self):
        """Add the time that has passed; every process follows rank 0's clock, and a signal that any of them got."""
        now = time.perf_counter()
        # when the process was stopped (SIGSTOP, Ctrl-Z) and went on, the time between was no training
        passed = min(now - self.clock_from, self.usual if self.was_stopped else math.inf)
        self.was_stopped, self.usual = False, passed
        elapsed = (
            self.elapsed + passed if self.machine.rank == 0 else 0.0
        )  # a sum with zeros: rank 0's
        self.elapsed, signals = self.machine.sum([elapsed, len(self.signals)])
        self.clock_from, self.interrupted = now, signals > 0

    def tick(self):
        """A step is done."""
        self.step += 1
        self.read_clock()

    def progress(self):
        """The share of the run that is done."""
        return (
            self.step / self.cfg.max_steps
            if self.cfg.max_steps
            else self.elapsed / self.cfg.max_seconds
        )

    def compiled_share(self):
        """The share of the run that compiling took: warm-up begins after it."""
        return self.compile_seconds / self.cfg.max_seconds if self.cfg.max_seconds else 0.0

    def done(self):
        return self.interrupted or (self.progress() >= 1 and self.step > 0)

    def is_due(self, interval):
        return interval > 0 and self.step % interval == 0

    # --- what it leaves

    def record(self, event, **values):
        if self.writes:
            entry = {
                "event": event,
                "step": self.step,
                "elapsed": self.elapsed,
                "time": time.time(),
            }
            self.log.append(entry | values)
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(self.log[-1]) + "\n")
        if self.wandb:
            numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            self.wandb.log(numbers | {"elapsed": self.elapsed}, step=self.step)

    def status(self, status, **values):
        self.info |= {
            "status": status,
            "step": self.step,
            "elapsed": self.elapsed,
            "updated": time.time(),
        } | values
        if self.writes:
            write_json(self.out / "run.json", self.info)

    def save(self, path):
        """Write a checkpoint; best.pt is without the optimizers and the objective's own weights."""
        if self.writes:
            optimizers, own = (
                (self.optimizers, own_weights(self.objective))
                if path == self.last_path
                else ([], {})
            )
            state = {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            } | own
            state |= {
                "step": self.step,
                "elapsed": self.elapsed,
                "compile_seconds": self.compile_seconds,
            }
            state |= {"dtype": self.machine.dtype_name, "muon_dtype": self.machine.muon_dtype_name}
            state |= {k: self.info[k] for k in ("config", "parameters", "data", "commit")}
            size = sum(p.numel() * p.element_size() for p in self.model.parameters()) * (
                3 if optimizers else 1
            )
            write_atomically(path, lambda f: torch.save(state, f), size)

    def log_step(self, loss, norm, lr_scale):
        """Log a step: its loss, given in nats, as bits per byte, and its gradient's norm. ValueError if not finite."""
        cfg, machine, data, step = self.cfg, self.machine, self.batches.data, self.step
        names = ("loss", *getattr(self.objective, "watches", ()))
        sums = machine.sum(loss.flatten().tolist())
        watched = {name: x / machine.world for name, x in zip(names, sums, strict=True)}
        loss, norm = watched.pop("loss"), norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.record("failed", loss=str(loss), norm=str(norm))
            go_on, anew = (
                "--resume goes on from the last good checkpoint",
                "--overwrite starts anew",
            )
            way = go_on if self.last_path.exists() else anew
            rates = f"--muon_lr={cfg.muon_lr / 3:.2g} --adam_lr={cfg.adam_lr / 3:.2g}"
            raise ValueError(
                f"step {step}: loss {loss}, gradient norm {norm}; {way}, with lower rates: {rates}"
            )
        symbols_per_second = (
            (step - self.logged[0]) * cfg.batch_bytes / max(1e-9, self.elapsed - self.logged[1])
        )
        speed, peak = symbols_per_second * data.bytes_per_symbol, machine.peak_flops()
        mfu = symbols_per_second * self.model_flops / peak / machine.world if peak else None
        bpb = (
            watched.pop("next_byte", loss) / math.log(2) / data.bytes_per_symbol
        )  # comparable between objectives
        self.record(
            "train",
            bpb=bpb,
            norm=norm,
            lr_scale=lr_scale,
            bytes_per_second=round(speed),
            mfu=mfu,
            **watched,
        )
        left = self.elapsed / self.progress() * max(0, 1 - self.progress())
        line = f"step {step} | train {bpb:.4f} bpb | norm {norm:.2f} | {speed:,.0f} bytes/s"
        line += f" | {mfu:.1%} of peak" if mfu else ""
        advice = (
            " at this speed; --max_seconds=3600 trains for an hour"
            if step == 1 and left > 86400
            else ""
        )
        stays = (
            self.done() or self.is_due(cfg.eval_interval) or step == 1 or not sys.stdout.isatty()
        )
        self.say(f"{line} | {duration(left)} left{advice}", end="\n" if stays else "   \r")
        self.logged = (step, self.elapsed)

    def evaluate(self, val_data):
        """Score an even spread of val, print and log it; keep the weights if they are the best so far."""
        result = bits_per_byte(
            self.model, val_data, self.cfg.block_size, self.cfg.eval_bytes, machine=self.machine
        )
        self.record("eval", **result)
        patches = f" | {result['bytes_per_patch']:.2f} bytes/patch, {result['overflow']:.2%} of rows overflow"
        self.say(
            f"val {result['bpb']:.4f} bpb on {result['bytes']:,} bytes"
            + patches * self.model.pooled
        )
        if result["bpb"] < self.best:
            self.best = result["bpb"]
            self.save(self.best_path)

    def interrupt(self):
        """Stopped by a signal. Returns the exit status."""
        self.record("interrupted")
        self.status("interrupted")
        self.say(
            f"stopped by a signal after step {self.step}; {self.last_path} is saved, --resume goes on"
        )
        return 130

    def finish(self, val_data):
        """The verdict: of the final weights on the whole val file. Returns the exit status."""
        self.say(f"evaluating all of val ({val_data.meta['val']['bytes'] / 1e6:,.1f} MB)")
        n, silent = (
            len(val_data.symbols) // self.machine.world,
            None if self.writes else True,
        )  # (None: off in a file)
        with tqdm(total=n, unit="B", unit_scale=True, leave=False, disable=silent) as bar:
            progress = {"machine": self.machine, "on_progress": bar.update}
            result = bits_per_byte(self.model, val_data, self.cfg.block_size, **progress)
        n_bytes, bpb = (
            self.step * self.cfg.batch_bytes * self.batches.data.bytes_per_symbol,
            result["bpb"],
        )
        verdict = {"val_bpb": f"{bpb:.4f}", "val_nats": f"{bpb * math.log(2):.4f}"}
        verdict |= {
            "params": self.info["parameters"]["total"],
            "steps": self.step,
            "seconds": f"{self.elapsed:.1f}",
        }
        verdict |= {"bytes_per_second": round(n_bytes / self.elapsed)}
        self.record("end", **verdict)
        self.status("finished", verdict=verdict)
        if self.writes:
            draw_losses(self.log, self.out / "loss.png")
        self.say(
            f"weights, log and loss.png are in {self.out}; python sample.py --out_dir={self.out} writes text"
        )
        self.say(" ".join(f"{k}={v}" for k, v in verdict.items()))
        return 0


def draw_losses(log, path):
    """Training loss as a running mean over a twentieth of the run (a step's says more about its text), and val loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    train, val = (
        np.array([(e["step"], e["bpb"]) for e in log if e["event"] == event])
        for event in ("train", "eval")
    )
    n = max(1, len(train) // 20)
    smooth = [train[max(0, i - n + 1) : i + 1, 1].mean() for i in range(len(train))]
    axes.plot(train[:, 0], train[:, 1], color="tab:blue", alpha=0.25, lw=1)
    axes.plot(
        train[:, 0], smooth, color="tab:blue", label=f"training {smooth[-1]:.3f} (running mean)"
    )
    axes.plot(
        val[:, 0],
        val[:, 1],
        color="tab:orange",
        marker="o",
        ms=3,
        label=f"sample of val {val[-1, 1]:.3f}",
    )
    axes.set_ylim(
        min(*smooth, *val[:, 1]) * 0.9, max(1.1 * max(val[:, 1]), 2 * min(smooth))
    )  # (not the first steps)
    axes.set(xlabel="step", ylabel="bits per byte", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
