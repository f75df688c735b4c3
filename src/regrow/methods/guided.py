"""Networks designed after pruned ones (Liu et al., ICLR 2019, arXiv:1810.05270, section 5).

Both average over the networks that another method pruned (all seeds of the study) what each stage
kept: ``regrow.pruning.stages``. They draw a new architecture with these averages and look at no
weights, so it is trained from scratch.

    methods:
      - {name: guided-pruning, sparsity: [0.3, 0.5]}
      - name: guided-pruning
        label: transferred
        sparsity: [0.3, 0.5]
        from: {model: vgg-16, data: cifar10, method: {name: network-slimming, strength: 1e-4}}

A row's sparsity is that of the networks it follows; its own comes out near it. Without ``from`` the
pattern is of the row's own network and data.
"""

from regrow.methods.controls import random_score
from regrow.pruning.method import NORMED, register_method

REFERENCE = (
    "Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270, section 5"
)

# Every layer of a stage keeps round(share x width) channels. The paper does not say how it rounds.
register_method(
    "guided-pruning",
    criterion=random_score,
    allocation="uniform",
    scope=NORMED,
    trained=False,
    follows="network-slimming",
    reference=REFERENCE,
)

# A draw for each weight, by the share kept at its position of the stage's kernels. The paper does
# not say how it draws.
register_method(
    "guided-sparsification",
    criterion=random_score,
    allocation="independent",
    unit="weight",
    trained=False,
    follows="magnitude",
    reference=REFERENCE,
)
