"""``python -m regrow``, which launchers such as ``torchrun`` start."""

from regrow.cli.main import main

main()
