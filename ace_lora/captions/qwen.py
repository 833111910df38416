"""Captions from Qwen2.5-Omni, and from the checkpoints made from it, on this computer.

Only what listens and writes is loaded, the "thinker": the parts that speak are never read, and of the part that sees
no block is made. A 7B checkpoint takes 6.8 GB of weights in four bits (NF4), computed from its parameter counts.

The answer is constrained to a JSON schema token by token (llguidance), so that it parses whatever the model would
like to say; ACE-Step's own checkpoints, which answer in text of their own, are not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.base_weights.hub import withheld_token
from ace_lora.captions.acestep import QUESTIONS, answer_style, parse_description, parse_transcription
from ace_lora.captions.ask import CAPTION_RATE, LONGEST_SECONDS, TEMPERATURES, SongFailed
from ace_lora.captions.caption import (
    MAX_LYRIC_TOKENS,
    Caption,
    UnusableAnswer,
    answer_tokens,
    caption_question,
    caption_schema,
    parse_caption,
)
from ace_lora.commands import StepFailed, WrongInput

if TYPE_CHECKING:
    import numpy as np
    import torch

INSTALL_COMMAND = "python start.py install captioning"
SYSTEM_PROMPT = "You are an expert in music who describes and transcribes songs accurately."

# bitsandbytes wants whole module names; short ones such as "audio_tower" match nothing.
_KEPT_IN_FULL = ["model.audio_tower", "model.visual", "lm_head"]
# Weights may take this share of the free memory of a card; the rest is for the song (7500 tokens), cache and logits.
_SHARE_FOR_WEIGHTS = 0.75


@dataclass
class QwenCaptioner:
    """A loaded model; `style` says which question it wants and how it answers."""

    model: Any
    tokenizer: Any
    extractor: Any
    grammar_tokenizer: Any
    style: str  # "json", "captioner" or "transcriber"
    seed: int

    longest_seconds = LONGEST_SECONDS

    @property
    def gives_tags(self) -> bool:
        """Whether tags can be asked of it: the transcriber writes lyrics only."""
        return self.style != "transcriber"

    @classmethod
    def load(cls, name: str, *, quantization: str, device: str, seed: int, say: Callable[[str], None]) -> QwenCaptioner:
        """Load a checkpoint by hub name or from a folder; `say` takes lines for the log.

        quantization: "auto", "nf4", "int8" or "none". device: as for `ace_lora.device.choose_device`.
        Raises StepFailed when it cannot be loaded, with the reason and what to do; WrongInput when the flags
        contradict the checkpoint.
        """
        from ace_lora.device import choose_device

        if importlib.util.find_spec("llguidance") is None:
            raise StepFailed(
                "--backend qwen needs the package llguidance, which is not installed. "
                f"Run: {INSTALL_COMMAND}, or use --backend analysis."
            )
        chosen = choose_device(device)
        say(f"Device: {chosen.reason}.")
        try:
            source = _checkpoint_folder(name, say)
            _quieten()
            config = _thinker_config(source)
            quantization = _settled_quantization(quantization, config, source, chosen.torch_device)
            say(f"Loading '{name}', {_QUANTIZATION_WORDS[quantization]} …")
            tokenizer, extractor = _load_processing(source)
            model = _load_thinker(source, config, quantization, chosen.torch_device, chosen.dtype)
        except (StepFailed, WrongInput):
            raise
        except Exception as error:
            # Libraries raise anything from OSError to RuntimeError here; the run ends all the same.
            raise StepFailed(_why_not_loaded(name, error)) from error
        megabytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6
        say(f"Loaded: {megabytes / 1000:.2f} GB of weights.")
        return cls(
            model=model,
            tokenizer=tokenizer,
            extractor=extractor,
            grammar_tokenizer=_grammar_tokenizer(tokenizer, config.text_config.vocab_size),
            style=answer_style(name),
            seed=seed,
        )

    def ask(self, samples: np.ndarray, *, tags: bool, lyrics: bool, language: str | None, attempt: int) -> Caption:
        """See `ace_lora.captions.ask.Captioner`."""
        if self.style == "json":
            answer = self._generate(
                samples,
                caption_question(tags=tags, lyrics=lyrics, language=language),
                attempt,
                limit=answer_tokens(tags=tags, lyrics=lyrics),
                schema=caption_schema(tags=tags, lyrics=lyrics),
            )
            return parse_caption(answer, tags=tags, lyrics=lyrics)
        answer = self._generate(samples, QUESTIONS[self.style], attempt, limit=MAX_LYRIC_TOKENS)
        if self.style == "transcriber":
            return parse_transcription(answer)
        described = parse_description(answer)
        if lyrics and described.has_vocal:
            raise SongFailed(
                "the captioner hears a voice and cannot write down lyrics. Put them beside the song as a .lrc or .txt "
                "file, or run --lyrics with --model ACE-Step/acestep-transcriber or a Qwen2.5-Omni model"
            )
        return described

    def _generate(
        self, samples: np.ndarray, question: str, attempt: int, *, limit: int, schema: dict[str, Any] | None = None
    ) -> str:
        """The model's answer to `question` about `samples` [N] at 16 kHz, at most `limit` tokens long.

        Raises UnusableAnswer when the answer does not end by itself, SongFailed when the memory does not suffice.
        """
        import torch

        from ace_lora.device import free_device_memory, is_out_of_memory

        inputs = self._inputs(samples, question)
        ends = self._end_tokens()
        processors = [] if schema is None else [_SchemaConstraint(self.grammar_tokenizer, schema, ends)]
        temperature = TEMPERATURES[attempt]
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.9, "top_k": 50}
            torch.manual_seed(self.seed + attempt)
        length = inputs["input_ids"].shape[1]
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=limit,
                    eos_token_id=ends,
                    pad_token_id=ends[0],
                    logits_processor=processors,
                    stopping_criteria=[_stop_at_loops(length)],
                )[0, length:].tolist()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_device_memory(self.model.device)
            raise SongFailed(
                f"the memory does not suffice for {len(samples) / CAPTION_RATE:.0f} s of audio "
                f"({' '.join(str(error).split())[:200]}). Close other programs that use it, or take a smaller --model "
                "such as Qwen/Qwen2.5-Omni-3B"
            ) from error
        if not output or output[-1] not in ends:
            reason = "does not end" if len(output) >= limit else "repeats itself without end"
            raise UnusableAnswer(f"the answer {reason} ({len(output)} tokens)")
        return self.tokenizer.decode(output, skip_special_tokens=True)

    def _inputs(self, samples: np.ndarray, question: str) -> dict[str, torch.Tensor]:
        """What `generate` wants, made without Qwen2_5OmniProcessor, which would need torchvision."""
        import torch

        features = self.extractor(
            samples, sampling_rate=CAPTION_RATE, padding="longest", return_attention_mask=True, return_tensors="pt"
        )
        frames = int(features["attention_mask"].sum())
        # Two convolutions with stride 2, the second as a pooling: 100 frames become 25 tokens a second.
        tokens = ((frames - 1) // 2 + 1 - 2) // 2 + 1
        text = (
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
            f"<|audio_bos|>{'<|AUDIO|>' * tokens}<|audio_eos|>{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        device = self.model.device
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            "input_features": features["input_features"].to(device, self.model.dtype),
            "feature_attention_mask": features["attention_mask"].to(device),
        }

    def _end_tokens(self) -> list[int]:
        """Ids that end an answer; the loaded generation settings cannot be relied on to name them."""
        vocabulary = self.tokenizer.get_vocab()
        names = ("<|im_end|>", "<|endoftext|>", self.tokenizer.eos_token)
        return list(dict.fromkeys(vocabulary[name] for name in names if name in vocabulary))


# --- Loading ---

_QUANTIZATION_WORDS = {
    "nf4": "in four bits (NF4)",
    "int8": "in eight bits",
    "none": "unquantised",
    "gptq": "in the four bits of the checkpoint (GPTQ)",
    "bitsandbytes": "as it was quantised with bitsandbytes",
}


def _checkpoint_folder(name: str, say: Callable[[str], None]) -> str:
    """The folder of a checkpoint; one of the model hub is downloaded into its cache where it is not there yet.

    Downloads resume and show their progress; HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        return str(folder)
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str) and not _offline():
        say(f"'{name}' is not in the download cache: downloading it, which for a 7B model are 22 GB …")
    withheld = withheld_token()
    if withheld:
        say(withheld)
    return snapshot_download(
        name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"], token=False if withheld else None
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _quieten() -> None:
    """Keep the libraries' own bars and remarks out of the log: what matters of them is said in `say` lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # It repeats for every token that it converts the format of the numbers.
    getLogger("bitsandbytes").setLevel("ERROR")
    # Two copies of a Rust thread pool would warn in every worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _thinker_config(source: str) -> Any:
    """The configuration of the thinker, of a whole Omni checkpoint or of a thinker alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type == "qwen2_5_omni":
        thinker = config.thinker_config
        # GPTQ checkpoints state it for the whole; the thinker alone would be loaded as if it were unquantised.
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None and getattr(thinker, "quantization_config", None) is None:
            thinker.quantization_config = quantised
        return thinker
    if config.model_type == "qwen2_5_omni_thinker":
        return config
    raise StepFailed(
        f"'{source}' is a {config.model_type} checkpoint; one of the Qwen2.5-Omni architecture is needed. "
        "Choose another --model, such as Qwen/Qwen2.5-Omni-7B or Qwen/Qwen2.5-Omni-3B."
    )


def _settled_quantization(requested: str, config: Any, source: str, device: torch.device) -> str:
    """`nf4`, `int8`, `none`, or the checkpoint's own; raises StepFailed or WrongInput when that cannot be had here."""
    own = _own_quantization(config)
    if own is not None:
        if requested not in ("auto", "none"):
            raise WrongInput(
                f"--quantization {requested} does not go with '{source}', which is quantised already ({own}). "
                "Leave --quantization out, or choose the unquantised checkpoint."
            )
        _require_own_quantization(own, source)
        return own
    if requested == "auto":
        # What fits runs faster unquantised; bitsandbytes knows no Apple GPU.
        requested = "none" if device.type == "mps" or _fits_unquantised(config, device) else "nf4"
    if requested in ("nf4", "int8"):
        _require_bitsandbytes(f"--quantization {requested}")
    return requested


def _require_bitsandbytes(what: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise StepFailed(
            f"{what} needs the package bitsandbytes, which is not installed. "
            f"Run: {INSTALL_COMMAND}, or use --quantization none with enough memory."
        )


def _own_quantization(config: Any) -> str | None:
    own = getattr(config, "quantization_config", None)
    if own is None:
        return None
    own = own if isinstance(own, dict) else own.to_dict()
    method = own.get("quant_method", "unknown")
    return str(getattr(method, "value", method)).lower()


def _require_own_quantization(method: str, source: str) -> None:
    if method == "bitsandbytes":
        _require_bitsandbytes(f"'{source}', which was quantised with bitsandbytes,")
        return
    if method == "gptq":
        missing = [name for name in ("gptqmodel", "optimum") if importlib.util.find_spec(name) is None]
        if not missing:
            return
        raise StepFailed(
            f"'{source}' is a GPTQ checkpoint, which needs {' and '.join(missing)} (not installed). gptqmodel wants "
            "another PyTorch than training does, so install it in an environment of its own and caption there, or use "
            "--model Qwen/Qwen2.5-Omni-7B, which is brought to four bits while it is loaded."
        )
    raise StepFailed(
        f"'{source}' is quantised with {method}, which is not supported; unquantised and GPTQ checkpoints are. "
        "Use --model Qwen/Qwen2.5-Omni-7B, which is brought to four bits while it is loaded."
    )


def _fits_unquantised(config: Any, device: torch.device) -> bool:
    import torch

    if device.type != "cuda":
        # In float32, as a CPU computes, even the 3B checkpoint would take 16 GB.
        return parameter_count(config) < 1e9
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * parameter_count(config) < _SHARE_FOR_WEIGHTS * free


def parameter_count(config: Any) -> int:
    """Parameters of a thinker without its vision part, from its configuration alone."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(_without_vision(config))
    return sum(
        parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("model.visual.")
    )


def _without_vision(config: Any) -> Any:
    """`config` with a vision part of no block, so that its weights are never read."""
    import copy

    config = copy.deepcopy(config)
    config.vision_config.depth = 0
    return config


def _load_processing(source: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    vocabulary = tokenizer.get_vocab()
    missing = [name for name in ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>") if name not in vocabulary]
    if missing:
        raise StepFailed(
            f"The tokenizer of '{source}' lacks {', '.join(missing)}, which Qwen2.5-Omni's has. "
            "Download the checkpoint again, or choose another --model."
        )
    return tokenizer, WhisperFeatureExtractor.from_pretrained(source)


def _load_thinker(source: str, config: Any, quantization: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The thinker on `device`, ready to generate, every weight of it read from the checkpoint."""
    import torch
    from transformers import BitsAndBytesConfig, Qwen2_5OmniThinkerForConditionalGeneration

    from ace_lora.device import free_device_memory

    options: dict[str, Any] = {"dtype": dtype}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_KEPT_IN_FULL,
        )
    elif quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_KEPT_IN_FULL)
    elif quantization == "gptq":
        # Its kernels know no bf16, and on a computer of few cores its start-up would take one thread per weight.
        options["dtype"] = torch.float16
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            source,
            config=_without_vision(config),
            attn_implementation="sdpa",
            device_map={"": device},
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    _check_loaded(source, report)
    # What is left of the vision part, its first and last layers, is never used for audio.
    del model.model.visual
    free_device_memory(device)
    model.lm_head.register_forward_pre_hook(_last_position)
    return model.eval()


def _last_position(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Only the last token's logits are ever used; for a prompt with 300 s of audio all would take 2.4 GB."""
    return (inputs[0][:, -1:],)


def _check_loaded(source: str, report: Any) -> None:
    """Raise StepFailed unless every weight but the vision part's came from the checkpoint.

    transformers only warns of weights that it had to make up, and the model would talk nonsense.
    """
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    for mismatch in sorted(report["mismatched_keys"], key=str):
        name, *shapes = mismatch if isinstance(mismatch, (tuple, list)) else (mismatch,)
        wrong.append(f"{name} has the wrong shape {' for '.join(str(tuple(shape)) for shape in shapes)}".rstrip())
    wrong += [str(message) for message in report.get("error_msgs", ())]
    wrong = [text for text in wrong if not text.startswith("model.visual.")]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise StepFailed(
            f"'{source}' does not hold all weights of the model ({shown}), so it would answer at random. "
            "The download may be incomplete or the checkpoint quantised in a way that is not known here: "
            "download it again, or choose another --model such as Qwen/Qwen2.5-Omni-7B."
        )


def _why_not_loaded(name: str, error: Exception) -> str:
    from ace_lora.device import is_out_of_memory

    reason = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error):
        return (
            f"The model '{name}' does not fit into the memory ({reason[:200]}). Close other programs that use it, "
            "or use --quantization nf4, --model Qwen/Qwen2.5-Omni-3B, or --backend analysis."
        )
    if _offline() and not Path(name).exists():
        return (
            f"The model '{name}' cannot be loaded: it is not in the download cache, and HF_HUB_OFFLINE forbids "
            "downloads. Unset HF_HUB_OFFLINE, give the folder of a downloaded checkpoint with --model, or use "
            "--backend analysis."
        )
    return (
        f"The model '{name}' cannot be loaded: {reason[:600]} A complete checkpoint of the Qwen2.5-Omni architecture "
        "is needed, from the model hub (HF_ENDPOINT names a mirror) or a folder. Check the name and the connection, "
        "or use --backend llamacpp or --backend analysis."
    )


# --- Generation ---


def _grammar_tokenizer(tokenizer: Any, vocabulary_size: int) -> Any:
    import llguidance.hf

    # The model has more outputs than the tokenizer has tokens: the mask must cover them all.
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=max(vocabulary_size, len(tokenizer)))


def _SchemaConstraint(grammar_tokenizer: Any, schema: dict[str, Any], ends: list[int]) -> Any:
    """A logits processor that leaves only tokens with which the answer can still become JSON of `schema`."""
    import llguidance
    import numpy as np
    import torch
    from transformers import LogitsProcessor

    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False}
    )

    class Constraint(LogitsProcessor):
        def __init__(self) -> None:
            self.matcher = llguidance.LLMatcher(grammar_tokenizer, grammar)
            self.seen: int | None = None

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.seen is not None:
                self.matcher.consume_tokens(input_ids[0, self.seen :].tolist())
            self.seen = input_ids.shape[1]
            if self.matcher.is_error():
                raise RuntimeError(f"the answer cannot be constrained: {self.matcher.get_error()}")
            allowed = np.zeros(scores.shape[1], dtype=bool)
            if self.matcher.is_stopped():
                allowed[ends] = True
            else:
                bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
                allowed[: len(bits)] = bits[: scores.shape[1]].astype(bool)
            return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))

    return Constraint()


def _stop_at_loops(prompt_length: int) -> Callable[..., Any]:
    """A stopping criterion: the last 240 tokens or more are one block of up to 64 tokens, twelve times or more.

    It only saves the minutes until the token limit; such an answer is not used either way.
    """
    import torch

    def stop(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        loop = False
        length = input_ids.shape[1] - prompt_length
        if length >= 240 and length % 32 == 0:
            tail = input_ids[0, prompt_length:].tolist()
            for size in range(1, 65):
                span = max(240, 12 * size)
                if length >= span + size and tail[-span:] == tail[-span - size : -size]:
                    loop = True
                    break
        return torch.full((input_ids.shape[0],), loop, dtype=torch.bool, device=input_ids.device)

    return stop
