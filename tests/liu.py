"""The functions of ``regrow.reproduce``, bound to the paper by Liu et al."""

from collections.abc import Mapping
from functools import partial

from regrow.reproduce import claims, contrasts, layout, printed, read_results, rules
from regrow.reproduce.paper import Entry, find_paper

PAPER = find_paper("liu2019")
CLAIMS = PAPER.claims
results = partial(printed.results, PAPER)
widths = partial(printed.widths, PAPER)
sparsity = partial(printed.sparsity, PAPER)
cells = partial(printed.cells, PAPER)
lookup = partial(printed.lookup, PAPER)
once = partial(printed.once, PAPER)
as_cells = partial(printed.as_cells, PAPER)
names = PAPER.labels
lay_out = partial(layout.lay_out, PAPER)
pairs = partial(contrasts.pairs, PAPER)
evidence = partial(rules.ClaimEvidence, paper=PAPER)
evaluate_claims = partial(claims.evaluate_claims, PAPER)
read_cells = partial(read_results.read_cells, PAPER)
entry = PAPER.entry


def entries() -> Mapping[str, Entry]:
    """Return the tables and figures by name."""
    return PAPER.entries
