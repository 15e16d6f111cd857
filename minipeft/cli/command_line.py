"""The parser of `minipeft`: one subparser for each command."""

from minipeft.cli.compare_flags import add_compare_flags
from minipeft.cli.flags import TRAIN_EXAMPLES, Parser, add_settings, add_train_flags
from minipeft.cli.predict_flags import RUN, add_predict_flags
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.version import __version__


def command_line() -> Parser:
    """Return the parser of `minipeft`."""
    parser = Parser(prog="minipeft", description="Parameter-efficient fine-tuning of encoders in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    train = commands.add_parser(
        "train",
        help="fine-tune on a task",
        epilog=TRAIN_EXAMPLES.format(prog="minipeft train"),
        usage="%(prog)s [flags]",
        add_help=False,
    )
    add_train_flags(train)

    add_compare_flags(commands)

    methods = commands.add_parser("methods", help="the methods: options, defaults, parameters, paper, peft")
    methods.add_argument("name", nargs="?", help="one method, with an explanation of its options [all]")

    add_predict_flags(commands)

    pretrain = commands.add_parser(
        "pretrain", help="masked-language-model pretraining, from nothing or from a checkpoint"
    )
    add_settings(pretrain, PretrainSettings)

    export = commands.add_parser(
        "export",
        aliases=["merge"],
        help="merge a run's adapter: a checkpoint that transformers loads, and the largest difference of a logit",
    )
    export.add_argument("run", help="folder of a finished run")
    export.add_argument("folder", help="new folder for the checkpoint")

    push = commands.add_parser("push", help="upload an adapter with its model card, or a merged checkpoint, to the hub")
    push.add_argument("run", help=RUN)
    push.add_argument("name", help="repository: owner/name; it is created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private [off]")
    push.add_argument("--dry-run", action="store_true", help="list the files, without a token or a connection [off]")

    fetch = commands.add_parser(
        "fetch", help="download a checkpoint into the Hugging Face cache, verified; print its folder"
    )
    fetch.add_argument("name", help="roberta-base, roberta-large, …, owner/name or owner/name@revision")
    return parser
