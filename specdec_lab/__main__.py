"""`python -m specdec_lab` is `specdec`."""

from specdec_lab.cli.main import main

main()
