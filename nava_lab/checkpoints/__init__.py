"""Published checkpoints: their layouts as tables of keys, read in shard by shard, written back."""
