"""A ready workflow for ComfyUI: checkpoint, LoRA, tags, lyrics and the settings of its own template for ACE-Step v1.

Two forms of the same graph (spec: clients, section 4): what its window opens, and what its `/prompt` address takes.
Standard library only, apart from the reading of lyrics.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ace_lora.comfyui.lyrics import escape, token_ids, write_lyrics

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECKPOINT = "ace_step_v1_3.5b.safetensors"
LARGEST_SEED = 2**53 - 1  # the browser's numbers are doubles
LONGEST_SECONDS = 1000.0


@dataclass(frozen=True)
class Workflow:
    """What differs from song to song; `tags` and `lyrics` are as `written_tags` and `written_lyrics` make them."""

    lora_name: str  # below models/loras
    tags: str
    lyrics: str
    seconds: float = 120.0
    seed: int = 0
    strength: float = 1.0
    checkpoint: str = CHECKPOINT
    prefix: str = "audio/ComfyUI"


@dataclass(frozen=True)
class Link:
    """An input that comes from another node; `kind` is the name of the output's type."""

    node: int
    slot: int
    kind: str


@dataclass(frozen=True)
class Node:
    kind: str
    links: dict[str, Link]
    widgets: dict[str, Any]  # in the order of the window
    outputs: tuple[str, ...]


def nodes_of(workflow: Workflow) -> dict[int, Node]:
    """The graph in the order of execution."""
    return {
        1: Node("CheckpointLoaderSimple", {}, {"ckpt_name": workflow.checkpoint}, ("MODEL", "CLIP", "VAE")),
        2: Node(
            "LoraLoaderModelOnly",
            {"model": Link(1, 0, "MODEL")},
            {"lora_name": workflow.lora_name, "strength_model": workflow.strength},
            ("MODEL",),
        ),
        3: Node("ModelSamplingSD3", {"model": Link(2, 0, "MODEL")}, {"shift": 5.0}, ("MODEL",)),
        4: Node("LatentOperationTonemapReinhard", {}, {"multiplier": 1.0}, ("LATENT_OPERATION",)),
        5: Node(
            "LatentApplyOperationCFG",
            {"model": Link(3, 0, "MODEL"), "operation": Link(4, 0, "LATENT_OPERATION")},
            {},
            ("MODEL",),
        ),
        6: Node(
            "TextEncodeAceStepAudio",
            {"clip": Link(1, 1, "CLIP")},
            {"tags": workflow.tags, "lyrics": workflow.lyrics, "lyrics_strength": 0.99},
            ("CONDITIONING",),
        ),
        7: Node("ConditioningZeroOut", {"conditioning": Link(6, 0, "CONDITIONING")}, {}, ("CONDITIONING",)),
        8: Node("EmptyAceStepLatentAudio", {}, {"seconds": workflow.seconds, "batch_size": 1}, ("LATENT",)),
        9: Node(
            "KSampler",
            {
                "model": Link(5, 0, "MODEL"),
                "positive": Link(6, 0, "CONDITIONING"),
                "negative": Link(7, 0, "CONDITIONING"),
                "latent_image": Link(8, 0, "LATENT"),
            },
            {
                "seed": workflow.seed,
                "steps": 50,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
            ("LATENT",),
        ),
        10: Node("VAEDecodeAudio", {"samples": Link(9, 0, "LATENT"), "vae": Link(1, 2, "VAE")}, {}, ("AUDIO",)),
        11: Node("SaveAudio", {"audio": Link(10, 0, "AUDIO")}, {"filename_prefix": workflow.prefix}, ()),
    }


def api_form(workflow: Workflow) -> dict[str, Any]:
    """The graph as `/prompt` takes it, under the key `prompt`."""
    return {
        str(number): {
            "class_type": node.kind,
            "inputs": node.widgets | {name: [str(link.node), link.slot] for name, link in node.links.items()},
            "_meta": {"title": node.kind},
        }
        for number, node in nodes_of(workflow).items()
    }


def window_form(workflow: Workflow, identity: str | None = None) -> dict[str, Any]:
    """The graph as ComfyUI's window opens it; `identity` is its UUID (None: a new one)."""
    graph = nodes_of(workflow)
    links = [
        [number, link.node, link.slot, target, place, link.kind]
        for number, (target, place, link) in enumerate(
            ((target, place, link) for target, node in graph.items() for place, link in enumerate(node.links.values())),
            start=1,
        )
    ]
    nodes = []
    for order, (number, node) in enumerate(graph.items()):
        widgets = list(node.widgets.values())
        if node.kind == "KSampler":
            widgets.insert(1, "fixed")  # what the window does with the seed after a run
        nodes.append(
            {
                "id": number,
                "type": node.kind,
                "pos": [60 + 300 * (order % 4), 60 + 220 * (order // 4)],
                "size": [270, 130],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [
                    {
                        "name": name,
                        "type": link.kind,
                        "link": next(row[0] for row in links if row[3] == number and row[4] == place),
                    }
                    for place, (name, link) in enumerate(node.links.items())
                ],
                "outputs": [
                    {
                        "name": kind,
                        "type": kind,
                        "links": [row[0] for row in links if row[1] == number and row[2] == slot],
                    }
                    for slot, kind in enumerate(node.outputs)
                ],
                "properties": {"Node name for S&R": node.kind, "cnr_id": "comfy-core"},
                "widgets_values": widgets,
            }
        )
    return {
        "id": identity or str(uuid.uuid4()),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


# --- Texts ---


def written_tags(prompt: str) -> tuple[str, list[str]]:
    """The prompt for the tags' field, and notes for the user: its parentheses escaped.

    What the window would take for choices (`{a|b}`) and comments is taken out, as it cannot be escaped in both forms.
    """
    text = _without_dynamic(re.sub(r"[{}]", " ", prompt))
    notes = []
    if text != prompt:
        notes.append(
            "The prompt has signs that ComfyUI's window takes for choices or comments ({, }, //, /*); they were taken "
            "out or set apart."
        )
    return escape(text), notes


def written_lyrics(ids: list[int], vocabulary: Tokenizer) -> tuple[str, list[str]]:
    """Lyrics for the lyrics' field that give the ids of the training, and notes where they cannot."""
    text = _without_dynamic(write_lyrics(ids, vocabulary))
    given = token_ids(text, vocabulary)
    if ids == [0]:
        return text, ["Songs without lyrics are trained with one empty token; ComfyUI reads its start token there."]
    if given == ids or given == [*ids, 2]:
        return text, []
    different = next((place for place, pair in enumerate(zip(given, ids, strict=False)) if pair[0] != pair[1]), 0)
    around = "".join(vocabulary.id_to_token(token) or "" for token in ids[max(different - 5, 0) : different + 6])
    return text, [
        f"ComfyUI reads these lyrics a little differently than training did, first near '{around}'. There is no way to "
        "write that for it; the rest is as in training."
    ]


def _without_dynamic(text: str) -> str:
    return text.replace("//", "/ /").replace("/*", "/ *")
