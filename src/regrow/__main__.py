"""``python -m regrow``, which launchers such as ``torchrun`` start."""

from regrow.cli import main

main()
