"""``python -m residmix``."""

from residmix.cli import main

main(prog_name="residmix")
