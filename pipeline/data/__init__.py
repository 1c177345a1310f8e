"""From shards at a URI to micro-batches: manifest, order, sampler, reader, decoder, loader."""
