"""Render songs with the base model and several LoRAs, to choose by ear: every song in every column, on the same noise.

Reads   a plan (`--plan`, JSON), the base weights (`--checkpoint_dir`), LoRAs and what else the plan names
Writes  OUTPUT_DIR/SONG__COLUMN__KEY.wav …, and samples.json, a table of them

    python -m ace_lora.preview.compare --plan plan.json --output_dir listen

A small plan, for the base model that `python -m ace_lora.tiny_base tiny` makes (add --checkpoint_dir tiny):

    {"songs": [{"prompt": "rock", "seconds": 1}], "columns": [{"name": "base"}], "settings": {"steps": 4}}

The networks are loaded once for all of them. KEY stands for the settings and the content of the LoRA: what is there
with the same settings is not rendered again, an interrupted rendering goes on, and nothing is overwritten.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import UnusableFile, free_bytes, read_json, stamp, write_json
from ace_lora.preview.plan import Column, Plan, PlannedSong, file_name, read_plan
from ace_lora.preview.save import BYTES_PER_SECOND, write_audio
from ace_lora.preview.settings import add_machine_flags, make_settings

if TYPE_CHECKING:
    from ace_lora.preview.render import Networks

TABLE = "samples.json"
TABLE_FORMAT = "ace-lora-samples"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.preview.compare",
        description=f"{__doc__}\nThe plan. {_plan_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plan", required=True, metavar="FILE", help="what to render (JSON)")
    parser.add_argument("--output_dir", required=True, help="folder of the samples and their table; made if needed")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes and how much memory, and end")
    add_machine_flags(parser)
    return parser.parse_args(argv)


def _plan_help() -> str:
    from ace_lora.preview import plan

    return plan.__doc__ or ""


def main(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    plan, table = check(args.plan, args.output_dir)

    from tqdm import tqdm

    from ace_lora.base_weights.download import ensure_base_weights
    from ace_lora.device import choose_device, free_device_bytes
    from ace_lora.preview.estimate import estimate
    from ace_lora.preview.render import PARTS, Networks, memory_failures_told, render

    device = choose_device(args.device, args.dtype)
    checkpoint_dir = Path(args.checkpoint_dir) if args.checkpoint_dir else None
    weights = ensure_base_weights(checkpoint_dir, PARTS)
    print(f"device: {device.reason}")
    settings = make_settings(plan.way, plan.settings)
    samples = planned_samples(plan, settings, Networks(weights, device))
    left = [sample for sample in samples if not (folder / sample["file"]).is_file()]
    for sample in samples:
        if sample not in left:
            print(f"there already: '{folder / sample['file']}'")
            _remember(table, sample)
    by_key = {sample["key"]: rendering for sample, rendering in zip(samples, _renderings(plan), strict=True)}
    renderings = [by_key[sample["key"]] for sample in left]
    if renderings:
        expected = estimate(renderings, settings, Networks(weights, device), free_device_bytes(device.torch_device))
        print(expected.sentence(len(renderings)))
    if args.estimate:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if renderings:
        networks = Networks(weights, device, expected.together)
        texts = [song.text for song in plan.songs]
        begun = time.monotonic()
        with memory_failures_told(), tqdm(total=len(renderings) * settings.steps, desc="sampling") as bar:
            for index, wave, rate in render(texts, renderings, settings, networks, lambda: bar.update()):
                path = folder / left[index]["file"]
                write_audio(wave, rate, path, bits=16 if plan.way == "comfyui" else 24)
                _remember(table, {**left[index], "made": stamp(), "peak": float(wave.abs().max())})
                write_json(folder / TABLE, table)
                print(f"song {index + 1}/{len(left)} wrote '{path}': {wave.shape[1] / rate:.1f} s")
        print(f"done: {len(left)} songs in {time.monotonic() - begun:.0f} s")
    if plan.training:
        _compare_with_training(plan, samples, table, folder, checkpoint_dir, {"device": device.torch_device})
    write_json(folder / TABLE, table)
    print(f"table: '{folder / TABLE}', {len(table['samples'])} samples")


def check(plan_path: str, output_dir: str) -> tuple[Plan, dict[str, Any]]:
    """The plan and the table that there is. Raises WrongInput with every problem that shows without a network."""
    problems = []
    plan = None
    try:
        plan = read_plan(Path(plan_path))
    except WrongInput as error:
        problems += error.problems
    folder = Path(output_dir)
    table: dict[str, Any] = {"format": TABLE_FORMAT, "version": 1, "samples": []}
    if not output_dir.strip():
        problems.append("--output_dir is empty, expected a folder. Give one, for example --output_dir listen.")
    elif folder.exists() and not folder.is_dir():
        problems.append(f"--output_dir '{folder}' is a file, expected a folder. Choose another name.")
    elif (folder / TABLE).exists():
        try:
            table = read_json(folder / TABLE)
        except (OSError, UnusableFile) as error:
            problems.append(f"The table of earlier samples cannot be used: {error} Move it away.")
        else:
            if not _is_table(table):
                problems.append(
                    f"'{folder / TABLE}' is no table of samples. Expected one that this command wrote. Move it away, "
                    "or choose another --output_dir."
                )
    if plan is not None and not problems:
        seconds = sum(song.seconds for song in plan.songs) * len(plan.columns)
        needed, free = int(seconds * BYTES_PER_SECOND[plan.format]), free_bytes(folder)
        if free < needed:
            problems.append(
                f"The samples need up to {needed:,} bytes and the disk of '{folder}' has {free:,} left. Expected room "
                'for them. Free the disk, choose another one, or "format": "mp3" in the plan.'
            )
    if problems or plan is None:
        raise WrongInput(problems)
    return plan, table


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("format") == TABLE_FORMAT
        and value.get("version") == 1
        and isinstance(value.get("samples"), list)
        and all(isinstance(sample, dict) and isinstance(sample.get("key"), str) for sample in value["samples"])
    )


def _remember(table: dict[str, Any], sample: dict[str, Any]) -> None:
    """Add a sample, or put what is new about it into its row."""
    for row in table["samples"]:
        if (row["key"], row.get("file")) == (sample["key"], sample["file"]):
            row.update(sample)
            return
    table["samples"].append(dict(sample))


def _pairs(plan: Plan) -> list[tuple[Column, int, PlannedSong]]:
    """In the order of rendering: column after column, so that each LoRA goes in once."""
    return [(column, number, song) for column in plan.columns for number, song in enumerate(plan.songs)]


def _renderings(plan: Plan) -> list[Any]:
    from ace_lora.preview.render import Rendering

    return [
        Rendering(number, song.seconds, song.seed, column.lora, column.strength, column.lora_scale)
        for column, number, song in _pairs(plan)
    ]


def planned_samples(plan: Plan, settings: Any, networks: Networks) -> list[dict[str, Any]]:
    """The rows of the table, without what is known only when a sample is there."""
    from ace_lora.records.fingerprints import digest, weights_identity

    base = {part: weights_identity(path) for part, path in sorted(networks.weights.items())}
    loras = {id(column.lora): weights_identity(column.lora.path) for column in plan.columns if column.lora}
    rows = []
    for column, _, song in _pairs(plan):
        made_from = {
            "as": plan.way,
            "settings": dataclasses.asdict(settings),
            "text": dataclasses.asdict(song.text),
            "seconds": song.seconds,
            "seed": song.seed,
            "lora": loras.get(id(column.lora), ""),
            "strength": column.strength if column.lora else 0.0,
            "lora_scale": column.lora_scale if column.lora else None,
            "base": base,
            "dtype": str(networks.device.dtype),
            "format": plan.format,
        }
        key = digest(made_from)[:16]
        name = "__".join((file_name(song.name), file_name(column.name), key[:8]))
        rows.append(
            {
                "key": key,
                "file": f"{name}.{plan.format}",
                "song": song.name,
                "column": column.name,
                "prompt": song.text.prompt,
                "seconds": song.seconds,
                "seed": song.seed,
                "lora": str(column.lora.path) if column.lora else "",
                "strength": made_from["strength"],
                "as": plan.way,
                "settings": made_from["settings"],
            }
        )
    return rows


def _compare_with_training(
    plan: Plan,
    samples: list[dict[str, Any]],
    table: dict[str, Any],
    folder: Path,
    checkpoint_dir: Path | None,
    on: dict[str, Any],
) -> None:
    """Put into the table how near each sample is to the songs of the training; says why where that cannot be told."""
    import torch

    from ace_lora.base_weights.find import find_base_weights, missing
    from ace_lora.device import free_device_memory
    from ace_lora.preview.nearness import nearness, sample_features, training_features
    from ace_lora.records.format import RecordError

    assert plan.training is not None
    left = [sample for sample in samples if not _row(table, sample).get("nearness")]
    if not left:
        return
    if missing(checkpoint_dir, ["mert"]):
        print(
            "nearness to the training songs: not measured, because MERT is not on this computer. "
            "`python -m ace_lora.base_weights` fetches it."
        )
        return
    try:
        songs = training_features(plan.training)
    except (RecordError, OSError) as error:
        raise StepFailed(
            f"The samples are there, but how near they are to the training was not measured: {error}"
        ) from error
    if not songs:
        print(
            f"nearness to the training songs: not measured, the records in '{plan.training}' hold no features of MERT."
        )
        return
    free_device_memory(on["device"])
    mert = find_base_weights(checkpoint_dir, ["mert"])["mert"]
    features = sample_features([folder / sample["file"] for sample in left], mert, {**on, "dtype": torch.float32})
    for sample in left:
        heard = features[folder / sample["file"]]
        if isinstance(heard, str):
            print(f"warning: {heard}")
            continue
        near = nearness(heard, songs)
        _remember(table, {**sample, "nearness": {**dataclasses.asdict(near), "sentence": near.sentence()}})
        print(f"{'warning: ' if near.copies else ''}'{sample['song']}', {sample['column']}: {near.sentence()}")


def _row(table: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    return next((row for row in table["samples"] if row.get("file") == sample["file"]), {})


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
