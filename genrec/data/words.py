"""What a word is, in every script: the pattern that text vectors, BM25, hashed tokens and synthetic queries share."""

# Scripts written without spaces (kana, Han, Thai, Lao, Myanmar, Khmer) are read character by character; bigrams then
# stand for words. Marks of Indic scripts belong to the word around them.
SPACELESS = (
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_MARKS = "\u0900-\u0963\u0966-\u0dff"
SPACED_WORD = rf"(?:[^\W_{SPACELESS}]|[{_MARKS}])+"
TOKEN_PATTERN = rf"[{SPACELESS}]|{SPACED_WORD}"
TITLE_WORD = rf"[{SPACELESS}]{{2}}|{SPACED_WORD}"  # two characters in a row are as good as a word in a query
