"""Which tokenizer a folder holds: a checkpoint's own, or one in Hugging Face's layout."""

from etils import epath

from mgm_jax.text import tokenizer_files
from mgm_jax.text.json_tokenizer import JSON_FILE, JsonTokenizer
from mgm_jax.text.sentencepiece_tokenizer import MODEL_FILE, SentencePieceTokenizer

Tokenizer = SentencePieceTokenizer | JsonTokenizer

_KINDS = {cls.kind: cls for cls in (SentencePieceTokenizer, JsonTokenizer)}
# Classes of Hugging Face that put a bos in front unless `add_bos_token` says otherwise; of the
# others the post-processor in tokenizer.json decides.
_BOS_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
# The original runs these on tokenizer.json even if tokenizer.model is there too.
_JSON_CLASSES = ("GemmaTokenizer", "PreTrainedTokenizer")


def load_tokenizer(directory) -> Tokenizer:
    """Reads what a tokenizer's `save` wrote.

    Raises:
        FileNotFoundError: the folder lacks one of the two files; it is named.
        ValueError: a file cannot be read, or a key of the json is missing, unknown or mistyped.
    """
    directory = epath.Path(directory)
    config = tokenizer_files.read_description(directory)
    kind = config.pop("kind")
    if kind not in _KINDS:
        path = directory / tokenizer_files.CONFIG_FILE
        raise ValueError(f"{path}: found tokenizer kind {kind!r}, expected one of {list(_KINDS)}")
    cls = _KINDS[kind]
    if cls is JsonTokenizer:
        config.pop("legacy")
    return cls.from_file(directory / cls.file, **config)


def from_hf(directory) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (MGM_SPEC 1.2, table "Tokenizers").

    `tokenizer.model` is read with sentencepiece, `tokenizer.json` with the `tokenizers` package.
    With both, the first is taken unless the original runs that class on the second (Gemma).
    `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` are used where they
    exist: `legacy` (absent: True), `add_bos_token`, the eos, pad and unknown tokens, added tokens.
    Without a pad token, the unknown one serves, or else `<|reserved_special_token_0|>` or eos.

    Raises:
        FileNotFoundError: no vocabulary file; the message says what is needed.
        ValueError: a file cannot be read, or a token in one of the json files does not fit the
            vocabulary.
    """
    directory = epath.Path(directory)
    config = _optional_json(directory / "tokenizer_config.json", "tokenizer configuration")
    sources = (_optional_json(directory / "special_tokens_map.json", "map of tokens"), config)
    names = {
        key: _text(value)
        for source in sources
        for key, value in source.items()
        if key.endswith("_token") and isinstance(value, str | dict) and _text(value)
    }
    further = [
        _text(value)
        for source in sources
        for value in source.get("additional_special_tokens") or ()
    ]
    cls = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    base = _vocabulary(directory, cls, config)
    named = (text for text in [*names.values(), *further] if text not in base.special_tokens)
    added = base.added_ids(named, _added_tokens(directory, config))

    def find(key: str) -> int | None:
        text = names.get(key)
        return added.get(text, base.token_id(text)) if text else None

    pad = (find("pad_token"), find("unk_token"), base.token_id("<|reserved_special_token_0|>"))
    found = {
        "eos_id": find("eos_token"),
        "pad_id": next((i for i in pad if i is not None), None),
        "special_tokens": {
            text: i for text, i in added.items() if base.special_tokens.get(text) != i
        },
    }
    if isinstance(base, JsonTokenizer):
        found["bos_id"] = find("bos_token")
    changes = {key: value for key, value in found.items() if value not in (None, {})}
    return base.replace(source=str(directory), **changes)


def _vocabulary(directory: epath.Path, cls: str, config: dict) -> Tokenizer:
    model, fast = directory / MODEL_FILE, directory / JSON_FILE
    if not model.is_file() and not fast.is_file():
        raise FileNotFoundError(
            f"{directory}: no tokenizer; expected {MODEL_FILE} (sentencepiece) or {JSON_FILE}"
        )
    add_bos = config.get("add_bos_token", True if cls in _BOS_CLASSES else None)
    if not isinstance(add_bos, bool | None) or not isinstance(config.get("legacy"), bool | None):
        raise ValueError(
            f"{directory / 'tokenizer_config.json'}: add_bos_token is {add_bos!r} and legacy is "
            f"{config.get('legacy')!r}, expected true, false or null"
        )
    if fast.is_file() and (not model.is_file() or cls in _JSON_CLASSES):
        return JsonTokenizer.from_file(fast, add_bos=add_bos)
    try:
        return SentencePieceTokenizer.from_file(
            model,
            add_bos=True if add_bos is None else add_bos,
            legacy=config.get("legacy") is not False,
        )
    except ValueError as error:
        if fast.is_file():  # LLaMA-3 folders may hold a tokenizer.model of another format
            return JsonTokenizer.from_file(fast, add_bos=add_bos)
        raise ValueError(f"{error}; there is no {JSON_FILE} beside it either") from error


def _added_tokens(directory: epath.Path, config: dict) -> dict[str, int]:
    """Text and id of what `added_tokens.json` and `tokenizer_config.json` add."""
    path = directory / "added_tokens.json"
    added = dict(_optional_json(path, "map of added tokens"))
    if not all(isinstance(i, int) for i in added.values()):
        raise ValueError(f"{path}: found {added!r}, expected {{text: id}}")
    path = directory / "tokenizer_config.json"
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ValueError(f"{path}: added_tokens_decoder is {listed!r}, expected {{id: token}}")
    for i, token in listed.items():
        if not str(i).isdigit() or not isinstance(token, dict) or "content" not in token:
            raise ValueError(f"{path}: added_tokens_decoder has {i!r}: {token!r}")
        if token.get("lstrip") or token.get("rstrip"):
            raise ValueError(
                f"{path}: the added token {token['content']!r} takes in the spaces around it "
                "(lstrip, rstrip), which is not supported"
            )
        added[token["content"]] = int(i)
    return added


def _text(token: str | dict) -> str:
    return token if isinstance(token, str) else str(token.get("content", ""))


def _optional_json(path: epath.Path, what: str) -> dict:
    return tokenizer_files.read_json(path, what) if path.is_file() else {}
