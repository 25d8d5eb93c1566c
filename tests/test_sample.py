"""sample.py as a user calls it, with a small model made from raw text."""

import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SMALL, message_of, run

import prepare
import sample
import train
from lib.data import encode
from model import EOT, STLM, ModelConfig


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


# --- which text it is ----------------------------------------------------------------------------


def written(symbols, capsys, prompt="", stop=True, **knobs):
    """What sample.py writes if its model writes these symbols."""

    def generate(prompt, max_new, **choices):
        for symbol in symbols[:max_new]:
            if stop and symbol == model.eot:
                return
            yield symbol

    cfg = ModelConfig(**knobs)
    eot = EOT if cfg.tokenizer == "bytes" else cfg.gpt2_vocab - 1
    model = SimpleNamespace(cfg=cfg, eot=eot, generate=generate)

    def of_length(max_new_bytes):
        options = sample.SampleConfig(max_new_bytes=max_new_bytes, stop=stop)
        sample.write_text(model, prompt.encode(), options, None)
        text = capsys.readouterr().out
        assert text.endswith("\n")
        return text[:-1]

    return of_length


def test_a_text_ends_with_a_whole_character(capsys):
    text = "天é🐍a"
    of_length = written(list(text.encode()) * 2, capsys, prompt="天")
    for length in range(2 * len(text.encode()) + 1):
        assert of_length(length) == "天" + (text * 2).encode()[:length].decode(errors="ignore")


def test_bytes_of_the_model_that_are_not_utf8_are_shown(capsys):
    cut = list("天".encode()[:2])
    assert written([*cut, 97, 98], capsys)(4) == "\ufffdab"
    assert written([*cut, 0xE5, 0xA4], capsys)(4) == "\ufffd", "only the second was cut by us"
    assert written([97, *cut, EOT, 98], capsys)(9) == "a\ufffd", "the model ended its document"
    assert written([0xFE, 97], capsys)(2) == "\ufffda"


def test_an_empty_line_stands_between_the_documents_of_one_text(capsys):
    cut = list("天".encode()[:2])
    symbols = [97, EOT, 98, *cut, EOT, 99, *cut]
    of_length = written(symbols, capsys, stop=False)
    assert of_length(8) == "a\n\nb\ufffd\n\nc"
    assert of_length(3) == "a\n\nb" and of_length(5) == "a\n\nb"
    assert written(symbols, capsys)(8) == "a"


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="needs tiktoken's gpt2 files")
def test_tokens_become_text_in_the_same_way(capsys):
    knobs = {"tokenizer": "gpt2", "pooling": "none", "gpt2_vocab": 1000}
    tokens = encode(ModelConfig(**knobs), "a🐍b".encode())
    assert len(tokens) == 6, "each byte of the snake must be a token"
    assert written(tokens, capsys, **knobs)(4) == "a"
    assert written(tokens, capsys, **knobs)(5) == "a🐍"
    symbols = [*tokens[:3], 999, *tokens]
    assert written(symbols, capsys, stop=False, **knobs)(99) == "a\ufffd\n\na🐍b"
    assert written(symbols, capsys, **knobs)(99) == "a\ufffd"


def test_an_unfinished_generate_leaves_no_trace():
    """Neither in the caller's mode, nor as an error when the program ends before it."""
    code = "from model import STLM, ModelConfig\n"
    code += "model = STLM(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=16))\n"
    code += "made = model.generate(b'a', stop=False)\nprint(next(made))\n"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().isdigit() and done.stderr == ""
    model = STLM(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=16))
    for mode in (False, True):
        with torch.inference_mode(mode):
            for n, _ in enumerate(model.generate(b"a", 5, stop=False)):
                assert torch.is_inference_mode_enabled() == mode
                if n == 2:
                    break
            assert torch.is_inference_mode_enabled() == mode


# --- where it runs --------------------------------------------------------------------------------


class NotebookStream(io.TextIOBase):
    """Like a notebook's sys.stdout: it has neither `reconfigure` nor `buffer`."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)


def test_in_a_notebook(trained, monkeypatch):
    monkeypatch.chdir(trained)
    stream = NotebookStream()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stdin", NotebookStream())
    sample.main(["--prompt=日本", "--max_new_bytes=30", "--device=cpu"])
    assert stream.text.startswith("日本") and len(stream.text) > 10
    for stdin in (NotebookStream(), None):
        monkeypatch.setattr("sys.stdin", stdin)
        assert "--prompt_file=FILE" in message_of(sample.main, ["--prompt_file=-"])


@pytest.mark.parametrize("command", ["train.py", "sample.py", "prepare.py", "bench.py", "report"])
def test_ctrl_c_during_the_imports_is_quiet(command, tmp_path):
    """The imports take seconds. Here that of torch takes a minute."""
    program = [str(ROOT / command)] if command.endswith(".py") else ["-m", f"tools.{command}"]
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(slow)
    for handler, status in ((signal.SIG_DFL, -signal.SIGINT), (signal.SIG_IGN, None)):
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda handler=handler: signal.signal(signal.SIGINT, handler),
        )
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        if status is None:  # a job in the background, which the shell protects from Ctrl-C
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            process.kill()
        assert process.communicate(timeout=30)[1] == b""
        assert process.returncode == (status or -signal.SIGKILL)


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
