"""From a folder on someone's disk to manifests; ``fairseq2 recipe manifest`` is the command line of it."""
