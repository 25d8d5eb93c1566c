"""A model against itself: in a game (objective=game), and against its own text (objective=spin).

Each has a source, which supplies batches, and an objective, which turns a batch into a loss.
train.py does everything else.

objective=game: a game is text (lib/games.py). The model first reads random legal games, as it would
read any text. Then it plays both sides, and moves that won become likelier (REINFORCE). The
baseline is the mean result at each ply; an entropy bonus keeps the choice among legal moves open.
Half of the games begin with 0 to 4 random moves, and in a quarter one side makes only random moves.
Without them the model would never see the positions that its own play avoids. This method needs no
pool of past opponents and no critic.

objective=spin: a copy of the model, renewed every `spin_steps` steps, continues real text. The
model learns to tell the real text from the copy's (SPIN, arXiv 2401.01335).
"""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

from lib.files import fitting_code, load_run
from lib.games import GAMES, best_moves, choose, play, scores, uniform
from model import PAD, fitting_weights

# --- a game ---------------------------------------------------------------------------------------


class GameSource:
    """Batches of games: random ones to read, then games that the model has just played.

    TextSource in train.py explains the methods of a source.

    A row is a game: EOT, then up to n plies in L = n * width bytes. A batch is a tuple of
        text        (B, 1 + L)
        per_row     (B,) B times the mean count per row, over all processes: of bytes while reading,
                    of the model's moves while playing
    and, when playing,
        chosen      bool (B, n) the moves that the model chose
        advantage   (B, n)
        legal       bool (B, n, moves) the legal moves
    """

    measure = "lost"  # the share of lines that the model loses; lower is better

    def __init__(self, cfg, model, machine):
        self.cfg = cfg
        self.model = model
        self.machine = machine
        self.game = GAMES[cfg.game](machine.device)
        self.is_best, _ = best_moves(self.game)
        self.played = None  # the newest games of the model

        longest = self.game.n_plies * self.game.width
        if cfg.block_size < longest:
            raise ValueError(
                f"block_size={cfg.block_size} is too short for {cfg.game}: "
                f"give --block_size={longest}"
            )
        self.n_to_read = max(1, cfg.batch_bytes // longest)
        for knob, n in (("games", cfg.games), ("batch_bytes", self.n_to_read)):
            if n < machine.world:
                raise ValueError(
                    f"{knob}={getattr(cfg, knob)} gives {n} games to {machine.world} processes: "
                    f"raise --{knob}"
                )
        self.micro_batch = cfg.micro_batch or max(cfg.games, self.n_to_read)

    def describe(self, step, model):
        phases = []
        if self.cfg.pretrain > 0:
            phases.append(f"{self.n_to_read} random games to read")
        if self.cfg.pretrain < 1:
            phases.append(f"{self.cfg.games} games to play")
        return [f"a step of {self.cfg.game}: {', later '.join(phases)}"]

    def about(self):
        """The data, for run.json and checkpoints."""
        return {"name": f"random games of {self.cfg.game}"}

    def files(self):
        return {}

    def resume(self, checkpoint):
        """Nothing to do: games follow from seed, step and weights."""

    def state(self):
        return {}

    def at(self, step, progress):
        if progress < self.cfg.pretrain or self.cfg.pretrain == 1:
            return self.games_to_read(step)
        return self.games_to_learn_from(step)

    def games_to_read(self, step):
        game = self.game
        u = self.uniform(step, self.n_to_read, game.n_plies)
        text = play(game, None, None, game.legal, u).text
        self.played = None
        return text, self.per_row(text[:, 1:] != PAD)

    @torch.no_grad()
    def games_to_learn_from(self, step):
        game = self.game
        u = self.uniform(step, self.cfg.games, 2 + game.n_plies)
        by_model, random_side = lineup(game, self.cfg, u[:, :2])
        with self.machine.autocast:
            played = play(game, self.model, by_model, game.legal, u[:, 2:])
        self.played = played
        advantage = advantages(game, played, random_side, self.sum)
        per_row = self.per_row(played.chosen)
        return played.text, per_row, played.chosen, advantage, played.legal

    def uniform(self, step, n, columns):
        """This process's rows of (n, columns) random numbers."""
        u = uniform(self.cfg.seed * 1_000_003 + step, n, columns, self.game.device)
        return u.tensor_split(self.machine.world)[self.machine.rank]

    def per_row(self, mask):
        """The mean number of true entries per row of mask (B, M), over all processes: (B,).

        The loss is a mean over these entries. Games differ in length, so a mean of the means of
        micro-batches or processes would weigh them differently.
        """
        (n_true,) = self.machine.sum([mask.sum().item()])
        # every process counts the same, even if it has one row fewer than the others
        n_rows = len(mask) * self.machine.world
        return torch.full((len(mask),), max(1, n_true) / n_rows, device=mask.device)

    def sum(self, x):
        """A tensor summed over all processes."""
        if self.machine.world == 1:
            return x
        return x.new_tensor(self.machine.sum(x.flatten().tolist())).view_as(x)

    def figures(self):
        """How the newest games went, for the log."""
        played = self.played
        if played is None:
            return {}
        return {
            "illegal": played.illegal.sum().item() / max(1, played.chosen.sum().item()),
            "first_won": (played.result > 0).float().mean().item(),
            "drawn": (played.result == 0).float().mean().item(),
        }

    def evaluate(self, model):
        found = scores(self.game, model, self.is_best, self.cfg.seed)
        model.train()
        return found

    def evaluation_lines(self, result):
        figures = self.summary(result)
        return [" ".join(f"{key}={value}" for key, value in figures.items())]

    def conclude(self, model, out, step, elapsed):
        """The scores of the best weights, in games of another seed."""
        if self.machine.rank > 0:  # rank 0 has best.pt
            return {}, {}, step
        model, checkpoint, _ = load_run(out, "best", self.game.device)
        found = scores(self.game, model, self.is_best, self.cfg.seed + 1)
        verdict = self.summary(found) | {"seconds": f"{elapsed:.0f}"}
        best_step = checkpoint["step"]
        return found | {"best_step": best_step}, verdict, best_step

    def summary(self, found):
        """The most important of the `scores`, to print."""
        line = {
            "illegal": f"{found['illegal']:.4f}",
            "lost_first": found["lost_first"],
            "lost_second": found["lost_second"],
            "win_random_first": f"{found['random_first'][0]:.3f}",
            "win_random_second": f"{found['random_second'][0]:.3f}",
            "draw_perfect_first": f"{found['perfect_first'][1]:.3f}",
            "draw_perfect_second": f"{found['perfect_second'][1]:.3f}",
        }
        if self.cfg.game == "nim":  # nobody draws
            line["win_perfect_first"] = f"{found['perfect_first'][0]:.3f}"
        return line


def lineup(game, cfg, u):
    """Who moves: random numbers u (B, 2) -> by_model bool (B, plies), random_side (B,).

    random_side says which player makes only random moves: 0 the first, 1 the second, 2 neither. In
    the last case the model plays itself, in some games after a random opening.
    """
    opening_u, side_u = u.split(1, dim=1)  # (B, 1) each
    ply = torch.arange(game.n_plies, device=game.device)
    # A share `openings` of the games begins with 0 to 4 random plies.
    opening = torch.where(opening_u < cfg.openings, 5 * opening_u / max(cfg.openings, 1e-9), 0)
    side = torch.where(side_u < cfg.random_games, 2 * side_u / max(cfg.random_games, 1e-9), 2)
    opening = opening.long()
    side = side.long()
    return (ply >= opening) & (ply % 2 != side), side[:, 0]


def advantages(game, played, random_side, total):
    """For each move, how much better its game ended than the mean at that ply: (B, plies).

    The mean is over games with the same random side, because a win over random moves says less.
    `total` sums a tensor over all processes.
    """
    ply = torch.arange(game.n_plies, device=game.device)
    reward = played.result[:, None] * (1 - 2 * (ply % 2))  # (B, plies) of the player who moves
    chosen = played.chosen.float()
    group = F.one_hot(random_side, 3).float()  # (B, 3)
    rewards = total(group.T @ (reward * chosen))  # (3, plies)
    counts = total(group.T @ chosen)
    return reward - group @ (rewards / counts.clamp(min=1))


class PlayGame(nn.Module):
    """The loss of games: next bytes while reading, the model's own moves while playing."""

    def __init__(self, model, cfg):
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.game = GAMES[cfg.game](model.embed.weight.device)

    def forward(self, text, per_row, *moves, progress):
        if moves:
            return self.reinforce(text, per_row, *moves, progress)
        targets = text[:, 1:].masked_fill(text[:, 1:] == PAD, -100)  # cross_entropy ignores -100
        logits = self.model.head(self.model.hidden(text[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss * self.correction(targets != -100, per_row)

    def reinforce(self, text, per_row, chosen, advantage, legal, progress):
        """Make moves with an advantage likelier (REINFORCE); reward entropy among legal moves.

        Only the model's own moves count: not the opening, and nothing after the end.
        """
        game = self.game
        # A move is chosen after the last byte of its mark.
        x = self.model.hidden(text[:, : game.asked[-1] + 1])[:, game.asked]  # (B, plies, E)
        logits = self.model.head(x)
        byte = text[:, game.asked + 1, None]
        log_p = logits.log_softmax(dim=2).gather(2, byte)[..., 0]  # (B, plies)
        log_q = logits[..., game.moves].masked_fill(~legal, -1e9).log_softmax(dim=2)
        entropy = -(log_q.exp() * log_q).sum(dim=2)  # nats of the choice among the legal moves

        # The bonus falls: if constant, it would later outweigh the rare penalty for some mistakes.
        played = (progress - self.cfg.pretrain) / (1 - self.cfg.pretrain)
        bonus = (self.cfg.entropy * (1 - played)).clamp(min=self.cfg.entropy_end)
        gain = ((advantage * log_p + bonus * entropy) * chosen).sum() / chosen.sum().clamp(min=1)
        return -gain * self.correction(chosen, per_row)

    def correction(self, mask, per_row):
        """train_step weighs micro-batches by their rows; the loss is a mean over true entries.

        mask (B, M) -> the ratio of true entries per row, here to the whole batch.
        """
        here = mask.sum() / len(mask)
        overall = per_row[0]  # the same number in all rows
        return here / overall


# --- its own text ---------------------------------------------------------------------------------


class SpinSource:
    """Batches of real text beside the model's own continuations of it.

    A batch is a tuple of
        real        (B, 1 + T)
        own         (B, 1 + T) the same first bytes, continued by the opponent: M bytes, up to
                    the end of the row
        log_p_real  (B, M) the opponent's log-probability of each of the last M bytes
        log_p_own   (B, M)
    or, without an opponent, of `real` alone. The opponent is a copy of the model, renewed every
    `spin_steps` steps.
    """

    measure = "bpb"

    def __init__(self, cfg, model, machine, text_source):
        self.cfg = cfg
        self.model = model
        self.machine = machine
        self.text_source = text_source
        self.micro_batch = text_source.micro_batch
        self.bytes_per_symbol = text_source.bytes_per_symbol
        self.opponent = copy.deepcopy(model).requires_grad_(False)
        self.iteration = None  # the opponent's number
        self.rows = None  # the batches of all its steps in one, (spin_steps * B, ...)
        self.has_opponent = cfg.spin_beta > 0

    def describe(self, step, model):
        lines = self.text_source.describe(step, model)
        if self.has_opponent:
            lines.append(f"every {self.cfg.spin_steps} steps the model writes the text to beat")
        return lines

    def about(self):
        return self.text_source.about()

    def files(self):
        return self.text_source.files()

    def state(self):
        return self.opponent.state_dict() if self.has_opponent else {}

    def resume(self, checkpoint):
        """checkpoint["source"] is the state() of then."""
        self.text_source.resume(checkpoint)
        if self.has_opponent:
            with fitting_code(f"{self.cfg.out_dir}/last.pt", checkpoint):
                weights = fitting_weights(self.opponent, checkpoint["source"])
                self.opponent.load_state_dict(weights)

    def at(self, step, progress):
        """This step's batch. The first step against an opponent has it write the text of all."""
        if not self.has_opponent:
            return (self.text_source.rows(step),)
        iteration, i = divmod(step, self.cfg.spin_steps)
        # A new iteration; or a resumed run, which has the opponent but not yet its text.
        if iteration != self.iteration:
            if i == 0:
                self.opponent.load_state_dict(self.model.state_dict())
            self.rows = self.write(iteration)
            self.iteration = iteration
        # of the rows of all steps, (spin_steps * B, ...), those of step i
        return tuple(x.tensor_split(self.cfg.spin_steps)[i] for x in self.rows)

    @torch.no_grad()
    def write(self, iteration):
        """The rows of all steps against this opponent."""
        n_steps = self.cfg.spin_steps
        parts = [self.text_source.rows(iteration * n_steps + i) for i in range(n_steps)]
        real = torch.cat(parts)  # (n_steps * B, 1 + T)
        N = self.cfg.prefix_bytes

        # Draw numbers for the rows of all processes, so that the text does not depend on how many
        # processes there are; use those of this process's rows.
        n_rows = len(real) * self.machine.world
        seed = self.cfg.seed * 1_000_003 + iteration
        u = uniform(seed, n_rows, real.size(1) - N, real.device)
        u = u.view(n_steps, self.machine.world, len(parts[0]), -1)[:, self.machine.rank]
        own = write_on(self.opponent, real[:, :N], u.flatten(0, 1))

        with self.machine.autocast:
            log_ps = []
            for text in (real, own):
                passes = [log_p(self.opponent, part) for part in text.split(self.micro_batch)]
                log_ps.append(torch.cat(passes)[:, N - 1 :])
        return real, own, *log_ps

    def figures(self):
        """How varied the real and the written texts are, for the log."""
        found = {}
        if self.has_opponent:
            for name, text in zip(("real", "own"), self.rows[:2], strict=True):
                distinct, repeated = variety(text[:, self.cfg.prefix_bytes :])
                found[f"distinct_{name}"] = distinct
                found[f"repeated_{name}"] = repeated
        return found

    def evaluate(self, model):
        return self.text_source.evaluate(model)

    def evaluation_lines(self, result):
        """Bits per byte, and for two rows the real text above the opponent's."""
        lines = self.text_source.evaluation_lines(result)
        if self.rows is None:
            return lines
        N = self.cfg.prefix_bytes

        def show(symbols):
            return repr(bytes(symbols.tolist()).decode(errors="replace"))

        for real, own in list(zip(*self.rows[:2], strict=True))[:2]:
            lines.append(f"  after {show(real[:N][-40:])}")
            lines.append(f"    real {show(real[N : N + 100])}")
            lines.append(f"    own  {show(own[N : N + 100])}")
        return lines

    def conclude(self, model, out, step, elapsed):
        return self.text_source.conclude(model, out, step, elapsed)


class Spin(nn.Module):
    """Prefer real text to the opponent's, besides predicting the next byte (arXiv 2401.01335)."""

    watches = ("next_byte", "spin")

    def __init__(self, model, cfg):
        super().__init__()
        self.model = model
        self.cfg = cfg

    def forward(self, real, *opponents, progress):
        log_p_real = log_p(self.model, real)
        next_byte = -log_p_real.mean()
        loss = self.cfg.next_byte_weight * next_byte
        if not opponents:
            return torch.stack((loss, next_byte))
        own, old_real, old_own = opponents
        M = old_real.size(1)
        new = log_p_real[:, -M:], log_p(self.model, own)[:, -M:]
        spin = spin_loss(new, (old_real, old_own), self.cfg.spin_beta)
        return torch.stack((loss + spin, next_byte, spin))


@torch.no_grad()
def write_on(model, prefix, u):
    """Continue all prefixes at once: prefix (B, N), u (B, M) random numbers -> (B, N + M)."""
    text = prefix
    new = prefix
    state = model.start(len(prefix))
    for number in u.unbind(dim=1):
        x, state = model.read(new, state, last=True)
        new = choose(model.head(x[:, 0]).softmax(dim=1), number)[:, None]
        text = torch.cat((text, new), dim=1)
    return text


def log_p(model, text):
    """The log-probability of each byte but the first: text (B, 1 + T) -> (B, T)."""
    logits = model.head(model.hidden(text[:, :-1]))
    return -F.cross_entropy(logits.mT, text[:, 1:], reduction="none")


def spin_loss(new, old, beta):
    """The logistic loss of SPIN: the model should prefer real text more than its opponent does.

    new and old are pairs (real, own) of log-probabilities (B, M), by the model and its opponent.
    The loss is ln 2 if the model cannot tell the two texts apart.
    """
    real = (new[0] - old[0]).sum(dim=1)
    own = (new[1] - old[1]).sum(dim=1)
    return F.softplus(-beta * (real - own)).mean()


def variety(text, n=6):
    """Of all n-grams in texts (B, T), the share of distinct ones and of repeats within a text."""
    powers = 256 ** torch.arange(n, device=text.device)
    keys = (text.unfold(1, n, 1) * powers).sum(dim=2).sort(dim=1).values
    repeated = (keys[:, 1:] == keys[:, :-1]).float().mean().item()
    return keys.unique().numel() / keys.numel(), repeated
