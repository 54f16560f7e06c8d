"""Encoder-decoders: label words, targets and texts are what plain transformers says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import normalised
from test_local_backend import BEFORE, MASKED_ONLY, SAME_FOR_BOTH, TEXTS, losses, rank_correlation
from tiny_models import ENCODER_DECODER, MAX_LENGTH
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from backends.local import LocalBackend
from bbt.backend import Decoding
from bbt.errors import BackendError, LabelWordError
from bbt.tasks.builtin import TASKS
from bbt.tasks.template import Template

every_model = pytest.mark.parametrize("name", ENCODER_DECODER)
CASES = {f"{name}: {case}": (name, case) for name in ENCODER_DECODER for case in {**SAME_FOR_BOTH, **MASKED_ONLY}}
ANSWERS = [
    ("a film so bad that it was great", "bad film"),
    ("bad", "great"),
    ("the acting is bad and the plot is worse , it was a slow , warm and funny story", "not a good film , or worse ?"),
    ("bad", "I liked it"),
    ("", "story about two friends"),
]
N_TOKENS = 3
SMALL = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def case_of(name, case):
    """The case; where BART says the label word first, it has no space before it."""
    case = {**SAME_FOR_BOTH, **MASKED_ONLY}[case]
    first = name == "bart" and case.template.endswith("{mask}")
    return replace(case, words=tuple(word.strip() for word in case.words)) if first else case


@pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES)
def test_label_scores_are_those_of_a_plain_forward(name, case, tiny_backend, reference, random_prompts):
    case = case_of(name, case)
    prompts = random_prompts(2, case.n_tokens, scale=1.0)
    expected = case.expected(reference(name), prompts)
    np.testing.assert_allclose(normalised(case.scores(tiny_backend(name), prompts)), expected, atol=1e-4)
    assert expected.std(1).max() > 0.02, "rows that score alike would prove nothing"


@every_model
@pytest.mark.parametrize("token_budget", [1, 100])
def test_the_size_of_micro_batches_does_not_matter(name, token_budget, tiny_backend, random_prompts):
    prompts = random_prompts(6, 5)
    expected = BEFORE.scores(tiny_backend(name), prompts)
    scores = BEFORE.scores(tiny_backend(name, token_budget=token_budget), prompts)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)


def test_a_micro_batch_has_no_more_places_than_the_budget(tiny_backend, random_prompts):
    """Filled up to the longest row beside it, a short row counts as much as that."""
    backend, seen = tiny_backend("t5", token_budget=120), []
    backend.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    backend.label_scores(random_prompts(6, 5), backend.encode(BEFORE.rows(), ("bad", "great")))
    assert len(seen) > 1
    assert max(seen) <= 120


def test_half_precision_ranks_a_population_as_full_precision_does(tiny_backend, random_prompts):
    prompts = random_prompts(24, 5, scale=1.0)
    full, half = (losses(BEFORE.scores(tiny_backend("t5", precision=p), prompts)) for p in ("fp32", "bf16"))
    assert rank_correlation(full, half) >= 0.95
    assert np.abs(full - half).max() > 0, "bf16 was not used"


def rows(name="", answers=ANSWERS, template="{prompt} . {source} . It was {target}"):
    return [Template(template).render(text, "", N_TOKENS, target) for text, target in answers]


@pytest.fixture(params=ENCODER_DECODER)
def subject(request, tiny_folder, tiny_backend):
    """A backend, and what plain transformers loads from the same folder."""
    folder = tiny_folder(request.param)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    return tiny_backend(request.param), *plain


@pytest.fixture
def prompts(subject):
    info = subject[0].info
    return np.random.default_rng(0).normal(0, info.embedding_std, (4, N_TOKENS, info.hidden_size)).astype(np.float32)


def embeddings(model, tokenizer, prompt, text):
    """(1, N, E) as written out by hand: BART's kind has <s> before the prompt, both have </s> at the end."""
    first = tokenizer("a")["input_ids"][: len(tokenizer("a")["input_ids"]) - 1 - len(tokenizer.tokenize("a"))]
    ids = tokenizer(f" . {text} . It was", add_special_tokens=False)["input_ids"]
    words = model.get_input_embeddings()
    parts = words(torch.tensor(first, dtype=torch.long)), torch.tensor(prompt), words(torch.tensor(ids))
    return torch.cat([*parts, words(torch.tensor([tokenizer.eos_token_id]))])[None].detach()


@torch.no_grad()
def test_likelihoods_are_the_models_own_loss(subject, prompts):
    """The labels are the tokenizer's, with </s>; <s>, which BART's kind must say first, is nobody's choice."""
    backend, model, tokenizer = subject
    encoded = backend.encode_pairs(rows())
    expected, forced = np.empty((len(prompts), len(ANSWERS))), model.generation_config.forced_bos_token_id
    for i, (text, target) in enumerate(ANSWERS):
        labels = torch.tensor([tokenizer(text_target=target)["input_ids"]])
        assert encoded.n_target_tokens[i] == labels.shape[1] - (forced is not None)
        for n, prompt in enumerate(prompts):
            inputs = embeddings(model, tokenizer, prompt, text)
            found = model(inputs_embeds=inputs, labels=labels).logits[0].log_softmax(-1).gather(-1, labels[0][:, None])
            expected[n, i] = found[int(forced is not None) :].double().sum()
    np.testing.assert_allclose(backend.target_log_likelihoods(prompts, encoded), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 100])
def test_likelihoods_are_the_same_however_the_work_is_cut(tiny_backend, budget, random_prompts):
    whole, cut = (tiny_backend("t5", token_budget=tokens) for tokens in (None, budget))
    found = [b.target_log_likelihoods(random_prompts(3, N_TOKENS), b.encode_pairs(rows())) for b in (whole, cut)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-4)


def test_the_encoder_reads_a_row_once_for_all_of_its_targets(subject, prompts):
    backend = subject[0]
    encoded = backend.encode_pairs(rows(answers=[("a film", target) for target in ("bad", "great", "not bad")]))
    seen = []
    backend.trunk.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    found = backend.target_log_likelihoods(prompts, encoded)
    assert sum(seen) == len(prompts)
    assert found.std(1).min() > 0.01


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_targets_within_a_text_are_what_the_decoder_says_there(name, tiny_backend, random_prompts):
    """A target of one token scores as that label word does."""
    backend, prompts = tiny_backend(name), random_prompts(2, 5)
    template = Template("{prompt} . {text} . It was {mask} .")
    asked = [template.render(text, "", 5) for text, _ in TEXTS]
    pairs = [
        tuple(replace(segment, kind="target", text=word) if segment.kind == "mask" else segment for segment in row)
        for row in asked
        for word in ("bad", "great")
    ]
    likely = backend.target_log_likelihoods(prompts, backend.encode_pairs(pairs)).reshape(2, len(TEXTS), 2)
    scores = backend.label_scores(prompts, backend.encode(asked, ("bad", "great")))
    np.testing.assert_allclose(normalised(likely), normalised(scores), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("n_beams", [1, 3])
def test_generated_text_is_plain_transformers_whatever_stands_in_the_batch(subject, prompts, n_beams):
    backend, model, tokenizer = subject
    contexts = backend.encode_contexts(rows(), 12)
    found = backend.generate(prompts[:1], contexts, Decoding(max_new_tokens=12, stop=(), n_beams=n_beams))
    n_forced = int(model.generation_config.forced_bos_token_id is not None)
    for (text, _), written in zip(ANSWERS, found, strict=True):
        inputs = embeddings(model, tokenizer, prompts[0], text)
        ids = model.generate(inputs_embeds=inputs, max_new_tokens=12 + n_forced, num_beams=n_beams, do_sample=False)
        assert written == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert len(set(found)) > 1


def test_text_ends_before_a_stop_string_and_samples_are_drawn_by_their_seed(subject, prompts):
    backend = subject[0]
    contexts = backend.encode_contexts(rows(), 12)
    whole = backend.generate(prompts[:1], contexts, Decoding(12, stop=()))
    stop = next(text for text in whole if len(text) > 4)[2:4]
    cut = backend.generate(prompts[:1], contexts, Decoding(12, stop=(stop,)))
    assert cut == [text.split(stop)[0].strip() for text in whole]
    texts = [backend.generate(prompts[:1], contexts, Decoding(8, (), sample=True, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_settings_that_a_summariser_brings_along_are_not_ours(tiny_folder, tmp_path, random_prompts):
    """A least length, no repetitions and four beams, as in bart-large-cnn."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder("bart"))
    AutoTokenizer.from_pretrained(tiny_folder("bart")).save_pretrained(tmp_path)
    own = {"min_length": 12, "no_repeat_ngram_size": 2, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True}
    model.generation_config.update(**own)
    model.save_pretrained(tmp_path)
    found = []
    for folder in (tmp_path, tiny_folder("bart")):
        backend = LocalBackend(str(folder), precision="fp32", device="cpu")
        contexts = backend.encode_contexts(rows(), 12)
        found.append(backend.generate(random_prompts(1, N_TOKENS), contexts, Decoding(12, ())))
    assert found[0] == found[1]


def test_a_long_source_is_cut_and_neither_prompt_nor_question_nor_target(subject):
    """Wherever the prompt stands; the decoder has positions of its own."""
    backend, _, tokenizer = subject
    for source in (
        "{prompt} question : {source_pair} context : {source} {target}",
        "question : {source_pair} {prompt} context : {source} {target}",
        "{source} question : {source_pair} {prompt} {target}",
    ):
        template, question = Template(source), "who is it ? " * 4
        long, empty = (
            backend.encode_pairs([template.render(text, question, N_TOKENS, "not a good film")])
            for text in ("story " * 2000, "")
        )
        assert (long.n_truncated, empty.n_truncated) == (1, 0)
        cut, whole = (one.pairs[0].context.ids for one in (long, empty))
        assert len(cut) == MAX_LENGTH > len(whole)
        assert [i for i in cut if i < 0] == [-1, -2, -3]
        asked = tokenizer(f" {question.strip()}", add_special_tokens=False)["input_ids"]
        for ids in (cut, whole):
            assert any(list(ids[i : i + len(asked)]) == asked for i in range(len(ids))), "the question is whole"
        assert long.pairs[0].target == empty.pairs[0].target
        with pytest.raises(BackendError, match=r"takes \d+ tokens, the model 64"):
            backend.encode_pairs([template.render("a film", "who ? " * 100, N_TOKENS, "bad")])


@torch.no_grad()
def test_targets_and_texts_fill_the_decoder_to_its_last_position(tiny_backend, tiny_folder, random_prompts):
    """BART's decoder has as many positions as its encoder, T5's are relative and never end."""
    prompt, text = random_prompts(1, N_TOKENS), ("a film", "story " * 59)
    for name in ("bart", "t5"):
        backend, folder = tiny_backend(name), tiny_folder(name)
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        target = (text[1] + "bad" if name == "bart" else text[1] * 4).strip()
        labels = torch.tensor([tokenizer(text_target=target)["input_ids"]])
        assert labels.shape[1] == MAX_LENGTH if name == "bart" else labels.shape[1] > 3 * MAX_LENGTH
        inputs, forced = embeddings(model, tokenizer, prompt[0], text[0]), name == "bart"
        found = model(inputs_embeds=inputs, labels=labels).logits[0].log_softmax(-1).gather(-1, labels[0][:, None])
        pairs = backend.encode_pairs(rows(answers=[(text[0], target)]))
        likely = backend.target_log_likelihoods(prompt, pairs)[0, 0]
        assert likely == pytest.approx(found[int(forced) :].sum().item(), rel=1e-5)
        most = MAX_LENGTH - 1 if forced else 100
        contexts = backend.encode_contexts(rows(), most)
        assert len(backend.generate(prompt, contexts, Decoding(most, ()))) == len(ANSWERS)
    backend = tiny_backend("bart")
    with pytest.raises(
        BackendError, match=r"'story st.*'\.\.\. takes 65 tokens, and this model has room for 63\. Leave"
    ):
        backend.encode_pairs(rows(answers=[("bad", "story " * 62)]))
    with pytest.raises(BackendError, match="64 new tokens were asked for; this model's decoder has room for 63"):
        backend.encode_contexts(rows(), 64)


def test_a_prefix_takes_positions_of_the_decoder(tiny_backend):
    asked = [Template("{text} . It was {mask}").render("a film", "", 0)]
    for name, room in (("bart", 23), ("t5", None)):
        model = tiny_backend(name).trainable()
        model.put_prefix(40, lambda batch_size: None)
        long = rows(answers=[("a film", "story " * 30)])
        if room is None:
            assert model.encode_pairs(long).n_examples == model.encode_contexts(long, 30).n_examples == 1
            continue
        with pytest.raises(BackendError, match=rf"takes \d+ tokens, and this model has room for {room}"):
            model.encode_pairs(long)
        with pytest.raises(BackendError, match=rf"30 new tokens .* has room for {room}"):
            model.encode_contexts(long, 30)
        model.put_prefix(MAX_LENGTH, lambda batch_size: None)
        with pytest.raises(BackendError, match=r"begins with 2 tokens, and a prefix .* 64 positions more: .* has 64"):
            model.encode(asked, ("bad", "great"))


def test_features_are_the_encoders_last_hidden_states(subject):
    backend, model, tokenizer = subject
    encoded = backend.encode(
        [Template("{text} . It was {mask}").render(text, "", 0) for text, _ in ANSWERS], ("bad", "great")
    )
    for (text, _), found in zip(ANSWERS, backend.features(encoded), strict=True):
        ids = torch.tensor([tokenizer(f"{text} . It was")["input_ids"]])
        expected = model.get_encoder()(ids).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(found.hidden_states), expected, rtol=1e-4, atol=1e-4)
        assert found.read == ids.shape[1] - 1
    with pytest.raises(BackendError, match="gives no likelihoods of what its encoder reads"):
        backend.token_log_likelihoods(encoded)


def test_what_has_no_place_in_an_encoder_decoder_is_said(subject, random_prompts):
    backend, encoded = subject[0], subject[0].encode(BEFORE.rows(), ("bad", "great"))
    with pytest.raises(BackendError, match="use another method than bbtv2"):
        backend.deep_label_scores(random_prompts(2, 5)[:, None], encoded)
    with pytest.raises(BackendError, match=r"use prompt\.placement: embedding"):
        backend.encode(BEFORE.rows(), ("bad", "great"), random_prompts(1, 5))
    with pytest.raises(BackendError, match="does not end in its target"):
        backend.encode_pairs(BEFORE.rows())


def test_a_mask_within_a_text_needs_a_token_for_it(tiny_folder, tmp_path):
    folder = tiny_folder("bart")
    AutoModelForSeq2SeqLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder, mask_token=None).save_pretrained(tmp_path)
    backend = LocalBackend(str(tmp_path), precision="fp32", device="cpu")
    assert backend.encode(BEFORE.rows(), ("bad", "great")).n_examples == len(TEXTS)
    with pytest.raises(
        BackendError, match=r"no token that stands for what is missing within a text .*put \{mask\} last"
    ):
        backend.encode(MASKED_ONLY["mask inside"].rows(), ("bad", "great"))


def test_a_label_word_that_is_one_token_only_after_a_space_is_explained(tiny_backend):
    with pytest.raises(LabelWordError, match=r"'sentiment' .* says the word first, without the space"):
        tiny_backend("bart").encode(BEFORE.rows(), ("bad", "sentiment"))


@pytest.mark.parametrize("task", TASKS)
def test_built_in_tasks_have_the_mask_within_the_text(task):
    wording = TASKS[task].task(task, "encoder-decoder")
    assert not wording.template.source.endswith("{mask}")
    assert wording.template.manual().source.count("{mask}") == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Pegasus", "MBart"])
def test_embeddings_that_a_model_scales_itself_are_scaled(kind, tiny_folder, tmp_path):
    """Pegasus' encoder multiplies the embeddings of token ids, and not those that it is given; MBart's embedding itself
    does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in SMALL.items()}
        ids = {"vocab_size": 142, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        config = AutoConfig.for_model(
            kind.lower(), d_model=32, max_position_embeddings=64, scale_embedding=True, **sizes, **ids
        )
        model = AutoModelForSeq2SeqLM.from_config(config).eval()
        for weight in model.parameters():
            weight.data.add_(0.25 * torch.randn(weight.shape))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("t5"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend, nothing = LocalBackend(str(tmp_path), precision="fp32", device="cpu"), np.zeros((1, 0, 32), np.float32)
    asked = [Template("{source} . It was {target}").render("a film", "", 0, "not bad")]
    labels = torch.tensor([tokenizer(text_target="not bad")["input_ids"]])
    given = torch.tensor([tokenizer("a film . It was")["input_ids"]])
    begun = torch.cat(
        [torch.zeros(1, 1, dtype=torch.int64), labels[:, :-1]], dim=1
    )  # MBart's own shift begins otherwise
    logits = model(input_ids=given, decoder_input_ids=begun).logits[0]
    expected = logits.log_softmax(-1).gather(-1, labels[0][:, None]).sum()
    found = backend.target_log_likelihoods(nothing, backend.encode_pairs(asked))[0, 0]
    assert found == pytest.approx(float(expected), abs=1e-4)
    prompt = backend.embed_text("the plot")
    soft = [Template("{prompt} {source} {target}").render("a film", "", prompt.shape[1], "not bad")]
    pairs = backend.encode_pairs(soft)
    likely = backend.trainable().target_log_likelihoods(pairs, [0], torch.from_numpy(prompt[0]))
    np.testing.assert_allclose(likely, backend.target_log_likelihoods(prompt, pairs)[0], atol=1e-4)
    if kind == "Pegasus":
        with pytest.raises(BackendError, match="no export would be exact"):
            backend.plain_text(lambda text, pair: Template("{text} {mask}").render(text, pair, 0), ["bad"])
