"""What the registration bundles share. One concept a file; see docs/ and each module's first lines."""

__version__ = "0.2.0"
