"""A model against itself: it learns a game from nothing but playing it. Edit this file directly.

    python selfplay.py config/selfplay_game.py                     # tic-tac-toe, 10 minutes on one CPU core
    python selfplay.py config/selfplay_game.py --game=nim --max_seconds=180
    python selfplay.py config/selfplay_game.py --play              # you against the trained model

A game is text: `X5 O1 X9 ...`. The rules type marks and spaces; the model chooses each move among all 256 bytes, and an
illegal one loses. It first reads random legal games (the next byte, as in train.py), then plays both sides and makes
what won likelier: REINFORCE, with the batch's mean result at each ply as baseline and an entropy bonus over the legal
moves. Half of the games begin with a few random moves; without them it never sees what its own play avoids. A pool of
past selves and a critic bought nothing, so there is neither.

The measure is exact: the greedy model against every reply there is; `lost_second=0/561` proves that it cannot be beaten
as second. Writes out/RUN as train.py does; best.pt has the weights with the fewest lost lines, which are judged at the
end, on the last line of stdout.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F

import common
from common import duration, load_run
from config import Config, parse
from games import GAMES, SPACE, best_moves, play, scores, uniform
from machine import Machine
from model import EOT, PAD
from optim import load_optimizers, make_optimizers, set_schedules
from train import Run, go_on_or_start, make_model


@dataclass
class SelfPlayConfig(Config):
    # self-play in a game
    game: Literal["tictactoe", "nim"] = "tictactoe"  # what is played
    play: bool = False  # you against the best weights of out_dir, on the terminal
    opponent: Literal["self", "random", "none"] = "self"  # random: random moves; none: only read random games
    games: int = 256  # played at once, in one iteration
    pretrain: float = 0.125  # share of the run that reads random games first
    play_lr: float = 0.001  # peak learning rate (AdamW) of what follows
    openings: float = 0.5  # share of the games that begin with 0 to 4 random moves
    entropy: float = 0.1  # weight of the entropy bonus

    def __post_init__(self):
        super().__post_init__()
        for key, low, high in (("games", 2, 1e6), ("pretrain", 0, 1), ("openings", 0, 1), ("entropy", 0, 10)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}={getattr(self, key)} must be between {low} and {high:g}")


# --- learning --------------------------------------------------------------------------------------------------------


class RandomGames:
    """Random legal games as text, batch_bytes at most: what is read before playing. In place of train.py's Batches."""

    def __init__(self, cfg, game):
        self.cfg, self.game, self.data = cfg, game, SimpleNamespace(meta={"name": f"random games of {cfg.game}"})

    def at(self, step):
        n = max(1, self.cfg.batch_bytes // (self.game.n_plies * self.game.width))
        u = uniform(self.cfg.seed * 1_000_003 + step, n, self.game.n_plies, self.game.device)
        return play(self.game, None, None, self.game.legal, u).text

    def __str__(self):
        return f"an iteration: {self.cfg.games} games of {self.cfg.game} at once"


def update(model, loss, optimizers, grad_clip):
    """One step down the loss. Returns the gradient's norm."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def next_byte_loss(model, text):
    """The mean loss in nats of predicting each byte of the games, (B, 1 + T); what follows a game's end is left out."""
    targets = text[:, 1:].masked_fill(text[:, 1:] == PAD, -100)  # (cross_entropy ignores -100)
    return F.cross_entropy(model.head(model.hidden(text[:, :-1])).flatten(0, 1), targets.flatten())


def lineup(game, cfg, step):
    """Who moves in an iteration's games, as `play` takes it: the model itself, in some of them after a random opening;
    or the model against random moves, about half of the time as first."""
    u = uniform(cfg.seed * 1_000_003 + step, cfg.games, 1 + game.n_plies, game.device)
    ply, u, which = torch.arange(game.n_plies, device=game.device), u[:, 1:], u[:, :1]
    if cfg.opponent == "random":
        return ply % 2 == (which < 0.5), game.legal, u
    opening = torch.where(which < cfg.openings, 5 * which / max(cfg.openings, 1e-9), 0).long()  # 0 to 4 plies
    return ply >= opening, game.legal, u


def reinforce_loss(game, model, games, entropy):
    """Make moves likelier that led to a better result than the batch's mean at that ply (REINFORCE), and keep the
    choice among legal moves open. Only what the model chose has a gradient: no opening, nothing after the end."""
    x = model.hidden(games.text[:, : game.asked[-1] + 1])[:, game.asked]  # (B, plies, E) when the mark has been read
    logits, byte = model.head(x), games.text[:, game.asked + 1]
    log_p = logits.log_softmax(dim=2).gather(2, byte[..., None])[..., 0]  # (B, plies)
    sign = 1 - 2 * (torch.arange(game.n_plies, device=game.device) % 2)
    reward, chosen = games.result[:, None] * sign, games.chosen.float()  # of the one who moves: they sum to zero
    baseline = (reward * chosen).sum(dim=0) / chosen.sum(dim=0).clamp(min=1)
    log_q = logits[..., game.moves].masked_fill(~games.legal, -1e9).log_softmax(dim=2)
    spread = -(log_q.exp() * log_q).sum(dim=2)  # nats of the choice among the legal moves
    return -(((reward - baseline) * log_p + entropy * spread) * chosen).sum() / chosen.sum().clamp(min=1)


class GameRun(Run):
    """A run of train.py whose evaluations are scores in a game."""

    script, measure = "selfplay.py", "lost"

    def log_iteration(self, loss, norm, lr_scale, games):
        """Log an iteration and, if `games` were played in it, how they went. ValueError if its loss is not finite."""
        loss, norm = loss.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.record("failed", loss=str(loss), norm=str(norm))
            raise ValueError(f"step {self.step}: loss {loss}, gradient norm {norm}; try a lower --play_lr or --muon_lr")
        line, values = f"step {self.step} | loss {loss:.4f} | norm {norm:.2f}", {}
        if games:
            values = {"first_won": (games.result > 0).double().mean().item()}
            values |= {"draws": (games.result == 0).double().mean().item()}
            values |= {"illegal": games.illegal.sum().item() / games.chosen.sum().item()}
            line += " | first won {first_won:.1%}, draws {draws:.1%} | illegal moves {illegal:.2%}".format(**values)
        self.record("train", loss=loss, norm=norm, lr_scale=lr_scale, **values)
        left = duration(self.elapsed / self.progress() * max(0, 1 - self.progress()))
        stays = self.done() or self.is_due(self.cfg.eval_interval) or not sys.stdout.isatty()
        self.say(f"{line} | {left} left", end="\n" if stays else "   \r")

    def evaluate(self, game, best):
        """Score the model, print and log it; keep the weights if none lost fewer lines so far."""
        found = scores(game, self.model, best, self.cfg.seed)
        self.model.train()
        self.record("eval", **found)
        self.say(" ".join(f"{k}={v}" for k, v in self.verdict(found).items()))
        if found["lost"] <= self.best:
            self.best = found["lost"]
            self.save(self.best_path)

    def verdict(self, found):
        line = {"illegal": f"{found['illegal']:.4f}", "lost_first": found["lost_first"]}
        line |= {"lost_second": found["lost_second"]}
        line |= {f"win_random_{who}": f"{found[f'random_{who}'][0]:.3f}" for who in ("first", "second")}
        line |= {f"draw_perfect_{who}": f"{found[f'perfect_{who}'][1]:.3f}" for who in ("first", "second")}
        if self.cfg.game == "nim":  # (nobody draws)
            line["win_perfect_first"] = f"{found['perfect_first'][0]:.3f}"
        return line | {"seconds": f"{self.elapsed:.0f}"}

    def finish(self, game, best):
        """The verdict: of the weights that lost the fewest lines, in games of another seed. Returns the exit status."""
        model, checkpoint, path = load_run(self.out, "best", game.device)
        found = scores(game, model, best, self.cfg.seed + 1)
        self.record("end", best_step=checkpoint["step"], **found)
        self.status("finished", verdict=self.verdict(found))
        self.say(f"{path} has the weights of step {checkpoint['step']}; --play lets you play against them")
        self.say(" ".join(f"{k}={v}" for k, v in self.verdict(found).items()))
        return 0


# --- the loop --------------------------------------------------------------------------------------------------------


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(SelfPlayConfig, argv, __doc__, "config/selfplay_game.py", either=("max_steps", "max_seconds"))
    if words:
        raise ValueError(f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help")
    if cfg.play:
        return play_person(cfg.out_dir)
    out = Path(cfg.out_dir)
    in_use = f"{out} is in use by another run: wait until it has ended, or give another --out_dir"
    with common.lock(out.with_name(f".{out.name}.lock"), in_use):
        return learn(cfg, argv)


def learn(cfg, argv):
    cfg, checkpoint = go_on_or_start(cfg)
    saved = checkpoint or {}  # a resumed run keeps its dtypes, whatever the machine
    machine = Machine(cfg.device, saved.get("dtype", cfg.dtype), saved.get("muon_dtype", "auto"))
    if machine.world > 1:
        raise ValueError(f"{machine.world} processes, but self-play runs in one: start it with python, not torchrun")
    run, game = GameRun(cfg, machine, checkpoint), GAMES[cfg.game](machine.device)
    if cfg.block_size < (longest := game.n_plies * game.width):
        raise ValueError(f"block_size={cfg.block_size} is too short for {cfg.game}: --block_size={longest} would do")
    random_games, best = RandomGames(cfg, game), best_moves(game)[0]
    reading = 1.0 if cfg.opponent == "none" else cfg.pretrain  # the share of the run that reads

    # reading random games has train.py's optimizers, playing another one
    model = make_model(cfg, checkpoint).to(machine.device).train()
    readers = make_optimizers(model, cfg, machine.muon_dtype)
    player = torch.optim.AdamW(model.parameters(), lr=cfg.play_lr, weight_decay=0.0, fused=True)
    player.param_groups[0]["peak_lr"] = cfg.play_lr
    if checkpoint:
        load_optimizers([*readers, player], checkpoint["optimizers"])
    run.begin(argv, model, [*readers, player], random_games, compiled=False)
    if run.owes_an_evaluation:  # a signal or a kill came between the checkpoint and its evaluation
        run.evaluate(game, best)

    with run:
        while not run.done():
            reads = run.progress() < reading  # then each of the two has learning rates that rise and fall
            progress = run.progress() / reading if reads else (run.progress() - reading) / (1 - reading)
            lr_scale = set_schedules(model, readers if reads else [player], cfg, progress)
            games = None if reads else play(game, model, *lineup(game, cfg, run.step))
            with machine.autocast:
                if reads:
                    loss = next_byte_loss(model, random_games.at(run.step))
                else:
                    loss = reinforce_loss(game, model, games, cfg.entropy)
            norm = update(model, loss, readers if reads else [player], cfg.grad_clip)
            run.tick()

            # watching it
            pause = run.is_due(cfg.eval_interval) or run.done()
            if run.step == 1 or run.is_due(cfg.log_interval) or pause:
                run.log_iteration(loss, norm, lr_scale, games)
            if pause:
                run.stop_clock()
                run.save(run.last_path)
                if not run.interrupted:
                    run.evaluate(game, best)
                run.start_clock()

        return run.interrupt() if run.interrupted else run.finish(game, best)


# --- you against it --------------------------------------------------------------------------------------------------


def play_person(folder):
    """A person against the greedy model of a run, on the terminal."""
    model, checkpoint, path = load_run(folder, "best")
    if checkpoint["config"].get("game") not in GAMES:
        raise ValueError(f"{path} plays no game: python selfplay.py config/selfplay_game.py trains one that does")
    game = GAMES[checkpoint["config"]["game"]]()
    begins, text, state, over = input("Do you begin? [y/n] ").lower().startswith("y"), [EOT], game.start(1), False
    while not over:
        yours = (len(text) % (2 * game.width) == 1) == begins
        text += game.mark(state)[0].tolist()
        if yours:
            print(game.show(state[0]))
            legal = [chr(byte) for byte in game.moves[game.legal(state)[0]].tolist()]
            while (answer := input(f"your move ({' '.join(legal)}): ").strip()) not in legal:
                print(f"{answer!r} is no legal move")
            byte = torch.tensor([ord(answer)])
        else:
            byte = model.head(model.read(torch.tensor([text]), model.start(1), last=True)[0][:, 0]).argmax(dim=1)
            print(f"the model plays {chr(byte)}")
        text += [byte.item(), SPACE]
        state, value, over = game.move(state, byte)
    end = "a draw" if value == 0 else "you win" if (value > 0) == yours else "the model wins"
    print(f"{end}{', for that was illegal' * (value.item() < 0)}: {bytes(text[1:]).decode(errors='replace')}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KeyboardInterrupt, EOFError):
        sys.exit("selfplay.py: stopped at once; the newest checkpoint, if it was learning, is whole: --resume goes on")
    except (ValueError, OSError) as e:
        sys.exit(f"selfplay.py: {e}")
