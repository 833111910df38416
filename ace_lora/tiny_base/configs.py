"""The `config.json` of each tiny part: the keys of the published ones with small sizes. Standard library only."""

from __future__ import annotations

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
