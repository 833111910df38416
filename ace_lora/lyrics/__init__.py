"""Lyrics text to the token ids of ACE-Step v1, and lyrics with times. Importing the package imports nothing else.

    from ace_lora.lyrics.tokenize import LyricTokenizer
    from ace_lora.lyrics.vocabulary import load_vocabulary
    LyricTokenizer(load_vocabulary(path, embedding_rows=6693)).tokenize("[verse]\\nHello my friend").ids

    vocabulary.py   the vocabulary file: load, check against the published sha256 and the model
    tokenize.py     lyrics -> ids, main language, warnings; the order of everything below
    segment.py      lyrics -> stretches of one guessed language (their boundaries are visible in the ids)
    language_id.py  the language identifier, and the only form of text that it sees
    cleaners.py     one line -> the text that is encoded: abbreviations, signs, pinyin, Korean
    numbers.py      numbers in words, all languages but Chinese, Japanese and Hindi
    zh_numbers.py   Chinese numbers, and Chinese punctuation as commas
    japanese.py     Japanese lines in Latin letters; needs the optional packages
    packages.py     versions the ids were checked with, MissingLyricSupport
    language.py     what the whole text says of its language, beside the vote by lines
    reading.py      all that the model reads of a song's lyrics, with every warning; mending; the song's own language

    text.py         headings and the structure tags of the model; marking a text with them
    encoding.py     bytes -> text; what is a guess
    formats.py      LRC, LRCX, SRT, JSON … -> lines
    sorting.py      lines -> sung, translation, romanisation, credit, heading, speaker, junk, each with why
    phrases.py, credit_words.py     the words that sorting goes by
    sources.py      lyrics beside a song and in the tags of its audio file
    online.py       lyrics from a service, as a proposal, when the user asks
    timed.py        [mm:ss.xx] lyrics: parse, strip, write, put onto edited lyrics, crop and split with the audio

Everything is plain functions on strings; only the identifier, the vocabulary and cutlet are loaded objects.
`ACE_LYRIC_VOCAB=<published vocab.json> python -m pytest tests -k lyrics` compares ids with the reference as well.
"""
