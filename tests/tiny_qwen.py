"""A tiny random Qwen2.5-Omni thinker in a folder, laid out like a real checkpoint: tokenizer, extractor, weights.

0.6 M parameters; it listens and answers nonsense, with the architecture, the files and the loading code of the 7B.
"""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
# Enough text for merges that cross word ends and JSON punctuation, as the real vocabulary has them.
_TEXT = [
    "rock pop jazz piano guitar drums slow fast happy sad male female vocal " * 4,
    '{"genre": ["rock", "pop"]}' * 8,
]


def make_tokenizer(folder: Path):
    """A byte-level BPE tokenizer of about 400 tokens, saved in `folder` as Qwen's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return fast


def make_config(tokenizer):
    """The configuration of the thinker."""
    from transformers import Qwen2_5OmniThinkerConfig

    ids = tokenizer.get_vocab()
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": 128,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "d_model": 64,
            "output_dim": 64,
            "n_window": 50,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
        text_config={
            # More rows than tokens, as in the real checkpoints.
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
        audio_token_index=ids["<|AUDIO|>"],
        audio_token_id=ids["<|AUDIO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        image_token_id=ids["<|IMAGE|>"],
        image_token_index=ids["<|IMAGE|>"],
        video_token_id=ids["<|VIDEO|>"],
        video_token_index=ids["<|VIDEO|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
    )


def make_thinker(folder: Path, seed: int = 0):
    """Save a random thinker with everything that is read with it in `folder`; returns the model."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder)
    WhisperFeatureExtractor(feature_size=128, n_fft=400, hop_length=160, chunk_length=300).save_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(make_config(tokenizer))
    model.save_pretrained(folder)
    return model


def make_whole_omni(folder: Path, thinker: Path) -> None:
    """The checkpoint of `thinker` as the published ones are laid out: names start with `thinker.`, with a talker."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2_5OmniConfig

    shutil.copytree(thinker, folder)
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["talker.codec_head.weight"] = torch.zeros(4, 4)
    tensors["token2wav.dit.weight"] = torch.zeros(4, 4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    inner = json.loads((thinker / "config.json").read_text("utf-8"))
    Qwen2_5OmniConfig(thinker_config=inner).save_pretrained(folder)
