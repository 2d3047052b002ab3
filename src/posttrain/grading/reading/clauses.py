"""The closed word classes that tell where a clause ends and which value of it counts."""

ADVERBS = {
    "therefore", "thus", "hence", "so", "then", "indeed", "simply", "just", "exactly", "precisely", "clearly", "now",
    "finally", "is", "be",
}  # fmt: skip
FILLERS = {
    "therefore", "thus", "hence", "so", "then", "indeed", "simply", "just", "exactly", "precisely", "approximately",
    "about", "roughly", "around", "nearly", "equal", "equals", "to", "is", "are", "was", "be", "the", "a", "an",
    "that", "we", "get", "have", "obtain", "it", "only", "also", "in", "total", "altogether", "finally", "now",
    "clearly", "as", "follows", "given", "by", "negative", "minus", "value", "number", "numeric", "answer", "final",
    "result", "是", "为", "等于", "约",
}  # fmt: skip
ARTICLES = {
    "a", "an", "the", "all", "each", "every", "both", "any", "some", "first", "last", "next", "other", "another",
    "his", "her", "their", "its", "our", "my", "your", "this", "these", "those", "only", "just", "about",
    "approximately", "original", "initial", "remaining", "total", "additional", "same", "full", "whole",
}  # fmt: skip
PREPOSITIONS = {
    "of", "in", "over", "for", "after", "before", "within", "during", "per", "than", "from", "with", "without", "at",
    "by", "on", "out", "between", "among", "since", "until", "into", "through", "across", "against", "under", "above",
    "below", "every", "if", "when", "while",
}  # fmt: skip
COPULAS = {
    "is", "are", "was", "were", "be", "been", "equals", "equal", "becomes", "gives", "yields", "makes", "totals", "是",
    "为", "等于",
}  # fmt: skip
SUBORDINATORS = {
    "because", "since", "as", "so", "which", "that", "who", "where", "when", "while", "if", "unless", "although",
    "though", "therefore", "thus", "hence", "but", "not", "and", "or", "after", "before", "meaning", "giving",
    "making", "namely", "provided", "given", "assuming", "considering", "whereas", "i.e", "e.g",
}  # fmt: skip
NEGATIONS = {"not", "never", "neither", "nor", "no", "isn't", "cannot", "without", "excluding", "except"}
MODALS = {"could", "might", "may", "can"}
HEDGES = {"or", "maybe", "perhaps", "possibly", "alternatively", "either", "unless", "might", "could", "或"}
CORRECTIONS = {"wait", "actually", "oops", "sorry", "correction"}
BOUNDS = {
    "least",
    "most",
    "than",
    "over",
    "under",
    "above",
    "below",
    "between",
    "exceeding",
    "exceeds",
    "until",
    "beyond",
}
ORDINALS = {
    "step", "part", "case", "example", "question", "problem", "figure", "section", "equation", "method", "solution",
    "table", "chapter", "page", "exercise", "theorem", "lemma", "line", "row", "column",
}  # fmt: skip
VERDICTS = {
    "correct", "right", "wrong", "incorrect", "clear", "reasonable", "unique", "verified", "valid", "consistent",
    "true", "false", "sensible", "obvious", "confirmed", "accurate", "fine", "good", "unknown",
}  # fmt: skip
