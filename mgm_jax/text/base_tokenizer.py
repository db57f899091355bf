"""What both kinds of tokenizer do in the same way: bos, more tokens, copies, files."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from mgm_jax.text import tokenizer_files


class BaseTokenizer:
    """A vocabulary file's bytes with options. A kind defines `encode_with_offsets`, `decode`,
    `token_id`, `piece`, `_options`, and sets the attributes that `SentencePieceTokenizer` lists.
    """

    kind: str  # in mgm_tokenizer.json
    file: str  # the vocabulary file's name in a checkpoint
    what: str  # that file, in words

    @classmethod
    def from_file(cls, path, **options) -> Self:
        """Reads a vocabulary file; `options` are those of the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such vocabulary.
        """
        return cls(tokenizer_files.read(path, cls.what), source=str(path), **options)

    def __reduce__(self):  # data workers get the tokenizer by pickle
        return _rebuild, (type(self), self._model, self._options())

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """The ids of a text, with the bos id in front if `add_bos` (None: `self.add_bos`)."""
        if add_bos and self.bos_id < 0:
            raise ValueError(f"add_bos=True, but the {self.what} defines no bos token")
        ids, _ = self.encode_with_offsets(text)
        return [self.bos_id, *ids] if (self.add_bos if add_bos is None else add_bos) else ids

    def with_tokens(self, texts: Iterable[str]) -> Self:
        """This tokenizer with further special tokens: one in the vocabulary keeps its id, others
        get ids from `vocab_size` on."""
        return self.replace(special_tokens=self.added_ids(texts, self._added))

    def added_ids(self, texts: Iterable[str], added: Mapping[str, int]) -> dict[str, int]:
        """`added` (text to id) and further texts: one of the vocabulary keeps its id, others come
        after all that are known."""
        added = dict(added)
        for text in texts:
            fresh = max([self.vocab_size, *(i + 1 for i in added.values())])
            known = self.token_id(text)
            added.setdefault(text, fresh if known is None else known)
        return added

    def replace(self, **options) -> Self:
        """This tokenizer with other options of the class."""
        return type(self)(self._model, **(self._options() | options))

    @property
    def fingerprint(self) -> str:
        """Differs if the vocabulary or an option does."""
        options = repr(sorted((self._options() | {"legacy": self.legacy}).items()))
        return hashlib.sha256(self._model + options.encode()).hexdigest()

    def save(self, directory) -> None:
        """Writes the vocabulary file and `mgm_tokenizer.json`, which `load_tokenizer` reads."""
        options = self._options() | {"legacy": self.legacy}
        tokenizer_files.write(directory, self.file, self._model, self.kind, options)

    def _known(self, ids: Sequence[int]) -> list[int]:
        """The ids as ints; ValueError for one that is not in the vocabulary."""
        ids = [int(i) for i in ids]
        for n, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} at position {n} is not in [0, {self.vocab_size})")
        return ids


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_text(piece: str) -> str:
    """What a vocabulary's piece stands for: its boundary marks are spaces, "<0x0A>" is a byte."""
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1]).decode(errors="backslashreplace")
    return piece.replace("\u2581", " ")


def _rebuild(cls: type[BaseTokenizer], model: bytes, options: dict) -> BaseTokenizer:
    return cls(model, **options)
