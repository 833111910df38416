"""Lyrics as people have them, by kind: (kind, text of a file beside a song, what of it is sung; None: no lyrics).

Made for these tests. Half of the rows of a kind are false friends: lines that only look like what the kind is about.
"""

S = "灯火在河面慢慢散开\n我把名字写进风里来"  # two sung lines, Chinese
E = "I keep the lantern burning low\nuntil the morning finds the door"  # English
J = "静かな夜に船が出る\n星の海を渡って行こう"  # Japanese
K = "조용한 밤에 배가 떠나네\n별의 바다를 건너 가자"  # Korean


def lrc(*lines: str, start: float = 10.0, step: float = 4.0) -> str:
    """The lines with stamps; a line may hold several texts of one stamp, between bars."""
    stamped = []
    for number, line in enumerate(lines):
        seconds = start + number * step
        stamped += [f"[{int(seconds // 60):02d}:{seconds % 60:05.2f}]{text}" for text in line.split("|")]
    return "\n".join(stamped)


def pairs(first: str, second: str, bar: str = "|") -> str:
    return lrc(*(f"{a}{bar}{b}" for a, b in zip(first.split("\n"), second.split("\n"), strict=True)))


E3 = f"{E}\nthe river carries every word"
S3 = f"{S}\n河水带走每一句话"
J3 = f"{J}\nもう一度会えるなら"
ROMAJI = "shizuka na yoru ni fune ga deru\nhoshi no umi wo watatte yukou"
SRT = "1\n00:00:12,130 --> 00:00:15,000\n{0}\n\n2\n00:00:16,000 --> 00:00:19,000\n{1}\n"
FIRST, SECOND = E.split("\n")

TRANSLATIONS = [
    ("Japanese and Chinese", pairs(J, S), J),
    (
        "Japanese with kanji alone",
        lrc("夜の船が出る|夜船出航", "星空|繁星满天", "君と行こう|与你同行"),
        "夜の船が出る\n星空\n君と行こう",
    ),
    ("English and Chinese", pairs(E, S), E),
    ("Chinese and English", pairs(S, E), S),
    ("Korean and Chinese", pairs(K, S), K),
    (
        "Korean, its reading and Chinese",
        lrc("사랑해 너를|saranghae neoreul|我爱你", "오늘도 기다려|oneuldo gidaryeo|今天也等你"),
        "사랑해 너를\n오늘도 기다려",
    ),
    ("Japanese and romaji", pairs(J, ROMAJI), J),
    ("romaji first", pairs(ROMAJI, J), J),
    (
        "Russian and English",
        lrc("Я помню ночь|I remember the night", "и тихий свет|and a quiet light"),
        "Я помню ночь\nи тихий свет",
    ),
    (
        "40 ms later",
        "[00:10.00]Hello my friend\n[00:10.04]你好我的朋友\n[00:14.00]Stay with me\n[00:14.04]留下来",
        "Hello my friend\nStay with me",
    ),
    ("translation without a stamp", f"[00:10.00]{FIRST}\n我让灯笼轻轻燃着\n[00:14.00]{SECOND}\n直到清晨找到那扇门", E),
    (
        "Spanish and English, one script",
        lrc(
            "No puedo dormir esta noche|I cannot sleep tonight",
            "Esperé toda la noche por ti|I waited for you all night long",
            "Quédate conmigo para siempre|Stay with me forever and ever",
        ),
        "No puedo dormir esta noche\nEsperé toda la noche por ti\nQuédate conmigo para siempre",
    ),
    (
        "single lines show the main language",
        lrc("我走在路上", "我走在风里", "Love me|爱我", "我走在雨里"),
        "我走在路上\n我走在风里\n爱我\n我走在雨里",
    ),
    (
        "lrcx",
        "[00:15.019]one two three\n[00:15.019][tr:zh-Hans]一二三\n[00:15.019][tt]<0,0><614,5>\n[00:22.0]five six",
        "one two three\nfive six",
    ),
    ("behind a slash", "愛してる / 我爱你\n君がいる / 有你在\n夜が明ける / 天亮了", "愛してる\n君がいる\n夜が明ける"),
    (
        "in brackets",
        "Hello my friend（你好我的朋友）\nStay with me（留在我身边）\nUntil the dawn（直到黎明）",
        "Hello my friend\nStay with me\nUntil the dawn",
    ),
    ("bilingual tab", "愛してる\t我爱你\n君がいる\t有你在\n夜が明ける\t天亮了", "愛してる\n君がいる\n夜が明ける"),
    ("bilingual dash", "愛してる - 我爱你\n君がいる - 有你在\n夜が明ける - 天亮了", "愛してる\n君がいる\n夜が明ける"),
    (
        "triple",
        "[00:01.00]静かな夜に\n[00:01.00]shizuka na yoru ni\n[00:01.00]寂静的夜\n[00:05.00]星の海を\n[00:05.00]hoshi no umi wo\n[00:05.00]星的海洋",
        "静かな夜に\n星の海を",
    ),
    (
        "tr zh en interleaved next stamp",
        "[00:01.00]I keep the lantern\n[00:05.00]我让灯笼\n[00:05.00]until the morning\n[00:09.00]直到清晨\n[00:09.00]the river\n[00:12.00]河水",
        "I keep the lantern\nuntil the morning\nthe river",
    ),
    ("mid translation paren", "사랑해 (I love you)\n오늘도 (today too)\n기다려 (waiting)", "사랑해\n오늘도\n기다려"),
    # False friends
    (
        "two voices on one stamp",
        lrc("Hold the light|I hold the light", "Till the morning|till the day", "one more line"),
        "Hold the light\nI hold the light\nTill the morning\ntill the day\none more line",
    ),
    (
        "code switching in turn stays",
        "Debug the night\n我爱你\nOn a neon screen",
        "Debug the night\n我爱你\nOn a neon screen",
    ),
    (
        "English lines in a Chinese song",
        lrc("灯火在河面", "Baby don't go", "慢慢散开"),
        "灯火在河面\nBaby don't go\n慢慢散开",
    ),
    (
        "echoes in brackets",
        "Hold the light (hold the light)\nTill the day (till the day)\nStay with me (stay with me)",
        "Hold the light (hold the light)\nTill the day (till the day)\nStay with me (stay with me)",
    ),
    ("a slash in a line", "and/or nothing\nstay with me\nlove is here", "and/or nothing\nstay with me\nlove is here"),
    (
        "Japanese and English words on one stamp",
        lrc("さあ行こう Let's go", "夜を越えて"),
        "さあ行こう Let's go\n夜を越えて",
    ),
]

CREDITS = [
    (
        "NetEase",
        lrc(" 作词 : 甲", " 作曲 : 乙", " 编曲 : 丙", " 混音/母带 : 丁", " 录音棚 : 己工作室", *S.split("\n")),
        S,
    ),
    (
        "QQ, two languages",
        lrc(
            "河灯 - 甲",
            "词 Lyricist：乙",
            "曲 Composer：丙",
            "吉他 Guitar：己",
            "混音工程师 Mixing Engineer：庚",
            *S.split("\n"),
        ),
        S,
    ),
    ("spaced", lrc("作　词：甲", "作 曲：乙", "编 曲：乙", *S.split("\n")), S),
    ("Kugou, no spaces", lrc("甲 - 河灯", "作词：甲", "作曲：乙", "OP：某某文化", "SP：某某音乐", *S.split("\n")), S),
    (
        "at the end",
        lrc(
            *S.split("\n"),
            "制作人：甲",
            "吉他：乙",
            "和声编写：丙",
            "监制：丁",
            "【未经著作权人许可 不得翻唱翻录或使用】",
        ),
        S,
    ),
    ("head and end", lrc("词：甲", "曲：乙", *S.split("\n"), "混音师：甲", "母带工程师：乙", "出品：丙"), S),
    (
        "many roles",
        lrc(
            "作词：甲",
            "作曲：乙",
            "钢琴：丙",
            "弦乐编写：丁",
            "第一小提琴：戊",
            "配唱制作人：己",
            "人声编辑：庚",
            "音乐总监：辛",
            "企划统筹：壬",
            "宣传推广：癸",
            *S.split("\n"),
        ),
        S,
    ),
    (
        "traditional",
        lrc("作詞：甲", "作曲：乙", "編曲：丙", "製作人：丁", "錄音室：戊", "混音錄音師：己", *S.split("\n")),
        S,
    ),
    ("Japanese", lrc("作詞：甲", "作曲：乙", "編曲：丙", "歌：丁", "ギター：戊", *J.split("\n")), J),
    ("Japanese site, one line", f"夜航\n\n作詞:甲 作曲:乙\n\n{J}", J),
    ("Japanese vocaloid", f"作詞・作曲：甲\n調声：乙\n唄：初音ミク\n動画：丙\n\n{J}", J),
    ("Korean", f"작사: 갑\n작곡: 을\n편곡: 병\n\n{K}", K),
    ("English by", f"Written by: Ann Smith\nProduced by: Bob Jones\n\n{E}", E),
    ("English without colons", f"Lyrics by Ann Smith\nMusic by Bob Jones\n{E}", E),
    (
        "English labels",
        lrc("Lantern - Ann", "Lyrics: Ann", "Composer: Bob", "Mixing Engineer: Cyd", "Vocals: Ann", *E.split("\n")),
        E,
    ),
    (
        "Spanish",
        "Letra: Ana\nMúsica: Luis\nProductor: Eva\n\nNo puedo dormir\nEsperé toda la noche",
        "No puedo dormir\nEsperé toda la noche",
    ),
    ("Russian", "Слова: Иванов\nМузыка: Петров\n\nЯ помню ночь\nи тихий свет", "Я помню ночь\nи тихий свет"),
    (
        "JSON lines of NetEase",
        '{"t":0,"c":[{"tx":"作词: "},{"tx":"甲"}]}\n{"t":1000,"c":[{"tx":"作曲: "},{"tx":"乙"}]}\n'
        + lrc(*S.split("\n")),
        S,
    ),
    ("unknown label between known ones", lrc("作词：甲", "特别嘉宾：乙", "作曲：丙", *S.split("\n")), S),
    ("title of the header", "[ti:河灯]\n[ar:甲]\n[00:00.00]河灯 - 甲\n" + lrc(*S.split("\n")), S),
    ("writers at the end of a page", f"{E}\n\nWriter(s): Ann Smith, Bob Jones", E),
    (
        "credits dash",
        "[00:00.00]Words by: 甲\n[00:01.00]Music by: 乙\n[00:02.00]Arranged by: 丙\n[00:10.00]line one\n[00:14.00]line two",
        "line one\nline two",
    ),
    (
        "credits en end no colon",
        "line one\nline two\n\nProduced by Ann Smith\nMixed by Bob Jones",
        "line one\nline two",
    ),
    (
        "qq lyr",
        "[00:00.00]晴天 (Live) - 甲 (Jia)\n[00:02.00]Lyrics by：甲\n[00:03.00]Composed by：甲\n[00:04.00]Produced by：乙\n[00:10.00]line\n[00:11.00]行",
        "line\n行",
    ),
    (
        "netease end",
        "[00:10.00]灯火\n[00:12.00]散开\n[03:00.00]吉他 : 甲\n[03:01.00]贝斯 : 乙\n[03:02.00]鼓 : 丙",
        "灯火\n散开",
    ),
    ("single end credit", "[00:10.00]灯火\n[00:12.00]散开\n[03:00.00]制作人：甲", "灯火\n散开"),
    ("single head 演唱", "[00:00.00]演唱：甲\n[00:10.00]灯火\n[00:12.00]散开", "灯火\n散开"),
    ("作曲 with brackets", "【作词】甲\n【作曲】乙\n灯火在河面\n慢慢散开", "灯火在河面\n慢慢散开"),
    ("词/曲 slash", "[00:00.00]词/曲：甲\n[00:01.00]编曲/制作：乙\n[00:10.00]灯火在河面", "灯火在河面"),
    ("dash labels", "作词 - 甲\n作曲 - 乙\n灯火在河面\n慢慢散开", "灯火在河面\n慢慢散开"),
    ("label only line then name", "作词\n甲\n作曲\n乙\n\n灯火在河面\n慢慢散开", "灯火在河面\n慢慢散开"),
    ("jp uta", "夜航 歌詞\n歌手:甲\n作詞:乙\n作曲:丙\n\n静かな夜に\n船が出る", "静かな夜に\n船が出る"),
    ("jp full", "作詞\u3000甲\n作曲\u3000乙\n\n静かな夜に\n船が出る", "静かな夜に\n船が出る"),
    ("korean label end", "조용한 밤에\n배가 떠나네\n\n작사 갑\n작곡 을", "조용한 밤에\n배가 떠나네"),
    (
        "vocal list",
        "Vocals - Ann\nGuitar - Bob\nDrums - Cyd\n\nline one here\nline two here",
        "line one here\nline two here",
    ),
    (
        "copyright lines",
        "line one here\nline two here\nLyrics © Universal Music Publishing Group\nSongwriters: Ann / Bob",
        "line one here\nline two here",
    ),
    # False friends
    ("in the middle stays", lrc("灯火在河面", "鼓：咚咚", "慢慢散开"), "灯火在河面\n鼓：咚咚\n慢慢散开"),
    (
        "speech behind credits stays",
        lrc("作词：甲", "作曲：乙", "他说：我爱你", "灯火在河面"),
        "他说：我爱你\n灯火在河面",
    ),
    ("a single drum at the end stays", lrc("灯火在河面", "慢慢散开", "鼓：咚咚"), "灯火在河面\n慢慢散开\n鼓：咚咚"),
    ("written by as a line stays", f"Written by the stars above\n{E}", f"Written by the stars above\n{E}"),
    ("music as a line stays", f"Music: my only friend!\n{E}", f"Music: my only friend!\n{E}"),
    ("曲终人散 stays", lrc("曲终人散", *S.split("\n")), f"曲终人散\n{S}"),
    ("a first line with a dash stays", lrc("Hello - again", *E.split("\n")), f"Hello - again\n{E}"),
    ("a clock stays", f"12:30 I wake up\n{E}", f"12:30 I wake up\n{E}"),
    ("a question with a colon stays", f"{E}\nTell me: why?", f"{E}\nTell me: why?"),
    ("a letter read out stays", "亲爱的：你好吗\n我在远方想你\n灯火在河面", "亲爱的：你好吗\n我在远方想你\n灯火在河面"),
]

HEADINGS = [
    ("round brackets", "(verse)\na b\n(chorus)\nc d", "[verse]\na b\n[chorus]\nc d"),
    ("colons", "Verse 1:\na b\n\nChorus:\nc d", "[verse]\na b\n\n[chorus]\nc d"),
    ("Chinese", "主歌：\n灯火在河面\n副歌：\n慢慢散开", "[verse]\n灯火在河面\n[chorus]\n慢慢散开"),
    (
        "full-width brackets",
        "【主歌】\n灯火在河面\n【副歌】\n慢慢散开\n【间奏】",
        "[verse]\n灯火在河面\n[chorus]\n慢慢散开\n[inst]",
    ),
    (
        "Genius",
        "[Verse 1: Ann & Bob]\na b\n[Pre-Chorus]\nc d\n[Chorus: Ann, Both]\ne f\n[Guitar Solo]\n[Outro]\ng h",
        "[verse]\na b\n[pre-chorus]\nc d\n[chorus]\ne f\n[solo]\n[outro]\ng h",
    ),
    ("bare words", "Verse 1\na b\n\nChorus\nc d\n\nBridge\ne f", "[verse]\na b\n\n[chorus]\nc d\n\n[bridge]\ne f"),
    ("decorated", "-- Chorus --\na b\n*Bridge*\nc d\n<Outro>\ne f", "[chorus]\na b\n[bridge]\nc d\n[outro]\ne f"),
    (
        "Japanese",
        "【Aメロ】\n静かな夜\n【Bメロ】\n星の海\n【サビ】\n渡って行こう",
        "[verse]\n静かな夜\n[pre-chorus]\n星の海\n[chorus]\n渡って行こう",
    ),
    ("Korean", "(벌스)\n조용한 밤\n(후렴)\n별의 바다", "[verse]\n조용한 밤\n[chorus]\n별의 바다"),
    (
        "Spanish",
        "[Verso 1]\nNo puedo\n[Estribillo]\nPara siempre\n[Puente]\nTe amo",
        "[verse]\nNo puedo\n[chorus]\nPara siempre\n[bridge]\nTe amo",
    ),
    ("French", "Couplet 1 :\nJe pars\nRefrain :\nReviens", "[verse]\nJe pars\n[chorus]\nReviens"),
    ("German", "Strophe 1:\nIch geh\nRefrain:\nKomm her", "[verse]\nIch geh\n[chorus]\nKomm her"),
    ("Russian", "Куплет 1:\nЯ помню\nПрипев:\nСвет", "[verse]\nЯ помню\n[chorus]\nСвет"),
    ("Indonesian", "Reff:\naku cinta\nkamu", "[chorus]\naku cinta\nkamu"),
    ("text behind a colon", "Chorus: we are free\ntill the day", "[chorus]\nwe are free\ntill the day"),
    ("two languages", "副歌 Chorus\n慢慢散开", "[chorus]\n慢慢散开"),
    ("text behind a bracket", "[chorus] we are free\ntill the day", "[chorus]\nwe are free\ntill the day"),
    ("timed", "[00:10.00][Verse]\n[00:10.00]a b\n[00:14.00]Chorus:\n[00:15.00]c d", "[verse]\na b\n[chorus]\nc d"),
    ("instrumental in between", "a b\n(Instrumental)\nc d\n[Instrumental Break]\ne f", "a b\n[inst]\nc d\n[inst]\ne f"),
    ("rap label", "Rap：\n灯火在河面\n主歌：慢慢散开", "[verse]\n灯火在河面\n[verse]\n慢慢散开"),
    ("hook", "Hook\nline one\nVerse\nline two", "[hook]\nline one\n[verse]\nline two"),
    ("verse roman", "VERSE II\nline one\nCHORUS:\nline two", "[verse]\nline one\n[chorus]\nline two"),
    ("dash heading", "---Verse---\nline one\n===Chorus===\nline two", "[verse]\nline one\n[chorus]\nline two"),
    (
        "numbered stanzas",
        "1.\nline one\nline two\n\n2.\nline three\nline four",
        "[verse]\nline one\nline two\n\n[verse]\nline three\nline four",
    ),
    ("md", "**Verse 1**\nline one\n\n**Chorus**\nline two", "[verse]\nline one\n\n[chorus]\nline two"),
    ("md2", "## Verse 1\nline one\n### Chorus\nline two", "[verse]\nline one\n[chorus]\nline two"),
    # False friends
    ("solo is sung", "Solo\nno puedo dormir\nsolo", "Solo\nno puedo dormir\nsolo"),
    ("the end is sung", "this is\nthe end\n(end)", "this is\nthe end\n(end)"),
    (
        "the chorus of a line",
        "sing the chorus with me\nthe bridge is burning",
        "sing the chorus with me\nthe bridge is burning",
    ),
    ("weekend", "(weekend)\nit is the weekend", "(weekend)\nit is the weekend"),
    ("note: is sung", "Note: to myself\nbe kind", "Note: to myself\nbe kind"),
    ("break!", "Break!\nbreak it down", "Break!\nbreak it down"),
]

REPEATS = [
    ("x2", "la lantern (x2)\nthe end of it", "la lantern\nla lantern\nthe end of it"),
    ("2x", "hold the light 2x\nthe end of it", "hold the light\nhold the light\nthe end of it"),
    ("×3", "慢慢散开 ×3\n灯火在河面", "慢慢散开\n慢慢散开\n慢慢散开\n灯火在河面"),
    (
        "repeat chorus",
        "Chorus:\nc d\n\nVerse 2:\na b\n\n(Repeat Chorus)",
        "[chorus]\nc d\n\n[verse]\na b\n\n[chorus]\nc d",
    ),
    ("chorus alone", "[Chorus]\nc d\n\n[Verse 2]\na b\n\n[Chorus]", "[chorus]\nc d\n\n[verse]\na b\n\n[chorus]\nc d"),
    ("section twice", "[Chorus x2]\nc d\n[Verse]\na b", "[chorus]\nc d\nc d\n[verse]\na b"),
    (
        "重复副歌",
        "副歌：\n慢慢散开\n主歌：\n灯火在河面\n重复副歌",
        "[chorus]\n慢慢散开\n[verse]\n灯火在河面\n[chorus]\n慢慢散开",
    ),
    ("a number is sung", "we are 2\nroute 66\nten times ten", "we are 2\nroute 66\nten times ten"),
    ("repeat is sung", "repeat after me\nagain and again", "repeat after me\nagain and again"),
    (
        "chorus repeat x",
        "Chorus: (x2)\nline one\nline two\nVerse\nline three",
        "[chorus]\nline one\nline two\nline one\nline two\n[verse]\nline three",
    ),
    ("bis", "ma la lune (bis)\nje pars demain", "ma la lune\nma la lune\nje pars demain"),
    ("repeat line cn", "慢慢散开（重复两遍）\n灯火在河面", "慢慢散开\n慢慢散开\n灯火在河面"),
]

SPEAKERS = [
    ("男女合", "男：灯火在河面\n女：慢慢散开\n合：我把名字写进风里来", "灯火在河面\n慢慢散开\n我把名字写进风里来"),
    ("in brackets", "(男) 灯火在河面\n（女）慢慢散开\n(合)写进风里来", "灯火在河面\n慢慢散开\n写进风里来"),
    ("alone", "(男)\n灯火在河面\n(女)\n慢慢散开", "灯火在河面\n慢慢散开"),
    (
        "English",
        "Male: hold the light\nFemale: till the day\nBoth: stay with me",
        "hold the light\ntill the day\nstay with me",
    ),
    (
        "names",
        "Anna: hold the light\nBob: till the day\nAnna: stay with me\nBob: and sing",
        "hold the light\ntill the day\nstay with me\nand sing",
    ),
    ("square brackets", "[Anna]\nhold the light\n[Bob]\ntill the day", "hold the light\ntill the day"),
    (
        "surnames",
        "周：灯火在河面\n林：慢慢散开\n周：写进风里\n合：我把名字",
        "灯火在河面\n慢慢散开\n写进风里\n我把名字",
    ),
    ("speakers bracket eng", "[Ann]\nhello there\n[Both]\nstay", "hello there\nstay"),
    (
        "speakers colon spaced",
        "Ann : hello there\nBob : stay here\nAnn : go on\nBob : and on",
        "hello there\nstay here\ngo on\nand on",
    ),
    ("(Ann) prefix", "(Ann) hello there\n(Bob) stay here\n(Ann) go on", "hello there\nstay here\ngo on"),
    (
        "zh names speakers",
        "小明：灯火在河面\n小红：慢慢散开\n小明：写进风里\n小红：再见",
        "灯火在河面\n慢慢散开\n写进风里\n再见",
    ),
    # False friends
    (
        "she said",
        "She said: come home\nHe said: not now\nShe said: please stay",
        "She said: come home\nHe said: not now\nShe said: please stay",
    ),
    ("他说", "他说：我爱你\n她说：再见\n他说：别走", "他说：我爱你\n她说：再见\n他说：别走"),
    ("a single name", "Anna: stay with me\ntill the day", "Anna: stay with me\ntill the day"),
    ("men alone", "男人哭吧\n女人也一样", "男人哭吧\n女人也一样"),
]

JUNK = [
    ("site at the end", f"{E}\nwww.example-lyrics.com", E),
    ("address with words", f"更多歌词请访问 http://www.example.cn\n{S}", S),
    ("made by", "[00:00.00]LRC by somebody\n" + lrc(*S.split("\n")), S),
    ("歌词来自", lrc(*S.split("\n"), "歌词来自酷狗音乐"), S),
    ("rights", lrc(*S.split("\n"), "未经著作权人许可，不得翻唱、翻录或使用"), S),
    ("Musixmatch", f"{E}\n\n******* This Lyrics is NOT for Commercial use *******\n(1409618742397)", E),
    ("English rights", f"{E}\n© 2020 Example Music. All rights reserved.", E),
    (
        "thanks for watching",
        SRT.format(FIRST, SECOND) + "\n3\n00:01:00,000 --> 00:01:02,000\nThanks for watching!\n",
        E,
    ),
    (
        "subtitles by",
        SRT.format(FIRST, SECOND) + "\n3\n00:01:00,000 --> 00:01:02,000\nSubtitles by the Amara.org community\n",
        E,
    ),
    ("明镜", lrc(*S.split("\n"), "请不吝点赞 订阅 转发 打赏支持明镜与点点栏目"), S),
    ("ご視聴", lrc(*J.split("\n"), "ご視聴ありがとうございました"), J),
    ("notes", lrc("♪", *E.split("\n"), "♪♪♪", "[Music]", "(applause)"), E),
    (
        "entities",
        "I don&#39;t know &amp; I don&apos;t care<br>stay &quot;here&quot;&nbsp;baby",
        "I don't know & I don't care\nstay \"here\" baby",
    ),
    ("elements", "<p>hold the light</p><p><i>till the day</i></p>", "hold the light\ntill the day"),
    ("double entities", "you &amp;amp; me\nrock &amp;#39;n roll", "you & me\nrock 'n roll"),
    (
        "Genius",
        "12 ContributorsTranslationsDeutschLantern Lyrics[Verse 1]\nhold the light\nYou might also like[Chorus]\ntill the day23Embed",
        "[verse]\nhold the light\n[chorus]\ntill the day",
    ),
    (
        "Genius, own title line",
        "Lantern Lyrics\n[Verse 1]\nhold the light\nSee Ann LiveGet tickets as low as $47You might also like\ntill the day\n5Embed",
        "[verse]\nhold the light\ntill the day",
    ),
    (
        "genius new",
        "Lantern Lyrics\n“Lantern” is a song by Ann about… Read More \n[Verse 1]\nline one here\n[Chorus]\nline two here",
        "[verse]\nline one here\n[chorus]\nline two here",
    ),
    (
        "genius contrib fr",
        "3 ContributeursLantern Lyrics[Couplet 1]\nla lune est là\nje pars",
        "[verse]\nla lune est là\nje pars",
    ),
    (
        "genius about",
        "5 ContributorsLantern LyricsThe song is about light… Read More[Verse]\nline one\nline two",
        "[verse]\nline one\nline two",
    ),
    (
        "srt music",
        "1\n00:00:01,000 --> 00:00:02,000\n♪ hello there ♪\n\n2\n00:00:03,000 --> 00:00:04,000\n[upbeat music playing]\n",
        "hello there",
    ),
    ("notes around", "♪ hello there ♪\n♪ stay here ♪", "hello there\nstay here"),
    ("site1", "歌词由 酷狗音乐 提供\n灯火在河面\n慢慢散开", "灯火在河面\n慢慢散开"),
    ("site3", "灯火在河面\n@QQ音乐\n慢慢散开", "灯火在河面\n慢慢散开"),
    ("site4", "Lyrics from Genius.com\nline one here\nline two here", "line one here\nline two here"),
    ("html2", "<b>Chorus</b><br>line one<br>line two", "[chorus]\nline one\nline two"),
    ("fence", "```\nline one\nline two\n```", "line one\nline two"),
    ("model answer", "# Lyrics\n[Verse]\nline one\nline two", "[verse]\nline one\nline two"),
    (
        "chords",
        "Am      F\nline one here\nC  G/B  Am7\nline two here\n[Chords]\nAm F C G",
        "line one here\nline two here",
    ),
    ("tabs inline chords", "[Am]line one [F]here\n[C]line two [G]here", "line one here\nline two here"),
    ("bullets", "• line one\n• line two", "line one\nline two"),
    ("numbered lines", "1. line one\n2. line two\n3. line three", "line one\nline two\nline three"),
    ("numbers sung", "1\n2\n3\n4\nlet's go", "1\n2\n3\n4\nlet's go"),
    ("furigana brackets", "静(しず)かな夜(よる)に\n船(ふね)が出(で)る", "静かな夜に\n船が出る"),
    ("ruby", "<ruby>静<rt>しず</rt></ruby>かな夜\n船が出る", "静かな夜\n船が出る"),
    # False friends
    ("a heart as less than", "I <3 you\nyou <3 me", "I <3 you\nyou <3 me"),
    ("ampersand", "you & me\nR&B tonight", "you & me\nR&B tonight"),
    ("without permission, as a song says", f"未经允许擅自特别喜欢你\n{S}", f"未经允许擅自特别喜欢你\n{S}"),
    ("see you next time", f"{E}\nsee you next time", f"{E}\nsee you next time"),
    ("字幕 is sung", lrc("字幕缓缓升起", *S.split("\n")), f"字幕缓缓升起\n{S}"),
    ("thank you is sung", f"thank you\nthank you for the music\n{E}", f"thank you\nthank you for the music\n{E}"),
    ("no voice is sung", f"No voice\nno singing\n{E}", f"No voice\nno singing\n{E}"),
    ("dot com is not every dot", f"Mr. Moon. Come home\n{E}", f"Mr. Moon. Come home\n{E}"),
    ("embed in a line", f"embedded in my heart\n{E}", f"embedded in my heart\n{E}"),
]

PLACEHOLDERS = [
    *(
        (text, text, None)
        for text in (
            "[00:00.00]暂无歌词",
            "该歌曲暂无歌词",
            "暂无歌词信息",
            "歌词加载中",
            "没有找到歌词",
            "No lyrics available",
            "Lyrics not available.",
            "We don't have the lyrics for this song yet",
            "歌詞はありません",
            "가사가 없습니다",
            "Lyrics for this song have yet to be released. Please check back once the song has been released.",
            "N/A",
            "текст песни не найден",
            "...",
            "[ti:x]\n[00:00.00]",
            "[00:00.00]作词：甲\n[00:01.00]作曲：乙\n[00:02.00]暂无歌词",
        )
    ),
    *(
        (text, text, "[instrumental]")
        for text in (
            "[00:00.00]纯音乐，请欣赏",
            "此歌曲为没有填词的纯音乐，请您欣赏",
            "[00:00.00]作曲 : 甲\n[00:05.00]纯音乐，请欣赏",
            "[instrumental]",
            "Instrumental",
            "(Instrumental)",
            "純音樂，請欣賞",
            "This song is an instrumental",
            "[00:01.00]Composer: Ann\n[00:02.00]Instrumental",
            '{"instrumental": true, "plainLyrics": null, "syncedLyrics": null}',
        )
    ),
    ("placeholder2", "[00:00.00]此版本为纯音乐，请欣赏", "[instrumental]"),
    ("placeholder3", "暂无歌词，敬请期待", None),
    ("placeholder4", "歌词暂未收录", None),
    ("placeholder5", "This track has no lyrics", None),
    ("placeholder6", "インストゥルメンタル", "[instrumental]"),
    ("placeholder7", "【纯音乐】", "[instrumental]"),
    ("placeholder8", "目前尚未有歌詞", None),
    ("placeholder9", "Coming soon", None),
    ("placeholder10", "♪ Instrumental ♪", "[instrumental]"),
    ("placeholder11", "(no vocals)", "[instrumental]"),
]

FORMATS = [
    ("SRT", SRT.format(FIRST, SECOND), E),
    (
        "SRT without numbers",
        f"00:00:12,130 --> 00:00:15,000\n{FIRST}\n\n00:00:16,000 --> 00:00:19,000\n{SECOND}\n",
        E,
    ),
    ("SRT with styles", SRT.format(f"<i>{FIRST}</i>", f'{{\\an8}}<font color="#fff">{SECOND}</font>'), E),
    ("SRT, a number is sung", SRT.format("1999", SECOND), f"1999\n{SECOND}"),
    (
        "WebVTT",
        f"WEBVTT\nKind: captions\n\nNOTE made here\n\n00:12.130 --> 00:15.000 align:start\n{FIRST}\n\nintro\n00:00:16.000 --> 00:00:19.000\n{SECOND}\n",
        E,
    ),
    ("Whisper's lines", f"[00:12.130 --> 00:15.000]  {FIRST}\n[00:16.000 --> 00:19.000]  {SECOND}", E),
    (
        "ASS",
        f"[Script Info]\nTitle: x\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\nDialogue: 0,0:00:16.00,0:00:19.00,Default,,0,0,0,,{SECOND}\nDialogue: 0,0:00:12.13,0:00:15.00,Default,,0,0,0,,{{\\k20}}{FIRST}",
        E,
    ),
    (
        "TTML",
        f'<tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="12.13" end="15">{FIRST}</p><p begin="0:16.0" end="19"><span>until the morning</span> <span>finds the door</span></p></div></body></tt>',
        E,
    ),
    (
        "NetEase JSON",
        '{"lrc":{"lyric":"[00:10.00]静かな夜\\n[00:14.00]星の海"},"tlyric":{"lyric":"[00:10.00]寂静的夜\\n[00:14.00]星海"},"romalrc":{"lyric":"[00:10.00]shizuka na yoru\\n[00:14.00]hoshi no umi"}}',
        "静かな夜\n星の海",
    ),
    (
        "LRCLIB JSON",
        '{"trackName":"Lantern","artistName":"Ann","instrumental":false,"plainLyrics":"a b\\nc d","syncedLyrics":"[00:10.00] a b\\n[00:14.00] c d"}',
        "a b\nc d",
    ),
    (
        "Spotify JSON",
        '{"lyrics":{"syncType":"LINE_SYNCED","lines":[{"startTimeMs":"960","words":"a b","syllables":[],"endTimeMs":"0"},{"startTimeMs":"4020","words":"c d","syllables":[],"endTimeMs":"0"}]}}',
        "a b\nc d",
    ),
    (
        "Whisper JSON",
        '{"text":" a b c d","segments":[{"id":0,"start":0.5,"end":2.0,"text":" a b"},{"id":1,"start":4.0,"end":6.0,"text":" c d"}],"language":"en"}',
        "a b\nc d",
    ),
    (
        "LyricsGenius JSON",
        '{"title":"Lantern","artist":"Ann","lyrics":"3 ContributorsLantern Lyrics[Verse 1]\\na b\\nc d2Embed"}',
        "[verse]\na b\nc d",
    ),
    ("YRC", "[12130,3000](12130,500,0)I (12630,500,0)keep\n[16000,3000](16000,900,0)burning", "I keep\nburning"),
    ("KRC", "[12130,3000]<0,500,0>I <500,500,0>keep\n[16000,3000]<0,900,0>burning", "I keep\nburning"),
    (
        "QRC",
        '<?xml version="1.0"?><QrcInfos><LyricInfo><Lyric_1 LyricType="1" LyricContent="[ti:x]\n[12130,3000]I (12130,500)keep(12630,500)\n[16000,3000]burning(16000,900)"/></LyricInfo></QrcInfos>',
        "I keep\nburning",
    ),
    ("word stamps", "[00:12.00]<00:12.00>I <00:12.50>keep\n[00:16.00]<00:16.00>burning", "I keep\nburning"),
    (
        "caption of another trainer",
        "<CAPTION>\nA calm song.\n</CAPTION>\n<LYRICS>\n[Verse 1]\na b\n</LYRICS>\n<BPM>92</BPM>",
        "[verse]\na b",
    ),
    ("four digits", "[00:12.1234]a b\n[0:14.5]c d\n[00:16]e f\n(00:18.00)g h", "a b\nc d\ne f\ng h"),
    ("bare times", "0:12 a b\n0:16 c d\n0:20 e f", "a b\nc d\ne f"),
    ("hours", "[00:00:12.00]a b\n[00:00:16.00]c d", "a b\nc d"),
    ("times at the end", "a b [00:12.00]\nc d [00:16.00]", "a b\nc d"),
    ("decomposed Korean", "\u110c\u1169\u110b\u116d\u11bc", "\uc870\uc6a9"),
    ("decomposed Latin", "e\u0301te\u0301 caf\u0065\u0301", "été café"),
    ("fullwidth digits", "[００:１２.００]line one\n[００:１４.００]line two", "line one\nline two"),
    ("cn brackets stamp", "【00:12.00】line one\n【00:14.00】line two", "line one\nline two"),
    ("escape n", "line one\\nline two\\nline three", "line one\nline two\nline three"),
    ("json string list", '["line one", "line two"]', "line one\nline two"),
    ("srt dots", "1\r\n0:00:01.000 --> 0:00:02.000\r\nline one\r\n", "line one"),
    ("sbv", "0:00:01.000,0:00:02.000\nline one\n\n0:00:03.000,0:00:04.000\nline two\n", "line one\nline two"),
    ("audacity", "1.000000\t2.000000\tline one\n3.000000\t4.000000\tline two", "line one\nline two"),
    ("csv", "start,end,text\n1.0,2.0,line one\n3.0,4.0,line two", "line one\nline two"),
    (
        "ultrastar",
        "#TITLE:Lantern\n#ARTIST:Ann\n#BPM:120\n: 0 4 10 I\n: 5 4 10  keep\n- 10\n: 12 4 8 the\n: 17 4 8  light\nE",
        "I keep\nthe light",
    ),
    # False friends
    ("a verse that begins with a bracket", "[verse]\n{a b}\nc d", "[verse]\n{a b}\nc d"),
    ("a single time is sung", "4:20 in the morning\nI wake", "4:20 in the morning\nI wake"),
    ("an arrow is sung", "from A --> B\nI run", "from A --> B\nI run"),
    ("tags are no lyrics", "rock, electric guitar, 120 bpm, female vocal, energetic", None),
    (
        "a line with commas is",
        "hello, my friend, I am here, and you are not, so what.",
        "hello, my friend, I am here, and you are not, so what.",
    ),
]

# Each of them only looks like something that is not sung: all of it stays, with times as well.
FALSE_FRIENDS = [
    "我的鼓：咚咚锵\n我的琴：叮叮当\n灯火在河面",
    "Love: it is all we need\nHope: it is all we have\nFaith: it keeps us here",
    "Drums: boom boom\nBass: bum bum\nEverybody dance now",
    "问：你爱我吗\n答：我爱你\n问：有多爱",
    "写信给你：亲爱的\n慢慢散开",
    "Monday: I wake up\nTuesday: I fall\nWednesday: I rise",
    "Chapter one: the fall\nI was young and afraid\nChapter two: the rise",
    "One: I love you\nTwo: you love me\nThree: we are one",
    "Breaking news: I love you\ntell me: do you",
    "So I said: hello\nShe whispered: stay",
    "PS: I love you\nPPS: I always will",
    "Rap is my life\nhook me up\nbridge over water",
    "(come back)\nhold the light\n(come back)",
    "(Hold me) close tonight\n(Kiss me) before the dawn\n(Love me) until the end",
    "(Oh) baby\n(Hey) you\n(Oh) stay",
    "A B C D E F G\nnow I know my A B C",
    "Am I wrong\nA man in love\nBe mine",
    "1 2 3 4\ntell me that you love me more",
    "10:35 on a Sunday night\nwe are young",
    "x\ny\nz",
    "100% 爱你\n50% 的心",
    "email me at midnight\nlove dot com",
    "她说 www 是什么\n我说不知道啊",
    "thank you for watching over me\nthank you for your love",
    "please subscribe to my love\nI am yours",
    "music\nmusic is my life\nmusic",
    "instrumental to my heart\nyou are",
    "未完待续的故事\n请勿忘记我",
    "版权所有的爱\n都归你",
    "作词的人走了\n作曲的人也走了",
    "歌词写满了你\n歌词里没有我",
    "翻唱一首老歌\n原唱是你",
    "演唱会结束了\n合唱的人散了",
    "Verse after verse I write\nchorus of angels sing",
    "Intro to love\noutro of pain",
    "repeat the sounding joy\nrepeat, repeat the sounding joy",
    "twice as bright\nhalf as long",
    "四次三番\n重复着爱",
    "I'm sorry\nI can't transcribe my heart",
    "All: for one\nOne: for all",
    "Everybody: clap your hands",
    "Man in the mirror\nWoman in love",
    "男孩：不要哭\n慢慢散开",
    "the end\nfin",
    "Coda\nmy friend",
    "Copyright my heart\nall of it",
    "<3 <3 <3\nI <3 you",
    "[whispers] come here\nhold me",
    "Hello - it's me\nI was wondering - if you",
    "love / hate\nhate / love\nlove / hate",
    "ALL CAPS: LOUD\nQUIET",
    "微信里说：晚安\n我在灯火下等你",
    "字幕组的青春\n不会散场",
    "纯音乐般的你\n像一首歌",
    "暂无歌词的青春\n慢慢散开",
]

TABLES = {
    "translation": TRANSLATIONS,
    "credits": CREDITS,
    "heading": HEADINGS,
    "repeat": REPEATS,
    "speaker": SPEAKERS,
    "junk": JUNK,
    "placeholder": PLACEHOLDERS,
    "format": FORMATS,
}
CASES = [(kind, name, text, expected) for kind, table in TABLES.items() for name, text, expected in table]
CASES += [("false friend", text.split("\n")[0], text, text) for text in FALSE_FRIENDS]
CASES += [("false friend", f"{text[:20]}, timed", lrc(*text.split("\n")), text) for text in FALSE_FRIENDS]
