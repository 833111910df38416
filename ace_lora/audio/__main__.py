"""Look at the sound of the songs in a folder, before a training learns their faults.

python -m ace_lora.audio check FOLDER                    what is odd, what it does to a training, what helps
python -m ace_lora.audio check FOLDER --language zh      the same in Chinese
python -m ace_lora.audio check FOLDER --json             one line of JSON per song, for programs
python -m ace_lora.audio repair FOLDER --output_dir DIR  mended copies as FLAC; the songs themselves stay as they are

Status 0 when every song can be trained on, 1 when one cannot.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ace_lora.commands import StepFailed, WrongInput, run_script
from ace_lora.songs import SongFiles, overlooked_music, scan_songs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.audio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what is odd in the songs of a folder")
    check.add_argument("folder", type=Path, help="folder of songs")
    check.add_argument("--language", choices=("en", "zh"), default="en", help="of the sentences (default: en)")
    check.add_argument("--json", action="store_true", help="print one JSON line per song, with both languages")
    repair = commands.add_parser("repair", help="write mended copies of the songs for which there is a repair")
    repair.add_argument("folder", type=Path, help="folder of songs")
    repair.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the copies; nothing in it is replaced"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        what = "is a file" if args.folder.exists() else "does not exist"
        raise WrongInput(f"'{args.folder}' {what}. Expected a folder of songs. Give the folder of step 1.")
    songs = scan_songs(args.folder)
    if not songs:
        raise WrongInput([f"No audio in '{args.folder}'. Expected songs in it.", *overlooked_music(args.folder)])
    if args.command == "repair":
        repair_songs(songs, args.output_dir)
    else:
        check_songs(songs, args)


def check_songs(songs: list[SongFiles], args: argparse.Namespace) -> None:
    """Print what was found. Raises StepFailed when a song cannot be trained on."""
    from ace_lora.audio.doctor import duplicate_finding, examine, find_duplicates

    healths = []
    for number, song in enumerate(songs, 1):
        healths.append(examine(song.audio))
        if not args.json:
            health = healths[-1]
            loudness = "" if health.loudness_lufs is None else f", {health.loudness_lufs:.1f} LUFS"
            length = "unreadable" if health.seconds is None else f"{health.seconds:.0f} s{loudness}"
            print(f"song {number}/{len(songs)} | {song.audio.name} | {length}")
    findings = [list(health.findings) for health in healths]
    for first, second in find_duplicates(healths):
        findings[second].append(duplicate_finding(songs[first].audio.name))
    for song, health, found in zip(songs, healths, findings, strict=True):
        if args.json:
            print(
                json.dumps(
                    {
                        "song": song.audio.name,
                        "seconds": health.seconds,
                        "loudness_lufs": None if health.loudness_lufs is None else round(health.loudness_lufs, 1),
                        "findings": [
                            {"code": one.code, "en": one.english, "zh": one.chinese, "repair": one.repairable}
                            for one in found
                        ],
                    },
                    ensure_ascii=False,
                )
            )
            continue
        for one in found:
            colon = "：" if args.language == "zh" else ": "
            print(f"{song.audio.name}{colon}{one.chinese if args.language == 'zh' else one.english}")
    if not args.json:
        for sentence in overlooked_music(args.folder):
            print(f"warning: {sentence}")
        fine = sum(not found for found in findings)
        mended = any(one.repairable for found in findings for one in found)
        hint = f" Mended copies: python -m ace_lora.audio repair {args.folder} --output_dir DIR" if mended else ""
        print(f"{fine} of {len(songs)} songs have no remark.{hint}")
    useless = ("unreadable", "silent")
    bad = [
        song.audio.name
        for song, found in zip(songs, findings, strict=True)
        if any(one.code in useless for one in found)
    ]
    if bad:
        raise StepFailed(
            f"{len(bad)} of {len(songs)} songs cannot be trained on: {', '.join(bad)}. Replace or remove them."
        )


def repair_songs(songs: list[SongFiles], output: Path) -> None:
    """Write a copy of each song that can be mended, and say what was done to it."""
    from ace_lora.audio.repair import repair_song

    done = 0
    for number, song in enumerate(songs, 1):
        words = repair_song(song, output)
        done += bool(words)
        print(f"song {number}/{len(songs)} | {song.audio.name} | {'; '.join(words) or 'nothing to mend'}")
    print(f"done {done}, skipped {len(songs) - done}, failed 0")


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
