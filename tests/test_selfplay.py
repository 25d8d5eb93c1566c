"""Self-play: the rules of the games, the exact measure, the moves to learn from, whole runs."""

import contextlib
import copy
import functools
import json
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, message_of, run
from conftest import SMALL as SMALL_ON_TEXT

import bench
import prepare
import sample
import train
from config import Config, build, load_file
from lib.files import game_of, load_checkpoint, load_run, newest_run
from lib.games import GAMES, best_moves, choose, every_line, play, scores, uniform
from lib.selfplay import (
    GameSource,
    PlayGame,
    advantages,
    lineup,
    log_p,
    spin_loss,
    variety,
    write_on,
)
from model import PAD, STLM
from tools import share
from tools.share import about_run

SMALL = [
    "--n_embd=16",
    "--n_head=1",
    "--n_local_embd=16",
    "--n_grams=1",
    "--gram_rows=64",
    "--games=16",
    "--device=cpu",
]
SMALL += ["config/selfplay_game.py", "--batch_bytes=512", "--log_interval=1"]


@pytest.fixture(params=GAMES)
def game(request):
    return GAMES[request.param]()


def config(**knobs):
    return build(Config, load_file(Config, "config/selfplay_game.py")[0] | knobs)


class Inclined(STLM):
    """Chooses a digit about every other time, so that an untrained model's games last a while."""

    def head(self, x):
        return super().head(x) + 4.5 * torch.zeros(256).index_fill(
            0, torch.arange(ord("1"), ord("9") + 1), 1
        )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Inclined(config()).eval()
    # No projection stays at zero, so that a choice depends on the whole text so far.
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


class ByTable:
    """Replaces a model: it reads the game's text and plays the lowest of the best moves."""

    def __init__(self, game, best):
        self.game = game
        self.best = best

    def eval(self):
        return self

    def start(self, n):
        return {"text": torch.zeros(n, 0, dtype=torch.long)}

    def read(self, idx, state, last):
        text = torch.cat((state["text"], idx), dim=1)
        return text[:, None], {"text": text}

    def head(self, text):
        position = self.game.start(len(text))
        over = torch.zeros(len(text), dtype=torch.bool)
        for at in range(1 + self.game.n_mark, text.size(1), self.game.width):
            position, _, ended = self.game.move(position, text[:, at])
            over |= ended  # text after a game's end has no effect
        marks = text[:, -self.game.n_mark :] == self.game.mark(position)
        assert marks[~over].all(), "the mark must be that of the position"
        logits = torch.zeros(len(text), 256)
        logits[:, self.game.moves] = self.best[self.game.key(position)].float()
        return logits


def test_tictactoe_has_255168_games_and_is_a_draw():
    game = GAMES["tictactoe"]()
    n = 0
    state = game.start(1)
    while len(state):
        rows, moves = game.legal(state).nonzero().unbind(dim=1)
        state, _, over = game.step(state[rows], moves)
        n += int(over.sum())
        state = state[~over]
    assert n == 255_168
    assert best_moves(game)[1][game.key(game.start(1))] == 0


def test_multiples_of_four_lose_at_nim():
    best, value = best_moves(GAMES["nim"]())
    for left in range(1, 22):
        assert value[left] == (-1 if left % 4 == 0 else 1)
        assert left % 4 == 0 or best[left].nonzero().flatten().tolist() == [left % 4 - 1]


def test_the_table_agrees_with_plain_recursion():
    game = GAMES["tictactoe"]()
    value = best_moves(game)[1]
    lines = game.LINES.tolist()

    @functools.cache
    def worth(board, mover):
        if any(all(board[i] == -mover for i in line) for line in lines):
            return -1
        free = [i for i in range(9) if not board[i]]
        return max((-worth((*board[:i], mover, *board[i + 1 :]), -mover) for i in free), default=0)

    for board in (
        [0] * 9,
        [1, 0, 0, 0, -1, 0, 0, 0, 1],
        [1, -1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, -1, -1, 0, 0, 1, 0, -1],
    ):
        mover = 1 if sum(board) == 0 else -1
        assert value[game.key(mover * torch.tensor([board]))] == worth(tuple(board), mover), board


def test_every_game_is_text_and_parses_back(game):
    """Random games reach every first and second move.

    A reader who follows the rules gets the same result from their text.
    """
    games = play(game, None, None, game.legal, uniform(1, 500, game.n_plies, "cpu"))
    shown = [bytes(row[1:].tolist()).rstrip(b"\xfe").decode() for row in games.text]
    if game.n_plies == 9:
        assert len({text[:5] for text in shown}) == 72 and all(len(text) % 3 == 0 for text in shown)
    for text, result in zip(shown, games.result.tolist(), strict=True):
        state = game.start(1)
        over = False
        value = 0
        for word in text.split():
            assert not over and word[:-1].encode() == bytes(game.mark(state)[0].tolist())
            state, value, over = game.move(state, torch.tensor([ord(word[-1])]))
        assert over and result == (value.item() if len(text.split()) % 2 == 1 else -value.item())


def test_an_illegal_move_loses(game):
    for byte in (0, ord(" "), ord("0"), 0xFF):
        _, value, over = game.move(game.start(1), torch.tensor([byte]))
        assert value.item() == -1 and over.item()
    state, value, over = game.move(game.start(1), game.moves[:1])
    assert value.item() == 0 and not over.item()
    if game.n_plies == 9:
        assert game.move(state, game.moves[:1])[1].item() == -1, (
            "a second move to a field must lose"
        )
    else:
        assert game.move(torch.tensor([[2]]), game.moves[2:])[1].item() == -1, (
            "to take more than are left must lose"
        )


ALONE = SimpleNamespace(
    rank=0,
    world=1,
    device=torch.device("cpu"),
    autocast=torch.autocast("cpu", enabled=False),
    sum=lambda numbers: numbers,
)
PROGRESS = torch.tensor(0.5)


def source_of(game, model, **knobs):
    return GameSource(
        config(game=next(k for k in GAMES if type(game) is GAMES[k]), **knobs), model, ALONE
    )


def test_only_moves_that_the_model_chose_are_trained_on(game, model):
    """The logits of openings and after a game's end have no gradient.

    Those of an illegal move have one.
    """
    source = source_of(game, model, games=64, random_games=0)
    batch = source.games_to_learn_from(5)
    games = source.played
    assert games.illegal.any() and (~games.chosen[:, 0]).any()
    ended = games.text[:, game.asked] == PAD  # the game is over, so nobody typed a mark
    assert not (games.chosen & ended).any() and (games.chosen | ended)[:, 4:].all()
    assert games.chosen[:, 4].any()
    seen = []

    def watch_head(x):
        seen.append(model.head(x).detach().requires_grad_())
        return seen[0]

    spy = SimpleNamespace(hidden=model.hidden, head=watch_head, embed=model.embed)
    PlayGame(spy, source.cfg)(*batch, progress=PROGRESS).backward()
    trained = seen[0].grad.abs().sum(dim=2) > 0
    assert torch.equal(trained, games.chosen)
    last = games.chosen.float().cumsum(dim=1).argmax(dim=1)
    assert trained[games.illegal.nonzero()[:, 0], last[games.illegal]].all()


def test_random_games_have_one_random_side_and_a_mean_of_their_own(game, model):
    """A quarter of the games have a random first or second player, equally often.

    A move is compared with games of its kind. If all games of a kind end alike, they teach nothing.
    """
    u = uniform(2, 4000, 2, "cpu")
    by_model, side = lineup(game, config(openings=0, random_games=0.25), u)
    shares = (side.bincount(minlength=3) / 4000).tolist()
    assert shares == pytest.approx([0.125, 0.125, 0.75], abs=0.02)
    for which in (0, 1, 2):
        moves = by_model[side == which]
        for ply in range(game.n_plies):
            assert moves[:, ply].all() if ply % 2 != which else not moves[:, ply].any()
    assert not (lineup(game, config(random_games=0), u)[1] < 2).any()
    assert not (lineup(game, config(random_games=1), u)[1] == 2).any()

    u = uniform(3, 64, 2 + game.n_plies, "cpu")
    by_model, side = lineup(game, config(openings=0), u[:, :2])
    games = play(game, model, by_model, game.legal, u[:, 2:])
    games.result = torch.where(side == 0, -1, 1)
    chosen = games.chosen
    assert advantages(game, games, side, lambda x: x)[chosen].abs().max() < 1e-6
    alike = torch.full_like(side, 2)
    assert advantages(game, games, alike, lambda x: x)[chosen].abs().max() > 1e-3


def test_rewards_sum_to_zero(game, model):
    """One side's win is the other's loss: the opposite result flips the sign of each term."""
    u = uniform(1, 64, 2 + game.n_plies, "cpu")
    by_model, side = lineup(game, config(), u[:, :2])
    games = play(game, model, by_model, game.legal, u[:, 2:])
    moved_last = (games.text[:, game.asked] != PAD).sum(dim=1) - 1
    lost_by_it = games.result[games.illegal] == 2 * (moved_last[games.illegal] % 2) - 1
    assert lost_by_it.all(), "after an illegal move the other side must win"
    one = advantages(game, games, side, lambda x: x)
    games.result *= -1
    torch.testing.assert_close(advantages(game, games, side, lambda x: x), -one)
    assert one[games.chosen].any()


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_a_step_of_games_is_the_same_in_one_pass_or_several(game, model, progress):
    """Each move counts the same in micro-batches of any size.

    Games differ in length, and the last micro-batch may be smaller.
    """
    source = source_of(game, model, games=50, batch_bytes=37 * game.n_plies * game.width)
    batch = source.at(3, progress)
    objective = PlayGame(model, source.cfg)
    off = torch.autocast("cpu", enabled=False)
    found = []
    for micro_batch in (100, 8):
        gradients = []
        model.zero_grad()
        spy = SimpleNamespace(
            step=lambda g=gradients: g.extend(p.grad.clone() for p in model.parameters())
        )
        loss, _ = train.train_step(objective, [spy], batch, micro_batch, off, 0.0, progress)
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)
    for one, several in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, several, rtol=1e-3, atol=1e-6)


def test_a_perfect_player_loses_no_line_and_the_measure_agrees_with_playing(game):
    best, _ = best_moves(game)
    player = ByTable(game, best)
    found = scores(game, player, best, seed=1, n=400)
    lost = [int(found[f"lost_{who}"].split("/")[0]) for who in ("first", "second")]
    assert lost[0] == 0
    assert (lost[1] == 0) == (game.n_plies == 9), "at Nim the second player must lose"
    plies = torch.arange(game.n_plies).expand(4000, -1)
    for role in (0, 1):
        lines, _, shares = every_line(game, player, role)
        assert sum(shares) == pytest.approx(1) and lines > 50
        games = play(
            game,
            player,
            plies % 2 == role,
            game.legal,
            uniform(2, 4000, game.n_plies, "cpu"),
            greedy=True,
        )
        won = (games.result == (1 - 2 * role)).double().mean().item()
        assert won == pytest.approx(shares[0], abs=0.03), (
            "the share must match games against random moves"
        )


def test_draws_are_as_likely_as_their_weights():
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(20_000, -1)
    found = choose(weights, uniform(1, 20_000, 1, "cpu")[:, 0]).bincount(minlength=5) / 20_000
    assert found.tolist() == pytest.approx([0, 0.25, 0, 0.75, 0], abs=0.02)
    assert choose(weights[:2], torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [
        1,
        3,
    ]


def test_games_repeat_from_the_seed_and_do_not_depend_on_the_batch(game, model):
    def text(step, n):
        u = uniform(step, n, 2 + game.n_plies, "cpu")
        by_model, _ = lineup(game, config(), u[:, :2])
        return play(game, model, by_model, game.legal, u[:, 2:]).text

    many = text(7, 64)
    assert torch.equal(text(7, 16), text(7, 16)) and torch.equal(text(7, 16), many[:16])
    assert not torch.equal(many, text(8, 64))


def test_reading_games_in_training_is_what_play_saw(game, model):
    """The training pass over whole games gives each move the probability that play drew it with."""
    source = source_of(game, model, games=32)
    text, _, chosen, *_ = source.games_to_learn_from(3)
    asked = text[:, : game.asked[-1] + 1]
    a = model.head(model.hidden(asked)[:, game.asked])[chosen]
    b = model.head(model.read(asked, model.start(len(asked)))[0][:, game.asked])[chosen]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    text, per_row = source.games_to_read(3)
    mean = PlayGame(model, source.cfg)(text, per_row, progress=PROGRESS).item()
    one_by_one = [model.nats(row[None, :-1], row[None, 1:])[0, row[1:] != PAD] for row in text]
    assert mean == pytest.approx(torch.cat(one_by_one).mean().item(), abs=1e-4)


@pytest.mark.slow
def test_a_little_training_on_nim_cuts_illegal_moves(tmp_path, capsys):
    out = tmp_path / "nim"
    keys = "illegal lost_first lost_second win_random_first win_random_second"
    keys += " draw_perfect_first draw_perfect_second win_perfect_first seconds"
    length = ["--batch_bytes=2048", "--max_steps=130", "--pretrain=0.8", "--eval_interval=0"]
    train.main([*SMALL, "--game=nim", *length, f"--out_dir={out}"])
    last = dict(pair.split("=") for pair in capsys.readouterr().out.splitlines()[-1].split())
    assert list(last) == keys.split() and float(last["illegal"]) < 0.3
    model = STLM(config(game="nim"))
    source = GameSource(config(game="nim", games=64), model, ALONE)
    source.games_to_learn_from(0)
    untrained = source.played
    assert untrained.illegal.sum() / untrained.chosen.sum() > 0.8


@contextlib.contextmanager
def stopped_after(n_steps):
    """Send SIGTERM in the n-th step of the run."""
    original = train.train_step
    calls = []

    def step(*args):
        calls.append(1)
        if len(calls) == n_steps:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", step)
        yield


def test_resumed_equals_uninterrupted_and_leaves_what_sample_takes(tmp_path):
    """A signal stops the run while it reads and again while it plays.

    Both optimizers then go on as before.
    """
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    args = [*SMALL, "--max_steps=12", "--pretrain=0.5", "--eval_interval=5"]
    train.main([*args, f"--out_dir={whole}"])
    for stop_at in (4, 9, None):
        done = load_checkpoint(parts / "last.pt")["step"] if parts.exists() else 0
        n_steps = stop_at - done if stop_at else None
        with stopped_after(n_steps):
            code = train.main([*args, f"--out_dir={parts}", "--resume=auto"])
        assert code == (130 if stop_at else 0)
    a, b = (load_checkpoint(folder / "last.pt") for folder in (whole, parts))
    assert a["step"] == b["step"] == 12
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    evals = [[(e["step"], e["lost"]) for e in log if e["event"] == "eval"] for log in logs]
    assert evals[0] == evals[1] and [step for step, _ in evals[0]] == [5, 10, 12]
    info = json.loads((parts / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["command"].startswith("train.py")
    assert info["config"]["game"]
    # The verdict belongs to the best weights, and goes with no others.
    for name in ("best", "last"):
        path = parts / f"{name}.pt"
        checkpoint = load_checkpoint(path)
        shared = about_run(checkpoint, path)
        assert ("verdict" in shared) == (checkpoint["step"] == info["best_step"])
        assert shared["command"]
    # moves from a file: the end of the file answers "no" to another game
    done = run("sample.py", f"--out_dir={parts}", input="\n".join("y" + "123456789" * 3))
    assert done.stdout.endswith("Another game? [y/n] ")


END_OF_GAME = r"(you win|the model wins|a draw)(, because the last move was illegal)?: (X.*)"


def test_a_person_plays_either_side_and_again(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    train.main([*SMALL, "--max_steps=3", f"--out_dir={out}"])
    shared = tmp_path / "shared"
    share.main([f"--model={out}", f"--to={shared}"])
    assert "plays tictactoe" in (shared / "README.md").read_text()
    begins = iter("yn")
    moves = iter("x123456789" * 6)
    more = iter("yn")

    def answer(question):
        if question.startswith("Do you want to go first"):
            return next(begins)
        if question.startswith("Another game"):
            return next(more)
        return next(moves)

    monkeypatch.setattr("builtins.input", answer)
    capsys.readouterr()
    sample.main([f"--model={shared}", "--device=cpu"])
    shown = capsys.readouterr().out
    ends = list(re.finditer(END_OF_GAME, shown))
    assert len(ends) == 2, "two games"
    for end in ends:
        # The final board is what stands last before the verdict.
        board = " ".join(shown[: end.start()].splitlines()[-3:]).split()
        played = end[3].split()
        if end[2]:
            played = played[:-1]
        for mark, square in played:
            assert board[int(square) - 1] == mark, "the board shows the whole game"
        assert sum(cell in "XO" for cell in board) == len(played)


def test_the_player_in_the_clone_plays_as_its_card_says():
    """The 8-bit weights in results/models against every line of play, exactly."""
    model, checkpoint, _ = load_run(ROOT / "results/models/tictactoe")
    game = GAMES[game_of(checkpoint)]()
    card = (ROOT / "results/models/tictactoe/README.md").read_text()
    for role, name in enumerate(("first", "second")):
        n_lines, n_lost, _ = every_line(game, model, role)
        assert f"lost_{name}={n_lost}/{n_lines}" in card


def test_a_game_is_no_model_of_text(tmp_path, monkeypatch, capsys):
    """The newest run is one on text; a game asked for by name is refused where text is wanted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A few words to read, again and again. " * 40)
    prepare.main(["text.txt", "--name=words"])
    train.main([*SMALL_ON_TEXT, "--max_steps=1", "--out_dir=out/words"])
    train.main([*SMALL, "--max_steps=1", "--out_dir=out/game"])
    capsys.readouterr()
    assert newest_run() == Path("out/words")
    assert "out/game plays tictactoe" in capsys.readouterr().err
    for main, args in (
        (sample.main, ["--model=out/game", "--prompt=X5 "]),
        (bench.main, ["eval", "--model=out/game"]),
    ):
        assert "plays tictactoe" in message_of(main, args)


def test_on_text_player_and_opponent_alike_give_ln_2_and_a_step_prefers_the_real(model):
    torch.manual_seed(0)
    student = copy.deepcopy(model)
    real = torch.randint(97, 123, (8, 61))
    own = write_on(student, real[:, :20], uniform(1, 8, 41, "cpu"))
    assert own.shape == real.shape and torch.equal(own[:, :20], real[:, :20])
    opponent = [log_p(student, text)[:, 19:].detach() for text in (real, own)]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for expected in (math.log(2), None):
        player = [log_p(student, text)[:, 19:] for text in (real, own)]
        loss = spin_loss(player, opponent, 0.1)
        if expected:
            assert loss.item() == pytest.approx(expected, abs=1e-6)
            loss.backward()
            optimizer.step()
    gain = [(new - old).sum().item() for new, old in zip(player, opponent, strict=True)]
    assert gain[0] > gain[1] and loss.item() < math.log(2)


def test_writing_on_repeats_from_the_seed_and_does_not_depend_on_the_batch(model):
    prefix = torch.randint(97, 123, (6, 12))
    many = write_on(model, prefix, uniform(3, 6, 30, "cpu"))
    assert torch.equal(many[:2], write_on(model, prefix[:2], uniform(3, 2, 30, "cpu")))
    assert not torch.equal(many, write_on(model, prefix, uniform(4, 6, 30, "cpu")))


def test_variety_counts_n_grams():
    text = torch.tensor([list(b"abababab"), list(b"abcdefgh")])
    assert variety(text, 2) == (pytest.approx(8 / 14), pytest.approx(5 / 12)), (
        "the first row has ab and ba, the second ab, bc and so on"
    )


def test_on_text_a_run_resumes_and_says_what_it_wrote(small, tmp_path, capsys):
    """A signal stops the run between two steps against the same opponent.

    The run starts from another run and takes its shape.
    """
    train.main([*small, "--max_steps=20", f"--out_dir={tmp_path / 'base'}"])
    args = ["config/selfplay_text.py", "--max_steps=6", "--block_size=32", "--batch_bytes=256"]
    args += ["--micro_batch=4", "--spin_steps=2", "--prefix_bytes=8", "--eval_interval=2"]
    args += ["--log_interval=1", "--eval_bytes=500", "--device=cpu"]
    start = f"--init_from={tmp_path / 'base'}"
    train.main([*args, start, f"--out_dir={tmp_path / 'whole'}"])
    said = capsys.readouterr().out
    for word in ("after", "real", "own"):
        assert word in said
    assert said.splitlines()[-1].startswith("val_bpb=")
    with stopped_after(3):
        assert train.main([*args, start, f"--out_dir={tmp_path / 'parts'}"]) == 130
    assert train.main([*args, start, f"--out_dir={tmp_path / 'parts'}", "--resume"]) == 0
    a, b = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert b["config"]["init_from"] == str(tmp_path / "base"), (
        "the config must keep the name of the first run"
    )
    a = a["model"]
    b = b["model"]
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    steps = [e for e in map(json.loads, lines) if e["event"] == "train"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]
    assert all(0 < e["distinct_own"] <= 1 and 0 <= e["repeated_real"] < 1 for e in steps)
    assert steps[0]["spin"] == pytest.approx(math.log(2), abs=1e-6), (
        "at first, model and opponent must be alike"
    )


def test_reading_alone_needs_no_player(tmp_path):
    out = f"--out_dir={tmp_path / 'run'}"
    args = [*SMALL, "--pretrain=1", "--max_steps=0", "--max_seconds=0.000001", out]
    assert train.main(args) == 0


def test_spin_takes_the_patches_of_a_run_without_pooling(small, tmp_path):
    plain = ["--pooling=none", "--max_patches=0", "--max_steps=2"]
    train.main([*small, *plain, f"--out_dir={tmp_path / 'base'}"])
    args = ["config/selfplay_text.py", "--max_steps=1", "--block_size=32", "--batch_bytes=64"]
    args += ["--prefix_bytes=8", "--eval_bytes=500", "--device=cpu"]
    start = f"--init_from={tmp_path / 'base'}"
    assert train.main([*args, start, f"--out_dir={tmp_path / 'run'}"]) == 0


def test_the_card_of_a_game_praises_only_the_best_weights(tmp_path):
    out = tmp_path / "run"
    train.main([*SMALL, "--max_steps=3", f"--out_dir={out}"])
    for weights in ("best", "last"):
        to = tmp_path / weights
        share.main([f"--model={out}", f"--weights={weights}", f"--to={to}"])
        card = (to / "README.md").read_text()
        assert ("lost the fewest lines" in card) == (weights == "best")


def test_without_an_opponent_spin_is_next_byte_training(small, tmp_path):
    train.main([*small, "--max_steps=5", f"--out_dir={tmp_path / 'base'}"])
    args = ["config/selfplay_text.py", "--max_steps=2", "--block_size=32", "--batch_bytes=256"]
    args += ["--spin_beta=0", "--log_interval=1", "--eval_bytes=500", "--device=cpu"]
    out = tmp_path / "run"
    train.main([*args, "--prefix_bytes=8", f"--init_from={tmp_path / 'base'}", f"--out_dir={out}"])
    lines = (out / "log.jsonl").read_text().splitlines()
    steps = [e for e in map(json.loads, lines) if e["event"] == "train"]
    assert len(steps) == 2 and not any("spin" in e or "distinct_own" in e for e in steps)


def test_what_would_go_wrong_later_is_said_first(small, tmp_path):
    """A mistake that would show later gives one line at the start.

    Some examples are too few bytes to write, other weights on resume, and a game's model for text.
    """
    base, text, played = (f"--out_dir={tmp_path / name}" for name in ("base", "text", "played"))
    train.main([*small, "--max_steps=2", base])
    args = ["config/selfplay_text.py", "--max_steps=2", "--block_size=32", "--batch_bytes=32"]
    args += ["--micro_batch=1", "--prefix_bytes=26", "--eval_interval=2", "--eval_bytes=500"]
    args += ["--device=cpu"]
    start = f"--init_from={tmp_path / 'base'}"
    assert train.main([*args, start, text]) == 0, (
        "a run must take one row, of which the model writes 7 bytes"
    )
    train.main([*SMALL, "--max_steps=2", "--pretrain=0.5", played])
    for command, words in (
        ([*args, start, text, "--prefix_bytes=27", "--overwrite"], "prefix_bytes=27 .* 1 and 26"),
        ([*args, base, "--resume"], "on resume only"),
        ([*small, text, "--resume", "--max_steps=2", "--objective=next_byte"], "on resume only"),
        (
            [*args, f"--init_from={tmp_path / 'played'}", text, "--overwrite"],
            "not trained on a dataset: give --dataset=NAME",
        ),
        ([*SMALL, "--tokenizer=gpt2", "--pooling=none", "--max_patches=0"], "tokenizer='gpt2'"),
        ([*SMALL, "--compile=on"], "compile='on'"),
    ):
        with pytest.raises(ValueError, match=words):
            train.main(command)


def test_a_checkpoint_of_the_former_selfplay_names_its_commit(tmp_path):
    out = tmp_path / "run"
    train.main([*SMALL, "--max_steps=2", "--pretrain=0.5", f"--out_dir={out}"])
    checkpoint = load_checkpoint(out / "last.pt")
    checkpoint["config"]["opponent"] = "self"
    del checkpoint["config"]["objective"]
    torch.save(checkpoint, out / "last.pt")
    with pytest.raises(ValueError, match="git checkout 1254c3f"):
        train.main([*SMALL, "--resume", "--max_steps=4", f"--out_dir={out}"])


@pytest.mark.parametrize(
    "args, words",
    [
        (["config/selfplay_game.py", "--game=chess"], ["game='chess'", "tictactoe"]),
        (["config/selfplay_game.py", "--init_from=nowhere"], ["nowhere"]),
        (["config/selfplay_text.py"], ["--init_from"]),
        (["config/selfplay_text.py", "--init_from=nowhere"], ["nowhere"]),
        (["config/selfplay_text.py", "--prefix_bytes=0"], ["prefix_bytes=0"]),
        (["config/selfplay_text.py", "--opponent=none"], ["opponent", "--spin_beta=0"]),
        (["config/selfplay_game.py", "--play"], ["play", "sample.py"]),
        (
            ["config/selfplay_game.py", "--random_games=1.5"],
            ["random_games=1.5", "between 0 and 1"],
        ),
        (["config/selfplay_game.py", "--block_size=20"], ["block_size=20", "--block_size=27"]),
        (["config/selfplay_game.py", "--games=1"], ["games=1"]),
        (["config/selfplay_game.py", "--entropie=1"], ["entropie", "entropy"]),
        (["config/selfplay_game.py", "please"], ["please", "--help"]),
    ],
)
def test_errors_are_one_line(tmp_path, args, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of(train.main, args)
    for word in words:
        assert word in message
