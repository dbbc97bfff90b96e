"""Strings in many scripts, the same every time, for comparing tokenizers with their references."""

from __future__ import annotations

import random
import unicodedata

SCRIPTS = {
    "Latin": (0x41, 0x7A),
    "Latin, accented": (0xC0, 0x17F),
    "Vietnamese": (0x1EA0, 0x1EF9),
    "Greek": (0x370, 0x3FF),
    "polytonic Greek": (0x1F00, 0x1FFE),
    "Cyrillic": (0x400, 0x4FF),
    "Armenian": (0x531, 0x587),
    "Hebrew": (0x591, 0x5F4),
    "Arabic": (0x620, 0x6FF),
    "Arabic, presentation forms": (0xFE70, 0xFEFC),
    "Syriac": (0x710, 0x74A),
    "Devanagari": (0x900, 0x97F),
    "Bengali": (0x980, 0x9FB),
    "Gurmukhi": (0xA01, 0xA75),
    "Gujarati": (0xA81, 0xAF1),
    "Tamil": (0xB82, 0xBFA),
    "Telugu": (0xC01, 0xC7F),
    "Kannada": (0xC82, 0xCF2),
    "Malayalam": (0xD02, 0xD7F),
    "Sinhala": (0xD82, 0xDF4),
    "Thai": (0xE01, 0xE5B),
    "Lao": (0xE81, 0xEDF),
    "Tibetan": (0xF00, 0xFD4),
    "Burmese": (0x1000, 0x109F),
    "Georgian": (0x10A0, 0x10FF),
    "Hangul jamo": (0x1100, 0x11FF),
    "Ethiopic": (0x1200, 0x137C),
    "Khmer": (0x1780, 0x17F9),
    "Mongolian": (0x1800, 0x18AA),
    "Hiragana and Katakana": (0x3041, 0x30FF),
    "Han": (0x4E00, 0x4EFF),
    "Hangul": (0xAC00, 0xACFF),
    "full-width and half-width": (0xFF01, 0xFFEE),
    "Latin ligatures": (0xFB00, 0xFB06),
    "mathematical letters": (0x1D400, 0x1D4FF),
    "emoji": (0x1F600, 0x1F64F),
}
"""First and last code point that strings of a script are drawn from."""

HARD = (
    *("e\u0301", "a\u0328\u0301", "\u0301", "q\u0307\u0323", "ﬁ", "ﬃ", "ß", "İ", "ı", "ǆ", "㎏", "①", "½", "ﷺ", "Å", "\u00a8", "\u0345"),
    *("👩\u200d🚀", "👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "☺\ufe0f", "ᄀ", "ᅡ", "ᆨ", "각", "\u1112\u1161\u11ab", "ﾊ\uff9f", "Ａ", "ｶﾞ"),
    *("\x00", "\x01", "\x7f", "\x85", "\u200b", "\u200e", "\ufeff", "\ufffd", "\u00ad", "\u2060", "\ue000", "\U000e0041", "\U0010ffff"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u1680", "\u2003", "\u2028", "\u202f", "\u205f", "\u3000", "▁", "▁▁"),
    *(
        "a",
        "aaaaaaaa",
        "haha",
        "!!",
        "...",
        "don't",
        "it's",
        "we'LL",
        "1234",
        "3.14",
        "a_b",
        "x" * 101,
        "##ing",
        "<s>",
        "</s>",
        "<pad>",
        "<mask>",
    ),
    *("[CLS]", "[MASK]", "[sep]", "<unk>", "<|endoftext|>", "<|startoftext|>", "</w>", "$€¥", "«»", "、。", "中文字", "-", "—", "@#%"),
)
"""Combining marks, ligatures, sequences of emoji, jamo, controls, spaces of all kinds, repetitions, special tokens written as text."""


def strings(count: int, seed: int = 1) -> list[str]:
    """Words, noise, hard cases and repetitions, over all scripts; among them empty strings. Only assigned code points."""
    draw = random.Random(seed)
    letters = {name: [chr(code) for code in range(first, last + 1) if assigned(code)] for name, (first, last) in SCRIPTS.items()}
    words = {name: ["".join(draw.choices(found, k=draw.randint(1, 7))) for _ in range(80)] for name, found in letters.items()}
    makers = (
        lambda name: " ".join(draw.choices(words[name], k=draw.randint(0, 12))),
        lambda name: "".join(draw.choices(letters[name], k=draw.randint(1, 50))),
        lambda name: "".join(draw.choice((draw.choice(HARD), draw.choice(words[name]))) for _ in range(draw.randint(1, 12))),
        lambda name: draw.choice((*HARD, *words[name])) * draw.randint(1, 40),
        lambda name: " ".join(draw.choice(words[draw.choice(list(words))]) for _ in range(draw.randint(1, 40))),
    )
    names = list(SCRIPTS)
    return [draw.choice(makers)(names[number % len(names)]) for number in range(count)]


def assigned(code: int) -> bool:
    return unicodedata.category(chr(code)) != "Cn"
