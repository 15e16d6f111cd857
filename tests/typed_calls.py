"""What a type checker must accept and refuse: mypy reads this file (pyproject.toml), and no test runs it.

Under mypy's --strict an unnecessary "type: ignore" is an error itself.
"""

import minipeft


def calls() -> minipeft.Result:
    minipeft.train(task="rte", method=minipeft.LoRA(rank=2), epochs=3, lr=1e-3, quiet=True)
    minipeft.train(rank="two")  # type: ignore[arg-type]
    minipeft.train(ranks=2)  # type: ignore[call-arg]
    minipeft.train("rte")  # type: ignore[call-arg]
    return minipeft.train(task="sst2", method="bitfit")


def estimators() -> minipeft.Classifier:
    minipeft.Classifier(rank="two")  # type: ignore[arg-type]
    minipeft.Classifier(ranks=2)  # type: ignore[call-arg]
    return minipeft.Classifier(method="lora", rank=8, epochs=3).fit(["a", "b"], ["x", "y"])
