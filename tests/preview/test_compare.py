"""Base model and LoRAs side by side on the tiny base: one model for all, the table, going on, what is near."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from ace_lora.commands import run_script
from ace_lora.device import choose_device
from ace_lora.lora.file import WEIGHTS_NAME, save_lora
from ace_lora.lora.layers import adapter_shapes, target_layers
from ace_lora.preview import __main__ as preview
from ace_lora.preview import compare
from ace_lora.preview import render as rendering
from ace_lora.preview.estimate import estimate
from ace_lora.preview.render import PARTS, Networks, Rendering
from ace_lora.records.format import Record
from ace_lora.records.record import write_record
from ace_lora.tiny_base.make import make_tiny_base
from ace_lora.v1.sampling import SamplingSettings
from ace_lora.v1.transformer import load_transformer

CONFIG = {"r": 4, "lora_alpha": 1, "use_rslora": True, "target_modules": ["to_q", "to_v", "linear_q"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny base and four checkpoints of a training."""
    home = tmp_path_factory.mktemp("home")
    make_tiny_base(home / "base")
    transformer = load_transformer(home / "base" / "ace_step_transformer", dtype=torch.float32, device="cpu")
    for number in range(1, 5):
        generator = torch.Generator().manual_seed(number)
        folder = home / f"epoch=0-step={number}_lora"
        folder.mkdir()
        shapes = adapter_shapes(target_layers(transformer, CONFIG), 4)
        tensors = {key: 0.5 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_lora(folder / WEIGHTS_NAME, tensors, CONFIG)
    return home


def plan_of(home, name="plan.json", loras=4, **more):
    columns = [{"name": "base"}]
    columns += [{"name": f"step {n}", "lora": f"epoch=0-step={n}_lora"} for n in range(1, loras + 1)]
    plan = {
        "songs": [{"name": "夜 rock", "prompt": "rock, drums", "lyrics": "[verse]\nla", "seconds": 0.5, "seed": 7}],
        "columns": columns,
        "settings": {"steps": 2},
        **more,
    }
    path = home / name
    path.write_text(json.dumps(plan), encoding="utf-8")
    return path


def run(home, plan, output, *more):
    argv = ["--plan", str(plan), "--output_dir", str(output), "--checkpoint_dir", str(home / "base")]
    return run_script(compare.main, compare.parse_args([*argv, "--device", "cpu", *more]))


@pytest.fixture
def loads(monkeypatch):
    """How often each network is loaded."""
    counts = dict.fromkeys(("load_text_encoder", "load_transformer", "load_latent_decoder", "load_vocoder"), 0)

    def counted(name, load):
        def loading(*arguments, **options):
            counts[name] += 1
            return load(*arguments, **options)

        return loading

    for name in counts:
        monkeypatch.setattr(rendering, name, counted(name, getattr(rendering, name)))
    return counts


def test_five_columns_are_rendered_by_one_model_on_the_same_noise(home, tmp_path, loads, capsys):
    output = tmp_path / "试听 1"
    assert run(home, plan_of(home), output) == 0
    assert set(loads.values()) == {1}
    printed = capsys.readouterr().out
    assert "estimate: 5 songs in about" in printed and "song 5/5 wrote" in printed
    table = json.loads((output / "samples.json").read_text(encoding="utf-8"))
    assert [row["column"] for row in table["samples"]] == ["base", "step 1", "step 2", "step 3", "step 4"]
    waves = [soundfile.read(output / row["file"], dtype="float32")[0] for row in table["samples"]]
    assert {path.name for path in output.iterdir()} == {"samples.json", *(row["file"] for row in table["samples"])}
    assert all(np.isfinite(wave).all() and wave.shape == waves[0].shape for wave in waves)
    assert not any(np.array_equal(a, b) for n, a in enumerate(waves) for b in waves[:n])
    row = table["samples"][3]
    assert row["song"] == "夜 rock" and row["seed"] == 7 and row["lora"].endswith(WEIGHTS_NAME)
    assert row["settings"]["steps"] == 2 and row["peak"] == pytest.approx(np.abs(waves[3]).max())

    # Each is the song that the command for one song makes.
    (tmp_path / "l.txt").write_text("[verse]\nla", encoding="utf-8")
    argv = ["--prompt", "rock, drums", "--lyrics", str(tmp_path / "l.txt"), "--seconds", "0.5", "--seed", "7"]
    argv += ["--steps", "2", "--lora", str(home / "epoch=0-step=3_lora"), "--checkpoint_dir", str(home / "base")]
    argv += ["--device", "cpu", "--output", str(tmp_path / "one.wav")]
    assert run_script(preview.main, preview.parse_args(argv)) == 0
    assert (tmp_path / "one.wav").read_bytes() == (output / row["file"]).read_bytes()

    # A second time nothing is loaded; what went missing is made again, and equal.
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    loads.update(dict.fromkeys(loads, 0))
    assert run(home, plan_of(home), output) == 0
    assert not any(loads.values())
    (output / row["file"]).unlink()
    assert run(home, plan_of(home), output) == 0
    assert loads["load_transformer"] == 1 and (output / row["file"]).read_bytes() == before[row["file"]]
    assert len(json.loads((output / "samples.json").read_text(encoding="utf-8"))["samples"]) == 5


def test_an_interrupted_rendering_goes_on(home, tmp_path, monkeypatch):
    written = []

    def write_two(wave, rate, path, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(wave, rate, path, **options)

    real = compare.write_audio
    monkeypatch.setattr(compare, "write_audio", write_two)
    assert run(home, plan_of(home, loras=2), tmp_path) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*written, "samples.json"])
    monkeypatch.setattr(compare, "write_audio", lambda *given, **options: (written.append(1), real(*given, **options)))
    assert run(home, plan_of(home, loras=2), tmp_path) == 0
    assert len(written) == 3
    assert len(json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))["samples"]) == 3


def test_other_settings_and_another_lora_make_another_sample_beside(home, tmp_path):
    assert run(home, plan_of(home, loras=0), tmp_path) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".wav"}
    assert run(home, plan_of(home, loras=0, settings={"steps": 3}), tmp_path) == 0
    now = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".wav"}
    assert len(now) == 2 and first.items() <= now.items()
    samples = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert [row["settings"]["steps"] for row in samples] == [2, 3]


def test_on_a_small_card_the_networks_take_turns_and_the_songs_stay_the_same(home):
    weights = {"text_encoder": "umt5-base", "lyric_vocabulary": "vocab.json", "transformer": "ace_step_transformer"}
    weights |= {"dcae": "music_dcae_f8c8", "vocoder": "music_vocoder"}
    weights = {part: home / "base" / name for part, name in weights.items()}
    device = choose_device("cpu")
    moves = []
    songs = [Rendering(0, 0.2, 1), Rendering(0, 0.2, 2, strength=0.5), Rendering(0, 0.2, 3, strength=0.5)]

    def rendered(together):
        texts = [rendering.SongText("rock")]
        return list(rendering.render(texts, songs, SamplingSettings(steps=1), Networks(weights, device, together)))

    apart, original = [], torch.nn.Module.to

    def moved(module, *arguments, **options):
        moves.append((type(module).__name__, str(arguments[0])))
        return original(module, *arguments, **options)

    torch.nn.Module.to = moved
    try:
        apart = rendered(False)
    finally:
        torch.nn.Module.to = original
    # The transformer leaves before the decoders come, and comes back when they have gone.
    transformer, decoders = "ACEStepTransformer", "ModuleList"
    assert [name for name, _ in moves] == [transformer, decoders, decoders, transformer, decoders]
    for (_, a, rate), (_, b, _) in zip(apart, rendered(True), strict=True):
        assert torch.equal(a, b) and rate == 48_000
    assert [index for index, _, _ in apart] == [0, 1, 2]


def test_time_and_memory_are_estimated_without_loading(home, tmp_path, loads, capsys):
    assert run(home, plan_of(home), tmp_path / "none", "--estimate") == 0
    assert not any(loads.values()) and not (tmp_path / "none").exists()
    assert "estimate: 5 songs in about" in capsys.readouterr().out
    weights = {part: path for part, path in compare_weights(home).items()}
    networks = Networks(weights, choose_device("cpu"))
    long, short = (
        estimate([Rendering(0, seconds, 0)], SamplingSettings(), networks, 8_000_000_000) for seconds in (240.0, 30.0)
    )
    assert long.seconds > 5 * short.seconds and long.sampling_bytes > short.sampling_bytes
    assert short.together and short.fits
    small = estimate([Rendering(0, 30.0, 0)], SamplingSettings(), networks, short.sampling_bytes)
    assert small.fits and not small.together and "take turns" in small.sentence(1)
    tiny = estimate([Rendering(0, 30.0, 0)], SamplingSettings(), networks, 1000)
    assert not tiny.fits and "too little memory" in tiny.sentence(1)


def compare_weights(home):
    from ace_lora.base_weights.find import find_base_weights

    return find_base_weights(home / "base", PARTS)


def test_samples_are_compared_with_the_songs_of_the_training(home, tmp_path, capsys):
    records = tmp_path / "prep"
    records.mkdir()
    for number in range(2):
        mert = torch.randn(400, 32, generator=torch.Generator().manual_seed(number)) + number
        record = Record(f"s{number}", torch.zeros(8, 16, 4), torch.tensor([1]), torch.tensor([0]), mert=mert)
        write_record(records / f"s{number}.safetensors", record)
    plan = plan_of(home, loras=1, training=str(records), format="flac")
    assert run(home, plan, tmp_path / "out") == 0
    samples = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert len(samples) == 2
    for row in samples:
        assert row["nearness"]["song"] in ("s0", "s1") and row["nearness"]["distance"] > 0
        assert row["nearness"]["sentence"] in capsys.readouterr().out or row["nearness"]["sentence"]


def test_all_problems_are_said_at_once(home, tmp_path, monkeypatch, capsys):
    (tmp_path / "samples.json").write_text("{}", encoding="utf-8")
    plan = plan_of(home, settings={"steps": 0})
    assert run(home, plan, tmp_path) == 2
    error = capsys.readouterr().err
    assert "steps is 0" in error and "is no table of samples" in error and "Traceback" not in error
    assert run(home, plan, "") == 2
    assert "--output_dir is empty" in capsys.readouterr().err
    monkeypatch.setattr(compare, "free_bytes", lambda path: 10)
    assert run(home, plan_of(home), tmp_path / "new") == 2
    assert "has 10 left" in capsys.readouterr().err
