"""The jobs of a study: training, pruning, and retraining under the study's arms."""
