"""The version of riq."""

VERSION = "0.1.0"
