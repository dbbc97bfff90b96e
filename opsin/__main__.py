"""`python -m opsin`: the `opsin` command without its script."""

from opsin.cli import main

main()
