"""BERT (Devlin et al. 2019): RoBERTa's encoder with positions from 0, two token types and a pooler."""

import torch
from torch import Tensor

from minipeft.model.dropout import dropout
from minipeft.model.roberta import ClassificationHead


class BertHead(ClassificationHead):
    """out_proj(dropout(tanh(dense(x)))), in float32; dense is BERT's pooler."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [CLS]'s hidden states (num_sequences, hidden_size) → logits (num_sequences, num_labels), float32."""
        x = torch.tanh(self.dense(x.float()))
        return self.out_proj(dropout(x, self.dropout_prob, self.training))
