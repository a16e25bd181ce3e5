"""Features of all samples of a manifest, written to disk: ``fairseq2 recipe extract``."""
