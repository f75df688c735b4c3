"""The jobs of a study: what is trained, pruned and retrained, and under which arms."""
