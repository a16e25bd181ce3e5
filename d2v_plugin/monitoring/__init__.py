"""What a run says about itself beyond its loss."""
