"""The conformance table: what every algorithm, of this package or another, is held against."""
