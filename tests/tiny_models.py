"""Random-weight models of every supported architecture, with real fast tokenizers, as folders on disk."""

import os
import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

DEVICE = os.environ.get("BBT_TEST_DEVICE", "cpu")
"""Where the tests of local models compute: cpu, or cuda to prove a GPU's path by the same tests."""
MASKED = ("bert", "roberta", "distilbert")
CAUSAL = ("gpt2", "llama")
ENCODER_DECODER = ("t5", "mt5", "bart")
ARCHITECTURES = MASKED + CAUSAL
MAX_LENGTH = 64
HIDDEN = 32

CORPUS = [
    "a film so bad that it was great . The acting is bad and the plot is worse .",
    "World News : the Sports and Business pages . The sentiment is negative , or positive .",
    "Yes , or No ? Question : is it a good film ? True , or not ? Answer : yes , no , maybe",
    "I liked it ; you did not . It was a slow , warm and funny story about two friends",
    *("bad great negative positive", " World Sports Business yes no Yes No", "World", "Sports", "Business", "News") * 9,
]


def kind_of(name: str) -> str:
    """The kind of a tiny model, as `ModelInfo.kind` has it."""
    return "masked" if name in MASKED else "causal" if name in CAUSAL else "encoder-decoder"


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind, lower case: the corpus' words and letters (a trained one would differ from run to run)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for line in CORPUS for word in line.lower().split()})
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    pieces = dict.fromkeys([*special, *letters, *words])
    raw = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=MAX_LENGTH,
        **{f"{name.strip('[]').lower()}_token": name for name in special},
    )


def byte_level(special: list[str], corpus: list[str] = CORPUS) -> Tokenizer:
    """GPT-2's and RoBERTa's kind: the space belongs to the token after it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    return raw


def bart_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's, with words that begin a text: what a decoder says first has no space before it."""
    return roberta_tokenizer([*CORPUS, *["bad", "great", "positive", "negative"] * 9])


def roberta_tokenizer(corpus: list[str] = CORPUS) -> PreTrainedTokenizerFast:
    """<s> text </s>; the mask swallows the space at its left."""
    raw = byte_level(["<s>", "<pad>", "</s>", "<unk>"], corpus)
    raw.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=512,  # as on the hub, where the model's own limit must be found in its config
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """No token before the text, none after."""
    raw = byte_level(["<|endoftext|>"])
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, unk_token=end)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's metaspace kind: a beginning-of-sequence token before the text."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind: the corpus' words and letters as pieces of a unigram model, </s> after the text, and sentinels."""
    special = ["<pad>", "</s>", "<unk>"]
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = list(string.ascii_letters + string.punctuation)
    pieces = {**dict.fromkeys(special, 0.0), "\u2581": -8.0, **dict.fromkeys(letters, -9.0)}
    pieces |= {f"\u2581{word}": -3.0 for word in words}
    raw = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2))
    spaces = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.pre_tokenizer = pre_tokenizers.Sequence(list(spaces))
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=MAX_LENGTH,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(3)],
    )


TOKENIZERS = {
    "bert": wordpiece,
    "roberta": roberta_tokenizer,
    "distilbert": wordpiece,
    "gpt2": gpt2_tokenizer,
    "llama": llama_tokenizer,
    "t5": t5_tokenizer,
    "mt5": t5_tokenizer,
    "bart": bart_tokenizer,
}


def random_model(name: str, vocab_size: int, n_layers: int = 2):
    """Four heads; no dropout matters in eval mode."""
    sizes = {"vocab_size": vocab_size, "hidden_size": HIDDEN, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    mlp = {"intermediate_size": 64, "max_position_embeddings": MAX_LENGTH}
    match name:
        case "bert":
            return BertForMaskedLM(BertConfig(**sizes, **mlp))
        case "roberta":
            return RobertaForMaskedLM(RobertaConfig(**sizes, **{**mlp, "max_position_embeddings": MAX_LENGTH + 2}))
        case "distilbert":
            shape = {"dim": HIDDEN, "n_layers": n_layers, "n_heads": 4, "hidden_dim": 64}
            return DistilBertForMaskedLM(
                DistilBertConfig(vocab_size=vocab_size, max_position_embeddings=MAX_LENGTH, **shape)
            )
        case "gpt2":
            end = {"bos_token_id": 0, "eos_token_id": 0}
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocab_size, n_embd=HIDDEN, n_layer=n_layers, n_head=4, n_positions=MAX_LENGTH, **end
                )
            )
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**sizes, **mlp, num_key_value_heads=2))
        case "t5" | "mt5":
            shape = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 64, "num_layers": n_layers, "num_heads": 4}
            ids = {"vocab_size": vocab_size, "decoder_start_token_id": 0}
            if name == "t5":
                return T5ForConditionalGeneration(T5Config(**shape, **ids))
            return MT5ForConditionalGeneration(MT5Config(**shape, **ids))
        case "bart":
            layers = {f"{part}_layers": n_layers for part in ("encoder", "decoder")}
            heads = {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
            wide = {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
            ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
            shape = {"vocab_size": vocab_size, "d_model": HIDDEN, "max_position_embeddings": MAX_LENGTH}
            model = BartForConditionalGeneration(BartConfig(**layers, **heads, **wide, **ids, **shape))
            model.generation_config.forced_bos_token_id = 0  # as on the hub
            return model
    raise ValueError(name)


def save_tiny(name: str, folder: Path, seed: int = 0, n_layers: int = 2) -> Path:
    """Tokenizer and model as `save_pretrained` writes them; every weight, biases too, is away from its default."""
    tokenizer = TOKENIZERS[name]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = random_model(name, len(tokenizer), n_layers)
        for weight in model.parameters():
            weight.data.add_(0.25 * torch.randn(weight.shape))
        if name == "mt5":
            model.lm_head.weight.data.mul_(0.2)  # logits of a size that fp32 keeps to 1e-4
        if name == "bart":
            model.final_logits_bias.add_(torch.randn(model.final_logits_bias.shape))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
