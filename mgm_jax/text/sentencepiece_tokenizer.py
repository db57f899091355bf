"""SentencePiece tokenizers that say where in the text each token came from.

Ids are those of the LLaMA-family tokenizers that Mini-Gemini's checkpoints use (MGM_SPEC 5.5):
special tokens are cut out of the text first, the fragments between them go through the model.
`legacy` decides about those fragments. True: each one gets the model's dummy prefix, so text that
follows `</s>` starts with a word-boundary mark. False: only the beginning of the whole text does.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece
from etils import epath

from mgm_jax.text.base_tokenizer import BaseTokenizer, piece_text

MODEL_FILE = "tokenizer.model"

# Protobuf merges a repeated sub-message into the first one, so these bytes behind a serialized
# model set `normalizer_spec.add_dummy_prefix = false` (fields 3 and 3) and change nothing else.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(BaseTokenizer):
    """Text to ids and back with a sentencepiece model.

    Args:
        model: the bytes of a `tokenizer.model` file.
        add_bos: whether `encode` puts the beginning-of-sequence id in front by default.
        legacy: see the module's text.
        eos_id: the end-of-sequence id; None for the model's own (a chat model may have another).
        pad_id: the padding id; the unknown id when the model defines none (as in LLaMA).
        special_tokens: added tokens {text: id} beside the model's own control tokens.
        source: how error messages name the model.

    Attributes: vocab_size, bos_id, eos_id, pad_id, unk_id (int, -1 when the model has none),
    add_bos, legacy, special_tokens ({text: id} of every token that is cut out of a text).

    Raises:
        ValueError: the model cannot be read, or an option does not fit it.
    """

    kind, file, what = "sentencepiece", MODEL_FILE, "sentencepiece model"

    def __init__(
        self,
        model: bytes,
        *,
        add_bos: bool = True,
        legacy: bool = True,
        eos_id: int | None = None,
        pad_id: int | None = None,
        special_tokens: Mapping[str, int] | None = None,
        source: str = "sentencepiece model",
    ):
        self._model, self._added = model, dict(special_tokens or {})
        self._prefixing = _processor(model, source)
        self._bare = _processor(model + _NO_DUMMY_PREFIX, source)
        self.add_bos, self.legacy = bool(add_bos), bool(legacy)
        self.bos_id, self.unk_id = self._prefixing.bos_id(), self._prefixing.unk_id()
        self.eos_id = self._prefixing.eos_id() if eos_id is None else int(eos_id)
        own = self._prefixing.vocab_size()
        self.vocab_size = max([own, *(i + 1 for i in self._added.values())])

        default_pad = self._prefixing.pad_id() if self._prefixing.pad_id() >= 0 else self.unk_id
        self.pad_id = default_pad if pad_id is None else int(pad_id)
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"{source}: pad_id {pad_id} is not in [0, {self.vocab_size})")
        if self.eos_id >= self.vocab_size:
            raise ValueError(f"{source}: eos_id {eos_id} is not in [0, {self.vocab_size})")
        if self.add_bos and self.bos_id < 0:
            raise ValueError(f"{source}: add_bos=True, but the model defines no bos token")
        for text, i in self._added.items():
            if not text or i < 0 or (i < own and self._prefixing.id_to_piece(i) != text):
                raise ValueError(
                    f"{source}: special token {text!r} has id {i}; expected a non-empty text with "
                    f"an id from {own} up or the id of the piece of that text"
                )

        reserved = (i for i in range(own) if self._is_reserved(i))
        self.special_tokens = {self._prefixing.id_to_piece(i): i for i in reserved} | self._added
        self._special_ids = {i: text for text, i in self.special_tokens.items()}
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, without bos, and the characters `text[start:end]` of each.

        Starts never decrease. All bytes of a character that falls back to bytes have the span of
        that character. A dummy prefix that is a token of its own is empty and sits at the start of
        its fragment.

        Raises:
            ValueError: the text is not valid Unicode (a lone surrogate).
        """
        ids, spans, at = [], [], 0
        for n, part in enumerate(self._cut.split(text)):  # odd entries are special tokens
            if n % 2:
                ids.append(self.special_tokens[part])
                spans.append((at, at + len(part)))
            elif part:
                part_ids, part_spans = self._encode_fragment(part, prefix=n == 0 or self.legacy)
                ids += part_ids
                spans += [(at + start, at + end) for start, end in part_spans]
            at += len(part)
        return ids, spans

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out, or written as their text.

        It undoes `encode`: a word-boundary mark is dropped where `encode` puts a dummy prefix. A
        bos id in front is taken for the one that `encode` adds.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        texts, run = [], []
        prefix = True

        def flush():
            if run:
                texts.append((self._prefixing if prefix else self._bare).decode(run))
                run.clear()

        for n, i in enumerate(self._known(ids)):
            if i not in self._special_ids:
                run.append(i)
                continue
            flush()
            if not skip_special:
                texts.append(self._special_ids[i])
            prefix = self.legacy or (n == 0 and i == self.bos_id)
        flush()
        return "".join(texts)

    def token_id(self, text: str) -> int | None:
        """The id of the token that is this text, None if the vocabulary has none."""
        return self.special_tokens.get(text, self._piece_id(text))

    def piece(self, i: int) -> str:
        """The text of one id by itself: a special token as it is written, a boundary mark as a
        space, a byte that is no whole character as "\\xe2".

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        (i,) = self._known([i])
        if i in self._special_ids:
            return self._special_ids[i]
        try:
            return piece_text(self._prefixing.id_to_piece(i))
        except IndexError:  # between the model's pieces and an added token
            raise ValueError(f"token id {i} stands for nothing in the vocabulary") from None

    def _options(self) -> dict:
        return {
            "add_bos": self.add_bos,
            "legacy": self.legacy,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "special_tokens": self._added,
        }

    def _piece_id(self, text: str) -> int | None:
        i = self._prefixing.piece_to_id(text)  # the unknown id when there is no such piece
        return i if self._prefixing.id_to_piece(i) == text else None

    def _is_reserved(self, i: int) -> bool:
        return self._prefixing.is_control(i) or self._prefixing.is_unknown(i)

    def _encode_fragment(self, text: str, prefix: bool) -> tuple[list[int], list[tuple[int, int]]]:
        processor = self._prefixing if prefix else self._bare
        try:
            found = processor.encode(text, return_type="offset_mapping")
        except RuntimeError as error:
            raise ValueError(f"cannot tokenise {text[:80]!a}: not valid Unicode") from error
        ids, spans = found["ids"], list(found["offsets"])
        # Of the bytes of one character only the last has its span; the others are empty before it.
        for k in range(len(ids) - 2, -1, -1):
            if processor.is_byte(ids[k]) and spans[k] == (spans[k + 1][0],) * 2:
                spans[k] = spans[k + 1]
        return ids, spans


def train_tokenizer(
    texts: Iterable[str],
    path,
    vocab_size: int,
    byte_fallback: bool = True,
    *,
    user_defined_symbols: Sequence[str] = (),
    **options,
) -> SentencePieceTokenizer:
    """Trains a LLaMA-like BPE model on `texts`, writes it to the file `path`, and returns it.

    Ids: unk 0, bos 1, eos 2, then the user-defined symbols, the 256 bytes (with `byte_fallback`),
    and the pieces. One thread and no sampling: the same texts give the same file. `options` are
    those of `SentencePieceTokenizer`.

    Raises:
        ValueError: the texts cannot fill, or do not fit, a vocabulary of that size.
    """
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"cannot train {path}: no text given")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=byte_fallback,
            user_defined_symbols=list(user_defined_symbols),
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 20,  # the trainer drops longer lines without a word
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"cannot train {path}: {len(lines)} lines, vocab_size={vocab_size}, "
            f"byte_fallback={byte_fallback}: {error}"
        ) from error
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return SentencePieceTokenizer(model.getvalue(), source=str(path), **options)


def _processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{source}: not a sentencepiece model ({len(model)} bytes): {error}"
        ) from error
