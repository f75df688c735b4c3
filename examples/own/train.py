"""Train the network of nets.py, and write its weights to weights.pt."""

import torch
from data import accuracy, train
from nets import MobileNet

torch.manual_seed(0)
net = MobileNet()
train(net, epochs=10)
torch.save(net.state_dict(), "weights.pt")
print("trained:", accuracy(net))
