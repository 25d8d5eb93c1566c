"""bench.py reports only figures that are true of the model."""

import json
import math
import os
import random
import sys
from pathlib import Path
from typing import get_args

import datasets
import numpy as np
import pytest
import torch
from conftest import run

import bench
import train
from bench import BenchConfig, benchmark, grade, pairs, score
from config import Config
from lib.benchmarks import BENCHMARKS, local_items
from lib.data import Data, bits_per_byte, encode
from model import STLM, ModelConfig

POOLINGS = get_args(ModelConfig.__annotations__["pooling"])


def tiny(pooling="space", **knobs):
    """A small model with random weights everywhere."""
    torch.manual_seed(0)
    sizes = {
        "block_size": 48,
        "max_patch": 5,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "n_local_embd": 24,
    }
    model = STLM(
        ModelConfig(pooling=pooling, **(sizes | {"n_grams": 1, "gram_rows": 64} | knobs))
    ).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def uniform(**knobs):
    """A model that finds all next symbols equally likely."""
    model = tiny(**knobs)
    model.embed.weight.data.zero_()
    return model


def some_items(n=30, seed=0):
    """Questions whose choices differ in length.

    Some exceed the context, some are identical, some have one byte.
    """
    rng = random.Random(seed)

    def word():
        return "".join(rng.choices("aeioué日nrst", k=rng.randint(1, 7)))

    def words(low, high):
        return " ".join(word() for _ in range(rng.randint(low, high)))

    items = []
    for i in range(n):
        context = words(1, 25) if i % 4 else ""
        choices = [" " + words(1, 12) for _ in range(rng.randint(2, 5))]
        items.append({"context": context, "choices": choices, "answer": i % 2})
        if i % 5 == 0:
            items.append(
                {
                    "context_options": [context + "x", context + "yy"],
                    "continuation": choices[0],
                    "answer": 1,
                }
            )
    return [
        *items,
        {"context": "a", "choices": ["b", "c"], "answer": 0},
        {**items[1], "choices": [" b", " b"]},
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory, data_dir):
    """A folder with a short run in out/run."""
    from conftest import SMALL

    home = tmp_path_factory.mktemp("home")
    args = [
        *SMALL,
        f"--data_dir={data_dir}",
        f"--out_dir={home / 'out/run'}",
        "--max_steps=30",
        "--eval_interval=10",
    ]
    assert train.main(args) == 0
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def call(capsys, *args):
    bench.main([str(a) for a in args])
    return capsys.readouterr()


# --- scores ---------------------------------------------------------------------------------------


def logits_after(model, text):
    """The logits of the symbol that follows EOT and some bytes."""
    x = model.read(torch.tensor([[model.eot, *encode(model.cfg, text)]]), model.start(1))[0]
    return model.head(x[0, -1]).double()


def alone(model, context, continuation):
    """(log p, greedy) of a continuation of bytes, with one pass for each byte."""
    total = 0.0
    greedy = True
    for i, byte in enumerate(continuation):
        logits = logits_after(model, context + continuation[:i])
        total += logits.log_softmax(0)[byte].item()
        greedy = greedy and int(logits.argmax()) == byte
    return total, greedy


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_sums_over_single_bytes_whatever_shares_a_batch(pooling):
    model = tiny(pooling)
    items = [pairs(i) for i in some_items(9)]
    best = int(logits_after(model, b"x").argmax())
    items += [[(b"x", bytes([best])), (b"x", bytes([best ^ 1]))], [(b"abc", b""), (b"", b"")]]
    expected = [[alone(model, *p) for p in item] for item in items]
    assert expected[-2][0][1] and not expected[-2][1][1] and expected[-1] == [(0.0, True)] * 2
    order = list(range(len(items)))
    random.Random(1).shuffle(order)
    for at_once in (0, 1, 300):
        done = []
        found = score(model, [items[i] for i in order], done.append, at_once)
        for i, scores in zip(order, found, strict=True):
            assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected[i]]
            assert [nats for nats, _ in scores] == pytest.approx(
                [nats for nats, _ in expected[i]], abs=1e-3
            )
        assert sum(done) == sum(map(len, items)), "the progress bar must reach its end"


def test_a_batch_is_no_larger_than_it_may_be_with_its_padding(monkeypatch):
    items = [[(b"", b"short choice"), (b"", b"other one")] for _ in range(40)]
    items += [[(b"", b"long " * 80), (b"", b"x" * 100)], [(b"y" * 300, b"a"), (b"y" * 300, b"b")]]
    read = STLM.read
    sizes = []
    model = tiny()

    def watch_sizes(self, idx, state):
        sizes.append(idx.numel())
        return read(self, idx, state)

    monkeypatch.setattr(STLM, "read", watch_sizes)
    score(model, items, at_once=900)
    assert max(sizes) <= 900 and len(sizes) < 12


def test_a_uniform_model_scores_chance_and_eight_bits(data_dir):
    """Choices of equal length tie, and the first choice gets no point for a tie."""
    model = uniform()
    cfg = Config(dataset="words", data_dir=str(data_dir), max_steps=1, block_size=32)
    for stride in (0, 5, 16, 32):
        assert bits_per_byte(model, Data(cfg, "val"), 32, stride=stride)["bpb"] == pytest.approx(
            8.0, abs=1e-6
        )
    items = [{"context": "", "choices": ["good one", "evil one"], "answer": 0, "group": "g"}] * 7
    found = benchmark(model, "t", items, BenchConfig())
    assert found["acc"] == found["chance"] == 0.5 and found["groups"]["g"] == {"n": 7, "acc": 0.5}
    items = [
        {"context": "Q", "choices": [f" {c}" * 3 for c in "abcd"], "answer": i % 4}
        for i in range(6)
    ]
    found = benchmark(model, "t", items, BenchConfig())
    assert found["acc"] == found["acc_norm"] == found["acc_bytes"] == found["chance"] == 0.25


def test_metrics_and_their_errors():
    def grades(item, nats):
        return grade(item, [(n, False) for n in nats])

    item = {"context": "c", "choices": [" ab", " é日x", " d"], "answer": 1}
    assert grades(item, [-2.0, -2.7, -1.5]) == {"acc": 0, "acc_norm": 1, "acc_bytes": 1}
    assert grades(item, [-2.0, -3.3, -1.5])["acc_norm"] == 0.0  # 3.3 / 3 characters > 2.0 / 2
    assert grades(item, [-2.0, -3.3, -1.5])["acc_bytes"] == 1.0  # 3.3 / 6 bytes
    assert grades({"context": "", "choices": ["a", "b"], "answer": 1}, [-1.0, -1.0]) == {"acc": 0.5}
    options = {"context_options": ["a", "b"], "continuation": "c", "answer": 0}
    assert grades(options, [-1.0, -2.0]) == {"acc": 1.0}
    lone = {"context": "c", "choices": [" ab"], "answer": 0}
    assert grade(lone, [(-2.0, True)]) == {"acc": 1.0, "logp": -2.0}
    assert grade(lone, [(-2.0, False)])["acc"] == 0.0
    found = bench.summary([item] * 4, [{"acc": a} for a in (1, 0, 0, 1)])
    assert found["acc"] == 0.5 and found["acc_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)


def test_bpe_bits_are_per_byte_of_text(gpt2_files, tmp_path):
    """A uniform BPE model pays log2(50257) for each token; bits count per byte of the text."""
    model = uniform(pooling="none", tokenizer="gpt2", n_grams=0)
    text = "The naïve café — 日本 🐍.\n" * 30
    data = Data.of_text(model.cfg, text.encode())
    found = bits_per_byte(model, data, 48)
    assert found["bytes"] == len(text.encode())
    n_tokens = len(encode(model.cfg, text.encode()))
    assert found["bpb"] == pytest.approx(n_tokens * math.log2(50257) / len(text.encode()))


def test_a_bpe_continuation_is_every_token_that_does_not_lie_whole_in_its_context(gpt2_files):
    """A context that ends in a space holds a part of the token " yes", but not the whole token."""
    model = tiny("none", tokenizer="gpt2", n_grams=0)
    for context, continuation, scored in (
        (b"Answer: ", b"yes it is", [" yes", " it", " is"]),
        (b"Answer:", b" yes", [" yes"]),
        (b"hello wor", b"ld is big", [" world", " is", " big"]),
    ):
        whole = encode(model.cfg, context + continuation)
        total = 0.0
        rest = encode(model.cfg, "".join(scored).encode())
        assert whole[-len(rest) :] == rest
        x = model.read(torch.tensor([[model.eot, *whole]]), model.start(1))[0]
        for i in range(len(whole) - len(rest), len(whole)):
            total += model.head(x[0, i]).double().log_softmax(0)[whole[i]].item()
        assert score(model, [[(context, continuation)]])[0][0][0] == pytest.approx(total, abs=1e-3)


@pytest.fixture
def gpt2_files():
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("needs tiktoken's gpt2 files: set TIKTOKEN_CACHE_DIR")


@torch.no_grad()
def test_stride_scores_each_byte_once_with_the_context_it_says(data_dir):
    model = tiny()
    cfg = Config(dataset="words", data_dir=str(data_dir), max_steps=1)
    data = Data(cfg, "val")
    data.symbols = np.array(data.symbols[:333])
    T = 48
    stride = 20
    total = 0.0
    for t in range(333):
        first = 0 if t < T else T + (t - T) // stride * stride  # the start of t's window
        start = 0 if t < T else first + stride - T
        before = [data.symbols[start - 1] if start else model.eot, *data.symbols[start:t]]
        if data.symbols[t] != model.eot:
            x = model.read(torch.tensor([[int(s) for s in before]]), model.start(1))[0]
            total -= model.head(x[0, -1]).double().log_softmax(0)[int(data.symbols[t])].item()
    found = bits_per_byte(model, data, T, stride=stride)
    assert found["nats"] == pytest.approx(total, rel=1e-4)
    assert found["bytes"] == (data.symbols != model.eot).sum()
    assert bits_per_byte(model, data, T, stride=T)["nats"] == pytest.approx(
        bits_per_byte(model, data, T)["nats"]
    )


# --- items ----------------------------------------------------------------------------------------

GOOD = '{"context": "", "choices": ["a", "b"], "answer": 0}'
BAD = {
    "not json": "line 3: Expecting value",
    "[1, 2]": "line 3",
    '{"context": "", "choices": ["a", "b"]}': "line 3: no 'answer'",
    '{"choices": ["a", "b"], "answer": 0}': "line 3: no 'context'",
    '{"context": "", "choices": [], "answer": 0}': "expected a list of choices, got []",
    '{"context": "", "choices": ["a", ""], "answer": 0}': "an empty choice",
    '{"context": "", "choices": ["a", 3], "answer": 0}': "expected text, got 3",
    '{"context": "", "choices": "ab", "answer": 0}': "expected a list of choices, got",
    '{"context": "", "choices": ["a", "b"], "answer": 2}': "expected answer from 0 to 1, got 2",
    '{"context": "", "choices": ["a", "b"], "answer": true}': (
        "expected answer from 0 to 1, got True"
    ),
    '{"context": "", "choices": ["a", "\\ud800"], "answer": 0}': "surrogates",
    '{"context_options": ["a", "b"], "answer": 0}': "no 'continuation'",
    '{"context_options": ["a", "b"], "continuation": "", "answer": 0}': "an empty choice",
}


@pytest.mark.parametrize("line", BAD)
def test_malformed_items_are_refused_with_file_and_line(line, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"task\.jsonl, line 3") as e:
        list(local_items(path))
    assert BAD[line] in str(e.value) and "\n" not in str(e.value)


DAMAGED = {
    b"[" * 100_000: "",
    b'{"context": ' * 100_000: "",
    b"[" * 900 + b"]" * 900: "",
    b'"choices"': "expected an object, got 'choices'",
    b"7": "expected an object, got 7",
    b"null": "expected an object, got None",
    b'["choices", "context", "answer"]': "expected an object, got ['choices'",
    b'{"context": "caf\xe9", "choices": ["a", "b"], "answer": 0}': "utf-8",
    b"\xff\xfe\x00": "",
    b"PK\3\4\0\0": "",
    b'{"context": "", "choices": ["a", "b"], "answer": NaN}': "got nan",
    b'{"context": "", "choices": ["a", "b"], "answer": 1e999}': "got inf",
    b'{"context": "", "choices": ["a", "b"], "answer": 1.0}': "got 1.0",
    b'{"context": "", "choices": ["a", "b"], "answer": -1}': "got -1",
    b'{"context": "", "choices": ["a", "b"], "answer": ' + b"9" * 4000 + b"}": "got 999",
    b'{"context": "", "choices": ["a", "b"], "answer": ' + b"9" * 5000 + b"}": "limit",
    b'{"context": "", "choices": {"a": 1}, "answer": 0}': "expected a list of choices",
    b'{"context": "", "choices": [' + b'"", ' * 9**5 + b'""], "answer": 0}': "an empty choice",
    b'{"context": "", "choices": {"a": "' + b"a" * 9**5 + b'"}, "answer": 0}': "got {'a': 'aaa",
    b'{"context": null, "choices": ["a", "b"], "answer": 0}': "expected text, got None",
    b'{"context": "", "choices": ["a", "b"], "answer": 0, "group": 3}': "expected text, got 3",
    b'{"context": "", "choices": ["a", "b"], "answer": 0, "group": "\\udc80"}': "surrogates",
}


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: str(line[:60]))
def test_a_damaged_or_foreign_line_is_one_short_line(line, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + line + b"\n")
    with pytest.raises(ValueError, match=r"task\.jsonl, line 2: ") as e:
        list(local_items(path))
    message = str(e.value)
    assert DAMAGED[line] in message and "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_limit_is_a_random_subset_of_the_items():
    items = [
        {"context": "", "choices": ["a", "b"], "answer": 0, "group": str(i)} for i in range(200)
    ]
    model = uniform()
    takes = [benchmark(model, "t", items, BenchConfig(limit=40, seed=s)) for s in (1, 1, 2)]
    groups = [{int(g) for g in t["groups"]} for t in takes]
    assert takes[0]["n"] == len(groups[0]) == 40 and takes[0]["of"] == 200
    assert groups[0] == groups[1] != groups[2]
    assert 60 < sum(groups[0]) / 40 < 140, "the items must come from all over the file"


def test_items_from_the_hub_are_worded_as_in_the_harness(monkeypatch):
    blimp = {"sentence_good": "He goes.", "sentence_bad": "He go.", "UID": "wh_island"}
    arc = {
        "question": "Why?",
        "choices": {"text": ["a", "b"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    mmlu = {"question": " Why? ", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3}
    swag = {
        "activity_label": "Cook",
        "ctx_a": "He cuts [x] it.",
        "ctx_b": "she",
        "endings": ["eats [title] it", "no"],
    }
    wino = {"sentence": "A beat B so _ won.", "option1": "A", "option2": "B", "answer": "2"}
    rows = {
        "nyu-mll/blimp": blimp,
        "allenai/ai2_arc": arc,
        "cais/mmlu": mmlu,
        "allenai/winogrande": wino,
    }
    rows["Rowan/hellaswag"] = swag | {"label": "1"}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, config=None, split=None: [rows[path]]
    )
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["wh_island"])
    names = ("blimp", "arc_easy", "mmlu", "hellaswag", "winogrande")
    found = {name: next(BENCHMARKS[name][1]()) for name in names}
    assert found["blimp"] == {
        "context": "",
        "choices": ["He goes.", "He go."],
        "answer": 0,
        "group": "wh_island",
    }
    assert found["arc_easy"] == {
        "context": "Question: Why?\nAnswer:",
        "choices": [" a", " b"],
        "answer": 1,
    }
    assert found["mmlu"]["context"] == "Question: Why?\nAnswer:" and found["mmlu"]["group"] == "law"
    assert found["hellaswag"] == {
        "context": "Cook: He cuts it. She",
        "choices": [" eats. it", " no"],
        "answer": 1,
    }
    options = {
        "context_options": ["A beat B so A", "A beat B so B"],
        "continuation": " won.",
        "answer": 1,
    }
    assert found["winogrande"] == options


# --- the commands ---------------------------------------------------------------------------------


def test_eval_writes_what_it_prints_and_keeps_other_figures(at_home, capsys):
    Path("items").mkdir(exist_ok=True)
    Path("items/mine.jsonl").write_text("\n".join(json.dumps(i) for i in some_items(12)))
    Path("a.txt").write_text("the of and to in is that for it as was with é日本\n" * 40)
    printed = call(capsys, "eval", "--data=items", "--tasks=val,mine", "--json").out
    first = json.loads(Path("out/run/eval.json").read_text())
    assert json.loads(printed) == first
    assert first["tasks"]["mine"]["n"] == first["tasks"]["mine"]["of"]
    verdict = json.loads(Path("out/run/run.json").read_text())["verdict"]
    assert f"{first['val']['bpb']:.4f}" == verdict["val_bpb"], "training printed another figure"
    val = first["val"]
    assert val["bpb_stream"] < val["bpb"], "more context must help"
    assert "bpb_stride" not in val
    stride = json.loads(call(capsys, "eval", "--tasks=val", "--stride=8", "--json").out)["val"]
    assert stride["stride"] == 8 and stride["bpb_stride"] < val["bpb"], "more context must help"
    assert {key: stride[key] for key in val} == val
    printed = call(capsys, "eval", "--out_dir=out/run", "--text=a.txt").out
    both = json.loads(Path("out/run/eval.json").read_text())
    assert both["tasks"] == first["tasks"] and f"{both['texts']['a.txt']['bpb']:.4f}" in printed
    assert both["texts"]["a.txt"]["bytes"] == len(Path("a.txt").read_bytes())
    assert "mine" in call(capsys, "eval", "--data=items", "--limit=5", "--tasks=mine").out
    third = json.loads(Path("out/run/eval.json").read_text())
    assert third["tasks"]["mine"]["n"] == 5 and "val" in third and "texts" in third


@pytest.mark.parametrize(
    "args, message",
    [
        (["eval", "--tasks=blip", "--data=items"], "no task 'blip'"),
        (["eval", "--data=nowhere"], r"no \*.jsonl files in nowhere"),
        (["eval", "--text=nowhere"], "text=nowhere"),
        (["eval", "--text=odd.bin"], "byte 3 is 0xFF"),
        (["eval", "--text=empty"], "at least 1 byte to score, got 0"),
        (["eval", "--out_dir=out/none"], "no run in"),
        (["eval", "--tasks=broken", "--data=items"], r"broken.jsonl, line 1"),
        (["eval", "out/run"], "unexpected argument 'out/run'"),
        (["speed", "config/demmo.py"], "no config file"),
        (["fast"], "unknown command 'fast': use speed or eval"),
        ([], "speed or eval"),
        (["speed", "--rounds=0"], "rounds=0 must be at least 1"),
        (["eval", "--limmit=3"], "did you mean 'limit'"),
    ],
)
def test_mistakes_are_named(at_home, args, message):
    Path("items").mkdir(exist_ok=True)
    Path("items/broken.jsonl").write_text("{}\n")
    Path("odd.bin").write_bytes(b"abc\xffd")
    Path("empty").write_bytes(b"")
    with pytest.raises(ValueError, match=message) as e:
        bench.main(args)
    assert "\n" not in str(e.value)


def test_a_figure_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    """The weights are finite, so that they load, and so large that the output is not."""
    monkeypatch.chdir(tmp_path)
    Path("items").mkdir()
    Path("items/mine.jsonl").write_text(json.dumps(some_items(1)[0]))
    Path("a.txt").write_text("the of and to in is\n")
    model = tiny()
    model.embed.weight.data *= 1e38 / model.embed.weight.abs().max()
    model.save_pretrained("model")
    for what, figure in (("--data=items", "log-probabilities"), ("--text=a.txt", "bits per byte")):
        with pytest.raises(ValueError, match=f"expected finite {figure}, got NaN or infinity"):
            bench.main(["eval", "--model=model", what, "--device=cpu"])


def test_without_the_hub_what_can_be_scored_is_scored(at_home, capsys, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    done = call(capsys, "eval")
    assert "val, best.pt of step" in done.out
    assert "blimp: skipped: cannot load it from the Hub (no network); --data=DIR" in done.err
    with pytest.raises(ValueError, match="blimp: cannot load it from the Hub"):
        bench.main(["eval", "--tasks=blimp"])

    # The figures of an earlier command stay in eval.json, but are not printed as if they were new.
    path = Path("out/run/eval.json")
    result = json.loads(path.read_text())
    old = {"n": 1, "of": 1, "acc": 0.5, "acc_stderr": None, "chance": 0.5}
    path.write_text(json.dumps(result | {"tasks": {"blimp": old}}))
    done = call(capsys, "eval")
    assert "50.0%" not in done.out
    assert json.loads(path.read_text())["tasks"]["blimp"] == old

    # A message names a benchmark's mistake, and the others still run.
    def mistaken():
        yield {}["sol1"]

    def right():
        yield {"context": "", "choices": ["a", "b"], "answer": 0}

    monkeypatch.setattr(bench, "BENCHMARKS", {"mine": ("", mistaken), "good": ("", right)})
    done = call(capsys, "eval")
    assert "got other rows from the Hub (KeyError('sol1'))" in done.err
    assert "good" in json.loads(Path("out/run/eval.json").read_text())["tasks"]


SIZES = (
    "n_layer=1\nn_head=2\nn_embd=32\nn_local_embd=16\nblock_size=64\nbatch_bytes=512\nmax_steps=1\n"
)


@pytest.mark.slow
def test_speed_measures_every_arm_in_every_round(tmp_path):
    """A busy machine makes speeds uncertain, so check only facts that follow from the configs."""
    (tmp_path / "a.py").write_text(f'"""A."""\n{SIZES}')
    (tmp_path / "wide.py").write_text(f'"""W."""\n{SIZES.replace("n_embd=32", "n_embd=256")}')
    args = ["--rounds=2", "--seconds=0.1", "--device=cpu", "--dtype=float32", "--json"]
    done = run("bench.py", "speed", tmp_path / "a.py", tmp_path / "wide.py", *args, cwd=tmp_path)
    a, wide = json.loads(done.stdout)["arms"]
    assert len(a["rounds"]) == len(wide["rounds"]) == 2
    assert a["training"] == "float32, eager"
    assert a["mfu"] is None
    assert a["parameters"] < wide["parameters"] and wide["flops_per_byte"] > 5 * a["flops_per_byte"]
    keys = ["train_bytes_per_second", "first_byte_seconds", "generate_16_texts"]
    for key in keys + [f"generate_at_{n}" for n in (512, 1024, 2048, 4096)]:
        assert a[key]["ratio"] == {"mean": 1, "min": 1, "max": 1} and wide[key]["mean"] > 0
        ratios = [w[key] / v[key] for v, w in zip(a["rounds"], wide["rounds"], strict=True)]
        assert wide[key]["ratio"] == {
            "mean": pytest.approx(sum(ratios) / 2),
            "min": min(ratios),
            "max": max(ratios),
        }
    assert sys.platform != "linux" or 0.05 < a["peak_memory_gb"]["mean"] < 5
