"""Errors of the converters, without the packages that raise them."""


class VerificationError(RuntimeError):
    """A built model does not hold the backbone: tensors or features differ."""
