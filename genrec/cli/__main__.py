"""``python -m genrec.cli``: what torchrun starts on several devices."""

from genrec.cli.main import main

main()
