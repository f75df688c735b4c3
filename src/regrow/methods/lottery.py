"""The Lottery Ticket Hypothesis (Frankle and Carbin, ICLR 2019, arXiv:1803.03635), in rounds.

Each round prunes a share of the remaining weights by their trained magnitudes, resets the survivors
to their values before training, and trains them again (the arm ``ticket``: ``winning-ticket``, or
one that starts ``rewound``). The sparsity in a table is the total removed after that round.

    methods: {name: lottery, rounds: 14, sparsity: 0.2}
    arms: [winning-ticket, random-init, scratch-e]

``random-init`` redraws the survivors from the same distribution, ``scratch-e`` from one that is
scaled by the density of each layer; both use each round's mask and are not pruned further. With a
single round this is ``magnitude``. For tickets of whole filters use ``l1-filter`` with the same
arms: it trains the narrow network, where the official code holds filters of the full one at zero.
"""

from regrow.methods.l1_filter import l1_norm
from regrow.pruning.method import register_method

register_method(
    "lottery",
    criterion=l1_norm,
    allocation="global",
    unit="weight",
    scope=("conv",),
    rounds=14,
    reference="Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR 2019, arXiv:1803.03635",
)
