"""SCLD: synthesis of single-cell counts by latent diffusion with pre- and post-guidance."""
