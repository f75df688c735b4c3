"""``python -m regrow``, which launchers such as ``torchrun`` start."""

from regrow.cli.main import main

if __name__ == "__main__":
    main()
