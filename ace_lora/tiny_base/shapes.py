"""Names and shapes of the tensors of each part, from its configuration; tested against those of the published sizes.

D transformer width, F feed-forward width, W lyric encoder width, C channels, K kernel. Standard library only.
"""

from __future__ import annotations

import math

Shapes = dict[str, tuple[int, ...]]


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
