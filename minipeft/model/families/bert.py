"""BERT (Devlin et al. 2019): RoBERTa's encoder with positions from 0, two token types and a pooler."""

import torch
from torch import Tensor

from minipeft.model.families import BERT_NAMES, ROBERTA, Family
from minipeft.model.layers import dropout
from minipeft.model.roberta import ClassificationHead


class BertHead(ClassificationHead):
    """out_proj(dropout(tanh(dense(x)))), in float32; dense is BERT's pooler."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [CLS]'s hidden states (num_sequences, hidden_size) → logits (num_sequences, num_labels), float32."""
        x = torch.tanh(self.dense(x.float()))
        return self.out_proj(dropout(x, self.dropout_prob, self.training))


BERT = Family(
    architecture="Bert",
    prefix="bert.",
    names=BERT_NAMES,
    head_names={"dense": "bert.pooler.dense", "out_proj": "classifier"},
    head_modules=("pooler", "classifier"),
    head_class="families.bert:BertHead",
    defaults=ROBERTA.defaults | {"vocab_size": 30522, "pad_token_id": 0},
    language_model={
        "dense": "cls.predictions.transform.dense",
        "layer_norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
)
