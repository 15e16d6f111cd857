# %% [markdown]
# # Add your own method
#
# A method is two things: a frozen dataclass that holds its settings, and one function that installs it in a frozen
# model. This page writes a complete small one, trains it, saves it, loads it again and merges it. It is also a script:
# `python walkthroughs/08_add_your_own_method.py`.
#
# The method is a simple one that changes a square linear layer and is from no paper: it multiplies each feature of the
# input by a trained number and adds the result to the output,
#
# $$h = W x + b + d \odot x .$$
#
# This replaces $W$ by $W + \mathrm{diag}(d)$, so it can be merged. It starts at $d = 0$, the pretrained function. It
# has `hidden_size` parameters for each target in each layer.

# %%
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import minipeft
from minipeft.methods import METHODS, MethodEntry, check_settings
from minipeft.methods.adapted import AdaptedLinear, check_targets, target_modules_of
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.layers import Linear

# %% [markdown]
# ## The settings
#
# They print as their constructor. They are checked once, when they are created, and an invalid value raises an error of
# one line: `check_settings` sets each field to what its check returns. `check_targets` knows the names of the linear
# layers, and takes peft's names for them too.


# %%
@dataclass(frozen=True)
class Diagonal:
    """h = W x + b + d ⊙ x, d trained. Parameters: hidden_size for each target in each layer."""

    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        check_settings(self, targets=check_targets)
        for target in self.targets:
            if target in ("intermediate", "ffn_output"):
                raise minipeft.MinipeftError(f"target {target!r} is not square; name query, key, value or output")


# %% [markdown]
# ## The layer
#
# `AdaptedLinear` keeps the frozen layer's own weight and bias under their own names, so that the checkpoint's table of
# names still finds them, and it merges and unmerges what `merged_weight` returns. Trainable parameters are float32 and
# are cast to the activations' type, since the frozen weights may be bfloat16.


# %%
class DiagonalLinear(AdaptedLinear):
    """x: (tokens, in_features) → (tokens, in_features); diagonal: (in_features,)."""

    def __init__(self, frozen: Linear) -> None:
        super().__init__(frozen)
        self.diagonal = nn.Parameter(torch.zeros(self.in_features, device=frozen.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.is_merged() else y + self.diagonal.to(x.dtype) * x

    def merged_weight(self) -> Tensor:
        return self.weight.float() + torch.diag(self.diagonal)


def install(model: SequenceClassifier, method: Diagonal) -> None:
    for place in target_modules_of(model, method.targets):
        model.encoder.set_submodule(place.path, DiagonalLinear(place.linear))


# %% [markdown]
# ## The row
#
# In the package this would be the line in `minipeft/methods/__init__.py`, next to the others: the module that defines
# the config and `install`, and the config's name. The module is imported when the method is used. peft does not have
# the method, so the row names no peft_type, and the adapter is stored under the name MINIPEFT_DIAGONAL.

# %%
METHODS["diagonal"] = MethodEntry(__name__, "Diagonal")

# %% [markdown]
# ## Its first test: it starts from the pretrained function, and its gradient is right
#
# The gradient of a sum of outputs with respect to $d$ is the sum of the inputs: $\partial h_i / \partial d_i = x_i$.

# %%
torch.manual_seed(0)
layer = DiagonalLinear(Linear(6, 6))
x = torch.randn(10, 6)
assert torch.equal(layer(x), Linear.forward(layer, x))
layer(x).sum().backward()
print("largest error of the gradient:", float((layer.diagonal.grad - x.sum(0)).abs().max()))
assert torch.allclose(layer.diagonal.grad, x.sum(0), atol=1e-6)

# %% [markdown]
# ## Training it
#
# Nothing else has to change: the command line would take `--method diagonal --targets value`. Here it trains on a part
# of the synthetic data for SST-2, with the bundled encoder.

# %%
scratch = tempfile.TemporaryDirectory()  # removed when the script ends
folder = Path(scratch.name)
result = minipeft.train(
    task="sst2",
    method=Diagonal(targets=("query", "value", "output")),
    model="roberta-mini",
    data="standin",
    train_limit=1024,
    epochs=2,
    lr=1e-2,
    precision="fp32",
    warmup_steps=5,
    output=str(folder / "run"),
    quiet=True,
)
print("parameters:", minipeft.count_parameters(result.model))
print("accuracy on the synthetic data, first and last epoch's best:", result.content["best"])

# %% [markdown]
# ## Saving, loading, merging
#
# The adapter's folder has the two files that peft's adapters have. Loading installs the method again; merging moves it
# into the frozen weights, and unmerging gives these back to the bit.

# %%
config = minipeft.load_pretrained("roberta-mini").config
tokenizer = minipeft.load_tokenizer("roberta-mini")
batch = minipeft.pack(tokenizer.encode(["A quiet film.", "Not one good scene in it."]), config=config)
model = minipeft.load_adapter(minipeft.load_pretrained("roberta-mini"), folder / "run" / "adapter")
print(model.method)
with torch.no_grad():
    logits = model(batch)
    assert torch.equal(logits, result.model.eval()(batch))
    merged = minipeft.merge(model)(batch)
    print("largest difference after merging:", float((merged - logits).abs().max()))
    assert torch.allclose(merged, logits, atol=1e-5)
    assert torch.equal(minipeft.unmerge(model)(batch), logits)

# %% [markdown]
# ## What its test file contains
#
# The two assertions above, the count of its parameters from the formula, and a line each in the lists of
# `tests/methods/test_methods.py` and `tests/adapters/test_adapter.py`, which run every method through saving in one
# process and loading in another, through bfloat16, merging and exporting.

# %%
assert minipeft.count_parameters(result.model).method == config.num_hidden_layers * 3 * config.hidden_size

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/08_add_your_own_method.py`: write your answers there, then run
# `python walkthroughs/check.py 8`. It says what is right and gives hints. The solutions are in `solutions/`.
