"""Others' numbers for the unpruned networks of a table, with their sources."""

import pytest

from liu import PAPER
from regrow.reproduce import elsewhere as room
from regrow.reproduce.elsewhere import elsewhere
from regrow.reproduce.layout import lay_out
from regrow.reproduce.paper import find_paper
from regrow.reproduce.printed import lookup


def shown(paper: str, table: int) -> dict[tuple[str, str], str]:
    """Return sources by network and number."""
    found = find_paper(paper)
    rows = elsewhere(found, lay_out(found, table))
    return {row.texts[:1] + row.texts[3:4]: row.texts[4] for row in rows}  # type: ignore[misc]


def test_repositories_and_other_papers_stand_beside_a_table() -> None:
    found = shown("liu2019", 1)
    resnet = "CIFAR-10, ResNet-56"
    assert found[resnet, "93.39"].startswith("akamaster/pytorch_resnet_cifar10, README at 10675c4")
    assert "best test accuracy of any epoch" in found[resnet, "93.39"]
    assert "arXiv:2301.05219, Table 6" in found[resnet, "93.78"]
    assert (("CIFAR-10, ResNet-110", "93.68")) in found
    assert not any("VGG-16" in network for network, _ in found)  # nobody is known for it


def test_the_first_paper_stands_beside_the_second() -> None:
    found = shown("wang2023", 6)
    printed = lookup(PAPER, table=1, model="ResNet-56", arm="unpruned")
    assert found["CIFAR-10, ResNet-56", f"{printed.mean:.2f} ± {printed.std:.2f}"].endswith(
        "arXiv:1810.05270, Table 1"
    )


def test_errors_that_sources_print_are_the_numbers_here() -> None:
    rows = room._of_repositories()
    assert rows
    for row in rows:
        error = row["source"].rpartition("test error ")[2].removesuffix(" %)")
        assert row["mean"] == pytest.approx(100 - float(error))


def test_it_is_text_a_table_and_data() -> None:
    rows = elsewhere(PAPER, lay_out(PAPER, 1))
    assert "  CIFAR-10, ResNet-56: 93.39 (the paper 93.14 ± 0.12, ours not run)" in room.plain(rows)
    assert "| CIFAR-10, ResNet-56 | 93.14 ± 0.12 | not run | 93.39 | akamaster/" in room.markdown(
        rows
    )
    assert room.as_csv(rows).startswith("dataset,model,mean,std,source,how\n")


def test_tables_of_changes_and_of_widths_have_none() -> None:
    assert elsewhere(PAPER, lay_out(PAPER, 7)) == ()
    assert elsewhere(PAPER, lay_out(PAPER, 2)) == ()
