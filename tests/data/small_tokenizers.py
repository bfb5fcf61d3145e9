"""Small tokenizers of every family, trained on a few sentences, that the tests of the data side share."""

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

FRAME = ["<s>", "</s>", "<unk>", "<pad>"]
GREEDY = AddedToken("<both>", lstrip=True, rstrip=True, special=True)
"""Swallows the blanks on either side."""
ADDED = [GREEDY, AddedToken("<tool>", special=True), AddedToken("<|im_end|>", special=False), AddedToken("<note>")]
CORPUS = [
    "the answer is yes\n\nthe answer is no, and the question is old: 1,234.50 dollars",
    "can a fish swim in the sea? yes, a fish can\n\nQuestion: what is 12 plus 7? Answer: 19",
    "is the sea blue? no, not the whole sea\tbut true/false is a caf\u00e9 and a na\u00efve \u00fcber stra\u00dfe",
    "Please answer the following question with true or false; the correct answer is true. Answer format: A B C D",
    "a text that ends in an empty line\n\n",
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel.alphabet()


def _byte_level(*before, prefix: bool = False, trim: bool = True, regex: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=FRAME, initial_alphabet=BYTES, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    return _byte_level()


def roberta() -> Tokenizer:
    return _byte_level(prefix=True)


def llama3() -> Tokenizer:
    tokenizer = _byte_level(pre_tokenizers.Split(Regex(GPT4), "isolated"), trim=False, regex=False)
    return _begun(tokenizer)


def smollm() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(individual_digits=True))


def no_words() -> Tokenizer:
    """Byte-level without words: tokens reach over blanks and line breaks."""
    return _byte_level(regex=False)


def _begun(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def t5() -> Tokenizer:
    """Unigram with NFKC, single blanks, and a blank of its own in front."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=FRAME, unk_token="<unk>", show_progress=False, initial_alphabet=["\n", "\t"]
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return _begun(tokenizer)


def _byte_fallback(normalizer, pre_tokenizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    names = [*FRAME, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=names, show_progress=False, max_token_length=8, limit_alphabet=70
    )
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.split("\n")] * 3, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _begun(tokenizer)


def llama2() -> Tokenizer:
    """SentencePiece as it was first converted: a blank of its own in front of every part between special tokens."""
    return _byte_fallback(normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))


def mistral() -> Tokenizer:
    """SentencePiece as it is converted today: a blank of its own in front of the whole text only."""
    return _byte_fallback(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def gemma() -> Tokenizer:
    """SentencePiece without a blank of its own; tokens may reach over blanks."""
    tokenizer = _byte_fallback(normalizers.Replace(" ", "\u2581"), pre_tokenizers.Split(" ", "merged_with_previous"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece: no capitals, no accents, no blanks, and marks on both sides."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=FRAME, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def words() -> Tokenizer:
    """Whole words between blanks; all others are unknown."""
    names = [*FRAME, *sorted({word for text in CORPUS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _begun(tokenizer)


KINDS: tuple[Callable[[], Tokenizer], ...] = (
    *(gpt2, roberta, llama3, smollm, no_words),
    *(t5, llama2, mistral, gemma),
    *(bert, words),
)
LOSSLESS = (gpt2, roberta, llama3, smollm, no_words, llama2, mistral, gemma)
"""Those that can spell any text."""


def fast(build: Callable[[], Tokenizer]) -> PreTrainedTokenizerFast:
    """The tokenizer as Transformers has it, with the tokens of `ADDED`."""
    frame = dict(zip(("bos_token", "eos_token", "unk_token", "pad_token"), FRAME, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build(), **frame)
    tokenizer.add_tokens(ADDED)
    return tokenizer
