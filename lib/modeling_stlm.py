"""A byte model in transformers. tools.share copies this file beside model.py in a shared folder.

    model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
    ids = model.generate(**tokenizer("def ", return_tensors="pt"), max_new_tokens=200)
    print(tokenizer.decode(ids[0], skip_special_tokens=True))

Call model.train() before training. In eval mode the model reads any length exactly, and without
gradients; in train mode it drops patches beyond `max_patches`, like train.py, so give it rows of at
most `block_size` bytes.

`generate` takes one prompt, or several of equal length. Padding belongs on the right, where no real
byte sees it, and only in a forward pass.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizer,
)
from transformers.modeling_outputs import CausalLMOutput

from .model import EOT, KNOBS, PAD, STLM, ModelConfig


class STLMConfig(PretrainedConfig):
    model_type = "stlm"
    vocab_size = 256

    def __init__(self, sha256=None, **kwargs):
        # `sha256` is left out: it is true of the files it came with, not of those saved next.
        super().__init__(**kwargs)

    def knobs(self):
        """The ModelConfig."""
        return ModelConfig(**{key: getattr(self, key) for key in KNOBS if hasattr(self, key)})


@dataclass
class STLMOutput(CausalLMOutput):
    stlm_state: tuple | None = None  # the symbols read so far (B, T), and the state after them


class STLMForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = STLMConfig
    _is_stateful = True  # no assisted generation: a state cannot drop its last symbols

    def __init__(self, config, stlm=None):
        super().__init__(config)
        self.stlm = stlm or STLM(config.knobs())
        self.generation_config = GenerationConfig(
            bos_token_id=EOT, eos_token_id=EOT, pad_token_id=PAD
        )
        # Weights have the same names here as in model.safetensors, so that a Trainer can resume.
        self.register_state_dict_post_hook(remove_prefix)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.post_init()

    def _init_weights(self, module):
        """Nothing: STLM has drawn or loaded its weights already."""

    @classmethod
    def from_pretrained(
        cls,
        name,
        *args,
        config=None,
        dtype=None,
        torch_dtype=None,
        device_map=None,
        revision=None,
        token=None,
        cache_dir=None,
        local_files_only=False,
        **others,
    ):
        """A model in eval mode, with checked and unpacked weights, in float32 without a `dtype`.

        device_map: one device, or a dictionary that names only one
        """
        for key, value in others.items():
            if value and not key.startswith("_") and key not in WITHOUT_EFFECT:
                raise ValueError(f"expected no {key}, got {value!r:.80}; leave it out")
        if config is None:
            config = STLMConfig.from_pretrained(name, revision=revision, token=token)
        if not Path(name).is_dir():
            from huggingface_hub import snapshot_download

            name = snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["config.json", "model.safetensors"],
            )
        stlm = STLM.from_pretrained(name)
        if vars(stlm.cfg) != vars(config.knobs()):
            raise ValueError(f"expected the knobs that {name} has, got others; give none")
        dtype = dtype or torch_dtype
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        return cls(config, stlm).to(device=one_device(device_map), dtype=dtype).eval()

    def save_pretrained(
        self, save_directory, bits=32, is_main_process=True, push_to_hub=False, **others
    ):
        """Write a folder like tools.share, which transformers and stlm load. README.md stays."""
        if push_to_hub:
            raise ValueError("expected no push_to_hub; save, then use `hf upload`")
        if is_main_process:
            modeling = Path(__file__).read_text(encoding="utf-8")
            self.stlm.save_pretrained(save_directory, bits, modeling=modeling)

    def get_input_embeddings(self):
        return self.stlm.embed

    def resize_token_embeddings(self, new_num_tokens=None, *args, **kwargs):
        if new_num_tokens not in (None, 256):
            raise ValueError(f"expected 256 tokens, one per byte, got {new_num_tokens}; add none")
        return self.stlm.embed

    def forward(
        self,
        input_ids,
        attention_mask=None,
        labels=None,
        stlm_state=None,
        use_cache=False,
        **kwargs,
    ):
        """Logits (B, T, 256) and, with `labels` (-100: do not count), the mean loss in nats."""
        if attention_mask is not None and (attention_mask.long().diff(dim=1) > 0).any():
            raise ValueError(
                "expected padding on the right, got some on the left; set padding_side='right'"
            )
        if self.training:
            x = self.stlm.hidden(input_ids)
        else:
            if stlm_state is None:
                stlm_state = (input_ids[:, :0], self.stlm.start(len(input_ids)))
            text, state = stlm_state
            x, state = self.stlm.read(input_ids, state)
            stlm_state = (torch.cat((text, input_ids), dim=1), state)
        logits = self.stlm.head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=256, **kwargs)
        return STLMOutput(loss=loss, logits=logits, stlm_state=stlm_state if use_cache else None)

    # --- generation: the state goes from byte to byte ---

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def prepare_inputs_for_generation(
        self, input_ids, attention_mask=None, stlm_state=None, use_cache=True, **kwargs
    ):
        if attention_mask is not None and not attention_mask.all():
            raise ValueError(
                "expected prompts of equal length, got a batch with padding; generate one by one"
            )
        if stlm_state is not None:
            text, _ = stlm_state
            n_read = text.size(1)
            if torch.equal(text, input_ids[:, :n_read]):
                input_ids = input_ids[:, n_read:]
            else:
                stlm_state = None  # beam search has put other texts in these rows: read them anew
        return {"input_ids": input_ids, "stlm_state": stlm_state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return model_kwargs | {"stlm_state": outputs.stlm_state}


# Arguments of from_pretrained that change nothing here.
WITHOUT_EFFECT = (
    "adapter_kwargs",
    "attn_implementation",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "proxies",
    "trust_remote_code",
    "use_safetensors",
)


def one_device(device_map):
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, dict):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(f"expected one device, got device_map={device_map}; give 'cuda'")
        return devices.pop()
    return device_map


def remove_prefix(module, weights, prefix, metadata):
    for key in [key for key in weights if key.startswith(f"{prefix}stlm.")]:
        weights[prefix + key.removeprefix(f"{prefix}stlm.")] = weights.pop(key)


def add_prefix(module, weights, prefix, *others):
    for key in [key for key in weights if key.startswith(prefix)]:
        weights[f"{prefix}stlm.{key.removeprefix(prefix)}"] = weights.pop(key)


# --- the tokenizer --------------------------------------------------------------------------------

# Token i is byte i, written as the character i. EOT and PAD occur in no UTF-8 text.
TOKENS = [chr(i) for i in range(256)]
TOKENS[EOT] = "<eot>"
TOKENS[PAD] = "<pad>"
IDS = {token: i for i, token in enumerate(TOKENS)}


class STLMTokenizer(PreTrainedTokenizer):
    """Bytes. Every text begins with EOT, unless add_special_tokens=False."""

    model_input_names = ("input_ids", "attention_mask")
    vocab_size = 256

    def __init__(self, **kwargs):
        special = {
            "bos_token": TOKENS[EOT],
            "eos_token": TOKENS[EOT],
            "pad_token": TOKENS[PAD],
            "clean_up_tokenization_spaces": False,
        }
        super().__init__(**special | kwargs)

    def get_vocab(self):
        return dict(IDS)

    def tokenize(self, text, **kwargs):
        # All text is text: "<eot>" in it is five bytes, never the token.
        return [TOKENS[i] for i in text.encode()]

    def _convert_token_to_id(self, token):
        return IDS.get(token)

    def _convert_id_to_token(self, index):
        return TOKENS[index]

    def convert_tokens_to_string(self, tokens):
        # One character is one byte; longer ones are special tokens.
        text = [bytes([ord(token)]) if len(token) == 1 else token.encode() for token in tokens]
        return b"".join(text).decode(errors="replace")

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        ids = [EOT, *token_ids_0]
        if token_ids_1 is not None:
            ids += [EOT, *token_ids_1]
        return ids

    def get_special_tokens_mask(
        self, token_ids_0, token_ids_1=None, already_has_special_tokens=False
    ):
        if not already_has_special_tokens:
            token_ids_0 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(i in (EOT, PAD)) for i in token_ids_0]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()
