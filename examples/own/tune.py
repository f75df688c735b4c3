"""Fine-tune the network that `regrow shrink` wrote to `small`, save it, and export it to ONNX."""

from data import accuracy, train

import regrow

small = regrow.load("small", code="nets.py:MobileNet")
print("cut:", accuracy(small))
train(small, epochs=10, lr=0.003)
print("fine-tuned:", accuracy(small))
regrow.save("tuned", small, regrow.Architecture.read("small", code="nets.py:MobileNet"))
print("tuned.onnx", regrow.export(small, "1x1x8x8", "tuned.onnx"))
