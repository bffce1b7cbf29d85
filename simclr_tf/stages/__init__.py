"""What is trained: each stage says which data, network and loss; the one loop does the rest."""
