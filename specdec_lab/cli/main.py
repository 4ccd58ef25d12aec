"""The entry point of the command line, `specdec`."""

import sys

import typer

from specdec_lab.cli.bench_command import bench
from specdec_lab.cli.demo_command import demo
from specdec_lab.cli.doctor_command import doctor
from specdec_lab.cli.equivalence_command import equivalence
from specdec_lab.cli.grade_command import grade, progress
from specdec_lab.cli.train_command import train
from specdec_lab.cli.vllm_command import vllm_config
from specdec_ref.errors import SpecdecError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Speculative decoding: see it, measure it, test it, and train the pair of models.",
)

app.command()(demo)
app.command()(bench)
app.command()(doctor)
app.command()(equivalence)
app.command()(grade)
app.command()(progress)
app.command("vllm-config")(vllm_config)
app.command()(train)


def main() -> None:
    """Run `specdec`. Exit status: 0 success, 1 a check failed, 2 bad usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ✓ shows ?
    try:
        app()
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("specdec: interrupted", file=sys.stderr)
        sys.exit(130)
