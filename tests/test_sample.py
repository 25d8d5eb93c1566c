"""sample.py as a user calls it, with a small model made from raw text."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, SMALL, message_of, run

import prepare
import sample
import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Prepare and train on text with characters of one to four bytes."""
    home = tmp_path_factory.mktemp("home")
    sentence = "The naïve café sold 10 µg of 日本 tea to 🐍 and friends. "
    lines = [f"{i} {sentence}\n" for i in range(200)]
    (home / "text.txt").write_text("".join(lines), encoding="utf-8")
    data = f"--data_dir={home / 'data'}"
    prepare.main([str(home / "text.txt"), "--name=words", data])
    train.main([*SMALL, data, "--max_steps=120", f"--out_dir={home / 'out/run'}"])
    return home


@pytest.fixture
def text_of(trained, monkeypatch, capsys):
    """A function that gives sample.py's output on stdout for its arguments."""
    monkeypatch.chdir(trained)

    def call(*args):
        capsys.readouterr()
        sample.main([*args, "--device=cpu"])
        return capsys.readouterr().out

    return call


def test_the_newest_run_writes_text_and_only_text_to_stdout(trained, text_of):
    args = ["--prompt=The naïve", "--max_new_bytes=120"]
    done = run("sample.py", *args, "--device=cpu", cwd=trained)
    assert done.stdout.startswith("The naïve")
    assert "bytes/s" in done.stderr and "bytes/s" not in done.stdout
    # A byte that fits no character becomes three bytes of output.
    assert 60 < len(done.stdout.encode()) <= 9 + 120 + 60
    assert text_of(*args, "--out_dir=out/run") == done.stdout, "one seed must give one text"
    assert text_of(*args, "--seed=1") != done.stdout


def test_prompt_from_a_file_and_from_standard_input(trained, text_of, monkeypatch):
    (trained / "prompt.txt").write_text("日本", encoding="utf-8")
    args = ["--max_new_bytes=30", "--temperature=0"]
    a = text_of("--prompt_file=prompt.txt", *args)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("日本".encode())))
    b = text_of("--prompt_file=-", *args)
    c = text_of("--prompt=日本", *args)
    assert a == b == c and a.startswith("日本")


def test_samples_and_a_pipe_that_closes(trained):
    done = run("sample.py", "--num_samples=3", "--max_new_bytes=20", "--stop=false", cwd=trained)
    assert done.stderr.count("bytes/s") == 3
    command = [sys.executable, str(ROOT / "sample.py"), "--max_new_bytes=3000", "--stop=false"]
    process = subprocess.Popen(command, cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(5)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(60)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--out_dir=nowhere"], ["nowhere"]),
        (["--temperature=-1"], ["temperature=-1"]),
        (["--top_p=0"], ["top_p=0"]),
        (["--prompt=a", "--prompt_file=b"], ["prompt"]),
        (["--prompt_file=absent.txt"], ["absent.txt"]),
        (["--prompt_file=bad.bin"], ["bad.bin", "byte 2", "0xFF"]),
        (["Once", "upon"], ["Once", "--prompt"]),
        (["--promt=x"], ["prompt"]),
    ],
)
def test_errors_are_one_line(trained, args, words, monkeypatch):
    monkeypatch.chdir(trained)
    (trained / "bad.bin").write_bytes(b"ab\xff")
    message = message_of(sample.main, args)
    for word in words:
        assert word in message
