"""Object detection: does the answer for classification also hold for a detector built on it?

dataset = load(DataSpec("voc:PATH"))
head = DetectorHead.read("voc")
model = head.around(net, num_classes=20, mean=mean, std=std)
training = head.training(model, dataset, recipe, seed=0, device="cpu")
while not training.done:
    training.step()
scores = head.score(model, dataset, precision="fp32")
"""
