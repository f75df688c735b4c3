"""Architectures modelled on pruned networks (Liu et al., ICLR 2019, arXiv:1810.05270, section 5).

Both methods average what each stage kept over the networks that another method pruned (all seeds
of the study; see ``regrow.pruning.stages``). They build a new architecture with these averages
without using weights, so it is trained from scratch.

    methods:
      - {name: guided-pruning, sparsity: [0.3, 0.5]}
      - name: guided-pruning
        label: transferred
        sparsity: [0.3, 0.5]
        from: {model: vgg-16, data: cifar10, method: {name: network-slimming, strength: 1e-4}}

A row's sparsity is that of the networks it follows; its own comes out close to it. Without
``from``, the pattern is taken from the row's own network and data.
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

# Each weight is kept with a probability equal to the share kept at its position in the stage's
# kernels. The paper does not say how it draws.
register_method(
    "guided-sparsification",
    criterion=random_score,
    allocation="independent",
    unit="weight",
    trained=False,
    follows="magnitude",
    reference=REFERENCE,
)
