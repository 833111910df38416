"""What a training loads: text encoder, transformer with the adapter in it, and what stays constant, computed once."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ace_lora.base_weights.loading import WrongWeights
from ace_lora.commands import StepFailed
from ace_lora.device import free_device_bytes, free_device_memory, free_main_memory, set_tf32
from ace_lora.lora.layers import adapter_tensors, inject_adapter, load_lora
from ace_lora.model.elementwise import compile_elementwise
from ace_lora.model.offload import offload_blocks
from ace_lora.model.quantise import quantise_layers
from ace_lora.model.recompute import block_memory, set_checkpointing
from ace_lora.processes import say
from ace_lora.records.cache import RecordCache
from ace_lora.records.record import read_record
from ace_lora.training.batches import SampleReader, SampleSettings
from ace_lora.training.flags import max_frames
from ace_lora.training.memory_plan import Recomputation, choose_recomputation
from ace_lora.training.prepare import Prepared, crops_lyrics
from ace_lora.training.songs import TrainingSong
from ace_lora.training.ssl_at_training import compute_features
from ace_lora.training.step import ConditionEncoder
from ace_lora.v1.flow_matching import Schedule, build_schedule
from ace_lora.v1.text_encoder import comma_id, load_text_encoder, load_text_tokenizer
from ace_lora.v1.transformer import ACEStepTransformer, TransformerConfig, load_transformer

TEXT_ENCODER_GPU_GB = 15  # cards with at least so much memory also hold the text encoder (0.6 GB)
TEXT_TOKENS = 64  # tags of a song, for the memory plan
LYRIC_CACHE_SHARE = 0.25  # of the free main memory, for the lyric states of all songs
RECORD_CACHE_SHARE = 0.25  # of what is free then, for records


@dataclass(frozen=True)
class Loaded:
    """The networks and the data of a training, as they stay while it runs."""

    model: ACEStepTransformer  # frozen, with the adapter in it
    adapter: dict[str, nn.Parameter]  # every tensor of the adapter, by its key in LoRA files
    trained: dict[str, nn.Parameter]  # those of them that get a gradient
    flow: Schedule
    conditions: ConditionEncoder
    reader: SampleReader  # of all songs


def load(args: argparse.Namespace, prepared: Prepared) -> Loaded:
    """Load text encoder and transformer, put the adapter in, and compute what stays constant."""
    device = prepared.device.torch_device
    if device.type == "cuda":
        set_tf32()
    base_config = TransformerConfig.from_json(prepared.weights["transformer"] / "config.json")
    at_training = [
        index for index, song in enumerate(prepared.songs) if args.ssl_coeff > 0 and song.ssl == "at_training"
    ]
    features = compute_features(prepared.songs, at_training, prepared.weights, prepared.device) if at_training else {}
    encode_text = load_encoder_of_text(args, prepared)

    if args.compile:
        say(compile_elementwise(device) or "compiled: the parts between the matrix products")
    model = load_base(args, prepared)
    adapter = adapter_tensors(model)
    if prepared.resumed:
        with torch.no_grad():
            for key, parameter in adapter.items():
                parameter.copy_(prepared.resumed.state.tensors[f"adapter/{key}"])
    elif args.last_lora_path:
        notes = load_lora(model, Path(args.last_lora_path))
        say(f"starting from the weights of '{args.last_lora_path}'")
        for note in notes:
            say(f"note: {note}")
    if args.ssl_coeff == 0:
        # The heads do not run, so adapters in them stay as they are.
        in_heads = [parameter for key, parameter in adapter.items() if key.startswith("projectors.")]
        for parameter in in_heads:
            parameter.requires_grad_(False)
        if not in_heads:
            model.drop_ssl_heads()
    trained = {key: parameter for key, parameter in adapter.items() if parameter.requires_grad}
    model.eval()
    conditions = ConditionEncoder(encode_text, compute_lyric_states(args, prepared, model, adapter))
    reader = SampleReader(
        prepared.songs,
        SampleSettings(
            seed=args.seed,
            tag_dropout=args.tag_dropout,
            lyrics_dropout=args.lyrics_dropout,
            ssl=args.ssl_coeff > 0,
            max_frames=max_frames(args),
            comma_id=comma_id(load_text_tokenizer(prepared.weights["text_encoder"])),
            lyric_vocabulary=prepared.weights.get("lyric_vocabulary"),
            embedding_rows=base_config.lyric_encoder_vocab_size,
        ),
        features,
        record_cache(args, prepared.songs),
    )
    choose_recomputed_blocks(args, prepared, model, trained)
    return Loaded(model, adapter, trained, build_schedule(args.shift), conditions, reader)


def load_base(args: argparse.Namespace, prepared: Prepared) -> ACEStepTransformer:
    """The frozen transformer with the adapter in it, on the device; quantised and offloaded as the flags say."""
    device = prepared.device.torch_device
    say("loading the transformer …")
    # What is quantised or stays in main memory never lies on the card as a whole.
    by_way_of_host = args.base_precision != "bf16" or args.offload > 0
    try:
        model = load_transformer(
            prepared.weights["transformer"],
            dtype=prepared.device.dtype,
            device="cpu" if by_way_of_host else device,
        )
    except WrongWeights as error:
        raise StepFailed(str(error)) from error
    if args.base_precision != "bf16":
        quantise_layers(model.large_parts(), args.base_precision, None if args.offload else device)
        if not args.offload:
            model.to(device)
    inject_adapter(model, prepared.lora_config, seed=args.seed)
    if args.offload:
        offload_blocks(model.transformer_blocks, args.offload, device)
    return model.to(device) if by_way_of_host else model


def choose_recomputed_blocks(
    args: argparse.Namespace, prepared: Prepared, model: ACEStepTransformer, trained: Mapping[str, nn.Parameter]
) -> None:
    """Set which blocks are computed again in the backward pass, and say so."""
    layers = len(model.transformer_blocks)
    if args.checkpointing == "auto":
        chosen, why = recomputation_that_fits(args, prepared, model, trained)
    else:
        number = {"all": layers, "none": 0}.get(args.checkpointing)
        chosen = Recomputation(min(layers, int(args.checkpointing)) if number is None else number, 0)
        why = "asked for"
    set_checkpointing(model.transformer_blocks, chosen.blocks, chosen.products)
    say(
        f"computed again in the backward pass: {chosen.blocks} of {layers} blocks, and the largest product of "
        f"{chosen.products} others ({args.checkpointing}, {why})"
    )


def recomputation_that_fits(
    args: argparse.Namespace, prepared: Prepared, model: ACEStepTransformer, trained: Mapping[str, nn.Parameter]
) -> tuple[Recomputation, str]:
    """The least recomputation that the memory of the device asks for, and in words why."""
    device, songs = prepared.device.torch_device, prepared.training_songs
    layers = len(model.transformer_blocks)
    free = free_device_bytes(device)
    if free is None:
        return Recomputation(layers, 0), "free memory unknown"
    if args.memory_limit_gb:
        in_use = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
        free = min(free, int(args.memory_limit_gb * 2**30) - in_use)
    limit = max_frames(args)
    longest = max(min(song.frames, limit or song.frames) for song in songs) * args.batch_size
    context = (1 + TEXT_TOKENS + max(song.lyric_tokens for song in songs)) * args.batch_size
    item_bytes = torch.empty((), dtype=prepared.device.dtype).element_size()
    widths = model.config.inner_dim, model.config.feed_forward_dim, model.config.num_attention_heads
    memory = block_memory(*widths, longest, context, item_bytes, prepared.lora_config["r"])
    # Gradients and moments come on top of what is allocated now.
    parameters = sum(parameter.numel() for parameter in trained.values())
    return choose_recomputation(layers, memory, free - 12 * parameters), f"{free / 1e9:.1f} GB free"


def load_encoder_of_text(args: argparse.Namespace, prepared: Prepared) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function from ids [1,Lt] to states [1,Lt,text width] in main memory."""
    training_device = prepared.device.torch_device
    on_card = args.text_encoder == "gpu"
    if args.text_encoder == "auto" and training_device.type == "cuda":
        memory = torch.cuda.get_device_properties(training_device).total_memory / 2**30
        on_card = memory >= TEXT_ENCODER_GPU_GB
    device = training_device if on_card else torch.device("cpu")
    dtype = prepared.device.dtype if device.type != "cpu" else torch.float32
    encoder = load_text_encoder(prepared.weights["text_encoder"], device=device, dtype=dtype)
    if device.type != training_device.type:
        say("text encoder: in main memory, ahead of the card")
    # On a stream of its own it need not wait for the step under way, nor the thread that reads ahead.
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))

    def encode(ids: Tensor, mask: Tensor | None) -> Tensor:
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            ids = ids.to(device)
            mask = torch.ones_like(ids) if mask is None else mask.to(device)
            return encoder(input_ids=ids, attention_mask=mask).last_hidden_state.cpu()

    return encode


def compute_lyric_states(
    args: argparse.Namespace, prepared: Prepared, model: ACEStepTransformer, adapter: Mapping[str, Any]
) -> dict[str, Tensor] | None:
    """Lyric states [Ll,D] by song, and the lyric branch off the card; None where every step needs it."""
    device = prepared.device.torch_device
    if any(key.startswith(("lyric_encoder.", "lyric_proj.")) for key in adapter):
        return None
    if crops_lyrics(args, prepared.songs):
        say("lyric branch: in every step, because pieces of songs with timed lyrics are trained")
        return None
    size = torch.empty((), dtype=prepared.device.dtype).element_size() * model.config.inner_dim
    needed = size * sum(song.lyric_tokens for song in prepared.songs)
    free = free_main_memory()
    if free is not None and needed > LYRIC_CACHE_SHARE * free:
        say(f"lyric branch: in every step, because {needed / 1e9:.1f} GB for its results are too much to keep")
        return None
    states = {}
    with torch.no_grad():
        for song in prepared.songs:
            ids = read_record(song.path, ssl=False).lyric_token_ids
            states[song.name] = model.encode_lyrics(ids[None].to(device))[0].cpu()
    model.drop_lyric_branch()
    free_device_memory(device)
    return states


def record_cache(args: argparse.Namespace, songs: list[TrainingSong]) -> RecordCache:
    """Room for the records in the main memory that is free now."""
    records = sum(song.path.stat().st_size for song in songs)
    room = int((free_main_memory() or 0) * RECORD_CACHE_SHARE / args.devices)
    if records > room:
        say(f"records: {room / 1e9:.1f} of their {records / 1e9:.1f} GB stay in main memory, the rest is read anew")
    return RecordCache(room)
