"""What stands in lyrics texts and is not sung: what sites, players, subtitles and models write. One alternative a line.

Every pattern is for a whole line, case ignored. What could be sung as well is left out, or asks for more of its phrase:
"未经允许擅自特别喜欢你" and "See you next time" are lines of songs. Standard library only.
"""

from __future__ import annotations

import re


def alternatives(text: str) -> str:
    """A regular expression for one of the lines of `text`; a line that is indented further belongs to that above it."""
    lines = text.strip("\n").split("\n")
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    joined = "".join(
        ("" if line[margin : margin + 1] == " " else "\n") + line.strip() for line in lines if line.strip()
    )
    return joined.strip("\n").replace("\n", "|")


def _whole(text: str, frame: str = r"\W*") -> re.Pattern[str]:
    return re.compile(f"{frame}(?:{alternatives(text)}){frame}", re.IGNORECASE)


# In the place of lyrics for music without a voice.
NO_VOICE = _whole(r"""
    (?:this song is |this is )?(?:an )?instrumental(?: (?:music|track|version|song|only))?
    (?:there are )?no (?:lyrics|vocals|voice|singing)(?: in this song)?
    (?:[此本该該这這](?:首)?歌曲?(?:为|為|是)|(?:这|這)(?:是)?一?首)?(?:没有填词的|沒有填詞的
        |无歌词的)?[纯純]音[乐樂]\W*(?:请您?欣赏|請您?欣賞|敬请欣赏|[无無没沒]有?歌[词詞])?
    (?:この曲は)?インスト(?:ゥルメンタル|ルメンタル|曲)?(?:です)?
    연주곡(?:입니다)?
    инструментал(?:ьная композиция|ьный трек)?
    instrumentale?|musique instrumentale|pieza instrumental|tema instrumental|instrumentalstück
""")
# Where there are no lyrics: not that there is no voice.
PLACEHOLDER = _whole(r"""
    (?:[该该此这本]?(?:首)?歌?曲?)?(?:暂无|暫無|暂时没有|没有|沒有|尚无|未找到|找不到|没有找到|未收录|还没有|无
        |無)(?:相关|任何|此歌曲的?|该歌曲的?|匹配的?)?的?歌[词詞](?:信息|内容|数据|哦|呢)?(?:\W*求歌[词詞])?
    歌[词詞](?:正在)?(?:加载|載入|加載|获取|搜索|查找)中?(?:失败)?|正在(?:搜索|加载|获取|查找)歌[词詞]
    歌[词詞](?:未找到|不存在|暂缺)|暂缺歌[词詞]
    (?:欢迎|快来|点击|歡迎|点此).{0,6}(?:上传|添加|提供|补充|求|上傳)歌[词詞]
    歌詞(?:が|は)?(?:まだ)?(?:ありません|登録されて(?:い)?ません|見つかりません(?:でした)?|準備中(?:です)?|未登録)
    歌詞(?:なし|無し)
    この曲の歌詞は(?:まだ)?(?:登録されて)?(?:い)?(?:ません|ありません)
    (?:등록된 )?가사(?:가|를)? ?(?:없(?:습니다|음|어요)|준비 ?중(?:입니다)?|찾을 수 없습니다)
    (?:sorry,? )?we (?:don'?t|do not) have (?:the )?lyrics.*
    (?:the )?lyrics? (?:are |is )?(?:currently |still )?(?:not (?:yet )?(?:available|found)|unavailable
        |coming soon|missing)(?: yet| for this (?:song|track))?
    no lyrics? (?:available|found|yet)(?: for this (?:song|track))?
    lyrics for this song have yet to be (?:released|transcribed).*
    please check back once the song has been released
    add lyrics(?: here)?|loading lyrics|lyrics (?:are )?loading
    текст(?: песни)? (?:не найден|отсутствует)|letra no disponible|paroles (?:non disponibles|indisponibles)
    kein (?:song)?text vorhanden|letra não disponível|testo non disponibile|słowa niedostępne
""")
# The same in words that are sung too, or in any words about it; only where nothing else stands.
NO_VOICE_ALONE = _whole(r"""
    .{0,12}[纯純]音[乐樂].{0,12}
    .{0,20}(?:is|are) (?:an? )?instrumental.{0,20}
""")
PLACEHOLDER_ALONE = _whole(r"""
    .{0,10}(?:暂|暫|尚|没有|沒有|未|无|無).{0,6}歌[词詞].{0,14}
    歌[词詞].{0,4}(?:暂|暫|尚|未|没|沒|無|无).{0,14}
    coming soon|敬请期待|敬請期待|.{0,10}(?:no|not|without|missing).{0,12}lyrics.{0,20}
    none|n/?a|null|undefined|unknown|lyrics|歌[词詞]|無|无|なし|없음|нет|test|tbd|todo|lorem ipsum.*
    music|singing|inaudible|unintelligible|not available|unavailable
""")
ADDRESS = _whole(
    r"""
    .*(?:https?://|www\.)\S.*
    .*[\w.-]+@[\w-]+\.\w+.*
    .*\b[\w-]+\.(?:com|net|org|cn)(?:\.cn)?(?:/\S*)?(?!\w).*
    \W*[\w-]+(?:\.[\w-]+)*\.(?:ru|jp|kr|tv|cc|io|de|fr|info|me|top|xyz|club)(?:/\S*)?\W*
    (?:加?q{1,2}群?|微信(?:公众号|号)?|微博|公众号|抖音|快手|bilibili|b站|up主|telegram|tg|discord|instagram
        |youtube|twitter|facebook)\s*[:：@].*
""",
    "",
)
SITE = _whole(r"""
    .{0,12}(?:qq音[乐樂]|(?:网易云|網易雲|酷狗|酷我|虾米|蝦米|咪咕|百度|千千)(?:音[乐樂]|静听)|千千静听
        |魔镜歌[词詞]网|mojim|歌[词詞](?:网|库|大全|千寻|吾爱)).{0,20}
    (?:lrc|歌[词詞]|字幕|動態歌詞|动态歌词|歌词同步|\.lrc)\s?(?:制作|製作|编辑|編輯|来源|來源|提供|上传|上傳|贡献
        |貢獻|校[对對正]|整理|歌词)(?:者|人|员)?(?:\s|[:：]).*
    (?:lrc|\.lrc|lyrics?) ?(?:file )?(?:made|created|edited|synced|synchronized|timed|uploaded|maker|editor
        |generated) ?(?:by)?\b.*
    (?:lrc|\.lrc) by.*
    lyrics? (?:provided|powered|licensed|submitted|transcribed|contributed|courtesy)(?: and licensed)? (?:by
        |of)\b.*
    (?:powered|licensed|subtitled|subbed|transcribed|submitted|synced) by\b.*
    (?:source|来源|來源|出處|出处|出典|quelle|fuente)\s*[:：].*|(?:歌[词詞])来自.*|本歌[词詞](?:来自|來自|由).*
    (?:更多|完整|最新)(?:歌[词詞]|精彩|音[乐樂]).*|(?:歌[词詞])?[仅僅]供(?:学习|參考|参考|學習|个人|交流).*
    you might also like|see .{1,60} live.*get tickets.*|get tickets as low as.*|\d+ ?contributors?.*lyrics
    \d*embed|read more|\d+ translations?|\d+ contributors?
    submit (?:corrections|lyrics).*|print lyrics|share (?:this song|lyrics).*|more lyrics.*
    find (?:more|the) lyrics.*|lyrics? (?:of|to|for) .{1,60} by .{1,40}
    click here (?:to|for) .*|download .{0,40}(?:mp3|app|ringtone).*|advertisement|\[ads?\]|sponsored(?: by.*)?
    skip ad|广告|廣告
""")
RIGHTS = _whole(r"""
    .*(?:未经|未經|未获|未得|如未).{0,14}(?:许可|許可|授权|授權|同意|允许).{0,10}(?:不得|请勿|請勿|禁止|严禁
        |谢绝).*
    .*(?:不得|禁止|请勿|請勿|严禁|谢绝).{0,8}(?:翻唱|翻录|翻錄|转载|轉載|商用|盗用|盜用).*
    .*(?:版权|版權|著作权|著作權)(?:所有(?!的)|归(?!你|我)|歸(?!你|我)|方|声明|聲明|合作|人|许可|及).*
    .*享有.{0,10}(?:版权|著作权|權利|权利).*
    .*all rights reserved.*|(?:©|\(c\)|ⓒ|℗|copyright\s*(?:©|\(c\)|\d|by|:)).*|.*[©℗].*|.*not for commercial use.*
    \(\d{9,}\)
    .*無断(?:転載|使用|複製).*|.*무단 ?(?:전재|복제|배포).*|.*(?:jasrac|nextone)\s*(?:許諾|出).*
    .*reproduced (?:with|by) permission.*
""")
# What speech recognition hears in silence, and what the makers of videos write at the end.
SUBTITLES = _whole(r"""
    (?:thanks|thank you)(?: all| so much| very much| guys| everyone)? for (?:watching|listening|viewing|tuning in
        |your attention)(?:[^\w\s].*| (?:this|the|my|our) (?:video|channel|song).*)?
    (?:please |don'?t forget to |remember to |make sure to )?(?:(?:like|comment|share)(?:,| and| &
        |) ?)*subscribe(?: to (?:my|our|the) channel.*| for more.*| now)?
    i'?ll see you (?:guys )?in the next (?:video|one)|see you in the next video
    (?:click|hit) the (?:bell|like|notification) (?:icon|button|bell).*
    (?:english |chinese )?(?:subtitles?|captions?|closed captions?|transcri(?:ption|pts?)) (?:by|provided by|from
        |made by)\b.*
    .*amara\.org.*|transcribed by .*|subtitled by.*
    (?:感谢|感謝|谢谢|謝謝|多谢)(?:大家|各位|您|你们|观众)?的?(?:观看|觀看|收看|收听|收聽|聆听|聆聽).*
    (?:请|請)不吝.*(?:点赞|點贊|订阅|訂閱|打赏).*
    (?:请|請|欢迎|歡迎|记得|記得|别忘了)?.{0,4}(?:点赞|點贊|點讚|订阅|訂閱).{0,12}(?:订阅|訂閱|转发|轉發|关注|關注
        |打赏|频道|頻道|分享|收藏|我们).*
    .*明[镜鏡]与?與?[点點]{2}[栏欄]目.*
    (?:中文)?字幕(?:由|:|：|by\b|志愿者|志願者|[组組](?:[:：\s]|$)|製作|制作|提供).*|下[期集]再[见見]
    本[期集](?:节目|視頻|视频)?(?:完|结束|到此).*|[优優]{2}独播剧场.*
    (?:最後まで)?ご(?:視聴|清聴|覧).{0,24}
    (?:最後まで)?(?:見|観|聴)て(?:いただき|頂き|くれて|くださり|下さり).{0,20}ありがとう.*
    .{0,10}(?:チャンネル登録|高評価)(?:と|、|を|お願い|よろしく|してね|$).*|字幕(?:作成|提供).*|また次回の動画.*
    (?:끝까지 )?(?:시청|구독|청취)(?:해 ?주셔서|과|와|을|은)? ?.{0,16}(?:감사(?:합니다|드립니다)|부탁(?:드립니다
        |드려요|해요)|좋아요.*)
    한글 ?자막.*|자막 ?(?:by|제공|제작).*|다음 영상에서 만나요
    субтитры (?:сделал|создавал|подогнал|делал|и субтитры).*|спасибо за (?:просмотр|внимание)(?: видео)?
    подписывайтесь на .*|редактор субтитров.*|корректор .*
    untertitel(?:ung)?(?: im auftrag| der amara| von| des|:).*|(?:vielen )?dank (?:fürs|für das) zuschauen
    sous-titr(?:age|es)\b.*|merci d'avoir regardé.*|abonnez-vous.*
    subtítulos (?:por|realizados|de la).*|gracias por ver (?:el|este|mi) v[ií]deo.*|suscríbete(?: al| a mi).*
    legendas? (?:pela|por|:).*|obrigad[oa] por assistir.*|inscreva-se(?: no)?.*|sottotitoli .*
    grazie per (?:la visione|aver guardato).*|napisy (?:stworzone|wykonał).*|altyazı .*|ondertitel.*
""")
# Heard by a model where nothing else was; sung elsewhere.
SUBTITLES_OF_MODELS = _whole(r"""
    продолжение следует|to be continued|thank you|thanks|谢谢|謝謝|ありがとうございました|감사합니다
    bye(?:[ -]bye)?|you|the end|okay|so|uh|hmm
""")
SOUND = _whole(
    r"""
    [\[(（【*♪]+\s*(?:(?:upbeat|soft|dramatic|gentle|slow|intense|instrumental|background|electronic|piano|guitar
        |ambient|rock|pop) )*music(?: playing| plays| fades?(?: out| in)?| continues| stops
        | starts)?\s*[\])）】*♪]+
    [\[(（【*]+\s*(?:(?:crowd |audience )?(?:cheer(?:s|ing)|applau(?:se|ding)|clapping)|laugh(?:s|ter|ing)?
        |inaudible|unintelligible|indistinct|unclear|speaking (?:in )?\w+ ?(?:language)?|no audio|fades? (?:out
        |in)|end of (?:song|recording|audio)|beat (?:drops?|plays)|vocalizing|singing(?: in \w+)?|humming
        |whistling|phone ringing)\s*[\])）】*]+
    \[\s*(?:silence|noise|sighs?|breath(?:es|ing)?|coughs?|gasps?|sound effects?|foreign|blank_audio|blank audio
        |pause|static)\s*\]
    [\[(（【*♪]+\s*(?:音[乐樂]|掌[声聲]|笑[声聲]|听不清|聽不清|无法辨认|尖叫[声聲]?|拍手|音楽|笑い|歓声
        |聞き取れない|음악|박수|웃음|musik|musique|música|música de fondo|музыка|applaus|aplausos|аплодисменты
        |смех|rires|risas)\s*[\])）】*♪]+
    [♪♫♬♩\s]*♪[♪♫♬♩\s]*(?:music|音[乐樂]|音楽)?\s*[♪♫♬♩\s]*
""",
    r"\s*",
)
NO_WORDS = re.compile(r"[\W_]+")

# (why, pattern) of what is never sung, wherever it stands.
JUNK = (
    ("stands where there are no lyrics", PLACEHOLDER),
    ("an address", ADDRESS),
    ("a site's or player's own line", SITE),
    ("a notice of rights", RIGHTS),
    ("a line of subtitles, not of the song", SUBTITLES),
    ("a remark on the sound", SOUND),
    ("no words", NO_WORDS),
)


def stands_for_no_lyrics(line: str) -> bool:
    """Whether a line, such as `(instrumental)` or `N/A`, is no lyrics but a remark that there are none."""
    return any(pattern.fullmatch(line) for pattern in (NO_VOICE, PLACEHOLDER, PLACEHOLDER_ALONE))
