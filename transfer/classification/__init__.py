"""Classification benchmarks: data, features, heads, protocols, pictures."""
