"""Topics of gene expression: scE2TM beside LDA, linear scVI, NMF and PCA."""
