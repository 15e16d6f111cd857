"""DeBERTa-v3 against transformers and peft: buckets, attention, logits, gradients, training, adapters, files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DEBERTA_V3, REPOSITORY, environment, largest, padded, ragged, reference_model, shared
from family_checks import LENGTHS, check_activation_checkpointing, check_bfloat16, check_run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft_agreement import check_training
from safetensors.torch import load_file
from torch import Tensor

from minipeft import (
    IA3,
    BitFit,
    Full,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    VeRA,
    apply,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
    unmerge,
)
from minipeft.cli.cli import main_train
from minipeft.data.tasks.synthetic import generate
from minipeft.methods import METHODS, method_name
from minipeft.model.attention.disentangled import RelativePlan, attend_disentangled, attend_disentangled_plain, bucket
from minipeft.model.attention.grouped import group_by_length
from minipeft.model.families import get_family, load_config
from minipeft.model.families.deberta import DebertaConfig
from minipeft.model.pretrained import tensor_names

SMALL_BUCKETS = {"position_buckets": 8, "max_relative_positions": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CPU = torch.device("cpu")


def both(folder: Path, num_labels: int = 2, **shape: Any) -> tuple[Any, SequenceClassifier]:
    """transformers' model with random weights, and ours with the same."""
    reference = reference_model("deberta-v2", num_labels, **shape)
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder, num_labels)


# ------------------------------------------------------------------------------------------------------- the attention


@pytest.mark.parametrize(("buckets", "largest_distance"), [(256, 512), (8, 32), (9, 40), (2, 512), (3, 5), (32, 24)])
def test_buckets_equal_transformers(buckets: int, largest_distance: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-600, 601)
    theirs = make_log_bucket_position(distance, buckets, largest_distance).long().clamp(-buckets, buckets - 1)
    ours = bucket(distance, buckets, largest_distance)
    assert torch.equal(ours, theirs)
    assert bool((ours.diff() >= 0).all())


@pytest.mark.parametrize("first_only", [False, True])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), heads=st.integers(1, 3), head_size=st.integers(1, 5)
)
@settings(max_examples=40, deadline=None)
@example(lengths=[20, 19, 20, 18, 1], heads=2, head_size=4)  # a group with padding
@example(lengths=[1], heads=1, head_size=1)
@example(lengths=[300, 290, 3], heads=2, head_size=4)
def test_grouped_attention_equals_plain_forward_and_backward(
    first_only: bool, lengths: list[int], heads: int, head_size: int
) -> None:
    longest = max(lengths)
    rows = bucket(torch.arange(1 - longest, longest), 8, 32)
    rows = rows - rows[0]
    sizes = [len(lengths) if first_only else sum(lengths), *[sum(lengths)] * 2, *[int(rows[-1]) + 1] * 2]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, heads * head_size, generator=generator).requires_grad_() for size in sizes]
    plan = RelativePlan(group_by_length(lengths, CPU, torch.float32), tensors[3], rows)
    plain = attend_disentangled_plain(*tensors, rows, lengths, heads, first_only=first_only)
    fast = attend_disentangled(*tensors, plan, heads, first_only=first_only)
    weights = torch.linspace(-1, 1, plain.numel()).view(plain.shape)
    assert largest(plain, fast) < 1e-5
    gradients = [torch.autograd.grad((output * weights).sum(), tensors) for output in (plain, fast)]
    for a, b in zip(*gradients, strict=True):
        assert largest(a, b) < 1e-5 * max(1.0, float(a.abs().max()))


# --------------------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize(
    ("num_labels", "shape"),
    [
        (2, {}),
        (1, {"num_attention_heads": 1}),
        (2, {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 33}),
        (3, {"num_hidden_layers": 1, "pooler_hidden_act": "relu"}),
        (2, SMALL_BUCKETS),
        (2, SMALL_BUCKETS | {"position_buckets": 9}),
        (2, {"pos_att_type": ["p2c", "c2p"], "max_relative_positions": 512, "layer_norm_eps": 1e-5}),
        *((2, {"hidden_act": name}) for name in ("gelu_new", "gelu_pytorch_tanh", "relu", "silu")),
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_and_hidden_states_equal_transformers(num_labels: int, shape: dict[str, Any], tmp_path: Path) -> None:
    reference, model = both(tmp_path, num_labels, **shape)
    ids = ragged(LENGTHS)
    batch = pack(ids, config=model.config)
    logits = model(batch)
    assert logits.std() > 0.1  # not a comparison of zeros
    assert largest(logits, reference(**padded(ids, 0)).logits) < 1e-5
    expected = reference.deberta(**padded(ids, 0)).last_hidden_state
    expected = torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])
    assert largest(model.encoder(batch), expected) < 1e-5
    alone = torch.cat([model(pack([sequence], config=model.config)) for sequence in ids])
    assert largest(logits, alone) < 1e-5


@torch.no_grad()
def test_relative_positions_matter(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    words = ragged((9,))[0]
    swapped = [words[0], words[2], words[1], *words[3:]]
    logits = model(pack([words, swapped], config=model.config))
    assert largest(logits[0], logits[1]) > 1e-3


@torch.no_grad()
def test_every_length_from_1_to_512_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    reference, model = both(tmp_path, num_hidden_layers=1)
    ids = ragged((*range(1, 24), 127, 128, 129, 130, 255, 256, 257, 400, 510, 511, 512))
    assert largest(model(pack(ids, config=model.config)), reference(**padded(ids, 0)).logits) < 1e-5


@pytest.mark.parametrize("method", [Full(), BitFit()], ids=["full", "bitfit"])
@pytest.mark.parametrize("shape", [{}, SMALL_BUCKETS], ids=["v3", "small-buckets"])
def test_gradients_equal_transformers(method: Any, shape: dict[str, Any], tmp_path: Path) -> None:
    reference, model = both(tmp_path, **shape)
    apply(model, method)
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    F.cross_entropy(model(pack(ids, config=model.config)), labels).backward()
    reference(**padded(ids, 0), labels=labels).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    names = tensor_names(model, model.config)
    for name, grad in ours.items():
        expected = theirs[names[name]]
        assert grad is not None and expected is not None, name
        assert largest(grad, expected) < 1e-4 * float(expected.abs().max()), name
    if method == Full():
        assert sorted(names[name] for name in ours) == sorted(theirs)


def test_the_last_layer_for_first_tokens_alone_equals_the_full_one_forward_and_backward(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    batch = pack(ragged(LENGTHS), config=model.config)
    outputs = (model.encoder(batch, first_only=True), model.encoder(batch)[batch.cu_seqlens[:-1].long()])
    assert largest(*outputs) < 1e-5
    parameters = list(model.encoder.parameters())
    gradients = [torch.autograd.grad(hidden.sin().sum(), parameters) for hidden in outputs]
    for a, b in zip(*gradients, strict=True):
        assert largest(a, b) < 1e-4 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize(
    "dropout",
    [
        {"hidden_dropout_prob": 0.3, "cls_dropout": 0.0},
        {"attention_probs_dropout_prob": 0.4},
        {"cls_dropout": 0.4},
        {"pooler_dropout": 0.4},
    ],
    ids=str,
)
@torch.no_grad()
def test_dropout_in_training_spreads_the_logits_as_in_transformers(dropout: dict[str, float], tmp_path: Path) -> None:
    from scipy.stats import ks_2samp

    reference, model = both(tmp_path, num_hidden_layers=1, **NO_DROPOUT | dropout)
    ids = ragged((6,))

    def draws(model: Any, seed: int) -> Tensor:
        """250 logits of one sequence, one call each: the relative embeddings are dropped once per call."""
        torch.manual_seed(seed)
        if isinstance(model, SequenceClassifier):
            return torch.cat([model(pack(ids, config=model.config))[:, 0] for _ in range(250)])
        return torch.cat([model(**padded(ids, 0)).logits[:, 0] for _ in range(250)])

    ours, theirs = draws(model.train(), 1), draws(reference.train(), 2)
    assert ours.std() > 0.02
    assert ks_2samp(ours, theirs).pvalue > 1e-3


def test_bfloat16_is_as_near_to_float32_as_in_transformers(tmp_path: Path) -> None:
    reference, _ = both(tmp_path)
    check_bfloat16(reference, tmp_path, 0.02)


@pytest.mark.parametrize("method", [Full(), LoRA(rank=2, dropout=0.1)], ids=["full", "lora"])
def test_activation_checkpointing_gives_the_same_gradients_to_the_bit(method: Any, tmp_path: Path) -> None:
    _, model = both(tmp_path, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    check_activation_checkpointing(apply(model, method), ragged(LENGTHS))


# -------------------------------------------------------------------------------------------------------- config.json


def test_config_reads_as_in_transformers(tmp_path: Path) -> None:
    from transformers import DebertaV2Config

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2", **DEBERTA_V3}))
    ours, theirs = load_config(tmp_path), DebertaV2Config.from_pretrained(tmp_path)
    for name in (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "layer_norm_eps"),
        *("pad_token_id", "pooler_dropout", "pooler_hidden_act", "initializer_range", "position_buckets"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert isinstance(ours, DebertaConfig) and ours.largest_distance == 512 == ours.max_length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_biased_input": True}, "position_biased_input True is not supported; False is"),
        ({"position_biased_input": None}, "position_biased_input True is not supported"),  # None: not in config.json
        ({"relative_attention": None}, "relative_attention False is not supported"),
        ({"share_att_key": False}, "share_att_key False is not supported"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3 is not supported; 0 is"),
        ({"pos_att_type": "c2p"}, r"pos_att_type \['c2p'\] is not supported"),
        ({"norm_rel_ebd": "none"}, "norm_rel_ebd 'none' is not supported"),
        ({"type_vocab_size": 2}, "type_vocab_size 2 is not supported"),
        ({"embedding_size": 24}, "embedding_size 24 is not supported; 48 is"),
        ({"pooler_hidden_size": 24}, "pooler_hidden_size 24 is not supported; 48 is"),
        ({"attention_head_size": 24}, "attention_head_size 24 is not supported; 16 is"),
        ({"position_buckets": -1}, "position_buckets -1 is not a whole number of 1 or more"),
        ({"position_buckets": 1}, "position_buckets 1 is less than 2"),
        ({"position_buckets": 1022}, "position_buckets 1022 is less than 2, or too large"),
        ({"max_relative_positions": "x"}, "max_relative_positions 'x' is not a whole number"),
        ({"pooler_dropout": 1.5}, "pooler_dropout 1.5 is not a probability"),
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act"),
    ],
    ids=str,
)
def test_an_unsupported_config_raises_with_the_name_of_the_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 80, "num_hidden_layers": 1}
    content = {"model_type": "deberta-v2", **DEBERTA_V3, **small} | change
    content = {name: value for name, value in content.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_published_file_with_its_language_model_head_loads(tmp_path: Path) -> None:
    reference, model = both(tmp_path)
    state = {name: t.half() for name, t in reference.state_dict().items() if name.startswith("deberta.")}
    state |= {name: torch.ones(2) for name in ("lm_predictions.lm_head.dense.weight", "mask_predictions.dense.weight")}
    state["deberta.embeddings.position_embeddings.weight"] = torch.ones(512, 48)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.word_embeddings.weight, model.encoder.word_embeddings.weight.half().float())


# ------------------------------------------------------------------------------------------------------- methods, peft


@pytest.mark.parametrize("method", [LoRA(), VeRA()], ids=["lora", "vera"])
def test_default_targets_are_those_of_peft(method: Any) -> None:
    from peft.utils import constants

    name = method_name(method)
    targets = getattr(constants, f"TRANSFORMERS_MODELS_TO_{name.upper()}_TARGET_MODULES_MAPPING")["deberta-v2"]
    config = DebertaConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    peft_format = METHODS[name].peft
    assert peft_format is not None
    assert peft_format.read({"target_modules": targets}, config).targets == method.targets


LORA = {"task_type": "SEQ_CLS", "r": 4, "modules_to_save": ["pooler", "classifier"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "names": {"target_modules": ["query_proj", "value_proj"]},
    "dense": {"target_modules": ["dense"]},
    "all-linear": {"target_modules": "all-linear"},
    "keys": {"target_modules": ["key_proj", "output.dense"], "use_dora": True},
    "layer-norms": {"modules_to_save": ["pooler", "classifier", "LayerNorm"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_of_peft_trains_20_steps_as_in_peft_and_goes_back(variant: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    reference = reference_model("deberta-v2", **NO_DROPOUT)
    reference.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    wrapped = get_peft_model(reference, LoraConfig(**LORA | VARIANTS[variant]))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "theirs")
    model = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "theirs")
    ids = ragged(LENGTHS)
    batch = pack(ids, config=model.config)
    with torch.no_grad():
        logits = model(batch)
        assert largest(logits, wrapped.eval()(**padded(ids, 0)).logits) < 1e-5
        assert largest(logits, load_pretrained(tmp_path / "base")(batch)) > 1e-3
        assert largest(merge(model)(batch), logits) < 1e-5
        unmerge(model)

    check_training(wrapped, model, tmp_path, rate=3e-3)

    save_adapter(model, tmp_path / "ours")
    opened = PeftModel.from_pretrained(reference_model("deberta-v2"), tmp_path / "ours").eval()
    with torch.no_grad():
        assert largest(model.eval()(batch), opened(**padded(ragged(LENGTHS), 0)).logits) < 1e-5


@pytest.mark.parametrize(
    "method",
    [LayerNormTuning(("embeddings", "relative", "attention", "output")), LayerNormTuning(), PromptTuning(5), IA3()],
    ids=str,
)
def test_other_adapters_open_in_peft_with_the_same_logits(method: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    reference, model = both(tmp_path / "base")
    apply(model, method)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_adapter(model, tmp_path / "adapter")
        ids = ragged(LENGTHS)
        wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
        logits = model.eval()(pack(ids, config=model.config))
        assert largest(logits, wrapped(**padded(ids, 0)).logits) < 1e-5
        again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
        assert again.method == method and torch.equal(again(pack(ids, config=model.config)), logits)


def test_prefix_tuning_raises_with_the_reason(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    with pytest.raises(MinipeftError, match="prefix_tuning does not work with model_type deberta-v2: its attention"):
        apply(model, PrefixTuning(3))


def test_export_opens_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    _, model = both(tmp_path / "base", 3, pooler_dropout=0.1, cls_dropout=0.2, **SMALL_BUCKETS)
    apply(model, LoRA(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1)
        (tmp_path / "exported").mkdir()
        export(model, tmp_path / "exported")
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
        ids = ragged(LENGTHS)
        assert largest(model(pack(ids, config=model.config)), theirs(**padded(ids, 0)).logits) < 1e-5
    assert type(theirs).__name__ == "DebertaV2ForSequenceClassification"
    assert (theirs.config.pooler_dropout, theirs.config.cls_dropout) == (0.1, 0.2)
    assert get_family("deberta-v2").config is DebertaConfig


# -------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeBERTa-v3 as transformers writes it, with dropout, and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Tokenizer

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=specials, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(generate("rte", "train")["sentence1"], trainer)
    vocabulary = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    saved = DebertaV2Tokenizer(vocab=vocabulary, unk_id=3)
    saved.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = DebertaV2Config(**DEBERTA_V3, **sizes, vocab_size=len(saved))
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "bitfit", "prompt_tuning", "full"])
def test_a_run_on_real_rte_is_saved_predicts_resumes_and_merges(method: str, tiny: Path, tmp_path: Path) -> None:
    check_run(tiny, tmp_path, method)


@pytest.mark.full
def test_an_interrupted_run_resumes_to_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    def arguments(output: str) -> list[str]:
        flags = {"--task": "rte", "--model": tiny, "--data": shared("glue"), "--output": tmp_path / output}
        flags |= {
            "--epochs": "2",
            "--batch-size": "1",
            "--grad-accum": "1",
            "--dropout": "0.2",
            "--device": "cpu",
            "--precision": "fp32",
        }
        flags |= {"--train-limit": "96", "--eval-limit": "16"}
        return [str(word) for flag in flags.items() for word in flag]

    assert main_train([*arguments("unbroken"), "--quiet"]) == 0
    command = [sys.executable, "train.py", *arguments("broken")]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    seen = b""
    while not re.search(rb"\n +1 +\d", seen):  # the line of the first epoch
        piece = process.stderr.read1(4096)
        assert piece, seen
        seen += piece
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not (tmp_path / "broken" / "result.json").exists()
    assert main_train([*arguments("broken"), "--resume", "--quiet"]) == 0
    broken, unbroken = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("broken", "unbroken")
    )
    assert broken.keys() == unbroken.keys() and all(torch.equal(broken[name], unbroken[name]) for name in broken)
