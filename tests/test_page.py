"""tools/page.html is one safe file. Its JavaScript is model.py once more: node compares the two."""

import base64
import html.parser
import json
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, message_of
from safetensors.torch import load, save

from model import IGNORED_KEYS, KNOBS, STLM, ModelConfig
from model import sample as sample_in_python
from tools import share

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed (apt install nodejs)")
TEMPLATE = (ROOT / "tools/page.html").read_text(encoding="utf-8")


def random_model(seed=0, **knobs):
    """A tiny model with random weights everywhere, even where a new model has zeros."""
    torch.manual_seed(seed)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_local_embd": 6, "n_grams": 1}
    model = STLM(ModelConfig(**sizes | {"gram_rows": 50, "gram_width": 3} | knobs)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model


def share_page(model, page, *args):
    """What tools.share does with a shared model."""
    folder = page.with_name(f"{page.stem}_shared")
    model.save_pretrained(folder)
    share.main([f"--model={folder}", f"--to={page}", *args])


def part(page, name):
    return re.search(f'<script id="{name}"[^>]*>(.*?)</script>', page, re.DOTALL)[1]


def weights_of(page):
    return base64.b64decode(part(page, "weights"), validate=True)


def model_of(page, folder):
    """The model that the text of a page holds."""
    folder.mkdir()
    (folder / "config.json").write_text(part(page, "config"))
    (folder / "model.safetensors").write_bytes(weights_of(page))
    return STLM.from_pretrained(folder)


# --- the same model in node -----------------------------------------------------------------------

PROBE = r"""
const fs = require("fs");
const { cases, draws, broken, random_numbers } = JSON.parse(fs.readFileSync(0));
const code = fs.readFileSync(process.argv[1], "utf8");
const names = "return { from_pretrained, half, list, sample };";
const { from_pretrained, half, list, sample } = new Function(code + names)();

function open(files) {
  return from_pretrained(files.config, new Uint8Array(Buffer.from(files.weights, "base64")));
}

function message(run) {
  try {
    run();
  } catch (error) {
    return error.message;
  }
}

function base64(numbers) {
  return Buffer.from(Float32Array.from(numbers).buffer).toString("base64");
}

const results = { texts: [], logits: [], sizes: [] };
for (const { files, text, prompt, max_new } of cases) {
  const model = open(files);
  const state = model.start();
  const logits = text.flatMap((byte) => [...model.head(model.read(byte, state))]);
  results.logits.push(base64(logits));
  results.sizes.push(model.n_weights);
  const greedy = { temperature: 0, top_k: 0, top_p: 1 };
  results.texts.push([...model.generate(prompt, max_new, greedy)]);
}
results.draws = draws.map(({ logits, options }) => {
  return random_numbers.map((u) => sample(Float32Array.from(logits), options, () => u));
});
results.messages = broken.map((files) => message(() => open(files)));
results.not_finite = message(() => sample([0, Infinity], { temperature: 1, top_k: 0, top_p: 1 }));
results.halves = base64(list(65536, half));
console.log(JSON.stringify(results));
"""


def in_node(code, cases=(), draws=(), broken=(), random_numbers=()):
    """Run the page's JavaScript, the path `code`, on what Python computes as well."""
    request = {"cases": cases, "draws": draws, "broken": broken, "random_numbers": random_numbers}
    done = subprocess.run(
        [NODE, "-e", PROBE, str(code)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def floats(base64_text):
    return np.frombuffer(base64.b64decode(base64_text), dtype=np.float32)


@pytest.fixture(scope="session")
def code(tmp_path_factory):
    """The JavaScript of the model, in a file."""
    path = tmp_path_factory.mktemp("page") / "model.js"
    path.write_text(part(TEMPLATE, "stlm") + part(TEMPLATE, "sharing"))
    return path


def random_knobs(seed):
    rng = random.Random(seed)
    pooling = ("space", "fixed", "none")[seed % 3]
    n_head = rng.randint(1, 3)
    knobs = {
        "pooling": pooling,
        "block_size": rng.randint(20, 60),
        "max_patch": rng.randint(2, 9),
        "max_patches": 0 if pooling == "none" else rng.choice([0, 2, 5]),
        "n_layer": rng.randint(1, 3),
        "n_head": n_head,
        "n_embd": 2 * n_head * rng.randint(2, 5),
        "n_local_embd": rng.randint(5, 18),
        "n_local_enc": rng.randint(0, 2),
        "n_local_dec": rng.randint(0, 2),
        "local_reach": rng.randint(1, 4),
        "n_grams": rng.randint(0, 4),
        "gram_rows": rng.randint(50, 500),
        "gram_width": rng.randint(2, 6),
        "n_match": rng.choice([0, 1, 4, 6]),
        "match_window": rng.choice([0, 17, 200]),
        "n_copy": rng.randint(0, 3),
        "canon_reach": rng.randint(1, 3),
        "n_loop": rng.randint(1, 2),
        "share_ffn": rng.random() < 0.5,
    }
    return knobs


def random_text(seed):
    """EOT, words that come again, every byte at least once, and the text's beginning once more."""
    rng = random.Random(seed)
    words = [
        b"the ",
        b"there, ",
        b"a\n\n",
        b"aaaaaaa",
        b"10:30 ",
        "Größe 漢字 😀 ".encode(),
        b"a\xff",
        b"b\x00 ",
    ]
    texts = [rng.choice(words) for _ in range(40)]
    texts.insert(rng.randint(0, 40), bytes(range(256)))
    text = [255, *b"".join(texts)]
    return text + text[:20]


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """For each of 24 random configs what the page holds, and what model.py makes of a text."""
    folder = tmp_path_factory.mktemp("cases")
    found = []
    for seed in range(24):
        page = folder / f"{seed}.html"
        bits = (32, 16, 8, 4)[seed % 4]
        model = random_model(seed, **random_knobs(seed))
        if seed == 0:
            # Some odds reach their limit, and some probabilities are next to nothing.
            model.copy.weight.data *= 7
            model.embed.weight.data *= 4
        share_page(model, page, f"--bits={bits}")
        page = page.read_text()
        # In float64, because float32 alone may be off by 1e-4 with such weights.
        model = model_of(page, folder / f"{seed}_page").double()
        text = random_text(seed)
        with torch.no_grad():
            x, _ = model.read(torch.tensor([text]), model.start(1))
            logits = model.head(x)[0]
        prompt = text[1 : 1 + 5 * seed]
        case = {
            "files": {"config": json.loads(part(page, "config")), "weights": part(page, "weights")},
            "text": text,
            "prompt": prompt,
            "max_new": 40,
        }
        greedy = list(model.generate(prompt, 40, temperature=0))
        n_weights = sum(p.numel() for p in model.parameters())
        found.append((case, logits.numpy(), greedy, n_weights))
    return found


def check_cases(code, cases):
    """The logits after every byte are within 1e-4 of model.py's, and the greedy text is the same.

    The largest difference was 7e-5, where logits reach 30.
    """
    results = in_node(code, [case for case, *_ in cases])
    for i, (case, expected, greedy, n_weights) in enumerate(cases):
        difference = np.abs(floats(results["logits"][i]).reshape(expected.shape) - expected)
        assert difference.max() < 1e-4, case["files"]["config"]
        # null for EOT and each byte of the prompt
        assert results["texts"][i] == [None] * (1 + len(case["prompt"])) + greedy
        assert results["sizes"][i] == n_weights


# temperature, top_k, top_p
OPTIONS = [
    (1.0, 0, 1.0),
    (0.7, 9, 0.8),
    (0.5, 0, 0.6),
    (2.0, 5, 1.0),
    (1.0, 1, 1.0),
    (1.5, 300, 0.9),
    (0.8, 0, 0.01),
    (1e-7, 0, 1.0),
    (0.0, 4, 0.5),
]


def distribution(logits, options, monkeypatch):
    """The symbols among which model.py's `sample` draws, and their probabilities."""
    n = len(logits)
    seen = []

    def every_rank(p, n_draws, generator):
        seen.append(p[0])
        return torch.arange(n)[:, None]

    with monkeypatch.context() as m:
        m.setattr(torch, "multinomial", every_rank)
        temperature, top_k, top_p = options
        rows = torch.tensor(logits).expand(n, n)
        symbols = sample_in_python(rows, temperature, top_k, top_p)
    if not seen:  # nothing was drawn
        return {symbols[0]: 1.0}
    p = seen[0] / seen[0].sum()
    return {symbol: float(p[rank]) for rank, symbol in enumerate(symbols) if p[rank] > 0}


def check_draws(code, monkeypatch):
    """Of 1,000 draws with evenly spaced random numbers, each symbol gets its share, +-1."""
    n = 1000
    logits = np.random.default_rng(0).normal(100, 3, size=256).astype(np.float32)
    logits[7] = -300
    draws = []
    for temperature, top_k, top_p in OPTIONS:
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        draws.append({"logits": logits.tolist(), "options": options})
    # 1 does not occur, but rounding may have the same effect
    random_numbers = [(i + 0.5) / n for i in range(n)] + [1]
    results = in_node(code, draws=draws, random_numbers=random_numbers)
    assert "expected finite logits" in results["not_finite"]
    for options, drawn in zip(OPTIONS, results["draws"], strict=True):
        expected = distribution(logits.tolist(), options, monkeypatch)
        assert set(drawn) <= expected.keys(), options
        for symbol, p in expected.items():
            assert abs(drawn[:n].count(symbol) - n * p) < 1.001, (options, symbol)


def broken_files():
    """What the page cannot run: -> (files, a part of the message)."""
    model = random_model(n_match=1, n_copy=1)
    config = {key: getattr(model.cfg, key) for key in KNOBS}
    weights = {name: w.float() for name, w in model.saved_tensors()}

    def files(knobs=None, tensors=None, left_out=None, content=None):
        changed = {**config, **(knobs or {})}
        stored = {**weights, **(tensors or {})}
        changed.pop(left_out, None)
        stored.pop(left_out, None)
        content = content or save(stored)
        return {"config": changed, "weights": base64.b64encode(content).decode()}

    not_finite = weights["embed.weight"].clone()
    not_finite[255, 5] = torch.inf
    integers = torch.ones(6, 6, dtype=torch.int8)
    endless = {"gate.weight": integers, "gate.weight.scale": torch.full((6, 1), torch.inf).half()}
    name = "gate.weight"
    return [
        (files(left_out="n_copy"), "the knob n_copy is missing: other code wrote it"),
        (files({"n_heads": 2}), "unknown knob n_heads: other code wrote it"),
        (files({"__proto__": 2}), "unknown knob __proto__"),
        (files({"tokenizer": "gpt2", "pooling": "none"}), "use sample.py"),
        (files({"about": {"game": "nim"}}), "plays a game; use sample.py"),
        (files({"pooling": "words"}), "no rule for pooling=words"),
        (files(left_out=name), "gate.weight is missing"),
        (files(tensors={"gain": torch.ones(3)}), "gain is not a tensor of this model"),
        (files(tensors={name: weights[name][:-1]}), "unexpected shape (5,6) of F32"),
        (files(tensors={name: weights[name].double()}), "unexpected shape (6,6) of F64"),
        (files(tensors={name: integers}), "gate.weight.scale is missing"),
        (files(tensors={"embed.weight": not_finite}), "expected 1536 finite weights"),
        (files(tensors=endless), "expected 36 finite weights"),
        (files(content=save(weights)[:-4]), "finite weights"),
        (files(content=b"<!doctype html>"), ""),
        (files({"about": {"step": 1}, "sha256": {}, "model_type": "stlm"}), None),
        (files(content=save(weights, {"format": "pt"})), None),
    ]


def check_files(code):
    files, expected = zip(*broken_files(), strict=True)
    results = in_node(code, broken=files)
    for message, part_of_it in zip(results["messages"], expected, strict=True):
        if part_of_it is None:
            assert message is None
        else:
            assert part_of_it in message and "\n" not in message
    # all numbers of 16 bits; no weight is infinite
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[np.isinf(halves)] = np.nan
    np.testing.assert_array_equal(floats(results["halves"]), halves)


@needs_node
@pytest.mark.slow
def test_its_logits_and_its_text_are_those_of_the_model(code, cases):
    check_cases(code, cases)


@needs_node
@pytest.mark.slow
def test_it_draws_like_the_model(code, monkeypatch):
    check_draws(code, monkeypatch)


@needs_node
@pytest.mark.slow
def test_it_reads_files_and_refuses_in_one_line_what_it_cannot_run(code):
    check_files(code)


# --- the file -------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes, in order, and the text of each."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.texts = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>&amp;</title></textarea>\u2028\\"


def test_a_page_holds_the_model_that_a_folder_holds(tmp_path, capsys):
    model = random_model()
    page = tmp_path / "new/My model.HTML"
    page.parent.mkdir()
    share_page(model, page, "--prompt=Once", "--license=cc0-1.0")
    out = capsys.readouterr().out
    assert out.startswith("sharing My model.HTML (with the weights); beside the model's knobs")
    assert '  commit: "unknown"' in out and "MB: open it in a browser" in out
    share.main([f"--model={page.parent / 'My model_shared'}", f"--to={tmp_path / 'a'}", "--bits=8"])
    text = page.read_text(encoding="utf-8")
    assert weights_of(text) == (tmp_path / "a/model.safetensors").read_bytes()
    config = json.loads((tmp_path / "a/config.json").read_text())
    config = {key: config[key] for key in (*KNOBS, "sha256", "about")}  # and nobody else's keys
    assert json.loads(part(text, "config")) == config and config["about"]["bits"] == 8
    shared = {"name": "My model", "prompt": "Once", "license": "cc0-1.0"}
    assert json.loads(part(text, "shared")) == shared
    assert load(weights_of(text))["gate.weight"].dtype == torch.int8


def test_a_page_asks_nobody_and_has_no_parts_elsewhere():
    elements = Elements(TEMPLATE).elements
    policy = next(a["content"] for tag, a in elements if "http-equiv" in a)
    assert policy.split(";")[0].split() == ["default-src", "'none'"]
    assert re.findall(r"[\w.]*:[^ ;]*", policy) == ["data:"]
    tags = [tag for tag, _ in elements]
    before = tags[: tags.index("link")]
    assert set(before) == {"html", "head", "meta"}, "the policy must come before all it applies to"
    for _, attributes in elements:
        for name in ("src", "href", "srcset", "action", "data", "background", "poster"):
            assert attributes.get(name, "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    words = (
        r"https?:|url\(|@import|\bimport\b|fetch\(|XMLHttp|WebSocket|sendBeacon|innerHTML|eval\("
    )
    assert re.findall(words, TEMPLATE) == []


def test_hostile_metadata_stays_text(tmp_path):
    model = random_model()
    model.about = {"data": {"name": HOSTILE, HOSTILE: [HOSTILE]}, HOSTILE: HOSTILE}
    cfg = share.ShareConfig(to=f"{HOSTILE[-9:]}.html", bits=4, prompt=HOSTILE)
    cfg.license = HOSTILE
    page = share.fill_page(model, cfg)
    found = Elements(page)
    template = Elements(TEMPLATE)
    assert found.elements == template.elements
    filled = [i for i, text in enumerate(found.texts) if text != template.texts[i]]
    assert [found.elements[i][1]["id"] for i in filled] == ["shared", "config", "weights"]
    assert json.loads(part(page, "config"))["about"] == model.about | {"bits": 4}
    shared = json.loads(part(page, "shared"))
    assert (shared["prompt"], shared["license"]) == (HOSTILE, HOSTILE)
    for name in ("shared", "config", "weights"):
        assert "<" not in part(page, name)


def test_every_control_has_a_label_and_every_name_an_element():
    elements = Elements(TEMPLATE).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("(\w+)"\)', TEMPLATE)) <= set(ids)
    labelled = {a["for"] for tag, a in elements if tag == "label" and "for" in a}
    inside = set(re.findall(r'<label[^>]*>[^<]+<input id="(\w+)"', TEMPLATE))
    controls = {a["id"] for tag, a in elements if tag in ("input", "textarea")}
    assert controls == labelled | inside


@pytest.mark.parametrize("name, keys", [("KNOBS", KNOBS), ("IGNORED_KEYS", IGNORED_KEYS)])
def test_the_page_knows_all_keys_of_a_config(name, keys):
    """A new knob must be described in tools/page.html as well."""
    found = re.search(rf"const {name} =(.*?);", TEMPLATE, re.DOTALL)[1]
    assert "".join(re.findall('"(.*?)"', found)).split() == list(keys)


def test_what_a_page_cannot_be_is_refused(tmp_path):
    gpt2 = random_model(tokenizer="gpt2", pooling="none", gpt2_vocab=300)
    gpt2.save_pretrained(tmp_path / "gpt2")
    player = random_model()
    player.about = {"game": "nim"}
    player.save_pretrained(tmp_path / "nim")
    page = tmp_path / "page.html"
    for name, why in (("gpt2", "reads GPT-2's tokens"), ("nim", "plays a game")):
        message = message_of(share.main, [f"--model={tmp_path / name}", f"--to={page}"])
        assert why in message and "share it with --to=DIR" in message
    message = message_of(share.main, [f"--model={tmp_path / 'nim'}", f"--to={page}", "--private"])
    assert "--private needs --to=USER/NAME" in message
    assert not page.exists()


def test_a_page_of_others_or_an_edited_one_is_not_overwritten(tmp_path):
    page = tmp_path / "page.html"
    share_page(random_model(), page)
    as_written = page.read_text()
    share_page(random_model(1), page)
    assert page.read_text() != as_written
    args = [f"--model={tmp_path / 'page_shared'}", f"--to={page}"]
    for content in (as_written.replace("Write", "Schreib"), "<p>my homepage", ""):
        page.write_text(content)
        assert "was not written by tools.share, or was edited" in message_of(share.main, args)
        assert page.read_text() == content
    page.rename(tmp_path / "other.html")
    page.symlink_to("other.html")
    assert "is a link" in message_of(share.main, args)
    page.unlink()
    page.mkdir()
    assert "was not written by tools.share" in message_of(share.main, args)
