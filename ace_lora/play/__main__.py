"""Play songs, told by lines on the standard input; what happens goes to the standard output. One JSON object a line.

In      {"do": "load", "slot": "A", "path": "song.mp3"}    decode a file; the slot is any name
        {"do": "play"}, {"do": "pause"}, {"do": "quit"}
        {"do": "seek", "seconds": 12.5}
        {"do": "level", "value": 0.8}                      0 to 1
        {"do": "switch", "slot": "B"}                      go on in another track at the same position, without a gap
Out     {"event": "ready", "device": "…", "rate": 48000}   or {"event": "no_device", "message": "…"}, and the end
        {"event": "loaded", "slot": "A", "path": "…", "seconds": 180.2, "played_seconds": 180.2, "peaks": [0.1, …],
         "warning": ""}
        {"event": "position", "slot": "A", "seconds": 12.6, "playing": true}    ten times a second and at every change
        {"event": "ended", "slot": "A"}
        {"event": "error", "message": "…"}                 nothing else has changed

    python -m ace_lora.play                                until "quit" or the end of the input
    python -m ace_lora.play --output dummy                 on no device, in real time (also: ACE_LORA_AUDIO=dummy)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ace_lora.commands import run_script
from ace_lora.files import UnusableFile, parse_json

REPORT_SECONDS = 0.1
SILENT_SECONDS = 3.0  # a device that takes no samples for so long has been taken away
MAX_LINE_BYTES = 100_000  # a path is never that long
OUTPUT_VARIABLE = "ACE_LORA_AUDIO"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ace_lora.play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        default=os.environ.get(OUTPUT_VARIABLE, ""),
        help="dummy: no device; dummy:FILE also keeps what is played, as raw 32-bit floats "
        f"(default: {OUTPUT_VARIABLE}, or the system's device)",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from ace_lora.play.outputs import NoDevice, open_output
    from ace_lora.play.player import Player
    from ace_lora.play.track import RATE

    events: queue.Queue[tuple[str, Any]] = queue.Queue()
    player = Player()

    def fill(out: Any) -> None:
        if player.fill(out):
            events.put(("ended", player.slot))

    try:
        output = open_output(fill, args.output)
    except NoDevice as error:
        tell("no_device", message=str(error))
        return
    tell("ready", device=output.name, rate=RATE)
    threading.Thread(target=_read_lines, args=(events,), daemon=True).start()
    moved_at, place = time.monotonic(), -1.0
    try:
        while True:
            try:
                kind, content = events.get(timeout=REPORT_SECONDS if player.playing else None)
            except queue.Empty:
                kind, content = "time", None
            if kind == "closed":
                return
            if kind == "loaded":
                _take_track(player, *content)
            elif kind == "ended":
                if not player.playing:  # a "play" may have come meanwhile
                    output.stop()
                tell("ended", slot=content)
            elif kind == "line":
                try:
                    if _obey(content, player, output, events):
                        return
                except NoDevice as error:
                    player.pause()
                    tell("error", message=str(error))
            if not player.playing or player.seconds != place:
                moved_at, place = time.monotonic(), player.seconds
            elif time.monotonic() - moved_at > SILENT_SECONDS:
                player.pause()
                output.stop()
                tell("error", message=f"The sound device '{output.name}' stands still. Connect it again, then play.")
            if player.slot:
                seconds = player.seconds - (output.latency if player.playing else 0)
                tell("position", slot=player.slot, seconds=round(max(seconds, 0.0), 3), playing=player.playing)
    finally:
        output.close()


def tell(event: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _read_lines(events: queue.Queue[tuple[str, Any]]) -> None:
    """Every line of the standard input as an event, in a thread of its own: reading waits.

    Read from the system, not through Python's buffer: this thread may still wait when the program ends, and the
    buffer's lock would abort it then.
    """
    pending = b""
    while chunk := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, pending = (pending + chunk).split(b"\n")
        pending = pending[: MAX_LINE_BYTES + 1]
        for line in lines:
            events.put(("line", line))
    events.put(("line", pending))
    events.put(("closed", None))


def _obey(line: bytes, player: Any, output: Any, events: queue.Queue[tuple[str, Any]]) -> bool:
    """Carry out one line; True for "quit"."""
    if not line.strip():
        return False
    if len(line) > MAX_LINE_BYTES:
        tell("error", message=f"A line has more than {MAX_LINE_BYTES:,} bytes. Expected one JSON object.")
        return False
    try:
        order = parse_json(line.strip(), "The line")
    except UnusableFile as error:
        tell("error", message=str(error))
        return False
    wrong = _fault(order)
    if wrong:
        tell("error", message=wrong)
        return False
    do = order["do"]
    if do == "quit":
        return True
    if do == "load":
        threading.Thread(target=_load, args=(order["slot"], Path(order["path"]), events), daemon=True).start()
    elif do == "play":
        if player.play():
            output.start()
        else:
            tell("error", message='There is nothing to play. Expected a track. Send {"do": "load", …} first.')
    elif do == "pause":
        player.pause()
        output.stop()
    elif do == "seek":
        player.seek(order["seconds"])
    elif do == "level":
        player.set_level(order["value"])
    elif not player.switch(order["slot"]):
        tell(
            "error",
            message=f"There is no track in slot '{order['slot']}'. Expected one that was loaded. Load it first.",
        )
    return False


_ORDERS: dict[str, dict[str, type]] = {
    "load": {"slot": str, "path": str},
    "play": {},
    "pause": {},
    "quit": {},
    "seek": {"seconds": float},
    "level": {"value": float},
    "switch": {"slot": str},
}


def _fault(order: Any) -> str | None:
    """Why a line cannot be carried out."""
    do = order.get("do") if isinstance(order, dict) else None
    if not isinstance(do, str) or do not in _ORDERS:
        return f'The line does not say what to do. Expected {{"do": …}} with one of {", ".join(_ORDERS)}.'
    for name, kind in _ORDERS[do].items():
        value = order.get(name)
        if kind is str and not (isinstance(value, str) and value and "\0" not in value):
            return f'"{name}" of "{do}" is {value!r}. Expected a text.'
        if kind is float and (isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9):
            return f'"{name}" of "{do}" is {value!r}. Expected a number.'
    if do == "level" and not 0 <= order["value"] <= 1:
        return f'"value" of "level" is {order["value"]!r}. Expected 0 to 1.'
    return None


def _load(slot: str, path: Path, events: queue.Queue[tuple[str, Any]]) -> None:
    """Decode a file, which takes a second, while the other one plays on."""
    from ace_lora.audio.decode import AudioError
    from ace_lora.play.track import load_track

    try:
        events.put(("loaded", (slot, load_track(path), "")))
    except (AudioError, OSError, MemoryError) as error:
        events.put(("loaded", (slot, None, str(error) or f"'{path}' does not fit into the memory.")))


def _take_track(player: Any, slot: str, track: Any, problem: str) -> None:
    if track is None:
        tell("error", slot=slot, message=problem)
        return
    player.load(slot, track)
    tell(
        "loaded",
        slot=slot,
        path=str(track.path),
        seconds=round(track.seconds if math.isfinite(track.seconds) else 0.0, 3),
        played_seconds=round(len(track.samples) / track.rate, 3),
        peaks=track.peaks(),
        warning=track.warning,
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main, parse_args()))
