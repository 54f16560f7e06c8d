"""SQuAD's figures as its official script (v1.1) counts them, written down once more from its rules and called as it is:
python squad_counting.py DATASET.json PREDICTIONS.json prints exact_match and f1 in percent."""

import json
import re
import sys

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def words_of(text):
    """Lower case, no punctuation, then what is left between articles; they end at whatever is no letter, such as a long
    dash."""
    kept = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return ARTICLE.sub(" ", kept).split()


def overlap(left, right):
    """F1 of two lists of words, each word as often as both have it."""
    same = sum(min(left.count(word), right.count(word)) for word in set(left))
    if not same:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


def main(dataset, predictions):
    """Count every question of every paragraph; one without a prediction has nothing right."""
    exact = f1 = total = 0
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                total += 1
                said = words_of(predictions.get(question["id"], ""))
                truths = [words_of(answer["text"]) for answer in question["answers"]]
                exact += max(said == truth for truth in truths)
                f1 += max(overlap(said, truth) for truth in truths)
    return {"exact_match": 100 * exact / total, "f1": 100 * f1 / total}


if __name__ == "__main__":
    with open(sys.argv[1]) as dataset, open(sys.argv[2]) as predictions:
        print(json.dumps(main(json.load(dataset), json.load(predictions))))
