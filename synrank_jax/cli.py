"""What every command shares: --config, --set, --print-config, and errors without tracebacks."""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

from synrank_jax.config import Config
from synrank_jax.config_file import SectionT, load_section, to_yaml
from synrank_jax.errors import HostLostError, UserError

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
# Saved, or a host was lost: the same command goes on. Launch scripts restart on these two only.
EXIT_PREEMPTED = 75
EXIT_HOST_LOST = 76
EXIT_INTERRUPTED = 130


def config_parser(
    command: str, description: str, *, required: bool = True
) -> argparse.ArgumentParser:
    """Argument parser of `python -m synrank_jax.<command>` with the configuration options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m synrank_jax.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", required=required, help="the configuration"
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override one value of the configuration (repeatable)",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    return parser


def parsed_config(args: argparse.Namespace) -> Config:
    """The configuration the arguments name; exits after printing it under --print-config."""
    return parsed_section(Config, args)


def parsed_section(section: type[SectionT], args: argparse.Namespace) -> SectionT:
    """`parsed_config` for a file of another kind."""
    config = load_section(section, args.config, args.overrides)
    if args.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def report(error: BaseException) -> int:
    """Print what ended a command to stderr; returns the exit code that belongs to it."""
    match error:
        case SystemExit(code=int(code)):
            return code
        case UserError():
            print(f"error: {error}", file=sys.stderr)
            return EXIT_HOST_LOST if isinstance(error, HostLostError) else EXIT_USER_ERROR
        case KeyboardInterrupt():
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
    traceback.print_exception(error)
    return EXIT_FAILURE


def run_command(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a command's main: a UserError becomes one message and exit code 2, Ctrl-C 130."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        main(None)
    except (UserError, KeyboardInterrupt) as error:
        raise SystemExit(report(error)) from None
