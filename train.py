"""Train a super tiny language model. Edit this file directly.

    python train.py                                        # config/demo.py, 3 minutes on a laptop's CPU
    python train.py config/stlm_10m.py --dataset=notes --resume=auto     # goes on, or starts if there is nothing
    torchrun --nproc_per_node=4 train.py config/stlm_50m.py

Reads data/DATASET (see prepare.py; the newest by default). Writes out/RUN: last.pt (to go on from), best.pt (lowest val
loss), log.jsonl, run.json, loss.png. The last line on stdout is the verdict of the final weights on the whole val file.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import common
from common import commit, duration, load_checkpoint, write_atomically, write_json
from config import Config, build, parse
from data import Data, bits_per_byte, newest_dataset
from machine import Machine, flops_per_symbol, parameter_table
from model import STLM, ModelConfig
from objectives import make_objective, own_weights
from optim import load_optimizers, make_optimizers, prepare_for_training, set_schedules, train_step

# On resume a command may change these of the run's knobs, and those that are its own.
MAY_CHANGE = {"max_steps", "max_seconds", "eval_interval", "eval_bytes", "log_interval"}
MAY_CHANGE |= {"device", "compile", "data_dir", "micro_batch", "muon_lr", "adam_lr"}
OF_THE_COMMAND = {"out_dir", "resume", "overwrite", "init_from"}
OF_A_RUN = ("run.json", "last.pt", "best.pt", "log.jsonl", "eval.json", "loss.png")  # what a run leaves in out_dir


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(Config, argv, __doc__, "config/demo.py", either=("max_steps", "max_seconds"))
    if words:
        raise ValueError(f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help")
    out = Path(cfg.out_dir)
    in_use = f"{out} is in use by another train.py: wait until it has ended, or give another --out_dir"
    with common.lock(out.with_name(f".{out.name}.lock{os.environ.get('RANK', '').lstrip('0')}"), in_use):
        return train(cfg, argv)


def train(cfg, argv):
    cfg, checkpoint = go_on_or_start(cfg)
    saved = checkpoint or {}  # a resumed run keeps its dtypes, whatever the machine
    machine = Machine(cfg.device, saved.get("dtype", cfg.dtype), saved.get("muon_dtype", "auto"))
    run = Run(cfg, machine, checkpoint)

    # data
    find_dataset(cfg, run)
    train_data, val_data = Data(cfg, "train"), Data(cfg, "val")
    if checkpoint:
        train_data.verify(checkpoint)
        val_data.verify(checkpoint)
    batches = Batches(cfg, train_data, machine)

    # raw_model is evaluated and sampled; objective is what it is trained for; model is that, compiled or wrapped
    raw_model = make_model(cfg, checkpoint).to(machine.device).train()
    objective = make_objective(raw_model, cfg, saved.get("objective"))
    optimizers = make_optimizers(objective, cfg, machine.muon_dtype)
    if checkpoint:
        load_optimizers(optimizers, checkpoint["optimizers"])
    run.start_clock()  # races count the time to compile
    model, compiled = prepare_for_training(objective, machine, cfg.compile, batches.micro_batch, cfg.block_size)
    run.stop_clock()
    run.begin(argv, raw_model, objective, optimizers, batches, compiled)

    if run.owes_an_evaluation:  # a signal or a kill came between the checkpoint and its evaluation
        run.evaluate(val_data)

    with run:
        while not run.done():
            lr_scale = set_schedules(raw_model, optimizers, cfg, run.progress(), run.compiled_share())
            if cfg.dropout or cfg.objective == "masked":  # both follow from seed and step: resuming needs no state
                torch.manual_seed(((cfg.seed * 1_000_003 + run.step) * machine.world + machine.rank) % 2**63)
            batch, autocast, progress = batches.at(run.step), machine.autocast, run.progress()
            loss, norm = train_step(model, optimizers, batch, batches.micro_batch, autocast, cfg.grad_clip, progress)
            run.tick()

            # watching it
            pause = run.is_due(cfg.eval_interval) or run.done()
            if run.step == 1 or run.is_due(cfg.log_interval) or pause:
                run.log_step(loss, norm, lr_scale)
            if pause:
                run.stop_clock()
                run.save(run.last_path)
                if not run.interrupted:  # the best weights are those of the lowest of these evaluations
                    run.evaluate(val_data)
                run.start_clock()

        if run.interrupted:
            return run.interrupt()
        return run.finish(bits_per_byte(raw_model, val_data, cfg.block_size, machine=machine))


# --- before the first step -------------------------------------------------------------------------------------------


def go_on_or_start(cfg):
    """-> (config, None); on resume, that of the run in out_dir with this command's changes, and its checkpoint."""
    path = Path(cfg.out_dir) / "last.pt"
    if not cfg.resume or (cfg.resume == "auto" and not path.exists()):
        there = [name for name in OF_A_RUN if path.with_name(name).exists()]
        if there and not (cfg.overwrite or cfg.resume):
            ways = "--resume goes on with it, --overwrite throws it away, --out_dir=DIR avoids it"
            raise ValueError(f"{cfg.out_dir} already holds a run ({there[0]}): {ways}")
        if there and "run.json" not in there:
            raise ValueError(f"{cfg.out_dir}/{there[0]} is of no run, so it stays: give another --out_dir")
        if cfg.init_from and Path(cfg.init_from).resolve() == Path(cfg.out_dir).resolve():
            raise ValueError(f"init_from={cfg.init_from} would be thrown away for out_dir: give another --out_dir")
        return cfg, None
    checkpoint = load_checkpoint(path)
    old = build(type(cfg), common.known_values(checkpoint["config"], type(cfg), path), path)
    for key in sorted(cfg.explicit - MAY_CHANGE - OF_THE_COMMAND):
        if getattr(cfg, key) != getattr(old, key):
            both = f"{key}={getattr(cfg, key)!r}, but {path} has {getattr(old, key)!r}"
            raise ValueError(f"{both}; on resume only {', '.join(sorted(MAY_CHANGE))} may change")
    changed = cfg.from_command_line & MAY_CHANGE | OF_THE_COMMAND
    changed |= {"max_steps", "max_seconds"} if changed & {"max_steps", "max_seconds"} else set()
    return dataclasses.replace(old, **{key: getattr(cfg, key) for key in changed}), checkpoint


def find_dataset(cfg, run):
    """Without a `dataset`, take the newest one for the config's tokenizer; without any, make the default one."""
    if cfg.dataset:
        return
    cfg.dataset = newest_dataset(cfg)
    if cfg.dataset:
        run.say(f"dataset={cfg.dataset}, the newest in {cfg.data_dir} for tokenizer={cfg.tokenizer}")
    elif cfg.tokenizer == "bytes" and run.machine.world == 1:
        import prepare

        run.say("there is no dataset yet; running: python prepare.py")
        prepare.main([f"--data_dir={cfg.data_dir}"])
        cfg.dataset = "stdlib"
    else:
        how = f" SOURCE --tokenizer=gpt2 --gpt2_vocab={cfg.gpt2_vocab}" * (cfg.tokenizer == "gpt2")
        raise ValueError(f"no dataset for {cfg.tokenizer} in {cfg.data_dir}: python prepare.py{how} makes one")


class Batches:
    """What each step reads: batch_bytes over all processes, at most micro_batch rows of block_size in one pass."""

    def __init__(self, cfg, data, machine):
        self.cfg, self.data, self.machine = cfg, data, machine
        T, world = cfg.block_size, machine.world
        if len(data.symbols) < T + 1:
            have = f"{cfg.dataset} has {len(data.symbols)} symbols to train on"
            raise ValueError(f"{have}; block_size={T} needs at least {T + 1}")
        self.n_rows, rest = divmod(cfg.batch_bytes, T)  # over all processes
        share = self.n_rows // world
        self.micro_batch = machine.rows_per_pass(share, cfg.micro_batch, T)
        if rest or self.n_rows % world or share % self.micro_batch:
            units = f"block_size={T} x {world} processes x micro_batch={self.micro_batch}"
            unit = self.micro_batch * world * T
            ways = [f"--batch_bytes={max(1, round(cfg.batch_bytes / unit)) * unit}"] * (not cfg.resume)
            if not rest and self.n_rows % world == 0:
                ways += [f"--micro_batch={max(n for n in range(1, self.micro_batch) if share % n == 0)}"]
            elif not rest:
                ways += [f"{max(n for n in range(1, world) if self.n_rows % n == 0)} processes"]
            wrong = f"batch_bytes={cfg.batch_bytes} is no multiple of {units} = {unit}"
            raise ValueError(f"{wrong}; try {' or '.join(ways)}")

    def at(self, step):
        """This process's rows, (rows / world, T + 1) on its device."""
        m, cuda = self.machine, self.machine.device.type == "cuda"
        rows = self.data.batch(self.cfg.seed, step, self.n_rows, self.cfg.block_size, m.rank, m.world)
        rows = torch.from_numpy(rows).pin_memory() if cuda else torch.from_numpy(rows)
        return rows.to(m.device, non_blocking=cuda)  # (pinned, they are copied while the steps before still run)

    def __str__(self):
        cfg, world, n = self.cfg, self.machine.world, self.micro_batch
        passes = f"{self.n_rows // n // world} x {n} rows x {cfg.block_size} x {world} processes"
        return f"a step: {passes} = {cfg.batch_bytes:,} of {len(self.data.symbols):,} symbols"


def make_model(cfg, checkpoint):
    """The model with its first weights: fresh, those of the checkpoint, or the best of another run."""
    torch.manual_seed(cfg.seed)
    model = STLM(cfg)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
    elif cfg.init_from:
        other, _, path = common.load_run(cfg.init_from, "best")
        for key in (f.name for f in dataclasses.fields(ModelConfig) if f.name not in ("block_size", "max_patches")):
            if getattr(other.cfg, key) != getattr(cfg, key):
                raise ValueError(f"{path} has {key}={getattr(other.cfg, key)}, this config {getattr(cfg, key)}")
        model.load_state_dict(other.state_dict())
    model.may_drop = cfg.dropout > 0
    return model


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """A run's step and clock, the signals it gets, and its folder: log.jsonl (a JSON object per event), run.json (what,
    where, status), checkpoints, loss.png. Every process has one; only that of rank 0 prints and writes."""

    script, measure = "train.py", "bpb"  # what runs; of an evaluation, what is best where it is lowest

    def __init__(self, cfg, machine, checkpoint):
        self.cfg, self.machine, self.writes, self.out = cfg, machine, machine.rank == 0, Path(cfg.out_dir)
        self.last_path, self.best_path = self.out / "last.pt", self.out / "best.pt"
        saved = checkpoint or {"step": 0, "elapsed": 0.0, "compile_seconds": None}
        self.step, self.elapsed = saved["step"], saved["elapsed"]
        self.compile_seconds = saved.get("compile_seconds", 0.0)  # before the first step, all of them training time
        self.log, self.info, self.signals, self.usual = [], {}, [], 0.0
        self.interrupted = self.was_stopped = False

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
            self.say(f"many rows have more patches than max_patches={cfg.n_patches}: --max_patches={need} would do")
        self.model_flops, self.batches = flops_per_symbol(model), batches
        versions = {"torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform()}
        self.info = {"command": shlex.join([self.script, *argv]), "config": dataclasses.asdict(cfg), "commit": commit()}
        self.info |= {"parameters": parameters, "data": batches.data.meta, "device": machine.name, "why": why}
        self.info |= {"processes": machine.world, "threads": torch.get_num_threads(), "versions": versions}
        self.compile_seconds = self.elapsed if self.compile_seconds is None else self.compile_seconds
        if self.writes:
            self.out.mkdir(parents=True, exist_ok=True)
            if not cfg.resume or not self.step:
                for name in OF_A_RUN:
                    (self.out / name).unlink(missing_ok=True)
            elif (path := self.out / "log.jsonl").exists():
                self.log = [e for e in common.read_log(path) if e["step"] <= self.step and e["event"] != "end"]
                write_atomically(path, lambda f: f.write("".join(json.dumps(e) + "\n" for e in self.log).encode()))
        missed = not any(e["event"] == "eval" and e["step"] == self.step for e in self.log)
        due = self.step > 0 and (self.is_due(cfg.eval_interval) or self.done())
        self.owes_an_evaluation = machine.sum([due and missed and self.writes])[0] > 0
        self.best = min((e[self.measure] for e in self.log if e["event"] == "eval"), default=math.inf)
        self.status("running")
        self.record("start")

    # --- signals and the clock

    def __enter__(self):
        self.handlers = {s: signal.signal(s, self.on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
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
                if issubclass(kind, OSError):  # a log that cannot be written need not cost the steps
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
        elapsed = self.elapsed + passed if self.machine.rank == 0 else 0.0  # a sum with zeros: rank 0's
        self.elapsed, signals = self.machine.sum([elapsed, len(self.signals)])
        self.clock_from, self.interrupted = now, signals > 0

    def tick(self):
        """A step is done."""
        self.step += 1
        self.read_clock()

    def progress(self):
        """The share of the run that is done."""
        return self.step / self.cfg.max_steps if self.cfg.max_steps else self.elapsed / self.cfg.max_seconds

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
            entry = {"event": event, "step": self.step, "elapsed": self.elapsed, "time": time.time()}
            self.log.append(entry | values)
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(self.log[-1]) + "\n")

    def status(self, status, **values):
        self.info |= {"status": status, "step": self.step, "elapsed": self.elapsed, "updated": time.time()} | values
        if self.writes:
            write_json(self.out / "run.json", self.info)

    def save(self, path):
        """Write a checkpoint; best.pt is without the optimizers and the objective's own weights."""
        if self.writes:
            optimizers, own = (self.optimizers, own_weights(self.objective)) if path == self.last_path else ([], {})
            state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]} | own
            state |= {"step": self.step, "elapsed": self.elapsed, "compile_seconds": self.compile_seconds}
            state |= {"dtype": self.machine.dtype_name, "muon_dtype": self.machine.muon_dtype_name}
            state |= {k: self.info[k] for k in ("config", "parameters", "data", "commit")}
            size = sum(p.numel() * p.element_size() for p in self.model.parameters()) * (3 if optimizers else 1)
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
            go_on, anew = "--resume goes on from the last good checkpoint", "--overwrite starts anew"
            way = go_on if self.last_path.exists() else anew
            rates = f"--muon_lr={cfg.muon_lr / 3:.2g} --adam_lr={cfg.adam_lr / 3:.2g}"
            raise ValueError(f"step {step}: loss {loss}, gradient norm {norm}; {way}, with lower rates: {rates}")
        symbols_per_second = (step - self.logged[0]) * cfg.batch_bytes / max(1e-9, self.elapsed - self.logged[1])
        speed, peak = symbols_per_second * data.bytes_per_symbol, machine.peak_flops()
        mfu = symbols_per_second * self.model_flops / peak / machine.world if peak else None
        bpb = watched.pop("next_byte", loss) / math.log(2) / data.bytes_per_symbol  # comparable between objectives
        self.record("train", bpb=bpb, norm=norm, lr_scale=lr_scale, bytes_per_second=round(speed), mfu=mfu, **watched)
        left = self.elapsed / self.progress() * max(0, 1 - self.progress())
        line = f"step {step} | train {bpb:.4f} bpb | norm {norm:.2f} | {speed:,.0f} bytes/s"
        line += f" | {mfu:.1%} of peak" if mfu else ""
        advice = " at this speed; --max_seconds=3600 trains for an hour" if step == 1 and left > 86400 else ""
        stays = self.done() or self.is_due(cfg.eval_interval) or step == 1 or not sys.stdout.isatty()
        self.say(f"{line} | {duration(left)} left{advice}", end="\n" if stays else "   \r")
        self.logged = (step, self.elapsed)

    def evaluate(self, val_data):
        """Score an even spread of val, print and log it; keep the weights if they are the best so far."""
        result = bits_per_byte(self.model, val_data, self.cfg.block_size, self.cfg.eval_bytes, machine=self.machine)
        self.record("eval", **result)
        patches = f" | {result['bytes_per_patch']:.2f} bytes/patch, {result['overflow']:.2%} of rows overflow"
        self.say(f"val {result['bpb']:.4f} bpb on {result['bytes']:,} bytes" + patches * self.model.pooled)
        if result["bpb"] < self.best:
            self.best = result["bpb"]
            self.save(self.best_path)

    def interrupt(self):
        """Stopped by a signal. Returns the exit status."""
        self.record("interrupted")
        self.status("interrupted")
        self.say(f"stopped by a signal after step {self.step}; {self.last_path} is saved, --resume goes on")
        return 130

    def finish(self, result):
        """The verdict: of the final weights on the whole val file. Returns the exit status."""
        n_bytes, bpb = self.step * self.cfg.batch_bytes * self.batches.data.bytes_per_symbol, result["bpb"]
        verdict = {"val_bpb": f"{bpb:.4f}", "val_nats": f"{bpb * math.log(2):.4f}"}
        verdict |= {"params": self.info["parameters"]["total"], "steps": self.step, "seconds": f"{self.elapsed:.1f}"}
        verdict |= {"bytes_per_second": round(n_bytes / self.elapsed)}
        self.record("end", **verdict)
        self.status("finished", verdict=verdict)
        if self.writes:
            draw_losses(self.log, self.out / "loss.png")
        self.say(f"weights, log and loss.png are in {self.out}; python sample.py --out_dir={self.out} writes text")
        self.say(" ".join(f"{k}={v}" for k, v in verdict.items()))
        return 0


def draw_losses(log, path):
    """Training loss as a running mean over a twentieth of the run (a step's says more about its text), and val loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    train, val = (np.array([(e["step"], e["bpb"]) for e in log if e["event"] == event]) for event in ("train", "eval"))
    n = max(1, len(train) // 20)
    smooth = [train[max(0, i - n + 1) : i + 1, 1].mean() for i in range(len(train))]
    axes.plot(train[:, 0], train[:, 1], color="tab:blue", alpha=0.25, lw=1)
    axes.plot(train[:, 0], smooth, color="tab:blue", label=f"training {smooth[-1]:.3f} (running mean)")
    axes.plot(val[:, 0], val[:, 1], color="tab:orange", marker="o", ms=3, label=f"sample of val {val[-1, 1]:.3f}")
    axes.set_ylim(min(*smooth, *val[:, 1]) * 0.9, max(1.1 * max(val[:, 1]), 2 * min(smooth)))  # (not the first steps)
    axes.set(xlabel="step", ylabel="bits per byte", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        full = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e)
        if isinstance(e, RuntimeError) and not full:
            raise
        time.sleep(3 * (os.environ.get("RANK", "0") != "0"))  # where all fail alike, torchrun stops those that wait
        print(f"train.py: {'out of memory: halve --micro_batch (no result changes)' if full else e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("train.py: stopped at once; the newest checkpoint is whole, --resume goes on with it", file=sys.stderr)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.exit(code)
