"""What a config costs before it runs: FLOPs and memory. Start at `flops`."""
