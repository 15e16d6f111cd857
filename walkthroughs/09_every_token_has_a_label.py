# %% [markdown]
# # Every token has a label
#
# So far a label belonged to a whole text. In *token classification* each word has one: the type of an entity, or a part
# of speech. The encoder and the methods stay as they are. Three things change: what the head reads, what the loss
# counts, and what the metric compares. It is also a script: `python walkthroughs/09_every_token_has_a_label.py`.

# %%
import random
import tempfile

import torch
import torch.nn.functional as F
from showing import source

import minipeft
from minipeft.data.tokens.words import encode_words
from minipeft.problems.token_labels import TokenLabels, find_entities

# %% [markdown]
# ## The data: words with tags
#
# `B-person` begins a person, `I-person` continues it, and `O` is a word outside of all entities. With a `B-` and an
# `I-` two neighbouring entities stay two. The sentences are made up: a model that has learned them knows ten names.

# %%
people = [["Ada", "Lovelace"], ["Alan", "Turing"], ["Grace", "Hopper"], ["Emmy", "Noether"], ["Hypatia"]]
places = [["London"], ["New", "York"], ["Paris"], ["San", "Marino"], ["Rome"]]
sentences = ["{} visited {} .", "Yesterday {} wrote a letter from {} .", "In {1} nobody has heard of {0} ."]
draw = random.Random(0)


def sentence() -> dict[str, list[str]]:
    """A row: a list of words and a list of tags of the same length."""
    chosen = {"0": ("person", draw.choice(people)), "1": ("place", draw.choice(places))}
    tokens, tags, fields = [], [], iter("01")
    for word in draw.choice(sentences).split():
        if word.startswith("{"):
            kind, words = chosen[word.strip("{}") or next(fields)]
            tokens, tags = tokens + words, [*tags, f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
        else:
            tokens, tags = [*tokens, word], [*tags, "O"]
    return {"tokens": tokens, "ner_tags": tags}


rows = [sentence() for _ in range(600)]
print(list(zip(*rows[0].values(), strict=True)))

# %% [markdown]
# ## The labels of tokens
#
# The tokenizer splits words into pieces. The first piece of a word gets the word's tag; every other piece, and the
# special tokens, get -100, which `F.cross_entropy` ignores. So a long word does not count more than a short one.

# %%
problem = TokenLabels(("O", "B-person", "I-person", "B-place", "I-place"))
tokenizer, row = minipeft.load_tokenizer("roberta-mini"), rows[0]
table, words = encode_words(tokenizer, [row["tokens"]], 128, None)
(labels,) = words.token_labels([0], table.lengths, [problem.read(row["ner_tags"], "row 1")])
print(labels)
assert len(labels) == len(table[0]) and sum(label != -100 for label in labels) == len(row["tokens"])

# %% [markdown]
# ## The head
#
# The head of a sequence classifier reads the first token, so the last layer computes little for the others. This one
# reads every token, and the last layer computes all of them. The batch stays packed: there is no padding to mask.

# %%
source(minipeft.TokenClassifier)
model = minipeft.load_pretrained("roberta-mini", num_labels=5, problem_type="token_classification").eval()
batch = minipeft.pack([list(table[0])], labels=[labels], config=model.config)
with torch.no_grad():
    logits = model(batch)  # (total_tokens, num_labels)
assert logits.shape == (batch.total_tokens, 5)

# %% [markdown]
# ## The loss
#
# The mean over the words of a step. The divisor is the number of words, not of tokens or of sentences.

# %%
counted = batch.labels != -100
assert torch.allclose(F.cross_entropy(logits, batch.labels), F.cross_entropy(logits[counted], batch.labels[counted]))

# %% [markdown]
# ## The metric
#
# Most words are `O`, so accuracy is high for a model that finds nothing. The F1 of *entities* counts spans: one is
# right if its first word, its last word and its type are right.

# %%
source(find_entities)
actual = ["O", "O", "B-person", "I-person", "O", "O", "O", "O", "O", "O"]
predicted = ["O", "O", "B-person", "O", "O", "O", "O", "O", "O", "O"]  # the second word is missing
right = {*find_entities(actual)} & {*find_entities(predicted)}
print("accuracy of words:", sum(map(str.__eq__, actual, predicted)) / len(actual), " right entities:", len(right))
assert not right

# %% [markdown]
# ## Training, and prediction on text
#
# Everything else is as before. The best epoch is chosen by F1, and `predict` gives the characters of each entity.

# %%
with tempfile.TemporaryDirectory() as folder:
    settings = {"label_type": "tokens", "model": "roberta-mini", "epochs": 3, "lr": 3e-3, "warmup_steps": 5}
    result = minipeft.train(data=rows, method="lora", rank=4, output=f"{folder}/run", quiet=True, **settings)
print(result.content["metric"], result.content["best"])
text = "Grace Hopper visited New York."
(prediction,) = result.predict([text])
print(prediction)
assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in prediction["entities"])

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/09_every_token_has_a_label.py`: write your answers there, then run
# `python walkthroughs/check.py 9`. It says what is right and gives hints. The solutions are in `solutions/`.
