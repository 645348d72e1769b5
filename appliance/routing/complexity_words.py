"""The words by which `complexity` tells what is asked for: beginnings of words by weight, in lower case.

Scripts that write words together, or small words onto others, are looked through for pieces of text instead.
"""

from __future__ import annotations

TASKS: dict[int, str] = {
    8: """
prove proof bewei demontr demostr demuestr dimostr demonstr udowodn bewijs докаж доказ kanıtla
""",
    7: """
deriv herleit leite lineariz deduc deduz ableit вывед implement implémente implementier zaimplement implementuj
реализ uygula design redesign entwirf entwerf entwickl concev conçois diseñ disen projet progett ontwerp
zaprojekt спроектир разработ tasarla
""",
    6: """
algorith algorithm algoritm algorytm алгоритм analys analyz analiz analis analyseer анализ проанализ optimis
optimiz optimier ottimizz optymaliz оптимиз refactor refaktor debug deadlock architect architekt arquitect
architett architettura архитект generalis generaliz verallgemein generalizz uogóln обобщ formulat formulier
formul formaliz
""",
    5: """
explain erklär erkläre explique explic expliqu spieg wyjaśn объясн açıkla uitleg evaluat bewert evalua valuta
avali evalue oceń оцен değerlendir compar vergleich confront vergelijk porównaj porown сравн karşılaştır justif
begründ begrund giustific onderbouw uzasadn обосн gerekçe complexity complexit komplexit complejid complessit
complexid złożoność zlozonosc сложност karmaşıklı laufzeit correctness korrekt correction correttezza корректн
doğrulu trade migrat migrier migraz миграц simulat simulier estimat schätz estime stima szacuj hypothes hypothès
hipótes hipotes ipotes гипотез recommend empfiehl empfehl recommand recomiend raccomand construct konstru
minimis minimiz recursive thread concurren nebenläuf lock linearizab
""",
    4: """
propos vorschlag vorschläg предлож предложи zaproponuj calculat comput berechn calcul calcol wylicz oblicz
вычисл рассчит hesapla scenario scénario escenario szenario сценар assum annahm supos hypoth założen допущен
verif überprüf develop determine bestimm détermin sensitiv risk risik risque riesgo rischi ryzyk риск residual
requirement anforder exigence requisit wymagan требован bottleneck threat mitigat priorit test tests teste
testen pruebas prueba testy тест тесты parser schema query constraint conséquenc consecuenc consequenc ursachen
causas causes auswirk outline interpret quantif distinguish unterscheid conclude strateg latency distributed
capacity
""",
    3: """
discuss diskutier discut discute dyskut обсуд solve löse résou resuelv risolv rozwiąż реш çöz advantag vorteil
nachteil disadvantag avantage ventaj vantagg zalet преимущ identif indicat handle behandl method metric cover
apply fix plan reason evidence
""",
    2: """
write schreib écris ecris escrib scriv napisz напиш yaz schrijf function funktion fonction función funzione
summar difference unterschied différence diferencia why warum pourquoi example beispiel exemple ejemplo esempio
""",
}
"""What there is to do. A word counts once."""

MATHS: dict[int, str] = {
    4: """
theorem théorème teorem satz integral intégral integrale differential derivative ableitung équation equation
ecuación gleichung probabil wahrscheinl вероятн matrix matrice matriz матриц eigen gradient polynom induc indukt
induz irrational converg konverg diverg приведи непрерывн continuous asymptot stochast volatil monte equilibri
linear lineare convex combinator combinatoric bijection
""",
    3: """
prime primes roots wurzel racine raíz root inequality ungleich axis variance confidence sample alpha sum summe
somme suma сумм finite automaton language graph graphen grafo графе grafik interval logit softmax inflection
function graphe logarit square quadrat cubos carrés formula formel geometric geometri геометр нулев bound borne
""",
}

CODE: dict[int, str] = {
    3: """
python java javascript typescript rust golang haskell kotlin swift postgresql sql bash numpy react node scala
ruby php питон mutex goroutine async thread parser regex compiler database datenbank base schema index indexes
cache queue kafka redis mysql kubernetes docker microservic микросервис websocket api server serverless monolith
monolit transaction transak транзакц partition cluster latency latenz задержк throughput linearizab allocation
memory overflow interface rollback
""",
    2: """
class method array string integer loop script endpoint json html css unit mock backend frontend library
bibliothek biblioteca библиотек bibliothèque bibliotek kütüphane
""",
}

LIMITS: dict[int, str] = {
    3: """
must darf dürfen doit doivent debe deben deve devono devem musi mag moet moeten долж должен нельзя malı without
ohne sans sin senza sem zonder bez без olmadan least mindestens moins menos almeno minstens minimaal менее най
most höchstens maximal maximum máximo massim maximaal hoogstens более najwyżej fazla exactly genau exactement
exactamente esattamente dokładnie ровно never niemals jamais nunca mai nooit nigdy никогда cannot constraint
bedingung contrainte restricción vincolo ogranicz огранич require requir anforder
""",
    2: """
should sollte soll each jede jeder jeden chaque cada ogni elke każd кажд her every only nur seulement solo
solamente keine kein nicht avoid ensure exclude support include limit within under respett niemand nobody
""",
}
"""What an answer has to keep to. A word counts up to three times."""

ASKING = """
how what which why whether wie was welche welches welchen warum weshalb ob comment quel quelle quels pourquoi
cómo qué cuál cuáles como qual quais come quale perché hoe welke waarom jak jaki jaka dlaczego czy как какой
какая какие почему nasıl hangi neden
"""
"""Words that begin a question or a part of one."""

ASKING_PIECES = (
    "怎么",
    "如何",
    "哪",
    "为什么",
    "什么",
    "どの",
    "なぜ",
    "どう",
    "어떻게",
    "왜",
    "무엇",
    "كيف",
    "لماذا",
    "कैसे",
    "क्यों",
)

STEPS = (
    "step by step",
    "each step",
    "every step",
    "all steps",
    "show your work",
    "schritt für schritt",
    "jeden schritt",
    "étape par étape",
    "chaque étape",
    "paso a paso",
    "passo a passo",
    "passo dopo passo",
    "stap voor stap",
    "krok po kroku",
    "шаг за шагом",
    "каждый шаг",
    "adım adım",
    "逐步",
    "每一步",
    "ステップごと",
    "段階的",
    "단계별",
    "خطوة بخطوة",
)

PHRASES = (
    "edge case",
    "trade-off",
    "failure mode",
    "worst case",
    "time complexity",
    "step-by-step",
    "cas limite",
    "casos límite",
    "casi limite",
    "casos extremos",
    "randfäll",
    "граничн",
    "przypadk",
    "sınır durum",
    "randgeval",
    "bei mehreren",
    "consistency",
    "sliding window",
    "root cause",
    "o(1)",
    "o(n)",
    "o(log",
)
"""Worth as much as a heavy task each."""

PIECES: dict[str, dict[int, tuple[str, ...]]] = {
    "task": {
        8: ("证明", "證明", "証明", "증명", "أثبت", "برهن", "प्रमाण"),
        7: ("实现", "實現", "実装", "구현", "نفذ", "लागू", "设计", "設計", "설계", "صمم", "推导", "導出", "डिज़ाइन"),
        6: (
            "算法",
            "アルゴリズム",
            "알고리즘",
            "خوارزم",
            "एल्गोरिदम",
            "分析",
            "분석",
            "حلل",
            "विश्लेषण",
            "优化",
            "最適化",
        ),
        5: (
            "比较",
            "比較",
            "비교",
            "قارن",
            "तुलना",
            "评估",
            "評価",
            "평가",
            "复杂度",
            "複雑",
            "복잡도",
            "التعقيد",
            "जटिलता",
            "推广",
            "定式化",
            "合意",
            "架构",
            "조사",
            "感度",
        ),
        4: (
            "测试",
            "テスト",
            "테스트",
            "اختبار",
            "परीक्षण",
            "计算",
            "計算",
            "计",
            "建议",
            "风险",
            "假设",
            "検証",
            "シナリオ",
            "障害",
            "影响",
            "正确性",
            "정확성",
            "战略",
            "要求",
            "编写",
        ),
        3: ("解释", "解釈", "説明", "설명", "اشرح", "समझा", "解いて", "利点", "欠点", "理由", "说明"),
        2: ("写", "書い", "작성", "اكتب", "लिखें", "例子", "为什么"),
    },
    "maths": {
        4: ("归纳", "数学", "几何", "概率", "確率", "方程", "积分", "微分", "双対", "問題", "矩阵", "立方和", "最小"),
        3: ("奇数", "平方", "グラフ", "ग्राफ", "그래프", "利润", "百分"),
    },
    "code": {
        3: (
            "python",
            "并发",
            "线程",
            "分散システム",
            "ノード",
            "死锁",
            "스레드",
            "캐시",
            "파이썬",
            "बايثون",
            "بايثون",
            "خادم",
            "पायथन",
            "进程",
            "任务调度",
            "数据库",
        ),
        2: ("第三方库", "ライブラリ", "라이브러리", "लाइब्रेरी", "超时"),
    },
    "limits": {
        3: (
            "必须",
            "不能",
            "不超过",
            "最多",
            "至少",
            "要求",
            "任意",
            "最大",
            "少なくとも",
            "使わない",
            "なければ",
            "必要",
            "해야",
            "안 되",
            "이어야",
            "최소",
            "최대",
            "يجب",
            "لا يتجاوز",
            "على الأقل",
            "كم",
            "अधिकतम",
            "कम से कम",
            "नहीं होनी",
            "होने चाहिए",
        ),
        2: ("每", "支持", "それぞれ", "마다", "지원", "أي ", "कोई"),
    },
}
