"""What is said of packages and of the machine."""

from regrow.core.machine import version_of, versions


def test_code_that_is_not_installed_has_no_version() -> None:
    assert version_of("a-package-that-nobody-installed") == "(not installed)"
    assert version_of("torch")[0].isdigit()
    assert "regrow" in versions()
