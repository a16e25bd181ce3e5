"""Objectives of fine-tuning: a head on the encoder, trained on labels."""
