"""Tokenizers of a `tokenizer.json` file, as the `tokenizers` package reads them.

LLaMA-3's byte-level BPE comes in no other form; Gemma, LLaMA-2, Mixtral and Yi also exist in it.
The file decides about everything between text and ids but the bos id, which `encode` adds itself.
"""

import json
from collections.abc import Mapping, Sequence

import tokenizers

from mgm_jax.text.base_tokenizer import BaseTokenizer, piece_text

JSON_FILE = "tokenizer.json"


class JsonTokenizer(BaseTokenizer):
    """Text to ids and back with a `tokenizer.json`; same interface as `SentencePieceTokenizer`.

    Args:
        model: the bytes of a `tokenizer.json` file.
        add_bos: whether `encode` puts the beginning-of-sequence id in front by default; None: as
            the file's own post-processor does.
        bos_id, eos_id, pad_id: None for what the vocabulary tells: bos is the token that the
            post-processor puts in front, else an added token of a usual text, as eos is; pad is
            the unknown token, else eos.
        special_tokens: added tokens {text: id} beside those of the file.
        source: how error messages name the file.

    Attributes: as of `SentencePieceTokenizer`; `legacy` is always False, since the original sees
    no such attribute on tokenizers of this kind.

    Raises:
        ValueError: the file cannot be read, or an option does not fit it.
    """

    kind, file, what = "json", JSON_FILE, "tokenizer.json"
    legacy = False

    def __init__(
        self,
        model: bytes,
        *,
        add_bos: bool | None = None,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        special_tokens: Mapping[str, int] | None = None,
        source: str = JSON_FILE,
    ):
        self._model, self._added = model, dict(special_tokens or {})
        self._tokenizer, leading = _parse(model, source)
        for text, i in sorted(self._added.items(), key=lambda item: item[1]):
            token = tokenizers.AddedToken(text, special=True, normalized=False)
            self._tokenizer.add_special_tokens([token])
            if self._tokenizer.token_to_id(text) != i:
                raise ValueError(
                    f"{source}: special token {text!r} has id {i}; the vocabulary gives it "
                    f"{self._tokenizer.token_to_id(text)}"
                )
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        self._bytewise = '"ByteLevel"' in json.dumps(json.loads(model).get("decoder"))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = {token.content: i for i, token in added.items()}
        unk = self.token_id(getattr(self._tokenizer.model, "unk_token", None) or "<unk>")
        self.unk_id = _choose(unk)
        self.bos_id = _choose(bos_id, leading, *map(self.special_tokens.get, _BOS))
        self.eos_id = _choose(eos_id, *map(self.special_tokens.get, _EOS))
        self.pad_id = _choose(pad_id, self.unk_id, self.eos_id)
        self.add_bos = leading >= 0 if add_bos is None else bool(add_bos)
        for name in ("bos_id", "eos_id", "pad_id"):
            if not (i := getattr(self, name)) < self.vocab_size:
                raise ValueError(f"{source}: {name} {i} is not in [0, {self.vocab_size})")
        if self.pad_id < 0:
            raise ValueError(f"{source}: no unknown and no eos token; expected a pad_id")
        if self.add_bos and self.bos_id < 0:
            raise ValueError(f"{source}: add_bos=True, but the vocabulary defines no bos token")

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, without bos, and the characters `text[start:end]` of each.

        Starts never decrease. Tokens that share a character have it in both spans.

        Raises:
            ValueError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"cannot tokenise {text[:80]!a}: not valid Unicode") from error
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out, or written as their text.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        return self._tokenizer.decode(self._known(ids), skip_special_tokens=skip_special)

    def token_id(self, text: str) -> int | None:
        """The id of the token that is this text, None if the vocabulary has none."""
        return self._tokenizer.token_to_id(text)

    def piece(self, i: int) -> str:
        """The text of one id by itself, as of `SentencePieceTokenizer`."""
        (i,) = self._known([i])
        if (token := self._tokenizer.id_to_token(i)) is None:
            raise ValueError(f"token id {i} stands for nothing in the vocabulary")
        if not self._bytewise:
            return piece_text(token)
        if token in self.special_tokens:
            return token
        return bytes(map(_BYTES.get, token)).decode(errors="backslashreplace")

    def _options(self) -> dict:
        return {
            "add_bos": self.add_bos,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "special_tokens": self._added,
        }


_BOS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>")
_EOS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")

# The letters that byte-level vocabularies write bytes with: printable ones stand for themselves.
_LETTERS = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
_HIDDEN = [byte for byte in range(256) if chr(byte) not in _LETTERS]
_BYTES = {chr(byte): byte for byte in range(256) if chr(byte) in _LETTERS}
_BYTES |= {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def _choose(*ids: int | None) -> int:
    """The first of the ids that is given and not negative, else -1."""
    return next((int(i) for i in ids if i is not None and i >= 0), -1)


def _parse(model: bytes, source: str) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer without its post-processor, and the id that this puts in front (-1: none).

    A post-processor may also shorten the spans of tokens by the space in them, so it is not kept.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(model)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        leading = tokenizer.encode("").ids
        tokenizer.post_processor = None
        return tokenizer, leading[0] if leading else -1
    except Exception as error:  # the package raises bare Exception
        raise ValueError(
            f"{source}: not a tokenizer.json ({len(model)} bytes): {str(error)[:200]}"
        ) from error
