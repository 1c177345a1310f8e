"""What the jobs are built of: storage, shards, stream, engines, checkpoints, tracking. Imports `model`, never `jobs`."""
