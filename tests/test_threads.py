"""A run notices a busy machine, and its results do not depend on the number of threads."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import message_of

import train
from lib import threads
from lib.files import load_checkpoint, read_log
from lib.threads import Threads


@pytest.fixture
def machine(monkeypatch):
    """A machine with 4 threads that only counts them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine = SimpleNamespace(device=torch.device("cpu"), n=4, sum=lambda numbers: numbers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.n)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(machine, "n", n))
    return machine


def model_and_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    return model, optimizer, step


def train_for(threads, machine, seconds, seconds_of, elapsed=0.0):
    """Steps of `threads` on a machine where a step takes seconds_of[n] with n threads.

    -> (time after them, how many steps were made with each number)
    """
    model, optimizer, step = model_and_optimizer()
    n_steps = dict.fromkeys(seconds_of, 0)
    end = elapsed + seconds
    while elapsed < end:
        n_steps[machine.n] += 1
        elapsed += seconds_of[machine.n]
        threads.step_seconds = seconds_of[machine.n]
        threads.after_step(elapsed, step, model, [optimizer])
    return elapsed, n_steps


def test_the_faster_number_of_threads_is_kept_while_it_is_faster(machine):
    said = []
    found = Threads(machine, True, said.append)
    busy = {4: 3.0, 2: 0.2}
    quiet = {4: 0.1, 2: 0.15}

    elapsed, n_steps = train_for(found, machine, 100, busy)
    assert machine.n == 2
    assert n_steps[4] <= 2  # of 3 seconds each
    assert len(said) == 1
    assert "with 2 instead of 4 threads" in said[0]

    # When the machine is quiet again, all threads work again.
    elapsed, _ = train_for(found, machine, 200, quiet, elapsed)
    assert machine.n == 4
    assert "with 4 instead of 2 threads" in said[1]

    # There a trial costs next to nothing, and a busy machine is noticed at once.
    elapsed, n_steps = train_for(found, machine, 600, quiet, elapsed)
    assert n_steps[2] < 0.01 * n_steps[4]
    elapsed, n_steps = train_for(found, machine, 60, busy, elapsed)
    assert machine.n == 2 and n_steps[4] <= 8


def test_a_small_difference_is_no_reason_to_change(machine):
    said = []
    found = Threads(machine, True, said.append)
    train_for(found, machine, 300, {4: 0.105, 2: 0.1})
    assert machine.n == 4 and not said


def test_the_comparison_leaves_the_run_as_it_was(machine):
    found = Threads(machine, True, print)
    model, optimizer, step = model_and_optimizer()
    step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with found:
        pass
    found.after_step(1.0, step, model, [optimizer])
    assert torch.equal(torch.rand(3), expected)
    after = [model.state_dict(), optimizer.state_dict()]
    assert str(after) == str(before)
    assert found.may_change


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_if_a_bit_depends_on_the_threads_a_line_only_advises(what, machine, monkeypatch):
    said = []
    found = Threads(machine, True, said.append)
    model, optimizer, step = model_and_optimizer()
    monkeypatch.setattr(threads, "CLEAR", 0)  # however long the steps took

    def another_step():
        (loss,) = step()
        if what == "loss":
            return [loss * (1 + 1e-6 * machine.n)]
        with torch.no_grad():
            model.weight.mul_(1 + 1e-6 * machine.n)
        return [loss]

    for elapsed in range(300):
        with found:
            pass
        found.after_step(elapsed, another_step, model, [optimizer])
        assert machine.n == 4
    assert len(said) == 1
    assert "OMP_NUM_THREADS=2 may be faster" in said[0]


def test_who_has_chosen_is_left_alone(machine, monkeypatch):
    assert Threads(machine, True, print).is_on
    cuda = SimpleNamespace(device=torch.device("cuda"), sum=lambda numbers: numbers)
    assert not Threads(cuda, True, print).is_on
    machine.n = 1
    assert not Threads(machine, True, print).is_on
    machine.n = 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not Threads(machine, True, print).is_on


def test_a_run_that_changes_its_threads_learns_the_same(small, tmp_path, monkeypatch, capsys):
    args = [*small, "--max_steps=12", "--eval_interval=4"]
    train.main([*args, f"--out_dir={tmp_path / 'one'}"])

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "TRIAL_SECONDS", 0)
    monkeypatch.setattr(threads, "CLEAR", float("inf"))
    used = []
    set_number = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (used.append(n), set_number(n)))
    set_number(2)
    try:
        train.main([*args, f"--out_dir={tmp_path / 'two'}"])
        assert torch.get_num_threads() == 2
    finally:
        set_number(1)
    assert used.count(1) >= 4 and used.count(2) >= 4
    one, two = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    trained = [[e["bpb"] for e in log if e["event"] == "train"] for log in logs]
    assert trained[0] == trained[1]
    scored = [[e["bpb"] for e in log if e["event"] == "eval"] for log in logs]
    assert scored[0] == pytest.approx(scored[1], rel=1e-6)


def test_all_processes_choose_or_none_does(machine):
    """One process alone would wait for the others forever."""
    machine.sum = lambda numbers: [sum(numbers) + 1]  # another process has OMP_NUM_THREADS set
    assert not Threads(machine, True, print).is_on


# --- processes ------------------------------------------------------------------------------------


def test_processes_that_differ_do_not_start(small, tmp_path, monkeypatch):
    """Process 1 of two has something else; both end in the same line."""
    other = {}

    def gather(found, facts):
        found[:] = [facts, facts | other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(train.Machine, "sum", lambda self, numbers: numbers)

    def in_two(self, *args):
        machine_of_one(self, *args)
        self.world = 2

    machine_of_one = train.Machine.__init__
    monkeypatch.setattr(train.Machine, "__init__", in_two)
    args = [*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"]
    for name, value in (
        ("--seed", 5),
        ("--objective", "masked"),
        ("dtype", "bfloat16"),
        ("the step of last.pt", 100),
        ("the sha256 of data/words/train.bin", "0" * 64),
        ("the sha256 of data/words/val.bin", "0" * 64),
        ("the sha256 of model.py", "0" * 64),
        ("the sha256 of lib/data.py", "0" * 64),
    ):
        other.clear()
        other[name] = value
        message = message_of(train.main, args)
        assert message.startswith(f"processes disagree about {name}: process 0 has ")
        assert f"process 1 has {value!r}" in message
    assert not (tmp_path / "run").exists()


def test_other_bytes_under_the_same_meta_json_are_noticed(data_dir, small, tmp_path, monkeypatch):
    shutil.copytree(data_dir, tmp_path / "data")
    path = tmp_path / "data" / "words" / "train.bin"
    facts = []
    monkeypatch.setattr(train.Machine, "check_agreement", lambda self, found: facts.append(found))
    monkeypatch.setattr(train.Machine, "sum", lambda self, numbers: numbers)
    machine_of_one = train.Machine.__init__

    def in_two(self, *args):
        machine_of_one(self, *args)
        self.world = 2

    monkeypatch.setattr(train.Machine, "__init__", in_two)
    monkeypatch.setattr(train, "compile_and_wrap", lambda *_: 1 / 0)  # far enough
    path.write_bytes(path.read_bytes().replace(b"the", b"eht"))
    for folder in (data_dir, tmp_path / "data"):
        with pytest.raises(ZeroDivisionError):
            train.main([*small, "--max_steps=2", f"--data_dir={folder}", f"--out_dir={tmp_path}/r"])
    a, b = facts
    assert {name for name in a if a[name] != b[name]} == {"the sha256 of data/words/train.bin"}


@pytest.mark.parametrize(
    "variables, name",
    [
        ({"RANK": "1"}, "RANK=1"),
        ({"RANK": "x"}, "RANK='x'"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=''"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
    ],
)
def test_what_torchrun_sets_is_checked(variables, name, small, tmp_path, monkeypatch):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    message = message_of(train.main, [*small, "--max_steps=2", f"--out_dir={tmp_path / 'run'}"])
    assert message.startswith(name) and "torchrun" in message
    assert not (tmp_path / "run").exists()
