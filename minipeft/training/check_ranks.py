"""Whether all processes of a training have the same examples, weights and settings.

Gradients are summed without a look at what they are gradients of. Other rows or weights on one machine would train
without an error, to a wrong result.
"""

import hashlib
import socket

import torch

from minipeft.data.tokens.examples import Examples
from minipeft.errors import MinipeftError, flag_of
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.settings import checks
from minipeft.training.settings.job import Job
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import TrainSettings

# Settings that name a file or folder, which may be another one on each machine; fingerprints compare what is there.
PLACES = ("source", *(name for name, row in rows(TrainSettings).items() if row.check in (checks.path, checks.data)))


def check_ranks(job: Job, examples: Examples, model: SequenceClassifier) -> None:
    """Raise MinipeftError on all ranks, with the name of what differs, if the processes do not agree."""
    weights = hashlib.sha256()
    for parameter in model.parameters():
        weights.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    compared = {name: value for name, value in job.config.items() if name not in PLACES}
    values = {
        "the training examples": examples.train.fingerprint,
        "the validation examples": examples.validation.fingerprint,
        "the model's weights": weights.hexdigest(),
        **{f"the settings ({flag_of(name)})": repr(value) for name, value in compared.items()},
    }
    gathered = job.processes.all_gather((socket.gethostname(), values))
    for name, value in gathered[0][1].items():
        for rank, (host, theirs) in enumerate(gathered):
            if theirs.get(name) != value:
                raise MinipeftError(
                    f"rank {rank} on {host}: {name} differ from those of rank 0. "
                    "Start all processes with the same flags, model and data."
                )
