# %% [markdown]
# # From text to packed batch
#
# A network multiplies matrices; a data set holds sentences. This page follows one sentence all the way from characters
# to the tensors that the encoder takes: its bytes, the merges that make tokens of them, the special tokens around them,
# and at last the *packed batch*, in which sequences of any lengths lie end to end and nothing is padding.
#
# You need to know PyTorch, and nothing about tokenizers. The page is also a script, `python
# walkthroughs/01_from_text_to_packed_batch.py`. Every number is computed when the page runs, and the quoted code is
# read from the installed package. It uses the small encoder that comes with the package, roberta-mini, so it needs no
# network.

# %%
import itertools
import json
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from showing import picture, source

import minipeft
from minipeft.data.batches.sampling import split_by_tokens
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task

tokenizer = minipeft.load_tokenizer("roberta-mini")
config = minipeft.load_pretrained("roberta-mini").config
sentence = "The café's film is unforgettable."

# %% [markdown]
# ## What a token should be
#
# Two simple answers do not work. If every *word* is a token, the table of words is never complete: a new name, a
# misspelling or a word from another language has no entry, and all of them end up as the same "unknown". If every
# *character* is a token, nothing is unknown, but a sentence becomes several times as long, and the cost of attention
# grows with the square of the length.
#
# *Byte-pair encoding* (BPE; Sennrich, Haddow and Birch 2016) stands between the two. It starts from the smallest pieces
# and joins those that are often seen together, so that a frequent word is one token and a rare word is several. GPT-2
# (Radford et al. 2019) let the smallest pieces be *bytes*, and RoBERTa (Liu et al. 2019, section 4.4) took that over.
# There are only 256 different bytes, every text in every language is a sequence of them, so nothing is ever unknown.
#
# We now do by hand, in plain Python, what the tokenizer does. It needs two things from the checkpoint's
# `tokenizer.json`: the vocabulary, from token to number, and the list of merges in the order in which they were
# learned.

# %%
content = json.loads((tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8"))
vocabulary = content["model"]["vocab"]
merges = [tuple(pair) for pair in content["model"]["merges"]]
rank = {pair: number for number, pair in enumerate(merges)}

print(len(vocabulary), "tokens:", len(merges), "merges, 256 bytes and", len(vocabulary) - len(merges) - 256, "special")
print("the first merges:", merges[:8])

# %% [markdown]
# The counts explain each other. A vocabulary holds the special tokens, one token for each byte, and one more for each
# merge, because a merge makes one new token out of two old ones. The first merges are the most frequent pairs of
# English: a space and a *t*, a space and an *a*, *h* and *e*. (`Ġ` is how a space is written here; the next section
# says why.)
#
# ## Step 1: normalise and split
#
# roberta-mini's tokenizer first writes everything in lower case, so that its small vocabulary needs one spelling of
# each word only. (roberta-base keeps capitals.) Then the text is cut into *words*; merges never cross the edge of a
# word. GPT-2's rule for it is one regular expression. It keeps a space together with the word that follows it, so that
# "film" after a space and "film" inside a word can be different tokens, and the text can be put together again exactly.

# %%
assert content["normalizer"]["normalizers"][-1]["type"] == "Lowercase"
assert content["pre_tokenizer"]["add_prefix_space"]

WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def words_of(text: str) -> list[str]:
    return WORDS.findall(" " + text.lower())


print(words_of(sentence))

# %% [markdown]
# ## Step 2: bytes, written as printable characters
#
# Each word becomes its bytes in UTF-8. An English letter is one byte. The *é* is two, `C3 A9`, so our word *café* has
# one byte more than it has letters.
#
# Programs print tokens, but many bytes are not printable characters: the space, the end of a line, and the bytes that
# have a meaning only together. GPT-2 therefore gives each of the 256 bytes a printable character of its own. Bytes that
# are printable in Latin-1 stand for themselves, and the others take the characters from number 256 on, one after the
# other. The space is one of these others, and that is where the `Ġ` comes from. This is only a notation; no information
# is lost or added.

# %%
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in printable]
character_of = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def spelt(word: str) -> list[str]:
    return [character_of[byte] for byte in word.encode("utf-8")]


print("space is byte", ord(" "), "and number", others.index(ord(" ")), "of the others:", character_of[ord(" ")])
for word in words_of(sentence)[1:3]:
    print(repr(word), "→", word.encode("utf-8").hex(" "), "→", spelt(word))
assert character_of[ord(" ")] == "Ġ" and len(set(character_of.values())) == 256

# %% [markdown]
# ## Step 3: merge, the earliest learned first
#
# Now the merging itself. Among all neighbours in the word, find the pair that was learned *earliest*, which is the pair
# with the smallest rank. Join it wherever it occurs. Repeat until no pair of neighbours is in the list.
#
# Order matters. A merge that was learned late joins tokens that earlier merges made. Applying the merges in the order
# of learning gives the pieces that training saw. Taking the longest token that fits would often give other pieces.


# %%
def merged(pieces: list[str], show: bool = False) -> list[str]:
    while True:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        best = min(pairs, key=rank.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
        if show:
            print(f"{rank[best]:>5}  {best[0] + ' + ' + best[1]:<14}", " ".join(pieces))


for word in (" café", " unforgettable"):
    print(f" rank  merge          {' '.join(spelt(word))}")
    merged(spelt(word), show=True)
    print()

# %% [markdown]
# Read the second table from the top. Every line is one merge. The ranks on the left rise: a merge makes new pairs
# possible only with the token that it made, and these pairs were learned after it. What remains at the bottom is what
# the encoder will see: the word was too rare in the tokenizer's training text to have its own token, so it is several
# pieces. In the first table, the two bytes of *é* have been joined.
#
# ## Step 4: numbers, and the comparison
#
# The vocabulary turns each piece into its number. These must be exactly the numbers of the real tokenizer. The next
# cell checks that, on our sentence and on the sentences of the synthetic data for SST-2 (a set of small sentences that
# comes with the package).


# %%
def ids_of(text: str) -> list[int]:
    return [vocabulary[piece] for word in words_of(text) for piece in merged(spelt(word))]


real = tokenizer.encode([sentence])[0]
by_hand = ids_of(sentence)
for word in words_of(sentence):
    print(f"{word!r:<18}", [(piece, vocabulary[piece]) for piece in merged(spelt(word))])
print("by hand      ", by_hand)
print("the tokenizer", list(real))
assert [vocabulary["<s>"], *by_hand, vocabulary["</s>"]] == real

examples = read_split(get_task("sst2"), "validation", "standin")
for text, ids in zip(examples.texts, tokenizer.encode(examples.texts), strict=True):
    assert ids[1:-1] == ids_of(text)
print("equal on all", len(examples), "sentences")

# %% [markdown]
# The one difference is at the two ends.
#
# ## Special tokens
#
# RoBERTa puts `<s>` before every text and `</s>` behind it. `<s>` is not a word. It attends to all other tokens, and
# after the last layer the classifier reads its vector and nothing else; the [next page](02_roberta_in_300_lines.ipynb)
# shows that. A *pair*, such as the premise and the hypothesis of RTE, is one sequence with `</s></s>` in between.

# %%
single = tokenizer.encode_full(["A dog sleeps."])[0]
pair = tokenizer.encode_full(["A dog sleeps."], ["An animal sleeps."])[0]
print(single.tokens)
print(pair.tokens)
assert pair.ids[: len(single)] == single.ids and pair.tokens.count("</s>") == 3

# %% [markdown]
# BERT marks the two parts of a pair with *token types*, a second number for each token, 0 or 1, with a learned vector
# each. RoBERTa dropped them: its table of token types has a single row, which is added everywhere, and the `</s></s>`
# alone says where the second part begins. (minipeft also loads BERT's checkpoints, and then `encode` carries the types
# along.)
#
# A text may be longer than the model's table of positions. `encode` then cuts the longer part of the pair first, always
# leaving room for the special tokens.

# %%
long_premise = "a dog sleeps " * 40
cut = tokenizer.encode_full([long_premise], ["An animal sleeps."], max_length=24)[0]
print(len(tokenizer.encode([long_premise])[0]), "tokens cut to", len(cut), "with the hypothesis:", *cut.tokens[-8:])
assert len(cut) == 24 and cut.tokens[-5:] == pair.tokens[-5:]

# %% [markdown]
# ## Why padding wastes so much
#
# A batch is several sequences, and a tensor is a rectangle. The usual way to make a rectangle of sequences of different
# lengths is to fill the short ones up with a *padding token*, `<pad>`, and to tell attention by a mask not to look
# there. Everything else, though, is computed for the padding too: every linear layer and every LayerNorm works on the
# full rectangle, and almost all of the arithmetic of an encoder of this kind is in the linear layers.
#
# How large is this waste? The rectangle's width is the *longest* of the batch. With $n$ sequences of lengths $\ell_1,
# \dots, \ell_n$ the rectangle has $n \max_i \ell_i$ slots, of which $\sum_i \ell_i$ hold a token, so
#
# $$\text{slots a token} = \frac{n \max_i \ell_i}{\sum_i \ell_i} = \frac{\text{longest}}{\text{mean}} .$$
#
# It is 1 only if all are equally long. Lengths of real text are spread widely: most sentences are short, and a few are
# very long. One long sequence widens the rectangle for all, and the larger the batch, the more likely it contains
# one. The next cell measures it with random batches. The first line has random lengths with a long tail, like those of
# real text: a *log-normal* distribution, which means that the logarithm of the length is normally distributed. The next
# two are the synthetic data sets, whose sentences come from a small grammar and are nearly equally long, so that they
# waste little. The last ones are the real tasks, and are only there if their files are: they are looked for next to the
# repository, in `shared/glue`, or in the folder that the variable `MINIPEFT_SHARED` names.


# %%
def slots_a_token(lengths: torch.Tensor, size: int) -> float:
    """Slots of padded random batches of `size`, divided by the tokens in them."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    batches = lengths[order][: len(lengths) // size * size].view(-1, size)
    return float(batches.max(dim=1).values.sum() * size / batches.sum())


def lengths_of(task: str, data: str) -> torch.Tensor:
    split = read_split(get_task(task), "train", data, limit=2490)
    return torch.tensor([len(ids) for ids in tokenizer.encode(split.texts, split.pairs)])


generator = torch.Generator().manual_seed(0)
long_tail = (3.5 + 0.55 * torch.randn(4000, generator=generator)).exp().round().clamp(3, 512).long()
measured = {"log-normal lengths": long_tail}
measured |= {f"synthetic {task}": lengths_of(task, "standin") for task in ("rte", "sst2")}

shared = Path(os.environ.get("MINIPEFT_SHARED", Path(minipeft.__file__).parents[2] / "shared")) / "glue"
measured |= {f"real {task}": lengths_of(task, str(shared)) for task in ("rte", "sst2") if (shared / task).is_dir()}

print("slots a token with batches of      mean length      4     16     64")
for name, lengths in measured.items():
    ratios = [slots_a_token(lengths, size) for size in (4, 16, 64)]
    print(f"{name:<32}", f"{lengths.float().mean():13.1f}", *(f"{ratio:6.2f}" for ratio in ratios))
assert slots_a_token(long_tail, 16) > 2

# %% [markdown]
# A ratio above 2 means that more than half of the work is done on padding. That is the case for the long-tailed lengths
# with a batch of 16, a common size in fine-tuning.
#
# A well-known remedy is to sort the examples by length, so that those in a batch are nearly equal. It helps, but it
# decides which examples are in the same optimizer step, so the steps are no longer random samples. Packing does not
# have this disadvantage.
#
# ## Packing
#
# Only *attention* needs to know which tokens belong together. Everything else in the encoder sees each token alone: a
# linear layer multiplies every row of its input by the same matrix, LayerNorm looks along one row, GELU at one number.
# So let the sequences lie end to end, as one long list of tokens of the shape `(total_tokens,)`, and tell attention
# where each begins. The picture compares both forms for one random batch of 16.

# %%
lengths = sorted(long_tail[:16].tolist(), reverse=True)
longest, total = max(lengths), sum(lengths)
figure, (left, right) = plt.subplots(2, 1, figsize=(6, 6.6), height_ratios=[16, 7], sharex=True)
colours = [f"C{number % 5}" for number in range(16)]
left.barh(range(16), [longest] * 16, color="C5", alpha=0.25, height=0.85)
left.barh(range(16), lengths, color=colours, height=0.85)
left.set_title(f"padded: {16 * longest} slots for {total} tokens", loc="left")
left.set_ylabel("sequence")
start = 0
for length, colour in zip(lengths, colours, strict=True):
    end = start + length
    while start < end:  # a line of the picture is as wide as the rectangle above
        line, column = divmod(start, longest)
        part = min(end - start, longest - column)
        right.barh(line, part, left=column, color=colour, height=0.85)
        start += part
right.set_title("packed: the same tokens end to end", loc="left")
right.set_xlabel("tokens")
right.set_ylabel("line")
right.set_yticks(range(0, total // longest + 1, 2))
for axes in (left, right):
    axes.invert_yaxis()
figure.tight_layout()
picture(
    figure,
    f"Above, 16 bars of different lengths in a grey rectangle as wide as the longest, {longest} tokens: most of it is "
    f"grey. Below, the same bars laid end to end fill {total / longest:.1f} lines of that width.",
)
print("rectangle / tokens =", round(16 * longest / total, 2))

# %% [markdown]
# ## PackedBatch, field by field
#
# `minipeft.pack` makes the packed batch. Here is what it returns, as the package defines it:

# %%
source(minipeft.PackedBatch)

# %% [markdown]
# The names are those of flash-attention's functions for sequences of various lengths. We pack three sequences and look
# at each field.

# %%
texts = [sentence, "A quiet film.", "Not one good scene in it."]
token_ids = tokenizer.encode(texts)
batch = minipeft.pack(token_ids, labels=[1, 1, 0], config=config)
print("lengths      ", batch.lengths)
print("cu_seqlens   ", batch.cu_seqlens.tolist())
print("max_seqlen   ", batch.max_seqlen)
print("input_ids    ", batch.input_ids.tolist())
print("position_ids ", batch.position_ids.tolist())
print("labels       ", batch.labels.tolist())
print("token_type_ids", batch.token_type_ids)

# %% [markdown]
# **`lengths`** are the sequences' lengths, special tokens included, as plain Python numbers. On a GPU, asking a tensor
# for a number makes the host wait for the device; what is known on the host stays there.
#
# **`cu_seqlens`**, the *cumulative sequence lengths*, are their running sum with a 0 before it. There is one more of
# them than there are sequences, and sequence $i$ is tokens `cu_seqlens[i]` to `cu_seqlens[i + 1]`, the second not
# included. The first of each is where `<s>` stands, so `cu_seqlens[:-1]` is also the index of all the rows that the
# classifier will read. That is all a packed attention needs to know.
#
# **`max_seqlen`** is the longest. A GPU kernel needs it to know how much work the longest row can be.
#
# **`input_ids`** are the token ids, one sequence after the other.
#
# **`position_ids`** say at which place of its *own* sequence a token stands, for attention by itself does not know
# order: without positions, "dog bites man" and "man bites dog" would be the same set of words. In a padded batch one
# gets them by counting along the row. In a packed one they have to restart in each sequence. And they start not at 0
# but at 2. The reason is history: in the code RoBERTa was trained with, a padding token had the position of its own
# token id, which is 1 in RoBERTa, and words counted on from there. So rows 0 and 1 of the trained position table are
# never used by a word, and a table for 512 tokens has 514 rows. Without the offset, the encoder runs and gives wrong
# results.
#
# **`labels`** are class numbers, or floats where the task is a regression or has several labels for each text;
# **`token_type_ids`** is None unless the encoder has several token types, as BERT has.

# %%
assert batch.cu_seqlens.tolist() == [0, *torch.tensor(batch.lengths).cumsum(0).tolist()]
assert config.position_offset == config.pad_token_id + 1 == 2
assert config.max_length == config.max_position_embeddings - 2 == 512
for number, ids in enumerate(token_ids):
    begin, end = batch.cu_seqlens[number : number + 2].tolist()
    assert batch.input_ids[begin:end].tolist() == ids
    assert batch.position_ids[begin:end].tolist() == list(range(2, 2 + len(ids)))
assert (batch.input_ids[batch.cu_seqlens[:-1].long()] == vocabulary["<s>"]).all()
print("sequence 1:", repr(tokenizer.decode(batch.input_ids[batch.cu_seqlens[1] : batch.cu_seqlens[2]].tolist())))

# %% [markdown]
# And this is the whole of `pack`. Most of it is checking: a token id outside the vocabulary or a sequence too long for
# the position table would otherwise fail somewhere deep in the encoder, or not fail at all. The three lines that build
# positions subtract from a running count the place where each token's sequence began.

# %%
source(minipeft.pack)

# %% [markdown]
# ## Packing changes no result
#
# If attention keeps the sequences apart, each must get the same logits alone and in a batch, up to the rounding of
# float32.

# %%
torch.manual_seed(0)
model = minipeft.load_pretrained("roberta-mini").eval()
with torch.no_grad():
    together = model(batch)
    alone = torch.cat([model(minipeft.pack([ids], config=config)) for ids in token_ids])
print("largest difference:", float((together - alone).abs().max()))
assert torch.allclose(together, alone, atol=1e-5)

# %% [markdown]
# ## Batches by tokens
#
# With packing, the size of a batch in memory is its number of *tokens*, not of sequences. So the training loop takes
# the examples of an optimizer step, which are drawn at random as usual, and divides them into parts of at most a fixed
# number of tokens. It adds up their gradients before the optimizer moves. Inside a step, sorting by length is free: a
# sum does not depend on the order of its terms. It lets attention work on sequences of nearly equal length side by
# side.

# %%
source(split_by_tokens)

# %%
lengths = long_tail[:32].tolist()
parts = list(split_by_tokens(range(32), lengths, max_tokens=512))
for part in parts:
    print(f"{len(part):>3} sequences, {sum(lengths[i] for i in part):>4} tokens, lengths", [lengths[i] for i in part])
assert sorted(index for part in parts for index in part) == list(range(32))

# %% [markdown]
# ## Summary
#
# - Byte-level BPE turns any text into numbers from a fixed vocabulary: bytes first, then the learned merges, the
#   earliest first. You have reproduced the tokenizer's own ids with a regular expression and a loop.
# - `<s>` … `</s>` for a text and `<s>` … `</s></s>` … `</s>` for a pair. Positions begin at 2.
# - A padded batch costs longest over mean. A packed batch costs its tokens, and `cu_seqlens` is all that attention has
#   to know about it.
#
# The next page takes the packed batch through the encoder: [RoBERTa in 300 lines](02_roberta_in_300_lines.ipynb).

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/01_from_text_to_packed_batch.py`: write your answers there, then run
# `python walkthroughs/check.py 1`. It says what is right and gives hints. The solutions are in `solutions/`.
