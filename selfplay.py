"""A model against itself: in a game, and against its own text. Edit this file directly.

    python selfplay.py config/selfplay_game.py                     # tic-tac-toe, 10 minutes on one CPU core
    python selfplay.py config/selfplay_game.py --play              # you against the trained model
    python selfplay.py config/selfplay_game.py --game=nim --entropy_end=0.1 --max_seconds=180 --out_dir=out/nim
    python selfplay.py config/selfplay_text.py --init_from=out/demo

A game is text (games.py). The model first reads random legal games, as in train.py; then it plays both sides and makes
likelier what won: REINFORCE, with the mean result at each ply as baseline and an entropy bonus over the legal moves.
Half of the games begin with 0 to 4 random moves, and in a quarter one side makes nothing else: without them it never
sees what its own play avoids. There is no pool of past selves and no critic: it gets there without. best.pt has the
weights that lose the fewest lines of all there are; they are judged at the end, on the last line of stdout.

On text the model, as it is at an iteration's beginning, continues real text; then it learns to tell the real from its
own (SPIN, arXiv 2401.01335). Both leave in out/RUN what train.py does.
"""

import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F

from config import Config, parse
from lib import files
from lib.data import Data
from lib.files import duration, load_run
from lib.games import GAMES, best_moves, draw, play, play_person, scores, uniform
from lib.machine import Machine
from lib.optim import load_optimizers, make_optimizers, set_schedules
from lib.run import Run
from model import PAD, ModelConfig
from train import MAY_CHANGE, Batches, go_on_or_start, make_model

# On text these knobs are those of the run to start from.
OF_THE_TRAINED = {f.name for f in dataclasses.fields(ModelConfig)} - {"block_size", "max_patches"}
OF_THE_TRAINED |= {"dataset", "data_dir"}


@dataclass
class SelfPlayConfig(Config):
    # self-play
    game: Literal["", "tictactoe", "nim"] = (
        ""  # what is played; empty: against its own text, from init_from
    )
    opponent: Literal["self", "none"] = "self"  # none: next-byte training only
    play_lr: float = 0.002  # peak learning rate of self-play (AdamW)
    # self-play in a game
    play: bool = False  # you against the best weights of out_dir, on the terminal
    games: int = 256  # played at once, in one iteration
    pretrain: float = 0.125  # share of the run that reads random games first
    openings: float = 0.5  # share of the games that begin with 0 to 4 random moves
    random_games: float = (
        0.25  # share of the games in which one side, either, makes random moves throughout
    )
    entropy: float = 0.1  # first weight of the entropy bonus; 0.02 collapses
    entropy_end: float = (
        0.025  # the least, to which it falls; long games want more, to judge their first moves late
    )
    # self-play on text
    prefix_bytes: int = 64  # of real text, which the opponent goes on from to the end of block_size
    spin_beta: float = 0.1  # how steeply the loss judges a log-ratio
    next_byte_weight: float = 1.0  # of the next-byte loss on the real text beside it

    def __post_init__(self):
        super().__post_init__()
        longest = math.inf if self.game else self.block_size - 6  # (`variety` needs 7 bytes)
        limits = {"games": (2, 10**6), "prefix_bytes": (1, longest), "spin_beta": (0, 100)}
        limits |= dict.fromkeys(("pretrain", "openings", "random_games", "play_lr"), (0, 1))
        limits |= dict.fromkeys(("entropy", "entropy_end"), (0, 10)) | {
            "next_byte_weight": (0, 100)
        }
        for key, (low, high) in limits.items():
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}={getattr(self, key)} must be between {low} and {high}")
        for key, value in (
            ("dropout", 0),
            ("objective", "next_byte"),
            ("teacher", ""),
            ("tokenizer", "bytes"),
        ):
            if getattr(self, key) != value:
                raise ValueError(
                    f"{key}={getattr(self, key)!r} is not for self-play: leave it at {value!r}"
                )


# --- in a game ------------------------------------------------------------------------------------------------------


class RandomGames:
    """Random legal games as text, batch_bytes at most: what is read before playing. In place of train.py's Batches."""

    def __init__(self, cfg, game):
        self.cfg, self.game, self.data = (
            cfg,
            game,
            SimpleNamespace(meta={"name": f"random games of {cfg.game}"}),
        )

    def at(self, step):
        n = max(1, self.cfg.batch_bytes // (self.game.n_plies * self.game.width))
        u = uniform(self.cfg.seed * 1_000_003 + step, n, self.game.n_plies, self.game.device)
        return play(self.game, None, None, self.game.legal, u).text

    def __str__(self):
        return f"an iteration: {self.cfg.games} games of {self.cfg.game} at once"


def next_byte_loss(model, text):
    """The mean loss in nats of predicting each byte of the games, (B, 1 + T); what follows a game's end is left out."""
    targets = text[:, 1:].masked_fill(text[:, 1:] == PAD, -100)  # (cross_entropy ignores -100)
    return F.cross_entropy(model.head(model.hidden(text[:, :-1])).flatten(0, 1), targets.flatten())


def lineup(game, cfg, step):
    """Who moves in an iteration's games, as `play` takes it; and whose moves are random (games,): 0 those of the first,
    1 those of the second, 2 nobody's: there the model plays itself, in some games after a random opening."""
    u = uniform(cfg.seed * 1_000_003 + step, cfg.games, 2 + game.n_plies, game.device)
    which, side, ply = u[:, :1], u[:, 1:2], torch.arange(game.n_plies, device=game.device)
    opening = torch.where(
        which < cfg.openings, 5 * which / max(cfg.openings, 1e-9), 0
    ).long()  # 0 to 4 plies
    random = torch.where(side < cfg.random_games, 2 * side / max(cfg.random_games, 1e-9), 2).long()
    return ((ply >= opening) & (ply % 2 != random), game.legal, u[:, 2:]), random[:, 0]


def reinforce_loss(game, model, games, group, entropy):
    """Make moves likelier that led to a better result than the mean at that ply of games of the same group (games,)
    (REINFORCE), and keep the choice among legal moves open. Only what the model chose has a gradient: no opening,
    nothing after the end."""
    x = model.hidden(games.text[:, : game.asked[-1] + 1])[
        :, game.asked
    ]  # (B, plies, E) when the mark has been read
    logits, byte = model.head(x), games.text[:, game.asked + 1]
    log_p = logits.log_softmax(dim=2).gather(2, byte[..., None])[..., 0]  # (B, plies)
    sign = 1 - 2 * (torch.arange(game.n_plies, device=game.device) % 2)
    reward, chosen = (
        games.result[:, None] * sign,
        games.chosen.float(),
    )  # of the one who moves: they sum to zero
    group = F.one_hot(group, 3).float()  # (games, 3): against random moves a win says less
    baseline = group @ ((group.T @ (reward * chosen)) / (group.T @ chosen).clamp(min=1))
    log_q = logits[..., game.moves].masked_fill(~games.legal, -1e9).log_softmax(dim=2)
    spread = -(log_q.exp() * log_q).sum(dim=2)  # nats of the choice among the legal moves
    return -(((reward - baseline) * log_p + entropy * spread) * chosen).sum() / chosen.sum().clamp(
        min=1
    )


class SelfPlayRun(Run):
    """A run of train.py in which a step is an iteration: games or texts, and then what is learnt from them."""

    script = "selfplay.py"

    def update(self, loss, optimizers):
        """One step down the loss. Returns the gradient's norm."""
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.cfg.grad_clip or math.inf
        )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def log_iteration(self, loss, norm, lr_scale, values):
        """Log an iteration; its `values` are functions, so that only what is logged is computed. ValueError if it is
        not finite."""
        loss, norm, values = (
            loss.item(),
            norm.item(),
            {key: value() for key, value in values.items()},
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.record("failed", loss=str(loss), norm=str(norm))
            way = (
                "--resume goes on from the last checkpoint"
                if self.last_path.exists()
                else "--overwrite starts anew"
            )
            way += ", with lower rates: --play_lr, and of reading --muon_lr and --adam_lr"
            raise ValueError(f"step {self.step}: loss {loss}, gradient norm {norm}; {way}")
        self.record("train", loss=loss, norm=norm, lr_scale=lr_scale, **values)
        left = duration(self.elapsed / self.progress() * max(0, 1 - self.progress()))
        shown = [
            f"step {self.step}",
            f"loss {loss:.4f}",
            *(f"{k} {v:.4f}" for k, v in values.items()),
            f"{left} left",
        ]
        stays = self.done() or self.is_due(self.cfg.eval_interval) or not sys.stdout.isatty()
        self.say(" | ".join(shown), end="\n" if stays else "   \r")


class GameRun(SelfPlayRun):
    """A run whose evaluations are scores in a game."""

    measure = "lost"

    def prepare(self, model, checkpoint):
        cfg, game = self.cfg, GAMES[self.cfg.game](self.machine.device)
        if cfg.block_size < (longest := game.n_plies * game.width):
            raise ValueError(
                f"block_size={cfg.block_size} is too short for {cfg.game}: give --block_size={longest}"
            )
        self.game, self.model, self.best_moves = game, model, best_moves(game)[0]
        self.reading = (
            1.0 if cfg.opponent == "none" else cfg.pretrain
        )  # the share of the run that reads
        self.readers, self.player = (
            make_optimizers(model, cfg, self.machine.muon_dtype),
            make_player(model, cfg),
        )
        return RandomGames(cfg, game), [*self.readers, self.player]

    def iterate(self):
        """Read a batch of random games, or play a batch of games and learn from it."""
        cfg, game, model, progress, values = self.cfg, self.game, self.model, self.progress(), {}
        if progress < self.reading:
            optimizers, progress = self.readers, progress / self.reading
            with self.machine.autocast:
                loss = next_byte_loss(model, self.batches.at(self.step))
        else:  # (each part has learning rates that rise and fall)
            optimizers, progress = [self.player], (progress - self.reading) / (1 - self.reading)
            with self.machine.autocast:
                players, group = lineup(game, cfg, self.step)
                games = play(game, model, *players)
                # the bonus falls: at the end it would outweigh mistakes that are seldom punished
                loss = reinforce_loss(
                    game, model, games, group, max(cfg.entropy_end, cfg.entropy * (1 - progress))
                )
            values["illegal"] = lambda: games.illegal.sum().item() / games.chosen.sum().item()
            values["first_won"] = lambda: (games.result > 0).float().mean().item()
            values["drawn"] = lambda: (games.result == 0).float().mean().item()
        lr_scale = set_schedules(model, optimizers, cfg, progress)
        return loss.detach(), self.update(loss, optimizers), lr_scale, values

    def evaluate(self):
        """Score the model, print and log it; keep the weights if none lost fewer lines so far."""
        found = scores(self.game, self.model, self.best_moves, self.cfg.seed)
        self.model.train()
        self.record("eval", **found)
        self.say(" ".join(f"{k}={v}" for k, v in self.verdict(found).items()))
        if found["lost"] <= self.best:
            self.best = found["lost"]
            self.save(self.best_path)

    def verdict(self, found):
        """The scores that the last line on stdout shows."""
        line = {"illegal": f"{found['illegal']:.4f}"} | {
            key: found[key] for key in ("lost_first", "lost_second")
        }
        line |= {
            f"win_random_{who}": f"{found[f'random_{who}'][0]:.3f}" for who in ("first", "second")
        }
        line |= {
            f"draw_perfect_{who}": f"{found[f'perfect_{who}'][1]:.3f}"
            for who in ("first", "second")
        }
        if self.cfg.game == "nim":  # (nobody draws)
            line["win_perfect_first"] = f"{found['perfect_first'][0]:.3f}"
        return line | {"seconds": f"{self.elapsed:.0f}"}

    def conclude(self):
        """The verdict: of the weights that lost the fewest lines, in games of another seed. Returns the exit status."""
        model, checkpoint, path = load_run(self.out, "best", self.game.device)
        found = scores(self.game, model, self.best_moves, self.cfg.seed + 1)
        self.record("end", best_step=checkpoint["step"], **found)
        self.status("finished", best_step=checkpoint["step"], verdict=self.verdict(found))
        self.say(
            f"{path} has the weights of step {checkpoint['step']}; --play lets you play against them"
        )
        self.say(" ".join(f"{k}={v}" for k, v in self.verdict(found).items()))
        return 0


# --- against its own text --------------------------------------------------------------------------------------------


@torch.no_grad()
def write_on(model, prefix, u):
    """Continue each prefix (B, N), all of them at once, by as many bytes as u (B, M) has numbers: (B, N + M)."""
    text, new, state = prefix, prefix, model.start(len(prefix))
    for number in u.unbind(dim=1):
        x, state = model.read(new, state, last=True)
        new = draw(model.head(x[:, 0]).softmax(dim=1), number)[:, None]
        text = torch.cat((text, new), dim=1)
    return text


def log_p(model, text):
    """The log-probability of each byte but the first: text (B, 1 + T) -> (B, T)."""
    return -F.cross_entropy(
        model.head(model.hidden(text[:, :-1])).mT, text[:, 1:], reduction="none"
    )


def spin_loss(player, opponent, beta):
    """Prefer real text to the opponent's (SPIN): the logistic loss of how much more the player raised the log-ratio of
    the real one. player and opponent are pairs (real, own) of log-probabilities (B, M) of the continuations' bytes."""
    real, own = ((new - old).sum(dim=1) for new, old in zip(player, opponent, strict=True))
    return F.softplus(-beta * (real - own)).mean()


def variety(text, n=6):
    """Of the n-grams of texts (B, T): the share that are different, and of each text's, the share that came before."""
    keys = (
        (text.unfold(1, n, 1) * 256 ** torch.arange(n, device=text.device))
        .sum(dim=2)
        .sort(dim=1)
        .values
    )
    return keys.unique().numel() / keys.numel(), (keys[:, 1:] == keys[:, :-1]).float().mean().item()


class TextRun(SelfPlayRun):
    """A run in which the model learns to tell real text from what it wrote at the iteration's beginning."""

    def prepare(self, model, checkpoint):
        self.model, self.player, self.newest = model, make_player(model, self.cfg), None
        train_data, self.val_data = Data(self.cfg, "train"), Data(self.cfg, "val")
        if checkpoint:
            train_data.verify(checkpoint)
            self.val_data.verify(checkpoint)
        return Batches(self.cfg, train_data, self.machine), [self.player]

    def iterate(self):
        """The opponent is the model as it is now: it writes, and its log-probabilities are kept; then the player takes
        a step for every micro_batch of rows."""
        cfg, model, n = self.cfg, self.model, self.cfg.micro_batch or self.batches.n_rows
        lr_scale, first = (
            set_schedules(model, [self.player], cfg, self.progress()),
            cfg.prefix_bytes - 1,
        )
        real, values, total, nats = self.batches.at(self.step), {}, 0.0, 0.0
        if cfg.opponent == "self":
            u = uniform(
                cfg.seed * 1_000_003 + self.step, len(real), real.size(1) - 1 - first, real.device
            )
            own = write_on(model, real[:, : first + 1], u)
            self.newest = real, own
            with torch.no_grad(), self.machine.autocast:
                opponent = [
                    [log_p(model, part)[:, first:] for part in text.split(n)]
                    for text in (real, own)
                ]
            for name, text in (("real", real), ("own", own)):
                values[f"distinct_{name}"] = lambda text=text: variety(text[:, first + 1 :])[0]
                values[f"repeated_{name}"] = lambda text=text: variety(text[:, first + 1 :])[1]
        parts = list(
            zip(real.split(n), own.split(n) if self.newest else real.split(n), strict=True)
        )
        for i, (real_part, own_part) in enumerate(parts):
            with self.machine.autocast:
                of_real = log_p(model, real_part)
                loss = -cfg.next_byte_weight * of_real.mean()
                if cfg.opponent == "self":
                    player = of_real[:, first:], log_p(model, own_part)[:, first:]
                    loss = loss + spin_loss(player, (opponent[0][i], opponent[1][i]), cfg.spin_beta)
            norm = self.update(loss, [self.player])
            total, nats = (
                total + loss.detach() / len(parts),
                nats - of_real.detach().mean() / len(parts),
            )
        values["bpb"] = lambda: nats.item() / math.log(2)
        if cfg.opponent == "self":
            values["spin"] = lambda: (
                total - cfg.next_byte_weight * nats
            ).item()  # ln 2: cannot tell them apart
        return total, norm, lr_scale, values

    def evaluate(self):
        """Bits per byte of val, as in train.py, and two texts side by side."""
        super().evaluate(self.val_data)
        for i in range(min(2, len(self.newest[0])) if self.newest else 0):
            prefix, at = self.newest[0][i, : self.cfg.prefix_bytes], self.cfg.prefix_bytes
            show = lambda text: repr(bytes(text.tolist()).decode(errors="replace"))  # noqa: E731
            self.say(f"  after {show(prefix[-40:])}")
            for name, text in zip(("real", "own"), self.newest, strict=True):
                self.say(f"    {name:<4} {show(text[i, at : at + 100])}")

    def conclude(self):
        return self.finish(self.val_data)


# --- the loop --------------------------------------------------------------------------------------------------------


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(
        SelfPlayConfig,
        argv,
        __doc__,
        "config/selfplay_game.py",
        either=("max_steps", "max_seconds"),
    )
    if words:
        raise ValueError(
            f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help"
        )
    if cfg.play:
        model, checkpoint, path = load_run(cfg.out_dir, "best")
        if checkpoint["config"].get("game") not in GAMES:
            raise ValueError(
                f"{path} plays no game: python selfplay.py config/selfplay_game.py trains one that does"
            )
        if "game" in cfg.from_command_line and cfg.game != checkpoint["config"]["game"]:
            raise ValueError(
                f"game={cfg.game}, but {path} plays {checkpoint['config']['game']}: leave --game out"
            )
        play_person(GAMES[checkpoint["config"]["game"]](), model)
        return 0
    if (
        world := int(os.environ.get("WORLD_SIZE", 1))
    ) > 1:  # before the lock, which only one of them gets
        raise ValueError(
            f"{world} processes, but self-play runs in one: start it with python, not torchrun"
        )
    out = Path(cfg.out_dir)
    in_use = f"{out} is in use by another run: wait until it has ended, or give another --out_dir"
    with files.lock(out.with_name(f".{out.name}.lock"), in_use):
        return learn(cfg, argv)


def make_player(model, cfg):
    player = torch.optim.AdamW(model.parameters(), lr=cfg.play_lr, weight_decay=0.0, fused=True)
    player.param_groups[0]["peak_lr"] = cfg.play_lr
    return player


def shaped_as_trained(cfg):
    """The config with the shape and the dataset of the run to start from."""
    if not cfg.init_from:
        raise ValueError(
            "on text, self-play goes on from a trained model: --init_from=out/RUN (a --game needs none)"
        )
    model, checkpoint, path = load_run(cfg.init_from, "best")
    trained = checkpoint["config"] | dataclasses.asdict(model.cfg)
    if trained["tokenizer"] != "bytes":
        raise ValueError(
            f"{path} reads {trained['tokenizer']} tokens: self-play on text needs a model of bytes"
        )
    if not (trained["dataset"] or cfg.dataset):
        raise ValueError(
            f"{path} was trained on no dataset: --dataset=NAME says which text it continues"
        )
    return dataclasses.replace(
        cfg, **{key: trained[key] for key in OF_THE_TRAINED - cfg.from_command_line}
    )


def learn(cfg, argv):
    if (
        not cfg.game
    ):  # what the config file says of the model's shape is not what this command asks for
        cfg.explicit -= OF_THE_TRAINED - cfg.from_command_line
    cfg, checkpoint = go_on_or_start(
        cfg, MAY_CHANGE - {"micro_batch"}
    )  # (on text, a step for each)
    if not (cfg.game or checkpoint):
        cfg = shaped_as_trained(cfg)
    saved = checkpoint or {}  # a resumed run keeps its dtypes, whatever the machine
    machine = Machine(cfg.device, saved.get("dtype", cfg.dtype), saved.get("muon_dtype", "auto"))
    run = (GameRun if cfg.game else TextRun)(cfg, machine, checkpoint)
    model = make_model(cfg, checkpoint).to(machine.device).train()
    batches, optimizers = run.prepare(model, checkpoint)
    if checkpoint:
        load_optimizers(optimizers, checkpoint["optimizers"])
    run.begin(argv, model, model, optimizers, batches, compiled=False)
    if run.owes_an_evaluation:  # a signal or a kill came between the checkpoint and its evaluation
        run.evaluate()

    with run:
        while not run.done():
            loss, norm, lr_scale, values = run.iterate()
            run.tick()

            # watching it
            pause = run.is_due(cfg.eval_interval) or run.done()
            if run.step == 1 or run.is_due(cfg.log_interval) or pause:
                run.log_iteration(loss, norm, lr_scale, values)
            if pause:
                run.stop_clock()
                run.save(run.last_path)
                if not run.interrupted:
                    run.evaluate()
                run.start_clock()

        return run.interrupt() if run.interrupted else run.conclude()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, EOFError):
        sys.exit(
            "selfplay.py: stopped at once; the newest checkpoint, if it was learning, is whole: --resume goes on"
        )
    except (MemoryError, RuntimeError) as e:
        if not isinstance(
            e, (MemoryError, torch.OutOfMemoryError)
        ) and "can't allocate memory" not in str(e):
            raise
        sys.exit("selfplay.py: out of memory: fewer --games, or a smaller --batch_bytes")
    except (ValueError, OSError) as e:
        sys.exit(f"selfplay.py: {e}")
