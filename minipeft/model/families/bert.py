"""BERT (Devlin et al. 2019): RoBERTa's encoder with positions from 0, two token types and a pooler."""

from minipeft.model.config import EncoderConfig
from minipeft.model.families import BERT_NAMES, ROBERTA, Family
from minipeft.model.roberta import ClassificationHead


class BertHead(ClassificationHead):
    """out_proj(dropout(tanh(dense(x)))), in float32; dense is BERT's pooler."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.input_dropout_prob = 0.0


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
