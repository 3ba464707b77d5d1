import common  # noqa: F401  says what is to be done where the environment is not active
