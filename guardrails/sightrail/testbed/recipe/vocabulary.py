"""Word-level tokenizers of the mini models, built as transformers' own fast tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<bos>", "<eos>"
SPACE = "▁"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def word_tokenizer(
    words: Iterable[str], *, specials: Sequence[str] = (), end_is_last: bool = False
) -> Tokenizer:
    """One token a word, lower-cased; punctuation apart; unknown words become <unk>.

    `end_is_last` gives <eos> the highest id, which is how open_clip's text tower finds the end.
    """
    known = sorted(set(words))
    head = [PAD, UNKNOWN, BEGIN, *specials]
    order = [*head, *known, END] if end_is_last else [*head, END, *known]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(order)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([PAD, UNKNOWN, BEGIN, END, *specials])
    return tokenizer


def clip_tokenizer(words: Iterable[str], context_length: int) -> PreTrainedTokenizerFast:
    """The mini CLIP's tokenizer: <bos> text <eos>."""
    tokenizer = word_tokenizer(words, end_is_last=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[
            (BEGIN, tokenizer.token_to_id(BEGIN)),
            (END, tokenizer.token_to_id(END)),
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=context_length,
    )


def text_tokenizer(
    words: Iterable[str], *, specials: Sequence[str], marks: Sequence[str] = ()
) -> Tokenizer:
    """One token a word, with the space before it or without: text comes back as it went in.

    Lower-cased. Spaces of any number are one, newlines too. A word that is not known is spelled
    out: letters, digits and signs are tokens as well, so that a grammar can write any ASCII JSON.

    Args:
        words: those to know.
        specials: tokens of the chat template.
        marks: tokens around calls; text to whoever decodes.
    """
    known = sorted({*words, *_LETTERS})
    order = [PAD, UNKNOWN, BEGIN, *specials, END, *marks, "\n", SPACE, *_SIGNS]
    order += [*(SPACE + word for word in known), *known]
    tokenizer = Tokenizer(
        models.WordPiece(
            {token: i for i, token in enumerate(order)},
            unk_token=UNKNOWN,
            continuing_subword_prefix="",
            max_input_chars_per_word=1000,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s*\n\s*"), "\n"),
            normalizers.Replace(Regex(r"[^\S\n]+"), SPACE),
            normalizers.Replace(Regex(r"\n(?=[a-z0-9])"), f"\n{SPACE}"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([PAD, UNKNOWN, BEGIN, END, *specials])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return tokenizer
