"""Train the network, and write its weights."""

import torch
from data import accuracy, train
from nets import MobileNet

torch.manual_seed(0)
net = MobileNet()
train(net, epochs=10)
torch.save(net.state_dict(), "weights.pt")
print("trained:", accuracy(net))
