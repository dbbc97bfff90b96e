"""`python -m opsin`: the `opsin` command where no script is installed."""

from opsin.cli import main

main()
