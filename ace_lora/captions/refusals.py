"""What a model says instead of an answer: that it cannot or will not, that it hears nothing, that it does not know.

In the languages that these models answer in. Nothing here is what a song would say: "I can't hear you" is sung.
"""

from __future__ import annotations

import re

from ace_lora.lyrics.phrases import alternatives

# Anywhere in a tag or a line.
REFUSAL = re.compile(
    alternatives(r"""
    \bas an? (?:ai|artificial|large language|language) \w*|\b(?:i am|i'm) (?:an? )?(?:ai|language model)\b
    \bi(?:'m| am)? ?(?:sorry,? (?:but )?)?(?:i )?(?:can ?not|can't|could not|couldn't|unable to|am unable to
        |am not able to|do not have|don't have) (?:(?:directly|actually|fully|really) )?(?:transcribe|listen to
        |process|analy[sz]e|access|provide|identify|determine|assist|help with|describe|hear (?:the|this
        |any) (?:audio|recording|track|file|lyrics|vocals|clip)|share|reproduce|understand the audio)
    \bunable to (?:determine|identify|transcribe|process|hear|detect|analy[sz]e|provide|discern)
    \bcannot (?:be )?(?:determined?|identif(?:y|ied)|transcribed?|process(?:ed)?|hear (?:the |any )?(?:audio
        |lyrics|vocals))
    \bno (?:audio|sound|music|recording)(?: file| clip)? (?:was |is |has been )?(?:provided|attached|given
        |detected|found|available|heard|present)
    \baudio (?:is |was )?(?:not |un)(?:provided|available|audible|clear)
    \bplease (?:provide|upload|attach|share) (?:the|an?|your) |\bcopyright(?:ed)? (?:lyrics|material|content|song)
    \bofficial (?:source|lyrics)|\blyrics (?:cannot|can't) be
    \bnot (?:possible|able) to (?:determine|transcribe|identify|hear)
    作为(?:一个|一名)?(?:ai|人工智能|语言模型|大模型)
    (?:抱歉|对不起|很抱歉|不好意思).{0,12}(?:无法|不能|没有办法|听不)
    (?:我)?(?:无法|不能|没办法|難以|难以)(?:直接)?(?:识别|辨认|转写|转录|听取|听到|听清|收听|处理|分析|访问|提供
        |判断|确定|描述|生成|播放)
    没有(?:提供|收到|听到)(?:任何)?(?:音频|声音|音乐)|请(?:提供|上传)|(?:版权|著作权)(?:原因|限制|保护)
    申し訳(?:ありません|ございません)
    (?:聞き取|聴き取|書き起こ|認識|判別|特定|提供|分析)(?:り|れ|し|す|する)?(?:こと)?(?:が|は)?(?:でき
        |出来)(?:ません|ない)
    聞き取れません|聞こえません|音声が(?:提供|ありません|含まれ)|著作権|죄송(?:합니다|하지만)
    (?:들을|인식할|전사할|제공할|확인할|판단할) 수 (?:없|가 없)|저작권|오디오가 (?:제공|없)
    je (?:suis désolé|ne peux pas (?:transcrire|écouter|entendre l'audio))|lo siento, (?:pero )?no puedo
    no puedo (?:transcribir|escuchar el audio)|es tut mir leid|ich kann (?:den|die|das) (?:audio|liedtext)
    извините, (?:но )?я не могу|я не могу (?:прослушать|расшифровать)
"""),
    re.IGNORECASE,
)
# A whole line of lyrics.
REFUSED_LINE = re.compile(
    r"^\W*(?:"
    + alternatives(r"""
    (?:i'?m |i am )?sorry,? (?:but )?i (?:can'?t|cannot) \w+.*(?:lyrics|audio|request).*
    (?:the )?lyrics (?:are|is) (?:not (?:clear|audible|discernible|provided)|unclear|inaudible|in a language).*
    (?:note|disclaimer|注|注意|备注)\s*[:：].*(?:transcri|lyrics|audio|歌词|音频|版权).*
    here (?:are|is) the (?:lyrics|transcription).*|(?:以下|下面)是.{0,8}(?:歌词|转写).*
    \[?(?:lyrics )?(?:not|un)available\]?
""")
    + r")\W*$",
    re.IGNORECASE,
)
# A whole tag that says that nothing can be said.
UNSAID = re.compile(
    "(?:"
    + alternatives(r"""
    un(?:clear|certain|specified|determined|identifiable|known|identified|sure|defined)
    not (?:specified|sure|clear|available|applicable|known|given|mentioned|determined|discernible|heard|audible
        |provided|stated|certain)
    indeterminate|ambiguous|inaudible|undetermined|can ?not (?:say|tell|determine)|can't (?:say|tell)
    hard to (?:say|tell)|difficult to (?:say|tell)
    no (?:information|data|tags?|genre|mood|tempo|instruments?|answer|idea|audio|sound)|to be determined|tbd|\?+
    any|misc|miscellaneous|others?|varied|varies|neutral tempo|silence|silent|music|song|audio|track|未知|不明|无
    不清楚|不确定|其他
""")
    + r")(?: (?:genre|subgenre|mood|tempo|instruments?|vocals?|language|style))?",
    re.IGNORECASE,
)
