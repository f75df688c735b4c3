"""Object detection: does the answer for classification carry over to a detector on top?

data = load(DetectionSpec("voc:PATH"), short_side=600, long_side=1000)
model = build_detector(net, Detector(), num_classes=20, mean=mean, std=std)
training = DetectionTraining(model, data.train, VOC_RECIPE, seed=0)
while not training.done:
    training.step()
score = evaluate_detector(model, data.test, data.classes)
"""
