"""The groups of the synthetic data for SST-2; synthetic.py draws them."""

import random

from minipeft.data.tasks.synthetic_rte import Grammar, Group, pick, shuffled

NEGATIVE, POSITIVE = 0, 1
PRAISE = (
    "good", "great", "fine", "clever", "fresh", "warm", "brilliant", "moving",
    "beautiful", "wonderful", "powerful", "funny", "charming", "sweet", "lovely", "perfect",
)  # fmt: skip
BLAME = (
    "bad", "dull", "weak", "flat", "slow", "thin", "poor", "terrible",
    "stupid", "boring", "silly", "dreadful", "tired", "cold", "false", "messy",
)  # fmt: skip
WHOLES = ("movie", "film", "story", "drama", "comedy", "picture", "tale", "show")
PARTS = ("plot", "script", "cast", "ending", "score", "theme", "style", "hero", "idea", "opening")
NEGATORS = ("not", "never", "hardly")
INTENSIFIERS = ("very", "really", "truly", "so", "quite")


def plain(rng: random.Random) -> Group:
    """a warm and funny film with a great script"""
    whole, part = pick(rng, WHOLES), pick(rng, PARTS)
    good, bad = shuffled(rng, PRAISE), shuffled(rng, BLAME)
    frame = pick(rng, (
        f"a {{0}} and {{1}} {whole} with a {{2}} {part}",
        f"the {part} of this {whole} is {{0}} and {{1}}",
        f"a {{0}} {whole} , {{1}} and {{2}}",
        f"this {whole} has a {{0}} {part}",
    ))  # fmt: skip
    return [((frame.format(*good),), POSITIVE), ((frame.format(*bad),), NEGATIVE)]


def intensifiers(rng: random.Random) -> Group:
    """the acting in this film is really good"""
    whole, part, degree = pick(rng, WHOLES), pick(rng, PARTS), pick(rng, INTENSIFIERS)
    frame = pick(rng, (
        f"the {part} in this {whole} is {degree} {{}}",
        f"this {whole} is {degree} {{}} from start to end",
    ))  # fmt: skip
    return [((frame.format(pick(rng, PRAISE)),), POSITIVE), ((frame.format(pick(rng, BLAME)),), NEGATIVE)]


def negated(rng: random.Random) -> Group:
    """the plot of this film is not good: with and without the negation, with praise and with blame"""
    whole, part, negator = pick(rng, WHOLES), pick(rng, PARTS), pick(rng, NEGATORS)
    good, bad = pick(rng, PRAISE), pick(rng, BLAME)
    frame = f"the {part} of this {whole} is {{}}"
    return [
        ((frame.format(good),), POSITIVE),
        ((frame.format(f"{negator} {good}"),), NEGATIVE),
        ((frame.format(f"{negator} {bad}"),), POSITIVE),
        ((frame.format(bad),), NEGATIVE),
    ]


def contrast(rng: random.Random) -> Group:
    """the plot is dull , but the film is charming: what follows `but` decides, not what follows `although`"""
    whole, part = pick(rng, WHOLES), pick(rng, PARTS)
    good, bad = pick(rng, PRAISE), pick(rng, BLAME)
    frame = pick(rng, (
        f"the {part} is {{0}} , but the {whole} is {{1}}",
        f"although the {part} is {{0}} , the {whole} is {{1}}",
        f"the {whole} is {{1}} , although the {part} is {{0}}",
    ))  # fmt: skip
    return [((frame.format(bad, good),), POSITIVE), ((frame.format(good, bad),), NEGATIVE)]


# Groups in 100; a negated group has four sentences, the others two. Single words decide the first two kinds.
SST2_WEIGHTS: Grammar = {plain: 45, intensifiers: 20, negated: 17, contrast: 18}
