"""A packed batch → logits: the encoder families, and what a method may ask of an encoder.

Start with roberta.py. It is a whole encoder on one page: embeddings, layers, and a head that reads the first token of
each sequence. Every other family is one file in families/, which says only what differs; FAMILIES
(families/__init__.py) lists them. attention/ computes attention over packed sequences.

**What a family consists of.** DistilBERT, for example, is BERT without token types, with other names and another head.
So distilbert.py subclasses `Encoder` and overrides the embeddings, subclasses `ClassificationHead` and overrides its
activation, and has a table of names. `SequenceClassifier` (classifier.py) looks up config.model_type in `FAMILIES`
and joins the row's encoder and head; `load_pretrained` and `export` (pretrained.py) translate names by the row's table.

`Encoder` has five places where a family may differ. Override the ones you need, and inherit the rest:

    add_embeddings(config)      the modules of the embeddings; `word_embeddings` is one of them
    embed(words, batch)         word embeddings (total_tokens, embedding_size) → (total_tokens, hidden_size)
    make_layer(config, number)  one layer; layers may differ by their number
    plan(batch, virtual)        what all layers of one batch share: where sequences start, rotary angles, windows
    pooled(batch)               what the head reads: (num_sequences, hidden_size)

A layer subclasses `EncoderLayer` and is called as layer(x, plan, first_tokens, prefix). With `first_tokens` it returns
one row per sequence, which the last layer uses. Use `Linear` and `LayerNorm` from roberta.py: they cast frozen
bfloat16 weights and run the fastest product of the machine. Both work without a bias.

**What a method asks of an encoder.** A method never asks which family it adapts. It finds everything by name:

    linear layers       attributes of each layer: `query`, `key`, `value`, `output` (after attention), `intermediate`
                        and `ffn_output` (the feed-forward network), or `qkv` where one layer computes all three.
                        `target_modules_of` (methods/adapted.py) finds them; `encoder.set_submodule(place.path, ...)`
                        replaces one. ELECTRA's `embeddings_project` is one too, and counts to layer 0.
    biases              parameters whose name ends in "bias"; BitFit raises where there are none
    LayerNorms          Family.layer_norms: "embeddings", "attention" and "output" → our module; some families have
                        one more, "relative" (DeBERTa) or "final" (ModernBERT)
    bottlenecks         after `output` and `ffn_output` (Houlsby), and in `output_layer_norm` (Pfeiffer), which must be
                        the LayerNorm after the feed-forward network's residual sum
    prompts             `encoder.virtual_tokens`, called between the word embeddings and `embed`, may prepend rows
    prefixes            the fourth argument of a layer: keys and values (num_virtual_tokens, hidden_size) that every
                        token of every sequence attends to

Where a family cannot do one of these, its row says why, and `apply` raises with that reason:

    unsupported={"pfeiffer": "its layers normalize their input, so that there is no LayerNorm after the residual sum"}

And where one linear layer does the work of several, `aliases` redirects their names: with
aliases={"query": "qkv", "key": "qkv", "value": "qkv"}, LoRA()'s default targets adapt that one layer.

**To add a family:** write its file (a subclass of EncoderConfig where config.json has other fields, the encoder, the
head, the row with the table of names), name the row in `FAMILIES`, and add its model_type to the tests of tests/model/,
which compare logits, gradients and training steps with transformers and peft.
"""
