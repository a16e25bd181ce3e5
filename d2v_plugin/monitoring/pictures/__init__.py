"""Pictures of what a run does: inputs with their masks, features in colours, similarities, mask samplers."""
