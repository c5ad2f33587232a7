"""How long an epoch takes on an accelerator, beside one thread of the CPU and beside scVI."""
