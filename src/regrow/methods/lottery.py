"""The Lottery Ticket Hypothesis (Frankle and Carbin, ICLR 2019, arXiv:1803.03635), by rounds.

Each round prunes a share of the weights that are left, by the magnitudes they were trained to, puts
the survivors back to their values before training, and trains them again (the arm ``ticket``:
``winning-ticket``, or one that starts ``rewound``). A table's sparsity is what is gone by then.

    methods: {name: lottery, rounds: 14, sparsity: 0.2}
    arms: [winning-ticket, random-init, scratch-e]

``random-init`` draws the survivors anew from the same distribution, ``scratch-e`` from one that is
scaled by the density of each layer; both use each round's mask and are pruned no further. In a
single round this is ``magnitude``. Tickets of whole filters are ``l1-filter`` with the same arms:
the narrow network, where the official code keeps the full one and holds filters at zero.
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
