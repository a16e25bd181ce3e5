"""The ``fairseq2`` command."""

from d2v_plugin.cli.main import main as main
