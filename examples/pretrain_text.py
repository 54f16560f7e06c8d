"""Text side of ``pretrain.py``: reading a corpus, making or trimming a tokenizer, drawing rows of tokens."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)")  # the space stays with the next sentence, where BPE wants it


def sentences(documents: list[str]) -> Iterator[str]:
    """All sentences of all documents, roughly cut."""
    for document in documents:
        yield from SENTENCE_END.split(document.strip())


def token_ids(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of each text, without [CLS] and the like; in chunks, since encodings are big objects."""
    while chunk := list(islice(texts, 20_000)):
        yield from (e.ids for e in tokenizer.encode_batch_fast(chunk, add_special_tokens=False))


def encode_documents(documents: list[str], tokenizer: Tokenizer, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N,) uint16 of the documents, each followed by ``end``, and the offsets (S,) of their sentences."""
    lengths = iter([len(SENTENCE_END.split(d.strip())) for d in documents])
    tokens: list[np.ndarray] = []
    starts, offset, left = [], 0, 0
    for ids in token_ids(sentences(documents), tokenizer):
        left = (left or next(lengths)) - 1
        tokens.append(np.array(ids if left else [*ids, end], dtype=np.uint16))
        starts.append(offset)
        offset += len(tokens[-1])
    return np.concatenate([np.zeros(0, np.uint16), *tokens]), np.array(starts, dtype=np.int64)


@dataclass
class Corpus:
    """Encoded text, all of it on one device, where rows are drawn without asking the host."""

    tokens: torch.Tensor  # (N,) int32, the files one after the other
    starts: torch.Tensor  # (S,) int64, offsets in `tokens` at which a sentence starts
    first: torch.Tensor  # (files,) int64, where each file's sentences begin in `starts`
    sentences: torch.Tensor  # (files,) int64, how many sentences each file has
    weights: torch.Tensor  # (files,) chance of drawing a row from each file, up to a factor

    def rows(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Draw ``count`` windows (count, length) int64; half of them start, half end at a sentence boundary."""
        device = self.tokens.device
        files = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        chance = torch.rand(2, count, generator=generator, device=device, dtype=torch.float64)
        picks = self.starts[self.first[files] + (chance[0] * self.sentences[files]).long()]
        offsets = (picks - length * (chance[1] < 0.5)).clamp(0, len(self.tokens) - length)
        return self.tokens[offsets[:, None] + torch.arange(length, device=device)].long()


def read_documents(folder: Path) -> dict[str, list[str]]:
    """Documents of each file, keyed by the file's stem."""
    files = sorted(folder.glob("*.txt"))
    return {f.stem: [d for d in f.read_text(encoding="utf-8").split("\n\n") if d.strip()] for f in files}


def is_held_out(document: str, one_in: int) -> bool:
    """Decide by the text alone, so that the held-out set survives reordering and added files."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=4).digest(), "big") % one_in == 0


def encode_corpus(documents: dict[str, list[str]], tokenizer: Tokenizer, end: int, one_in: int, path: Path) -> None:
    """Write the token streams and sentence starts of the training and the held-out part to one npz file."""
    arrays: dict[str, np.ndarray] = {}
    for part, held in (("train", False), ("held", True)):
        streams, offset = [], 0
        for name, docs in documents.items():
            chosen = [d for d in docs if is_held_out(d, one_in) == held]
            tokens, starts = encode_documents(chosen, tokenizer, end)
            arrays[f"{part}/starts/{name}"] = starts + offset
            offset += len(tokens)
            streams.append(tokens)
        arrays[f"{part}/tokens"] = np.concatenate(streams)
        assert offset, f"no document fell into the part {part!r}: is there a blank line between documents?"
    np.savez(path, **arrays)


def load_corpus(path: Path, part: str, weights: dict[str, float], device: torch.device) -> Corpus:
    """Load one part; a file is drawn in proportion to its sentences times its weight (1 where none is given)."""
    with np.load(path) as data:
        names = [k.split("/")[2] for k in data.files if k.startswith(f"{part}/starts/")]
        starts = [torch.from_numpy(data[f"{part}/starts/{n}"]) for n in names]
        tokens = torch.from_numpy(data[f"{part}/tokens"].astype(np.int32))
    counts = torch.tensor([len(s) for s in starts])
    odds = counts * torch.tensor([weights.get(n, 1.0) for n in names])
    return Corpus(*(t.to(device) for t in (tokens, torch.cat(starts), counts.cumsum(0) - counts, counts, odds)))


def byte_level_bpe(texts: list[str], size: int, keep_words: list[str]) -> Tokenizer:
    """Train GPT-2's kind of tokenizer; each word to keep is read often enough to earn its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts + emphasis(keep_words), trainer)
    missing = [w for w in keep_words if len(tokenizer.encode(" " + w).ids) > 1]
    assert not missing, f"not one token each: {missing}"
    return tokenizer


def wordpiece(texts: list[str], size: int, keep_words: list[str]) -> Tokenizer:
    """Train BERT's kind of tokenizer (lower case)."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials)
    tokenizer.train_from_iterator(texts + emphasis(keep_words), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def emphasis(words: list[str], times: int = 5000) -> list[str]:
    """Text that repeats the words, with the leading space that they have inside a sentence."""
    return [f" {word}" * times for word in words]


TOKENIZER_KINDS: dict[str, Callable[[list[str], int, list[str]], Tokenizer]] = {
    "mlm": wordpiece,
    "causal": byte_level_bpe,
}


def trim_wordpiece(
    tokenizer: Tokenizer, texts: list[str], size: int, keep_words: list[str]
) -> tuple[Tokenizer, list[int]]:
    """Keep ``size`` word pieces; return the smaller tokenizer and the old id of each of its tokens.

    Kept are: special tokens, single characters with their ## forms (so that any word that could be spelt still
    can be), ``keep_words``, then the pieces most frequent in ``texts``.
    """
    spec = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = spec["model"]["vocab"]
    missing = [w for w in keep_words if w not in vocab]
    assert not missing, f"not in the vocabulary: {missing}"
    must = (
        [t["content"] for t in spec["added_tokens"]] + [t for t in vocab if len(t.removeprefix("##")) == 1] + keep_words
    )
    counts = Counter(dict.fromkeys(vocab.values(), 0))
    for ids in token_ids(sentences(texts), tokenizer):
        counts.update(ids)
    by_id = {i: t for t, i in vocab.items()}
    ranked = dict.fromkeys(must + [by_id[i] for i, _ in counts.most_common()])
    kept = sorted(vocab[t] for t in list(ranked)[:size])
    return Tokenizer.from_str(json.dumps(renumber(spec, by_id, kept))), kept


def renumber(spec: dict, by_id: dict[int, str], kept: list[int]) -> dict:
    """Give the kept tokens the ids 0, 1, 2, ... wherever the tokenizer's description mentions ids."""
    new = {by_id[old]: i for i, old in enumerate(kept)}
    spec["model"]["vocab"] = new
    for token in spec["added_tokens"]:
        token["id"] = new[token["content"]]
    for name, special in spec["post_processor"]["special_tokens"].items():
        special["ids"] = [new[name]]
    return spec
