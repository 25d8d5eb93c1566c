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
from machine import Machine
from model import EOT, PAD, rows_of
from optim import load_optimizers, make_optimizers, set_schedules
from train import Run, go_on_or_start, make_model

SPACE = ord(" ")


@dataclass
class SelfPlayConfig(Config):
    # self-play in a game
    game: Literal["tictactoe", "nim"] = "tictactoe"  # what is played
    play: bool = False  # you against the best weights of out_dir, on the terminal
    opponent: Literal["self", "random", "none"] = "self"  # random: random moves; none: only read random games
    games: int = 512  # played at once, in one iteration
    pretrain: float = 0.125  # share of the run that reads random games first
    play_lr: float = 0.001  # peak learning rate (AdamW) of what follows
    openings: float = 0.5  # share of the games that begin with 0 to 4 random moves
    entropy: float = 0.02  # weight of the entropy bonus

    def __post_init__(self):
        super().__post_init__()
        for key, low, high in (("games", 2, 1e6), ("pretrain", 0, 1), ("openings", 0, 1), ("entropy", 0, 10)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}={getattr(self, key)} must be between {low} and {high:g}")


# --- games -----------------------------------------------------------------------------------------------------------


class Game:
    """The rules of a game for two, on n boards at once. A position is a row of a tensor, as the one to move sees it.

    A ply is text: the mark (n_mark bytes), the byte of the move, a space. Before the first one stands EOT.
    """

    def __init__(self, device="cpu"):
        self.device, self.moves = device, torch.tensor(list(self.alphabet), device=device)
        self.number = torch.full((256,), -1, device=device)  # of the move that a byte stands for; -1: of none
        self.number[self.moves] = torch.arange(len(self.moves), device=device)
        self.width = self.n_mark + 2  # bytes of a ply
        self.asked = torch.arange(self.n_plies, device=device) * self.width + self.n_mark  # where marks end in the text

    def move(self, state, byte):
        """A byte (n,) for each position -> (positions after it, the result for who moved: 1 won, 0, -1 lost because the
        move is illegal; is the game over? (n,))."""
        number = self.number[byte]
        legal = (number >= 0) & self.legal(state).gather(1, number.clamp(min=0)[:, None])[:, 0]
        state, won, over = self.step(state, number.clamp(min=0))
        return state, torch.where(legal, won.long(), -1), over | ~legal


class TicTacToe(Game):
    alphabet, n_mark, n_plies, n_keys = b"123456789", 1, 9, 3**9
    LINES = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])

    def start(self, n):
        """(n, 9): 1 where the one to move has a mark, -1 where the other has, 0 where there is none."""
        return torch.zeros(n, 9, dtype=torch.long, device=self.device)

    def legal(self, state):
        return state == 0

    def step(self, state, move):
        state = state.scatter(1, move[:, None], 1)
        won = (state[:, self.LINES] == 1).all(dim=2).any(dim=1)
        return -state, won, won | (state != 0).all(dim=1)

    def mark(self, state):
        is_first = (state == 0).sum(dim=1, keepdim=True) % 2 == 1
        return torch.where(is_first, ord("X"), ord("O"))

    def key(self, state):
        return ((state + 1) * 3 ** torch.arange(9, device=state.device)).sum(dim=1)

    def show(self, state):
        own, other = "XO" if self.mark(state[None]).item() == ord("X") else "OX"
        cells = [{0: str(i + 1), 1: own, -1: other}[cell] for i, cell in enumerate(state.tolist())]
        return "\n".join(" ".join(cells[i : i + 3]) for i in (0, 3, 6))


class Nim(Game):
    """A heap of 21; each in turn takes 1, 2 or 3; who takes the last one wins. The mark says how many are left: without
    it the model would have to add up all moves modulo 4, which it does not learn in minutes."""

    alphabet, n_mark, n_plies, n_keys = b"123", 3, 21, 22

    def start(self, n):
        """(n, 1): how many are left."""
        return torch.full((n, 1), 21, device=self.device)

    def legal(self, state):
        return torch.arange(1, 4, device=state.device) <= state

    def step(self, state, move):
        state = (state - move[:, None] - 1).clamp(min=0)
        won = state[:, 0] == 0
        return state, won, won

    def mark(self, state):
        return torch.cat((ord("0") + state // 10, ord("0") + state % 10, torch.full_like(state, ord("-"))), dim=1)

    def key(self, state):
        return state[:, 0]

    def show(self, state):
        return f"{state.item()} are left; take 1, 2 or 3"


GAMES = {"tictactoe": TicTacToe, "nim": Nim}


def best_moves(game):
    """Which moves are best in each position, (n_keys, moves) bool, and what it is then worth to the one to move,
    (n_keys,) 1, 0 or -1: minimax, from the longest games back."""
    levels, state = [], game.start(1)
    while len(state):
        rows, moves = game.legal(state).nonzero().unbind(dim=1)
        after, won, over = game.step(state[rows], moves)
        levels.append((state, rows, moves, after, won, over))
        state = after[~over].unique(dim=0)
    value = torch.zeros(game.n_keys, dtype=torch.long, device=game.device)
    best = torch.zeros(game.n_keys, len(game.moves), dtype=torch.bool, device=game.device)
    for state, rows, moves, after, won, over in reversed(levels):
        worth = torch.full((len(state), len(game.moves)), -2, device=game.device)
        worth[rows, moves] = torch.where(over, won.long(), -value[game.key(after)])
        key = game.key(state)
        value[key] = worth.amax(dim=1)
        best[key] = worth == value[key][:, None]
    return best, value


# --- playing ---------------------------------------------------------------------------------------------------------


def uniform(seed, n, columns, device):
    """(n, columns) numbers from 0 to 1; a row's do not depend on how many rows there are."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(n, columns, generator=generator, dtype=torch.float64).to(device)


def draw(weights, u):
    """A column of each row of weights (n, m), as likely as its weight; u (n,) are numbers from 0 to 1."""
    sums = weights.double().cumsum(dim=1)
    return (sums <= u[:, None] * sums[:, -1:]).sum(dim=1).clamp(max=weights.size(1) - 1)


@torch.no_grad()
def play(game, model, by_model, other, u, greedy=False):
    """Play n games at once, all of them in one read a ply.

    by_model (n, plies): whether the model makes the move, else it is drawn with the weights other(positions) (n, moves);
    u (n, plies) are the numbers for what is drawn. Returns the games' text (n, 1 + plies * width), PAD after the end;
    `chosen` (n, plies), the moves that the model made; `legal` (n, plies, moves); `result` (n,) for the one who began,
    1, 0 or -1; `illegal` (n,), whether it ended with an illegal move.
    """
    n, M, device = len(u), game.n_mark, game.device
    text = torch.full((n, 1 + game.n_plies * game.width), PAD, device=device)
    text[:, 0] = EOT
    chosen = torch.zeros(n, game.n_plies, dtype=torch.bool, device=device)
    legal = torch.ones(n, game.n_plies, len(game.moves), dtype=torch.bool, device=device)
    result, illegal = torch.zeros(n, dtype=torch.long, device=device), chosen[:, 0].clone()
    rows, state, cache = torch.arange(n, device=device), game.start(n), model.start(n) if model else {}
    for ply in range(game.n_plies):  # rows: the games that are not over yet
        at = 1 + ply * game.width
        text[rows, at : at + M] = game.mark(state)
        byte = game.moves[draw(other(state), u[rows, ply])]
        if model:
            x, cache = model.read(text[rows, max(0, at - 2) : at + M], cache, last=True)
            logits = model.head(x[:, 0])
            own = logits.argmax(dim=1) if greedy else draw(logits.softmax(dim=1), u[rows, ply])
            byte = torch.where(by_model[rows, ply], own, byte)
            chosen[rows, ply] = by_model[rows, ply]
        text[rows, at + M], text[rows, at + M + 1] = byte, SPACE
        legal[rows, ply] = game.legal(state)
        state, value, over = game.move(state, byte)
        result[rows], illegal[rows] = value if ply % 2 == 0 else -value, value < 0
        rows, state, cache = rows[~over], state[~over], rows_of(cache, ~over)
        if not len(rows):
            break
    return SimpleNamespace(text=text, chosen=chosen, legal=legal, result=result, illegal=illegal)


@torch.no_grad()
def every_line(game, model, role):
    """The greedy model, first (role 0) or second (1), against every reply: how many lines there are, how many it loses;
    and with what probability it wins, draws and loses against random moves."""
    state, cache, typed = game.start(1), model.start(1), torch.full((1, 1), EOT, device=game.device)
    share, found = torch.ones(1, dtype=torch.float64, device=game.device), []
    for ply in range(game.n_plies):
        x, cache = model.read(torch.cat((typed, game.mark(state)), dim=1), cache, last=True)
        if ply % 2 == role:
            byte, sign = model.head(x[:, 0]).argmax(dim=1), 1
        else:
            legal, sign = game.legal(state), -1
            rows, move = legal.nonzero().unbind(dim=1)
            byte, share = game.moves[move], (share / legal.sum(dim=1))[rows]
            state, cache = state[rows], rows_of(cache, rows)
        state, value, over = game.move(state, byte)
        found += zip((sign * value[over]).tolist(), share[over].tolist(), strict=True)
        state, cache, share, byte = state[~over], rows_of(cache, ~over), share[~over], byte[~over]
        typed = torch.stack((byte, torch.full_like(byte, SPACE)), dim=1)
        if not len(state):
            break
    shares = [sum(share for value, share in found if value == wanted) for wanted in (1, 0, -1)]
    return len(found), sum(value < 0 for value, _ in found), shares


def scores(game, model, best, seed, n=1000):
    """What the model is worth, as a dict; `best` are the best moves (n_keys, moves)."""
    found, lost = {}, 0.0
    plies = torch.arange(game.n_plies, device=game.device).expand(n, -1)
    random, perfect = lambda s: game.legal(s), lambda s: best[game.key(s)]
    own = play(game, model, plies >= 0, random, uniform(seed, n, game.n_plies, game.device))
    found["illegal"] = (own.illegal.sum() / own.chosen.sum()).item()
    for role, name in enumerate(("first", "second")):
        lines, lines_lost, shares = every_line(game, model, role)
        found |= {f"lost_{name}": f"{lines_lost}/{lines}", f"random_{name}": shares}
        lost += lines_lost / lines / 2
        for who, other, greedy in (("perfect", perfect, True), ("perfect_sampled", perfect, False), ("random_sampled", random, False)):
            u = uniform(seed + 1 + role, n, game.n_plies, game.device)
            games = play(game, model, plies % 2 == role, other, u, greedy)
            result = games.result * (1 - 2 * role)
            found[f"{who}_{name}"] = [(result == wanted).double().mean().item() for wanted in (1, 0, -1)]
            if who == "random_sampled":
                found[f"illegal_{name}"] = (games.illegal & (result < 0)).double().mean().item()
    return {"lost": lost} | found


# --- learning --------------------------------------------------------------------------------------------------------


class RandomGames:
    """Random legal games, as text: what is read before the first game is played. Takes the place of train.py's Batches."""

    def __init__(self, cfg, game):
        self.cfg, self.game, self.data = cfg, game, SimpleNamespace(meta={"name": f"random games of {cfg.game}"})

    def at(self, step):
        u = uniform(self.cfg.seed * 1_000_003 + step, self.cfg.games, self.game.n_plies, self.game.device)
        return play(self.game, None, None, self.game.legal, u).text

    def __str__(self):
        return f"a step: {self.cfg.games} games of {self.cfg.game}"


def next_byte_loss(model, text):
    """The mean loss in nats of predicting each byte of the games, (B, 1 + T); what follows a game's end is left out."""
    targets = text[:, 1:].masked_fill(text[:, 1:] == PAD, -100)  # (cross_entropy ignores -100)
    return F.cross_entropy(model.head(model.hidden(text[:, :-1])).flatten(0, 1), targets.flatten())


def play_one_batch(game, model, cfg, step):
    """The games that the model learns from in an iteration: against itself, half of them after a random opening, or
    against random moves, half of them as first."""
    u = uniform(cfg.seed * 1_000_003 + step, cfg.games, 1 + game.n_plies, game.device)
    ply = torch.arange(game.n_plies, device=game.device)
    if cfg.opponent == "self":
        opening = torch.where(u[:, :1] < cfg.openings, u[:, :1] / max(cfg.openings, 1e-9) * 5, 0).long()
        by_model = ply >= opening
    else:
        by_model = ply % 2 == (u[:, :1] < 0.5)
    return play(game, model, by_model, game.legal, u[:, 1:])


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

    def log_iteration(self, loss, norm, lr_scale, **values):
        loss, norm = loss.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.record("failed", loss=str(loss), norm=str(norm))
            raise ValueError(f"step {self.step}: loss {loss}, gradient norm {norm}; try a lower --play_lr or --muon_lr")
        self.record("train", loss=loss, norm=norm, lr_scale=lr_scale, **values)
        left = duration(self.elapsed / self.progress() * max(0, 1 - self.progress()))
        shown = " | ".join([f"loss {loss:.4f}", *(f"{k} {v:.3f}" for k, v in values.items())])
        stays = self.done() or self.is_due(self.cfg.eval_interval) or not sys.stdout.isatty()
        self.say(f"step {self.step} | {shown} | {left} left", end="\n" if stays else "   \r")

    def evaluate(self, game, best):
        """Play, print and log; of equals the newest weights are kept."""
        self.result = scores(game, self.model.eval(), best, self.cfg.seed)
        self.model.train()
        self.record("eval", **self.result)
        self.say(" ".join(f"{k}={v}" for k, v in verdict(self.result, self).items()))
        if self.result["lost"] <= self.best:
            self.best = self.result["lost"]
            self.save(self.best_path)

    def finish(self, game, best):
        """The verdict: of the weights that lost the fewest lines. Returns the exit status."""
        model, checkpoint, _ = load_run(self.out, "best", game.device)
        found = verdict(scores(game, model, best, self.cfg.seed + 1), self)
        self.record("end", **found, of_step=checkpoint["step"])
        self.status("finished", verdict=found)
        self.say(f"weights and log are in {self.out}; --play --out_dir={self.out} lets you play against it")
        self.say(" ".join(f"{k}={v}" for k, v in found.items()))
        return 0


def verdict(found, run):
    """The scores as they are printed."""
    line = {"illegal": f"{found['illegal']:.4f}"}
    line |= {k: found[k] for k in ("lost_first", "lost_second")}
    line |= {f"win_random_{who}": f"{found[f'random_{who}'][0]:.3f}" for who in ("first", "second")}
    line |= {f"draw_perfect_{who}": f"{found[f'perfect_{who}'][1]:.3f}" for who in ("first", "second")}
    if run.cfg.game == "nim":
        line["win_perfect_first"] = f"{found['perfect_first'][0]:.3f}"  # (nobody can draw)
    return line | {"seconds": f"{run.elapsed:.0f}"}


# --- the loop --------------------------------------------------------------------------------------------------------


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cfg, words = parse(SelfPlayConfig, argv, __doc__, "config/selfplay_game.py", either=("max_steps", "max_seconds"))
    if words:
        raise ValueError(f"what is {words[0]!r}? The config file ends in .py, every knob is --key=value; see --help")
    if cfg.play:
        return play_person(cfg)
    out = Path(cfg.out_dir)
    in_use = f"{out} is in use by another run: wait until it has ended, or give another --out_dir"
    with common.lock(out.with_name(f".{out.name}.lock"), in_use):
        return learn_game(cfg, argv)


def learn_game(cfg, argv):
    cfg, checkpoint = go_on_or_start(cfg)
    saved = checkpoint or {}
    machine = Machine(cfg.device, saved.get("dtype", cfg.dtype), saved.get("muon_dtype", "auto"))
    run, game = GameRun(cfg, machine, checkpoint), GAMES[cfg.game](machine.device)
    best = best_moves(game)[0]
    random_games = RandomGames(cfg, game)

    # Muon and AdamW read; another AdamW plays
    model = make_model(cfg, checkpoint).to(machine.device).train()
    reading = make_optimizers(model, cfg, machine.muon_dtype)
    playing = torch.optim.AdamW(model.parameters(), lr=cfg.play_lr, weight_decay=0.0, fused=True)
    playing.param_groups[0]["peak_lr"] = cfg.play_lr
    if checkpoint:
        load_optimizers([*reading, playing], checkpoint["optimizers"])
    run.begin(argv, model, [*reading, playing], random_games, compiled=False)
    if run.owes_an_evaluation:
        run.evaluate(game, best)

    with run:
        while not run.done():
            reads = cfg.opponent == "none" or run.progress() < cfg.pretrain
            begun, whole = (0, 1) if cfg.opponent == "none" else (0, cfg.pretrain) if reads else (cfg.pretrain, 1)
            optimizers = reading if reads else [playing]
            scale = set_schedules(model, optimizers, cfg, (run.progress() - begun) / (whole - begun))
            with machine.autocast:
                if reads:
                    loss, values = next_byte_loss(model, random_games.at(run.step)), {}
                else:
                    games = play_one_batch(game, model, cfg, run.step)
                    loss = reinforce_loss(game, model, games, cfg.entropy)
                    first = games.result.double()
                    values = {"first_wins": (first > 0).double().mean().item(), "draws": (first == 0).double().mean().item()}
                    values |= {"illegal": (games.illegal.sum() / games.chosen.sum()).item()}
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.tick()

            pause = run.is_due(cfg.eval_interval) or run.done()
            if run.step == 1 or run.is_due(cfg.log_interval) or pause:
                run.log_iteration(loss, norm, scale, **values)
            if pause:
                run.stop_clock()
                run.save(run.last_path)
                if not run.interrupted:
                    run.evaluate(game, best)
                run.start_clock()

        if run.interrupted:
            return run.interrupt()
        return run.finish(game, best)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("selfplay.py: stopped at once; the newest checkpoint is whole, --resume goes on with it")
    except (ValueError, OSError) as e:
        sys.exit(f"selfplay.py: {e}")
