"""The project as a whole keeps the promises of its pages."""

import ast
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from config import Config, build, load_file
from lib.machine import parameter_table
from model import STLM

# The packages and commands of this project that each place may import.
MAY_IMPORT = {
    "model.py": set(),
    "config": {"model", "config"},
    "lib": {"model", "config", "lib"},
    "train.py": {"model", "config", "lib", "prepare"},
    "sample.py": {"model", "config", "lib"},
    "prepare.py": {"config", "lib", "model"},
    "bench.py": {"train", "model", "config", "lib"},
    "tools": {"bench", "lib", "model", "config"},
}


def imports_of(path):
    """The top-level names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_only_point_down(place):
    """Above all, lib/ never imports train.py, and model.py needs torch alone."""
    ours = {p.stem for p in ROOT.glob("*.py")} | {"lib", "tools", "config", "tests"}
    path = ROOT / place
    for file in [path] if path.is_file() else path.rglob("*.py"):
        assert imports_of(file) & ours <= MAY_IMPORT[place], file
    if place == "model.py":
        outside = imports_of(path) - set(sys.stdlib_module_names)
        assert outside == {"torch", "safetensors", "huggingface_hub"}
        at_the_top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import)]
        needed = {n.names[0].name.split(".")[0] for n in at_the_top}
        assert needed - set(sys.stdlib_module_names) == {"torch"}


def test_the_readmes_table_of_models_is_what_they_are():
    rows = re.findall(
        r"^\| (`[^|]*) \| ([\d,]+) .*\| ([\d.]+) MB \| ([\d,]+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    rows = [(name, *figures) for names, *figures in rows for name in re.findall(r"`(\w+)`", names)]
    assert {row[0] for row in rows} == {p.stem for p in (ROOT / "config").glob("[a-z]*.py")} - {
        "gpt2_124m"
    }
    for name, embedding, megabytes, total in rows:
        cfg = build(Config, load_file(Config, ROOT / "config" / f"{name}.py")[0])
        with torch.device("meta"):
            model = STLM(cfg)
        table = parameter_table(model)
        assert (embedding, total) == (f"{table['embeddings']:,}", f"{table['total']:,}"), name
        # A weight takes one byte, and the scale of a row takes two.
        stored = sum(w.numel() + 2 * w.size(0) for w in model.parameters())
        assert abs(float(megabytes) * 1e6 / stored - 1) < 0.08, name


@pytest.mark.parametrize(
    "page", ["README.md", "EXPERIMENTS.md", "results/TRIALS.md", "results/RUNS.md"]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = link.partition("#")
        assert (
            link.startswith("https://") or not path or (ROOT / page).parent.joinpath(path).exists()
        ), link
        assert path or heading in headings, link


@pytest.mark.slow
def test_the_commands_of_the_readme():
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / "results/readme_commands.sh"],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0 and "the others work" in done.stdout, done.stdout + done.stderr
