"""The house is small and stays so: a promise to its readers."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from config import Config, build, load_file
from machine import parameter_table
from model import STLM
from selfplay import SelfPlayConfig

# file: (lines at most, which of our modules it may import). A file that needs more gives something up first.
HOUSE = {
    "model.py": (670, ""),
    "config/__init__.py": (264, "model"),
    "common.py": (198, "model config"),
    "machine.py": (130, "common"),
    "data.py": (220, "model common"),
    "optim.py": (132, "model"),
    "objectives.py": (161, "model common"),
    "games.py": (245, "model"),
    "run.py": (290, "common machine data objectives"),
    "train.py": (250, "model config common machine data optim objectives run prepare"),
    "selfplay.py": (400, "model config common machine data optim games run train"),
    "sample.py": (140, "model config common machine data"),
    "sources.py": (290, "common"),
    "share.py": (160, "model config common data machine"),
    "prepare.py": (320, "model config common data sources"),
    "bench.py": (495, "model config common machine data optim"),
    "report.py": (308, "config common"),
    "harness.py": (70, "bench common machine data"),
}


@pytest.mark.parametrize("file", HOUSE)
def test_rooms_keep_their_size_and_know_only_those_below(file):
    most, may_import = HOUSE[file]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= most
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    ours = {Path(f).parts[0].removesuffix(".py") for f in HOUSE} | {"train"}
    assert found & ours <= set(may_import.split())
    if file == "model.py":
        at_the_top = {n.names[0].name.split(".")[0] for n in ast.parse(text).body if isinstance(n, ast.Import)}
        assert at_the_top - set(sys.stdlib_module_names) == {"torch"}, "it is read and used with torch alone"
        assert found - set(sys.stdlib_module_names) == {"torch", "safetensors", "huggingface_hub"}


def test_every_script_is_a_room():
    assert {p.name for p in ROOT.glob("*.py")} == {file for file in HOUSE if "/" not in file}


def test_the_story_fits_a_screen():
    tree = ast.parse((ROOT / "train.py").read_text(encoding="utf-8"))
    for function in [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in ("main", "train")]:
        assert function.end_lineno - function.lineno + 1 <= 60
        inside = [n for n in ast.walk(function) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
        assert inside in ([], [function]), "no closures"


def test_the_readmes_table_of_models_is_what_they_are():
    rows = re.findall(
        r"^\| (`[^|]*) \| ([\d,]+) .*\| ([\d.]+) MB \| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.M
    )
    rows = [(name, *figures) for names, *figures in rows for name in re.findall(r"`(\w+)`", names)]
    assert {row[0] for row in rows} == {p.stem for p in (ROOT / "config").glob("[a-z]*.py")} - {"gpt2_124m"}
    for name, embedding, megabytes, total in rows:
        knobs = SelfPlayConfig if name.startswith("selfplay") else Config
        cfg = build(knobs, load_file(knobs, ROOT / "config" / f"{name}.py")[0])
        with torch.device("meta"):
            model = STLM(cfg)
        table = parameter_table(model)
        assert (embedding, total) == (f"{table['embeddings']:,}", f"{table['total']:,}"), name
        stored = sum(w.numel() + 2 * w.size(0) for w in model.parameters())  # a byte a weight, 2 for a row's scale
        assert abs(float(megabytes) * 1e6 / stored - 1) < 0.08, name


def test_pages_are_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220
    assert len((ROOT / "EXPERIMENTS.md").read_text(encoding="utf-8").split()) <= 6000


@pytest.mark.parametrize("page", ["README.md", "EXPERIMENTS.md", "results/TRIALS.md", "results/RUNS.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = link.partition("#")
        assert link.startswith("https://") or not path or (ROOT / page).parent.joinpath(path).exists(), link
        assert path or heading in headings, link


@pytest.mark.slow
def test_the_commands_of_the_readme():
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "results/readme_commands.sh"], env=env, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0 and "the others work" in done.stdout, done.stdout + done.stderr
