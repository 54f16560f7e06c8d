"""The lines of an export's page for labels of several tokens, which are scored by the likelihood of all of them."""

from typing import Any

_PEFT = """\
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

{loaded}model = PeftModel.from_pretrained({auto}.from_pretrained(facts["model"], dtype=torch.float32), ".").eval()
"""
_TRANSFORMERS = """\
from safetensors.torch import load_file
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
prompt, words = load_file("prompt_embeds.safetensors")["prompt_embeds"], model.get_input_embeddings()
"""
_MANUAL = """\
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
"""
_SCORED = """\
likely = []
for label in facts["target_ids"]:  # the last token of a label is foretold, and given to nobody
    said = torch.tensor([{said}])
    with torch.no_grad():
        logits = {called}.logits[0, -len(label) :]
    likely.append(logits.log_softmax(-1)[range(len(label)), label].{reduced}())
scores = torch.stack(likely) + torch.tensor(facts["biases"])
probabilities = dict(zip(facts["label_names"], scores.softmax(-1).tolist()))
"""
_SAID = {"causal": "[*ids[0].tolist(), *label[:-1]]", "encoder-decoder": '[*facts["decoder_ids"], *label[:-1]]'}
_BY_IDS = {
    "causal": "model(input_ids=said, attention_mask=torch.ones_like(said))",
    "encoder-decoder": "model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=said)",
}
_BY_VECTORS = {
    "causal": "model(inputs_embeds=torch.cat([prompt[None], words(said)], dim=1))",
    "encoder-decoder": "model(inputs_embeds=torch.cat([prompt[None], words(ids)], dim=1), decoder_input_ids=said)",
}
_VLLM = """\
import base64
import io

import requests
from safetensors.torch import load_file
from transformers import {auto}, AutoTokenizer

url = "http://localhost:8000/v1/completions"  # vllm serve MODEL --enable-prompt-embeds
{loaded}words = {auto}.from_pretrained(facts["model"]).get_input_embeddings()  # the client needs no more
prompt, scores = load_file("prompt_embeds.safetensors")["prompt_embeds"], torch.tensor(facts["biases"])
for k, label in enumerate(facts["target_ids"]):
    for j, token in enumerate(label):
        buffer = io.BytesIO()
        torch.save(torch.cat([prompt, words(torch.tensor([*ids[0], *label[:j]]))]).detach(), buffer)
        sent = {{"prompt_embeds": [base64.b64encode(buffer.getvalue()).decode()], "max_tokens": 1, "temperature": 0}}
        asked = {{"logprobs": 1, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}}
        answer = requests.post(url, json={{"model": facts["model"], **sent, **asked}}).json()["choices"][0]
        scores[k] += answer["logprobs"]["top_logprobs"][0][f"token_id:{{token}}"]{shared}
probabilities = dict(zip(facts["label_names"], scores.softmax(-1).tolist()))
"""


def label_lines(to: str, facts: dict[str, Any], auto: str, loaded: str) -> str:
    """Write the lines that score an export's labels for users of `to`. `auto` is the class of `transformers` that loads
    the model, and the lines `loaded` read the facts and tokenise the text."""
    kind, mean = facts["kind"], facts["scored_by"] == "mean_likelihood"
    if not facts["n_virtual_tokens"]:
        lines, called = _MANUAL + _SCORED, _BY_IDS[kind]
    elif to == "peft":
        lines, called = _PEFT + _SCORED, _BY_IDS[kind]
    else:
        lines, called = _VLLM if to == "vllm" else _TRANSFORMERS + _SCORED, _BY_VECTORS[kind]
    return lines.format(
        auto=auto,
        loaded=loaded,
        said=_SAID[kind],
        called=called,
        reduced="mean" if mean else "sum",
        shared=" / len(label)" if mean else "",
    )
