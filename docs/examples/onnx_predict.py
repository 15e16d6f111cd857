"""Labels of texts, without torch and minipeft:  python onnx_predict.py FOLDER "a text" "another text"."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, *texts = sys.argv[1:]
config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_truncation(min(512, config["max_position_embeddings"] - 2))
tokenizer.enable_padding(pad_id=config["pad_token_id"])
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")

encodings = tokenizer.encode_batch(texts)
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {one.name: np.array([getattr(e, columns[one.name]) for e in encodings]) for one in session.get_inputs()}
for text, logits in zip(texts, session.run(["logits"], inputs)[0], strict=True):
    print(config["id2label"][str(logits.argmax())], text, sep="\t")
