"""Give a LoRA to ComfyUI, and see that it arrives.

    python -m ace_lora.comfyui check out.safetensors --trained "checkpoints/epoch=9-step=2000_lora"
        opens the file by ComfyUI's rules: every key is known, the strength is that of the training, no layer is dead
    python -m ace_lora.comfyui workflow --lora_name my_song.safetensors --record Taudio/x_prep/song.safetensors \\
            --output my_song.json
        writes a ready workflow with the tags and lyrics of a song of the training (or --prompt and --lyrics)
    python -m ace_lora.comfyui deliver out.safetensors --name my_song --comfyui_dir ComfyUI --record …
        copies the LoRA to ComfyUI/models/loras, checks the copy there, and puts the workflow beside it

Status 1 when the check finds a fault. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.files import UnusableFile, read_text, replace_atomically, write_json

if TYPE_CHECKING:
    from ace_lora.comfyui.delivery import Delivery
    from ace_lora.comfyui.workflow import Workflow

_NAME = re.compile(r"[^\\/:*?\"<>|\x00-\x1f]{1,100}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.comfyui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="what ComfyUI makes of a LoRA file")
    workflow = actions.add_parser("workflow", help="write a workflow file")
    deliver = actions.add_parser("deliver", help="copy, check, and write the workflow")
    for action in (check, deliver):
        action.add_argument("lora", metavar="LORA", help="the .safetensors file that ComfyUI is to play")
        action.add_argument(
            "--trained", default="", help="checkpoint that it was made of, to compare the strength with"
        )
        action.add_argument("--json", action="store_true", help="print the result as one line of JSON too")
    for action in (workflow, deliver):
        song = action.add_argument_group("song")
        what = song.add_mutually_exclusive_group(required=True)
        what.add_argument("--record", default="", metavar="FILE", help="tags and lyrics of a song of the training")
        what.add_argument("--prompt", default="", help="tags separated by commas")
        song.add_argument("--lyrics", default="", metavar="FILE", help="text file of the lyrics (default: none)")
        song.add_argument("--lyric_language", default="", help="language code (default: told from the text)")
        song.add_argument("--seconds", type=float, default=120.0, help="1 to 1000 (default: 120)")
        song.add_argument("--seed", type=int, default=0, help="0 or more, below 2^53 (default: 0)")
    workflow.add_argument("--lora_name", required=True, help="file name of the LoRA below models/loras")
    workflow.add_argument("--output", required=True, metavar="JSON", help="file to write; must not exist yet")
    workflow.add_argument("--api", action="store_true", help="the form for /prompt instead of the window's")
    deliver.add_argument("--name", required=True, help="name that the LoRA gets in ComfyUI, without .safetensors")
    deliver.add_argument("--comfyui_dir", required=True, help="ComfyUI's folder, which holds models/loras")
    for action in (check, workflow, deliver):
        action.add_argument(
            "--checkpoint_dir", default=None, help="folder of the base weights (default: download cache)"
        )
        action.add_argument(
            "--transformer",
            default="",
            metavar="FOLDER",
            help="layers of another transformer than the published one, whose sizes ComfyUI has built in (for tests)",
        )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.action == "check":
        _require_good(_checked(args, Path(args.lora)))
    elif args.action == "workflow":
        problems = [*_song_problems(args), *_output_problems(Path(args.output))]
        if problems:
            raise WrongInput(problems)
        write_workflow(_workflow(args, args.lora_name), Path(args.output), api=args.api)
    else:
        _deliver(args)


def _checked(args: argparse.Namespace, path: Path) -> Delivery:
    from ace_lora.comfyui.delivery import check_delivery, published_layers
    from ace_lora.lora.file import read_lora_file

    trained = read_lora_file(Path(args.trained)) if args.trained else None
    folder = Path(args.transformer) if args.transformer else None
    result = check_delivery(path, published_layers(folder), trained)
    print_delivery(result)
    if args.json:
        print(json.dumps(result.as_json(), ensure_ascii=False))
    return result


def print_delivery(result: Delivery) -> None:
    """The table, what is wrong, and one sentence."""
    print(f"{'layers':<16} {'count':>6} {'rank':>10} {'scale':>10} {'strength':>9} {'norms / median':>18} {'dead':>5}")
    for row in result.table():
        ranks, scales = (
            f"{values[0]:g}" + ("…" if len(values) > 1 else "") for values in (row["ranks"], row["scales"])
        )
        strength = "?" if row["strength"] is None else f"{row['strength']:.3f}"
        norms = f"{row['weakest']:.3g} to {row['strongest']:.3g}"
        print(
            f"{row['kind']:<16} {row['layers']:>6} {ranks:>10} {scales:>10} {strength:>9} {norms:>18} {row['dead']:>5}"
        )
    for what, names in (
        ("keys that ComfyUI does not know", result.unmapped),
        ("layers with values that are no numbers", result.not_finite),
        ("layers that do nothing", result.dead),
        ("faults", result.misfits),
    ):
        if names:
            print(f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)})")
    print(result.sentence())


def _require_good(result: Delivery) -> None:
    if not result.good:
        raise StepFailed(
            f"'{result.path}' is not as it should be: {result.sentence()} Expected every layer at the strength of the "
            "training. Make the file again with add_alpha_in_lora.py from the checkpoint."
        )


# --- Workflow ---


def _song_problems(args: argparse.Namespace) -> list[str]:
    from ace_lora.comfyui.workflow import LARGEST_SEED, LONGEST_SECONDS

    problems = []
    if not (math.isfinite(args.seconds) and 1 <= args.seconds <= LONGEST_SECONDS):
        problems.append(f"--seconds is {args.seconds}, expected 1 to 1000. Change the number.")
    if not 0 <= args.seed <= LARGEST_SEED:
        problems.append(f"--seed is {args.seed}, expected 0 or more, below 2^53. Change the number.")
    if args.record and args.lyrics:
        problems.append(
            f"--record '{args.record}' brings the lyrics of its song, and --lyrics '{args.lyrics}' others. Expected "
            "one of them. Remove --lyrics, or give tags with --prompt."
        )
    return problems


def _output_problems(output: Path) -> list[str]:
    if output.suffix.lower() != ".json":
        return [f"--output '{output}' does not end with .json, the format that is written. Change the name."]
    if output.exists():
        return [f"'{output}' exists and would be overwritten. Expected a new name. Choose another, or move it away."]
    return []


def _workflow(args: argparse.Namespace, lora_name: str) -> Workflow:
    """The workflow of the flags; prints what cannot be written. Raises WrongInput."""
    from ace_lora.base_weights.find import find_base_weights
    from ace_lora.comfyui.workflow import Workflow, written_lyrics, written_tags
    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import MissingLyricSupport, load_vocabulary
    from ace_lora.records.format import RecordError
    from ace_lora.records.record import read_record

    found = find_base_weights(Path(args.checkpoint_dir) if args.checkpoint_dir else None, ["lyric_vocabulary"])
    if "lyric_vocabulary" not in found:
        raise WrongInput(
            "The lyric vocabulary of ACE-Step is not on this computer. Expected it beside the base weights. "
            "Run: python -m ace_lora.base_weights --parts lyric_vocabulary"
        )
    vocabulary = load_vocabulary(found["lyric_vocabulary"], None)
    try:
        if args.record:
            record = read_record(Path(args.record), ssl=False)
            prompt, ids = str(record.metadata.get("prompt") or ""), record.lyric_token_ids.tolist()
            if not prompt:
                raise WrongInput(f"The record '{args.record}' does not say its prompt. Expected one. Use --prompt.")
        else:
            tokens = LyricTokenizer(vocabulary).tokenize(
                read_text(Path(args.lyrics)) if args.lyrics else "", args.lyric_language or None
            )
            prompt, ids = args.prompt, tokens.ids
            for warning in tokens.warnings:
                print(f"warning: {warning}")
    except (RecordError, MissingLyricSupport, UnusableFile) as error:
        raise WrongInput(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise WrongInput(
            f"'{args.record or args.lyrics}' cannot be read: {getattr(error, 'strerror', None) or error}. Expected a "
            f"{'record of a training' if args.record else 'text file in UTF-8'}. Correct the name or the file."
        ) from error
    tags, notes = written_tags(prompt)
    lyrics, more = written_lyrics(ids, vocabulary)
    for note in [*notes, *more]:
        print(f"note: {note}")
    return Workflow(lora_name, tags, lyrics, seconds=round(args.seconds, 1), seed=args.seed)


def write_workflow(workflow: Workflow, output: Path, *, api: bool = False) -> None:
    from ace_lora.comfyui.workflow import api_form, window_form

    write_json(output, api_form(workflow) if api else window_form(workflow))
    print(f"wrote '{output}': open it in ComfyUI's window" if not api else f"wrote '{output}'")


# --- Delivery ---


def _deliver(args: argparse.Namespace) -> None:
    source, home = Path(args.lora), Path(args.comfyui_dir)
    problems = _song_problems(args)
    loras = home / "models" / "loras"
    if not loras.is_dir():
        problems.append(
            f"--comfyui_dir '{home}' has no folder models/loras. Expected the folder that ComfyUI runs in. Correct it."
        )
    if not _NAME.fullmatch(args.name) or args.name != args.name.strip(" ."):
        problems.append(f"--name '{args.name}' cannot be the name of a file. Expected letters and digits. Change it.")
    copy, workflow_path = loras / f"{args.name}.safetensors", loras / f"{args.name}.json"
    if copy.exists():
        problems.append(
            f"'{copy}' exists and would be overwritten. Expected a new name. Choose another --name, or move it away."
        )
    problems += _output_problems(workflow_path)
    if not source.is_file():
        problems.append(f"No LoRA file at '{source}'. Expected a .safetensors file. Check the path.")
    if problems:
        raise WrongInput(problems)
    workflow = _workflow(args, copy.name)
    with replace_atomically(copy) as temporary:
        shutil.copyfile(source, temporary)
    print(f"copied to '{copy}'")
    result = _checked(args, copy)
    write_workflow(workflow, workflow_path)
    _require_good(result)


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
