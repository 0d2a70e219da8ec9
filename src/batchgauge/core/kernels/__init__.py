"""What is compiled: register tiles for products and attention, norms and activations."""
