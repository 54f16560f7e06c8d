"""A plain fast tokenizer is read here without `transformers`, whose import takes seconds.

Much of a tokenizer may be decided by Python code that `transformers` keeps for its class. What is read here is the
kind that is all in tokenizer.json, as `save_pretrained` writes it; anything else is left to `transformers`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""The names under which `transformers` takes tokenizer.json as it is, of its version 5 and of those before."""

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PATCHED_ABOVE = 100_000
"""The size of a vocabulary above which `transformers` looks at where a tokenizer is from, and may replace its rule for
words."""


class PlainTokenizer:
    """A tokenizer that offers what `RowTokenizer` and the clients of endpoints ask of one of `transformers`, and gives
    the same answers.

    `roles` names the special tokens by role, `extra` those without one; all of them are special tokens in `raw`.
    """

    is_fast = True

    def __init__(self, raw: Tokenizer, roles: dict[str, str], extra: Sequence[str]) -> None:
        raw.no_truncation()
        raw.no_padding()
        self._raw, self._roles, self._extra = raw, roles, list(extra)

    def __len__(self) -> int:
        """The number of tokens, added ones too."""
        return int(self._raw.get_vocab_size(with_added_tokens=True))

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """Tokenise a text: return its `input_ids` and, if asked for, the `offset_mapping`, which says where each token
        begins and ends in it.

        With `split_special_tokens`, special tokens in the text are text. No text is too long, so that `verbose` has
        nothing to tell.
        """
        self._raw.encode_special_tokens = split_special_tokens
        coded = self._raw.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": coded.ids, **({"offset_mapping": coded.offsets} if return_offsets_mapping else {})}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Write token ids as text, special tokens too."""
        return str(self._raw.decode(list(token_ids), skip_special_tokens=False))

    def convert_ids_to_tokens(self, token_ids: int | Sequence[int]) -> Any:
        """Return the token of an id, or a list of tokens for several ids."""
        if isinstance(token_ids, int):
            return self._raw.id_to_token(token_ids)
        return [self._raw.id_to_token(int(i)) for i in token_ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or a list of ids for several tokens; a token that is not there has the unknown
        token's."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._raw.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens, by token."""
        return dict(self._raw.get_vocab(with_added_tokens=True))

    def add_tokens(self, tokens: Sequence[AddedToken]) -> int:
        """Add tokens at the vocabulary's end, and tell how many are new."""
        return int(self._raw.add_tokens(list(tokens)))

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is split, by id."""
        return dict(self._raw.get_added_tokens_decoder())

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens with a role and of the extra ones, each once."""
        tokens = [self._roles[role] for role in ROLES if role in self._roles]
        return [self.convert_tokens_to_ids(token) for token in dict.fromkeys([*tokens, *self._extra])]

    @property
    def mask_token_id(self) -> int | None:
        """The mask's id, if there is one."""
        return self._role_id("mask_token")

    @property
    def unk_token_id(self) -> int | None:
        """The unknown token's id, if there is one."""
        return self._role_id("unk_token")

    def _role_id(self, role: str) -> int | None:
        return self._raw.token_to_id(self._roles[role]) if role in self._roles else None


def plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Read the folder's tokenizer; None where `transformers` may make more of its files than is in tokenizer.json.

    Raises:
        ValueError: a file is damaged.
    """
    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (file.is_file() and settings_file.is_file()) or (folder / "added_tokens.json").exists():
        return None
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    try:
        raw = Tokenizer.from_file(str(file))
    except Exception as error:  # the only class that this library raises
        raise ValueError(f"its tokenizer.json cannot be read ({error}).") from error
    added = {token.content: token for token in raw.get_added_tokens_decoder().values()}
    roles = {role: _content(settings[role]) for role in ROLES if settings.get(role)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    plain = (
        settings.get("tokenizer_class") in CLASSES
        and "auto_map" not in settings
        and not settings.get("split_special_tokens")
        and not (settings.get("clean_up_tokenization_spaces") and type(raw.model).__name__ != "BPE")
        and all(key in ROLES for key, value in settings.items() if key.endswith("_token") and isinstance(value, str))
        and _same_added(settings, raw, folder)
        and all(token in added and added[token].special for token in roles.values())
        and isinstance(extra, list)
        and all(isinstance(token, str) and _alike(added.get(token), _special(token)) for token in extra)
        and raw.post_processor is not None
        and raw.get_vocab_size(with_added_tokens=True) <= PATCHED_ABOVE
    )
    return PlainTokenizer(raw, roles, extra) if plain else None


def _same_added(settings: dict[str, Any], raw: Tokenizer, folder: Path) -> bool:
    """Whether the files beside tokenizer.json, of versions before 5, tell of no other added tokens than it does."""
    if "added_tokens_decoder" not in settings:
        return not (folder / "special_tokens_map.json").exists()
    added = raw.get_added_tokens_decoder()
    return all(_alike(added.get(int(i)), AddedToken(**its)) for i, its in settings["added_tokens_decoder"].items())


def _content(token: str | dict[str, Any]) -> str:
    """Return the text of a token, which is written as text, or as a mapping with its text and properties."""
    return token if isinstance(token, str) else str(token["content"])


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _alike(found: AddedToken | None, expected: AddedToken) -> bool:
    """Whether two added tokens have the same text and properties, all of which their `repr` tells."""
    return repr(found) == repr(expected)
