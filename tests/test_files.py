"""Devices, number formats, and saving files."""

import json
import math

import pytest
import torch

from lib import files
from lib.files import duration, write_atomically
from lib.machine import pick_device, pick_dtype


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda f: f.write(b"old"))

    def full(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"disk is full.*untouched"):
        write_atomically(path, full)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_torchs_own_errors_are_not_taken_for_a_full_disk(tmp_path):
    """torch.save turns an OSError into a RuntimeError; other RuntimeErrors stay what they are."""

    class Full:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"disk is full"):
        write_atomically(tmp_path / "file", lambda f: torch.save({"x": Full()}, f))

    def broken(f):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        write_atomically(tmp_path / "file", broken)
    assert list(tmp_path.iterdir()) == []


def test_the_dtype_follows_from_what_the_cpu_has_and_from_nothing_else(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx512, dtype, why in (
        (True, True, torch.bfloat16, "AMX"),
        (False, True, torch.bfloat16, "AVX512-BF16"),
        (False, False, torch.float32, "no native"),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        found = pick_dtype("auto", cpu)
        assert found[0] == dtype and why in found[1]
        assert pick_dtype("float32", cpu)[0] == torch.float32
        assert pick_dtype("bfloat16", cpu)[0] == torch.bfloat16


def test_a_device_that_is_not_there_is_named():
    assert pick_device("cpu") == (torch.device("cpu"), "as requested")
    assert str(pick_device("cpu:0")[0]) == "cpu"
    for name in ("cuda:7", "cpu:x", "mps:5"):
        with pytest.raises(ValueError, match=rf"device='{name}' cannot be used"):
            pick_device(name)
    for name in ("gpu", "meta", "xla", ""):
        with pytest.raises(ValueError, match=rf"device='{name}' must be auto, cuda"):
            pick_device(name)


def test_durations():
    assert [duration(s) for s in (0, 61, 3600 * 23, 86400 * 9.6)] == [
        "0:00:00",
        "0:01:01",
        "23:00:00",
        "9.6 days",
    ]


def test_knobs_that_are_gone_are_left_out():
    known = files.known_values({"n_layer": 3, "gone": 1}, files.ModelConfig)
    assert known == {"n_layer": 3}


@pytest.mark.parametrize(
    "error, status, said",
    [
        (None, 0, ""),
        (ValueError("n_layer=0 must be at least 1"), 1, "demo.py: n_layer=0 must be at least 1\n"),
        (OSError("no such file"), 1, "demo.py: no such file\n"),
        (MemoryError(), 1, "demo.py: out of memory: take less\n"),
        (RuntimeError("can't allocate memory"), 1, "demo.py: out of memory: take less\n"),
        (KeyboardInterrupt("; all is saved"), 130, "demo.py: interrupted; all is saved\n"),
        (EOFError(), 1, "demo.py: stopped, because standard input has ended\n"),
    ],
)
def test_how_a_command_ends(error, status, said, monkeypatch, capsys):
    def main():
        if error:
            raise error

    monkeypatch.setattr("sys.argv", ["/some/where/demo.py"])
    with pytest.raises(SystemExit) as e:
        files.run_command(main, out_of_memory="take less")
    assert e.value.code == status and capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback():
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        files.run_command(main)


def test_json_that_anybody_wrote_is_read_as_far_as_it_fits(tmp_path, capsys):
    path = tmp_path / "eval.json"
    shape = {"step": int, "tasks": {"*": {"acc": float}}, "sources": [str], "more": object}
    good = {"step": 3, "tasks": {"blimp": {"acc": 1}}, "sources": ["a"], "more": [None]}
    path.write_text(json.dumps(good | {"another": 1}))
    assert files.read_json(path, shape) == good
    assert capsys.readouterr().err == ""

    wrong = {"step": True, "tasks": {"blimp": {"acc": math.nan}, "x": 5}, "sources": ["a", 7]}
    path.write_text(json.dumps(wrong))
    assert files.read_json(path, shape) == {"tasks": {"blimp": {}}, "sources": ["a"]}
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("left out") == said.count(str(path)) == 4
    assert "step: expected int, got True" in said

    shape = {"commit": "[0-9a-f]+", "device": "[a-z ]+"}
    path.write_text(json.dumps({"commit": 12, "device": "cpu of /home/ann"}))
    assert files.read_json(path, shape) == {}
    assert "commit: expected text like [0-9a-f]+, got 12" in capsys.readouterr().err
    path.write_text(json.dumps({"commit": "12", "device": "a cpu"}))
    assert files.read_json(path, shape) == {"commit": "12", "device": "a cpu"}


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 10**5, None])
def test_no_json_object_is_one_line_with_the_files_name(content, tmp_path):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json") as e:
        files.read_json(path)
    assert "\n" not in str(e.value)


def test_foreign_text_in_markdown_is_text():
    text = "a <img src=x>\n[l](http://e.com) `c` ![i](x) | www.x.y a@x.y\n\n# h\n```"
    shown = files.markdown_text(text)
    assert "\n" not in shown and "<" not in shown and "http:" not in shown and "www." not in shown
    assert "@" not in shown
    shown = shown.replace("&#58;", ":").replace("&#46;", ".").replace("&#64;", "@")
    for character in "[]|!`#":
        assert shown.count(character) == shown.count(f"\\{character}") > 0
    assert files.markdown_text("a plain text, 3.5 of it") == "a plain text, 3.5 of it"


def test_an_extra_that_fails_is_one_line(capsys):
    with files.extra("loss.png was not drawn"):
        raise ZeroDivisionError("division by zero\nin two lines")
    assert capsys.readouterr().err == "loss.png was not drawn: division by zero\n"
