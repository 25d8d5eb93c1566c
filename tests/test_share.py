"""Shared weights equal the trained ones, load anywhere, and run no code from their folder."""

import dataclasses
import errno
import functools
import hashlib
import http.server
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, SMALL, message_of, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bench
import model as model_py
import sample
import train
from lib import files
from model import STLM, FeedForward, ModelConfig
from tools import share

SHARED_FILES = {
    "model.safetensors",
    "config.json",
    "model.py",
    "README.md",
    "modeling_stlm.py",
    "tokenizer_config.json",
}


def logits(model):
    idx = torch.arange(3, 90)[None] * 7 % 250
    with torch.no_grad():
        return model.head(model.read(idx, model.start(1))[0])


def random_model(**knobs):
    """A small model with random weights everywhere, even where a new model has zeros."""
    torch.manual_seed(0)
    sizes = {
        "block_size": 48,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 36,
        "n_local_embd": 20,
        "gram_rows": 77,
    }
    model = STLM(
        ModelConfig(
            **sizes | {"n_grams": 2, "gram_width": 5, "n_match": 2, "canon_reach": 3} | knobs
        )
    ).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def files_of(folder):
    """{name: bytes} of a folder's files; Python adds __pycache__ where model.py was imported."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    train.main([*SMALL, f"--data_dir={data_dir}", "--max_steps=30", f"--out_dir={out}"])
    return out


@pytest.fixture(scope="module")
def shared(trained):
    folder = trained.with_name("shared")
    share.main([f"--model={trained}", f"--to={folder}", "--prompt=the "])
    return folder


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs", [{}, {"pooling": "none"}, {"share_ffn": True, "n_loop": 2, "n_grams": 0}]
)
def test_a_round_trip_changes_no_logit_and_stores_each_weight_once(knobs, tmp_path):
    model = random_model(**knobs)
    model.about = {"step": 7}
    model.save_pretrained(tmp_path / "a")
    again = STLM.from_pretrained(tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert again.cfg == model.cfg
    assert not again.training
    assert again.about["step"] == 7
    with safe_open(tmp_path / "a/model.safetensors", "pt") as file:
        stored = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert stored == {key: list(p.shape) for key, p in model.named_parameters()}, (
        "the file must not repeat the embedding as the head"
    )
    files = {p.name for p in (tmp_path / "a").iterdir()}
    assert files == {"model.safetensors", "config.json", "model.py"}
    assert (tmp_path / "a/model.py").read_bytes() == (ROOT / "model.py").read_bytes()


@pytest.mark.parametrize("bits, most", [(16, 2**-8), (8, 1 / 128), (4, 1 / 8)])
def test_the_error_of_a_weight_is_at_most_a_step(bits, most, tmp_path):
    model = random_model()
    model.grams.weight.data[:9] = 0  # zeros must stay zeros
    model.save_pretrained(tmp_path, bits)
    again = STLM.from_pretrained(tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert (a - b).abs().max() <= (most + 2**-10) * a.abs().max(), name
        assert b.dtype == torch.float32 and (a != b).any()
    assert (again.grams.weight[:9] == 0).all()
    off = (logits(again) - logits(model)).std() / logits(model).std()
    assert off < {16: 0.02, 8: 0.05, 4: 0.5}[bits]
    assert json.loads((tmp_path / "config.json").read_text())["about"]["bits"] == bits
    with pytest.raises(ValueError, match="bits=5 must be"):
        model.save_pretrained(tmp_path, 5)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_tensors_that_are_no_matrices_of_numbers_keep_their_kind(bits, tmp_path, monkeypatch):
    """A user adds buffers and a vector of gains to the model, and they come back unchanged."""

    class Edited(STLM):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.register_buffer("counts", torch.arange(5))
            self.gain = torch.nn.Parameter(torch.tensor([1.0, 0.5, 0.25]))

    torch.manual_seed(0)
    model = Edited(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=8, share_ffn=True))
    model.save_pretrained(tmp_path, bits)
    again = Edited.from_pretrained(tmp_path)
    for name in ("mask", "counts", "gain"):
        assert torch.equal(getattr(again, name), getattr(model, name)), name
        assert getattr(again, name).dtype == getattr(model, name).dtype


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_layer_of_another_shape_is_named_with_both_shapes(bits, tmp_path, monkeypatch):
    """A user edits a layer, then loads the published weights."""
    STLM(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=8)).save_pretrained(
        tmp_path, bits
    )

    def wider(self, cfg):
        torch.nn.Module.__init__(self)
        self.up = torch.nn.Linear(cfg.n_embd, 6 * cfg.n_embd, bias=False)
        self.out = torch.nn.Linear(6 * cfg.n_embd, cfg.n_embd, bias=False)

    monkeypatch.setattr(FeedForward, "__init__", wider)
    layer = r"blocks.0.feed_forward.(up|out).weight"
    both = layer + r".*: expected the shape \((.+)\), got \((.+)\);"
    with pytest.raises(ValueError, match=both) as e:
        STLM.from_pretrained(tmp_path)
    _, expected, found = re.search(both, str(e.value)).groups()
    assert found != expected and "saved by other code" in str(e.value) and "\n" not in str(e.value)


def test_a_10m_model_has_the_size_that_is_promised(tmp_path):
    from config import Config, build, load_file

    model = STLM(build(Config, load_file(Config, ROOT / "config/stlm_10m.py")[0]))
    for bits, megabytes in ((16, 20.1), (8, 10.5), (4, 5.6)):
        model.save_pretrained(tmp_path, bits)
        assert (tmp_path / "model.safetensors").stat().st_size < megabytes * 1e6


def test_few_bits_cost_few_bits(trained, tmp_path, capsys):
    """A trained model loses next to nothing with 8 bits, and a little with 4."""
    text = tmp_path / "text.txt"
    found = {}
    text.write_text("the of and to in is that for it as was with be by on not he\n" * 30)
    for bits in (32, 8, 4):
        share.main([f"--model={trained}", f"--to={tmp_path / str(bits)}", f"--bits={bits}"])
        bench.main(["eval", f"--model={tmp_path / str(bits)}", f"--text={text}", "--device=cpu"])
        figures = json.loads((tmp_path / str(bits) / "eval.json").read_text())
        found[bits] = figures["texts"]["text.txt"]["bpb"]
    assert abs(found[8] - found[32]) < 0.02
    assert abs(found[4] - found[32]) < 0.2


# --- a shared folder in place of a run ------------------------------------------------------------


def test_scripts_take_the_folder_as_they_take_the_run(
    trained, shared, data_dir, small, tmp_path, capsys
):
    args = ["--prompt=the ", "--max_new_bytes=40", "--device=cpu", "--weights=last"]
    texts = []
    for model in (f"--model={trained}", f"--out_dir={trained}", f"--model={shared}"):
        sample.main([model, *args])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] and texts[0].startswith("the ")
    with pytest.raises(ValueError, match="not both"):
        sample.main([f"--model={trained}", f"--out_dir={shared}"])

    # A folder shared again must tell the same.
    share.main([f"--model={shared}", f"--to={tmp_path / 'again'}"])
    again = STLM.from_pretrained(tmp_path / "again")
    assert again.about == STLM.from_pretrained(shared).about
    assert torch.equal(logits(again), logits(files.load_run(trained)[0]))

    capsys.readouterr()
    bench.main(
        [
            "eval",
            f"--model={shared}",
            f"--data_dir={data_dir}",
            "--tasks=val",
            "--device=cpu",
            "--json",
        ]
    )
    val = json.loads(capsys.readouterr().out)["val"]["bpb"]
    assert f"{val:.4f}" == json.loads((trained / "run.json").read_text())["verdict"]["val_bpb"]

    train.main(
        [
            *small,
            "--max_steps=1",
            f"--init_from={shared}",
            f"--out_dir={tmp_path / 'tuned'}",
            "--muon_lr=0",
        ]
    )
    with pytest.raises(ValueError, match=r"expected n_layer=2 as in .*, got 1"):
        train.main(
            [
                *small,
                "--n_layer=1",
                "--max_steps=1",
                f"--init_from={shared}",
                f"--out_dir={tmp_path / 'no'}",
            ]
        )


def test_the_card_tells_what_the_run_knows(trained, shared):
    card = (shared / "README.md").read_text()
    assert "chosen on val" in card
    run_json = json.loads((trained / "run.json").read_text())
    assert card.startswith("---\nlicense: mit\n") and 'STLM.from_pretrained(".")' in card
    for fact in (
        f"{run_json['parameters']['total']:,}",
        "train.py --",
        run_json["verdict"]["val_bpb"],
        "words",
    ):
        assert fact in card
    assert str(trained.parent) not in card + (shared / "config.json").read_text(), (
        "the files must not name folders of this machine"
    )
    python = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\ntorch.manual_seed(0)\n{python}"],
        cwd=shared,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_benchmarks_are_in_the_card(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    found = {
        "n": 1200,
        "chance": 0.5,
        "acc": 0.6543,
        "acc_stderr": 0.0137,
        "groups": {"a": {"n": 3, "acc": 1.0}},
    }
    scores = {"weights": "best.pt", "step": 30, "tasks": {"blimp": found}}
    (folder / "eval.json").write_text(json.dumps(scores))
    share.main([f"--model={folder}", f"--to={tmp_path / 'a'}"])
    assert "| blimp | 1,200 | 65.4% ± 1.4% | 50.0% |" in (tmp_path / "a/README.md").read_text()
    (folder / "eval.json").write_text(
        json.dumps(scores | {"step": 20})
    )  # these scores are of other weights
    share.main([f"--model={folder}", f"--to={tmp_path / 'a'}"])
    assert "blimp" not in (tmp_path / "a/README.md").read_text()


def test_the_models_in_the_clone_write_text(tmp_path):
    for folder in sorted((ROOT / "results/models").iterdir()):
        assert (folder / "model.safetensors").stat().st_size < 1.5e6
        assert (folder / "log.jsonl").exists()
        assert not any(path.is_symlink() for path in folder.iterdir())
        assert "sha256" in json.loads((folder / "config.json").read_text())
    done = run("sample.py", "--max_new_bytes=80", "--prompt=ROMEO:", cwd=tmp_path)
    assert "using results/models/shakespeare_80k" in done.stderr
    assert "python train.py" in done.stderr
    same = run(
        "sample.py",
        "--max_new_bytes=80",
        "--prompt=ROMEO:",
        "--model=results/models/shakespeare_80k",
        cwd=ROOT,
    )
    assert done.stdout == same.stdout and done.stdout.startswith("ROMEO:")


@torch.no_grad()
def test_a_model_of_before_there_was_copying_writes_what_it_wrote(capsys):
    """The 8-bit shakespeare_80k that commit 1254c3f published, compared with that commit's code."""
    model = STLM.from_pretrained(ROOT / "tests/files/shakespeare_80k_1254c3f")
    assert model.copy is None and model.cfg.match_reach == 256
    made = bytes(model.generate("ROMEO:", 60, temperature=0))
    assert made == b"\nI will not say the strong of the strong of the\nstars and th"
    x = torch.tensor([[255, *b"First Citizen: We are accounted poor citizens"]])
    nats = model.nats(x[:, :-1], x[:, 1:]).mean().item()
    assert nats == pytest.approx(1.5564229, abs=1e-5)
    assert "no sha256" in capsys.readouterr().err


# --- the Hub --------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """A Hub with one repository, ann/poems.

    It answers the real client's requests for the commit, the list of files and one file.
    """

    def __init__(self, folder, asked, *args):
        self.folder = folder
        self.asked = asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        sha = "a" * 40
        path = self.path.split("?")[0]
        files = {p.name: p.read_bytes() for p in self.folder.iterdir()}
        headers = {}
        body = None
        if path == "/api/models/ann/poems/revision/main":
            body = json.dumps(
                {"id": "ann/poems", "sha": sha, "siblings": [{"rfilename": f} for f in files]}
            ).encode()
        elif path == f"/api/models/ann/poems/tree/{sha}":
            tree = [
                {"type": "file", "path": f, "size": len(b), "oid": "b" * 40}
                for f, b in files.items()
            ]
            body = json.dumps(tree).encode()
        elif path.startswith(f"/ann/poems/resolve/{sha}/"):
            body = files[path.rpartition("/")[2]]
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": sha}
        self.send_response(200 if body is not None else 404)
        for key, value in (headers | {"Content-Length": len(body or b"")}).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(shared, tmp_path):
    """Yields the environment for a client and the list of paths that the Hub got."""
    asked = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Hub, shared, asked)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield (
        {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
        asked,
    )
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_name_on_the_hub_is_a_model(hub, shared, tmp_path):
    env, asked = hub
    args = ["--prompt=the ", "--max_new_bytes=40", "--device=cpu"]
    there = run("sample.py", "--model=ann/poems", *args, cwd=tmp_path, env=env)
    assert there.stdout == run("sample.py", f"--model={shared}", *args, cwd=tmp_path).stdout
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert fetched == {"model.safetensors", "config.json"}, "the client must fetch no code"
    (tmp_path / "text.txt").write_text("the of and to\n" * 30)
    run(
        "bench.py",
        "eval",
        "--model=ann/poems",
        "--text=text.txt",
        "--device=cpu",
        cwd=tmp_path,
        env=env,
    )
    assert "text.txt" in json.loads((tmp_path / "out/ann--poems/eval.json").read_text())["texts"]
    done = run("sample.py", "--model=bob/none", *args, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "404" in done.stderr
    shutil.copytree(shared, tmp_path / "ann/poems")
    asked.clear()
    run("sample.py", "--model=ann/poems", *args, cwd=tmp_path, env=env)
    assert not asked, "a folder of that name must win"


@pytest.mark.parametrize("name", ["out/none", "nowhere", "here/none", "/no/where", "../a/b"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    (tmp_path / "here").mkdir()
    message = message_of(sample.main, [f"--model={name}"])
    assert message.startswith(f"no run in {name}: expected last.pt, best.pt or ")


def test_without_a_network_a_name_is_told_to_be_neither(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    done = run("sample.py", "--model=ann/poems", cwd=tmp_path, env=env, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no model in ann/poems: expected a folder, or USER/NAME on the Hub" in done.stderr


class FakeHub:
    """The functions of huggingface_hub that share uses, with one repository, ann/poems, or none."""

    def __init__(self, monkeypatch, folder):
        self.folder = folder
        self.files = None  # of the repository: {name: bytes}; None: there is no repository
        self.is_private = False
        for name in ("create_repo", "repo_info", "upload_folder", "file_exists", "hf_hub_download"):
            monkeypatch.setattr(huggingface_hub, name, getattr(self, name))

    def create_repo(self, name, exist_ok, private):
        assert name == "ann/poems" and exist_ok
        if self.files is None:
            self.files = {}
            self.is_private = bool(private)  # ignored if the repository exists

    def repo_info(self, name):
        return types.SimpleNamespace(private=self.is_private)

    def upload_folder(self, repo_id, folder_path):
        self.files |= {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    def file_exists(self, name, file):
        return self.files is not None and file in self.files

    def hf_hub_download(self, name, file):
        (self.folder / file).write_bytes(self.files[file])
        return str(self.folder / file)


@pytest.fixture
def fake_hub(monkeypatch, tmp_path_factory):
    return FakeHub(monkeypatch, tmp_path_factory.mktemp("hub"))


def test_uploading(fake_hub, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    share.main([f"--model={trained}", "--to=ann/poems", "--bits=8"])
    files = fake_hub.files
    assert set(files) == SHARED_FILES
    assert b'from_pretrained("ann/poems")' in files["README.md"] and not list(tmp_path.iterdir())
    assert not fake_hub.is_private
    uploaded = dict(files)
    (tmp_path / "ann").mkdir()  # now the name means a folder
    share.main([f"--model={trained}", "--to=ann/poems"])
    assert fake_hub.files == uploaded and (tmp_path / "ann/poems/README.md").exists()


def test_a_private_repository_is_private_or_nothing_is_uploaded(fake_hub, shared, tmp_path):
    share.main([f"--model={shared}", "--to=ann/poems", "--private"])
    assert fake_hub.is_private and fake_hub.files
    share.main([f"--model={shared}", "--to=ann/poems"])
    assert fake_hub.is_private, "who gives no --private uploads to the repository as it is"
    fake_hub.is_private = False
    fake_hub.files.clear()
    message = message_of(share.main, [f"--model={shared}", "--to=ann/poems", "--private"])
    assert "expected a private repository, got ann/poems, which is public" in message
    assert not fake_hub.files
    message = message_of(share.main, [f"--model={shared}", f"--to={tmp_path / 'a'}", "--private"])
    assert "--private needs --to=USER/NAME" in message


def test_a_card_on_the_hub_that_was_edited_stays(fake_hub, shared, capsys):
    args = [f"--model={shared}", "--to=ann/poems"]
    share.main([*args, "--license=apache-2.0"])
    share.main([*args])
    assert b"license: mit" in fake_hub.files["README.md"]
    edited = fake_hub.files["README.md"].replace(b"# poems", b"# Poems by Ann")
    fake_hub.files["README.md"] = edited
    fake_hub.files["config.json"] = b""
    capsys.readouterr()
    share.main([*args, "--license=apache-2.0"])
    assert fake_hub.files["README.md"] == edited and fake_hub.files["config.json"]
    printed = capsys.readouterr()
    assert "ann/poems/README.md" in printed.err and "delete it" in printed.err
    assert "README.md" not in printed.out
    del fake_hub.files["README.md"]
    share.main([*args, "--license=apache-2.0"])
    assert b"license: apache-2.0" in fake_hub.files["README.md"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("# a", "# The best of all"),
        lambda card: card + "more\n",
        lambda card: "more\n" + card,
        lambda card: card.rstrip(),
        lambda card: card.replace("sha256 ", "sha256 0"),
        lambda card: card.rpartition("<!--")[0],
        lambda card: "",
        lambda card: "\x00\ud800",
    ],
)
def test_a_card_that_was_edited_stays(edit, shared, tmp_path, capsys):
    folder = tmp_path / "a"
    args = [f"--model={shared}", f"--to={folder}", "--bits=8"]
    share.main(args)
    share.main([*args, "--license=apache-2.0"])
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and capsys.readouterr().err == ""
    edited = edit(card).encode(errors="surrogatepass")
    (folder / "README.md").write_bytes(edited)
    share.main([f"--model={shared}", f"--to={folder}", "--bits=4"])
    assert (folder / "README.md").read_bytes() == edited
    assert STLM.from_pretrained(folder).about["bits"] == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "README.md" in said and "delete it to get a new card" in said


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("/"),
    ],
)
def test_a_card_that_is_no_file_stays(make, shared, tmp_path, capsys):
    shutil.copytree(shared, tmp_path / "a")
    card = tmp_path / "a/README.md"
    card.unlink()
    make(card)
    before = card.lstat().st_ino
    share.main([f"--model={shared}", f"--to={tmp_path / 'a'}", "--bits=4"])
    assert card.lstat().st_ino == before and "README.md" in capsys.readouterr().err
    assert STLM.from_pretrained(tmp_path / "a").about["bits"] == 4


def test_a_card_is_known_again_whatever_its_sample_holds(tmp_path):
    card = share.signed("# a\r\n\r\ufffd\x85\u2028 <!-- -->" + share.SIGNATURE)
    (tmp_path / "README.md").write_bytes(card.encode())
    assert not share.has_edited_card(tmp_path)


def test_what_is_no_shared_folder_is_not_written_into(trained, shared, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    for to in (tmp_path / "mine", trained, tmp_path / "mine/letter.txt"):
        with pytest.raises(ValueError, match="exists but is not a shared folder"):
            share.main([f"--model={trained}", f"--to={to}"])
    with pytest.raises(ValueError, match="give --to=DIR"):
        share.main([f"--model={trained}"])
    for bits in (-1, 3, 64):
        with pytest.raises(ValueError, match=f"bits={bits} must be"):
            share.main([f"--model={trained}", f"--to={tmp_path / 'new'}", f"--bits={bits}"])
    assert not (tmp_path / "new").exists()

    shutil.copytree(shared, tmp_path / "folder")
    before = files_of(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path / "folder")
    for to, why in {
        tmp_path / "link": "is a link",
        tmp_path / "broken": "is a link",
        "x/..": "has no name of its own",
        "..": "has no name of its own",
        ".": "has no name of its own",
        "./": "has no name of its own",
        "/": "has no name of its own",
    }.items():
        assert why in message_of(share.main, [f"--model={trained}", f"--to={to}"])
    assert files_of(tmp_path / "folder") == before
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_leaves_the_old_folder_as_it_was(shared, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    share.main([f"--model={shared}", f"--to={folder}"])
    before = files_of(folder)
    write_bytes = Path.write_bytes

    def disk_full(path, content):
        if folder in path.parents and path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    args = [f"--model={shared}", f"--to={folder}", "--bits=4"]
    message = message_of(share.main, args)
    assert message.startswith(f"cannot write to {folder}: ") and "No space left" in message
    assert files_of(folder) == before


def test_a_shared_folder_keeps_its_bits(shared, tmp_path):
    for bits in (4, 8, 16, 32):
        once = tmp_path / f"once{bits}"
        again = tmp_path / f"again{bits}"
        share.main([f"--model={shared}", f"--to={once}", f"--bits={bits}"])
        share.main([f"--model={once}", f"--to={again}"])
        for name in ("model.safetensors", "config.json"):
            assert (once / name).read_bytes() == (again / name).read_bytes()
    assert STLM.from_pretrained(shared).about["bits"] == 32  # of a run
    share.main([f"--model={ROOT / 'results/models/demo'}", f"--to={tmp_path / 'demo'}"])
    assert (tmp_path / "demo/model.py").is_file()
    ours = STLM.from_pretrained(ROOT / "results/models/demo").state_dict()
    for name, w in STLM.from_pretrained(tmp_path / "demo").state_dict().items():
        assert torch.equal(w, ours[name])


# --- what leaves the machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, name",
    [
        ("/home/me/notes/x.md", "x.md"),
        ("~/notes/x.md", "x.md"),
        ("../me/x.md", "x.md"),
        ("notes/private/x.md", "x.md"),
        ("notes/private/", ""),
        ("notes/**/*.txt", "*.txt"),
        ("notes/?.txt", "?.txt"),
        ("x.md", "x.md"),
        ("stdlib", "stdlib"),
        ("C:\\Users\\me\\x.txt", "x.txt"),
        ("C:/Users/me/x.txt", "x.txt"),
        ("\\\\server\\me\\x.txt", "x.txt"),
        ("https://host/p/a.txt?token=s#f", "a.txt"),
        ("https://host/p/a.txt#f?token=s/t", "a.txt"),
        ("HTTPS://host/p/a.txt;id=s", "a.txt"),
        ("https://host/p%2Fa.txt%3Ftoken=s", "a.txt"),
        ("https://me:secret@host/a.txt", "a.txt"),
        ("https://me:secret@host", ""),
        ("https://host?token=s", ""),
        ("s3://bucket/me/a.txt", "a.txt"),
        ("file:///home/me/a.txt", "a.txt"),
        ("OWNER/NAME:CONFIG", "NAME"),
        ("OWNER/NAME", "NAME"),
        ("", ""),
        ("/", ""),
    ],
)
def test_a_source_goes_by_its_name_alone(source, name):
    assert share.source_name(source) == name


@pytest.mark.parametrize(
    "command, public",
    [
        ("train.py config/demo.py --max_steps=30", "train.py config/demo.py --max_steps=30"),
        ("train.py config/races/textbooks_3m.py", "train.py config/textbooks_3m.py"),
        ("train.py config/textbooks_3m.py", "train.py config/textbooks_3m.py"),
        (f"train.py {ROOT}/config/demo.py", "train.py config/demo.py"),
        ("train.py --max_steps 30 --pooling none", "train.py --pooling=none --max_steps=30"),
        ("train.py --share_ffn --muon_lr=1e-3", "train.py --share_ffn=True --muon_lr=0.001"),
        ("selfplay.py config/selfplay_game.py", "selfplay.py config/selfplay_game.py"),
        ("train.py --out_dir=../secret/run --seed=3", "train.py --seed=3"),
        ("train.py --out_dir ../secret/run --seed 3", "train.py --seed=3"),
        ("train.py --wandb=secret --dataset=secret --teacher=secret", "train.py"),
        ("train.py --data_dir=/secret --init_from=~/secret --device=secret", "train.py"),
        ("train.py 'My Documents/secret.py' --seed=3", "train.py --seed=3"),
        ("train.py My Documents/secret.py --seed=3", "train.py --seed=3"),
        ("train.py /secret/config/demo.py", "train.py"),
        ("train.py secret/demo.py demo.py config/secret.py", "train.py"),
        ("train.py config/../secret/config/demo.py", "train.py"),
        ("train.py --unknown=secret", ""),
        ("train.py --max_steps=secret", ""),
        ("train.py --pooling=secret", ""),
        ("/secret/train.py --seed=3", ""),
        ("rm -rf secret", ""),
        ("train.py 'secret", ""),
        ("train.py --seed=" + "-" * 10**4 + "1", ""),
        ("", ""),
    ],
)
def test_a_command_tells_numbers_choices_and_our_own_configs(command, public):
    assert share.public_command(command) == public


def test_nothing_private_leaves_the_machine(trained, tmp_path, capsys):
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder)
    checkpoint = files.load_checkpoint(trained / "best.pt")
    checkpoint["data"] |= {
        "name": "/secret/words",
        "val_source": "/secret/val.txt",
        "sources": ["/secret/x.md", "https://secret@host/secret/b.txt?secret=1#secret", "/"],
        "split": "secret",
        "train": checkpoint["data"]["train"] | {"more": "secret"},
    }
    torch.save(checkpoint, run_folder / "best.pt")
    info = json.loads((run_folder / "run.json").read_text())
    info["command"] = "train.py 'secret/my config.py' --out_dir=/secret --wandb secret --seed=3"
    (run_folder / "run.json").write_text(json.dumps(info | {"more": "secret"}))
    task = {"n": 3, "acc": 0.5, "chance": 0.5, "device": "secret", "groups": {"secret": {}}}
    scores = {
        "weights": "best.pt",
        "step": checkpoint["step"],
        "tasks": {"blimp": task, "mine": task},
    }
    scores["val"] = {"bpb": 1.25, "other": {"weights": "secret"}}
    (run_folder / "eval.json").write_text(json.dumps(scores | {"texts": {"secret.txt": {}}}))
    share.main([f"--model={run_folder}", f"--to={tmp_path / 'a'}"])
    card = (tmp_path / "a/README.md").read_text()
    config = (tmp_path / "a/config.json").read_text()
    printed = capsys.readouterr().out
    for text in (card, config, printed):
        assert "secret" not in text and "--seed=3" in text and "x.md" in text and "b.txt" in text
    assert str(tmp_path) not in card + config
    about = json.loads(config)["about"]
    assert about["data"]["sources"] == ["x.md", "b.txt"]
    assert about["tasks"] == {"blimp": {"n": 3, "acc": 0.5, "chance": 0.5}}
    assert about["val"] == {"bpb": 1.25}


def test_what_goes_out_is_printed_before_it_goes(fake_hub, shared, monkeypatch, capsys):
    monkeypatch.setattr(STLM, "push_to_hub", lambda *args: 1 / 0)
    assert "division" in message_of(share.main, [f"--model={shared}", "--to=ann/poems"])
    printed = capsys.readouterr().out
    for name in SHARED_FILES:
        assert name in printed
    for key, value in STLM.from_pretrained(shared).about.items():
        assert f"  {key}: {json.dumps(value)}\n" in printed


# --- text from others in the card -----------------------------------------------------------------

HOSTILE = (
    "x\n\n# heading\n---\nevil: yes\n---\n<img src=x onerror=y> <!-- [a](http://e.com) "
    "![b](http://e.com/i.png) | ``` ```` `c` https://e.com www.e.com "
    "a@e.com\r\n> quote\n| a |\n|---|\n"
)


def card_with(text, folder, **more):
    """The card of a shared model that tells `text` wherever it tells a text."""
    about = {"step": 3, "commit": text, "device": text, "command": text, "game": text}
    about["data"] = {"name": text, "sources": [text, text], "more": text}
    about["data"]["train"] = {"bytes": 3, "documents": 1, "sha256": text}
    about["verdict"] = {text: 1.5, "a": text}
    about["tasks"] = {text: {"n": 3, "acc": 0.5, "chance": 0.5}}
    config_with(about=about | more)(folder)
    share.main([f"--model={folder}", f"--to={folder.parent / 'again'}"])
    return (folder.parent / "again/README.md").read_text()


def test_text_from_others_does_nothing_in_the_card(shared, tmp_path):
    cards = {}
    for text in ("x", HOSTILE):
        folder = tmp_path / str(len(cards)) / "model"
        shutil.copytree(shared, folder)
        cards[text] = card_with(text, folder).splitlines()
    # the same lines, of which the hostile ones are longer
    for plain, hostile in zip(cards["x"], cards[HOSTILE], strict=True):
        if plain == hostile or hostile.startswith("<!-- Written by tools.share"):
            continue
        assert hostile.startswith("- ") or hostile.startswith("| x \\# heading --- evil")
        told = re.sub(r"\\[\\`*\[\]|!#]", "", hostile)
        told = re.sub(r"&#\d+;", "", told)
        told = told.replace("| 3 | 50.0% ± 0.0% | 50.0% |", "").removeprefix("|")
        assert not re.search(r"[<`\[\]|!#@]|https?:|www\.", told), told
    assert any("heading" in line for line in cards[HOSTILE])


def test_a_sample_cannot_end_its_block(shared, tmp_path):
    model, checkpoint, path = files.load_run(shared)
    model.about = share.about_run(checkpoint, path)
    cfg = share.ShareConfig(to="a", bits=8)
    for sample_text in ("plain", "```\n# a\n", "`````\n", "a `" + "`" * 30 + "\n# b"):
        card = share.write_card(cfg, model, 1.0, sample_text)
        fence = re.search(r"## A sample\n\n(`+)\n", card)[1]
        assert card.count(f"\n{fence}\n") == 2 and fence not in sample_text


@pytest.mark.parametrize("license", ["mit\nevil: yes", "a: b", "[mit]", "", "mit ", "# x", "-"])
def test_a_license_is_a_name(license, trained, tmp_path):
    args = [f"--model={trained}", f"--to={tmp_path / 'a'}", f"--license={license}"]
    assert "must be a name like mit" in message_of(share.main, args)
    assert not (tmp_path / "a").exists()


def test_a_folder_may_have_any_name(shared, tmp_path):
    folder = tmp_path / "# <b> `my` [notes](x)"
    share.main([f"--model={shared}", f"--to={folder}"])
    card = (folder / "README.md").read_text()
    assert "\n# \\# &lt;b> \\`my\\` \\[notes\\](x)\n" in card and "--model=DIR`" in card
    share.main([f"--model={shared}", f"--to={tmp_path / 'notes'}"])
    assert "--model=notes`" in (tmp_path / "notes/README.md").read_text()


@pytest.mark.parametrize("written", ["é", "日本", "a\ufffd", "🙂"])
def test_a_sample_ends_with_a_whole_character(written, shared, monkeypatch):
    model = STLM.from_pretrained(shared)
    cfg = share.ShareConfig(prompt="ö ")
    content = f"a {written}".encode()
    for n in range(len(content) + 1):
        monkeypatch.setattr(STLM, "generate", lambda *a, n=n, **k: iter(content[:n]))
        text = share.write_sample(model, cfg)
        assert f"ö a {written}".startswith(text) or text == "ö "
    assert text == f"ö a {written}"


# --- damage and malice ----------------------------------------------------------------------------


QKV = "blocks.0.attention.qkv.weight"


class Malice:
    def __reduce__(self):
        return (open, ("it_was_run", "w"))


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def config_with(**changes):
    return lambda folder: change_config(folder, lambda config: config.update(changes))


def tensors_with(**changes):
    """Put other tensors into the file, or leave out those that are None."""

    def damage(folder):
        tensors = load_file(folder / "model.safetensors") | changes
        kept = {key: w for key, w in tensors.items() if w is not None}
        save_file(kept, folder / "model.safetensors")

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def pipe(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def packed(kind, shape, scale_shape, scale_kind=torch.float16):
    """unpool.weight, a matrix of 16 x 32 in SMALL, as integers with a scale."""
    tensors = {"unpool.weight": torch.zeros(shape, dtype=kind)}
    if scale_shape:
        tensors["unpool.weight.scale"] = torch.ones(scale_shape, dtype=scale_kind)
    return tensors_with(**tensors)


# What may be wrong with a folder, and a part of the line that says so.
DAMAGE = {
    "a pickle": (write("model.safetensors", pickle.dumps(Malice())), "model.safetensors"),
    "torch.save": (
        lambda folder: torch.save({"w": Malice()}, folder / "model.safetensors"),
        "model.safetensors",
    ),
    "cut short": (cut_short, "model.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "a pipe for weights": (pipe("model.safetensors"), "model.safetensors is missing"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "a pipe for config": (pipe("config.json"), "config.json is missing"),
    "no JSON": (write("config.json", b"{"), "config.json: expected JSON"),
    "a list": (write("config.json", b"[1]"), r"config.json: expected an object, got \[1\]"),
    "deep lists": (write("config.json", b"[" * 10**5), "config.json: expected JSON"),
    "not UTF-8": (write("config.json", b'{"\xff": 1}'), "config.json: expected JSON"),
    "a list for about": (config_with(about=[1]), r"expected about=\{...\}, got \[1\]"),
    # knobs
    "unknown knob": (config_with(n_layers=2), "unknown knob 'n_layers'"),
    "a key like one of transformers": (
        config_with(architecture=["STLM"]),
        "unknown knob 'architecture'",
    ),
    "a text for a number": (config_with(n_layer="2"), "n_layer='2' must be of type int"),
    "a float for a number": (config_with(n_layer=2.0), "n_layer=2.0 must be of type int"),
    "true for a number": (config_with(n_loop=True), "n_loop=True must be of type int"),
    "a number for yes or no": (config_with(share_ffn=1), "share_ffn=1 must be of type bool"),
    "no such choice": (config_with(pooling="os.system"), "pooling='os.system' must be one of"),
    "a list for a word": (config_with(pooling=["space"]), "pooling=.* must be one of"),
    "null": (config_with(n_embd=None), "n_embd=None must be of type int"),
    "another width": (
        config_with(n_embd=64),
        "(blocks|pool|unpool).*: expected the shape|config.json is damaged",
    ),
    "another depth": (config_with(n_layer=3), "blocks.2.* is missing|config.json is damaged"),
    "less depth": (
        config_with(n_layer=1),
        "'blocks.1.*' is not a tensor of this model|config.json is damaged",
    ),
    "too deep": (config_with(n_layer=10**9), "n_layer=1000000000 must be at most 512"),
    "too wide": (config_with(n_embd=2 * 10**6), "n_embd=2000000 must be at most 65536"),
    "a huge table": (
        config_with(gram_rows=2**28),
        "grams.weight: expected the shape|config.json is damaged",
    ),
    "too many rounds": (config_with(n_loop=2 * 10**8), "n_loop=200000000 must be at most 512"),
    # tensors
    "one missing": (tensors_with(**{"embed.weight": None}), "embed.weight is missing"),
    "one too many": (tensors_with(more=torch.zeros(3)), "'more' is not a tensor"),
    "one turned": (tensors_with(**{QKV: torch.zeros(32, 96)}), f"{QKV}: expected the shape"),
    "a scale of nothing": (
        tensors_with(**{"more.scale": torch.ones(3, 1)}),
        "'more.scale' is not a tensor",
    ),
    "a scale too many": (
        tensors_with(**{"unpool.weight.scale": torch.ones(16, 1)}),
        "unpool.weight.scale: expected no scale for F32",
    ),
    "integers without a scale": (packed(torch.int8, (16, 32), None), "unpool.weight.scale is miss"),
    "bytes without a scale": (packed(torch.uint8, (8, 32), None), "unpool.weight.scale is missing"),
    "another type of scale": (
        packed(torch.int8, (16, 32), (16, 1), torch.float32),
        "unpool.weight.scale: expected the type F16, got F32",
    ),
    "a scale too short": (
        packed(torch.int8, (16, 32), (1, 1)),
        r"unpool.weight.scale: expected the shape \(16, 1\), got \(1, 1\)",
    ),
    "4 bits in one row": (
        packed(torch.uint8, (1, 32), (8, 1)),
        r"unpool.weight: expected the shape \(8, 32\), got \(1, 32\)",
    ),
}
for kind in ("int64", "int32", "bool", "complex64", "float64", "uint16", "float8_e5m2"):
    wrong = torch.zeros(16, 32).to(getattr(torch, kind))
    DAMAGE[kind] = (
        tensors_with(**{"unpool.weight": wrong}),
        "unpool.weight: expected the type F32 or F16 or BF16, got",
    )


@pytest.mark.parametrize("has_sums", [True, False])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(kind, has_sums, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    if not has_sums:
        change_config(folder, lambda config: config.pop("sha256"))
    damage, line = DAMAGE[kind]
    damage(folder)
    # The header is enough to refuse all of these.
    monkeypatch.setattr(safetensors.torch, "load", lambda content: 1 / 0)
    with pytest.raises(ValueError, match=line) as e:
        files.load_run(folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value) and len(str(e.value)) < 600
    assert not (tmp_path / "it_was_run").exists()


@pytest.mark.parametrize("has_sums", [True, False])
def test_a_knob_that_is_missing_is_named(has_sums, shared, tmp_path, monkeypatch):
    shutil.copytree(shared, tmp_path / "model")
    if not has_sums:
        change_config(tmp_path / "model", lambda config: config.pop("sha256"))
    text = (tmp_path / "model/config.json").read_text()
    for field in dataclasses.fields(ModelConfig):
        if field.name in model_py.ADDED_KNOBS:
            continue
        change_config(tmp_path / "model", lambda config: config.pop(field.name))  # noqa: B023
        with pytest.raises(ValueError, match=f"config.json: the knob {field.name} is missing"):
            STLM.from_pretrained(tmp_path / "model")
        (tmp_path / "model/config.json").write_text(text)

    # A knob that did not exist when the model was shared has a value that means "as before".
    monkeypatch.setitem(model_py.ADDED_KNOBS, "n_loop", 1)
    change_config(tmp_path / "model", lambda config: config.pop("n_loop"))
    if has_sums:
        with pytest.raises(ValueError, match=r"config.json is damaged, or was changed"):
            STLM.from_pretrained(tmp_path / "model")
    else:
        assert STLM.from_pretrained(tmp_path / "model").cfg.n_loop == 1


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_no_flipped_bit_goes_unnoticed(bits, tmp_path):
    """In the weights every bit counts, in config.json those of `about` do not."""
    model = random_model()
    model.save_pretrained(tmp_path, bits)
    expected = logits(STLM.from_pretrained(tmp_path))
    random = np.random.default_rng(bits)
    for name in ("model.safetensors", "config.json"):
        path = tmp_path / name
        content = path.read_bytes()
        for place in random.integers(len(content), size=60).tolist():
            flipped = bytearray(content)
            flipped[place] ^= 1 << random.integers(8)
            path.write_bytes(flipped)
            try:
                again = STLM.from_pretrained(tmp_path)
            except ValueError as e:
                assert name in str(e) and "\n" not in str(e)
                continue
            assert name == "config.json"
            assert again.cfg == model.cfg and torch.equal(logits(again), expected)
        path.write_bytes(content)


def test_about_may_be_edited(shared, tmp_path, capsys):
    shutil.copytree(shared, tmp_path / "model")
    config_with(about={"data": {"name": "poems"}})(tmp_path / "model")
    assert files.load_run(tmp_path / "model")[1]["data"] == {"name": "poems"}
    assert capsys.readouterr().err == ""


def test_what_transformers_writes_into_config_json_changes_nothing(shared, tmp_path, capsys):
    shutil.copytree(shared, tmp_path / "model")
    keys = {
        "architectures": ["os.system"],
        "auto_map": {"AutoConfig": "evil.Evil"},
        "bos_token_id": 255,
        "dtype": "float16",
        "eos_token_id": None,
        "model_type": 5,
        "pad_token_id": "x",
        "torch_dtype": None,
        "transformers_version": "9" * 99,
    }
    assert keys.keys() == set(model_py.IGNORED_KEYS)
    config_with(**keys)(tmp_path / "model")
    again = STLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(STLM.from_pretrained(shared)))
    assert capsys.readouterr().err == ""
    share.main([f"--model={tmp_path / 'model'}", f"--to={tmp_path / 'again'}"])
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert config == json.loads((shared / "config.json").read_text())


def test_only_byte_models_that_write_text_get_files_for_transformers(tmp_path, data_dir, capsys):
    models = {
        "text": random_model(),
        "game": random_model(),
        "bpe": random_model(tokenizer="gpt2", gpt2_vocab=300, pooling="none", n_match=0),
    }
    models["game"].about = {"game": "tictactoe"}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(share, "write_sample", lambda *args: "a sample")
            share.main([f"--model={tmp_path / name}", f"--to={tmp_path / name}-shared"])
        found = files_of(tmp_path / f"{name}-shared")
        is_text = name == "text"
        assert (found.keys() == SHARED_FILES) == is_text
        assert (b"auto_map" in found["config.json"]) == is_text
        assert (b"from transformers import pipeline" in found["README.md"]) == is_text
        assert ("modeling_stlm.py" in capsys.readouterr().out) == is_text


def test_without_sums_a_model_loads_and_a_line_says_so(shared, tmp_path, capsys):
    shutil.copytree(shared, tmp_path / "model")
    change_config(tmp_path / "model", lambda config: config.pop("sha256"))
    assert torch.equal(
        logits(STLM.from_pretrained(tmp_path / "model")), logits(STLM.from_pretrained(shared))
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path / "model") in said and "sha256" in said

    # Others may store floats of 16 bits.
    half = load_file(shared / "model.safetensors")["unpool.weight"].half()
    tensors_with(**{"unpool.weight": half})(tmp_path / "model")
    assert (STLM.from_pretrained(tmp_path / "model").unpool.weight == half.float()).all()


@pytest.mark.parametrize(
    "sums", [None, 5, [], "abc", {}, {"weights": "abc"}, {"weights": None, "knobs": None}]
)
def test_sums_of_another_kind_are_refused(sums, shared, tmp_path):
    shutil.copytree(shared, tmp_path / "model")
    config_with(sha256=sums)(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.json.*expected .*sha256") as e:
        STLM.from_pretrained(tmp_path / "model")
    assert "\n" not in str(e.value)
    good = json.loads((shared / "config.json").read_text())["sha256"]
    for key in ("weights", "knobs"):
        for value in (5, [good[key]], good[key][:9], good[key][::-1], None):
            config_with(sha256=good | {key: value})(tmp_path / "model")
            with pytest.raises(ValueError, match="is damaged, or was changed since"):
                STLM.from_pretrained(tmp_path / "model")


def test_other_code_that_writes_weights_leaves_the_sums_out(shared, tmp_path):
    """Libraries write all the entries of config.json again that they have read."""
    shutil.copytree(shared, tmp_path / "model")
    twice = {key: 2 * w for key, w in load_file(shared / "model.safetensors").items()}
    tensors_with(**twice)(tmp_path / "model")
    with pytest.raises(ValueError, match=r'remove "sha256" from config\.json'):
        STLM.from_pretrained(tmp_path / "model")
    change_config(tmp_path / "model", lambda config: config.pop("sha256"))
    assert (STLM.from_pretrained(tmp_path / "model").embed.weight == twice["embed.weight"]).all()


def test_a_tensor_may_be_called_scale(tmp_path):
    class Edited(STLM):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.scale = torch.nn.Parameter(torch.tensor([3.0]))
            self.unpool.register_parameter("scale", torch.nn.Parameter(torch.tensor([[0.5]])))

    model = Edited(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=8))
    model.save_pretrained(tmp_path, 8)
    again = Edited.from_pretrained(tmp_path)
    assert again.scale == 3
    assert again.unpool.scale == 0.5


def test_buffers_keep_their_type_or_are_refused(tmp_path):
    class Edited(STLM):
        kind = torch.int64

        def __init__(self, cfg):
            super().__init__(cfg)
            self.register_buffer("counts", torch.zeros(5, dtype=self.kind))

    Edited(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=8)).save_pretrained(tmp_path)
    Edited.kind = torch.bool
    with pytest.raises(ValueError, match=r"counts: expected the type torch.bool, got torch.int64"):
        Edited.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "about",
    [
        {"data": 1, "step": [], "commit": 5, "elapsed": "x"},
        {"sources": 5, "verdict": [], "tasks": "x", "val": 3, "bits": "8"},
        {"data": {"name": 3, "sources": 5, "train": [], "val": {"bytes": "x"}}},
        {"data": {"sources": [5, None, {"a": 1}], "train": {"bytes": None}}},
        {"val": {"bpb": "x"}, "verdict": {"a": [1], "b": {}, "c": None}},
        {"tasks": {"a": 3, "b": {"n": 1}, "c": {"n": True, "acc": math.nan, "chance": 10**400}}},
        {"step": True, "elapsed": 10**400, "chosen_on_val": 1, "game": "chess", "device": None},
    ],
)
def test_what_is_told_wrongly_of_a_run_is_left_out(about, shared, tmp_path):
    shutil.copytree(shared, tmp_path / "model")
    config_with(about=about)(tmp_path / "model")
    _, checkpoint, _ = files.load_run(tmp_path / "model")
    assert checkpoint["step"] == 0
    assert checkpoint["elapsed"] == 0
    assert checkpoint["commit"] == "unknown"
    assert files.game_of(checkpoint) == ""
    share.main([f"--model={tmp_path / 'model'}", f"--to={tmp_path / 'again'}"])
    kept = json.loads((tmp_path / "again/config.json").read_text())["about"]
    assert kept.pop("tasks", {}) in ({}, {"b": {"n": 1}, "c": {}})
    assert kept.keys() <= {"step", "elapsed", "commit", "data", "val", "bits"}
    assert kept["bits"] == 32
    assert "\n- text: unknown\n" in (tmp_path / "again/README.md").read_text()


def test_code_that_lies_beside_the_weights_is_not_run(shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    for name in (
        "model.py",
        "modeling_stlm.py",
        "config.py",
        "files.py",
        "safetensors.py",
        "sitecustomize.py",
        "conftest.py",
    ):
        (folder / name).write_text("raise SystemExit('run')")
    for cwd in (tmp_path, folder):
        done = run("sample.py", f"--model={folder}", "--max_new_bytes=5", "--device=cpu", cwd=cwd)
        assert "run" not in done.stderr.split()


# --- the module -----------------------------------------------------------------------------------


def test_python_on_its_own(trained, shared, tmp_path):
    """Load, generate, score and fine-tune as in the README."""
    model = STLM.from_pretrained(shared)
    assert torch.equal(logits(model), logits(files.load_run(trained)[0]))
    text = b"the " + bytes(model.generate("the ", 100, temperature=0.8))
    x = torch.tensor([[model.eot, *text]])
    bits = model.nats(x[:, :-1], x[:, 1:]).mean() / math.log(2)
    assert 1 < bits < 8
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        adam.zero_grad()
        model(x[:, :-1], x[:, 1:]).backward()
        adam.step()
    assert model.nats(x[:, :-1], x[:, 1:]).mean() / math.log(2) < bits - 0.1
    model.save_pretrained(tmp_path / "tuned")
    assert torch.equal(logits(STLM.from_pretrained(tmp_path / "tuned")), logits(model))


class Scripted(STLM):
    """Writes a given text, whatever its prompt was."""

    def write(self, text):
        self.script = iter(text)
        return self

    def head(self, x):
        byte = next(self.script)
        return torch.nn.functional.one_hot(torch.tensor([byte] * len(x)), 256).float()


@pytest.mark.parametrize(
    ("written", "max_new", "stop", "expected"),
    [
        ("日本".encode(), 6, True, "日本"),
        ("日本".encode(), 5, True, "日"),  # max_new cuts a character: left out
        ("日本".encode()[:5] + b"\xff", 9, True, "日\ufffd"),  # the model left it unfinished
        (b"a\x80b", 3, True, "a\ufffdb"),
        (b"a\xffb", 3, True, "a"),
        (b"a\xffb", 3, False, "a\n\nb"),
        (b"", 0, True, ""),
    ],
)
def test_generate_text_gives_whole_characters(written, max_new, stop, expected):
    model = Scripted(ModelConfig(n_layer=1, n_head=1, n_embd=16, n_local_embd=16))
    for prompts in ("the ", [b"the ", "ein "]):
        texts = model.write(written).generate_text(prompts, max_new, temperature=0, stop=stop)
        assert texts == [expected] * (2 if isinstance(prompts, list) else 1)
    assert model.generate_text([]) == []


def test_generate_text_writes_for_each_prompt_what_it_writes_alone(shared):
    model = STLM.from_pretrained(shared)
    prompts = ["", "the naïve ", "It was"]
    alone = [model.generate_text(prompt, 40, temperature=0)[0] for prompt in prompts]
    assert model.generate_text(prompts, 40, temperature=0) == alone
    follows = bytes(model.generate(prompts[1], 40, temperature=0))
    assert alone[1] == follows.decode(errors="replace")
    bpe = STLM(ModelConfig(tokenizer="gpt2", gpt2_vocab=300, pooling="none", n_layer=1))
    with pytest.raises(ValueError, match="expected a model of bytes"):
        bpe.generate_text("the ")


def test_each_place_without_a_model_says_what_to_do(trained, tmp_path, monkeypatch):
    def message(name):
        with pytest.raises(ValueError) as e:
            STLM.from_pretrained(name)
        return str(e.value)

    line = message(trained)
    assert (
        f"got a run of train.py: share it first, with `python -m tools.share --model={trained}"
        in line
    )
    assert "no model in" in message(tmp_path / "nothing")
    assert "model.safetensors is missing" in message(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    assert "pip install huggingface_hub" in message("ann/poems")


@pytest.mark.slow
def test_the_wheel_is_model_py_under_the_name_stlm(shared, tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "-w", tmp_path / "wheel", ROOT]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("pip finds no hatchling here, which builds the wheel")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel],
        check=True,
        cwd=tmp_path,
    )
    assert {p.name for p in (tmp_path / "site").glob("*.py")} == {"stlm.py"}
    code = f"""
import sys, stlm
assert stlm.__file__.startswith({str(tmp_path)!r}) and "model" not in sys.modules
model = stlm.STLM.from_pretrained({str(shared)!r})
model.save_pretrained("copy", bits=4)
print(repr((stlm.STLM.from_pretrained("copy").generate_text("the ", 20), stlm.__version__)))
"""
    env = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    texts, version = eval(done.stdout)
    assert len(texts) == 1 and len(texts[0]) <= 20
    assert wheel.name.startswith(f"stlm-{version}-")
    assert (tmp_path / "copy/model.py").read_bytes() == (ROOT / "model.py").read_bytes()


def test_loaded_weights_outlive_the_file_they_came_from(shared, tmp_path):
    shutil.copytree(shared, tmp_path / "a")
    model = STLM.from_pretrained(tmp_path / "a")
    before = logits(model)
    path = tmp_path / "a/model.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)
    assert torch.equal(logits(model), before)
    path.write_bytes(b"")
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path / "a", bits=8)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("std", [1.0, 1e-4, 1e-6, 1e-7])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_model_that_is_saved_again_has_the_same_weights_bit_for_bit(bits, std, tmp_path):
    """Also rows of zeros, rows with two extremes, and rows so small that their scale is inexact."""
    model = random_model()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    model.grams.weight.data[:9] = 0
    model.grams.weight.data[:4, 1] = -0.0
    model.pool.weight.data[:, 0] = 7 * std
    model.pool.weight.data[:, 1] = -7 * std
    model.save_pretrained(tmp_path / "once", bits)
    STLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice", bits)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_files_are_written_together_or_not_at_all(shared, tmp_path, monkeypatch):
    shutil.copytree(shared, tmp_path / "old")
    before = files_of(tmp_path / "old")
    model = random_model()
    write_bytes = Path.write_bytes

    def disk_full(path, content):
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    (tmp_path / "odd/model.py").mkdir(parents=True)  # cannot be replaced by a file
    with pytest.raises(OSError):
        model.save_pretrained(tmp_path / "odd", card="# a model")
    assert [p.name for p in (tmp_path / "odd").iterdir()] == ["model.py"]

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(folder, card="# a model")
    assert files_of(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


def test_a_link_in_the_folder_is_replaced_and_its_target_stays(shared, tmp_path):
    shutil.copytree(shared, tmp_path / "a")
    (tmp_path / "a/notes.txt").write_text("stays")
    mine = tmp_path / "mine"
    mine.mkdir()
    names = ("model.safetensors", "config.json", "model.py", "README.md")
    for name in names:
        (tmp_path / "a" / name).rename(mine / name)
        (tmp_path / "a" / name).symlink_to(mine / name)
    before = files_of(mine)
    STLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "a", bits=4, card="# new")
    assert files_of(mine) == before
    assert not any((tmp_path / "a" / name).is_symlink() for name in names)
    assert (tmp_path / "a/README.md").read_text() == "# new"
    assert {*names, "notes.txt"} <= {p.name for p in (tmp_path / "a").iterdir()}


def test_a_hub_that_does_not_answer_is_one_line(trained, tmp_path):
    env = {
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_none",
    }
    done = run(
        "tools.share", f"--model={trained}", "--to=ann/poems", cwd=tmp_path, env=env, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to ann/poems" in done.stderr


def test_the_model_of_another_project_is_not_overwritten(trained, tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"weights")
    before = files_of(folder)
    message = message_of(share.main, [f"--model={trained}", f"--to={folder}"])
    assert "exists but is not a shared folder" in message
    assert files_of(folder) == before


def test_if_one_file_cannot_be_replaced_the_old_ones_come_back(shared, tmp_path, monkeypatch):
    folder = shutil.copytree(shared, tmp_path / "a")
    (folder / "README.md").unlink()
    before = files_of(folder)
    replace = Path.replace

    def held(source, target):
        if Path(target) == folder / "config.json" and source.suffix != ".old":
            raise PermissionError(13, "Access is denied")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(PermissionError):
        random_model().save_pretrained(folder, card="# a model")
    assert before.items() <= files_of(folder).items()
    STLM.from_pretrained(folder)
