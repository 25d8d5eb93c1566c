"""Shared weights equal the trained ones, load anywhere, and run no code from their folder."""

import functools
import hashlib
import http.server
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import torch
from conftest import ROOT, SMALL, message_of, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bench
import sample
import train
from lib import files
from model import STLM, FeedForward, ModelConfig
from tools import share


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
    assert files == {"model.safetensors", "config.json", "model.py", "README.md"}
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


def test_the_harness_takes_it(shared):
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is not installed (pip install lm-eval)"
    )
    from tools.harness import Harness

    assert torch.equal(
        logits(Harness(model=str(shared), device="cpu").model), logits(STLM.from_pretrained(shared))
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


def test_uploading(trained, tmp_path, monkeypatch):
    calls = []

    def upload(repo_id, folder_path):
        files = {p.name: p.read_bytes() for p in share.Path(folder_path).iterdir()}
        calls.append(("upload", repo_id, files))

    monkeypatch.setattr(
        huggingface_hub,
        "create_repo",
        lambda name, exist_ok: calls.append(("create", name, exist_ok)),
    )
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    monkeypatch.chdir(tmp_path)
    share.main([f"--model={trained}", "--to=ann/poems", "--bits=8"])
    assert calls[0] == ("create", "ann/poems", True)
    assert calls[1][:2] == ("upload", "ann/poems")
    assert len(calls) == 2
    files = calls[1][2]
    assert set(files) == {"model.safetensors", "config.json", "model.py", "README.md"}
    assert b'from_pretrained("ann/poems")' in files["README.md"] and not list(tmp_path.iterdir())
    (tmp_path / "ann").mkdir()  # now the name means a folder
    share.main([f"--model={trained}", "--to=ann/poems"])
    assert len(calls) == 2 and (tmp_path / "ann/poems/README.md").exists()


def test_what_is_no_shared_folder_is_not_written_into(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    for to in (tmp_path / "mine", trained, tmp_path / "mine/letter.txt"):
        with pytest.raises(ValueError, match="exists but is not a shared folder"):
            share.main([f"--model={trained}", f"--to={to}"])
    with pytest.raises(ValueError, match="give --to=DIR"):
        share.main([f"--model={trained}"])
    for bits in (0, 3, 64):
        with pytest.raises(ValueError, match=f"bits={bits} must be"):
            share.main([f"--model={trained}", f"--to={tmp_path / 'new'}", f"--bits={bits}"])
    assert not (tmp_path / "new").exists()


# --- damage and malice ----------------------------------------------------------------------------


QKV = "blocks.0.attention.qkv.weight"


class Malice:
    def __reduce__(self):
        return (open, ("it_was_run", "w"))


def config_with(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def tensors_with(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGE = {
    "a pickle": write("model.safetensors", pickle.dumps(Malice())),
    "torch.save": lambda folder: torch.save({"w": Malice()}, folder / "model.safetensors"),
    "cut short": lambda folder: write(
        "model.safetensors", (folder / "model.safetensors").read_bytes()[:-9]
    )(folder),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no JSON": write("config.json", b"{"),
    "a list": write("config.json", b"[1]"),
    "not UTF-8": write("config.json", b'{"\xff": 1}'),
    "unknown key": config_with(n_layers=2),
    "a text for a number": config_with(n_layer="2"),
    "a float for a number": config_with(n_layer=2.0),
    "a number for yes or no": config_with(share_ffn=1),
    "a word outside the choices": config_with(pooling="os.system"),
    "a list for a word": config_with(pooling=["space"]),
    "null": config_with(n_embd=None),
    "another width": config_with(n_embd=64),
    "another depth": config_with(n_layer=3),
    "a depth beyond all bounds": config_with(n_layer=10**9),
    "a width beyond all bounds": config_with(n_embd=2 * 10**6),
    "a table beyond all bounds": config_with(gram_rows=10**15),
    "a list for about": config_with(about=[1]),
    "one missing": tensors_with(lambda t: t.pop("embed.weight")),
    "one too many": tensors_with(lambda t: t.update(more=torch.zeros(3))),
    "one turned": tensors_with(lambda t: t.update({QKV: t[QKV].T.contiguous()})),
    "not finite": tensors_with(lambda t: t["embed.weight"][3].fill_(float("nan"))),
    "a scale too few": tensors_with(lambda t: t.update({"pool.weight.scale": torch.ones(3, 1)})),
    "packed, too short": tensors_with(
        lambda t: t.update(
            {
                "pool.weight": torch.zeros(2, 32, dtype=torch.uint8),
                "pool.weight.scale": torch.ones(2, 1),
            }
        )
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(kind, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    DAMAGE[kind](folder)
    with pytest.raises(ValueError, match=r"model") as e:
        files.load_run(folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value) and len(str(e.value)) < 500
    assert not (tmp_path / "it_was_run").exists()


def test_what_is_told_wrongly_of_a_run_is_not_believed(shared, tmp_path):
    shutil.copytree(shared, tmp_path / "model")
    config_with(about={"data": 1, "step": [], "commit": 5})(tmp_path / "model")
    _, checkpoint, _ = files.load_run(tmp_path / "model")
    assert checkpoint["data"] == {}
    assert checkpoint["step"] == 0
    assert checkpoint["commit"] == "unknown"


def test_code_that_lies_beside_the_weights_is_not_run(shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    for name in (
        "model.py",
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
print(bytes(stlm.STLM.from_pretrained("copy").generate("the ", 20)))
"""
    env = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(eval(done.stdout)) <= 20, done.stderr
    assert (tmp_path / "copy/model.py").read_bytes() == (ROOT / "model.py").read_bytes()


def test_loaded_weights_outlive_the_file_they_came_from(shared, tmp_path):
    shutil.copytree(shared, tmp_path / "a")
    model = STLM.from_pretrained(tmp_path / "a")
    before = logits(model)
    model.save_pretrained(tmp_path / "a", bits=8)
    assert torch.equal(logits(model), before)


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
