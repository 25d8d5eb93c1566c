"""Train a super tiny language model. Edit this file directly.

    python train.py                                        # config/demo.py, 3 minutes on a laptop's CPU
    python train.py config/stlm_10m.py --dataset=notes --resume=auto     # goes on, or starts if there is nothing
    torchrun --nproc_per_node=4 train.py config/stlm_50m.py

Reads data/DATASET (see prepare.py; the newest by default). Writes out/RUN: last.pt (to go on from), best.pt (lowest val
loss), log.jsonl, run.json, loss.png. The last line on stdout is the verdict of the final weights on the whole val file.

log.jsonl has a JSON object per event, each with step, elapsed (seconds of training) and time (of day):
    train    bpb of the step's batch, norm (of the gradient), lr_scale (share of the peak rates), bytes_per_second, mfu;
             with objective=masked, bpb is that of text with gaps; next_patch adds variance and explained
    eval     bpb on eval_bytes of val, bytes, overflow (share of rows with more than max_patches), bytes_per_patch
    start, end (the verdict), interrupted, failed
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from config import Config, build, parse
from lib import files
from lib.data import Data, newest_dataset
from lib.files import load_checkpoint
from lib.machine import Machine
from lib.objectives import make_objective
from lib.optim import (
    load_optimizers,
    make_optimizers,
    prepare_for_training,
    set_schedules,
    train_step,
)
from lib.run import OF_A_RUN, Run
from model import STLM, ModelConfig

# On resume a command may change these of the run's knobs, and those that are its own.
MAY_CHANGE = {"max_steps", "max_seconds", "eval_interval", "eval_bytes", "log_interval"}
MAY_CHANGE |= {
    "device",
    "compile",
    "data_dir",
    "micro_batch",
    "muon_lr",
    "adam_lr",
    "play_lr",
    "teacher",
}
OF_THE_COMMAND = {"out_dir", "resume", "overwrite", "init_from", "wandb"}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(Config, argv, __doc__, "config/demo.py", either=("max_steps", "max_seconds"))
    if words:
        raise ValueError(
            f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help"
        )
    out = Path(cfg.out_dir)
    in_use = f"{out} is in use by another run: wait until it has ended, or give another --out_dir"
    with files.lock(
        out.with_name(f".{out.name}.lock{os.environ.get('RANK', '').lstrip('0')}"), in_use
    ):
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
    model, compiled = prepare_for_training(
        objective, machine, cfg.compile, batches.micro_batch, cfg.block_size
    )
    run.stop_clock()
    run.begin(argv, raw_model, objective, optimizers, batches, compiled)

    if run.owes_an_evaluation:  # a signal or a kill came between the checkpoint and its evaluation
        run.evaluate(val_data)

    with run:
        while not run.done():
            lr_scale = set_schedules(
                raw_model, optimizers, cfg, run.progress(), run.compiled_share()
            )
            if (
                cfg.dropout or cfg.objective == "masked"
            ):  # both follow from seed and step: resuming needs no state
                torch.manual_seed(
                    ((cfg.seed * 1_000_003 + run.step) * machine.world + machine.rank) % 2**63
                )
            batch, autocast, progress = batches.at(run.step), machine.autocast, run.progress()
            loss, norm = train_step(
                model, optimizers, batch, batches.micro_batch, autocast, cfg.grad_clip, progress
            )
            run.tick()

            # watching it
            pause = run.is_due(cfg.eval_interval) or run.done()
            if run.step == 1 or run.is_due(cfg.log_interval) or pause:
                run.log_step(loss, norm, lr_scale)
            if pause:
                run.stop_clock()
                run.save(run.last_path)
                if (
                    not run.interrupted
                ):  # the best weights are those of the lowest of these evaluations
                    run.evaluate(val_data)
                run.start_clock()

        if run.interrupted:
            return run.interrupt()
        return run.finish(val_data)


# --- before the first step -------------------------------------------------------------------------------------------


def go_on_or_start(cfg, may_change=MAY_CHANGE):
    """-> (config, None); on resume, that of the run in out_dir with this command's changes, and its checkpoint."""
    path = Path(cfg.out_dir) / "last.pt"
    if not cfg.resume or (cfg.resume == "auto" and not path.exists()):
        there = [name for name in OF_A_RUN if path.with_name(name).exists()]
        if there and not (cfg.overwrite or cfg.resume):
            ways = "--resume goes on with it, --overwrite throws it away, --out_dir=DIR avoids it"
            raise ValueError(f"{cfg.out_dir} already holds a run ({there[0]}): {ways}")
        if there and "run.json" not in there:
            raise ValueError(
                f"{cfg.out_dir}/{there[0]} is of no run, so it stays: give another --out_dir"
            )
        if cfg.init_from and Path(cfg.init_from).resolve() == Path(cfg.out_dir).resolve():
            raise ValueError(
                f"init_from={cfg.init_from} would be thrown away for out_dir: give another --out_dir"
            )
        return cfg, None
    checkpoint = load_checkpoint(path)
    if ("play_lr" in checkpoint["config"]) != hasattr(cfg, "play_lr"):
        raise ValueError(
            f"{path} is of {'train.py' if hasattr(cfg, 'play_lr') else 'selfplay.py'}: resume with that"
        )
    old = build(type(cfg), files.known_values(checkpoint["config"], type(cfg), path), path)
    for key in sorted(cfg.explicit - may_change - OF_THE_COMMAND):
        if getattr(cfg, key) != getattr(old, key):
            both = f"{key}={getattr(cfg, key)!r}, but {path} has {getattr(old, key)!r}"
            raise ValueError(f"{both}; on resume only {', '.join(sorted(may_change))} may change")
    changed = cfg.from_command_line & may_change | OF_THE_COMMAND
    changed |= {"max_steps", "max_seconds"} if changed & {"max_steps", "max_seconds"} else set()
    return dataclasses.replace(old, **{key: getattr(cfg, key) for key in changed}), checkpoint


def find_dataset(cfg, run):
    """Without a `dataset`, take the newest one for the config's tokenizer; without any, make the default one."""
    if cfg.dataset:
        return
    cfg.dataset = newest_dataset(cfg)
    if cfg.dataset:
        run.say(
            f"dataset={cfg.dataset}, the newest in {cfg.data_dir} for tokenizer={cfg.tokenizer}"
        )
    elif cfg.tokenizer == "bytes" and run.machine.world == 1:
        import prepare

        run.say("there is no dataset yet; running: python prepare.py")
        prepare.main([f"--data_dir={cfg.data_dir}"])
        cfg.dataset = "stdlib"
    else:
        how = f" SOURCE --tokenizer=gpt2 --gpt2_vocab={cfg.gpt2_vocab}" * (cfg.tokenizer == "gpt2")
        raise ValueError(
            f"no dataset for {cfg.tokenizer} in {cfg.data_dir}: python prepare.py{how} makes one"
        )


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
            ways = [f"--batch_bytes={max(1, round(cfg.batch_bytes / unit)) * unit}"] * (
                not cfg.resume
            )
            if not rest and self.n_rows % world == 0:
                ways += [
                    f"--micro_batch={max(n for n in range(1, self.micro_batch) if share % n == 0)}"
                ]
            elif not rest:
                ways += [f"{max(n for n in range(1, world) if self.n_rows % n == 0)} processes"]
            wrong = f"batch_bytes={cfg.batch_bytes} is no multiple of {units} = {unit}"
            raise ValueError(f"{wrong}; try {' or '.join(ways)}")

    def at(self, step):
        """This process's rows, (rows / world, T + 1) on its device."""
        m, cuda = self.machine, self.machine.device.type == "cuda"
        rows = self.data.batch(
            self.cfg.seed, step, self.n_rows, self.cfg.block_size, m.rank, m.world
        )
        rows = torch.from_numpy(rows).pin_memory() if cuda else torch.from_numpy(rows)
        return rows.to(
            m.device, non_blocking=cuda
        )  # (pinned, they are copied while the steps before still run)

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
        other, _, path = files.load_run(cfg.init_from, "best")
        for key in (
            f.name
            for f in dataclasses.fields(ModelConfig)
            if f.name not in ("block_size", "max_patches")
        ):
            if getattr(other.cfg, key) != getattr(cfg, key):
                raise ValueError(
                    f"{path} has {key}={getattr(other.cfg, key)}, this config {getattr(cfg, key)}"
                )
        model.load_state_dict(other.state_dict())
    model.may_drop = cfg.dropout > 0
    return model


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        full = isinstance(
            e, (MemoryError, torch.OutOfMemoryError)
        ) or "can't allocate memory" in str(e)
        if isinstance(e, RuntimeError) and not full:
            raise
        time.sleep(
            3 * (os.environ.get("RANK", "0") != "0")
        )  # where all fail alike, torchrun stops those that wait
        print(
            f"train.py: {'out of memory: halve --micro_batch (no result changes)' if full else e}",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print(
            "train.py: stopped at once; the newest checkpoint is whole, --resume goes on with it",
            file=sys.stderr,
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.exit(code)
