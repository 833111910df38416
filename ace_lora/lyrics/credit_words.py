"""What labels of credits are made of, and labels of who sings, in the languages of the sites that write them."""

from __future__ import annotations

import re

from ace_lora.lyrics.phrases import alternatives

# What a Chinese, Japanese or Korean label is made of: "录音棚", "混音/母带", "音乐制作人", "作詞・作曲".
# Each part is taken as it is found first, so that a long row of them takes no time.
CJK_LABEL = re.compile(
    "(?:(?=("
    + alternatives(r"""
    作?[词詞曲]|填[词詞]|[词詞]曲|[谱譜]曲|[编編][曲写寫程]|改[编編]|演唱|原唱|主唱|[领領]唱|翻唱|独唱|獨唱|合唱
    重唱|[对對]唱|伴唱|歌手|[歌曲]名|歌曲|歌[词詞]?|唄|うた|[专專][辑輯]|[制製]作|[监監][制製]|出品|[发發]行|混音
    [缩縮]混|[录錄]音|錄音|録音|[录錄][制製]|收[录錄]|母[带帶]|后期|後期|[和合][声聲音]|和聲|吉他|[贝貝]斯
    [低高中][音]|[架爵电電木打军軍手大小]?鼓|[键鍵][盘盤]|[钢鋼]琴|[弦管铜銅木拨撥][乐樂管]?|[小中大低]提琴|提琴
    二胡|琵琶|古[筝箏琴]|[竹长長短横]?[笛箫簫]|笛子|萨克斯|薩克斯|[小长長圆圓]?[号號]|打[击擊][乐樂]?|口琴
    手[风風]琴|合成器|[电電]子|采样|[编編]配|扬琴|阮|唢呐|笙|马头琴|[统統][筹籌]|[企策][划劃畫]|[宣推][传傳广廣]
    [营營][销銷]|版[权權]|封面|[设設][计計]|[视視][频頻觉覺]|[导導]演|摄影|剪辑|[总總](?:监|監)?|[监監][督制製]?
    [艺藝][人术術][人]?|[经經][纪紀]|[特别別]*[鸣鳴][谢謝]|[感致][谢謝]|配[唱乐樂器]|[声聲][乐樂]|指[导導揮挥]
    文案|海[报報]|美[术術工]|[调調][音教校]|曲[绘繪師师]|映像|[动動][画畫]|插[画畫]|[题題]字|[书書]法|[出]版
    [词詞]作|曲作|[顾顧][问問]|[项項]目|[推]荐|[联聯]合|协[力助]|[執执]行|[总總]|副|助理|主|[音][乐樂响響]
    [人][声聲]|[技]术|[工]程|[乐樂][队隊器手团團]|[交]响|[团團][队隊]?|公司|工作室|棚|室|[单單]位|平台
    [中文]?文?[翻译譯]+|[字]幕|[时時][间間][轴軸]?|[制]谱|[首]席|作詞|作曲|編曲|訳詞|補作詞|調声|演奏|歌唱|絵|動画
    編集|企画|制作|ボーカル|ヴォーカル|コーラス|ギター|ベース|ドラムス?|キーボード|ピアノ|バイオリン|ストリングス
    ミックス|ミキシング|マスタリング|レコーディング|プロデュー(?:ス|サー)|イラスト|アレンジ|ディレクター
    エンジニア|アーティスト|アルバム|タイトル|작사|작곡|편곡|노래|보컬|가수|프로듀서|앨범|기타|베이스|드럼|피아노
    믹싱|마스터링|코러스
""")
    + r"))\1)+[人师師手者员員家方]?[们們]?"
)
# The words of labels in European languages, Turkish and Indonesian.
LABEL_WORDS = frozenset(
    """
    lyrics lyric lyricist lyricists words music composer composers composed composition writer writers written
    songwriter songwriters songwriting arranger arrangers arranged arrangement arrangements arr producer
    producers produced production prod executive co vocal vocals vocalist vocalists backing background harmony
    harmonies lead singer singers artist artists performed performer performers featuring feat guitar guitars
    guitarist electric acoustic bass bassist drum drums drummer percussion keyboard keyboards keys piano pianist
    synth synthesizer synthesizers strings violin violins viola cello cellos saxophone sax trumpet brass flute
    harp programming programmer mix mixed mixing mixer master mastered mastering engineer engineers engineered
    assistant recorded recording recordist studio studios label labels publisher publishers published publishing
    op sp isrc iswc copyright album title song track distributed distributor distribution director directed art
    artwork cover design designer a&r project manager supervisor supervision supervised special thanks
    translated translation translator editing editor edited released release year genre original coordinator
    coordination management company adapted adaptation orchestra conductor orchestration orchestrated digital
    session musician musicians sound soundtrack mv chorus letra letras música musica compositor compositores
    compuesta autor autores intérprete interpretada productor produtor arreglos arranjo composição paroles
    musique auteur auteurs compositeur compositeurs interprète réalisé réalisation testo testi autori
    compositore musik text texter komponist produzent gesang arrangeur слова музыка автор исполнитель композитор
    продюсер текст аранжировка słowa muzyka wykonawca söz müzik beste düzenleme söz-müzik lirik lagu pencipta
    penyanyi
    """.split()  # noqa: SIM905 - a list of words reads as one
)
CONNECTING_WORDS = frozenset("& and at by da de del do e et for in in-house of par the und von y 与 及 和".split())  # noqa: SIM905
# Labels that are credits wherever a colon follows; the others need another credit beside them.
CERTAIN_LABEL = re.compile(
    alternatives(r"""
    (?:作|填|译|譯|訳)[词詞]|[作谱譜]曲|[编編]曲|[制製]作人?|出品人?|[监監][制製]|混音.*|[录錄録]音.*|母[带帶].*
    [和]声|原唱|演唱|[词詞]曲|发行|發行|OP|SP|ISRC|ISWC|작사|작곡|편곡
    (?:lyrics?|music|words|written|composed|produced|arranged|mixed|mastered|recorded|performed|engineered
        |translated)(?: (?:and|&) \w+)* by
    lyricists?|composers?|songwriters?|(?:executive )?producers?|arrangers?|arrangement|arranged
    mix(?:ed|ing)? engineer|mastering(?: engineer)?|publishers?|copyright|compositor(?:es)?|paroles|komponist
    композитор|söz|music director|writers?|produced
"""),
    re.IGNORECASE,
)
CREDIT_WITH_BY = re.compile(
    r"(?P<label>(?:(?:lyrics?|music|words|songs?|written|composed|arranged|produced|mixed|mastered|recorded|performed|"
    r"engineered|vocals?|directed|published|distributed|original|all|instruments?|tracks?|guitars?|bass|drums|keyboards?|"
    r"programmed|translated|adapted|prod\.?|&|and|,|/|\+)\s*)+\s*by)\b\s*[:：]?\s*(?P<name>\S.{0,80})",
    re.IGNORECASE,
)
# Who sings, as a label in front of a line.
SPEAKER = alternatives(r"""
    男[声聲生]?|女[声聲生]?|男女(?:[声聲合]|合唱)?|合[唱声聲]?|[齐齊][唱]?|独[唱白]?|獨[唱白]?|众|眾|全[体體]?
    童[声聲]|旁白|[念道对對]白|[说說]唱|领唱|領唱|伴唱|和[声聲]|男女|女男|全員|男性|女性|セリフ|台詞|합창|남|여
    함께|all|both|male|female|men|women|man|woman|boys?|girls?|duet|together|everyone|everybody|choir|backing
    backing vocals|background|narrator|spoken|singer \d|speaker \d|voice \d|vocalist \d|lead|m|f|m/f|b/g
""")
