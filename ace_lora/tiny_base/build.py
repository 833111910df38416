"""A base model small enough for tests and for trying the whole workflow on a CPU in seconds.

Makes the checkpoint folder DIR with the layout of the published weights: the same folders, file names, configuration
keys and tensor names, but a few narrow layers of random numbers. Every script runs on it with
`--checkpoint_dir DIR` and the same loading code. The music it makes is noise.

    ace_step_transformer/   transformer and lyric encoder
    music_dcae_f8c8/        mel autoencoder, encoder and decoder
    music_vocoder/          mel to 44.1 kHz
    umt5-base/              text encoder and its tokenizer
    MERT-v1-330M/           first SSL model
    mHuBERT-147/            second SSL model
    vocab.json              lyric vocabulary
    tiny_base.json          marks the folder as made by this program

The same version makes the same bytes each time. Only numpy and safetensors are used, so that it takes a second; the
tensor names and shapes are written out here and tested against those of the published sizes.

D transformer width, F feed-forward width, W lyric encoder width, C channels, K kernel.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.commands import WrongInput
from ace_lora.files import write_json
from ace_lora.lyrics.text import STRUCTURE_TAGS

if TYPE_CHECKING:
    import numpy as np

MARKER = "tiny_base.json"
FORMAT = 1

Shapes = dict[str, tuple[int, ...]]

TRANSFORMER_CONFIG: dict = {
    "_class_name": "ACEStepTransformer2DModel",
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 3,
    # 128, the numbers in one latent frame, so that the first and the last layer can mirror each other; see `_weight`.
    "inner_dim": 128,
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "mlp_ratio": 1.5,
    "patch_size": [16, 1],
    "max_position": 32768,
    "rope_theta": 1000000.0,
    "max_height": 16,
    "max_width": 32768,
    "speaker_embedding_dim": 512,
    "text_embedding_dim": 32,
    "ssl_encoder_depths": [1, 1],
    "ssl_names": ["mert", "m-hubert"],
    "ssl_latent_dims": [32, 24],
    "lyric_encoder_vocab_size": 0,  # set to the size of the lyric vocabulary below
    # The published configuration has only the first of these; the others are 6, 16 and 4096 there.
    "lyric_hidden_size": 32,
    "lyric_encoder_layers": 2,
    "lyric_encoder_heads": 2,
    "lyric_encoder_feed_forward": 64,
}

DCAE_CONFIG: dict = {
    "_class_name": "AutoencoderDC",
    "in_channels": 2,
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 16, 16, 32],
    "decoder_block_out_channels": [8, 16, 16, 32],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

VOCODER_CONFIG: dict = {
    "_class_name": "ADaMoSHiFiGANV1",
    "input_channels": 128,
    "depths": [1, 1, 1, 1],
    "dims": [8, 8, 16, 16],
    "drop_path_rate": 0.0,
    "kernel_sizes": [7],
    "upsample_rates": [8, 8, 4, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "num_mels": 16,
    "upsample_initial_channel": 32,
    "use_template": False,
    "pre_conv_kernel_size": 13,
    "post_conv_kernel_size": 13,
    "sampling_rate": 44100,
    "n_fft": 2048,
    "win_length": 2048,
    "hop_length": 512,
    "f_min": 40,
    "f_max": 16000,
    "n_mels": 128,
}

UMT5_CONFIG: dict = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "dropout_rate": 0.1,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": 0,  # set to the size of the tokenizer below
}

# What both SSL models have in common. Kernels and strides are the real ones: they set the rate of the features.
_HUBERT_CONFIG: dict = {
    "conv_dim": [8, 8, 8, 8, 8, 8, 8],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_feat_extract_layers": 7,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "num_hidden_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.075,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}

# The keys up to `feature_extractor_cqt` belong to the remote code that published the model; a loader ignores them.
MERT_CONFIG: dict = {
    "architectures": ["MERTModel"],
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "model_type": "mert_model",
    "attention_relax": 32.0,
    "deepnorm": False,
    "sample_rate": 24000,
    "feature_extractor_cqt": False,
    **_HUBERT_CONFIG,
    "do_stable_layer_norm": True,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
}

MHUBERT_CONFIG: dict = {
    "architectures": ["HubertModel"],
    "model_type": "hubert",
    **_HUBERT_CONFIG,
    "do_stable_layer_norm": False,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_attention_heads": 2,
}


def make_tiny_base(folder: Path) -> list[Path]:
    """Make the checkpoint folder and return the files made, sorted.

    Files of an earlier run in the same folder are replaced, each at once; other files there are left alone.
    Raises WrongInput when `folder` holds something and is not from an earlier run.
    """
    folder = Path(folder)
    _refuse_foreign_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        _write_parts(made)
        names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
        # The marker goes first: a folder left half filled by a power cut is then known as ours and can be filled again.
        for name in sorted(names, key=lambda name: name != Path(MARKER)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [folder / name for name in names]


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WrongInput(f"'{folder}' is a file. Expected the name of a folder to make. Choose another name.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise WrongInput(
            f"'{folder}' is not empty and was not made by this program (it has no {MARKER}). "
            "Expected a new or an empty folder. Choose another name."
        )


def _write_parts(folder: Path) -> None:
    lyric_vocabulary = lyric_vocabulary_file()
    tokens = {*lyric_vocabulary["model"]["vocab"], *(token["content"] for token in lyric_vocabulary["added_tokens"])}
    tokenizer = umt5_tokenizer_file()
    transformer = {**TRANSFORMER_CONFIG, "lyric_encoder_vocab_size": len(tokens)}
    umt5 = {**UMT5_CONFIG, "vocab_size": len(tokenizer["model"]["vocab"])}

    diffusers_name, transformers_name = "diffusion_pytorch_model.safetensors", "model.safetensors"
    for part, file_name, config, shapes in [
        ("ace_step_transformer", diffusers_name, transformer, transformer_shapes(transformer)),
        ("music_dcae_f8c8", diffusers_name, DCAE_CONFIG, dcae_shapes(DCAE_CONFIG)),
        ("music_vocoder", diffusers_name, VOCODER_CONFIG, vocoder_shapes(VOCODER_CONFIG)),
        ("umt5-base", transformers_name, umt5, umt5_shapes(umt5)),
        ("MERT-v1-330M", transformers_name, MERT_CONFIG, hubert_shapes(MERT_CONFIG)),
        ("mHuBERT-147", transformers_name, MHUBERT_CONFIG, hubert_shapes(MHUBERT_CONFIG)),
    ]:
        (folder / part).mkdir()
        write_json(folder / part / "config.json", config)
        _write_weights(folder / part / file_name, part, shapes)

    write_json(folder / "umt5-base" / "tokenizer.json", tokenizer)
    write_json(folder / "umt5-base" / "tokenizer_config.json", UMT5_TOKENIZER_CONFIG)
    write_json(folder / "umt5-base" / "special_tokens_map.json", UMT5_SPECIAL_TOKENS)
    write_json(folder / "vocab.json", lyric_vocabulary)
    write_json(folder / MARKER, {"format": FORMAT, "what": "random weights for tests and trials, no music model"})


# --- Weights ----------------------------------------------------------------------------------------------------------


def _write_weights(path: Path, part: str, shapes: Shapes) -> None:
    from safetensors.numpy import save

    tensors = {name: _weight(part, name, shape) for name, shape in shapes.items()}
    # transformers refuses a file that does not say which framework its tensors are for. Not save_file: what it writes
    # only its owner may read.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _weight(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers that keep the size of what passes through them, so that a training on top is stable.

    The transformer's first and last layer mirror each other, and what lies between adds little: its velocity is near
    the noised latents that it is given. So it removes some noise, as a trained model does, and a LoRA has songs to
    learn. On a base that puts out noise of its own, the loss would mostly fall because the LoRA silences it.
    """
    import numpy as np

    if name == "mel_transform.spectrogram.window":
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])).astype(np.float32)
    if name == "mel_transform.mel_scale.fb":
        return _mel_filter_bank(*shape)
    channels, rows = TRANSFORMER_CONFIG["in_channels"], TRANSFORMER_CONFIG["patch_size"][0]
    if name == "proj_in.early_conv_layers.2.weight":
        # Many random directions, read and written back: near the identity, times hidden channels per number.
        width, hidden = shape[:2]
        first = _weight(part, "proj_in.early_conv_layers.0.weight", (hidden, channels, rows, 1))
        return np.ascontiguousarray(first.reshape(hidden, width).T).reshape(shape) * np.float32(width / hidden)
    if name == "final_layer.linear.weight":
        # The embedding counts a patch channel by channel, the output row by row.
        identity = np.eye(*shape, dtype=np.float32).reshape(channels, rows, shape[1])
        return np.ascontiguousarray(identity.transpose(1, 0, 2)).reshape(shape)

    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{part}/{name}".encode())))
    values = generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("weight_g", "original0") or (len(shape) == 1 and last == "weight"):
        # Gains: of a norm, or of a weight-normed kernel, whose length 1 is what the division below gives the others.
        return 1 + np.float32(0.1) * values
    if name in ("shared.weight", "lyric_embs.weight"):
        return values
    if last == "scale_shift_table":
        return np.float32(0.1) * values
    if len(shape) == 1:
        return np.float32(0.02) * values
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith("SelfAttention.q.weight"):
        scale /= math.sqrt(UMT5_CONFIG["d_kv"])  # T5 does not scale its attention scores
    if name in ("timestep_embedder.linear_2.weight", "t_block.1.weight"):
        scale *= 0.3
    if name.startswith("transformer_blocks.") and name.endswith((".to_out.0.weight", ".point_conv.conv.weight")):
        scale *= 0.5
    return np.float32(scale) * values


def _mel_filter_bank(bins: int, mels: int) -> np.ndarray:
    """[bins, mels] float32: Slaney's scale and area norm, 40 Hz to 16 kHz at 44.1 kHz."""
    import numpy as np

    def hz_to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)

    mel = np.linspace(hz_to_mel(40), hz_to_mel(16000), mels + 2)
    hz = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))
    low, centre, high = hz[:-2], hz[1:-1], hz[2:]
    at = np.linspace(0, 22050, bins)[:, None]
    triangle = np.maximum(0, np.minimum((at - low) / (centre - low), (high - at) / (high - centre)))
    return (triangle * 2 / (high - low)).astype(np.float32)


# --- Names and shapes of the tensors ----------------------------------------------------------------------------------


def _linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, out: int, into: int, *kernel: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel), **({f"{name}.bias": (out,)} if bias else {})}


def transformer_shapes(config: dict) -> Shapes:
    """Tensors of `ace_step_transformer`, with the cross-attention projections that the file has and nothing uses."""
    width = config["num_attention_heads"] * config["attention_head_dim"]  # D
    feed_forward = int(width * config["mlp_ratio"])  # F
    lyric_width = config["lyric_hidden_size"]  # W
    shapes: Shapes = {
        **_conv("proj_in.early_conv_layers.0", 2048, config["in_channels"], *config["patch_size"]),
        **_norm("proj_in.early_conv_layers.1", 2048),
        **_conv("proj_in.early_conv_layers.2", width, 2048, 1, 1),
        **_linear("timestep_embedder.linear_1", width, 256),
        **_linear("timestep_embedder.linear_2", width, width),
        **_linear("t_block.1", 6 * width, width),
        **_linear("speaker_embedder", width, config["speaker_embedding_dim"]),
        **_linear("genre_embedder", width, config["text_embedding_dim"]),
        "lyric_embs.weight": (config["lyric_encoder_vocab_size"], lyric_width),
        **_lyric_encoder_shapes(config),
        **_linear("lyric_proj", width, lyric_width),
    }
    for index in range(config["num_layers"]):
        block = f"transformer_blocks.{index}"
        shapes[f"{block}.scale_shift_table"] = (6, width)
        for attention in ("attn", "cross_attn"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= _linear(f"{block}.{attention}.{projection}", width, width)
        for projection in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            shapes |= _linear(f"{block}.cross_attn.{projection}", width, width)
        shapes |= _conv(f"{block}.ff.inverted_conv.conv", 2 * feed_forward, width, 1)
        shapes |= _conv(f"{block}.ff.depth_conv.conv", 2 * feed_forward, 1, 3)
        shapes |= _conv(f"{block}.ff.point_conv.conv", width, feed_forward, 1, bias=False)
    for index, latent_width in enumerate(config["ssl_latent_dims"]):
        shapes |= _linear(f"projectors.{index}.0", 2 * width, width)
        shapes |= _linear(f"projectors.{index}.2", 2 * width, 2 * width)
        shapes |= _linear(f"projectors.{index}.4", latent_width, 2 * width)
    shapes["final_layer.scale_shift_table"] = (2, width)
    return shapes | _linear("final_layer.linear", math.prod(config["patch_size"]) * config["out_channels"], width)


def _lyric_encoder_shapes(config: dict) -> Shapes:
    width = config["lyric_hidden_size"]
    layers = config.get("lyric_encoder_layers", 6)
    heads = config.get("lyric_encoder_heads", 16)
    feed_forward = config.get("lyric_encoder_feed_forward", 4096)
    shapes = _linear("lyric_encoder.embed.out.0", width, width) | _norm("lyric_encoder.embed.out.1", width)
    for index in range(layers):
        layer = f"lyric_encoder.encoders.{index}"
        for projection in ("linear_q", "linear_k", "linear_v", "linear_out"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _linear(f"{layer}.self_attn.linear_pos", width, width, bias=False)
        shapes[f"{layer}.self_attn.pos_bias_u"] = (heads, width // heads)
        shapes[f"{layer}.self_attn.pos_bias_v"] = (heads, width // heads)
        shapes |= _linear(f"{layer}.feed_forward.w_1", feed_forward, width)
        shapes |= _linear(f"{layer}.feed_forward.w_2", width, feed_forward)
        shapes |= _norm(f"{layer}.norm_ff", width) | _norm(f"{layer}.norm_mha", width)
    return shapes | _norm("lyric_encoder.after_norm", width)


def dcae_shapes(config: dict) -> Shapes:
    """Tensors of `music_dcae_f8c8`, named as diffusers' AutoencoderDC names them."""
    return _dcae_half(config, "encoder") | _dcae_half(config, "decoder")


def _dcae_half(config: dict, half: str) -> Shapes:
    channels = config[f"{half}_block_out_channels"]
    layers = config[f"{half}_layers_per_block"]
    head = config["attention_head_dim"]
    down = half == "encoder"
    sound, latent = config["in_channels"], config["latent_channels"]
    shapes = _conv("encoder.conv_in", channels[0], sound, 3, 3) if down else {}
    shapes |= {} if down else _conv("decoder.conv_in", channels[-1], latent, 3, 3)
    for stage, width in enumerate(channels):
        name = f"{half}.{'down' if down else 'up'}_blocks.{stage}"
        last = stage == len(channels) - 1
        # The encoder narrows behind the blocks of a stage, the decoder widens before them.
        if not last and not down:
            shapes |= _conv(f"{name}.0.conv", width, channels[stage + 1], 3, 3)
        for layer in range(layers[stage]):
            block = f"{name}.{layer if down or last else layer + 1}"
            if config[f"{half}_block_types"][stage] == "ResBlock":
                shapes |= _conv(f"{block}.conv1", width, width, 3, 3)
                shapes |= _conv(f"{block}.conv2", width, width, 3, 3, bias=False) | _norm(f"{block}.norm", width)
            else:
                shapes |= _efficient_vit_shapes(block, width, head, config[f"{half}_qkv_multiscales"][stage])
        if not last and down:
            shapes |= _conv(f"{name}.{layers[stage]}.conv", channels[stage + 1], width, 3, 3)
    if down:
        return shapes | _conv("encoder.conv_out", latent, channels[-1], 3, 3)
    return shapes | _norm("decoder.norm_out", channels[0]) | _conv("decoder.conv_out", sound, channels[0], 3, 3)


def _efficient_vit_shapes(block: str, width: int, head: int, kernels: list[int]) -> Shapes:
    shapes: Shapes = {}
    for projection in ("to_q", "to_k", "to_v"):
        shapes |= _linear(f"{block}.attn.{projection}", width, width, bias=False)
    for index, kernel in enumerate(kernels):
        scale = f"{block}.attn.to_qkv_multiscale.{index}"
        shapes |= _conv(f"{scale}.proj_in", 3 * width, 1, kernel, kernel, bias=False)
        shapes |= _conv(f"{scale}.proj_out", 3 * width, head, 1, 1, bias=False)
    shapes |= _linear(f"{block}.attn.to_out", width, width * (1 + len(kernels)), bias=False)
    shapes |= _norm(f"{block}.attn.norm_out", width)
    shapes |= _conv(f"{block}.conv_out.conv_inverted", 8 * width, width, 1, 1)
    shapes |= _conv(f"{block}.conv_out.conv_depth", 8 * width, 1, 3, 3)
    shapes |= _conv(f"{block}.conv_out.conv_point", width, 4 * width, 1, 1, bias=False)
    return shapes | _norm(f"{block}.conv_out.norm", width)


def vocoder_shapes(config: dict) -> Shapes:
    """Tensors of `music_vocoder`; the mel buffers are in the published file too."""
    dims, kernel = config["dims"], config["kernel_sizes"][0]
    shapes = _conv("backbone.channel_layers.0.0", dims[0], config["input_channels"], kernel)
    shapes |= _norm("backbone.channel_layers.0.1", dims[0])
    for stage in range(1, len(dims)):
        shapes |= _norm(f"backbone.channel_layers.{stage}.0", dims[stage - 1])
        shapes |= _conv(f"backbone.channel_layers.{stage}.1", dims[stage], dims[stage - 1], 1)
    for stage, (depth, width) in enumerate(zip(config["depths"], dims, strict=True)):
        for index in range(depth):
            block = f"backbone.stages.{stage}.{index}"
            shapes[f"{block}.gamma"] = (width,)
            shapes |= _conv(f"{block}.dwconv", width, 1, kernel) | _norm(f"{block}.norm", width)
            shapes |= _linear(f"{block}.pwconv1", 4 * width, width) | _linear(f"{block}.pwconv2", width, 4 * width)
    shapes |= _norm("backbone.norm", dims[-1])

    width = config["upsample_initial_channel"]
    kernels = config["resblock_kernel_sizes"]
    shapes |= _weight_normed_conv("head.conv_pre", width, config["num_mels"], config["pre_conv_kernel_size"])
    for index, up_kernel in enumerate(config["upsample_kernel_sizes"]):
        # A transposed convolution is stored input channels first.
        shapes |= _weight_normed_conv(f"head.ups.{index}", width, width // 2, up_kernel, bias=width // 2)
        width //= 2
        for place, (kernel, dilations) in enumerate(zip(kernels, config["resblock_dilation_sizes"], strict=True)):
            for convs in ("convs1", "convs2"):
                for step in range(len(dilations)):
                    name = f"head.resblocks.{index * len(kernels) + place}.{convs}.{step}"
                    shapes |= _weight_normed_conv(name, width, width, kernel)
    shapes |= _weight_normed_conv("head.conv_post", 1, width, config["post_conv_kernel_size"])
    shapes["mel_transform.spectrogram.window"] = (config["win_length"],)
    shapes["mel_transform.mel_scale.fb"] = (config["n_fft"] // 2 + 1, config["n_mels"])
    return shapes


def _weight_normed_conv(name: str, first: int, second: int, kernel: int, bias: int | None = None) -> Shapes:
    return {
        f"{name}.bias": (first if bias is None else bias,),
        f"{name}.weight_g": (first, 1, 1),
        f"{name}.weight_v": (first, second, kernel),
    }


def hubert_shapes(config: dict) -> Shapes:
    """Tensors of MERT and mHuBERT, the weight norm of the positional convolution named as in the published files."""
    width = config["hidden_size"]
    taps, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    shapes: Shapes = {"masked_spec_embed": (width,)}
    into = 1
    for index, (channels, kernel) in enumerate(zip(config["conv_dim"], config["conv_kernel"], strict=True)):
        name = f"feature_extractor.conv_layers.{index}"
        shapes |= _conv(f"{name}.conv", channels, into, kernel, bias=config["conv_bias"])
        if index == 0 or config["feat_extract_norm"] == "layer":
            shapes |= _norm(f"{name}.layer_norm", channels)
        into = channels
    shapes |= _norm("feature_projection.layer_norm", into) | _linear("feature_projection.projection", width, into)
    shapes |= {
        "encoder.pos_conv_embed.conv.bias": (width,),
        "encoder.pos_conv_embed.conv.weight_g": (1, 1, taps),
        "encoder.pos_conv_embed.conv.weight_v": (width, width // groups, taps),
        **_norm("encoder.layer_norm", width),
    }
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.attention.{projection}", width, width)
        shapes |= _norm(f"{layer}.layer_norm", width)
        shapes |= _linear(f"{layer}.feed_forward.intermediate_dense", config["intermediate_size"], width)
        shapes |= _linear(f"{layer}.feed_forward.output_dense", width, config["intermediate_size"])
        shapes |= _norm(f"{layer}.final_layer_norm", width)
    return shapes


def umt5_shapes(config: dict) -> Shapes:
    """Tensors of `umt5-base`, the encoder only."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    shapes: Shapes = {"shared.weight": (config["vocab_size"], width)}
    for index in range(config["num_layers"]):
        attention, feed_forward = (f"encoder.block.{index}.layer.{place}" for place in (0, 1))
        for projection in "qkv":
            shapes |= _linear(f"{attention}.SelfAttention.{projection}", inner, width, bias=False)
        shapes |= _linear(f"{attention}.SelfAttention.o", width, inner, bias=False)
        buckets = config["relative_attention_num_buckets"]
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (buckets, config["num_heads"])
        shapes[f"{attention}.layer_norm.weight"] = (width,)
        for projection in ("wi_0", "wi_1"):
            shapes |= _linear(f"{feed_forward}.DenseReluDense.{projection}", config["d_ff"], width, bias=False)
        shapes |= _linear(f"{feed_forward}.DenseReluDense.wo", width, config["d_ff"], bias=False)
        shapes[f"{feed_forward}.layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes


# --- Tokenizers -------------------------------------------------------------------------------------------------------

# As published: padding 0, end 1, unknown 2, and the comma, at which the trainer splits the tags, 275.
COMMA_ID = 275
# As published: `[en]` 259, `[de]` 260, `[START]` 261 in the lyric vocabulary.
FIRST_LANGUAGE_ID = 259
UMT5_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
UMT5_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_TAG_WORDS = (
    "acoustic ambient ballad bass beat blues bpm chinese classical dance drums electric electronic energetic english "
    "epic fast female folk funk guitar happy heavy house indie instrumental jazz loud male melancholic melodic metal "
    "minor major music orchestral piano pop punk quiet rap rock romantic sad slow soft song soul strings synth techno "
    "upbeat violin vocal vocals voice warm"
)


def umt5_tokenizer_file() -> dict:
    """A `tokenizer.json`: sentencepiece-like pieces, bytes for every other character, `</s>` at the end."""
    letters_before_comma = "eaoinrtsldumchk"
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [("▁", -4.0)] + [(letter, -6.0) for letter in letters_before_comma]
    assert len(pieces) == COMMA_ID, len(pieces)
    pieces += [(",", -4.0)]
    others = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-'&/()!?:"
    pieces += [(letter, -7.0) for letter in others if letter not in letters_before_comma]
    pieces += [(f"▁{word}", -8.0) for word in _TAG_WORDS.split()]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": pieces[index][0], **special} for index in range(3)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [list(piece) for piece in pieces],
            "byte_fallback": True,
        },
    }


_LANGUAGE_TAGS = "[fr] [ru] [es] [it] [pt] [cs] [pl] [tr] [nl] [ar] [zh-cn] [ja] [hu] [ko] [hi]"
_LYRIC_CHARACTERS = (
    "!'(),-./:;?0123456789abcdefghijklmnopqrstuvwxyz"
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßąćčďęěğıłńňőœřśşšťůűźżž"
    "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
    "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىي،؟"
    "अआइईउऊऋएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह"
)
_LYRIC_PAIRS = "th he in er an re on at en nd ou ng sh zh ch ai ei ao ia ua ie uo ue ui iu"


def lyric_vocabulary_file() -> dict:
    """A `vocab.json` of the published kind: byte-pair encoding whose ids 0, 1, 2, 259, 260 and 261 are the published.

    Ids 3 to 258 are characters and then pairs of letters, as many as fit.
    """
    special = ["[STOP]", "[UNK]", "[SPACE]"]
    characters = list(dict.fromkeys(_LYRIC_CHARACTERS))
    pairs = list(dict.fromkeys(_LYRIC_PAIRS.split() + [a + b for a in "bdglmnstw" for b in "aeiou"]))
    tokens = (special + characters + pairs)[:FIRST_LANGUAGE_ID]
    assert len(tokens) == FIRST_LANGUAGE_ID, len(tokens)
    pairs = tokens[len(special) + len(characters) :]
    languages = ["[en]", "[de]", "[START]", *_LANGUAGE_TAGS.split()]
    vocabulary = {token: index for index, token in enumerate(tokens + languages)}
    # As published, the structure tags are no entries of the model, only added tokens behind them.
    structure = {tag: len(vocabulary) + index for index, tag in enumerate(STRUCTURE_TAGS)}
    added = {**{token: vocabulary[token] for token in special + languages}, **structure}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for token, index in added.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [" ".join(pair) for pair in pairs],
        },
    }
