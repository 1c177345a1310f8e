"""What bounds a machine or a data set: measured on one node, between nodes, and on shards."""
