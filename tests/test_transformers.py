"""A shared folder works in transformers and gives what the model itself gives."""

import json
import os
import shutil
import tempfile

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import bench
from model import EOT, PAD, STLM, ModelConfig
from tools import share

# transformers copies a folder's code here before it runs it.
modules = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = modules.name
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install transformers)"
)

PROMPT = "the of and to the of "


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a small model with random weights everywhere, written by tools.share."""
    torch.manual_seed(0)
    cfg = ModelConfig(
        block_size=48,
        max_patches=12,
        n_layer=2,
        n_head=2,
        n_embd=36,
        n_local_embd=20,
        n_grams=2,
        gram_rows=77,
        gram_width=5,
        n_match=2,
        n_copy=2,
        canon_reach=3,
        share_ffn=True,
    )
    model = STLM(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder / "plain")
    share.main([f"--model={folder / 'plain'}", f"--to={folder / 'shared'}"])
    return folder / "shared"


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


def load_tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def model(shared):
    return load(shared)


@pytest.fixture(scope="module")
def tokenizer(shared):
    return load_tokenizer(shared)


@pytest.fixture(scope="module")
def ours(shared):
    return STLM.from_pretrained(shared)


@torch.no_grad()
def logits_of(ours, ids):
    x, _ = ours.read(ids, ours.start(len(ids)))
    return ours.head(x)


def some_ids(n_rows=3, n=120, seed=0):
    """Random words, longer than the context, with EOT in front."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(97, 105, (n_rows, n), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = 32
    ids[:, 0] = EOT
    return ids


# --- the model ------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_the_models_own(model, ours):
    ids = some_ids()
    assert not model.training
    assert torch.allclose(model(ids).logits, logits_of(ours, ids), atol=1e-5)
    assert torch.allclose(model(ids, attention_mask=torch.ones_like(ids)).logits, model(ids).logits)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model):
    ids = some_ids()
    alone = model(ids).logits
    for value in (PAD, 0, 32):
        padded = torch.cat((ids, torch.full((3, 30), value)), dim=1)
        assert torch.allclose(model(padded).logits[:, : ids.size(1)], alone, atol=1e-5)


@torch.no_grad()
def test_padded_batches_score_as_bench_does(model, tokenizer, ours):
    """As lm-evaluation-harness scores: texts of any length in one batch, padded on the right."""
    pairs = [
        ("the of", " and to"),
        ("", "in that is"),
        ("x", "y"),
        ("the " * 30, "of the and 日本"),
    ]
    tokenizer.padding_side = "right"
    batch = tokenizer([a + b for a, b in pairs], padding=True, return_tensors="pt")
    log_p = model(**batch).logits[:, :-1].log_softmax(dim=2)
    log_p = log_p.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    expected = bench.score(ours, [[(a.encode(), b.encode())] for a, b in pairs])
    for row, (a, b), [(nats, _)] in zip(log_p, pairs, expected, strict=True):
        start = len(a.encode())
        found = row[start : start + len(b.encode())].sum().item()
        assert found == pytest.approx(nats, abs=1e-4)


def test_padding_on_the_left_and_ragged_prompts_are_refused(model, tokenizer):
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    with pytest.raises(ValueError, match="expected padding on the right, got some on the left"):
        model(some_ids(2, 9), attention_mask=mask)
    prompts = ["the of", "the"]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(prompts, padding=True, return_tensors="pt")
        for inputs in (batch, {"input_ids": batch["input_ids"]}):
            with pytest.raises(ValueError, match="expected prompts of equal length") as e:
                model.generate(**inputs, max_new_tokens=3)
            assert "\n" not in str(e.value)
    tokenizer.padding_side = "right"


@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
def test_greedy_text_is_the_models_own(options, model, tokenizer, ours):
    """Also beyond the context of 48 bytes and 12 patches."""
    inputs = tokenizer(PROMPT, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=70, do_sample=False, **options)
    expected = list(ours.generate(PROMPT, 70, temperature=0))
    if len(expected) < 70:
        expected.append(EOT)
    assert made[0].tolist() == [EOT, *PROMPT.encode(), *expected]


def test_texts_of_equal_length_are_written_as_alone(model, tokenizer):
    prompts = ["the of a", "is that.", "aaaa bbb"]
    together = model.generate(
        **tokenizer(prompts, return_tensors="pt"), max_new_tokens=40, do_sample=False
    )
    for text, prompt in zip(together, prompts, strict=True):
        alone = model.generate(
            **tokenizer(prompt, return_tensors="pt"), max_new_tokens=40, do_sample=False
        )[0]
        assert text[: len(alone)].tolist() == alone.tolist()
        assert (text[len(alone) :] == PAD).all()


def test_beams_read_anew_where_texts_change_rows(model, tokenizer):
    inputs = tokenizer(PROMPT, return_tensors="pt")
    options = {"num_beams": 4, "max_new_tokens": 30, "do_sample": False, "length_penalty": 0.0}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))


def test_sampling_draws_from_the_models_distribution(model, tokenizer, ours):
    torch.manual_seed(0)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    made = model.generate(
        **inputs, max_new_tokens=1, do_sample=True, num_return_sequences=4000, top_k=0
    )
    p = logits_of(ours, inputs["input_ids"])[0, -1].softmax(dim=0)
    share_of_each = torch.bincount(made[:, -1], minlength=256) / 4000
    assert (share_of_each - p).abs().max() < 0.04


def test_a_text_ends_at_eot(model, tokenizer, monkeypatch):
    head = model.stlm.head

    def head_that_ends(x):
        return head(x).index_fill(-1, torch.tensor(EOT), 1e4)

    monkeypatch.setattr(model.stlm, "head", head_that_ends)
    for do_sample in (False, True):
        inputs = tokenizer("the", return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=50, do_sample=do_sample)
        assert made.tolist() == [[EOT, *b"the", EOT]]


def test_the_loss_of_labels_is_the_models_own(model, ours):
    ids = some_ids(2, 40)
    expected = ours(ids[:, :-1], ids[:, 1:])
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(expected.item(), abs=1e-5)
        # -100 does not count
        labels = ids.clone()
        labels[:, 20:] = -100
        nats = ours.nats(ids[:, :19], ids[:, 1:20]).mean().item()
        assert model(ids, labels=labels).loss.item() == pytest.approx(nats, abs=1e-5)
        # what a Trainer that accumulates gradients gives
        loss = model(ids, labels=ids, num_items_in_batch=torch.tensor(156)).loss
        assert loss.item() == pytest.approx(expected.item() / 2, abs=1e-5)


def test_training_lowers_the_loss_and_the_gradient_is_the_models_own(shared, ours):
    model = load(shared)
    ids = some_ids(4, 48)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        if step == 0:
            ours(ids[:, :-1], ids[:, 1:]).backward()
            for p, q in zip(model.parameters(), ours.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, atol=1e-5)
            ours.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_few_bits_are_unpacked(bits, shared, tmp_path):
    share.main([f"--model={shared}", f"--to={tmp_path / 'few'}", f"--bits={bits}"])
    model = load(tmp_path / "few")
    ids = some_ids()
    assert model.dtype == torch.float32
    with torch.no_grad():
        expected = logits_of(STLM.from_pretrained(tmp_path / "few"), ids)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)


@torch.no_grad()
def test_dtype_and_device_are_taken(shared, model, tokenizer):
    ids = some_ids()
    expected = model(ids).logits.log_softmax(dim=2)
    for dtype in (torch.bfloat16, "bfloat16"):
        half = load(shared, dtype=dtype, device_map={"": "cpu"})
        assert half.dtype == torch.bfloat16
        found = half(ids).logits.log_softmax(dim=2)
        assert (found - expected).abs().mean() < 0.1
        half.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=5)
    with pytest.raises(ValueError, match="expected one device"):
        load(shared, device_map={"stlm.embed": "cpu", "stlm.blocks": "meta"})


def test_what_cannot_be_done_is_refused(shared, model, tokenizer):
    assert model.resize_token_embeddings(256) is model.get_input_embeddings()
    with pytest.raises(ValueError, match="expected 256 tokens, one per byte, got 300"):
        model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="expected no load_in_8bit"):
        load(shared, load_in_8bit=True)
    with pytest.raises(ValueError, match="expected the knobs that"):
        load(shared, n_loop=2)
    with pytest.raises(ValueError, match="expected no push_to_hub"):
        model.save_pretrained("nowhere", push_to_hub=True)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(**tokenizer("a", return_tensors="pt"), assistant_model=model)


def test_a_new_model_is_drawn_as_stlm_draws_it(shared, ours):
    config = transformers.AutoConfig.from_pretrained(shared, trust_remote_code=True)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(3)
    expected = STLM(ours.cfg)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 8])
def test_what_transformers_saves_loads_again_in_both(bits, shared, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "saved", bits=bits)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.stlm.about["bits"] == bits
    ids = some_ids()
    with torch.no_grad():
        found = again(ids).logits
        assert torch.equal(found, logits_of(STLM.from_pretrained(tmp_path / "saved"), ids))
        if bits == 32:
            assert torch.equal(found, model(ids).logits)
    assert load_tokenizer(tmp_path / "saved")("þe").input_ids == [EOT, *"þe".encode()]
    for name in ("model.py", "modeling_stlm.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (shared / name).read_bytes()
    share.main([f"--model={tmp_path / 'saved'}", f"--to={tmp_path / 'again'}"])
    load(tmp_path / "again")


def test_a_name_on_the_hub_gives_weights_of_the_same_revision(shared, model, monkeypatch):
    asked = []

    def snapshot_download(name, revision, allow_patterns, **options):
        asked.append((name, revision, allow_patterns))
        return str(shared)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    again = type(model).from_pretrained("ann/poems", config=model.config, revision="abc")
    assert asked == [("ann/poems", "abc", ["config.json", "model.safetensors"])]
    here = type(model).from_pretrained(shared)
    assert len(asked) == 1
    for p, q in zip(again.parameters(), here.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_trainer_can_load_the_weights_of_a_folder(shared, model):
    """By their names in model.safetensors. A shared feed-forward is stored once."""
    stored = load_file(shared / "model.safetensors")
    assert stored.keys() <= model.state_dict().keys()
    other = transformers.AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
    assert not other.load_state_dict(stored, strict=False).unexpected_keys
    other.load_state_dict(model.state_dict())
    for key, w in other.state_dict().items():
        assert torch.equal(w, model.state_dict()[key])


def test_a_config_that_transformers_wrote_is_read_by_stlm(shared, ours, tmp_path, capsys):
    folder = shutil.copytree(shared, tmp_path / "a")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.dtype = torch.float32
    config.eos_token_id = EOT  # as a Trainer does
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    assert {"transformers_version", "eos_token_id"} < written.keys()
    assert STLM.from_pretrained(folder).cfg == ours.cfg
    assert "no sha256 in config.json" in capsys.readouterr().err
    load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damage_is_seen_in_transformers_too(name, shared, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "a")
    content = (folder / name).read_bytes()
    if name == "config.json":
        content = content.replace(b'"n_loop": 1', b'"n_loop": 2')
    else:
        content = content[:-1] + bytes([content[-1] ^ 1])
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged, or was changed"):
        load(folder)


def test_the_pipeline_of_the_card_writes_text(shared, monkeypatch, capsys):
    card = (shared / "README.md").read_text()
    python = card.split("```python\n")[2].split("```")[0]
    assert 'pipeline("text-generation", model=".", trust_remote_code=True)' in python
    monkeypatch.chdir(shared)
    exec(python, {})
    assert capsys.readouterr().out.strip()
    write = transformers.pipeline("text-generation", model=str(shared), trust_remote_code=True)
    found = write(PROMPT, max_new_tokens=20, do_sample=False, return_full_text=False)
    expected = bytes(STLM.from_pretrained(shared).generate(PROMPT, 20, temperature=0))
    assert found[0]["generated_text"] == expected.decode(errors="replace")


# --- the tokenizer --------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids == [EOT, *text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.encode(text, add_special_tokens=False) == list(text.encode())
    assert tokenizer.decode(ids[1:]) == text
    tokens = tokenizer.tokenize(text)
    assert tokenizer.convert_tokens_to_ids(tokens) == ids[1:]


@pytest.mark.parametrize(
    "text", ["þÿ", "ÿ", "<eot>", "a <pad> <eot>b", "\xff\xfe", " it 's a , b . \n", "日本 🙂", ""]
)
def test_text_is_never_taken_for_a_special_token(text, tokenizer):
    ids = tokenizer(text).input_ids
    assert ids == [EOT, *text.encode()]
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens(tokenizer):
    assert len(tokenizer) == 256
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (EOT, EOT, PAD)
    assert tokenizer.decode([EOT, 97, 98, EOT, PAD]) == "<eot>ab<eot><pad>"
    assert tokenizer.decode([EOT, 97, 98, EOT, PAD], skip_special_tokens=True) == "ab"
    assert tokenizer.decode([0xE6, 0x97]) == "\ufffd"
    assert tokenizer("a", "b").input_ids == [EOT, 97, EOT, 98]
    found = tokenizer("ab", return_special_tokens_mask=True)
    assert found["special_tokens_mask"] == [1, 0, 0]
    batch = tokenizer(["a", "bcd"], padding=True)
    assert batch["input_ids"] == [[EOT, 97, PAD, PAD], [EOT, *b"bcd"]]
    assert batch["attention_mask"] == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert tokenizer("abcdef", truncation=True, max_length=3).input_ids == [EOT, 97, 98]
    with pytest.raises(UnicodeEncodeError):
        tokenizer("\ud800")


def test_the_file_in_lib_is_what_is_shared(shared):
    assert (shared / "modeling_stlm.py").read_bytes() == (
        ROOT / "lib/modeling_stlm.py"
    ).read_bytes()
