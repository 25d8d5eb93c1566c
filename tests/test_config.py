"""Config files and command lines: a message names each mistake, its file and the closest name."""

import dataclasses
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from bench import BenchConfig
from config import knob_comments, list_knobs, load_file, parse
from prepare import PrepareConfig
from sample import SampleConfig
from tools.share import ShareConfig
from train import Config

DEFAULT = "config/demo.py"
# An object that can be neither shown nor compared.
ODD = """class _Odd:
    def __repr__(self):
        raise OSError
    __str__ = __eq__ = __float__ = __bool__ = __len__ = __repr__
"""


def read(*argv):
    return parse(Config, list(argv), "usage", DEFAULT)[0]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Why."""\nimport math\n_half = 64\nmax_seconds = 5\n'
        "n_embd = 2 * _half\nn_head = int(math.sqrt(4))\n"
    )
    cfg = read(
        str(path),
        "--n_layer",
        "3",
        "--adam_lr=1e-3",
        "--overwrite",
        "--max_seconds=7",
        "--seed=1_000",
    )
    assert (cfg.n_embd, cfg.n_head, cfg.n_layer, cfg.adam_lr, cfg.max_seconds) == (
        128,
        2,
        3,
        1e-3,
        7.0,
    )
    assert cfg.overwrite
    assert cfg.seed == 1000
    assert cfg.intuition == "Why."
    assert cfg.out_dir == "out/mine"
    steps = parse(
        Config, [str(path), "--max_steps=1e3"], "", DEFAULT, either=("max_steps", "max_seconds")
    )[0]
    assert (steps.max_steps, steps.max_seconds) == (1000, 0), (
        "a length on the command line must replace the file's"
    )


def test_a_file_builds_on_another(tmp_path):
    path = tmp_path / "child.py"
    path.write_text('"""Wider."""\nfrom config.stlm_10m import *\n\nn_embd = n_embd * 2\n')
    cfg = read(str(path))
    assert cfg.n_embd == 640
    assert cfg.n_grams == read("config/stlm_10m.py").n_grams
    assert cfg.intuition == "Wider."


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--n_leyer=3"], ["command line", "'n_leyer'", "'n_layer'"]),
        (["--n_layer=three"], ["command line", "n_layer='three'", "int"]),
        (["--n_layer=2.5"], ["n_layer", "int"]),
        (["--n_layer"], ["n_layer", "needs a value"]),
        (["--share_ffn=maybe"], ["share_ffn", "true or false"]),
        (
            ["--pooling=spaces"],
            ["pooling='spaces'", "'none'", "'fixed'", "did you mean 'space'"],
        ),
        (["--n_head=5"], ["n_embd", "n_head", "multiple"]),
        (["--max_seconds=5"], ["max_steps=1700", "max_seconds=5"]),
        (["--dropout=1.5"], ["dropout=1.5"]),
        (["--warmup=0.8"], ["warmup=0.8", "decay"]),
        (["--resume", "--overwrite"], ["resume", "overwrite"]),
        (["config/dmo.py"], ["config/dmo.py", "config/demo.py"]),
        (["--n_layer=" + "9" * 5000], ["n_layer='999", "int"]),
        (["--n_layer=" + "-" * 9**6 + "1"], ["n_layer='---", "int"]),
        (["--n_layer=" + "(" * 9**6], ["n_layer='(((", "int"]),
        (["--n_layer=1e999"], ["n_layer='1e999'", "int"]),
        (["--n_layer=True"], ["n_layer='True'", "int"]),
        (["--n_layer=3\0"], ["n_layer='3", "int"]),
        (["--pooling=sp\nace"], ["pooling='sp", "'space'"]),
    ],
    ids=lambda x: str(x)[:30],
)
def test_command_line_errors_name_the_key_and_the_fix(argv, words):
    with pytest.raises(ValueError) as e:
        read(*argv)
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    "source, words",
    [
        ("n_leyer = 3", ["bad.py", "'n_leyer'", "'n_layer'"]),
        ("max_seconds = 1\nn_layer = '3'", ["bad.py", "n_layer='3'", "int"]),
        ("share_ffn = 1", ["bad.py", "share_ffn", "true or false"]),
        ("max_seconds = 1\nn_head = 5", ["bad.py", "n_embd"]),
        ("n_layer = 1 / 0", ["bad.py", "ZeroDivisionError"]),
        ("n_layer = = 3", ["bad.py", "SyntaxError"]),
        ("from config.nothing import *", ["bad.py", "nothing"]),
        ("import sys\nsys.exit()", ["bad.py", "SystemExit"]),
        ("quit()", ["bad.py", "SystemExit"]),
        ("raise SystemExit('so\\nlong')", ["bad.py", "SystemExit so long"]),
        ("raise GeneratorExit", ["bad.py", "GeneratorExit"]),
        ("raise BaseException(1)", ["bad.py", "BaseException 1"]),
        ("raise ValueError('two\\nlines')", ["bad.py", "ValueError two lines"]),
        ("import sys\nsys.path.clear()\nmax_seconds = x", ["bad.py", "NameError"]),
        ("def f():\n    f()\nf()", ["bad.py", "RecursionError"]),
        ("n_layer = " + 999 * "(" + "1", ["bad.py", "SyntaxError"]),
        ("n_layer = 'caf\xe9'", ["bad.py", "SyntaxError", "utf-8"]),
        ("n_layer = 3\0", ["bad.py", "null bytes"]),
        ("__doc__ = 5", ["bad.py", "__doc__=5", "expected str"]),
        ("__doc__ = b'x'", ["bad.py", "__doc__=b'x'", "expected str"]),
        ("for i in range(3):\n    n_layer = i", ["bad.py", "'i'", "no knob", "_i"]),
        ("from math import pi", ["bad.py", "'pi'", "_pi"]),
        ("n_layer = 10**5000", ["bad.py", "n_layer=", "int"]),
        ("n_layer = '3' * 10**6", ["bad.py", "n_layer='333", "int"]),
        ("n_layer = True", ["bad.py", "n_layer=True", "int"]),
        ("n_layer = float('nan')", ["bad.py", "n_layer=nan", "int"]),
        ("max_seconds = 1\nadam_lr = float('inf')", ["bad.py", "adam_lr=inf", "finite"]),
        ("adam_lr = 1j", ["bad.py", "adam_lr=1j", "float"]),
        ("import numpy as _n\nn_layer = _n.arange(99)", ["bad.py", "n_layer=array", "int"]),
        ("import numpy as _n\npooling = _n.arange(9)", ["bad.py", "pooling=array", "'space'"]),
        ("import numpy as _n\nshare_ffn = _n.bool_(1)", ["bad.py", "share_ffn=", "true"]),
        ("pooling = ['space']", ["bad.py", "pooling=['space']", "'space'"]),
        ("import pathlib\nout_dir = pathlib.Path('x')", ["bad.py", "out_dir=", "expected str"]),
        (ODD + "n_layer = _Odd()", ["bad.py", "n_layer=<_Odd>", "int"]),
        (ODD + "pooling = _Odd()", ["bad.py", "pooling=<_Odd>", "'space'"]),
        (ODD + "out_dir = _Odd()", ["bad.py", "out_dir=<_Odd>", "str"]),
        (ODD + "compile = _Odd()", ["bad.py", "compile=<_Odd>", "'auto'"]),
    ],
    ids=lambda x: str(x)[:30],
)
def test_config_file_errors_name_the_file(tmp_path, source, words):
    path = list(sys.path)
    (tmp_path / "bad.py").write_text(source, encoding="latin-1")
    with pytest.raises(ValueError) as e:
        read(str(tmp_path / "bad.py"))
    assert sys.path == path
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    for word in words:
        assert word in str(e.value)


def test_config_files_may_compute_with_numpy_and_drop_their_docstring(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nn_embd = np.sqrt(4096)\nn_head = np.int64(4)\n"
        "adam_lr = np.float32(0.5)\nmax_seconds = np.float64(9)\n__doc__ = None\n"
    )
    cfg = read(str(path))
    assert (cfg.n_embd, cfg.n_head, cfg.adam_lr, cfg.max_seconds) == (64, 4, 0.5, 9)
    assert {type(cfg.n_embd), type(cfg.n_head)} == {int} and type(cfg.adam_lr) is float
    assert cfg.intuition == ""
    path.write_text("del __doc__\nmax_seconds = 1\n")
    assert read(str(path)).intuition == ""


def test_ctrl_c_in_a_config_file_is_no_mistake_of_the_file(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        read(str(tmp_path / "mine.py"))


def test_a_config_file_must_be_a_file(tmp_path):
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "fifo.py")
    for name in ("folder.py", "fifo.py", "absent.py"):
        with pytest.raises(ValueError, match=f"no config file .*{name}"):
            read(str(tmp_path / name))


def test_a_tilde_in_front_of_a_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("max_seconds = 9\nteacher = '~/t'\ndata_dir = '~/file'\n")
    cfg, words = parse(
        Config,
        ["~/mine.py", "--out_dir=~/x", "--init_from", "~/i", "--data_dir=~", "~/n/*.txt", "a~"],
        "usage",
        DEFAULT,
    )
    assert cfg.max_seconds == 9
    assert (cfg.out_dir, cfg.init_from, cfg.teacher) == (
        f"{tmp_path}/x",
        f"{tmp_path}/i",
        f"{tmp_path}/t",
    )
    assert cfg.data_dir == str(tmp_path)
    assert words == [f"{tmp_path}/n/*.txt", "a~"]
    given = ["--model=~/m", "--prompt_file=~/p"]
    assert parse(SampleConfig, given, "")[0].model == f"{tmp_path}/m"
    assert parse(SampleConfig, given, "")[0].prompt_file == f"{tmp_path}/p"
    assert parse(SampleConfig, ["--prompt=~/p"], "")[0].prompt == "~/p"
    assert parse(PrepareConfig, ["--val=~/v"], "")[0].val == f"{tmp_path}/v"
    bench = parse(BenchConfig, ["--text=~/t", "--data=~/d"], "")[0]
    assert (bench.text, bench.data) == (f"{tmp_path}/t", f"{tmp_path}/d")
    assert parse(ShareConfig, ["--to=~/s"], "")[0].to == f"{tmp_path}/s"


def test_help_lists_every_knob_and_fits_two_screens(capsys):
    with pytest.raises(SystemExit) as e:
        read("--help")
    text = capsys.readouterr().out
    assert e.value.code == 0 and len(text.splitlines()) < 120
    knobs = set(re.findall(r"--(\w+)=", list_knobs(Config, {})))
    assert knobs == set(Config.__dataclass_fields__) - {"config", "intuition"}


def test_help_is_made_from_the_fields_wherever_their_comments_stand():
    @dataclass
    class Knobs:
        # --- sizes ---
        a: int = 1  # of the first kind,
        # which runs over two lines
        b: str = "#"  # with a sign in it: "#"
        # --- machine ---
        # stands above its field
        c: Literal["x", "y"] = "x"
        d: float = 0.5
        # continues nothing
        e: bool = False  # on a line of its own

    assert knob_comments(Knobs) == {
        "a": ["sizes", "of the first kind,", "which runs over two lines"],
        "b": ["", 'with a sign in it: "#"'],
        "c": ["machine", "stands above its field"],
        "d": ["", "continues nothing"],
        "e": ["", "on a line of its own"],
    }
    assert list_knobs(Knobs, {"a": 7}).splitlines() == [
        "sizes",
        "  --a=7                      of the first kind, which runs over two lines",
        '  --b=#                      with a sign in it: "#"',
        "machine",
        "  --c=x                      stands above its field (x, y)",
        "  --d=0.5                    continues nothing",
        "  --e=False                  on a line of its own",
    ]


def test_help_shows_what_the_command_would_run(capsys):
    with pytest.raises(SystemExit) as e:
        parse(
            Config,
            ["config/stlm_10m.py", "--max_seconds=60", "--help"],
            "usage",
            DEFAULT,
            ("max_steps", "max_seconds"),
        )
    text = capsys.readouterr().out
    assert e.value.code == 0 and "values are those of config/stlm_10m.py" in text
    assert "--n_embd=320 " in text and "--max_seconds=60.0 " in text and "--max_steps=0 " in text


@pytest.mark.parametrize(
    "name, lead",
    [
        ("learning_rate", "--muon_lr"),
        ("batch_size", "--batch_bytes"),
        ("gradient_accumulation_steps", "--micro_batch"),
        ("max_iters", "--max_steps"),
        ("eval_only", "bench.py eval"),
        ("always_save_checkpoint", "last.pt"),
        ("warmup_iters", "--warmup"),
    ],
)
def test_names_of_other_projects_lead_to_ours(name, lead):
    with pytest.raises(ValueError, match=f"unknown key '{name}': .*{lead}"):
        read(f"--{name}=1")


def test_a_lead_names_only_knobs_that_are_there():
    with pytest.raises(ValueError, match=r"unknown key 'learning_rate'(?!.*muon_lr)"):
        parse(SampleConfig, ["--learning_rate=1"], "usage")


@pytest.mark.parametrize(
    "word, choice", [("True", "on"), ("1", "on"), ("False", "off"), ("auto", "auto")]
)
def test_compile_takes_yes_and_no(word, choice):
    assert read(f"--compile={word}").compile == choice


def test_every_config_is_what_it_was():
    """A change to one config also changes those that import it. This shows which.

    `RENEW=1 pytest tests/test_config.py` accepts the changes.
    """
    found = {}
    for path in sorted([*Path("config").glob("[a-z]*.py"), *Path("config/races").glob("*.py")]):
        found[path.stem] = load_file(Config, str(path))[0]
    stored = Path(__file__).with_name("configs.json")
    if os.environ.get("RENEW"):
        lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in found]
        stored.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    before = json.loads(stored.read_text())
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    changes = []
    for name in found | before:
        old = before.get(name, {})
        new = found.get(name, {})
        for key in old | new:
            a = old.get(key, defaults.get(key))
            b = new.get(key, defaults.get(key))
            if a != b:
                changes.append(f"{name}: {key} {a} -> {b}")
    assert not changes, "\n".join(changes)
