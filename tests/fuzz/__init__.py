"""Fuzzers: damaged manifests, archives and models end in an error of riq's own, in bounded memory and time."""
