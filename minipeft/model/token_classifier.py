"""An encoder with a head that reads every token: token classification."""

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.layers import Linear, dropout


class TokenClassifier(SequenceClassifier):
    """Encoder and head: logits = head(hidden state of each token)  (Devlin et al. 2019, section 5.3).

    The last layer computes every token, and the logits are (total_tokens, num_labels).

    Args:
        config: The shape; its model_type names the family.
    """

    def features(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states of a packed batch, (total_tokens, hidden_size), in the order given to pack."""
        x = self.encoder(batch)  # (total_tokens, hidden_size), with the virtual tokens of a prompt
        if x.shape[0] != batch.total_tokens:
            virtual = (len(x) - batch.total_tokens) // len(batch)
            lengths = batch.cu_seqlens.diff().long()
            sequences = torch.arange(1, len(batch) + 1, device=x.device)
            offsets = torch.repeat_interleave(sequences, lengths, output_size=batch.total_tokens) * virtual
            x = x.index_select(0, torch.arange(batch.total_tokens, device=x.device) + offsets)
        return x


class TokenHead(nn.Module):
    """out_proj(dropout(x)), in float32; for all families but ModernBERT, whose head is that of sequences."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.out_proj = Linear(config.hidden_size, config.num_labels)
        # A classifier_dropout with a name of its own (seq_classif_dropout, cls_dropout) is for sequences alone.
        own_name = "classifier_dropout" in config.JSON_NAMES
        self.dropout_prob = config.hidden_dropout_prob if own_name else config.head_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        """x: hidden states (total_tokens, hidden_size) → logits (total_tokens, num_labels), float32."""
        return self.out_proj(dropout(x.float(), self.dropout_prob, self.training))
