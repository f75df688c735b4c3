"""Published pruning methods, one file each: a criterion and the method's other parts."""
