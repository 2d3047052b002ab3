"""The units that are converted into each other, and the words that are no units because they change a value.

A line of UNITS: a dimension, then spellings with their size, `spelling,spelling=size`. Sizes are exact. Dimensions that
nobody converts without saying so (degrees and radians, two currencies, a.m. and p.m., months and years to days) differ.
"""

from fractions import Fraction

UNITS = """
length m,meter,metre=1 km,kilometer,kilometre=1000 dm,decimeter,decimetre=1/10 cm,centimeter,centimetre=1/100
length mm,millimeter,millimetre=1/1000 nm,nanometer,nanometre=1/1000000000 inch,in=254/10000 foot,ft=3048/10000
length yard,yd=9144/10000 mile,mi=1609344/1000 furlong=201168/1000 micron,micrometer,micrometre=1/1000000
length 米=1 千米,公里=1000 分米=1/10 厘米=1/100 毫米=1/1000
area acre=40468564224/10000000 hectare,ha=10000
area 平方米=1 平方千米,平方公里=1000000 平方分米=1/100 平方厘米=1/10000
volume liter,litre,l=1/1000 milliliter,millilitre,ml=1/1000000 gallon,gal=3785411784/1000000000000
volume quart,qt=946352946/1000000000000 pint=473176473/1000000000000 cup=2365882365/10000000000000 cc=1/1000000
volume 升=1/1000 毫升=1/1000000 立方米=1 立方厘米=1/1000000 立方分米=1/1000
mass kg,kilogram,kilo=1 g,gram=1/1000 mg,milligram=1/1000000 tonne=1000 pound,lb=45359237/100000000
mass ounce,oz=45359237/1600000000 克=1/1000 千克,公斤=1 吨=1000
ton ton=1
time second,sec,s=1 minute,min=60 hour,hr,h=3600 day=86400 week,wk=604800 millisecond,ms=1/1000 fortnight=1209600
time 秒=1 分钟=60 小时=3600 天,日=86400 周,星期=604800
year year,yr=1 month,mo=1/12 decade=10 century=100 millennium=1000 年=1 个月=1/12
degree degree,deg,°,度=1
radian radian,rad=1
dollar dollar,usd,buck=1 cent,¢=1/100
euro euro,eur=1
pence penny,pence=1
sterling gbp=1
yuan yuan,rmb,元=1 角=1/10
rupee rupee=1 paise=1/100
celsius celsius,°c=1
fahrenheit fahrenheit,°f=1
kelvin kelvin=1
force newton,n=1 kn,kilonewton=1000
energy joule,j=1 kj,kilojoule=1000 ev=1602176634/10000000000000000000000000000 kwh=3600000 calorie,cal=1 kcal=1000
power watt,w=1 kw,kilowatt=1000 mw,megawatt=1000000
voltage volt,v=1 mv,millivolt=1/1000 kv=1000
current ampere,amp=1 ma,milliamp=1/1000
resistance ohm=1 kohm=1000
frequency hertz,hz=1 khz=1000 mhz=1000000 ghz=1000000000 rpm=1/60
pressure pascal,pa=1 kpa=1000 atm,atmosphere=101325
amount mole,mol=1
bit bit=1 byte=8
am am=1
pm pm=1
ad ad,ce=1
bc bc,bce=1
""".strip()
COMPOUND = {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour", "fps": "foot per second"}
COMPOUND |= {"mpg": "mile per gallon", "sqft": "square foot"}
POWERS = {"area": ("length", 2), "volume": ("length", 3)}  # dimensions that are powers of another
IRREGULAR = {
    "feet": "foot", "inches": "inch", "people": "person", "persons": "person", "children": "child", "men": "man",
    "women": "woman", "mice": "mouse", "geese": "goose", "teeth": "tooth", "centuries": "century", "hertz": "hertz",
    "pence": "pence", "celsius": "celsius", "lbs": "lb", "hrs": "hr", "mins": "min", "secs": "sec", "yrs": "yr",
}  # fmt: skip

# Spellings of one or two letters are units only where a blank or \text sets them apart from a number; of these, even
# without a blank.
LETTERS = set("mgshlLJNWV")
GLUED = {"cm", "mm", "km", "kg", "mg", "ml", "ft", "yd", "lb", "oz", "kw", "hz", "ms", "pm"}
SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
AFTER = {"squared": 2, "cubed": 3}
GENERIC = {"unit", "个", "只"}  # they fit any unit
MODIFIERS = {
    "us", "american", "full", "whole", "complete", "entire", "consecutive", "straight", "extra", "additional", "more",
    "less", "fewer",
}  # fmt: skip
# The words that end the noun of a unit: "marbles | left in the jar", "years | old".
QUALIFIERS = {
    "in", "of", "on", "at", "from", "by", "to", "a", "an", "the", "each", "every", "left", "remaining", "total",
    "altogether", "overall", "long", "tall", "wide", "old", "high", "deep", "away", "ago", "later", "earlier",
    "apart", "only", "this", "that", "his", "her", "their", "its", "my", "our", "your", "respectively", "exactly",
    "too",
}  # fmt: skip
# What follows a number and makes another of it, or says that it is none: no unit is among these.
CHANGES = {
    "and", "or", "nor", "plus", "minus", "times", "than", "but", "not", "no", "never", "if", "unless", "except",
    "when", "where", "for", "with", "whenever", "while", "otherwise", "else", "over", "under", "above", "below",
    "upon", "divided", "multiplied", "squared", "cubed", "factorial", "choose", "mod", "modulo", "base", "raised",
    "power", "half", "halves", "third", "thirds", "quarter", "quarters", "percent", "pct", "percentage", "k",
    "hundred", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion", "lakh", "lakhs", "crore",
    "crores", "dozen", "dozens", "score", "gross", "googol", "bn", "mn", "mil", "tn", "least", "most", "greater",
    "smaller", "larger", "maybe", "perhaps", "possibly", "probably", "wrong", "incorrect", "negative", "positive",
    "double", "twice", "thrice", "constant", "even", "odd", "modulus", "through", "between", "either", "neither",
    "both", "until", "up", "down", "infinity", "infinite", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "root",
    "pi", "via", "is", "are", "was", "were", "be", "equals", "equal", "gives", "which", "because", "since", "so",
    "hence", "thus", "approximately", "about", "roughly", "almost", "nearly",
}  # fmt: skip
FRACTION_ENDS = ("fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth", "teenth",
                 "tieth", "hundredth", "thousandth", "millionth", "billionth")  # fmt: skip
CHINESE_CHANGES = set("百千万亿半倍余多以上下约折成分之或和与及非不负第几零一二三四五六七八九十两")


def _read(table: str) -> dict[str, tuple[str, Fraction]]:
    found = {}
    for line in table.splitlines():
        dimension, *entries = line.split()
        for entry in entries:
            spellings, size = entry.rsplit("=", 1)
            found |= {spelling: (dimension, Fraction(size)) for spelling in spellings.split(",")}
    return found


KNOWN = _read(UNITS)
