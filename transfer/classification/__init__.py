"""What the classification benchmarks share: data, trunk features, heads, schedules, pictures."""
