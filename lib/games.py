"""Games as text, `X5 O1 X9 ...`: their rules, playing with a model, and what its play is worth, exactly.

A game is a class of a few lines, on many boards at once. The rules type marks and spaces; the model chooses the byte of
each move among all 256, and whoever makes an illegal move has lost. `every_line` tries every reply there is to a greedy
model: `lost 0 of 561` proves that it cannot be beaten.
"""

from types import SimpleNamespace

import torch

from model import EOT, PAD, rows_of

SPACE = ord(" ")


class Game:
    """The rules of a game for two, on n boards at once. A position is a row of a tensor, as the one to move sees it.

    A ply is text: the mark (n_mark bytes), the byte of the move, a space. Before the first one stands EOT.
    """

    def __init__(self, device="cpu"):
        self.device, self.moves = device, torch.tensor(list(self.alphabet), device=device)
        self.number = torch.full(
            (256,), -1, device=device
        )  # of the move that a byte stands for; -1: of none
        self.number[self.moves] = torch.arange(len(self.moves), device=device)
        self.width = self.n_mark + 2  # bytes of a ply
        self.asked = (
            torch.arange(self.n_plies, device=device) * self.width + self.n_mark
        )  # where marks end in the text

    def move(self, state, byte):
        """A byte (n,) for each position -> (positions after it, the result for who moved: 1 won, 0, -1 lost because the
        move is illegal; is the game over? (n,))."""
        number = self.number[byte]
        legal = (number >= 0) & self.legal(state).gather(1, number.clamp(min=0)[:, None])[:, 0]
        state, won, over = self.step(state, number.clamp(min=0))
        return state, torch.where(legal, won.long(), -1), over | ~legal


class TicTacToe(Game):
    alphabet, n_mark, n_plies, n_keys = b"123456789", 1, 9, 3**9
    LINES = torch.tensor(
        [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]]
    )

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
    """A heap of 21; each in turn takes 1, 2 or 3; who takes the last one wins. The mark says how many are left:
    without it the model would have to add up all moves modulo 4."""

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
        return torch.cat(
            (ord("0") + state // 10, ord("0") + state % 10, torch.full_like(state, ord("-"))), dim=1
        )

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
    return torch.rand(n, columns, generator=generator).to(device)


def draw(weights, u):
    """A column of each row of weights (n, m), as likely as its weight; u (n,) are numbers from 0 to 1."""
    sums = weights.float().cumsum(dim=1)
    return (sums / sums[:, -1:] <= u[:, None]).sum(
        dim=1
    )  # (the last with any weight has exactly 1, above every u)


@torch.no_grad()
def play(game, model, by_model, other, u, greedy=False):
    """Play n games at once, all of them in one read a ply.

    by_model (n, plies): whether the model makes the move; otherwise it is drawn with the weights other(positions),
    (n, moves). u (n, plies): the numbers for what is drawn. Returns the games' `text` (n, 1 + plies * width), PAD after
    the end; `chosen` (n, plies), the moves that the model made; `legal` (n, plies, moves); `result` (n,) for the one
    who began, 1, 0 or -1; `illegal` (n,), whether it ended with an illegal move.
    """
    n, device = len(u), game.device
    text = torch.full((n, 1 + game.n_plies * game.width), PAD, device=device)
    text[:, 0] = EOT
    chosen = torch.zeros(n, game.n_plies, dtype=torch.bool, device=device)
    legal = torch.ones(n, game.n_plies, len(game.moves), dtype=torch.bool, device=device)
    result, illegal, alive = (
        torch.zeros_like(text[:, 0]),
        torch.zeros_like(chosen[:, 0]),
        ~chosen[:, 0],
    )
    state, cache, typed = game.start(n), model.start(n) if model else None, text[:, :1]
    # games that are over are read on with the others, to no effect: taking them out would copy the cache at every ply
    for ply in range(game.n_plies):
        at, mark, now = 1 + ply * game.width, game.mark(state), game.legal(state)
        byte = game.moves[draw(other(state), u[:, ply])]
        if model:
            x, cache = model.read(torch.cat((typed, mark), dim=1), cache, last=True)
            logits = model.head(x[:, 0])
            own = logits.argmax(dim=1) if greedy else draw(logits.softmax(dim=1), u[:, ply])
            byte = torch.where(by_model[:, ply], own, byte)
            chosen[:, ply] = by_model[:, ply] & alive
        typed = torch.stack((byte, torch.full_like(byte, SPACE)), dim=1)
        text[alive, at : at + game.width] = torch.cat((mark, typed), dim=1)[alive]
        legal[alive, ply] = now[alive]
        state, value, over = game.move(state, byte)
        result = torch.where(alive, value if ply % 2 == 0 else -value, result)
        illegal, alive = illegal | (alive & (value < 0)), alive & ~over
        if not alive.any():
            break
    return SimpleNamespace(text=text, chosen=chosen, legal=legal, result=result, illegal=illegal)


@torch.no_grad()
def every_line(game, model, role):
    """The greedy model, first (role 0) or second (1), against every reply: how many lines there are, how many it loses;
    and with what probability it wins, draws and loses against random moves."""
    state, cache, typed = game.start(1), model.start(1), torch.full((1, 1), EOT, device=game.device)
    share, found = torch.ones(1, device=game.device), []
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
    """What the model is worth, as a dict: `lost`, the share of all lines, and as first and second its lines lost of
    lines, and [won, drawn, lost] greedily and drawn at temperature 1 against random and perfect play, in n games each
    (greedy against random: exactly). `best` are the best moves (n_keys, moves); a perfect player takes any of them."""
    plies, model = torch.arange(game.n_plies, device=game.device).expand(n, -1), model.eval()
    perfect = lambda state: best[game.key(state)]  # noqa: E731
    u = uniform(seed, n, game.n_plies, game.device)
    games, found, lost = play(game, model, plies >= 0, game.legal, u), {}, 0.0
    found["illegal"] = (
        games.illegal.sum().item() / games.chosen.sum().item()
    )  # of the moves drawn in self-play
    for role, name in enumerate(("first", "second")):
        lines, n_lost, found[f"random_{name}"] = every_line(game, model, role)
        found[f"lost_{name}"], lost = f"{n_lost}/{lines}", lost + n_lost / lines / 2
        for who, other, greedy in (
            ("perfect", perfect, True),
            ("perfect", perfect, False),
            ("random", game.legal, False),
        ):
            games = play(game, model, plies % 2 == role, other, u, greedy)
            result = games.result * (1 - 2 * role)  # the model's
            key = f"{who}_{name}" if greedy else f"{who}_sampled_{name}"
            found[key] = [(result == value).float().mean().item() for value in (1, 0, -1)]
        found[f"illegal_{name}"] = (
            games.illegal.float().mean().item()
        )  # of the games against random moves
    return {"lost": lost} | found


# --- you against it --------------------------------------------------------------------------------------------------


def play_person(game, model):
    """A person against the greedy model, on the terminal."""
    begins = input("Do you begin? [y/n] ").lower().startswith("y")
    text = [EOT]
    state = game.start(1)
    is_over = False
    ply = 0
    while not is_over:
        is_yours = (ply % 2 == 0) == begins
        text += game.mark(state)[0].tolist()
        if is_yours:
            print(game.show(state[0]))
            byte = ask_for_move(game, state)
        else:
            idx = torch.tensor([text], device=game.device)
            x, _ = model.read(idx, model.start(1), last=True)
            byte = model.head(x[:, 0]).argmax(dim=1)
            print(f"the model plays {chr(byte)}")
        text += [byte.item(), SPACE]
        state, value, is_over = game.move(state, byte)
        ply += 1

    if value == 0:
        end = "a draw"
    elif (value > 0) == is_yours:
        end = "you win"
    else:
        end = "the model wins"
    if value < 0:
        end += ", because that move was illegal"
    print(f"{end}: {bytes(text[1:]).decode(errors='replace')}")


def ask_for_move(game, state):
    """The byte of a legal move, (1,)."""
    legal = [chr(byte) for byte in game.moves[game.legal(state)[0]].tolist()]
    while True:
        answer = input(f"your move ({' '.join(legal)}): ").strip()
        if answer in legal:
            return torch.tensor([ord(answer)], device=game.device)
        print(f"{answer!r} is no legal move")
