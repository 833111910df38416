"""Short lyrics by language: (text, the language set by the user, parts of what is said, "" for nothing).

Made for these tests.
"""

TOLD = [
    (
        "Te amo\nNo puedo dormir\nEsperé toda la noche\nPara oír tu voz\nQuédate conmigo\nPara siempre",
        None,
        "the whole text is Spanish",
    ),
    (
        "Debug the night on a neon screen\n硅谷的她 调试 neural network\nBaby 来吧 let's go 跳舞\nSee you 今夜 tonight my friend",
        None,
        "will be read as Japanese",
    ),
    (
        "Debug the night on a neon screen\n硅谷的她 调试 neural network\nBaby 来吧 let's go 跳舞",
        None,
        "mix words in latin letters and Chinese",
    ),
    ("我哋喺度等緊你\n佢話唔知點解\n冇人明白我嘅心", None, "Cantonese"),
    ("我哋喺度等緊你\n佢話唔知點解\n冇人明白我嘅心", "zh", "Cantonese"),
    ("夜桜 月光\n春風 花嵐\n永遠 約束", None, "Chinese characters alone"),
    ("la la", None, "too short"),
    ("Te amo", None, "too short"),
    ("Miluji tě\nnavždy", None, "the whole text is Czech"),
    (
        "灯火在河面慢慢散开\nBaby don't go away tonight\n我把名字写进风里来\nI love you so my dear",
        None,
        "mix Chinese (zh) and words in latin letters",
    ),
    (
        "\u1109\u1161\u1105\u1161\u11bc\u1112\u1162\u110b\u116d \u1102\u1165\u1105\u1173\u11af \u110b\u1167\u11bc\u110b\u116f\u11ab\u1112\u1175",
        None,
        "decomposed",
    ),
    ("Jag vill ha dig här hos mig i natt\noch aldrig mer vara ensam igen", None, "Swedish"),
]
QUIET = [
    "I keep the lantern burning low\nuntil the morning finds the door",
    "月亮代表我的心\n你问我爱你有多深\n我爱你有几分",
    "月亮代表我的心\n你問我愛你有多深",
    "夜を越えて\n君に会いたい\n永遠に続く道を",
    "조용한 밤에 배가 떠나네\n별의 바다를 건너 가자",
    "Eu te amo demais\nNão posso viver sem você\nTodo dia é igual",
    "Ich liebe dich für immer\nund niemals lass ich dich allein",
    "Quiero bailar contigo\ntoda la noche\nhasta que salga el sol",
    "Я помню чудное мгновенье\nПередо мной явилась ты",
    "灯火在河面慢慢散开\n我把名字写进风里来\nBaby",
    "[instrumental]",
    "",
]
SET = [
    ("Te amo\nNo puedo dormir\nEsperé toda la noche", "es"),
    ("夜桜 月光\n春風 花嵐\n永遠 約束", "ja"),
    ("Te amo", "es"),
]
