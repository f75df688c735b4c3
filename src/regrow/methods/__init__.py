"""Published pruning methods, one file each: a criterion and how it is put together."""
