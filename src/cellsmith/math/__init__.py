"""Pure mathematics: numpy, scipy and torch arrays in, arrays out. No AnnData, no scvi-tools, no Lightning."""
