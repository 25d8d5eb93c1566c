"""What bench.py says of a model must be true of it; what report.py writes must be what the runs did."""

import json
import math
import os
import random
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import run

import bench
import report
import train
from bench import BenchConfig, benchmark, grade, hub_items, local_items, pairs, score
from model import STLM, ModelConfig

POOLINGS = ["none", "fixed", "space"]


def tiny(pooling="space", **knobs):
    """A small model, all weights random."""
    torch.manual_seed(0)
    sizes = {"block_size": 48, "max_patch": 5, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_local_embd": 24}
    model = STLM(ModelConfig(pooling=pooling, **(sizes | {"n_grams": 1, "gram_rows": 64} | knobs))).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def uniform(**knobs):
    """A model whose every next symbol is as likely as any other."""
    model = tiny(**knobs)
    model.embed.weight.data.zero_()
    return model


def some_items(n=30, seed=0):
    """Questions with choices of very different lengths; some longer than the context, some alike, some of one byte."""
    rng = random.Random(seed)
    word = lambda: "".join(rng.choices("aeioué日nrst", k=rng.randint(1, 7)))  # noqa: E731
    words = lambda low, high: " ".join(word() for _ in range(rng.randint(low, high)))  # noqa: E731
    items = []
    for i in range(n):
        context = words(1, 25) if i % 4 else ""
        choices = [" " + words(1, 12) for _ in range(rng.randint(2, 5))]
        items.append({"context": context, "choices": choices, "answer": i % 2})
        if i % 5 == 0:
            items.append({"context_options": [context + "x", context + "yy"], "continuation": choices[0], "answer": 1})
    return [*items, {"context": "a", "choices": ["b", "c"], "answer": 0}, {**items[1], "choices": [" b", " b"]}]


@pytest.fixture(scope="module")
def home(tmp_path_factory, data_dir):
    """A folder with a short run in out/run."""
    from conftest import SMALL

    home = tmp_path_factory.mktemp("home")
    args = [*SMALL, f"--data_dir={data_dir}", f"--out_dir={home / 'out/run'}", "--max_steps=30", "--eval_interval=10"]
    assert train.main(args) == 0
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def call(capsys, *args):
    bench.main([str(a) for a in args])
    return capsys.readouterr()


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_scores_are_sums_over_single_bytes(pooling):
    """Against one forward pass for each byte."""
    model = tiny(pooling)
    items = [pairs(i) for i in some_items(6)]
    for item, found in zip(items, score(model, items), strict=True):
        for (context, continuation), (nats, greedy) in zip(item, found, strict=True):
            total, first = 0.0, True
            for i, byte in enumerate(continuation):
                logits = model(torch.tensor([[model.eot, *context, *continuation[:i]]]))[0, -1].double()
                total += logits.log_softmax(0)[byte].item()
                first &= int(logits.argmax()) == byte
            assert nats == pytest.approx(total, abs=1e-3) and greedy == first
    best = int(model(torch.tensor([[model.eot, ord("x")]]))[0, -1].argmax())
    found = score(model, [[(b"x", bytes([best])), (b"x", bytes([best ^ 1]))]])[0]
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_do_not_depend_on_batch_order_or_sharing(pooling):
    model, items = tiny(pooling), [pairs(i) for i in some_items(30)]
    alone = [[model.loglikelihood(*p) for p in item] for item in items]
    order = list(range(len(items)))
    random.Random(1).shuffle(order)
    ways = [{}, {"at_once": 1}, {"at_once": 300}, {"share": False}, {"share": False, "at_once": 300}]
    for way in ways:
        found = score(model, [items[i] for i in order], **way)
        for i, scores in zip(order, found, strict=True):
            assert [nats for nats, _ in scores] == pytest.approx(alone[i], abs=1e-3)
    done = []
    score(model, items, done.append)
    assert sum(done) == sum(map(len, items)), "the progress bar arrives at its end"


def test_a_uniform_model_scores_chance_and_eight_bits(data_dir):
    """Choices of equal length tie, and a tie is not a point for whoever stands first."""
    model, cfg = uniform(), train.Config(dataset="words", data_dir=str(data_dir), max_steps=1, block_size=32)
    for stride in (0, 5, 16, 32):
        assert train.evaluate(model, train.Data(cfg, "val"), 32, stride=stride)["bpb"] == pytest.approx(8.0, abs=1e-6)
    items = [{"context": "", "choices": ["good one", "evil one"], "answer": 0, "group": "g"}] * 7
    found = benchmark(model, "t", items, BenchConfig())
    assert found["acc"] == found["chance"] == 0.5 and found["groups"]["g"] == {"n": 7, "acc": 0.5}
    items = [{"context": "Q", "choices": [f" {c}" * 3 for c in "abcd"], "answer": i % 4} for i in range(6)]
    found = benchmark(model, "t", items, BenchConfig())
    assert found["acc"] == found["acc_norm"] == found["acc_bytes"] == found["chance"] == 0.25


def test_metrics_and_their_errors():
    item = {"context": "c", "choices": [" ab", " é日x", " d"], "answer": 1}
    assert grade(item, [-2.0, -2.7, -1.5]) == {"acc": 0, "acc_norm": 1, "acc_bytes": 1}
    assert grade(item, [-2.0, -3.3, -1.5])["acc_norm"] == 0.0  # 3.3 / 3 characters > 2.0 / 2
    assert grade(item, [-2.0, -3.3, -1.5])["acc_bytes"] == 1.0  # 3.3 / 6 bytes
    assert grade({"context": "", "choices": ["a", "b"], "answer": 1}, [-1.0, -1.0]) == {"acc": 0.5}
    options = {"context_options": ["a", "b"], "continuation": "c", "answer": 0}
    assert grade(options, [-1.0, -2.0]) == {"acc": 1.0}
    found = bench.summary([item] * 4, [{"acc": a} for a in (1, 0, 0, 1)])
    assert found["acc"] == 0.5 and found["acc_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)


def test_bpe_bits_are_per_byte_of_text(gpt2_files, tmp_path):
    """A uniform BPE model pays log2(50257) for each token, divided by the bytes of the text, not of the tokens."""
    model, text = uniform(pooling="none", tokenizer="gpt2", n_grams=0), "The naïve café — 日本 🐍.\n" * 30
    data = train.Data.of_text(model, text.encode())
    found = train.evaluate(model, data, 48)
    assert found["bytes"] == len(text.encode())
    assert found["bpb"] == pytest.approx(len(model.encode(text.encode())) * math.log2(50257) / len(text.encode()))
    items = [pairs(i) for i in some_items(5)]
    model = tiny("none", tokenizer="gpt2", n_grams=0)
    for item, scores in zip(items, score(model, items), strict=True):
        assert [s for s, _ in scores] == pytest.approx([model.loglikelihood(*p) for p in item], abs=1e-3)


@pytest.fixture
def gpt2_files():
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("needs tiktoken's gpt2 files: set TIKTOKEN_CACHE_DIR")


@torch.no_grad()
def test_stride_scores_each_byte_once_with_the_context_it_says(data_dir):
    model = tiny()
    cfg = train.Config(dataset="words", data_dir=str(data_dir), max_steps=1)
    data = train.Data(cfg, "val")
    data.symbols = np.array(data.symbols[:333])
    T, stride = 48, 20
    total = 0.0
    for t in range(333):
        first = 0 if t < T else T + (t - T) // stride * stride  # of the window that scores t
        start = 0 if t < T else first + stride - T
        before = [data.symbols[start - 1] if start else data.eot, *data.symbols[start:t]]
        if data.symbols[t] != data.eot:
            logits = model(torch.tensor([[int(s) for s in before]]))[0, -1]
            total -= logits.double().log_softmax(0)[int(data.symbols[t])].item()
    found = train.evaluate(model, data, T, stride=stride)
    assert found["nats"] == pytest.approx(total, rel=1e-4) and found["bytes"] == (data.symbols != data.eot).sum()
    assert train.evaluate(model, data, T, stride=T)["nats"] == pytest.approx(train.evaluate(model, data, T)["nats"])


# --- items -----------------------------------------------------------------------------------------------------------

GOOD = '{"context": "", "choices": ["a", "b"], "answer": 0}'
BAD = {
    "not json": "line 3: Expecting value",
    "[1, 2]": "line 3",
    '{"context": "", "choices": ["a", "b"]}': "line 3: no 'answer'",
    '{"choices": ["a", "b"], "answer": 0}': "line 3: no 'context'",
    '{"context": "", "choices": ["a"], "answer": 0}': "fewer than two choices",
    '{"context": "", "choices": ["a", ""], "answer": 0}': "an empty choice",
    '{"context": "", "choices": ["a", 3], "answer": 0}': "must be text",
    '{"context": "", "choices": "ab", "answer": 0}': "fewer than two choices",
    '{"context": "", "choices": ["a", "b"], "answer": 2}': "answer=2",
    '{"context": "", "choices": ["a", "b"], "answer": true}': "answer=True",
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


def test_limit_is_a_random_subset_of_the_items():
    items = [{"context": "", "choices": ["a", "b"], "answer": 0, "group": str(i)} for i in range(200)]
    model = uniform()
    takes = [benchmark(model, "t", items, BenchConfig(limit=40, seed=s)) for s in (1, 1, 2)]
    groups = [{int(g) for g in t["groups"]} for t in takes]
    assert takes[0]["n"] == len(groups[0]) == 40 and takes[0]["of"] == 200
    assert groups[0] == groups[1] != groups[2] and 60 < sum(groups[0]) / 40 < 140, "from all over the file"


def test_blimp_has_its_phenomena():
    """Paradigms of the paper go to the phenomena that it puts them in; anything else is not BLiMP."""
    names = {
        "anaphor agreement": ["anaphor_gender_agreement", "anaphor_number_agreement"],
        "control/raising": ["existential_there_subject_raising", "tough_vs_raising_2", "expletive_it_object_raising"],
        "filler-gap": ["wh_vs_that_no_gap_long_distance", "wh_questions_subject_gap"],
        "island effects": ["wh_island", "coordinate_structure_constraint_object_extraction"],
        "quantifiers": ["existential_there_quantifiers_1", "superlative_quantifiers_2"],
        "argument structure": ["passive_1", "transitive", "intransitive", "animate_subject_trans"],
        "subject-verb agreement": ["irregular_plural_subject_verb_agreement_1", "distractor_agreement_relational_noun"],
    }
    items = [{"choices": ["a", "b"], "answer": 0, "context": "", "group": g} for gs in names.values() for g in gs]
    found = bench.summary(items, [{"acc": 1.0}] * len(items))
    assert {k: v["n"] for k, v in found["phenomena"].items()} == {k: len(v) for k, v in names.items()}
    assert "phenomena" not in bench.summary([*items[:1], {**items[1], "group": "physics"}], [{"acc": 1.0}] * 2)


def test_items_from_the_hub_are_worded_as_in_the_harness(monkeypatch):
    blimp = {"sentence_good": "He goes.", "sentence_bad": "He go.", "UID": "wh_island"}
    arc = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    mmlu = {"question": " Why? ", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3}
    swag = {"activity_label": "Cook", "ctx_a": "He cuts [x] it.", "ctx_b": "she", "endings": ["eats [title] it", "no"]}
    wino = {"sentence": "A beat B so _ won.", "option1": "A", "option2": "B", "answer": "2"}
    rows = {"nyu-mll/blimp": blimp, "allenai/ai2_arc": arc, "cais/mmlu": mmlu, "allenai/winogrande": wino}
    rows["Rowan/hellaswag"] = swag | {"label": "1"}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: [rows[path]])
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["wh_island"])
    found = {task: next(hub_items(task)) for task in bench.HUB_TASKS}
    assert found["blimp"] == {"context": "", "choices": ["He goes.", "He go."], "answer": 0, "group": "wh_island"}
    assert found["arc_easy"] == {"context": "Question: Why?\nAnswer:", "choices": [" a", " b"], "answer": 1}
    assert found["mmlu"]["context"] == "Question: Why?\nAnswer:" and found["mmlu"]["group"] == "law"
    assert found["hellaswag"] == {"context": "Cook: He cuts it. She", "choices": [" eats. it", " no"], "answer": 1}
    options = {"context_options": ["A beat B so A", "A beat B so B"], "continuation": " won.", "answer": 1}
    assert found["winogrande"] == options


# --- the commands ----------------------------------------------------------------------------------------------------


def test_eval_writes_what_it_prints_and_keeps_other_figures(at_home, capsys):
    Path("items").mkdir(exist_ok=True)
    Path("items/mine.jsonl").write_text("\n".join(json.dumps(i) for i in some_items(12)))
    Path("a.txt").write_text("the of and to in is that for it as was with é日本\n" * 40)
    printed = call(capsys, "eval", "--data=items", "--tasks=val,mine", "--json").out
    first = json.loads(Path("out/run/eval.json").read_text())
    assert json.loads(printed) == first and first["tasks"]["mine"]["n"] == first["tasks"]["mine"]["of"]
    verdict = json.loads(Path("out/run/run.json").read_text())["verdict"]
    assert f"{first['val']['bpb']:.4f}" == verdict["val_bpb"], "training's own figure"
    assert first["val"]["bpb_stride"] < first["val"]["bpb"], "more context helps"
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
        (["eval", "--data=nowhere"], r"no \*.jsonl in nowhere"),
        (["eval", "--text=nowhere"], "text=nowhere"),
        (["eval", "--text=odd.bin"], "byte 3 is 0xFF"),
        (["eval", "--text=empty"], "is empty"),
        (["eval", "--out_dir=out/none"], "no checkpoint"),
        (["eval", "--tasks=broken", "--data=items"], r"broken.jsonl, line 1"),
        (["eval", "out/run"], "what is 'out/run'"),
        (["speed", "config/demmo.py"], "no config file"),
        (["fast"], "which of speed, eval and report"),
        ([], "which of speed, eval and report"),
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


def test_without_the_hub_what_can_be_scored_is_scored(at_home, capsys, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    done = call(capsys, "eval")
    assert "val:" in done.out and "blimp: left out: not from the Hub (no network); --data=DIR" in done.err
    with pytest.raises(ValueError, match="blimp: not from the Hub"):
        bench.main(["eval", "--tasks=blimp"])


SIZES = "n_layer=1\nn_head=2\nn_embd=32\nn_local_embd=16\nblock_size=64\nbatch_bytes=512\nmax_steps=1\n"


def test_speed_of_a_model_beside_itself_is_about_one(tmp_path):
    """Two times the same config, and one four times as wide, which must be slower."""
    (tmp_path / "a.py").write_text(f'"""A."""\n{SIZES}')
    (tmp_path / "wide.py").write_text(
        f'"""W."""\n{SIZES.replace("n_embd=32", "n_embd=256").replace("n_layer=1", "n_layer=4")}'
    )
    args = ["--rounds=3", "--seconds=0.3", "--device=cpu", "--dtype=float32", "--json"]
    done = run("bench.py", "speed", tmp_path / "a.py", tmp_path / "a.py", tmp_path / "wide.py", *args, cwd=tmp_path)
    a, b, wide = json.loads(done.stdout)["arms"]
    # three short rounds on a busy machine: their spread need not hold 1, but the mean is near it
    assert 0.5 < b["train_bytes_per_second"]["ratio"]["mean"] < 2
    assert a["train_bytes_per_second"]["ratio"] == {"mean": 1, "min": 1, "max": 1}
    assert wide["train_bytes_per_second"]["ratio"]["max"] < 0.7 and wide["flops_per_byte"] > 20 * a["flops_per_byte"]
    assert len(a["rounds"]) == 3 and a["parameters"] < wide["parameters"] and "mfu" not in a
    assert all(a[k]["mean"] > 0 for k in ("first_byte_seconds", "generate_at_4096", "generate_16_texts"))
    assert sys.platform != "linux" or 5e7 < a["peak_memory_bytes"]["mean"] < 5e9


# --- the ledger ------------------------------------------------------------------------------------------------------


def write_run(folder, status="finished", seed=1, bpb=1.5, config="demo", age=0.0, **changes):
    """A run as train.py leaves it, with today's values of a shipped config."""
    folder.mkdir(parents=True)
    values = report.config_file(config)[0] | {"config": config, "intuition": "Why not.", "seed": seed} | changes
    data = {s: {"bytes": 1000, "symbols": 1000, "sha256": s} for s in ("train", "val")}
    info = {"config": values, "parameters": {"total": 1000, "n-gram tables": 10}, "data": data, "device": "x86 cpu"}
    info |= {"status": status, "threads": 2, "updated": time.time() - age}
    log = [{"event": "train", "step": s, "elapsed": s * 1.0, "bpb": 8 - s / 10} for s in range(20)]
    log += [{"event": "eval", "step": 20, "elapsed": 20.0, "bpb": bpb}]
    if status == "finished":
        log += [{"event": "end", "step": 20, "elapsed": 20.0, "val_bpb": str(bpb), "bytes_per_second": 99}]
    log = [e | {"time": time.time() - age + e["elapsed"] - 20 + seed} for e in log]
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    return folder


def test_report_of_a_real_run(at_home, capsys):
    Path("EXPERIMENTS.md").unlink(missing_ok=True)
    bench.main(["report"])
    text = Path("EXPERIMENTS.md").read_text()
    info = json.loads(Path("out/run/run.json").read_text())
    assert f"{float(info['verdict']['val_bpb']):.3f}" in text and f"{info['parameters']['total']:,}" in text
    assert "### words" in text and "n_embd=32" in text and "finished" in text and "`out/run`" in text


def test_report_keeps_prose_groups_seeds_and_shows_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, bpb in ((1, 1.5), (2, 1.7)):
        write_run(tmp_path / f"results/a{seed}", seed=seed, bpb=bpb)
    folder = write_run(tmp_path / "results/loop", n_loop=3, bpb=1.4, seed=3)
    tasks = {"blimp": {"n": 10, "of": 10, "acc": 0.625}, "mmlu": {"n": 5, "of": 90, "acc": 0.25}}
    (folder / "eval.json").write_text(json.dumps({"weights": "last.pt", "step": 20, "tasks": tasks}))
    stale = {"weights": "last.pt", "step": 10, "tasks": {"blimp": {"n": 10, "of": 10, "acc": 0.99}}}
    (tmp_path / "results/a1/eval.json").write_text(json.dumps(stale))
    write_run(tmp_path / "results/dead", status="interrupted", seed=4, dropout=0.5)
    write_run(tmp_path / "out/copy-of-a1", seed=1, bpb=1.5)
    os.utime(tmp_path / "out/copy-of-a1/run.json")
    log = (tmp_path / "results/a1/log.jsonl").read_text()
    (tmp_path / "out/copy-of-a1/log.jsonl").write_text(log)
    Path("EXPERIMENTS.md").write_text(f"# Mine\n\nbefore\n\n{report.BEGIN}\nstale\n{report.END}\n\nafter: é\n")
    bench.main(["report"])
    bench.main(["report"])
    text = Path("EXPERIMENTS.md").read_text()
    assert text.startswith("# Mine\n\nbefore\n") and text.endswith("\n\nafter: é\n") and "stale" not in text
    lines = [line for line in text.splitlines() if line.startswith("| `demo`")]
    assert len(lines) == 3
    assert "n_loop=3" in lines[0] and "| 62.5 |" in lines[0] and "25.0 (n=5)" in lines[0]
    assert "| 1, 2 |" in lines[1] and "1.600 (1.500 to 1.700)" in lines[1] and "[log](results/a1)" in lines[1]
    assert "dropout=0.5" in lines[2] and "interrupted" in lines[2]
    assert "99.0" not in text and "not those of the run's final weights" in capsys.readouterr().err
    for name in ("bpb_parameters", "bpb_time", "loss_curves"):
        assert Path(f"results/{name}.png").read_bytes().startswith(b"\x89PNG")
    Path("EXPERIMENTS.md").write_text(f"{report.END} {report.BEGIN}")
    with pytest.raises(ValueError, match="markers"):
        bench.main(["report"])


def test_report_survives_corrupt_and_partial_files_and_names_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out/good")
    half = write_run(tmp_path / "out/half", seed=2, bpb=1.25)
    with open(half / "log.jsonl", "a") as f:
        f.write(
            'not json\n{"event": "train"}\n[]\n{"event": "train", "step": "x", "elapsed": 0, "time": 0}\n{"event": "tr'
        )
    for name, text in (
        ("empty", ""),
        ("list", "[]"),
        ("bare", "{}"),
        ("odd", '{"config": 3, "data": [], "parameters": 1}'),
    ):
        (tmp_path / "out" / name).mkdir()
        (tmp_path / "out" / name / "run.json").write_text(text)
    (half / "eval.json").write_text('{"tasks": ')
    (tmp_path / "out/good/eval.json").write_text('{"tasks": {"blimp": 3, "mmlu": {"acc": "x"}}}')
    gone = write_run(tmp_path / "out/gone", seed=3)
    (gone / "log.jsonl").unlink()
    bench.main(["report"])
    warned = capsys.readouterr().err
    for name in ("empty", "list", "bare", "odd", "gone"):
        assert f"out/{name}" in warned
    assert "half/log.jsonl: 5 of" in warned and "half/eval.json" in warned and "good/eval.json: its tasks" in warned
    assert "(1.250 to 1.500)" in Path("EXPERIMENTS.md").read_text()


def test_report_tells_what_is_running_from_its_heartbeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no runs under out/ or results/ yet: python train.py"):
        bench.main(["report"])
    write_run(tmp_path / "out/alive", status="running", seed=1, max_steps=80, max_seconds=0.0)
    write_run(tmp_path / "out/killed", status="running", seed=2, age=9999)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bench.main(["report"])
    out = capsys.readouterr().out
    assert "running now" in out and "out/alive: step 20 (25%)" in out and "0:01:00 left" in out
    assert "out/killed" not in out
    text = Path("EXPERIMENTS.md").read_text()
    assert "killed |" in text and "alive" not in text, "what is running would be stale in a file"


# --- lm-evaluation-harness -------------------------------------------------------------------------------------------


def test_the_harness_gets_the_same_numbers(at_home, tmp_path):
    """One task of each kind, from local files, through lm-eval's own code."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm-eval)")
    from lm_eval.api.task import ConfigurableTask

    from harness import Harness

    ours = {"cloze": [], "whole": [], "partial": []}
    for item in some_items(80):
        kind = "partial" if "continuation" in item else "cloze" if item["context"] else "whole"
        if len(set(item.get("choices", item.get("context_options")))) > 1 and len(item.get("choices", [0])) != 5:
            ours[kind].append(item)
    lm = Harness("out/run", device="cpu")
    for kind, items in ours.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(i) + "\n" for i in items))
        config = {"task": kind, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        config |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_target": "{{answer}}"}
        strip = lambda d: [c.removeprefix(" ") for c in d["choices"]]  # noqa: E731
        config |= {"doc_to_text": "{{context}}", "doc_to_choice": strip, "target_delimiter": " "}
        if kind == "partial":
            config |= {"doc_to_text": lambda d: d["answer"], "doc_to_choice": lambda d: d["context_options"]}
            config |= {"doc_to_target": lambda d: d["continuation"].removeprefix(" ")}
        metrics = ["acc", "acc_norm"] if kind == "cloze" else ["acc"]
        config["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics]
        if kind == "whole":
            config |= {"target_delimiter": "", "doc_to_choice": lambda d: d["choices"]}
        theirs = lm_eval.evaluate(lm, {kind: ConfigurableTask(config=config)}, bootstrap_iters=0)["results"][kind]
        found = benchmark(lm.model, kind, list(local_items(path)), BenchConfig())
        assert len(items) > 10
        for metric in metrics:
            assert theirs[f"{metric},none"] == pytest.approx(found[metric]), (kind, metric)
