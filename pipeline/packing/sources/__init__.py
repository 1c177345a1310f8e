"""The kinds of places that images come from: folders, zips, IDX, CIFAR, ImageNet's tars, parquet, shards."""
