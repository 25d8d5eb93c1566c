"""Text out: as a user calls it, on a model that knows nothing, from raw text to sample."""

import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """prepare -> train, as subprocesses, on text with characters of one to four bytes."""
    home = tmp_path_factory.mktemp("home")
    sentence = "The naïve café sold 10 µg of 日本 tea to 🐍 and friends. "
    (home / "text.txt").write_text(
        "".join(f"{i} {sentence}\n" for i in range(200)), encoding="utf-8"
    )
    run("prepare.py", "text.txt", "--name=words", f"--data_dir={home / 'data'}", cwd=home)
    run(
        "train.py",
        *SMALL,
        f"--data_dir={home / 'data'}",
        "--max_steps=120",
        f"--out_dir={home / 'out/run'}",
        cwd=home,
    )
    return home


def test_the_newest_run_writes_text_and_only_text_to_stdout(trained):
    done = run("sample.py", "--prompt=The naïve", "--max_new_bytes=120", cwd=trained)
    assert (
        done.stdout.startswith("The naïve")
        and "bytes/s" in done.stderr
        and "bytes/s" not in done.stdout
    )
    assert (
        60 < len(done.stdout.encode()) <= 9 + 120 + 60
    )  # (a byte that fits no character is written as three)
    again = run(
        "sample.py", "--prompt=The naïve", "--max_new_bytes=120", "--out_dir=out/run", cwd=trained
    )
    assert again.stdout == done.stdout, "same seed, same text"
    other = run("sample.py", "--prompt=The naïve", "--max_new_bytes=120", "--seed=1", cwd=trained)
    assert other.stdout != done.stdout


def test_prompt_from_a_file_and_from_standard_input(trained):
    (trained / "prompt.txt").write_text("日本", encoding="utf-8")
    args = ["--max_new_bytes=30", "--temperature=0"]
    a = run("sample.py", "--prompt_file=prompt.txt", *args, cwd=trained)
    b = run("sample.py", "--prompt_file=-", *args, cwd=trained, input="日本")
    c = run("sample.py", "--prompt=日本", *args, cwd=trained)
    assert a.stdout == b.stdout == c.stdout and a.stdout.startswith("日本")


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
def test_errors_are_one_line(trained, args, words):
    (trained / "bad.bin").write_bytes(b"ab\xff")
    done = run("sample.py", *args, check=False, cwd=trained)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.strip().count("\n") == 0
    for word in words:
        assert word in done.stderr
