"""Qwen2.5-Omni with a tiny random thinker, for real: `python -m pytest tests/test_captioner_qwen.py`.

Loading, tokenizer, audio features, constrained generation and the four-bit path are those of the 7B checkpoint.
Whatever the random model says must be JSON of the schema; what may be written of it is tests/test_captions.py's.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")

import torch
from safetensors.torch import load_file, save_file

from ace_lora.captions.ask import LONGEST_SECONDS, SongFailed
from ace_lora.captions.caption import (
    UnusableAnswer,
    answer_tokens,
    caption_question,
    caption_schema,
)
from ace_lora.captions.qwen import (
    QwenCaptioner,
    _grammar_tokenizer,
    _SchemaConstraint,
    _stop_at_loops,
    parameter_count,
)
from ace_lora.commands import StepFailed, WrongInput
from tests.tiny_qwen import make_config, make_thinker, make_whole_omni


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "thinker"
    make_thinker(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(thinker):
    return load(thinker)


def load(folder, quantization="none", say=lambda text: None) -> QwenCaptioner:
    return QwenCaptioner.load(str(folder), quantization=quantization, device="cpu", seed=0, say=say)


def sound(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=int(seconds * 16000)).astype(np.float32)


def answer(captioner: QwenCaptioner, seconds=2.0, tags=True, lyrics=True, attempt=1) -> str:
    """What the model says, before it is judged."""
    return captioner._generate(
        sound(seconds),
        caption_question(tags=tags, lyrics=lyrics),
        attempt,
        limit=answer_tokens(tags=True, lyrics=lyrics),
        schema=caption_schema(tags=tags, lyrics=lyrics),
    )


def assert_matches(said: dict, schema: dict) -> None:
    """A JSON schema checker for what `caption_schema` uses of it."""
    assert list(said) == list(schema["properties"])
    for name, field in schema["properties"].items():
        if field["type"] == "boolean":
            assert isinstance(said[name], bool)
            continue
        assert field["minItems"] <= len(said[name]) <= field["maxItems"]
        for item in said[name]:
            assert re.search(field["items"]["pattern"], item), (name, item)


# --- Answers ---


@pytest.mark.parametrize(("tags", "lyrics"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_whatever_a_random_model_says_is_json_of_the_schema(captioner, tags, lyrics, seed):
    captioner.seed = seed
    said = json.loads(answer(captioner, tags=tags, lyrics=lyrics))
    assert_matches(said, caption_schema(tags=tags, lyrics=lyrics))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_same_in_four_and_eight_bits(thinker, quantization):
    import bitsandbytes

    captioner = load(thinker, quantization)
    kind = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[quantization]
    quantised = {name for name, module in captioner.model.named_modules() if isinstance(module, kind)}
    # The decoder, and nothing but the decoder.
    assert len(quantised) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    if quantization == "nf4":
        state = captioner.model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
    said = json.loads(answer(captioner))
    assert_matches(said, caption_schema(tags=True, lyrics=True))


def test_the_first_answer_is_the_same_each_time_and_attempts_differ(captioner):
    captioner.seed = 0
    first, second = answer(captioner, attempt=1, lyrics=False), answer(captioner, attempt=2, lyrics=False)
    assert first != second
    assert answer(captioner, attempt=1, lyrics=False) == first
    assert sampled_or_reason(captioner, 0) == sampled_or_reason(captioner, 0)


def sampled_or_reason(captioner, attempt) -> str:
    try:
        return answer(captioner, attempt=attempt, lyrics=False)
    except UnusableAnswer as error:
        return str(error)


def test_what_it_says_becomes_a_caption(captioner):
    refused = []
    for captioner.seed in range(40):  # what a random model says seldom passes the gate
        try:
            caption = captioner.ask(sound(2), tags=True, lyrics=True, language="en", attempt=captioner.seed % 4)
        except UnusableAnswer as error:
            refused.append(str(error))
            continue
        assert len(caption.tags) >= 2
        assert list(caption.tags) == sorted(set(caption.tags))
        assert isinstance(caption.has_vocal, bool)
        assert bool(caption.lyrics) == caption.has_vocal
        break
    else:
        raise AssertionError(refused)


def test_unconstrained_a_random_model_says_nothing_of_use(captioner):
    with pytest.raises(UnusableAnswer, match=r"does not end|repeats itself"):
        captioner._generate(sound(1), "Describe this.", 1, limit=64)


def test_a_loop_ends_before_the_limit():
    stop = _stop_at_loops(prompt_length=5)
    prompt = list(range(5))

    def stops(answer: list[int]) -> bool:
        return bool(stop(torch.tensor([prompt + answer]), None)[0])

    line = list(range(100, 117))
    assert stops((line * 40)[:320])
    assert stops([7] * 256)
    assert not stops((line * 12)[:192])
    assert not stops(list(range(320)))
    # A chorus of 100 tokens sung three times is music.
    assert not stops((list(range(100)) * 4)[:320])


def test_an_answer_that_does_not_end_is_not_used(captioner):
    captioner.seed = 0
    with pytest.raises(UnusableAnswer, match=r"does not end \(12 tokens\)"):
        captioner._generate(sound(1), "?", 1, limit=12, schema=caption_schema(tags=True, lyrics=False))


def test_only_tokens_that_lead_to_the_schema_are_left(captioner):
    ends = captioner._end_tokens()
    constraint = _SchemaConstraint(captioner.grammar_tokenizer, caption_schema(tags=False, lyrics=False), ends)
    ids = torch.tensor([[1, 2, 3]])
    scores = constraint(ids, torch.zeros(1, 512))
    allowed = [captioner.tokenizer.decode([index]) for index in torch.isfinite(scores[0]).nonzero()[:, 0].tolist()]
    assert allowed
    assert all('{"cannot_tell"'.startswith(text) for text in allowed)


def test_the_end_of_an_answer_is_known(captioner):
    names = [captioner.tokenizer.decode([index]) for index in captioner._end_tokens()]
    assert names == ["<|im_end|>", "<|endoftext|>"]


# --- What it hears ---


@pytest.mark.parametrize(("seconds", "tokens"), [(1, 25), (2, 50), (0.5, 12), (30, 750), (300, 7500)])
def test_25_audio_tokens_a_second(captioner, seconds, tokens):
    inputs = captioner._inputs(sound(seconds), "?")
    audio = captioner.model.config.audio_token_id
    assert (inputs["input_ids"] == audio).sum() == tokens
    assert inputs["input_features"].shape == (1, 128, seconds * 100)
    assert inputs["feature_attention_mask"].sum() == seconds * 100


def test_the_model_takes_exactly_that_many(captioner):
    with torch.inference_mode():
        for seconds in (0.73, 1, 1.005, 2.9999, 5.55):
            inputs = captioner._inputs(sound(seconds), "?")
            assert captioner.model.model(**inputs).last_hidden_state.shape[:2] == inputs["input_ids"].shape


def test_logits_are_computed_for_the_last_token_only(captioner):
    with torch.inference_mode():
        assert captioner.model(**captioner._inputs(sound(1), "?")).logits.shape == (1, 1, 512)


def test_different_sounds_give_different_answers(captioner):
    with torch.inference_mode():
        loud = captioner.model(**captioner._inputs(sound(1), "?")).logits
        quiet = captioner.model(**captioner._inputs(sound(1) * 0 + 0.01, "?")).logits
    assert not torch.equal(loud, quiet)


def test_nothing_of_300_seconds_is_cut(captioner):
    assert captioner.longest_seconds == LONGEST_SECONDS == 300
    frames = captioner._inputs(sound(LONGEST_SECONDS), "?")["feature_attention_mask"].sum()
    assert frames == 30000


# --- Loading ---


def test_a_whole_omni_checkpoint_gives_its_thinker_only(thinker, captioner, tmp_path):
    make_whole_omni(tmp_path / "omni", thinker)
    omni = load(tmp_path / "omni")
    names = set(omni.model.state_dict())
    assert names == set(captioner.model.state_dict())
    assert not any(part in name for name in names for part in ("talker", "token2wav", "visual"))
    for name, tensor in captioner.model.state_dict().items():
        assert torch.equal(omni.model.state_dict()[name], tensor), name
    assert omni.model.config._attn_implementation == "sdpa"


def test_the_vision_part_is_gone(captioner):
    assert not hasattr(captioner.model.model, "visual")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_checkpoint_without_its_decoder_weights_is_refused(thinker, tmp_path, quantization):
    """GPTQ layouts end like this: the names differ, transformers warns, and the decoder is random."""
    broken = copy(thinker, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    renamed = {
        re.sub(r"(layers\.\d+\.mlp\.\w+)\.weight", r"\1.qweight", name): value for name, value in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match=r"does not hold all weights.*mlp\.\w+\.weight is missing.*and 3 more"):
        load(broken, quantization)


def test_a_checkpoint_without_its_audio_weights_is_refused(thinker, tmp_path):
    broken = copy(thinker, tmp_path / "broken")
    tensors = {k: v for k, v in load_file(broken / "model.safetensors").items() if "audio_tower.proj" not in k}
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match=r"audio_tower\.proj\.bias is missing"):
        load(broken)


def test_a_checkpoint_with_another_shape_is_refused(thinker, tmp_path):
    broken = copy(thinker, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name] = torch.zeros(3, 4)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed, match=r"does not hold all weights|cannot be loaded"):
        load(broken)


def test_a_damaged_file(thinker, tmp_path):
    broken = copy(thinker, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(StepFailed, match=r"cannot be loaded: .*Check the name"):
        load(broken)


def test_another_architecture(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(StepFailed, match=r"is a llama checkpoint; one of the Qwen2\.5-Omni architecture is needed"):
        load(tmp_path)


def test_a_tokenizer_without_audio(thinker, tmp_path):
    broken = copy(thinker, tmp_path / "broken")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (broken / name).read_text("utf-8")
        (broken / name).write_text(text.replace("<|AUDIO|>", "<|SOUND|>"), "utf-8")
    with pytest.raises(StepFailed, match=r"lacks <\|AUDIO\|>"):
        load(broken)


@pytest.fixture
def offline_cache(monkeypatch, tmp_path):
    """An empty download cache that nothing can be added to."""
    import huggingface_hub.constants

    # Read from the environment when the library is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_that_is_not_there_offline(offline_cache):
    said = []
    with pytest.raises(StepFailed, match="HF_HUB_OFFLINE forbids downloads"):
        load("nobody/no-such-model", say=said.append)
    assert not any("downloading" in text for text in said)


def test_a_model_in_the_download_cache(offline_cache, thinker):
    repository = offline_cache / "models--Owner--Tiny-Omni"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123", "utf-8")
    copy(thinker, repository / "snapshots" / "abc123")
    assert load("Owner/Tiny-Omni").style == "json"


def quantised_config(thinker, folder, method: str):
    """`thinker` with a `quantization_config` that says `method`."""
    copy(thinker, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_gptq_says_what_it_needs(thinker, tmp_path):
    pytest.importorskip("bitsandbytes")
    import importlib.util

    if importlib.util.find_spec("gptqmodel") and importlib.util.find_spec("optimum"):
        pytest.skip("gptqmodel is installed here")
    with pytest.raises(StepFailed, match=r"GPTQ checkpoint, which needs .*optimum.*an environment of its own"):
        load(quantised_config(thinker, tmp_path / "gptq", "gptq"), "auto")


def test_gptq_of_a_whole_omni_checkpoint_is_noticed(thinker, tmp_path):
    make_whole_omni(tmp_path / "omni", thinker)
    config = json.loads((tmp_path / "omni" / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "omni" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(WrongInput, match=r"--quantization nf4 does not go with .*quantised already \(gptq\)"):
        load(tmp_path / "omni", "nf4")


def test_other_quantisations_are_refused(thinker, tmp_path):
    with pytest.raises(StepFailed, match="is quantised with awq, which is not supported"):
        load(quantised_config(thinker, tmp_path / "awq", "awq"), "auto")


def test_a_checkpoint_saved_in_four_bits_loads_as_it_is(thinker, tmp_path):
    first = load(thinker, "nf4")
    first.model.save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "saved" / name).write_bytes((thinker / name).read_bytes())
    second = load(tmp_path / "saved", "auto")
    assert answer(second, lyrics=False) == answer(first, lyrics=False)


def test_half_precision(thinker):
    """bf16 and fp16 are what cards compute in; the numbers are those of the loaded dtype, not of float32."""
    from ace_lora.captions.qwen import _load_processing, _load_thinker, _thinker_config

    config = _thinker_config(str(thinker))
    tokenizer, extractor = _load_processing(str(thinker))
    for dtype in (torch.bfloat16, torch.float16):
        model = _load_thinker(str(thinker), config, "none", torch.device("cpu"), dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        grammar = _grammar_tokenizer(tokenizer, config.text_config.vocab_size)
        captioner = QwenCaptioner(model, tokenizer, extractor, grammar, "json", 0)
        assert_matches(json.loads(answer(captioner, lyrics=False)), caption_schema(tags=True, lyrics=False))


def test_parameters_are_counted_without_the_vision_part(thinker, captioner):
    loaded = sum(parameter.numel() for parameter in captioner.model.parameters())
    assert parameter_count(make_config(captioner.tokenizer)) == loaded


def copy(source, target):
    import shutil

    return shutil.copytree(source, target)


def test_a_full_main_memory_fails_the_song_and_other_errors_stay_errors(captioner, monkeypatch):
    monkeypatch.setattr(captioner.model, "generate", lambda **_: torch.empty(1 << 60))
    with pytest.raises(SongFailed, match=r"the memory does not suffice for 2 s of audio .*Omni-3B"):
        answer(captioner)
    monkeypatch.setattr(captioner.model, "generate", lambda **_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        answer(captioner)
