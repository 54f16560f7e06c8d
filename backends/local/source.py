"""A model's name leads to where its files are, and to what its config and tokenizer tell, before a weight is read.

PyTorch and `transformers` take seconds to import; nothing here does so before it must.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from backends.local.encoding import special_ids
from backends.local.gguf import SMOLLM2, plain_copy, smollm2_file
from backends.models import bundled_models
from bbt.errors import BackendError, did_you_mean

Kind = Literal["masked", "causal", "encoder-decoder"]


def known_models() -> list[str]:
    """The names that stand for a model without a folder or the hub."""
    return [*bundled_models(), SMOLLM2]


def resolve(model: str) -> str:
    """The name that `transformers` is given: a bundled name becomes its folder, a GGUF file the folder of its plain
    copy, and anything else is left as it is.

    Raises:
        BackendError: a GGUF file that cannot be read.
    """
    if model == SMOLLM2:
        return str(plain_copy(smollm2_file()))
    if model.lower().endswith(".gguf"):
        return str(plain_copy(Path(model).expanduser()))
    return str(bundled_models().get(model, model))


@contextmanager
def cannot_load(model: str) -> Iterator[None]:
    """A context in which an exception of `transformers` and its helpers becomes one line that says what a model may be.

    Raises:
        BackendError: in place of the exception.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        names = known_models()
        raise BackendError(
            f"cannot load model {model!r}: {reason}{did_you_mean(model, names)} "
            f"Give a folder, a GGUF file, a name on the hub, or one of: {', '.join(names)}."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """A context without progress bars and without reports of weights that are not used; what is missing is an error of
    ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the only one
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_tokenizer(model: str, tokenizer: Any, n_words: int) -> None:
    """Refuse a tokenizer whose ids are not rows of the model's `n_words` word embeddings. Special tokens that are
    never put into a row (a chat model's padding, for instance) may lie beyond them.

    Raises:
        BackendError: not a fast tokenizer, made up from nothing, or larger than the embeddings.
    """
    if not tokenizer.is_fast:
        raise BackendError(f"model {model!r} has no fast tokenizer (tokenizer.json), which truncation needs.")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes this up where files are missing
        raise BackendError(f"model {model!r} comes without a tokenizer: no tokenizer.json or vocabulary beside it.")
    unused = special_ids(tokenizer) - {*tokenizer("a")["input_ids"], tokenizer.mask_token_id}
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= n_words and i not in unused]
    if beyond:
        raise BackendError(
            f"the tokenizer of model {model!r} does not belong to its weights: {len(beyond)} of its tokens, "
            f"{beyond[0]!r} among them, lie beyond the {n_words} word embeddings. Put the tokenizer that the model was "
            "trained with beside it, or resize the embeddings and train them."
        )


def checked_kind(model: str, config: Any, kind: Kind | None) -> Kind:
    """The kind asked for, or else the config's own.

    Raises:
        BackendError: a model of none of the kinds, or that `transformers` does not have in the kind asked for.
    """
    from transformers.models.auto import modeling_auto

    known = {
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        "encoder-decoder": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    }
    what = f"cannot load model {model!r}: it is of type {config.model_type} ({', '.join(config.architectures or [])})"
    if getattr(config, "is_encoder_decoder", False) and kind == "masked":
        raise BackendError(f"{what}, an encoder-decoder model and no masked LM: leave the backend's option kind out.")
    chosen = kind or kind_of(config)
    if type(config) not in known[chosen]:
        none = "none of a masked LM (BERT's kind), a causal LM (GPT's kind) and an encoder-decoder (T5's kind)"
        raise BackendError(f"{what}, {f'which is no {chosen} LM' if kind else none}.")
    return chosen


def kind_of(config: Any) -> Kind:
    """The kind that the architectures in config.json name, or an encoder-decoder where the config says that it is one;
    else masked if `transformers` has a masked LM of that model type, or causal.

    An `LMHead` in a name says little: `FlaubertWithLMHeadModel` is masked, `GPT2LMHeadModel` causal.
    """
    names = " ".join(config.architectures or [])
    if getattr(config, "is_encoder_decoder", False) and "CausalLM" not in names:
        return "encoder-decoder"
    if "MaskedLM" in names or "ForPreTraining" in names:
        return "masked"
    if "CausalLM" in names or ("LMHead" in names and _is_decoder(config)):
        return "causal"
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    return "masked" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "causal"


def _is_decoder(config: Any) -> bool:
    """Whether the config of a model type that can be either says that the model reads its rows from the left: BERT's
    kind by `is_decoder`, XLM's by `causal`."""
    return bool(getattr(config, "is_decoder", False) or getattr(config, "causal", False))


LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_encoder_position_embeddings")
"""What configs call the number of positions: of most models, GPT-2's kind, MPT, and LED."""


def position_limit(config: Any) -> int | None:
    """The most tokens of a row by the model's config; None where it does not say. T5's kind has relative positions that
    never end, and was trained on rows of `n_positions`, or of 512 (Raffel et al. 2020, section 3.1.2)."""
    limits = (getattr(config, name, None) for name in LIMITS)
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    if limit is None and getattr(config, "relative_attention_num_buckets", None) and config.is_encoder_decoder:
        return 512
    return limit
