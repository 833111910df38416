"""Small tokenizers of the published kind: of the text encoder and of the lyrics."""

from __future__ import annotations

from ace_lora.lyrics.text import STRUCTURE_TAGS

# As published: padding 0, end 1, unknown 2, and the comma, at which the trainer splits the tags, 275.
COMMA_ID = 275
# As published: `[en]` 259, `[de]` 260, `[START]` 261 in the lyric vocabulary.
FIRST_LANGUAGE_ID = 259
UMT5_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
UMT5_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_TAG_WORDS = (
    "acoustic ambient ballad bass beat blues bpm chinese classical dance drums electric electronic energetic english "
    "epic fast female folk funk guitar happy heavy house indie instrumental jazz loud male melancholic melodic metal "
    "minor major music orchestral piano pop punk quiet rap rock romantic sad slow soft song soul strings synth techno "
    "upbeat violin vocal vocals voice warm"
)


def umt5_tokenizer_file() -> dict:
    """A `tokenizer.json`: sentencepiece-like pieces, bytes for every other character, `</s>` at the end."""
    letters_before_comma = "eaoinrtsldumchk"
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [("▁", -4.0)] + [(letter, -6.0) for letter in letters_before_comma]
    assert len(pieces) == COMMA_ID, len(pieces)
    pieces += [(",", -4.0)]
    others = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-'&/()!?:"
    pieces += [(letter, -7.0) for letter in others if letter not in letters_before_comma]
    pieces += [(f"▁{word}", -8.0) for word in _TAG_WORDS.split()]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": pieces[index][0], **special} for index in range(3)],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [list(piece) for piece in pieces],
            "byte_fallback": True,
        },
    }


_LANGUAGE_TAGS = "[fr] [ru] [es] [it] [pt] [cs] [pl] [tr] [nl] [ar] [zh-cn] [ja] [hu] [ko] [hi]"
_LYRIC_CHARACTERS = (
    "!'(),-./:;?0123456789abcdefghijklmnopqrstuvwxyz"
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßąćčďęěğıłńňőœřśşšťůűźżž"
    "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
    "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىي،؟"
    "अआइईउऊऋएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह"
)
_LYRIC_PAIRS = "th he in er an re on at en nd ou ng sh zh ch ai ei ao ia ua ie uo ue ui iu"


def lyric_vocabulary_file() -> dict:
    """A `vocab.json` of the published kind: byte-pair encoding whose ids 0, 1, 2, 259, 260 and 261 are the published.

    Ids 3 to 258 are characters and then pairs of letters, as many as fit.
    """
    special = ["[STOP]", "[UNK]", "[SPACE]"]
    characters = list(dict.fromkeys(_LYRIC_CHARACTERS))
    pairs = list(dict.fromkeys(_LYRIC_PAIRS.split() + [a + b for a in "bdglmnstw" for b in "aeiou"]))
    tokens = (special + characters + pairs)[:FIRST_LANGUAGE_ID]
    assert len(tokens) == FIRST_LANGUAGE_ID, len(tokens)
    pairs = tokens[len(special) + len(characters) :]
    languages = ["[en]", "[de]", "[START]", *_LANGUAGE_TAGS.split()]
    vocabulary = {token: index for index, token in enumerate(tokens + languages)}
    # As published, the structure tags are no entries of the model, only added tokens behind them.
    structure = {tag: len(vocabulary) + index for index, tag in enumerate(STRUCTURE_TAGS)}
    added = {**{token: vocabulary[token] for token in special + languages}, **structure}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for token, index in added.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [" ".join(pair) for pair in pairs],
        },
    }
