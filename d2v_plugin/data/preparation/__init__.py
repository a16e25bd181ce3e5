"""From a folder on someone's disk to manifests; ``tools/make_manifest.py`` is the command line of it."""
