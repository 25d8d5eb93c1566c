"""Train a super tiny language model. Edit this file directly.

    python train.py                                   # config/demo.py: 3 minutes on a laptop's CPU
    python train.py config/stlm_10m.py --dataset=notes --resume=auto     # continues, or starts
    python train.py config/selfplay_game.py           # learns tic-tac-toe by playing itself
    torchrun --nproc_per_node=4 train.py config/stlm_50m.py

The text comes from data/DATASET, by default the newest one that prepare.py made. The run writes
into out/RUN:
    last.pt     weights, optimizers and position, to resume from
    best.pt     the weights with the lowest val loss so far (a game: the fewest lost lines)
    run.json    command, config, machine, status, result
    loss.png    the loss curves (not for a game)
    changes.diff    how the code differed from its commit, and new config files, if any
    log.jsonl   one JSON object per event, with step, elapsed (seconds of training) and time:
        train   bpb on the step's batch (objective=masked: on text with gaps; a game: loss), norm of
                the gradient, lr_scale (share of the peak learning rates), bytes_per_second, mfu,
                and the figures of the objective
        eval    bpb on eval_bytes of val, bytes, bytes_per_patch, overflow (share of rows with more
                than max_patches); a game: lost lines and scores
        start, end (the result), interrupted, failed
The last line printed is the result: how the final weights score on all of val (a game: how the
best weights play).
"""

import signal

# While the imports below run, Ctrl-C ends the command without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import platform
import shlex
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config import ROOT, Config, build, parse
from lib import files
from lib.commit import code_changes, commit
from lib.data import Data, bits_per_byte, newest_dataset
from lib.files import duration, load_checkpoint
from lib.machine import Machine, flops_per_symbol, parameter_table
from lib.objectives import make_objective
from lib.optim import active_optimizers, load_optimizers, make_optimizers
from lib.run import RUN_FILES, Clock, Log, draw_losses
from lib.selfplay import GameSource, SpinSource
from lib.threads import Threads
from model import STLM, ModelConfig, fitting_weights

LENGTH_KNOBS = {"max_steps", "max_seconds"}
# Knobs that may change when a run is resumed.
CHANGE_ON_RESUME = {
    *LENGTH_KNOBS,
    "eval_interval",
    "eval_bytes",
    "log_interval",
    "device",
    "compile",
    "data_dir",
    "micro_batch",
    "muon_lr",
    "adam_lr",
    "play_lr",
    "teacher",
}
# Knobs of this process: a resumed run takes them from the command, not from the checkpoint.
PROCESS_KNOBS = {"out_dir", "resume", "overwrite", "wandb"}
# Knobs in which the processes of a run may differ.
MAY_DIFFER = {"data_dir", "out_dir", "device", "compile", "micro_batch", "wandb"}
# Knobs that must be equal for weights to fit the model.
SHAPE_KNOBS = {field.name for field in dataclasses.fields(ModelConfig)}
SHAPE_KNOBS -= {"block_size", "max_patches", "match_window"}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(Config, argv, __doc__, "config/demo.py", either=LENGTH_KNOBS)
    if words:
        raise ValueError(
            f"unexpected argument {words[0]!r}: a config file ends in .py, "
            "everything else is --key=value; see --help"
        )
    # Two runs in one folder would destroy each other. Each process of a run holds its own lock.
    out = Path(cfg.out_dir)
    n_threads = torch.get_num_threads()
    rank = os.environ.get("RANK", "0")
    in_use = f"{out} is in use by another run: wait until it has ended, or give another --out_dir"
    try:
        with files.lock(out, in_use, suffix="" if rank == "0" else rank):
            return train(cfg, argv)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(n_threads)  # see Threads


def train(cfg, argv):
    out = Path(cfg.out_dir)
    config_file = cfg.file
    last_path = out / "last.pt"
    best_path = out / "best.pt"

    # start a new run, or resume the one in out_dir
    checkpoint = None
    if cfg.resume == "true" or (cfg.resume == "auto" and last_path.exists()):
        checkpoint = load_checkpoint(last_path)
        cfg = resumed_config(cfg, checkpoint, last_path)
    else:
        refuse_to_lose_a_run(cfg)
        if cfg.objective == "spin":
            cfg = shaped_as_trained(cfg)
    saved = checkpoint or {}
    step = saved.get("step", 0)

    # device, dtypes, processes. A resumed run keeps its dtypes, whatever the machine.
    machine = Machine(cfg.device, saved.get("dtype", cfg.dtype), saved.get("muon_dtype", "auto"))
    clock = Clock(cfg, machine, saved.get("elapsed", 0.0), saved.get("compile_seconds", 0.0))
    log = Log(out, machine.rank == 0, cfg.wandb)

    # The source supplies a batch for each step. The objective, a module around the model, turns
    # a batch into a loss.
    if cfg.objective != "game":
        find_dataset(cfg, machine, log)
        source = TextSource(cfg, machine)
    model = make_model(cfg, checkpoint).to(machine.device).train()
    if cfg.objective == "game":
        source = GameSource(cfg, model, machine)
    elif cfg.objective == "spin":
        source = SpinSource(cfg, model, machine, source)
    objective = make_objective(model, cfg)
    optimizers = make_optimizers(objective, cfg, machine.muon_dtype)
    if machine.world > 1:
        machine.check_agreement(facts_of(cfg, machine, source, objective, saved))
    if checkpoint:
        source.resume(checkpoint)
        with files.fitting_code(last_path, checkpoint):
            load_own_weights(objective, checkpoint.get("objective", {}))
            load_optimizers(optimizers, checkpoint["optimizers"])
        for line in changes_since(checkpoint, cfg, clock, objective):
            log.say(line)
    # of an earlier part of the run
    was_edited = str(saved.get("commit")).endswith("-dirty")
    checkpoint = saved = None  # free the memory

    # Compile, and wrap for several processes. `trained` is for training; `objective` and `model`
    # are the same modules unwrapped, for saving and evaluating. Compiling counts as training time.
    clock.start()
    trained, is_compiled = compile_and_wrap(objective, cfg, machine, source.micro_batch)
    clock.stop()
    if step == 0:
        clock.compile_seconds = clock.elapsed

    code = commit(config_file)
    if was_edited and not code.endswith("-dirty"):
        code += "-dirty"
    info = run_info(cfg, argv, code, machine, model, source, is_compiled)
    announce(info, cfg, source, model, step, log)
    # A resumed run repeats an evaluation that was due at the step it continues from.
    is_over = clock.is_over(step)
    is_due = step > 0 and (is_over or every(cfg.eval_interval, step))
    log.begin(info, step, repeats_eval=is_due, changes=code_changes(config_file))
    log.status("running", step, clock.elapsed)
    log.record("start", step, clock.elapsed)
    best, best_step = log.best(source.measure)
    flops = flops_per_symbol(model)
    # Games and spin's text are drawn outside the step that is compared.
    threads = Threads(machine, not is_compiled and cfg.objective not in ("game", "spin"), log.say)
    logged_step = step
    logged_elapsed = clock.elapsed

    def make_checkpoint():
        """All that a later process needs to continue as if nothing had happened."""
        return {
            "model": model.state_dict(),
            "objective": own_weights(objective),
            "teacher": getattr(objective, "fingerprint", ""),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "source": source.state(),
            "step": step,
            "elapsed": clock.elapsed,
            "compile_seconds": clock.compile_seconds,
            "dtype": machine.dtype_name,
            "muon_dtype": machine.muon_dtype_name,
            "config": info["config"],
            "parameters": info["parameters"],
            "data": info["data"],
            "commit": info["commit"],
        }

    with clock, log, steps_are_saved(make_checkpoint, last_path, machine):
        while True:
            # save and evaluate
            if is_due:
                clock.stop()
                # A signal may have come just now, or max_seconds may have passed.
                is_over = clock.is_over(step)
                checkpoint = make_checkpoint()
                save(checkpoint, last_path, machine, must=is_over)
                if not clock.interrupted:
                    result = source.evaluate(model)
                    log.record("eval", step, clock.elapsed, **result)
                    for line in source.evaluation_lines(result):
                        log.say(line)
                    newest = result[source.measure]
                    # somebody may have deleted the run's folder
                    if newest <= best or not best_path.exists():
                        only_weights = {"objective": {}, "optimizers": [], "source": {}}
                        if save(checkpoint | only_weights, best_path, machine):
                            best = newest
                            best_step = step
                checkpoint = None
                clock.start()
                logged_step = step
                logged_elapsed = clock.elapsed
            if is_over:
                break

            # learning rates and dropout of this step
            progress = clock.progress(step)
            active = active_optimizers(optimizers, progress)
            for optimizer in active:
                scale = lr_scale(progress, optimizer.phase, cfg, clock.compile_share())
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * scale
            model.dropout.rate.fill_(dropout_at(progress, cfg))
            # Dropout and masks depend on seed, step and rank alone: resuming needs no state.
            if cfg.dropout or cfg.objective == "masked":
                seed = (cfg.seed * 1_000_003 + step) * machine.world + machine.rank
                torch.manual_seed(seed % 2**63)

            # the step
            batch = source.at(step, progress)
            one_step = functools.partial(
                train_step,
                trained,
                active,
                batch,
                source.micro_batch,
                machine.autocast,
                cfg.grad_clip,
                progress,
            )
            with threads:
                loss, norm = one_step()
            step += 1
            clock.tick()
            threads.after_step(clock.elapsed, one_step, objective, active)
            is_over = clock.is_over(step)
            is_due = is_over or every(cfg.eval_interval, step)

            # log
            if is_due or step in (1, 10) or every(cfg.log_interval, step):
                figures = mean_over_processes(loss, objective, source, machine)
                loss = figures.pop("loss")
                norm = norm.item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    log.record("failed", step, clock.elapsed, loss=str(loss), norm=str(norm))
                    raise ValueError(not_finite(step, loss, norm, cfg, last_path))
                values = {"norm": norm, "lr_scale": scale}
                if cfg.objective == "game":
                    values = {"loss": loss} | values
                else:
                    # Objectives with other losses report the next byte's, to be comparable.
                    nats = figures.pop("next_byte", loss)
                    seconds = max(1e-9, clock.elapsed - logged_elapsed)
                    symbols_per_second = (step - logged_step) * cfg.batch_bytes / seconds
                    speed = round(symbols_per_second * source.bytes_per_symbol)
                    values = {"bpb": nats / math.log(2) / source.bytes_per_symbol} | values
                    values["bytes_per_second"] = speed
                    values["mfu"] = machine.mfu(symbols_per_second * flops)
                values |= figures
                log.record("train", step, clock.elapsed, **values)
                stays = is_due or step == 1 or not sys.stdout.isatty()
                line = train_line(step, values, clock.seconds_left(step))
                log.say(line, end="\n" if stays else "   \r")
                if step == 10 and cfg.max_steps > 10:
                    log.say(how_long(cfg.max_steps, clock))
                logged_step = step
                logged_elapsed = clock.elapsed

        # If a process left while another still saves, the connection would break.
        if machine.world > 1:
            dist.barrier()
        if clock.interrupted:
            log.record("interrupted", step, clock.elapsed)
            log.status("interrupted", step, clock.elapsed)
            log.say(f"stopped by a signal after step {step}; --resume continues from {last_path}")
            return 130

        # The result; a signal does not interrupt this. Print it before anything that can fail.
        result, verdict, verdict_step = source.conclude(model, out, step, clock.elapsed)
        log.say(best_line(best, best_step, newest, step, source.measure))
        log.say(f"weights and log are in {out}; python sample.py --model={out} uses them")
        log.say(" ".join(f"{key}={value}" for key, value in verdict.items()))
        log.record("end", step, clock.elapsed, **result)
        log.status(
            "finished",
            step,
            clock.elapsed,
            best_step=best_step,
            verdict=verdict,
            verdict_step=verdict_step,
        )

    if log.is_writer and cfg.objective != "game":
        with files.extra(f"{out / 'loss.png'} was not drawn"):
            draw_losses(log.events, out / "loss.png")
    return 0


# --- a step ---------------------------------------------------------------------------------------


def lr_scale(progress, phase, cfg, start=0.0):
    """Share of the peak learning rates at `progress`, a share of the run.

    Rates rise and fall within the optimizer's phase of the run; the rise begins at `start`.
    """
    first, last = phase
    progress = (progress - first) / (last - first)
    # 1e-3: the first step learns, too
    rise = (progress - start + 1e-3) / max(cfg.warmup, 1e-3)
    fall = (1 - progress) / max(cfg.decay, 1e-9)

    # 1) warm-up: a straight line up from 0, for `warmup` of the phase
    if rise < 1 and rise <= fall:
        return max(0.0, rise)
    # 2) decay: a straight line down to 0, for the last `decay` of the phase
    if fall < 1:
        return max(0.0, fall)
    # 3) in between
    return 1.0


def dropout_at(progress, cfg):
    """The share to drop at `progress`, a share of the run."""
    # 1) the same throughout
    if cfg.dropout_schedule == "constant":
        return cfg.dropout
    # 2) up from 0
    if cfg.dropout_schedule == "linear":
        return cfg.dropout * progress
    # 3) up from 0 and down again
    return cfg.dropout * (1 - abs(2 * progress - 1))


def train_step(model, optimizers, batch, micro_batch, autocast, grad_clip, progress=0.0):
    """One optimizer step on this process's batch, `micro_batch` rows at a time.

    batch: a tuple of tensors with a row per text, from the source
    optimizers: those that step now; gradients of all parameters are clipped

    Returns two tensors on the device: the loss, () or, with n figures that the objective watches,
    (1 + n,); and the norm of the gradient, ().
    """
    # A tensor, because a new number would trigger a recompile.
    progress = torch.full((), progress, device=batch[0].device)
    n_rows = len(batch[0])
    # a tuple of tensors for each micro-batch
    micro_batches = list(zip(*(tensor.split(micro_batch) for tensor in batch), strict=True))
    total = 0
    for i, tensors in enumerate(micro_batches):
        # Processes exchange gradients once per step, at the last micro-batch. This flag says so;
        # `model.no_sync()` would set it, too, but would make us write the pass twice.
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = i == len(micro_batches) - 1
        # Each row has the same weight, even if the last micro-batch has fewer rows.
        share = len(tensors[0]) / n_rows
        with autocast:
            loss = share * model(*tensors, progress=progress)
        # the loss itself comes first, then the watched figures
        loss.view(-1)[0].backward()
        total = total + loss.detach()

    # Without clipping the norm is still logged.
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        optimizer.step()
    # only after all steps: two optimizers may hold the same weights
    model.zero_grad(set_to_none=True)
    return total, norm


def compile_and_wrap(objective, cfg, machine, micro_batch):
    """-> (the module to train, whether it is compiled). Compiling is never fatal."""
    trained = objective
    is_compiled = False
    wanted = cfg.compile == "on" or (cfg.compile == "auto" and machine.device.type == "cuda")
    # game and spin also call the model outside the compiled pass
    if wanted and cfg.objective not in ("game", "spin"):
        # torch.compile does nothing before the first call: try a forward and a backward pass.
        try:
            trained = torch.compile(objective)
            idx = torch.zeros(micro_batch, cfg.block_size, dtype=torch.long, device=machine.device)
            progress = torch.zeros((), device=machine.device)
            with machine.autocast:
                loss = trained(idx, torch.zeros_like(idx), progress=progress)
            loss.sum().backward()
            is_compiled = True
        except Exception as e:
            reason = files.first_line(e)
            print(f"torch.compile failed ({reason}): training without it", file=sys.stderr)
            trained = objective
        objective.zero_grad(set_to_none=True)
    if machine.world > 1:
        devices = [machine.device.index] if machine.device.type == "cuda" else None
        trained = DistributedDataParallel(trained, device_ids=devices)
    return trained, is_compiled


# --- the source of text ---------------------------------------------------------------------------


class TextSource:
    """Batches of a dataset.

    The interface of a source (lib/selfplay.py has two others):
        at(step, progress)      this process's batch: a tuple of tensors with a row per text
        micro_batch             rows of a batch that go through the model at once
        evaluate(model)         the figures of an evaluation
        measure                 the name of the figure to minimise
        evaluation_lines(...)   these figures, as lines to print
        conclude(...)           the result: (entry of the log, figures of the last line, the step of
                                the weights)
        describe(...), about()  the data, as lines to print and as a dict to store
        files()                 its splits, {name: Data}
        figures()               figures of the newest batch, for the log
        state(), resume(...)    save tensors to last.pt, and restore them
    """

    measure = "bpb"

    def __init__(self, cfg, machine):
        self.cfg = cfg
        self.machine = machine
        self.train = Data(cfg, "train")
        self.val = Data(cfg, "val")
        self.bytes_per_symbol = self.train.bytes_per_symbol
        T = cfg.block_size
        n_symbols = len(self.train.symbols)
        if n_symbols < T + 1:
            shorter = max(1, n_symbols // 2)
            raise ValueError(
                f"{cfg.dataset}: expected at least {T + 1} symbols to train on, got {n_symbols}: "
                f"prepare more text, or add --block_size={shorter} --max_patches=0 "
                f"--batch_bytes={8 * shorter}"
            )
        self.n_rows = cfg.batch_bytes // T  # in a step, over all processes
        unit = T * machine.world
        if cfg.batch_bytes % unit != 0:
            # a resumed run keeps its batch_bytes
            nearest = max(1, round(cfg.batch_bytes / unit)) * unit
            fewer = max(n for n in range(1, machine.world + 1) if self.n_rows % n == 0)
            remedy = f"{fewer} processes" if cfg.resume else f"--batch_bytes={nearest}"
            raise ValueError(
                f"batch_bytes={cfg.batch_bytes} must be a multiple of {unit} (block_size={T} x "
                f"{machine.world} processes); try {remedy}"
            )
        self.share = self.n_rows // machine.world  # rows of this process
        self.micro_batch = machine.rows_per_pass(self.share, cfg.micro_batch, T)

    def rows(self, step):
        """This process's rows of a step, on its device: (n_rows / world, T + 1)."""
        machine = self.machine
        rows = self.train.batch(
            self.cfg.seed, step, self.n_rows, self.cfg.block_size, machine.rank, machine.world
        )
        rows = torch.from_numpy(rows)
        # From pinned memory the copy overlaps with earlier steps.
        if machine.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(machine.device, non_blocking=True)

    def at(self, step, progress):
        """The bytes to read and the bytes to predict, (n_rows / world, T) each."""
        rows = self.rows(step)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def evaluate(self, model):
        return bits_per_byte(
            model, self.val, self.cfg.block_size, self.cfg.eval_bytes, machine=self.machine
        )

    def evaluation_lines(self, result):
        line = f"val {result['bpb']:.4f} bpb on {result['bytes']:,} bytes"
        if self.cfg.pooling != "none":
            line += f" | {result['bytes_per_patch']:.2f} bytes/patch"
            line += f", {result['overflow']:.2%} of rows overflow"
        return [line]

    def conclude(self, model, out, step, elapsed):
        """Score the final weights on all of val, with a progress bar on a terminal."""
        if self.machine.rank == 0:
            print(
                f"evaluating all of val ({self.val.meta['val']['bytes'] / 1e6:,.1f} MB)", flush=True
            )
        total = len(self.val.symbols) // self.machine.world
        disable = None if self.machine.rank == 0 else True  # None: no bar if output goes to a file
        with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=disable) as bar:
            result = bits_per_byte(
                model, self.val, self.cfg.block_size, machine=self.machine, on_progress=bar.update
            )
        n_bytes = step * self.cfg.batch_bytes * self.bytes_per_symbol
        verdict = {
            "val_bpb": f"{result['bpb']:.4f}",
            "val_nats": f"{result['bpb'] * math.log(2):.4f}",
            "params": sum(p.numel() for p in model.parameters()),
            "steps": step,
            "seconds": f"{elapsed:.1f}",
            "bytes_per_second": round(n_bytes / elapsed),
        }
        return verdict, verdict, step

    def describe(self, step, model):
        T = self.cfg.block_size
        n = self.micro_batch
        world = self.machine.world
        lines = [
            f"a step: {self.cfg.batch_bytes:,} of {len(self.train.symbols):,} symbols = "
            f"{world} x {self.share} rows of {T} (processes x rows), at most {n} rows at once"
        ]
        # A low max_patches costs quality, and is easy to miss.
        idx, _ = self.at(step, 0.0)
        ends, _ = model.patch_ends(idx)
        n_patches = ends.sum(dim=1).float()
        if (n_patches > self.cfg.n_patches).float().mean() > 0.05:
            need = math.ceil(n_patches.quantile(0.99).item())
            lines.append(
                f"many rows have more patches than max_patches={self.cfg.n_patches}: "
                f"--max_patches={need} fits 99% of rows"
            )
        return lines

    def about(self):
        return self.train.meta

    def files(self):
        return {"train": self.train, "val": self.val}

    def figures(self):
        return {}

    def state(self):
        return {}

    def resume(self, checkpoint):
        """The data order follows from seed and step; only check that the data are the same."""
        self.train.verify(checkpoint)
        self.val.verify(checkpoint)


# --- before the first step ------------------------------------------------------------------------


def refuse_to_lose_a_run(cfg):
    """ValueError if starting would delete files that this command may not delete."""
    out = Path(cfg.out_dir)
    found = [name for name in RUN_FILES if (out / name).exists()]
    if cfg.resume == "auto" and was_saved(out):
        raise ValueError(
            f"{out} holds a run, but no last.pt to resume from: --overwrite starts again, "
            f"--init_from={out} with another --out_dir starts from its best.pt"
        )
    if found and not cfg.overwrite and not cfg.resume:
        raise ValueError(
            f"{out} already holds a run ({found[0]}): --resume continues it, "
            "--overwrite deletes it, --out_dir=DIR writes to another folder"
        )
    if found and "run.json" not in found:
        raise ValueError(
            f"{out} holds {found[0]} but no run.json; not deleting it: give another --out_dir"
        )
    if cfg.init_from and Path(cfg.init_from).resolve() == out.resolve():
        raise ValueError(f"init_from={cfg.init_from} would be deleted: give another --out_dir")


def was_saved(out):
    """Whether a run without last.pt once had it: an evaluation comes after the first save."""
    if (out / "best.pt").exists():
        return True
    log = out / "log.jsonl"
    return log.exists() and any(event["event"] == "eval" for event in files.read_log(log))


def resumed_config(cfg, checkpoint, path):
    """The config in the checkpoint, with the changes that this command asks for."""
    if "opponent" in checkpoint["config"]:
        raise ValueError(
            f"{path} was written by selfplay.py, now part of train.py: resume it with the "
            "selfplay.py of `git checkout 1254c3f`"
        )
    try:
        old = build(Config, files.known_values(checkpoint["config"], Config), "its config")
    except ValueError as e:
        raise ValueError(f"{path} cannot be used: {e}") from None
    asked = cfg.explicit
    if old.objective == "spin":  # its shape came from init_from, not from the config file
        asked = asked - (SHAPE_KNOBS | {"dataset", "data_dir"}) | cfg.from_command_line
    for key in sorted(asked - CHANGE_ON_RESUME - PROCESS_KNOBS):
        if getattr(cfg, key) != getattr(old, key):
            raise ValueError(
                f"{key}={getattr(cfg, key)!r}, but {path} has {getattr(old, key)!r}; "
                f"on resume only {', '.join(sorted(CHANGE_ON_RESUME))} may change"
            )
    changed = (cfg.from_command_line & CHANGE_ON_RESUME) | PROCESS_KNOBS
    if changed & LENGTH_KNOBS:
        changed |= LENGTH_KNOBS  # the other one is 0
    return dataclasses.replace(old, **{key: getattr(cfg, key) for key in changed})


def shaped_as_trained(cfg):
    """The config, but with the model's shape and the dataset of the run it starts from."""
    if not cfg.init_from:
        raise ValueError("objective=spin continues from a trained model: give --init_from=out/RUN")
    model, checkpoint, path = files.load_run(cfg.init_from)
    trained = checkpoint["config"] | dataclasses.asdict(model.cfg)
    if trained["tokenizer"] != "bytes":
        raise ValueError(
            f"{path} reads {trained['tokenizer']} tokens: objective=spin needs a byte model"
        )
    if files.game_of(checkpoint):
        trained["dataset"] = ""
    if not trained["dataset"] and not cfg.dataset:
        raise ValueError(f"{path} was not trained on a dataset: give --dataset=NAME")
    keys = (SHAPE_KNOBS | {"dataset", "data_dir"}) - cfg.from_command_line
    changes = {key: trained[key] for key in keys}
    if trained["pooling"] != cfg.pooling and "max_patches" not in cfg.from_command_line:
        changes["max_patches"] = 0  # the config file's value is for another kind of patch
    return dataclasses.replace(cfg, **changes)


def find_dataset(cfg, machine, log):
    """If no dataset is named, use the newest for this tokenizer.

    If there is none, make stdlib (of bytes, in one process); in any other case, ValueError.
    """
    if cfg.dataset:
        return
    newest = newest_dataset(cfg)
    if newest:
        cfg.dataset = newest
        log.say(f"dataset={newest}, the newest in {cfg.data_dir} for tokenizer={cfg.tokenizer}")
    elif cfg.tokenizer == "bytes" and machine.world == 1:
        import prepare

        log.say("no dataset yet; running: python prepare.py")
        prepare.main([f"--data_dir={cfg.data_dir}"])
        cfg.dataset = "stdlib"
    else:
        command = "python prepare.py"
        if cfg.tokenizer == "gpt2":
            command += f" SOURCE --tokenizer=gpt2 --gpt2_vocab={cfg.gpt2_vocab}"
        raise ValueError(f"no dataset for {cfg.tokenizer} in {cfg.data_dir}: run {command}")


def make_model(cfg, checkpoint):
    """The model with its initial weights: the checkpoint's, another run's best, or random ones."""
    torch.manual_seed(cfg.seed)
    model = STLM(cfg)
    model.dropout.is_on = cfg.dropout > 0
    if checkpoint:
        with files.fitting_code(f"{cfg.out_dir}/last.pt", checkpoint):
            model.load_state_dict(fitting_weights(model, checkpoint["model"]))
    elif cfg.init_from:
        other, _, path = files.load_run(cfg.init_from)
        for key in sorted(SHAPE_KNOBS):
            theirs = getattr(other.cfg, key)
            ours = getattr(cfg, key)
            if theirs != ours:
                raise ValueError(
                    f"expected {key}={theirs} as in {path}, got {ours}; give --{key}={theirs}"
                )
        model.load_state_dict(other.state_dict())
    return model


def own_weights(objective):
    """An objective's weights besides the model's. last.pt holds them, best.pt does not."""
    if not hasattr(objective, "model"):  # it is the model
        return {}
    return {k: w for k, w in objective.state_dict().items() if not k.startswith("model.")}


def load_own_weights(objective, weights):
    """The inverse of own_weights. ValueError if they belong to another objective."""
    # Up to commit 1254c3f only next_patch had any, and its head was stored alone.
    if set(weights) == {"weight"}:
        weights = {"head.weight": weights["weight"]}
    expected = own_weights(objective)
    if weights.keys() != expected.keys():
        raise ValueError(
            f"expected the objective's weights {sorted(expected)}, got {sorted(weights)}"
        )
    objective.load_state_dict(weights, strict=False)


def facts_of(cfg, machine, source, objective, saved):
    """What must be the same in all processes, {name: value}."""
    facts = {"dtype": machine.dtype_name, "Muon's dtype": machine.muon_dtype_name}
    facts["the step of last.pt"] = saved.get("step", 0)
    facts["the teacher's weights"] = getattr(objective, "fingerprint", "")
    for key, value in dataclasses.asdict(cfg).items():
        if key not in MAY_DIFFER:
            facts[f"--{key}"] = value
    for name, data in source.files().items():
        facts[f"the sha256 of data/{cfg.dataset}/{name}.bin"] = data.sha256
    paths = [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), ROOT / "config/__init__.py"]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        facts[f"the sha256 of {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def changes_since(checkpoint, cfg, clock, objective):
    """Lines about what is not as it was when the checkpoint was saved."""
    lines = []
    teacher = checkpoint.get("teacher", "")
    if teacher and teacher != getattr(objective, "fingerprint", ""):
        lines.append(
            f"note: the weights in teacher={cfg.teacher} have changed since this run was saved"
        )
    then = checkpoint["config"]
    if then["max_steps"]:
        progress = checkpoint["step"] / then["max_steps"]
    else:
        progress = clock.elapsed / then["max_seconds"]
    before = lr_scale(min(1, progress), (0, 1), cfg)
    now = lr_scale(min(1, clock.progress(checkpoint["step"])), (0, 1), cfg)
    if now > 2 * before + 0.01:
        lines.append(
            f"note: the run is longer than planned, so the learning rate jumps from {before:.0%} "
            f"to {now:.0%} of its peak; a run of this length from the start may end better"
        )
    return lines


def run_info(cfg, argv, code, machine, model, source, is_compiled):
    """The entries of run.json that do not change during the run."""
    return {
        "command": shlex.join(["train.py", *argv]),
        "config": dataclasses.asdict(cfg),
        "commit": code,
        "parameters": parameter_table(model),
        "data": source.about(),
        "device": machine.name,
        "why": f"{machine.why}, compile {'on' if is_compiled else 'off'}",
        "processes": machine.world,
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


# --- lines on the terminal, and small steps of the loop -------------------------------------------


def announce(info, cfg, source, model, step, log):
    log.say(f"{info['why']}\nparameters (the head is the embedding):")
    for part, n in info["parameters"].items():
        log.say(f"  {part:<14} {n:>12,}")
    for line in source.describe(step, model):
        log.say(line)
    length = f"{cfg.max_steps:,} steps" if cfg.max_steps else f"{cfg.max_seconds:g} seconds"
    log.say(f"training for {length}; Ctrl-C saves and stops")


def every(interval, step):
    return interval > 0 and step % interval == 0


def save(checkpoint, path, machine, must=False):
    """Write a checkpoint; -> whether that worked. An OSError only if it `must`: others follow."""
    if machine.rank > 0:
        return True
    size = sum(w.numel() * w.element_size() for w in checkpoint["model"].values())
    if checkpoint["optimizers"]:
        size *= 3
    try:
        files.write_atomically(path, functools.partial(torch.save, checkpoint), size)
    except OSError as e:
        if must:
            raise
        print(f"warning: {e}; training goes on and saves again later", file=sys.stderr)
        return False
    return True


@contextlib.contextmanager
def steps_are_saved(make_checkpoint, path, machine):
    """If the log cannot be written (a full disk), still save the steps since the last save."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            save(make_checkpoint(), path, machine, must=True)
        raise


def mean_over_processes(loss, objective, source, machine):
    """{name: mean} of the loss, the objective's watched figures and the source's figures."""
    names = ("loss", *getattr(objective, "watches", ()))
    figures = dict(zip(names, loss.flatten().tolist(), strict=False)) | source.figures()
    sums = machine.sum(list(figures.values()))
    return {name: x / machine.world for name, x in zip(figures, sums, strict=True)}


def not_finite(step, loss, norm, cfg, last_path):
    way = "--overwrite starts again"
    if last_path.exists():
        way = "--resume continues from the last good checkpoint"
    rates = f"--muon_lr={cfg.muon_lr / 3:.2g} --adam_lr={cfg.adam_lr / 3:.2g}"
    if cfg.objective in ("game", "spin"):
        rates += f" --play_lr={cfg.play_lr / 3:.2g}"
    return f"step {step}: loss {loss}, gradient norm {norm}; {way}; add lower rates: {rates}"


def train_line(step, values, seconds_left):
    """A train event of the log as a line: first the figures of every run, then the others."""
    parts = [f"step {step}"]
    if "bpb" in values:
        parts.append(f"train {values['bpb']:.4f} bpb")
    else:
        parts.append(f"loss {values['loss']:.4f}")
    parts.append(f"norm {values['norm']:.2f}")
    if "bytes_per_second" in values:
        parts.append(f"{values['bytes_per_second']:,.0f} bytes/s")
    if values.get("mfu"):
        parts.append(f"{values['mfu']:.1%} of peak")
    for name, value in values.items():
        if name not in ("bpb", "loss", "norm", "bytes_per_second", "mfu", "lr_scale"):
            parts.append(f"{name} {value:.3f}")
    parts.append(f"{duration(seconds_left)} left")
    line = " | ".join(parts)
    if step == 1 and seconds_left > 86400:
        line += " at this speed; --max_seconds=3600 trains for an hour"
    return line


def how_long(max_steps, clock):
    """A line that says how long a run of max_steps will take, after ten of them."""
    seconds_per_step = (clock.elapsed - clock.compile_seconds) / 10
    total = clock.compile_seconds + max_steps * seconds_per_step
    line = f"{max_steps:,} steps take about {duration(total)} on this machine"
    if total > 300:
        line += f"; --max_steps={max(1, round(180 / seconds_per_step))} takes 3 minutes"
    return line


def best_line(best, best_step, newest, step, measure):
    if best_step == step:
        return f"best.pt is from the last step: no evaluation had a lower {measure}"
    return (
        f"best.pt is from step {best_step} ({measure} {best:.4f} in that evaluation), "
        f"last.pt from step {step} ({newest:.4f})"
    )


if __name__ == "__main__":
    files.run_command(
        main,
        out_of_memory=(
            "set or halve --micro_batch (results stay the same), --games or --spin_steps, "
            "or train a smaller model"
        ),
    )
