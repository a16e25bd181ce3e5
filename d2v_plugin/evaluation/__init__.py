"""How well a model does on labelled data: predictions, scores, and the unit that fairseq2's validator and evaluator run."""
