"""`python -m specdec_ref` is `specdec`."""

from specdec_ref.cli import main

main()
