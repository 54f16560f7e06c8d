"""From a DataFrame of 64 rows to probabilities, and to a folder that plain PEFT loads."""

from pathlib import Path

import pandas as pd

from bbt import PromptClassifier

tickets = pd.read_csv(Path(__file__).parent / "tickets.csv")
words = {"account": "profile", "billing": "cost", "shipping": "transport", "technical": "software"}
template = "{prompt} {text} . It was about {mask} ."
# PEFT puts a prompt before everything else; and the tuned prompt is kept here even where the manual one is as good.
settings = {"prompt": {"placement": "start"}, "selection": {"baselines": False}}
classifier = PromptClassifier(template=template, label_words=words, budget=100, settings=settings)
classifier.fit(tickets["body"], tickets["queue"])
print(classifier.predict_proba(["You took the money twice.", "Nothing happens when I press the key."]).round(3))
print(classifier.export("carried", to="peft"))
