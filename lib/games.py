"""Games as text, `X5 O1 X9 ...`: their rules, play with a model, and scores of the model's play.

A game is a small class that plays on many boards at once. The game writes the marks and the spaces.
The model chooses the byte of each move among all 256, and an illegal move loses.

`every_line` tries every possible reply to the greedy model: `lost_first=0/79` proves that it cannot
be beaten when it moves first.
"""

from types import SimpleNamespace

import torch

from model import EOT, PAD, rows_of

SPACE = ord(" ")


class Game:
    """A game for two, on n boards at once. A board is seen from the side of the player to move.

    A ply is text: the mark (n_mark bytes), the byte of the move, a space. A game begins with EOT.
    A subclass defines:
        alphabet            the byte of each move
        n_mark              bytes in a mark
        n_plies             plies in the longest game
        n_keys              how many boards `key` tells apart
        start(n)            n boards before the first ply
        legal(board)        which moves are legal, (n, moves)
        step(board, move)   the next boards, from the other player's side; bool (n,): was it a win;
                            bool (n,): is the game over
        mark(board)         the bytes in front of a move, (n, n_mark)
        key(board)          the number of each board, (n,), below n_keys
        show(board)         one board as text for a person
    """

    def __init__(self, device="cpu"):
        self.device = device
        self.moves = torch.tensor(list(self.alphabet), device=device)
        # (256,) the move that each byte stands for; -1: none
        self.move_of = torch.full((256,), -1, device=device)
        self.move_of[self.moves] = torch.arange(len(self.moves), device=device)
        self.width = self.n_mark + 2  # bytes in a ply
        # (plies,) position of each mark's last byte in the text: the move comes next
        self.asked = torch.arange(self.n_plies, device=device) * self.width + self.n_mark

    def move(self, board, byte):
        """Make a move on each board, given by its byte (n,).

        Returns the next boards; the result for whoever moved, 1 for a win, -1 for an illegal move,
        else 0; and whether the game is over.
        """
        number = self.move_of[byte]
        move = number.clamp(min=0)
        legal = (number >= 0) & self.legal(board).gather(1, move[:, None])[:, 0]
        board, won, over = self.step(board, move)
        return board, torch.where(legal, won.long(), -1), over | ~legal


class TicTacToe(Game):
    """A board is (n, 9): 1 where the player to move has a mark, -1 where the other has, else 0."""

    alphabet = b"123456789"
    n_mark = 1
    n_plies = 9
    n_keys = 3**9
    LINES = torch.tensor(
        [
            [0, 1, 2],
            [3, 4, 5],
            [6, 7, 8],
            [0, 3, 6],
            [1, 4, 7],
            [2, 5, 8],
            [0, 4, 8],
            [2, 4, 6],
        ]
    )

    def start(self, n):
        return torch.zeros(n, 9, dtype=torch.long, device=self.device)

    def legal(self, board):
        return board == 0

    def step(self, board, move):
        board = board.scatter(1, move[:, None], 1)
        won = (board[:, self.LINES] == 1).all(dim=2).any(dim=1)  # (n, 8, 3) -> (n,)
        is_full = (board != 0).all(dim=1)
        return -board, won, won | is_full

    def mark(self, board):
        is_first = (board == 0).sum(dim=1, keepdim=True) % 2 == 1
        return torch.where(is_first, ord("X"), ord("O"))

    def key(self, board):
        return ((board + 1) * 3 ** torch.arange(9, device=board.device)).sum(dim=1)

    def show(self, board):
        """board (9,)"""
        own = chr(self.mark(board[None]).item())
        other = "O" if own == "X" else "X"
        text = ""
        for i, cell in enumerate(board.tolist()):
            if cell == 0:
                text += str(i + 1)
            elif cell == 1:
                text += own
            else:
                text += other
            text += "\n" if i in (2, 5) else " "
        return text.rstrip()


class Nim(Game):
    """A heap of 21: each player in turn takes 1, 2 or 3, and whoever takes the last one wins.

    A board is the heap, (n, 1). The mark says how many are left. Without it the model would have to
    add up all moves modulo 4.
    """

    alphabet = b"123"
    n_mark = 3
    n_plies = 21
    n_keys = 22

    def start(self, n):
        return torch.full((n, 1), 21, device=self.device)

    def legal(self, board):
        return torch.arange(1, 4, device=board.device) <= board

    def step(self, board, move):
        board = (board - move[:, None] - 1).clamp(min=0)
        won = board[:, 0] == 0
        return board, won, won

    def mark(self, board):
        tens = ord("0") + board // 10
        ones = ord("0") + board % 10
        dash = torch.full_like(board, ord("-"))
        return torch.cat((tens, ones, dash), dim=1)

    def key(self, board):
        return board[:, 0]

    def show(self, board):
        """board (1,)"""
        return f"{board.item()} left"


GAMES = {"tictactoe": TicTacToe, "nim": Nim}


def best_moves(game):
    """Solve the game by minimax, from the longest games back.

    Returns which moves are best on each board, bool (n_keys, moves), and the value of each board to
    the player who is to move, (n_keys,): 1, 0 or -1.
    """
    # forward: every board that can occur after 0, 1, 2, ... plies, and every move on it
    levels = []
    board = game.start(1)
    while len(board):
        rows, moves = game.legal(board).nonzero().unbind(dim=1)
        after, won, over = game.step(board[rows], moves)
        levels.append((board, rows, moves, after, won, over))
        board = after[~over].unique(dim=0)

    # backward: a move is worth minus the value of the board that it leaves to the other player
    value = torch.zeros(game.n_keys, dtype=torch.long, device=game.device)
    is_best = torch.zeros(game.n_keys, len(game.moves), dtype=torch.bool, device=game.device)
    for board, rows, moves, after, won, over in reversed(levels):
        worth = torch.full((len(board), len(game.moves)), -2, device=game.device)  # -2: illegal
        worth[rows, moves] = torch.where(over, won.long(), -value[game.key(after)])
        key = game.key(board)
        value[key] = worth.amax(dim=1)
        is_best[key] = worth == value[key][:, None]
    return is_best, value


# --- playing --------------------------------------------------------------------------------------


def uniform(seed, n, columns, device):
    """(n, columns) numbers from 0 to below 1. A row's numbers do not depend on n."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(n, columns, generator=generator).to(device)


def choose(weights, u):
    """Choose a column of each row: weights (n, m), random numbers u (n,) below 1 -> (n,)."""
    sums = weights.float().cumsum(dim=1)
    # The first column whose cumulative share exceeds u: count those that do not. The last column
    # with any weight has exactly 1. A row without any weight (a game that is over) has NaN, which
    # is not <= u, and so gets column 0.
    shares = sums / sums[:, -1:]
    return (shares <= u[:, None]).sum(dim=1)


@torch.no_grad()
def play(game, model, by_model, opponent, u, greedy=False):
    """Play n games at once, with one model.read for all of them at each ply.

    by_model: bool (n, plies), whether the model makes the move
    opponent: a function from boards to weights (n, moves), from which the other moves are drawn
    u: random numbers (n, plies)

    Returns
        text      (n, 1 + plies * width), with PAD after the end
        chosen    bool (n, plies), the moves that the model made
        legal     bool (n, plies, moves)
        result    (n,) 1, 0 or -1, for the player who began
        illegal   bool (n,), whether an illegal move ended the game
    """
    n = len(u)
    device = game.device
    text = torch.full((n, 1 + game.n_plies * game.width), PAD, device=device)
    text[:, 0] = EOT
    chosen = torch.zeros(n, game.n_plies, dtype=torch.bool, device=device)
    legal = torch.ones(n, game.n_plies, len(game.moves), dtype=torch.bool, device=device)
    result = torch.zeros(n, dtype=torch.long, device=device)
    illegal = torch.zeros(n, dtype=torch.bool, device=device)
    alive = torch.ones(n, dtype=torch.bool, device=device)

    board = game.start(n)
    typed = text[:, :1]  # bytes that the model has not read yet
    state = model.start(n) if model else None
    # Finished games stay in the batch, without effect: removing them would copy the state at every
    # ply.
    for ply in range(game.n_plies):
        # choose the moves
        mark = game.mark(board)
        now_legal = game.legal(board)
        byte = game.moves[choose(opponent(board), u[:, ply])]
        if model:
            x, state = model.read(torch.cat((typed, mark), dim=1), state, last=True)
            logits = model.head(x[:, 0])
            if greedy:
                own = logits.argmax(dim=1)
            else:
                own = choose(logits.softmax(dim=1), u[:, ply])
            byte = torch.where(by_model[:, ply], own, byte)
            chosen[:, ply] = by_model[:, ply] & alive

        # write them down
        typed = torch.stack((byte, torch.full_like(byte, SPACE)), dim=1)
        start = 1 + ply * game.width
        text[alive, start : start + game.width] = torch.cat((mark, typed), dim=1)[alive]
        legal[alive, ply] = now_legal[alive]

        # make them
        board, value, over = game.move(board, byte)
        for_first = value if ply % 2 == 0 else -value
        result = torch.where(alive, for_first, result)
        illegal = illegal | (alive & (value < 0))
        alive = alive & ~over
        if not alive.any():
            break
    return SimpleNamespace(text=text, chosen=chosen, legal=legal, result=result, illegal=illegal)


@torch.no_grad()
def every_line(game, model, role):
    """Play the greedy model against every possible reply. role 0: it moves first; 1: second.

    Returns the number of lines, how many of them the model loses, and with which probabilities it
    wins, draws and loses against random moves.
    """
    board = game.start(1)
    state = model.start(1)
    typed = torch.full((1, 1), EOT, device=game.device)
    probability = torch.ones(1, device=game.device)  # of each line, if the replies are random
    ended = []  # (result for the model, probability) of each line
    for ply in range(game.n_plies):
        is_model = ply % 2 == role
        x, state = model.read(torch.cat((typed, game.mark(board)), dim=1), state, last=True)
        if is_model:
            byte = model.head(x[:, 0]).argmax(dim=1)
        else:
            # every legal reply makes a line of its own
            legal = game.legal(board)
            rows, move = legal.nonzero().unbind(dim=1)
            byte = game.moves[move]
            probability = (probability / legal.sum(dim=1))[rows]
            board = board[rows]
            state = rows_of(state, rows)

        board, value, over = game.move(board, byte)
        for_model = value if is_model else -value
        ended += zip(for_model[over].tolist(), probability[over].tolist(), strict=True)

        # go on with the lines that have not ended
        board = board[~over]
        state = rows_of(state, ~over)
        probability = probability[~over]
        byte = byte[~over]
        typed = torch.stack((byte, torch.full_like(byte, SPACE)), dim=1)
        if not len(board):
            break
    n_lost = sum(1 for result, _ in ended if result < 0)
    shares = [sum(p for result, p in ended if result == wanted) for wanted in (1, 0, -1)]
    return len(ended), n_lost, shares


def scores(game, model, is_best, seed, n=1000):
    """How well the model plays, as a dict.

    lost                    share of lines that the greedy model loses, the mean of both roles
    lost_first              the same for lines in which the model moves first, as "lost/all"
    random_first            shares [won, drawn, lost] against random moves, exact
    random_sampled_first    the same in n games, the model's moves drawn at temperature 1
    illegal_first           share of these games that end with an illegal move
    perfect_first           shares against perfect play, in n games
    perfect_sampled_first   the same, the model's moves drawn at temperature 1
    illegal                 share of illegal moves in n games of the model against itself

    and the same for "second". A perfect player takes any of the best moves, which is_best marks,
    bool (n_keys, moves).
    """
    model = model.eval()
    ply = torch.arange(game.n_plies, device=game.device).expand(n, -1)
    u = uniform(seed, n, game.n_plies, game.device)

    def perfect(board):
        """Weights (n, moves): 1 for each best move."""
        return is_best[game.key(board)]

    played = play(game, model, ply >= 0, game.legal, u)
    found = {"lost": 0.0, "illegal": played.illegal.sum().item() / played.chosen.sum().item()}
    for role, name in enumerate(("first", "second")):
        n_lines, n_lost, shares = every_line(game, model, role)
        found["lost"] += n_lost / n_lines / 2
        found[f"lost_{name}"] = f"{n_lost}/{n_lines}"
        found[f"random_{name}"] = shares
        for key, opponent, greedy in (
            (f"perfect_{name}", perfect, True),
            (f"perfect_sampled_{name}", perfect, False),
            (f"random_sampled_{name}", game.legal, False),
        ):
            played = play(game, model, ply % 2 == role, opponent, u, greedy)
            for_model = played.result if role == 0 else -played.result
            found[key] = [(for_model == wanted).float().mean().item() for wanted in (1, 0, -1)]
        # `played` still holds the last of the three: the games against random moves
        found[f"illegal_{name}"] = played.illegal.float().mean().item()
    return found


# --- you against it -------------------------------------------------------------------------------


def play_person(game, model):
    """A person against the greedy model on the terminal, as many games as the person likes."""
    wants_more = True
    while wants_more:
        play_one_game(game, model)
        try:
            wants_more = input("Another game? [y/n] ").strip().lower().startswith("y")
        except EOFError:  # the moves came from a file
            wants_more = False


def play_one_game(game, model):
    """Ask who begins, play a game to its end, and show the board and the result."""
    begins = input("Do you want to go first? [y/n] ").lower().startswith("y")
    text = [EOT]
    board = game.start(1)
    is_over = False
    ply = 0
    while not is_over:
        is_yours = (ply % 2 == 0) == begins
        text += game.mark(board)[0].tolist()
        if is_yours:
            print(game.show(board[0]))
            byte = ask_for_move(game, board)
        else:
            idx = torch.tensor([text], device=game.device)
            x, _ = model.read(idx, model.start(1), last=True)
            byte = model.head(x[:, 0]).argmax(dim=1)
            print(f"the model plays {chr(byte)}")
        text += [byte.item(), SPACE]
        after, value, over = game.move(board, byte)
        # an illegal move ends the game and leaves the board as it is
        if value.item() >= 0:
            board = after
        is_over = over.item()
        ply += 1

    print(game.show(board[0]))
    result = value.item()
    mover_won = result > 0  # else the move was illegal, or it is a draw
    if result == 0:
        end = "a draw"
    elif mover_won == is_yours:
        end = "you win"
    else:
        end = "the model wins"
    if result < 0:
        end += ", because the last move was illegal"
    print(f"{end}: {bytes(text[1:]).decode(errors='replace')}")


def ask_for_move(game, board):
    """The byte of a legal move, (1,)."""
    legal = [chr(byte) for byte in game.moves[game.legal(board)[0]].tolist()]
    while True:
        answer = input(f"your move ({' '.join(legal)}): ").strip()
        if answer in legal:
            return torch.tensor([ord(answer)], device=game.device)
        print(f"{answer!r} is not a legal move")
