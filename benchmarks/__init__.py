"""What zmesh costs and gains, measured. Each file is one benchmark: `./scripts/bench NAME`."""
