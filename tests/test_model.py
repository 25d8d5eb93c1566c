"""The laws of the model: each is a property of every pooling, with and without n-gram tables."""

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import build, load_file
from model import EOT, NONE, STLM, LocalLayer, ModelConfig, attend, matches
from train import Config


@pytest.fixture(autouse=True)
def device(request):
    """`pytest tests/test_model.py --device=cuda` tries the laws there, with that device's attention and compiler."""
    torch.set_default_device(request.config.getoption("device"))
    yield request.config.getoption("device")
    torch.set_default_device("cpu")


SHIPPED = sorted(Path("config").glob("[a-z]*.py"))
POOLINGS = ["none", "fixed", "space"]


def tiny(pooling="space", seed=0, **knobs):
    """A small model with every weight random, the zero-initialised ones too: otherwise most of it would not count."""
    torch.manual_seed(seed)
    sizes = {"block_size": 48, "max_patch": 5, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_local_embd": 24, "n_loop": 2}
    sizes |= {"canon_reach": 3, "n_match": 2, "n_words": 2 * (knobs.get("n_grams", 0) > 0)}
    model = STLM(ModelConfig(pooling=pooling, **(sizes | {"gram_rows": 64} | knobs))).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def text(n, rows=1, seed=0):
    """Random bytes of every kind with about as many spaces as English has, half of them copies of earlier ones."""
    generator = torch.Generator("cpu").manual_seed(seed)
    idx = torch.randint(0, 256, (rows, n), generator=generator, device="cpu")
    spaces = torch.rand(rows, n, generator=generator, device="cpu") < 0.18
    idx = idx.masked_fill(spaces, ord(" "))
    for t in range(12, n, 24):
        source = int(torch.randint(0, t, (), generator=generator, device="cpu"))
        idx[:, t : t + 12] = idx[:, source : source + min(12, n - t)].clone()
    return idx.to(torch.get_default_device())


@pytest.fixture(params=POOLINGS)
def pooling(request):
    return request.param


@pytest.mark.parametrize("n_grams", [0, 2])
@torch.no_grad()
def test_causal_at_every_byte(pooling, n_grams):
    """Law 1, in the exact pass and in training's pass with a fixed (and overflowing) number of patches."""
    model, idx = tiny(pooling, n_grams=n_grams), text(40)
    for n_patches in (None, model.cfg.n_patches, 6):
        if n_patches == 6 and pooling == "none":
            continue
        before = model.hidden(idx, n_patches)[0]
        places = [(t, byte) for t in range(40) for byte in (ord(" "), ord("e"), EOT) if idx[0, t] != byte]
        changed = idx.repeat(len(places), 1)
        for row, (t, byte) in enumerate(places):
            changed[row, t] = byte
        difference = (model.hidden(changed, n_patches) - before).abs().amax(dim=2)
        for row, (t, _) in enumerate(places):
            assert difference[row, :t].amax() < 1e-5 if t else True
            assert difference[row, t] > 1e-4, "byte t itself does count"


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=80), st.integers(1, 7))
def test_patches_of_a_prefix_are_a_prefix_of_the_patches(raw, max_patch):
    """Law 2, and the rule in words: written out as a loop over bytes."""
    for pooling in POOLINGS:
        model = tiny(pooling, max_patch=1 if pooling == "none" else max_patch)
        idx = torch.tensor([list(raw)])
        ends = model.patch_ends(idx)[0]
        for n in range(1, len(raw) + 1):
            assert torch.equal(model.patch_ends(idx[:, :n])[0], ends[:, :n])
        if pooling == "space":
            since, expected = 0, []
            space = [b == EOT or (b < 0x80 and not chr(b).isalnum()) for b in raw]
            for t in range(len(raw)):
                since = 0 if t == 0 or (space[t] and not space[t - 1]) else since + 1
                expected.append(since % max_patch == 0)
            assert ends[0].tolist() == expected
        assert ends[0, 0], "the first byte ends a patch"


def test_uniform_output_scores_eight_bits(pooling):
    """Law 3: a model that knows nothing pays exactly log 256 for each byte, none is left out."""
    model, idx = tiny(pooling), text(300, rows=2)
    model.embed.weight.data.zero_()
    assert torch.allclose(model.nats(idx[:, :-1], idx[:, 1:]) / math.log(2), torch.tensor(8.0))
    assert model.loglikelihood(b"abc", bytes(range(256))) == pytest.approx(-256 * math.log(256), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.text("ab c", min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 40), st.integers(0, 30))
def test_a_match_is_what_followed_the_same_symbols_last_time(raw, n, window, earlier):
    """n-gram heads against a search with plain strings; the first `earlier` symbols are what a cache remembers."""
    seen = torch.tensor([[NONE] * (window + n - 1) + [ord(c) for c in raw]])
    T = max(1, len(raw) - earlier)
    for t, follows in enumerate(matches(seen, n, T, window)[0].tolist(), start=len(raw) - T):
        here = raw[t + 1 - n : t + 1] if t + 1 >= n else ""
        places = [p for p in range(max(n - 1, t - window), t) if here and raw[p + 1 - n : p + 1] == here]
        assert follows == (ord(raw[places[-1] + 1]) if places else NONE)


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab1 ,.é\n", min_size=1, max_size=60), st.integers(0, 2))
def test_hashes_are_of_ngrams_and_of_words(string, before):
    """Spelt out: of the last 2, 3, 4 bytes; from before the newest word on; from before the one before."""
    model, raw = tiny(n_grams=3, gram_rows=1000), list(string.encode())
    seen, word = [NONE] * 10 + raw, [b >= 0x80 or chr(b).isalnum() for b in raw]

    def number(first, last):
        total = 0
        for symbol in seen[first + 10 : last + 11]:
            total = (total * 50261 + symbol + 1) % 2**64
        return (total * 2654435761 % 2**32) * 1000 >> 32

    expected = []
    for t in range(len(raw)):
        begins = [i - 1 for i in range(t + 1) if word[i] and not (i and word[i - 1])]
        begins = [max(t - 9, begins[-k]) if len(begins) >= k else t - 9 for k in (1, 2)]
        expected.append([number(first, t) for first in (t - 1, t - 2, t - 3, *begins)])
    found = model.gram_numbers(torch.tensor([[NONE] * before + seen]), len(raw))
    assert found[0].tolist() == expected


@pytest.mark.parametrize("n_grams", [0, 2])
@torch.no_grad()
def test_loglikelihood_is_a_product_of_next_byte_probabilities(pooling, n_grams):
    """Law 3: the same as asking for one byte after another; probabilities of all 256 next bytes sum to 1."""
    model, raw = tiny(pooling, n_grams=n_grams), bytes(text(70)[0].tolist())
    total = 0.0
    for t in range(20, 70):
        logits = model(torch.tensor([[EOT, *raw[:t]]]))[0, -1].double()
        assert logits.softmax(0).sum().item() == pytest.approx(1)
        total += logits.log_softmax(0)[raw[t]].item()
    assert model.loglikelihood(raw[:20], raw[20:]) == pytest.approx(total, abs=1e-3)
    split = model.loglikelihood(b"", raw[:20]) + model.loglikelihood(raw[:20], raw[20:])
    assert model.loglikelihood(b"", raw) == pytest.approx(split, abs=1e-3)


def test_scores_do_not_depend_on_the_batch(pooling):
    """Law 3: a row's score is its own, whoever shares the batch."""
    model, idx = tiny(pooling, n_grams=1), text(60, rows=7)
    together = model.nats(idx[:, :-1], idx[:, 1:])
    for row in range(7):
        alone = model.nats(idx[row : row + 1, :-1], idx[row : row + 1, 1:])
        assert torch.allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("n_grams", [0, 3])
@pytest.mark.parametrize("prompt", [1, 2, 3, 17, 150])
@torch.no_grad()
def test_incremental_equals_full(pooling, n_grams, prompt):
    """Law 4, for rows whose patches end at different bytes, far past the context, where the trunk slides."""
    model, idx = tiny(pooling, n_grams=n_grams, max_patches=0 if pooling == "none" else 7), text(160, rows=3)
    full = model(idx)
    assert int(model.patch_ends(idx)[0].sum(1).min()) > 3 * model.cfg.n_patches  # it does slide
    logits, cache = model.prefill(idx[:, :prompt])
    assert (logits - full[:, prompt - 1]).abs().max() < 1e-4
    for t in range(prompt, idx.size(1)):
        logits = model.step(idx[:, t : t + 1], cache)[:, 0]
        assert (logits - full[:, t]).abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(POOLINGS), st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 9))
@torch.no_grad()
def test_reading_in_pieces_equals_reading_at_once(pooling, pieces, seed):
    """Law 4, for any cut of the text, pieces longer than the trunk's window included; and after a cache is repeated."""
    model = tiny(pooling, n_grams=2, max_patches=7)
    idx = text(sum(pieces), rows=2, seed=seed).repeat_interleave(torch.tensor([1, 2]), dim=0)
    full, start = model(idx), pieces[0]
    cache = model.prefill(idx[:2, :start])[1].repeat(torch.tensor([1, 2]))
    for n in pieces[1:]:
        logits = model.step(idx[:, start : start + n], cache)
        assert (logits - full[:, start : start + n]).abs().max() < 1e-4
        start += n


@settings(max_examples=12, deadline=None)
@given(st.binary(max_size=60))
@torch.no_grad()
def test_any_prompt_generates_what_the_full_pass_says(prompt):
    """Law 4: prompts of 0, 1, 2 and of any bytes; greedy generation equals greedy over full passes."""
    for pooling in POOLINGS:
        model = tiny(pooling, n_grams=1)
        made, expected = b"".join(model.generate(prompt, 12, temperature=0, stop=False)), b""
        for _ in range(12):
            logits = model(torch.tensor([[EOT, *prompt, *expected]]))[0, -1]
            expected += bytes([int(logits.argmax())])
        assert made == expected


def test_training_pass_equals_exact_pass_when_patches_fit(pooling):
    model, idx = tiny(pooling, max_patches=0 if pooling == "none" else 48), text(49, rows=4)
    loss = model(idx[:, :-1], idx[:, 1:])
    assert loss.item() == pytest.approx(model.nats(idx[:, :-1], idx[:, 1:]).mean().item(), rel=1e-5)


def test_overflow_keeps_the_first_patches_and_loses_no_byte():
    """Bytes before the first dropped patch are untouched; those after it still get a prediction from what is kept."""
    model, idx = tiny("space"), text(48)
    ends = model.patch_ends(idx)[0][0].nonzero()[:, 0]
    assert len(ends) > 6
    cut, exact = model.hidden(idx, 6), model.hidden(idx)
    assert torch.allclose(cut[:, : ends[6]], exact[:, : ends[6]], atol=1e-5)
    assert not torch.allclose(cut[:, ends[6] :], exact[:, ends[6] :], atol=1e-5)
    assert torch.isfinite(cut).all()


@pytest.mark.parametrize("reach", [1, 2, 5, 8])
def test_local_reach_is_exact(reach):
    """Law 5: output t of a local layer depends on bytes t - reach + 1 .. t, on each of them, and on no other."""
    torch.manual_seed(0)
    layer = LocalLayer(ModelConfig(local_reach=reach, n_local_embd=16))
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 20, 16, requires_grad=True)
    for t in range(20):
        gradient = torch.autograd.grad(layer(x)[0][0, t].sum(), x)[0][0].abs().sum(dim=1)
        assert (gradient > 0).nonzero()[:, 0].tolist() == list(range(max(0, t - reach + 1), t + 1))
    whole, past = layer(x)[0], None  # and the same with its cache, byte by byte
    for t in range(20):
        y, past = layer(x[:, t : t + 1], past)
        assert torch.allclose(y[:, 0], whole[:, t], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("window", [1, 3, 8, 20, 100])
def test_attention_window_is_exact(window):
    """Law 5: the blocks of a long pass equal one big mask."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 20, 2, 8)
    back = torch.arange(20)[:, None] - torch.arange(20)
    scores = torch.einsum("bphd,bqhd->bhpq", q, k) / 8**0.5
    weights = scores.masked_fill((back < 0) | (back >= window), -math.inf).softmax(-1)
    assert torch.allclose(attend(q, k, v, window), torch.einsum("bhpq,bqhd->bphd", weights, v), atol=1e-5)


def test_embedding_is_the_head(pooling, tmp_path):
    """Law 6: one tensor after init, .to(), copy, save and load, counted once."""
    model = tiny(pooling)
    for other in (model, model.to(torch.float64).to(torch.float32), copy.deepcopy(model)):
        names = [name for name, p in other.named_parameters() if p.shape == other.embed.weight.shape]
        assert names == ["embed.weight"]
        x = torch.randn(1, 1, other.embed.weight.size(1))
        before = other.head(x)
        other.embed.weight.data[65] += 1
        assert not torch.allclose(other.head(x)[..., 65], before[..., 65])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = tiny(pooling, seed=1)
    again.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    idx = text(30)
    torch.testing.assert_close(again(idx), model(idx))  # (a GPU adds in no fixed order)
    assert model.parameter_table()["total"] == sum(p.numel() for p in set(model.parameters()))


def test_training_shapes_do_not_depend_on_the_text(pooling, device):
    """Law 7: one graph without breaks serves every text; on a GPU it is compiled for real, and gives the same loss."""
    model = tiny(pooling, n_grams=1).train()
    texts = [text(48, rows=2, seed=s) for s in range(3)]
    texts += [torch.full((2, 48), ord(" ")), torch.full((2, 48), ord("a"))]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for idx in texts:
            assert compiled(idx, idx).item() == pytest.approx(model(idx, idx).item(), rel=1e-5)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs(path):
    """Law 8: counts are what the names say; byte models start at 8.0 +- 0.3 bpb."""
    cfg = build(Config, load_file(Config, path)[0])
    with torch.device("meta"):
        total = STLM(cfg).parameter_table()["total"]
    unit = {"k": 1e3, "m": 1e6}
    figure = path.stem.split("_")[-1]
    if path.stem == "demo":
        assert total <= 1.1e6
    elif path.stem == "shakespeare_1m":
        assert total <= 1.065e6  # a tenth of nanoGPT's 10.65M
    elif path.stem.startswith(("shakespeare", "textbooks")):
        assert total <= float(figure[:-1]) * unit[figure[-1]]
    else:
        limit = float(figure[:-1]) * unit[figure[-1]]
        assert 0.98 * limit <= total <= limit or path.stem == "gpt2_124m"
    if cfg.tokenizer == "bytes":
        torch.manual_seed(0)
        model, idx = STLM(cfg), text(cfg.block_size + 1)
        english = b"It was the best of times, it was the worst of times, it was the age of wisdom. " * 40
        idx[0, : cfg.block_size // 2] = torch.tensor(list(english[: cfg.block_size // 2]))
        assert abs(model(idx[:, :-1], idx[:, 1:]).item() / math.log(2) - 8.0) < 0.3


def test_one_batch_can_be_learnt_by_heart(pooling):
    """Law 8."""
    torch.manual_seed(0)
    cfg = ModelConfig(pooling=pooling, block_size=48, n_layer=2, n_head=2, n_embd=64, max_patch=5)
    model, idx = STLM(cfg), text(49, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_looping_and_sharing_save_parameters():
    base, shared = tiny(n_loop=1, canon_reach=1), tiny(n_loop=3, canon_reach=1, share_ffn=True)
    trunk, attention = base.parameter_table()["trunk"], 4 * 32 * 32
    assert shared.parameter_table()["trunk"] == trunk - 8 * 32 * 32 and trunk == 2 * (attention + 8 * 32 * 32)
    idx = text(48)
    assert torch.isfinite(shared(idx)).all() and shared.flops_per_symbol() > base.flops_per_symbol()


def test_flops_count_what_a_profiler_counts(pooling):
    """flops_per_symbol against torch's own counter over a forward and backward pass, without attention's products."""
    from torch.utils.flop_counter import FlopCounterMode

    max_patches = 0 if pooling == "none" else 24
    knobs = {"block_size": 96, "max_patches": max_patches, "n_local_enc": 2, "n_grams": 3, "gram_width": 24}
    model, idx = tiny(pooling, **knobs).train(), text(97, 4)
    with FlopCounterMode(display=False) as counter:
        model(idx[:, :-1], idx[:, 1:]).backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op.__name__ in ("mm", "addmm", "bmm"))
    attention = 6 * model.cfg.n_layer * model.cfg.n_loop * 32 * model.cfg.n_patches
    ours = model.flops_per_symbol() - attention * (1 if pooling == "none" else model.cfg.n_patches / 96)
    convolutions = 6 * sum(p.numel() for n, p in model.named_parameters() if ".canon." in n)
    assert ours - convolutions == pytest.approx(counted / (4 * 96), rel=0.2)


def test_impossible_configs_are_refused():
    for knobs in (
        {"n_embd": 30},
        {"n_layer": 0},
        {"tokenizer": "gpt2"},
        {"n_grams": -1},
        {"n_words": 1},
        {"local_reach": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(knobs))):
            ModelConfig(**({"n_head": 4} | knobs))


def test_generate_refuses_impossible_choices_and_repeats_with_its_seed():
    model = tiny()
    for bad in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            list(model.generate(b"a", 3, **bad))
    runs = [
        b"".join(model.generate(b"seed", 40, generator=torch.Generator("cpu").manual_seed(s), stop=False))
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert b"".join(model.generate(b"x", 9, top_k=1, stop=False)) == b"".join(model.generate(b"x", 9, 0, stop=False))
    assert b"".join(model.generate(b"x", 9, top_p=1e-9, stop=False)) == b"".join(model.generate(b"x", 9, 0, stop=False))


def test_generate_stops_at_the_end_of_the_document():
    model = tiny("none")
    for p in model.parameters():
        p.data.zero_()
    torch.nn.init.normal_(model.embed.weight)
    model.embed.weight.data[EOT] = 10 * model.embed.weight.data[ord("a")]  # so that EOT always follows "a"
    assert b"".join(model.generate(b"aa", 20, temperature=0)) == b""
    assert len(b"".join(model.generate(b"aa", 20, temperature=0, stop=False))) == 20
