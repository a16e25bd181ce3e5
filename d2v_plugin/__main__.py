"""``python -m d2v_plugin`` is the ``fairseq2`` command; the form that torchrun starts."""

from d2v_plugin.cli.main import main

if __name__ == "__main__":
    main()
