"""Data sets of users: found in the layouts that tools export, read, and told apart by their content."""
