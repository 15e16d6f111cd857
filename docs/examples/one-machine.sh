#!/usr/bin/env bash
# One machine with 8 GPUs.
set -euo pipefail

# One training on all of them.
torchrun --standalone --nproc-per-node 8 \
    train.py --task mnli --model roberta-large --method lora --device cuda --output runs/mnli --resume

# Many runs, one on each GPU; small models can share a GPU.
minipeft compare --task rte mrpc --method lora bitfit --seed 1 2 3 --output runs/comparison --resume
minipeft compare --task rte mrpc --method lora head --jobs-per-gpu 2 --output runs/small --resume

# One run on the second GPU.
minipeft train --task rte --method lora --device cuda:1 --output runs/rte

# Predictions: all processes share one large file; or one process per file of a folder.
torchrun --standalone --nproc-per-node 8 --module minipeft predict runs/mnli --input texts.jsonl --output labels.jsonl
minipeft predict runs/rte --input texts --output labels --jobs-per-gpu 1 --resume
