"""From images to shards with a manifest: what `biggan shard` and `biggan index` do."""
