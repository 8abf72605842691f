"""Do: capture activations, train sparse autoencoders, report to the queue."""
